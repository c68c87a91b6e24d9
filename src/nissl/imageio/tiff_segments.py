"""What a compressed segment of a TIFF unpacks to, before a decoder is asked.

Most codecs are told how much they may write. Those of pictures are not: a JPEG inside a TIFF carries a size of its own,
and a decoder allocates whatever it states (a tile of 64 x 64 pixels that claims 20,000 x 20,000 took 1.2 GB).
"""

import io
from math import prod
from typing import Any

from nissl.imageio.raster import UnusableError, picture

BOUNDED = (1, 2, 3, 4, 5, 8, 32773, 32946, 34925, 34926, 50000)
"""TIFF compressions without a size of their own: none, CCITT, LZW, deflate, PackBits, LZMA, Zstandard."""
PICTURES = {
    **dict.fromkeys((6, 7, 33007, 34892), "Jpeg"),
    **dict.fromkeys((33003, 33004, 33005, 34712), "Jpeg2K"),
    **dict.fromkeys((34927, 50001), "WebP"),
    34933: "Png",
}
"""TIFF compressions whose segments state their size, and the kind of picture that they are."""


def require_bounded(series: Any) -> None:
    """Refuse a series of which a segment would unpack to more than its part of the image, as `require_fit` does."""
    handle = series.keyframe.parent.filehandle
    for page in series.pages if int(series.keyframe.compression) not in BOUNDED else ():
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            if count:
                handle.seek(offset)
                require_fit(series.keyframe, handle.read(count))


def require_fit(page: Any, segment: bytes) -> None:
    """Refuse a segment of a page that would unpack to more than its part of the image.

    Raises:
        UnusableError: it cannot be known from the segment.
        ValueError: it states another size than the file.

    """
    code = int(page.compression)
    if code in BOUNDED:
        return
    if code not in PICTURES:
        found = f"the compression {getattr(page.compression, 'name', code)}, whose size cannot be known beforehand"
        raise UnusableError(found, "deflate, LZW, JPEG or no compression", "save the file with one of these")
    most = prod(int(size) for size in page.chunks)
    width, height = picture(PICTURES[code], io.BytesIO(segment)).size
    if width * height > most:
        raise ValueError(f"a segment of {height} x {width} pixels, where the file states {most} values")
