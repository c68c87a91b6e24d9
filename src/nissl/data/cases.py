"""Cases: one image each, with or without a mask, found in a folder."""

import csv
import difflib
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from pathlib import Path
from typing import Literal, cast

import numpy as np
from jaxtyping import Num, UInt8

from nissl.config import DataConfig
from nissl.data.naming import DATA_FOLDER, Listing, is_dicom, list_files, pseudonym
from nissl.errors import DataError, InputError, NisslError, TestSplitLocked
from nissl.imageio.formats import SUFFIXES, Raster, open_raster, read_header, read_raster
from nissl.imageio.label_map import LabelMap, default_map
from nissl.imageio.tiff_regions import Recoloured, row_strips

SPACING_TOLERANCE = 1e-4
"""Largest relative difference of two spacings that counts as rounding."""
PLACE_TOLERANCE = 0.1
"""Largest distance of the corners of image and mask, in voxels, that counts as rounding."""


@dataclass(frozen=True)
class CaseFile:
    """A case on disk, not yet read."""

    id: str
    image: Path
    mask: Path | None = None
    group: str | None = None
    """Patient, animal or slide: cases of one group must stay on one side of a split."""
    split: Literal["train", "test"] | None = None
    """The side that cases.csv gives, if it does."""
    alias: str | None = None
    """What errors call the case in place of its files, where their names must not be shown."""
    locked: bool = False
    """Not to be opened by what is going on: a test case during a training."""

    @property
    def image_name(self) -> str:
        """What errors call the image."""
        return self.alias or str(self.image)

    @property
    def mask_name(self) -> str:
        """What errors call the mask."""
        return self.mask_alias or str(self.mask)

    @property
    def mask_alias(self) -> str | None:
        """The alias of the mask, where there is one."""
        return self.alias and f"mask of {self.alias}"


@dataclass(frozen=True)
class Case:
    """A case in memory; spacing in mm along each spatial axis, None where the file states none."""

    id: str
    image: Num[np.ndarray, "channels *space"]
    mask: UInt8[np.ndarray, "*space"] | None = None
    group: str | None = None
    spacing: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Finding:
    """One fault of the data: an error makes a case or the set unusable, a warning is for the user to judge."""

    level: Literal["error", "warning"]
    where: str
    found: str
    expected: str
    fix: str

    @classmethod
    def of(cls, error: NisslError) -> "Finding":
        """The finding that an exception states."""
        return cls("error", error.where, error.found, error.expected, error.fix)


@dataclass(frozen=True)
class Scan:
    """What a folder holds by its names alone, with every fault that the names show."""

    layout: Literal["images+masks", "folders", "decathlon"]
    cases: tuple[CaseFile, ...]
    label_map: LabelMap
    findings: tuple[Finding, ...]
    private: bool = False
    """Whether there is DICOM among the files: then no name of a file or folder is shown or stored."""

    def id_of(self, name: str) -> str:
        """The id of a case by its id or by the name of its file without suffix."""
        ids = {case.id for case in self.cases}
        return pseudonym(name) if self.private and name not in ids else name


@dataclass(frozen=True)
class Dataset:
    """The cases of a folder, sorted by id; `dims` and `channels` are those of the first image that can be read."""

    root: Path
    cases: tuple[CaseFile, ...]
    label_map: LabelMap
    dims: int
    channels: int
    layout: str
    private: bool = False
    """Whether there is DICOM among the files: then no name of a file or folder is shown or stored."""

    @property
    def place(self) -> str:
        """What messages call the folder."""
        return DATA_FOLDER if self.private else str(self.root)


def find_cases(root: Path | str, config: DataConfig = DataConfig()) -> Dataset:
    """Find the images and masks of a folder: `images/` and `masks/`, two folders by flags, or the Decathlon's.

    An image and its mask have the same name but for the suffix; images without a mask are the unlabelled ones.

    Raises:
        InputError: no such folder, no images in it, or a label map that cannot be read.
        DataError: the names alone show a fault that makes the set unusable, or no image can be read.

    """
    root = Path(root)
    return look(root, list_cases(root, config), config)


def list_cases(root: Path, config: DataConfig) -> Scan:
    """List the cases of a folder by their names alone; no image is opened.

    Raises:
        InputError: no such folder, no images in it, or a label map that cannot be read.
        DataError: the names show a fault that makes the set unusable.

    """
    scan_ = scan(root, config)
    errors = [finding for finding in scan_.findings if finding.level == "error"]
    if errors:
        first, others = errors[0], len(errors) - 1
        place = "DATA" if scan_.private else root
        listing = f"; run `nissl check {place}` to list all {len(errors)} faults" if others else ""
        raise DataError(first.where, first.found, first.expected, first.fix + listing)
    return scan_


def look(root: Path, scan_: Scan, config: DataConfig, ids: Collection[str] | None = None) -> Dataset:
    """Read dimensions and channels from the header of the first image that can be read, among `ids` where given.

    Raises:
        DataError: no image can be read.

    """
    unreadable: DataError | None = None
    for case in scan_.cases:
        if ids is not None and case.id not in ids:
            continue
        try:
            header = read_header(case.image, case.alias)
        except DataError as error:
            unreadable = unreadable or error
            continue
        channels = channels_in(config, header.channels)
        return Dataset(root, scan_.cases, scan_.label_map, len(header.shape), channels, scan_.layout, scan_.private)
    assert unreadable is not None  # there is at least one case, and none was readable
    raise unreadable


def scan(root: Path, config: DataConfig) -> Scan:
    """List the cases of a folder and every fault that shows without opening an image.

    Raises:
        InputError: no such folder, no images in it, or a label map that cannot be read.

    """
    layout, images, masks = _folders(root, config)
    findings: list[Finding] = []
    pictures, drawn = list_files(images), list_files(masks) if masks else Listing((), (), False)
    private = pictures.private or drawn.private
    pictures, drawn = replace(pictures, private=private), replace(drawn, private=private)
    image_files = _by_id(pictures, images, findings)
    if not image_files:
        # DICOM files without suffix end in a part of an identifier.
        kinds = {path.suffix for path in pictures.others if re.fullmatch(r"\.[A-Za-z]\w{0,4}", path.suffix)}
        found = f"no images{f', only files of kind {chr(32).join(sorted(kinds))}' if kinds else ''}"
        fix = "name the folder with --data.images; DICOM files need the suffix .dcm"
        raise InputError(images, found, f"files of kind {' '.join(SUFFIXES)}", fix, "layout")
    mask_files = _by_id(drawn, masks, findings) if masks else {}
    if masks and not mask_files:
        fix = "put the masks there, name their folder with --data.masks, or remove the empty folder"
        where = "the folder of masks" if private else str(masks)
        findings.append(Finding("error", where, "an empty mask folder", "one mask or more", fix))
    for key in sorted(mask_files.keys() - image_files.keys()):
        path = mask_files[key]
        where = f"mask {drawn.alias(path)}" if private else str(path)
        expected = "an image of that name" if private else f"{drawn.id(path)}.* in {images}"
        fix = f"give the image the name of its mask, or remove the mask{'' if private else _nearest(key, image_files)}"
        findings.append(Finding("error", where, "a mask without image", expected, fix))
    found_cases = [
        CaseFile(pictures.id(path), path, mask_files.get(key), alias=pictures.alias(path))
        for key, path in image_files.items()
    ]
    cases = {case.id: case for case in sorted(found_cases, key=lambda case: case.id)}
    table = root / "cases.csv"
    if table.is_file():
        cases |= _read_table(table, cases, findings, private)
    return Scan(layout, tuple(cases.values()), _label_map(root, layout, config, findings), tuple(findings), private)


def _folders(
    root: Path, config: DataConfig
) -> tuple[Literal["images+masks", "folders", "decathlon"], Path, Path | None]:
    """Layout, folder of images, and folder of masks if there is one."""
    if not root.is_dir():
        found = "a file" if root.exists() else "no such folder"
        raise InputError(root, found, "a folder with images/ and masks/", "check the path")
    if config.images or config.masks:
        images, masks = (config.images or root / "images"), (config.masks or root / "masks")
        for flag, given, folder in (("images", True, images), ("masks", config.masks, masks)):
            if given and not folder.is_dir():
                raise InputError(folder, "no such folder", f"a folder of {flag}", f"correct --data.{flag}")
        return "folders", images, masks if masks.is_dir() else None
    if (root / "imagesTr").is_dir():
        return "decathlon", root / "imagesTr", root / "labelsTr" if (root / "labelsTr").is_dir() else None
    if (root / "images").is_dir():
        return "images+masks", root / "images", root / "masks" if (root / "masks").is_dir() else None
    inside = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    found = f"folders {', '.join(inside[:8])}" if inside else "no folder inside"
    fix = "arrange the files so, or name the folders with --data.images and --data.masks"
    raise InputError(root, found, "images/ and masks/ (or imagesTr/, labelsTr/ and dataset.json)", fix, "layout")


def _by_id(files: Listing, folder: Path, findings: list[Finding]) -> dict[str, Path]:
    """Files by id in lower case; two files of one id are a finding.

    Upper and lower case count as equal, since the outputs would overwrite each other on many file systems.
    """
    same: dict[str, list[Path]] = defaultdict(list)
    for path in files.paths:
        same[files.id(path).casefold()].append(path)
    for twins in same.values():
        if len(twins) > 1:
            names = ", ".join(files.position(path) if files.private else path.name for path in twins)
            where = files.alias(twins[1]) or str(twins[1])
            expected = "one file for each id (upper and lower case count as equal)"
            findings.append(
                Finding("error", where, f"the same id in {names}", expected, "rename or remove all but one")
            )
    strange = [path.name for path in files.others if path.suffix]
    if files.paths and strange:
        example = "" if files.private else f", such as {strange[0]}"
        found = f"{len(strange)} files of another kind{example}"
        where, expected = DATA_FOLDER if files.private else str(folder), f"files of kind {' '.join(SUFFIXES)}"
        findings.append(Finding("warning", where, found, expected, "convert them if they should be used"))
    return {key: twins[0] for key, twins in same.items()}


def _read_table(
    table: Path, cases: Mapping[str, CaseFile], findings: list[Finding], private: bool
) -> dict[str, CaseFile]:
    """Cases with the group and split that cases.csv gives; faults are added to the findings, with their line.

    Among private files, an id may be the name of a file or its pseudonym, and groups get pseudonyms as well: they are
    most often the numbers of patients.
    """
    where = table.name if private else str(table)

    def fault(line: int, found: str, expected: str, fix: str) -> None:
        findings.append(Finding("error", f"{where}, line {line}", found, expected, fix))

    named: dict[str, CaseFile] = {}
    try:
        lines = table.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = "" if private else f": {error}"
        findings.append(Finding("error", where, f"unreadable{reason}", "CSV in UTF-8", "save it as UTF-8"))
        return named
    reader = csv.DictReader(lines, skipinitialspace=True)
    columns = reader.fieldnames or ()
    if "id" not in columns:
        shown = "with other names" if private else ", ".join(columns) or "none"
        fault(1, f"columns {shown}", "id, group, split with commas between", "name the columns")
        return named
    for row in reader:
        id_, group, split = ((row.get(key) or "").strip() for key in ("id", "group", "split"))
        if private:
            id_ = id_ if id_ in cases else pseudonym(id_)
            group = group and pseudonym(group, "group")
        side = "test" if split.lower().startswith("test") else split.lower() or None
        if id_ not in cases:
            fix = f"correct the id, or remove the line{'' if private else _nearest(id_, cases)}"
            fault(reader.line_num, f"id `{id_}`, which no image has", "file names without suffix", fix)
        elif id_ in named:
            fault(reader.line_num, f"id `{id_}` a second time", "each id once", "remove one of the lines")
        elif side not in ("train", "test", None):
            fix = "correct it; masks for choosing settings are training masks (train)"
            shown = "another word as split" if private else f"split `{split}`"
            fault(reader.line_num, shown, "train, or test (testA, testB count as test), or empty", fix)
        else:
            named[id_] = replace(cases[id_], group=group or None, split=side)  # type: ignore[arg-type]
    return named


def _label_map(root: Path, layout: str, config: DataConfig, findings: list[Finding]) -> LabelMap:
    if config.label_map:
        return LabelMap.parse(config.label_map)
    description = root / "dataset.json"
    try:
        return default_map(description if layout == "decathlon" and description.is_file() else None)
    except DataError as error:
        findings.append(Finding.of(error))
        return default_map(None)


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean `{near[0]}`?)" if near else ""


LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the brightness of a colour, ITU-R BT.601."""


def read_image(path: Path, config: DataConfig, alias: str | None = None) -> Raster:
    """Read an image, brought to one or to three channels where the settings ask for it; `alias` as of `read_raster`.

    Raises:
        DataError: it cannot be read.

    """
    image = read_raster(path, config.limit_gib, alias)
    if channels_in(config, len(image.pixels)) == len(image.pixels):
        return image
    return replace(image, pixels=_RECOLOURED[config.colour](image.pixels))


@contextmanager
def open_image(path: Path, config: DataConfig, lines: int, alias: str | None = None) -> Iterator[Raster]:
    """`read_image` for pixels that are read where they are asked for (see `nissl.imageio.formats.open_raster`).

    Raises:
        DataError: it cannot be read, here or later.

    """
    with open_raster(path, config.limit_gib, lines, alias) as image:
        channels = image.pixels.shape[0]
        wanted = channels_in(config, channels)
        if wanted == channels:
            yield image
        else:
            pixels = Recoloured(image.pixels, wanted, _RECOLOURED[config.colour])
            yield replace(image, pixels=cast(np.ndarray, pixels))


def _gray(pixels: Num[np.ndarray, "3 *space"]) -> Num[np.ndarray, "1 *space"]:
    gray = np.tensordot(LUMA, pixels.astype(np.float64), axes=1)[None]
    whole = np.issubdtype(pixels.dtype, np.integer)
    converted: Num[np.ndarray, "1 *space"] = (np.rint(gray) if whole else gray).astype(pixels.dtype)
    return converted


def _rgb(pixels: Num[np.ndarray, "1 *space"]) -> Num[np.ndarray, "3 *space"]:
    return np.repeat(pixels, 3, axis=0)


_RECOLOURED = {"gray": _gray, "rgb": _rgb}
"""How other channels are brought to the colour of the settings."""


def channels_in(config: DataConfig, channels: int) -> int:
    """Return the channels that an image of so many has after reading; other than gray or RGB, it stays as it is."""
    return {("rgb", 1): 3, ("gray", 3): 1}.get((config.colour, channels), channels)


def load_case(file: CaseFile, label_map: LabelMap, config: DataConfig = DataConfig()) -> Case:
    """Read the image of a case, and its mask if there is one.

    Raises:
        TestSplitLocked: the case is for testing, and this is the training.
        DataError: a file cannot be read, holds values that cannot be used, or mask and image do not lie on each other.

    """
    if file.locked:
        raise TestSplitLocked(file.id)
    image = read_image(file.image, config, file.alias)
    mask = read_raster(file.mask, config.limit_gib, file.mask_alias) if file.mask else None
    for finding in (*image_faults(file, image), *(pair_faults(file, image, mask) if mask else ())):
        raise DataError(finding.where, finding.found, finding.expected, finding.fix)
    labels = label_map.apply(mask, file.mask, file.mask_alias) if mask and file.mask else None
    return Case(file.id, image.pixels, labels, file.group, image.spacing)


def image_faults(file: CaseFile, image: Raster) -> Iterator[Finding]:
    """Pixels that no network can learn from."""
    shape = image.pixels.shape
    if image.pixels.dtype.kind != "f":
        return
    strips = (image.pixels[:, rows] for rows in row_strips(shape))
    if bad := sum(strip.size - int(np.isfinite(strip).sum()) for strip in strips):
        found = f"NaN or infinity in {bad} of {prod(shape)} pixel values"
        yield Finding(
            "error", file.image_name, found, "finite numbers", "replace them, for instance by 0, and save again"
        )


def pair_faults(file: CaseFile, image: Raster, mask: Raster) -> Iterator[Finding]:
    """Image and mask that do not lie on each other: shape, spacing (mm), place and direction in space."""
    where = file.mask_name if file.alias else f"{file.mask} and {file.image}"
    fix = "export the mask again in the geometry of its image"
    shapes = [raster.pixels.shape[1:] for raster in (image, mask)]
    if shapes[0] != shapes[1]:
        found = f"image {_by(shapes[0])}, mask {_by(shapes[1])}"
        yield Finding("error", where, found, "equal shapes", fix)
    elif (image.affine is None) != (mask.affine is None) and file.mask and any(map(is_dicom, (file.image, file.mask))):
        # Only files that state their place have the axes x, y, z; all others have rows first, as pictures do.
        states = "states its place in space and the"
        found = f"the image {states} mask does not" if mask.affine is None else f"the mask {states} image does not"
        fix = "write the mask as NIfTI or DICOM in the geometry of the image"
        fix = fix if mask.affine is None else "write the mask as PNG, TIFF or DICOM, rows first as the image"
        yield Finding("error", where, found, "the same order of axes in both, which cannot be known", fix)
    elif image.spacing and mask.spacing and not np.allclose(image.spacing, mask.spacing, SPACING_TOLERANCE, atol=0):
        found = f"spacing of the image {_by(image.spacing)} mm, of the mask {_by(mask.spacing)} mm"
        yield Finding("error", where, found, f"equal spacing, to {SPACING_TOLERANCE:g} of its value", fix)
    elif image.affine is not None and mask.affine is not None:
        apart = _corner_distance(image.affine, mask.affine, shapes[0])
        if not apart <= PLACE_TOLERANCE:  # so that NaN in an affine is a fault too
            found = f"corners of image and mask up to {apart:.3g} voxels apart: flipped, turned or shifted"
            yield Finding("error", where, found, "the same affine (direction and origin) in both files", fix)


def _corner_distance(one: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> float:
    """Largest distance between the corners of a grid placed by two affines, in voxels of the smallest edge."""
    corners = np.array(list(product(*((0, size - 1) for size in (*shape, 1)[:3]), (1,))))
    steps = np.linalg.norm(one[:3, :3], axis=0)
    smallest = float(steps[steps > 0].min(initial=np.inf))
    return float(np.linalg.norm(corners @ (one - other).T, axis=1).max()) / smallest


def _by(sizes: Iterable[float]) -> str:
    return " x ".join(f"{size:.7g}" for size in sizes)
