"""Packed weights of the block in the memory layout of csrc/block/swda_block.h, cached per version of a parameter."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from swintormer_kernels import native
from swintormer_kernels.backends.cpu.layout import Buffer, dense
from swintormer_kernels.packed import packed_weight

if TYPE_CHECKING:
    from swintormer_kernels.records import AttentionWeights, FFNWeights

Order = Any
"""`TileOrder` of csrc/base/pack.h: offsets in the weight of the rows and columns of its packed copy."""

MAX_LOG_SCALE = math.log(1 / 0.01)  # logit scale at most 100


def pack_attention(weights: AttentionWeights, window: int, hidden: int, *, bfloat16: bool = False) -> Any:
    """`AttentionWeights` of csrc/block/swda_block.h, packed; `hidden` is that of the FFN in the same pass, or 0.

    With `bfloat16`, the factors of products are packed as pairs of bfloat16.
    """
    channels, heads = weights.proj.shape[0], weights.logit_scale.shape[0]
    tile, _, _ = native.extension().swda_layout(channels, heads, window, hidden)
    rows = 2 * heads * _in_tiles(3 * (channels // 2 // heads), tile)
    units = (channels, heads, tile)
    return native.extension().Attention(
        norm_weight=_float32(weights.norm_weight),
        norm_bias=_float32(weights.norm_bias),
        qkv=_packed(weights.qkv, _head_tiles, (*units, channels), bfloat16),
        qkv_bias=_packed(weights.qkv_bias, _head_tiles, (*units, 1), missing=rows),
        dwconv=_packed(weights.dwconv, _head_rows, (*units, 9)),
        dwconv_bias=_packed(weights.dwconv_bias, _head_tiles, (*units, 1), missing=rows),
        proj=_packed(weights.proj, _tiles, (channels, channels, tile, 1), bfloat16),
        proj_bias=_packed(weights.proj_bias, _tiles, (channels, 1, tile, 1), missing=_in_tiles(channels, tile)),
        scale=_made(weights.logit_scale, _scale),
        bias=_made(weights.bias_table, _bias, channels, heads, window, native.extension().isa()),
        heads=heads,
        window=window,
    )


def pack_ffn(weights: FFNWeights, *, bfloat16: bool = False) -> Any:
    """`FfnWeights` of csrc/block/swda_block.h, packed; `bfloat16` as in `pack_attention`."""
    channels, hidden = weights.project_out.shape[:2]
    tile, _, _ = native.extension().swda_layout(channels, 0, 0, hidden)
    in_rows, out_rows = 2 * _in_tiles(hidden, tile // 2), _in_tiles(channels, tile)
    return native.extension().Ffn(
        norm_weight=_float32(weights.norm_weight),
        norm_bias=_float32(weights.norm_bias),
        project_in=_packed(weights.project_in, _tiles, (2 * hidden, channels, tile, 2), bfloat16),
        project_in_bias=_packed(weights.project_in_bias, _tiles, (2 * hidden, 1, tile, 2), missing=in_rows),
        project_out=_packed(weights.project_out, _tiles, (channels, hidden, tile, 1), bfloat16),
        project_out_bias=_packed(weights.project_out_bias, _tiles, (channels, 1, tile, 1), missing=out_rows),
        hidden=hidden,
    )


def transposed_attention(weights: AttentionWeights, *, bfloat16: bool = False) -> dict[str, Buffer]:
    """The attention's part of `TransposedWeights` of csrc/block/swda_backward.h; `bfloat16` as in `pack_attention`."""
    channels, heads = weights.proj.shape[0], weights.logit_scale.shape[0]
    tile, _, _ = native.extension().swda_layout(channels, heads, 1, 0)
    return {
        "qkv_transposed": _packed(weights.qkv, _head_columns, (channels, heads, tile), bfloat16),
        "proj_transposed": _packed(weights.proj, _columns, (channels, channels, tile, 1), bfloat16),
    }


def transposed_ffn(weights: FFNWeights, *, bfloat16: bool = False) -> dict[str, Buffer]:
    """The FFN's part of `TransposedWeights` of csrc/block/swda_backward.h; `bfloat16` as in `pack_attention`."""
    channels, hidden = weights.project_out.shape[:2]
    tile, _, _ = native.extension().swda_layout(channels, 0, 0, hidden)
    return {
        "in_transposed": _packed(weights.project_in, _columns, (2 * hidden, channels, tile, 2), bfloat16),
        "out_transposed": _packed(weights.project_out, _columns, (channels, hidden, tile, 1), bfloat16),
    }


def _packed(
    source: Tensor | None,
    order: Callable[..., Order],
    sizes: tuple[int, ...],
    bfloat16: bool = False,
    missing: int = 0,
) -> Buffer:
    """`source` in `order(*sizes, bfloat16)`, cached; `missing` zeros for None."""
    if source is None:
        return dense(_zeros(missing))
    return dense(
        packed_weight([source], (order, sizes, bfloat16), lambda: _pack(source, order(*sizes, bfloat16), bfloat16))
    )


def _pack(source: Tensor, order: Order, bfloat16: bool) -> Tensor:
    out = torch.empty(order.floats(bfloat16), dtype=torch.float32, device="cpu")
    native.extension().pack(to=dense(out), source=dense(source.float()), order=order, bfloat16=bfloat16)
    return out


def _made(source: Tensor, how: Callable[..., Tensor], *arguments: Any) -> Buffer:
    return dense(packed_weight([source], (how, arguments), lambda: how(source.float(), *arguments).contiguous()))


def _float32(vector: Tensor) -> Buffer:
    return dense(vector) if vector.dtype is torch.float32 else _made(vector, torch.Tensor.flatten)


@functools.lru_cache(maxsize=64)
def _zeros(floats: int) -> Tensor:
    return torch.zeros(floats, dtype=torch.float32, device="cpu")


def _in_tiles(rows: int, tile: int) -> int:
    return -(-rows // tile) * tile


# ---- orders of packed weights ----------------------------------------------------------------------------------------

_order = functools.lru_cache(maxsize=1024)


def _tile_order(rows: Iterable[int], columns: Iterable[int], tile: int) -> Order:
    return native.extension().TileOrder(rows=list(rows), columns=list(columns), tile=tile)


def _filled(indices: list[int], unit: int) -> list[int]:
    """`indices`, with -1 after them, up to a multiple of `unit`."""
    return indices + [-1] * (-len(indices) % unit)


def _times(indices: list[int], step: int) -> list[int]:
    return [index * step if index >= 0 else -1 for index in indices]


@_order
def _tiles(rows: int, columns: int, tile: int, parts: int, bfloat16: bool) -> Order:
    """Of a matrix (rows, columns): a tile has tile / parts rows of each of the equal parts."""
    count, share = rows // parts, tile // parts
    each = [_filled(list(range(part * count, (part + 1) * count)), share) for part in range(parts)]
    chosen = [row for first in range(0, len(each[0]), share) for part in each for row in part[first : first + share]]
    return _tile_order(_times(chosen, columns), range(columns), tile)


@_order
def _columns(rows: int, columns: int, tile: int, parts: int, bfloat16: bool) -> Order:
    """Of the transpose of a matrix (rows, columns), whose rows are paired in each of the equal parts."""
    count = rows // parts
    each = [_filled(list(range(part * count, (part + 1) * count)), 2 if bfloat16 else 1) for part in range(parts)]
    depth = _times([row for part in each for row in part], columns)
    return _tile_order(_filled(list(range(columns)), tile), depth, tile)


def _by_head(channels: int, heads: int) -> list[list[int]]:
    """Rows of a (3C, ...) weight, in the order half, part (q, k, v), head, d, for each half and head: q, k, v."""
    size = channels // 2 // heads
    return [
        [((half * 3 + part) * heads + head) * size + i for part in range(3) for i in range(size)]
        for half in range(2)
        for head in range(heads)
    ]


@_order
def _head_tiles(channels: int, heads: int, tile: int, columns: int, bfloat16: bool) -> Order:
    """Of a (3C, columns) matrix: tiles of each half and head."""
    rows = [row for unit in _by_head(channels, heads) for row in _filled(unit, tile)]
    return _tile_order(_times(rows, columns), range(columns), tile)


@_order
def _head_rows(channels: int, heads: int, tile: int, columns: int, bfloat16: bool) -> Order:
    """The rows of `_head_tiles` one after the other."""
    rows = [row for unit in _by_head(channels, heads) for row in _filled(unit, tile)]
    return _tile_order(_times(rows, columns), range(columns), 1)


@_order
def _head_columns(channels: int, heads: int, tile: int, bfloat16: bool) -> Order:
    """Of the transpose of a (3C, C) matrix, its columns in the order of halves and heads."""
    depth = [row * channels for unit in _by_head(channels, heads) for row in unit]
    return _tile_order(_filled(list(range(channels)), tile), depth, tile)


def _scale(logit_scale: Tensor) -> Tensor:
    return torch.clamp(logit_scale, max=MAX_LOG_SCALE).exp().flatten()


def _bias(table: Tensor, channels: int, heads: int, window: int, isa: str) -> Tensor:
    """16 sigmoid(table) in the order of `bias_index`: (heads, bias_floats)."""
    return (16 * torch.sigmoid(table))[_bias_index(channels, heads, window, isa)].T


@functools.lru_cache(maxsize=64)
def _bias_index(channels: int, heads: int, window: int, isa: str) -> Tensor:
    return torch.tensor(native.extension().bias_index(channels, heads, window), device="cpu")
