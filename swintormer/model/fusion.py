"""How the prior's latent z_0 enters the restoration network: added where each stage begins, through a 1x1 convolution.

DiffIR (Xia et al. ICCV 2023) scales and shifts every block by one vector for the image; HI-Diff (Chen et al. NeurIPS
2023) attends to 16 tokens. A latent with a place for every 8x8 pixels is simply added where it belongs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Channels of the stages in units of D.
STAGES = {
    "encoder_level1": 1,
    "encoder_level2": 2,
    "encoder_level3": 4,
    "latent": 8,
    "decoder_level3": 4,
    "decoder_level2": 2,
    "decoder_level1": 2,
}


class PriorFusion(nn.Module):
    """One projection Cz -> C for each stage, without bias, so that a latent of zeros adds nothing.

    The weights are initially zero, so that adding it to a trained network does not change a bit of the results.

    Args:
        dim: D of the network.
        prior_channels: Cz.
    """

    def __init__(self, dim: int, prior_channels: int):
        super().__init__()
        for stage, multiple in STAGES.items():
            projection = nn.Conv2d(prior_channels, multiple * dim, 1, bias=False)
            nn.init.zeros_(projection.weight)
            self.add_module(stage, projection)

    def forward(self, stage: str, y: Tensor, prior: Tensor) -> Tensor:
        """y (B, C, h, w), and z_0 over the same picture at another resolution, -> y + projection of z_0, resampled."""
        size = y.shape[2:]
        projection = self.get_submodule(stage)
        # A linear map of each pixel commutes with resampling, so it runs at the lower resolution.
        if prior.shape[2] * prior.shape[3] < size.numel():
            return y + resample(projection(prior), size)
        return y + projection(resample(prior, size))


def resample(x: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Resize x: bilinear along an axis that grows, the mean of the covered area along one that shrinks."""
    height, width = size
    reduced = (min(height, x.shape[2]), min(width, x.shape[3]))
    if tuple(x.shape[2:]) != reduced:
        x = F.interpolate(x, reduced, mode="area")
    if reduced != (height, width):
        x = F.interpolate(x, (height, width), mode="bilinear", align_corners=False)
    return x


def over_image(prior: Tensor, image: tuple[int, int], padded: tuple[int, int], factor: int | None = None) -> Tensor:
    """z_0 of an image, continued over the padding below and on the right of the image.

    Args:
        prior: (B, Cz, h, w).
        image: H and W in pixels.
        padded: the same, padded to multiples of 16 times the window.
        factor: side in pixels of what a position covers, from the upper left corner, so that h = ceil(H / factor) and
            w = ceil(W / factor). None: z_0 is stretched over the image.

    Returns:
        (B, Cz, h', w') that covers the padded image.
    """
    if factor is None or padded[0] % factor or padded[1] % factor:
        if image == padded:
            return prior
        factor = 2
        prior = resample(prior, (-(-image[0] // 2), -(-image[1] // 2)))
    below, right = padded[0] // factor - prior.shape[2], padded[1] // factor - prior.shape[3]
    return F.pad(prior, (0, right, 0, below), mode="replicate") if below or right else prior
