"""DiffIR's two stages with a spatial z_0 on photographs, and networks without z_0 that train as long.

    python -m bench.two_stages --photos DIR --steps 200 180 --out runs/two_stages

As in DiffIR (Xia et al., ICCV 2023), but z is no vector: it has the channels and the resolution of the latent of the
prior in `--prior-weights`. All start from trained weights: the network from `--initial`, the prior from its own.

1. An encoder E1, with random weights, sees blurred and sharp picture together and makes z; the restoration network
   restores the blurred picture with z. Both learn; the fusion is new.
2. The encoder of the prior sees the blurred picture alone, and its denoiser makes z_0 from noise in a few steps. They
   learn, through all steps, together with the network of stage 1. The loss is that of the picture and `LATENT` times
   the mean absolute difference of z_0 from E1's z. E1 does not change.

The controls see the same pairs for as many steps, at the same rates, which fall twice, too: the same network without z
(`equal steps`), and one with more refinement blocks, which multiplies about as often as network and prior together
(`equal MACs`). The added blocks change nothing at the start, and neither does the new fusion. What is new, and the
prior, learns `RATE` times as fast.

Settings are those of `--config` (configs/small.toml) and `RECIPE`; nine of ten pairs are of photographs, the others of
generated scenes, with the degradation "camera". Gains in PSNR, standard errors over photographs and differences
picture by picture are as in `bench.ablation`. The lines with z of the truth show what z would be worth if the blurred
picture gave it away; one is trained by stage 1 for as many steps as the others. Interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import Tensor, nn

from bench.ablation import (
    TILE,
    Gains,
    exit_code,
    heldout_gains,
    trained_weights,
    with_error,
)
from swintormer.checkpoint.checkpoint import default_weights, read_checkpoint, save_checkpoint
from swintormer.cli.macs import count_macs, count_prior_macs
from swintormer.errors import SwintormerError
from swintormer.evaluation import heldout
from swintormer.evaluation.record import Record, digest
from swintormer.evaluation.scores import Array, Network, heldout_photographs
from swintormer.images.files import replacing
from swintormer.inference.deblurrer import Deblurrer
from swintormer.model.config import NetworkConfig
from swintormer.model.network import Swintormer
from swintormer.model.padding import pad_to_multiple
from swintormer.prior.checkpoint import config_of, load_prior, make_prior
from swintormer.prior.config import PriorConfig
from swintormer.prior.latent import ImageLatent
from swintormer.prior.model import Cut, LatentPrior, Sampler
from swintormer.tensors import read_tensors, to_safetensors
from swintormer.training.config import JointConfig, NetworkStageConfig, RestorationConfig, TrainConfig, read_config
from swintormer.training.data import validation_source
from swintormer.training.losses import moment_loss
from swintormer.training.run import ImageRun, RestorationRun, first_network
from swintormer.training.stages import MOMENTS, JointRun

LATENT = 0.1
RATE = 3.0  # of what is new, and of the prior
RECIPE: dict[str, Any] = {"lr": 3e-4, "warmup": 25, "fourier": 0.1, "workers": 0}
MISSING = 8.0  # factor of sharp minus blurred picture, which E1 sees
ENCODER = "encoder.safetensors"  # E1, beside the weights of stage 1
Config = TypeVar("Config", bound=TrainConfig)


class PairEncoder(nn.Module):
    """E1: the encoder of the prior's autoencoder with twice the channels, for two pictures."""

    def __init__(self, prior: PriorConfig):
        super().__init__()
        channels = 2 * prior.autoencoder["in_channels"]
        autoencoder: Any = AutoencoderTiny(**prior.autoencoder | {"in_channels": channels})
        self.encoder = autoencoder.encoder
        self.patch = round((channels / 6) ** 0.5)
        self.factor = self.patch * 2 ** (len(autoencoder.config["encoder_block_out_channels"]) - 1)

    def forward(self, blurred: Tensor, sharp: Tensor) -> Tensor:
        """z, (B, Cz, H / factor, W / factor), of two pictures (B, 3, H, W) in [0, 1].

        The second is given as what the first lacks, several times enlarged, so that random weights already see it.
        """
        pair = torch.cat((2 * blurred - 1, MISSING * (sharp - blurred)), dim=1)
        z: Tensor = self.encoder(F.pixel_unshuffle(pair, self.patch))
        return z

    @classmethod
    def beside(cls, weights: Path, prior: PriorConfig) -> PairEncoder:
        """The encoder that was trained with the network of these weights."""
        encoder = cls(prior)
        encoder.load_state_dict(read_tensors(weights.with_name(ENCODER))[0])
        return encoder.eval().requires_grad_(False)


class FirstConfig(NetworkStageConfig):
    """Settings of stage 1."""

    stage: Literal["first"] = "first"
    prior: PriorConfig


def learning(net: nn.Module, fresh: Iterable[nn.Parameter]) -> list[dict[str, Any]]:
    """The optimiser's groups: what was trained before, and what is `fresh`, at `RATE` times the learning rate."""
    new = list(fresh)
    known = {id(parameter) for parameter in new}
    trained = [parameter for parameter in net.parameters() if id(parameter) not in known]
    return [{"params": trained}, {"params": new, "rate": RATE}]


class First(nn.Module):
    """What learns in stage 1."""

    def __init__(self, network: Swintormer, encoder: PairEncoder):
        super().__init__()
        self.network, self.encoder = network, encoder


class FirstRun(ImageRun):
    """Stage 1. z is held near mean 0 and variance 1, which the noise schedule of stage 2 assumes."""

    config: FirstConfig
    net: First
    draws = False

    def build(self) -> nn.Module:
        """E1 is that beside the initial weights, if there is one."""
        network, initial = first_network(self.config), self.config.initial
        if initial is not None and initial.with_name(ENCODER).exists():
            return First(network, PairEncoder.beside(initial, self.config.prior).train().requires_grad_(True))
        return First(network, PairEncoder(self.config.prior))

    def learning(self) -> list[dict[str, Any]]:
        fusion = self.net.network.prior_fusion
        assert fusion is not None
        return learning(self.net, [*fusion.parameters(), *self.net.encoder.parameters()])

    def identity(self) -> dict[str, Any]:
        return {name: getattr(self.config, name).model_dump(mode="json") for name in ("network", "prior")}

    def restored(self, blurred: Tensor, sharp: Tensor) -> tuple[Tensor, Tensor]:
        """The restored picture, and z."""
        with self.autocast():
            z = self.net.encoder(blurred, sharp)
            return self.net.network(blurred, prior=z, prior_factor=self.net.encoder.factor), z

    def loss(self, blurred: Tensor, sharp: Tensor) -> Tensor:
        output, z = self.restored(blurred, sharp)
        return self.image_loss(output, sharp) + MOMENTS * moment_loss(z)

    def shown(self, blurred: Tensor, sharp: Tensor) -> tuple[Tensor, Tensor]:
        return self.restored(blurred, sharp)[0], blurred

    def write(self, path: Path, card: dict[str, str]) -> None:
        with self.averaged() as net:
            assert isinstance(net, First)
            with replacing(path.with_name(ENCODER)) as file:  # before the weights, which say that the run is complete
                file.write(to_safetensors(net.encoder.state_dict(), {"format": "pt"}))
            save_checkpoint(net.network, path, card=card, training_tile=self.config.crop)


class SecondRun(JointRun):
    """Stage 2: the joint training of the prior, towards E1's z."""

    def __init__(self, config: JointConfig, device: torch.device):
        super().__init__(config, device)
        assert config.initial is not None
        self.encoder = PairEncoder.beside(config.initial, config.prior).to(device)

    def truth(self, blurred: Tensor, sharp: Tensor) -> Tensor:
        z: Tensor = self.encoder(blurred, sharp)
        return z


class ControlRun(RestorationRun):
    """A network without z; its refinement blocks from number `blocks` on are new."""

    def __init__(self, blocks: int, config: RestorationConfig, device: torch.device):
        self.blocks = blocks
        super().__init__(config, device)

    def learning(self) -> list[dict[str, Any]]:
        assert isinstance(self.net, Swintormer)
        return learning(self.net, self.net.refinement[self.blocks :].parameters())


def enlarged(weights: Path, config: NetworkConfig) -> Swintormer:
    """The network of these weights with more refinement blocks, which add zeros."""
    trained, net = read_checkpoint(weights, prior=False).net, Swintormer(config)
    net.load_state_dict(trained.state_dict(), strict=False)
    for block in list(net.refinement)[trained.config.num_refinement_blocks :]:
        for part in (block.attn, block.ffn):
            for parameter in part.project_out.parameters():
                nn.init.zeros_(parameter)
    return net


class TrueLatent(Sampler):
    """E1's z in the place of a sample; the truth is that of the picture last taken from `following`."""

    truth: Tensor

    def __init__(self, prior: LatentPrior, encoder: PairEncoder):
        super().__init__(prior)
        self.encoder = encoder

    def following(self, pictures: Iterator[tuple[str, Array]], side: int) -> Iterator[tuple[str, Array]]:
        """The pictures, whose middle of `side` pixels is the truth."""
        for name, picture in pictures:
            truth = heldout.centre(picture, side)
            colours = np.repeat(truth, 3, axis=2) if truth.shape[2] == 1 else truth
            self.truth = torch.from_numpy(np.ascontiguousarray(colours)).permute(2, 0, 1)[None]
            yield name, picture

    @torch.inference_mode()
    def sample(self, cut: Cut, height: int, width: int, progress: object = None) -> ImageLatent:
        blurred, factor = cut(slice(0, height), slice(0, width))[None], self.encoder.factor
        z = self.encoder(*(pad_to_multiple(picture, factor) for picture in (blurred, self.truth)))
        return ImageLatent(z[0], factor)


def macs(network: NetworkConfig, prior: PriorConfig | None = None) -> int:
    """Multiplications of a tile, with those of the prior."""
    own = count_macs(network, TILE, TILE).total
    return own + (0 if prior is None else count_prior_macs(prior, TILE, TILE).total)


@dataclass(frozen=True)
class Experiment:
    """What the command line asks for."""

    base: RestorationConfig  # `initial` names the weights that all start from
    out: Path
    steps: tuple[int, int]
    prior: PriorConfig
    prior_weights: Path
    photographs: int
    side: int

    @cached_property
    def with_fusion(self) -> NetworkConfig:
        return self.base.network.model_copy(update={"prior_channels": self.prior.latent_channels})

    @cached_property
    def larger(self) -> NetworkConfig:
        """With as many more refinement blocks as come nearest to network and prior in multiplications."""
        blocks, goal = self.base.network.num_refinement_blocks, macs(self.with_fusion, self.prior)
        more = range(blocks + 1, blocks + 9)
        sizes = [self.base.network.model_copy(update={"num_refinement_blocks": count}) for count in more]
        return min(sizes, key=lambda size: abs(macs(size) - goal))

    @cached_property
    def first(self) -> FirstConfig:
        return self._config(FirstConfig, "first", 0, prior=self.prior, network=self.with_fusion)

    @cached_property
    def first_longer(self) -> FirstConfig:
        """Stage 1 as long as both, from its weights."""
        own = {"prior": self.prior, "network": self.with_fusion, "initial": trained_weights(self.first, FirstRun)}
        return self._config(FirstConfig, "first_longer", 1, **own)

    @cached_property
    def second(self) -> JointConfig:
        """It reads the weights of stage 1, which is trained now unless it is already."""
        own = {"network": self.with_fusion, "initial": trained_weights(self.first, FirstRun)}
        own |= {"prior": self.prior, "prior_weights": self.prior_weights, "prior_rate": RATE, "latent": LATENT}
        return self._config(JointConfig, "second", 1, **own)

    def control(self, name: str, larger: bool = False, stages: int = 2) -> Path:
        """Weights of a network without z after trainings like the stages."""
        weights, network = self.base.initial, self.base.network
        assert weights is not None
        if larger:
            torch.manual_seed(self.base.seed)
            net = enlarged(weights, network := self.larger)
            weights = self.out / "larger.safetensors"
            save_checkpoint(net, weights)
        for stage in range(stages):
            own = {"network": network, "initial": weights}
            config = self._config(RestorationConfig, f"{name}_{stage + 1}", stage, **own)
            weights = trained_weights(config, partial(ControlRun, self.base.network.num_refinement_blocks))
        return weights

    def _config(self, kind: type[Config], name: str, stage: int, **own: Any) -> Config:
        """The configuration of a run in the folder `name`, like `base` but for its `own` settings."""
        shared = self.base.model_dump(include=kind.model_fields.keys() - {"stage"})
        paced = {"steps": self.steps[stage], "minutes": math.inf, "seed": self.base.seed + stage}  # other pairs
        return kind.model_validate(shared | paced | {"out": self.out / name} | own)


@dataclass(frozen=True)
class Line:
    """A line of the table."""

    text: str
    gmacs: float
    steps: int
    gains: Gains


def lines(experiment: Experiment) -> Iterator[Line]:
    """The lines, each as soon as it is measured; the multiplications of stage 1 are without those of E1."""
    pictures = heldout.PHOTOGRAPHS[: experiment.photographs]
    tile, side = experiment.base.training_tile or experiment.base.crop, experiment.side

    def line(text: str, path: Path, steps: int, prior: bool | TrueLatent = False) -> Line:
        checkpoint = read_checkpoint(path, prior=prior is True)
        deblur = Deblurrer(checkpoint, tile=tile, blend="uniform", device=experiment.base.device, prior=prior)
        place = experiment.out / "scores" / f"{text}.csv".replace(" ", "_").replace(",", "")
        record = Record(place, f"{digest(path)}, tile {tile}, side {side}")
        photographs = heldout_photographs(pictures)
        if isinstance(prior, TrueLatent):
            photographs = prior.following(photographs, side)
        cost = macs(checkpoint.net.config, experiment.prior if prior is True else None)
        return Line(text, cost / 1e9, steps, heldout_gains(Network(deblur), photographs, side, record))

    assert experiment.base.initial is not None
    yield line("not trained further", experiment.base.initial, 0)

    def knowing(text: str, config: FirstConfig, steps: int) -> Line:
        path = trained_weights(config, FirstRun)
        latent = TrueLatent(make_prior(experiment.prior), PairEncoder.beside(path, experiment.prior))
        return line(text, path, steps, latent)

    steps = sum(experiment.steps)
    yield knowing("stage 1, z of the truth", experiment.first, experiment.steps[0])
    yield line("equal steps, stage 1", experiment.control("equal_steps", stages=1), experiment.steps[0])
    yield line("equal steps", experiment.control("equal_steps"), steps)
    second = trained_weights(experiment.second, SecondRun)
    yield line("stage 2, z_0 sampled", second, steps, prior=True)
    yield line("stage 2, z_0 left out", second, steps)
    yield line("equal MACs", experiment.control("equal_macs", larger=True), steps)
    yield knowing("stage 1 as long, z of the truth", experiment.first_longer, steps)


def latent_error(experiment: Experiment) -> float:
    """Mean square error of z_0 on the validation pairs, as a share of the variance of z by channel and place."""
    config = experiment.second
    encoder = PairEncoder.beside(experiment.first.out / "weights.safetensors", experiment.prior)
    prior = load_prior(trained_weights(config, SecondRun))
    source, true, sampled = validation_source(config), [], []
    for index in range(config.validation):
        blurred, sharp = source.batch(index, 1)
        with torch.inference_mode():
            true.append(encoder(blurred, sharp))
            sampled.append(prior.sample(blurred))
    z = torch.cat(true)
    return float((torch.cat(sampled) - z).square().mean() / z.var(dim=(0, 2, 3)).mean())


COLUMNS = ("network", "GMACs", "steps", "gain, dB", "against equal steps, dB", "against equal MACs, dB")


def table(measured: Sequence[Line]) -> str:
    """A table in Markdown; differences are picture by picture, from lines of as many steps."""
    rows = ["| " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * (len(COLUMNS) - 1)]
    for line in measured:
        cells = [line.text, f"{line.gmacs:.2f}", str(line.steps), with_error(list(line.gains.values()))]
        for name in ("equal steps", "equal MACs"):
            same = (found for found in measured if found.text.startswith(name) and found.steps == line.steps)
            other = next((found.gains for found in same if found is not line), None)
            cells.append("" if other is None else with_error([line.gains[key] - other[key] for key in line.gains]))
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def parse(arguments: Sequence[str]) -> Experiment:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.two_stages", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--photos", type=Path, required=True, help="folder of sharp photographs")
    parser.add_argument("--steps", type=int, nargs=2, required=True, help="of the two stages")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs, the scores and table.md")
    parser.add_argument("--initial", type=Path, default=default_weights("small"), help="of the network")
    parser.add_argument("--prior-weights", type=Path, default=default_weights("small-prior"), help="of the prior")
    parser.add_argument("--config", type=Path, default=Path("configs/small.toml"), help="of stage restoration")
    parser.add_argument("--photographs", type=int, default=len(heldout.PHOTOGRAPHS), help="the first so many")
    parser.add_argument("--side", type=int, default=heldout.SIDE, help="of these, in pixels")
    words = parser.parse_args(arguments)
    base = read_config(words.config)
    if not isinstance(base, RestorationConfig):
        raise SwintormerError(f"{words.config} is of stage {base.stage}: stage restoration is needed.")
    data = {"photos": words.photos, "photos_share": 0.9, "scenes": 0.1, "degradation": "camera"}
    own = RECIPE | {"data": base.data.model_dump() | data, "initial": words.initial}
    base = RestorationConfig.model_validate(base.model_dump() | own)
    prior = config_of(load_prior(words.prior_weights))
    first, second = words.steps
    return Experiment(base, words.out, (first, second), prior, words.prior_weights, words.photographs, words.side)


def main(arguments: Sequence[str]) -> int:
    """Print the table after each line, and keep it in `out/table.md`; returns the exit code."""
    return exit_code(lambda: _table(arguments))


def _table(arguments: Sequence[str]) -> None:
    experiment = parse(arguments)
    if experiment.base.threads:
        torch.set_num_threads(experiment.base.threads)
    measured: list[Line] = []
    for line in lines(experiment):
        measured.append(line)
        text = table(measured)
        print(text.splitlines()[-1], file=sys.stderr, flush=True)
        (experiment.out / "table.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    print(f"\nMean square error of z_0, share of the variance of z: {latent_error(experiment):.2f}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
