"""bench/gpu: small and on a CPU, every call that a GPU would get."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from priors import TINY as TINY_PRIOR

import swintormer_kernels as sk
from bench.gpu import denoiser, main, parts, rows, timing
from bench.measure import op_modules
from swintormer import NetworkConfig
from swintormer_kernels.backends.triton.layout import INTERPRETED
from swintormer_kernels.testing.case import Case

pytestmark = pytest.mark.usefixtures("one_thread", "language_patched_once")
TINY = NetworkConfig(
    in_channels=3, dim=4, num_blocks=(1, 1, 0, 0), num_refinement_blocks=0, heads=(1, 1, 1, 1), window_size=4
)


@pytest.fixture
def meter(tmp_path, monkeypatch):
    for name, value in (("WARM_UPS", 1), ("LEAST", 2), ("MOST", 2)):
        monkeypatch.setattr(timing, name, value)
    return parts.Meter("part", tmp_path, "cpu", n=64)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("program", [main, denoiser])
def test_without_a_gpu_it_says_so_in_one_sentence(program, tmp_path):
    with pytest.raises(SystemExit, match="needs a CUDA device and torch sees none"):
        program.main(["--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_parts_end_done_failed_or_stopped_and_are_logged(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")

    def python(script):
        return [sys.executable, "-c", script]

    told = python("import os; print('interpreted', 'TRITON_INTERPRET' in os.environ)")
    endless, failing = python("import time; time.sleep(600)"), python("1 / 0")
    with (tmp_path / "log").open("w") as log:
        assert main.run_together([told], 60, log) == "done"
        assert main.run_together([failing], 60, log) == "failed: -c 1 / 0"
        assert main.run_together([endless], 1, log) == "stopped after 1 s"
    text = (tmp_path / "log").read_text()
    assert "interpreted False" in text
    assert "ZeroDivisionError" in text


def test_rows_are_read_as_they_were_written_and_summed_up(meter, tmp_path):
    what = {"what": "released", "case": "40 tiles of 256", "dtype": torch.bfloat16, "eager_ms": 120.0}
    written = [meter.row(**what, by=by, ms=ms) for by, ms in (("eager", 120.0), ("triton", 24.0), ("graph", 20.0))]
    first, second, third = rows.read_rows(tmp_path)
    assert [row.by for row in (first, second, third)] == ["eager", "triton", "graph"]
    assert (first.ms, second.ratio, third.ratio) == (written[0].ms, 5.0, 6.0)
    assert math.isnan(first.peak_mb)
    assert rows.read_rows(tmp_path / "nowhere") == []

    main.write_notes(tmp_path, written, {"tests": "done", "compile": "stopped after 160 s"}, 500.0)
    lines = (tmp_path / "notes.md").read_text().splitlines()
    measured = [line.split("|")[2].strip() for line in lines if line.startswith("|")][2:]
    assert measured == ["6.00x", "not measured", "50.0", "nan", "not measured", "1.20x"]
    assert "- compile: stopped after 160 s" in lines


def test_ops_are_timed_with_eager_beside_them_in_both_passes(meter, tmp_path, monkeypatch):
    if sk.backends()["triton"] is not None or not INTERPRETED:
        pytest.skip("on CPU tensors Triton kernels run in the interpreter only")
    (module,) = (module for module in op_modules("triton") if module.OP.name == "gated_ffn")
    small = next(case for case in parts.cases_of("gated_ffn") if case.name == "window 2, C 2")
    cases = [Case("small", small.make), Case("untimed", small.make, timed=False)]
    monkeypatch.setattr(parts, "cases_of", lambda name: cases)
    parts.time_op(meter, module, tiles=2)
    found = rows.read_rows(tmp_path)
    assert [(row.dtype, row.by, row.passes) for row in found] == [
        (dtype, by, passes)
        for dtype in ("bfloat16", "float32")
        for by in ("eager", "triton")
        for passes in ("forward", "both")
    ]
    macs = 3 * 2 * 2 * (4 * 6) * 5  # 3 C hid for each pixel of two tiles; a row holds four digits
    for row in found:
        assert row.gmac == pytest.approx(macs * (3 if row.passes == "both" else 1) / 1e9, rel=1e-3)
        assert 0 < row.error < 0.05
        assert row.by != "eager" or row.ratio == 1


def test_the_network_and_its_compiled_forms_are_timed(meter, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda net, mode: net)
    parts.time_network(meter, "released", TINY, tile=32, counts=(2, 1))
    parts.time_compiled(meter, TINY, tile=32, tiles=1)
    found = rows.read_rows(tmp_path)
    assert [(row.what, row.dtype, row.passes, row.by) for row in found] == [
        *(("released", dtype, passes, "eager") for dtype in ("bfloat16", "float32") for passes in ("forward", "both")),
        ("released", "bfloat16", "forward", "compile"),
    ]
    assert found[0].error > found[2].error > 0


def test_a_unet_is_timed_before_and_after_it_is_optimized(meter, tmp_path):
    denoiser.time_unet(meter, "tiny", TINY_PRIOR, 8, torch.float32)
    found = rows.read_rows(tmp_path)
    expected = [(f"tiny {what}", by) for by in ("eager", "optimized") for what in ("step", "sample")]
    assert [(row.what, row.by) for row in found] == expected
    assert all(row.error < 1e-4 for row in found)


def test_rotated_copies_are_of_their_own_and_take_turns():
    x = torch.randn(3)
    first, second, *_ = timing.rotated((x, [x], 5), "cpu")
    assert torch.equal(first[0], x)
    assert first[2] == 5
    assert len({t.data_ptr() for t in (x, first[0], first[1][0], second[0])}) == 4
    seen = []
    assert timing.rotating_ms([lambda: seen.append("a"), lambda: seen.append("b")], "cpu", seconds=0.001) >= 0
    assert seen[:3] == ["a", "b", "a"]
    assert seen[4:8] == ["a", "b", "a", "b"]
