"""Masks for all images of a folder, with a record of what made them."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from nissl.data.cases import CaseFile, image_faults, read_image
from nissl.data.formats import GIB, SUFFIXES, Header, read_header, stem, suffix, write_mask
from nissl.errors import DataError, InputError, NisslError, ResourceError, out_of_memory
from nissl.predict.tiles import peak_bytes, predict_mask, require_fit, tile_size
from nissl.progress import Tracker, track
from nissl.train.run import Model, load_model, write_json

RECORD = "predictions.json"


@dataclass(frozen=True)
class FolderResult:
    """The masks that were written, and one error for each image that has none."""

    written: tuple[Path, ...]
    failed: tuple[NisslError, ...]


def predict_folder(run: Path, images: Path, out: Path, device: str = "auto", tracker: Tracker = track) -> FolderResult:
    """Write a mask for every image of a folder (subfolders are not walked), or for a single file.

    A mask has the size, the name and the format of its image (PNG for JPEG and BMP), in NIfTI its affine and spacing.
    Its values are the class numbers, so that it can serve as a training mask: 0 and 1 both look black in most viewers.
    Images whose names differ by suffix or case only keep their suffix: the masks of `a.png` and `a.tif` are
    `a.png.png` and `a.tif.tif`. `predictions.json` names the run, its weights, the classes, the tiling and each mask.

    An image that cannot be used is an error in the result; all others are written.

    Raises:
        InputError: `run` is not a run, there is no image, or `out` is not an empty or new folder.
        DataError: the weights of the run are damaged.
        ResourceError: the disk is full.

    """
    paths, skipped = _find(images)
    _require_free(out)
    model = load_model(run, device)
    record = _record(run, model) | {"skipped": skipped, "failed": {}, "images": {}}
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / RECORD, record)  # at once, so that the masks of a killed run are known as well
    except OSError as error:
        raise InputError(out, f"{error.strerror}", "a folder that can be written", "choose another folder") from error
    try:
        return _predict_all(model, paths, out, record, tracker)
    finally:
        write_json(out / RECORD, record)


def _predict_all(
    model: Model, paths: Sequence[Path], out: Path, record: dict[str, Any], tracker: Tracker
) -> FolderResult:
    """Predict image after image and enter each in the record, which so holds what an interruption leaves."""
    targets = mask_names(path.name for path in paths)
    written: list[Path] = []
    failed: list[NisslError] = []
    with tracker(len(paths), f"masks (memory: {_bound(model, paths) / GIB:.2g} GiB at most)") as advance:
        for path in paths:
            target = out / targets[path.name]
            try:
                _predict(model, path, target)
            except NisslError as error:
                if isinstance(error, ResourceError) and error.where == str(target):  # the disk is full
                    raise
                record["failed"][path.name] = error.found
                failed.append(error)
            else:
                digest = hashlib.sha256(target.read_bytes()).hexdigest()
                record["images"][path.name] = {"mask": target.name, "sha256": digest}
                written.append(target)
            advance(path.name)
    return FolderResult(tuple(written), tuple(failed))


def mask_names(names: Iterable[str]) -> dict[str, str]:
    """Name of the mask for each image of a folder; no two are equal, upper and lower case counted as equal."""
    names = sorted(names)
    stems = Counter(stem(Path(name)).casefold() for name in names)
    taken: set[str] = set()
    masks: dict[str, str] = {}
    for name in names:
        known = suffix(Path(name))
        kind = known if known in (".tif", ".tiff", ".nii", ".nii.gz") else ".png"
        base = stem(Path(name))
        base = name if stems[base.casefold()] > 1 else base
        mask, number = base + kind, 2
        while mask.casefold() in taken:
            mask, number = f"{base}-{number}{kind}", number + 1
        taken.add(mask.casefold())
        masks[name] = mask
    return masks


def _find(images: Path) -> tuple[list[Path], list[str]]:
    """Images, and the names of the files that are of no known kind; hidden files are left out."""
    if images.is_dir():
        files = sorted(path for path in images.iterdir() if not path.name.startswith(".") and not path.is_dir())
    else:
        files = [images] if images.exists() else []
    paths = [path for path in files if suffix(path)]
    if not paths:
        found = "no image" if images.exists() else "no such file or folder"
        raise InputError(
            images, found, f"files of kind {' '.join(SUFFIXES)}", "check the path; subfolders do not count"
        )
    return paths, [path.name for path in files if not suffix(path)]


def _require_free(out: Path) -> None:
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir():
        raise InputError(out, "a file", "an empty or new folder", "choose another folder for --out")
    names = sorted(path.name for path in out.iterdir())
    if not names:
        return
    found = f"{len(names)} files or folders, such as {names[0]}"
    if RECORD in names:
        try:
            record = json.loads((out / RECORD).read_text(encoding="utf-8"))
            found = f"masks of run {record['run']} (weights {record['weights'][:12]})"
        except (OSError, ValueError, LookupError, TypeError):
            found = f"masks of an older run, with a damaged {RECORD}"
    raise InputError(out, found, "an empty or new folder", "choose another folder for --out; nothing is overwritten")


def _record(run: Path, model: Model) -> dict[str, Any]:
    data = model.config.data
    tiling = dict(zip(("tile", "halo"), tile_size(model), strict=True)) if data.sampling == "patches" else {}
    return {
        "run": run.resolve().name,
        "weights": model.weights,
        "classes": dict(enumerate(model.classes)),
        "values": "class numbers",
        "sampling": data.sampling,
        "size": data.size,
        "precision": model.config.train.precision,
        **tiling,
    }


def _bound(model: Model, paths: Sequence[Path]) -> int:
    """Most memory for one of the images, in bytes: read, predicted and written (four copies of the mask)."""

    def needs(header: Header) -> int:
        return 2 * header.decoded_bytes + peak_bytes(model, header.shape) + 4 * prod(header.shape)

    headers = []
    for path in paths:
        try:
            headers.append(read_header(path))
        except DataError:  # named when its turn comes
            continue
    usable = [header for header in headers if len(header.shape) == model.dims]
    largest = max(usable, key=lambda header: header.decoded_bytes, default=None)
    return needs(largest) if largest else 0


def _predict(model: Model, path: Path, target: Path) -> None:
    """Read an image, predict it and write its mask.

    Raises:
        DataError: the image cannot be read or used, or its mask has a name that cannot be written.
        ResourceError: too little memory for this image, or the disk is full (then it names the mask).

    """
    raster = read_image(path, model.config.data)
    for fault in image_faults(CaseFile(stem(path), path), raster):
        raise DataError(fault.where, fault.found, fault.expected, fault.fix)
    require_fit(model, raster.pixels, path)
    try:
        labels = predict_mask(model, raster.pixels)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        need = peak_bytes(model, raster.pixels.shape[1:]) / GIB
        fix = "lower predict.tile in the run's config.toml, or use --device cpu"
        raise ResourceError(path, "out of memory", f"up to {need:.2g} GiB of free memory", fix) from error
    try:
        write_mask(target, labels, raster)
    except OSError as error:
        found = f"its mask cannot be written: {error.strerror}"
        raise DataError(path, found, f"a name and folder that take {target.name}", "rename the image") from error
