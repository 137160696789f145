"""The detail latent: what it says of blurs whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from swintormer.data import SyntheticPairs
from swintormer.prior.detail import ANGLES, CHANNELS, DEVIATION, FLOOR, MEAN, SIGMAS, detail_latent

SUM = slice(0, None, len(ANGLES))  # of each scale the channel that adds all directions


def natural(latent: Tensor) -> Tensor:
    """Without the normalisation."""
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
    return latent * deviation + mean


def waves(side: int, angle: float, period: float) -> Tensor:
    y, x = torch.meshgrid(*[torch.arange(side, dtype=torch.float32)] * 2, indexing="ij")
    along = math.cos(math.radians(angle)) * x + math.sin(math.radians(angle)) * y
    return (0.5 + 0.25 * torch.sin(2 * math.pi * along / period)).expand(1, 3, side, side)


def moved(image: Tensor, length: int) -> Tensor:
    """Blurred by a motion along the rows."""
    kernel = torch.full((3, 1, 1, length), 1 / length)
    return F.conv2d(F.pad(image, (length // 2, length // 2, 0, 0), mode="replicate"), kernel, groups=3)


@pytest.mark.parametrize("size", [(8, 8), (64, 96), (128, 40)])
def test_a_sharp_picture_lacks_nothing(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    image = torch.rand(2, 3, *size)
    latent = detail_latent(image, image, 8)
    assert latent.shape == (2, CHANNELS, size[0] // 8, size[1] // 8)
    assert float(natural(latent).abs().max()) <= 4 * torch.finfo().eps


@pytest.mark.parametrize("gain", [0.5, 0.8])
@pytest.mark.parametrize("angle", [0, 45, 90, 135])
def test_lost_contrast_is_read_as_energy(gain: float, angle: float) -> None:
    """All directions lose the same share of their energy, gain^2: their sum over 2 is -4 log gain, no difference."""
    sharp = waves(128, angle, 9.0)
    latent = natural(detail_latent(0.5 + gain * (sharp - 0.5), sharp, 8))
    middle = latent[:, :, 5:11, 5:11]
    expected = -4 * math.log(gain)
    # A direction across the wave has no energy of its own and says less: the floor hides it.
    assert float(middle[:, SUM].max()) <= expected * 1.001
    assert float(middle[:, SUM].min()) >= 0.5 * expected


def test_motion_shows_its_direction() -> None:
    torch.manual_seed(1)
    sharp = torch.rand(1, 3, 128, 128)
    along_rows = natural(detail_latent(moved(sharp, 7), sharp, 8)).mean((0, 2, 3))
    turned = sharp.transpose(2, 3)
    along_columns = natural(detail_latent(moved(sharp, 7).transpose(2, 3), turned, 8)).mean((0, 2, 3))
    for scale in range(len(SIGMAS)):
        first = scale * len(ANGLES)
        total, straight, diagonal = along_rows[first : first + 3].tolist()
        assert total > 0
        assert straight > 5 * abs(diagonal)
        assert along_columns[first + 1].item() == pytest.approx(-straight, rel=1e-4)


def test_noise_is_more_than_should_be_there() -> None:
    torch.manual_seed(2)
    sharp = waves(64, 30, 12.0)
    noisy = sharp + 0.1 * torch.randn_like(sharp)
    assert float(natural(detail_latent(noisy, sharp, 8))[:, 0].max()) < 0


def test_autocast_changes_nothing() -> None:
    torch.manual_seed(3)
    blurred, sharp = torch.rand(2, 1, 3, 64, 64)
    expected = detail_latent(blurred, sharp, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(detail_latent(blurred, sharp, 8), expected)


def test_what_nobody_sees_is_nothing() -> None:
    """A gradient of a tenth of what the floor stands for changes no channel by more than that share of energy."""
    ramp = torch.arange(64.0).mul(0.1 * FLOOR**0.5).expand(1, 3, 64, 64)
    latent = natural(detail_latent(torch.zeros_like(ramp), ramp, 8))
    assert float(latent.abs().max()) <= 2 * math.log1p(0.1**2)


def test_normalised_over_the_training_pairs() -> None:
    """MEAN and DEVIATION are those of these pairs, to the digits written."""
    latent = natural(detail_latent(*SyntheticPairs(1, 128).batch(0, 200), 8)).transpose(0, 1).flatten(1)
    assert latent.std(1).tolist() == pytest.approx(DEVIATION, rel=0.05)
    assert latent.mean(1).tolist() == pytest.approx(MEAN, abs=0.02)
