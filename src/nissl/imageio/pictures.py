"""PNG, JPEG and BMP, which pillow reads; colour PNG of 16 bits, of which it keeps 8, is read by imagecodecs."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from nissl.imageio.raster import (
    BoundedFile,
    Header,
    Opened,
    Raster,
    UnusableError,
    colours_in,
    plain,
    type_name,
    upright,
    without_alpha,
)

ORIENTATION = 0x0112
GRAY_ALPHA = 4
"""Colour type of a PNG."""


@contextmanager
def open_picture(path: Path) -> Iterator[Opened]:
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
        start = file.read(26)
        reader = next((reader for magic, reader in readers.items() if start.startswith(magic)), None)
        if reader is None:
            raise ValueError("the first bytes are not those of PNG, JPEG or BMP")
        file.seek(0)
        image = reader(file)
        if getattr(image, "n_frames", 1) > 1:
            fix = "save each frame as a file of its own, or all of them as a TIFF stack"
            raise UnusableError(f"an animation of {image.n_frames} frames", "one picture", fix)
        deep = start.startswith(b"\x89PNG") and start[24] == 16 and len(image.getbands()) > 1
        palette = _palette(image)
        dtype = np.dtype({"1": bool, "I": np.int32, "F": np.float32}.get(image.mode, np.uint8))
        dtype = np.dtype(np.uint16) if image.mode.startswith("I;16") or deep else dtype
        bands = "LA" if deep and start[25] == GRAY_ALPHA else image.getbands()  # pillow makes RGBA of these
        alpha = "A" in bands
        stored = len(bands) if palette is None else colours_in(palette)
        colours = 3 if stored - alpha > 1 else 1  # CMYK becomes RGB
        orientation = _orientation(image, file)

        def decode() -> Raster:
            if deep:
                pixels = _all_bits(file)
            else:
                image.load()
                pixels = np.asarray(image.convert("RGB") if image.mode == "CMYK" else image)
            channels = np.moveaxis(pixels.reshape(image.height, image.width, -1), -1, 0)
            clear = upright(channels[-1:], orientation)[0] <= np.iinfo(channels.dtype).max // 2 if alpha else None
            channels = without_alpha(channels) if alpha else channels[:colours]
            return Raster(
                plain(upright(channels, orientation)),
                palette=palette,
                lossy=image.format == "JPEG",
                clear=clear if clear is not None and clear.any() else None,
            )

        shape = (image.height, image.width)[:: -1 if orientation > 4 else 1]
        size = image.width * image.height * stored * dtype.itemsize
        yield Header(shape, colours, type_name(dtype), None, size), decode


def _palette(image: Any) -> np.ndarray | None:
    """The colour table, in black where the file gives none for an index."""
    if image.mode != "P":
        return None
    stored = np.asarray(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(stored)] = stored
    return palette


def _all_bits(file: BoundedFile) -> np.ndarray:
    import imagecodecs

    file.seek(0)
    pixels: np.ndarray = imagecodecs.png_decode(file.read())
    return pixels


def _orientation(image: Any, file: BoundedFile) -> int:
    """How the picture is to be turned, 1 to 8; EXIF that cannot be read turns nothing, as in viewers."""
    from PIL import Image

    if image.format == "PNG" and "exif" not in image.info and (late := _chunk(file, b"eXIf")):
        image.info["exif"] = b"Exif\0\0" + late
    with suppress(Exception):
        # Not the reader's own method: for PNG that decodes the pixels first.
        stated = Image.Image.getexif(image).get(ORIENTATION, 1)
        return stated if stated in range(1, 9) else 1
    return 1


def _chunk(file: BoundedFile, name: bytes) -> bytes:
    """The content of a chunk of a PNG, wherever it is; empty where there is none."""
    place = file.tell()
    try:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length = int.from_bytes(head[:4], "big")
            if head[4:] == name:
                return file.read(length)
            file.seek(length + 4, 1)
        return b""
    finally:
        file.seek(place)
