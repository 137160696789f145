"""Which instruction sets the extension finds on this machine, beside what the kernel of Linux says of it."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

NEEDS = {  # the compiler flags of CMakeLists.txt, in the kernel's words
    "avx512bf16": {"avx512f", "avx512vl", "avx512bw", "avx512dq", "avx2", "fma", "avx512_bf16"},
    "avx512": {"avx512f", "avx512vl", "avx512bw", "avx512dq", "avx2", "fma"},
    "avx2": {"avx2", "fma"},
    "portable": set(),
}


def test_what_the_machine_runs(extension):
    about = Path("/proc/cpuinfo")
    if not about.is_file() or platform.machine() != "x86_64":
        pytest.skip("needs /proc/cpuinfo of an x86-64 machine")
    flags = set(next(line for line in about.read_text().splitlines() if line.startswith("flags")).split())
    assert extension.supported_isas() == [isa for isa, needed in NEEDS.items() if needed <= flags]
