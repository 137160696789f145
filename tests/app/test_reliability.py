"""`python -m bench.reliability` in short: nothing half-written where processes are killed or the disk is full."""

from __future__ import annotations

import pytest

from bench import reliability
from swintormer.images import files


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    return reliability.Stage(tmp_path_factory.mktemp("stage"))


@pytest.mark.parametrize("row", ["killed", "full"])
def test_files_are_whole(stage, monkeypatch, row):
    monkeypatch.setattr(reliability, "KILLS", 2)
    monkeypatch.setattr(reliability, "FOLDERS", 1)
    assert reliability.ROWS[row](stage) == []


def test_faults_are_seen(stage):
    out = stage.folder / "faulty"
    out.mkdir()
    names = sorted(stage.expected)
    for name in names[1:]:
        (out / name).write_bytes((stage.folder / "expected" / name).read_bytes())
    (out / names[2]).write_bytes((out / names[2]).read_bytes()[:-20])
    (out / names[4]).write_bytes((stage.folder / "expected" / names[0]).read_bytes())
    (out / files._PART.format("0")).touch()
    words = " ".join(stage.faults("faulty", complete=True))
    for word in (f"missing: {names[0]}", "not whole", f"other pixels: {names[4]}", "left behind"):
        assert word in words
