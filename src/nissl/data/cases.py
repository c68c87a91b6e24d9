"""Cases: one image each, with or without a mask; their types, and how one is read."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Num

from nissl.config import DataConfig
from nissl.data.naming import DATA_FOLDER, pseudonym
from nissl.data.orientation import direction_of
from nissl.errors import DataError, NisslError, TestSplitLocked
from nissl.imageio.dicom import SEGMENTS_FIX
from nissl.imageio.formats import Raster, open_raster, read_raster
from nissl.imageio.label_map import LabelMap
from nissl.imageio.tiff_regions import recoloured, row_strips, shown

Layout = Literal["images+masks", "folders", "decathlon"]
Level = Literal["error", "warning"]
SPACING_TOLERANCE = 1e-4
"""Largest relative difference of two spacings that counts as rounding."""
PLACE_TOLERANCE = 0.1
"""Largest distance of the corners of image and mask, in voxels, that counts as rounding."""


@dataclass(frozen=True)
class CaseFile:
    """A case on disk, not yet read."""

    id: str
    image: Path
    target: Path | None = None
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
    def target_name(self) -> str:
        """What errors call the mask."""
        return self.target_alias or str(self.target)

    @property
    def target_alias(self) -> str | None:
        """The alias of the mask, where there is one."""
        return self.alias and f"mask of {self.alias}"


@dataclass(frozen=True)
class Case:
    """A case in memory; spacing in mm along each spatial axis, None where the file states none."""

    id: str
    image: Num[np.ndarray, "channels *space"]
    target: np.ndarray | None = None
    group: str | None = None
    spacing: tuple[float, ...] | None = None
    direction: str = ""
    """Where the axes point, such as RAS; empty where the file does not state it."""


@dataclass(frozen=True)
class Finding:
    """One fault of the data: an error makes a case or the set unusable, a warning is for the user to judge."""

    level: Level
    where: str
    found: str
    expected: str
    fix: str

    @classmethod
    def of(cls, error: NisslError, level: Level = "error") -> "Finding":
        """The finding that an exception states."""
        return cls(level, error.where, error.found, error.expected, error.fix)


@dataclass(frozen=True)
class Scan:
    """What a folder holds by its names alone, with every fault that the names show."""

    layout: Layout
    cases: tuple[CaseFile, ...]
    label_map: LabelMap
    findings: tuple[Finding, ...]
    private: bool = False
    """Whether there is DICOM among the files: then no name of a file or folder is shown or stored."""

    def id_of(self, name: str) -> str:
        """The id of a case by its id or by the name of its file without suffix."""
        ids = {case.id for case in self.cases}
        return pseudonym(name) if self.private and name not in ids else name


@dataclass(frozen=True, kw_only=True)
class Dataset(Scan):
    """The cases of a folder, sorted by id; `dims` and `channels` are those of the first image that can be read."""

    root: Path
    dims: int
    channels: int

    @property
    def place(self) -> str:
        """What messages call the folder."""
        return DATA_FOLDER if self.private else str(self.root)


LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the brightness of a colour, ITU-R BT.601."""


def read_image(path: Path, config: DataConfig, alias: str | None = None) -> Raster:
    """`read_raster` of an image, brought to one or to three channels where the settings ask for it."""
    return _in_colour(read_raster(path, config.limit_gib, alias, config.axes), config)


@contextmanager
def open_image(path: Path, config: DataConfig, lines: int, alias: str | None = None) -> Iterator[Raster]:
    """`open_raster` of an image, brought to one or to three channels as by `read_image`."""
    with open_raster(path, config.limit_gib, lines, alias, config.axes) as raster:
        yield _in_colour(raster, config)


def _in_colour(raster: Raster, config: DataConfig) -> Raster:
    image = shown(raster)
    wanted = channels_in(config, image.pixels.shape[0])
    if wanted == image.pixels.shape[0]:
        return image
    return recoloured(image, wanted, _gray if wanted == 1 else partial(np.repeat, repeats=3, axis=0))


def _gray(pixels: Num[np.ndarray, "3 *space"]) -> Num[np.ndarray, "1 *space"]:
    gray = np.tensordot(LUMA, pixels.astype(np.float64), axes=1)[None]
    return np.asarray(np.rint(gray) if pixels.dtype.kind in "iu" else gray, pixels.dtype)


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
    mask = read_raster(file.target, config.limit_gib, file.target_alias, config.axes) if file.target else None
    for finding in (*image_faults(file, image), *(pair_faults(file, image, mask) if mask else ())):
        raise DataError(finding.where, finding.found, finding.expected, finding.fix)
    labels = label_map.apply(mask, file.target, file.target_alias) if mask and file.target else None
    return Case(file.id, image.pixels, labels, file.group, image.spacing, direction_of(image.affine))


def mask_values(files: Iterable[CaseFile], label_map: LabelMap, config: DataConfig) -> tuple[int | str, ...]:
    """What stands for each class in the user's masks, as of `LabelMap.written`.

    In masks of 0 and one other value that is the value of the first that shows any, and 255 where it shows several.
    """
    if label_map.codes or label_map.threshold is not None:
        return label_map.written()
    for file in files:
        pixels = read_raster(file.target, config.limit_gib, file.target_alias).pixels if file.target else np.zeros(1)
        if top := int(pixels.max(initial=0)):
            alone = top < 2**16 and ((pixels == 0) | (pixels == top)).all()
            return label_map.written(top if alone else 255)
    return label_map.written()


def image_faults(file: CaseFile, image: Raster) -> Iterator[Finding]:
    """Pixels that no network can learn from."""
    shape = image.pixels.shape
    if image.pixels.dtype.kind != "f":
        return
    strips = (image.pixels[:, rows] for rows in row_strips(shape))
    if bad := sum(strip.size - int(np.isfinite(strip).sum()) for strip in strips):
        found = f"NaN or infinity in {bad} of {prod(shape)} pixel values"
        fix = "replace them, for instance by 0, and save again"
        yield Finding("error", file.image_name, found, "finite numbers", fix)


def pair_faults(file: CaseFile, image: Raster, mask: Raster) -> Iterator[Finding]:
    """Image and mask that do not lie on each other: shape, spacing (mm), place and direction in space."""
    where = file.target_name if file.alias else f"{file.target} and {file.image}"
    fix = "export the mask again in the geometry of its image"
    shapes = [raster.pixels.shape[1:] for raster in (image, mask)]
    for axes, space in (("CYX", shapes[0][1:]), ("YXC", shapes[0][:-1])):
        if len(image.pixels) == 1 and len(shapes[0]) == 3 and space == shapes[1]:
            fix = f"if the image is flat and has {prod(shapes[0]) // prod(space)} channels, add --data.axes {axes}"
    if (image.affine is None) != (mask.affine is None) and not (mask.segments and shapes[0] != shapes[1]):
        # Only files that state their place have the axes x, y, z; all others have rows first, as pictures do.
        states = "states its place in space and the"
        found = f"the image {states} mask does not" if mask.affine is None else f"the mask {states} image does not"
        write = "write the mask as NIfTI or DICOM in the geometry of the image"
        write = write if mask.affine is None else "write the mask as PNG, TIFF or DICOM, rows first as the image"
        yield Finding("error", where, found, "the same order of axes in both, which cannot be known", write)
    elif shapes[0] != shapes[1]:
        found = f"image {_by(shapes[0])}, mask {_by(shapes[1])}"
        if mask.segments:
            found += " (a segmentation object that leaves out slices)"
        yield Finding("error", where, found, "equal shapes", SEGMENTS_FIX if mask.segments else fix)
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
