"""group_norm_silu with csrc/cuda/kernels/group_norm.cu: bfloat16 and float16, channels_last."""

from __future__ import annotations

import torch
from torch import Tensor

from swintormer_kernels.backends.cuda.layout import aligned
from swintormer_kernels.backends.cuda.runtime import kernels, launch
from swintormer_kernels.records import GroupNormWeights


def group_norm_silu(x: Tensor, norm: GroupNormWeights, groups: int, eps: float) -> Tensor:
    """See `swintormer_kernels.ops.group_norm_silu`."""
    out = torch.empty_like(x)
    if x.numel() == 0:
        return out
    x = aligned(x)
    batch, channels, pixels = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
    choice = kernels().cuda_choose_group_norm_apply(x.dtype == torch.bfloat16, channels)
    runs = -(-pixels // choice[3])
    table = norm_table(x, norm, groups, eps)
    launch("group_norm", choice, batch * runs, [x, table, out], [channels, pixels, runs, choice[3]])
    return out


def norm_table(x: Tensor, norm: GroupNormWeights, groups: int, eps: float) -> Tensor:
    """(B, 3, C) float32: mean, factor and offset of each channel; the norm is (x - mean) factor + offset."""
    batch, channels, pixels = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
    bfloat16 = x.dtype == torch.bfloat16
    choice = kernels().cuda_choose_group_norm_statistics(bfloat16, channels)
    run = choice[3]
    runs = -(-pixels // run)
    partial = torch.empty(batch, runs, 2, channels, dtype=torch.float32, device=x.device)
    launch("group_norm", choice, batch * runs, [x, partial], [channels, pixels, runs, run])
    table = torch.empty(batch, 3, channels, dtype=torch.float32, device=x.device)
    weights = (tensor if tensor is None else tensor.contiguous() for tensor in norm)
    merge = kernels().cuda_choose_group_norm_table(bfloat16)
    launch(
        "group_norm", merge, batch * groups, [partial, *weights, table], [channels, pixels, runs, run, groups], [eps]
    )
    return table
