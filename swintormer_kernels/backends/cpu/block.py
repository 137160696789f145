"""swda_block, swda_attention and gated_ffn in csrc/block: float32 or bfloat16, any strides, result in x's layout.

Tensors of bfloat16 are converted as the kernels read and write them. With `bfloat16=True` products multiply bfloat16.
Formulas, bytes moved and MACs: csrc/block/swda_block.h.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from swintormer_kernels import native
from swintormer_kernels.backends.cpu.block_backward import block_gradients
from swintormer_kernels.backends.cpu.layout import Buffer, dense, image
from swintormer_kernels.backends.cpu.packing import pack_attention, pack_ffn

if TYPE_CHECKING:
    from swintormer_kernels.records import AttentionWeights, FFNWeights


def swda_block(
    x: Tensor, attention: AttentionWeights, ffn: FFNWeights, window: int, shift: int, *, bfloat16: bool = False
) -> Tensor:
    """See `swintormer_kernels.ops.swda_block`."""
    heads, hidden = attention.logit_scale.shape[0], ffn.project_out.shape[1]
    return _run(
        "swda_block",
        x,
        attention=pack_attention(attention, window, hidden, bfloat16=bfloat16),
        ffn=pack_ffn(ffn, bfloat16=bfloat16),
        shift=shift,
        bfloat16=bfloat16,
        scratch=_scratch(x, heads, window, hidden),
    )


def swda_attention(x: Tensor, weights: AttentionWeights, window: int, shift: int, *, bfloat16: bool = False) -> Tensor:
    """See `swintormer_kernels.ops.swda_attention`."""
    return _run(
        "swda_attention",
        x,
        attention=pack_attention(weights, window, hidden=0, bfloat16=bfloat16),
        shift=shift,
        bfloat16=bfloat16,
        scratch=_scratch(x, weights.logit_scale.shape[0], window, hidden=0),
    )


def gated_ffn(x: Tensor, weights: FFNWeights, *, bfloat16: bool = False) -> Tensor:
    """See `swintormer_kernels.ops.gated_ffn`."""
    hidden = weights.project_out.shape[1]
    ffn = pack_ffn(weights, bfloat16=bfloat16)
    return _run("gated_ffn", x, ffn=ffn, bfloat16=bfloat16, scratch=_scratch(x, 0, 0, hidden))


def swda_block_backward(
    grad: Tensor,
    x: Tensor,
    attention: AttentionWeights,
    ffn: FFNWeights,
    window: int,
    shift: int,
    *,
    bfloat16: bool = False,
) -> list[Tensor]:
    """Gradients of those tensors among the arguments that require one, in order."""
    return block_gradients(grad, x, attention, ffn, window, shift, bfloat16)


def swda_attention_backward(
    grad: Tensor, x: Tensor, weights: AttentionWeights, window: int, shift: int, *, bfloat16: bool = False
) -> list[Tensor]:
    """Gradients of those tensors among the arguments that require one, in order."""
    return block_gradients(grad, x, weights, None, window, shift, bfloat16)


def gated_ffn_backward(grad: Tensor, x: Tensor, weights: FFNWeights, *, bfloat16: bool = False) -> list[Tensor]:
    """Gradients of those tensors among the arguments that require one, in order."""
    return block_gradients(grad, x, None, weights, window=0, shift=0, bfloat16=bfloat16)


def _run(op: str, x: Tensor, **arguments: Any) -> Tensor:
    """Calls `op` of the extension on x (B, C, H, W), any strides; the result has x's memory layout if x is dense."""
    out = torch.empty_like(x)
    if x.numel():
        getattr(native.extension(), op)(out=image(out), x=image(x), threads=torch.get_num_threads(), **arguments)
    return out


def _scratch(x: Tensor, heads: int, window: int, hidden: int) -> Buffer:
    """Scratch of all threads. heads and window are 0 without attention, hidden is 0 without FFN."""
    _, floats, _ = native.extension().swda_layout(x.shape[1], heads, window, hidden)
    return dense(torch.empty(torch.get_num_threads() * floats, dtype=torch.float32, device="cpu"))
