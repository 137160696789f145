"""upsample_conv3x3: upsampling by 2 (nearest neighbour) and a 3x3 convolution, as in U-Nets and decoders.

    out = conv3x3(nearest(x)) + bias      stride 1, padded with one 0 on each side

MACs per output pixel: 9 C_in C_out. Rows and columns of the upsampled image are equal in pairs, so Winograd's
F(2x2, 3x3) needs 9 of its 16 products, a quarter of the direct convolution's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from swintormer_kernels.backends.reference.denoiser import upsample_conv3x3 as _reference
from swintormer_kernels.ops.norm_silu_conv3x3 import used_products
from swintormer_kernels.records import UpsampleWeights
from swintormer_kernels.registry import Op
from swintormer_kernels.torch_op import Cost, Signature, define_block_op, float32_or_autocast, slower_with_gradients


def _cpu_serves(x: Tensor, conv: UpsampleWeights) -> str | None:
    return float32_or_autocast(x, *conv)


def _cpu_slower(x: Tensor, conv: UpsampleWeights) -> str | None:
    # bench/small_shapes.py, two threads, reference / cpu: below 16 channels 0.6 to 1.2; below 8x8 pixels 0.5 to 1.1,
    # and where less than 0.25 of the products is used 0.6 to 1.2; from there on 1.0 and more.
    channels, height, width = x.shape[1:]
    if channels < 16:
        return f"{channels} input channels fill too little of the cpu backend's vectors"
    used = used_products(2 * height, 2 * width, conv.weight.shape[0])
    if height * width < 64 or used < 0.25:
        return f"{height}x{width} pixels to {conv.weight.shape[0]} channels fill too little of the cpu backend's tiles"
    return slower_with_gradients(x, *conv)


OP = Op(
    "upsample_conv3x3",
    serves={"cpu": _cpu_serves},
    absent={
        "cuda": "there is no CUDA kernel for this op",
        "triton": "there is no Triton kernel for this op",
    },
    slower={"cpu": _cpu_slower},
)


@OP.public
def upsample_conv3x3(x: Tensor, conv: UpsampleWeights) -> Tensor:
    """conv3x3(x upsampled by 2, nearest neighbour) + bias.

    Args:
        x: (B, C_in, H, W), any strides.
        conv: parameters, shapes as in `UpsampleWeights`.

    Returns:
        (B, C_out, 2H, 2W).

    Raises:
        ValueError: a tensor has another shape.
    """
    check_input(x, conv)
    backend = OP.select(x, conv)
    if backend == "reference":
        return _reference(x, conv)
    return _run(*_SIGNATURE.flat(x, conv), backend)


def check_input(x: Tensor, conv: UpsampleWeights) -> None:
    """Raises ValueError if `upsample_conv3x3` does not accept these arguments."""
    if x.ndim != 4 or conv.weight.shape[1:] != (x.shape[1], 3, 3):
        raise ValueError(
            f"weight must be (C_out, C_in, 3, 3) and x (B, C_in, H, W), found {tuple(conv.weight.shape)} "
            f"and {tuple(x.shape)}"
        )
    if conv.bias is not None and conv.bias.shape != conv.weight.shape[:1]:
        raise ValueError(f"bias must be ({conv.weight.shape[0]},), found {tuple(conv.bias.shape)}")


def _like_output(x: Tensor, weight: Tensor, *_: Any) -> Tensor:
    height, width = x.shape[2:]
    return x.new_empty((x.shape[0], weight.shape[0], 2 * height, 2 * width)).to(memory_format=torch.channels_last)


def cost(x: Tensor, conv: UpsampleWeights) -> Cost:
    """Work of `upsample_conv3x3`: MACs of a direct convolution; x, weights and out once each."""
    pixels = 4 * x.numel() // max(1, x.shape[1])
    weights = sum(tensor.numel() for tensor in conv if tensor is not None)
    elements = x.numel() + pixels * conv.weight.shape[0] + weights
    return Cost(pixels * conv.weight[0].numel() * conv.weight.shape[0], elements * x.element_size())


_SIGNATURE = Signature((UpsampleWeights,), ())
_run = define_block_op(OP, _SIGNATURE, cost, _like_output)
