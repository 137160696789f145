"""Registers ops on an image and weight records as custom ops of torch: schema, fake, autograd, FLOP formula.

The public functions take x, one or two records of weights, and numbers. torch.ops.swintormer.<op> takes the same with
the records flattened into their tensors, and the name of the backend as last argument.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from swintormer_kernels.backends.cpu.layout import bfloat16_on_cpu, float32_on_cpu
from swintormer_kernels.registry import Op

NAMESPACE = "swintormer"


class Cost(NamedTuple):
    """Work of one forward call: the minimum that the formula needs, independent of the backend."""

    macs: int
    """Multiply-accumulates."""
    bytes: int
    """Memory traffic if every input is read once and the output written once."""


def element_bytes(elements: int, *weights: Tensor | None) -> int:
    """Bytes of `elements` and of the weights, all in the weights' dtype."""
    present = [weight for weight in weights if weight is not None]
    return (elements + sum(weight.numel() for weight in present)) * present[0].element_size()


def float32_or_autocast(*tensors: Tensor | None) -> str | None:
    """Predicate as `float32_on_cpu`, but accepts half types under autocast, where these ops compute in float32."""
    if torch.is_autocast_enabled("cpu"):
        tensors = tuple(x for x in tensors if x is None or x.dtype not in (torch.bfloat16, torch.float16))
    return float32_on_cpu(*tensors)


def float32_bfloat16_or_autocast(*tensors: Tensor | None) -> str | None:
    """As `float32_or_autocast` for ops that also take tensors of bfloat16, if all of them are."""
    if tensors[0] is not None and tensors[0].dtype is torch.bfloat16 and not torch.is_autocast_enabled("cpu"):
        return bfloat16_on_cpu(*tensors)
    return float32_or_autocast(*tensors)


def check_shapes(weights: Any, wanted: dict[str, tuple[int, ...]]) -> None:
    """Raises ValueError for the first tensor in a record of weights that has another shape than wanted."""
    for field, shape in wanted.items():
        tensor = getattr(weights, field)
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{field} must have the shape {shape} here, found {tuple(tensor.shape)}")


def gradients_wanted(*tensors: Tensor | None) -> bool:
    """Whether autograd records a call with these tensors."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def slower_with_gradients(*tensors: Tensor | None) -> str | None:
    """`slower` predicate of ops whose backward first runs a forward pass in torch: 0.3 to 0.9 times as fast."""
    if gradients_wanted(*tensors):
        return "its backward computes the forward again, which takes longer than the forward saves"
    return None


class Signature(NamedTuple):
    """Arguments of an op after x: records of weights (named tuples), then integers, then floats."""

    records: tuple[type[tuple[Tensor | None, ...]], ...]
    integers: tuple[str, ...]
    floats: tuple[str, ...] = ()

    def schema(self) -> str:
        """The arguments in torch's schema language; a field with a default is an optional tensor."""
        arguments = ["Tensor x"]
        for number, record in enumerate(self.records):
            defaults = record._field_defaults  # type: ignore[attr-defined]
            for field in record._fields:  # type: ignore[attr-defined]
                kind = "Tensor?" if field in defaults else "Tensor"
                arguments.append(f"{kind} {field}_{number}")  # both records have a norm_weight
        numbers = [f"int {name}" for name in self.integers] + [f"float {name}" for name in self.floats]
        return ", ".join([*arguments, *numbers])

    def flat(self, x: Tensor, *rest: Any) -> tuple[Any, ...]:
        """Public arguments -> those of torch.ops, without the backend."""
        records, numbers = rest[: len(self.records)], rest[len(self.records) :]
        return (x, *(tensor for record in records for tensor in record), *numbers)

    def public(self, x: Tensor, *rest: Any) -> tuple[Any, ...]:
        """The inverse of `flat`."""
        arguments: list[Any] = [x]
        for record in self.records:
            size = len(record._fields)  # type: ignore[attr-defined]
            arguments.append(record(*rest[:size]))
            rest = rest[size:]
        return (*arguments, *rest)


def define_block_op(
    op: Op,
    signature: Signature,
    cost: Callable[..., Cost],
    like_output: Callable[..., Tensor] = lambda x, *_: torch.empty_like(x),
) -> Callable[..., Tensor]:
    """Registers swintormer::<op> and swintormer::<op>_backward and returns the former.

    Args:
        op: provides the name and the implementations.
        signature: arguments after x.
        cost: (public arguments) -> work of a call.
        like_output: (arguments of torch.ops) -> an uninitialised tensor with the shape and strides of the result.
    """
    name = f"{NAMESPACE}::{op.name}"
    differentiate = _define_backward(op, signature)
    torch.library.define(name, f"({signature.schema()}, str backend) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))

    @torch.library.impl(name, "CompositeExplicitAutograd")
    def _run(*arguments: Any) -> Tensor:
        return op.implementation(arguments[-1])(*signature.public(*arguments[:-1]))

    torch.library.register_fake(name, like_output)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        tensors = len(inputs) - len(signature.integers) - len(signature.floats) - 1
        ctx.save_for_backward(*inputs[:tensors])
        ctx.rest = inputs[tensors:]

    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        tensors = ctx.saved_tensors
        needed = list(ctx.needs_input_grad[: len(tensors)])
        found = iter(differentiate(grad, *tensors, *ctx.rest, needed))
        return (*(next(found) if need else None for need in needed), *(None for _ in ctx.rest))

    torch.library.register_autograd(name, backward, setup_context=setup_context)

    packet = getattr(getattr(torch.ops, NAMESPACE), op.name)
    _define_autocast(name, packet)

    @register_flop_formula(packet, get_raw=True)
    def _flops(*arguments: Any, out_val: Any = None, **_: Any) -> int:
        return 2 * cost(*signature.public(*arguments[:-1])).macs

    return packet


def _define_autocast(name: str, packet: Callable[..., Tensor]) -> None:
    # On a CPU the op takes what it is given in float32 and returns that; precision.py decides how it multiplies. On a
    # GPU it is a product like any other: in the dtype that the user chose.
    torch.library.register_autocast(name, "cpu", torch.float32)

    @torch.library.impl(name, "AutocastCUDA")
    def _cast(*arguments: Any) -> Tensor:
        dtype = torch.get_autocast_dtype("cuda")
        with torch.autocast("cuda", enabled=False):
            return packet(*(in_autocast_dtype(argument, dtype) for argument in arguments))


def in_autocast_dtype(argument: Any, dtype: torch.dtype) -> Any:
    """`argument` in `dtype` if it is a tensor that autocast converts: floating point, but not float64."""
    if isinstance(argument, Tensor) and argument.is_floating_point() and argument.dtype != torch.float64:
        return argument.to(dtype)
    return argument


def _define_backward(op: Op, signature: Signature) -> Callable[..., list[Tensor]]:
    # A separate op, because torch.compile would otherwise trace the backends' own code into the graph.
    name = f"{op.name}_backward"
    full, schema = (
        f"{NAMESPACE}::{name}",
        f"(Tensor grad, {signature.schema()}, str backend, bool[] needed) -> Tensor[]",
    )
    torch.library.define(full, schema, tags=(torch.Tag.pt2_compliant_tag,))

    @torch.library.impl(full, "CompositeExplicitAutograd")
    def _run(grad: Tensor, *arguments: Any) -> list[Tensor]:
        *rest, backend, needed = arguments
        own = op.own_backward(op.backward_of(backend, *signature.public(*rest)))
        tensors: list[Any] = []
        for tensor, need in zip(rest, needed, strict=False):
            # The backend's backward gets the parameters themselves if possible, so that it finds their packed weights.
            keep = tensor is None or (own is not None and tensor.requires_grad == need)
            tensors.append(tensor if keep else tensor.detach().requires_grad_(need))
        public = signature.public(*tensors, *rest[len(tensors) :])
        # The backward may run inside the user's autocast region. The forward computed without it, so this does, too.
        with torch.no_grad(), torch.autocast(grad.device.type, enabled=False):
            if own is not None:
                found = own(grad, *public)
            else:
                with _autograd_sees():
                    found = _reference_gradients(op, grad, public, tensors)
        wanted = (tensor for tensor, need in zip(rest, needed, strict=False) if need)
        return [_laid_out_like(tensor, value) for tensor, value in zip(wanted, found, strict=True)]

    @torch.library.register_fake(full)
    def _fake(grad: Tensor, *arguments: Any) -> list[Tensor]:
        *tensors, _, needed = arguments
        return [torch.empty_like(tensor) for tensor, need in zip(tensors, needed, strict=False) if need]

    def refuse(ctx: Any, *_: Any) -> Any:
        raise NotImplementedError(
            f"{op.name}: its gradient cannot be differentiated again; for gradients of gradients, run the forward pass "
            "under swintormer_kernels.use_backend('reference')"
        )

    torch.library.register_autograd(full, refuse)
    return getattr(getattr(torch.ops, NAMESPACE), name)


def _reference_gradients(op: Op, grad: Tensor, public: tuple[Any, ...], tensors: list[Any]) -> list[Tensor]:
    """Gradients of those `tensors` that require one, in order, computed by autograd through the reference."""
    wanted = [tensor for tensor in tensors if tensor is not None and tensor.requires_grad]
    # Disable autocast again: `_autograd_sees` replaces the dispatch keys in which the caller disabled it.
    with torch.enable_grad(), torch.autocast(grad.device.type, enabled=False):
        return list(torch.autograd.grad(op.implementation("reference")(*public), wanted, grad))


def _autograd_sees() -> Any:
    """Enables autograd's dispatch keys, which torch disables inside a custom op, for the reference's gradients."""
    hidden = torch._C._dispatch_tls_local_exclude_set() & torch._C._after_autograd_keyset
    return torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), hidden)


def _laid_out_like(tensor: Tensor, gradient: Tensor) -> Tensor:
    """`gradient` with the strides of `torch.empty_like(tensor)`, as the fake implementation declares."""
    like = torch.empty_like(tensor)
    return gradient if gradient.stride() == like.stride() else like.copy_(gradient)
