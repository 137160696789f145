"""Batches of training pairs by step number, new ones or, with `reuse`, new ones and some of earlier steps.

A GPU takes several hundred pairs a second, and sixteen CPU cores make fewer (bench/results/h200.md). With `reuse` r
pairs come in groups of batch / r. Step s takes the group s + (r - 1) APART as new, and again those that are APART,
2 APART, ... (r - 1) APART groups older. So every step has r groups. Each time a group is turned in another of the eight
ways.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swintormer.data.cache import to_stderr
from swintormer.data.degrade.defocus import turned as mirrored
from swintormer.data.mixture import Source, make_source
from swintormer.errors import SwintormerError
from swintormer.signals import ENDING
from swintormer.training.config import APART, ImageStageConfig, TrainConfig
from swintormer.training.processes import Processes

Sources = Mapping[int, Source]

_TURNS = 7  # in the keys of the random generators, where those of mixture.py have the stream, 0 or 1


def training_sources(config: TrainConfig, place: Processes) -> Sources:
    """The source for each of the run's crops; the first process tells what is decoded and what is left out."""
    crops = dict.fromkeys(phase.crop for phase in config.phases)
    told: dict[str, None] = {}  # most lines are the same for every crop

    def say(line: str) -> None:
        if place.first and line not in told:
            to_stderr(line)
        told[line] = None

    return {
        crop: make_source(config.data, config.seed, crop, 0, config.scene_side, say, validation_crop=config.crop)
        for crop in crops
    }


def validation_source(config: TrainConfig) -> Source:
    return make_source(config.data, config.seed, config.crop, 1, config.scene_side, say=_silent)


def _silent(_line: str) -> None:
    pass


class _New(torch.utils.data.Dataset[Any]):
    """Item k is this process's share of group k, which without `reuse` are the pairs of step k."""

    def __init__(self, config: ImageStageConfig, sources: Sources, place: Processes):
        self.config, self.sources, self.place = config, sources, place

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor] | SwintormerError:
        group = self.config.group(number)
        mine = group[self.place.share(len(group))]
        try:
            return self.sources[self.config.phase(number).crop].batch(mine.start, len(mine))
        except SwintormerError as error:  # raised in a worker, it would come with that process's traceback
            return error


def batches(
    config: ImageStageConfig, sources: Sources, device: torch.device, start: int, workers: int, place: Processes
) -> Iterator[tuple[Tensor, Tensor]]:
    """From step `start` on, this process's share of the pairs (blurred, sharp), made by `workers` processes.

    Raises:
        SwintormerError: as the source; or a worker was ended from outside.
    """
    new = _new(config, sources, device, range(start, config.steps + config.earlier), workers, place)
    if config.reuse == 1:
        yield from new
        return
    kept: deque[tuple[Tensor, Tensor]] = deque(maxlen=config.earlier + 1)
    for number, pairs in enumerate(new, start):
        blurred, sharp = (images.to(device, non_blocking=True) for images in pairs)
        kept.append((blurred, sharp))
        if len(kept) == kept.maxlen:
            yield _with_earlier(config, kept, number)


def _with_earlier(
    config: ImageStageConfig, kept: Sequence[tuple[Tensor, Tensor]], number: int
) -> tuple[Tensor, Tensor]:
    """The pairs of group `number`, the last of `kept`, and of the earlier ones, each turned."""
    taken = []
    for use in range(config.reuse):
        pairs = kept[len(kept) - 1 - use * APART]
        turns = np.random.default_rng((config.seed, _TURNS, number - use * APART)).permutation(8)
        taken.append([turned(images, int(turns[use])) for images in pairs])
    blurred, sharp = (torch.cat(images) for images in zip(*taken, strict=True))
    return blurred, sharp


def turned(images: Tensor, turn: int) -> Tensor:
    """(B, C, S, S) by one of the eight turns and reflections of a square: bits for left-right, up-down, transposed."""
    images = mirrored(images, turn)
    return images.transpose(-1, -2) if turn & 4 else images


def _new(
    config: ImageStageConfig, sources: Sources, device: torch.device, numbers: range, workers: int, place: Processes
) -> Iterator[tuple[Tensor, Tensor]]:
    """`_New` of these numbers, made by `workers` processes."""
    loader = torch.utils.data.DataLoader(
        _New(config, sources, place),
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,  # libvips and OpenMP threads do not survive a fork
        worker_init_fn=_ignore_signals,
        generator=torch.Generator(),  # or it would draw from the program's own
        pin_memory=device.type == "cuda",
    )
    with _signals_waiting():
        made = iter(loader)
    while True:
        try:
            item = next(made, None)
        except (RuntimeError, EOFError, ConnectionError) as error:
            # A worker that dies while it hands a batch over leaves a closed connection instead of torch's own message.
            if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                raise
            _reap()
            raise SwintormerError(
                "A process that makes training pairs was ended from outside, perhaps for want of memory: lower "
                "`workers` or `batch`; the same command goes on from the last checkpoint."
            ) from error
        if item is None:
            return
        if isinstance(item, SwintormerError):
            raise item
        yield item


def _reap() -> None:
    """Wait for a worker that has died. Until then torch raises its error again, anywhere, whenever a process ends."""
    with suppress(RuntimeError):  # that very error
        for child in multiprocessing.active_children():
            child.join(0.1)
    multiprocessing.active_children()  # where the error came first


def _ignore_signals(_worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; workers leave it to the trainer, which ends them after its step."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def _signals_waiting() -> Iterator[None]:
    """Signals come after the block. Workers inherit the mask, so none ends them while they start."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # started with the first worker, it would unblock them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
