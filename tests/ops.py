"""What the tests of the ops share: a backend beside the reference, in units of the reference's error."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from swintormer_kernels import native
from swintormer_kernels.registry import use_backend
from swintormer_kernels.testing.cases import CASES

ISAS = native.extension().supported_isas() if native.why_absent() is None else ["none"]
EPS = torch.finfo(torch.float32).eps
MODULES = {name: importlib.import_module(f"swintormer_kernels.ops.{name}") for name in CASES if name != "ddim_step"}
"""Of the ops that map images to images; ddim_step has tests of its own."""
BLOCK_OPS = ("swda_attention", "gated_ffn", "swda_block")


def public(name: str) -> Callable[..., Tensor]:
    return getattr(MODULES[name], name)


def mapped(function: Callable[[Tensor], Any], arguments: Any) -> Any:
    """The arguments, which may hold records of tensors, with the function of every tensor in place of it."""
    return tree_map(lambda x: function(x) if isinstance(x, Tensor) else x, arguments)


def double(arguments: Any) -> Any:
    return mapped(lambda t: t.detach().double(), arguments)


def leaves_of(arguments: Any) -> tuple[Any, list[Tensor]]:
    """The arguments' tensors as they lie, requiring gradients: in their places, and in order."""
    leaves = mapped(lambda t: t.detach().requires_grad_(), arguments)
    return leaves, [leaf for leaf in tree_leaves(leaves) if isinstance(leaf, Tensor)]


def on(backend: str, op: Callable[..., Tensor], arguments: Any) -> Tensor:
    with torch.no_grad(), use_backend(backend):
        return op(*arguments)


def gradients(backend: str, op: Callable[..., Tensor], arguments: Any, grad: Tensor) -> Sequence[Tensor]:
    """Of every tensor among the arguments, in order."""
    leaves, tensors = leaves_of(arguments)
    with use_backend(backend):
        y = op(*leaves)
        return torch.autograd.grad(y, tensors, grad.to(y.dtype))


def error(value: Tensor, truth: Tensor) -> float:
    """Relative, in the root of the squares' sum; absolute beside a truth of zeros (one number a group gives 0)."""
    return ((value.double() - truth).norm() / truth.norm().clamp_min(EPS)).item()


def assert_as_good(value: Tensor, plain: Tensor, truth: Tensor, slack: float | None = None) -> None:
    """At most twice the reference's own error and `slack`, by default half a unit in the last place of the dtype."""
    assert value.shape == truth.shape
    assert value.dtype == plain.dtype
    assert not value.isnan().any(), "an element that nobody wrote"
    if truth.numel():
        slack = torch.finfo(value.dtype).eps / 2 if slack is None else slack
        assert error(value, truth) <= 2 * error(plain, truth) + slack


def assert_forward(backend: str, op: Callable[..., Tensor], arguments: Any, slack: float | None = None) -> Tensor:
    """Asserts that the backend's result is as good as the reference's, and returns it."""
    out = on(backend, op, arguments)
    assert_as_good(out, on("reference", op, arguments), on("reference", op, double(arguments)), slack)
    return out


def assert_gradients(
    backend: str, op: Callable[..., Tensor], arguments: Any, grad: Tensor, slack: float | None = None
) -> Sequence[Tensor]:
    """As `assert_forward`, of the gradients of every tensor."""
    found, plain = (gradients(name, op, arguments, grad) for name in (backend, "reference"))
    for value, rounded, true in zip(found, plain, gradients("reference", op, double(arguments), grad), strict=True):
        assert_as_good(value, rounded, true, slack)
    return found


@st.composite
def any_layout(draw: st.DrawFn, shape: tuple[int, ...]) -> Tensor:
    """A float32 tensor of `shape`: permuted, cut out of a larger one, or expanded."""
    rank = len(shape)
    order = draw(st.permutations(range(rank)))
    steps = [draw(st.sampled_from([1, 1, 2, 3])) for _ in range(rank)]
    offsets = [draw(st.integers(0, 2)) for _ in range(rank)]
    expanded = [draw(st.sampled_from([False, False, False, True])) for _ in range(rank)]
    extent = [1 if e else o + s * n for n, s, o, e in zip(shape, steps, offsets, expanded, strict=True)]
    seed = draw(st.integers(0, 2**16))
    base = torch.randn([extent[i] for i in order], generator=torch.Generator().manual_seed(seed))
    base = base.permute([order.index(i) for i in range(rank)])
    index = tuple(
        slice(None) if e else slice(o, o + s * n, s) for n, s, o, e in zip(shape, steps, offsets, expanded, strict=True)
    )
    return base[index].expand(shape)
