"""Selection of the backend for an op's inputs, with the reasons against the others.

Each (op, backend) pair has one predicate, which returns None (it can serve) or the reason as one sentence. Selection,
error messages and `explain()` use the same result, so they cannot disagree.

To add an op, create one `Op` in ops/<op>.py. Its public function calls `OP.select(...)` with its own arguments:

    OP = Op("ddim_step", serves={"cpu": _cpu_serves}, absent={"triton": "there is no Triton kernel for ..."})

    @OP.public
    def ddim_step(z, noise_pred, ...):
        backend = OP.select(z, noise_pred, ...)
        if backend == "reference":
            return reference(...)        # plain torch, which autograd, vmap and inductor can process
        return torch.ops.swintormer.ddim_step(..., backend)

The implementation of a pair is the function named after the op in backends/<backend>/<op>.py, or in the module that
`MODULES` names. It is imported at its first use.
"""

from __future__ import annotations

import functools
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
from swintormer_kernels.backends.cuda import built as cuda_build
from swintormer_kernels.backends.cuda import device as cuda_device
from swintormer_kernels.backends.triton import layout as triton_tensors
from swintormer_kernels.transforms import constant_in_compiled_code, transform_at_work

BACKENDS = ("cuda", "triton", "cpu", "reference")
"""All backends in order of preference. The reference serves every input for which the op is defined."""

_BLOCK = ("swda_attention", "gated_ffn", "swda_block")
_CONVOLUTIONS = ("norm_silu_conv3x3", "upsample_conv3x3", "conv3x3_shuffle")
_DENOISER = (*_CONVOLUTIONS, "group_norm_silu", "res_block", "norm_projection")

MODULES: Mapping[str, Mapping[str, str]] = {
    "reference": {**dict.fromkeys(_BLOCK, "blocks"), **dict.fromkeys(_DENOISER, "denoiser")},
    "cpu": {**dict.fromkeys(_BLOCK, "block"), **dict.fromkeys(_DENOISER, "denoiser")},
    "triton": {},
    "cuda": {},
}
"""backend -> op -> its module in backends/<backend>/; an op that is not listed has a module of its own name."""

GRADIENTS: Mapping[str, str] = {"cuda": "triton"}
"""backend without a backward of its own -> the one whose backward it takes where that serves, else the reference's."""

Predicate = Callable[..., "str | None"]
_Function = TypeVar("_Function", bound=Callable[..., Any])


class BackendError(RuntimeError):
    """A backend requested by name cannot serve the inputs. The message gives the reason and the remedy."""


class _Choice(threading.local):
    # __init__ must set the attribute, once per thread. Dynamo cannot trace a ContextVar. For a threading.local with a
    # class attribute as default it guards the class, and then reuses the graph of another backend (torch 2.13;
    # tests/kernels/test_registry.py).
    def __init__(self) -> None:
        self.name: str | None = None


_choice = _Choice()


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Context manager: ops called inside use the backend `name`, one of `BACKENDS`, or raise BackendError.

    Affects only the calling thread. Can be nested. The previous choice is restored on exit, also after an exception.

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
    """The backend requested by the innermost `use_backend`, or None."""
    return _choice.name


@constant_in_compiled_code
def machine_lacks(backend: str) -> str | None:
    """None if this machine can run `backend`, otherwise what is missing and how to get it."""
    if backend == "reference":
        return None
    if backend == "cpu":
        return native.why_absent()
    if backend == "cuda":
        return cuda_device.why_absent()
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed; install it with `pip install triton`"
    runs = torch.cuda.is_available() or triton_tensors.INTERPRETED
    return None if runs else "torch sees no CUDA device, which the Triton kernels need"


class Op:
    """One op: predicates of the backends that implement it, and reasons for those that do not.

    Args:
        name: name of the op and of its function in every backend.
        serves: backend -> predicate. It takes the public function's arguments and returns None, or one sentence
            without full stop that says why it cannot serve them. Without "reference", the reference serves everything.
        absent: backend -> why the op has no such backend. Every backend is in exactly one of `serves` and `absent`.
        slower: backend -> predicate with the same arguments that returns a reason where the backend was measured to
            be slower than the next one. Only automatic selection uses it.
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
            raise ValueError(f"{name}: every backend of {BACKENDS} must be in exactly one of `serves` and `absent`")
        if not self.slower.keys() <= self.serves.keys():
            raise ValueError(f"{name}: `slower` has a backend that `serves` does not have")

    def public(self, function: _Function) -> _Function:
        """Decorator: marks `function` as this op's public function, the argument of `explain()`."""
        function.op = self  # type: ignore[attr-defined]
        return function

    def why_not(self, backend: str, *args: Any, **kwargs: Any) -> str | None:
        """None if `backend` can serve these arguments, otherwise the reason."""
        if backend in self.absent:
            return self.absent[backend]
        if backend == "reference":
            return self.serves[backend](*args, **kwargs)
        return machine_lacks(backend) or transform_at_work() or self.serves[backend](*args, **kwargs)

    def why_slower(self, backend: str, *args: Any, **kwargs: Any) -> str | None:
        """None, or the reason why automatic selection does not take `backend` although it can serve."""
        reason = triton_tensors.only_for_tests() if backend == "triton" else None
        if backend == "cuda" and "cuda" not in self.slower and args and isinstance(args[0], torch.Tensor):
            reason = cuda_device.why_slower(self.name, args[0], None)
        if reason is not None:
            return reason
        reason = self.slower[backend](*args, **kwargs) if backend in self.slower else None
        if reason is not None or not args:
            return reason
        return trust.why_not_trusted(self.name, backend, args[0])

    def select(self, *args: Any, **kwargs: Any) -> str:
        """The backend for these arguments. torch.compile traces this function and guards on the values that it reads.

        Raises:
            BackendError: the backend requested by `use_backend` cannot serve.
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
        """The function `<op>` of the backend, imported at its first use.

        For "cpu:bfloat16" (`precision.with_precision`) it is that of "cpu" with the argument `bfloat16=True`.
        """
        if backend not in self._implementations:
            name, _, precision = backend.partition(":")
            self._implementations[backend] = _in_precision(getattr(self._module(name), self.name), precision)
        return self._implementations[backend]

    def backward_of(self, backend: str, *args: Any) -> str:
        """The backend whose backward goes with the forward of `backend`; `args` are the public function's."""
        taken = GRADIENTS.get(backend)
        if taken is None:
            return backend
        return taken if taken in self.serves and self.why_not(taken, *args) is None else "reference"

    def own_backward(self, backend: str) -> Callable[..., Any] | None:
        """The function `<op>_backward` of the backend, or None if its gradients are computed with the reference."""
        name, _, precision = backend.partition(":")
        function = getattr(self._module(name), f"{self.name}_backward", None)
        return None if function is None else _in_precision(function, precision)

    def _module(self, backend: str) -> ModuleType:
        module = MODULES.get(backend, {}).get(self.name, self.name)
        return importlib.import_module(f"swintormer_kernels.backends.{backend}.{module}")


def _in_precision(function: Callable[..., Any], precision: str) -> Callable[..., Any]:
    """`function` with the keyword `precision` set, or as it is if that is empty."""
    return functools.partial(function, **{precision: True}) if precision else function


def _serves_everything(*args: Any, **kwargs: Any) -> None:
    return None


@dataclass(frozen=True)
class Explanation:
    """Result of `explain()`; `str()` gives one line per backend.

    Attributes:
        op: the op's name.
        backend: the selected backend; None if the one requested by name cannot serve.
        asked: the backend requested by `use_backend`, or None.
        reasons: backend -> why it was not selected; None for the selected one.
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
    """The backend that `op_function(*args, **kwargs)` would use at this point, and the reasons against the others.

    Args:
        op_function: an op of this package, for example `swintormer_kernels.ddim_step`.
        *args: as in a call of the op.
        **kwargs: as in a call of the op.

    Raises:
        TypeError: `op_function` is not an op of this package, or the arguments do not match its signature.
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
    """backend -> None if this machine can run it, otherwise what is missing. `str()` gives one line per backend."""

    def __str__(self) -> str:
        return "\n".join(f"{name:<9}  {reason or _available(name)}" for name, reason in self.items())


def _available(backend: str) -> str:
    return f"available, {cuda_build.built().told()}" if backend == "cuda" else "available"


def backends() -> Backends:
    """The backends that this machine can run, and what is missing for the others."""
    return Backends({name: machine_lacks(name) for name in BACKENDS})
