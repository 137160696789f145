"""Kernel of norm_silu_conv3x3: GroupNorm, SiLU, 3x3 convolution, bias, embedding and skip as an implicit GEMM.

    out[p] = sum over taps t of W[t]^T a[p + t] + bias + embedding + skip[p],  a = silu((x - mean) * factor + offset)

Memory layout (channels_last): per image x is (pixels, C) with row stride PITCH, out (pixels, OUT) contiguous, and skip
(pixels, OUT) with row stride SKIP_PITCH. a is 0 outside the image. The table (B, 4, C) holds mean, rstd, factor and
offset, see group_norm_kernels.py. Packed weights (norm_silu_conv3x3.py): (9, CP, OP), taps row by row, C and OUT padded
with zeros.

A program computes BLOCK_P consecutive pixels q of an image by BLOCK_N output channels. The nine taps are three rows of
three: with a[q + row] in registers it updates three sums, one for each column of the taps,

    left[q] += W[row, 0]^T a[q + row],  middle[q] += W[row, 1]^T ...,  right[q] += W[row, 2]^T ...
    out[p] = left[p - 1] + middle[p] + right[p + 1]       each 0 where that would come from another row of the image

so x is read, normalised and passed through SiLU three times per block of output channels instead of nine times. If
BLOCK_P is no multiple of the image width, the first and last pixel (`margin` 1) only serve their neighbours.

Bytes moved, S of an element: x from memory once and 3 OUT / BLOCK_N times from the L2 cache, skip and out once:
(C + 2 OUT) S per pixel; weights 9 C OUT S from the L2 cache for each BLOCK_P pixels. MACs per pixel: 9 C OUT. Products
are in x's dtype, sums in float32. There is one exponential and one division per 3 BLOCK_N MACs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from swintormer_kernels.backends.triton.group_norm_kernels import silu
from swintormer_kernels.backends.triton.runtime import dot, narrow, widen


class PackedConv(NamedTuple):
    """Packed arguments of the kernel; None for absent tensors."""

    weight: Any  # (9, CP, OP)
    bias: Any  # (OUT,)
    embedding: Any  # (B, OUT)
    skip: Any  # (B, OUT, H, W) in rows SKIP_PITCH apart


@triton.jit
def from_neighbour(y, step: tl.constexpr, there, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr):
    """Row i of the result is row i + step of y, or 0 where `there` (BLOCK_P,) is false."""
    row = tl.arange(0, BLOCK_P) + step
    row = tl.minimum(tl.maximum(row, 0), BLOCK_P - 1)
    moved = tl.gather(y, tl.broadcast_to(row[:, None], (BLOCK_P, BLOCK_N)), 0)
    return tl.where(there[:, None], moved, 0.0)


@triton.jit(do_not_specialize=["pixels", "width", "blocks", "margin"])
def forward(x, out, table, conv, pixels, width, blocks, margin, C: tl.constexpr, OUT: tl.constexpr, CP: tl.constexpr,
            OP: tl.constexpr, PITCH: tl.constexpr, SKIP_PITCH: tl.constexpr, BLOCK_P: tl.constexpr,
            BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """One program per block of pixels of each image (axis 0) and block of output channels (axis 1)."""
    image = tl.program_id(0) // blocks
    first = tl.program_id(0) % blocks * (BLOCK_P - 2 * margin) - margin
    row = tl.arange(0, BLOCK_P)
    pixel, column = first + row, tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    x += image.to(tl.int64) * pixels * PITCH + first.to(tl.int64) * PITCH
    table += image * 4 * C
    left = tl.zeros((BLOCK_P, BLOCK_N), tl.float32)
    middle = tl.zeros((BLOCK_P, BLOCK_N), tl.float32)
    right = tl.zeros((BLOCK_P, BLOCK_N), tl.float32)
    for at in range(0, CP, BLOCK_C):
        channel = at + tl.arange(0, BLOCK_C)
        exists = channel < C
        mean = tl.load(table + channel, exists, other=0)[None, :]
        factor = tl.load(table + 2 * C + channel, exists, other=0)[None, :]
        offset = tl.load(table + 3 * C + channel, exists, other=0)[None, :]
        weight = conv.weight + channel[:, None] * OP + column[None, :]
        for tap in tl.static_range(3):
            source = pixel + (tap - 1) * width
            inside = ((source >= 0) & (source < pixels))[:, None]
            there = inside & exists[None, :] if CP > C else inside
            place = x + (tap - 1) * width.to(tl.int64) * PITCH + row[:, None] * PITCH + channel[None, :]
            value = widen(tl.load(place, there, other=0))
            value = tl.where(there, silu((value - mean) * factor + offset), 0.0)
            a = narrow(value, conv.weight.dtype.element_ty)
            left = dot(a, tl.load(weight + 3 * tap * CP * OP), left, PRECISION)
            middle = dot(a, tl.load(weight + (3 * tap + 1) * CP * OP), middle, PRECISION)
            right = dot(a, tl.load(weight + (3 * tap + 2) * CP * OP), right, PRECISION)
    y = middle + from_neighbour(left, -1, pixel % width > 0, BLOCK_P, BLOCK_N)
    y += from_neighbour(right, 1, pixel % width < width - 1, BLOCK_P, BLOCK_N)
    store(out, y, conv, image, pixel, column, pixels, margin, OUT, SKIP_PITCH, BLOCK_P)


@triton.jit
def store(out, y, conv, image, pixel, column, pixels, margin, OUT: tl.constexpr, SKIP_PITCH: tl.constexpr,
          BLOCK_P: tl.constexpr):  # fmt: skip
    """Adds bias, embedding and skip, and stores this program's pixels."""
    row, exists = tl.arange(0, BLOCK_P), column < OUT
    kept = ((row >= margin) & (row < BLOCK_P - margin) & (pixel < pixels))[:, None] & exists[None, :]
    origin = image.to(tl.int64) * pixels
    if conv.bias is not None:
        y += widen(tl.load(conv.bias + column, exists, other=0))[None, :]
    if conv.embedding is not None:
        y += widen(tl.load(conv.embedding + image * OUT + column, exists, other=0))[None, :]
    place = (origin + pixel)[:, None]
    if conv.skip is not None:
        y += widen(tl.load(conv.skip + place * SKIP_PITCH + column[None, :], kept, other=0))
    tl.store(out + place * OUT + column[None, :], narrow(y, out.dtype.element_ty), kept)
