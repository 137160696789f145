"""bench/gpu on CPU tensors and the emulated device, small: the calls of CUDA kernels that a GPU would get."""

from __future__ import annotations

import csv

import pytest
import torch

from bench.gpu import __main__ as command
from bench.gpu import bits, candidates, cases, checks, network, notes, ops, rows, timing
from bench.gpu.meter import Meter
from swintormer import NetworkConfig
from swintormer_kernels.backends.cuda import device, emulator, limits
from swintormer_kernels.backends.triton.layout import INTERPRETED
from swintormer_kernels.registry import backends
from swintormer_kernels.testing.block_cases import Shape
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
    return Meter("part", tmp_path, "cpu")


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
    notes.write_notes(tmp_path, {"checks": {"check:ddim_step": "failed (1)"}})
    text = (tmp_path / "notes.md").read_text()
    assert "0 of 6 checks passed" in text
    assert "- ddim_step, one number, float16: ZeroDivisionError: division by zero" in text
    checks.append(tmp_path, checks.Check(what="swda_block", case="mended", dtype="float16", verdict="Error: once"))
    checks.append(tmp_path, checks.Check(what="swda_block", case="mended", dtype="float16", verdict="ok"))
    assert checks.raised("swda_block", tmp_path) is None  # in the last visit


def test_every_size_has_a_smallest_case_and_all_of_them_run(emulated, monkeypatch):
    emulated("plain")
    for case, shape in cases.SMALLEST.items():
        arguments, keywords = cases.given("swda_block", case, "cpu")
        assert cases.op_of("swda_block").why_not("cuda", *arguments, **keywords) is None, case
        assert shape.height * shape.width <= 256
    shapes = cases.SMALLEST.values()
    assert {shape.channels for shape in shapes} == set(limits.CHANNELS)
    assert {shape.channels // 2 // shape.heads for shape in shapes} == set(limits.HEADS)
    first = next(iter(cases.SMALLEST))
    monkeypatch.setattr(cases, "SMALLEST", {first: cases.SMALLEST[first]})
    cases.run_smallest("cpu")


def test_results_are_compared_bit_by_bit_with_the_emulated_device(emulated, tmp_path, monkeypatch):
    """Here both are the emulated device; the first result gets another last bit."""
    emulated("plain")
    monkeypatch.setattr(bits, "CASES", (("ddim_step", "odd sizes, sliced"),))
    calls, right = [], bits.on

    def on(*given):
        result = right(*given)
        calls.append(result)
        if len(calls) == 1:
            flat = result.view(-1).view(torch.int16)
            flat[3] += 3
        return result

    monkeypatch.setattr(bits, "on", on)
    assert command.run_part("emulator", tmp_path, "cpu", ("cuda",)) == 0
    assert bits.library() == device.EMULATOR
    bits.run(tmp_path, "cpu", ("cuda",))
    first, second = csv.DictReader((tmp_path / "bits.csv").open())
    assert [first[name] for name in ("dtype", "different", "above_2", "most")] == ["bfloat16", "1", "1", "3"]
    assert [second[name] for name in ("dtype", "different")] == ["float16", "0"]
    a = torch.tensor([0.0, -0.0, 1.0, -1.0], dtype=torch.bfloat16)
    assert bits.units_apart(a, -a).tolist() == [0, 0, 2 * 0x3F80, 2 * 0x3F80]


def test_an_op_is_timed_beside_eager_and_triton(meter, tmp_path, monkeypatch):
    if backends()["triton"] is not None or not INTERPRETED:
        pytest.skip("on CPU tensors Triton kernels run in the interpreter only")
    monkeypatch.setitem(cases.SMALL, "tiny", Shape(24, 1, 8, 8, window=8))
    ops.time_op(meter, "ddim_step", "odd sizes, sliced", 1, ("cuda", "triton"))
    ops.time_op(meter, "gated_ffn", "tiny", 2, ("cuda", "triton"))
    found = rows.read_rows(tmp_path)
    assert [(row.what, row.by) for row in found] == [
        (op, by) for op in ("ddim_step", "gated_ffn") for by in ("eager", "cuda", "triton")
    ]
    assert all(0 < row.error < 0.02 for row in found)
    assert {row.card for row in found} == {"CPU"}


def test_an_op_whose_check_raised_is_not_timed(meter, tmp_path, capsys):
    checks.append(tmp_path, checks.Check(what="ddim_step", case="one", dtype="float16", verdict="RuntimeError: broken"))
    ops.time_op(meter, "ddim_step", "odd sizes, sliced", 1, ("cuda",))
    assert [row.by for row in rows.read_rows(tmp_path)] == ["eager"]
    assert "not timed: RuntimeError: broken" in capsys.readouterr().out


def test_a_network_is_timed_with_the_blocks_of_cuda(meter, tmp_path, monkeypatch):
    tiny = NetworkConfig(
        in_channels=3, dim=24, num_blocks=(1, 0, 0, 0), num_refinement_blocks=0, heads=(1, 2, 4, 8), window_size=8
    )
    monkeypatch.setitem(network.PRESETS, "released", tiny)
    for measure in ("median_ms", "peak_mb"):
        monkeypatch.setattr(network, measure, lambda call, device: 1.0)
    monkeypatch.setattr(network, "_graphed", lambda graph, x: graph.net)  # GraphedForward has tests of its own
    network.time_network(meter, "released", torch.bfloat16, ("cuda",), tile=64, tiles=1)
    found = rows.read_rows(tmp_path)
    assert [(row.by, row.launched) for row in found] == [("eager", "plain"), ("cuda", "plain")]
    assert found[1].error <= 2 * found[0].error


def test_candidates_are_timed_beside_the_chosen_instance(tmp_path, meter, monkeypatch):
    monkeypatch.setattr(candidates, "TURNS", 1)
    monkeypatch.setattr(candidates, "ATTENTION", {})
    tail = ("tail_bf16_c384_r64", 256, 163840, 64)
    monkeypatch.setattr(candidates, "TAIL", {Shape(384, 8, 8, 8, window=8): (tail,)})
    launched, right = set(), emulator.launch

    def launch(library, block, *given):
        launched.add(block[0])
        right(library, block, *given)

    monkeypatch.setattr(emulator, "launch", launch)
    candidates.run(tmp_path, "cpu", ("cuda",), tiles=1)
    found = rows.read_rows(tmp_path)
    assert [(row.what, row.by) for row in found] == [("tail", "chosen"), ("tail", tail[0])]
    assert found[1].error <= torch.finfo(torch.bfloat16).eps  # of the largest value: the sums' order may differ
    assert {"tail_bf16_c384_r32", tail[0]} <= launched
