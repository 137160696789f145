"""swda_block: `swda_attention`, then `gated_ffn`; everything is local to a window, so one pass can do both.

A fused backend reads x once and writes the result once: 2 * B * C * H * W elements moved beside the weights.
"""

from __future__ import annotations

from torch import Tensor

from ..backends.reference.swda_block import swda_block as _reference
from ..registry import Op
from . import gated_ffn, swda_attention
from .gated_ffn import FFNWeights
from .swda_attention import AttentionWeights

OP = Op(
    "swda_block",
    serves={},
    absent={
        "cpu": "not written yet: the C++ engine has only ddim_step so far",
        "triton": "not written yet",
        "cuda": "not written yet",
    },
)


@OP.public
def swda_block(x: Tensor, attention: AttentionWeights, ffn: FFNWeights, window: int, shift: int) -> Tensor:
    """x = x + attention(norm1(x)); x + ffn(norm2(x)).

    Args:
        x: (B, C, H, W), any strides, H and W multiples of the window.
        attention, ffn: the parameters of the two halves.
        window: w, side of a window, at least 2.
        shift: s, 0 <= s < w.

    Returns:
        (B, C, H, W).

    Raises:
        ValueError: a shape, the window or the shift does not fit.
    """
    swda_attention.check_input(x, attention, window, shift)
    gated_ffn.check_input(x, ffn)
    OP.select(x, attention, ffn, window, shift)
    return _reference(x, attention, ffn, window, shift)
