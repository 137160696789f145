"""What every op module offers to tests and benches: `cases()`, inputs worth running, and `cost(...)` of a call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple


class Cost(NamedTuple):
    """Work of one forward call: the least that the formula needs, whatever a backend does."""

    macs: int
    """Multiply-accumulates."""
    bytes: int
    """Memory traffic if every input is read once and the output written once."""


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
