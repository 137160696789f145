"""Half a res block in plain torch. Formula: see `swintormer_kernels.ops.norm_silu_conv3x3`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from swintormer_kernels.backends.reference.group_norm_silu import group_norm_silu

if TYPE_CHECKING:
    from swintormer_kernels.ops.group_norm_silu import GroupNormWeights
    from swintormer_kernels.ops.norm_silu_conv3x3 import ConvWeights


def norm_silu_conv3x3(x: Tensor, norm: GroupNormWeights, conv: ConvWeights, groups: int, eps: float) -> Tensor:
    """conv3x3(silu(norm(x))) + bias + embedding + skip. x: (B, C, H, W)."""
    y = F.conv2d(group_norm_silu(x, norm, groups, eps), conv.weight, conv.bias, padding=1)
    if conv.embedding is not None:
        y = y + conv.embedding[:, :, None, None]
    return y if conv.skip is None else y + conv.skip


def norm_silu_conv3x3_gradients(
    grad: Tensor, x: Tensor, norm: GroupNormWeights, conv: ConvWeights, groups: int, eps: float
) -> list[Tensor]:
    """Gradients for those inputs that require one, x first, then in the order of the records' fields."""
    wanted = [tensor for tensor in (x, *norm, *conv) if tensor is not None and tensor.requires_grad]
    with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        return list(torch.autograd.grad(norm_silu_conv3x3(x, norm, conv, groups, eps), wanted, grad))
