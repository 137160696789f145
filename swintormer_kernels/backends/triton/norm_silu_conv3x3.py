"""Launches of norm_silu_conv3x3 (conv_kernels.py): float32, bfloat16, float16; result in channels_last.

x and skip are channels_last, also slices of more channels; other layouts are copied first.

The backward computes the activation again with the kernels of group_norm_silu, the two gradients of the convolution
with torch (cuDNN or MIOpen; there is nothing to fuse), and the gradient of the norm with group_norm_silu's backward. It
takes one pass over the image more than torch's backward and does not keep the activation in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from swintormer_kernels.backends.triton import conv_kernels
from swintormer_kernels.backends.triton.blocks import blocks_for
from swintormer_kernels.backends.triton.conv_kernels import PackedConv
from swintormer_kernels.backends.triton.group_norm_silu import (
    apply_norm,
    dense_like,
    group_norm_silu_backward,
    image_of,
    norm_table,
)
from swintormer_kernels.backends.triton.layout import dense
from swintormer_kernels.backends.triton.runtime import launch, precision
from swintormer_kernels.packed import packed_weight

if TYPE_CHECKING:
    from swintormer_kernels.records import ConvWeights, GroupNormWeights

# Cost of norm and SiLU for a chunk of the activation, in output channels: one exponential and one division, 16 per
# clock each, against 3 products per output channel on tensor cores, 1024 (sm_80) to 2048 (sm_90) per clock.
PROLOGUE = 64


def norm_silu_conv3x3(x: Tensor, norm: GroupNormWeights, conv: ConvWeights, groups: int, eps: float) -> Tensor:
    """See `swintormer_kernels.ops.norm_silu_conv3x3`."""
    batch, channels, height, width = x.shape
    outputs = conv.weight.shape[0]
    shape = (batch, outputs, height, width)
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    if out.numel() == 0:
        return out
    image = image_of(x, rows=True)
    table = norm_table(image, dense(norm), groups, eps)
    skip = None if conv.skip is None else image_of(conv.skip, rows=True)
    tuned = blocks_for("norm_silu_conv3x3", channels, x.dtype)
    tuned["BLOCK_N"] = _outputs_of_a_program(outputs, tuned["BLOCK_N"])
    packed, sizes = _pack(conv, None if skip is None else skip.tensor, tuned)
    # A run of whole image rows has no neighbours outside the run.
    margin = 0 if tuned["BLOCK_P"] % width == 0 else 1
    blocks = triton.cdiv(image.pixels, tuned["BLOCK_P"] - 2 * margin)
    launch(
        conv_kernels.forward,
        (batch * blocks, triton.cdiv(outputs, tuned["BLOCK_N"])),
        *(image.tensor, out, table, packed, image.pixels, width, blocks, margin),
        **sizes,
        PITCH=image.pitch,
        SKIP_PITCH=0 if skip is None else skip.pitch,
        PRECISION=precision(),
        **tuned,
    )
    return out


def norm_silu_conv3x3_backward(
    grad: Tensor, x: Tensor, norm: GroupNormWeights, conv: ConvWeights, groups: int, eps: float
) -> list[Tensor]:
    """Gradients for those of x and the records' tensors that require one, in order."""
    if x.numel() == 0:  # convolution_backward does not accept an empty image
        leaves = [tensor for tensor in (x, *norm, *conv) if tensor is not None]
        return [torch.zeros_like(tensor) for tensor in leaves if tensor.requires_grad]
    of_norm = any(tensor is not None and tensor.requires_grad for tensor in (x, *norm))
    of_activation: Any = None
    of_weight: Any = None
    if of_norm or conv.weight.requires_grad:
        image = image_of(x.detach(), rows=True)
        activation = dense_like(image)
        apply_norm(image, dense(norm), groups, eps, activation)
        wanted = [of_norm, conv.weight.requires_grad, False]
        of_activation, of_weight, _ = torch.ops.aten.convolution_backward(
            grad, activation, conv.weight.detach(), None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, wanted
        )
    found = group_norm_silu_backward(of_activation, x, norm, groups, eps) if of_norm else []
    sums: dict[str, Callable[[], Any]] = {
        "weight": lambda: of_weight,
        "bias": lambda: grad.sum((0, 2, 3)),
        "embedding": lambda: grad.sum((2, 3)),
        "skip": grad.clone,  # an op must not return its own input
    }
    for name, tensor in conv._asdict().items():
        if tensor is not None and tensor.requires_grad:
            found.append(torch.empty_like(tensor).copy_(sums[name]()))
    return found


# ---- weights ---------------------------------------------------------------------------------------------------------


def _outputs_of_a_program(outputs: int, most: int) -> int:
    """BLOCK_N up to `most` with the least work: padded products, and norm and SiLU once per block."""
    sizes = [size for size in (16, 32, 64, 128) if size <= most]
    return min(sizes, key=lambda size: triton.cdiv(outputs, size) * (size + PROLOGUE))


def _pack(conv: ConvWeights, skip: Tensor | None, tuned: dict[str, int]) -> tuple[PackedConv, dict[str, int]]:
    """The packed weights of the kernel, cached for each version of a parameter, and their sizes."""
    outputs, channels = conv.weight.shape[:2]
    padded = tuple(
        triton.cdiv(count, block) * block
        for count, block in ((channels, tuned["BLOCK_C"]), (outputs, tuned["BLOCK_N"]))
    )
    weight = packed_weight([conv.weight], ("taps", padded), lambda: _packed(conv.weight, *padded))
    bias, embedding = (None if t is None else t.contiguous() for t in (conv.bias, conv.embedding))
    sizes = {"C": channels, "OUT": outputs, "CP": padded[0], "OP": padded[1]}
    return PackedConv(weight, bias, embedding, skip), sizes


def _packed(weight: Tensor, channels: int, outputs: int) -> Tensor:
    """(OUT, C, 3, 3) -> (9, CP, OP)."""
    taps = weight.flatten(2).permute(2, 1, 0)
    return F.pad(taps, (0, outputs - taps.shape[2], 0, channels - taps.shape[1])).contiguous()
