"""NIfTI as arrays and back, by nibabel."""

import gzip
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from nissl.imageio.raster import Header, Opened, Raster, UnusableError, known_spacing, plain, type_name

MOST_EXTENSIONS = 2**24
UNITS = {"meter": 1e3, "micron": 1e-3}
"""Millimetres in a unit of length; an unknown one is mm by convention."""


@contextmanager
def open_nifti(path: Path) -> Iterator[Opened]:
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
    dtype, slope, intercept = header.get_data_dtype(), float(proxy.slope), float(proxy.inter)
    scaled = (slope, intercept) != (1.0, 0.0)
    whole = scaled and dtype.kind in "iu" and dtype.itemsize <= 2
    whole = whole and all(value.is_integer() and abs(value) < 2**31 for value in (slope, intercept))
    colours = dtype.names and dtype.names[:3]  # without alpha
    # Most whole values fit 16 bits; those that do not are known only once they are decoded.
    kind = np.dtype(np.int16 if whole else np.float64 if scaled else np.uint8 if colours else dtype)
    unit = UNITS.get(header.get_xyzt_units()[0], 1.0)
    spacing = known_spacing(float(zoom) * unit for zoom in header.get_zooms()[: len(space)])

    def decode() -> Raster:
        stored = np.asanyarray(proxy if not whole else proxy.get_unscaled())
        if colours:  # RGB as a record
            stored = np.stack([stored[name] for name in colours], axis=-1)
        if whole:
            stored = _whole_values(stored, int(slope), int(intercept))
        pixels = np.moveaxis(stored.reshape(*space, -1), -1, 0)
        affine = np.diag([unit, unit, unit, 1.0]) @ np.asarray(header.get_best_affine(), np.float64)
        return Raster(plain(pixels), spacing, affine, unit=unit)

    count *= len(colours or "1")
    size = int(np.prod(shape, dtype=np.int64)) * (dtype if colours else kind).itemsize
    yield Header(space, count, type_name(kind), spacing, size), decode


def _whole_values(stored: np.ndarray, slope: int, intercept: int) -> np.ndarray:
    """`stored * slope + intercept` in the smallest signed type that holds them, of 16 bits or more."""
    ends = [int(end) * slope + intercept for end in (stored.min(), stored.max())]
    values: np.ndarray = stored.astype(np.min_scalar_type(min(*ends, -1 - max(ends), -129)), copy=False)
    np.multiply(values, np.array(slope).astype(values.dtype), out=values)  # what wraps around is right at the end
    np.add(values, np.array(intercept).astype(values.dtype), out=values)
    return values


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


def encode_nifti(kind: str, pixels: np.ndarray, like: Raster, note: str) -> bytes:
    """NIfTI with channels on the fourth axis; the affine of `like`, or one made of its spacing, in its unit."""
    import nibabel

    data = pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1)
    if len(pixels) > 1 and pixels.ndim == 3:
        data = data[:, :, None]  # the third axis of a single slice, so that channels are the fourth
    spacing = tuple(length / like.unit for length in like.spacing or ())
    affine = np.diag([*(*spacing, 1.0, 1.0, 1.0)[:3], 1.0])
    if like.affine is not None:
        affine = np.diag([1 / like.unit] * 3 + [1.0]) @ like.affine
    image: Any = nibabel.Nifti1Image(data, affine, dtype=data.dtype)
    if spacing:
        image.header.set_zooms((*spacing, *([1.0] * (data.ndim - len(spacing)))))
    image.header.set_xyzt_units(next((name for name, unit in UNITS.items() if unit == like.unit), "mm"))
    image.header["descrip"] = note.encode("ascii", "replace")[:79]
    content: bytes = image.to_bytes()
    return gzip.compress(content, mtime=0) if kind == ".nii.gz" else content
