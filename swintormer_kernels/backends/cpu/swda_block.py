"""swda_block through csrc/cpu/swda_block.cpp: float32, any strides, result in x's layout."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from swintormer_kernels.backends.cpu.block_backward import block_gradients
from swintormer_kernels.backends.cpu.packing import pack_attention, pack_ffn
from swintormer_kernels.backends.cpu.window_engine import run

if TYPE_CHECKING:
    from swintormer_kernels.records import AttentionWeights, FFNWeights


def swda_block(x: Tensor, attention: AttentionWeights, ffn: FFNWeights, window: int, shift: int) -> Tensor:
    """See `swintormer_kernels.ops.swda_block`."""
    heads, hidden = attention.logit_scale.shape[0], ffn.project_out.shape[1]
    packed = pack_attention(attention, window, hidden)
    return run("swda_block", x, packed, pack_ffn(ffn), (heads, window, shift, hidden))


def swda_block_backward(
    grad: Tensor, x: Tensor, attention: AttentionWeights, ffn: FFNWeights, window: int, shift: int
) -> list[Tensor]:
    """Gradients of those tensors among the arguments that require one, in order."""
    return block_gradients(grad, x, attention, ffn, window, shift)
