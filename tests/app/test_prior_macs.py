"""What network and prior cost for a tile, counted twice, against the paper's headline."""

from __future__ import annotations

import sys

import pytest
import torch
from priors import TINY
from ptflops import get_model_complexity_info
from typer.testing import CliRunner

import swintormer_kernels as sk
from swintormer import PRESETS, Swintormer
from swintormer.cli.app import app
from swintormer.cli.macs import PAPER_GMACS, count_macs, count_prior_macs
from swintormer.prior.checkpoint import make_prior
from swintormer.prior.config import PRIORS


def test_by_hand() -> None:
    """The tiny prior over 32x32 pixels: an encoder at 8x8 and 4x4, one convolution of the condition at 4x4."""
    cost = count_prior_macs(TINY, 32, 32)
    assert cost.encoder == 64 * (48 + 3 * 8) * 8 * 9 + 16 * (8 * 8 + 3 * 8 * 8 + 8 * 4) * 9
    assert cost.condition == 16 * 4 * 8 * 9
    assert cost.steps == 2
    assert cost.total == cost.encoder + cost.condition + 2 * cost.step
    assert count_prior_macs(TINY, 25, 31) == cost  # rounded up to whole positions of the deepest level


def test_network_and_prior_stay_under_the_papers_figure() -> None:
    """Encoder, condition, four steps, network with fusion: by FlopCounterMode, and by ptflops of the parts."""
    network, prior = PRESETS["small-prior"], PRIORS["compact"]
    tile, sample = count_macs(network, 256, 256), count_prior_macs(prior, 256, 256)
    total = (tile.total + sample.total) / 1e9
    print(f"FlopCounterMode: {tile.total / 1e9:.3f} + {sample.total / 1e9:.3f} = {total:.3f} GMACs")
    assert total <= 6 < PAPER_GMACS

    def count(module: torch.nn.Module, shape: tuple[int, ...], **inputs: torch.Tensor) -> int:
        macs, _ = get_model_complexity_info(
            module, shape, as_strings=False, print_per_layer_stat=False, backend="aten", verbose=False,
            input_constructor=(lambda _: inputs) if inputs else None,
        )  # fmt: skip
        return macs

    parts = make_prior(prior).eval()
    encoder = count(parts.autoencoder.encoder, (48, 64, 64))
    latent = torch.zeros(1, 16, 32, 32)
    step = count(parts.denoiser, (16, 32, 32), sample=latent, timestep=torch.tensor([3]))
    with sk.use_backend("reference"), torch.no_grad():
        inputs = {"image": torch.rand(1, 3, 256, 256), "prior": latent[:, :8]}
        net = count(Swintormer(network).eval(), (3, 256, 256), **inputs)
    again = (net + encoder + sample.steps * step) / 1e9
    print(f"ptflops: {again:.3f} GMACs")
    assert again <= 6
    # ptflops counts the condition's convolution in every step, and leaves out the attention's products.
    assert abs(again - total) <= 0.02 * total


def test_the_released_prior_costs_what_was_measured() -> None:
    """40.2 GMACs for a step at a 64x64 latent (diffusion.md), the share of the condition computed once with it."""
    cost = count_prior_macs(PRIORS["ldm-sr"], 64, 64)
    assert (cost.encoder, cost.steps) == (0, 20)
    assert (cost.step + cost.condition) / 1e9 == pytest.approx(40.2, abs=0.05)


def test_without_diffusers_the_advice_is_one_that_the_command_takes(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)  # as if it were not installed
    result = CliRunner().invoke(app, ["macs", "--preset", "small-prior"])
    assert result.exit_code == 1
    assert 'pip install "swintormer-kernels[prior]"' in result.stderr
    assert "--preset small" in result.stderr
    assert "--no-prior" not in result.stderr


def test_the_table_names_the_parts() -> None:
    result = CliRunner().invoke(app, ["macs", "--preset", "small-prior"])
    assert result.exit_code == 0
    lines = dict(line.rsplit(maxsplit=1) for line in result.output.split("GMAC with the prior")[1].splitlines()[2:])
    numbers = {name.strip(): float(number) for name, number in lines.items()}
    assert numbers["the paper, one iteration"] == PAPER_GMACS
    parts = numbers["restoration, with fusion"] + numbers["prior, 4 steps"]
    assert numbers["sum"] == pytest.approx(parts, abs=0.0015)  # three numbers rounded to 0.001
    assert "GMAC with the prior" not in CliRunner().invoke(app, ["macs", "--preset", "small"]).output
