"""Public data sets by name: terms shown and accepted, then downloaded, checked and arranged into cases.

Nothing here is invented: a checksum is given only where the host of the address states one, and terms are quoted from
the publisher or said to be unknown. Where no checksum is stated, the SHA-256 of the first download is recorded in
source.json and compared at every later one.
"""

import csv
import dataclasses
import difflib
import errno
import gzip
import hashlib
import http.client
import json
import shutil
import stat
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from jaxtyping import Num

from nissl.data.formats import read_raster, write_image, write_mask
from nissl.errors import DataError, InputError, ResourceError
from nissl.files import write_whole

GIB = 2**30
BLOCK = 2**20
TRIES = 5
PAUSE = 2.0  # seconds before a broken download is taken up again
MOST_FILES = 200_000
RECORD = "source.json"
ARCHIVE, UNPACKED, ARRANGED = ".archive", ".unpacked", ".arranged"

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class PublicDataset:
    """A data set that others publish: where it is, under which terms, and how its archive becomes cases."""

    name: str
    title: str
    page: str
    """Where the publisher describes it."""
    url: str | None
    """Address of the archive; None where it must be fetched by hand."""
    licence: str
    citation: str
    arrange: Callable[[Path, Path], None]
    """From the unpacked archive to a folder of cases."""
    checksum: str | None = None
    """`algorithm:digest` as the host of the address states it; None where it states none."""
    label_map: str = ""
    """What to give as `--label-map`."""
    note: str = ""
    """What a user should know."""
    unpacked_gib: float = 4.0
    """Bound on the unpacked size, in GiB."""

    def __str__(self) -> str:
        by_hand = "fetched by hand from the page above, then given as an archive"
        stated = self.checksum or "none is published; the SHA-256 of the first download is recorded and compared later"
        rows = {
            self.name: self.title,
            "page": self.page,
            "address": self.url or by_hand,
            "licence": self.licence,
            "cite": self.citation,
            "checksum": stated,
            "label map": self.label_map or "as found",
            "note": self.note or "-",
        }
        return "\n".join(f"{key}: {value}" for key, value in rows.items())


def fetch(
    name: str,
    folder: Path,
    *,
    accept: Callable[[str], bool],
    archive: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Download a data set and arrange it into cases in `folder`; a broken download is taken up where it stopped.

    Args:
        name: one of `PUBLIC`.
        folder: new, empty, or one in which this function was interrupted.
        accept: shown address, terms and citation, says whether the user agrees.
        archive: the archive as the user got it; nothing is downloaded then, and it is left as it is.
        progress: told bytes done and, where known, of how many.

    Raises:
        InputError: unknown name, terms not accepted, a folder in use, or no address to download from.
        DataError: the archive is not what it should be.
        ResourceError: the network or the disk failed; what was downloaded is kept.

    """
    if name not in PUBLIC:
        near = difflib.get_close_matches(name, PUBLIC, n=1)
        fix = f"did you mean `{near[0]}`?" if near else "choose one of these"
        raise InputError("name of the data set", f"`{name}`", f"one of {', '.join(PUBLIC)}", fix)
    dataset = PUBLIC[name]
    if _begin(dataset, folder):
        return folder
    if archive is None and dataset.url is None:
        found, fix = "no address that can be downloaded from", f"get it at {dataset.page} and give it with --archive FILE"
        raise InputError(name, found, "an archive", fix)
    if not accept(str(dataset)):
        raise InputError(name, "terms not accepted", "agreement to the terms", "nothing was downloaded; run it again to agree")
    for leftover in (UNPACKED, ARRANGED):
        shutil.rmtree(folder / leftover, ignore_errors=True)
    source = archive or download(str(dataset.url), folder / ARCHIVE, dataset.page, progress)
    _verify(dataset, source, folder, given=archive is not None)
    unpack(source, folder / UNPACKED, dataset.unpacked_gib)
    (folder / ARRANGED).mkdir()
    dataset.arrange(folder / UNPACKED, folder / ARRANGED)
    for part in sorted((folder / ARRANGED).iterdir()):
        part.replace(folder / part.name)
    _record(dataset, folder, complete=True)
    for leftover in (UNPACKED, ARRANGED):
        shutil.rmtree(folder / leftover)
    (folder / ARCHIVE).unlink(missing_ok=True)
    return folder


def _begin(dataset: PublicDataset, folder: Path) -> bool:
    """Make the folder and say whether the data set is in it already; a folder of somebody else's is refused."""
    folder.mkdir(parents=True, exist_ok=True)
    record = _read_record(folder)
    ours = {RECORD, ARCHIVE, f"{ARCHIVE}.part", f"{ARCHIVE}.tag", UNPACKED, ARRANGED}
    strange = sorted(path.name for path in folder.iterdir() if path.name not in ours)
    if record.get("name") == dataset.name and record.get("complete") and strange:
        return True
    if strange and record.get("name") != dataset.name:
        raise InputError(folder, f"a folder that holds {strange[0]}", "a new or empty folder", "choose another folder")
    if record.get("name", dataset.name) != dataset.name:
        raise InputError(folder, f"the data set {record['name']}", "a new or empty folder", "choose another folder")
    return False


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _record(dataset: PublicDataset, folder: Path, **facts: Any) -> None:
    """Write what is known of the source beside the data."""
    known = {
        field.name: getattr(dataset, field.name)
        for field in dataclasses.fields(dataset)
        if field.name not in ("arrange", "unpacked_gib")
    }
    write_whole(folder / RECORD, json.dumps(known | _read_record(folder) | facts, indent=2, ensure_ascii=False) + "\n")


# Download


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
        continued = response.status == 206 and response.headers["Content-Range"].startswith(f"bytes {done}-")
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


def _verify(dataset: PublicDataset, source: Path, folder: Path, *, given: bool) -> None:
    """Compare with the stated checksum and with what was recorded before; record it where it is the first."""
    digests = {"sha256": hashlib.sha256()}
    algorithm, _, stated = (dataset.checksum or "").partition(":")
    if stated:
        digests.setdefault(algorithm, hashlib.new(algorithm, usedforsecurity=False))
    try:
        with source.open("rb") as file:
            while block := file.read(BLOCK):
                for digest in digests.values():
                    digest.update(block)
    except OSError as error:
        raise InputError(source, f"cannot be read: {error.strerror}", "an archive", "check the path") from error
    sha256 = digests["sha256"].hexdigest()
    first = _read_record(folder).get("sha256", sha256)
    for kind, expected, found in (
        (f"{algorithm} as published", stated, digests[algorithm].hexdigest() if stated else ""),
        ("sha256 as recorded at the first download", first, sha256),
    ):
        if found != expected:
            if not given:
                source.unlink()
            fix = "get the archive again" if given else "it was removed; run the command again"
            raise DataError(source, f"checksum {found}", f"{kind} {expected}", fix)
    origin = f"published by the host of the address: {dataset.checksum}" if stated else "recorded at the first download"
    fetched = datetime.now(timezone.utc).isoformat(timespec="seconds")
    _record(dataset, folder, sha256=first, sha256_origin=origin, fetched=fetched, complete=False)


# Archives


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    plain: bool
    open: Callable[[], IO[bytes] | None]


@contextmanager
def _members(archive: Path) -> Iterator[Iterable[_Member]]:
    """The files in a zip or tar archive, folders left out."""
    with ExitStack() as stack:
        if zipfile.is_zipfile(archive):
            zipped = stack.enter_context(zipfile.ZipFile(archive))
            yield [
                _Member(one.filename, one.file_size, not stat.S_ISLNK(one.external_attr >> 16), lambda one=one: zipped.open(one))
                for one in zipped.infolist()
                if not one.is_dir()
            ]
        else:
            tarred = stack.enter_context(tarfile.open(archive))
            yield (
                _Member(one.name, one.size, one.isreg(), lambda one=one: tarred.extractfile(one))
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

    try:
        with _members(archive) as members:
            total = 0
            for count, one in enumerate(members, start=1):
                total += one.size
                if not one.plain or _leaves(one.name):
                    raise refuse(f"the entry {one.name!r}", "plain files inside the archive's own folder")
                if count > MOST_FILES or total > limit_gib * GIB:
                    raise refuse(f"{count} files, {total / GIB:.1f} GiB unpacked, or more", f"at most {limit_gib:g} GiB")
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
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, gzip.BadGzipFile) as error:
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
