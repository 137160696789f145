"""norm_projection through csrc/cpu/norm_projection.cpp: float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from swintormer_kernels import native
from swintormer_kernels.backends.cpu.group_norm_silu import dense, scratch_floats
from swintormer_kernels.backends.cpu.layout import view
from swintormer_kernels.backends.cpu.scratch import Scratch
from swintormer_kernels.backends.cpu.winograd import in_panels, layout, rows_of_channels

if TYPE_CHECKING:
    from swintormer_kernels.records import GroupNormWeights, LinearWeights


def norm_projection(x: Tensor, norm: GroupNormWeights, linear: LinearWeights, groups: int, eps: float) -> Tensor:
    """See `swintormer_kernels.ops.norm_projection`."""
    batch, channels, height, width = x.shape
    out = torch.empty((batch, height * width, linear.weight.shape[0]), device=x.device, dtype=x.dtype)
    if out.numel() == 0:
        return out
    extension, threads = native.extension(), torch.get_num_threads()
    panel, _ = layout(channels, batch, height, width, threads)
    norm_floats = scratch_floats(batch, channels, height * width, groups)
    scratch = Scratch(norm_floats, threads * extension.normed_floats(channels))
    source = rows_of_channels(x)
    norm_kept, norm_at = dense(norm)
    kept, at = dense((in_panels(linear.weight, panel), linear.bias))
    extension.norm_projection(view(out), view(source), norm_at, at, groups, eps, scratch.addresses, threads)
    del norm_kept, kept  # until here
    return out
