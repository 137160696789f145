"""GroupNorm, modulation and SiLU in plain torch. Formula: see `swintormer_kernels.ops.group_norm_silu`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from swintormer_kernels.ops.group_norm_silu import GroupNormWeights


def group_norm_silu(x: Tensor, norm: GroupNormWeights, groups: int, eps: float) -> Tensor:
    """silu(group_norm(x) * (1 + scale) + shift). x: (B, C, H, W)."""
    y = torch.group_norm(x, groups, norm.weight, norm.bias, eps)
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
