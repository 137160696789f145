"""What the tests of the denoiser's ops share: the cpu backend beside the reference, in units of its error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from swintormer_kernels import native
from swintormer_kernels.registry import use_backend

ISAS = native.extension().supported_isas() if native.why_absent() is None else ["none"]
EPS = torch.finfo(torch.float32).eps


def mapped(function: Callable[[Tensor], Any], arguments: Any) -> Any:
    """The arguments with the function of every tensor in place of it."""
    return tree_map(lambda x: function(x) if isinstance(x, Tensor) else x, arguments)


def leaves_of(arguments: Any) -> tuple[Any, list[Tensor]]:
    """Copies of the arguments that require gradients, and their tensors in order."""
    leaves = mapped(lambda t: t.clone().requires_grad_(), arguments)
    return leaves, [leaf for leaf in tree_leaves(leaves) if isinstance(leaf, Tensor)]


def error(value: Tensor, truth: Tensor) -> float:
    """Relative, in the root of the squares' sum; absolute beside a truth of zeros (one number a group gives 0)."""
    return ((value.double() - truth).norm() / truth.norm().clamp_min(EPS)).item()


def comparing(op: Callable[..., Tensor]) -> tuple[Callable[[str, Any], Tensor], Callable[[Any], None]]:
    """`on(backend, arguments)` without gradients, and the assertion that the cpu backend errs no more than twice the
    reference, and leaves nothing unwritten."""

    def on(backend: str, arguments: Any) -> Tensor:
        with torch.no_grad(), use_backend(backend):
            return op(*arguments)

    def assert_as_good_as_the_reference(arguments: Any) -> None:
        truth, out = on("reference", mapped(Tensor.double, arguments)), on("cpu", arguments)
        assert out.shape == truth.shape
        assert not out.isnan().any(), "an element that nobody wrote"
        if truth.numel():
            assert error(out, truth) <= 2 * error(on("reference", arguments), truth) + EPS

    return on, assert_as_good_as_the_reference
