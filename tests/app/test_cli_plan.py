"""Which pictures a command line means: each once, and what cannot be looked at costs only itself."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from cli_files import make_bad, nobody, photo

from swintormer.cli.plan import Job, Naming, plan
from swintormer.errors import SwintormerError

LONG = "x" * 300 + ".png"  # file systems end at 255 bytes


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def planned(*names: str, out: str = "out", **naming: object) -> tuple[list[str], list[str]]:
    """Sources and problems."""
    jobs, problems = plan([Path(name) for name in names], Naming(Path(out), **naming))
    return [str(job.source) for job in jobs], problems


def test_a_named_file_that_is_none_does_not_stop_the_others():
    photo("a.png", side=(2, 2))
    Path("notes.txt").write_text("not a picture")
    sources, problems = planned("notes.txt", "missing.png", LONG, "a.png")
    assert sources == ["a.png"]
    told = "\n".join(problems)
    assert len(problems) == 3
    assert "There is no file or folder missing.png." in told
    assert "notes.txt is not a picture" in told
    assert "xxx.png: File name too long." in told


@pytest.mark.parametrize(
    "names", [("a.png", "a.png"), ("a.png", "./in/../a.png"), (".", "a.png"), ("a.png", "."), ("link", "a.png")]
)
def test_a_picture_named_twice_is_restored_once(names):
    photo("a.png", side=(2, 2))
    Path("in").mkdir()
    Path("link").symlink_to(".")
    sources, problems = planned(*names)
    assert [Path(source).name for source in sources] == ["a.png"]
    assert problems == []


def test_one_picture_named_twice_still_has_one_name_for_its_result():
    photo("a.png", side=(2, 2))
    jobs, _ = plan([Path("a.png"), Path("a.png")], Naming(Path("sharp.png")))
    assert jobs == [Job(Path("a.png"), Path("sharp.png"))]


def test_two_names_of_one_file_are_two_results():
    photo("a.png", side=(2, 2))
    Path("b.png").symlink_to("a.png")
    assert planned(".") == (["a.png", "b.png"], [])


def test_names_that_no_file_can_have():
    photo("a.png", side=(2, 2))
    for naming in ({"out": LONG}, {"right": Path(LONG)}):
        with pytest.raises(SwintormerError, match="File name too long"):
            planned("a.png", **naming)
    assert not Job(Path("a.png"), Path(LONG)).is_done()
    Path("loop").symlink_to("loop")
    with pytest.raises(SwintormerError, match="Cannot look at loop"):
        planned("a.png", out="loop")


def test_what_lies_in_a_closed_folder(monkeypatch):
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to other users
        monkeypatch.chdir(folder)
        os.chmod(folder, 0o777)
        photo("a.png", side=(2, 2))
        photo("closed/b.png", side=(2, 2))
        Path("closed").chmod(0)
        try:
            with nobody():
                assert planned("closed/b.png", "a.png") == (
                    ["a.png"],
                    ["Cannot look at closed/b.png: Permission denied."],
                )
                for naming in ({"out": "closed/out"}, {"right": Path("closed/b.png")}):
                    with pytest.raises(SwintormerError, match=r"Cannot look at closed/\w+.*: Permission denied"):
                        planned("a.png", **naming)
                assert not Job(Path("a.png"), Path("closed/b.png")).is_done()
        finally:
            Path("closed").chmod(0o777)
            monkeypatch.undo()  # leave the folder before it goes


def test_all_that_is_named_is_no_picture():
    bad = make_bad("text").rename("text")
    sentence = "text is not a picture in PNG, TIFF, JPEG or WebP: convert it to one of these first."
    assert planned(str(bad)) == ([], [sentence])
