"""The shipped photograph is what its recipe makes, and the demo restores and measures it."""

from __future__ import annotations

import numpy as np
from typer.testing import CliRunner

from swintormer.cli import demo
from swintormer.cli.app import app
from swintormer.evaluation.metrics import psnr
from swintormer.images.compare import CAPTION
from swintormer.images.reading import read_image


def test_the_shipped_pictures_come_from_the_recipe():
    blurred, truth = demo.make_pictures()
    np.testing.assert_array_equal(read_image(demo.TRUTH).pixels, truth)
    # Transforms may round differently elsewhere: a level here or there, where a value lies between two.
    difference = np.abs(read_image(demo.BLURRED).pixels.astype(int) - blurred)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3
    assert demo.BLURRED.stat().st_size + demo.TRUTH.stat().st_size < 1_500_000


def test_the_demo_sharpens_the_photograph(tmp_path):
    told = demo.run(tmp_path)
    restored, blurred, truth = (
        read_image(path).pixels / 255 for path in (tmp_path / "restored.png", demo.BLURRED, demo.TRUTH)
    )
    before, after = psnr(blurred, truth), psnr(restored, truth)
    assert after > before
    assert told["PSNR"] == f"{before:.2f} dB before, {after:.2f} dB after ({after - before:+.2f} dB)"
    height, width = truth.shape[:2]
    assert read_image(tmp_path / "before_after.png").pixels.shape == (CAPTION + height, 2 * width + 6, 3)
    assert read_image(tmp_path / "crops.png").pixels.shape == (demo.CROP, 3 * demo.CROP + 12, 3)
    assert after - before > 1.5  # a difference that a person sees


def test_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "run", lambda out: {"picture": str(out)})
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path)])
    assert (result.exit_code, result.stdout) == (0, f"picture     {tmp_path}\n")


def test_missing_weights_are_one_sentence(monkeypatch):
    monkeypatch.setattr("swintormer.checkpoint.checkpoint.__file__", "/nowhere/weights.py")
    result = CliRunner().invoke(app, ["demo"])
    assert result.exit_code == 1
    assert "weights that ship with swintormer are missing" in result.stderr
    assert result.stderr.count("\n") == 1
