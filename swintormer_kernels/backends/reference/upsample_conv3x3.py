"""Doubling an image and convolving it, in plain torch. Formula: see `swintormer_kernels.ops.upsample_conv3x3`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from swintormer_kernels.ops.upsample_conv3x3 import UpsampleWeights


def upsample_conv3x3(x: Tensor, conv: UpsampleWeights) -> Tensor:
    """conv3x3(every pixel of x as 2x2) + bias. (B, C, H, W) -> (B, C_out, 2H, 2W)."""
    return F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), conv.weight, conv.bias, padding=1)


def upsample_conv3x3_gradients(grad: Tensor, x: Tensor, conv: UpsampleWeights) -> list[Tensor]:
    """Gradients for those inputs that require one: x, weight, bias."""
    wanted = [tensor for tensor in (x, *conv) if tensor is not None and tensor.requires_grad]
    with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        return list(torch.autograd.grad(upsample_conv3x3(x, conv), wanted, grad))
