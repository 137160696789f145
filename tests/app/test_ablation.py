"""bench/ablation.py: a table of small networks, each trained for a few steps."""

from __future__ import annotations

import json
import math
import shutil
import statistics
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from cli_files import TINY
from priors import NETWORK
from priors import tiny as tiny_prior
from safetensors.torch import load_file

from bench import ablation, deconvolved
from swintormer import Swintormer, read_checkpoint, save_checkpoint
from swintormer.checkpoint.checkpoint import Checkpoint
from swintormer.evaluation.metrics import psnr
from swintormer.model import network
from swintormer.training.data import validation_source
from swintormer.training.run import first_network

pytestmark = pytest.mark.usefixtures("one_thread")
SIZES = TINY.model_copy(update={"num_blocks": (2, 1, 1, 1)})  # the second block shifts


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """The command in the temporary folder, on two small photographs; the lines of its table."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ablation, "FAULTS", ablation.FAULTS[:2])
    table = "\n".join(f"{name} = {json.dumps(value)}" for name, value in SIZES.model_dump().items())
    Path("run.toml").write_text(
        f'out = "unused"\nsteps = 2\nbatch = 1\ncrop = 32\nscene_side = 128\nvalidation = 2\nthreads = 1\nlr = 0.01\n'
        f"[network]\n{table}\n"
    )
    torch.manual_seed(0)
    save_checkpoint(Swintormer(TINY), "tiny.safetensors", training_tile=32)

    def call(*words: str, code: int = 0):
        few = ["--photographs", "2", "--side", "40", "--weights", "tiny.safetensors"]
        assert ablation.main(["--config", "run.toml", "--out", "out", *few, *words]) == code
        result = capsys.readouterr()
        if code:
            return result.err
        return [[cell.strip() for cell in line.strip("|").split("|")] for line in result.out.splitlines()[2:]]

    return call


def test_rows_are_trained_and_measured(run):
    lines = run("--rows", "shift,tile,stride")
    assert [line[:2] for line in lines] == [
        ["shift", "windows shifted"],
        ["shift", "not shifted"],
        ["tile", "trained on 32, tile 32"],
        ["tile", "trained on 16, tile 32"],
        ["tile", "trained on 32, tile 64"],
        *(["stride", f"tile {t}, stride {s}"] for t, s in ((32, 28), (32, 32), (32, 16), (16, 14), (64, 55))),
    ]
    assert all(line[3] == "2" for line in lines)
    assert lines[0][4] == lines[2][4]  # the same network with the same tile
    assert [line[6] for line in lines[:5]] == ["2"] * 5
    assert [line[6] for line in lines[5:]] == [""] * 5
    for first in (0, 2, 5):
        assert lines[first][5] == ""
        assert "±" in lines[first + 1][5]
    assert (Path("out") / "table.md").read_text().count("\n") == 2 + len(lines)


def test_an_ablation_goes_on_and_trains_nothing_twice(run, monkeypatch):
    first = run("--rows", "shift")
    monkeypatch.setattr(ablation, "train", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr(ablation, "network_methods", lambda *_, **__: {"network": lambda _: pytest.fail("again")})
    assert run("--rows", "shift") == first
    error = run("--rows", "shift", "--minutes", "7", code=1)
    assert "is of another configuration, `minutes` null -> 7.0: name another folder" in error


def test_settings_that_came_later_make_no_other_configuration(run):
    run("--rows", "rate")
    path = Path("out/base/weights.safetensors")
    net, card = read_checkpoint(path).net, read_checkpoint(path).card
    recipe = json.loads(card["recipe"])
    del recipe["reuse"], recipe["graph"], recipe["loss"], recipe["data"]["walls"]
    save_checkpoint(net, path, training_tile=32, card=card | {"recipe": json.dumps(recipe)})
    before = path.read_bytes()
    shutil.rmtree("out/scores")  # they are of the file's digest
    run("--rows", "rate")
    assert path.read_bytes() == before


def test_an_interrupted_training_goes_on(run, monkeypatch):
    train = ablation.train

    def interrupted(config, stopped_by, make):
        stopped_by.append(2)
        return config.out / "state.safetensors"

    monkeypatch.setattr(ablation, "train", interrupted)
    assert "the same command goes on" in run("--rows", "shift", code=130)
    monkeypatch.setattr(ablation, "train", train)
    assert len(run("--rows", "shift")) == 2


def test_windows_that_do_not_shift():
    with ablation.windows(shifted=False):
        fixed = Swintormer(SIZES)
    usual = Swintormer(SIZES)
    shifts = [{block.shift for block in net.encoder_level1} for net in (fixed, usual)]
    assert shifts == [{0}, {0, SIZES.window_size // 2}]
    assert network.Block is type(usual.encoder_level1[0])


def test_crops_grow(run):
    text = Path("run.toml").read_text()
    Path("run.toml").write_text(text.replace("steps = 2", "steps = 10").replace("batch = 1\n", "batch = 4\n"))
    lines = run("--rows", "schedule")
    assert [line[1] for line in lines] == ["crops of 32, tile 64", "crops of 32, then of 64", "crops of 64"]
    recipe = json.loads(read_checkpoint("out/crops_grow/weights.safetensors").card["recipe"])
    assert recipe["crops"] == [{"steps": 7, "crop": 32, "batch": 4}]
    assert (recipe["steps"], recipe["crop"], recipe["batch"]) == (10, 64, 1)
    assert read_checkpoint("out/crops_grow/weights.safetensors").card["pairs"] == str(7 * 4 + 3)


def test_a_schedule_that_cannot_be_made_is_refused(run):
    assert "batch a multiple of 4" in run("--rows", "schedule", code=1)
    text = Path("run.toml").read_text()
    Path("run.toml").write_text(text.replace("batch = 1\n", "batch = 4\n"))
    assert "add --paced" in run("--rows", "schedule", "--minutes", "1", code=1)


def test_deconvolved_views(run, monkeypatch):
    lines = run("--rows", "deconvolved")
    assert [line[1] for line in lines] == ["the picture", "and deconvolved views"]
    weights = load_file("out/deconvolved/weights.safetensors")
    assert weights["patch_embed.proj2.weight"].shape[1] == 4 * (3 + deconvolved.VIEWS)
    assert network.PatchEmbed is type(Swintormer(TINY).patch_embed)
    # Taken up again, the network that was trained is made with its views, not retrained.
    monkeypatch.setattr(ablation, "train", lambda *_, **__: pytest.fail("trained again"))
    assert run("--rows", "deconvolved") == lines


@pytest.mark.parametrize("blur", range(deconvolved.VIEWS))
def test_the_view_of_a_blur_undoes_it(blur):
    """A picture blurred by one of the bank comes nearer to the sharp one in that view than in the blurred picture."""
    kernel = torch.from_numpy(deconvolved.kernels()[blur])
    assert kernel.shape[0] % 2 == 1
    torch.testing.assert_close(kernel, kernel.flip(0, 1))  # symmetric, so its transform is real
    torch.manual_seed(blur)
    sharp = F.interpolate(torch.rand(1, 1, 24, 24), (96, 80), mode="bicubic")
    padded = F.pad(sharp, (kernel.shape[0] // 2,) * 4, mode="reflect")
    blurred = F.conv2d(padded, kernel[None, None])
    with deconvolved.embedded():
        embed = Swintormer(TINY).patch_embed
    view = embed.views(blurred.expand(1, 3, -1, -1))[:, blur : blur + 1]
    inner = (..., slice(16, -16), slice(16, -16))
    before, after = ((x - sharp)[inner].square().mean() for x in (blurred, view))
    assert after < 0.5 * before


def test_the_prior_is_trained_along(run):
    save_checkpoint(Checkpoint(Swintormer(NETWORK), tiny_prior()), "prior.safetensors")
    lines = run("--rows", "prior", "--prior-weights", "prior.safetensors")
    assert [line[1] for line in lines] == ["without z_0", "with z_0"]
    assert read_checkpoint("out/prior/weights.safetensors").prior is not None


def test_views(run):
    """Dual-pixel pairs need the degradation of a camera: both networks are trained with it."""
    lines = run("--rows", "views")
    assert [line[1] for line in lines] == ["one view", "two views"]
    assert [line[3] for line in lines] == ["2", "2"]
    assert "±" in lines[1][5]
    assert read_checkpoint("out/views/weights.safetensors").net.config.in_channels == 6
    text = Path("run.toml").read_text()
    Path("run.toml").write_text(text.replace("[network]", '[data]\ndegradation = "camera"\n[network]'))
    ablation_of_camera, _ = ablation.parse(["--config", "run.toml", "--out", "out"])
    assert ablation_of_camera.variants("views")[0].trained == ablation.Trained()


def test_gains_of_views_are_over_the_picture_of_one_view(run):
    """A network that changes nothing returns the right view."""
    asked, _ = ablation.parse(["--config", "run.toml", "--out", "out"])
    one, two = (variant.trained for variant in asked.variants("views"))
    config = asked.config(two)
    sources = [validation_source(each) for each in (asked.config(one), config)]
    found = ablation.validation_gains(asked, two, Checkpoint(first_network(config)), tile=32)
    for (name, gain), index in zip(found.items(), range(2), strict=True):
        (picture, truth), (views, same) = (source.batch(index, 1) for source in sources)
        assert name.split()[0] == str(index)
        assert torch.equal(truth, same)
        before, after = (psnr(image.numpy(), truth[0].numpy()) for image in (picture[0], views[0, 3:]))
        rounding = 2 * torch.finfo(torch.float32).eps  # of a value on its way through the network, and what it alters
        assert gain == pytest.approx(after - before, abs=20 / math.log(10) * rounding * 10 ** (after / 20))


def test_rows_of_the_recipe(run):
    lines = run("--rows", "loss,width")
    assert [line[1] for line in lines] == ["base", "L1 and 0.1 Fourier", "PSNR", "base", "D 16", "D 32"]
    assert read_checkpoint("out/D_16/weights.safetensors").net.config.dim == 16
    assert json.loads(read_checkpoint("out/L1_and_0.1_Fourier/weights.safetensors").card["recipe"])["fourier"] == 0.1
    assert json.loads(read_checkpoint("out/PSNR/weights.safetensors").card["recipe"])["loss"] == "psnr"
    assert float(lines[5][2]) > float(lines[4][2]) > 0


def test_a_budget_of_minutes_is_a_number_of_steps(run, monkeypatch):
    monkeypatch.setattr(ablation, "seconds_a_step", lambda config: 15 if config.network.dim == 16 else 20)
    paced = ["--rows", "width", "--paced", "--minutes", "1"]
    lines = run(*paced)
    assert [line[6] for line in lines] == ["3", "4", "3"]
    monkeypatch.setattr(ablation, "seconds_a_step", lambda _: pytest.fail("measured again"))
    assert run(*paced) == lines
    assert "--paced needs --minutes" in run("--paced", code=1)


def test_a_step_is_measured(run):
    asked, _ = ablation.parse(["--config", "run.toml", "--out", "out"])
    assert 0 < ablation.seconds_a_step(asked.config(ablation.Trained())) < math.inf
    assert not Path("out").exists()


def test_photographs_need_a_folder(run):
    assert "--photos" in run("--rows", "data", code=1)
    asked, _ = ablation.parse(["--config", "run.toml", "--out", "out", "--photos", "some"])
    data = asked.config(asked.variants("data")[1].trained).data
    assert (data.photos, data.photos_share, data.scenes) == ((Path("some"),), 0.5, 0.5)
    text = Path("run.toml").read_text()
    Path("run.toml").write_text(text.replace("[network]", '[data]\nphotos = "own"\n[network]'))
    asked, _ = ablation.parse(["--config", "run.toml", "--out", "out"])
    assert asked.config(asked.variants("data")[1].trained).data.photos == (Path("own"),)


def test_a_variant_is_measured_in_tiles_of_its_crops(run):
    Path("run.toml").write_text(Path("run.toml").read_text().replace("scene_side = 128", ""))
    asked, _ = ablation.parse(["--config", "run.toml", "--out", "out"])
    for row in ablation.RECIPE.keys() - {"data"}:
        for variant in asked.variants(row):
            assert variant.tile == asked.config(variant.trained).crop


def test_what_cannot_be_asked_for(run):
    assert "There is no row 'colour'" in run("--rows", "colour", code=1)
    Path("run.toml").write_text('stage = "autoencoder"\nout = "unused"\n')
    assert "is of stage autoencoder" in run(code=1)


def test_standard_errors():
    assert ablation.with_error([]) == "-"
    assert ablation.with_error([1.0]) == "+1.000"
    values = [1.0, 2.0, 4.0]
    error = statistics.stdev(values) / math.sqrt(3)
    assert ablation.with_error(values) == f"+2.333 ± {error:.3f}"
