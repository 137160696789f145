"""bench/gpu/cuda.py on CPU tensors and the emulated device, small: every call that a GPU would get."""

from __future__ import annotations

import csv

import pytest
import torch

from bench.gpu import checks, cuda, parts, rows, timing
from swintormer import NetworkConfig
from swintormer_kernels.backends.triton.layout import INTERPRETED
from swintormer_kernels.registry import backends
from swintormer_kernels.testing.cases import cases_of

pytestmark = [
    pytest.mark.usefixtures("one_thread", "language_patched_once"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
]


@pytest.fixture
def meter(tmp_path, monkeypatch, emulated):
    emulated("plain")
    for name, value in (("WARM_UPS", 1), ("LEAST", 2), ("MOST", 2)):
        monkeypatch.setattr(timing, name, value)
    return parts.Meter("part", tmp_path, "cpu", n=64)


def test_checks_are_written_one_by_one_and_a_wrong_kernel_is_told(emulated, tmp_path, monkeypatch):
    emulated("plain")
    small = [case for case in cases_of("ddim_step") if case.name in ("one number", "odd sizes, sliced", "empty batch")]
    monkeypatch.setattr(checks, "cases_of", lambda name: small)
    assert checks.check_op("ddim_step", tmp_path, "cpu")
    read = list(csv.DictReader((tmp_path / "checks.csv").open()))
    assert len(read) == 6
    assert {line["verdict"] for line in read} == {"ok"}

    right = checks.on
    monkeypatch.setattr(checks, "on", lambda backend, *a: right(backend, *a) * (1.1 if backend == "cuda" else 1))
    assert not checks.check_op("ddim_step", tmp_path, "cpu")
    last = list(csv.DictReader((tmp_path / "checks.csv").open()))[-1]
    assert "was expected" in last["verdict"]

    monkeypatch.setattr(checks, "_errors", lambda *_: 1 / 0)
    assert not checks.check_op("ddim_step", tmp_path, "cpu")
    last = list(csv.DictReader((tmp_path / "checks.csv").open()))[-1]
    assert last["verdict"] == "ZeroDivisionError: division by zero"
    assert checks.raised("ddim_step", tmp_path) == last["verdict"]
    assert checks.raised("swda_block", tmp_path) is None
    cuda.write_notes(tmp_path, {"checks": "failed"})
    # An empty result is right whatever its factor.
    assert "8 of 18 checks passed" in (tmp_path / "notes.md").read_text()


def test_there_is_a_case_of_whatever_is_timed():
    pairs = [(op, shape) for shape in cuda.SHAPES for op in cuda.BLOCKS]
    pairs += [(op, case) for op, cases in cuda.DENOISER.items() for case in cases]
    for op, case in pairs:
        (x, *_), _ = cuda.given(op, case, "cpu")
        assert x.dtype == torch.bfloat16


def test_an_op_that_cannot_be_timed_is_told_and_the_next_one_follows(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(cuda, "time_op", lambda meter, name, case, tiles: seen.append(name) or 1 / 0)
    cuda.time_denoiser(None)
    assert len(seen) == sum(map(len, cuda.DENOISER.values()))
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_small_cases_run_on_every_op(meter):
    cuda.run_small("cpu")


def test_an_op_is_timed_beside_eager_and_triton(meter, tmp_path):
    if backends()["triton"] is not None or not INTERPRETED:
        pytest.skip("on CPU tensors Triton kernels run in the interpreter only")
    cuda.time_op(meter, "ddim_step", "odd sizes, sliced", 1)
    cuda.time_op(meter, "group_norm_silu", "32x32x32, channels_last", 2)
    found = rows.read_rows(tmp_path)
    assert [(row.what, row.by) for row in found] == [
        (op, by) for op in ("ddim_step", "group_norm_silu") for by in ("eager", "cuda", "triton")
    ]
    assert all(0 < row.error < 0.02 for row in found[3:])
    assert {row.card for row in found} == {"CPU"}
    cuda.write_notes(tmp_path, {})
    assert "| group_norm_silu | 32x32x32, channels_last | " in (tmp_path / "notes.md").read_text()


def test_the_network_and_the_compiled_blocks_are_timed(meter, tmp_path, monkeypatch):
    tiny = NetworkConfig(
        in_channels=3, dim=4, num_blocks=(1, 1, 0, 0), num_refinement_blocks=0, heads=(1, 1, 1, 1), window_size=4
    )
    monkeypatch.setitem(cuda.PRESETS, "released", tiny)
    monkeypatch.setattr(cuda, "COMPILED", ("latent, C 384, shifted",))
    monkeypatch.setattr(torch, "compile", lambda function: function)
    cuda.time_network(meter, tile=32, tiles=2)
    cuda.time_compiled(meter, 1)
    assert [row.by for row in rows.read_rows(tmp_path)] == ["eager", "compile"]


def test_all_parts_share_the_time_that_is_given(tmp_path, monkeypatch):
    ran = []

    def run_together(commands, limit, log):
        ran.append(([c[c.index("--part") + 1] if "--part" in c else c[2] for c in commands], limit))
        return "done"

    monkeypatch.setattr(cuda, "run_together", run_together)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda, "machine", lambda: "a machine")
    cuda.main(["--out", str(tmp_path), "--seconds", "50"])
    assert ran[0][0][0] == "check:swda_attention"
    assert ran[0][1] == 20
    alone = ["blocks", "network", "bench.gpu.candidates", "denoiser", "compile", "small"]
    assert [parts for parts, _ in ran[1:]] == [[part] for part in alone]
    assert all(limit < 50 for _, limit in ran)
    assert "- small: done" in (tmp_path / "notes.md").read_text()
    ran.clear()
    cuda.main(["--out", str(tmp_path), "--warm"])
    assert len(ran) == 1
    assert all(part.startswith("warm:") for part in ran[0][0])
