"""norm_silu_conv3x3 with csrc/cuda/kernels: the statistics of group_norm.cu, then norm_silu_conv3x3.cu.

bfloat16 and float16, channels_last. A skip connection in another layout is copied.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from swintormer_kernels.backends.cuda import device
from swintormer_kernels.backends.cuda.group_norm_silu import norm_table
from swintormer_kernels.backends.cuda.layout import aligned
from swintormer_kernels.backends.cuda.runtime import kernels, launch
from swintormer_kernels.packed import packed_weight
from swintormer_kernels.records import ConvWeights, GroupNormWeights

PATCH = (8, 16)  # pixels of a block: kPatchRows, kPatchColumns of csrc/cuda/kernels/norm_silu_conv3x3.h
CHUNK = 32  # channels of x at once


def norm_silu_conv3x3(x: Tensor, norm: GroupNormWeights, conv: ConvWeights, groups: int, eps: float) -> Tensor:
    """See `swintormer_kernels.ops.norm_silu_conv3x3`."""
    batch, channels, height, width = x.shape
    outputs = conv.weight.shape[0]
    shape = (batch, outputs, height, width)
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    if out.numel() == 0:
        return out
    x = aligned(x)
    table = norm_table(x, norm, groups, eps)
    down, right = -(-height // PATCH[0]), -(-width // PATCH[1])
    gpu, bfloat16 = device.facts(x.device), x.dtype == torch.bfloat16
    choice = kernels().cuda_choose_conv3x3(
        bfloat16, channels, outputs, batch * down * right, gpu.multiprocessors, gpu.shared_bytes
    )
    block = choice[3]
    blocks = -(-outputs // block)
    weight = packed_weight([conv.weight], ("cuda taps", block), lambda: packed_taps(conv.weight, block))
    bias, embedding = (None if tensor is None else tensor.contiguous() for tensor in (conv.bias, conv.embedding))
    skip = None if conv.skip is None else aligned(conv.skip.contiguous(memory_format=torch.channels_last))
    launch(
        "norm_silu_conv3x3",
        choice,
        batch * down * right * blocks,
        [x, table, weight, bias, embedding, skip, out],
        [channels, outputs, height, width, down, right, blocks],
    )
    return out


def packed_taps(weight: Tensor, block: int) -> Tensor:
    """(OUT, C, 3, 3) -> (OUT / block, C / 32, column of the tap, row of the tap, block, 32), padded with 0."""
    outputs, channels = weight.shape[:2]
    padded = F.pad(weight, (0, 0, 0, 0, 0, -channels % CHUNK, 0, -outputs % block))
    blocks = padded.unflatten(1, (-1, CHUNK)).unflatten(0, (-1, block))  # (blocks, block, chunks, 32, row, column)
    return blocks.permute(0, 2, 5, 4, 1, 3).contiguous()
