"""Files from the network, continued where a broken download stopped, and archives unpacked without trusting them."""

import errno
import gzip
import http.client
import shutil
import stat
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from nissl.errors import DataError, ResourceError
from nissl.files import write_whole
from nissl.imageio.formats import GIB

BLOCK = 2**20
TRIES = 5
PAUSE = 2.0  # seconds before a broken download is continued
MOST_FILES = 200_000

Progress = Callable[[int, int | None], None]


def download(url: str, target: Path, page: str, progress: Progress | None = None) -> Path:
    """Download to `target`; what an earlier, broken download left in `target`.part is continued.

    Raises:
        ResourceError: the network or the disk failed; the part is kept.
        DataError: a web page came instead of a file.

    """
    part, failures, reason = target.with_name(f"{target.name}.part"), 0, ""
    while not target.exists():
        before = _size(part)
        try:
            if _continue(url, part, page, progress):
                part.replace(target)
                part.with_suffix(".tag").unlink(missing_ok=True)
                break
            reason = "the connection ended early"
        except urllib.error.HTTPError as error:
            reason = f"the server answers {error.code} {error.reason}"
            failures = failures if error.code >= 500 or error.code == 429 else TRIES
        except (http.client.HTTPException, OSError) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                fix = "free some space and run the command again: it continues from there"
                raise ResourceError(part, "disk full", "space for the archive", fix) from error
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        failures = 1 if _size(part) > before else failures + 1
        if failures >= TRIES:
            fix = f"run it again later: it continues from there; or get it at {page} and give it with --archive FILE"
            raise ResourceError(url, reason, "the archive", fix)
        time.sleep(PAUSE)
    return target


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _continue(url: str, part: Path, page: str, progress: Progress | None) -> bool:
    """Ask for the bytes that are missing and append them; true where the file is then complete."""
    tag = part.with_suffix(".tag")
    done = _size(part)
    request = urllib.request.Request(url, headers={"User-Agent": "nissl", "Accept-Encoding": "identity"})
    if done:
        request.add_header("Range", f"bytes={done}-")
        if tag.exists():  # so that a file that changed meanwhile comes whole
            request.add_header("If-Range", tag.read_text(encoding="utf-8"))
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # nothing beyond what is here: complete, or a file that changed
            raise
        with error:
            whole = error.headers.get("Content-Range", "").rpartition("/")[2] == str(done)
        if not whole:
            part.unlink()
        return whole
    with response:
        if response.headers.get_content_type() == "text/html":
            fix = f"open {page} in a browser, get the archive there and give it with --archive FILE"
            raise DataError(url, "a web page, most likely a login", "an archive", fix)
        continued = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {done}-")
        done = done if continued else 0
        if marker := response.headers.get("ETag") or response.headers.get("Last-Modified"):
            write_whole(tag, marker)
        length = response.headers.get("Content-Length")
        total = None if length is None else done + int(length)
        with part.open("ab" if continued else "wb") as file:
            while block := response.read(BLOCK):
                file.write(block)
                done += len(block)
                if progress:
                    progress(done, total)
    return total is None or done == total


def _entries(opened: zipfile.ZipFile | tarfile.TarFile) -> Iterator[tuple[str, int, bool]]:
    """Name and size of each entry of an archive, and whether it is a plain file or a folder."""
    if isinstance(opened, zipfile.ZipFile):
        for one in opened.infolist():
            yield one.filename, one.file_size, not stat.S_ISLNK(one.external_attr >> 16)
    else:
        for entry in opened:
            yield entry.name, entry.size, entry.isreg() or entry.isdir()


def unpack(archive: Path, folder: Path, limit_gib: float) -> None:
    """Unpack a zip or tar archive; all its entries are validated before anything is written.

    Raises:
        DataError: not an archive, or a name that leaves the folder, a link, too many files, or more than the limit.
        ResourceError: the disk is full.

    """

    def refuse(found: str, expected: str) -> DataError:
        return DataError(archive, found, expected, "do not use this archive; get it from the publisher's page")

    total = 0
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with zipfile.ZipFile(archive) if zipfile.is_zipfile(archive) else tarfile.open(archive) as opened:
            for count, (name, size, plain) in enumerate(_entries(opened), start=1):
                total += size
                if not plain or _leaves(name):
                    raise refuse(f"the entry {name!r}", "plain files inside the archive's own folder")
                if count > MOST_FILES or total > limit_gib * GIB:
                    found = f"{count} files, {total / GIB:.1f} GiB unpacked, or more"
                    raise refuse(found, f"at most {limit_gib:g} GiB")
            if isinstance(opened, zipfile.ZipFile):
                opened.extractall(folder)
            else:
                opened.extractall(folder, filter="data")
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise refuse(f"not a whole zip or tar archive ({error})", "a zip or tar archive") from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        fix = "free some space and run the command again"
        raise ResourceError(folder, "disk full", f"{total / GIB:.1f} GiB", fix) from error
    for left_by_mac in [*folder.rglob("._*"), *folder.rglob("__MACOSX")]:
        shutil.rmtree(left_by_mac) if left_by_mac.is_dir() else left_by_mac.unlink(missing_ok=True)


def _leaves(name: str) -> bool:
    """Whether a name points out of the folder that it is put in, on any system."""
    parts = name.replace("\\", "/").split("/")
    return ".." in parts or parts[0] == "" or ":" in parts[0] or "\0" in name
