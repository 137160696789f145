"""Gradients of the block on the CPU, in csrc/block/swda_backward.cpp: products of float32 or bfloat16, any strides.

The kernel divides the windows into chunks, sums the gradients of the weights in each and adds the chunks in order, so
that the result does not depend on the number of threads. Formulas, bytes moved and MACs: csrc/block/swda_backward.h.
Only x is kept from the forward pass. Tensors of bfloat16 are converted as the kernel reads and writes them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from swintormer_kernels import native
from swintormer_kernels.backends.cpu.layout import dense, image
from swintormer_kernels.backends.cpu.packing import (
    MAX_LOG_SCALE,
    pack_attention,
    pack_ffn,
    transposed_attention,
    transposed_ffn,
)
from swintormer_kernels.backends.cpu.scratch import Scratch

if TYPE_CHECKING:
    from swintormer_kernels.records import AttentionWeights, FFNWeights

Grads = dict[str, Tensor | None]

_SUMS_BYTES = 32 << 20
"""Bytes of the sums of all chunks, unless a single chunk takes more."""

_LEAST_CHUNKS, _MOST_CHUNKS = 8, 32
"""They keep that many threads at work. Setting the sums of one to 0 and adding them takes as long as a third of a
window."""

_UNITS_OF_CHUNK = 16
"""Windows in a chunk, unless there are fewer than `_LEAST_CHUNKS` chunks or more than `_MOST_CHUNKS`."""


def block_gradients(
    grad: Tensor,
    x: Tensor,
    attention: AttentionWeights | None,
    ffn: FFNWeights | None,
    window: int,
    shift: int,
    bfloat16: bool,
) -> list[Tensor]:
    """Gradients of swda_block, of swda_attention (`ffn` None) or of gated_ffn (`attention` None), for those inputs that
    require one, in order. With `bfloat16`, products multiply bfloat16, those of the forward pass as well, which is
    computed again."""
    heads = attention.logit_scale.shape[0] if attention else 0
    hidden = ffn.project_out.shape[1] if ffn else 0
    grad_x = torch.empty_like(x)
    make = torch.empty if x.numel() else torch.zeros
    grads = _attention_grads(attention, window, make) if attention else {}
    ffn_grads = _ffn_grads(ffn, make) if ffn else {}
    if x.numel():
        scratch, sums = native.extension().swda_backward_layout(x.shape[1], heads, window, hidden, bfloat16)
        chunks = _chunks(x, window, sums)
        threads = min(torch.get_num_threads(), chunks)
        sums_buffer, buffer = Scratch(chunks * sums, threads * scratch).buffers
        native.extension().swda_backward(
            grad_x=image(grad_x),
            grad=image(grad),
            x=image(x),
            attention=pack_attention(attention, window, hidden, bfloat16=bfloat16) if attention else None,
            ffn=pack_ffn(ffn, bfloat16=bfloat16) if ffn else None,
            attention_grads=_buffers("AttentionGrads", grads, transposed_attention(attention, bfloat16=bfloat16))
            if attention
            else None,
            ffn_grads=_buffers("FfnGrads", ffn_grads, transposed_ffn(ffn, bfloat16=bfloat16)) if ffn else None,
            shift=shift,
            bfloat16=bfloat16,
            chunks=chunks,
            sums=sums_buffer,
            scratch=buffer,
            threads=threads,
        )
    found = [grad_x, *_of_attention(attention, grads), *_of_ffn(ffn, ffn_grads)]
    sources = [x, *(attention or ()), *(ffn or ())]
    return [
        value.reshape(source.shape).to(source.dtype)
        for source, value in zip(sources, found, strict=True)
        if source is not None and value is not None and source.requires_grad
    ]


def _chunks(x: Tensor, window: int, sums_floats: int) -> int:
    batch, _, height, width = x.shape
    # gated_ffn has a window of 0: it processes 128 pixels together.
    units = batch * (height // window) * (width // window) if window else -(-batch * height * width // 128)
    wanted = min(max(units // _UNITS_OF_CHUNK, _LEAST_CHUNKS), _MOST_CHUNKS, units)
    return max(1, min(wanted, _SUMS_BYTES // (4 * sums_floats)))


# ---- gradients of the weights ----------------------------------------------------------------------------------------


def _attention_grads(weights: AttentionWeights, window: int, make: Any) -> Grads:
    """Memory for `AttentionGradients` of csrc/block/swda_backward.h; None for what nobody wants."""
    channels, heads = weights.proj.shape[0], weights.logit_scale.shape[0]
    return {
        "norm": _floats(make, 2, channels),
        "qkv": _floats(make, 3 * channels, channels) if _wanted(weights.qkv) else None,
        "qkv_bias": _floats(make, 3 * channels) if _wanted(weights.qkv_bias) else None,
        "dwconv": _floats(make, 3 * channels, 10),
        "proj": _floats(make, channels, channels) if _wanted(weights.proj) else None,
        "proj_bias": _floats(make, channels) if _wanted(weights.proj_bias) else None,
        "bias": _floats(make, heads, (2 * window - 1) ** 2),
        "log_scale": _floats(make, heads),
    }


def _ffn_grads(weights: FFNWeights, make: Any) -> Grads:
    """The same for `FfnGradients`."""
    channels, hidden = weights.project_out.shape[:2]
    return {
        "norm": _floats(make, 2, channels),
        "project_in": _floats(make, 2 * hidden, channels) if _wanted(weights.project_in) else None,
        "project_in_bias": _floats(make, 2 * hidden) if _wanted(weights.project_in_bias) else None,
        "project_out": _floats(make, channels, hidden) if _wanted(weights.project_out) else None,
        "project_out_bias": _floats(make, channels) if _wanted(weights.project_out_bias) else None,
    }


def _wanted(weight: Tensor | None) -> bool:
    return weight is not None and weight.requires_grad


def _floats(make: Any, *shape: int) -> Tensor:
    made: Tensor = make(shape, dtype=torch.float32, device="cpu")
    return made


def _buffers(kind: str, grads: Grads, transposed: dict[str, Any]) -> Any:
    return getattr(native.extension(), kind)(**{name: dense(value) for name, value in grads.items()}, **transposed)


def _of_attention(weights: AttentionWeights | None, grads: Grads) -> list[Tensor | None]:
    """Gradients of the fields of `weights`, in order; None for those that are not wanted."""
    if weights is None:
        return []
    norm, dwconv, bias, log_scale = (_given(grads[name]) for name in ("norm", "dwconv", "bias", "log_scale"))
    sigmoid = torch.sigmoid(weights.bias_table.float())
    return [
        *(part.clone() for part in norm),  # outputs of an op must not share memory
        grads["qkv"],
        dwconv[:, :9].clone(),
        grads["proj"],
        log_scale * (weights.logit_scale.flatten() <= MAX_LOG_SCALE),
        bias.T * (16 * sigmoid * (1 - sigmoid)),
        grads["qkv_bias"],
        dwconv[:, 9].clone(),
        grads["proj_bias"],
    ]


def _of_ffn(weights: FFNWeights | None, grads: Grads) -> list[Tensor | None]:
    """Gradients of the fields of `weights`, in order; None for those that are not wanted."""
    if weights is None:
        return []
    names = ("project_in", "project_out", "project_in_bias", "project_out_bias")
    return [*(part.clone() for part in _given(grads["norm"])), *(grads[name] for name in names)]


def _given(grad: Tensor | None) -> Tensor:
    assert grad is not None
    return grad
