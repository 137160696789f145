"""Gradients of swda_attention: the forward kernel again for a band of windows, then the backward kernels.

Only x and the weights are kept between forward and backward. A band is as many windows as fit into `BAND_BYTES`, so
memory does not grow with the image, except for the gradients. Sums over pixels are matrix products of torch over a band
or partial sums of programs, added by torch, so that each run gives the same bits. Bytes and MACs:
attention_backward.py.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from swintormer_kernels.backends.triton import attention_backward as kernels
from swintormer_kernels.backends.triton.attention_backward import Gradients, NormGradient, Rows
from swintormer_kernels.backends.triton.attention_forward import launch_attention, processors, slots
from swintormer_kernels.backends.triton.layout import dense_layout
from swintormer_kernels.backends.triton.runtime import launch
from swintormer_kernels.backends.triton.window_parts import Buffers, Sizes, Weights
from swintormer_kernels.backends.triton.window_setup import pack, sizes_of

if TYPE_CHECKING:
    from swintormer_kernels.records import AttentionWeights

# A window of 16x16 takes 0.5 MB at C = 48 and 4 MB at C = 384 in bfloat16, twice that in float32. A band then has about
# 480 units in bfloat16 (244 at d = 48) and half as many in float32; an H100 has 132 multiprocessors.
BAND_BYTES = 128 * 2**20
# With num_stages 2 the gathered bias goes to shared memory: 40 KB and 253 registers instead of 14 KB and 166 (sm_90,
# bfloat16, d 24, attended_by_queries).
_OPTIONS = {"num_warps": 4, "num_stages": 1}


class _Totals:
    """Gradients of the weights in float32, summed over bands."""

    def __init__(self, x: Tensor, weights: AttentionWeights) -> None:
        self.fields = {
            name: x.new_zeros(weight.shape, dtype=torch.float32)
            for name, weight in weights._asdict().items()
            if weight is not None
        }

    def add(self, name: str, value: Tensor) -> None:
        if name in self.fields:
            self.fields[name] += value.reshape(self.fields[name].shape)


def attention_gradients(grad: Tensor, x: Tensor, weights: AttentionWeights, window: int, shift: int) -> list[Tensor]:
    """Gradients of those of x and the weights that require one, x first."""
    totals = _Totals(x, weights)
    dense = dense_layout(x)
    of_x = torch.empty_like(dense)
    if x.numel():
        grad = grad if grad.stride() == dense.stride() else torch.empty_like(dense).copy_(grad)
        S = sizes_of(dense, weights, window, shift)
        windows = x.numel() // (S.channels * S.area)
        size = band_windows(S, x.element_size())
        for first in range(0, windows, size):
            band = _Band(dense, pack(weights), shift, S, (first, min(size, windows - first)))
            band.differentiate(grad, of_x, totals, weights.bias_table.requires_grad)
    found = [of_x] if x.requires_grad else []
    for name, weight in weights._asdict().items():
        if weight is not None and weight.requires_grad:
            found.append(totals.fields[name].to(weight.dtype))
    if found and found[0] is of_x and of_x.stride() != torch.empty_like(x).stride():
        found[0] = torch.empty_like(x).copy_(of_x)
    return found


def band_windows(S: Sizes, element: int) -> int:
    """Number of windows for which the allocations of `_Band` fit into `BAND_BYTES`, at least one."""
    return max(1, BAND_BYTES // window_bytes(S, element))


def window_bytes(S: Sizes, element: int) -> int:
    """Bytes that `_Band` allocates per window: 8 C + 18 heads padded_d elements per token, and float32 statistics."""
    elements = S.area * (8 * S.channels + 18 * S.heads * S.padded)
    blocks = triton.cdiv(S.area, S.tokens)
    statistics = S.heads * 9 * S.area + 32 * blocks * S.channels
    return elements * element + 4 * statistics


class _Band:
    """Consecutive windows of the image; `windows`: (first, count)."""

    def __init__(self, x: Tensor, weights: Weights, shift: int, S: Sizes, windows: tuple[int, int]) -> None:
        self.x, self.weights, self.S, self.first, self.count = x, weights, S, *windows
        self.image = (*x.shape[2:], shift)
        self.tokens = self.count * S.area
        self.shift = shift

    def differentiate(self, grad: Tensor, of_x: Tensor, totals: _Totals, bias_wanted: bool) -> None:
        """Adds the gradients of the band to `totals` and writes its pixels of `of_x`."""
        S, weights = self.S, self.weights
        rows = self._rows(grad)
        buffers = self._forward()
        attended = rows.grad @ weights.proj.view(S.channels, S.channels)
        totals.add("proj", _product(rows.grad, buffers.attended))
        totals.add("proj_bias", rows.grad.sum(0, dtype=torch.float32))
        gradients = self._of_qkv(buffers, attended)
        self._scale_and_bias(buffers, gradients, totals, bias_wanted)
        taps = gradients.dwconv.sum((0, 1))
        totals.add("dwconv", taps[:9].T)
        totals.add("dwconv_bias", taps[9])
        totals.add("qkv", _product(gradients.qkv, rows.normed))
        totals.add("qkv_bias", gradients.qkv.sum(0, dtype=torch.float32))
        rows = rows._replace(d_normed=gradients.qkv @ weights.qkv.view(3 * S.channels, S.channels))
        self._of_norm(rows, of_x, totals)

    def _blocks(self, tokens: int) -> int:
        return triton.cdiv(self.S.area, tokens)

    def _rows(self, grad: Tensor) -> Rows:
        normed, gathered = (self.x.new_empty(self.tokens, self.S.channels) for _ in range(2))
        rows = Rows(normed, gathered, normed)  # the gradient of n replaces the third field later
        grid = (self.count, self._blocks(self.S.tokens))
        launch(
            kernels.gather_rows, grid, self.x, grad, self.weights, rows, *self.image, self.first, S=self.S, **_OPTIONS
        )
        return rows

    def _forward(self) -> Buffers:
        attended = self.x.new_empty(self.tokens, self.S.channels)
        buffers = slots(self.x, self.count * self.S.heads * 2, self.S, attended)
        launch_attention(self.x, self.weights, buffers, self.shift, (self.first, self.count), self.S)
        return buffers

    def _of_qkv(self, buffers: Buffers, attended: Tensor) -> Gradients:
        """Runs the kernels from the attended channels back to qkv before the convolution."""
        S, new = self.S, self.x.new_empty
        pairs, single = self.count * S.heads, torch.float32
        gradients = Gradients(
            attended,
            new(buffers.after.shape),
            new(pairs, 4, S.area, dtype=single),
            new(pairs, S.area, dtype=single),
            new(self.tokens, 3 * S.channels),
            new(self.count, self._blocks(S.tokens), 10, 3 * S.channels, dtype=single),
            None,
        )
        given = (self.weights, buffers, gradients, *self.image, self.first)
        # At d = 48 in float32 (sm_90), 4 warps spill 430 bytes per thread and 8 warps none.
        options = {**_OPTIONS, "num_warps": 8 if S.padded * self.x.element_size() > 128 else 4}
        launch(kernels.attended_by_queries, (pairs, self._blocks(S.queries)), *given, S=S, **options)
        launch(kernels.attended_by_keys, (pairs, self._blocks(S.keys)), *given, S=S, **_OPTIONS)
        launch(kernels.channels_gradient, (pairs,), buffers, gradients, S=S, **_OPTIONS)
        grid = (2 * pairs, self._blocks(S.tokens), 3)
        launch(kernels.convolution_gradient, grid, self.weights, buffers, gradients, S=S, **_OPTIONS)
        return gradients

    def _scale_and_bias(self, buffers: Buffers, gradients: Gradients, totals: _Totals, bias_wanted: bool) -> None:
        S = self.S
        totals.add("logit_scale", gradients.scale.view(self.count, S.heads, -1).sum((0, 2)))
        if not bias_wanted:
            return
        tiles = (self._blocks(S.queries), self._blocks(S.keys))
        groups = min(self.count, max(1, 2 * processors(self.x) // (S.heads * tiles[0] * tiles[1])))
        sums = self.x.new_empty(groups, S.heads, S.area, S.area, dtype=torch.float32)
        given = (self.weights, buffers, gradients._replace(bias=sums), *self.image, self.first, self.count)
        launch(kernels.bias_gradient, (groups * S.heads, *tiles), *given, S=S, **_OPTIONS)
        bias = self.weights.bias / math.log2(math.e)  # 16 sigmoid(table), whose derivative is bias (1 - bias / 16)
        by_offset = offset_sums(sums.sum(0), S.window)
        totals.add("bias_table", (by_offset * bias * (1 - bias / 16)).T)

    def _of_norm(self, rows: Rows, of_x: Tensor, totals: _Totals) -> None:
        blocks = self._blocks(self.S.tokens)
        out = NormGradient(of_x, self.x.new_empty(self.count, blocks, 2, self.S.channels, dtype=torch.float32))
        given = (self.x, self.weights, rows, out, *self.image, self.first)
        launch(kernels.norm_gradient, (self.count, blocks), *given, S=self.S, **_OPTIONS)
        sums = out.norm.sum((0, 1))
        totals.add("norm_weight", sums[0])
        totals.add("norm_bias", sums[1])


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a^T b in float32: (T, m), (T, n) -> (m, n)."""
    if a.dtype == torch.float32 or a.device.type != "cuda":
        return a.float().T @ b.float()
    return (a.T @ b).float()


def offset_sums(pairs: Tensor, window: int) -> Tensor:
    """Sums of (heads, N, N) over pairs of tokens with the same offset: (heads, (2w-1)^2), in the order of the table."""
    grid = pairs.unflatten(2, (window, window)).unflatten(1, (window, window))  # heads, y, x, y', x'
    across = _diagonal_sums(grid.transpose(2, 3))  # heads, y, y', x - x'
    down = _diagonal_sums(across.permute(0, 3, 1, 2))  # heads, x - x', y - y'
    return down.transpose(1, 2).flatten(1)


def _diagonal_sums(square: Tensor) -> Tensor:
    """(..., w, w) -> (..., 2w - 1): entry r sums the elements (a, b) with a - b + w - 1 = r."""
    w = square.shape[-1]
    # Rows are padded to 2w and read as rows of 2w - 1, so that each is shifted one place further right.
    sheared = F.pad(square.flip(-1), (0, w)).flatten(-2)[..., :-w].unflatten(-1, (w, 2 * w - 1))
    return sheared.sum(-2)
