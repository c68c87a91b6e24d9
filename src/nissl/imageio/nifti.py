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


def encode_nifti(
    kind: str, pixels: np.ndarray, spacing: tuple[float, ...] | None, affine: np.ndarray | None, note: str
) -> bytes:
    """NIfTI with channels on the fourth axis; the affine, or one made of the spacing."""
    import nibabel

    data = pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1)
    if len(pixels) > 1 and pixels.ndim == 3:
        data = data[:, :, None]  # the third axis of a single slice, so that channels are the fourth
    steps = (*(spacing or ()), 1.0, 1.0, 1.0)[:3]
    image: Any = nibabel.Nifti1Image(data, np.diag([*steps, 1.0]) if affine is None else affine, dtype=data.dtype)
    if spacing is not None:
        image.header.set_zooms((*spacing, *([1.0] * (data.ndim - len(spacing)))))
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = note.encode("ascii", "replace")[:79]
    content: bytes = image.to_bytes()
    return gzip.compress(content, mtime=0) if kind == ".nii.gz" else content
