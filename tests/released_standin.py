"""A stand-in for the released block, for tests of `optimize`: its modules, parameter names and arithmetic.

Written from the published description (arXiv 2401.05907) in plain eager code that shares nothing with this package.
What a near relative could do otherwise stands in class attributes and small methods, so a test can change one thing.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TokenNorm(nn.Module):
    """LayerNorm of tokens (B, L, C), written out."""

    eps = 1e-5

    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, tokens: Tensor) -> Tensor:
        centred = tokens - tokens.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + self.eps).sqrt() * self.weight + self.bias


class PixelNorm(nn.Module):
    """`TokenNorm` of every pixel of (B, C, H, W)."""

    def __init__(self, dim: int):
        super().__init__()
        self.body = TokenNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[2:])


class WindowAttention(nn.Module):
    """Window attention on half of the channels, channel attention on the other half."""

    max_scale = 100.0
    masked = -100.0
    bias_range = 16.0

    def __init__(self, dim: int, num_heads: int, window_size: int, shift_size: int, bias: bool = False):
        super().__init__()
        self.num_heads, self.window_size, self.shift_size = num_heads, window_size, shift_size
        self.logit_scale = nn.Parameter(torch.full((num_heads, 1, 1), math.log(10)))
        self.cpb_mlp = nn.Sequential(nn.Linear(2, 512), nn.ReLU(inplace=True), nn.Linear(512, num_heads, bias=False))
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, bias=bias)
        self.qkv_dwconv = nn.Conv2d(3 * dim, 3 * dim, 3, padding=1, groups=3 * dim, bias=bias)
        self.project_out = nn.Conv2d(dim, dim, 1, bias=bias)
        steps = torch.arange(1.0 - window_size, window_size)
        grid = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1) * 8 / (window_size - 1)
        table = grid.sign() * (grid.abs() + 1).log2() / math.log2(8)
        self.register_buffer("relative_coords_table", table[None], persistent=False)
        places = torch.cartesian_prod(torch.arange(window_size), torch.arange(window_size))
        apart = places[:, None] - places[None] + window_size - 1
        self.register_buffer("relative_position_index", self.pair_index(apart), persistent=False)

    def pair_index(self, apart: Tensor) -> Tensor:
        return apart[..., 0] * (2 * self.window_size - 1) + apart[..., 1]

    def softmax(self, logits: Tensor) -> Tensor:
        exp = (logits - logits.max(-1, keepdim=True).values).exp()
        return exp / (exp.sum(-1, keepdim=True) + 1)

    def cut(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, H/w, W/w, C, w, w)."""
        w = self.window_size
        return x.unfold(2, w, w).unfold(3, w, w).permute(0, 2, 3, 1, 4, 5)

    def region_mask(self, h: int, w: int, like: Tensor) -> Tensor:
        """(windows, 1, N, N): `masked` where two tokens of the rolled map were not neighbours before."""

        def band(length: int) -> Tensor:
            at = torch.arange(length, device=like.device)
            return (at >= length - self.window_size).int() + (at >= length - self.shift_size).int()

        region = (3 * band(h)[:, None] + band(w)[None]).to(like)[None, None]
        ids = self.cut(region).reshape(-1, 1, 1, self.window_size**2)
        return torch.where(ids == ids.transpose(2, 3), 0.0, self.masked).to(like)

    def between_tokens(self, qkv: Tensor, mask: Tensor | None) -> Tensor:
        """(windows, 3, heads, d, N) -> (windows, heads, d, N)."""
        q, k, v = qkv.transpose(3, 4).unbind(1)
        scale = self.logit_scale.clamp(max=math.log(self.max_scale)).exp()
        logits = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * scale
        table = self.cpb_mlp(self.relative_coords_table).reshape(-1, self.num_heads)
        logits = logits + self.bias_range * table[self.relative_position_index].permute(2, 0, 1).sigmoid()
        if mask is not None:
            logits = logits + mask.repeat(len(logits) // len(mask), 1, 1, 1)
        return (self.softmax(logits) @ v).transpose(2, 3)

    def between_channels(self, qkv: Tensor) -> Tensor:
        """(windows, 3, heads, d, N) -> (windows, heads, d, N)."""
        q, k, v = qkv.unbind(1)
        return self.softmax(F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT) @ v

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        s, side = self.shift_size, self.window_size
        windows = self.cut(torch.roll(x, (-s, -s), (2, 3)) if s else x)
        grid = windows.shape[:3]
        qkv = self.qkv_dwconv(self.qkv(windows.flatten(0, 2)))
        halves = qkv.reshape(len(qkv), 2, 3, self.num_heads, -1, side * side)
        mask = self.region_mask(h, w, x) if s else None
        attended = torch.stack((self.between_tokens(halves[:, 0], mask), self.between_channels(halves[:, 1])), dim=1)
        out = self.project_out(attended.reshape(-1, c, side, side)).unflatten(0, grid)
        out = out.permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)
        return torch.roll(out, (s, s), (2, 3)) if s else out


class FeedForward(nn.Module):
    def __init__(self, dim: int, ffn_expansion_factor: float = 2.66, bias: bool = False):
        super().__init__()
        hidden = int(dim * ffn_expansion_factor)
        self.project_in = nn.Conv2d(dim, 2 * hidden, 1, bias=bias)
        self.project_out = nn.Conv2d(hidden, dim, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.project_in(x).chunk(2, dim=1)
        return self.project_out(gate * value)


class TransformerBlock(nn.Module):
    def __init__(self, dim: int, num_heads: int, window_size: int, shift_size: int, bias: bool = False):
        super().__init__()
        self.norm1 = PixelNorm(dim)
        self.attn = WindowAttention(dim, num_heads, window_size, shift_size, bias)
        self.norm2 = PixelNorm(dim)
        self.ffn = FeedForward(dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))
