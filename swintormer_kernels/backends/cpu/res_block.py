"""res_block through csrc/cpu/res_block.cpp: float32, result in channels_last."""

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
    in_panels,
    layout,
    rows_of_channels,
    transformed_weight,
)

if TYPE_CHECKING:
    from swintormer_kernels.records import ResBlockWeights


def res_block(x: Tensor, block: ResBlockWeights, groups1: int, groups2: int, eps1: float, eps2: float) -> Tensor:
    """See `swintormer_kernels.ops.res_block`."""
    middle, out_channels = block.conv1.shape[0], block.conv2.shape[0]
    out = image_like(x, out_channels)
    if out.numel() == 0:
        return out
    batch, channels, height, width = x.shape
    threads, pixels = torch.get_num_threads(), height * width
    sizes = batch, height, width, threads
    panel, first_floats = layout(channels, *sizes)
    _, second_floats = layout(middle, *sizes)
    norm_floats = max(scratch_floats(batch, c, pixels, g) for c, g in ((channels, groups1), (middle, groups2)))
    skip_floats = 0 if block.shortcut is None else batch * pixels * out_channels
    scratch = Scratch(norm_floats, max(first_floats, second_floats), batch * pixels * middle, skip_floats)
    source = rows_of_channels(x)
    weight1, weight2 = (transformed_weight(weight, panel, ALL_POINTS) for weight in block[:2])
    shortcut = None if block.shortcut is None else in_panels(block.shortcut, panel)
    kept, at = dense((weight1, weight2, *block[2:11], shortcut, block.shortcut_bias))
    native.extension().res_block(
        view(out),
        view(source),
        [[*at[4:6], 0, 0], [*at[6:8], *at[9:11]]],
        [[at[0], at[2], at[8]], [at[1], at[3], 0], at[11:13]],
        [groups1, groups2, middle],
        [eps1, eps2],
        scratch.addresses,
        threads,
    )
    del kept  # until here
    return out
