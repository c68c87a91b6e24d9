"""The same image under two names: exact copies by hash, near copies by a small picture of each."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int, Num

from nissl.data.cases import CaseFile
from nissl.data.preprocessing import resize_image
from nissl.errors import DataError
from nissl.files import file_digest
from nissl.imageio.dicom import slices

EDGE = {1: 1024, 2: 32, 3: 16}
"""Pixels along each axis of the small picture, by the number of axes."""
NEAR = 0.95
"""Correlation of two small pictures from which on they count as one image.

Measured, and held by a test. Different images correlate by at most 0.62 in GlaS (13,530 pairs), 0.39 in DSB2018
(24,531) and 0.85 in the hippocampus volumes, which all show one organ (8,385): no false positive. Copies of each of
these 517 images as JPEG of quality 90 and 50, at half size, brighter with clipping, with other contrast and with noise
correlate by 0.979 or more. The usual 64-bit hash (signs of a cosine transform of 32 x 32 pixels) was measured too and
does not part them: different hippocampi differ in as few as 6 bits, copies in as many as 8.
"""
FEW = 3
"""Pairs of images alike that are not yet a sign that all are alike."""
LISTED = 10
"""Copies that a message names."""
BLOCK = 1024
"""Images compared with all others at a time, so that 100,000 images need 0.4 GB and not 40."""


def digest(pixels: Num[np.ndarray, "channels *space"]) -> bytes:
    """Hash of the decoded pixels, so that a copy in another lossless format is found too."""
    hashed = hashlib.blake2b(f"{pixels.shape} {pixels.dtype}".encode(), digest_size=16)
    hashed.update(np.ascontiguousarray(pixels).data)
    return hashed.digest()


def file_hash(path: Path, shown: str = "") -> str:
    """SHA-256 of a file, or of the slices of a folder in the order of their names, as data.json holds it.

    Raises:
        DataError: it cannot be read; `shown` is what the error calls it.

    """
    try:
        return file_digest(*(slices(path) if path.is_dir() else [path]))
    except OSError as error:
        raise DataError(shown or path, f"{error.strerror}", "a file that can be read", "put it back") from None


def small_picture(image: Num[np.ndarray, "channels *space"]) -> Float32[np.ndarray, "values"]:
    """The image in gray at 32 x 32 (16 x 16 x 16) pixels, brought to mean 0 and length 1; zeros where it is constant.

    Neither brightness nor contrast nor size changes it, and compression and noise change it little. A mirrored or
    turned copy has another one.
    """
    gray = image.mean(axis=0, dtype=np.float32)[None]
    values = resize_image(gray, (EDGE[gray.ndim - 1],) * (gray.ndim - 1)).ravel()
    values = values - values.mean()
    length = float(np.linalg.norm(values))
    if not 0 < length < np.inf:  # a constant image, NaN or infinity
        return np.zeros_like(values)
    return np.asarray(values / length)


def nearest(
    pictures: Float32[np.ndarray, "images values"],
    together: Int[np.ndarray, "images"],
    tested: Bool[np.ndarray, "images"],
    centred: bool = False,
) -> list[tuple[int, int, float]]:
    """For each image that can be tested, the one most like it that can be trained on, if it is a near copy.

    Images of which `together` is one number are kept together by a split, and not compared. Where the copies are more
    than `FEW` and a tenth of all, what all images share (a frame, the illumination) is taken away first.

    Returns:
        Index of the tested image, of the other one, and their correlation; no pair twice.

    """
    found: dict[frozenset[int], tuple[int, int, float]] = {}
    rows = np.flatnonzero(tested)
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        alike = pictures[block] @ pictures.T
        alike[together[block, None] == together[None]] = -1
        best = alike.argmax(axis=1)
        for row, other, value in zip(block, best, alike[np.arange(len(block)), best], strict=True):
            if value >= NEAR:
                found.setdefault(frozenset((int(row), int(other))), (int(row), int(other), float(value)))
    if not centred and len(found) > max(FEW, len(pictures) / 10):
        rest = pictures - pictures.mean(axis=0)
        rest /= np.maximum(np.linalg.norm(rest, axis=1, keepdims=True), 1e-6)
        return nearest(rest, together, tested, centred=True)
    return list(found.values())


def name_copies(test: Sequence[CaseFile], cases: Sequence[Mapping[str, Any]]) -> str:
    """Say which test images are also training images, by the hash of their files; empty where there are none.

    Of `cases`, those of data.json, only images that the training opened have a hash.
    """
    own = {file.id for file in test}  # a transductive training opened the test images themselves
    trained = {case["image_sha256"]: case["id"] for case in cases if case["image_sha256"] and case["id"] not in own}
    hashes = ((file.id, file_hash(file.image)) for file in test)
    found = [f"{id_} = {trained[hash_]}" for id_, hash_ in hashes if hash_ in trained]
    listed = ", ".join(found[:LISTED]) + (", ..." if len(found) > LISTED else "")
    return f"{len(found)} of {len(test)} test images are training images under another name: {listed}" if found else ""
