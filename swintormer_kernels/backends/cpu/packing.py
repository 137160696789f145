"""Packed weights of the block in the memory layout of csrc/block/swda_block.h, cached per version of a parameter."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from swintormer_kernels import native
from swintormer_kernels.backends.cpu.layout import Buffer, dense
from swintormer_kernels.packed import packed_weight

if TYPE_CHECKING:
    from swintormer_kernels.records import AttentionWeights, FFNWeights

MAX_LOG_SCALE = math.log(1 / 0.01)  # logit scale at most 100


def pack_attention(weights: AttentionWeights, window: int, hidden: int, *, bfloat16: bool = False) -> Any:
    """`AttentionWeights` of csrc/block/swda_block.h, packed; `hidden` is that of the FFN in the same pass, or 0.

    With `bfloat16`, the factors of products are packed as pairs of bfloat16.
    """
    channels, heads = weights.proj.shape[0], weights.logit_scale.shape[0]
    tile, _, _ = native.extension().swda_layout(channels, heads, window, hidden)
    units = (channels, heads, tile)
    rows = 2 * heads * _in_tiles(3 * (channels // 2 // heads), tile)
    projection = (tile, 1)
    return native.extension().Attention(
        norm_weight=_float32(weights.norm_weight),
        norm_bias=_float32(weights.norm_bias),
        qkv=_cached(weights.qkv, _head_tiles, (*units, bfloat16)),
        qkv_bias=_cached(weights.qkv_bias, _head_rows, units, missing=rows),
        dwconv=_cached(weights.dwconv, _head_rows, units),
        dwconv_bias=_cached(weights.dwconv_bias, _head_rows, units, missing=rows),
        proj=_cached(weights.proj, _tiles, (*projection, bfloat16)),
        proj_bias=_cached(weights.proj_bias, _padded, projection, missing=_in_tiles(channels, tile)),
        scale=_cached(weights.logit_scale, _scale, ()),
        bias=_cached(weights.bias_table, _bias, (channels, heads, window, native.extension().isa())),
        heads=heads,
        window=window,
    )


def pack_ffn(weights: FFNWeights, *, bfloat16: bool = False) -> Any:
    """`FfnWeights` of csrc/block/swda_block.h, packed; `bfloat16` as in `pack_attention`."""
    channels, hidden = weights.project_out.shape[:2]
    tile, _, _ = native.extension().swda_layout(channels, 0, 0, hidden)
    halves, whole = (tile // 2, 2), (tile, 1)
    return native.extension().Ffn(
        norm_weight=_float32(weights.norm_weight),
        norm_bias=_float32(weights.norm_bias),
        project_in=_cached(weights.project_in, _tiles, (*halves, bfloat16)),
        project_in_bias=_cached(weights.project_in_bias, _padded, halves, missing=2 * _in_tiles(hidden, tile // 2)),
        project_out=_cached(weights.project_out, _tiles, (*whole, bfloat16)),
        project_out_bias=_cached(weights.project_out_bias, _padded, whole, missing=_in_tiles(channels, tile)),
        hidden=hidden,
    )


def transposed_attention(weights: AttentionWeights, *, bfloat16: bool = False) -> dict[str, Buffer]:
    """The attention's part of `TransposedWeights` of csrc/block/swda_backward.h; `bfloat16` as in `pack_attention`."""
    channels, heads = weights.proj.shape[0], weights.logit_scale.shape[0]
    tile, _, _ = native.extension().swda_layout(channels, heads, 1, 0)
    return {
        "qkv_transposed": _cached(weights.qkv, _head_columns, (channels, heads, tile, bfloat16)),
        "proj_transposed": _cached(weights.proj, _columns, (tile, 1, bfloat16)),
    }


def transposed_ffn(weights: FFNWeights, *, bfloat16: bool = False) -> dict[str, Buffer]:
    """The FFN's part of `TransposedWeights` of csrc/block/swda_backward.h; `bfloat16` as in `pack_attention`."""
    channels, hidden = weights.project_out.shape[:2]
    tile, _, _ = native.extension().swda_layout(channels, 0, 0, hidden)
    return {
        "in_transposed": _cached(weights.project_in, _columns, (tile, 2, bfloat16)),
        "out_transposed": _cached(weights.project_out, _columns, (tile, 1, bfloat16)),
    }


def _cached(source: Tensor | None, how: Callable[..., Tensor], sizes: tuple[Hashable, ...], missing: int = 0) -> Buffer:
    if source is None:
        return dense(_zeros(missing))
    return dense(packed_weight([source], (how, sizes), lambda: how(source.float(), *sizes).contiguous()))


def _float32(vector: Tensor) -> Buffer:
    return dense(vector) if vector.dtype is torch.float32 else _cached(vector, torch.Tensor.flatten, ())


@functools.lru_cache(maxsize=64)
def _zeros(floats: int) -> Tensor:
    return torch.zeros(floats, dtype=torch.float32, device="cpu")


def _in_tiles(rows: int, tile: int) -> int:
    return -(-rows // tile) * tile


def _padded(matrix: Tensor, tile: int, parts: int) -> Tensor:
    """(parts * rows, ...) -> (tiles * parts * tile, k): per tile its rows of the first part, then of the second."""
    rows = matrix.reshape(parts, matrix.shape[0] // parts, -1)
    rows = F.pad(rows, (0, 0, 0, -rows.shape[1] % tile))
    return rows.unflatten(1, (-1, tile)).transpose(0, 1).reshape(-1, rows.shape[-1])


def _tiles(matrix: Tensor, tile: int, parts: int, bfloat16: bool) -> Tensor:
    """The rows of `_padded` in tiles: (tiles, k, parts * tile), or (tiles, k in pairs, parts * tile)."""
    tiles = _padded(matrix, tile, parts).unflatten(0, (-1, parts * tile)).transpose(1, 2)
    return _pairs(tiles) if bfloat16 else tiles


def _pairs(tiles: Tensor) -> Tensor:
    """(tiles, k, rows) -> (tiles, ceil(k / 2), rows): words of two bfloat16, the first in the lower half."""
    pairs = F.pad(tiles, (0, 0, 0, tiles.shape[1] % 2)).bfloat16().unflatten(1, (-1, 2))
    return pairs.transpose(2, 3).contiguous().view(torch.float32).squeeze(3)


def by_head(matrix: Tensor, channels: int, heads: int) -> Tensor:
    """(3C, ...) -> (2 halves * heads, 3d, k); the released weights order 3C as half, (q, k, v), head, d."""
    size = channels // 2 // heads
    return matrix.reshape(2, 3, heads, size, -1).transpose(1, 2).reshape(2 * heads, 3 * size, -1)


def _head_rows(matrix: Tensor, channels: int, heads: int, tile: int) -> Tensor:
    """(3C, ...) -> (2 halves * heads * padded 3d, k)."""
    rows = by_head(matrix, channels, heads)
    return F.pad(rows, (0, 0, 0, -rows.shape[1] % tile)).flatten(0, 1)


def _head_tiles(matrix: Tensor, channels: int, heads: int, tile: int, bfloat16: bool) -> Tensor:
    tiles = _head_rows(matrix, channels, heads, tile).unflatten(0, (-1, tile)).transpose(1, 2)
    return _pairs(tiles) if bfloat16 else tiles


def _columns(matrix: Tensor, tile: int, parts: int, bfloat16: bool) -> Tensor:
    """The columns of a 1x1 convolution's weight in tiles: (tiles, parts, rows / parts, tile).

    With `bfloat16`, the rows of each of the equal parts are in pairs.
    """
    halves = [_tiles(part.T, tile, 1, bfloat16) for part in matrix.flatten(1).chunk(parts)]
    return torch.stack(halves, dim=1)


def _head_columns(matrix: Tensor, channels: int, heads: int, tile: int, bfloat16: bool) -> Tensor:
    return _columns(by_head(matrix, channels, heads).flatten(0, 1), tile, 1, bfloat16)


def _scale(logit_scale: Tensor) -> Tensor:
    return torch.clamp(logit_scale, max=MAX_LOG_SCALE).exp().flatten()


def _bias(table: Tensor, channels: int, heads: int, window: int, isa: str) -> Tensor:
    """16 sigmoid(table) in the order of `bias_index`: (heads, bias_floats)."""
    return (16 * torch.sigmoid(table))[_bias_index(channels, heads, window, isa)].T


@functools.lru_cache(maxsize=64)
def _bias_index(channels: int, heads: int, window: int, isa: str) -> Tensor:
    return torch.tensor(native.extension().bias_index(channels, heads, window), device="cpu")
