"""Forward kernels of swda_attention: attention of windows, and the projection with the residual.

    attended = concat(window half, channel half) of norm1(x)          attention_forward
    out      = x + proj(attended) + bias                              project_attended

A program of attention_forward processes units, a unit being one (window, head, half), one after the other:

    1. n = LayerNorm(x) of the window's N tokens, [q, k, v] = qkv(n) + bias of the unit's 3d channels   -> before
    2. depth-wise 3x3 of `before`, zero-padded at the window's edge; q and k of the window half divided
       by max(norm over d, 1e-12)                                                                       -> after
    3. window half    softmax_one(scale q k^T + bias + mask) v over the tokens, in tiles of logits
       channel half   softmax_one(q^T k / norms over the tokens) v over the d channels                  -> attended

Threads cannot read each other's registers, so `before` and `after` are in memory: one slot per program of 6 N padded d
elements, which stays in the L2 cache (window 16, d 24, bfloat16: 98 KB; two programs on each of 132 processors: 26 MB
of 50) and does not grow with the image. Barriers separate the steps.

Memory layout: x and out (B, C, H, W) in channels_last or NCHW, with shift and windows in the addresses; attended
(windows * N, C) in x's dtype, windows of the rolled map in row-major order. Sums, norms, softmax and residual are
computed in float32.

                     bytes moved per pixel, S of an element           MACs per pixel
attention_forward    2 C S: x read, attended written                  3 C^2 + 27 C + C N + C d
project_attended     3 C S: attended and x read, out written          C^2
Each of the 2 * heads units of a window reads x again, from the L2 cache. Products pad d to a power of two of at least
16 (12 -> 16, 24 -> 32, 48 -> 64): a quarter of the products for qkv, logits and values is with zeros.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from swintormer_kernels.backends.triton.blocks import blocks_for
from swintormer_kernels.backends.triton.runtime import launch, narrow, widen
from swintormer_kernels.backends.triton.window_parts import (
    LOG2_E,
    NORM_FLOOR,
    Buffers,
    Sizes,
    Weights,
    convolved,
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

IMAGE = ("height", "width", "shift")


@triton.jit
def project_qkv(x, weights, before, pixels, t, size, unit, S: tl.constexpr):
    """Computes q, k and v of tokens `t` before the convolution: norm, then the product over C.

    size: (height, width); unit: (half, head).
    """
    C: tl.constexpr = S.channels
    height, width = size
    half, head = unit
    j = tl.arange(0, S.padded)
    inside = t < S.area
    mean, inverse = norm_statistics(x, pixels, inside, height, width, S)
    q = tl.full([S.tokens, S.padded], 0.0, tl.float32)
    k = tl.full([S.tokens, S.padded], 0.0, tl.float32)
    v = tl.full([S.tokens, S.padded], 0.0, tl.float32)
    first = first_row(half, 0, head, S)
    for start in range(0, C, S.chunk):
        c = start + tl.arange(0, S.chunk)
        present = inside[:, None] & (c < C)[None, :]
        normed = normalised(x, weights, places(pixels, c, height, width, S), present, c, mean, inverse, S)
        normed = narrow(normed, x.dtype.element_ty)
        present = (c < C)[:, None] & (j < S.head)[None, :]
        place = weights.qkv + (first + j)[None, :] * C + c[:, None]
        q = product(normed, tl.load(place, mask=present, other=0.0), q, S)
        k = product(normed, tl.load(place + C // 2 * C, mask=present, other=0.0), k, S)
        v = product(normed, tl.load(place + C * C, mask=present, other=0.0), v, S)
    if weights.qkv_bias is not None:
        place = weights.qkv_bias + first + j
        q += widen(tl.load(place, mask=j < S.head, other=0.0))[None, :]
        k += widen(tl.load(place + C // 2, mask=j < S.head, other=0.0))[None, :]
        v += widen(tl.load(place + C, mask=j < S.head, other=0.0))[None, :]
    put_rows(before, t, q, S)
    put_rows(before + S.area * S.padded, t, k, S)
    put_rows(before + 2 * S.area * S.padded, t, v, S)


@triton.jit
def convolve(before, after, inverse_norms, weights, half, head, S: tl.constexpr):
    """The convolution of a whole unit, and in the window half the normalisation of q and k over d."""
    PART: tl.constexpr = S.area * S.padded
    for start in tl.range(0, S.area, S.tokens, num_stages=1):
        t = start + tl.arange(0, S.tokens)
        q, k, v = convolved(before, weights, half, head, t, S)
        q_inverse, k_inverse = inverse_norm(q), inverse_norm(k)
        tl.store(inverse_norms + t, q_inverse, mask=t < S.area)
        tl.store(inverse_norms + S.area + t, k_inverse, mask=t < S.area)
        put_rows(after, t, q * tl.where(half == 0, q_inverse, 1.0)[:, None], S)
        put_rows(after + PART, t, k * tl.where(half == 0, k_inverse, 1.0)[:, None], S)
        put_rows(after + 2 * PART, t, v, S)


@triton.jit
def inverse_norm(rows):
    """1 / max(norm, 1e-12) of each row."""
    return 1.0 / tl.maximum(tl.sqrt_rn(tl.sum(rows * rows, 1)), NORM_FLOOR)


@triton.jit
def put_attended(attended, window, t, channel, value, S: tl.constexpr):
    """Writes (tokens, padded d) of a head to its channels of `attended`; window: index in `attended`."""
    j = tl.arange(0, S.padded)
    place = (window.to(tl.int64) * S.area + t)[:, None] * S.channels + channel + j[None, :]
    mask = (t < S.area)[:, None] & (j < S.head)[None, :]
    tl.store(attended + place, narrow(value, attended.dtype.element_ty), mask=mask)


@triton.jit
def attend_tokens(after, weights, attended, window, first, head, size, S: tl.constexpr):
    """softmax_one(scale cos + bias + mask) v over the tokens, tile by tile, with a running maximum m and sum s."""
    scale, _ = logit_scale(weights, head)
    k_rows, v_rows = after + S.area * S.padded, after + 2 * S.area * S.padded
    for start in range(0, S.area, S.queries):
        i = start + tl.arange(0, S.queries)
        q = rows_of(after, i, S)
        query_regions = regions(first + window, i, size, S)
        m = tl.full([S.queries], float("-inf"), tl.float32)
        s = tl.full([S.queries], 0.0, tl.float32)
        o = tl.full([S.queries, S.padded], 0.0, tl.float32)
        for key in range(0, S.area, S.keys):
            j = key + tl.arange(0, S.keys)
            key_regions = regions(first + window, j, size, S)
            k = rows_of(k_rows, j, S)
            logits = tile_of_logits(q, k, (i, query_regions), (j, key_regions), weights, head, scale * LOG2_E, S)
            above = tl.maximum(m, tl.max(logits, 1))
            p = tl.exp2(logits - above[:, None])
            shrink = tl.exp2(m - above)
            s = s * shrink + tl.sum(p, 1)
            v = rows_of(v_rows, j, S)
            o = product(narrow(p, v.dtype), v, o * shrink[:, None], S)
            m = above
        put_attended(attended, window, i, head * S.head, o / (s + 1.0)[:, None], S)


@triton.jit
def attend_channels(after, weights, attended, window, head, S: tl.constexpr):
    """softmax_one(cos) v over the d channels, norms over the tokens."""
    PART: tl.constexpr = S.area * S.padded
    gram = tl.full([S.padded, S.padded], 0.0, tl.float32)
    q_squares = tl.full([S.padded], 0.0, tl.float32)
    k_squares = tl.full([S.padded], 0.0, tl.float32)
    for start in range(0, S.area, S.tokens):
        t = start + tl.arange(0, S.tokens)
        q, k = rows_of(after, t, S), rows_of(after + PART, t, S)
        q_squares += tl.sum(widen(q) * widen(q), 0)
        k_squares += tl.sum(widen(k) * widen(k), 0)
        gram = product(tl.trans(q), k, gram, S)
    _, _, cosines = cosines_of_channels(gram, q_squares, k_squares)
    weight, _ = softmax_one_of_channels(cosines, S)
    for start in range(0, S.area, S.tokens):
        t = start + tl.arange(0, S.tokens)
        v = rows_of(after + 2 * PART, t, S)
        out = tl.full([S.tokens, S.padded], 0.0, tl.float32)
        out = product(v, tl.trans(narrow(weight, v.dtype)), out, S)
        put_attended(attended, window, t, S.channels // 2 + head * S.head, out, S)


@triton.jit
def cosines_of_channels(gram, q_squares, k_squares):
    """1 / max(norm, 1e-12) of q's and k's channels, and their cosines (channel of q, channel of k)."""
    q_inverse = 1.0 / tl.maximum(tl.sqrt_rn(q_squares), NORM_FLOOR)
    k_inverse = 1.0 / tl.maximum(tl.sqrt_rn(k_squares), NORM_FLOOR)
    return q_inverse, k_inverse, gram * q_inverse[:, None] * k_inverse[None, :]


@triton.jit
def softmax_one_of_channels(cosines, S: tl.constexpr):
    """softmax_one over the columns of (padded d, padded d), and 1 / (1 + sum); columns after d are ignored."""
    b = tl.arange(0, S.padded)
    logits = tl.where((b < S.head)[None, :], cosines, float("-inf"))
    p = tl.exp(logits - tl.max(logits, 1)[:, None])
    rest = 1.0 / (1.0 + tl.sum(p, 1))
    return p * rest[:, None], rest


@triton.jit(do_not_specialize=[*IMAGE, "first", "windows"])
def attention_forward(
    x,
    weights,
    buffers,
    height,
    width,
    shift,
    first,
    windows,
    S: tl.constexpr,
):
    """Attended channels of `windows` windows starting at `first`; program p processes units p, p + programs, ..."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    slot = program.to(tl.int64)
    before = buffers.before + slot * (3 * S.area * S.padded)
    after = buffers.after + slot * (3 * S.area * S.padded)
    inverse_norms = buffers.inverse + slot * (2 * S.area)
    step, unit = 0, program
    while unit < windows * (2 * S.heads):  # range() over tensors fails in the interpreter (numpy 2.4)
        # The number of programs is even, so a program would always get the same half. Adding the step alternates the
        # halves; the two units of a pair are in the same step.
        half = (unit + step) % 2
        head = unit // 2 % S.heads
        window = unit // (2 * S.heads)
        for start in range(0, S.area, S.tokens):
            t = start + tl.arange(0, S.tokens)
            pixels = pixel_offsets(first + window, t, height, width, shift, S)
            project_qkv(x, weights, before, pixels, t, (height, width), (half, head), S)
        tl.debug_barrier()
        convolve(before, after, inverse_norms, weights, half, head, S)
        tl.debug_barrier()
        if half == 0:
            attend_tokens(after, weights, buffers.attended, window, first, head, (height, width, shift), S)
        else:
            attend_channels(after, weights, buffers.attended, window, head, S)
        tl.debug_barrier()
        step += 1
        unit += programs


@triton.jit(do_not_specialize=[*IMAGE, "tokens"])
def project_attended(
    x,
    attended,
    weights,
    out,
    height,
    width,
    shift,
    tokens,
    S: tl.constexpr,
):
    """out = x + proj(attended); x and out have the same strides. attended: (tokens, C) in window order."""
    C: tl.constexpr = S.channels
    row = tl.program_id(0) * S.tokens + tl.arange(0, S.tokens)
    o = tl.program_id(1) * S.outputs + tl.arange(0, S.outputs)
    total = tl.full([S.tokens, S.outputs], 0.0, tl.float32)
    for start in range(0, C, S.outputs):
        c = start + tl.arange(0, S.outputs)
        place = row.to(tl.int64)[:, None] * C + c[None, :]
        a = tl.load(attended + place, mask=(row < tokens)[:, None] & (c < C)[None, :], other=0.0)
        w = tl.load(weights.proj + o[None, :] * C + c[:, None], mask=(c < C)[:, None] & (o < C)[None, :], other=0.0)
        total = product(a, w, total, S)
    if weights.proj_bias is not None:
        total += widen(tl.load(weights.proj_bias + o, mask=o < C, other=0.0))[None, :]
    pixels = pixel_offsets(row // S.area, row % S.area, height, width, shift, S)
    mask = (row < tokens)[:, None] & (o < C)[None, :]
    place = places(pixels, o, height, width, S)
    total += widen(tl.load(x + place, mask=mask, other=0.0))
    tl.store(out + place, narrow(total, out.dtype.element_ty), mask=mask)


def attend(x: Tensor, weights: Weights, shift: int, S: Sizes) -> Tensor:
    """Attended channels (windows * N, C) of the whole image, windows in row-major order of the rolled map."""
    windows = x.shape[0] * (x.shape[2] // S.window) * (x.shape[3] // S.window)
    attended = x.new_empty(windows * S.area, S.channels)
    tuned = blocks_for("swda_attention", S.head, x.dtype)
    programs = min(windows * 2 * S.heads, tuned["programs"] * processors(x))
    launch_attention(x, weights, slots(x, programs, S, attended), shift, (0, windows), S)
    return attended


def slots(x: Tensor, number: int, S: Sizes, attended: Tensor) -> Buffers:
    """Buffers of `number` slots: 6 N padded d elements and 2 N floats each."""
    before, after = (x.new_empty(number, 3, S.area, S.padded) for _ in range(2))
    return Buffers(before, after, x.new_empty(number, 2, S.area, dtype=torch.float32), attended)


def launch_attention(
    x: Tensor, weights: Weights, buffers: Buffers, shift: int, windows: tuple[int, int], S: Sizes
) -> None:
    """Attended channels of the windows (first, count), with one program per slot (an even number)."""
    tuned = blocks_for("swda_attention", S.head, x.dtype)
    options = {name: tuned[name] for name in ("num_warps", "num_stages")}
    programs = buffers.before.shape[0]
    launch(attention_forward, (programs,), x, weights, buffers, *x.shape[2:], shift, *windows, S=S, **options)


def project(x: Tensor, attended: Tensor, weights: Weights, out: Tensor, shift: int, S: Sizes) -> None:
    """out = x + proj(attended)."""
    grid = (triton.cdiv(attended.shape[0], S.tokens), triton.cdiv(S.channels, S.outputs))
    arguments = (x, attended, weights, out, *x.shape[2:], shift, attended.shape[0])
    # At most 64 tokens and 64 outputs: 56 registers per thread hold sums, and no size or dtype spills.
    launch(project_attended, grid, *arguments, S=S, num_warps=4, num_stages=2)


def processors(x: Tensor) -> int:
    """Number of multiprocessors of the GPU; 2 in the interpreter, so that programs process several units."""
    return torch.cuda.get_device_properties(x.device).multi_processor_count if x.device.type == "cuda" else 2
