"""PNG, JPEG and BMP, which pillow reads; colour PNG of 16 bits, of which it keeps 8, is read by imagecodecs."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from nissl.imageio.raster import BoundedFile, Header, Opened, Raster, UnusableError, picture, plain, type_name, upright
from nissl.imageio.tiff_regions import colours_in

KINDS = {b"\x89PNG": "Png", b"\xff\xd8\xff": "Jpeg", b"BM": "Bmp"}
ORIENTATION = 0x0112


@contextmanager
def open_picture(path: Path) -> Iterator[Opened]:
    """Open PNG, JPEG or BMP by its first bytes."""
    with BoundedFile(path) as file:
        start = file.read(26)
        kind = next((kind for magic, kind in KINDS.items() if start.startswith(magic)), None)
        if kind is None:
            raise ValueError("the first bytes are not those of PNG, JPEG or BMP")
        file.seek(0)
        image = picture(kind, file)
        if getattr(image, "n_frames", 1) > 1:
            fix = "save each frame as a file of its own, or all of them as a TIFF stack"
            raise UnusableError(f"an animation of {image.n_frames} frames", "one picture", fix)
        deep = kind == "Png" and start[24] == 16 and len(image.getbands()) > 1
        palette = None
        if image.mode == "P":
            given = np.asarray(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
            palette = np.pad(given, ((0, 256 - len(given)), (0, 0)))
        dtype = np.dtype({"1": bool, "I": np.int32, "F": np.float32}.get(image.mode, np.uint8))
        dtype = np.dtype(np.uint16) if image.mode.startswith("I;16") or deep else dtype
        bands = "LA" if deep and start[25] == 4 else image.getbands()  # pillow makes RGBA of gray and alpha
        stored = len(bands) if palette is None else colours_in(palette)
        colours = 3 if stored > 2 else 1  # alpha is dropped, CMYK becomes RGB
        orientation = _orientation(image, file)

        def decode() -> Raster:
            if deep:
                import imagecodecs

                file.seek(0)
                pixels = imagecodecs.png_decode(file.read())
            else:
                image.load()
                pixels = np.asarray(image.convert("RGB") if image.mode == "CMYK" else image)
            channels = upright(np.moveaxis(pixels.reshape(image.height, image.width, -1), -1, 0), orientation)
            clear = [alpha <= np.iinfo(alpha.dtype).max // 2 for alpha in channels[colours:]]
            transparent = clear[0] if clear and clear[0].any() else None
            return Raster(plain(channels[:colours]), palette=palette, lossy=kind == "Jpeg", clear=transparent)

        shape = (image.height, image.width)[:: -1 if orientation > 4 else 1]
        size = image.width * image.height * stored * dtype.itemsize
        yield Header(shape, colours, type_name(dtype), None, size), decode


def _orientation(image: Any, file: BoundedFile) -> int:
    """How the picture is to be turned, 1 to 8; EXIF that cannot be read turns nothing, as in viewers."""
    from PIL import Image

    if image.format == "PNG" and "exif" not in image.info and (late := _exif_chunk(file)):
        image.info["exif"] = b"Exif\0\0" + late
    with suppress(Exception):
        # Not the reader's own method: for PNG that decodes the pixels first.
        stated = Image.Image.getexif(image).get(ORIENTATION, 1)
        return stated if stated in range(1, 9) else 1
    return 1


def _exif_chunk(file: BoundedFile) -> bytes:
    """EXIF of a PNG, which may come after its pixels; the place in the file stays."""
    place, content = file.tell(), b""
    file.seek(8)
    while not content and len(head := file.read(8)) == 8:
        length = int.from_bytes(head[:4], "big")
        content = file.read(length) if head[4:] == b"eXIf" else b""
        file.seek(length + 4, 1)
    file.seek(place)
    return content
