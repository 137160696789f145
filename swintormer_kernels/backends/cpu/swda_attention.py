"""swda_attention through csrc/cpu/swda_block.cpp: float32, any strides, result in x's layout."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from swintormer_kernels.backends.cpu.block_backward import block_gradients
from swintormer_kernels.backends.cpu.packing import pack_attention
from swintormer_kernels.backends.cpu.window_engine import run

if TYPE_CHECKING:
    from swintormer_kernels.records import AttentionWeights


def swda_attention(x: Tensor, weights: AttentionWeights, window: int, shift: int) -> Tensor:
    """See `swintormer_kernels.ops.swda_attention`."""
    heads = weights.logit_scale.shape[0]
    return run("swda_attention", x, pack_attention(weights, window, 0), [], (heads, window, shift, 0))


def swda_attention_backward(
    grad: Tensor, x: Tensor, weights: AttentionWeights, window: int, shift: int
) -> list[Tensor]:
    """Gradients of those tensors among the arguments that require one, in order."""
    return block_gradients(grad, x, weights, None, window, shift)
