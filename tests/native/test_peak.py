"""The measured multiply-add peak: positive, and within what the instruction set in use can do at any clock."""

from pathlib import Path

import pytest

from swintormer_kernels import native

LANES = {"avx512bf16": 16, "avx512": 16, "avx2": 8, "neon": 4, "portable": 4}
MOST_UNITS = 4  # vector multiply-adds that start in one cycle; 2 on x86, 4 on the widest Arm cores
MOST_GHZ = 7.0  # no processor is sold that runs faster


def bound(isa: str) -> float:
    return 2 * LANES[isa] * MOST_UNITS * MOST_GHZ


def test_peak_follows_the_instruction_set_and_is_physical(engine):
    for isa in engine.supported_isas():
        engine.use_isa(isa)
        assert 0.1 < native.peak_gflops() < bound(isa)


def test_bfloat16_is_measured_where_the_cpu_has_it_and_else_none(engine):
    cpu = Path("/proc/cpuinfo")
    flags = cpu.read_text().split() if cpu.exists() else []
    for isa in engine.supported_isas():
        engine.use_isa(isa)
        peak = native.peak_gflops("bfloat16")
        if isa == "avx512bf16":
            assert 0.1 < peak < 2 * bound(isa)
        else:
            assert peak is None
    if "avx512_bf16" not in flags:
        assert "avx512bf16" not in engine.supported_isas()


def test_threads_are_counted(engine):
    assert 0.1 < native.peak_gflops("float32", 2) < 2 * bound(engine.isa())


def test_absent_extension_has_no_peak(monkeypatch):
    monkeypatch.setattr(native, "_extension", None)
    assert native.peak_gflops() is None


@pytest.mark.parametrize("arguments", [("float16", 1), ("float32", 0)])
def test_what_cannot_be_measured_raises(arguments):
    with pytest.raises(ValueError, match="must be"):
        native.peak_gflops(*arguments)
