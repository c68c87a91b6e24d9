"""What a file becomes once it is read: its header, and its pixels as `(channels, *space)`."""

import io
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Bool, Float, Num, UInt8


@dataclass(frozen=True)
class Grid:
    """The segments of a file along its first axis of space, which tell what reading a band of lines takes."""

    segment: int
    """Bytes of the largest segment when decoded: what cannot be had in smaller parts."""
    row: int
    """Bytes of all segments that a line crosses."""
    lines: int
    """Lines in a segment."""
    rows: int
    """Segments along the axis."""

    def held(self, lines: int) -> int:
        """Bytes of the segments that so many lines cross at most."""
        return min(self.rows, -(-lines // self.lines) + 1) * self.row

    def needs(self, lines: int) -> int:
        """Bytes that reading takes where so many lines are kept: with them a segment as stored, unpacked and plain."""
        return self.held(lines) + 3 * self.segment


@dataclass(frozen=True)
class Header:
    """What a file says of its image (of a palette, its colours); spacing in mm along each axis, None if not stated."""

    shape: tuple[int, ...]
    channels: int
    dtype: str
    spacing: tuple[float, ...] | None
    decoded_bytes: int
    placed: bool = False
    """Whether the file has an affine: its axes then are x, y, z as in NIfTI, not rows first as in a picture."""
    grid: Grid | None = None
    """The segments of a file whose regions can be read; None where it is decoded as a whole."""


@dataclass(frozen=True)
class Raster:
    """A decoded file; spacing and affine in mm. With a palette (PNG, BMP, TIFF), the pixels are indices into it.

    A mask keeps these as its values; an image becomes colours by `nissl.imageio.tiff_regions.shown`. Pixels that
    `open_raster` gives may be read where they are asked for (see `nissl.imageio.tiff_regions.Pixels`).
    """

    pixels: Num[np.ndarray, "channels *space"]
    spacing: tuple[float, ...] | None = None
    affine: Float[np.ndarray, "4 4"] | None = None
    palette: UInt8[np.ndarray, "n 3"] | None = None
    inverted: bool = False
    """The file shows 0 as white (MONOCHROME1, WhiteIsZero of several bits); turned over, so that larger is brighter."""
    burned_in: bool = False
    """The file says that text is drawn into its pixels."""
    lossy: bool = False
    """The pixels were compressed by JPEG, whatever the file is called."""
    segments: bool = False
    """The file is a DICOM segmentation object, in which slices without structures may be left out."""
    clear: Bool[np.ndarray, "*space"] | None = None
    """Pixels that are shown as transparent rather than opaque, where an alpha channel was dropped and has some."""
    unit: float = 1.0
    """Millimetres in the unit of length of the file, in which a mask of it is written."""


Opened = tuple[Header, Callable[[], Raster]]


class UnusableError(ValueError):
    """A sound file whose content is of no use here, in words that quote no name and no tag of it."""

    def __init__(self, found: str, expected: str = "", fix: str = "") -> None:
        super().__init__(found)
        self.expected, self.fix = expected, fix


def known_spacing(lengths: Iterable[float]) -> tuple[float, ...] | None:
    """All lengths, or None where one of them is not stated."""
    spacing = tuple(lengths)
    return spacing if all(np.isfinite(length) and length > 0 for length in spacing) else None


def type_name(dtype: np.dtype[Any]) -> str:
    """Name of the type that `plain` gives; raises UnusableError for what is neither integers nor real numbers."""
    if dtype.kind not in "buif":
        raise UnusableError(f"pixels of type {dtype}, where integers or real numbers can be used")
    return "uint8" if dtype.kind == "b" else dtype.newbyteorder("=").name


def upright(pixels: Num[np.ndarray, "*rest rows columns"], orientation: int) -> Num[np.ndarray, "*rest high wide"]:
    """Turn and mirror stored pixels as viewers do by the orientation that EXIF or a TIFF states (1 to 8, else as 1)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(-1, -2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[..., ::-1, :]
    return pixels[..., ::-1] if orientation in (2, 3, 6, 7) else pixels


def plain(pixels: np.ndarray) -> Num[np.ndarray, "channels *space"]:
    """A contiguous array in native byte order that owns its memory, of 0 and 1 for booleans; raises as `type_name`."""
    return np.array(pixels, dtype=np.dtype(type_name(pixels.dtype)), order="C")


def picture(kind: str, file: BinaryIO) -> Any:
    """Open a picture by the reader that pillow has for a kind: Bmp, Jpeg, Jpeg2K, Png or WebP.

    Image.open has a bound of pixels of its own, which would warn or refuse before ours.
    """
    return getattr(import_module(f"PIL.{kind}ImagePlugin"), f"{kind}ImageFile")(file)


class BoundedFile(io.BufferedReader):
    """A file of which no more is read than it holds: else what a damaged header says is allocated first."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self._size = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        """Read so many bytes, or those that are left."""
        rest = max(0, self._size - self.tell())
        return super().read(rest if size is None or size < 0 else min(size, rest))
