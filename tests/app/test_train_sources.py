"""`swintormer train` on tiny folders in the layouts of the published datasets, and on photographs."""

import os
import signal

import dataset_folders
import pytest
import torch
from dataset_folders import picture, pictures
from safetensors import safe_open
from typer.testing import CliRunner

from swintormer.checkpoint.checkpoint import checkpoint_info, load_checkpoint
from swintormer.cli.app import app
from swintormer.data.datasets import LAYOUTS
from swintormer.training.config import read_config
from swintormer.training.run import Run

SIDE = 36  # of the pictures; a crop takes 32
RUN = """
out = "run"
steps = 2
batch = 2
crop = 32
validation = 1
checkpoint_every = 1
device = "cpu"
[network]
in_channels = {channels}
dim = 4
num_blocks = [1, 1, 1, 1]
num_refinement_blocks = 1
heads = [1, 1, 1, 1]
window_size = 2
[data]
cache = "cache"
"""

MAKE = {
    "dpdd": lambda root: dataset_folders.dpdd(root, side=SIDE),
    "realdof": lambda root: pictures(root, ["source/1.png", "target/1.png"], SIDE),
    "gopro": lambda root: dataset_folders.gopro(root, side=SIDE),
    "hide": lambda root: dataset_folders.hide(root, side=SIDE),
    "realblur": lambda root: dataset_folders.realblur(root, side=SIDE),
    "reds": lambda root: dataset_folders.reds(root, side=SIDE),
    "rsblur": lambda root: dataset_folders.rsblur(root, side=SIDE),
    "folders": lambda root: pictures(root, ["blurred/a/1.png", "sharp/a/1.jpg"], SIDE),
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(here, data, channels=3):
    (here / "c.toml").write_text(RUN.format(channels=channels) + data)
    return CliRunner().invoke(app, ["train", "c.toml"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_trains(here, layout):
    MAKE[layout](here / "set")
    split = "test" if layout == "realdof" else "train"
    result = run(here, f'pairs = {{layout = "{layout}", root = "set", split = "{split}"}}')
    assert result.exit_code == 0, result.output
    assert layout in str(checkpoint_info(here / "run" / "weights.safetensors"))
    load_checkpoint(here / "run" / "weights.safetensors")


def test_recipe_in_the_file(here):
    pictures(here / "photos", ["1.png"], 130)
    data = 'photos = "photos"\ndegradation = "camera"\n[data.recipe]\nradius = [{}]\nfamilies = {{none = 0.3}}'
    assert run(here, data.format("0.4, 8.0")).exit_code == 0
    result = run(here, data.format("0.4, 80.0"))
    assert result.exit_code == 1
    assert "radius must be two rising numbers within 0 and 15, found 0.4, 80.0" in " ".join(result.output.split())


def test_dual_pixel_views_train_six_channels(here):
    dataset_folders.dpdd(here / "set", side=SIDE)
    result = run(here, 'views = true\npairs = {layout = "dpdd", root = "set"}', channels=6)
    assert result.exit_code == 0, result.output
    assert load_checkpoint(here / "run" / "weights.safetensors").config.in_channels == 6


def test_mixture_resumes_where_it_stopped(here, monkeypatch):
    """Photographs, scenes and pairs, in camera degradation: the same weights with an interruption as without."""
    pictures(here / "photos", [f"{i}.png" for i in range(3)], 130)
    pictures(here / "set", ["blurred/1.png", "sharp/1.png"], SIDE)
    data = (
        'photos = "photos"\nscenes = 0.5\ndegradation = "camera"\n'
        'pairs = [{layout = "folders", root = "set", share = 0.5}]'
    )
    assert run(here, data).exit_code == 0
    (here / "run").rename(here / "whole")
    original = Run.train_step

    def interrupted(self, blurred, sharp):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(self, blurred, sharp)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "train_step", interrupted)
        assert run(here, data).exit_code == 128 + signal.SIGTERM
    assert not (here / "run" / "weights.safetensors").exists()
    assert run(here, data).exit_code == 0
    with (
        safe_open(here / "run/weights.safetensors", "pt") as a,
        safe_open(here / "whole/weights.safetensors", "pt") as b,
    ):
        for key in a.keys():  # noqa: SIM118
            assert torch.equal(a.get_tensor(key), b.get_tensor(key))


def test_faults_of_the_data_are_one_sentence(here):
    picture(here / "photos" / "small.png", side=16)
    for data, sentence in (
        ('photos = "none"', "There is no folder none: give a folder of sharp photographs."),
        ('photos = "photos"', "None of the 1 photographs has 78 pixels a side"),
        ('pairs = {layout = "gopro", root = "photos"}', "photos does not hold the layout gopro: looked for"),
        ('pairs = {layout = "goppro", root = "photos"}', "c.toml sets `data.pairs.0.layout` to 'goppro'"),
        ("scenes = 0.0", "there is no source of pairs"),
    ):
        result = run(here, data)
        assert result.exit_code == 1, data
        assert sentence in " ".join(result.output.split())
        assert not list(here.glob("run/*"))


@pytest.mark.parametrize("name", ["photos", "photos_further", "gpu", "walls"])
def test_configurations_for_photographs(request, name):
    """They run as they say, once `photos` names a folder and `initial` weights."""
    config = read_config(request.config.rootpath / "configs" / f"{name}.toml")
    assert config.data.degradation == "camera"
    assert (config.data.scenes_share, config.crop) == ((0.03, 256) if name in ("gpu", "walls") else (0.1, 128))
    assert (config.data.walls > 0) == (name in ("gpu", "walls"))
    assert (config.initial is None) == (name == "photos")
