"""Batches of training pairs by step number."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any, Protocol

import torch
from torch import Tensor

from swintormer.data import SyntheticPairs
from swintormer.errors import SwintormerError
from swintormer.signals import ENDING
from swintormer.training.config import TrainConfig
from swintormer.training.processes import Processes

TRAINING, VALIDATION = 0, 1  # streams of pairs


class Source(Protocol):
    """Pairs without end; pair i is a function of the source's seed, stream and i."""

    def batch(self, start: int, size: int) -> tuple[Tensor, Tensor]:
        """Pairs start ... start + size - 1: blurred (size, C, crop, crop) and sharp (size, 3, crop, crop)."""

    def describe(self) -> str:
        """What the pairs are, for the model card."""


class _Synthetic(SyntheticPairs):
    def describe(self) -> str:
        return "synthetic pairs: dead leaves and textures; no photograph"


def make_source(config: TrainConfig, crop: int, stream: int = TRAINING) -> Source:
    return _Synthetic(config.seed, crop, config.scene_side, stream)


class _Batches(torch.utils.data.Dataset[Any]):
    """Item k is what step k trains on. Sources are made where they are used: a worker's copies would cost memory."""

    def __init__(self, config: TrainConfig, place: Processes):
        self.config, self.place = config, place
        self.sources: dict[int, Source] = {}

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor] | SwintormerError:
        phase = self.config.phase(step)
        rows = self.place.share(phase.batch)
        try:
            if phase.crop not in self.sources:
                self.sources = {phase.crop: make_source(self.config, phase.crop)}
            return self.sources[phase.crop].batch(phase.first + rows.start, rows.stop - rows.start)
        except SwintormerError as error:  # raised in a worker, it would come with that process's traceback
            return error


def batches(
    config: TrainConfig, device: torch.device, start: int, workers: int = 0, place: Processes | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """From step `start` on, this process's share of the pairs (blurred, sharp), made by `workers` processes.

    Raises:
        SwintormerError: as the source; or a worker was ended from outside.
    """
    loader = torch.utils.data.DataLoader(
        _Batches(config, place or Processes()),
        batch_size=None,
        sampler=range(start, config.steps),
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
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise SwintormerError(
                "A process that makes training pairs was ended from outside, perhaps for want of memory: lower "
                "`workers` or `batch`; the same command goes on from the last checkpoint."
            ) from error
        if item is None:
            return
        if isinstance(item, SwintormerError):
            raise item
        yield item


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
