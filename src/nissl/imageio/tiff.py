"""TIFF as arrays and back, by tifffile; regions are read by `nissl.imageio.tiff_regions`."""

import io
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, cast
from xml.etree import ElementTree

import numpy as np

from nissl.imageio.raster import Header, Opened, Raster, UnusableError, known_spacing, plain, type_name, upright
from nissl.imageio.tiff_regions import Axes, TiffRegions, colours_in, readable, spacing_metadata
from nissl.imageio.tiff_segments import require_bounded

MILLIMETRES = {"mm": 1.0, "cm": 10.0, "nm": 1e-6, "m": 1e3}
MILLIMETRES |= dict.fromkeys(("um", "\u00b5m", "\u03bcm", "\\u00B5m", "micron", "microns"), 1e-3)
WHITE_IS_ZERO, RGB, PALETTE, TRANSPARENCY, YCBCR = 0, 2, 3, 4, 6
KINDS = (WHITE_IS_ZERO, 1, RGB, PALETTE, TRANSPARENCY)
"""Photometric interpretations whose samples are brightness, RGB or indices as they are stored."""
JPEG, APERIO_YCBCR = (6, 7, 33007, 34892), 33003  # the first bring YCbCr to RGB by themselves
BESIDE = re.compile(r"(thumbnail|label|macro|map|overview)( image)?")  # what scanners store with a slide
HARMLESS = re.compile(
    r"TiffTag \d+ @\d+> (coercing|raised)|GDAL_NODATA|_?metadata> |metadata failed|_tags> |GeoKey|subfiletype="
    r"|estimating ByteCounts|correcting LSM|get_resolution>"
)
"""Warnings of tifffile that concern no pixel."""
SPACE = "QIZYX"


@contextmanager
def open_tiff(path: Path, axes: str = "") -> Iterator[Opened]:
    """Open the image of a TIFF; axes S and C are channels, Z and unnamed ones beside Y and X are depth.

    `axes` renames those of files that have so many (or, as masks, all but C) and no samples. Where the file says that 0
    is white, values are turned over within the range of their bits, so that larger is brighter.
    """
    import tifffile

    with _warnings_of_tifffile() as warned, tifffile.TiffFile(path) as file:
        series = _only_image(file)
        _require_sound(warned)
        page, dtype = series.keyframe, type_name(series.dtype)
        kind, top = _photometric(page), 2 ** int(page.bitspersample) - 1
        sizes, channels, space = _layout(series, axes)
        # A single extra sample is alpha where the file calls it so (1 and 2); others are measurements.
        alpha = len(page.extrasamples) == 1 and int(page.extrasamples[0]) in (1, 2)
        count = prod(sizes[at][1] for at in channels) - alpha
        if alpha and count >= page.samplesperpixel:
            raise UnusableError("several channels of pictures with alpha", "one of them", "save it without alpha")
        orientation = page.tags.valueof(274, 1)
        orientation = orientation if orientation in range(1, 9) else 1
        # What tifffile made of booleans says so as well, and means true and false.
        inverted = kind == WHITE_IS_ZERO and not (top == 1 and (page.is_shaped or "tifffile" in page.software))
        palette = _palette(file, page) if kind == PALETTE else None
        lossy = int(page.compression) in JPEG
        regions: TiffRegions | None = None

        def finished(pixels: np.ndarray) -> np.ndarray:
            _require_sound(warned)
            return np.asarray(top - pixels, pixels.dtype) if inverted else pixels

        def whole() -> np.ndarray:
            require_bounded(series)
            rest = [at for at in range(len(sizes)) if at not in channels + space]
            pixels = series.asarray().transpose(channels + space + rest).reshape(-1, *(sizes[at][1] for at in space))
            return finished(plain(upright(pixels[:count], orientation)))

        def decode() -> Raster:
            pixels = whole() if regions is None else cast(np.ndarray, regions)  # an array to whoever takes slices of it
            return Raster(pixels, spacing, palette=palette, inverted=inverted and top > 1, lossy=lossy)

        if orientation == 1 and readable(series):
            regions = TiffRegions(series, Axes(tuple(channels), tuple(space), count), whole, finished)
        turned = [*space[:-2], *space[:-3:-1]] if orientation > 4 else space
        spacing = _tiff_spacing(file, [sizes[at][0] for at in turned])
        shown = (count, dtype) if palette is None else (colours_in(palette), "uint8")
        segment = prod(map(int, page.chunks)) * int(page.dtype.itemsize)  # a tile may be larger than the image
        size = max(int(series.nbytes) * (1 if palette is None else shown[0]), segment)
        shape, grid = tuple(sizes[at][1] for at in turned), regions.grid if regions else None
        yield Header(shape, *shown, spacing, size, grid=grid), decode


def _require_one_file(file: Any, series: Any = None) -> None:
    """Refuse a part of a set: tifffile, which opens the other files, makes zeros of those that are missing."""
    elements = [*ElementTree.fromstring(file.ome_metadata).iter()] if file.is_ome else []
    files = {each.text for each in elements if each.tag.endswith("UUID")}
    files |= {each.get("UUID") for each in elements[:1] if each.get("UUID")}
    outside = series is not None and (series.is_multifile or series.keyframe.parent is not file)
    if outside or len(files) > 1 or any(each.tag.endswith("BinaryOnly") for each in elements):
        found = "a part of an image, of which the rest is in other files"
        found += f" ({len(files)} files make up the OME-TIFF)" if len(files) > 1 else ""
        fix = "write the set as one file (`bfconvert FIRST.ome.tif ALL.ome.tif`), or this plane without OME metadata"
        raise UnusableError(found, "a file that holds its whole image", fix)


def _only_image(file: Any) -> Any:
    """The series that is no reduced copy, transparency mask or label picture of another one."""
    _require_one_file(file)
    series = [each for each in file.series if not each.keyframe.subfiletype & 0b101] or list(file.series)
    series = [each for each in series if not BESIDE.fullmatch(each.name.lower())] or series
    if len(series) > 1:
        sizes = ", ".join(" x ".join(map(str, each.shape)) for each in series[:8])
        fix = "export each as a file of its own (for instance `bfconvert -series 0 IN.tif OUT.tif`)"
        raise UnusableError(f"{len(series)} images in one file, of {sizes}", "one, beside reduced ones", fix)
    _require_one_file(file, series[0])
    return series[0]


def _photometric(page: Any) -> int:
    """What the samples stand for, where they can be used: brightness, if the file states nothing."""
    kind, compression = int(page.tags.valueof(262, 1)), getattr(page.compression, "name", page.compression)
    if (kind not in KINDS and not (kind == YCBCR and page.compression in JPEG)) or page.compression == APERIO_YCBCR:
        found = f"colours of the kind {getattr(page.photometric, 'name', kind)} in compression {compression}"
        raise UnusableError(found, "brightness, RGB or a palette", "convert it to RGB or gray, and save it as TIFF")
    if kind == WHITE_IS_ZERO and page.dtype.kind not in "bu":
        found = f"values of type {page.dtype} of which 0 stands for white"
        raise UnusableError(found, "values of which larger ones are brighter", "save it as BlackIsZero (minisblack)")
    return kind


def _layout(series: Any, axes: str) -> tuple[list[tuple[str, int]], list[int], list[int]]:
    """Name and length of each stored axis; which are channels; and which are depth, rows and columns, in this order."""
    sizes = list(zip(series.axes, map(int, series.shape), strict=True))
    used = [at for at, (axis, size) in enumerate(sizes) if axis in "YXSC" or size > 1]
    stored = {sizes[at][0] for at in used}
    names = axes if len(axes) == len(used) or "C" in stored else axes.replace("C", "")
    if len(names) == len(used) and "S" not in stored:
        for at, name in zip(used, names, strict=True):
            sizes[at] = (name, sizes[at][1])
    space = sorted((at for at in used if sizes[at][0] not in "SC"), key=lambda at: SPACE.find(sizes[at][0]))
    if len(space) not in (2, 3) or any(sizes[at][0] not in SPACE for at in space):
        fix = "export what should be one image as a file of its own"
        names = "".join(sizes[at][0] if sizes[at][0] in "CYX" else "Z" for at in used)
        if len(space) == 3 and "S" not in stored:
            other = next(sizes[at][0] for at in space if sizes[at][0] not in "YX")
            fix += f", or name the axes: --data.axes {names} if {other} is depth (C for channels)"
        raise UnusableError(f"axes {series.axes} of {series.shape}", "2 or 3 axes of space beside channels", fix)
    return sizes, [at for at in used if at not in space], space


def _palette(file: Any, page: Any) -> np.ndarray | None:
    """The colour table; none where ImageJ, of measured values, stores a look-up table that only becomes brighter."""
    table = np.asarray(page.colormap).T
    if file.is_imagej and (np.diff(table @ (0.299, 0.587, 0.114)) >= 0).all():
        return None
    return (table >> (8 if table.max() > 255 else 0)).astype(np.uint8)  # some writers fill 8 of the 16 bits


@contextmanager
def _warnings_of_tifffile() -> Iterator[list[str]]:
    """Collect what tifffile only logs: a stack that was cut short is otherwise read as a shorter stack."""
    warned: list[str] = []
    thread = threading.get_ident()

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            message = record.getMessage()
            if record.thread == thread and (record.levelno >= logging.ERROR or not HARMLESS.search(message)):
                warned.append(message)

    collector = Collector(logging.WARNING)
    logger = logging.getLogger("tifffile")
    logger.addHandler(collector)
    try:
        yield warned
    finally:
        logger.removeHandler(collector)


def _require_sound(warned: list[str]) -> None:
    if warned:
        raise ValueError(f"tifffile warns: {warned[0]}")


def _tiff_spacing(file: Any, axes: list[str]) -> tuple[float, ...] | None:
    """Spacing in mm, only where OME or ImageJ metadata state the unit; bare resolution tags are often untrue."""
    lengths: dict[str, float] = {}
    if file.is_ome:
        elements = ElementTree.fromstring(file.ome_metadata).iter()
        stated: Any = next((element for element in elements if element.tag.endswith("}Pixels")), {})
        for axis in "XYZ":
            known = MILLIMETRES.get(stated.get(f"PhysicalSize{axis}Unit", "µm"), np.nan)
            lengths[axis] = float(stated.get(f"PhysicalSize{axis}", "nan")) * known
    elif file.is_imagej and (unit := MILLIMETRES.get(file.imagej_metadata.get("unit", ""))):
        for axis in "XY":
            tag = file.pages[0].tags.get(f"{axis}Resolution")
            pixels, units = tag.value if tag else (0, 0)
            lengths[axis] = units / pixels * unit if pixels else np.nan
        lengths["Z"] = float(file.imagej_metadata.get("spacing", np.nan)) * unit
    return known_spacing(lengths.get(axis, np.nan) for axis in axes)


def encode_tiff(pixels: np.ndarray, spacing: tuple[float, ...] | None) -> bytes:
    """TIFF with named axes; OME metadata where there is a spacing, since they hold it for every type of pixel."""
    import tifffile

    rgb = pixels.shape[0] == 3 and pixels.dtype == np.uint8 and pixels.ndim == 3
    axes = "ZYX"[-(pixels.ndim - 1) :]
    data, names = (np.moveaxis(pixels, 0, -1), axes + "S") if rgb else (pixels, "C" + axes)
    options: dict[str, Any] = {"photometric": "rgb" if rgb else "minisblack", "compression": "zlib"}
    options |= {"ome": spacing is not None, "metadata": {"axes": names, **spacing_metadata(axes, spacing)}}
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, data, **options)
    return buffer.getvalue()
