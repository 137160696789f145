"""Kernels of group_norm_silu, and the statistics that norm_silu_conv3x3 also uses.

    y = silu(v), v = (x - mean) * factor + offset     factor = rstd * weight * (1 + scale)
                                                      offset = bias * (1 + scale) + shift
    dx = factor dv - rstd (mean(gain dv) + xhat mean(gain dv xhat)), dv = dy silu'(v), gain = factor / rstd,
    xhat = (x - mean) * rstd; both means over the group

Memory layout, ROWS: the channels of a pixel are contiguous, with PITCH elements between pixels (channels_last);
otherwise the pixels of a channel are contiguous (NCHW). Images are pixels * PITCH elements apart. A group has D
channels; a tile is (pixels, channels). Statistics and arithmetic are in float32 for every dtype of x.

The table (B, 4, C) float32 holds mean, rstd, factor and offset of every channel, 16 bytes each, read from cache.

                      launches              bytes moved per element, S of one      MACs: none to speak of
forward               whole                 2 S: x read, y written                 a group in one program's registers
                      group_statistics or   3 S: x read twice, y written
                      statistics and merge,
                      then apply
backward              the statistics again, 6 S: x three times and grad twice read, dx written
                      sums, gradient

The statistics avoid cancellation for a large mean: an element of the tile is subtracted first, which is exact for close
values (Sterbenz), the two passes over a tile are in registers, and partial results are merged by the formula of Chan,
Golub and LeVeque (1979). There are no atomics: partial results are stored and summed in a fixed order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from swintormer_kernels.backends.triton.runtime import bound, narrow, widen

# ---- addresses -------------------------------------------------------------------------------------------------------


@triton.jit
def first_element(image, first, pixels, PITCH: tl.constexpr, ROWS: tl.constexpr):
    """Offset of pixel `first` of an image, channel 0."""
    return image.to(tl.int64) * pixels * PITCH + first.to(tl.int64) * (PITCH if ROWS else 1)


@triton.jit
def spots(pixel, channel, pixels, PITCH: tl.constexpr, ROWS: tl.constexpr):
    """Offsets (pixels, channels) from `first_element`."""
    if ROWS:
        offsets = pixel[:, None] * PITCH + channel[None, :]
    else:
        offsets = pixel[:, None] + channel.to(tl.int64)[None, :] * pixels
    return offsets


# ---- statistics ------------------------------------------------------------------------------------------------------


@triton.jit
def reciprocal_root(x):
    """1 / sqrt(x) with two roundings: an error in it affects the whole group and adds up in the gradients."""
    return tl.div_rn(1.0, tl.sqrt_rn(x))


@triton.jit
def write_table(table, norm, image, group, mean, rstd, C: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Stores mean, rstd, factor and offset of a group's channels in the table."""
    factor, offset = modulation(norm, image, group, rstd, C, D, BLOCK_D)
    inside = tl.arange(0, BLOCK_D)
    valid = inside < D
    place = table + image * 4 * C + group * D + inside
    tl.store(place, mean + tl.zeros_like(factor), valid)
    tl.store(place + C, rstd + tl.zeros_like(factor), valid)
    tl.store(place + 2 * C, factor, valid)
    tl.store(place + 3 * C, offset, valid)


@triton.jit
def modulation(norm, image, group, rstd, C: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """factor and offset of a group's channels, (BLOCK_D,)."""
    inside = tl.arange(0, BLOCK_D)
    channel, valid = group * D + inside, inside < D
    gain = tl.full((BLOCK_D,), 1.0, tl.float32)
    offset = tl.zeros((BLOCK_D,), tl.float32)
    if norm.weight is not None:
        gain = widen(tl.load(norm.weight + channel, valid, other=0))
    if norm.bias is not None:
        offset = widen(tl.load(norm.bias + channel, valid, other=0))
    if norm.scale is not None:
        scale = 1.0 + widen(tl.load(norm.scale + image * C + channel, valid, other=0))
        gain, offset = gain * scale, offset * scale
    if norm.shift is not None:
        offset += widen(tl.load(norm.shift + image * C + channel, valid, other=0))
    return gain * rstd, offset


@triton.jit(do_not_specialize=["pixels"])
def group_statistics(x, norm, table, pixels, eps, C: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
                     BLOCK_P: tl.constexpr, PITCH: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    """One program per group of each image. Each element of its tile has its own running statistics (Welford)."""
    image, group = tl.program_id(0) // (C // D), tl.program_id(0) % (C // D)
    pixel, inside = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_D)
    x += image.to(tl.int64) * pixels * PITCH
    channel = group * D + inside
    start = widen(tl.load(x + (group * D if ROWS else (group * D).to(tl.int64) * pixels)))
    mean = tl.zeros((BLOCK_P, BLOCK_D), tl.float32)
    squares = tl.zeros((BLOCK_P, BLOCK_D), tl.float32)
    count = 0.0
    for first in range(0, bound(pixels), BLOCK_P):
        valid = ((first + pixel) < pixels)[:, None] & (inside < D)[None, :]
        at = first * PITCH if ROWS else first
        value = widen(tl.load(x + at + spots(pixel, channel, pixels, PITCH, ROWS), valid, other=0)) - start
        count += 1.0
        delta = tl.where(valid, value - mean, 0.0)
        mean += delta * (1.0 / count)
        squares += delta * tl.where(valid, value - mean, 0.0)
    # Number of pixels of each element of the tile: all rounds, or one fewer.
    seen = tl.where((pixel < pixels - (pixels - 1) // BLOCK_P * BLOCK_P), count, count - 1.0)[:, None]
    seen = tl.where((inside < D)[None, :], seen, 0.0)
    size = pixels.to(tl.float32) * D
    centre = tl.div_rn(tl.sum(mean * seen), size)
    away = mean - centre
    variance = tl.div_rn(tl.sum(squares + away * away * seen), size)
    write_table(table, norm, image, group, start + centre, reciprocal_root(variance + eps), C, D, BLOCK_D)


@triton.jit(do_not_specialize=["pixels", "chunks"])
def statistics(x, partial, pixels, chunks, C: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
               PITCH: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    """partial (B, chunks, 2, C): mean and sum of squared deviations of each channel in each chunk of BLOCK_P pixels."""
    if ROWS:
        _statistics(x, partial, pixels, chunks, C, BLOCK_P, BLOCK_C, PITCH, ROWS)
    elif pixels % 16 == 0:  # tells the compiler that addresses are aligned: loads of 16 bytes instead of 2
        _statistics(x, partial, pixels // 16 * 16, chunks, C, BLOCK_P, BLOCK_C, PITCH, ROWS)
    else:
        _statistics(x, partial, pixels, chunks, C, BLOCK_P, BLOCK_C, PITCH, ROWS)


@triton.jit
def _statistics(x, partial, pixels, chunks, C: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
                PITCH: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    image, first = tl.program_id(0) // chunks, tl.program_id(0) % chunks * BLOCK_P
    pixel, channel = tl.arange(0, BLOCK_P), tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    x += first_element(image, first, pixels, PITCH, ROWS)
    exists = channel < C
    valid = (first + pixel < pixels)[:, None] & exists[None, :]
    start = widen(tl.load(x + (channel if ROWS else channel.to(tl.int64) * pixels), exists, other=0))
    value = widen(tl.load(x + spots(pixel, channel, pixels, PITCH, ROWS), valid, other=0))
    value = tl.where(valid, value - start[None, :], 0.0)
    mean = tl.sum(value, 0) / tl.minimum(pixels - first, BLOCK_P).to(tl.float32)
    away = tl.where(valid, value - mean[None, :], 0.0)
    place = partial + tl.program_id(0).to(tl.int64) * 2 * C + channel
    tl.store(place, start + mean, exists)
    tl.store(place + C, tl.sum(away * away, 0), exists)


@triton.jit(do_not_specialize=["pixels", "chunks"])
def merge(partial, norm, table, pixels, chunks, eps, C: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
          BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr):  # fmt: skip
    """The table from `partial`; one program per group of each image."""
    image, group = tl.program_id(0) // (C // D), tl.program_id(0) % (C // D)
    partial += image.to(tl.int64) * chunks * 2 * C + group * D
    inside = tl.arange(0, BLOCK_D)
    size = pixels.to(tl.float32) * D
    start = tl.load(partial)
    total = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    for first in range(0, bound(chunks), BLOCK_K):
        chunk = first + tl.arange(0, BLOCK_K)
        valid = (chunk < chunks)[:, None] & (inside < D)[None, :]
        mean = tl.load(partial + chunk[:, None] * (2 * C) + inside[None, :], valid, other=0)
        count = tl.minimum(pixels - chunk * BLOCK_P, BLOCK_P).to(tl.float32)[:, None]
        total += tl.where(valid, (mean - start) * count, 0.0)
    centre = start + tl.div_rn(tl.sum(total), size)
    squares = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    for first in range(0, bound(chunks), BLOCK_K):
        chunk = first + tl.arange(0, BLOCK_K)
        valid = (chunk < chunks)[:, None] & (inside < D)[None, :]
        place = partial + chunk[:, None] * (2 * C) + inside[None, :]
        away = tl.load(place, valid, other=0) - centre
        count = tl.minimum(pixels - chunk * BLOCK_P, BLOCK_P).to(tl.float32)[:, None]
        squares += tl.where(valid, tl.load(place + C, valid, other=0) + away * away * count, 0.0)
    variance = tl.div_rn(tl.sum(squares), size)
    write_table(table, norm, image, group, centre, reciprocal_root(variance + eps), C, D, BLOCK_D)


# ---- forward ---------------------------------------------------------------------------------------------------------


@triton.jit
def silu(v):
    """v sigmoid(v) in float32; -0 for large negative v."""
    return v / (1.0 + tl.exp(-v))


@triton.jit(do_not_specialize=["pixels"])
def whole(x, out, norm, pixels, eps, C: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr,
          PITCH: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    """The whole op for one group of one image of at most BLOCK_P pixels, which stays in registers."""
    image, group = tl.program_id(0) // (C // D), tl.program_id(0) % (C // D)
    pixel, inside = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_D)
    channel = group * D + inside
    valid = (pixel < pixels)[:, None] & (inside < D)[None, :]
    x += image.to(tl.int64) * pixels * PITCH
    start = widen(tl.load(x + (group * D if ROWS else (group * D).to(tl.int64) * pixels)))
    value = widen(tl.load(x + spots(pixel, channel, pixels, PITCH, ROWS), valid, other=0)) - start
    value = tl.where(valid, value, 0.0)
    size = pixels.to(tl.float32) * D
    value = tl.where(valid, value - tl.div_rn(tl.sum(value), size), 0.0)
    rstd = reciprocal_root(tl.div_rn(tl.sum(value * value), size) + eps)
    factor, offset = modulation(norm, image, group, rstd, C, D, BLOCK_D)
    y = silu(value * factor[None, :] + offset[None, :])
    out += image.to(tl.int64) * pixels * C
    tl.store(out + spots(pixel, channel, pixels, C, ROWS), narrow(y, out.dtype.element_ty), valid)


@triton.jit(do_not_specialize=["pixels", "chunks"])
def apply(x, out, table, pixels, chunks, C: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
          PITCH: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    """out from x and the table; one program per chunk of pixels and block of channels."""
    if ROWS:
        _apply(x, out, table, pixels, chunks, C, BLOCK_P, BLOCK_C, PITCH, ROWS)
    elif pixels % 16 == 0:
        _apply(x, out, table, pixels // 16 * 16, chunks, C, BLOCK_P, BLOCK_C, PITCH, ROWS)
    else:
        _apply(x, out, table, pixels, chunks, C, BLOCK_P, BLOCK_C, PITCH, ROWS)


@triton.jit
def _apply(x, out, table, pixels, chunks, C: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
           PITCH: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    image, first = tl.program_id(0) // chunks, tl.program_id(0) % chunks * BLOCK_P
    pixel, channel = tl.arange(0, BLOCK_P), tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    valid = (first + pixel < pixels)[:, None] & (channel < C)[None, :]
    x += first_element(image, first, pixels, PITCH, ROWS)
    value = widen(tl.load(x + spots(pixel, channel, pixels, PITCH, ROWS), valid, other=0))
    y = silu(normed(value, table + image * 4 * C, channel, channel < C, C))
    out += first_element(image, first, pixels, C, ROWS)
    tl.store(out + spots(pixel, channel, pixels, C, ROWS), narrow(y, out.dtype.element_ty), valid)


@triton.jit
def normed(value, table, channel, exists, C: tl.constexpr):
    """v of a float32 tile (pixels, channels); `table` is the image's."""
    mean = tl.load(table + channel, exists, other=0)[None, :]
    factor = tl.load(table + 2 * C + channel, exists, other=0)[None, :]
    offset = tl.load(table + 3 * C + channel, exists, other=0)[None, :]
    return (value - mean) * factor + offset


# ---- backward --------------------------------------------------------------------------------------------------------


@triton.jit
def through_silu(x, grad, table, channel, exists, valid, C: tl.constexpr):
    """dv and xhat of a tile; x and grad are its addresses. dv is 0 outside the image."""
    value = widen(tl.load(x, valid, other=0))
    v = normed(value, table, channel, exists, C)
    gate = 1.0 / (1.0 + tl.exp(-v))
    dv = widen(tl.load(grad, valid, other=0)) * gate * (1.0 + v * (1.0 - gate))
    mean, rstd = tl.load(table + channel, exists, other=0), tl.load(table + C + channel, exists, other=0)
    return dv, (value - mean[None, :]) * rstd[None, :]


@triton.jit(do_not_specialize=["pixels", "chunks"])
def sums(x, grad, table, partial, pixels, chunks, C: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
         PITCH: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    """partial (B, chunks, 2, C): sums of dv and of dv xhat over each chunk."""
    if ROWS:
        _sums(x, grad, table, partial, pixels, chunks, C, BLOCK_P, BLOCK_C, PITCH, ROWS)
    elif pixels % 16 == 0:
        _sums(x, grad, table, partial, pixels // 16 * 16, chunks, C, BLOCK_P, BLOCK_C, PITCH, ROWS)
    else:
        _sums(x, grad, table, partial, pixels, chunks, C, BLOCK_P, BLOCK_C, PITCH, ROWS)


@triton.jit
def _sums(x, grad, table, partial, pixels, chunks, C: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
          PITCH: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    image, first = tl.program_id(0) // chunks, tl.program_id(0) % chunks * BLOCK_P
    pixel, channel = tl.arange(0, BLOCK_P), tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    exists = channel < C
    valid = (first + pixel < pixels)[:, None] & exists[None, :]
    x += first_element(image, first, pixels, PITCH, ROWS) + spots(pixel, channel, pixels, PITCH, ROWS)
    grad += first_element(image, first, pixels, C, ROWS) + spots(pixel, channel, pixels, C, ROWS)
    dv, xhat = through_silu(x, grad, table + image * 4 * C, channel, exists, valid, C)
    place = partial + tl.program_id(0).to(tl.int64) * 2 * C + channel
    tl.store(place, tl.sum(dv, 0), exists)
    tl.store(place + C, tl.sum(dv * xhat, 0), exists)


@triton.jit(do_not_specialize=["pixels", "chunks"])
def gradient(x, grad, out, table, means, pixels, chunks, C: tl.constexpr, D: tl.constexpr, BLOCK_P: tl.constexpr,
             BLOCK_C: tl.constexpr, PITCH: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    """out = dx. means (B, 2, groups): of gain dv and of gain dv xhat over each group."""
    if ROWS:
        _gradient(x, grad, out, table, means, pixels, chunks, C, D, BLOCK_P, BLOCK_C, PITCH, ROWS)
    elif pixels % 16 == 0:
        _gradient(x, grad, out, table, means, pixels // 16 * 16, chunks, C, D, BLOCK_P, BLOCK_C, PITCH, ROWS)
    else:
        _gradient(x, grad, out, table, means, pixels, chunks, C, D, BLOCK_P, BLOCK_C, PITCH, ROWS)


@triton.jit
def _gradient(x, grad, out, table, means, pixels, chunks, C: tl.constexpr, D: tl.constexpr, BLOCK_P: tl.constexpr,
              BLOCK_C: tl.constexpr, PITCH: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    image, first = tl.program_id(0) // chunks, tl.program_id(0) % chunks * BLOCK_P
    pixel, channel = tl.arange(0, BLOCK_P), tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    exists = channel < C
    valid = (first + pixel < pixels)[:, None] & exists[None, :]
    table += image * 4 * C
    dense = first_element(image, first, pixels, C, ROWS) + spots(pixel, channel, pixels, C, ROWS)
    x += first_element(image, first, pixels, PITCH, ROWS) + spots(pixel, channel, pixels, PITCH, ROWS)
    dv, xhat = through_silu(x, grad + dense, table, channel, exists, valid, C)
    place = means + image * 2 * (C // D) + channel // D
    of_dv, of_product = tl.load(place, exists, other=0), tl.load(place + C // D, exists, other=0)
    rstd = tl.load(table + C + channel, exists, other=0)
    factor = tl.load(table + 2 * C + channel, exists, other=0)
    dx = dv * factor[None, :] - rstd[None, :] * (of_dv[None, :] + xhat * of_product[None, :])
    tl.store(out + dense, narrow(dx, out.dtype.element_ty), valid)
