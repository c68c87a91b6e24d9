"""Files from the network, taken up where a broken download stopped, and archives unpacked without trusting them."""

import errno
import gzip
import hashlib
import http.client
import shutil
import stat
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from nissl.errors import DataError, InputError, ResourceError
from nissl.files import write_whole

GIB = 2**30
BLOCK = 2**20
TRIES = 5
PAUSE = 2.0  # seconds before a broken download is taken up again
MOST_FILES = 200_000

Progress = Callable[[int, int | None], None]


def download(url: str, target: Path, page: str, progress: Progress | None = None) -> Path:
    """Download to `target`; what an earlier, broken download left in `target`.part is continued.

    Raises:
        ResourceError: the network or the disk failed; the part is kept.
        DataError: a web page came instead of a file.

    """
    if target.exists():
        return target
    part, failures = target.with_name(f"{target.name}.part"), 0
    while failures < TRIES:
        before = part.stat().st_size if part.exists() else 0
        try:
            if _continue(url, part, page, progress):
                part.replace(target)
                part.with_name(f"{target.name}.tag").unlink(missing_ok=True)
                return target
            reason = "the connection ended early"
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code != 429:
                raise _failed(url, f"the server answers {error.code} {error.reason}", page) from error
            reason = f"the server answers {error.code} {error.reason}"
        except (http.client.HTTPException, OSError) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                fix = "free some space and run the command again: it goes on from there"
                raise ResourceError(part, "disk full", "space for the archive", fix) from error
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        grown = part.exists() and part.stat().st_size > before
        failures = 1 if grown else failures + 1
        time.sleep(PAUSE)
    raise _failed(url, reason, page)


def _failed(url: str, found: str, page: str) -> ResourceError:
    fix = f"run it again later: it goes on from there; or get it at {page} and give it with --archive FILE"
    return ResourceError(url, found, "the archive", fix)


def _continue(url: str, part: Path, page: str, progress: Progress | None) -> bool:
    """Ask for the bytes that are missing and append them; true where the file is then complete."""
    tag = part.with_suffix(".tag")
    done = part.stat().st_size if part.exists() else 0
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


def digest(path: Path, algorithm: str) -> str:
    """Checksum of a file, in hexadecimal.

    Raises:
        InputError: the file cannot be read.

    """
    total = hashlib.new(algorithm, usedforsecurity=False)
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                total.update(block)
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}", "an archive", "check the path") from error
    return total.hexdigest()


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    plain: bool
    open: Callable[[], IO[bytes] | None]


@contextmanager
def _members(archive: Path) -> Iterator[Iterable[_Member]]:
    """The files in a zip or tar archive, folders left out."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            files = [one for one in zipped.infolist() if not one.is_dir()]
            links = {one.filename for one in files if stat.S_ISLNK(one.external_attr >> 16)}
            yield [
                _Member(one.filename, one.file_size, one.filename not in links, partial(zipped.open, one))
                for one in files
            ]
    else:
        with tarfile.open(archive) as tarred:
            yield (
                _Member(one.name, one.size, one.isreg(), partial(tarred.extractfile, one))
                for one in tarred
                if not one.isdir()
            )


def unpack(archive: Path, folder: Path, limit_gib: float) -> None:
    """Unpack a zip or tar archive; all of it is looked at before anything is written.

    Raises:
        DataError: not an archive, or a name that leaves the folder, a link, too many files, or more than the limit.
        ResourceError: the disk is full.

    """

    def refuse(found: str, expected: str) -> DataError:
        return DataError(archive, found, expected, "do not use this archive; get it from the publisher's page")

    total = 0
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _members(archive) as members:
            for count, one in enumerate(members, start=1):
                total += one.size
                if not one.plain or _leaves(one.name):
                    raise refuse(f"the entry {one.name!r}", "plain files inside the archive's own folder")
                if count > MOST_FILES or total > limit_gib * GIB:
                    raise refuse(
                        f"{count} files, {total / GIB:.1f} GiB unpacked, or more", f"at most {limit_gib:g} GiB"
                    )
        with _members(archive) as members:
            for one in members:
                name = PurePosixPath(one.name)
                if name.name.startswith("._") or "__MACOSX" in name.parts:  # what a Mac leaves beside each file
                    continue
                target, content = folder / name, one.open()
                target.parent.mkdir(parents=True, exist_ok=True)
                if content is not None:
                    with content, target.open("wb") as file:
                        shutil.copyfileobj(content, file, BLOCK)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise refuse(f"not a whole zip or tar archive ({error})", "a zip or tar archive") from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        fix = "free some space and run the command again"
        raise ResourceError(folder, "disk full", f"{total / GIB:.1f} GiB", fix) from error


def _leaves(name: str) -> bool:
    """Whether a name points out of the folder that it is put in, on any system."""
    parts = name.replace("\\", "/").split("/")
    return ".." in parts or parts[0] == "" or ":" in parts[0] or "\0" in name
