"""Small sound files of every kind, damaged in many ways and read in a process that may die of it.

Run as `python -m tests.faults.mutants FOLDER KIND FIRST COUNT`: it prints the number of each mutant before it is read,
then a line of JSON with the outcomes.
"""

import faulthandler
import gzip
import io
import json
import resource
import struct
import sys
import zlib
from collections import Counter
from functools import lru_cache
from pathlib import Path

import imagecodecs
import nibabel
import numpy as np
import tifffile
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit, RLELossless
from tests.dicom_files import header, place

from nissl.errors import NisslError
from nissl.imageio.formats import read_header, read_raster
from nissl.imageio.tiff_regions import shown

LIMIT = 16 * 2**20
"""Bytes that a decoded file may take."""
SPARE = 256 * 2**20
"""Address space beyond that of a process which has read one sound file of the kind: threads, buffers, the image."""
SECONDS = 5
NUMBERS = (0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def noise(*shape, dtype=np.uint8):
    draws = np.random.default_rng(1)
    smooth = draws.integers(0, 200, shape)
    smooth[..., ::2] = 7  # something to compress
    return smooth.astype(dtype)


def png(mode):
    if mode == "deep colours":
        return imagecodecs.png_encode(noise(24, 31, 4, dtype=np.uint16) * 300)
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = {"gray": noise(24, 31), "rgb": noise(24, 31, 3), "deep": noise(24, 31, dtype=np.uint16)}.get(mode)
    image = Image.fromarray(noise(24, 31) % 5 if pixels is None else pixels)
    if mode == "palette":
        image.putpalette(list(range(15)))
    image.save(buffer, "PNG", **({"exif": exif} if mode == "rgb" else {}))
    return buffer.getvalue()


def tiff(shape=(40, 48), dtype=np.uint8, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, noise(*shape, dtype=dtype), **options)
    return buffer.getvalue()


def nifti(dtype, shape=(9, 8, 7), scale=(1, 0)):
    image = nibabel.Nifti1Image(noise(*shape, dtype=dtype), np.diag([0.5, 1, 2, 1]))
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"words" * 5))
    image.header.set_slope_inter(*scale)
    return image.to_bytes()


def dicom(kind):
    pixels = noise(4, 12, 14, dtype=np.uint16) if kind == "frames" else noise(12, 14, dtype=np.uint16)
    pixels = noise(16, 16) if kind == "jpeg" else pixels
    data = header(pixels, **place(0), RescaleSlope=2, RescaleIntercept=-3)
    if kind == "rle":
        data.compress(RLELossless)
    if kind == "jpeg":
        frame = io.BytesIO()
        Image.fromarray(pixels).save(frame, "JPEG")
        data.file_meta.TransferSyntaxUID, data.PixelData = JPEGBaseline8Bit, encapsulate([frame.getvalue()])
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


SOUND = {
    ".png": lambda: [png(mode) for mode in ("gray", "rgb", "deep", "deep colours", "palette")],
    ".tif": lambda: [
        tiff(),
        tiff(dtype=np.uint16, compression="lzw", predictor=True),
        tiff(compression="zlib", tile=(16, 16)),
        tiff((40, 48, 3), compression="jpeg", photometric="ycbcr", tile=(16, 16)),
        tiff((40, 48, 3), compression="jpeg", photometric="rgb", rowsperstrip=16),
        tiff((3, 40, 48), compression="packbits", photometric="minisblack", imagej=False),
        tiff(photometric="miniswhite", extratags=[(274, "H", 1, 6, True)]),
        tiff(photometric="palette", colormap=noise(3, 256, dtype=np.uint16) * 300, rowsperstrip=8),
    ],
    ".nii": lambda: [nifti(np.int16, scale=(1, -1024)), nifti(np.float32), nifti(np.uint8, (9, 8, 1, 3))],
    ".nii.gz": lambda: [nifti(np.int16), nifti(np.float32)],
    ".dcm": lambda: [dicom(kind) for kind in ("plain", "rle", "jpeg", "frames")],
}
"""Contents by suffix; those of `.nii.gz` are compressed after they were damaged, or before."""


def damaged(content: bytes, draws: np.random.Generator) -> bytes:
    """One to three faults, each of a kind drawn at random."""
    data = bytearray(content)
    for _ in range(draws.integers(1, 4)):
        size = len(data)
        if not size:
            break
        at, length = int(draws.integers(size)), int(draws.integers(1, 40))
        kind = draws.integers(7)
        if kind == 0:
            data[at] ^= 1 << int(draws.integers(8))
        elif kind == 1:
            data[at : at + length] = bytes([int(draws.choice([0, 255, draws.integers(256)]))]) * length
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            data[at:at] = draws.bytes(length)
        elif kind == 4:
            del data[at : at + length]
        else:  # a number in the header, or anywhere
            at = int(draws.integers(min(size, 700))) if kind == 5 else at
            code = str(draws.choice(["<H", ">H", "<I", ">I", "<Q"]))
            number = int(draws.choice(NUMBERS)) & (256 ** struct.calcsize(code) - 1)
            data[at : at + struct.calcsize(code)] = struct.pack(code, number)
    return bytes(data)


def with_checksums(content: bytes) -> bytes:
    """A PNG whose chunks have the checksums of what they hold now, so that damage gets past them."""
    data, at = bytearray(content), 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if at + 12 + length > len(data):
            break
        data[at + 8 + length : at + 12 + length] = struct.pack(">I", zlib.crc32(data[at + 4 : at + 8 + length]))
        at += 12 + length
    return bytes(data)


@lru_cache
def sound_files(kind: str) -> tuple[bytes, ...]:
    return tuple(SOUND[kind]())


def mutant(kind: str, number: int) -> bytes:
    """The bytes of a damaged file, a function of its kind and number."""
    draws = np.random.default_rng([number, *kind.encode()])
    sound = sound_files(kind)
    content = sound[number % len(sound)]
    if kind == ".png" and draws.random() < 0.7:
        return with_checksums(damaged(content, draws))
    if kind == ".nii.gz":
        if draws.random() < 0.7:
            return gzip.compress(damaged(content, draws), mtime=0)
        return damaged(gzip.compress(content, mtime=0), draws)
    return damaged(content, draws)


def grown() -> int:
    """Most resident memory of this program so far, in bytes; getrusage would count what ran before it was started."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def read(path: Path) -> str:
    """What became of a file: pixels, or a fault of ours that names it; any other exception goes up."""
    try:
        head = read_header(path)
    except NisslError:
        return "refused by its header"
    try:
        raster = shown(read_raster(path, LIMIT / 2**30))
    except NisslError as error:
        return "over the limit" if "limit-gib" in error.fix else "refused"
    assert raster.pixels.shape == (head.channels, *head.shape) and raster.pixels.nbytes <= LIMIT
    return "read"


def main(folder: str, kind: str, first: str, count: str) -> None:
    path = Path(folder) / f"mutant{kind}"
    for content in sound_files(kind):
        path.write_bytes(gzip.compress(content) if kind == ".nii.gz" else content)
        assert read(path) == "read"
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + SPARE,) * 2)
    outcomes: Counter[str] = Counter()
    before = grown()
    for number in range(int(first), int(first) + int(count)):
        path.write_bytes(mutant(kind, number))
        print(number, flush=True)
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        outcomes[read(path)] += 1
        faulthandler.cancel_dump_traceback_later()
    print(json.dumps({"outcomes": outcomes, "grown": grown() - before}))


if __name__ == "__main__":
    main(*sys.argv[1:])
