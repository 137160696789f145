"""A new file takes its place whole or not at all, and what the system refuses is one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

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
