"""GroupNorm and a linear map of every pixel, in plain torch. Formula: see `swintormer_kernels.ops.norm_projection`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from swintormer_kernels.backends.reference.group_norm_silu import group_norm

if TYPE_CHECKING:
    from swintormer_kernels.ops.group_norm_silu import GroupNormWeights
    from swintormer_kernels.ops.norm_projection import LinearWeights


def norm_projection(x: Tensor, norm: GroupNormWeights, linear: LinearWeights, groups: int, eps: float) -> Tensor:
    """Linear map of every pixel of group_norm(x) * (1 + scale) + shift. (B, C, H, W) -> (B, H W, C_out)."""
    y = group_norm(x, groups, norm.weight, norm.bias, eps)
    if norm.scale is not None:
        y = y * (1 + norm.scale[:, :, None, None])
    if norm.shift is not None:
        y = y + norm.shift[:, :, None, None]
    return F.linear(y.permute(0, 2, 3, 1).flatten(1, 2), linear.weight, linear.bias)


def norm_projection_gradients(
    grad: Tensor, x: Tensor, norm: GroupNormWeights, linear: LinearWeights, groups: int, eps: float
) -> list[Tensor]:
    """Gradients for those inputs that require one, x first, then in the order of the records' fields."""
    wanted = [tensor for tensor in (x, *norm, *linear) if tensor is not None and tensor.requires_grad]
    with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        return list(torch.autograd.grad(norm_projection(x, norm, linear, groups, eps), wanted, grad))
