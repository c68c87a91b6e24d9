"""Arrays as the bytes of a TIFF or NIfTI file."""

import gzip
import hashlib
import io
import uuid
from typing import Any

import numpy as np


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
