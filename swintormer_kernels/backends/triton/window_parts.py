"""Functions shared by the attention kernels: sizes, pixel addresses, norm, depth-wise convolution, logits.

Windows are numbered over the batch in row-major order of the rolled map; token t of a window is at row t // w and
column t % w. A unit is one (window, head, half), where half 0 is the window half and 1 the channel half; its number is
(window * heads + head) * 2 + half. Memory layout of its 3d channels of q, k and v: [part][token][padded d].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from swintormer_kernels.backends.triton.runtime import dot, narrow, widen

LOG2_E = tl.constexpr(math.log2(math.e))
MASK = tl.constexpr(-100 * math.log2(math.e))  # added to logits between different regions, here in powers of two
MAX_LOG_SCALE = tl.constexpr(math.log(100))
NORM_FLOOR = tl.constexpr(1e-12)
EPS = tl.constexpr(1e-5)


@dataclass(frozen=True)
class Sizes:
    """All values that the compiled code depends on, as one constant. None depends on the image size.

    Attributes:
        channels, heads, window: of the block.
        tokens: tokens in one step of the norm, of the qkv product and of the convolution.
        queries, keys: sides of a tile of logits.
        chunk: input channels in one step of the qkv product and of the norm.
        outputs: output channels of one program of the projection, and input channels of one of its steps.
        rows: whether x is channels_last; otherwise NCHW.
        shifted: whether logits are masked.
        precision: as `runtime.precision`.
    """

    channels: int
    heads: int
    window: int
    tokens: int
    queries: int
    keys: int
    chunk: int
    outputs: int
    rows: bool
    shifted: bool
    precision: str

    @property
    def head(self) -> int:
        """d, channels of a head."""
        return self.channels // 2 // self.heads

    @property
    def padded(self) -> int:
        """d padded to a power of two of at least 16 in products: 24 to 32 and 48 to 64, a quarter of it zeros."""
        return max(16, triton.next_power_of_2(self.head))

    @property
    def area(self) -> int:
        """N, tokens of a window."""
        return self.window**2

    @property
    def span(self) -> int:
        """2w - 1, the side of the bias table."""
        return 2 * self.window - 1


class Weights(NamedTuple):
    """Pointers of a kernel; biases may be None."""

    norm_weight: Tensor  # (C,)
    norm_bias: Tensor  # (C,)
    qkv: Tensor  # (3C, C)
    qkv_bias: Tensor | None  # (3C,)
    dwconv: Tensor  # (3C, 9)
    dwconv_bias: Tensor | None  # (3C,)
    logit_scale: Tensor  # (heads,)
    proj: Tensor  # (C, C)
    proj_bias: Tensor | None  # (C,)
    bias: Tensor  # (heads, (2w-1)^2), float32: 16 sigmoid(table) log2(e)


class Buffers(NamedTuple):
    """Outputs of one launch of the forward kernel; S slots, one per program or one per unit."""

    before: Tensor  # (S, 3, N, padded d) q, k, v before the convolution
    after: Tensor  # (S, 3, N, padded d) q, k, v after it; in the window half q and k are normalised over d
    inverse: Tensor  # (S, 2, N) float32, window half: 1 / max(norm, 1e-12) of q and k
    attended: Tensor  # (windows * N, C)


@triton.jit
def product(a, b, accumulator, S: tl.constexpr):
    """accumulator + a @ b in float32."""
    PRECISION: tl.constexpr = S.precision
    return dot(a, b, accumulator, PRECISION)


@triton.jit
def pixel_offsets(window, t, height, width, shift, S: tl.constexpr):
    """Offsets of tokens `t` of a window in a (B, C, H, W) tensor, rolled by (-shift, -shift); 64 bits."""
    W: tl.constexpr = S.window
    across = width // W
    in_image = window % (across * (height // W))
    image = window // (across * (height // W))
    row = in_image // across * W + t // W + shift
    column = in_image % across * W + t % W + shift
    row = tl.where(row >= height, row - height, row)
    column = tl.where(column >= width, column - width, column)
    if S.rows:
        offsets = ((image.to(tl.int64) * height + row) * width + column) * S.channels
    else:
        offsets = (image.to(tl.int64) * S.channels * height + row) * width + column
    return offsets


@triton.jit
def places(pixels, c, height, width, S: tl.constexpr):
    """Offsets (tokens, channels) from those of the tokens' pixels and channel numbers."""
    if S.rows:
        offsets = pixels[:, None] + c[None, :]
    else:
        offsets = pixels[:, None] + (c.to(tl.int64) * height * width)[None, :]
    return offsets


@triton.jit
def norm_statistics(x, pixels, inside, height, width, S: tl.constexpr):
    """(mean, 1 / sqrt(variance + eps)) of each pixel in float32, merged over chunks of channels.

    Uses the formula of Chan, Golub and LeVeque (1983), which avoids the cancellation of E[x^2] - mean^2.
    """
    C: tl.constexpr = S.channels
    B: tl.constexpr = S.chunk
    mean = tl.full([S.tokens], 0.0, tl.float32)
    squares = tl.full([S.tokens], 0.0, tl.float32)
    for start in range(0, C, B):
        c = start + tl.arange(0, B)
        present = inside[:, None] & (c < C)[None, :]
        v = tl.load(x + places(pixels, c, height, width, S), mask=present, other=0.0)
        v = widen(v)
        count = tl.minimum(C - start, B).to(tl.float32)
        part = tl.sum(v, 1) / count
        away = tl.where((c < C)[None, :], v - part[:, None], 0.0)
        step = part - mean
        share = count / (start + count)
        mean += step * share
        squares += tl.sum(away * away, 1) + step * step * (start * share)
    return mean, 1.0 / tl.sqrt_rn(squares / C + EPS)


@triton.jit
def normalised(x, weights, place, present, c, mean, inverse, S: tl.constexpr):
    """Channels `c` of the normalised pixels in float32. place, present: offsets and mask of the elements in x."""
    C: tl.constexpr = S.channels
    v = widen(tl.load(x + place, mask=present, other=0.0))
    gamma = widen(tl.load(weights.norm_weight + c, mask=c < C, other=0.0))
    beta = widen(tl.load(weights.norm_bias + c, mask=c < C, other=0.0))
    return (v - mean[:, None]) * inverse[:, None] * gamma[None, :] + beta[None, :]


@triton.jit
def first_row(half, part, head, S: tl.constexpr):
    """Index of the first channel of this head's q, k or v among the 3C channels, ordered by half, part and head."""
    return (half * 3 + part) * (S.channels // 2) + head * S.head


@triton.jit
def convolved(before, weights, half, head, t, S: tl.constexpr):
    """q, k and v of tokens `t` after the depth-wise 3x3 convolution: three times (tokens, padded d) in float32.

    Zero-padded at the window's edge. before: this unit's slot. The loop over the rows of taps is not unrolled: nine
    loads are in flight at a time, and compilation takes a third of the time.
    """
    W: tl.constexpr = S.window
    PART: tl.constexpr = S.area * S.padded
    HALF: tl.constexpr = S.channels // 2
    j = tl.arange(0, S.padded)
    present = j < S.head
    first = first_row(half, 0, head, S) + j
    y, x = t // W, t % W
    q = tl.full([S.tokens, S.padded], 0.0, tl.float32)
    k = tl.full([S.tokens, S.padded], 0.0, tl.float32)
    v = tl.full([S.tokens, S.padded], 0.0, tl.float32)
    for dy in range(-1, 2):
        for dx in tl.static_range(-1, 2):
            inside = (t < S.area) & (y + dy >= 0) & (y + dy < W) & (x + dx >= 0) & (x + dx < W)
            place = before + (t + dy * W + dx)[:, None] * S.padded + j[None, :]
            tap = weights.dwconv + first * 9 + (dy * 3 + dx + 4)
            taps = widen(tl.load(tap, mask=present, other=0.0))
            q += widen(tl.load(place, mask=inside[:, None], other=0.0)) * taps[None, :]
            taps = widen(tl.load(tap + HALF * 9, mask=present, other=0.0))
            k += widen(tl.load(place + PART, mask=inside[:, None], other=0.0)) * taps[None, :]
            taps = widen(tl.load(tap + 2 * HALF * 9, mask=present, other=0.0))
            v += widen(tl.load(place + 2 * PART, mask=inside[:, None], other=0.0)) * taps[None, :]
    if weights.dwconv_bias is not None:
        place = weights.dwconv_bias + first
        q += widen(tl.load(place, mask=present, other=0.0))[None, :]
        k += widen(tl.load(place + HALF, mask=present, other=0.0))[None, :]
        v += widen(tl.load(place + 2 * HALF, mask=present, other=0.0))[None, :]
    return q, k, v


@triton.jit
def regions(window, t, size, S: tl.constexpr):
    """Number of the rolled map's region for each token, unique within the window only.

    size: (height, width, shift).
    """
    height, width, shift = size
    W: tl.constexpr = S.window
    across, down = width // W, height // W
    in_image = window % (across * down)
    # Only the last row and column of windows contain pixels that were rolled from the other side of the image.
    wraps_down = (in_image // across == down - 1) & (t // W >= W - shift)
    wraps_across = (in_image % across == across - 1) & (t % W >= W - shift)
    return wraps_down.to(tl.int32) * 2 + wraps_across.to(tl.int32)


@triton.jit
def tile_of_logits(q, k, of_queries, of_keys, weights, head, scale, S: tl.constexpr):
    """Base-2 logits (queries, keys): log2(e) (scale cos + bias + mask), minus infinity after the last key.

    q, k: normalised, (queries, padded d) and (keys, padded d). of_queries, of_keys: (tokens, regions). scale:
    multiplied by log2(e).
    """
    queries, query_regions = of_queries
    keys, key_regions = of_keys
    W: tl.constexpr = S.window
    zeros = tl.zeros([q.shape[0], k.shape[0]], tl.float32)
    logits = product(q, tl.trans(k), zeros, S) * scale
    row = queries // W * S.span + queries % W
    column = keys // W * S.span + keys % W
    place = row[:, None] - column[None, :] + (W - 1) * (S.span + 1)
    inside = (queries < S.area)[:, None] & (keys < S.area)[None, :]
    logits += tl.load(weights.bias + head * S.span * S.span + place, mask=inside, other=0.0)
    if S.shifted:
        logits += tl.where(query_regions[:, None] != key_regions[None, :], MASK, 0.0)
    return tl.where((keys < S.area)[None, :], logits, float("-inf"))


@triton.jit
def logit_scale(weights, head):
    """(exp(min(logit_scale, ln 100)), logit_scale) in float32."""
    parameter = widen(tl.load(weights.logit_scale + head))
    return tl.exp(tl.minimum(parameter, MAX_LOG_SCALE)), parameter


@triton.jit
def rows_of(base, t, S: tl.constexpr):
    """Reads tokens `t` of one part of a slot: (tokens, padded d), 0 after the last token."""
    j = tl.arange(0, S.padded)
    return tl.load(base + t[:, None] * S.padded + j[None, :], mask=(t < S.area)[:, None], other=0.0)


@triton.jit
def put_rows(base, t, value, S: tl.constexpr):
    """Writes what `rows_of` reads."""
    j = tl.arange(0, S.padded)
    tl.store(
        base + t[:, None] * S.padded + j[None, :], narrow(value, base.dtype.element_ty), mask=(t < S.area)[:, None]
    )
