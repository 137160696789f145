"""The latent made for restoration: how much detail the blurred picture lacks, by place, scale and direction.

An autoencoder's latents of a blurred and a sharp picture hardly differ. This one is nothing but their difference:

    r_k = log((mean |d_k * sharp|^2 + e) / (mean |d_k * blurred|^2 + e))

over derivatives d_k of Gaussian-smoothed luminance in four directions and at two scales, the mean taken over about 24
pixels. z holds of each scale's four r_k their sum and three differences (a Hadamard transform), because the r_k alone
say nearly the same (correlations of 0.77 to 0.93). A defocused place lacks as much in all directions, a moved one more
along its path, a sharp one nothing, and where the fine scale holds noise the sum is negative. It takes the truth to
compute: the prior samples it from the blurred picture alone.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SIGMAS = (0.7, 1.7)  # pixels; the blurs of training are 0.3 to 5 wide
ANGLES = (0, 45, 90, 135)  # degrees
CHANNELS = len(SIGMAS) * len(ANGLES)
# Energy of a derivative that nobody sees: that of a gradient of half an 8-bit level.
FLOOR = (0.5 / 255) ** 2
HADAMARD = ((1.0, 1.0, 1.0, 1.0), (1.0, 0.0, -1.0, 0.0), (0.0, 1.0, 0.0, -1.0), (1.0, -1.0, 1.0, -1.0))
# Mean and standard deviation of z's channels over 200 synthetic pairs: tests/test_detail.py takes them again.
MEAN = (0.86, 0.0, 0.0, 0.0, 0.49, 0.0, 0.0, 0.0)
DEVIATION = (1.10, 0.14, 0.14, 0.085, 0.62, 0.10, 0.09, 0.05)


def detail_latent(blurred: Tensor, sharp: Tensor, factor: int) -> Tensor:
    """(B, 3, H, W) in [0, 1], twice, sides multiples of `factor` -> (B, CHANNELS, H / factor, W / factor).

    In float32, inside autocast too: derivatives in bfloat16 would move it by up to 0.07 of a deviation (RMSE).
    """
    with torch.autocast(sharp.device.type, enabled=False):
        sharp_energy, blurred_energy = (_energies(image, factor) for image in (sharp, blurred))
        ratio = ((sharp_energy + FLOOR) / (blurred_energy + FLOOR)).log().unflatten(1, (len(SIGMAS), -1))
        turned = torch.einsum("ij,bsjhw->bsihw", torch.tensor(HADAMARD).to(ratio) / 2, ratio)
    mean, deviation = (torch.tensor(values).to(ratio)[:, None, None] for values in (MEAN, DEVIATION))
    return (turned.flatten(1, 2) - mean) / deviation


def _energies(image: Tensor, factor: int) -> Tensor:
    luminance = image.float().mean(1, keepdim=True)
    responses = []
    for sigma in SIGMAS:
        kernels = _derivatives(sigma).to(luminance)
        side = kernels.shape[-1] // 2
        responses.append(F.conv2d(F.pad(luminance, (side,) * 4, mode="replicate"), kernels))
    energy = F.avg_pool2d(torch.cat(responses, 1).square(), factor)
    return F.avg_pool2d(energy, 3, stride=1, padding=1, count_include_pad=False)


def _derivatives(sigma: float) -> Tensor:
    """(4, 1, k, k): first derivatives of a Gaussian in the four directions; a ramp of slope 1 along them gives 1."""
    radius = math.ceil(3 * sigma)
    axis = torch.arange(-radius, radius + 1, dtype=torch.float64)
    gaussian = (-axis.square() / (2 * sigma**2)).exp()
    bell = gaussian[:, None] * gaussian
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    kernels = []
    for angle in ANGLES:
        along = math.cos(math.radians(angle)) * x + math.sin(math.radians(angle)) * y
        kernel = along * bell
        kernels.append(kernel / (kernel * along).sum())
    return torch.stack(kernels)[:, None].float()
