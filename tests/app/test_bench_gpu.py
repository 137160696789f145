"""bench/gpu.py and what it stands on, as far as that goes without a GPU."""

from __future__ import annotations

import dataclasses
import importlib
import math
import sys
from pathlib import Path

import pytest
import torch
from priors import TINY as TINY_PRIOR

import swintormer_kernels as sk
from swintormer import NetworkConfig
from swintormer_kernels.backends.triton import layout as tensors
from swintormer_kernels.ops import ddim_step, gated_ffn, group_norm_silu, norm_silu_conv3x3, swda_attention
from swintormer_kernels.testing.cases import Case

pytestmark = pytest.mark.usefixtures("one_thread", "language_patched_once")
TINY = NetworkConfig(
    in_channels=3, dim=4, num_blocks=(1, 1, 0, 0), num_refinement_blocks=0, heads=(1, 1, 1, 1), window_size=4
)
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


@pytest.fixture(autouse=True)
def bench_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "bench"))


def tool(name):
    return importlib.import_module(name)


# ---- gpu.py ----------------------------------------------------------------------------------------------------------


@without_gpu
def test_without_a_gpu_it_says_so_in_one_sentence(tmp_path):
    with pytest.raises(SystemExit) as end:
        tool("gpu").main(["--out", str(tmp_path / "out")])
    assert str(end.value).startswith("bench/gpu.py needs a CUDA device and torch sees none: run it on a machine with")
    assert not (tmp_path / "out").exists()


def test_the_limits_add_up_to_less_than_ten_minutes():
    assert sum(tool("gpu").LIMITS.values()) <= 570


def test_parts_end_done_failed_or_stopped_and_are_logged(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    run = tool("gpu").run_together

    def python(script):
        return [sys.executable, "-c", script]

    told = python("import os; print('interpreted', 'TRITON_INTERPRET' in os.environ)")
    endless, failing = python("import time; time.sleep(600)"), python("1 / 0")
    with (tmp_path / "log").open("w") as log:
        assert run([told, told], [endless], 60, log) == "done"
        assert run([told, failing], [failing], 60, log) == "failed: -c 1 / 0"
        assert run([endless, told], [], 1, log) == "stopped after 1 s"
    text = (tmp_path / "log").read_text()
    assert text.count("interpreted False") == 4
    assert text.count("ZeroDivisionError") == 1


def test_every_test_file_runs_by_itself():
    files = {Path(command[-1]).name for command in tool("gpu").tests()}
    assert {"test_gated_ffn.py", "test_golden_blocks.py", "test_graphs.py", "test_runtime.py"} <= files
    assert not files & {"test_compile.py", "test_swda_block.py"}


def rows_of(**ms):
    gpu = tool("gpu")
    empty = {field.name: 1.0 if field.type == "float" else "" for field in dataclasses.fields(gpu.Row)}
    named = empty | {"what": "released", "dtype": "bfloat16", "passes": "forward"}
    return [gpu.Row(**(named | {"by": by, "ms": time})) for by, time in ms.items()]


def test_notes_set_predictions_beside_outcomes(tmp_path):
    rows = rows_of(eager=120.0, triton=24.0, graph=20.0)
    tool("gpu").write_notes(tmp_path, rows, {"tests": "done", "compile": "stopped after 160 s"}, 500.0)
    lines = (tmp_path / "notes.md").read_text().splitlines()
    outcomes = [line.split("|")[3].strip() for line in lines if line.startswith("|")][2:]
    assert outcomes == ["6.00x", "not measured", "50.0", "1.00", "not measured", "1.20x"]
    assert "- compile: stopped after 160 s" in lines
    assert f"torch {torch.__version__}" in "\n".join(lines)


def test_rows_are_read_as_they_were_appended(tmp_path):
    rows = rows_of(eager=1.25, graph=math.nan)
    for row in rows:
        tool("gpu").append(tmp_path, row)
    first, second = tool("gpu").read_rows(tmp_path)
    assert first == rows[0]
    assert second.by == "graph"
    assert math.isnan(second.ms)
    assert tool("gpu").read_rows(tmp_path / "nowhere") == []


# ---- gpu_parts.py and gpu_timing.py ----------------------------------------------------------------------------------


@pytest.fixture
def meter(tmp_path, monkeypatch):
    for name, value in (("WARM_UPS", 1), ("LEAST", 2), ("MOST", 2)):
        monkeypatch.setattr(tool("gpu_timing"), name, value)
    return tool("gpu_parts").Meter("part", tmp_path, "cpu", n=64)


@pytest.mark.parametrize("op", [group_norm_silu, ddim_step, norm_silu_conv3x3])
def test_ops_on_a_latent_are_timed_as_they_are(op, meter, tmp_path, monkeypatch):
    if sk.backends()["triton"] is not None or not tensors.INTERPRETED:
        pytest.skip("on CPU tensors Triton kernels run in the interpreter only")
    x, norm = torch.randn(1, 4, 3, 5), group_norm_silu.make_weights(1, 4)
    arguments = {
        "group_norm_silu": (x, norm, 2),
        "ddim_step": (x, x.clone()),
        "norm_silu_conv3x3": (x, norm, norm_silu_conv3x3.make_weights(1, 4, 4, (3, 5)), 2),
    }[op.OP.name]
    keywords = {"alpha_bar_t": 0.25, "alpha_bar_s": 0.4} if op is ddim_step else {}
    monkeypatch.setattr(op, "cases", lambda: [Case("small", lambda seed: (arguments, keywords))])
    tool("gpu_parts").time_op(meter, op, tiles=1)
    rows = tool("gpu").read_rows(tmp_path)
    assert [row.by for row in rows] == 2 * ["eager", "eager", "triton", "triton"]
    assert all(row.what == op.OP.name and row.error < 0.1 for row in rows)


def test_a_unet_is_timed_before_and_after_it_is_optimized(meter, tmp_path):
    pytest.importorskip("diffusers")
    tool("gpu_denoiser").time_unet(meter, "tiny", TINY_PRIOR, 8, torch.float32)
    rows = tool("gpu").read_rows(tmp_path)
    expected = [(f"tiny {what}", by) for by in ("eager", "optimized") for what in ("step", "sample")]
    assert [(row.what, row.by) for row in rows] == expected
    assert all(row.error < 1e-4 for row in rows)


@without_gpu
def test_the_denoisers_bench_says_that_it_needs_a_gpu(tmp_path):
    with pytest.raises(SystemExit, match="needs a CUDA device"):
        tool("gpu_denoiser").main(["--out", str(tmp_path)])


def test_an_op_is_timed_with_eager_beside_it_in_both_passes(meter, tmp_path, monkeypatch):
    if sk.backends()["triton"] is not None or not tensors.INTERPRETED:
        pytest.skip("on CPU tensors Triton kernels run in the interpreter only")
    small = next(case for case in gated_ffn.cases() if case.name == "window 2, C 2")
    monkeypatch.setattr(
        gated_ffn, "cases", lambda: [Case("small", small.make), Case("untimed", small.make, timed=False)]
    )
    tool("gpu_parts").time_op(meter, gated_ffn, tiles=2)
    rows = tool("gpu").read_rows(tmp_path)
    by = [(row.dtype, row.by, row.passes) for row in rows]
    assert by == [
        (dtype, by, passes)
        for dtype in ("bfloat16", "float32")
        for by in ("eager", "triton")
        for passes in ("forward", "both")
    ]
    macs = 3 * 2 * 2 * (4 * 6) * 5  # 3 C hid for each pixel of two tiles; a row holds four digits
    for row in rows:
        assert row.what == "gated_ffn"
        assert row.gmac == pytest.approx(macs * (3 if row.passes == "both" else 1) / 1e9, rel=1e-3)
        assert 0 < row.error < 0.05
        assert row.ms > 0
        assert row.by != "eager" or row.ratio == 1


def test_the_attention_core_stands_beside_swda_attention(meter, tmp_path):
    arguments, _ = next(case for case in swda_attention.cases() if case.name == "window 8, C 16").make(0)
    tool("gpu_parts").time_sdpa(meter, "small", arguments)
    (row,) = tool("gpu").read_rows(tmp_path)
    pixels, half, tokens = 2 * 16 * 24, 8, 64
    assert row.gmac == pytest.approx(2 * pixels * half * tokens / 1e9, rel=1e-3)


def test_the_network_is_timed_forward_and_in_training(meter, tmp_path):
    tool("gpu_parts").time_network(meter, "released", TINY, tile=32, counts=(2, 1))
    rows = tool("gpu").read_rows(tmp_path)
    assert [(row.dtype, row.passes, row.by) for row in rows] == [
        (dtype, passes, "eager") for dtype in ("bfloat16", "float32") for passes in ("forward", "both")
    ]
    assert rows[0].error > rows[2].error > 0


def test_the_compiled_network_is_timed(meter, tmp_path, monkeypatch):
    modes = []
    monkeypatch.setattr(torch, "compile", lambda net, mode: modes.append(mode) or net)
    tool("gpu_parts").time_compiled_block(meter, "window 8, C 16", tiles=1)
    tool("gpu_parts").time_compiled(meter, TINY, tile=32, tiles=1)
    rows = tool("gpu").read_rows(tmp_path)
    assert [(row.what, row.by) for row in rows] == [("swda_block", "compile"), ("released", "compile")]
    assert modes == [None, None]


def test_every_op_with_triton_kernels_is_timed():
    assert gated_ffn in tool("gpu_parts").op_modules()
    assert all("triton" in module.OP.serves for module in tool("gpu_parts").op_modules())


def test_calls_alternate():
    seen = []
    calls = [lambda: seen.append("a"), lambda: seen.append("b")]
    assert tool("gpu_timing").rotating_ms(calls, "cpu", seconds=0.001) >= 0
    assert seen[:3] == ["a", "b", "a"]
    assert seen[4:8] == ["a", "b", "a", "b"]


def test_copies_are_of_their_own():
    x = torch.randn(3)
    first, second, *_ = tool("gpu_timing").rotated((x, [x], 5), "cpu")
    assert torch.equal(first[0], x)
    assert first[2] == 5
    assert len({t.data_ptr() for t in (x, first[0], first[1][0], second[0])}) == 4
