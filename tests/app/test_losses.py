"""The losses: their formulas in the open, their units, and their gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from swintormer.errors import SwintormerError
from swintormer.training.losses import fourier_loss, l1_loss, moment_loss
from swintormer.training.perceptual import DEVIATION, LAYERS, MEAN, PerceptualLoss, VGG19Features

pytestmark = pytest.mark.usefixtures("one_thread")
EPSILON = torch.finfo().eps


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 1, 7, 5), (1, 3, 1, 6)])
def test_fourier_loss_is_the_formula(shape: tuple[int, ...]) -> None:
    """Beside numpy's transform in float64 of the two pictures apart."""
    a, b = torch.rand(2, *shape)
    difference = np.fft.rfft2(a.double().numpy(), norm="ortho") - np.fft.rfft2(b.double().numpy(), norm="ortho")
    expected = (np.abs(difference.real) + np.abs(difference.imag)).mean() / 2
    terms = shape[2] * shape[3]
    assert float(fourier_loss(a, b)) == pytest.approx(expected, rel=terms * EPSILON)
    assert float(fourier_loss(a, a)) == 0
    assert float(fourier_loss(b, a)) == float(fourier_loss(a, b))


def test_fourier_loss_of_white_noise_does_not_depend_on_the_crop() -> None:
    """Real and imaginary parts have half the variance each: the mean of |N(0, 1/2)| is 1/sqrt(pi)."""
    for side in (32, 128):
        noise = torch.randn(3, 3, side, side)
        count = 3 * 3 * side * side
        expected = 1 / math.sqrt(math.pi)
        deviation = math.sqrt((0.5 - expected**2) / count)
        # Rows 0 and the middle, which are real alone, are 2 of side / 2 + 1 columns, with other means: 2 / side.
        assert float(fourier_loss(noise, torch.zeros_like(noise))) == pytest.approx(
            expected, abs=5 * deviation + 2 / side * expected / side
        )


def test_losses_are_float32_under_autocast_and_differentiable() -> None:
    target = torch.rand(1, 3, 16, 16)
    for loss in (l1_loss, fourier_loss):
        output = torch.rand(1, 3, 16, 16).bfloat16().requires_grad_()
        value = loss(output, target)
        assert value.dtype == torch.float32
        value.backward()
        assert output.grad.abs().sum() > 0
    wide = torch.rand(1, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    value, step = fourier_loss(wide, torch.zeros_like(wide)), 1e-3
    (slope,) = torch.autograd.grad(value, wide)
    moved = fourier_loss(wide.detach() + step * slope / slope.norm(), torch.zeros_like(wide))
    assert float(moved - value.detach()) == pytest.approx(
        step * float(slope.norm()), rel=0.05
    )  # the loss is piecewise smooth


def test_moment_loss() -> None:
    latent = torch.randn(4, 3, 32, 32)
    mean, deviation = latent.mean((0, 2, 3), keepdim=True), latent.std((0, 2, 3), keepdim=True)
    normal = (latent - mean) / deviation
    rounding = latent.numel() * EPSILON**2
    assert float(moment_loss(normal)) <= rounding
    assert float(moment_loss(normal + 2)) == pytest.approx(4, rel=1e3 * EPSILON)
    for factor in (0.5, 2.0):  # (log s^2)^2 / 4 = (log s)^2
        assert float(moment_loss(factor * normal)) == pytest.approx(math.log(2) ** 2, rel=1e3 * EPSILON)
    still = torch.zeros(2, 3, 4, 4, requires_grad=True)
    moment_loss(still).backward()
    assert still.grad.isfinite().all()


# ---- VGG19 -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory):
    """torchvision's layout, with random numbers scaled to keep activations; and an entry of its classifier."""
    state = {}
    channels, index = 3, 0
    for width in LAYERS:
        if width == "M":
            index += 1
            continue
        state[f"features.{index}.weight"] = torch.randn(width, channels, 3, 3) * math.sqrt(2 / (9 * channels))
        state[f"features.{index}.bias"] = torch.zeros(width)
        channels, index = width, index + 2
    path = tmp_path_factory.mktemp("vgg") / "vgg19.pth"
    torch.save(state | {"classifier.6.bias": torch.zeros(1000)}, path)
    return path


def test_vgg19_is_the_public_one() -> None:
    """Names and shapes of torchvision's `vgg19().features`: 16 convolutions, 20,024,384 numbers."""
    with torch.device("meta"):
        net = VGG19Features()
    state = net.state_dict()
    convolutions = [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34]
    assert list(state) == [f"features.{i}.{leaf}" for i in convolutions for leaf in ("weight", "bias")]
    assert sum(tensor.numel() for tensor in state.values()) == 20_024_384
    assert [i for i, layer in enumerate(net.features) if isinstance(layer, nn.MaxPool2d)] == [4, 9, 18, 27]


def test_features_are_those_of_all_sixteen_before_their_relu() -> None:
    net = VGG19Features()
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        features = net(image)
        mean, deviation = (torch.tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
        first = net.features[0]((image - mean) / deviation)
    assert [tuple(f.shape[1:]) for f in features] == [
        *[(64, 32, 32)] * 2, *[(128, 16, 16)] * 2, *[(256, 8, 8)] * 4, *[(512, 4, 4)] * 4, *[(512, 2, 2)] * 4
    ]  # fmt: skip
    assert torch.equal(features[0], first)
    assert min(float(f.min()) for f in features) < 0


def test_features_of_a_network_that_came_from_the_meta_device(vgg_file) -> None:
    """The state dict is all it needs; conftest.py poisons empty memory."""
    state = {name: tensor for name, tensor in torch.load(vgg_file).items() if name.startswith("features.")}
    with torch.device("meta"):
        made = VGG19Features()
    net, image = VGG19Features(), torch.rand(1, 3, 16, 16)
    for each in (made.to_empty(device="cpu"), net):
        each.load_state_dict(state)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(made(image), net(image), strict=True))


def test_perceptual_loss(vgg_file) -> None:
    loss = PerceptualLoss(vgg_file)
    assert not any(p.requires_grad for p in loss.parameters())
    picture = torch.rand(1, 3, 16, 16)
    output = (picture + 0.1 * torch.randn_like(picture)).requires_grad_()
    assert float(loss(picture, picture)) == 0
    value = loss(output, picture)
    value.backward()
    assert output.grad.abs().sum() > 0
    with torch.no_grad():
        pairs = zip(loss.vgg(output), loss.vgg(picture), strict=True)
        by_hand = [float((a - b).abs().mean()) for a, b in pairs]
    assert len(by_hand) == 16
    assert float(value) == pytest.approx(sum(by_hand) / 16, rel=16 * EPSILON)


def test_other_weights_are_refused(tmp_path) -> None:
    torch.save({"features.0.weight": torch.ones(64, 3, 3, 3)}, tmp_path / "x.pth")
    with pytest.raises(SwintormerError, match="does not hold the convolutions of VGG19"):
        PerceptualLoss(tmp_path / "x.pth")
    with pytest.raises(SwintormerError, match="There is no checkpoint"):
        PerceptualLoss(tmp_path / "none.pth")
