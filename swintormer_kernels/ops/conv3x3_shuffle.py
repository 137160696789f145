"""conv3x3_shuffle: a 3x3 convolution and the PixelShuffle behind it, as in the up and down steps of a U-Net.

    out = PixelShuffle(conv3x3(x) + bias)      stride 1, padded with one 0 on each side

MACs per pixel of x: 9 C_in C_out. Winograd's F(2x2, 3x3) needs 4 C_in C_out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from swintormer_kernels.backends.reference.denoiser import conv3x3_shuffle as _reference
from swintormer_kernels.ops.norm_silu_conv3x3 import used_products
from swintormer_kernels.records import ShuffleWeights
from swintormer_kernels.registry import Op
from swintormer_kernels.torch_op import Cost, Signature, define_block_op, float32_or_autocast, slower_with_gradients


def _cpu_serves(x: Tensor, conv: ShuffleWeights, shuffle: int = 1) -> str | None:
    if shuffle not in (1, 2):
        return f"the cpu backend shuffles by 1 or 2, not by {shuffle}"
    return float32_or_autocast(x, *conv)


def _cpu_slower(x: Tensor, conv: ShuffleWeights, shuffle: int = 1) -> str | None:
    if torch.is_autocast_enabled("cpu"):
        return "torch's convolution multiplies in autocast's own dtype"
    # bench/results/conv3x3_shuffle.csv (two Zen 4 cores, AVX-512), reference / cpu: 12 channels to 24 0.85; 12 outputs,
    # which use 0.38 of the products, 0.64 to 0.79; 24 outputs or more, 0.75 and more of them, 1.01 to 2.1.
    channels, height, width = x.shape[1:]
    outputs = conv.weight.shape[0]
    if channels < 16:
        return f"{channels} input channels fill too little of the cpu backend's vectors"
    if used_products(height, width, outputs) < 0.6:
        return f"{height}x{width} pixels of {outputs} channels fill too little of the cpu backend's tiles"
    return slower_with_gradients(x, *conv)


OP = Op(
    "conv3x3_shuffle",
    serves={"cpu": _cpu_serves},
    absent={
        "cuda": "there is no CUDA kernel for this op",
        "triton": "there is no Triton kernel for this op",
    },
    slower={"cpu": _cpu_slower},
)


@OP.public
def conv3x3_shuffle(x: Tensor, conv: ShuffleWeights, shuffle: int = 1) -> Tensor:
    """PixelShuffle(shuffle) of conv3x3(x) + bias.

    Args:
        x: (B, C_in, H, W), any strides.
        conv: parameters, shapes as in `ShuffleWeights`.
        shuffle: factor of the PixelShuffle, whose square divides C_out; 1 for none.

    Returns:
        (B, C_out / shuffle^2, shuffle H, shuffle W).

    Raises:
        ValueError: a tensor has another shape, or `shuffle` does not fit.
    """
    check_input(x, conv, shuffle)
    backend = OP.select(x, conv, shuffle)
    if backend == "reference":
        return _reference(x, conv, shuffle)
    return _run(*_SIGNATURE.flat(x, conv, shuffle), backend)


def check_input(x: Tensor, conv: ShuffleWeights, shuffle: int) -> None:
    """Raises ValueError if `conv3x3_shuffle` does not accept these arguments."""
    if x.ndim != 4 or conv.weight.shape[1:] != (x.shape[1], 3, 3):
        raise ValueError(
            f"weight must be (C_out, C_in, 3, 3) and x (B, C_in, H, W), found {tuple(conv.weight.shape)} "
            f"and {tuple(x.shape)}"
        )
    outputs = conv.weight.shape[0]
    if conv.bias is not None and conv.bias.shape != (outputs,):
        raise ValueError(f"bias must be ({outputs},), found {tuple(conv.bias.shape)}")
    if shuffle < 1 or outputs % shuffle**2:
        raise ValueError(f"the square of shuffle must divide the {outputs} output channels, found {shuffle}")


def _like_output(x: Tensor, weight: Tensor, bias: Tensor | None, shuffle: int, *_: Any) -> Tensor:
    height, width = x.shape[2:]
    shape = x.shape[0], weight.shape[0] // shuffle**2, shuffle * height, shuffle * width
    return x.new_empty(shape).to(memory_format=torch.channels_last)


def cost(x: Tensor, conv: ShuffleWeights, shuffle: int = 1) -> Cost:
    """Work of `conv3x3_shuffle`: MACs of a direct convolution; x, weights and out once each."""
    pixels = x.numel() // max(1, x.shape[1])
    weights = sum(tensor.numel() for tensor in conv if tensor is not None)
    elements = x.numel() + pixels * conv.weight.shape[0] + weights
    return Cost(pixels * conv.weight.numel(), elements * x.element_size())


_SIGNATURE = Signature((ShuffleWeights,), ("shuffle",))
_run = define_block_op(OP, _SIGNATURE, cost, _like_output)
