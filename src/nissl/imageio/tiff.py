"""TIFF as arrays and back, by tifffile; regions are read by `nissl.imageio.tiff_regions`."""

import hashlib
import io
import logging
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np

from nissl.imageio.raster import Header, Opened, Raster, UnusableError, known_spacing, plain, type_name
from nissl.imageio.tiff_regions import Axes, TiffRegions, readable
from nissl.imageio.tiff_segments import largest_segment, require_bounded

MILLIMETRES = {"mm": 1.0, "cm": 10.0, "nm": 1e-6, "m": 1e3}
MILLIMETRES |= dict.fromkeys(("um", "\u00b5m", "\u03bcm", "\\u00B5m", "micron", "microns"), 1e-3)


@contextmanager
def open_tiff(path: Path) -> Iterator[Opened]:
    """Open the first series of a TIFF; axes S and C are channels, any other beside Y and X is depth."""
    import tifffile

    with _faults_of_tifffile() as faults, tifffile.TiffFile(path) as file:
        series = file.series[0]
        page = series.keyframe
        sizes = [(axis, size) for axis, size in zip(series.axes, series.shape, strict=True)]
        kept = [(axis, size) for axis, size in sizes if axis in "YXSC" or size > 1]
        channels = [index for index, (axis, _) in enumerate(kept) if axis in "SC"]
        space = [index for index in range(len(kept)) if index not in channels]
        if len(space) not in (2, 3):
            raise UnusableError(f"axes {series.axes} of {series.shape}, where 2 or 3 axes of space can be used")
        shape = tuple(kept[index][1] for index in space)
        # Only RGB files say which sample is the alpha channel (1 and 2); other extra samples are measurements.
        alpha = page.photometric == 2 and len(page.extrasamples) == 1 and int(page.extrasamples[0]) in (1, 2)
        count = int(np.prod([kept[index][1] for index in channels], dtype=int)) - alpha
        spacing = _tiff_spacing(file, [kept[index][0] for index in space])
        colormap = page.colormap if page.photometric == 3 else None
        regions: TiffRegions | None = None

        def whole() -> np.ndarray:
            require_bounded(series)
            stored = series.asarray().reshape([size for _, size in kept])
            pixels = stored.transpose(channels + space).reshape(-1, *shape)[:count]
            if faults:
                raise ValueError(f"pages are missing ({faults[0]})")
            return plain(pixels)

        def decode() -> Raster:
            palette = None if colormap is None else (np.asarray(colormap).T >> 8).astype(np.uint8)
            pixels = whole() if regions is None else cast(np.ndarray, regions)  # an array to whoever takes slices of it
            return Raster(pixels, spacing, palette=palette)

        if readable(series):
            at = [index for index, (axis, size) in enumerate(sizes) if axis in "YXSC" or size > 1]
            axes = Axes(tuple(at[index] for index in channels), tuple(at[index] for index in space), count)
            regions = TiffRegions(series, axes, whole)
        grid = regions.grid if regions else None
        size = max(int(series.nbytes), largest_segment(series))
        yield Header(shape, count, type_name(series.dtype), spacing, size, grid=grid), decode


@contextmanager
def _faults_of_tifffile() -> Iterator[list[str]]:
    """Collect what tifffile only logs: a stack that was cut short is otherwise read as a shorter stack."""
    faults: list[str] = []
    thread = threading.get_ident()

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            message = record.getMessage()
            if record.thread == thread and ("TiffPages" in message or "TiffTag" in message):
                faults.append(message)

    collector = Collector(logging.ERROR)
    logger = logging.getLogger("tifffile")
    logger.addHandler(collector)
    try:
        yield faults
    finally:
        logger.removeHandler(collector)


def _tiff_spacing(file: Any, axes: list[str]) -> tuple[float, ...] | None:
    """Spacing in mm, only where OME or ImageJ metadata state the unit; bare resolution tags are often untrue."""
    lengths: dict[str, float] = {}
    if file.is_ome:
        from xml.etree import ElementTree

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
