"""The losses that training minimises."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def l1_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference, in float32 whatever the dtype of `output`; the release trains with this alone."""
    return F.l1_loss(output.float(), target.float())


PSNR_FLOOR = 1e-5  # squared error, 50 dB: a pair there counts half as much, better ones less and less
PSNR_WEIGHT = 0.02  # at a root mean square of 0.04, 28 dB, the gradient is as large as L1's; larger for smaller errors


def psnr_loss(output: Tensor, target: Tensor) -> Tensor:
    """0.02 times the mean over the pictures of log(mean squared error + 1e-5): their PSNR, negative and in other units.

    NAFNet's loss (Chen et al. ECCV 2022, PSNRLoss), there with a floor of 1e-8. Each picture counts by the share of its
    error that a step removes, so pictures that need little count as much as strongly blurred ones, which dominate L1.

    Args:
        output: (B, C, H, W), any floating dtype, values about 0 to 1, which floor and weight assume.
        target: the same shape.

    Returns:
        A scalar in float32, differentiable.
    """
    squared = (output.float() - target.float()).square().mean(dim=(1, 2, 3))
    return PSNR_WEIGHT * (squared + PSNR_FLOOR).log().mean()


def fourier_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of the two-dimensional Fourier transforms, real and imaginary parts apart.

    The multi-scale frequency reconstruction loss of MIMO-UNet (Cho et al., ICCV 2021, eq. 7) at full scale; it needs no
    network and no download. Blur scales each frequency, so each frequency's error counts on its own. The transform is
    orthonormal here: white noise has the same variance in both domains, whatever the size of the crop. MIMO-UNet's
    weight of 0.1 on transforms without a norm is 0.1 sqrt(H W) in these units.

    Args:
        output: (B, C, H, W), any floating dtype.
        target: the same shape.

    Returns:
        A scalar in float32, differentiable.
    """
    difference = torch.fft.rfft2(output.float() - target.float(), norm="ortho")
    # Half of the spectrum is kept; the other half of a real picture is its mirror and would change no gradient.
    return torch.view_as_real(difference).abs().mean()


def moment_loss(latent: Tensor) -> Tensor:
    """How far each channel is from mean 0 and variance 1 over batch and places: mean of m^2 + (log s^2)^2 / 4.

    (log s)^2 is symmetric: half the standard deviation gives the same loss as twice the standard deviation.

    Args:
        latent: (B, C, h, w), any floating dtype, at least two values a channel.
    """
    variance, mean = torch.var_mean(latent.float(), dim=(0, 2, 3))
    return (mean.square() + variance.clamp_min(torch.finfo().tiny).log().square() / 4).mean()
