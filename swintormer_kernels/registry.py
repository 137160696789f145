"""Which backend serves these inputs, and why not the others.

One predicate for each (op, backend) pair answers with None ("can serve") or with the reason in words. Selection,
error text and `explain()` all read that one answer, so they cannot disagree.

Adding an op: make one `Op` in ops/<op>.py; its public function calls `OP.select(...)` with its own arguments:

    OP = Op("ddim_step", serves={"cpu": _cpu_serves}, absent={"triton": "there is no Triton kernel for ..."})

    @OP.public
    def ddim_step(z, noise_pred, ...):
        backend = OP.select(z, noise_pred, ...)
        if backend == "reference":
            return reference(...)        # plain torch: autograd, vmap and inductor see through it
        return torch.ops.swintormer.ddim_step(..., backend)

The implementation of a pair is the function named after the op in backends/<backend>/<op>.py, or in the module that
`MODULES` names, imported when first used.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

import torch

from swintormer_kernels import native, trust
from swintormer_kernels.backends.triton import layout as triton_tensors
from swintormer_kernels.transforms import transform_at_work

BACKENDS = ("triton", "cpu", "reference")
"""Every backend, the preferred first. The reference serves whatever the op is defined for."""

_BLOCK = ("swda_attention", "gated_ffn", "swda_block")
_DENOISER = ("group_norm_silu", "norm_silu_conv3x3", "res_block", "norm_projection", "upsample_conv3x3")

MODULES: Mapping[str, Mapping[str, str]] = {
    "reference": {**dict.fromkeys(_BLOCK, "blocks"), **dict.fromkeys(_DENOISER, "denoiser")},
    "cpu": {**dict.fromkeys(_BLOCK, "block"), **dict.fromkeys(_DENOISER, "denoiser")},
    "triton": {},
}
"""backend -> op -> its module in backends/<backend>/; one that is not listed has a module of its own name."""

Predicate = Callable[..., "str | None"]
_Function = TypeVar("_Function", bound=Callable[..., Any])


class BackendError(RuntimeError):
    """A backend asked for by name cannot serve; the message says which predicate failed and what would help."""


class _Choice(threading.local):
    # The attribute must be set by __init__, once per thread. Dynamo cannot trace a ContextVar, and of a threading.local
    # whose default is a class attribute it guards the class: it then reuses the graph of another backend (seen with
    # torch 2.13; tests/kernels/test_registry.py).
    def __init__(self) -> None:
        self.name: str | None = None


_choice = _Choice()


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Ops called inside take the backend `name` ("reference", "cpu" or "triton") or raise BackendError.

    Scoped to the block and to the calling thread; nests; restored when an exception leaves the block.

    Raises:
        ValueError: there is no backend of that name.
    """
    if name not in BACKENDS:
        raise ValueError(f"there is no backend {name!r}; choose one of {', '.join(BACKENDS)}")
    before, _choice.name = _choice.name, name
    try:
        yield
    finally:
        _choice.name = before


def asked_backend() -> str | None:
    """The backend that `use_backend` asks for here, or None."""
    return _choice.name


@torch.compiler.assume_constant_result
def machine_lacks(backend: str) -> str | None:
    """What this machine lacks to run `backend`, and what would help; None when it lacks nothing."""
    if backend == "reference":
        return None
    if backend == "cpu":
        return native.why_absent()
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed; `pip install triton` brings it"
    runs = torch.cuda.is_available() or triton_tensors.INTERPRETED
    return None if runs else "torch sees no CUDA device, which the Triton kernels need"


class Op:
    """One op: the predicates of the backends that it has, and the reasons for those that it has not.

    Args:
        name: the op's name, and that of its function in every backend.
        serves: backend -> predicate. It takes the public function's arguments and returns None, or in one sentence
            without full stop why these cannot be served. "reference" may be left out: it then serves everything.
        absent: backend -> why this pair does not exist. Every backend stands in exactly one of the two.
        slower: backend -> predicate with the same arguments that tells where the backend was measured to lose against
            the next one. It counts in automatic selection only; a backend asked for by name serves all the same.
    """

    def __init__(
        self,
        name: str,
        *,
        serves: Mapping[str, Predicate],
        absent: Mapping[str, str] | None = None,
        slower: Mapping[str, Predicate] | None = None,
    ) -> None:
        self.name = name
        self.serves = {"reference": _serves_everything, **serves}
        self.absent = dict(absent or {})
        self.slower = dict(slower or {})
        self._implementations: dict[str, Callable[..., Any]] = {}
        if sorted([*self.serves, *self.absent]) != sorted(BACKENDS):
            raise ValueError(f"{name}: every backend of {BACKENDS} must stand once, in `serves` or in `absent`")
        if not self.slower.keys() <= self.serves.keys():
            raise ValueError(f"{name}: `slower` names a backend that `serves` does not")

    def public(self, function: _Function) -> _Function:
        """Decorator: mark `function` as this op's public function, which is what `explain()` takes."""
        function.op = self  # type: ignore[attr-defined]
        return function

    def why_not(self, backend: str, *args: Any, **kwargs: Any) -> str | None:
        """None if `backend` can serve these arguments, else the reason."""
        if backend in self.absent:
            return self.absent[backend]
        if backend == "reference":
            return self.serves[backend](*args, **kwargs)
        return machine_lacks(backend) or transform_at_work() or self.serves[backend](*args, **kwargs)

    def why_slower(self, backend: str, *args: Any, **kwargs: Any) -> str | None:
        """None, or why automatic selection passes over `backend` although it can serve."""
        reason = triton_tensors.only_for_tests() if backend == "triton" else None
        if reason is not None:
            return reason
        reason = self.slower[backend](*args, **kwargs) if backend in self.slower else None
        if reason is not None or not args:
            return reason
        return trust.why_not_trusted(self.name, backend, args[0])

    def select(self, *args: Any, **kwargs: Any) -> str:
        """The backend that these arguments get. torch.compile traces through it and guards on what it read.

        Raises:
            BackendError: the backend that `use_backend` asks for cannot serve.
        """
        asked = _choice.name
        if asked is not None:
            reason = self.why_not(asked, *args, **kwargs)
            if reason is not None:
                raise BackendError(f"{self.name}: backend {asked!r} was asked for by name and cannot serve: {reason}")
            return asked
        for backend in BACKENDS:
            if self.why_not(backend, *args, **kwargs) is None and self.why_slower(backend, *args, **kwargs) is None:
                return backend
        raise BackendError(f"{self.name}: no backend serves these inputs: {self.why_not('reference', *args, **kwargs)}")

    def implementation(self, backend: str) -> Callable[..., Any]:
        """The function `<op>` of the backend, imported now if it was not before."""
        if backend not in self._implementations:
            self._implementations[backend] = getattr(self._module(backend), self.name)
        return self._implementations[backend]

    def own_backward(self, backend: str) -> Callable[..., Any] | None:
        """The function `<op>_backward` beside it, or None where gradients are computed through the reference."""
        return getattr(self._module(backend), f"{self.name}_backward", None)

    def _module(self, backend: str) -> ModuleType:
        module = MODULES.get(backend, {}).get(self.name, self.name)
        return importlib.import_module(f"swintormer_kernels.backends.{backend}.{module}")


def _serves_everything(*args: Any, **kwargs: Any) -> None:
    return None


@dataclass(frozen=True)
class Explanation:
    """What `explain()` found; `str()` gives one line for each backend.

    Attributes:
        op: the op's name.
        backend: the backend that these inputs get; None if the one asked for by name cannot serve.
        asked: the backend that `use_backend` asks for here, or None.
        reasons: backend -> why it is not taken; None for the one that is taken.
    """

    op: str
    backend: str | None
    asked: str | None
    reasons: Mapping[str, str | None]

    def __str__(self) -> str:
        taken = self.backend or "none, an error"
        how = "chosen automatically" if self.asked is None else f"{self.asked!r} asked for by name"
        lines = [f"{self.op}: {taken} ({how})"]
        lines += [f"  {backend:<9}  {reason or 'serves these inputs'}" for backend, reason in self.reasons.items()]
        return "\n".join(lines)


def explain(op_function: Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation:
    """Which backend `op_function(*args, **kwargs)` would get here and now, and why not each of the others.

    Raises:
        TypeError: `op_function` is no op of this package, or takes no such arguments.
    """
    op: Op | None = getattr(op_function, "op", None)
    if op is None:
        raise TypeError(f"{op_function!r} is not an op; pass one, such as swintormer_kernels.ddim_step")
    try:
        inspect.signature(op_function).bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"explain({op.name}, ...) takes the arguments of a call of {op.name}: {error}") from None
    asked = _choice.name
    taken: str | None = None
    reasons: dict[str, str | None] = {}
    for backend in BACKENDS:
        reason = op.why_not(backend, *args, **kwargs)
        if reason is None and asked is None:
            reason = op.why_slower(backend, *args, **kwargs)
            if reason is None and taken is not None:
                reason = f"can serve; {taken!r} is preferred"
        elif reason is None and backend != asked:
            reason = f"can serve; {asked!r} was asked for"
        if reason is None:
            taken = backend
        reasons[backend] = reason
    return Explanation(op.name, taken, asked, reasons)


class Backends(dict[str, "str | None"]):
    """backend -> None if this machine can run it, else what it lacks. `str()` gives one line for each."""

    def __str__(self) -> str:
        return "\n".join(f"{name:<9}  {reason or 'available'}" for name, reason in self.items())


def backends() -> Backends:
    """What this machine has, and why not the rest."""
    return Backends({name: machine_lacks(name) for name in BACKENDS})
