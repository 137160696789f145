"""Weights in the layouts of the kernels `attention` and `tail` (csrc/cuda/kernels), all of a record in one buffer.

Products take weights of x's dtype; biases, the bias table and the scales are float32. A norm's weight is folded into
the product behind it, and its bias into that product's bias. Channels are permuted within 16, so that a lane's share of
a pixel is contiguous (csrc/cuda/kernels/fragments.cuh).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from swintormer_kernels.packed import packed_weight

if TYPE_CHECKING:
    from swintormer_kernels.records import AttentionWeights, FFNWeights

CHUNK = 48
"""Channels of x in a stage of the weights of qkv."""
SLICE = 32
"""Columns of a slice of the projection."""
WIDE = {128: 64, 192: 64, 256: 128, 384: 128}
"""Channels -> hidden channels at once where `tail` is that of tail_wide.cuh; it reads attended tokens as they are."""
HIDDEN = 32
"""Hidden channels at once elsewhere."""
_ALIGNMENT = 256  # bytes
_MOST_LOG_SCALE = math.log(100)
_LOG2_E = math.log2(math.e)


def channel_order(channels: int, device: torch.device | None = None) -> Tensor:
    """Channel at each position: within 16, 2t+i has channel 4t+i and 8+2t+i has 4t+2+i; a last 8 are as they are."""
    t, i = torch.arange(4, device=device).repeat_interleave(2), torch.arange(2, device=device).repeat(4)
    group = torch.cat([4 * t + i, 4 * t + 2 + i])
    whole = channels // 16 * 16
    order = (torch.arange(0, whole, 16, device=device)[:, None] + group).flatten()
    return torch.cat([order, torch.arange(whole, channels, device=device)])


def attention_parts(weights: AttentionWeights, dtype: torch.dtype) -> Sequence[Tensor]:
    """Bytes of qkv, qkv_affine, conv, conv_bias, table and scale for the kernel `attention`, D channels a head.

    D is the number of channels of a head rounded up to a multiple of 8. Shapes, halves being window and channel:
    (heads, 2, ceil(C / 48), 3D, 48), (heads, 2, 3D, 2), (heads, 2, 3D / 8, 288) of 4 bytes, (heads, 2, 3D),
    (heads, (2w-1)^2), (heads).
    """
    channels, heads = weights.proj.shape[0], weights.logit_scale.shape[0]
    rows = heads * 2 * 3 * padded_head(channels, heads)
    chunks = -(-channels // CHUNK)
    sizes = (
        2 * rows * chunks * CHUNK,
        8 * rows,
        rows // 8 * 9 * 128,
        4 * rows,
        4 * weights.bias_table.numel(),
        4 * heads,
    )
    sources = [t for name, t in weights._asdict().items() if t is not None and name not in ("proj", "proj_bias")]
    return _parts(sources, ("cuda attention", dtype), sizes, lambda: _attention(weights, dtype))


def projection_parts(weights: AttentionWeights, dtype: torch.dtype) -> Sequence[Tensor]:
    """Bytes of the projection (ceil(C / 32), C, 32) and of its bias (C) for the kernel `tail`."""
    channels = weights.proj.shape[0]
    sizes = (2 * channels * -(-channels // SLICE) * SLICE, 4 * channels)
    sources = [t for t in (weights.proj, weights.proj_bias) if t is not None]
    return _parts(sources, ("cuda projection", channels in WIDE, dtype), sizes, lambda: _projection(weights, dtype))


def ffn_parts(weights: FFNWeights, dtype: torch.dtype) -> tuple[Sequence[Tensor], int]:
    """Bytes of in, in_bias, out and bias for the kernel `tail`, and their number of chunks of hidden channels.

    Shapes: (chunks, 2 chunk, C), (chunks, 2 chunk), (chunks, C, chunk), (C).
    """
    channels, hidden = weights.project_out.shape[:2]
    chunk = WIDE.get(channels, HIDDEN)
    chunks = -(-hidden // chunk)
    padded = chunks * chunk
    sizes = (4 * padded * channels, 8 * padded, 2 * padded * channels, 4 * channels)
    sources = [t for t in weights if t is not None]
    return _parts(sources, ("cuda ffn", chunk, dtype), sizes, lambda: _ffn(weights, chunk, dtype)), chunks


def padded_head(channels: int, heads: int) -> int:
    """Channels of a head in the packed weights."""
    return -(-(channels // 2 // heads) // 8) * 8


def _parts(sources: Sequence[Tensor], key: Hashable, sizes: tuple[int, ...], make: Callable[[], list[Tensor]]) -> Any:
    buffer = packed_weight(sources, key, lambda: _joined(make(), sizes))
    return buffer.split(_spaced(sizes))[::2]


@functools.lru_cache
def _spaced(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Each size, and the bytes from there to the next multiple of the alignment."""
    return tuple(part for size in sizes for part in (size, -size % _ALIGNMENT))


def _joined(tensors: list[Tensor], sizes: tuple[int, ...]) -> Tensor:
    found = [tensor.contiguous().view(-1).view(torch.uint8) for tensor in tensors]
    if tuple(part.numel() for part in found) != sizes:
        raise AssertionError(f"packed parts of {[part.numel() for part in found]} bytes, expected {sizes}")
    return torch.cat([F.pad(part, (0, -part.numel() % _ALIGNMENT)) for part in found])


# ---- layouts ---------------------------------------------------------------------------------------------------------


def _attention(weights: AttentionWeights, dtype: torch.dtype) -> list[Tensor]:
    channels, heads = weights.proj.shape[0], weights.logit_scale.shape[0]
    matrix, biases = _folded(weights.qkv, weights.qkv_bias, weights.norm_weight, weights.norm_bias)
    taps = weights.dwconv.detach().float().flatten(1)
    conv_bias = matrix.new_zeros(3 * channels) if weights.dwconv_bias is None else weights.dwconv_bias.detach().float()
    wide = -(-channels // CHUNK) * CHUNK
    # The columns of the last 16 are permuted like those of all others, with zeros behind the last channel.
    matrix = F.pad(matrix, (0, wide - channels))[:, channel_order(wide, matrix.device)]
    qkv, qkv_bias, taps, conv_bias = (_by_heads(tensor, heads) for tensor in (matrix, biases, taps, conv_bias))
    qkv = qkv.to(dtype)
    affine = torch.stack((qkv.float().sum(-1), qkv_bias), dim=-1)
    qkv = qkv.unflatten(-1, (-1, CHUNK)).transpose(2, 3)
    table = 16 * _LOG2_E * torch.sigmoid(weights.bias_table.detach().float()).T
    scale = _LOG2_E * weights.logit_scale.detach().float().flatten().clamp(max=_MOST_LOG_SCALE).exp()
    return [qkv, affine, _diagonals(taps.to(dtype)), conv_bias, table, scale]


def _by_heads(rows: Tensor, heads: int) -> Tensor:
    """(3C, ...) -> (heads, 2, 3D, ...): rows of q, k and v of each head and half, zeros behind a head's channels.

    The channels of what a head writes are permuted: of v in the window half, of q in the channel half.
    """
    head = rows.shape[0] // 6 // heads
    padded = -(-head // 8) * 8
    split = rows.unflatten(0, (2, 3, heads, head)).movedim(2, 0)  # heads, 2, 3, head, ...
    split = F.pad(split, (0, 0) * (rows.ndim - 1) + (0, padded - head)).clone()
    order = channel_order(padded, rows.device)
    split[:, 0, 2] = split[:, 0, 2][:, order]
    split[:, 1, 0] = split[:, 1, 0][:, order]
    return split.flatten(2, 3)


def _diagonals(taps: Tensor) -> Tensor:
    """(heads, 2, 3D, 9) -> (heads, 2, 3D / 8, 288, 2): B fragments of diag(tap); lane 4g + t has (2t.., g).

    First the taps 0 to 3 of each lane, then 4 to 7, then the last.
    """
    groups = taps.unflatten(2, (-1, 8)).transpose(-1, -2)  # heads, 2, 3D / 8, 9, 8
    pairs = groups.new_zeros(*groups.shape[:-1], 32, 2)
    g = torch.arange(8, device=taps.device)
    pairs[..., 4 * g + g // 2, g % 2] = groups
    fours = pairs[..., :8, :, :].unflatten(-3, (2, 4)).transpose(-3, -2)  # ..., 2, 32, 4, 2
    return torch.cat([fours.flatten(-4, -2), pairs[..., 8, :, :]], dim=-2)


def _projection(weights: AttentionWeights, dtype: torch.dtype) -> list[Tensor]:
    channels = weights.proj.shape[0]
    order = channel_order(channels, weights.proj.device)
    matrix = weights.proj.detach().flatten(1)[order]
    if channels not in WIDE:
        matrix = matrix[:, order]
    matrix = F.pad(matrix, (0, -channels % SLICE)).unflatten(1, (-1, SLICE)).transpose(0, 1)
    return [matrix.to(dtype), _bias(weights.proj_bias, weights.proj)]


def _ffn(weights: FFNWeights, chunk: int, dtype: torch.dtype) -> list[Tensor]:
    channels, hidden = weights.project_out.shape[:2]
    order = channel_order(channels, weights.project_out.device)
    more = -hidden % chunk
    matrix, biases = _folded(weights.project_in, weights.project_in_bias, weights.norm_weight, weights.norm_bias)
    halves = F.pad(matrix[:, order].unflatten(0, (2, hidden)), (0, 0, 0, more))
    halves = halves.unflatten(1, (-1, chunk)).transpose(0, 1)
    biases = F.pad(biases.unflatten(0, (2, hidden)), (0, more)).unflatten(1, (-1, chunk)).transpose(0, 1)
    out = F.pad(weights.project_out.detach().flatten(1)[order], (0, more)).unflatten(1, (-1, chunk)).transpose(0, 1)
    return [halves.to(dtype), biases, out.to(dtype), _bias(weights.project_out_bias, weights.project_out)]


def _folded(matrix: Tensor, bias: Tensor | None, norm_weight: Tensor, norm_bias: Tensor) -> tuple[Tensor, Tensor]:
    """Matrix and bias, float32, of the product behind a norm with weight 1 and bias 0."""
    wide = matrix.detach().float().flatten(1)
    added = wide @ norm_bias.detach().float()
    return wide * norm_weight.detach().float(), added if bias is None else added + bias.detach().float()


def _bias(bias: Tensor | None, matrix: Tensor) -> Tensor:
    """float32, zeros for none."""
    return matrix.new_zeros(matrix.shape[0], dtype=torch.float32) if bias is None else bias.detach().float()
