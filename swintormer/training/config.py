"""The configuration of a training run: a TOML file with the settings of one stage."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from swintormer.data.config import DataConfig
from swintormer.data.synthetic import MARGIN
from swintormer.errors import SwintormerError
from swintormer.images.files import reason
from swintormer.model.config import PRESETS, NetworkConfig
from swintormer.prior.config import PRIORS, PriorConfig
from swintormer.training.perceptual import SMALLEST
from swintormer_kernels import BACKENDS


def _preset_of(presets: Mapping[str, BaseModel]) -> BeforeValidator:
    def configuration(value: object) -> object:
        if isinstance(value, str) and value not in presets:
            raise ValueError(f"there is no such preset, choose one of {', '.join(presets)}")
        return presets[value] if isinstance(value, str) else value

    return BeforeValidator(configuration)


Network = Annotated[NetworkConfig, _preset_of(PRESETS)]
Prior = Annotated[PriorConfig, _preset_of(PRIORS)]


APART = 64  # steps between two that take the same pair
LARGEST = 1e9  # of rates and weights: products of two stay within float32
Share = Annotated[float, Field(ge=0, lt=1)]


class Phase(NamedTuple):
    """What a step trains on: pairs `first` ... `first + batch - 1` of side `crop` (without `reuse`)."""

    crop: int
    batch: int
    first: int


class CropPhase(BaseModel):
    """`steps` steps with `batch` pairs of side `crop`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(ge=1)
    crop: int = Field(ge=16)
    batch: int = Field(ge=1)


class TrainConfig(BaseModel):
    """The settings of every stage; the defaults are the release's recipe (arXiv 2401.05907) where it states one.

    A run takes the configuration of its stage, one of `StageConfig`.

    Attributes:
        stage: what is trained (run.py, stages.py).
        out: run folder.
        data: where the pairs come from; generated scenes where it is left out.
        steps, minutes: the run ends at whichever comes first; the schedule follows the one that is further along.
        batch, crop: pairs per step, over all processes, and their side; a multiple of 16 * window needs no padding.
        accumulate: parts of each process's pairs that go through the network one after the other, which saves memory;
            their gradients are added.
        lr, min_lr, warmup: peak and last learning rate, and the steps of linear rise to the peak; cosine between.
        clip: largest gradient norm. ema: decay of the averaged weights, lower in the first steps.
        dtype: "bfloat16" runs the network under autocast.
        backend: of the ops, "auto" for the best of each.
        channels_last: memory layout of weights; on two AVX-512 cores 17 % faster at crop 128 in float32.
        scene_side: side of the generated scenes that pairs are cut from; None for 512 or what the crop needs.
        threads: of torch on the CPU; 0 leaves its choice.
        checkpoint_every, validate_every, log_every: in steps.
        validation: pairs of the validation stream, whose PSNR is logged.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    stage: str
    out: Path
    seed: int = Field(0, ge=0, lt=2**63)
    data: DataConfig = DataConfig.model_validate({})
    steps: int = Field(300_000, ge=1, lt=2**63)
    minutes: float = Field(math.inf, gt=0, allow_inf_nan=True)
    batch: int = Field(9, ge=1)
    accumulate: int = Field(1, ge=1)
    crop: int = Field(256, ge=16)
    lr: float = Field(3e-4, gt=0, le=LARGEST)
    min_lr: float = Field(1e-7, ge=0, le=LARGEST)
    warmup: int = Field(0, ge=0)
    weight_decay: float = Field(1e-4, ge=0, le=LARGEST)
    betas: tuple[Share, Share] = (0.9, 0.99)
    clip: float = Field(0.01, gt=0, le=LARGEST)
    ema: float = Field(0.999, ge=0, lt=1)
    device: str = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    backend: str = "auto"
    channels_last: bool = False
    scene_side: int | None = None
    threads: int = Field(0, ge=0, le=1024)
    checkpoint_every: int = Field(1000, ge=1)
    validate_every: int = Field(1000, ge=1)
    validation: int = Field(16, ge=1)
    log_every: int = Field(50, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, values: Any) -> Any:
        unknown = sorted(values.keys() - cls.model_fields.keys()) if isinstance(values, Mapping) else []
        if unknown:
            name, stage = unknown[0], cls.model_fields["stage"].default
            others = [other for other, config in CONFIGS.items() if name in config.model_fields]
            where = f", it belongs to {' and '.join(others)}" if others else ""
            raise ValueError(f"stage {stage} has no setting `{name}`{where}")
        return values

    @field_validator("backend")
    @classmethod
    def _known_backend(cls, value: str) -> str:
        if value not in ("auto", *BACKENDS):
            raise ValueError(f"there is no such backend, choose one of auto, {', '.join(BACKENDS)}")
        return value

    @model_validator(mode="after")
    def _check_sizes(self) -> TrainConfig:
        largest = max(phase.crop for phase in self.phases)
        if self.scene_side is not None and self.scene_side < largest + MARGIN:
            raise ValueError(
                f"scene_side {self.scene_side} is too small for crops of {largest} and their margins: "
                f"set it to {largest + MARGIN} or more"
            )
        smallest = min(phase.batch for phase in self.phases)
        if self.accumulate > smallest:
            raise ValueError(f"accumulate {self.accumulate} parts need as many pairs a step, and batch is {smallest}")
        return self

    @property
    def channels(self) -> int:
        """Of the blurred pictures that the stage takes."""
        return 3

    @model_validator(mode="after")
    def _check_views(self) -> TrainConfig:
        if self.channels != (6 if self.data.views else 3):
            what = "two views" if self.data.views else "no views"
            raise ValueError(
                f"stage {self.stage} takes pictures of {self.channels} channels here and the data has {what}: "
                "network.in_channels is 6 for data.views = true, else 3"
            )
        return self

    @property
    def phases(self) -> list[CropPhase]:
        """Crops and batches of the run in order; the last lasts to its end."""
        return [CropPhase(steps=self.steps, crop=self.crop, batch=self.batch)]

    def pairs(self, step: int) -> int:
        """Number of pairs made before step `step`; for 0, those made before the run's first step."""
        return self.phase(step).first

    def phase(self, step: int) -> Phase:
        """Which pairs a step trains on."""
        first = 0
        *before, last = self.phases
        for phase in before:
            if step < phase.steps:
                return Phase(phase.crop, phase.batch, first + step * phase.batch)
            first, step = first + phase.steps * phase.batch, step - phase.steps
        return Phase(last.crop, last.batch, first + step * last.batch)


class ImageStageConfig(TrainConfig):
    """Settings of the stages that compare images.

    Attributes:
        workers: processes that make pairs; 0 makes them in the training process.
        reuse: how many steps take each pair, turned or mirrored otherwise each time, for a device that takes steps
            faster than the processes make pairs. A run, or its continuation, first makes the earlier pairs of its first
            step, 64 (reuse - 1) / reuse batches, and keeps so many on the device (data.py).
        crops: phases before the one with `crop` and `batch`, which lasts from there to the end of the run; for small
            crops in large batches first, as Restormer does (Zamir et al. CVPR 2022).
        loss: "l1", or "psnr" (`losses.psnr_loss`), under which a picture that needs little counts as much as a strongly
            blurred one.
        fourier: weight of `losses.fourier_loss`, which is added. At 0.5 this term is 0.35 of the L1 loss of white noise
            (real and imaginary part have half its variance each), so L1 dominates.
        perceptual: weight of `perceptual.PerceptualDistance` with VGG16, which needs the extra `[perceptual]`.
    """

    workers: int = Field(0, ge=0)
    reuse: int = Field(1, ge=1, le=8)
    crops: tuple[CropPhase, ...] = ()
    loss: Literal["l1", "psnr"] = "l1"
    fourier: float = Field(0.0, ge=0, le=LARGEST)
    perceptual: float = Field(0.0, ge=0, le=LARGEST)

    @property
    def phases(self) -> list[CropPhase]:
        return [*self.crops, *super().phases]

    @property
    def earlier(self) -> int:
        """Groups of pairs before the newest one of a step: group g + `earlier` is new in step g."""
        return (self.reuse - 1) * APART

    def group(self, number: int) -> range:
        """The new pairs of a step, by the number of their group, which without `reuse` is the step."""
        phase = self.phase(number)
        return range(phase.first // self.reuse, (phase.first + phase.batch) // self.reuse)

    def pairs(self, step: int) -> int:
        return self.group(step + self.earlier).start

    @model_validator(mode="after")
    def _check_phases(self) -> ImageStageConfig:
        before = sum(phase.steps for phase in self.crops)
        if before >= self.steps:
            raise ValueError(f"the phases of crops last {before} steps and the run {self.steps}: raise `steps`")
        smallest = min(phase.crop for phase in self.phases)
        if self.perceptual and smallest < SMALLEST["vgg"]:
            raise ValueError(f"the perceptual loss takes crops of {SMALLEST['vgg']} pixels or more, found {smallest}")
        return self

    @model_validator(mode="after")
    def _check_reuse(self) -> ImageStageConfig:
        if self.reuse > 1:
            if self.batch % self.reuse:
                raise ValueError(
                    f"batch {self.batch} is no multiple of reuse {self.reuse}: a step takes batch / reuse new pairs"
                )
            if self.crops:
                raise ValueError("`reuse` needs one crop for the whole run: leave out `crops` or `reuse`")
            if self.data.views:
                raise ValueError("the two views of a sensor cannot be turned: set `reuse` to 1")
        return self


class NetworkStageConfig(ImageStageConfig):
    """Settings of the stages that train the restoration network.

    Attributes:
        network: preset name, or sizes as in `NetworkConfig`.
        initial: checkpoint of the network to start from; fusion is added where it has none. None for random weights.
        training_tile: tile that the weights file names for inference; None for `crop`.
    """

    network: Network = PRESETS["small"]
    initial: Path | None = None
    training_tile: int | None = Field(None, ge=1)


class DenoisingStageConfig(TrainConfig):
    """Settings of the stages that train the denoiser of a trained autoencoder.

    Attributes:
        prior: preset name, or `PriorConfig`. prior_weights: file of the stage before, with the prior's weights.
    """

    prior: Prior = PRIORS["compact"]
    prior_weights: Path

    @model_validator(mode="after")
    def _check_latent(self) -> DenoisingStageConfig:
        if self.prior.sampling.condition == "image":
            raise ValueError(
                f"stage {self.stage} trains priors that see the blurred picture's latent, this one sees the picture "
                "itself: choose another, such as the preset `compact`"
            )
        return self


class RestorationConfig(NetworkStageConfig):
    """The restoration network without a prior; also of six channels, two dual-pixel views.

    Attributes:
        graph: on a GPU take each step as a CUDA graph (graph.py).
    """

    stage: Literal["restoration"] = "restoration"
    graph: bool = False

    @property
    def channels(self) -> int:
        return self.network.in_channels


class AutoencoderConfig(ImageStageConfig):
    """First stage of the prior: the autoencoder.

    Attributes:
        prior: preset name, or `PriorConfig`.
    """

    stage: Literal["autoencoder"] = "autoencoder"
    prior: Prior = PRIORS["compact"]


class DenoiserConfig(DenoisingStageConfig):
    """Second stage of the prior: the denoiser, on the autoencoder's latents, so without a loss of images.

    Attributes:
        pool: number of pairs whose latents are made once; every batch is drawn from them.
    """

    stage: Literal["denoiser"] = "denoiser"
    pool: int = Field(2000, ge=1)


class JointConfig(NetworkStageConfig, DenoisingStageConfig):
    """Third stage of the prior: network and denoiser jointly, through the sampler.

    Attributes:
        latent: weight of z_0's distance from the sharp image's latent.
        prior_rate: factor of the learning rate for the newer parts: fusion, denoiser and encoder.
        prior_dropout: share of the steps without the prior, so that the network also learns to restore without it.
    """

    stage: Literal["joint"] = "joint"
    latent: float = Field(0.0, ge=0, le=LARGEST)
    prior_rate: float = Field(1.0, gt=0, le=LARGEST)
    prior_dropout: float = Field(0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _check_channels(self) -> JointConfig:
        if self.reuse > 1:
            raise ValueError("stage joint does not support `reuse`: set it to 1")
        if self.network.in_channels != 3:
            raise ValueError(f"stage joint trains networks of 3 channels, found {self.network.in_channels}")
        if self.network.prior_channels != self.prior.latent_channels:
            raise ValueError(
                f"the network takes {self.network.prior_channels} channels of a prior that has "
                f"{self.prior.latent_channels}: set network.prior_channels"
            )
        return self


StageConfig = RestorationConfig | AutoencoderConfig | DenoiserConfig | JointConfig
CONFIGS: dict[str, type[TrainConfig]] = {
    config.model_fields["stage"].default: config for config in get_args(StageConfig)
}
_ADAPTER: TypeAdapter[StageConfig] = TypeAdapter(Annotated[StageConfig, Discriminator("stage")])


def read_config(path: str | Path) -> StageConfig:
    """Read a TOML file of the configuration of its `stage`, of "restoration" where it names none.

    Raises:
        SwintormerError: names the file and the first error.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        return _ADAPTER.validate_python({"stage": "restoration"} | values)
    except OSError as error:
        raise SwintormerError(f"Cannot read the training configuration {path}: {reason(error)}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SwintormerError(f"{path} is not valid TOML: {error}.") from error
    except ValidationError as error:
        raise SwintormerError(_sentence(path, error.errors()[0])) from error


def _sentence(path: str | Path, error: ErrorDetails) -> str:
    if error["type"] == "union_tag_invalid":
        tag = error["ctx"]["tag"]
        return f"{path} sets `stage` to {tag!r}: there is no such stage, choose one of {', '.join(CONFIGS)}."
    stage, *place = error["loc"]
    field = ".".join(str(part) for part in place)
    fault = error["msg"].removeprefix("Value error, ")
    if error["type"] == "missing":
        return f"{path} does not set `{field}`, which stage {stage} needs."
    if not field:  # settings that do not fit each other: what was given would be the whole file
        return f"{path}: {fault}."
    return f"{path} sets `{field}` to {error['input']!r}: {fault[0].lower()}{fault[1:]}."
