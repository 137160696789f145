"""Makes the three ops of a block (swda_attention, gated_ffn, swda_block) ops of torch: schema, fake, autograd, FLOPs.

The public functions take x, one or two records of weights, then integers. torch.ops.swintormer.<op> takes the same with
the records' tensors one after the other, and the backend's name at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .backends.cpu.tensors import float32_on_cpu
from .case import Cost
from .registry import Op

NAMESPACE = "swintormer"


def float32_or_autocast(*tensors: Tensor | None) -> str | None:
    """Predicate as `float32_on_cpu`; under autocast, which these ops answer with float32, half types serve as well."""
    if torch.is_autocast_enabled("cpu"):
        tensors = tuple(x for x in tensors if x is None or x.dtype not in (torch.bfloat16, torch.float16))
    return float32_on_cpu(*tensors)


class Signature(NamedTuple):
    """What an op takes after x: records of weights (named tuples), then integers."""

    records: tuple[type[tuple[Tensor | None, ...]], ...]
    integers: tuple[str, ...]

    def schema(self) -> str:
        """In torch's schema language; a field with a default is an optional tensor."""
        arguments = ["Tensor x"]
        for number, record in enumerate(self.records):
            defaults = record._field_defaults  # type: ignore[attr-defined]
            for field in record._fields:  # type: ignore[attr-defined]
                kind = "Tensor?" if field in defaults else "Tensor"
                arguments.append(f"{kind} {field}_{number}")  # both records have a norm_weight
        return ", ".join([*arguments, *(f"int {name}" for name in self.integers)])

    def flat(self, x: Tensor, *rest: Any) -> tuple[Any, ...]:
        """Public arguments -> those of torch.ops, without the backend."""
        records, integers = rest[: len(self.records)], rest[len(self.records) :]
        return (x, *(tensor for record in records for tensor in record), *integers)

    def public(self, x: Tensor, *rest: Any) -> tuple[Any, ...]:
        """The inverse of `flat`."""
        arguments: list[Any] = [x]
        for record in self.records:
            size = len(record._fields)  # type: ignore[attr-defined]
            arguments.append(record(*rest[:size]))
            rest = rest[size:]
        return (*arguments, *rest)


def define_block_op(
    op: Op, signature: Signature, gradients: Callable[..., list[Tensor]], cost: Callable[..., Cost]
) -> Callable[..., Tensor]:
    """Registers swintormer::<op> and swintormer::<op>_backward; returns the former.

    Args:
        op: whose name and implementations are used.
        signature: what it takes.
        gradients: (grad, *public arguments) -> gradients of those tensors among them that require one, in order. A
            backend that brings its own has a function `<op>_backward` of the same form beside `<op>`.
        cost: work of a call with these public arguments.
    """
    name = f"{NAMESPACE}::{op.name}"
    differentiate = _define_backward(op, signature, gradients)
    torch.library.define(name, f"({signature.schema()}, str backend) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))

    @torch.library.impl(name, "CompositeExplicitAutograd")
    def _run(*arguments: Any) -> Tensor:
        return op.implementation(arguments[-1])(*signature.public(*arguments[:-1]))

    @torch.library.register_fake(name)
    def _fake(x: Tensor, *_: Any) -> Tensor:
        return torch.empty_like(x)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        tensors = len(inputs) - len(signature.integers) - 1
        ctx.save_for_backward(*inputs[:tensors])
        ctx.rest = inputs[tensors:]

    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        tensors = ctx.saved_tensors
        needed = list(ctx.needs_input_grad[: len(tensors)])
        found = iter(differentiate(grad, *tensors, *ctx.rest, needed))
        return (*(next(found) if need else None for need in needed), *(None for _ in ctx.rest))

    torch.library.register_autograd(name, backward, setup_context=setup_context)

    @torch.library.register_vmap(name)
    def _vmap(*_: Any) -> tuple[Tensor, int]:
        raise NotImplementedError(
            f"{op.name}: torch.vmap is not supported; put the mapped dimension into x's batch, which this op takes at "
            "any size, or use swintormer_kernels.use_backend('reference')"
        )

    packet = getattr(getattr(torch.ops, NAMESPACE), op.name)
    _define_autocast(name, packet)

    @register_flop_formula(packet, get_raw=True)
    def _flops(*arguments: Any, out_val: Any = None, **_: Any) -> int:
        return 2 * cost(*signature.public(*arguments[:-1])).macs

    return packet


def _define_autocast(name: str, packet: Callable[..., Tensor]) -> None:
    # The cpu kernels compute in float32: there the op takes what it is given in float32, and returns that. On a GPU it
    # is a product like any other: in the dtype that the user chose.
    torch.library.register_autocast(name, "cpu", torch.float32)

    @torch.library.impl(name, "AutocastCUDA")
    def _cast(*arguments: Any) -> Tensor:
        dtype = torch.get_autocast_dtype("cuda")
        with torch.autocast("cuda", enabled=False):
            return packet(*(in_autocast_dtype(argument, dtype) for argument in arguments))


def in_autocast_dtype(argument: Any, dtype: torch.dtype) -> Any:
    """`argument` in `dtype` if it is a tensor that autocast changes: floating point, and no float64."""
    if isinstance(argument, Tensor) and argument.is_floating_point() and argument.dtype != torch.float64:
        return argument.to(dtype)
    return argument


def _define_backward(
    op: Op, signature: Signature, gradients: Callable[..., list[Tensor]]
) -> Callable[..., list[Tensor]]:
    # An op of its own, or torch.compile would trace the recomputation with its loop over bands into the graph. It has
    # no autograd formula: asking for gradients of gradients raises torch's error that says so.
    name = f"{op.name}_backward"
    full, schema = (
        f"{NAMESPACE}::{name}",
        f"(Tensor grad, {signature.schema()}, str backend, bool[] needed) -> Tensor[]",
    )
    torch.library.define(full, schema, tags=(torch.Tag.pt2_compliant_tag,))

    @torch.library.impl(full, "CompositeExplicitAutograd")
    def _run(grad: Tensor, *arguments: Any) -> list[Tensor]:
        *rest, backend, needed = arguments
        tensors: list[Any] = [
            None if tensor is None else tensor.detach().requires_grad_(need)
            for tensor, need in zip(rest, needed, strict=False)
        ]
        differentiate = op.own_backward(backend) or gradients
        return differentiate(grad, *signature.public(*tensors, *rest[len(tensors) :]))

    @torch.library.register_fake(full)
    def _fake(grad: Tensor, *arguments: Any) -> list[Tensor]:
        *tensors, _, needed = arguments
        return [torch.empty_like(tensor) for tensor, need in zip(tensors, needed, strict=False) if need]

    return getattr(getattr(torch.ops, NAMESPACE), name)
