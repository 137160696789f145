"""What a run shows of itself: log, curves, a picture of validation pairs, TensorBoard."""

from __future__ import annotations

import sys
from itertools import pairwise
from types import ModuleType
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from tiny_training import log, tiny

from swintormer.images.reading import read_image
from swintormer.training import report
from swintormer.training.curves import HEIGHT, PANELS, POINTS, draw
from swintormer.training.loop import train
from swintormer.training.report import GAP, sheet
from swintormer.training.run import RestorationRun

pytestmark = pytest.mark.usefixtures("one_thread")
SVG = "{http://www.w3.org/2000/svg}"


def polylines(text: str) -> list[list[tuple[float, float]]]:
    found = ElementTree.fromstring(text).iter(f"{SVG}polyline")
    return [[tuple(map(float, point.split(","))) for point in line.get("points").split()] for line in found]


def test_every_validation_shows_pairs_and_curves(tmp_path) -> None:
    config = tiny(tmp_path / "run", steps=3, validation=5, validate_every=2)
    train(config)
    picture = read_image(config.out / "validation.png").pixels
    assert picture.shape == (4 * 32 + 3 * GAP, 3 * 32 + 2 * GAP, 3)
    run = RestorationRun(config, torch.device("cpu"))
    for row in range(4):
        blurred, sharp = run.validation.batch(row, 1)
        for column, pair in ((0, blurred), (2, sharp)):
            y, x = row * (32 + GAP), column * (32 + GAP)
            shown = picture[y : y + 32, x : x + 32] / 255
            assert np.abs(shown - pair[0].permute(1, 2, 0).numpy()).max() <= 0.5 / 255 + np.finfo(np.float32).eps
    lines = polylines((config.out / "curves.svg").read_text())
    assert [len(line) for line in lines] == [3, 2, 2, 3]  # loss, PSNR restored and of the input, learning rate
    assert not [path for path in config.out.iterdir() if path.name.startswith(".")]


def test_pictures_are_clamped_and_on_white() -> None:
    pictures = tuple(torch.full((3, 2, 2), value) for value in (-1.0, 0.5, 2.0))
    pixels = sheet([pictures, pictures])
    assert pixels.shape == (4 + GAP, 6 + 2 * GAP, 3)
    assert [int(pixels[0, x, 0]) for x in (0, 2, 2 + GAP, 4 + GAP, 4 + 2 * GAP)] == [0, 255, 128, 255, 255]
    assert (pixels[2 : 2 + GAP] == 255).all()


def test_curves_follow_the_log() -> None:
    rows = [{"step": str(k), "loss": str(10.0**-k), "lr": "1e-3", "val_psnr": "", "x": "y"} for k in range(1, 5)]
    rows += [{"step": "broken"}, {"step": "5", "loss": "nan"}, {"step": "6", "loss": None}]
    loss, rate = polylines(draw(rows))
    heights = [y for _, y in loss]
    steps = [b - a for a, b in pairwise(heights)]
    assert all(step == pytest.approx(steps[0], abs=0.2) for step in steps)  # a straight line; written to 0.1 pixel
    assert steps[0] > 0  # downwards
    assert len({y for _, y in rate}) == 1
    assert "nothing so far" in draw(rows)
    assert draw([]).count("nothing so far") == len(PANELS)


def test_long_logs_are_averaged_in_groups() -> None:
    rows = [{"step": str(k), "loss": "1" if k % 2 else "3"} for k in range(4 * POINTS)]
    (line,) = polylines(draw(rows))
    assert len(line) == POINTS
    assert {y for _, y in line} <= {float(HEIGHT // 2)}  # all are 2: a constant lies in the middle


def test_share_of_the_time_without_data(tmp_path, monkeypatch, capsys) -> None:
    """A clock that data moves by 3 and a step by 1: three quarters."""
    now = [0.0]

    class Slow(RestorationRun):
        def batches(self, start):
            for pairs in super().batches(start):
                now[0] += 3
                yield pairs

        def train_step(self, blurred, sharp):
            now[0] += 1
            return super().train_step(blurred, sharp)

    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("swintormer.training.loop.RestorationRun", Slow)
    config = tiny(tmp_path / "run", steps=4, log_every=2)
    train(config)
    assert [row["data_wait"] for row in log(config)] == ["0.750", "0.750"]
    assert "waited for data 75.0% of the time" in capsys.readouterr().err


def test_tensorboard_gets_scalars_and_pictures_where_it_is_installed(tmp_path, monkeypatch) -> None:
    calls = []

    class Writer:
        def __init__(self, folder, purge_step):
            calls.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            calls.append((name, value, step))

        def add_image(self, name, pixels, step, dataformats):
            calls.append((name, pixels.shape[2], step, dataformats))

        def close(self):
            calls.append("closed")

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    config = tiny(tmp_path / "run", steps=2, validate_every=2)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    train(config)
    assert calls[0] == (str(config.out / "tensorboard"), 1)
    rows = log(config)
    assert ("loss", float(rows[0]["loss"]), 1) in calls
    assert ("val_psnr", float(rows[1]["val_psnr"]), 2) in calls
    assert ("input, output, truth", 3, 2, "HWC") in calls
    assert calls[-1] == "closed"
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # not installed
    assert report._board(config, 0) is None
