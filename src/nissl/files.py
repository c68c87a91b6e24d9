"""Files written whole or not at all."""

import errno
import os
import tempfile
from pathlib import Path

from nissl.errors import ResourceError


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file so that after a kill or a full disk there is the old file or the new one, never a part.

    The content goes to a temporary file in the same folder, is flushed to the disk and renamed over the target.

    Raises:
        ResourceError: the disk is full; the old file is untouched.

    """
    data = content.encode() if isinstance(content, str) else content
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:60]}.", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ResourceError(
            path, "disk full", f"{len(data) / 1e6:.3g} MB of free space", "free some space and run the command again"
        ) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
