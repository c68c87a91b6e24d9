"""Masks for all images of a folder, with a record of what made them."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nissl.data.cases import CaseFile, image_faults, open_image
from nissl.data.duplicates import file_hash
from nissl.data.naming import Listing, list_files
from nissl.errors import DataError, InputError, NisslError, ResourceError, out_of_memory
from nissl.imageio.dicom import is_series
from nissl.imageio.formats import GIB, NIFTI, SUFFIXES, TIFF, mask_suffix, plain_name, read_header, stem, suffix
from nissl.inference.memory import MemoryFallback, lines_needed, network_bytes, resident_bytes, tile_size, total_bytes
from nissl.inference.tiles import bands, require_fit
from nissl.model import Model
from nissl.progress import Tracker, track
from nissl.runs.folder import write_json

RECORD = "predictions.json"


@dataclass(frozen=True)
class FolderResult:
    """The masks that were written, one error for each image that has none, and the value of each class in a mask."""

    written: tuple[Path, ...]
    failed: tuple[NisslError, ...]
    values: dict[str, int | str]
    """What stands for each class in the masks; empty for a task without classes."""
    steps: int
    """Steps that the weights have behind them."""
    planned_steps: int
    """With fewer, the run is unfinished."""
    left_out: str = ""
    """What else lies in the folder, such as `2 files of another kind (.gif); 1 subfolder with 5 images`."""


def predict_folder(
    run: Path,
    images: Path,
    out: Path,
    device: str = "auto",
    tracker: Tracker = track,
    values: Literal["own", "classes"] = "own",
) -> FolderResult:
    """Write a mask for every image of a folder, or for a single file; of subfolders only DICOM series are read.

    A mask has the size, the name and the format of its image (PNG for JPEG and BMP), in NIfTI its affine and spacing.
    It holds the values or colours of the masks that the run was trained on (`own`), so that it can serve as a training
    mask with the same label map, or class numbers (`classes`, and runs of older versions).
    Images whose names differ by suffix or case only keep their suffix: the masks of `a.png` and `a.tif` are
    `a.png.png` and `a.tif.tif`. `predictions.json` names the run, its weights, the classes, the tiling and each mask;
    a mask's own description names run and weights too. In a folder with DICOM in it, masks have pseudonyms for names;
    the record says which file by name each belongs to.

    TIFF images are read, and their masks written, in parts (`docs/large-images.md`). An image that cannot be used is an
    error in the result; all others are written.

    Raises:
        InputError: `run` is not a run, there is no image, or `out` is not an empty or new folder.
        DataError: the weights of the run are damaged.
        ResourceError: the disk is full.

    """
    files = _find(images)
    _require_free(out)
    model = Model.load(run, device)
    model = model.with_values(()) if values == "classes" else model
    if model.dims == 3 and is_series(images):  # one volume, of which these files are the slices
        files = Listing(images, (images,), (), private=True)
    skipped = [files.id(path) if files.private else plain_name(path.name) for path in files.others + files.folders]
    record = _record(run, model) | {"skipped": skipped, "failed": {}, "images": {}}
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / RECORD, record)  # at once, so that the masks of a killed run are known as well
    except OSError as error:
        raise InputError(out, f"{error.strerror}", "a folder that can be written", "choose another folder") from error
    try:
        return _predict_all(model, files, out, record, tracker)
    finally:
        write_json(out / RECORD, record)


def _predict_all(model: Model, files: Listing, out: Path, record: dict[str, Any], tracker: Tracker) -> FolderResult:
    """Predict image after image and enter each in the record, which so holds what an interruption leaves."""
    paths, targets = files.paths, _targets(files)
    written: list[Path] = []
    failed: list[NisslError] = []
    note = f"nissl run {record['run']}, weights {model.weights[:16]}"
    work = _Work(model, MemoryFallback(model), network_bytes(model), note)
    # What this process held so far, and what the image that needs most takes.
    most = resident_bytes() + max(map(work.needs, paths), default=0)
    with tracker(len(paths), f"masks (memory: {most / GIB:.3g} GiB at most)") as advance:
        for path in paths:
            target, name = out / targets[path], files.called(path)
            try:
                work.predict(path, target, files.alias(path))
            except NisslError as error:
                if error.code == "disk-full":
                    raise
                record["failed"][name] = error.found
                failed.append(error)
            else:
                entry: dict[str, Any] = {"mask": target.name, "sha256": file_hash(target)}
                entry |= {"out_of_memory": work.fallback.taken} if work.fallback.taken else {}
                record["images"][name] = entry | ({"position": files.position(path)} if files.private else {})
                written.append(target)
            advance(name)
    steps = model.steps, model.planned_steps
    return FolderResult(tuple(written), tuple(failed), record["values"], *steps, files.left_out)


def _targets(files: Listing) -> dict[Path, str]:
    """Name of the mask of each image; the suffix of a private image says nothing of its mask's."""
    named = {path: files.called(path) + (mask_suffix(path) if files.private else "") for path in files.paths}
    masks = mask_names(named.values())
    return {path: masks[name] for path, name in named.items()}


def mask_names(names: Iterable[str]) -> dict[str, str]:
    """Name of the mask for each image of a folder; no two are equal, upper and lower case counted as equal."""
    names = sorted(names)
    stems = Counter(stem(Path(name)).casefold() for name in names)
    taken: set[str] = set()
    masks: dict[str, str] = {}
    for name in names:
        known, base = suffix(Path(name)), stem(Path(name))
        kind = known if known in TIFF + NIFTI else ".png"
        base = name if stems[base.casefold()] > 1 else base
        mask, number = base + kind, 2
        while mask.casefold() in taken:
            mask, number = f"{base}-{number}{kind}", number + 1
        taken.add(mask.casefold())
        masks[name] = mask
    return masks


def _find(images: Path) -> Listing:
    """The images of a folder, or a single one."""
    files = list_files(images)
    if not files.paths:
        left = f", but {files.left_out}" if files.left_out else ""
        found = f"no image{left}" if images.exists() else "no such file or folder"
        expected = f"files of kind {' '.join(SUFFIXES)}"
        raise InputError(images, found, expected, "check the path; subfolders do not count")
    return files


def _require_free(out: Path) -> None:
    expected, fix = "an empty or new folder", "choose another folder for --out"
    if (out.exists() or out.is_symlink()) and not out.is_dir():
        raise InputError(out, "a file", expected, fix)
    names = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    found = f"{len(names)} files or folders, such as {names[0]}" if names else ""
    if RECORD in names:
        try:
            record = json.loads((out / RECORD).read_text(encoding="utf-8"))
            found = f"masks of run {record['run']} (weights {record['weights'][:12]})"
        except (OSError, ValueError, LookupError, TypeError):
            found = f"masks of an older run, with a damaged {RECORD}"
    if found:
        raise InputError(out, found, expected, f"{fix}; nothing is overwritten")


def _record(run: Path, model: Model) -> dict[str, Any]:
    data = model.preprocessing
    tiling = dict(zip(("tile", "halo"), tile_size(model), strict=True)) if data.sampling == "patches" else {}
    return {
        "run": run.resolve().name,
        "weights": model.weights,
        "steps": model.steps,
        "planned_steps": model.planned_steps,
        "classes": dict(enumerate(model.classes)),
        "values": dict(zip(model.classes, model.values or range(len(model.classes)), strict=True))
        if model.task.classes
        else {},
        "sampling": data.sampling,
        "size": data.size,
        "precision": model.description.precision,
        **tiling,
    }


@dataclass(frozen=True)
class _Work:
    """What is done to each image of a folder, and what that takes."""

    model: Model
    fallback: MemoryFallback
    per_pixel: int
    """Bytes that the network takes for each pixel that it sees."""
    note: str
    """What each mask says of where it comes from."""

    def needs(self, path: Path) -> int:
        """Most memory that an image takes, in bytes; 0 for one that cannot be used, which is named in its turn."""
        try:
            header = read_header(path, axes=self.model.reading.axes)
        except DataError:
            return 0
        fits = len(header.shape) == self.model.dims
        return total_bytes(self.model, header, suffix(path) in TIFF, self.per_pixel) if fits else 0

    def predict(self, path: Path, target: Path, alias: str | None) -> None:
        """Read an image, predict it and write its mask; errors call the image by its alias, if it has one.

        Raises:
            DataError: the image cannot be read or used, or its mask has a name that cannot be written.
            ResourceError: too little memory for this image, or the disk is full (then it names the mask).

        """
        file = CaseFile(stem(path), path, alias=alias)
        try:
            with open_image(path, self.model.reading, lines_needed(self.model), alias) as raster:
                for fault in image_faults(file, raster):
                    raise DataError(fault.where, fault.found, fault.expected, fault.fix)
                require_fit(self.model, raster.pixels, file.image_name)
                served = (band for _, band in bands(self.model, raster.pixels, self.fallback))
                self.model.task.write(target, served, raster, self.model.values, self.note)
        except (MemoryError, RuntimeError, ResourceError, OSError) as error:
            if out_of_memory(error) or (isinstance(error, ResourceError) and error.code != "disk-full"):
                more = "close other programs, or take a machine with more memory"
                fix = error.fix if isinstance(error, ResourceError) else more
                need = f"up to {self.needs(path) / GIB:.2g} GiB of free memory"
                raise ResourceError(file.image_name, "out of memory", need, fix) from error
            if not isinstance(error, OSError):
                raise
            found, expected = f"its mask cannot be written: {error.strerror}", "a name and folder that take its mask"
            raise DataError(file.image_name, found, expected, "rename the image") from error
