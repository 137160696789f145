"""Shifted-windows-dconv attention in plain torch. Formula: see `swintormer_kernels.ops.swda_attention`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from swintormer_kernels.backends.reference.layers import (
    from_windows,
    layer_norm,
    pointwise,
    relative_position_index,
    shift_mask,
    softmax_one,
    to_windows,
)

if TYPE_CHECKING:
    from swintormer_kernels.ops.swda_attention import AttentionWeights

_MAX_LOG_SCALE = math.log(1 / 0.01)  # logit scale at most 100, as Swin v2 clamps it


def swda_attention(x: Tensor, weights: AttentionWeights, window: int, shift: int) -> Tensor:
    """x + attention(norm1(x)). x: (B, C, H, W), H and W multiples of the window."""
    return x + attention_branch(layer_norm(x, weights.norm_weight, weights.norm_bias), weights, window, shift)


def attention_branch(x: Tensor, weights: AttentionWeights, window: int, shift: int) -> Tensor:
    """The attention of normalised tokens, before the residual. (B, C, H, W) -> (B, C, H, W)."""
    b, _, h, w = x.shape
    if shift:
        x = torch.roll(x, (-shift, -shift), dims=(2, 3))
    mask = shift_mask(h, w, window, shift, x) if shift else None
    out = from_windows(attend_windows(to_windows(x, window), weights, mask), b, h, w)
    return torch.roll(out, (shift, shift), dims=(2, 3)) if shift else out


def attend_windows(tiles: Tensor, weights: AttentionWeights, mask: Tensor | None) -> Tensor:
    """The same of windows of the rolled map. (B * windows, C, w, w) -> the same; mask: as from `shift_mask`."""
    qkv = pointwise(tiles, weights.qkv, weights.qkv_bias)
    # The depth-wise convolution is zero-padded at the window's edge: nothing crosses a window border.
    qkv = F.conv2d(qkv, weights.dwconv, weights.dwconv_bias, padding=1, groups=qkv.shape[1])
    for_windows, for_channels = qkv.chunk(2, dim=1)
    heads = weights.logit_scale.shape[0]
    attended = torch.cat((window_half(for_windows, weights, mask), channel_half(for_channels, heads)), dim=1)
    return pointwise(attended, weights.proj, weights.proj_bias)


def window_half(qkv: Tensor, weights: AttentionWeights, mask: Tensor | None) -> Tensor:
    """Attention between the N tokens of a window. qkv: (B * windows, 3C/2, w, w) -> (B * windows, C/2, w, w)."""
    n_windows, c, window, _ = qkv.shape
    heads = weights.logit_scale.shape[0]
    size = c // 3 // heads
    # Three times (B * windows, heads, N, d)
    q, k, v = (part.reshape(n_windows, heads, size, window * window).transpose(-2, -1) for part in qkv.chunk(3, dim=1))
    logits = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
    logits = logits * torch.clamp(weights.logit_scale, max=_MAX_LOG_SCALE).exp()
    index = relative_position_index(window, qkv.device)
    bias = weights.bias_table[index.flatten()].reshape(*index.shape, heads).permute(2, 0, 1)
    logits = logits + 16 * torch.sigmoid(bias)[None]
    if mask is not None:
        per_image = logits.reshape(n_windows // mask.shape[0], mask.shape[0], heads, *index.shape)
        logits = (per_image + mask[None, :, None]).reshape(logits.shape)
    return (softmax_one(logits) @ v).transpose(-2, -1).reshape(n_windows, c // 3, window, window)


def channel_half(qkv: Tensor, heads: int) -> Tensor:
    """Attention between the d channels of a head. qkv: (B * windows, 3C/2, w, w) -> (B * windows, C/2, w, w)."""
    n_windows, c, window, _ = qkv.shape
    # Three times (B * windows, heads, d, N)
    q, k, v = (part.reshape(n_windows, heads, c // 3 // heads, window * window) for part in qkv.chunk(3, dim=1))
    logits = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
    return (softmax_one(logits) @ v).reshape(n_windows, c // 3, window, window)
