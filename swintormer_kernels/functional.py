"""Whether torch.func differentiates around an op here, which no custom op lets it do."""

from __future__ import annotations

import torch


def functional_gradient() -> str | None:
    """None, or in one sentence that torch.func.grad or its kin are at work, which the reference alone serves."""
    # torch has no public question for this, and its own error, from inside autograd.Function, names no way out.
    if torch.compiler.is_compiling():
        return None
    levels = torch._C._functorch.get_interpreter_stack() or ()
    if any(level.key() != torch._C._functorch.TransformType.Vmap for level in levels):
        return "torch.func.grad, jvp and their kin do not see through custom ops (torch.autograd and vmap do)"
    return None
