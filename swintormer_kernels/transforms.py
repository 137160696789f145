"""Detection of torch transforms (vmap, forward-mode AD) around a call. Only the reference supports them."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad


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


@torch.compiler.assume_constant_result  # torch.compile cannot trace this call and guards on transforms by itself
def _inside_torch_func() -> bool:
    return torch._C._functorch.maybe_current_level() is not None
