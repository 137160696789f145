"""Batches of training pairs by step number."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import torch
from torch import Tensor

from swintormer.data import SyntheticPairs
from swintormer.signals import ENDING
from swintormer.training.config import ImageStageConfig


class _Batches(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Batch k holds pairs k * batch ... k * batch + batch - 1, so a step number is a position in the data."""

    def __init__(self, config: ImageStageConfig):
        self.batch = config.batch
        self.pairs = SyntheticPairs(config.seed, config.crop, config.scene_side)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.pairs.batch(index * self.batch, self.batch)


def batches(config: ImageStageConfig, device: torch.device, start: int) -> Iterator[tuple[Tensor, Tensor]]:
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
