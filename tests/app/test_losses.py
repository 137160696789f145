"""The losses: their formulas in the open, their units, and their gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from swintormer.training.losses import fourier_loss, l1_loss, moment_loss, psnr_loss

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


def test_psnr_loss_is_the_formula() -> None:
    """Of each picture apart, in float64; a perfect picture is at the floor and gives no gradient."""
    a, b = torch.rand(2, 3, 3, 8, 6)
    squared = ((a.double() - b.double()) ** 2).mean((1, 2, 3))
    assert float(psnr_loss(a, b)) == pytest.approx(0.02 * float((squared + 1e-5).log().mean()), rel=20 * EPSILON)
    perfect = a.clone().requires_grad_()
    loss = psnr_loss(perfect, a)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.02 * math.log(1e-5), rel=4 * EPSILON)
    assert not perfect.grad.any()


def test_psnr_loss_counts_the_share_of_the_error_of_each_picture() -> None:
    """A picture ten times nearer to the truth gives the same change for the same share of its error; L1 a tenth."""
    target = torch.zeros(2, 3, 8, 8)
    output = torch.full((2, 3, 8, 8), 0.5)
    output[1] /= 10
    output.requires_grad_()
    for loss, ratio in ((psnr_loss, 1.0), (l1_loss, 10.0)):
        (slope,) = torch.autograd.grad(loss(output, target), output)
        far, near = (slope * output.detach()).sum((1, 2, 3)).tolist()
        assert far / near == pytest.approx(ratio, rel=0.01)  # the floor of 1e-5 beside a squared error of 0.05^2


def test_the_gradients_of_psnr_and_l1_are_of_one_size_at_28_db() -> None:
    noise = (0.04 * torch.randn(4, 3, 64, 64)).requires_grad_()
    zero = torch.zeros(4, 3, 64, 64)
    sizes = [torch.autograd.grad(loss(noise, zero), noise)[0].norm() for loss in (psnr_loss, l1_loss)]
    assert float(sizes[0] / sizes[1]) == pytest.approx(1, rel=0.05)


def test_losses_are_float32_under_autocast_and_differentiable() -> None:
    target = torch.rand(1, 3, 16, 16)
    for loss in (l1_loss, psnr_loss, fourier_loss):
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
