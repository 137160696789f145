"""Deconvolved views of a picture as further channels of a network's first convolution, for `bench.ablation`.

A view is the luma under a regularised inverse of one blur, conj(K) / (|K|^2 + 0.01) in frequency, so that the network
sees what each of fourteen plausible blurs would have hidden; KPAC (Son et al. ICCV 2021) builds on the same idea.
`embedded()` makes networks take them inside, so that their pictures, checkpoints and training stay as they are.

A tile of 256x256 takes one transform of 288x288 and an inverse one for each view, which counters of multiplications
do not see, and the first convolution 56 further channels at half the resolution.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swintormer.data.blurs import disc_kernel, gaussian_kernel
from swintormer.model import network

BALANCE = 0.01
DISCS = (1.0, 2.0, 3.0, 5.0, 8.0)  # radii in pixels
GAUSSIANS = (1.0, 2.0, 3.0)  # sigmas
LINES = (5.0, 11.0)  # paths in pixels, in DIRECTIONS directions each
DIRECTIONS = 3
MARGIN = 16  # mirrored around the picture: the transform wraps
_LUMA = (0.299, 0.587, 0.114)


def kernels() -> list[np.ndarray]:
    """The blurs, each (K, K) with K odd, of sum 1."""
    found = [disc_kernel(radius) for radius in DISCS]
    axis = np.arange(-12, 13)
    y, x = axis[:, None], axis[None, :]
    found += [gaussian_kernel(sigma) for sigma in GAUSSIANS]
    for path in LINES:
        for turn in range(DIRECTIONS):
            angle = math.pi * turn / DIRECTIONS
            along, across = math.cos(angle) * x + math.sin(angle) * y, math.cos(angle) * y - math.sin(angle) * x
            found.append(np.clip(path / 2 + 0.5 - abs(along), 0, 1) * np.clip(1 - abs(across), 0, 1))
    return [np.asarray(kernel / kernel.sum(), np.float32) for kernel in found]


VIEWS = len(DISCS) + len(GAUSSIANS) + len(LINES) * DIRECTIONS


def inverse_filters(height: int, width: int) -> Tensor:
    """(VIEWS, height, width // 2 + 1), real: the blurs are symmetric."""
    filters = []
    for kernel in kernels():
        padded = torch.zeros(height, width)
        side = len(kernel)
        padded[:side, :side] = torch.from_numpy(kernel)
        response = torch.fft.rfft2(padded.roll((-(side // 2), -(side // 2)), (0, 1))).real
        filters.append(response / (response.square() + BALANCE))
    return torch.stack(filters)


class Embedding(network.PatchEmbed):
    """`PatchEmbed` of a picture and its deconvolved views: (B, C, H, W) -> (B, D, H/2, W/2)."""

    def __init__(self, in_channels: int, dim: int, bias: bool):
        super().__init__(in_channels + VIEWS, dim, bias)
        self._filters: dict[tuple[int, int, torch.device], Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat((x, self.views(x).to(x.dtype)), dim=1)
        return super().forward(x.contiguous(memory_format=torch.channels_last))

    @torch.no_grad()
    def views(self, x: Tensor) -> Tensor:
        """(B, VIEWS, H, W), float32, of a picture in [-1, 1]."""
        luma = (x[:, :3].float() * x.new_tensor(_LUMA, dtype=torch.float32)[:, None, None]).sum(1, keepdim=True)
        padded = F.pad(luma, (MARGIN,) * 4, mode="reflect")
        height, width = padded.shape[2:]
        key = height, width, x.device
        if key not in self._filters:
            self._filters[key] = inverse_filters(height, width).to(x.device)
        views = torch.fft.irfft2(torch.fft.rfft2(padded) * self._filters[key], s=(height, width))
        return views[..., MARGIN:-MARGIN, MARGIN:-MARGIN]


@contextmanager
def embedded() -> Iterator[None]:
    """Networks that are made inside see their picture's deconvolved views."""
    usual: type[nn.Module] = network.PatchEmbed
    network.PatchEmbed = Embedding  # type: ignore[misc]
    try:
        yield
    finally:
        network.PatchEmbed = usual  # type: ignore[misc,assignment]
