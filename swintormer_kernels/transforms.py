"""Detection of torch transforms (vmap, forward-mode AD) around a call. Only the reference supports them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch.autograd import forward_ad

F = TypeVar("F", bound=Callable[..., object])


def constant_in_compiled_code(function: F) -> F:
    """`torch.compiler.assume_constant_result`, which would import the compiler: half of the time to start a program.

    It also leaves a folder for the compiler's cache among the temporary files.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def transform_at_work() -> str | None:
    """None, or one sentence that names a transform around this call which custom ops do not support.

    Custom ops would drop the tangents of forward-mode AD silently and raise under the transforms of torch.func.
    """
    if _inside_torch_func():
        return "custom ops do not support the transforms of torch.func (vmap, grad, jvp and others)"
    # A private attribute, because torch has no public query. torch.compile guards on its value.
    if forward_ad._current_level >= 0:
        return "custom ops do not support forward-mode AD (torch.autograd.forward_ad)"
    return None


@constant_in_compiled_code  # torch.compile cannot trace this call and guards on transforms by itself
def _inside_torch_func() -> bool:
    return torch._C._functorch.maybe_current_level() is not None
