"""Launches of gated_ffn (ffn_kernels.py): float32, bfloat16, float16; channels_last and NCHW; other layouts are copied.

Memory in addition to the result: none forward; `BAND_BYTES` and the gradients backward. Only x is saved between them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from swintormer_kernels.backends.triton import ffn_backward_kernels, ffn_kernels
from swintormer_kernels.backends.triton.blocks import blocks_for
from swintormer_kernels.backends.triton.ffn_backward_kernels import Band
from swintormer_kernels.backends.triton.ffn_kernels import PackedFFN
from swintormer_kernels.backends.triton.layout import dense_layout, is_rows
from swintormer_kernels.backends.triton.runtime import launch, precision
from swintormer_kernels.packed import packed_weight

if TYPE_CHECKING:
    from swintormer_kernels.records import FFNWeights

HIDDEN_MULTIPLE = 64  # a multiple of every BLOCK_H, so that loops over hidden channels need no mask
BAND_BYTES = 64 * 2**20  # of the factors of the weights' gradients: 35000 pixels at C = 96 in bfloat16
# Minimum number of programs of `weight_gradients` if there are enough pixels: twice the multiprocessors of an H200.
PROGRAMS = 264
WIDEST_PIECE = 64  # of float32 that the products with n and the gradient take from registers


def gated_ffn(x: Tensor, weights: FFNWeights) -> Tensor:
    """See `swintormer_kernels.ops.gated_ffn`."""
    out = torch.empty_like(x)
    if x.numel() == 0:
        return out
    dense = dense_layout(x)
    result = out if out.stride() == dense.stride() else torch.empty_like(dense)
    tuned = blocks_for("gated_ffn", x.shape[1], x.dtype)
    sizes = sizes_of(weights)
    pixels, blocks, programs = blocks_of(dense, tuned["BLOCK_P"])
    launch(
        ffn_kernels.forward,
        (programs,),
        *(dense, result, pack(weights), pixels, blocks),
        **sizes,
        ROWS=is_rows(dense),
        REREAD=rereads(dense, sizes),
        PRECISION=precision(),
        **tuned,
    )
    return out if result is out else out.copy_(result)


def gated_ffn_backward(grad: Tensor, x: Tensor, weights: FFNWeights) -> list[Tensor]:
    """Gradients of `gated_ffn` for those of x and the weights that require one, in order."""
    inputs = dict(zip(("x", *weights._fields), (x, *weights), strict=True))
    wanted = {name: tensor for name, tensor in inputs.items() if tensor is not None and tensor.requires_grad}
    found = {name: torch.zeros_like(tensor) for name, tensor in wanted.items()}
    if x.numel() == 0 or not wanted:
        return list(found.values())
    dense = dense_layout(x)
    grad = grad.contiguous(memory_format=torch.channels_last if is_rows(dense) else torch.contiguous_format)
    of_x = torch.empty_like(dense)
    sums = _run_backward(grad, dense, of_x, weights, keep=bool(wanted.keys() - {"x"}))
    for name, tensor in found.items():
        tensor.copy_(of_x if name == "x" else sums[name].reshape(tensor.shape))
    return list(found.values())


def _run_backward(grad: Tensor, x: Tensor, of_x: Tensor, weights: FFNWeights, keep: bool) -> dict[str, Tensor]:
    """Writes `of_x` and returns float32 gradients of the weights by name, 0 unless `keep`."""
    channels, hidden = weights.project_out.shape[:2]
    tuned, sizes, packed = blocks_for("gated_ffn_backward", channels, x.dtype), sizes_of(weights), pack(weights)
    pixels, blocks, programs = blocks_of(x, tuned["BLOCK_P"])
    padded, cp = sizes["HIDDEN"], sizes["PIECES"] * sizes["PIECE"]
    row_bytes = (3 * padded + 2 * cp) * x.element_size()
    at_once = max(1, BAND_BYTES // (row_bytes * tuned["BLOCK_P"])) if keep else programs
    products = x.new_zeros(3, padded, cp, dtype=torch.float32)
    norm = x.new_zeros(2, cp, dtype=torch.float32)
    bias = x.new_zeros(2, padded, dtype=torch.float32)
    for first in range(0, programs, at_once):
        count = min(at_once, programs - first)
        band = _band(x, count, count * tuned["BLOCK_P"], padded, cp) if keep else None
        launch(
            ffn_backward_kernels.backward,
            (count,),
            *(x, grad, of_x, packed, band, pixels, blocks, first),
            **sizes,
            ROWS=is_rows(x),
            REREAD=rereads(x, sizes),
            PRECISION=precision(),
            **tuned,
        )
        if band is not None:
            products += _products(band, tuned["BLOCK_P"], sizes)
            norm += band.norm.sum(0)
            if weights.project_in_bias is not None:
                bias += band.hidden[:, : 2 * padded].sum(0, dtype=torch.float32).view(2, padded)
    return {
        "norm_weight": norm[0, :channels],
        "norm_bias": norm[1, :channels],
        "project_in": products[:2, :hidden, :channels],
        "project_out": products[2, :hidden, :channels].T,
        "project_in_bias": bias[:, :hidden],
        "project_out_bias": grad.sum((0, 2, 3), dtype=torch.float32),
    }


def _band(x: Tensor, blocks: int, rows: int, hidden: int, channels: int) -> Band:
    return Band(
        x.new_empty(rows, 3 * hidden),
        x.new_empty(rows, 2 * channels),
        x.new_empty(blocks, 2, channels, dtype=torch.float32),
    )


def _products(band: Band, block: int, sizes: dict[str, int]) -> Tensor:
    """(3, HIDDEN, CP) float32: the band's part of the gradients of both projections."""
    rows, padded = band.hidden.shape[0], sizes["HIDDEN"]
    tuned = blocks_for("gated_ffn_weights", sizes["C"], band.hidden.dtype)
    tuned["BLOCK_P"] = min(block, tuned["BLOCK_P"])
    chunks = 3 * padded // tuned["BLOCK_H"]
    blocks_each = triton.cdiv(rows // block, triton.cdiv(PROGRAMS, chunks))
    shares = triton.cdiv(rows // block, blocks_each)
    out = band.hidden.new_empty(shares, 3, padded, sizes["PIECES"] * sizes["PIECE"], dtype=torch.float32)
    launch(
        ffn_backward_kernels.weight_gradients,
        (chunks, shares),
        *(band, out, rows, blocks_each * block),
        **{name: sizes[name] for name in ("HIDDEN", "PIECES", "PIECE")},
        PRECISION=precision(),
        **tuned,
    )
    return out.sum(0)


# ---- layout ----------------------------------------------------------------------------------------------------------


def blocks_of(x: Tensor, block: int) -> tuple[int, int, int]:
    """(pixels of an image, its blocks, total blocks); in channels_last the batch counts as one image."""
    batch, _, height, width = x.shape
    images, pixels = (1, batch * height * width) if is_rows(x) else (batch, height * width)
    blocks = triton.cdiv(pixels, block)
    return pixels, blocks, images * blocks


# ---- weights ---------------------------------------------------------------------------------------------------------


def sizes_of(weights: FFNWeights) -> dict[str, int]:
    """C, HIDDEN, PIECES and PIECE of the kernels; one piece or three, whichever needs less padding of C."""
    channels, hidden = weights.project_out.shape[:2]
    pieces = min((1, 3), key=lambda pieces: pieces * _piece(channels, pieces))
    return {
        "C": channels,
        "HIDDEN": triton.cdiv(hidden, HIDDEN_MULTIPLE) * HIDDEN_MULTIPLE,
        "PIECES": pieces,
        "PIECE": _piece(channels, pieces),
    }


def rereads(x: Tensor, sizes: dict[str, int]) -> bool:
    """REREAD of the kernels: x's channels do not fit the registers of a product in float32."""
    return x.dtype == torch.float32 and sizes["PIECE"] > WIDEST_PIECE


def _piece(channels: int, pieces: int) -> int:
    return max(16, triton.next_power_of_2(triton.cdiv(channels, pieces)))


def pack(weights: FFNWeights) -> PackedFFN:
    """The packed weights of the kernels, cached for each version of a parameter."""
    sizes = sizes_of(weights)
    padded = (sizes["HIDDEN"], sizes["PIECES"] * sizes["PIECE"])

    def made(source: Tensor | None, how: Any) -> Tensor | None:
        return (
            None
            if source is None
            else packed_weight([source], (how, padded), lambda: how(source, *padded).contiguous())
        )

    return PackedFFN(
        weights.norm_weight,
        weights.norm_bias,
        made(weights.project_in, _packed_in),
        made(weights.project_out, _packed_out),
        made(weights.project_in_bias, _packed_in_bias),
        weights.project_out_bias,
    )


def _packed_in(matrix: Tensor, hidden: int, channels: int) -> Tensor:
    """(2 hid, C, 1, 1) -> (2, HIDDEN, CP)."""
    rows = matrix.flatten(1).unflatten(0, (2, -1))
    return F.pad(rows, (0, channels - rows.shape[2], 0, hidden - rows.shape[1]))


def _packed_out(matrix: Tensor, hidden: int, channels: int) -> Tensor:
    """(C, hid, 1, 1) -> (HIDDEN, CP)."""
    rows = matrix.flatten(1).T
    return F.pad(rows, (0, channels - rows.shape[1], 0, hidden - rows.shape[0]))


def _packed_in_bias(bias: Tensor, hidden: int, channels: int) -> Tensor:
    """(2 hid,) -> (2, HIDDEN)."""
    halves = bias.unflatten(0, (2, -1))
    return F.pad(halves, (0, hidden - halves.shape[1]))
