"""Damaged files through the readers, a short run of `make fuzz`; and that the harness sees the faults it looks for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.fuzz import worker
from bench.fuzz.__main__ import Worker, faults, fuzz
from bench.fuzz.mutations import mutate
from bench.fuzz.seeds import write_checkpoints, write_pictures
from swintormer.errors import SwintormerError


def test_damaged_files_are_refused_or_named(tmp_path):
    counts = fuzz(tmp_path, None, minutes=2, cases=150, seed=0, say=False)
    assert faults(counts) == 0, counts
    for kind in ("picture", "checkpoint"):
        assert counts[f"{kind} refused"] > 50


def test_whole_files_are_read_as_they_are(tmp_path):
    for path in write_pictures(tmp_path):
        assert worker.verdict("picture", path, path, False) == ("same", "")
    for path in write_checkpoints(tmp_path):
        assert worker.verdict("checkpoint", path, path, False) == ("changed", "")


class _Read:
    """What `read_image` returns, with other samples."""

    notes: tuple[str, ...] = ()

    def __init__(self, samples: np.ndarray) -> None:
        self.samples = samples


def test_the_harness_sees_each_fault(tmp_path, monkeypatch):
    path = next(path for path in write_pictures(tmp_path) if path.name == "plain.png")
    whole = worker.read_image(path).samples
    holed, other = whole.copy(), whole ^ 1
    holed[:16, :16] = 0

    def verdict(result: object, cut: bool = False) -> str:
        def read(asked: Path) -> object:
            if asked == path:
                return _Read(whole)
            if isinstance(result, Exception):
                raise result
            return result

        worker._samples.cache_clear()
        monkeypatch.setattr(worker, "read_image", read)
        return worker.verdict("picture", path, Path("mutant"), cut)[0]

    assert verdict(_Read(whole)) == "same"
    assert verdict(_Read(other)) == "changed"
    assert verdict(_Read(other), cut=True) == "CUT"
    assert verdict(_Read(holed)) == "HOLE"
    assert verdict(SwintormerError("One sentence.")) == "refused"
    assert verdict(SwintormerError("Two\nlines.")) == "WORDS"
    assert verdict(RuntimeError("anything")) == "TRACEBACK"


@pytest.mark.parametrize(
    ("code", "verdict"), [("import os; os.abort()", "CRASH"), ("import time; time.sleep(60)", "HANG")]
)
def test_crashes_and_hangs_are_answers(monkeypatch, code, verdict):
    from bench.fuzz import __main__ as program

    monkeypatch.setattr(program, "SECONDS", 0.5)
    monkeypatch.setattr(program, "COMMAND", ["-c", f"print('ready', flush=True); input(); {code}"])
    running = Worker()
    assert running.ask("picture", Path("a"), Path("b"), False)[0] == verdict
    running.close()


def test_mutants_differ_and_repeat():
    content = bytes(range(256)) * 8
    twice = [[mutate(np.random.default_rng(seed), content, content[::-1]) for seed in range(100)] for _ in range(2)]
    assert twice[0] == twice[1]
    assert sum(mutant.content != content for mutant in twice[0]) > 90
    for mutant in twice[0]:
        assert mutant.cut == (content.startswith(mutant.content) and len(mutant.content) < len(content))
