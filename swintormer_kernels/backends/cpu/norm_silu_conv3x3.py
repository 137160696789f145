"""norm_silu_conv3x3 through csrc/cpu/norm_silu_conv3x3.cpp: float32, result in channels_last."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from swintormer_kernels import native
from swintormer_kernels.backends.cpu.group_norm_silu import dense, scratch_floats
from swintormer_kernels.backends.cpu.layout import view
from swintormer_kernels.backends.cpu.scratch import Scratch
from swintormer_kernels.backends.cpu.winograd import (
    ALL_POINTS,
    image_like,
    layout,
    rows_of_channels,
    transformed_weight,
)

if TYPE_CHECKING:
    from swintormer_kernels.records import ConvWeights, GroupNormWeights


def norm_silu_conv3x3(x: Tensor, norm: GroupNormWeights, conv: ConvWeights, groups: int, eps: float) -> Tensor:
    """See `swintormer_kernels.ops.norm_silu_conv3x3`."""
    out = image_like(x, conv.weight.shape[0])
    if out.numel() == 0:
        return out
    batch, channels, height, width = x.shape
    threads = torch.get_num_threads()
    panel, floats = layout(channels, batch, height, width, threads)
    scratch = Scratch(scratch_floats(batch, channels, height * width, groups), floats)
    source, skip = rows_of_channels(x), None if conv.skip is None else rows_of_channels(conv.skip)
    norm_kept, norm_at = dense(norm)
    weight = transformed_weight(conv.weight, panel, ALL_POINTS)
    conv_kept, conv_at = dense((weight, conv.bias, conv.embedding))
    native.extension().norm_silu_conv3x3(
        view(out),
        view(source),
        None if skip is None else view(skip),
        norm_at,
        conv_at,
        groups,
        eps,
        scratch.addresses,
        threads,
    )
    del norm_kept, conv_kept  # until here
    return out
