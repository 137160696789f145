"""Train on pairs, the network or the prior: seeded, resumable to the step, safe to interrupt.

`swintormer train CONFIG`, where CONFIG is a TOML file of one stage's configuration (config.py). Under `torchrun`
several processes train together; each step's pairs are the same on any number of them, and so are its gradients but for
the order of their sums (not those of the autoencoder's stage, see `stages.AutoencoderRun`).

A run folder holds `state.safetensors` (everything a resume needs), `log.csv`, `curves.svg`, `validation.png` (pairs of
the validation: input, output, truth) and at the end `weights.safetensors` (the averaged network, as `swintormer deblur
--weights` reads it).
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from swintormer.errors import SwintormerError
from swintormer.images.files import exists, prepare_folder
from swintormer.signals import exiting, stoppable
from swintormer.training.config import ImageStageConfig, RestorationConfig, TrainConfig
from swintormer.training.processes import Processes, processes
from swintormer.training.report import Reporter
from swintormer.training.run import RestorationRun, Run
from swintormer_kernels import use_backend

MakeRun = Callable[[Any, torch.device], Run]
"""(configuration of its stage, device) -> the run at its beginning."""

# A step counts at most this many seconds, or ten times the mean step: beyond that, the process had been stopped.
STOPPED = 60.0


def pick_device(name: str) -> torch.device:
    """The GPU if there is one for "auto"; anything else is taken as torch names it.

    Raises:
        SwintormerError: there is no such device, or torch cannot use it here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SwintormerError(f"There is no device {name!r}: use auto, cpu, cuda or cuda:N.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SwintormerError(f"The device {name!r} is not there: torch {torch.__version__} sees no CUDA GPU here.")
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        detail = str(error).splitlines()[0].split(". ")[0].rstrip(".")
        raise SwintormerError(
            f"torch cannot use the device {name!r} here ({detail}): use auto, cpu or cuda."
        ) from error
    return device


def train(
    config: TrainConfig,
    resume: bool = True,
    accept_changes: bool = False,
    stopped_by: list[int] | None = None,
    make: MakeRun | None = None,
) -> Path | None:
    """Train until `steps` or `minutes` are used, or until SIGINT, SIGTERM or SIGHUP.

    Args:
        resume: continue from `out/state.safetensors` if it is there; False starts over.
        accept_changes: resume also under settings other than those that the state was written under.
        stopped_by: gets the number of the signal that interrupted the run.
        make: the run of a configuration at its beginning; None for `make_run`.

    Returns:
        `out/weights.safetensors` when the run is complete, `out/state.safetensors` when it was interrupted; None in the
        processes of `torchrun` that write no files.

    Raises:
        SwintormerError: no such device; `out` cannot be made or written; a state that is unusable, or of other
            settings; data that cannot be read; a gradient that is not finite; another process that ended.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    with exiting(), processes(pick_device(config.device)) as (place, device):
        _check_shares(config, place)
        state = config.out / "state.safetensors"
        if place.first:
            prepare_folder(state)
        run = (make or make_run)(config, device)
        run.place = place
        if resume and place.from_first(lambda: exists(state)):
            run.load(state, accept_changes)
        if run.progress >= 1:
            if place.first:
                print(
                    f"The run of {state} is complete after {run.step} steps: nothing is left to train.", file=sys.stderr
                )
        else:
            run.prepare()
        signalled = _train(run, state)
        if not place.first:
            return None
        if run.progress >= 1:
            return _write_weights(run)
        if stopped_by is not None:
            stopped_by.append(signalled)
        print(f"Interrupted after step {run.step}; the same command continues from {state}.", file=sys.stderr)
        return state


def _check_shares(config: TrainConfig, place: Processes) -> None:
    """Raises SwintormerError where a process would have no pair for each of its parts of a step."""
    smallest = min(phase.batch for phase in config.phases)
    reuse = config.reuse if isinstance(config, ImageStageConfig) else 1
    # A process takes its share of every group of batch / reuse pairs.
    least = place.size * reuse * math.ceil(config.accumulate / reuse)
    if smallest < least:
        again = f" and `reuse` {reuse}" if reuse > 1 else ""
        raise SwintormerError(
            f"A step of {smallest} pairs cannot be shared by {place.size} processes with `accumulate` "
            f"{config.accumulate}{again}: set `batch` to {least} or more."
        )


def _train(run: Run, state: Path) -> int:
    """Go on to the end or to a signal, whose number is returned, and save; reported by the first process."""
    started = run.seconds
    reporter = Reporter(run.config, run) if run.place.first else None
    try:
        with _backend(run.config.backend), stoppable() as caught:
            signalled = _loop(run, reporter, state, caught)
            if reporter is not None:
                run.save(state)  # before the bar ends: after SIGHUP there may be no terminal for its last line
    finally:
        if reporter is not None:
            reporter.close()
    if reporter is not None and run.seconds > started:
        share = run.waited / (run.seconds - started)
        print(f"The trainer waited for data {share:.1%} of the time.", file=sys.stderr)
    return signalled


def _backend(name: str) -> AbstractContextManager[None]:
    return nullcontext() if name == "auto" else use_backend(name)


def _loop(run: Run, reporter: Reporter | None, state: Path, caught: list[int]) -> int:
    config, signalled = run.config, 0
    batches = run.batches(run.step)
    before = time.monotonic()
    while run.progress < 1 and not signalled:
        lr = run.lr
        asked = time.monotonic()
        pairs = next(batches)
        run.waited += time.monotonic() - asked
        loss, norm = run.train_step(*pairs)
        now = time.monotonic()
        longest = max(STOPPED, 10 * run.seconds / max(run.step - 1, 1))
        elapsed, before = min(now - before, longest), now
        signalled, run.seconds = run.place.agree(caught[0] if caught else 0, run.seconds + elapsed)
        done = run.progress >= 1 or signalled
        if done or any(run.step % every == 0 for every in (config.log_every, config.checkpoint_every)):
            _check_finite(run, norm)  # not every step: it waits for the device
        if reporter is None:
            continue
        scores = run.validate() if run.step % config.validate_every == 0 or run.progress >= 1 else None
        reporter.update(run, loss, norm, lr, scores)
        if run.step % config.checkpoint_every == 0:
            run.save(state)
    return signalled


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
        "data": run.sources[run.config.crop].describe(),
        "steps": str(run.step),
        "pairs": str(run.config.pairs(run.step)),
        "minutes": f"{run.seconds / 60:.1f}",
        "recipe": run.config.model_dump_json(exclude={"out"}),
    }
    run.write(path, card)
    return path
