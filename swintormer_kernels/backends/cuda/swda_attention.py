"""swda_attention as two kernels, the second without its FFN: bfloat16 and float16, channels_last."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from swintormer_kernels.backends.cuda.block_kernels import attend, finish
from swintormer_kernels.backends.cuda.layout import aligned

if TYPE_CHECKING:
    from swintormer_kernels.records import AttentionWeights


def swda_attention(x: Tensor, weights: AttentionWeights, window: int, shift: int) -> Tensor:
    """See `swintormer_kernels.ops.swda_attention`."""
    if x.numel() == 0:
        return torch.empty_like(x)
    x = aligned(x)
    return finish(x, (attend(x, weights, window, shift), weights, window, shift), None)
