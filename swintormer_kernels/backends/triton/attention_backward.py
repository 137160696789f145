"""Backward kernels of swda_attention, for a band of windows whose forward intermediates were computed again.

With P = exp(l - m) / (1 + S) of softmax_one, g = dO v^T and D = sum_j P_j g_j = dO . O:

    dl_j = P_j (g_j - D) - [j = argmax l] D / (1 + S)

softmax_one is a softmax with one more logit, which equals the row maximum and has the value 0. The second term is the
gradient of that logit; it is added at the position of the maximum, the first one among equal maxima.

    attended_by_queries    dq, and of each row m, 1 / (1 + S), D, argmax        grid (windows heads, blocks of queries)
    attended_by_keys       dk and dv                                            grid (windows heads, blocks of keys)
    bias_gradient          sum of dl over windows, (groups, heads, N, N)        grid (heads groups, tiles of logits)
    channels_gradient      dq, dk and dv of the channel half                    grid (windows heads)
    convolution_gradient   of its input (T, 3C), of its weights by window       grid (units, blocks of tokens, 3)
    gather_rows            n = LayerNorm(x), the result's gradient (T, C)       grid (windows, blocks of tokens)
    norm_gradient          dx, and of the norm's weights by block               grid (windows, blocks of tokens)

Each program writes its own partial sums, which torch adds: no atomics, and the same bits in each run. Memory layouts
are those of attention_forward.py with a slot for each unit; T tokens of the band are in window order; gradients of q, k
and v have the layout of `after` and x's dtype; sums and the softmax are computed in float32.

Bytes per pixel, S of an element, p = padded d / d: gather_rows 4 C S, attention_forward 2 C S + 6 C p S, queries and
keys 8 C S + 5 C p S in all, channels 2 C S + 3 C p S, convolution 6 C p S + 3 C S, norm_gradient 4 C S, the products of
torch 14 C S. MACs per pixel: those of the forward, 8 C^2 (torch), 4 C N (window half;
C N more where the bias table wants a gradient), 5 C d / 2 (channel half) and 54 C.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from swintormer_kernels.backends.triton.attention_forward import IMAGE, cosines_of_channels, softmax_one_of_channels
from swintormer_kernels.backends.triton.runtime import narrow, widen
from swintormer_kernels.backends.triton.window_parts import (
    LOG2_E,
    MAX_LOG_SCALE,
    NORM_FLOOR,
    first_row,
    logit_scale,
    norm_statistics,
    normalised,
    pixel_offsets,
    places,
    product,
    put_rows,
    regions,
    rows_of,
    tile_of_logits,
)


class Gradients(NamedTuple):
    """Buffers of the backward kernels in addition to those of the forward; W windows and T tokens of the band."""

    attended: Tensor  # (T, C) of `attended`, read
    after: Tensor  # (W * heads * 2, 3, N, padded d) of q, k, v after the convolution
    rows: Tensor  # (W * heads, 4, N) float32: m in powers of two, 1 / (1 + S), D, argmax
    scale: Tensor  # (W * heads, N) float32, of logit_scale, by query
    qkv: Tensor  # (T, 3C) of qkv before the convolution
    dwconv: Tensor  # (W, blocks of tokens, 10, 3C) float32, nine taps and the bias
    bias: Tensor | None  # (groups, heads, N, N) float32, of the logits


class Rows(NamedTuple):
    """(T, C) each, in window order and x's dtype."""

    normed: Tensor  # n
    grad: Tensor  # of the result
    d_normed: Tensor  # of n


class NormGradient(NamedTuple):
    """Outputs of norm_gradient."""

    x: Tensor  # (B, C, H, W)
    norm: Tensor  # (W, blocks of tokens, 2, C) float32, of the norm's weight and bias


# ---- window half -----------------------------------------------------------------------------------------------------


@triton.jit
def head_rows(base, window, t, channel, S: tl.constexpr):
    """Channels of a head from a (T, C) matrix: (tokens, padded d)."""
    j = tl.arange(0, S.padded)
    place = (window.to(tl.int64) * S.area + t)[:, None] * S.channels + channel + j[None, :]
    return tl.load(base + place, mask=(t < S.area)[:, None] & (j < S.head)[None, :], other=0.0)


@triton.jit
def logit_gradient(logits, g, j, maximum, rest, delta, where):
    """(P, dl) of a tile; maximum, rest, delta, where: of its rows, as in `Gradients.rows`."""
    p = tl.exp2(logits - maximum[:, None]) * rest[:, None]
    at_maximum = j[None, :] == where.to(tl.int32)[:, None]
    return p, p * (g - delta[:, None]) - tl.where(at_maximum, (delta * rest)[:, None], 0.0)


@triton.jit
def through_norm(gradient, rows, inverse):
    """Gradient of rows before they were divided by max(norm, 1e-12); rows: after; inverse: of that maximum."""
    along = tl.sum(gradient * rows, 1)
    along = tl.where(inverse * NORM_FLOOR < 1.0, along, 0.0)  # below the floor the divisor is constant
    return (gradient - rows * along[:, None]) * inverse[:, None]


@triton.jit
def row_maxima(q, k_rows, of_queries, window, weights, head, size, S: tl.constexpr):
    """m in powers of two, 1 / (1 + S) and the position of m for a block of queries. window: index in the image."""
    scale, _ = logit_scale(weights, head)
    m = tl.full([S.queries], float("-inf"), tl.float32)
    s = tl.full([S.queries], 0.0, tl.float32)
    where = tl.full([S.queries], 0, tl.int32)
    for start in range(0, S.area, S.keys):
        j = start + tl.arange(0, S.keys)
        of_keys = (j, regions(window, j, size, S))
        logits = tile_of_logits(q, rows_of(k_rows, j, S), of_queries, of_keys, weights, head, scale * LOG2_E, S)
        highest, index = tl.max(logits, 1, return_indices=True)
        where = tl.where(highest > m, start + index, where)
        above = tl.maximum(m, highest)
        s = s * tl.exp2(m - above) + tl.sum(tl.exp2(logits - above[:, None]), 1)
        m = above
    return m, 1.0 / (1.0 + s), where


@triton.jit(do_not_specialize=[*IMAGE, "first"])
def attended_by_queries(weights, buffers, gradients, height, width, shift, first, S: tl.constexpr):
    """dq, the rows' statistics and the gradient of logit_scale."""
    PART: tl.constexpr = S.area * S.padded
    pair, block = tl.program_id(0), tl.program_id(1)
    window, head = pair // S.heads, pair % S.heads
    after = buffers.after + pair.to(tl.int64) * (6 * PART)
    size = (height, width, shift)
    i = block * S.queries + tl.arange(0, S.queries)
    of_queries = (i, regions(first + window, i, size, S))
    q = rows_of(after, i, S)
    maximum, rest, where = row_maxima(q, after + PART, of_queries, first + window, weights, head, size, S)
    d_out = head_rows(gradients.attended, window, i, head * S.head, S)
    delta = tl.sum(widen(d_out) * widen(head_rows(buffers.attended, window, i, head * S.head, S)), 1)
    scale, parameter = logit_scale(weights, head)
    total = tl.full([S.queries, S.padded], 0.0, tl.float32)
    for start in range(0, S.area, S.keys):
        j = start + tl.arange(0, S.keys)
        k, v = rows_of(after + PART, j, S), rows_of(after + 2 * PART, j, S)
        of_keys = (j, regions(first + window, j, size, S))
        logits = tile_of_logits(q, k, of_queries, of_keys, weights, head, scale * LOG2_E, S)
        g = product(d_out, tl.trans(v), tl.full([S.queries, S.keys], 0.0, tl.float32), S)
        _, dl = logit_gradient(logits, g, j, maximum, rest, delta, where)
        total = product(narrow(dl, k.dtype), k, total, S)
    # The sum of dl cos is that of q . (dl k); min(logit_scale, ln 100) has a gradient only up to the bound. One value
    # is stored per query, because Triton 3.6 cannot compile a sum over the row sums of a product for sm_100.
    of_scale = tl.sum(total * widen(q), 1) * scale
    of_scale = tl.where(parameter <= MAX_LOG_SCALE, of_scale, 0.0)
    tl.store(gradients.scale + pair.to(tl.int64) * S.area + i, of_scale, mask=i < S.area)
    inside = i < S.area
    inverse = tl.load(buffers.inverse + pair.to(tl.int64) * (4 * S.area) + i, mask=inside, other=0.0)
    put_rows(gradients.after + pair.to(tl.int64) * (6 * PART), i, through_norm(total * scale, widen(q), inverse), S)
    rows = gradients.rows + pair.to(tl.int64) * (4 * S.area) + i
    tl.store(rows, maximum, mask=inside)
    tl.store(rows + S.area, rest, mask=inside)
    tl.store(rows + 2 * S.area, delta, mask=inside)
    tl.store(rows + 3 * S.area, where.to(tl.float32), mask=inside)


@triton.jit
def tile_gradient(buffers, gradients, tile, window, i, weights, head, size, S: tl.constexpr):
    """q, dO, P and dl of a tile of logits. tile: (k, v, (keys, their regions)); window: (in the band, in the image)."""
    in_band, in_image = window
    k, v, of_keys = tile
    pair = in_band * S.heads + head
    scale, _ = logit_scale(weights, head)
    q = rows_of(buffers.after + pair.to(tl.int64) * (6 * S.area * S.padded), i, S)
    d_out = head_rows(gradients.attended, in_band, i, head * S.head, S)
    logits = tile_of_logits(q, k, (i, regions(in_image, i, size, S)), of_keys, weights, head, scale * LOG2_E, S)
    g = product(d_out, tl.trans(v), tl.full([S.queries, S.keys], 0.0, tl.float32), S)
    rows, inside = gradients.rows + pair.to(tl.int64) * (4 * S.area) + i, i < S.area
    maximum = tl.load(rows, mask=inside, other=float("inf"))  # makes P 0 after the last token
    rest = tl.load(rows + S.area, mask=inside, other=0.0)
    delta = tl.load(rows + 2 * S.area, mask=inside, other=0.0)
    where = tl.load(rows + 3 * S.area, mask=inside, other=0.0)
    p, dl = logit_gradient(logits, g, of_keys[0], maximum, rest, delta, where)
    return q, d_out, p, dl


@triton.jit(do_not_specialize=[*IMAGE, "first"])
def attended_by_keys(weights, buffers, gradients, height, width, shift, first, S: tl.constexpr):
    """dk and dv."""
    PART: tl.constexpr = S.area * S.padded
    pair = tl.program_id(0)
    window, head = pair // S.heads, pair % S.heads
    after = buffers.after + pair.to(tl.int64) * (6 * PART)
    size = (height, width, shift)
    j = tl.program_id(1) * S.keys + tl.arange(0, S.keys)
    of_keys = (j, regions(first + window, j, size, S))
    k, v = rows_of(after + PART, j, S), rows_of(after + 2 * PART, j, S)
    dk = tl.full([S.keys, S.padded], 0.0, tl.float32)
    dv = tl.full([S.keys, S.padded], 0.0, tl.float32)
    for start in range(0, S.area, S.queries):
        i = start + tl.arange(0, S.queries)
        q, d_out, p, dl = tile_gradient(
            buffers, gradients, (k, v, of_keys), (window, first + window), i, weights, head, size, S
        )
        dk = product(tl.trans(narrow(dl, q.dtype)), q, dk, S)
        dv = product(tl.trans(narrow(p, q.dtype)), d_out, dv, S)
    scale, _ = logit_scale(weights, head)
    inverse = tl.load(buffers.inverse + pair.to(tl.int64) * (4 * S.area) + S.area + j, mask=j < S.area, other=0.0)
    out = gradients.after + pair.to(tl.int64) * (6 * PART)
    put_rows(out + PART, j, through_norm(dk * scale, widen(k), inverse), S)
    put_rows(out + 2 * PART, j, dv, S)


@triton.jit(do_not_specialize=[*IMAGE, "first", "windows"])
def bias_gradient(weights, buffers, gradients, height, width, shift, first, windows, S: tl.constexpr):
    """Sum of dl over the windows of a group: windows group, group + groups, ... of the band."""
    PART: tl.constexpr = S.area * S.padded
    size = (height, width, shift)
    head, group = tl.program_id(0) % S.heads, tl.program_id(0) // S.heads
    i = tl.program_id(1) * S.queries + tl.arange(0, S.queries)
    j = tl.program_id(2) * S.keys + tl.arange(0, S.keys)
    total = tl.full([S.queries, S.keys], 0.0, tl.float32)
    window = group
    while window < windows:
        after = buffers.after + (window * S.heads + head).to(tl.int64) * (6 * PART)
        k, v = rows_of(after + PART, j, S), rows_of(after + 2 * PART, j, S)
        of_keys = (j, regions(first + window, j, size, S))
        _, _, _, dl = tile_gradient(
            buffers, gradients, (k, v, of_keys), (window, first + window), i, weights, head, size, S
        )
        total += dl
        window += tl.num_programs(0) // S.heads
    place = tl.program_id(0).to(tl.int64) * (S.area * S.area) + i[:, None] * S.area + j[None, :]
    tl.store(gradients.bias + place, total, mask=(i < S.area)[:, None] & (j < S.area)[None, :])


# ---- channel half, convolution, norm ---------------------------------------------------------------------------------


@triton.jit
def channel_sums(after, gradients, window, head, S: tl.constexpr):
    """q^T k, dO^T v, and the squared norms of q's and k's channels, summed over the tokens."""
    PART: tl.constexpr = S.area * S.padded
    gram = tl.full([S.padded, S.padded], 0.0, tl.float32)
    of_weight = tl.full([S.padded, S.padded], 0.0, tl.float32)
    q_squares = tl.full([S.padded], 0.0, tl.float32)
    k_squares = tl.full([S.padded], 0.0, tl.float32)
    for start in range(0, S.area, S.tokens):
        t = start + tl.arange(0, S.tokens)
        q, k, v = rows_of(after, t, S), rows_of(after + PART, t, S), rows_of(after + 2 * PART, t, S)
        d_out = head_rows(gradients.attended, window, t, S.channels // 2 + head * S.head, S)
        q_squares += tl.sum(widen(q) * widen(q), 0)
        k_squares += tl.sum(widen(k) * widen(k), 0)
        gram = product(tl.trans(q), k, gram, S)
        of_weight = product(tl.trans(d_out), v, of_weight, S)
    return gram, of_weight, q_squares, k_squares


@triton.jit
def channels_gradient(buffers, gradients, S: tl.constexpr):
    """dq, dk and dv of the channel half."""
    PART: tl.constexpr = S.area * S.padded
    pair = tl.program_id(0)
    window, head = pair // S.heads, pair % S.heads
    after = buffers.after + (2 * pair + 1).to(tl.int64) * (3 * PART)
    out = gradients.after + (2 * pair + 1).to(tl.int64) * (3 * PART)
    gram, of_weight, q_squares, k_squares = channel_sums(after, gradients, window, head, S)
    q_inverse, k_inverse, cosines = cosines_of_channels(gram, q_squares, k_squares)
    weight, rest = softmax_one_of_channels(cosines, S)
    b = tl.arange(0, S.padded)
    where = tl.argmax(tl.where((b < S.head)[None, :], cosines, float("-inf")), 1)
    delta = tl.sum(weight * of_weight, 1)
    at_maximum = b[None, :] == where[:, None]
    dl = weight * (of_weight - delta[:, None]) - tl.where(at_maximum, (delta * rest)[:, None], 0.0)
    q_along = tl.where(q_inverse * NORM_FLOOR < 1.0, tl.sum(dl * cosines, 1), 0.0)
    k_along = tl.where(k_inverse * NORM_FLOOR < 1.0, tl.sum(dl * cosines, 0), 0.0)
    for start in range(0, S.area, S.tokens):
        t = start + tl.arange(0, S.tokens)
        q, k = widen(rows_of(after, t, S)), widen(rows_of(after + PART, t, S))
        d_out = head_rows(gradients.attended, window, t, S.channels // 2 + head * S.head, S)
        q, k = q * q_inverse[None, :], k * k_inverse[None, :]
        zeros = tl.full([S.tokens, S.padded], 0.0, tl.float32)
        dq = product(narrow(k, d_out.dtype), tl.trans(narrow(dl, d_out.dtype)), zeros, S) - q * q_along[None, :]
        dk = product(narrow(q, d_out.dtype), narrow(dl, d_out.dtype), zeros, S) - k * k_along[None, :]
        put_rows(out, t, dq * q_inverse[None, :], S)
        put_rows(out + PART, t, dk * k_inverse[None, :], S)
        put_rows(out + 2 * PART, t, product(d_out, narrow(weight, d_out.dtype), zeros, S), S)


@triton.jit
def neighbours(base, t, dy, dx, S: tl.constexpr):
    """Rows of the tokens at offset (dy, dx) from tokens `t`, 0 outside the window."""
    W: tl.constexpr = S.window
    j = tl.arange(0, S.padded)
    y, x = t // W + dy, t % W + dx
    inside = (t < S.area) & (y >= 0) & (y < W) & (x >= 0) & (x < W)
    return widen(tl.load(base + (y * W + x)[:, None] * S.padded + j[None, :], mask=inside[:, None], other=0.0))


@triton.jit
def convolution_gradient(weights, buffers, gradients, S: tl.constexpr):
    """Gradients of the depth-wise convolution for a block of tokens of one part (q, k or v) of one unit.

    The gradient of a tap is the sum of u(t) dv(t - tap), and du(t) uses the same rows dv(t - tap), which are read once.
    """
    PART: tl.constexpr = S.area * S.padded
    ROW: tl.constexpr = 3 * S.channels
    unit, block, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    window, head, half = unit // (2 * S.heads), unit // 2 % S.heads, unit % 2
    j = tl.arange(0, S.padded)
    present = j < S.head
    row = first_row(half, part, head, S) + j
    t = block * S.tokens + tl.arange(0, S.tokens)
    after = gradients.after + (unit.to(tl.int64) * 3 + part) * PART
    u = widen(rows_of(buffers.before + (unit.to(tl.int64) * 3 + part) * PART, t, S))
    sums = gradients.dwconv + (window * tl.num_programs(1) + block).to(tl.int64) * (10 * ROW) + row
    total = tl.full([S.tokens, S.padded], 0.0, tl.float32)
    for tap in range(9):
        d = neighbours(after, t, 1 - tap // 3, 1 - tap % 3, S)
        total += d * widen(tl.load(weights.dwconv + row * 9 + tap, mask=present, other=0.0))[None, :]
        tl.store(sums + tap * ROW, tl.sum(d * u, 0), mask=present)
    tl.store(sums + 9 * ROW, tl.sum(widen(rows_of(after, t, S)), 0), mask=present)
    place = (window.to(tl.int64) * S.area + t)[:, None] * ROW + row[None, :]
    mask = (t < S.area)[:, None] & present[None, :]
    tl.store(gradients.qkv + place, narrow(total, gradients.qkv.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=[*IMAGE, "first"])
def gather_rows(x, grad, weights, out, height, width, shift, first, S: tl.constexpr):
    """n = LayerNorm(x) and the result's gradient in window order; out: `Rows`."""
    C: tl.constexpr = S.channels
    t = tl.program_id(1) * S.tokens + tl.arange(0, S.tokens)
    inside = t < S.area
    pixels = pixel_offsets(first + tl.program_id(0), t, height, width, shift, S)
    mean, inverse = norm_statistics(x, pixels, inside, height, width, S)
    to = (tl.program_id(0).to(tl.int64) * S.area + t) * C
    for start in range(0, C, S.chunk):
        c = start + tl.arange(0, S.chunk)
        present = inside[:, None] & (c < C)[None, :]
        place = places(pixels, c, height, width, S)
        normed = normalised(x, weights, place, present, c, mean, inverse, S)
        tl.store(out.normed + to[:, None] + c[None, :], narrow(normed, x.dtype.element_ty), mask=present)
        tl.store(out.grad + to[:, None] + c[None, :], tl.load(grad + place, mask=present, other=0.0), mask=present)


@triton.jit
def normed_part(x, rows, weights, at, c, moments, S: tl.constexpr):
    """x^ = (x - mean) / deviation, dn, and dn times the norm's weight for a chunk of channels; 0 after the last one.

    at: (offsets in x, offsets in the band's rows, mask); moments: (mean, 1 / deviation).
    """
    place, to, present = at
    mean, inverse = moments
    unit = (widen(tl.load(x + place, mask=present, other=0.0)) - mean[:, None]) * inverse[:, None]
    d_normed = widen(tl.load(rows.d_normed + to, mask=present, other=0.0))
    gamma = widen(tl.load(weights.norm_weight + c, mask=c < S.channels, other=0.0))
    return tl.where(present, unit, 0.0), d_normed, d_normed * gamma[None, :]


@triton.jit(do_not_specialize=[*IMAGE, "first"])
def norm_gradient(x, weights, rows, out, height, width, shift, first, S: tl.constexpr):
    """dx = grad + (dn gamma - mean(dn gamma) - x^ mean(dn gamma x^)) / deviation; rows: `Rows`; out: `NormGradient`."""
    C: tl.constexpr = S.channels
    t = tl.program_id(1) * S.tokens + tl.arange(0, S.tokens)
    inside = t < S.area
    pixels = pixel_offsets(first + tl.program_id(0), t, height, width, shift, S)
    moments = norm_statistics(x, pixels, inside, height, width, S)
    from_row = (tl.program_id(0).to(tl.int64) * S.area + t) * C
    block = (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)).to(tl.int64)
    plain = tl.full([S.tokens], 0.0, tl.float32)
    along = tl.full([S.tokens], 0.0, tl.float32)
    for start in range(0, C, S.chunk):
        c = start + tl.arange(0, S.chunk)
        present = inside[:, None] & (c < C)[None, :]
        at = (places(pixels, c, height, width, S), from_row[:, None] + c[None, :], present)
        unit, d_normed, scaled = normed_part(x, rows, weights, at, c, moments, S)
        plain += tl.sum(scaled, 1)
        along += tl.sum(scaled * unit, 1)
        tl.store(out.norm + block * (2 * C) + c, tl.sum(d_normed * unit, 0), mask=c < C)
        tl.store(out.norm + block * (2 * C) + C + c, tl.sum(d_normed, 0), mask=c < C)
    for start in range(0, C, S.chunk):
        c = start + tl.arange(0, S.chunk)
        present = inside[:, None] & (c < C)[None, :]
        place, to = places(pixels, c, height, width, S), from_row[:, None] + c[None, :]
        unit, _, scaled = normed_part(x, rows, weights, (place, to, present), c, moments, S)
        dx = (scaled - plain[:, None] / C - unit * (along[:, None] / C)) * moments[1][:, None]
        dx += widen(tl.load(rows.grad + to, mask=present, other=0.0))
        tl.store(out.x + place, narrow(dx, x.dtype.element_ty), mask=present)
