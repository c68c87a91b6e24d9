"""TIFF as arrays and back, by tifffile; regions are read by `nissl.imageio.tiff_regions`."""

import hashlib
import io
import logging
import re
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, cast
from xml.etree import ElementTree

import numpy as np

from nissl.imageio.raster import (
    Header,
    Opened,
    Raster,
    UnusableError,
    colours_in,
    known_spacing,
    plain,
    require_real,
    type_name,
    upright,
    without_alpha,
)
from nissl.imageio.tiff_regions import Axes, TiffRegions, readable
from nissl.imageio.tiff_segments import largest_segment, require_bounded

MILLIMETRES = {"mm": 1.0, "cm": 10.0, "nm": 1e-6, "m": 1e3}
MILLIMETRES |= dict.fromkeys(("um", "\u00b5m", "\u03bcm", "\\u00B5m", "micron", "microns"), 1e-3)
WHITE_IS_ZERO, RGB, PALETTE, TRANSPARENCY, YCBCR = 0, 2, 3, 4, 6
KINDS = (WHITE_IS_ZERO, 1, RGB, PALETTE, TRANSPARENCY)
"""Photometric interpretations whose samples are brightness, RGB or indices as they are stored."""
JPEG, APERIO_YCBCR = (6, 7, 33007, 34892), 33003
"""Compressions that bring YCbCr to RGB by themselves, and JPEG 2000 that does not."""
BESIDE = re.compile(r"(thumbnail|label|macro|map|overview)( image)?")
"""Names of what scanners store beside the slide."""
HARMLESS = re.compile(
    r"TiffTag \d+ @\d+> (coercing|raised)|GDAL_NODATA|_?metadata> |metadata failed|_tags> |GeoKey|subfiletype="
    r"|estimating ByteCounts|correcting LSM|get_resolution>"
)
"""Warnings of tifffile that concern no pixel."""
ONE_EACH = "export each as a file of its own (for instance `bfconvert -series 0 IN.tif OUT.tif` of Bio-Formats)"
SPACE = "QIZYX"


@contextmanager
def open_tiff(path: Path, axes: str = "") -> Iterator[Opened]:
    """Open the image of a TIFF; axes S and C are channels, Z and unnamed ones beside Y and X are depth.

    Larger is brighter: where the file says that 0 is white, values are turned over within the range of their bits.

    Args:
        path: the file.
        axes: their names, such as `CYX`, for files of so many axes (or, as masks, of all but C) that name no samples.

    """
    import tifffile

    with _warnings_of_tifffile() as warned, tifffile.TiffFile(path) as file:
        _require_one_file(file)
        series = _only_image(file)
        _require_sound(warned)
        page = series.keyframe
        require_real(series.dtype)
        _require_known_colours(page)
        sizes, channels, space = _layout(series, axes)
        # A single extra sample is alpha where the file calls it so (1 and 2); others are measurements.
        alpha = len(page.extrasamples) == 1 and int(page.extrasamples[0]) in (1, 2)
        count = prod(sizes[at][1] for at in channels) - alpha
        if alpha and count >= page.samplesperpixel:
            raise UnusableError("several channels of pictures with alpha", "one of them", "save it without alpha")
        orientation = page.tags.valueof(274, 1)
        orientation = orientation if orientation in range(1, 9) else 1
        palette, inverted = _palette(file, page), _white_is_zero(page)
        top = 2 ** int(page.bitspersample) - 1
        lossy = int(page.compression) in JPEG
        regions: TiffRegions | None = None

        def finished(pixels: np.ndarray) -> np.ndarray:
            _require_sound(warned)
            return np.asarray(top - pixels, pixels.dtype) if inverted else pixels

        def whole() -> np.ndarray:
            require_bounded(series)
            rest = [at for at in range(len(sizes)) if at not in channels + space]
            pixels = series.asarray().transpose(channels + space + rest)
            pixels = pixels.reshape(-1, *(sizes[at][1] for at in space))
            return finished(plain(upright(without_alpha(pixels) if alpha else pixels, orientation)))

        def decode() -> Raster:
            pixels = whole() if regions is None else cast(np.ndarray, regions)  # an array to whoever takes slices of it
            return Raster(pixels, spacing, palette=palette, inverted=inverted and top > 1, lossy=lossy)

        if orientation == 1 and readable(series):
            used = Axes(tuple(channels), tuple(space), count)
            regions = TiffRegions(series, used, whole, finished)
        turned = [*space[:-2], *space[:-3:-1]] if orientation > 4 else space
        spacing = _tiff_spacing(file, [sizes[at][0] for at in turned])
        shown = (count, type_name(series.dtype)) if palette is None else (colours_in(palette), "uint8")
        size = max(int(series.nbytes) * (1 if palette is None else shown[0]), largest_segment(series))
        shape, grid = tuple(sizes[at][1] for at in turned), regions.grid if regions else None
        yield Header(shape, *shown, spacing, size, grid=grid), decode


def _require_one_file(file: Any) -> None:
    """Refuse a part of an OME-TIFF set before tifffile opens the others; of files that are missing it makes zeros."""
    if not file.is_ome:
        return
    root = ElementTree.fromstring(file.ome_metadata)
    files = {each.text for each in root.iter() if each.tag.endswith("UUID")} | {root.get("UUID")} - {None}
    if len(files) > 1 or any(each.tag.endswith("BinaryOnly") for each in root):
        raise _part_of_a_set(f" ({len(files)} files make up the OME-TIFF)" if len(files) > 1 else "")


def _part_of_a_set(how_many: str = "") -> UnusableError:
    fix = "write the set as one file (`bfconvert FIRST.ome.tif WHOLE.ome.tif`), or this plane without OME metadata"
    found = f"a part of an image, of which the rest is in other files{how_many}"
    return UnusableError(found, "a file that holds its whole image", fix)


def _only_image(file: Any) -> Any:
    """The series that is no reduced copy, transparency mask or label picture of another one."""
    series = [each for each in file.series if not each.keyframe.subfiletype & 0b101] or list(file.series)
    series = [each for each in series if not BESIDE.fullmatch(each.name.lower())] or series
    if len(series) > 1:
        sizes = ", ".join(" x ".join(map(str, each.shape)) for each in series[:8])
        raise UnusableError(f"{len(series)} images in one file, of {sizes}", "one, beside reduced ones", ONE_EACH)
    if series[0].is_multifile or series[0].keyframe.parent is not file:
        raise _part_of_a_set()
    return series[0]


def _photometric(page: Any) -> int:
    """What the samples stand for; where the file does not say, brightness (tifffile says WhiteIsZero)."""
    return int(page.tags.valueof(262, 1))


def _white_is_zero(page: Any) -> bool:
    """Whether larger values are shown darker; what tifffile made of booleans says so and means true and false."""
    truth = int(page.bitspersample) == 1 and (page.is_shaped or "tifffile" in page.software)
    return _photometric(page) == WHITE_IS_ZERO and not truth


def _require_known_colours(page: Any) -> None:
    kind, compression = _photometric(page), getattr(page.compression, "name", page.compression)
    if (kind not in KINDS and not (kind == YCBCR and page.compression in JPEG)) or page.compression == APERIO_YCBCR:
        found = f"colours of the kind {getattr(page.photometric, 'name', kind)} in compression {compression}"
        raise UnusableError(found, "brightness, RGB or a palette", "convert it to RGB or gray, and save it as TIFF")
    if kind == WHITE_IS_ZERO and page.dtype.kind not in "bu":
        found = f"values of type {page.dtype} of which 0 stands for white"
        raise UnusableError(found, "values of which larger ones are brighter", "save it as BlackIsZero (minisblack)")


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
        found = f"axes {series.axes} of {series.shape}"
        fix = "export what should be one image as a file of its own"
        names = "".join(sizes[at][0] if sizes[at][0] in "CYX" else "Z" for at in used)
        if len(space) == 3 and "S" not in stored:
            other = next(sizes[at][0] for at in space if sizes[at][0] not in "YX")
            fix += f", or name the axes: --data.axes {names} if {other} is depth (C for channels)"
        raise UnusableError(found, "2 or 3 axes of space (Z, Y, X) beside channels", fix)
    return sizes, [at for at in used if at not in space], space


def _palette(file: Any, page: Any) -> np.ndarray | None:
    """The colour table; None also for the look-up table of ImageJ, by which it draws the values that were measured."""
    if _photometric(page) != PALETTE or page.colormap is None:
        return None
    table = np.asarray(page.colormap).T
    rising = np.diff(table @ (0.299, 0.587, 0.114)) >= 0
    if file.is_imagej and rising.all():
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
        for element in ElementTree.fromstring(file.ome_metadata).iter():
            if element.tag.endswith("}Pixels"):
                for axis in "XYZ":
                    unit = MILLIMETRES.get(element.get(f"PhysicalSize{axis}Unit", "µm"))
                    lengths[axis] = float(element.get(f"PhysicalSize{axis}", "nan")) * (unit or np.nan)
                break
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
    metadata: dict[str, Any] = {"axes": names}
    if spacing is not None:
        # The identifier follows from the content, so that the same mask is the same file.
        digest = hashlib.blake2b(np.ascontiguousarray(data).tobytes(), digest_size=16).digest()
        metadata["UUID"] = f"urn:uuid:{uuid.UUID(bytes=digest)}"
        for axis, length in zip(axes, spacing, strict=True):
            metadata |= {f"PhysicalSize{axis}": length, f"PhysicalSize{axis}Unit": "mm"}
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer,
        data,
        ome=spacing is not None,
        photometric="rgb" if rgb else "minisblack",
        compression="zlib",
        metadata=metadata,
    )
    return buffer.getvalue()
