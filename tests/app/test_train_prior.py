"""The stages of the prior at tiny size: each learns, resumes exactly, and hands on to the next."""

from __future__ import annotations

import csv
import os
import signal
from pathlib import Path

import pytest
import torch
from priors import NETWORK, TINY, tiny
from pydantic import ValidationError
from safetensors import safe_open

from swintormer import Deblurrer, Swintormer, load_checkpoint, read_checkpoint, save_checkpoint
from swintormer.data import SyntheticPairs
from swintormer.errors import SwintormerError
from swintormer.model.config import PRESETS
from swintormer.prior.checkpoint import load_prior, save_prior
from swintormer.prior.config import PRIORS
from swintormer.training.config import CONFIGS, StageConfig, read_config
from swintormer.training.loop import make_run, train
from swintormer.training.losses import fourier_loss, l1_loss, psnr_loss
from swintormer.training.run import Run
from swintormer.training.stages import STAGES, target

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
OF_IMAGES = ["restoration", *(stage for stage in STAGES if stage != "denoiser")]


@pytest.fixture
def given(tmp_path) -> dict[str, Path]:
    """What the stages before would have left."""
    save_prior(tiny(), tmp_path / "prior.safetensors")
    torch.manual_seed(1)
    save_checkpoint(Swintormer(NETWORK, prior_channels=0), tmp_path / "net.safetensors")
    return {"prior_weights": tmp_path / "prior.safetensors", "initial": tmp_path / "net.safetensors"}


def config(stage: str, out: Path, given: dict[str, Path], **changes: object) -> StageConfig:
    values = {"network": NETWORK, "prior": TINY, "out": out, "seed": 1, "steps": 4, "batch": 2, "crop": 32}
    values |= {"scene_side": 96, "lr": 1e-3, "clip": 1.0, "validation": 1, "log_every": 1, "checkpoint_every": 1}
    values |= {"pool": 20, "latent": 0.1, "fourier": 0.1, "device": "cpu", "validate_every": 2}
    made = CONFIGS[stage]
    return made(**{name: value for name, value in (values | given).items() if name in made.model_fields} | changes)


def log(out: Path) -> list[dict[str, str]]:
    with (out / "log.csv").open() as file:
        return [row | {"minutes": "", "data_wait": ""} for row in csv.DictReader(file)]


def tensors(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("stage", ["restoration", *STAGES])
def test_interrupted_and_resumed_is_the_same_run(stage: str, tmp_path, given, monkeypatch, capsys) -> None:
    """Losses, gradient norms, learning rates, weights, averages and optimiser, bit for bit."""
    whole, cut = (config(stage, tmp_path / name, given) for name in ("whole", "cut"))
    result = train(whole)
    original = Run.train_step

    def interrupted(run, blurred, sharp):
        result = original(run, blurred, sharp)
        if run.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Run, "train_step", interrupted)
        assert train(cut) == cut.out / "state.safetensors"
    assert "after step 2; the same command continues" in capsys.readouterr().err
    assert not (cut.out / "weights.safetensors").exists()
    assert train(cut) == cut.out / "weights.safetensors"
    assert log(whole.out) == log(cut.out)
    assert same(tensors(whole.out / "state.safetensors"), tensors(cut.out / "state.safetensors"))
    assert same(tensors(result), tensors(cut.out / "weights.safetensors"))


def test_each_stage_hands_on_to_the_next(tmp_path, given) -> None:
    first = train(config("autoencoder", tmp_path / "1", {}, steps=2))
    second = train(config("denoiser", tmp_path / "2", {"prior_weights": first}, steps=2))
    before, after = load_prior(first).state_dict(), load_prior(second).state_dict()
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"denoiser"}
    third = train(config("joint", tmp_path / "3", {**given, "prior_weights": second}, steps=2, training_tile=64))
    found = read_checkpoint(third)
    net = found.net
    assert net.config == NETWORK
    assert found.training_tile == 64
    last = found.prior.state_dict()
    moved = {".".join(name.split(".")[:2]) for name in last if not torch.equal(last[name], after[name])}
    assert "autoencoder.encoder" in moved
    assert "autoencoder.decoder" not in moved
    assert any(name.startswith("denoiser") for name in moved)
    assert net.prior_fusion.latent.weight.any()
    picture = torch.rand(1, 3, 32, 32)
    assert not torch.equal(Deblurrer(found)(picture), Deblurrer(net)(picture))


@pytest.mark.parametrize("stage", STAGES)
def test_loss_falls(stage: str, tmp_path, given) -> None:
    """On two pairs, seen again and again. The noise of the steps is drawn anew: means of five are compared."""
    changes = {"prior_dropout": 0.0} if stage == "joint" else {}
    run = make_run(config(stage, tmp_path, given, lr=1e-2, steps=10**6, **changes), CPU)
    first, second = next(run.batches(0))
    losses = [float(run.train_step(first, second)[0]) for _ in range(30)]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_joint_training_starts_from_what_the_network_restored(tmp_path, given) -> None:
    run = make_run(config("joint", tmp_path, given), CPU)
    picture = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        output, untouched = run.shown(picture, picture)
        assert torch.equal(output, load_checkpoint(given["initial"])(picture))
    assert untouched is picture


def test_dropped_steps_train_the_network_without_prior(tmp_path, given) -> None:
    run = make_run(config("joint", tmp_path, given, prior_dropout=0.999999, latent=0.0), CPU)
    run.train_step(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32))
    assert all(p.grad is None or not p.grad.any() for p in run.net.network.prior_fusion.parameters())
    assert any(p.grad is not None and p.grad.any() for p in run.net.network.encoder_level1.parameters())


def test_rate_of_what_is_new(tmp_path, given) -> None:
    run = make_run(config("joint", tmp_path, given, prior_rate=3.0), CPU)
    run.train_step(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32))
    old, new = run.optimizer.param_groups
    assert new["lr"] == 3 * old["lr"]
    fusion = {id(p) for p in run.net.network.prior_fusion.parameters()}
    assert fusion <= {id(p) for p in new["params"]}
    assert not fusion & {id(p) for p in old["params"]}
    assert len(old["params"]) + len(fusion) == len(list(run.net.network.parameters()))
    decoder = {id(p) for p in run.net.prior.autoencoder.decoder.parameters()}
    assert not decoder & {id(p) for p in new["params"]}


def test_the_pool_is_made_of_pairs_and_the_step_decides(tmp_path, given) -> None:
    run = make_run(config("denoiser", tmp_path, given, steps=100, pool=5), CPU)
    conditions, latents = run.pool
    blurred, sharp = SyntheticPairs(1, 32, 96)[3]
    with torch.no_grad():
        expected = run.net.encode(torch.stack((blurred, sharp)))
    difference = torch.stack((conditions[3], latents[3])) - expected
    assert float(difference.abs().max()) <= 30 * 9 * 48 * torch.finfo().eps  # another batch, another order of sums
    batches = run.batches(0)
    drawn = [next(batches) for _ in range(8)]
    assert torch.equal(next(run.batches(7))[1], drawn[7][1])
    assert not torch.equal(drawn[6][1], drawn[7][1])


@pytest.mark.parametrize("kind", ["sample", "epsilon", "v_prediction"])
def test_a_denoiser_that_meets_its_target_leads_to_the_truth(kind: str) -> None:
    """The sampler, fed with the target of every step, ends at the latent that the target is of."""
    prior = tiny()
    prior.scheduler.register_to_config(prediction_type=kind)
    truth, noise = torch.randn(2, 1, 4, 6, 6).double()
    z = noise
    for step in prior.schedule(4):
        time = torch.tensor([step.time])
        # The noise that z and the truth imply; the first z is noise alone and not z_T of the truth.
        implied = (z - step.alpha_bar_t**0.5 * truth) / (1 - step.alpha_bar_t) ** 0.5
        z = prior.update(z, target(prior, truth, implied, time), step, 0.0, None)
    # diffusers' alpha-bars are float32, 4e-5 at the first step, and noise is divided by their root.
    assert float((z - truth).abs().max()) <= 1e-5 / 4e-5**0.5


@pytest.mark.parametrize("stage", OF_IMAGES)
@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_fourier_loss_takes_part_with_its_weight(stage: str, weight: float, tmp_path, given) -> None:
    run = make_run(config(stage, tmp_path, given, fourier=weight), CPU)
    output, target = torch.rand(2, 1, 3, 32, 32)
    expected = l1_loss(output, target) + weight * fourier_loss(output, target)
    assert torch.equal(run.image_loss(output, target), expected)


@pytest.mark.parametrize("stage", OF_IMAGES)
def test_the_loss_of_the_configuration_is_taken(stage: str, tmp_path, given) -> None:
    run = make_run(config(stage, tmp_path, given, loss="psnr", fourier=0.1), CPU)
    output, target = torch.rand(2, 1, 3, 32, 32)
    assert torch.equal(run.image_loss(output, target), psnr_loss(output, target) + 0.1 * fourier_loss(output, target))


@pytest.mark.parametrize(("name", "value"), [("perceptual", 0.1), ("fourier", 0.1), ("loss", "psnr")])
def test_the_stage_of_latents_takes_no_loss_of_images(name: str, value: float | str, tmp_path, given) -> None:
    with pytest.raises(ValidationError, match=f"stage denoiser has no setting `{name}`, it belongs to restoration"):
        config("denoiser", tmp_path, given, **{name: value})


@pytest.mark.parametrize(
    ("stage", "crop", "multiple"),
    [
        ("autoencoder", 36, 8),
        ("denoiser", 40, 16),
        ("joint", 40, 16),
    ],
)
def test_crops_are_whole_positions_of_the_latent(stage: str, crop: int, multiple: int, tmp_path, given) -> None:
    """What is refused, and that the crop it names instead trains."""
    sentence = f"Stage {stage} takes crops of a multiple of {multiple} pixels with this prior, found {crop}: set `crop`"
    with pytest.raises(SwintormerError, match=sentence) as error:
        make_run(config(stage, tmp_path, given, crop=crop), CPU)
    named = int(str(error.value).removesuffix(".").split()[-1])
    run = make_run(config(stage, tmp_path, given, crop=named), CPU)
    run.train_step(*next(run.batches(0)))
    run.validate()


@pytest.mark.parametrize("stage", ["denoiser", "joint"])
def test_a_prior_that_sees_the_picture_itself_is_not_trained(stage: str, tmp_path, given) -> None:
    sampling = TINY.sampling.model_copy(update={"condition": "image"})
    with pytest.raises(ValidationError, match=f"stage {stage} trains priors that see the blurred picture's latent"):
        config(stage, tmp_path, given, prior=TINY.model_copy(update={"sampling": sampling}))


def test_a_prior_of_another_configuration_is_refused(tmp_path, given) -> None:
    other = TINY.model_copy(update={"sampling": TINY.sampling.model_copy(update={"steps": 3})})
    with pytest.raises(SwintormerError, match="of another configuration"):
        make_run(config("denoiser", tmp_path, given, prior=other), CPU)


def test_settings_that_a_stage_needs(tmp_path, given) -> None:
    with pytest.raises(ValidationError, match="prior_weights\n  Field required"):
        config("denoiser", tmp_path, {})
    with pytest.raises(ValidationError, match="takes 0 channels of a prior that has 4"):
        config("joint", tmp_path, given, network=PRESETS["small"])
    with pytest.raises(ValidationError, match="choose one of compact, ldm-sr"):
        config("autoencoder", tmp_path, {}, prior="large")


def test_a_state_of_another_stage_is_refused(tmp_path, given) -> None:
    train(config("autoencoder", tmp_path / "run", {}, steps=1))
    with pytest.raises(SwintormerError, match="of other sizes"):
        train(config("restoration", tmp_path / "run", {}, steps=1))


@pytest.mark.parametrize("name", ["prior_autoencoder", "prior_denoiser", "prior_joint", "small_further"])
def test_the_recipes_are_valid(name: str) -> None:
    recipe = read_config(ROOT / "configs" / f"{name}.toml")
    assert recipe.crop % 16 == 0
    if name != "small_further":
        assert recipe.prior == PRIORS["compact"]
    else:
        joint = read_config(ROOT / "configs" / "prior_joint.toml")
        shared = (
            "initial",
            "seed",
            "steps",
            "batch",
            "crop",
            "lr",
            "min_lr",
            "warmup",
            "clip",
            "ema",
            "fourier",
            "dtype",
        )
        assert all(getattr(recipe, field) == getattr(joint, field) for field in shared)


@pytest.mark.parametrize(
    ("name", "weight"), [("small", 0.0), ("small_further", 0.5), ("prior_autoencoder", 0.5), ("prior_joint", 0.5)]
)
def test_the_recipes_state_their_losses(name: str, weight: float) -> None:
    recipe = read_config(ROOT / "configs" / f"{name}.toml")
    assert "fourier" in recipe.model_fields_set
    assert (recipe.fourier, recipe.perceptual) == (weight, 0.0)
