"""`swintormer bench`: what it says follows from what it measured."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from bench import measure, roofline
from swintormer import NetworkConfig, Swintormer
from swintormer.cli import bench
from swintormer_kernels import native, use_backend
from swintormer_kernels.packed import kept_bytes, packed_weight
from swintormer_kernels.precision import multiplies_bfloat16
from swintormer_kernels.testing import timing
from swintormer_kernels.testing.cases import cases_of
from swintormer_kernels.testing.timing import TorchRate, in_turn, peak_memory

TINY = NetworkConfig(
    in_channels=3, dim=4, num_blocks=(1, 1, 0, 0), num_refinement_blocks=0, heads=(1, 1, 1, 1), window_size=4
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0.432, "0.43 seconds"), (1.04, "1 second"), (12.3, "12 seconds"), (89.9, "90 seconds")),
        *((90, "1.5 minutes"), (60 * 12.4, "12 minutes"), (5400, "1.5 hours"), (3600 * 30, "30 hours")),
    ],
)
def test_times_are_spoken_as_people_do(seconds, text):
    assert bench.spoken(seconds) == text


def test_the_sentence_tells_the_photograph_and_the_gain():
    result = bench.Bench(
        ("cpu",), 2, seconds=0.5, reference_seconds=1.5, gflops=120.0, torch_gflops=160.0, peak_gflops=240.0
    )
    tiles = 28 * 19  # (6000 - 256) / 220 and (4000 - 256) / 220, rounded up, and one more each
    assert result.photo_seconds(0.5) == tiles * 0.5
    assert result.sentence() == (
        "A 6000x4000 photograph takes this machine about 4.4 minutes; in plain PyTorch it would be 13 minutes. "
        "In float32 that is 50% of what its arithmetic units can do."
    )
    rounded = dataclasses.replace(result, bfloat16_seconds=0.25)
    assert "the same in bfloat16    250.0 ms, 6.00 times as fast" in str(rounded)
    assert "takes this machine about 4.4 minutes, or 2.2 minutes in bfloat16; in plain" in rounded.sentence()
    assert "3.00 times as fast" in str(result)
    assert "120 of the 240 GFLOP/s of multiply-adds that this machine can do (50%)\n" in str(result)
    assert "120 of the 160 GFLOP/s of torch's best product (75%)\n" in str(result)
    assert str(result).endswith(result.sentence())


def test_a_limit_that_is_not_known_is_not_told():
    known = {"seconds": 0.5, "reference_seconds": 1.5, "gflops": 120.0, "torch_gflops": 160.0}
    assert "nan" not in str(bench.Bench(("cpu",), 2, **known))
    assert "multiply-adds" not in str(bench.Bench(("cpu",), 2, **known))
    assert "in bfloat16 it could do 480 GFLOP/s" in str(bench.Bench(("cpu",), 2, **known, peak_bfloat16_gflops=480.0))


def test_without_a_faster_backend_it_says_where_to_look():
    result = bench.Bench(("reference",), 2, seconds=1.5, reference_seconds=1.5, gflops=40.0, torch_gflops=160.0)
    assert "`swintormer info`" in result.sentence()


def test_a_run_measures_what_deblur_would_do(monkeypatch):
    monkeypatch.setattr(bench, "TILE", 64)
    result = bench.run(TINY, rounds=1)
    net, tile = Swintormer(TINY).eval(), torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        assert result.backends == bench.blocks_backends(net, tile)
        with use_backend("reference"):
            assert bench.blocks_backends(net, tile) == ("reference",)
    assert result.threads == torch.get_num_threads()
    assert min(result.seconds, result.reference_seconds, result.gflops, result.torch_gflops) > 0
    assert math.isnan(result.bfloat16_seconds) != multiplies_bfloat16()
    assert (result.packed_megabytes > 0) == ("cpu" in result.backends)
    assert not any(part._forward_pre_hooks for part in net.modules())


def test_turns_alternate_and_the_first_round_does_not_count(monkeypatch):
    calls, clock = [], itertools.count()
    monkeypatch.setattr(timing, "timed", lambda turn: (turn(), next(clock))[1])
    seconds = in_turn({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2)
    assert calls == ["a", "b"] * 3
    assert seconds == {"a": [2, 4], "b": [3, 5]}


def test_peak_memory_counts_what_lives_at_the_same_time():
    def one_after_the_other():
        for _ in range(3):
            torch.zeros(1000)

    def together():
        return [torch.zeros(1000) for _ in range(3)]

    assert 4000 <= peak_memory(one_after_the_other) < 8000
    assert 12000 <= peak_memory(together) < 16000


def test_the_rate_of_torch_is_the_best_of_its_products():
    torch_rate = TorchRate()
    seconds = {name: [1.0, 2.0] for name in torch_rate.turns}
    faster = seconds | {"matrix product": [1.0, 1e-3]}
    assert torch_rate.rate(faster) == 10 * 2 * 768**3 / 1e-3
    assert torch_rate.rate(seconds) < torch_rate.rate(faster)


def test_packed_weights_count_once_and_as_long_as_their_source_lives():
    source = torch.ones(8)
    made = packed_weight([source], "a", lambda: torch.zeros(1000))
    packed_weight([source], "b", lambda: made[500:])
    assert kept_bytes([source, torch.ones(8)]) == 4000
    assert kept_bytes([]) == 0


def test_the_peak_of_multiply_adds_is_on_all_of_torchs_threads(monkeypatch):
    asked = []
    monkeypatch.setattr(native, "peak_gflops", lambda *what: asked.append(what) or 2.0, raising=False)
    assert timing.peak_rate() == 2e9
    assert asked == [("float32", torch.get_num_threads())]
    monkeypatch.setattr(native, "peak_gflops", lambda *_: None)
    assert math.isnan(timing.peak_rate("bfloat16"))


def test_an_op_is_measured_into_a_row_and_appended(tmp_path, monkeypatch):
    """Every column of a row has its place in the file, which keeps its header."""

    class Benchmark:
        """pytest-benchmark's fixture: as many rounds as asked for, each after its set-up."""

        def pedantic(self, function, setup, rounds, warmup_rounds):
            for _ in range(warmup_rounds + rounds):
                setup()
                function()
            self.stats = SimpleNamespace(stats=SimpleNamespace(median=1e-3))

    monkeypatch.setattr(measure, "SECONDS_PER_CASE", 0.0)
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    (module,) = (module for module in measure.op_modules("reference") if module.OP.name == "gated_ffn")
    case = next(case for case in cases_of("gated_ffn") if case.name == "window 2, C 2")
    row = measure.measure_op(Benchmark(), module, case, "reference")
    assert row.gmac == pytest.approx(3 * 2 * 5 * 24 / 1e9)  # 3 C hid for each pixel
    for _ in range(2):
        (file,) = measure.append_csv([row])
    first, second = csv.DictReader(file.read_text().splitlines())
    assert first == second
    assert list(first) == [field.name for field in dataclasses.fields(measure.Row)]
    assert first["case"] == "window 2, C 2"


def test_recorded_files_have_the_columns_of_a_row():
    """Rows are appended below the header that is there."""
    names = [field.name for field in dataclasses.fields(measure.Row)]
    headers = {f.name: f.read_text(encoding="utf-8").splitlines()[0].split(",") for f in measure.RESULTS.glob("*.csv")}
    ops = {f"{module.OP.name}.csv" for module in measure.op_modules("cpu")}
    assert ops <= headers.keys()
    assert all(headers[name] == names for name in (*ops, "network.csv", "denoiser.csv"))


def test_the_picture_of_the_floors_leaves_out_rows_without_the_rate_of_multiply_adds(tmp_path):
    head = "op,case,backend,isa,fma_share,copy_share,machine\n"
    rows = ("a,x,cpu,avx2,0.5,0.25,old", "a,x,cpu,avx2,0.25,nan,new", "a,x,cpu,avx2,nan,0.5,", "a,y,cpu,avx2,nan,0.5,")
    (tmp_path / "a.csv").write_text(head + "\n".join(rows))
    (found,) = roofline.newest_rows([tmp_path / "a.csv"])
    assert found["machine"] == "new"
    assert roofline.share_of_floor(found) == 0.25
    assert roofline.share_of_floor({"fma_share": "0.5", "copy_share": "0.75"}) == 0.75
