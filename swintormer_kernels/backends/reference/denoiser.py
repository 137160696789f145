"""The ops of a denoiser except `ddim_step`, in plain torch. Formulas: swintormer_kernels/ops."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from swintormer_kernels.records import (
    ConvWeights,
    GroupNormWeights,
    LinearWeights,
    ResBlockWeights,
    ShuffleWeights,
    UpsampleWeights,
)
from swintormer_kernels.transforms import transform_at_work


def group_norm(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """torch.group_norm, or its formula in elementary operations inside a transform of torch.

    torch.group_norm fails under vmap, and in channels_last under forward-mode AD (torch 2.13).
    """
    if transform_at_work() is None:
        return torch.group_norm(x, groups, weight, bias, eps)
    batch, channels, height, width = x.shape
    grouped = x.reshape(batch, groups, channels // groups * height * width)
    variance, mean = torch.var_mean(grouped, -1, keepdim=True, unbiased=False)
    y = ((grouped - mean) / torch.sqrt(variance + eps)).reshape(x.shape)
    y = y if weight is None else y * weight[:, None, None]
    return y if bias is None else y + bias[:, None, None]


def group_norm_silu(x: Tensor, norm: GroupNormWeights, groups: int, eps: float) -> Tensor:
    """silu(group_norm(x) * (1 + scale) + shift). x: (B, C, H, W)."""
    y = group_norm(x, groups, norm.weight, norm.bias, eps)
    if norm.scale is not None:
        y = y * (1 + norm.scale[:, :, None, None])
    if norm.shift is not None:
        y = y + norm.shift[:, :, None, None]
    return F.silu(y)


def norm_silu_conv3x3(x: Tensor, norm: GroupNormWeights, conv: ConvWeights, groups: int, eps: float) -> Tensor:
    """conv3x3(silu(norm(x))) + bias + embedding + skip. x: (B, C, H, W)."""
    y = F.conv2d(group_norm_silu(x, norm, groups, eps), conv.weight, conv.bias, padding=1)
    if conv.embedding is not None:
        y = y + conv.embedding[:, :, None, None]
    return y if conv.skip is None else y + conv.skip


def res_block(x: Tensor, block: ResBlockWeights, groups1: int, groups2: int, eps1: float, eps2: float) -> Tensor:
    """Norm, SiLU, 3x3 convolution, time embedding; norm, SiLU, 3x3 convolution, skip connection. x: (B, C, H, W)."""
    y = F.silu(group_norm(x, groups1, block.norm1_weight, block.norm1_bias, eps1))
    y = F.conv2d(y, block.conv1, block.conv1_bias, padding=1)
    if block.embedding is not None:
        y = y + block.embedding[:, :, None, None]
    y = group_norm(y, groups2, block.norm2_weight, block.norm2_bias, eps2)
    if block.scale is not None:
        y = y * (1 + block.scale[:, :, None, None])
    if block.shift is not None:
        y = y + block.shift[:, :, None, None]
    y = F.conv2d(F.silu(y), block.conv2, block.conv2_bias, padding=1)
    return y + (x if block.shortcut is None else F.conv2d(x, block.shortcut, block.shortcut_bias))


def norm_projection(x: Tensor, norm: GroupNormWeights, linear: LinearWeights, groups: int, eps: float) -> Tensor:
    """Linear map of every pixel of group_norm(x) * (1 + scale) + shift. (B, C, H, W) -> (B, H W, C_out)."""
    y = group_norm(x, groups, norm.weight, norm.bias, eps)
    if norm.scale is not None:
        y = y * (1 + norm.scale[:, :, None, None])
    if norm.shift is not None:
        y = y + norm.shift[:, :, None, None]
    return F.linear(y.permute(0, 2, 3, 1).flatten(1, 2), linear.weight, linear.bias)


def upsample_conv3x3(x: Tensor, conv: UpsampleWeights) -> Tensor:
    """conv3x3(x upsampled by 2, nearest neighbour) + bias. (B, C, H, W) -> (B, C_out, 2H, 2W)."""
    return F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), conv.weight, conv.bias, padding=1)


def conv3x3_shuffle(x: Tensor, conv: ShuffleWeights, shuffle: int) -> Tensor:
    """PixelShuffle(shuffle) of conv3x3(x) + bias. (B, C, H, W) -> (B, C_out / shuffle^2, shuffle H, shuffle W)."""
    y = F.conv2d(x, conv.weight, conv.bias, padding=1)
    return y if shuffle == 1 else F.pixel_shuffle(y, shuffle)
