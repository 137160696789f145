"""Calls of an op by one backend, and how far a result is from float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import swintormer_kernels as sk

NAN = float("nan")
BACKEND_OF = {"eager": "reference", "cuda": "cuda", "triton": "triton"}
"""A row's `by` -> backend."""


def sides(backends: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """(name of the row, backend) of what is timed beside each other, eager first."""
    for by in ("eager", *backends):
        yield by, BACKEND_OF[by]


def on(backend: str, op: Callable[..., Tensor], arguments: Any, keywords: Any) -> Tensor:
    with torch.no_grad(), sk.use_backend(backend):
        return op(*arguments, **keywords)


def both(backend: str, op: Callable[..., Tensor], arguments: Any, keywords: Any) -> list[Tensor]:
    """Forward and backward; gradients of all tensors among the arguments."""
    leaves: list[Tensor] = []
    wanted = tree_map(
        lambda t: leaves.append(t.detach().requires_grad_()) or leaves[-1] if isinstance(t, Tensor) else t, arguments
    )
    with sk.use_backend(backend):
        y = op(*wanted, **keywords)
    return list(torch.autograd.grad(y, leaves, torch.ones_like(y)))


def forward(backend: str | None, net: nn.Module, x: Tensor) -> Tensor:
    """Of a network; None: automatic selection."""
    with torch.no_grad(), nullcontext() if backend is None else sk.use_backend(backend):
        return net(x)


def wide(value: Any) -> Any:
    """Tensors of records as float64."""
    return tree_map(lambda t: t.double() if isinstance(t, Tensor) else t, value)


def relative(value: Tensor, exact: Tensor) -> float:
    return ((value.double() - exact).norm() / exact.norm()).item() if exact.numel() else 0.0


def on_device(made: tuple[Any, Any], device: str, dtype: torch.dtype, tiles: int = 1) -> tuple[Any, Any]:
    """A case's arguments on the device in `dtype`; x, the first, for so many tiles."""
    (x, *rest), keywords = tree_map(lambda t: t.to(device, dtype) if isinstance(t, Tensor) else t, made)
    if tiles > 1:
        layout = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
        x = x.repeat(tiles, 1, 1, 1).contiguous(memory_format=layout)
    return (x, *rest), keywords
