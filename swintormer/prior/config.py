"""Configuration of a latent diffusion prior: arguments of diffusers' classes, and the presets by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Count = Annotated[int, Field(ge=1, le=4096)]


class Sampling(BaseModel):
    """Default settings for sampling z_0.

    Attributes:
        steps: DDIM steps. eta: share of fresh noise, 0 to 1.
        condition: the denoiser's input beside z_t: the blurred image's "latent", or the "image" itself in [-1, 1],
            which gives z_0 the image's own resolution.
        latent: what z_0 is a sample of: the "autoencoder"'s latent of the sharp image. It is stored in weight files.
        piece, stride: size of the pieces of a larger image and distance between them, in latent positions.
        clip: bound of |x_0|; None for no bound.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: Annotated[int, Field(ge=1, le=1000)] = 4
    eta: Annotated[float, Field(ge=0, le=1)] = 0.0
    condition: Literal["latent", "image"] = "latent"
    latent: Literal["autoencoder"] = "autoencoder"
    piece: Count = 64
    stride: Count = 48
    clip: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Sampling:
        if self.stride > self.piece:
            raise ValueError(f"stride {self.stride} leaves gaps between pieces of {self.piece}")
        return self


class PriorConfig(BaseModel):
    """Configuration of a `LatentPrior`: classes of diffusers and their arguments.

    Attributes:
        autoencoder_kind: class of the autoencoder; one of more than three channels sees the image after PixelUnshuffle.
        autoencoder, denoiser, scheduler: arguments of that class, of UNet2DModel and of DDIMScheduler.
        sampling: the defaults of `LatentPrior.sample`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    autoencoder_kind: Literal["AutoencoderTiny", "VQModel"]
    autoencoder: dict[str, Any]
    denoiser: dict[str, Any]
    scheduler: dict[str, Any]
    sampling: Sampling = Sampling()

    @property
    def latent_channels(self) -> int:
        """Cz, the channels of z_0."""
        return int(self.denoiser["out_channels"])


def _tiny_autoencoder(width: int, latent: int) -> dict[str, Any]:
    """AutoencoderTiny at 1/8: PixelUnshuffle(4) gives it 48 channels at 1/4, where 3x3 convolutions are still cheap."""
    return {
        "in_channels": 48,
        "out_channels": 48,
        "encoder_block_out_channels": [width, width],
        "decoder_block_out_channels": [width, width],
        "num_encoder_blocks": [1, 3],
        "num_decoder_blocks": [3, 1],
        "latent_channels": latent,
    }


# 0.27 GMACs for the encoder and 0.25 a step for a 256x256 tile (a 32x32 latent): with the preset `small` and four
# steps 5.9 in all, under the paper's 8.02 (`swintormer macs --preset small-prior`).
_COMPACT = PriorConfig(
    autoencoder_kind="AutoencoderTiny",
    autoencoder=_tiny_autoencoder(width=32, latent=8),
    denoiser={
        "in_channels": 16,
        "out_channels": 8,
        "block_out_channels": [32, 64],
        "layers_per_block": 1,
        "attention_head_dim": 32,
        "norm_num_groups": 8,
        "down_block_types": ["DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D"],
    },
    # The denoiser predicts x_0. With few steps, an error of predicted noise would be divided by sqrt(alpha-bar), 0.006
    # at the first step (DiffIR, Xia et al. ICCV 2023, chooses the same). "trailing" starts from pure noise, as the
    # sampler does (Lin et al. WACV 2024).
    scheduler={
        "num_train_timesteps": 1000,
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "prediction_type": "sample",
        "timestep_spacing": "trailing",
        "clip_sample": False,
    },
    sampling=Sampling(steps=4, eta=0.0, piece=64, stride=48),
)

PRIORS: dict[str, PriorConfig] = {
    "compact": _COMPACT,
    # The release's configuration, CompVis' super-resolution model: VQ-f4 (z of 3 channels, 8192 codes, attention only
    # in the middle) and a U-Net of 113,622,563 parameters. Its condition is the blurred image itself: 49 pieces of
    # 128x128 for a 512x512 crop.
    "ldm-sr": PriorConfig(
        autoencoder_kind="VQModel",
        autoencoder={
            "in_channels": 3,
            "out_channels": 3,
            "block_out_channels": [128, 256, 512],
            "layers_per_block": 2,
            "latent_channels": 3,
            "num_vq_embeddings": 8192,
            "norm_num_groups": 32,
            "sample_size": 256,
            "down_block_types": ["DownEncoderBlock2D"] * 3,
            "up_block_types": ["UpDecoderBlock2D"] * 3,
        },
        denoiser={
            "in_channels": 6,
            "out_channels": 3,
            "block_out_channels": [160, 320, 320, 640],
            "layers_per_block": 2,
            "attention_head_dim": 32,
            "norm_num_groups": 32,
            "down_block_types": ["DownBlock2D", "DownBlock2D", "DownBlock2D", "AttnDownBlock2D"],
            "up_block_types": ["AttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"],
        },
        scheduler={
            "num_train_timesteps": 1000,
            "beta_start": 0.0015,
            "beta_end": 0.0155,
            "beta_schedule": "scaled_linear",
            "prediction_type": "epsilon",
            "timestep_spacing": "leading",
            "steps_offset": 1,
            "set_alpha_to_one": False,
            "clip_sample": False,
        },
        sampling=Sampling(steps=20, eta=1.0, condition="image", piece=128, stride=64),
    ),
}
