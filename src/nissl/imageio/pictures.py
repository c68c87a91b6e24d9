"""PNG, JPEG and BMP, which pillow reads."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from nissl.imageio.raster import BoundedFile, Header, Opened, Raster, plain, type_name


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
            return Raster(plain(np.moveaxis(pixels, -1, 0)), palette=palette)

        yield Header((image.height, image.width), colours, type_name(dtype), None, size), decode
