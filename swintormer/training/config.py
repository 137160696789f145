"""What one training run does, as data: a TOML file of `TrainConfig`."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from swintormer.data.synthetic import MARGIN
from swintormer.errors import SwintormerError
from swintormer.images.files import reason
from swintormer.model.config import PRESETS, NetworkConfig
from swintormer.prior.config import PRIORS, PriorConfig
from swintormer_kernels import BACKENDS

Stage = Literal["restoration", "autoencoder", "denoiser", "joint"]
# Default weight of the Fourier loss when it replaces a perceptual loss without weights file, as in configs/.
# White noise then costs 0.35 of its L1 there (real and imaginary part have half its variance each), so L1 leads.
FREQUENCY = 0.5


class TrainConfig(BaseModel):
    """One training run; the defaults are the release's recipe (arXiv 2401.05907) where it states one.

    Attributes:
        stage: what is trained: the restoration network alone; of the prior first the autoencoder, then the denoiser on
            its latents; then network and denoiser jointly, through the sampler (stages.py).
        network: preset name, or sizes as in `NetworkConfig`.
        out: run folder.
        steps, minutes: the run ends at whichever comes first; the schedule follows the one that is further along.
        batch, crop: pairs per step and their side; a multiple of 16 * window wastes no padding.
        lr, min_lr, warmup: peak and last learning rate, and the steps of linear rise to the peak; cosine between.
        clip: largest gradient norm. ema: decay of the averaged weights, lower in the first steps.
        dtype: "bfloat16" runs the network under autocast.
        backend: of the ops, "auto" for the best of each. On one AVX-512 core a step of `small` in bfloat16 (batch 4,
            crop 128) takes 1.35 s of it with the C++ engine, whose backward pass computes the forward anew, and 0.98 s
            with "reference".
        channels_last: memory layout of weights; on two AVX-512 cores 17 % faster at crop 128 in float32.
        scene_side: side of the generated pictures that pairs are cut from; None for 512 or what the crop needs.
        threads: of torch on the CPU; 0 leaves its choice.
        workers: processes that make pairs; 0 makes them in the training process.
        checkpoint_every, validate_every, log_every: in steps.
        validation: pairs of the validation stream, whose PSNR is logged.
        training_tile: tile that the weights file names for inference; None for `crop`.
        initial: checkpoint of the network to start from; fusion is added where it has none. None for random weights.
        prior: preset name, or `PriorConfig`. prior_weights: file of the stage before, with the prior's weights.
        frequency, perceptual, latent: weights beside L1 of `losses.frequency_loss`, of `perceptual.PerceptualLoss`, and
            of z_0's distance from the sharp image's latent. The stage denoiser compares latents and takes no loss of
            images.
        vgg: torchvision's public VGG19 weights file, for the perceptual loss; None goes on without it, with the Fourier
            loss: see `fourier`.
        pool: pairs whose latents the denoiser's stage makes once and draws from.
        prior_rate: factor on the learning rate of what is newer than the network: fusion, denoiser and encoder.
        prior_dropout: share of the joint steps that train the network without prior, so that it can do without.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: Stage = "restoration"
    network: NetworkConfig = PRESETS["small"]
    prior: PriorConfig = PRIORS["compact"]
    prior_weights: Path | None = None
    out: Path
    seed: int = Field(0, ge=0)
    steps: int = Field(300_000, ge=1)
    minutes: float = Field(math.inf, gt=0)
    batch: int = Field(9, ge=1)
    crop: int = Field(256, ge=16)
    lr: float = Field(3e-4, gt=0)
    min_lr: float = Field(1e-7, ge=0)
    warmup: int = Field(0, ge=0)
    weight_decay: float = Field(1e-4, ge=0)
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = Field(0.01, gt=0)
    ema: float = Field(0.999, ge=0, lt=1)
    device: str = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    backend: str = "auto"
    channels_last: bool = False
    scene_side: int | None = None
    threads: int = Field(0, ge=0)
    workers: int = Field(0, ge=0)
    checkpoint_every: int = Field(1000, ge=1)
    validate_every: int = Field(1000, ge=1)
    validation: int = Field(16, ge=1)
    log_every: int = Field(50, ge=1)
    training_tile: int | None = None
    initial: Path | None = None
    frequency: float = Field(0.0, ge=0)
    perceptual: float = Field(0.0, ge=0)
    latent: float = Field(0.0, ge=0)
    vgg: Path | None = None
    pool: int = Field(2000, ge=1)
    prior_rate: float = Field(1.0, gt=0)
    prior_dropout: float = Field(0.1, ge=0, lt=1)

    @field_validator("network", "prior", mode="before")
    @classmethod
    def _preset(cls, value: object, info: ValidationInfo) -> object:
        presets: Mapping[str, BaseModel] = PRESETS if info.field_name == "network" else PRIORS
        if isinstance(value, str) and value not in presets:
            raise ValueError(f"there is no such preset, choose one of {', '.join(presets)}")
        return presets[value] if isinstance(value, str) else value

    @field_validator("backend")
    @classmethod
    def _known_backend(cls, value: str) -> str:
        if value not in ("auto", *BACKENDS):
            raise ValueError(f"there is no such backend, choose one of auto, {', '.join(BACKENDS)}")
        return value

    @property
    def fourier(self) -> float:
        """The weight of `losses.frequency_loss` that training uses."""
        stands_in = self.perceptual > 0 and self.vgg is None and not self.frequency
        return FREQUENCY if stands_in else self.frequency

    @model_validator(mode="after")
    def _check_scenes(self) -> TrainConfig:
        needed = self.crop + MARGIN
        if self.scene_side is not None and self.scene_side < needed:
            raise ValueError(
                f"scene_side {self.scene_side} is too small for crops of {self.crop} and their margins: "
                f"set it to {needed} or more"
            )
        return self

    @model_validator(mode="after")
    def _check_losses(self) -> TrainConfig:
        for name in ("frequency", "perceptual"):
            if getattr(self, name) and self.stage == "denoiser":
                raise ValueError(f"stage {self.stage} compares latents and has no image for `{name}`: leave it out")
        return self

    @model_validator(mode="after")
    def _check_latent(self) -> TrainConfig:
        if self.stage in ("denoiser", "joint") and self.prior.sampling.condition == "image":
            raise ValueError(
                f"stage {self.stage} trains priors that see the blurred picture's latent, this one sees the picture "
                "itself: choose another, such as the preset `compact`"
            )
        return self

    @model_validator(mode="after")
    def _check_stage(self) -> TrainConfig:
        if self.stage in ("denoiser", "joint") and self.prior_weights is None:
            raise ValueError(f"stage {self.stage} needs `prior_weights`, the file of the stage before")
        if self.stage == "joint" and self.network.prior_channels != self.prior.latent_channels:
            raise ValueError(
                f"the network takes {self.network.prior_channels} channels of a prior that has "
                f"{self.prior.latent_channels}: set network.prior_channels"
            )
        return self


def read_config(path: str | Path) -> TrainConfig:
    """Read a TOML file; SwintormerError names the file and the first fault."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return TrainConfig(**tomllib.loads(Path(path).read_text(encoding="utf-8")))
    except OSError as error:
        raise SwintormerError(f"Cannot read the training configuration {path}: {reason(error)}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SwintormerError(f"{path} is not valid TOML: {error}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        fault = first["msg"].removeprefix("Value error, ")
        if first["type"] == "missing":
            raise SwintormerError(f"{path} does not set `{field}`: it must.") from error
        if not field:  # settings that do not fit each other: what was given would be the whole file
            raise SwintormerError(f"{path}: {fault}.") from error
        raise SwintormerError(f"{path} sets `{field}` to {first['input']!r}: {fault[0].lower()}{fault[1:]}.") from error
