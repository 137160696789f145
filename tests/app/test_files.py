"""A new file takes its place whole or not at all, and what the system refuses is one sentence."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest
from cli_files import ROOT_CAN_BE_NOBODY, nobody

from swintormer.errors import SwintormerError
from swintormer.images import files
from swintormer.images.files import exists, is_folder, prepare_folder, replacing


def test_an_interrupt_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "new" / "x.png") as file:  # noqa: PT012
        file.write(b"half")
        raise KeyboardInterrupt
    assert list((tmp_path / "new").iterdir()) == []


def test_temporary_files_never_touch_those_of_others(tmp_path, monkeypatch):
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "same")
    with replacing(tmp_path / "x.png") as file:
        file.write(b"mine")
        with pytest.raises(SwintormerError, match="File exists"), replacing(tmp_path / "x.png"):
            pass
    assert (tmp_path / "x.png").read_bytes() == b"mine"


def test_what_is_there(tmp_path):
    (tmp_path / "file").touch()
    assert exists(tmp_path)
    assert is_folder(tmp_path)
    assert exists(tmp_path / "file")
    for path in (tmp_path / "file", tmp_path / "missing", tmp_path / "file" / "inside"):
        assert not is_folder(path)
    assert not exists(tmp_path / "missing")
    assert not exists(tmp_path / "file" / "inside")
    with pytest.raises(SwintormerError, match=r"^Cannot look at .*: File name too long\.$"):
        exists(tmp_path / ("x" * 300))


@pytest.mark.parametrize(("name", "words"), [("folder", "a folder has that name"), ("x" * 300, "File name too long")])
def test_a_name_that_cannot_be_is_told_before_the_work(tmp_path, name, words):
    Path(tmp_path, "folder").mkdir()
    with pytest.raises(SwintormerError, match=words):
        prepare_folder(tmp_path / name)


@pytest.fixture
def umask():
    """A umask that is nobody's default, for the time of a test."""
    before = os.umask(0o027)
    yield 0o027
    os.umask(before)


def write(target: Path, content: bytes = b"new") -> None:
    with replacing(target) as file:
        file.write(content)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_link_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_bytes(b"old")
    (tmp_path / "link").symlink_to("deep/file")
    (tmp_path / "second").symlink_to("link")
    other = (tmp_path / "deep" / "file").open("rb")  # a reader keeps the old content: the file is replaced, not changed
    write(tmp_path / "second")
    assert (tmp_path / "second").is_symlink()
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "deep" / "file").read_bytes() == b"new"
    assert other.read() == b"old"
    other.close()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["deep", "file", "link", "second"]


def test_a_link_to_nothing_makes_its_file_but_no_folder(tmp_path):
    (tmp_path / "link").symlink_to("file")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"new"
    (tmp_path / "lost").symlink_to("unmounted/file")
    with pytest.raises(SwintormerError, match=r"it is a link to .*unmounted/file, and that folder does not"):
        write(tmp_path / "lost")
    assert not (tmp_path / "unmounted").exists()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(SwintormerError, match=r"^Cannot look at .*loop: "):
        write(tmp_path / "loop")


def test_a_link_to_a_folder_is_a_folder(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    with pytest.raises(SwintormerError, match="link: a folder has that name"):
        write(tmp_path / "link")
    write(tmp_path / "link" / "file")
    assert (tmp_path / "folder" / "file").read_bytes() == b"new"


def test_devices_and_pipes_are_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SwintormerError, match=r"pipe: it is a device or a pipe"):
        write(tmp_path / "pipe")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@pytest.mark.parametrize("permissions", [0o600, 0o664, 0o755])
def test_a_replaced_file_keeps_its_permissions(tmp_path, umask, permissions):
    path = tmp_path / "file"
    path.touch()
    path.chmod(permissions)
    write(path)
    assert mode(path) == permissions


def test_a_new_file_has_the_permissions_that_the_umask_leaves(tmp_path, umask):
    write(tmp_path / "file")
    assert mode(tmp_path / "file") == 0o666 & ~umask


def test_nobody_reads_a_private_file_while_it_is_written(tmp_path):
    path = tmp_path / "file"
    path.touch(0o600)
    with replacing(path):
        (part,) = tmp_path.glob(".swintormer-*")
        assert mode(part) == 0o600


@pytest.mark.skipif(not ROOT_CAN_BE_NOBODY, reason="only root may give files away")
def test_a_replaced_file_keeps_its_owner_where_that_is_permitted(tmp_path):
    path = tmp_path / "file"
    path.touch()
    os.chown(path, 1234, 4321)
    write(path)
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 4321)
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to other users
        Path(folder).chmod(0o777)
        path = Path(folder, "file")
        path.touch()
        path.chmod(0o644)
        with nobody():
            write(path)
        assert (path.read_bytes(), path.stat().st_uid, mode(path)) == (b"new", 65534, 0o644)


def test_unfinished_files_of_killed_processes_are_removed_and_those_of_others_are_not(tmp_path):
    left = tmp_path / ".swintormer-0123456789abcdef.part"
    left.write_bytes(b"half")
    os.utime(left, (0, 0))
    with replacing(tmp_path / "x.png") as file:
        file.write(b"whole")
        assert not left.exists()
        (being_written,) = tmp_path.glob(".swintormer-*.part")
        os.utime(being_written, (0, 0))
        files._swept.clear()
        with replacing(tmp_path / "y.png"):
            assert being_written.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"x.png", "y.png"}


def test_a_link_to_nothing_is_called_so(tmp_path):
    (tmp_path / "x.jpg").symlink_to("nowhere.jpg")
    with pytest.raises(SwintormerError, match=r"x\.jpg is a link to a file that is not there: leave it out"):
        files.open_file(tmp_path / "x.jpg")
