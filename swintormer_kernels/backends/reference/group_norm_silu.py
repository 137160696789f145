"""GroupNorm, modulation and SiLU in plain torch. Formula: see `swintormer_kernels.ops.group_norm_silu`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from swintormer_kernels.backends.reference.transforms import transform_at_work

if TYPE_CHECKING:
    from swintormer_kernels.ops.group_norm_silu import GroupNormWeights


def group_norm(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """torch.group_norm; its formula in elementary steps where a transform of torch needs them.

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


def group_norm_silu_gradients(grad: Tensor, x: Tensor, norm: GroupNormWeights, groups: int, eps: float) -> list[Tensor]:
    """Gradients for those inputs that require one, x first, then in the order of the record's fields."""
    wanted = [tensor for tensor in (x, *norm) if tensor is not None and tensor.requires_grad]
    with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        return list(torch.autograd.grad(group_norm_silu(x, norm, groups, eps), wanted, grad))
