"""TIFF by regions: pixels are decoded where they are asked for, and a mask is written band by band.

tifffile decodes and encodes the strips and tiles. Its own way to a region is zarr, which decodes a strip again for each
tile of the image that it crosses: of a 20,000 x 20,000 image in strips, 40 times. Here decoded segments are kept, as
many as a band of the image has.
"""

import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from jaxtyping import Integer, UInt8

from nissl.files import whole_file
from nissl.imageio.mask_values import MaskValues
from nissl.imageio.raster import Grid, Raster
from nissl.imageio.tiff_segments import require_fit

STRIP = 2**20
"""Values of an image that are worked on at once."""
TILE = 256
"""Side of the tiles of a mask that is written, in pixels."""
Box = tuple[slice, ...]
Convert = Callable[[np.ndarray], np.ndarray]


class Pixels(Protocol):
    """An array `(channels, *space)`, or what reads the part that is asked for: slices of step 1 are all that counts."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, then space."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values, in native byte order."""

    def __getitem__(self, box: Box, /) -> np.ndarray: ...


def row_strips(shape: Sequence[int], values: int = STRIP) -> list[slice]:
    """Cut the first axis of space, after that of channels, into strips of so many values at most, or of one line."""
    lines = max(1, values // max(1, shape[0] * prod(shape[2:])))
    return [slice(start, min(shape[1], start + lines)) for start in range(0, shape[1], lines)]


def recoloured(raster: Raster, channels: int, convert: Convert, dtype: Any = None) -> Raster:
    """A raster whose channels are made anew by `convert`: at once, or region by region where it is read so."""
    whole = isinstance(raster.pixels, np.ndarray)
    pixels = convert(raster.pixels) if whole else _Recoloured(raster.pixels, channels, convert, dtype)
    return replace(raster, pixels=cast(np.ndarray, pixels))  # an array to whoever takes slices of it


class _Recoloured:
    def __init__(self, source: Pixels, channels: int, convert: Convert, dtype: Any) -> None:
        self.shape, self.dtype = (channels, *source.shape[1:]), np.dtype(dtype or source.dtype)
        self._source, self._convert = source, convert

    def __getitem__(self, box: Box) -> np.ndarray:
        return self._convert(self._source[(slice(None), *box[1:])])[box[0]]


def colours_in(palette: UInt8[np.ndarray, "n 3"]) -> int:
    """Channels of an image with this palette: one where all its colours are gray."""
    return 1 if (palette == palette[:, :1]).all() else 3


def shown(raster: Raster) -> Raster:
    """The image that a file with a palette shows, in colour, or gray where all its colours are; others as they are."""
    if raster.palette is None:
        return raster
    table = raster.palette[:, : colours_in(raster.palette)]

    def coloured(indices: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.moveaxis(table[np.minimum(indices[0], len(table) - 1)], -1, 0))

    return replace(recoloured(raster, table.shape[1], coloured, table.dtype), palette=None)


@dataclass(frozen=True)
class Axes:
    """Which axes of a series are the channels, and which are space."""

    channels: tuple[int, ...]
    space: tuple[int, ...]
    count: int
    """Channels that are used, from the first; others, such as alpha, are left out."""


class TiffRegions:
    """The pixels `(channels, *space)` of a TIFF series, read where they are asked for.

    `lines` of the first axis of space are kept decoded, so that neighbouring regions decode a segment once.
    `numpy.asarray` reads all at once, by `whole`. The series is of an open tifffile.TiffFile, and `readable` is true
    for it; `finished` is done to the pixels of a region, value by value.
    """

    lines = 1024

    def __init__(self, series: Any, axes: Axes, whole: Callable[[], np.ndarray], finished: Convert) -> None:
        self._series, self._page, self._whole, self._finished = series, series.keyframe, whole, finished
        self._axes = axes
        self.shape = (axes.count, *(int(series.shape[axis]) for axis in axes.space))
        self.dtype = np.dtype("uint8" if series.dtype.kind == "b" else series.dtype.newbyteorder("="))
        self.guard: Callable[[], AbstractContextManager[None]] = nullcontext
        """What each reading is done in, to name the file where it fails."""
        self._size = tuple(int(size) for size in self._page.shaped)
        self._in_place = bool(self._page.is_final)
        self._part = self._segment_shape()
        self._count = tuple(-(-size // part) for size, part in zip(self._size[1:4], self._part[:3], strict=True))
        self._kept: dict[tuple[int, int], np.ndarray] = {}
        self._pages: list[Any] | None = None

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._whole() if dtype is None else self._whole().astype(dtype)

    def __getitem__(self, box: Box) -> np.ndarray:
        with self.guard():
            return self._read(box)

    @cached_property
    def grid(self) -> Grid:
        """The segments as they cost memory."""
        segment = prod(self._part) * self.dtype.itemsize
        leading = self._series.ndim - len(self._page.shape)
        whole = prod(self._series.shape[:leading]) * self._size[0] * prod(self._count) * segment
        first = self._axes.space[0]
        # The first axis of space is that of pages, of depth or of rows.
        slot = None if first < leading else self._slots()[first - leading] - 1
        lines, rows = (1, int(self._series.shape[first])) if slot is None else (self._part[slot], self._count[slot])
        return Grid(segment, whole // rows, lines, rows)

    def _segment_shape(self) -> tuple[int, int, int, int]:
        """Depth, rows, columns and samples of a segment."""
        page, (_, _, length, width, samples) = self._page, self._size
        if self._in_place:
            return 1, 1, width, samples
        if page.is_tiled:
            return int(page.tiledepth), int(page.tilelength), int(page.tilewidth), samples
        return 1, min(length, int(page.rowsperstrip)), width, samples

    def _slots(self) -> list[int]:
        """Where each axis of a page is among sample, depth, row, column and contiguous sample."""
        sample = 4 if self._page.planarconfig == 1 else 0
        return [{"S": sample, "Z": 1, "Y": 2, "X": 3}[axis] for axis in self._page.axes]

    def _read(self, box: Box) -> np.ndarray:
        sizes = [int(size) for size in self._series.shape]
        span = [range(size) for size in sizes]
        for axis, part in zip(self._axes.space, box[1:], strict=False):
            span[axis] = span[axis][part]
        stored = np.empty([len(extent) for extent in span], self.dtype)
        leading = len(sizes) - len(self._page.shape)
        inside = [range(1)] * 5
        for slot, extent in zip(self._slots(), span[leading:], strict=True):
            inside[slot] = extent
        for index in product(*span[:leading]):
            place = tuple(at - extent.start for at, extent in zip(index, span, strict=False))
            number = int(np.ravel_multi_index(index, sizes[:leading])) if index else 0
            if self._in_place:
                stored[place] = self._mapped(number)[tuple(slice(part.start, part.stop) for part in span[leading:])]
            else:
                self._fill(stored[place].reshape([len(extent) for extent in inside]), number, inside)
        rest = [axis for axis in range(len(sizes)) if axis not in self._axes.channels + self._axes.space]
        channels = prod(stored.shape[axis] for axis in self._axes.channels)
        lengths = [stored.shape[axis] for axis in self._axes.space]
        plain = stored.transpose(*self._axes.channels, *self._axes.space, *rest).reshape(channels, *lengths)
        plain = np.ascontiguousarray(plain[: self.shape[0]][box[0]])  # interleaved, all that follows would be slow
        return self._finished(plain)

    def _fill(self, target: np.ndarray, number: int, inside: Sequence[range]) -> None:
        """Copy a region of a page into `target`, segment by segment."""
        samples, *space, together = inside
        sides = self._part[:3]
        touched = [range(part.start // side, -(-part.stop // side)) for part, side in zip(space, sides, strict=True)]
        for sample, *at in product(samples, *touched):
            index = int(np.ravel_multi_index((sample, *at), (self._size[0], *self._count)))
            to, source = [], []
            for part, corner, side in zip(space, at, sides, strict=True):
                low, high = max(part.start, corner * side), min(part.stop, (corner + 1) * side)
                to.append(slice(low - part.start, high - part.start))
                source.append(slice(low - corner * side, high - corner * side))
            segment = self._segment(number, index)[(*source, slice(together.start, together.stop))]
            target[sample - samples.start][tuple(to)] = segment

    def _segment(self, number: int, index: int) -> np.ndarray:
        """A decoded segment, kept until others need its memory."""
        segment = self._kept.pop((number, index), None)
        segment = self._decoded(number, index) if segment is None else segment
        self._kept[number, index] = segment  # as the last of them
        while len(self._kept) > self.grid.held(self.lines) // self.grid.segment:
            del self._kept[next(iter(self._kept))]
        return segment

    def _decoded(self, number: int, index: int) -> np.ndarray:
        """A strip or tile, cut at the border of the image or not."""
        if self._pages is None:
            self._pages = list(self._series)
        page = self._pages[number]
        offset, count = page.dataoffsets[index], page.databytecounts[index]
        data = None
        if offset and count:
            file = page.parent.filehandle
            file.seek(offset)
            data = file.read(count)
            require_fit(self._page, data)
        jpeg = self._page.compression in (6, 7, 34892, 33007)
        segment, _, shape = self._page.decode(data, index, **({"jpegtables": page.jpegtables} if jpeg else {}))
        if segment is None:  # a segment that was left out
            return np.full(shape, self._page.nodata, self.dtype)
        # A copy of its own: what tifffile gives may be a view of a larger buffer.
        return np.array(segment, self.dtype, order="C")

    def _mapped(self, number: int) -> np.ndarray:
        """An uncompressed page as it lies in the file, of which only what is copied is read."""
        page, first = self._page, self._series.dataoffset
        # In one piece with the first: of large ImageJ stacks no other page is listed.
        start = self._series[number].dataoffsets[0] if first is None else first + number * page.nbytes
        dtype = page.dtype.newbyteorder(page.parent.byteorder)
        return np.asarray(page.parent.filehandle.memmap_array(dtype, page.shape, start, mode="r"))


def readable(series: Any) -> bool:
    """Say whether the regions of a series can be read: its pages make up its shape, and tifffile decodes segments."""
    page = series.keyframe
    trailing = len(page.shape)
    in_place = series.dataoffset is not None  # all pages in one piece, listed or not
    return bool(
        series.transform is None
        and not series.is_multifile
        and 0 not in series.shape
        and page.dtype is not None
        and tuple(series.shape[-trailing:]) == tuple(page.shape)
        and (page.is_final if in_place else prod(series.shape[: series.ndim - trailing]) == len(series))
        and set(page.axes) <= set("SZYX")
        and page.jpegheader is None  # strips that the file calls tiles
    )


def spacing_metadata(axes: str, spacing: tuple[float, ...] | None) -> dict[str, Any]:
    """Spacing in mm along each axis as OME metadata name it."""
    lengths = dict(zip(axes, spacing or (), strict=spacing is not None))
    units = {f"PhysicalSize{axis}Unit": "mm" for axis in lengths}
    return units | {f"PhysicalSize{axis}": length for axis, length in lengths.items()}


def write_mask_tiff(
    path: Path,
    shape: Sequence[int],
    bands: Iterable[Integer[np.ndarray, "lines *rest"]],
    values: MaskValues,
    spacing: tuple[float, ...] | None = None,
    note: str = "",
) -> None:
    """Write a mask from bands of class numbers, in order along its first axis: a TIFF of compressed tiles, or nothing.

    With a spacing (mm along each axis) it is an OME-TIFF. The same mask is the same file.

    Raises:
        ResourceError: the disk is full.

    """
    import tifffile

    digest = blake2b(digest_size=16)

    def hashed() -> Iterator[np.ndarray]:
        for band in bands:
            plain = np.ascontiguousarray(values.drawn(band))
            digest.update(plain.data)
            yield plain

    axes, dtype, palette = "ZYX"[-len(shape) :], values.dtype, values.palette
    unused = 256 - len(palette if palette is not None else ())
    blank = str(uuid.UUID(int=0))
    metadata = {"axes": axes, **spacing_metadata(axes, spacing)} | ({"Description": note} if note else {})
    if spacing is not None:
        metadata["UUID"] = f"urn:uuid:{blank}"
    with whole_file(path) as file:
        tifffile.imwrite(
            file,
            _tiles(shape, hashed()),
            shape=tuple(shape),
            dtype=dtype,
            tile=(TILE, TILE),
            bigtiff=prod(shape) * dtype.itemsize > 2**32 - 2**25,
            ome=spacing is not None,
            photometric="minisblack" if palette is None else "palette",
            colormap=None if palette is None else np.pad(palette.T * np.uint16(257), ((0, 0), (0, unused))),
            compression="zlib",
            metadata=metadata,
            maxworkers=1,
        )
        if spacing is not None:  # the identifier follows from the content, which is known only now
            file.seek(0)
            with tifffile.TiffFile(file) as written:
                tag = written.pages.first.tags["ImageDescription"]
                text, place = tag.value, tag.valueoffset
            file.seek(place)
            file.write(text.replace(blank, str(uuid.UUID(bytes=digest.digest()))).encode())


def _tiles(shape: Sequence[int], bands: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Cut bands along the first axis into tiles of the last two, row by row; those at the border are smaller."""
    for band in bands if len(shape) == 3 else _rows_of_tiles(bands):
        for plane in band if band.ndim == 3 else [band]:
            for top, left in product(*(range(0, size, TILE) for size in plane.shape)):
                yield plane[top : top + TILE, left : left + TILE]


def _rows_of_tiles(bands: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Bands of other heights from bands: whole rows of tiles, but for the last."""
    rest: np.ndarray | None = None
    for band in bands:
        rest = band if rest is None else np.concatenate([rest, band])
        ready = len(rest) // TILE * TILE
        if ready:
            yield rest[:ready]
            rest = rest[ready:].copy()
    if rest is not None and len(rest):
        yield rest
