"""The processes of one run, as `torchrun` starts them, and the communication between them.

The gradients are summed by one collective call after the backward pass. torch's DistributedDataParallel would overlap
the two, but it wraps the `forward` of one module, while the stages call parts of several modules; and with gloo,
programs that used it often aborted at exit, after all work was done. Tensors on the CPU use gloo, those on a GPU nccl.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from swintormer.errors import SwintormerError

T = TypeVar("T")
# How long processes wait for each other, for example while one decodes photographs for the first time. A process that
# ended is noticed at once.
PATIENCE = timedelta(hours=2)


@dataclass(frozen=True)
class Processes:
    """This process's place among the `size` of the run.

    Attributes:
        rank: 0 for the one that writes, prints and validates. local: its number on its machine.
    """

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, count: int) -> slice:
        """Which of `count` pairs are this process's: the shares differ by one at most."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes, bit for bit the same in all of them."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with _company():
            dist.all_reduce(flat)
        for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(total.view(tensor.shape))

    def agree(self, signalled: int, seconds: float) -> tuple[int, float]:
        """The number of a signal that any process caught, else 0; the first one's clock."""
        if self.size == 1:
            return signalled, seconds
        told = torch.tensor([float(signalled), seconds if self.first else 0.0], dtype=torch.float64)
        with _company():
            dist.all_reduce(told, dist.ReduceOp.MAX)
        return int(told[0]), float(told[1])

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` returns in the first process; it runs there alone."""
        if self.size == 1:
            return make()
        result: list[Any] = [make() if self.first else None]
        with _company():
            dist.broadcast_object_list(result)
        made: T = result[0]
        return made


@contextmanager
def _company() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise SwintormerError(
            "Another process of this run ended or cannot be reached, so this one ends too: its own message says why."
        ) from error


@contextmanager
def processes(device: torch.device) -> Iterator[tuple[Processes, torch.device]]:
    """This process among those that `torchrun` started, or alone, and the device that it trains on.

    Who trains several times in one program keeps the group: `with processes(device):` around all of it. A second group
    through the same store now and then waits for ever.

    Args:
        device: the CPU, or "cuda" for the GPU of the process's number on its machine.

    Raises:
        SwintormerError: the processes do not find each other, or there are more of them than GPUs.
    """
    try:
        rank, size, local = (int(os.environ.get(name, "-1")) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    except ValueError as error:
        raise SwintormerError("RANK, WORLD_SIZE and LOCAL_RANK must be numbers, as `torchrun` sets them.") from error
    if size <= 1 or rank < 0:
        yield Processes(), device
        return
    if not dist.is_available():
        raise SwintormerError(f"torch {torch.__version__} is built without torch.distributed: train in one process.")
    place = Processes(rank, size, max(local, 0))
    if device.type == "cuda":
        device = _own_gpu(place, device)
        torch.cuda.set_device(device)
    if dist.is_initialized():  # by the caller, who ends it
        yield place, device
        return
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise SwintormerError(
            f"Process {rank} of {size} does not find the others ({str(error).splitlines()[0]}): "
            "start them with `torchrun`."
        ) from error
    try:
        yield place, device
    finally:
        dist.destroy_process_group()


def _own_gpu(place: Processes, device: torch.device) -> torch.device:
    if device.index is not None:
        raise SwintormerError(f"Each of {place.size} processes takes a GPU of its own: set `device` to cuda.")
    count = torch.cuda.device_count()
    if place.local >= count:
        raise SwintormerError(
            f"There are more processes on this machine than GPUs ({count}): start torchrun with "
            f"--nproc_per_node {count} at most."
        )
    return torch.device("cuda", place.local)
