"""Which backend the ops of a command run on, by the name a person gave."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from swintormer.errors import SwintormerError


@contextmanager
def backend_scope(name: str) -> Iterator[None]:
    """Inside, ops run on that backend, or on the best of each where it is "auto".

    Raises:
        SwintormerError: there is none of that name, or it cannot serve.
    """
    from swintormer_kernels import BACKENDS, BackendError, use_backend

    if name != "auto" and name not in BACKENDS:
        raise SwintormerError(f"There is no backend {name!r}: choose one of auto, {', '.join(BACKENDS)}.")
    try:
        with nullcontext() if name == "auto" else use_backend(name):
            yield
    except BackendError as error:
        raise SwintormerError(f"{error}; `swintormer info` lists the backends.") from error
