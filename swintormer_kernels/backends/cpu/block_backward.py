"""Gradients of the block on the CPU, in csrc/block/swda_backward.cpp: products of float32 or bfloat16, any strides.

The kernel divides the windows into chunks and sums the gradients of the weights in each; the chunks are added here, in
order, so that the result does not depend on the number of threads. Formulas, bytes moved and MACs:
csrc/block/swda_backward.h. Only x is kept from the forward pass. Tensors of bfloat16 are converted as the kernel
reads and writes them.
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

if TYPE_CHECKING:
    from swintormer_kernels.records import AttentionWeights, FFNWeights

Shape = tuple[int, ...] | None

_SUMS_BYTES = 32 << 20
"""Bytes of the sums of all chunks, unless a single chunk takes more."""

_MOST_CHUNKS = 32
"""They keep that many threads at work. Each costs setting its sums to 0 and adding them."""


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
    channels = x.shape[1]
    heads = attention.logit_scale.shape[0] if attention else 0
    hidden = ffn.project_out.shape[1] if ffn else 0
    scratch, lanes, columns = native.extension().swda_backward_layout(channels, heads, window, hidden, bfloat16)
    shapes = _attention_sums(attention, window, lanes, columns) if attention else {}
    ffn_shapes = _ffn_sums(ffn, lanes, columns) if ffn else {}
    chunks = _chunks(x, window, [*shapes.values(), *ffn_shapes.values()])
    sums, ffn_sums = _allocated(shapes, chunks), _allocated(ffn_shapes, chunks)
    grad_x = torch.empty_like(x)
    if x.numel():
        threads = min(torch.get_num_threads(), chunks)
        native.extension().swda_backward(
            grad_x=image(grad_x),
            grad=image(grad),
            x=image(x),
            attention=pack_attention(attention, window, hidden, bfloat16=bfloat16) if attention else None,
            ffn=pack_ffn(ffn, bfloat16=bfloat16) if ffn else None,
            attention_sums=_buffers("AttentionSums", sums, transposed_attention(attention, bfloat16=bfloat16))
            if attention
            else None,
            ffn_sums=_buffers("FfnSums", ffn_sums, transposed_ffn(ffn, bfloat16=bfloat16)) if ffn else None,
            shift=shift,
            bfloat16=bfloat16,
            chunks=chunks,
            scratch=dense(_scratch(threads * scratch)),
            threads=threads,
        )
    else:
        for total in (*sums.values(), *ffn_sums.values()):
            if total is not None:
                total.zero_()
    found = [grad_x, *_of_attention(attention, sums), *_of_ffn(ffn, ffn_sums)]
    sources = [x, *(attention or ()), *(ffn or ())]
    return [
        value.reshape(source.shape).to(source.dtype)
        for source, value in zip(sources, found, strict=True)
        if source is not None and source.requires_grad
    ]


def _allocated(shapes: dict[str, Shape], chunks: int) -> dict[str, Tensor | None]:
    return {name: None if shape is None else _scratch(chunks, *shape) for name, shape in shapes.items()}


def _scratch(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device="cpu")


# ---- the sums of the chunks ------------------------------------------------------------------------------------------


def _attention_sums(weights: AttentionWeights, window: int, lanes: int, columns: int) -> dict[str, Shape]:
    """Shapes of `AttentionGradients` of csrc/block/swda_backward.h in one chunk; None for what nobody wants."""
    channels, heads = weights.proj.shape[0], weights.logit_scale.shape[0]
    return {
        "norm": (2, channels, lanes),
        "qkv": _if_wanted(weights.qkv, (3 * channels, columns)),
        "qkv_bias": _if_wanted(weights.qkv_bias, (3 * channels, lanes)),
        "dwconv": (3 * channels, 10, lanes),
        "proj": _if_wanted(weights.proj, (channels, columns)),
        "proj_bias": _if_wanted(weights.proj_bias, (channels, lanes)),
        "bias": (heads, (2 * window - 1) ** 2),
        "log_scale": (heads,),
    }


def _ffn_sums(weights: FFNWeights, lanes: int, columns: int) -> dict[str, Shape]:
    """The same for `FfnGradients`."""
    channels, hidden = weights.project_out.shape[:2]
    return {
        "norm": (2, channels, lanes),
        "project_in": _if_wanted(weights.project_in, (2 * hidden, columns)),
        "project_in_bias": _if_wanted(weights.project_in_bias, (2 * hidden, lanes)),
        "project_out": _if_wanted(weights.project_out, (hidden, columns)),
        "project_out_bias": _if_wanted(weights.project_out_bias, (channels, lanes)),
    }


def _if_wanted(weight: Tensor | None, shape: tuple[int, ...]) -> Shape:
    return shape if weight is not None and weight.requires_grad else None


def _chunks(x: Tensor, window: int, shapes: list[Shape]) -> int:
    batch, _, height, width = x.shape
    # gated_ffn has a window of 0: it processes 128 pixels together.
    units = batch * (height // window) * (width // window) if window else -(-batch * height * width // 128)
    floats = sum(torch.Size(shape).numel() for shape in shapes if shape)
    return max(1, min(units, _MOST_CHUNKS, _SUMS_BYTES // (4 * floats)))


def _buffers(kind: str, sums: dict[str, Tensor | None], transposed: dict[str, Any]) -> Any:
    return getattr(native.extension(), kind)(**{name: dense(value) for name, value in sums.items()}, **transposed)


def _of_attention(weights: AttentionWeights | None, sums: dict[str, Tensor | None]) -> list[Tensor]:
    """Gradients of the fields of `weights`, in order; those that are not wanted are empty."""
    if weights is None:
        return []
    channels, heads = weights.proj.shape[0], weights.logit_scale.shape[0]
    dwconv = _from_heads(_added(sums["dwconv"], -1), heads)
    sigmoid = torch.sigmoid(weights.bias_table.float())
    return [
        *_of_norm(sums),
        _from_heads(_added(sums["qkv"])[:, :channels], heads),
        dwconv[:, :9].clone(),  # outputs of an op must not share memory
        _added(sums["proj"])[:, :channels].T,
        _added(sums["log_scale"]) * (weights.logit_scale.flatten() <= MAX_LOG_SCALE),
        _added(sums["bias"]).T * (16 * sigmoid * (1 - sigmoid)),
        _from_heads(_added(sums["qkv_bias"], -1)[:, None], heads),
        dwconv[:, 9].clone(),
        _added(sums["proj_bias"], -1),
    ]


def _of_ffn(weights: FFNWeights | None, sums: dict[str, Tensor | None]) -> list[Tensor]:
    """Gradients of the fields of `weights`, in order; those that are not wanted are empty."""
    if weights is None:
        return []
    channels = weights.project_out.shape[0]
    return [
        *_of_norm(sums),
        _added(sums["project_in"])[:, :channels],
        _added(sums["project_out"])[:, :channels].T,
        _added(sums["project_in_bias"], -1),
        _added(sums["project_out_bias"], -1),
    ]


def _of_norm(sums: dict[str, Tensor | None]) -> list[Tensor]:
    return [value.clone() for value in _added(sums["norm"], -1)]


def _added(sums: Tensor | None, *lanes: int) -> Tensor:
    """The sum over the chunks, and over the lanes, the last dimension; an empty matrix for None."""
    return _scratch(0, 0) if sums is None else sums.sum((0, *lanes))


def _from_heads(rows: Tensor, heads: int) -> Tensor:
    """The inverse of `packing.by_head`: rows of (half, head, part, d) in the released order, half, part, head, d."""
    if not rows.numel():
        return rows
    return rows.unflatten(0, (2, heads, 3, -1)).transpose(1, 2).flatten(0, 3)
