"""A 100-megapixel 16-bit file through the program under 2.5 GB.

Takes a quarter of an hour and more, so by hand or nightly: `pytest -m slow -s tests/app/test_large_image.py`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from swintormer.checkpoint.checkpoint import default_weights, load_checkpoint
from swintormer.images.picture import wrap
from swintormer.images.reading import read_image
from swintormer.images.writing import save_vips
from swintormer.inference.deblurrer import Deblurrer

PHOTOGRAPH = Path(__file__).resolve().parents[2] / "swintormer" / "assets" / "demo.png"
SIDE = 10_000
LIMIT = 2.5e9


def run_measured(command: list[str]) -> tuple[int, float, int]:
    """Exit status, seconds, and the peak of resident bytes of that process alone."""
    start = time.monotonic()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    unit = 1 if sys.platform == "darwin" else 1024
    return os.waitstatus_to_exitcode(status), time.monotonic() - start, usage.ru_maxrss * unit


@pytest.mark.slow
def test_hundred_megapixels_of_sixteen_bits(tmp_path: Path) -> None:
    photograph = read_image(PHOTOGRAPH).pixels.astype(np.uint16) * 257 + 13  # uses the lower bits too
    repeats = [-(-SIDE // side) for side in photograph.shape[:2]]
    pixels = np.tile(photograph, (*repeats, 1))[:SIDE, :SIDE]
    save_vips(tmp_path / "large.tif", wrap(pixels))
    corner = pixels[:1024, :1024].copy()
    del pixels

    result = tmp_path / "result.tif"
    command = [sys.executable, "-m", "swintormer.cli.app", "deblur", str(tmp_path / "large.tif"), "-o", str(result)]
    command += ["--precision", "float32"]  # as the comparison below, whatever the CPU multiplies
    status, seconds, peak = run_measured(command)
    rate = SIDE**2 / 1e6 / seconds
    print(f"{SIDE}x{SIDE}, 16 bits: {seconds:.0f} s, {rate:.2f} megapixels/s, peak {peak / 1e6:.0f} MB resident")
    assert status == 0
    assert peak < LIMIT

    restored = read_image(result).pixels
    assert restored.shape == (SIDE, SIDE, 3)
    assert restored.dtype == np.uint16
    # What only the first tile holds does not know how large the image is.
    deblur = Deblurrer(load_checkpoint(default_weights()))
    plan = deblur.plan(SIDE, SIDE)
    expected = deblur.restore_array(corner[: plan.tile, : plan.tile])
    np.testing.assert_array_equal(restored[: plan.stride, : plan.stride], expected[: plan.stride, : plan.stride])
