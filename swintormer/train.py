"""Train a network on synthetic pairs: seeded, resumable to the step, safe to interrupt.

`swintormer train CONFIG` or `python -m swintormer.train CONFIG`, where CONFIG is a TOML file of `TrainConfig`.
A run folder holds `state.safetensors` (everything a resume needs), `log.csv` and at the end `weights.safetensors`
(the averaged network, as `swintormer deblur --weights` reads it).
"""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from torch import Tensor, nn

from swintormer.config import PRESETS, NetworkConfig
from swintormer.data import SyntheticPairs
from swintormer.errors import SwintormerError
from swintormer.files import exists, prepare_folder, reason, replacing
from swintormer.interrupts import ENDING, stoppable
from swintormer.losses import l1_loss
from swintormer.network import Swintormer

STATE_VERSION = 1
CSV_HEADER = "step,samples,minutes,lr,loss,grad_norm,val_psnr,val_psnr_blurred\n"


class TrainConfig(BaseModel):
    """One training run; the defaults are the release's recipe (arXiv 2401.05907) where it states one.

    Attributes:
        network: preset name, or sizes as in `NetworkConfig`.
        out: run folder.
        steps, minutes: the run ends at whichever comes first; the schedule follows the one that is further along.
        batch, crop: pairs per step and their side; a multiple of 16 * window wastes no padding.
        lr, min_lr, warmup: peak and last learning rate, and the steps of linear rise to the peak; cosine between.
        clip: largest gradient norm. ema: decay of the averaged weights, lower in the first steps.
        dtype: "bfloat16" runs the network under autocast.
        channels_last: memory layout of weights; on two AVX-512 cores 17 % faster at crop 128 in float32.
        scene_side: side of the generated pictures that pairs are cut from; None for 512 or what the crop needs.
        threads: of torch on the CPU; 0 leaves its choice.
        workers: processes that make pairs; 0 makes them in the training process.
        checkpoint_every, validate_every, log_every: in steps.
        validation: pairs of the validation stream, whose PSNR is logged.
        training_tile: tile that the weights file names for inference; None for `crop`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    network: NetworkConfig = PRESETS["small"]
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
    channels_last: bool = False
    scene_side: int | None = None
    threads: int = Field(0, ge=0)
    workers: int = Field(0, ge=0)
    checkpoint_every: int = Field(1000, ge=1)
    validate_every: int = Field(1000, ge=1)
    validation: int = Field(16, ge=1)
    log_every: int = Field(50, ge=1)
    training_tile: int | None = None

    @field_validator("network", mode="before")
    @classmethod
    def _preset(cls, value: object) -> object:
        if isinstance(value, str) and value not in PRESETS:
            raise ValueError(f"there is no such preset, choose one of {', '.join(PRESETS)}")
        return PRESETS[value] if isinstance(value, str) else value


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
        raise SwintormerError(f"{path} sets `{field}` to {first['input']!r}: {fault[0].lower()}{fault[1:]}.") from error


class Run:
    """What changes while training: network, average, optimiser, counters; saved and restored as one file."""

    def __init__(self, config: TrainConfig, device: torch.device):
        self.config = config
        self.device = device
        torch.manual_seed(config.seed)
        self.net = Swintormer(config.network).to(device)
        with torch.no_grad():  # the residual starts at 0: the first network is the identity
            for parameter in self.net.output.parameters():
                parameter.zero_()
        if config.channels_last:
            for parameter in self.net.parameters():
                if parameter.ndim == 4:
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self.average = {name: tensor.detach().clone() for name, tensor in self.net.state_dict().items()}
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(), lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, foreach=True
        )
        self.step = 0
        self.seconds = 0.0

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
        """One optimiser step on (B, 3, S, S) pairs; returns loss and gradient norm before clipping."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        with self.autocast():
            output = self.net(blurred.to(self.device, non_blocking=True))
        loss = l1_loss(output, sharp.to(self.device, non_blocking=True))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.net.parameters(), self.config.clip)
        self.optimizer.step()
        self.step += 1
        self._follow()
        return loss.detach(), norm.detach()

    @torch.no_grad()
    def _follow(self) -> None:
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))  # forget the untrained weights soon
        state = self.net.state_dict()
        floats = [name for name, tensor in state.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([self.average[n] for n in floats], [state[n] for n in floats], 1 - decay)

    def autocast(self) -> Any:
        if self.config.dtype == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    @contextmanager
    def averaged(self) -> Iterator[Swintormer]:
        """The network with the averaged weights, for validation and for the result."""
        own = {name: tensor.clone() for name, tensor in self.net.state_dict().items()}
        self.net.load_state_dict(self.average)
        try:
            yield self.net
        finally:
            self.net.load_state_dict(own)

    def save(self, path: Path) -> None:
        """Write everything that `load` needs, beside `path` first, then over it."""
        from safetensors.torch import save

        tensors = {f"net.{k}": v for k, v in self.net.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v for k, v in slots.items()}
        tensors["rng.cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["rng.cuda"] = torch.cuda.get_rng_state(self.device)
        state = {
            "version": STATE_VERSION,
            "step": self.step,
            "seconds": self.seconds,
            "network": self.config.network.model_dump(),
        }
        with replacing(path) as file:
            file.write(save({k: v.contiguous().cpu() for k, v in tensors.items()}, {"state": json.dumps(state)}))

    def load(self, path: Path) -> None:
        """Continue from a file of `save`; SwintormerError if it is of another network or no such file."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                state = json.loads((file.metadata() or {})["state"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise SwintormerError(
                f"{path} is not a training state ({error}): move it away, start over, or choose another `out` folder."
            ) from error
        if NetworkConfig(**state["network"]) != self.config.network:
            raise SwintormerError(f"{path} is of a network of other sizes: start over or choose another `out` folder.")
        groups: dict[str, dict[str, Tensor]] = {"net": {}, "average": {}, "optimizer": {}, "rng": {}}
        for key, tensor in tensors.items():
            part, name = key.split(".", 1)
            groups[part][name] = tensor
        self.net.load_state_dict(groups["net"])
        self.average = {name: tensor.to(self.device) for name, tensor in groups["average"].items()}
        slots: dict[int, dict[str, Tensor]] = {}
        for key, tensor in groups["optimizer"].items():
            index, name = key.split(".", 1)
            slots.setdefault(int(index), {})[name] = tensor
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": slots})
        torch.set_rng_state(groups["rng"]["cpu"])
        if "cuda" in groups["rng"] and self.device.type == "cuda":
            torch.cuda.set_rng_state(groups["rng"]["cuda"], self.device)
        self.step, self.seconds = int(state["step"]), float(state["seconds"])


class _Batches(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Batch k holds pairs k * batch ... k * batch + batch - 1, so a step number is a position in the data."""

    def __init__(self, config: TrainConfig):
        self.batch = config.batch
        self.pairs = SyntheticPairs(config.seed, config.crop, config.scene_side)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.pairs.batch(index * self.batch, self.batch)


def _batches(config: TrainConfig, device: torch.device, start: int) -> Iterator[tuple[Tensor, Tensor]]:
    loader = torch.utils.data.DataLoader(
        _Batches(config),
        batch_size=None,
        sampler=range(start, config.steps),
        num_workers=config.workers,
        multiprocessing_context="spawn" if config.workers else None,  # libvips and OpenMP threads do not survive a fork
        worker_init_fn=_ignore_signals,
        generator=torch.Generator(),  # or it would draw from the run's own and a resume would differ
        pin_memory=device.type == "cuda",
    )
    return iter(loader)


def _ignore_signals(_worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; workers leave it to the trainer, which ends them after its step."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)


def pick_device(name: str) -> torch.device:
    """The GPU if there is one for "auto"; anything else is taken as torch names it."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SwintormerError(f"There is no device {name!r}: use auto, cpu, cuda or cuda:N.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SwintormerError(f"The device {name!r} is not there: torch {torch.__version__} sees no CUDA GPU here.")
    return device


@torch.no_grad()
def validate(run: Run) -> tuple[float, float]:
    """Mean PSNR in dB over the validation pairs: of the averaged network, and of the blurred pictures themselves."""
    pairs = SyntheticPairs(run.config.seed, run.config.crop, run.config.scene_side, stream=1)
    restored, untouched = [], []
    with run.averaged() as net:
        for index in range(run.config.validation):
            blurred, sharp = (t[None].to(run.device) for t in pairs[index])
            with run.autocast():
                output = net(blurred)
            restored.append(_psnr(output.float().clamp(0, 1), sharp))
            untouched.append(_psnr(blurred, sharp))
    return sum(restored) / len(restored), sum(untouched) / len(untouched)


def _psnr(image: Tensor, truth: Tensor) -> float:
    return -10 * math.log10(max(float((image - truth).square().mean()), 1e-10))


class _Reporter:
    """Progress bar on a terminal, else a line every `log_every` steps; log.csv in any case."""

    def __init__(self, config: TrainConfig, resumed_at: int):
        self.config = config
        self.path = config.out / "log.csv"
        self._keep_log_before(resumed_at)
        self.losses: list[Tensor] = []
        self.bar: Any = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), TimeRemainingColumn())
            self.bar = Progress(*columns, console=Console(stderr=True))
            self.task = self.bar.add_task("training", total=1.0)
            self.bar.start()

    def _keep_log_before(self, step: int) -> None:
        """Drop rows that a run killed after its last checkpoint wrote: they will be computed again."""
        rows = self.path.read_text().splitlines()[1:] if step and self.path.exists() else []
        kept = [row + "\n" for row in rows if row and int(row.split(",", 1)[0]) <= step]
        with replacing(self.path) as file:
            file.write((CSV_HEADER + "".join(kept)).encode())

    def update(self, run: Run, loss: Tensor, norm: Tensor, lr: float, scores: tuple[float, float] | None) -> None:
        self.losses.append(loss)
        if scores is None and run.step % self.config.log_every and run.progress < 1:
            return
        mean = float(torch.stack(self.losses).mean())
        self.losses.clear()
        minutes, samples = run.seconds / 60, run.step * self.config.batch
        psnrs = ",".join(f"{score:.4f}" for score in scores) if scores else ","
        try:
            with self.path.open("a") as file:
                file.write(f"{run.step},{samples},{minutes:.3f},{lr:.4g},{mean:.6g},{float(norm):.4g},{psnrs}\n")
        except OSError as error:
            raise SwintormerError(f"Cannot write {self.path}: {reason(error)}.") from error
        text = f"step {run.step}, loss {mean:.5f}, lr {lr:.2e}, {run.seconds / run.step:.3f} s a step"
        if scores:
            text += f", validation {scores[0]:.2f} dB (blurred {scores[1]:.2f})"
        if self.bar:
            self.bar.update(self.task, completed=run.progress, description=text)
        else:
            print(f"{text}, {run.progress:.1%} done", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.bar:
            self.bar.stop()


def train(config: TrainConfig, resume: bool = True) -> Path:
    """Train until `steps` or `minutes` are used, or until SIGINT, SIGTERM or SIGHUP.

    Args:
        resume: continue from `out/state.safetensors` if it is there; False starts over.

    Returns:
        `out/weights.safetensors` when the run is complete, `out/state.safetensors` when it was interrupted.

    Raises:
        SwintormerError: no such device; `out` cannot be made or written; a state that is unusable; a gradient that is
            not finite.
    """
    device = pick_device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    state = config.out / "state.safetensors"
    prepare_folder(state)
    run = Run(config, device)
    if resume and exists(state):
        run.load(state)
    reporter = _Reporter(config, run.step)
    try:
        with stoppable() as caught:
            _loop(run, reporter, state, caught)
            run.save(state)  # before the bar ends: after SIGHUP there may be no terminal for its last line
    finally:
        reporter.close()
    if run.progress < 1:
        print(f"Interrupted after step {run.step}; the same command continues from {state}.", file=sys.stderr)
        return state
    return _write_weights(run)


def _loop(run: Run, reporter: _Reporter, state: Path, caught: list[int]) -> None:
    config = run.config
    if run.progress >= 1:
        return
    batches = _batches(config, run.device, run.step)
    before = time.monotonic()
    while run.progress < 1 and not caught:
        lr = run.lr
        loss, norm = run.train_step(*next(batches))
        now = time.monotonic()
        run.seconds, before = run.seconds + now - before, now
        done = run.progress >= 1 or bool(caught)
        if done or any(run.step % every == 0 for every in (config.log_every, config.checkpoint_every)):
            _check_finite(run, norm)  # not every step: it waits for the device
        scores = validate(run) if run.step % config.validate_every == 0 or run.progress >= 1 else None
        reporter.update(run, loss, norm, lr, scores)
        if run.step % config.checkpoint_every == 0:
            run.save(state)


def _check_finite(run: Run, norm: Tensor) -> None:
    """Nothing is saved after a gradient that is not finite: it has reached the weights and stays in every later one."""
    if not math.isfinite(float(norm)):
        raise SwintormerError(
            f"The gradient is not finite at step {run.step}: lower `lr` or `clip`; the same command goes on from the "
            "last checkpoint."
        )


def _write_weights(run: Run) -> Path:
    from swintormer.weights import save_checkpoint

    path = run.config.out / "weights.safetensors"
    card = {
        "data": "synthetic pairs: dead leaves and textures; no photograph",
        "steps": str(run.step),
        "pairs": str(run.step * run.config.batch),
        "minutes": f"{run.seconds / 60:.1f}",
        "recipe": run.config.model_dump_json(exclude={"out"}),
    }
    with run.averaged() as net:
        save_checkpoint(net, path, card=card, training_tile=run.config.training_tile or run.config.crop)
    return path


def main(arguments: list[str] | None = None) -> int:
    """`python -m swintormer.train CONFIG`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) != 1:
        print("usage: python -m swintormer.train CONFIG.toml", file=sys.stderr)
        return 2
    try:
        print(train(read_config(arguments[0])))
    except SwintormerError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped in the middle of a step; the same command goes on from the last checkpoint.", file=sys.stderr)
        return 130  # as shells count SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main())
