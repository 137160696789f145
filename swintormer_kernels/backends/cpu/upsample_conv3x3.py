"""upsample_conv3x3 through csrc/cpu/upsample_conv3x3.cpp: float32, result in channels_last."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from swintormer_kernels import native
from swintormer_kernels.backends.cpu.group_norm_silu import dense
from swintormer_kernels.backends.cpu.layout import view
from swintormer_kernels.backends.cpu.scratch import Scratch
from swintormer_kernels.backends.cpu.winograd import (
    POINTS_OF_DOUBLED,
    image_like,
    layout,
    rows_of_channels,
    transformed_weight,
)

if TYPE_CHECKING:
    from swintormer_kernels.records import UpsampleWeights


def upsample_conv3x3(x: Tensor, conv: UpsampleWeights) -> Tensor:
    """See `swintormer_kernels.ops.upsample_conv3x3`."""
    out = image_like(x, conv.weight.shape[0], scale=2)
    if out.numel() == 0:
        return out
    threads = torch.get_num_threads()
    batch, channels, height, width = x.shape
    panel, floats = layout(channels, batch, 2 * height, 2 * width, threads)
    source, scratch = rows_of_channels(x), Scratch(floats)
    kept, addresses = dense((transformed_weight(conv.weight, panel, POINTS_OF_DOUBLED), conv.bias, None))
    native.extension().upsample_conv3x3(view(out), view(source), addresses, scratch.addresses[0], threads)
    del kept  # until here
    return out
