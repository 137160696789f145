"""Launches of the two kernels of a block (csrc/cuda/kernels): `attention`, local to a window, and `tail`, to a pixel.

Memory in addition to the result: the attended tokens, as large as x, in windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from swintormer_kernels.backends.cuda.device import facts
from swintormer_kernels.backends.cuda.packing import attention_parts, ffn_parts, projection_parts
from swintormer_kernels.backends.cuda.runtime import kernels, launch

if TYPE_CHECKING:
    from swintormer_kernels.records import AttentionWeights, FFNWeights


def attend(x: Tensor, weights: AttentionWeights, window: int, shift: int) -> Tensor:
    """The attention before its projection: (B, C, H, W) in channels_last -> (B * windows, w * w, C)."""
    batch, channels, height, width = x.shape
    heads = weights.logit_scale.shape[0]
    head = channels // 2 // heads
    windows = batch * (height // window) * (width // window)
    choice = kernels().cuda_choose_attention(x.dtype == torch.bfloat16, head, window)
    attended = torch.empty(windows, window * window, channels, dtype=x.dtype, device=x.device)
    launch(
        "attention",
        choice,
        -(-windows // choice[3]) * heads * 2,
        [x, *attention_parts(weights, x.dtype), attended],
        [channels, heads, head, height, width, shift, windows],
    )
    return attended


def finish(
    x: Tensor,
    attended: tuple[Tensor, AttentionWeights, int, int] | None,
    ffn: FFNWeights | None,
) -> Tensor:
    """y = x + proj(attended), then y + ffn(norm2(y)).

    Args:
        x: (B, C, H, W) in channels_last.
        attended: result of `attend` with its weights, window and shift; None for y = x.
        ffn: None for y itself. Not both are None.
    """
    batch, channels, height, width = x.shape
    out = torch.empty_like(x)
    pixels = batch * height * width
    gpu = facts(x.device)
    choice = kernels().cuda_choose_tail(
        x.dtype == torch.bfloat16, channels, attended is not None, pixels, gpu.multiprocessors, gpu.shared_bytes
    )
    tokens: Tensor | None = None
    projection: Sequence[Tensor | None] = (None,) * 2
    parts: Sequence[Tensor | None] = (None,) * 4
    window = shift = chunks = 0
    if attended is not None:
        tokens, weights, window, shift = attended
        projection = projection_parts(weights, x.dtype)
    if ffn is not None:
        parts, chunks = ffn_parts(ffn, x.dtype)
    launch(
        "tail",
        choice,
        -(-pixels // choice[3]),
        [tokens, *projection, x, *parts, out],
        [pixels, chunks, height, width, window, shift],
    )
    return out
