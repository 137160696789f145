"""swda_block: `swda_attention`, then `gated_ffn` (arXiv 2401.05907). Both are local to a window: one pass suffices.

A fused backend reads x once and writes the result once: 2 B C H W elements in addition to the weights.
"""

from __future__ import annotations

from torch import Tensor

from swintormer_kernels.backends.cuda.layout import half_rows_on_gpu
from swintormer_kernels.backends.cuda.limits import attention_lacks, attention_slower
from swintormer_kernels.backends.reference.blocks import swda_block as _reference
from swintormer_kernels.backends.triton.layout import dense_on_gpu
from swintormer_kernels.ops import gated_ffn, swda_attention
from swintormer_kernels.precision import with_precision
from swintormer_kernels.records import AttentionWeights, FFNWeights
from swintormer_kernels.registry import Op
from swintormer_kernels.torch_op import (
    Cost,
    Signature,
    define_block_op,
    float32_bfloat16_or_autocast,
    gradients_wanted,
)


def _cpu_serves(x: Tensor, attention: AttentionWeights, ffn: FFNWeights, window: int, shift: int) -> str | None:
    return float32_bfloat16_or_autocast(x, *attention, *ffn)


def _triton_serves(x: Tensor, attention: AttentionWeights, ffn: FFNWeights, window: int, shift: int) -> str | None:
    lacks = swda_attention.triton_lacks(x, attention, window) or gated_ffn.triton_lacks(x)
    return lacks or dense_on_gpu(x, *attention, *ffn)


def _cuda_serves(x: Tensor, attention: AttentionWeights, ffn: FFNWeights, window: int, shift: int) -> str | None:
    return attention_lacks(x, attention, window) or half_rows_on_gpu("attention tail", x, *attention, *ffn)


def _cpu_slower(x: Tensor, attention: AttentionWeights, ffn: FFNWeights, window: int, shift: int) -> str | None:
    return swda_attention.cpu_slower(x, window)


def _cuda_slower(x: Tensor, attention: AttentionWeights, ffn: FFNWeights, window: int, shift: int) -> str | None:
    return attention_slower("swda_block", x, attention, window, gradients_wanted(x, *attention, *ffn))


OP = Op(
    "swda_block",
    serves={"cpu": _cpu_serves, "triton": _triton_serves, "cuda": _cuda_serves},
    slower={"cpu": _cpu_slower, "cuda": _cuda_slower},
)


@OP.public
def swda_block(x: Tensor, attention: AttentionWeights, ffn: FFNWeights, window: int, shift: int) -> Tensor:
    """x = x + attention(norm1(x)); x + ffn(norm2(x)).

    Args:
        x: (B, C, H, W), any strides, H and W multiples of the window. On a CPU, float32 or bfloat16 like the weights;
            bfloat16, or float32 under autocast to it, is multiplied as bfloat16 with sums in float32 where the CPU
            can (`swintormer_kernels.precision`). Under autocast the result is float32.
        attention, ffn: parameters of the two halves, shapes as in `AttentionWeights` and `FFNWeights`.
        window: w, side of a window, at least 2.
        shift: s, 0 <= s < w.

    Returns:
        (B, C, H, W).

    Raises:
        ValueError: a tensor has another shape, or window or shift is out of range.
    """
    swda_attention.check_input(x, attention, window, shift)
    gated_ffn.check_input(x, ffn)
    backend = OP.select(x, attention, ffn, window, shift)
    if backend == "reference":
        return _reference(x, attention, ffn, window, shift)
    return _run(*_SIGNATURE.flat(x, attention, ffn, window, shift), with_precision(backend, x))


def cost(x: Tensor, attention: AttentionWeights, ffn: FFNWeights, window: int, shift: int) -> Cost:
    """Work of `swda_block` with these arguments: the sum of its halves, with one image read and one written."""
    first, second = swda_attention.cost(x, attention, window, shift), gated_ffn.cost(x, ffn)
    return Cost(first.macs + second.macs, first.bytes + second.bytes - 2 * x.numel() * x.element_size())


_SIGNATURE = Signature((AttentionWeights, FFNWeights), ("window", "shift"))
_run = define_block_op(OP, _SIGNATURE, cost)
