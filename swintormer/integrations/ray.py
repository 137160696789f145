"""Independent pieces of work over the machines of a Ray cluster: one worker a GPU, or one for every few cores.

A worker that dies costs nobody a piece: the piece is given to another worker, and only one that takes a second worker
with it is given up. Every machine needs this package and sees the same files under the same names.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from swintormer.errors import SwintormerError, first_line

T = TypeVar("T")
R = TypeVar("R")

CORES = 4
"""Cores of a worker without GPU: one picture hardly gains by more, and each worker holds a network."""

TRIES = 2
"""Workers that a piece may take with it before it is given up."""

PATIENCE = 300.0
"""Seconds without any living worker after which the work is given up; a cluster that grows may need minutes."""

LOOK_EVERY = 0.2  # seconds


@dataclass(frozen=True)
class Place:
    """Where a worker runs: a machine by Ray's name for it, and what the worker takes of it."""

    node: str
    cores: int
    gpus: int = 0


def places(nodes: Sequence[Mapping[str, Any]], use_gpus: bool = True) -> list[Place]:
    """A worker for each GPU, on machines without GPUs one for every `CORES` cores; one core of each stays free.

    The free core is for Ray itself and for what else reads and writes there. A machine of one core gets a worker all
    the same, one that claims no core.

    Args:
        nodes: as `ray.nodes()` gives them.
    """
    found = []
    for node in nodes:
        if not node["Alive"]:
            continue
        cores, gpus = (int(node["Resources"].get(name, 0)) for name in ("CPU", "GPU"))
        if use_gpus and gpus:
            share = min(CORES, max(cores - 1, 0) // gpus)
            found += [Place(node["NodeID"], share, 1)] * gpus
        elif cores:
            share = min(CORES, cores - 1)
            found += [Place(node["NodeID"], share)] * ((cores - 1) // share if share else 1)
    return found


@contextmanager
def cluster(address: str) -> Iterator[Any]:
    """The module `ray`, connected to a cluster; one that was started here ends with the block.

    Args:
        address: "local" starts one on this machine alone; "auto" finds the running one; else as `ray.init` takes it.

    Raises:
        SwintormerError: ray is not installed, or there is no such cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anyone unless the user wants it
    try:
        import ray
    except ImportError:
        raise SwintormerError(
            "Ray is not installed: pip install 'swintormer-kernels[ray]', or share the pictures out with --shard."
        ) from None
    _reach(address)
    options = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise SwintormerError(f"There is no Ray cluster at {address!r}: {first_line(error)}.") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Raise SwintormerError unless somebody listens at host:port or ray://host:port: Ray itself tries for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise SwintormerError(f"There is no Ray cluster at {address!r}: {first_line(error)}.") from error


class Worker:
    """What runs on a machine of the cluster. `make` is called there once, its result for every piece.

    Args:
        folder: working folder of the program, so that relative names mean the same files.
    """

    def __init__(self, make: Callable[[], Callable[[Any], Any]], folder: str, cores: int):
        self.make, self.folder, self.cores = make, folder, cores
        self.work: Callable[[Any], Any] | None = None

    def prepare(self) -> None:
        """Raises SwintormerError if no piece can be worked on here."""
        import torch

        try:
            os.chdir(self.folder)
        except OSError as error:
            raise SwintormerError(
                f"{os.uname().nodename} does not see the folder {self.folder} ({error.strerror}): all machines must "
                "see the same files under the same names."
            ) from error
        torch.set_num_threads(max(self.cores, 1))
        self.work = self.make()

    def do(self, item: Any) -> Any:
        """The result of one piece."""
        assert self.work is not None
        return self.work(item)

    def stop(self) -> None:
        """Let the piece at hand end soon, if it can; called from another thread."""
        if (stop := getattr(self.work, "stop", None)) is not None:
            stop()


@dataclass
class Team(Generic[T, R]):
    """Workers of a cluster, and what each is doing.

    Attributes:
        ray: the module, connected.
        make: called once in each worker; what it returns is called for each piece, and its method `stop`, if it has
            one, from another thread when the work is to end. Both must pass through pickle.
        use_gpus: whether workers take GPUs where there are some.
        deaths: workers that died.
    """

    ray: Any
    make: Callable[[], Callable[[T], R]]
    use_gpus: bool = True
    deaths: int = 0
    _doing: dict[Any, tuple[Any, Place, T | None]] = field(default_factory=dict)  # None: it prepares itself
    _ready: int = 0
    _stopping: bool = False

    def each(self, items: Sequence[T], stopped: Callable[[], object] = bool) -> Iterator[tuple[T, R | SwintormerError]]:
        """Every item with its result, in the order in which they end.

        Args:
            stopped: asked several times a second; once it is true, no piece is begun and those at hand are stopped.

        Raises:
            SwintormerError: the cluster has nothing to work with, or `make` raised one.
            Exception: whatever the work on an item raises.
        """
        queue = deque(items)
        lost: dict[int, int] = {}  # workers that died over an item, by its identity
        planned = places(self.ray.nodes(), self.use_gpus)[: len(queue)]
        if not planned:
            raise SwintormerError("The Ray cluster has no machine with a core to work on.")
        for place in planned:
            self._hire(place)
        alive = time.monotonic()
        try:
            while self._doing:
                if stopped() and not self._stopping:
                    self._stopping = True
                    queue.clear()
                    self._stop()
                done, _ = self.ray.wait(list(self._doing), num_returns=1, timeout=LOOK_EVERY)
                if self._ready:
                    alive = time.monotonic()
                elif time.monotonic() - alive > PATIENCE:
                    raise SwintormerError(f"No worker of the Ray cluster has been ready for {PATIENCE:.0f} seconds.")
                for reference in done:
                    yield from self._ended(reference, queue, lost)
                if not queue and all(item is None for _, _, item in self._doing.values()):
                    return  # those who still prepare themselves are not needed
        finally:
            for worker, _, _ in self._doing.values():
                with suppress(Exception):
                    self.ray.kill(worker)

    def _ended(self, reference: Any, queue: deque[T], lost: dict[int, int]) -> Iterator[tuple[T, R | SwintormerError]]:
        """Take what one worker has done, and give it the next piece or another worker its place."""
        worker, place, item = self._doing.pop(reference)
        try:
            result = self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:  # an exception of the work itself
            raise getattr(error, "cause", error) from error
        except self.ray.exceptions.RayError as error:  # the worker or its machine is gone
            self.deaths += 1
            if item is None:
                if self._doing:
                    return  # the others are enough, and this place is perhaps too small for a worker
                if self.deaths > TRIES:
                    raise SwintormerError(
                        f"The workers of the Ray cluster die as they begin: {_cause(error)}."
                    ) from error
            else:
                self._ready -= 1
                if self._stopping:
                    return
                lost[id(item)] = lost.get(id(item), 0) + 1
                if lost[id(item)] < TRIES:
                    queue.appendleft(item)
                else:
                    yield item, SwintormerError(f"{TRIES} workers died over it, perhaps for lack of memory")
            if queue:
                self._hire(place)
            return
        if item is None:
            self._ready += 1
        else:
            yield item, result
        if queue:
            following = queue.popleft()
            self._doing[worker.do.remote(following)] = (worker, place, following)
        else:
            self._ready -= 1
            self.ray.kill(worker)

    def _hire(self, place: Place) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        made = self.ray.remote(Worker).options(
            num_cpus=place.cores,
            num_gpus=place.gpus,
            max_concurrency=2,  # `stop` is called while `do` runs
            scheduling_strategy=NodeAffinitySchedulingStrategy(place.node, soft=True),
        )
        worker = made.remote(self.make, os.getcwd(), place.cores)
        self._doing[worker.prepare.remote()] = (worker, place, None)

    def _stop(self) -> None:
        for worker, _, item in self._doing.values():
            if item is not None:
                worker.stop.remote()


def _cause(error: Exception) -> str:
    """Of a worker's death: of a failed beginning, Ray's text ends with the exception, as of a missing package."""
    lines = str(error).strip().splitlines()
    return lines[-1].rstrip(".") if "creation task" in lines[0] else first_line(error)
