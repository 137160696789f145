"""The gated feed-forward part in plain torch. Formula: see `swintormer_kernels.ops.gated_ffn`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from swintormer_kernels.backends.reference.layers import layer_norm, pointwise

if TYPE_CHECKING:
    from swintormer_kernels.ops.gated_ffn import FFNWeights


def gated_ffn(x: Tensor, weights: FFNWeights) -> Tensor:
    """x + ffn(norm2(x)). x: (B, C, H, W)."""
    return x + ffn_branch(layer_norm(x, weights.norm_weight, weights.norm_bias), weights)


def ffn_branch(x: Tensor, weights: FFNWeights) -> Tensor:
    """project_out(x1 * x2), with x1 and x2 the two halves of project_in(x). (B, C, H, W) -> (B, C, H, W)."""
    x1, x2 = pointwise(x, weights.project_in, weights.project_in_bias).chunk(2, dim=1)
    return pointwise(x1 * x2, weights.project_out, weights.project_out_bias)
