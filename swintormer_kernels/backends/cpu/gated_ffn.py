"""gated_ffn through csrc/cpu/swda_block.cpp: float32, any strides, result in x's layout."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from swintormer_kernels.backends.cpu.block_backward import ffn_gradients
from swintormer_kernels.backends.cpu.packing import pack_ffn
from swintormer_kernels.backends.cpu.window_engine import run

if TYPE_CHECKING:
    from swintormer_kernels.records import FFNWeights


def gated_ffn(x: Tensor, weights: FFNWeights) -> Tensor:
    """See `swintormer_kernels.ops.gated_ffn`."""
    return run("gated_ffn", x, [], pack_ffn(weights), (0, 0, 0, weights.project_out.shape[1]))


def gated_ffn_backward(grad: Tensor, x: Tensor, weights: FFNWeights) -> list[Tensor]:
    """Gradients of those tensors among the arguments that require one, in order."""
    return ffn_gradients(grad, x, weights)
