"""The block and its two halves in plain torch. Formulas: swintormer_kernels/ops."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from swintormer_kernels.records import AttentionWeights, FFNWeights

_MAX_LOG_SCALE = math.log(1 / 0.01)  # logit scale at most 100, as Swin v2 clamps it


def swda_block(x: Tensor, attention: AttentionWeights, ffn: FFNWeights, window: int, shift: int) -> Tensor:
    """x = x + attention(norm1(x)); x + ffn(norm2(x)). x: (B, C, H, W), H and W multiples of the window."""
    return gated_ffn(swda_attention(x, attention, window, shift), ffn)


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
    """`attention_branch` on windows of the rolled map. (B * windows, C, w, w) -> the same; mask of `shift_mask`."""
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


def gated_ffn(x: Tensor, weights: FFNWeights) -> Tensor:
    """x + ffn(norm2(x)). x: (B, C, H, W)."""
    return x + ffn_branch(layer_norm(x, weights.norm_weight, weights.norm_bias), weights)


def ffn_branch(x: Tensor, weights: FFNWeights) -> Tensor:
    """project_out(x1 * x2), with x1 and x2 the two halves of project_in(x). (B, C, H, W) -> (B, C, H, W)."""
    x1, x2 = pointwise(x, weights.project_in, weights.project_in_bias).chunk(2, dim=1)
    return pointwise(x1 * x2, weights.project_out, weights.project_out_bias)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """LayerNorm over the channels of each pixel, eps 1e-5. x: (B, C, H, W)."""
    b, c, h, w = x.shape
    tokens = x.permute(0, 2, 3, 1).reshape(b, h * w, c)
    mean = tokens.mean(-1, keepdim=True)
    variance = tokens.var(-1, keepdim=True, unbiased=False)
    tokens = (tokens - mean) / torch.sqrt(variance + 1e-5) * weight + bias
    return tokens.reshape(b, h, w, c).permute(0, 3, 1, 2)


def to_windows(x: Tensor, window: int) -> Tensor:
    """(B, C, H, W) -> (B * windows, C, w, w), windows in row-major order."""
    b, c, h, w = x.shape
    x = x.reshape(b, c, h // window, window, w // window, window)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(b * (h // window) * (w // window), c, window, window)


def from_windows(windows: Tensor, b: int, h: int, w: int) -> Tensor:
    """Inverse of `to_windows`: (B * windows, C, w, w) -> (B, C, H, W)."""
    c, window = windows.shape[1], windows.shape[-1]
    x = windows.reshape(b, h // window, w // window, c, window, window)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)


def softmax_one(logits: Tensor) -> Tensor:
    """exp(l - m) / (1 + sum exp(l - m)), m the row maximum: a softmax with one extra logit equal to that maximum."""
    exp = torch.exp(logits - logits.amax(-1, keepdim=True))
    return exp / (1 + exp.sum(-1, keepdim=True))


def relative_position_index(window: int, device: torch.device) -> Tensor:
    """(N, N) row of the bias table for each pair of tokens: row difference first, then column difference."""
    y, x = torch.meshgrid(torch.arange(window, device=device), torch.arange(window, device=device), indexing="ij")
    y, x = y.flatten(), x.flatten()
    dy = y[:, None] - y[None, :] + window - 1
    dx = x[:, None] - x[None, :] + window - 1
    return dy * (2 * window - 1) + dx


def shift_mask(h: int, w: int, window: int, shift: int, like: Tensor) -> Tensor:
    """(windows, N, N): -100 for pairs of tokens from different regions of the rolled map, 0 otherwise (Swin)."""
    regions = torch.zeros((1, 1, h, w), dtype=like.dtype, device=like.device)
    bands = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for i, rows in enumerate(bands):
        for j, columns in enumerate(bands):
            regions[:, :, rows, columns] = 3 * i + j
    ids = to_windows(regions, window).flatten(1)
    return (ids[:, None, :] != ids[:, :, None]).to(like.dtype) * -100.0


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """1x1 convolution; weight (out, in, 1, 1)."""
    return F.conv2d(x, weight, bias)
