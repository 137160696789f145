"""The state of a training run, saved and restored as one file; a training step; the averaged weights."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from swintormer.errors import SwintormerError
from swintormer.images.files import replacing
from swintormer.model.network import Swintormer
from swintormer.training.config import ImageStageConfig, NetworkStageConfig, RestorationConfig, TrainConfig
from swintormer.training.data import Source, Sources, batches, training_sources, validation_source
from swintormer.training.graph import StepGraphs
from swintormer.training.losses import fourier_loss, l1_loss, psnr_loss
from swintormer.training.perceptual import PerceptualDistance
from swintormer.training.processes import Processes
from swintormer.training.state import FREE, STATE_VERSION, check_settings, read_state, sort_tensors

LOSSES = {"l1": l1_loss, "psnr": psnr_loss}
SHOWN = 4  # validation pairs that are kept as pictures


@dataclass(frozen=True)
class Validation:
    """Mean PSNR in dB over the validation pairs: with the averaged weights, and of the pictures without them.

    Attributes:
        pictures: of the first pairs, input, output and truth, each (3, S, S) in [0, 1] on the CPU.
    """

    psnr: float
    psnr_without: float
    pictures: list[tuple[Tensor, Tensor, Tensor]]


class Run:
    """The state of a training run: network, average, optimiser, counters; saved and restored as one file.

    The stages derive from it: `RestorationRun`, and those of the prior (stages.py).

    Attributes:
        net: everything that the state file holds, also what does not learn.
        place: this process among those of the run.
        draws: whether the loss may take random numbers that do not come from `chance`, such as the sampler's noise
            where eta is not 0.
    """

    config: TrainConfig
    net: nn.Module
    place = Processes()
    draws = True

    def __init__(self, config: TrainConfig, device: torch.device):
        self.config = config
        self.device = device
        torch.manual_seed(config.seed)
        self.net = self.build().to(device)
        if config.channels_last:
            for parameter in self.net.parameters():
                if parameter.ndim == 4:
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self.average = {name: tensor.detach().clone() for name, tensor in self.net.state_dict().items()}
        self.optimizer = torch.optim.AdamW(
            self.learning(), lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, foreach=True
        )
        self.step = 0
        self.seconds = 0.0
        self.waited = 0.0  # seconds of this process without data
        self._first_row = 0  # of the running part, in the step's batch

    def build(self) -> nn.Module:
        """The module to train, with its initial weights."""
        raise NotImplementedError

    def learning(self) -> list[dict[str, Any]]:
        """The trained parameters, in the optimiser's groups; `rate` of a group multiplies the learning rate."""
        return [{"params": [parameter for parameter in self.net.parameters() if parameter.requires_grad]}]

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def identity(self) -> dict[str, Any]:
        """The sizes in which a state file must agree with this run."""
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """The configuration as the state file notes it: what decides the result."""
        settings: dict[str, Any] = json.loads(json.dumps(self.config.model_dump(mode="json", exclude=FREE)))
        return settings

    def prepare(self) -> None:
        """Create the sources of pairs and their caches before the first step, which may take long.

        Raises:
            SwintormerError: data that cannot be read.
        """
        self.sources  # noqa: B018
        if self.place.first:
            self.validation  # noqa: B018

    @cached_property
    def sources(self) -> Sources:
        """Of training pairs, for each crop."""
        return training_sources(self.config, self.place)

    @cached_property
    def validation(self) -> Source:
        return validation_source(self.config)

    def batches(self, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """From step `start` on, what `train_step` takes: this process's pairs (blurred, sharp), each (B, C, S, S)."""
        raise NotImplementedError

    def loss(self, blurred: Tensor, sharp: Tensor) -> Tensor:
        """The loss that a step of the optimiser reduces, a mean over the pairs. Random numbers come from `chance`."""
        raise NotImplementedError

    def chance(self, count: int) -> list[torch.Generator]:
        """A generator for each of `count` pairs, seeded by the run's seed, the step and the pair's index in the batch.

        The random numbers are therefore the same for any number of processes and parts, and after resuming.
        """
        rows = range(self._first_row, self._first_row + count)
        return [torch.Generator().manual_seed(_number(self.config.seed, self.step, row)) for row in rows]

    def shown(self, blurred: Tensor, sharp: Tensor) -> tuple[Tensor, Tensor]:
        """For validation: this stage's output for one pair, and the picture to compare it with."""
        raise NotImplementedError

    @property
    def progress(self) -> float:
        """Share of the run that is done, in [0, 1]."""
        return min(1.0, max(self.step / self.config.steps, self.seconds / 60 / self.config.minutes))

    @property
    def lr(self) -> float:
        """Learning rate of the coming step: linear rise, then half a cosine over the whole run."""
        c = self.config
        cosine = c.min_lr + (c.lr - c.min_lr) * (1 + math.cos(math.pi * self.progress)) / 2
        return cosine * min(1.0, (self.step + 1) / (c.warmup + 1))

    def train_step(self, blurred: Tensor, sharp: Tensor) -> tuple[Tensor, Tensor]:
        """One optimiser step on this process's share of the pairs, (B, C, S, S) and (B, 3, S, S).

        Returns:
            Loss and gradient norm before clipping, of all processes together.
        """
        for group in self.optimizer.param_groups:
            self._set_rate(group, self.lr * group.get("rate", 1.0))
        blurred, sharp = blurred.to(self.device, non_blocking=True), sharp.to(self.device, non_blocking=True)
        loss, norm = self._update(blurred, sharp)
        self.step += 1
        self._follow()
        return loss, norm

    def _set_rate(self, group: dict[str, Any], rate: float) -> None:
        group["lr"] = rate

    def _update(self, blurred: Tensor, sharp: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients, clipping and the optimiser's step; loss and norm as `train_step`."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._backward(blurred, sharp)
        parameters = self._parameters()
        self.place.add([*(p.grad for p in parameters if p.grad is not None), loss])
        norm = nn.utils.clip_grad_norm_(parameters, self.config.clip)
        self.optimizer.step()
        return loss, norm.detach()

    def _backward(self, blurred: Tensor, sharp: Tensor) -> Tensor:
        """Add the gradients of this process's pairs, part by part; their share of the loss."""
        batch = len(blurred) if self.place.size == 1 else self.config.phase(self.step).batch
        total = torch.zeros((), device=self.device)
        self._first_row = self.place.share(batch).start
        for part, truth in zip(*(t.tensor_split(self.config.accumulate) for t in (blurred, sharp)), strict=True):
            if self.draws:
                torch.manual_seed(_number(self.config.seed, self.step, self._first_row))
            loss = self.loss(part, truth) * (len(part) / batch)
            loss.backward()
            total += loss.detach()
            self._first_row += len(part)
        return total

    @torch.no_grad()
    def _follow(self) -> None:
        decay = min(
            self.config.ema, (1 + self.step) / (10 + self.step)
        )  # a lower decay at first, to forget the untrained weights
        state = self.net.state_dict()
        floats = [name for name, tensor in state.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([self.average[n] for n in floats], [state[n] for n in floats], 1 - decay)

    def autocast(self) -> Any:
        if self.config.dtype == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The network with the averaged weights, for validation and for the result."""
        own = {name: tensor.clone() for name, tensor in self.net.state_dict().items()}
        self.net.load_state_dict(self.average)
        try:
            yield self.net
        finally:
            self.net.load_state_dict(own)

    def save(self, path: Path) -> None:
        """Write everything that `load` needs to a new file, which then replaces `path`."""
        from safetensors.torch import save

        tensors = {f"net.{k}": v for k, v in self.net.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v for k, v in slots.items()}
        state = {
            "version": STATE_VERSION,
            "step": self.step,
            "seconds": self.seconds,
            "stage": self.config.stage,
            "identity": self.identity(),
            "settings": self.settings(),
        }
        with replacing(path) as file:
            file.write(save({k: v.contiguous().cpu() for k, v in tensors.items()}, {"state": json.dumps(state)}))

    def load(self, path: Path, accept_changes: bool = False) -> None:
        """Continue from a file of `save`. The run changes only if the whole file fits.

        Args:
            accept_changes: go on under settings other than those that the file was written under.

        Raises:
            SwintormerError: no state of this run; one of a network of other sizes; one written under other settings;
                one that is further than `steps`.
        """
        state, tensors = self.place.from_first(lambda: read_state(path))
        if state.identity != self.identity():
            raise SwintormerError(f"{path} is of a network of other sizes: start over or choose another `out` folder.")
        sort_tensors(path, state, tensors, self.net.state_dict(), self._parameters())
        if not accept_changes:
            check_settings(path, state.settings, self.settings())
        if state.step > self.config.steps:
            raise SwintormerError(
                f"{path} has done {state.step} steps, and `steps` asks for {self.config.steps}: raise it or start over."
            )
        self.net.load_state_dict(state.parts["net"])
        self.average = {name: tensor.to(self.device) for name, tensor in state.parts["average"].items()}
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state.slots})
        self.step, self.seconds = state.step, state.seconds

    @torch.no_grad()
    def validate(self) -> Validation:
        """PSNR of the averaged weights over the validation pairs."""
        restored, untouched, pictures = [], [], []
        with self.averaged():
            for index in range(self.config.validation):
                blurred, sharp = (t.to(self.device) for t in self.validation.batch(index, 1))
                output, without = (t.float().clamp(0, 1) for t in self.shown(blurred, sharp))
                restored.append(_psnr(output, sharp))
                untouched.append(_psnr(without, sharp))
                if index < SHOWN:
                    pictures.append((blurred[0, -3:].cpu(), output[0].cpu(), sharp[0].cpu()))
        return Validation(_mean(restored), _mean(untouched), pictures)

    def write(self, path: Path, card: dict[str, str]) -> None:
        """The result, with averaged weights, as the next stage or `swintormer deblur` reads it."""
        raise NotImplementedError


class ImageRun(Run):
    """Common parts of the stages that compare images."""

    config: ImageStageConfig

    def __init__(self, config: ImageStageConfig, device: torch.device):
        # Made before the seed is set, so that its random initial weights do not change the run.
        self.perceptual = PerceptualDistance.trained("vgg").to(device) if config.perceptual else None
        super().__init__(config, device)

    def batches(self, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        return batches(self.config, self.sources, self.device, start, self.config.workers, self.place)

    def image_loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The configuration's `loss` and those to which it gives a weight; batches (B, 3, S, S), outside autocast."""
        loss = LOSSES[self.config.loss](output, target)
        if self.config.fourier:
            loss = loss + self.config.fourier * fourier_loss(output, target)
        if self.perceptual is not None:
            loss = loss + self.config.perceptual * self.perceptual(output, target).mean()
        return loss


class RestorationRun(ImageRun):
    """The restoration network alone; its steps may be CUDA graphs."""

    config: RestorationConfig
    draws = False

    def __init__(self, config: RestorationConfig, device: torch.device):
        super().__init__(config, device)
        self.graphs = StepGraphs(super()._update) if config.graph and device.type == "cuda" else None
        if self.graphs is not None:
            for group in self.optimizer.param_groups:  # a graph reads the rate and AdamW's counters from the device
                group["lr"], group["capturable"] = torch.tensor(config.lr, device=device), True

    def _set_rate(self, group: dict[str, Any], rate: float) -> None:
        if self.graphs is None:
            super()._set_rate(group, rate)
        else:
            group["lr"].fill_(rate)

    def _update(self, blurred: Tensor, sharp: Tensor) -> tuple[Tensor, Tensor]:
        if self.graphs is None or self.place.size > 1:
            return super()._update(blurred, sharp)
        return self.graphs(blurred, sharp)

    def build(self) -> nn.Module:
        return first_network(self.config)

    def identity(self) -> dict[str, Any]:
        return {"network": self.config.network.model_dump(mode="json")}

    def loss(self, blurred: Tensor, sharp: Tensor) -> Tensor:
        with self.autocast():
            output = self.net(right_first(blurred))
        return self.image_loss(output, sharp)

    def shown(self, blurred: Tensor, sharp: Tensor) -> tuple[Tensor, Tensor]:
        """What the network makes of the blurred picture; that picture, of two views the right one."""
        image = right_first(blurred)
        with self.autocast():
            return self.net(image), image[:, :3]

    def write(self, path: Path, card: dict[str, str]) -> None:
        from swintormer.checkpoint.checkpoint import save_checkpoint

        with self.averaged() as net:
            assert isinstance(net, Swintormer)
            save_checkpoint(net, path, card=card, training_tile=self.config.training_tile or self.config.crop)


def right_first(blurred: Tensor) -> Tensor:
    """Of two views the right one first, as the network takes them; sources give the left one first."""
    return blurred if blurred.shape[1] == 3 else torch.cat((blurred[:, 3:], blurred[:, :3]), dim=1)


def first_network(config: NetworkStageConfig) -> Swintormer:
    """The initial restoration network: that of `initial`, with a new fusion if it has none; else the identity."""
    net = Swintormer(config.network)
    if config.initial is not None:
        from swintormer.checkpoint.checkpoint import load_checkpoint

        trained = load_checkpoint(config.initial)
        without = {"prior_channels": 0}
        if trained.config not in (config.network, config.network.model_copy(update=without)):
            raise SwintormerError(f"{config.initial} is of a network of other sizes than `network`.")
        net.load_state_dict(trained.state_dict(), strict=trained.config == config.network)
        return net
    with torch.no_grad():  # the residual starts at 0: the first network is the identity
        for parameter in net.output.parameters():
            parameter.zero_()
    return net


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _number(*parts: int) -> int:
    """A seed of 64 bits out of several numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])


def _psnr(image: Tensor, truth: Tensor) -> float:
    return -10 * math.log10(max(float((image - truth).square().mean()), 1e-10))
