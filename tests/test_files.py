"""A file is the old one or the new one, never a part, and nothing else is left behind."""

import errno
import os
from pathlib import Path

import pytest

from nissl.errors import ResourceError
from nissl.files import whole_file, write_whole


@pytest.fixture
def target(tmp_path):
    path = tmp_path / "state.json"
    path.write_bytes(b"old content")
    return path


def assert_untouched(path, content=b"old content"):
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("content", ["Grüße\r\nzwei\n", b"\x00\xff\r\n", "", b"x" * 3_000_000])
def test_the_content_arrives_unchanged(target, content):
    write_whole(target, content)
    assert_untouched(target, content.encode() if isinstance(content, str) else content)


def test_a_new_file_is_readable_by_all(tmp_path):
    write_whole(tmp_path / "new", "x")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("moment", ["fsync", "replace"])
@pytest.mark.parametrize("kill", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_f02_a_kill_before_the_rename_leaves_the_old_file(target, monkeypatch, moment, kill):
    def killed(*_):
        raise kill

    monkeypatch.setattr(*{"fsync": (os, "fsync"), "replace": (Path, "replace")}[moment], killed)
    with pytest.raises(kill):
        write_whole(target, b"new content")
    assert_untouched(target)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_f10_a_full_disk_is_said_and_the_old_file_kept(target, monkeypatch, code, moment):
    def full(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(*{"fsync": (os, "fsync"), "replace": (Path, "replace")}[moment], full)
    with pytest.raises(ResourceError) as caught:
        write_whole(target, b"x" * 2_500_000)
    error = caught.value
    assert error.exit_code == 4 and error.where == str(target)
    assert "disk full" in error.found and "2.5 MB" in error.expected and "space" in error.fix
    assert_untouched(target)


def test_other_faults_of_the_system_are_not_called_a_full_disk(target, monkeypatch):
    def refused(*_):
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(Path, "replace", refused)
    with pytest.raises(PermissionError):
        write_whole(target, b"new content")
    assert_untouched(target)


def test_the_content_is_on_the_disk_before_the_name_changes(target, monkeypatch):
    order = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append("fsync"), fsync(handle)))
    monkeypatch.setattr(Path, "replace", lambda self, to: (order.append("replace"), replace(self, to))[1])
    write_whole(target, b"new content")
    assert order == ["fsync", "replace"] and target.read_bytes() == b"new content"


def test_long_names_are_written(tmp_path):
    write_whole(tmp_path / ("n" * 250), "x")
    assert (tmp_path / ("n" * 250)).read_text() == "x"


def test_a_block_that_fails_leaves_the_old_file(target):
    with pytest.raises(RuntimeError, match="mine"), whole_file(target) as file:
        file.write(b"new")
        raise RuntimeError("mine")
    assert_untouched(target)


def test_what_was_written_in_any_order_arrives(target):
    with whole_file(target) as file:
        assert Path(file.name).parent == target.parent
        file.write(b"0123456789")
        file.seek(2)
        file.write(b"ab")
    assert_untouched(target, b"01ab456789")


def test_a_disk_that_is_full_in_the_middle_says_how_far_it_went(target):
    with pytest.raises(ResourceError) as caught, whole_file(target) as file:
        file.write(b"x" * 2_500_000)
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.where == str(target) and "more than 2.5 MB" in caught.value.expected
    assert_untouched(target)
