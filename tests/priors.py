"""Small priors of random weights for the tests."""

from __future__ import annotations

import torch

from swintormer.model.config import NetworkConfig
from swintormer.prior.checkpoint import make_prior
from swintormer.prior.config import PRIORS, PriorConfig, Sampling
from swintormer.prior.model import LatentPrior

DENOISER = {
    "in_channels": 8,
    "out_channels": 4,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "attention_head_dim": 8,
    "norm_num_groups": 4,
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
}
AUTOENCODER = {
    "in_channels": 48,
    "out_channels": 48,
    "encoder_block_out_channels": [8, 8],
    "decoder_block_out_channels": [8, 8],
    "num_encoder_blocks": [1, 1],
    "num_decoder_blocks": [1, 1],
    "latent_channels": 4,
}
TINY = PriorConfig(
    autoencoder_kind="AutoencoderTiny",
    autoencoder=AUTOENCODER,
    denoiser=DENOISER,
    scheduler=PRIORS["compact"].scheduler,
    sampling=Sampling(steps=2, piece=8, stride=6),
)
NETWORK = NetworkConfig(
    in_channels=3,
    dim=4,
    num_blocks=(1, 1, 1, 1),
    num_refinement_blocks=1,
    heads=(1, 1, 1, 1),
    window_size=2,
    prior_channels=4,
)


def tiny(seed: int = 0, **sampling: object) -> LatentPrior:
    """A prior of `TINY`, in evaluation mode, with some of its sampling changed."""
    torch.manual_seed(seed)
    config = TINY.model_copy(update={"sampling": TINY.sampling.model_copy(update=sampling)})
    return make_prior(config).eval()
