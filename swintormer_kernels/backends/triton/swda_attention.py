"""Launches of swda_attention (attention_forward.py, attention_backward.py): float32, bfloat16 and float16.

Inputs are channels_last or NCHW; other memory layouts are copied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from swintormer_kernels.backends.triton.attention_forward import attend, project
from swintormer_kernels.backends.triton.attention_gradients import attention_gradients
from swintormer_kernels.backends.triton.layout import dense_layout
from swintormer_kernels.backends.triton.window_setup import pack, sizes_of

if TYPE_CHECKING:
    from swintormer_kernels.records import AttentionWeights


def swda_attention(x: Tensor, weights: AttentionWeights, window: int, shift: int) -> Tensor:
    """See `swintormer_kernels.ops.swda_attention`."""
    out = torch.empty_like(x)
    if x.numel() == 0:
        return out
    dense = dense_layout(x)
    result = out if out.stride() == dense.stride() else torch.empty_like(dense)
    packed, sizes = pack(weights), sizes_of(dense, weights, window, shift)
    attended = attend(dense, packed, shift, sizes)
    project(dense, attended, packed, result, shift, sizes)
    return out if result is out else out.copy_(result)


def swda_attention_backward(
    grad: Tensor, x: Tensor, weights: AttentionWeights, window: int, shift: int
) -> list[Tensor]:
    """Gradients of those among x and the weights that require one, x first."""
    return attention_gradients(grad, x, weights, window, shift)
