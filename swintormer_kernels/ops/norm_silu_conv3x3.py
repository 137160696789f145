"""norm_silu_conv3x3: half a ResNet block of a diffusion U-Net (Ho et al. 2020, arXiv 2006.11239) in one pass.

    out = conv3x3(silu(group_norm(x))) + bias + embedding + skip      stride 1, padded with one 0 on each side

Norm and SiLU are those of `group_norm_silu`, including scale and shift. `embedding` is the projected time embedding,
one number per image and channel; `skip` is the skip connection of the ResNet block. MACs per pixel: 9 C_in C_out. A
fused backend reads x twice (once for the statistics) and skip once, and writes out once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from swintormer_kernels.backends.cuda.layout import half_rows_on_gpu
from swintormer_kernels.backends.cuda.limits import norm_lacks
from swintormer_kernels.backends.reference.denoiser import norm_silu_conv3x3 as _reference
from swintormer_kernels.backends.triton.layout import dense_on_gpu
from swintormer_kernels.ops import group_norm_silu
from swintormer_kernels.records import ConvWeights, GroupNormWeights
from swintormer_kernels.registry import Op
from swintormer_kernels.torch_op import Cost, Signature, define_block_op, float32_or_autocast, slower_with_gradients


def _cpu_serves(x: Tensor, norm: GroupNormWeights, conv: ConvWeights, groups: int, eps: float = 1e-5) -> str | None:
    return float32_or_autocast(x, *norm, *conv)


def _cpu_slower(x: Tensor, norm: GroupNormWeights, conv: ConvWeights, groups: int, eps: float = 1e-5) -> str | None:
    reason = too_small(x.shape[0], x.shape[1], conv.weight.shape[0], (x.shape[2], x.shape[3]))
    return slower_with_gradients(x, *norm, *conv) if reason is None else reason


def too_small(batch: int, channels: int, out: int, sides: tuple[int, int]) -> str | None:
    """Reason why the cpu backend is slower than the reference for this size, as measured; otherwise None."""
    # bench/small_shapes.py, two threads, reference / cpu: below 16 channels 0.7 to 1.2. Where less than 0.4 of the
    # products is used, single images of 16x16 to 32x32 pixels still reach 1.01 to 1.7, others 0.4 to 1.1; above 0.4
    # the worst of 87 shapes is 0.95, the others 1.0 and more.
    height, width = sides
    used = used_products(height, width, out)
    if channels < 16:
        return f"{channels} input channels fill too little of the cpu backend's vectors"
    if used < 0.4 and not (batch == 1 and 256 <= height * width <= 1024):
        return f"{height}x{width} pixels of {out} channels use {used:.0%} of the cpu backend's products"
    return None


def used_products(height: int, width: int, out_channels: int) -> float:
    """Share of the cpu backend's products that the result needs. It computes 12 tiles of 2x2 pixels by 32 channels."""
    tiles = -(-height // 2) * -(-width // 2)
    in_rows, in_panels = 12 * max(1, -(-tiles // 12)), 32 * max(1, -(-out_channels // 32))
    return height * width / 4 / in_rows * out_channels / in_panels


def _triton_serves(x: Tensor, norm: GroupNormWeights, conv: ConvWeights, groups: int, eps: float = 1e-5) -> str | None:
    return dense_on_gpu(x, *norm, *conv)


def _cuda_serves(x: Tensor, norm: GroupNormWeights, conv: ConvWeights, groups: int, eps: float = 1e-5) -> str | None:
    return norm_lacks(x) or half_rows_on_gpu("group_norm norm_silu_conv3x3", x, *norm, *conv)


OP = Op(
    "norm_silu_conv3x3",
    serves={"cpu": _cpu_serves, "triton": _triton_serves, "cuda": _cuda_serves},
    slower={"cpu": _cpu_slower},
)


@OP.public
def norm_silu_conv3x3(x: Tensor, norm: GroupNormWeights, conv: ConvWeights, groups: int, eps: float = 1e-5) -> Tensor:
    """conv3x3(silu(group_norm(x) * (1 + scale) + shift)) + bias + embedding + skip.

    Args:
        x: (B, C_in, H, W), any strides.
        norm: parameters of the norm, shapes as in `GroupNormWeights`.
        conv: parameters of the convolution, embedding and skip, shapes as in `ConvWeights`.
        groups: number of groups, a divisor of C_in.
        eps: added to the variance, at least 0.

    Returns:
        (B, C_out, H, W).

    Raises:
        ValueError: a tensor has another shape, `groups` does not divide C_in, or `eps` is negative.
    """
    check_input(x, norm, conv, groups, eps)
    backend = OP.select(x, norm, conv, groups, eps)
    if backend == "reference":
        return _reference(x, norm, conv, groups, eps)
    return _run(*_SIGNATURE.flat(x, norm, conv, groups, eps), backend)


def check_input(x: Tensor, norm: GroupNormWeights, conv: ConvWeights, groups: int, eps: float) -> None:
    """Raises ValueError if `norm_silu_conv3x3` does not accept these arguments."""
    group_norm_silu.check_input(x, norm, groups, eps)
    batch, channels, height, width = x.shape
    out = conv.weight.shape[0]
    wanted = ((out, channels, 3, 3), (out,), (batch, out), (batch, out, height, width))
    for name, tensor, shape in zip(ConvWeights._fields, conv, wanted, strict=True):
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name} must be {shape} with x {tuple(x.shape)}, found {tuple(tensor.shape)}")


def _like_output(x: Tensor, *tensors: Any) -> Tensor:
    # The cpu backend returns channels_last, and torch.compile relies on the strides given here.
    weight = tensors[len(GroupNormWeights._fields)]
    return x.new_empty((x.shape[0], weight.shape[0], *x.shape[2:])).to(memory_format=torch.channels_last)


def cost(x: Tensor, norm: GroupNormWeights, conv: ConvWeights, groups: int, eps: float = 1e-5) -> Cost:
    """Work of `norm_silu_conv3x3`: MACs of a direct convolution; x, skip, weights and out once each."""
    out = conv.weight.shape[0]
    pixels = x.numel() // max(1, x.shape[1])
    tensors = [tensor for tensor in (x, *norm, *conv) if tensor is not None]
    elements = pixels * out + sum(tensor.numel() for tensor in tensors)
    return Cost(pixels * 9 * x.shape[1] * out, elements * x.element_size())


_SIGNATURE = Signature((GroupNormWeights, ConvWeights), ("groups",), ("eps",))
_run = define_block_op(OP, _SIGNATURE, cost, _like_output)
