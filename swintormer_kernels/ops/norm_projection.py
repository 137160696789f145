"""norm_projection: GroupNorm and a linear map of every pixel, the first steps of attention in a diffusion U-Net.

    out[b, p] = weight (group_norm(x)[b, :, p] (1 + scale) + shift) + bias      for every pixel p

With the weights of queries, keys and values concatenated it computes all three in one product. A fused backend does not
store the normalised image: it reads x twice (once for the statistics) and writes out once. MACs per pixel: C_in C_out.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from swintormer_kernels.backends.reference.denoiser import norm_projection as _reference
from swintormer_kernels.ops import group_norm_silu
from swintormer_kernels.records import GroupNormWeights, LinearWeights
from swintormer_kernels.registry import Op
from swintormer_kernels.torch_op import Cost, Signature, define_block_op, float32_or_autocast, slower_with_gradients


def _cpu_serves(x: Tensor, norm: GroupNormWeights, linear: LinearWeights, groups: int, eps: float = 1e-5) -> str | None:
    return float32_or_autocast(x, *norm, *linear)


def _cpu_slower(x: Tensor, norm: GroupNormWeights, linear: LinearWeights, groups: int, eps: float = 1e-5) -> str | None:
    # bench/bench_ops.py, two threads, reference / cpu: 64 channels 0.7 to 0.9, 320 channels 0.96 to 1.01,
    # 512 and 640 channels 0.98 to 1.15.
    if x.shape[1] < 512:
        return f"with {x.shape[1]} channels torch's GroupNorm and product are as fast"
    return slower_with_gradients(x, *norm, *linear)


OP = Op(
    "norm_projection",
    serves={"cpu": _cpu_serves},
    absent={
        "cuda": "there is no CUDA kernel for this op",
        "triton": "there is no Triton kernel for this op",
    },
    slower={"cpu": _cpu_slower},
)


@OP.public
def norm_projection(x: Tensor, norm: GroupNormWeights, linear: LinearWeights, groups: int, eps: float = 1e-5) -> Tensor:
    """Linear map of every pixel of group_norm(x) * (1 + scale) + shift.

    Args:
        x: (B, C_in, H, W), any strides.
        norm: parameters of the norm, shapes as in `GroupNormWeights`.
        linear: parameters of the linear map, shapes as in `LinearWeights`.
        groups: number of groups, a divisor of C_in.
        eps: added to the variance, at least 0.

    Returns:
        (B, H W, C_out).

    Raises:
        ValueError: a tensor has another shape, `groups` does not divide C_in, or `eps` is negative.
    """
    check_input(x, norm, linear, groups, eps)
    backend = OP.select(x, norm, linear, groups, eps)
    if backend == "reference":
        return _reference(x, norm, linear, groups, eps)
    return _run(*_SIGNATURE.flat(x, norm, linear, groups, eps), backend)


def check_input(x: Tensor, norm: GroupNormWeights, linear: LinearWeights, groups: int, eps: float) -> None:
    """Raises ValueError if `norm_projection` does not accept these arguments."""
    group_norm_silu.check_input(x, norm, groups, eps)
    if linear.weight.ndim != 2 or linear.weight.shape[1] != x.shape[1]:
        raise ValueError(f"weight must be (C_out, {x.shape[1]}), found {tuple(linear.weight.shape)}")
    if linear.bias is not None and linear.bias.shape != linear.weight.shape[:1]:
        raise ValueError(f"bias must be ({linear.weight.shape[0]},), found {tuple(linear.bias.shape)}")


def _like_output(x: Tensor, *tensors: Any) -> Tensor:
    weight = tensors[len(GroupNormWeights._fields)]
    return x.new_empty((x.shape[0], x.shape[2] * x.shape[3], weight.shape[0]))


def cost(x: Tensor, norm: GroupNormWeights, linear: LinearWeights, groups: int, eps: float = 1e-5) -> Cost:
    """Work of `norm_projection`: MACs of the product; x, weights and out once each."""
    out, pixels = linear.weight.shape[0], x.numel() // max(1, x.shape[1])
    weights = sum(tensor.numel() for tensor in (*norm, *linear) if tensor is not None)
    return Cost(x.numel() * out, (x.numel() + pixels * out + weights) * x.element_size())


_SIGNATURE = Signature((GroupNormWeights, LinearWeights), ("groups",), ("eps",))
_run = define_block_op(OP, _SIGNATURE, cost, _like_output)
