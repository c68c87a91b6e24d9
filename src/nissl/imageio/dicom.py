"""DICOM: a file (2-D, or 3-D where it has several frames), or a folder of slices, which is one volume.

Of a file only the elements in `ELEMENTS` are read, so that names, dates and identifiers of the patient do not get as
far as an array, a header or an error. Errors are in words of ours alone: those of a decoder may quote the file.
"""

import io
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from nissl.imageio.dicom_geometry import EXPECTED, Grid, Slice, stacked
from nissl.imageio.raster import BoundedFile, Header, Opened, Raster, UnusableError, picture, plain

SUFFIXES = (".dcm", ".dicom")
LAYOUT = (
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
)
"""What all slices of a series must agree in, beside their series and direction."""
PLACE = (
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
ELEMENTS = (
    *(*LAYOUT, *PLACE, "PlanarConfiguration", "SOPClassUID", "SegmentationType"),
    *("SeriesInstanceUID", "BurnedInAnnotation", "ModalityLUTSequence"),
)
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")

SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""Storage classes of segmentation objects: frames of one segment each, and label maps."""
SEGMENTS_FIX = "export the segmentation as NIfTI in the geometry of the image, a number for each segment"
LOSSY = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51")
"""Transfer syntaxes of JPEG baseline and extended."""
DEFLATED = "1.2.840.10008.1.2.1.99"
GRAY, COLOUR = ("MONOCHROME1", "MONOCHROME2"), ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


def is_series(path: Path) -> bool:
    """Whether a path is a folder with DICOM slices in it, by names alone."""
    try:
        return path.is_dir() and bool(slices(path))
    except OSError:
        return False


def slices(folder: Path) -> list[Path]:
    """The DICOM files of a folder, sorted by name; hidden ones left out."""
    paths = (path for path in folder.iterdir() if path.name.lower().endswith(SUFFIXES))
    return sorted(path for path in paths if not path.name.startswith("."))


@contextmanager
def open_dicom(path: Path) -> Iterator[Opened]:
    """Open a file, or a folder of slices.

    A single frame stays as a picture: `(rows, columns)`, without affine. A volume whose slices state their place has
    the axes x (along a row), y (along a column) and z (from slice to slice, by position and not by name), with the
    affine of NIfTI (right, anterior, superior), so that a NIfTI mask of the series fits it; the slice distance is that
    of the positions. Frames that state no place stay as a stack of pictures.

    Values are those of the modality: rescale slope and intercept are applied, to whole numbers where both are whole.
    MONOCHROME1 (0 is white) is turned over within the range of the stored bits, so that larger is brighter everywhere.

    Raises:
        UnusableError: a fault in the file or series, in words that quote nothing of it.

    """
    files, heads, planes, grid = _examine(path)
    head, size = heads[0], (int(heads[0].Rows), int(heads[0].Columns))
    channels, dtype = int(head.SamplesPerPixel), _value_type(head, planes)
    shape: tuple[int, ...] = size if len(planes) == 1 else (len(planes), *size)
    spacing = planes[0].spacing or None if len(planes) == 1 else None
    if grid:
        shape, spacing = shape[::-1], grid.spacing

    def decode() -> Raster:
        stack = np.empty((len(planes), *size, channels), dtype)
        done = 0
        for file, place in files:
            with _faults_of(place):
                for frame in _pixels(file).reshape(-1, *size, channels):
                    stack[done] = _values(frame, head, planes[done], dtype)
                    done += 1
        pixels = np.moveaxis(stack.reshape(*shape, channels), -1, 0) if grid is None else stack[list(grid.order)].T
        return Raster(
            plain(pixels),
            spacing,
            grid.affine if grid else None,
            inverted=head.PhotometricInterpretation == "MONOCHROME1",
            burned_in=any(str(each.get("BurnedInAnnotation", "")).upper() == "YES" for each in heads),
            lossy=str(head.file_meta.get("TransferSyntaxUID", "")) in LOSSY,
            segments=_is_segmentation(head),
        )

    size_in_memory = math.prod(shape) * channels * dtype.itemsize
    yield Header(shape, channels, dtype.name, spacing, size_in_memory, grid is not None), decode


def _examine(path: Path) -> tuple[list[tuple[Path, str]], list[Any], list[Slice], Grid | None]:
    """The files of a case, each with the words for it, their headers, and planes; refuses what makes no image."""
    series = path.is_dir()
    paths = slices(path) if series else [path]
    files = [(file, f"file {n} of {len(paths)} by name" if series else "") for n, file in enumerate(paths, 1)]
    heads: list[Any] = []
    planes: list[Slice] = []
    for file, place in files:
        with _faults_of(place):
            heads.append(_read(file, ELEMENTS))
            _require_usable(heads[-1])
            planes += _planes(heads[-1], place or "the file")
    for what, keys in (("series", ("SeriesInstanceUID",)), ("size or kind of pixels", LAYOUT)):
        kinds = [tuple(str(head.get(key)) for key in keys) for head in heads]
        other = next((n for n, kind in enumerate(kinds) if kind != kinds[0]), None)
        if other is not None:
            found = f"slices of {len(set(kinds))} kinds: {files[other][1]} differs from {files[0][1]} in its {what}"
            raise UnusableError(found, EXPECTED, "give each series a folder of its own")
    if series and len(planes) < 2:
        fix = "add the other slices, or put the file itself among the images if it is 2-D"
        raise UnusableError("a series of one slice, so that the distance of slices is unknown", EXPECTED, fix)
    try:
        grid = stacked(planes) if len(planes) > 1 else None
    except UnusableError as error:
        if not _is_segmentation(heads[0]):
            raise
        found = f"a segmentation object whose frames are no whole volume: {error}"
        raise UnusableError(found, "a frame for every slice of the image", SEGMENTS_FIX) from None
    if len(files) > 1 and grid is None:
        raise UnusableError("slices that state no position", EXPECTED, "convert the series to a TIFF stack")
    return files, heads, planes, grid


def _pydicom() -> Any:
    try:
        import pydicom
    except ImportError as error:
        found, expected = "DICOM, which needs another package", "pydicom to be installed"
        raise UnusableError(found, expected, "pip install 'nissl[dicom]'") from error
    return pydicom


@contextmanager
def _faults_of(place: str) -> Iterator[None]:
    """Whatever pydicom raises on hostile bytes is a fault of that file or frame, in our words.

    It is kept from writing, too: what it warns of, it quotes.
    """
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (OSError, MemoryError):
        raise
    except Exception as error:
        fault = error if isinstance(error, UnusableError) else _damaged()
        found = f"{place}: {fault}" if place else str(fault)
        raise UnusableError(found, fault.expected, fault.fix) from error
    finally:
        logger.setLevel(level)


def _read(path: Path, elements: Sequence[str]) -> Any:
    """The elements of one file; those after the pixels are not read where the pixels are not wanted."""
    pydicom = _pydicom()
    with BoundedFile(path) as file:
        file.seek(132)
        meta = pydicom.filereader.read_dataset(file, False, True, stop_when=lambda tag, *_: tag >> 16 != 2)
        if str(meta.get("TransferSyntaxUID", "")) == DEFLATED:
            # All of it is decompressed, without bound, before its size can be known.
            raise _undecodable("Deflated")
        file.seek(0)
        wanted = not set(elements).isdisjoint(PIXELS)
        head = pydicom.dcmread(file, stop_before_pixels=not wanted, specific_tags=list(elements))
        for element in elements:
            head.get(element)  # here, where a value that cannot be read belongs to this file
        return head


def _damaged() -> UnusableError:
    found, fix = "damaged, cut short, or of another kind than its name says", "export the file again from its source"
    return UnusableError(found, "a readable DICOM file", f"{fix}, or remove it")


def _undecodable(syntax: str) -> UnusableError:
    fix = "convert the files to Explicit VR Little Endian, for instance with gdcmconv --raw IN OUT, or see whether "
    fix += "`pip install pylibjpeg[all]` adds a decoder"
    return UnusableError(f"the transfer syntax {syntax}", "one that can be decoded here", fix)


def _require_usable(head: Any) -> None:
    """Refuse what could only be read wrongly."""
    if "Rows" not in head or "BitsAllocated" not in head:
        fix = "export it again; a report or plan is removed"
        raise UnusableError("no pixels: cut short, or no image", "an image", fix)
    if "ModalityLUTSequence" in head:
        found, fix = "values that are coded by a table (Modality LUT)", "convert it with a tool that applies the table"
        raise UnusableError(found, "values with slope and intercept", fix)
    samples, colour = int(head.SamplesPerPixel), str(head.PhotometricInterpretation)
    if colour not in (GRAY if samples == 1 else COLOUR) or samples not in (1, 3):
        palette = colour == "PALETTE COLOR"
        found = "a palette" if palette else f"{samples} samples for each pixel in colours of that kind"
        raise UnusableError(found, "MONOCHROME1, MONOCHROME2, RGB or YBR", "convert it to RGB or MONOCHROME2")
    allocated, stored = int(head.BitsAllocated), int(head.get("BitsStored", head.BitsAllocated))
    if allocated not in (1, 8, 16, 32, 64) or not 0 < stored <= allocated:
        raise UnusableError(f"{stored} of {allocated} bits for each value", "1, 8, 16, 32 or 64 bits", "convert it")
    if int(head.get("HighBit", stored - 1)) != stored - 1:
        raise UnusableError("values that do not end at the lowest bit", "High Bit one below Bits Stored", "convert it")
    if not 0 < int(head.Rows) <= 65535 or not 0 < int(head.Columns) <= 65535 or not 0 < _frames(head) <= 2**20:
        raise _damaged()
    if _is_segmentation(head):
        _require_one_segment(head)


def _is_segmentation(head: Any) -> bool:
    return str(head.get("SOPClassUID", "")) in SEGMENTATIONS


def _require_one_segment(head: Any) -> None:
    """Refuse a segmentation object of which the frames alone do not tell the class of a pixel."""
    own, shared = (head.get(f"{kind}FunctionalGroupsSequence") or [] for kind in ("PerFrame", "Shared"))
    parts = [part[0] for groups in (*own, *shared) if (part := groups.get("SegmentIdentificationSequence"))]
    numbers = {int(part.ReferencedSegmentNumber) for part in parts}
    found = f"a segmentation object with {len(numbers)} segments, each in frames of its own" if len(numbers) > 1 else ""
    if str(head.get("SegmentationType", "")).upper() == "FRACTIONAL":
        found = "a segmentation object of fractions"
    if found:
        raise UnusableError(found, "a segmentation object of one segment, yes or no for each pixel", SEGMENTS_FIX)


def _frames(head: Any) -> int:
    return int(head.get("NumberOfFrames") or 1)


def _planes(head: Any, place: str) -> list[Slice]:
    """The slices of a file: one, or its frames with the place that the functional groups of each give."""
    count = _frames(head)
    if count == 1:
        return [_plane(place, [*_groups(head, 0), head])]
    # Without functional groups the one position is that of the first frame alone.
    last = {key: head[key].value for key in ("PixelSpacing", "RescaleSlope", "RescaleIntercept") if key in head}
    words = "frame" if place == "the file" else f"{place}, frame"
    planes = []
    for n in range(count):
        with _faults_of(f"frame {n + 1} of {count}"):
            planes.append(_plane(f"{words} {n + 1} of {count}", [*_groups(head, n), last]))
    return planes


def _groups(head: Any, number: int) -> list[Any]:
    """What the functional groups say of one frame, its own before those that all share."""
    own, shared = head.get("PerFrameFunctionalGroupsSequence"), head.get("SharedFunctionalGroupsSequence")
    return [
        part[0]
        for groups in ([own[number]] if own else []) + ([shared[0]] if shared else [])
        for name in ("PlanePosition", "PlaneOrientation", "PixelMeasures", "PixelValueTransformation")
        if (part := groups.get(f"{name}Sequence"))
    ]


def _plane(where: str, sources: Sequence[Any]) -> Slice:
    """The first of the sources that states a value gives it."""

    def numbers(key: str, count: int) -> tuple[float, ...]:
        value = next((value for source in sources if (value := source.get(key)) not in (None, "", [])), None)
        if value is None:
            return ()
        found = tuple(float(number) for number in (value if isinstance(value, Sequence) else [value]))
        if len(found) != count or not np.isfinite(found).all():
            raise UnusableError(f"{key} is not {count} finite numbers")
        return found

    spacing = numbers("PixelSpacing", 2)
    if spacing and min(spacing) <= 0:
        raise UnusableError("PixelSpacing is not above 0")
    (slope,), (intercept,) = numbers("RescaleSlope", 1) or (1.0,), numbers("RescaleIntercept", 1) or (0.0,)
    corner, direction = numbers("ImagePositionPatient", 3), numbers("ImageOrientationPatient", 6)
    return Slice(where, corner, direction, spacing, slope, intercept)


def _value_type(head: Any, planes: Sequence[Slice]) -> np.dtype[Any]:
    """The smallest type that holds every value that the stored bits can stand for."""
    allocated, stored = int(head.BitsAllocated), int(head.get("BitsStored", head.BitsAllocated))
    low, high = _range(head)
    scales = {(plane.slope, plane.intercept) for plane in planes}
    if allocated >= 32 and "PixelRepresentation" not in head:  # Float Pixel Data has no such element
        return np.dtype(np.float32 if allocated == 32 and scales == {(1.0, 0.0)} else np.float64)
    if scales == {(1.0, 0.0)}:
        return np.dtype(f"{'i' if low < 0 else 'u'}{max(1, allocated // 8)}")
    ends = [value * slope + intercept for value in (low, high) for slope, intercept in scales]
    if all(slope.is_integer() and intercept.is_integer() for slope, intercept in scales):
        for kind in (np.int16, np.uint16, np.int32):
            if np.iinfo(kind).min <= min(ends) and max(ends) <= np.iinfo(kind).max:
                return np.dtype(kind)
    return np.dtype(np.float32 if stored <= 16 else np.float64)


def _range(head: Any) -> tuple[int, int]:
    """Smallest and largest stored value."""
    stored = int(head.get("BitsStored", head.BitsAllocated))
    signed = int(head.get("PixelRepresentation", 0)) == 1
    return (-(2 ** (stored - 1)), 2 ** (stored - 1) - 1) if signed else (0, 2**stored - 1)


def _values(frame: np.ndarray, head: Any, plane: Slice, dtype: np.dtype[Any]) -> np.ndarray:
    """Stored values as those of the modality."""
    if head.PhotometricInterpretation == "MONOCHROME1" and frame.dtype.kind != "f":
        low, high = _range(head)
        frame = np.asarray(low + high, frame.dtype) - frame
    if (plane.slope, plane.intercept) == (1.0, 0.0):
        return frame
    return np.asarray(frame * np.float64(plane.slope) + plane.intercept).astype(dtype)


def _pixels(path: Path) -> np.ndarray:
    """Decode the frames of a file, `(frames, rows, columns, samples)` or with axes of length one left out."""
    from pydicom.pixels.decoders.base import get_decoder

    whole = _read(path, [*LAYOUT, "PlanarConfiguration", *PIXELS])
    syntax = whole.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        decoder = None
    if decoder is None or not decoder.is_available:
        raise _undecodable(syntax.name if syntax.is_transfer_syntax and not syntax.is_private else "unknown")
    options: dict[str, Any] = {}
    if syntax.is_encapsulated:
        _require_frames_of_that_size(whole, str(syntax))
        options["allow_excess_frames"] = False
    pixels: np.ndarray = decoder.as_array(whole, **options)[0]
    return pixels


def _require_frames_of_that_size(whole: Any, syntax: str) -> None:
    """Compressed frames carry a size of their own, which is what a decoder allocates."""
    pydicom = _pydicom()
    rows, columns = int(whole.Rows), int(whole.Columns)
    raw = rows * columns * int(whole.SamplesPerPixel) * max(1, int(whole.BitsAllocated) // 8)
    for frame in pydicom.encaps.generate_frames(whole.PixelData, number_of_frames=_frames(whole)):
        if syntax == pydicom.uid.RLELossless:
            fits = len(frame) <= 2 * raw + 1024  # what runs of one byte each would take
        else:
            kind = "Jpeg" if frame.startswith(b"\xff\xd8") else "Jpeg2K"
            fits = picture(kind, io.BytesIO(frame)).size == (columns, rows)
        if not fits:
            raise ValueError("a frame of another size than the file states")
