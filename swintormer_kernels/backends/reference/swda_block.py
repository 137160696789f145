"""One block in plain torch: the attention part, then the feed-forward part."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from swintormer_kernels.backends.reference.gated_ffn import gated_ffn
from swintormer_kernels.backends.reference.swda_attention import swda_attention

if TYPE_CHECKING:
    from swintormer_kernels.ops.gated_ffn import FFNWeights
    from swintormer_kernels.ops.swda_attention import AttentionWeights


def swda_block(x: Tensor, attention: AttentionWeights, ffn: FFNWeights, window: int, shift: int) -> Tensor:
    """x = x + attention(norm1(x)); x + ffn(norm2(x)). x: (B, C, H, W), H and W multiples of the window."""
    return gated_ffn(swda_attention(x, attention, window, shift), ffn)
