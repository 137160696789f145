"""Inputs of an op worth testing or timing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Case:
    """Inputs of an op's public function, made anew by each call of `make`.

    Attributes:
        name: what is special about it, for test ids and table rows.
        make: seed -> (args, kwargs), float32 tensors of random data on the CPU.
        timed: whether the benches time it (they check it first).
        tested: whether the tests run it; too large for a test run where not.
    """

    name: str
    make: Callable[[int], tuple[tuple[Any, ...], dict[str, Any]]]
    timed: bool = True
    tested: bool = True


def seeded(name: str, build: Callable[[], tuple[Any, ...]], timed: bool = False, tested: bool = True) -> Case:
    """A case of the arguments that `build()` returns, whose random numbers follow from the seed alone."""

    def make(seed: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build(), {}

    return Case(name, make, timed=timed, tested=tested)
