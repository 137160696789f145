"""Train on synthetic pairs, the network or the prior: seeded, resumable to the step, safe to interrupt.

`swintormer train CONFIG`, where CONFIG is a TOML file of one stage's configuration (config.py).
A run folder holds `state.safetensors` (everything a resume needs), `log.csv` and at the end `weights.safetensors`
(the averaged network, as `swintormer deblur --weights` reads it).
"""

from __future__ import annotations

import math
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from swintormer.errors import SwintormerError
from swintormer.images.files import exists, prepare_folder, reason, replacing
from swintormer.signals import stoppable
from swintormer.training.config import RestorationConfig, TrainConfig
from swintormer.training.run import RestorationRun, Run
from swintormer_kernels import use_backend

# A step counts at most this many seconds, or ten times the mean step: beyond that, the process had been stopped.
STOPPED = 60.0
CSV_HEADER = "step,samples,minutes,lr,loss,grad_norm,val_psnr,val_psnr_blurred\n"


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
        """Drop the rows of steps after the last checkpoint, which are computed again, and rows that are damaged."""
        rows = self.path.read_text(errors="replace").splitlines()[1:] if step and self.path.is_file() else []
        steps = [row.split(",", 1)[0] for row in rows]
        kept = [f"{row}\n" for row, at in zip(rows, steps, strict=True) if at.isdecimal() and int(at) <= step]
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


def train(
    config: TrainConfig, resume: bool = True, accept_changes: bool = False, stopped_by: list[int] | None = None
) -> Path:
    """Train until `steps` or `minutes` are used, or until SIGINT, SIGTERM or SIGHUP.

    Args:
        resume: continue from `out/state.safetensors` if it is there; False starts over.
        accept_changes: resume also under settings other than those that the state was written under.
        stopped_by: gets the number of the signal that interrupted the run.

    Returns:
        `out/weights.safetensors` when the run is complete, `out/state.safetensors` when it was interrupted.

    Raises:
        SwintormerError: no such device; `out` cannot be made or written; a state that is unusable, or of other
            settings; a gradient that is not finite.
    """
    device = pick_device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    state = config.out / "state.safetensors"
    prepare_folder(state)
    run = make_run(config, device)
    if resume and exists(state):
        run.load(state, accept_changes)
        if run.progress >= 1:
            print(f"The run of {state} is complete after {run.step} steps: nothing is left to train.", file=sys.stderr)
    reporter = _Reporter(config, run.step)
    try:
        with _backend(config.backend), stoppable() as caught:
            _loop(run, reporter, state, caught)
            run.save(state)  # before the bar ends: after SIGHUP there may be no terminal for its last line
    finally:
        reporter.close()
    if run.progress < 1:
        if stopped_by is not None:
            stopped_by += caught
        print(f"Interrupted after step {run.step}; the same command continues from {state}.", file=sys.stderr)
        return state
    return _write_weights(run)


def _backend(name: str) -> AbstractContextManager[None]:
    return nullcontext() if name == "auto" else use_backend(name)


def _loop(run: Run, reporter: _Reporter, state: Path, caught: list[int]) -> None:
    config = run.config
    if run.progress >= 1:
        return
    batches = run.batches(run.step)
    before = time.monotonic()
    while run.progress < 1 and not caught:
        lr = run.lr
        loss, norm = run.train_step(*next(batches))
        now = time.monotonic()
        longest = max(STOPPED, 10 * run.seconds / max(run.step - 1, 1))
        run.seconds, before = run.seconds + min(now - before, longest), now
        done = run.progress >= 1 or bool(caught)
        if done or any(run.step % every == 0 for every in (config.log_every, config.checkpoint_every)):
            _check_finite(run, norm)  # not every step: it waits for the device
        scores = run.validate() if run.step % config.validate_every == 0 or run.progress >= 1 else None
        reporter.update(run, loss, norm, lr, scores)
        if run.step % config.checkpoint_every == 0:
            run.save(state)


def _check_finite(run: Run, norm: Tensor) -> None:
    """Raise an error if the gradient is not finite, before the damaged weights are saved."""
    if not math.isfinite(float(norm)):
        raise SwintormerError(
            f"The gradient is not finite at step {run.step}: lower `lr` or `clip`; the same command continues from the "
            "last checkpoint."
        )


def make_run(config: TrainConfig, device: torch.device) -> Run:
    """The run of the configured stage, at its beginning."""
    if isinstance(config, RestorationConfig):
        return RestorationRun(config, device)
    from swintormer.training.stages import STAGES  # diffusers takes seconds to import

    return STAGES[config.stage](config, device)


def _write_weights(run: Run) -> Path:
    path = run.config.out / "weights.safetensors"
    card = {
        "data": "synthetic pairs: dead leaves and textures; no photograph",
        "steps": str(run.step),
        "pairs": str(run.step * run.config.batch),
        "minutes": f"{run.seconds / 60:.1f}",
        "recipe": run.config.model_dump_json(exclude={"out"}),
    }
    run.write(path, card)
    return path
