import hashlib
import io
import stat
import tarfile
import zipfile

import pytest
from tests.server import CONTENT, Server

from nissl.datasets import download as module
from nissl.datasets.download import download, unpack
from nissl.errors import DataError, ResourceError
from nissl.files import file_digest


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(module, "PAUSE", 0.0)
    running = Server()
    yield running
    running.close()


def get(server, folder):
    return download(server.url, folder / "archive", "https://page.example")


# Download


def test_a_file_comes_whole_and_progress_is_told(server, tmp_path):
    told = []
    path = download(server.url, tmp_path / "archive", "page", lambda done, total: told.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert [file.name for file in tmp_path.iterdir()] == ["archive"]


def test_a_connection_that_breaks_is_taken_up_where_it_stopped(server, tmp_path):
    server.breaks = [300_000, 1]
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=300000-", "bytes=300001-"]


def test_a_later_run_goes_on_from_the_part_of_an_earlier_one(server, tmp_path):
    server.breaks = [200_000] + [0] * 10
    with pytest.raises(ResourceError, match="ended early") as caught:
        get(server, tmp_path)
    assert "--archive FILE" in str(caught.value) and "https://page.example" in str(caught.value)
    assert (tmp_path / "archive.part").read_bytes() == CONTENT[:200_000]
    server.breaks, server.asked = [], []
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.asked == ["bytes=200000-"]


def test_a_file_that_changed_meanwhile_comes_anew(server, tmp_path):
    server.breaks = [200_000] + [0] * 10
    with pytest.raises(ResourceError):
        get(server, tmp_path)
    server.breaks, server.content, server.tag = [], CONTENT[::-1], '"two"'
    assert get(server, tmp_path).read_bytes() == CONTENT[::-1]


def test_a_server_without_ranges_starts_again(server, tmp_path):
    server.ranges, server.breaks = False, [1000]
    assert get(server, tmp_path).read_bytes() == CONTENT


def test_a_part_that_is_whole_already_is_not_loaded_again(server, tmp_path):
    (tmp_path / "archive.part").write_bytes(CONTENT)
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.asked == [f"bytes={len(CONTENT)}-"]


def test_a_finished_download_asks_nothing(server, tmp_path):
    get(server, tmp_path)
    server.asked.clear()
    get(server, tmp_path)
    assert server.asked == []


@pytest.mark.parametrize(("status", "tries"), [(404, 1), (503, 5)])
def test_a_server_that_refuses_is_named_with_its_answer(server, tmp_path, status, tries):
    server.status = status
    with pytest.raises(ResourceError, match=f"answers {status}"):
        get(server, tmp_path)
    assert len(server.asked) == tries


def test_a_login_page_is_not_taken_for_an_archive(server, tmp_path):
    server.kind = "text/html"
    with pytest.raises(DataError, match="web page") as caught:
        get(server, tmp_path)
    assert "--archive FILE" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_no_network_is_a_stated_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PAUSE", 0.0)
    with pytest.raises(ResourceError, match="refused"):
        download("http://127.0.0.1:9/data.zip", tmp_path / "archive", "page")


def test_digests_equal_hashlib(tmp_path):
    (tmp_path / "a").write_bytes(CONTENT)
    assert file_digest(tmp_path / "a") == hashlib.sha256(CONTENT).hexdigest()
    assert file_digest(tmp_path / "a", algorithm="md5") == hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()


# Archives


def zipped(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tarred(path, files, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_archives_are_unpacked_as_they_are_without_what_a_mac_adds(tmp_path, pack):
    files = {"set/a.txt": b"a", "set/deep/b.txt": CONTENT, "__MACOSX/set/a.txt": b"x", "set/._a.txt": b"x"}
    unpack(pack(tmp_path / "archive", files), tmp_path / "out", 1)
    found = {str(path.relative_to(tmp_path / "out")): path for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert sorted(found) == ["set/a.txt", "set/deep/b.txt"]
    assert found["set/deep/b.txt"].read_bytes() == CONTENT


@pytest.mark.parametrize("pack", [zipped, tarred])
@pytest.mark.parametrize("name", ["../x", "a/../../x", "/tmp/nissl-x", "..\\x", "C:\\x", "C:x"])
def test_names_that_leave_the_folder_are_refused_before_anything_is_written(tmp_path, pack, name):
    archive = pack(tmp_path / "archive", {"first.txt": b"a", name: b"x"})
    with pytest.raises(DataError, match="plain files inside"):
        unpack(archive, tmp_path / "in" / "out", 1)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path != archive]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind):
    with tarfile.open(tmp_path / "archive", "w") as archive:
        info = tarfile.TarInfo("link")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(DataError, match="'link'"):
        unpack(tmp_path / "archive", tmp_path / "out", 1)


def test_links_in_a_zip_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "archive", "w") as archive:
        info = zipfile.ZipInfo("link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(DataError, match="'link'"):
        unpack(tmp_path / "archive", tmp_path / "out", 1)


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_an_archive_that_would_grow_beyond_its_bound_is_refused(tmp_path, pack):
    archive = pack(tmp_path / "archive", {"small": b"a", "zeros": bytes(20_000_000)})
    assert archive.stat().st_size < 100_000
    with pytest.raises(DataError, match="unpacked"):
        unpack(archive, tmp_path / "out", 10_000_000 / 2**30)
    assert not list((tmp_path / "out").iterdir())


def test_too_many_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_FILES", 3)
    archive = zipped(tmp_path / "archive", {str(number): b"" for number in range(4)})
    with pytest.raises(DataError, match="4 files"):
        unpack(archive, tmp_path / "out", 1)


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
@pytest.mark.parametrize("pack", [zipped, tarred])
def test_an_archive_cut_short_is_named(tmp_path, pack, keep):
    archive = pack(tmp_path / "archive", {"a": CONTENT, "b": hashlib.sha256(b"1").digest() * 999})
    content = archive.read_bytes()
    archive.write_bytes(content[: keep if keep in (0, 10) else int(keep * len(content))])
    with pytest.raises(DataError, match="archive"):
        unpack(archive, tmp_path / "out", 1)
