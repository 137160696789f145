"""A res block in plain torch. Formula: see `swintormer_kernels.ops.res_block`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from swintormer_kernels.backends.reference.group_norm_silu import group_norm

if TYPE_CHECKING:
    from swintormer_kernels.ops.res_block import ResBlockWeights


def res_block(x: Tensor, block: ResBlockWeights, groups1: int, groups2: int, eps1: float, eps2: float) -> Tensor:
    """Norm, SiLU, 3x3 convolution, the time; norm, SiLU, 3x3 convolution, the skip. x: (B, C, H, W)."""
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


def res_block_gradients(
    grad: Tensor, x: Tensor, block: ResBlockWeights, groups1: int, groups2: int, eps1: float, eps2: float
) -> list[Tensor]:
    """Gradients for those inputs that require one, x first, then in the order of the record's fields."""
    wanted = [tensor for tensor in (x, *block) if tensor is not None and tensor.requires_grad]
    with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        return list(torch.autograd.grad(res_block(x, block, groups1, groups2, eps1, eps2), wanted, grad))
