"""swda_block as two passes: swda_attention, then gated_ffn on its result y. Bytes and MACs are the sums of the two.

One kernel is not possible in Triton: the norm of the second half needs all C channels of y = x + proj(attended), so y,
the normalised y and the result of 64 pixels would take 3 * 64 * C floats of registers, 288 KB at C = 384, and a program
has 256 KB. Two kernels move 2 C elements per pixel more than one would: y written and read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from swintormer_kernels.backends.triton.gated_ffn import gated_ffn, gated_ffn_backward
from swintormer_kernels.backends.triton.swda_attention import swda_attention, swda_attention_backward

if TYPE_CHECKING:
    from swintormer_kernels.records import AttentionWeights, FFNWeights


def swda_block(x: Tensor, attention: AttentionWeights, ffn: FFNWeights, window: int, shift: int) -> Tensor:
    """See `swintormer_kernels.ops.swda_block`."""
    return gated_ffn(swda_attention(x, attention, window, shift), ffn)


def swda_block_backward(
    grad: Tensor, x: Tensor, attention: AttentionWeights, ffn: FFNWeights, window: int, shift: int
) -> list[Tensor]:
    """Gradients of those of x and the weights that require one, x first. y is computed again instead of kept."""
    with torch.no_grad():
        y = swda_attention(x, attention, window, shift)
    of_y, *of_ffn = gated_ffn_backward(grad, y.requires_grad_(), ffn)
    return [*swda_attention_backward(of_y, x, attention, window, shift), *of_ffn]
