"""Forward kernel of gated_ffn: one program computes the whole FFN for BLOCK_P pixels.

    y = x + project_out(h1 * h2) + bias,  [h1, h2] = project_in(n) + bias,  n = LayerNorm(x)

An image has `pixels` pixels in `blocks` blocks. Memory layout, ROWS: channels_last, where the whole batch counts as one
image; otherwise NCHW. Packed weights (gated_ffn.py): norm (C,), project_in (2, HIDDEN, CP), project_out transposed
(HIDDEN, CP), with HIDDEN the hidden channels padded with zeros to a multiple of 64 and CP = PIECES * PIECE the padded
channels. Products are in x's dtype; sums and the norm are in float32.

C = 3 * 2^k (48 to 384) is stored in three tensors of 2^k channels, because the sides of a tensor are powers of two and
a single tensor would be padded by a third. C then needs no padding; the padding of the hidden channels is 1/128, 1/256,
2/512 and 3/1024 at C = 48, 96, 192, 384. C = 24 is one piece of 32, because three would be padded to 16 each.

A product of float32 is done by multiply-adds on NVIDIA, for which a thread keeps all channels of its rows of n. Pieces
of more than 64 channels do not fit its registers (at C = 384, 5.7 KB a thread spilled on sm_90, 7.5 KB backward). With
REREAD, a program therefore reads x again, from the L1 or L2 cache, and normalises CHUNK channels at a time.

                     bytes moved per pixel, S of an element                     MACs per pixel
forward              2 C S: x read, y written                                   3 C hid
backward             3 C S: x and grad read, dx written (twice in the program,  5 C hid
                     the second time from the L2 cache)
  for the weights    2 (3 hid + 2 CP) S: [dh1, dh2, h1 h2] and [n, grad],       3 C hid
                     written by the band and read by the products
Weights are read once in each program, from the L2 cache: 3 C hid S for 3 C hid BLOCK_P MACs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from swintormer_kernels.backends.triton.runtime import dot, narrow, widen

CHUNK = tl.constexpr(32)  # channels that are read at once with REREAD; divides the padded channels of such sizes


class PackedFFN(NamedTuple):
    """Packed weights; biases are None if the network has none."""

    norm_weight: Any  # (C,)
    norm_bias: Any  # (C,)
    project_in: Any  # (2, HIDDEN, CP)
    project_out: Any  # (HIDDEN, CP)
    project_in_bias: Any  # (2, HIDDEN)
    project_out_bias: Any  # (CP,)


# ---- blocks of pixels, in one or three pieces of channels ------------------------------------------------------------


@triton.jit
def place(block, pixels, blocks, C: tl.constexpr, BLOCK_P: tl.constexpr, ROWS: tl.constexpr):
    """Offset of a block's first element in the batch, and the mask (BLOCK_P,) of its pixels inside the image."""
    image = block // blocks
    first = block % blocks * BLOCK_P
    origin = image.to(tl.int64) * pixels * C + first.to(tl.int64) * (C if ROWS else 1)
    return origin, first + tl.arange(0, BLOCK_P) < pixels


@triton.jit
def spots(
    pixels, NUMBER: tl.constexpr, C: tl.constexpr, PIECE: tl.constexpr, BLOCK_P: tl.constexpr, ROWS: tl.constexpr
):
    """Offsets (BLOCK_P, PIECE) of piece NUMBER from the block's first element."""
    pixel = tl.arange(0, BLOCK_P)[:, None]
    channel = NUMBER * PIECE + tl.arange(0, PIECE)[None, :]
    if ROWS:
        offsets = pixel * C + channel
    else:
        offsets = channel * pixels + pixel  # 32 bits suffice (layout.dense_layout); with 64 the backward spills
    return offsets


@triton.jit
def exists(valid, NUMBER: tl.constexpr, C: tl.constexpr, PIECE: tl.constexpr):
    """Mask (BLOCK_P, PIECE or 1) of the elements of piece NUMBER that are pixels of the image and channels of x."""
    mask = valid[:, None]
    if (NUMBER + 1) * PIECE > C:
        mask = mask & (NUMBER * PIECE + tl.arange(0, PIECE)[None, :] < C)
    return mask


@triton.jit
def load_piece(x, valid, pixels, NUMBER: tl.constexpr, C: tl.constexpr, BLOCK_P: tl.constexpr, PIECE: tl.constexpr,
               ROWS: tl.constexpr):  # fmt: skip
    """Piece NUMBER of the block that begins at x, (BLOCK_P, PIECE); 0 where `exists` is false."""
    return tl.load(x + spots(pixels, NUMBER, C, PIECE, BLOCK_P, ROWS), exists(valid, NUMBER, C, PIECE), other=0)


@triton.jit
def load_pieces(x, valid, pixels, C: tl.constexpr, BLOCK_P: tl.constexpr, PIECES: tl.constexpr, PIECE: tl.constexpr,
                ROWS: tl.constexpr):  # fmt: skip
    """All pieces. With one piece, the other two are unused copies of it, here and below."""
    x0 = load_piece(x, valid, pixels, 0, C, BLOCK_P, PIECE, ROWS)
    x1, x2 = x0, x0
    if PIECES == 3:
        x1 = load_piece(x, valid, pixels, 1, C, BLOCK_P, PIECE, ROWS)
        x2 = load_piece(x, valid, pixels, 2, C, BLOCK_P, PIECE, ROWS)
    return x0, x1, x2


@triton.jit
def store_pieces(x, y0, y1, y2, valid, pixels, C: tl.constexpr, BLOCK_P: tl.constexpr, PIECES: tl.constexpr,
                 PIECE: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    """The inverse of `load_pieces`, from float32."""
    dtype: tl.constexpr = x.dtype.element_ty
    tl.store(x + spots(pixels, 0, C, PIECE, BLOCK_P, ROWS), narrow(y0, dtype), exists(valid, 0, C, PIECE))
    if PIECES == 3:
        tl.store(x + spots(pixels, 1, C, PIECE, BLOCK_P, ROWS), narrow(y1, dtype), exists(valid, 1, C, PIECE))
        tl.store(x + spots(pixels, 2, C, PIECE, BLOCK_P, ROWS), narrow(y2, dtype), exists(valid, 2, C, PIECE))


# ---- LayerNorm over the channels of each pixel -----------------------------------------------------------------------


@triton.jit
def channels(vector, NUMBER: tl.constexpr, C: tl.constexpr, PIECE: tl.constexpr):
    """(1, PIECE) float32: piece NUMBER of a vector (C,), zero past its end."""
    channel = NUMBER * PIECE + tl.arange(0, PIECE)
    return widen(tl.load(vector + channel, channel < C, other=0))[None, :]


@triton.jit
def centred(y, mean, NUMBER: tl.constexpr, C: tl.constexpr, PIECE: tl.constexpr):
    """y - mean, zero past the channels' end."""
    difference = y - mean
    if (NUMBER + 1) * PIECE > C:
        difference = tl.where(NUMBER * PIECE + tl.arange(0, PIECE)[None, :] < C, difference, 0.0)
    return difference


@triton.jit
def row_sum(y0, y1, y2, PIECES: tl.constexpr):
    """(BLOCK_P, 1): sum over the channels."""
    total = tl.sum(y0, 1)
    if PIECES == 3:
        total += tl.sum(y1, 1) + tl.sum(y2, 1)
    return total[:, None]


@triton.jit
def standardised(y0, y1, y2, C: tl.constexpr, PIECES: tl.constexpr, PIECE: tl.constexpr):
    """(y - mean) / sqrt(variance + 1e-5) in pieces, and 1 / sqrt(variance + 1e-5); the variance is the biased one."""
    mean = row_sum(y0, y1, y2, PIECES) * (1.0 / C)
    y0 = centred(y0, mean, 0, C, PIECE)
    if PIECES == 3:
        y1 = centred(y1, mean, 1, C, PIECE)
        y2 = centred(y2, mean, 2, C, PIECE)
    scale = tl.rsqrt(row_sum(y0 * y0, y1 * y1, y2 * y2, PIECES) * (1.0 / C) + 1e-5)
    return y0 * scale, y1 * scale, y2 * scale, scale


@triton.jit
def moments(y0, y1, y2, C: tl.constexpr, PIECES: tl.constexpr, PIECE: tl.constexpr):
    """(BLOCK_P, 1) each: the mean over the channels and 1 / sqrt(variance + 1e-5)."""
    _, _, _, scale = standardised(y0, y1, y2, C, PIECES, PIECE)
    return row_sum(y0, y1, y2, PIECES) * (1.0 / C), scale


@triton.jit
def normed(y0, y1, y2, weights, DTYPE: tl.constexpr, C: tl.constexpr, PIECES: tl.constexpr, PIECE: tl.constexpr):
    """LayerNorm of y, in pieces of DTYPE."""
    y0, y1, y2, _ = standardised(y0, y1, y2, C, PIECES, PIECE)
    n0 = y0 * channels(weights.norm_weight, 0, C, PIECE) + channels(weights.norm_bias, 0, C, PIECE)
    n0 = narrow(n0, DTYPE)
    n1, n2 = n0, n0
    if PIECES == 3:
        n1 = y1 * channels(weights.norm_weight, 1, C, PIECE) + channels(weights.norm_bias, 1, C, PIECE)
        n2 = y2 * channels(weights.norm_weight, 2, C, PIECE) + channels(weights.norm_bias, 2, C, PIECE)
        n1, n2 = narrow(n1, DTYPE), narrow(n2, DTYPE)
    return n0, n1, n2


# ---- products with a chunk of BLOCK_H hidden channels ----------------------------------------------------------------


@triton.jit
def hidden_rows(matrix, first, NUMBER: tl.constexpr, PIECES: tl.constexpr, PIECE: tl.constexpr, BLOCK_H: tl.constexpr):
    """(BLOCK_H, PIECE): piece NUMBER of the rows starting at `first` of a packed matrix (HIDDEN, CP)."""
    row = first + tl.arange(0, BLOCK_H)[:, None]
    return tl.load(matrix + row * (PIECES * PIECE) + NUMBER * PIECE + tl.arange(0, PIECE)[None, :])


@triton.jit
def to_hidden(n0, n1, n2, matrix, first, PIECES: tl.constexpr, PIECE: tl.constexpr, BLOCK_H: tl.constexpr,
              PRECISION: tl.constexpr):  # fmt: skip
    """(BLOCK_P, BLOCK_H) float32: n @ rows.T, over the channels."""
    h = tl.zeros((n0.shape[0], BLOCK_H), tl.float32)
    h = dot(n0, tl.trans(hidden_rows(matrix, first, 0, PIECES, PIECE, BLOCK_H)), h, PRECISION)
    if PIECES == 3:
        h = dot(n1, tl.trans(hidden_rows(matrix, first, 1, PIECES, PIECE, BLOCK_H)), h, PRECISION)
        h = dot(n2, tl.trans(hidden_rows(matrix, first, 2, PIECES, PIECE, BLOCK_H)), h, PRECISION)
    return h


@triton.jit
def read_chunk(x, start, valid, pixels, C: tl.constexpr, BLOCK_P: tl.constexpr, ROWS: tl.constexpr):
    """(BLOCK_P, CHUNK): the channels starting at `start` of the block that begins at x, 0 where there are none."""
    pixel = tl.arange(0, BLOCK_P)[:, None]
    channel = start + tl.arange(0, CHUNK)[None, :]
    if ROWS:
        offsets = pixel * C + channel
    else:
        offsets = channel * pixels + pixel
    return tl.load(x + offsets, valid[:, None] & (channel < C), other=0)


@triton.jit
def columns(matrix, first, start, CP: tl.constexpr, BLOCK_H: tl.constexpr):
    """(CHUNK, BLOCK_H): the transposed rows starting at `first` of a packed matrix, in the channels from `start` on."""
    row = first + tl.arange(0, BLOCK_H)[None, :]
    return tl.load(matrix + row * CP + start + tl.arange(0, CHUNK)[:, None])


@triton.jit
def to_hidden_reread(x, matrix, first, valid, pixels, C: tl.constexpr, CP: tl.constexpr, BLOCK_P: tl.constexpr,
                     BLOCK_H: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """`to_hidden` of the block that begins at x, read in chunks."""
    h = tl.zeros((BLOCK_P, BLOCK_H), tl.float32)
    for start in range(0, CP, CHUNK):
        part = read_chunk(x, start, valid, pixels, C, BLOCK_P, ROWS)
        h = dot(part, columns(matrix, first, start, CP, BLOCK_H), h, PRECISION)
    return h


@triton.jit
def halves_reread(x, mean, scale, weights, first, valid, pixels, C: tl.constexpr, HIDDEN: tl.constexpr,
                  CP: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_H: tl.constexpr, ROWS: tl.constexpr,
                  PRECISION: tl.constexpr):  # fmt: skip
    """`halves` of the block that begins at x, read in chunks; mean and scale (BLOCK_P, 1) of its pixels."""
    h1 = tl.zeros((BLOCK_P, BLOCK_H), tl.float32)
    h2 = h1
    for start in range(0, CP, CHUNK):
        channel = start + tl.arange(0, CHUNK)
        gamma = tl.load(weights.norm_weight + channel, channel < C, other=0)
        beta = tl.load(weights.norm_bias + channel, channel < C, other=0)
        n = (read_chunk(x, start, valid, pixels, C, BLOCK_P, ROWS) - mean) * scale * gamma[None, :] + beta[None, :]
        h1 = dot(n, columns(weights.project_in, first, start, CP, BLOCK_H), h1, PRECISION)
        h2 = dot(n, columns(weights.project_in + HIDDEN * CP, first, start, CP, BLOCK_H), h2, PRECISION)
    return add_bias(h1, h2, weights, first, HIDDEN, BLOCK_H)


@triton.jit
def add_from_hidden(h, y0, y1, y2, matrix, first, PIECES: tl.constexpr, PIECE: tl.constexpr, BLOCK_H: tl.constexpr,
                    PRECISION: tl.constexpr):  # fmt: skip
    """y + h @ rows, pieces of (BLOCK_P, PIECE) float32."""
    y0 = dot(h, hidden_rows(matrix, first, 0, PIECES, PIECE, BLOCK_H), y0, PRECISION)
    if PIECES == 3:
        y1 = dot(h, hidden_rows(matrix, first, 1, PIECES, PIECE, BLOCK_H), y1, PRECISION)
        y2 = dot(h, hidden_rows(matrix, first, 2, PIECES, PIECE, BLOCK_H), y2, PRECISION)
    return y0, y1, y2


@triton.jit
def add_bias(h1, h2, weights, first, HIDDEN: tl.constexpr, BLOCK_H: tl.constexpr):
    """h1 and h2 with the bias of project_in, if there is one."""
    if weights.project_in_bias is not None:
        bias = weights.project_in_bias + first + tl.arange(0, BLOCK_H)
        h1 += widen(tl.load(bias))[None, :]
        h2 += widen(tl.load(bias + HIDDEN))[None, :]
    return h1, h2


@triton.jit
def halves(n0, n1, n2, weights, first, HIDDEN: tl.constexpr, PIECES: tl.constexpr, PIECE: tl.constexpr,
           BLOCK_H: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """h1 and h2 of BLOCK_H hidden channels starting at `first`, (BLOCK_P, BLOCK_H) float32."""
    second = weights.project_in + HIDDEN * PIECES * PIECE
    h1 = to_hidden(n0, n1, n2, weights.project_in, first, PIECES, PIECE, BLOCK_H, PRECISION)
    h2 = to_hidden(n0, n1, n2, second, first, PIECES, PIECE, BLOCK_H, PRECISION)
    return add_bias(h1, h2, weights, first, HIDDEN, BLOCK_H)


@triton.jit(do_not_specialize=["pixels", "blocks"])
def forward(x, out, weights, pixels, blocks, C: tl.constexpr, HIDDEN: tl.constexpr, PIECES: tl.constexpr,
            PIECE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_H: tl.constexpr, ROWS: tl.constexpr,
            REREAD: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """out = gated_ffn(x); one program per block of each image."""
    dtype: tl.constexpr = weights.project_in.dtype.element_ty
    CP: tl.constexpr = PIECES * PIECE
    origin, valid = place(tl.program_id(0), pixels, blocks, C, BLOCK_P, ROWS)
    y0, y1, y2 = load_pieces(x + origin, valid, pixels, C, BLOCK_P, PIECES, PIECE, ROWS)
    y0, y1, y2 = widen(y0), widen(y1), widen(y2)
    if REREAD:
        mean, scale = moments(y0, y1, y2, C, PIECES, PIECE)
    else:
        n0, n1, n2 = normed(y0, y1, y2, weights, dtype, C, PIECES, PIECE)
    # The sums start with x, so that x needs no registers of its own.
    if weights.project_out_bias is not None:
        y0 += channels(weights.project_out_bias, 0, C, PIECE)
        if PIECES == 3:
            y1 += channels(weights.project_out_bias, 1, C, PIECE)
            y2 += channels(weights.project_out_bias, 2, C, PIECE)
    for first in range(0, HIDDEN, BLOCK_H):
        if REREAD:
            h1, h2 = halves_reread(
                x + origin, mean, scale, weights, first, valid, pixels, C, HIDDEN, CP, BLOCK_P, BLOCK_H, ROWS, PRECISION
            )
        else:
            h1, h2 = halves(n0, n1, n2, weights, first, HIDDEN, PIECES, PIECE, BLOCK_H, PRECISION)
        gated = narrow(h1 * h2, dtype)
        y0, y1, y2 = add_from_hidden(gated, y0, y1, y2, weights.project_out, first, PIECES, PIECE, BLOCK_H, PRECISION)
    store_pieces(out + origin, y0, y1, y2, valid, pixels, C, BLOCK_P, PIECES, PIECE, ROWS)
