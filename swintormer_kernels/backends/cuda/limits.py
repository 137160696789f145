"""Sizes for which there are kernels of the block's ops. Each function returns None, or why they cannot serve."""

from __future__ import annotations

from torch import Tensor

from swintormer_kernels.records import AttentionWeights

HEADS = (12, 16, 24, 48)  # channels of a head
WINDOWS = (8, 16)
CHANNELS = (24, 48, 96, 192, 384)


def attention_lacks(x: Tensor, weights: AttentionWeights, window: int) -> str | None:
    """Sizes of `swda_attention`."""
    head = x.shape[1] // 2 // weights.logit_scale.shape[0]
    if head not in HEADS:
        return f"the cuda backend takes heads of 12, 16, 24 or 48 channels, found {head}"
    if window not in WINDOWS:
        return f"the cuda backend takes windows of 8 or 16, found {window}"
    return tail_lacks(x)


def tail_lacks(x: Tensor) -> str | None:
    """Sizes of `gated_ffn` and of the second half of a block."""
    if x.shape[1] not in CHANNELS:
        return f"the cuda backend takes 24, 48, 96, 192 or 384 channels, found {x.shape[1]}"
    return None
