"""Image files as arrays and back: pillow for PNG, JPEG and BMP, tifffile for TIFF, nibabel for NIfTI.

Every array is `(channels, *space)`. Whatever goes wrong while a file is read becomes one `DataError` that names it.
"""

import io
import logging
import threading
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Integer, Num

from nissl.errors import DataError, InputError, NisslError
from nissl.files import write_whole
from nissl.imageio import dicom
from nissl.imageio.encoding import encode_nifti, encode_tiff
from nissl.imageio.mask_values import MaskValues
from nissl.imageio.raster import BoundedFile, Opened, UnusableError, known_spacing, plain, type_name
from nissl.imageio.raster import Header as Header
from nissl.imageio.raster import Raster as Raster
from nissl.imageio.tiff_regions import Axes, TiffRegions, readable, write_mask_tiff
from nissl.imageio.tiff_segments import largest_segment, require_bounded

GIB, MOST_EXTENSIONS = 2**30, 2**24
LOSSY = (".jpg", ".jpeg")
TIFF = (".tif", ".tiff")
NIFTI = (".nii", ".nii.gz")
JPEG = (6, 7, 34892)
"""Compressions of TIFF that are JPEG."""
MILLIMETRES = {"mm": 1.0, "cm": 10.0, "nm": 1e-6, "m": 1e3}
MILLIMETRES |= dict.fromkeys(("um", "\u00b5m", "\u03bcm", "\\u00B5m", "micron", "microns"), 1e-3)


def suffix(path: Path) -> str:
    """The known suffix of a file in lower case (`.nii.gz` is one suffix); empty where it is not known."""
    name = path.name.lower()
    return next((known for known in sorted(SUFFIXES, key=len, reverse=True) if name.endswith(known)), "")


def stem(path: Path) -> str:
    """Name of a file without its last known suffix: `a.b.c.nii.gz` becomes `a.b.c`.

    Unicode is composed (NFC), because some file systems store accents as separate characters.
    """
    return unicodedata.normalize("NFC", path.name[: len(path.name) - len(suffix(path))])


def read_header(path: Path, alias: str | None = None) -> Header:
    """Read the shape, type and spacing of a file without decoding its pixels; `alias` as of `read_raster`.

    Raises:
        DataError: the file cannot be read.

    """
    with _opened(path, alias) as (header, _):
        return header


def read_raster(path: Path, limit_gib: float = 1.0, alias: str | None = None) -> Raster:
    """Read a file, or a folder of DICOM slices; its size is checked from the header before anything is decoded.

    An alpha channel is dropped, varying or not: it says how to draw a picture, not what was measured. The EXIF
    orientation is not applied: masks carry none, so image and mask would no longer lie on each other. 16-bit
    gray values are kept; pillow reads 16-bit colour PNG as its upper 8 bits (use TIFF for those). Stored TIFF values
    are kept when the file says that 0 is white.

    With an `alias`, errors call the file by it and quote neither its name nor the words of a decoder.

    Raises:
        DataError: the file cannot be read, or would be larger than the limit in memory.

    """
    with _opened(path, alias) as (header, decode):
        size = header.decoded_bytes
        fix = f"cut the file into pieces, or allow it with --data.limit-gib {size / GIB * 1.01:.3g}"
        _require_below(limit_gib, _called(path, alias), header, (size, "when decoded", fix))
        raster = decode()
        return replace(raster, pixels=np.asarray(raster.pixels))


@contextmanager
def open_raster(path: Path, limit_gib: float = 1.0, lines: int = 1024, alias: str | None = None) -> Iterator[Raster]:
    """Open a file whose pixels are read where they are asked for, if it is a TIFF in parts; else as `read_raster`.

    The limit is for what must be decoded at once: one strip or tile. `lines` of the first axis of space stay decoded.

    Raises:
        DataError: the file cannot be read, here or where a region is read, or a part of it is larger than the limit.

    """
    with ExitStack() as stack:
        with _faults_named(path, alias):
            header, decode = stack.enter_context(_open(path))
            size = header.grid.segment if header.grid else header.decoded_bytes
            what = "in one piece that must be decoded at once" if header.grid else "when decoded"
            allow = f"data.limit_gib = {size / GIB * 1.01:.3g} in the run's config.toml"
            fix = f"save it as a TIFF in tiles, or allow it with {allow}"
            _require_below(limit_gib, _called(path, alias), header, (size, what, fix))
            raster = decode()
        if isinstance(raster.pixels, TiffRegions):
            raster.pixels.lines, raster.pixels.guard = lines, partial(_faults_named, path, alias)
        yield raster


def _require_below(limit_gib: float, where: Path | str, header: Header, asked: tuple[int, str, str]) -> None:
    """Refuse what is asked for (bytes, of what, and how to mend it) where it is above the limit."""
    size, what, fix = asked
    if size > limit_gib * GIB:
        found = f"{size / GIB:.3g} GiB {what} (shape {header.shape}, {header.channels} x {header.dtype})"
        raise DataError(where, found, f"at most {limit_gib:g} GiB", fix)


def _called(path: Path, alias: str | None) -> Path | str:
    """What errors call a file; the name of a DICOM file is never shown, whoever reads it."""
    return alias or ("a DICOM file" if suffix(path) in dicom.SUFFIXES or dicom.is_series(path) else path)


@contextmanager
def _opened(path: Path, alias: str | None) -> Iterator[Opened]:
    """Open a file by its suffix and turn every fault of a decoder into a DataError."""
    with _faults_named(path, alias), _open(path) as opened:
        yield opened


def _open(path: Path) -> AbstractContextManager[Opened]:
    return OPENERS[".dcm" if dicom.is_series(path) else suffix(path)](path)


@contextmanager
def _faults_named(path: Path, alias: str | None) -> Iterator[None]:
    """Turn every fault of the decoder of a file into a DataError."""
    where, series = _called(path, alias), dicom.is_series(path)
    known = ".dcm" if series else suffix(path)
    if not known:
        found = "a file of another kind" if alias else f"a file of kind `{path.suffix}`"
        raise DataError(where, found, " ".join(SUFFIXES), "convert it to one of these")
    kind = "DICOM" if known in dicom.SUFFIXES else known[1:].upper()
    expected, fix = f"a readable {kind} file", "write the file again from its source, or remove it"
    if path.exists() and not (path.is_file() or series):  # a pipe would be waited for without end
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


@contextmanager
def _open_pillow(path: Path) -> Iterator[Opened]:
    """Open PNG, JPEG or BMP by its first bytes.

    The reader's class is called rather than Image.open, whose own bound of pixels would warn or refuse before ours.
    """
    from PIL import BmpImagePlugin, JpegImagePlugin, PngImagePlugin

    readers: dict[bytes, Any] = {
        b"\x89PNG": PngImagePlugin.PngImageFile,
        b"\xff\xd8\xff": JpegImagePlugin.JpegImageFile,
        b"BM": BmpImagePlugin.BmpImageFile,
    }
    with BoundedFile(path) as file:
        start = file.read(4)
        reader = next((reader for magic, reader in readers.items() if start.startswith(magic)), None)
        if reader is None:
            raise ValueError("the first bytes are not those of PNG, JPEG or BMP")
        file.seek(0)
        image = reader(file)
        bands = [band for band in image.getbands() if band != "A"]
        dtype = np.dtype({"1": bool, "I": np.int32, "F": np.float32}.get(image.mode, np.uint8))
        dtype = np.dtype(np.uint16) if image.mode.startswith("I;16") else dtype
        size = image.width * image.height * len(image.getbands()) * dtype.itemsize
        colours = 3 if len(bands) > 1 else 1

        def decode() -> Raster:
            image.load()
            palette = None
            if image.mode in ("P", "PA"):
                stored = np.asarray(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
                palette = np.zeros((256, 3), np.uint8)
                palette[: len(stored)] = stored
            whole = image if len(bands) in (1, 3) else image.convert("RGB")
            pixels = np.asarray(whole).reshape(image.height, image.width, -1)[..., :colours]
            lossy = isinstance(image, JpegImagePlugin.JpegImageFile)
            clear = np.asarray(image.getchannel("A")) < 128 if "A" in image.getbands() else None
            clear = None if clear is None or not clear.any() else clear
            return Raster(plain(np.moveaxis(pixels, -1, 0)), palette=palette, lossy=lossy, clear=clear)

        yield Header((image.height, image.width), colours, type_name(dtype), None, size), decode


@contextmanager
def _open_tiff(path: Path) -> Iterator[Opened]:
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
            return Raster(pixels, spacing, palette=palette, lossy=int(page.compression) in JPEG)

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


@contextmanager
def _open_nifti(path: Path) -> Iterator[Opened]:
    """Open NIfTI; axes as stored, the fourth (or NIfTI's fifth, of vectors) holds channels, a single slice is 2-D."""
    import nibabel

    header = _nifti_header(path)
    proxy = nibabel.arrayproxy.ArrayProxy(path, header, mmap=False)
    shape = tuple(int(size) for size in proxy.shape)
    if len(shape) == 5 and shape[3] == 1:
        shape = (*shape[:3], shape[4])
    if len(shape) not in (2, 3, 4) or 0 in shape:
        raise UnusableError(f"shape {proxy.shape}, where 2 or 3 axes of space and one of channels can be used")
    space = shape[:2] if shape[2:3] == (1,) else shape[:3]
    count = shape[3] if len(shape) == 4 else 1
    scaled = (proxy.slope, proxy.inter) != (1.0, 0.0)
    dtype = np.dtype(np.float64) if scaled else header.get_data_dtype()
    unit = {"meter": 1e3, "micron": 1e-3}.get(header.get_xyzt_units()[0], 1.0)  # unknown means mm by convention
    spacing = known_spacing(float(zoom) * unit for zoom in header.get_zooms()[: len(space)])

    def decode() -> Raster:
        stored = np.asanyarray(proxy)
        if stored.dtype.names:  # RGB as a record
            stored = np.stack([stored[name] for name in stored.dtype.names], axis=-1)
        pixels = np.moveaxis(stored.reshape(*space, -1), -1, 0)
        return Raster(plain(pixels), spacing, np.asarray(header.get_best_affine(), np.float64))

    count *= len(dtype.names or "1")
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    yield Header(space, count, "uint8" if dtype.names else type_name(dtype), spacing, size), decode


def _nifti_header(path: Path) -> Any:
    """The header of NIfTI 1 or 2, read from the bytes before the pixels.

    What lies between header and pixels would else be read, and unpacked, at the length that it states.
    """
    import nibabel
    from nibabel.openers import ImageOpener

    with ImageOpener(path) as file:
        start = file.read(nibabel.Nifti2Header.sizeof_hdr)
        for kind in (nibabel.Nifti1Header, nibabel.Nifti2Header):
            if kind.may_contain_header(start):
                offset = float(kind(start[: kind.sizeof_hdr], check=False)["vox_offset"])
                if not 0 <= offset <= MOST_EXTENSIONS:
                    raise UnusableError(f"pixels that begin at byte {offset:.4g}", "16 MiB of extensions at most")
                start += file.read(max(0, int(offset) - len(start)))
                return kind.from_fileobj(io.BytesIO(start))
    raise ValueError("its first bytes are not those of NIfTI")


OPENERS: dict[str, Callable[[Path], AbstractContextManager[Opened]]] = {
    ".png": _open_pillow,
    ".jpg": _open_pillow,
    ".jpeg": _open_pillow,
    ".bmp": _open_pillow,
    ".tif": _open_tiff,
    ".tiff": _open_tiff,
    ".nii": _open_nifti,
    ".nii.gz": _open_nifti,
    ".dcm": dicom.open_dicom,
    ".dicom": dicom.open_dicom,
}
SUFFIXES = tuple(OPENERS)


def mask_suffix(image: Path) -> str:
    """Suffix of a mask that keeps the geometry of its image: that of TIFF and NIfTI, else `.png`.

    The mask of a DICOM volume is NIfTI where the volume has a place in space, and a TIFF stack where it has none, which
    the header says.
    """
    kind = ".dcm" if dicom.is_series(image) else suffix(image)
    if kind in dicom.SUFFIXES:
        try:
            header = read_header(image)
        except DataError:
            return ".nii.gz" if dicom.is_series(image) else ".png"
        return ".nii.gz" if header.placed else ".tif" if len(header.shape) > 2 else ".png"
    return kind if kind in (".tif", ".tiff", ".nii", ".nii.gz") else ".png"


def write_mask(
    path: Path,
    labels: Integer[np.ndarray, "*space"],
    like: Raster | None = None,
    note: str = "",
    values: MaskValues | None = None,
) -> None:
    """Write labels (0 or more) by the suffix: as `values` states, or in the smallest of uint8, uint16 and uint32.

    `like` is the image that the mask belongs to: NIfTI takes its affine and spacing, TIFF its spacing. The note goes
    into the file's description, of which NIfTI holds 79 letters. Colours become a palette, and channels in NIfTI.

    Raises:
        InputError: the format is lossy or cannot hold that many labels or axes.
        ResourceError: the disk is full.

    """
    values = values or MaskValues(np.min_scalar_type(int(labels.max(initial=0))))
    spacing, affine = (like.spacing, like.affine) if like else (None, None)
    if suffix(path) in LOSSY:
        raise InputError(path, "JPEG, which changes labels", "a lossless format", "write masks as .png or .tif")
    if suffix(path) in TIFF:
        write_mask_tiff(path, labels.shape, [labels], values, spacing, note)
    elif suffix(path) in NIFTI and values.palette is not None:
        write_whole(path, _encode(path, np.moveaxis(values.palette[labels], -1, 0), spacing, affine, note))
    else:
        write_whole(path, _encode(path, values.drawn(labels)[None], spacing, affine, note, values.palette))


def write_image(
    path: Path, pixels: Num[np.ndarray, "channels *space"], spacing: tuple[float, ...] | None = None
) -> None:
    """Write an image by its suffix: PNG, JPEG and BMP 8-bit gray or RGB (PNG 16-bit gray too), TIFF and NIfTI any.

    Spacing is in mm along each spatial axis.

    Raises:
        InputError: the format cannot hold the type, the channels or the axes.
        ResourceError: the disk is full.

    """
    write_whole(path, _encode(path, pixels, spacing, None, ""))


def _encode(
    path: Path,
    pixels: np.ndarray,
    spacing: tuple[float, ...] | None,
    affine: np.ndarray | None,
    note: str,
    palette: np.ndarray | None = None,
) -> bytes:
    kind = suffix(path)
    if kind in NIFTI:
        return encode_nifti(kind, pixels, spacing, affine, note)
    if kind in TIFF:
        return encode_tiff(pixels, spacing)
    held = {(1, "uint8"), (3, "uint8")} | ({(1, "uint16")} if kind == ".png" else set())
    if kind in ("", *dicom.SUFFIXES) or pixels.ndim != 3 or (len(pixels), pixels.dtype.name) not in held:
        raise InputError(
            path,
            f"{len(pixels)} channels of {pixels.dtype} with shape {pixels.shape[1:]}",
            f"what {kind} can hold" if kind else f"one of {' '.join(SUFFIXES)}",
            "write it as .tif or .nii.gz",
        )
    from PIL import Image, PngImagePlugin

    buffer = io.BytesIO()
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1).copy())
    if palette is not None:
        image.putpalette(palette.tobytes())
    described = PngImagePlugin.PngInfo()
    if note:
        described.add_text("Description", note)
    options = {"pnginfo": described} if kind == ".png" else {}
    image.save(buffer, {".jpg": "JPEG", ".jpeg": "JPEG"}.get(kind, kind[1:].upper()), **options)
    return buffer.getvalue()
