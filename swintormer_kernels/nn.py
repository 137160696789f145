"""The block as modules, with the parameter names and shapes of the released network."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from swintormer_kernels.ops.gated_ffn import gated_ffn
from swintormer_kernels.ops.swda_attention import swda_attention
from swintormer_kernels.ops.swda_block import swda_block
from swintormer_kernels.packed import packed_weight
from swintormer_kernels.records import AttentionWeights, FFNWeights
from swintormer_kernels.registry import asked_backend


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of each pixel. The ops compute it from its parameters (keys `body.*`)."""

    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.LayerNorm(channels, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.body(x.movedim(1, -1)).movedim(-1, 1)


class Attention(nn.Module):
    """Parameters of shifted-windows-dconv attention (`swintormer_kernels.ops.swda_attention`).

    Args:
        channels: C, split into a window half and a channel half; 2 * heads must divide it.
        heads: attention heads of each half.
        window: w, side of a window.
        bias: whether the convolutions have a bias.
    """

    coordinates: Tensor

    def __init__(self, channels: int, heads: int, window: int, bias: bool = False):
        super().__init__()
        if heads < 1 or channels % (2 * heads):
            raise ValueError(f"channels {channels} must be a multiple of 2 * heads, found heads = {heads}")
        if window < 2:
            raise ValueError(f"window must be at least 2, found {window}")
        self.window = window
        self.logit_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(10.0)))  # initial value of Swin v2
        self.cpb_mlp = nn.Sequential(nn.Linear(2, 512), nn.ReLU(inplace=True), nn.Linear(512, heads, bias=False))
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=bias)
        self.qkv_dwconv = nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels, bias=bias)
        self.project_out = nn.Conv2d(channels, channels, 1, bias=bias)
        self.register_buffer("coordinates", log_spaced_coordinates(window), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Attention:
        """nn.Module._apply, after which the coordinates are computed again if `fn` replaced them."""
        before = self.coordinates
        super()._apply(fn, recurse)
        self.coordinates = remade_coordinates(self.window, before, self.coordinates)
        return self

    def bias_table(self) -> Tensor:
        """((2w-1)^2, heads): output of the position MLP for every relative coordinate, before 16 * sigmoid."""
        return position_bias(self.cpb_mlp, self.coordinates)

    def weights(self, norm: ChannelNorm) -> AttentionWeights:
        """The weights of the op `swda_attention`, including the norm before it."""
        return attention_weights(norm, self, self.bias_table())


class GatedFFN(nn.Module):
    """Parameters of the gated FFN (`swintormer_kernels.ops.gated_ffn`); hidden = int(C * expansion)."""

    def __init__(self, channels: int, expansion: float = 2.66, bias: bool = False):
        super().__init__()
        hidden = int(channels * expansion)
        self.project_in = nn.Conv2d(channels, 2 * hidden, 1, bias=bias)
        self.project_out = nn.Conv2d(hidden, channels, 1, bias=bias)

    def weights(self, norm: ChannelNorm) -> FFNWeights:
        """The weights of the op `gated_ffn`, including the norm before it."""
        return ffn_weights(norm, self)


class Block(nn.Module):
    """x = x + attention(norm1(x)); x = x + ffn(norm2(x)). (B, C, H, W) -> the same, H and W multiples of the window.

    Args:
        channels, heads, window, bias: as in `Attention`.
        shift: s, pixels by which the map is rolled, 0 <= s < w; 0 or w // 2 in the released network.
        expansion: as in `GatedFFN`.
    """

    def __init__(
        self, channels: int, heads: int, window: int, shift: int, *, expansion: float = 2.66, bias: bool = False
    ):
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = ChannelNorm(channels)
        self.attn = Attention(channels, heads, window, bias)
        self.norm2 = ChannelNorm(channels)
        self.ffn = GatedFFN(channels, expansion, bias)

    def forward(self, x: Tensor) -> Tensor:
        return swda_block(x, self.attn.weights(self.norm1), self.ffn.weights(self.norm2), self.window, self.shift)

    def attention(self, x: Tensor) -> Tensor:
        """The first half: x + attention(norm1(x)). (B, C, H, W) -> the same."""
        return swda_attention(x, self.attn.weights(self.norm1), self.window, self.shift)

    def feed_forward(self, x: Tensor) -> Tensor:
        """The second half: x + ffn(norm2(x)). (B, C, H, W) -> the same."""
        return gated_ffn(x, self.ffn.weights(self.norm2))


def position_bias(mlp: nn.Module, coordinates: Tensor) -> Tensor:
    """`mlp(coordinates)`, cached for each version of the parameters if no gradient is wanted.

    Under `use_backend("reference")` it is computed in every call, as in the released network, so that timings of the
    reference include it.
    """
    sources = [coordinates, *mlp.parameters()]
    wanted = torch.is_grad_enabled() and any(source.requires_grad for source in sources)
    if wanted or torch.compiler.is_compiling() or asked_backend() == "reference":
        return mlp(coordinates)
    return packed_weight(sources[::-1], "position bias", lambda: mlp(coordinates))


def attention_weights(norm: Any, attn: Any, bias_table: Tensor) -> AttentionWeights:
    """Parameters of `swda_attention`, from modules with the attribute names of the released network."""
    return AttentionWeights(
        norm_weight=norm.body.weight,
        norm_bias=norm.body.bias,
        qkv=attn.qkv.weight,
        dwconv=attn.qkv_dwconv.weight,
        proj=attn.project_out.weight,
        logit_scale=attn.logit_scale,
        bias_table=bias_table,
        qkv_bias=attn.qkv.bias,
        dwconv_bias=attn.qkv_dwconv.bias,
        proj_bias=attn.project_out.bias,
    )


def ffn_weights(norm: Any, ffn: Any) -> FFNWeights:
    """Parameters of `gated_ffn`, from modules with the attribute names of the released network."""
    return FFNWeights(
        norm_weight=norm.body.weight,
        norm_bias=norm.body.bias,
        project_in=ffn.project_in.weight,
        project_out=ffn.project_out.weight,
        project_in_bias=ffn.project_in.bias,
        project_out_bias=ffn.project_out.bias,
    )


def remade_coordinates(window: int, before: Tensor, after: Tensor) -> Tensor:
    """The coordinates buffer of a module whose `_apply` replaced `before` by `after`.

    Checkpoints do not contain the coordinates, and `to_empty` leaves uninitialised memory that cannot be told from a
    copy, so every new tensor is filled again. An unchanged object is returned as it is, with its packed weights.
    """
    if after is before or after.is_meta:
        return after
    with torch.inference_mode(False):  # autograd cannot save a buffer made in inference mode
        return log_spaced_coordinates(window, torch.device("cpu")).to(device=after.device, dtype=after.dtype)


def log_spaced_coordinates(window: int, device: torch.device | None = None) -> Tensor:
    """((2w-1)^2, 2) relative coordinates (dy, dx), log-spaced (Swin v2, section 3.3).

    t = 8 r / (w - 1) for r = -(w-1) .. (w-1), then sign(t) log2(|t| + 1) / log2(8).
    """
    place = torch.empty(0, device=device).device
    if place.type == "meta":  # torch's arithmetic for it would import its compiler, which takes seconds
        return torch.empty((2 * window - 1) ** 2, 2, dtype=torch.float32, device=place)
    t = 8 * torch.arange(-(window - 1), window, dtype=torch.float32, device=device) / (window - 1)
    t = torch.sign(t) * torch.log2(t.abs() + 1) / math.log2(8)
    return torch.cartesian_prod(t, t)
