"""Pieces that the reference ops share: the norm, windows, the shift mask, the position index and softmax_one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
