"""Backward kernels of gated_ffn. Symbols and memory layout are those of ffn_kernels.py.

With g = dL/dy, a = h1 * h2, s = (x - mean) / deviation, n = s * gamma + beta:

    da = g W_out        dh1 = da * h2    dh2 = da * h1        dn = dh1 W_in1 + dh2 W_in2
    dx = g + (dn gamma - mean(dn gamma) - s mean(dn gamma s)) / deviation
    dW_out = g^T a      dW_in = [dh1, dh2]^T n      dgamma = sum dn s      dbeta = sum dn      (sums over pixels)

`backward` computes n, h1 and h2 again from x and stores the factors of the sums over pixels for a band of blocks, and
its sums for gamma and beta in one row per program. `weight_gradients` multiplies the factors, each program a share of
the pixels; torch adds the shares. There are no atomics, so the same input gives the same bits.

Per pixel, S of an element: `backward` moves 3 C S bytes (x and grad read, dx written) and takes 5 C hid MACs, 2 C hid
of them to compute h1 and h2 again. The gradients of the weights take 2 (3 hid + 2 CP) S bytes (the band, written and
read) and 3 C hid MACs more.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from swintormer_kernels.backends.triton.ffn_kernels import (
    add_from_hidden,
    channels,
    halves,
    halves_reread,
    load_pieces,
    moments,
    normed,
    place,
    row_sum,
    standardised,
    store_pieces,
    to_hidden,
    to_hidden_reread,
)
from swintormer_kernels.backends.triton.runtime import bound, dot, narrow, widen


class Band(NamedTuple):
    """Factors of the sums over the pixels of a band of blocks. A row is a pixel, 0 after the last pixel."""

    hidden: Any  # (rows, 3 HIDDEN): dh1, dh2, a
    sides: Any  # (rows, 2 CP): n, g
    norm: Any  # (blocks, 2, CP) float32: a block's part of dgamma and dbeta


@triton.jit
def keep_hidden(band, row, first, dh1, dh2, a, HIDDEN: tl.constexpr, BLOCK_H: tl.constexpr):
    """Write a chunk of hidden channels into the band."""
    spot = band.hidden + row * (3 * HIDDEN) + first + tl.arange(0, BLOCK_H)[None, :]
    tl.store(spot, dh1)
    tl.store(spot + HIDDEN, dh2)
    tl.store(spot + 2 * HIDDEN, a)


@triton.jit
def keep_piece(band, row, n, g, ds, d, NUMBER: tl.constexpr, PIECES: tl.constexpr, PIECE: tl.constexpr):
    """Write piece NUMBER of n and g into the band, and the block's sums of ds = dn s and d = dn."""
    CP: tl.constexpr = PIECES * PIECE
    channel = NUMBER * PIECE + tl.arange(0, PIECE)
    side = band.sides + row * (2 * CP) + channel[None, :]
    tl.store(side, n)
    tl.store(side + CP, g)
    norm = band.norm + tl.program_id(0) * (2 * CP) + channel
    tl.store(norm, tl.sum(ds, 0))
    tl.store(norm + CP, tl.sum(d, 0))


@triton.jit
def norm_piece(d, s, g, mean_d, mean_ds, scale):
    """A piece of dx."""
    return widen(g) + scale * (d - mean_d - s * mean_ds)


@triton.jit(do_not_specialize=["pixels", "blocks", "first_block"])
def backward(x, grad, dx, weights, band, pixels, blocks, first_block, C: tl.constexpr, HIDDEN: tl.constexpr,
             PIECES: tl.constexpr, PIECE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_H: tl.constexpr,
             ROWS: tl.constexpr, REREAD: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """dx, and the band unless it is None, for the blocks starting at first_block."""
    CP: tl.constexpr = PIECES * PIECE
    dtype: tl.constexpr = x.dtype.element_ty
    origin, valid = place(first_block + tl.program_id(0), pixels, blocks, C, BLOCK_P, ROWS)
    row = (tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P))[:, None]
    x0, x1, x2 = load_pieces(x + origin, valid, pixels, C, BLOCK_P, PIECES, PIECE, ROWS)
    if REREAD:
        mean, scale = moments(x0, x1, x2, C, PIECES, PIECE)
    else:
        n0, n1, n2 = normed(widen(x0), widen(x1), widen(x2), weights, dtype, C, PIECES, PIECE)
        g0, g1, g2 = load_pieces(grad + origin, valid, pixels, C, BLOCK_P, PIECES, PIECE, ROWS)
    d0 = tl.zeros((BLOCK_P, PIECE), tl.float32)
    d1, d2 = d0, d0
    for first in range(0, HIDDEN, BLOCK_H):
        if REREAD:
            h1, h2 = halves_reread(
                x + origin, mean, scale, weights, first, valid, pixels, C, HIDDEN, CP, BLOCK_P, BLOCK_H, ROWS, PRECISION
            )
            da = to_hidden_reread(
                grad + origin, weights.project_out, first, valid, pixels, C, CP, BLOCK_P, BLOCK_H, ROWS, PRECISION
            )
        else:
            h1, h2 = halves(n0, n1, n2, weights, first, HIDDEN, PIECES, PIECE, BLOCK_H, PRECISION)
            da = to_hidden(g0, g1, g2, weights.project_out, first, PIECES, PIECE, BLOCK_H, PRECISION)
        dh1, dh2 = narrow(da * h2, dtype), narrow(da * h1, dtype)
        if band is not None:
            keep_hidden(band, row, first, dh1, dh2, narrow(h1 * h2, dtype), HIDDEN, BLOCK_H)
        second = weights.project_in + HIDDEN * CP
        d0, d1, d2 = add_from_hidden(dh1, d0, d1, d2, weights.project_in, first, PIECES, PIECE, BLOCK_H, PRECISION)
        d0, d1, d2 = add_from_hidden(dh2, d0, d1, d2, second, first, PIECES, PIECE, BLOCK_H, PRECISION)

    x0, x1, x2 = load_pieces(x + origin, valid, pixels, C, BLOCK_P, PIECES, PIECE, ROWS)
    s0, s1, s2, scale = standardised(widen(x0), widen(x1), widen(x2), C, PIECES, PIECE)
    if REREAD and band is not None:
        n0, n1, n2 = normed(x0, x1, x2, weights, dtype, C, PIECES, PIECE)
    g0, g1, g2 = load_pieces(grad + origin, valid, pixels, C, BLOCK_P, PIECES, PIECE, ROWS)
    if band is not None:
        keep_piece(band, row, n0, g0, d0 * s0, d0, 0, PIECES, PIECE)
        if PIECES == 3:
            keep_piece(band, row, n1, g1, d1 * s1, d1, 1, PIECES, PIECE)
            keep_piece(band, row, n2, g2, d2 * s2, d2, 2, PIECES, PIECE)
    d0 = d0 * channels(weights.norm_weight, 0, C, PIECE)
    if PIECES == 3:
        d1 = d1 * channels(weights.norm_weight, 1, C, PIECE)
        d2 = d2 * channels(weights.norm_weight, 2, C, PIECE)
    mean_d = row_sum(d0, d1, d2, PIECES) * (1.0 / C)
    mean_ds = row_sum(d0 * s0, d1 * s1, d2 * s2, PIECES) * (1.0 / C)
    d0 = norm_piece(d0, s0, g0, mean_d, mean_ds, scale)
    if PIECES == 3:
        d1 = norm_piece(d1, s1, g1, mean_d, mean_ds, scale)
        d2 = norm_piece(d2, s2, g2, mean_d, mean_ds, scale)
    store_pieces(dx + origin, d0, d1, d2, valid, pixels, C, BLOCK_P, PIECES, PIECE, ROWS)


@triton.jit(do_not_specialize=["rows", "share"])
def weight_gradients(band, out, rows, share, HIDDEN: tl.constexpr, PIECES: tl.constexpr, PIECE: tl.constexpr,
                     BLOCK_P: tl.constexpr, BLOCK_H: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """out (shares, 3 HIDDEN, CP) float32: [dh1, dh2]^T n and a^T g over a share of the rows; BLOCK_P divides both.

    Grid: (3 HIDDEN / BLOCK_H, shares). Bytes per row: (3 HIDDEN + 3 CP HIDDEN / BLOCK_H) S; n or g is read once for
    each chunk of hidden channels, mostly from the L2 cache.
    """
    CP: tl.constexpr = PIECES * PIECE
    column = tl.program_id(0) * BLOCK_H
    side = band.sides + column // (2 * HIDDEN) * CP + tl.arange(0, PIECE)[None, :]
    t0 = tl.zeros((BLOCK_H, PIECE), tl.float32)
    t1, t2 = t0, t0
    begin = tl.program_id(1) * share
    for start in range(bound(begin), bound(tl.minimum(begin + share, rows)), BLOCK_P):
        row = (start + tl.arange(0, BLOCK_P)).to(tl.int64)[:, None]
        h = tl.trans(tl.load(band.hidden + row * (3 * HIDDEN) + column + tl.arange(0, BLOCK_H)[None, :]))
        t0 = dot(h, tl.load(side + row * (2 * CP)), t0, PRECISION)
        if PIECES == 3:
            t1 = dot(h, tl.load(side + row * (2 * CP) + PIECE), t1, PRECISION)
            t2 = dot(h, tl.load(side + row * (2 * CP) + 2 * PIECE), t2, PRECISION)
    target = out + (tl.program_id(1) * (3 * HIDDEN) + column + tl.arange(0, BLOCK_H)[:, None]) * CP
    target += tl.arange(0, PIECE)[None, :]
    tl.store(target, t0)
    if PIECES == 3:
        tl.store(target + PIECE, t1)
        tl.store(target + 2 * PIECE, t2)
