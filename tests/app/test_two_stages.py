"""bench/two_stages.py: both stages and the controls for a few steps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_files import photo
from priors import NETWORK, TINY
from priors import tiny as tiny_prior

from bench import ablation, two_stages
from swintormer import Deblurrer, Swintormer, read_checkpoint
from swintormer.checkpoint.checkpoint import save_checkpoint
from swintormer.evaluation.scores import Network
from swintormer.prior.checkpoint import make_prior, save_prior
from swintormer.training.data import validation_source

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
LINES = (
    "not trained further",
    "stage 1, z of the truth",
    "equal steps, stage 1",
    "equal steps",
    "stage 2, z_0 sampled",
    "stage 2, z_0 left out",
    "equal MACs",
    "stage 1 as long, z of the truth",
)


@pytest.fixture
def words(tmp_path, monkeypatch):
    """The command's arguments in the temporary folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SWINTORMER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(ablation, "FAULTS", ablation.FAULTS[:2])
    monkeypatch.setattr(two_stages, "RECIPE", {"fourier": 0.1})
    for seed in range(2):
        photo(f"photos/{seed}.png", side=(180, 200), seed=seed)
    sizes = NETWORK.model_dump() | {"prior_channels": 0}
    save_checkpoint(Swintormer(**sizes), "initial.safetensors")
    save_prior(tiny_prior(), Path("prior.safetensors"))
    table = "\n".join(f"{name} = {json.dumps(value)}" for name, value in sizes.items())
    Path("run.toml").write_text(
        'out = "unused"\nbatch = 2\ncrop = 32\nscene_side = 192\nvalidation = 2\nthreads = 1\nlr = 0.01\nclip = 1.0\n'
        f'device = "cpu"\n[network]\n{table}\n'
    )
    weights = ["--initial", "initial.safetensors", "--prior-weights", "prior.safetensors"]
    few = ["--photographs", "2", "--side", "40", "--config", "run.toml", *weights]
    return ["--photos", "photos", "--steps", "2", "3", "--out", "out", *few]


def test_the_table_and_how_it_goes_on(words, monkeypatch, capsys):
    assert two_stages.main(words) == 0
    printed = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines()[2:10]]
    assert tuple(row[0] for row in rows) == LINES
    assert [row[2] for row in rows] == ["0", "2", "2", "5", "5", "5", "5", "5"]
    compared = [["±" in cell for cell in row[4:]] for row in rows]
    assert compared[:3] == [[False, False], [True, False], [False, False]]
    assert compared[3:] == [[False, True], [True, True], [True, True], [True, False], [True, True]]
    assert "share of the variance" in printed
    assert Path("out/table.md").read_text() in printed
    monkeypatch.setattr(ablation, "train", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr(Network, "__call__", lambda *_: pytest.fail("measured again"))
    assert two_stages.main(words) == 0
    assert capsys.readouterr().out == printed


def test_what_learns_in_which_stage(words):
    """E1 and network in stage 1, in stage 2 the network, denoiser and encoder of the prior, towards E1's z."""
    experiment = two_stages.parse(words)
    runs = []
    for config, make in ((experiment.first, two_stages.FirstRun), (experiment.second, two_stages.SecondRun)):
        run = make(config, CPU)
        before = {name: tensor.clone() for name, tensor in run.net.state_dict().items()}
        batches = run.batches(0)
        for _ in range(2):  # fusion begins with zeros, so E1 learns from the second step on
            run.train_step(*next(batches))
        after = run.net.state_dict()
        moved = {".".join(name.split(".")[:3]) for name in before if not torch.equal(before[name], after[name])}
        runs.append((run, {name for name in moved if not name.startswith("network")}, moved))
    (first, others, moved), (second, of_prior, moved_too) = runs
    assert "network.prior_fusion.latent" in moved & moved_too
    assert others == {"encoder.encoder.layers"}
    assert "prior.autoencoder.encoder" in of_prior
    assert any(name.startswith("prior.denoiser") for name in of_prior)
    assert not any(name.startswith("prior.autoencoder.decoder") for name in of_prior)

    blurred, sharp = first.validation.batch(0, 1)
    encoder = two_stages.PairEncoder.beside(experiment.second.initial, TINY)
    z = encoder(blurred, sharp)
    assert z.shape == (1, TINY.latent_channels, 4, 4)
    assert torch.equal(second.truth(blurred, sharp), z)
    assert not torch.equal(encoder(blurred, blurred), z)
    trained = read_checkpoint(experiment.second.initial).net
    assert all(torch.equal(trained.state_dict()[name], tensor) for name, tensor in _first_network(second).items())


def test_stage_one_goes_on_with_its_encoder(words):
    experiment = two_stages.parse(words)
    run = two_stages.FirstRun(experiment.first_longer, CPU)
    known = two_stages.PairEncoder.beside(experiment.first_longer.initial, TINY).state_dict()
    before = {name: tensor.clone() for name, tensor in run.net.encoder.state_dict().items()}
    assert all(torch.equal(known[name], tensor) for name, tensor in before.items())
    run.train_step(*next(run.batches(0)))
    assert not all(torch.equal(before[name], tensor) for name, tensor in run.net.encoder.state_dict().items())


def _first_network(run) -> dict[str, torch.Tensor]:
    return type(run)(run.config, CPU).net.network.state_dict()


def test_stage_one_is_measured_with_its_own_z(words):
    """A picture of one tile as the run itself restores it in training; another truth gives another result."""
    experiment = two_stages.parse(words)
    weights = ablation.trained_weights(experiment.first, two_stages.FirstRun)
    run = two_stages.FirstRun(experiment.first, CPU)
    run.load(weights.with_name("state.safetensors"))
    run.net.load_state_dict(run.average)
    run.net.network.prior_fusion.latent.weight.data.normal_()
    blurred, sharp = validation_source(experiment.first).batch(0, 1)
    encoder = two_stages.PairEncoder.beside(weights, TINY)
    latent = two_stages.TrueLatent(make_prior(TINY), encoder)
    deblur = Deblurrer(run.net.network, tile=32, prior=latent, precision="float32")
    results = []
    for truth in (sharp, sharp.flip(3)):
        picture = truth[0].permute(1, 2, 0).numpy()
        assert [name for name, _ in latent.following(iter([("one", picture)]), 32)] == ["one"]
        results.append(deblur(blurred))
        with torch.inference_mode():
            expected = run.restored(blurred, truth)[0]
        torch.testing.assert_close(results[-1], expected, rtol=0, atol=1e-5)
    assert not torch.allclose(*results, rtol=0, atol=1e-5)
    gray = np.zeros((50, 45, 1), np.float32)
    list(latent.following(iter([("gray", gray)]), 40))
    assert latent.truth.shape == (1, 3, 40, 40)


def test_controls_see_the_same_pairs(words):
    experiment = two_stages.parse(words)
    experiment.control("equal_steps")
    stages = experiment.first, experiment.second
    for number, stage in enumerate(stages, 1):
        recipe = json.loads(
            read_checkpoint(Path("out") / f"equal_steps_{number}" / "weights.safetensors").card["recipe"]
        )
        for name in ("seed", "data", "steps", "batch", "crop", "lr", "fourier"):
            assert recipe[name] == json.loads(stage.model_dump_json())[name]
    assert stages[0].seed != stages[1].seed


def test_the_larger_network_begins_as_the_same_function(words):
    """Blocks up to the multiplications of network and prior; they alone learn faster, and all learn."""
    experiment = two_stages.parse(words)
    known, goal = NETWORK.num_refinement_blocks, two_stages.macs(experiment.with_fusion, TINY)
    distances = {
        count: abs(
            two_stages.macs(NETWORK.model_copy(update={"num_refinement_blocks": count, "prior_channels": 0})) - goal
        )
        for count in range(known + 1, known + 9)
    }
    assert experiment.larger.num_refinement_blocks == min(distances, key=distances.__getitem__)

    net = two_stages.enlarged(experiment.base.initial, experiment.larger)
    image = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(net(image), read_checkpoint(experiment.base.initial).net(image), rtol=0, atol=1e-6)

    weights = experiment.control("equal_macs", larger=True)
    after = read_checkpoint(weights).net
    assert after.config == experiment.larger
    assert all(block.ffn.project_out.weight.any() for block in after.refinement)
    config = experiment.base.model_copy(update={"network": experiment.larger, "initial": weights})
    slow, fast = two_stages.ControlRun(known, config, CPU).optimizer.param_groups
    assert fast["rate"] == two_stages.RATE
    assert "rate" not in slow or slow["rate"] == 1
    assert len(fast["params"]) == len(list(after.refinement[known:].parameters()))
