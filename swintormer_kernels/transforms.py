"""Which of torch's transforms are at work around a call. The reference alone goes through them."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad


def transform_at_work() -> str | None:
    """None, or in one sentence the transform around this call that custom ops do not serve.

    They would drop the tangents of forward-mode AD without a word, and raise under torch.func's transforms.
    """
    if _inside_torch_func():
        return "transforms of torch.func (vmap, grad, jvp and the like) do not see through custom ops"
    # Private, because torch has no public question. torch.compile guards on what it reads here.
    if forward_ad._current_level >= 0:
        return "forward-mode AD (torch.autograd.forward_ad) does not see through custom ops"
    return None


@torch.compiler.assume_constant_result  # torch.compile cannot trace it; it guards on the answer by itself
def _inside_torch_func() -> bool:
    return torch._C._functorch.maybe_current_level() is not None
