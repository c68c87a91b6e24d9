"""Files written whole or not at all, their checksums, and files inside pages."""

import base64
import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from nissl.errors import ResourceError


def file_digest(*paths: Path, algorithm: str = "sha256") -> str:
    """Checksum of one file or of several in a row, in hexadecimal; raises OSError where one cannot be read."""
    total = hashlib.new(algorithm, usedforsecurity=False)
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(2**20):
                total.update(block)
    return total.hexdigest()


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file as `whole_file` does: after a kill or a full disk there is the old file or the new one."""
    # A folder whose name is not UTF-8 becomes an escape, which JSON gives back.
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    with whole_file(path, len(data)) as file:
        file.write(data)


@contextmanager
def whole_file(path: Path, size: int | None = None) -> Iterator[BinaryIO]:
    """Open a file to be written whole or not at all; `size` is that of the content in bytes, where it is known.

    The content goes to a temporary file in the same folder, is flushed to the disk and, at the end of the block,
    renamed over the target. Where the block fails the old file stays.

    Raises:
        ResourceError: the disk is full; the old file is untouched.

    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:60]}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    reached = 0
    try:
        with temporary.open("w+b") as file:  # by its name, which tifffile asks for
            try:
                yield file
            finally:
                reached = file.tell()
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError) or error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        need = f"more than {reached / 1e6:.3g} MB" if size is None else f"{size / 1e6:.3g} MB"
        fix = "free some space and run the command again"
        raise ResourceError(path, "disk full", f"{need} of free space", fix, "disk-full") from error


def data_uri(content: bytes, kind: str) -> str:
    """Embed a file of a kind (such as image/png) in a page."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
