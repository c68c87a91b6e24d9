"""Image files as arrays and back: pillow for PNG, JPEG and BMP, tifffile for TIFF, nibabel for NIfTI.

Every array is `(channels, *space)`. Whatever goes wrong while a file is read becomes one `DataError` that names it.
"""

import io
import re
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Integer, Num

from nissl.errors import DataError, InputError, NisslError
from nissl.files import write_whole
from nissl.imageio import dicom
from nissl.imageio.mask_values import MaskValues
from nissl.imageio.nifti import encode_nifti, open_nifti
from nissl.imageio.pictures import open_picture
from nissl.imageio.raster import Header as Header
from nissl.imageio.raster import Opened, UnusableError
from nissl.imageio.raster import Raster as Raster
from nissl.imageio.tiff import encode_tiff, open_tiff
from nissl.imageio.tiff_regions import TiffRegions, write_mask_tiff

GIB = 2**30
LOSSY = (".jpg", ".jpeg")
TIFF = (".tif", ".tiff")
NIFTI = (".nii", ".nii.gz")


def suffix(path: Path) -> str:
    """The known suffix of a file in lower case (`.nii.gz` is one suffix); empty where it is not known."""
    return next((known for known in SUFFIXES if path.name.lower().endswith(known)), "")


def kind_of(path: Path) -> str:
    """The known suffix of a file, or `.dcm` for a folder of DICOM slices; empty where it is not known."""
    return ".dcm" if dicom.is_series(path) else suffix(path)


def is_dicom(path: Path) -> bool:
    """Whether a path is a DICOM file or a series of them, by names alone."""
    return kind_of(path) in dicom.SUFFIXES


def stem(path: Path) -> str:
    """Name of a file without its last known suffix: `a.b.c.nii.gz` becomes `a.b.c`.

    Unicode is composed (NFC), because some file systems store accents as separate characters.
    """
    return unicodedata.normalize("NFC", plain_name(path.name[: len(path.name) - len(suffix(path))]))


def plain_name(name: str) -> str:
    """A name whose bytes that are no UTF-8 are written as `%E4`, so that it can be printed and stored."""
    return re.sub("[\ud800-\udfff]", lambda byte: f"%{ord(byte[0]) & 0xFF:02X}", name)


def read_header(path: Path, alias: str | None = None, axes: str = "") -> Header:
    """Read shape, type and spacing of a file, but no pixels; arguments and errors as of `read_raster`."""
    with _faults_named(path, alias), _open(path, axes) as (header, _):
        return header


def read_raster(path: Path, limit_gib: float = 1.0, alias: str | None = None, axes: str = "") -> Raster:
    """Read a file, or a folder of DICOM slices; its size is checked from the header before anything is decoded.

    What a file says beside its numbers is followed, as viewers do: it is turned as EXIF or TIFF state, and where 0 is
    white it is turned over. Only palettes are left to `nissl.imageio.tiff_regions.shown`. An alpha channel is dropped,
    varying or not: it says how to draw a picture, not what was measured. Gamma and colour profiles are not applied.

    With an `alias`, errors call the file by it and quote neither its name nor the words of a decoder. `axes` names
    those of TIFFs (see `nissl.imageio.tiff.open_tiff`).

    Raises:
        DataError: the file cannot be read, or would be larger than the limit in memory.

    """
    with _faults_named(path, alias), _open(path, axes) as (header, decode):
        size = header.decoded_bytes
        fix = f"cut the file into pieces, or allow it with --data.limit-gib {size / GIB * 1.01:.3g}"
        _require_below(limit_gib, _called(path, alias), header, (size, "when decoded", fix))
        raster = decode()
        return replace(raster, pixels=np.asarray(raster.pixels))


@contextmanager
def open_raster(
    path: Path, limit_gib: float = 1.0, lines: int = 1024, alias: str | None = None, axes: str = ""
) -> Iterator[Raster]:
    """Open a file whose pixels are read where they are asked for, if it is a TIFF in parts; else as `read_raster`.

    The limit is for what must be decoded at once: one strip or tile. `lines` of the first axis of space stay decoded.
    A DataError may come here or where a region is read.
    """
    with ExitStack() as stack:
        with _faults_named(path, alias):
            header, decode = stack.enter_context(_open(path, axes))
            size = header.grid.segment if header.grid else header.decoded_bytes
            what = "in one piece that must be decoded at once" if header.grid else "when decoded"
            allow = f"data.limit_gib = {size / GIB * 1.01:.3g} in the run's model.json"
            fix = f"save it as a TIFF in tiles, or allow it with {allow}"
            _require_below(limit_gib, _called(path, alias), header, (size, what, fix))
            raster = decode()
        if isinstance(raster.pixels, TiffRegions):
            raster.pixels.lines, raster.pixels.guard = lines, partial(_faults_named, path, alias)
        yield raster


def _require_below(limit_gib: float, where: Path | str, header: Header, asked: tuple[int, str, str]) -> None:
    """Refuse what is asked for (bytes, of what, and how to fix it) where it is above the limit."""
    size, what, fix = asked
    if size > limit_gib * GIB:
        found = f"{size / GIB:.3g} GiB {what} (shape {header.shape}, {header.channels} x {header.dtype})"
        raise DataError(where, found, f"at most {limit_gib:g} GiB", fix)


def _called(path: Path, alias: str | None) -> Path | str:
    """What errors call a file; the name of a DICOM file is never shown, whoever reads it."""
    return alias or ("a DICOM file" if is_dicom(path) else path)


def _open(path: Path, axes: str) -> AbstractContextManager[Opened]:
    kind = kind_of(path)
    return open_tiff(path, axes) if axes and kind in TIFF else OPENERS[kind](path)


@contextmanager
def _faults_named(path: Path, alias: str | None) -> Iterator[None]:
    """Turn every fault of the decoder of a file into a DataError."""
    where, known = _called(path, alias), kind_of(path)
    if not known:
        found = "a file of another kind" if alias else f"a file of kind `{path.suffix}`"
        raise DataError(where, found, " ".join(SUFFIXES), "convert it to one of these")
    kind = "DICOM" if known in dicom.SUFFIXES else known[1:].upper()
    expected, fix = f"a readable {kind} file", "write the file again from its source, or remove it"
    if path.exists() and not (path.is_file() or dicom.is_series(path)):  # a pipe would be waited for without end
        raise DataError(where, "not an ordinary file", expected, "remove it")
    try:
        yield
    except (NisslError, MemoryError):
        raise
    except UnusableError as error:
        expected = error.expected or f"a {kind} file that holds an image or a volume"
        raise DataError(where, str(error), expected, error.fix or "convert it to one") from None
    except Exception as error:  # decoders meet hostile bytes with any exception there is
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200] or type(error).__name__
        if path.is_file() and path.stat().st_size == 0:
            reason = "an empty file (0 bytes)"
        elif "imagecodecs" in reason:
            fix = "pip install imagecodecs, or save the file without compression or with deflate"
        elif not getattr(error, "errno", None):  # not of the system, though decoders call theirs OSError too
            words = type(error).__name__ if where != path else reason
            reason = f"damaged, cut short, or of another kind than its name says: {words}"
        raise DataError(where, reason, expected, fix) from (error if where == path else None)


OPENERS: dict[str, Callable[[Path], AbstractContextManager[Opened]]] = {
    **dict.fromkeys((".png", *LOSSY, ".bmp"), open_picture),
    **dict.fromkeys(TIFF, open_tiff),
    **dict.fromkeys(NIFTI, open_nifti),
    **dict.fromkeys(dicom.SUFFIXES, dicom.open_dicom),
}
SUFFIXES = tuple(OPENERS)


def mask_suffix(image: Path) -> str:
    """Suffix of a mask that keeps the geometry of its image: that of TIFF and NIfTI, else `.png`.

    The mask of a DICOM volume is NIfTI where the volume has a place in space, and a TIFF stack where it has none, which
    the header says.
    """
    if is_dicom(image):
        try:
            header = read_header(image)
        except DataError:
            return ".nii.gz" if dicom.is_series(image) else ".png"
        return ".nii.gz" if header.placed else ".tif" if len(header.shape) > 2 else ".png"
    return suffix(image) if suffix(image) in TIFF + NIFTI else ".png"


def write_mask(
    path: Path,
    labels: Integer[np.ndarray, "*space"],
    like: Raster | None = None,
    note: str = "",
    values: MaskValues | None = None,
) -> None:
    """Write labels (0 or more) by the suffix: as `values` states, or in the smallest of uint8, uint16 and uint32.

    `like` is the image that the mask belongs to: NIfTI takes its affine, spacing and unit, TIFF its spacing. The note
    goes into the file's description, of which NIfTI holds 79 letters. Colours become a palette, and channels in NIfTI.

    Raises:
        InputError: the format is lossy or cannot hold that many labels or axes.
        ResourceError: the disk is full.

    """
    values = values or MaskValues(np.min_scalar_type(int(labels.max(initial=0))))
    like = like or Raster(labels[None])
    if suffix(path) in LOSSY:
        raise InputError(path, "JPEG, which changes labels", "a lossless format", "write masks as .png or .tif")
    if suffix(path) in TIFF:
        write_mask_tiff(path, labels.shape, [labels], values, like.spacing, note)
    elif suffix(path) in NIFTI and values.palette is not None:
        write_whole(path, _encode(path, np.moveaxis(values.palette[labels], -1, 0), like, note))
    else:
        write_whole(path, _encode(path, values.drawn(labels)[None], like, note, values.palette))


def write_image(
    path: Path, pixels: Num[np.ndarray, "channels *space"], spacing: tuple[float, ...] | None = None
) -> None:
    """Write an image by its suffix: PNG, JPEG and BMP 8-bit gray or RGB (PNG 16-bit gray too), TIFF and NIfTI any.

    Spacing is in mm along each spatial axis.

    Raises:
        InputError: the format cannot hold the type, the channels or the axes.
        ResourceError: the disk is full.

    """
    write_whole(path, _encode(path, pixels, Raster(pixels, spacing), ""))


def _encode(path: Path, pixels: np.ndarray, like: Raster, note: str, palette: np.ndarray | None = None) -> bytes:
    kind = suffix(path)
    if kind in NIFTI:
        return encode_nifti(kind, pixels, like, note)
    if kind in TIFF:
        return encode_tiff(pixels, like.spacing)
    held = {(1, "uint8"), (3, "uint8")} | ({(1, "uint16")} if kind == ".png" else set())
    if kind in ("", *dicom.SUFFIXES) or pixels.ndim != 3 or (len(pixels), pixels.dtype.name) not in held:
        found = f"{len(pixels)} channels of {pixels.dtype} with shape {pixels.shape[1:]}"
        expected = f"what {kind} can hold" if kind else f"one of {' '.join(SUFFIXES)}"
        raise InputError(path, found, expected, "write it as .tif or .nii.gz")
    from PIL import Image, PngImagePlugin

    buffer = io.BytesIO()
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1).copy())
    if palette is not None:
        image.putpalette(palette.tobytes())
    described = PngImagePlugin.PngInfo()
    if note:
        described.add_text("Description", note)
    image.save(buffer, "JPEG" if kind in LOSSY else kind[1:].upper(), pnginfo=described)  # others do not look at it
    return buffer.getvalue()
