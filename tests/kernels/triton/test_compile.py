"""Every Triton kernel compiles for GPUs that are not there, spills little and fits their shared memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
SCRIPT = Path(__file__).with_name("compiling.py")
# A thread has 255 registers of 4 bytes on sm_90. A quarter of them spilled is a kernel whose blocks are too large.
MOST_SPILLED = 256
SHARED_LIMITS = {"sm_90": 227 * 1024, "gfx942": 64 * 1024}
KERNELS = 21


def without_interpreter(*command: str) -> str:
    """Standard output of Python without TRITON_INTERPRET: interpreted kernels cannot be compiled."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check(*arguments: str) -> list[str]:
    """The kernels that were compiled."""
    kernels = []
    for line in without_interpreter(str(SCRIPT), *arguments).splitlines():
        *_, kernel, _dtype, target, spilled, shared = line.split("|")
        assert int(spilled) <= MOST_SPILLED, line
        assert int(shared) <= SHARED_LIMITS[target], line
        kernels.append(kernel)
    return kernels


@pytest.mark.parametrize("target", SHARED_LIMITS)
def test_every_kernel_compiles(target):
    assert len(check("--quick", target)) == KERNELS


def test_the_widest_ffn_fits_the_registers():
    """It spilled 7.5 KB a thread in float32, whose products kept every channel in registers, and 552 bytes in the half
    types."""
    assert len(check("gated_ffn", "C 384", "sm_90")) == 3 * 3


@pytest.mark.slow
def test_every_kernel_compiles_in_every_configuration_and_dtype():
    assert len(check()) > 2 * 3 * KERNELS


SECOND_SIZE = """
import sys
sys.path.insert(0, sys.argv[1])
import torch, compiling
for dtype in (torch.float32, torch.bfloat16):
    keys = {}
    for side in (32, 48, 16):
        for op, configuration, launch in compiling.launches(dtype, side):
            found = keys.setdefault((op, configuration, launch.kernel.__name__, str(launch.constants)), set())
            found.add(str(compiling.specialised(launch, "sm_90")[3:]))
    print(*(len(found) for found in keys.values()))
"""


def test_a_second_image_size_compiles_nothing():
    """The JIT's cache key of every launch, as Triton computes it, is one and the same for three image sizes."""
    counts = without_interpreter("-c", SECOND_SIZE, str(SCRIPT.parent)).split()
    assert len(counts) >= 2 * KERNELS
    assert set(counts) == {"1"}
