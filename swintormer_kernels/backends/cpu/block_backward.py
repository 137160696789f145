"""Gradients of the block on the CPU: matrix products in torch, operations inside windows in csrc/block/swda_core.cpp.

Windows are independent of each other, so the rolled map is divided into parts of whole windows. For each part the
forward pass is computed again, with its intermediate results (tokens in rows, channels_last), and then the backward:

    u = qkv norm1(x)      a = core(u)                y = x + proj a
    h = in norm2(y)       out = y + out(h1 h2)

Only x is kept from the forward pass. MACs: three times those of the forward (once to compute it again, twice for the
gradients), less for weights that require no gradient. Memory: the gradient of x and the tensors of one part,
_PART_BYTES.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from swintormer_kernels import native
from swintormer_kernels.backends.cpu.layout import View, dense, view
from swintormer_kernels.backends.cpu.packing import MAX_LOG_SCALE, pack_core

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from swintormer_kernels.records import AttentionWeights, FFNWeights

_PART_BYTES = 64 << 20
"""Bytes of a part's intermediate tensors, unless a single window takes more. 64 MiB are 8000 tokens at C = 96; torch's
products reach their full rate from about 1000 tokens on."""

_EPS = 1e-5  # of LayerNorm

Sums = list[Tensor | None]
"""Gradients of a record of weights, in the order of its fields; None for absent weights and for unwanted gradients."""


def block_gradients(
    grad: Tensor, x: Tensor, attention: AttentionWeights, ffn: FFNWeights | None, window: int, shift: int
) -> list[Tensor]:
    """Gradients of swda_block, or of swda_attention if `ffn` is None, for those inputs that require one, in order."""
    channels, heads = x.shape[1], attention.logit_scale.shape[0]
    core = _Core(pack_core(attention, window), heads, window, shift)

    def backward(tokens: _Tokens, grad: Tensor) -> tuple[Tensor, Sums]:
        recomputed = _recompute_attention(tokens, attention, core)
        of_ffn: Sums = []
        if ffn is not None:
            y = F.linear(recomputed.attended, attention.proj.flatten(1), attention.proj_bias).add_(tokens.rows)
            grad, of_ffn = _ffn_backward(y, grad, ffn)
        of_x, of_attention = _attention_backward(tokens, recomputed, grad, attention, core)
        return of_x, of_attention + of_ffn

    hidden = ffn.project_out.shape[1] if ffn is not None else 0
    # Floats per token: 7C in the attention, 5C + 6 hidden in the FFN, 2C for x and its gradient. Sums of a window: 30C
    # and its bias table.
    sums = 30 * channels + heads * (2 * window - 1) ** 2
    floats = 14 * channels + 6 * hidden + -(-sums // window**2)
    return _in_parts(backward, grad, x, (*attention, *(ffn or ())), _Parts(window, shift, floats))


def ffn_gradients(grad: Tensor, x: Tensor, ffn: FFNWeights) -> list[Tensor]:
    """Gradients of gated_ffn for those inputs that require one, x first."""
    channels, hidden = ffn.project_out.shape[:2]
    return _in_parts(
        lambda tokens, grad: _ffn_backward(tokens.rows, grad, ffn),
        grad,
        x,
        tuple(ffn),
        _Parts(1, 0, 7 * channels + 6 * hidden),
    )


# ---- parts -----------------------------------------------------------------------------------------------------------


class _Part(NamedTuple):
    """A part of the rolled map, made of whole windows: ranges of images, rows and columns."""

    images: slice
    rows: slice
    columns: slice


class _Parts(NamedTuple):
    window: int
    shift: int
    floats: int  # of intermediate tensors per token

    def walk(self, b: int, h: int, w: int) -> Iterator[_Part]:
        """Yields parts that cover (b, h, w): whole rows of windows of all images if one fits, else smaller ones."""
        windows = max(1, _PART_BYTES // (4 * self.floats * self.window**2))
        across = w // self.window
        columns = min(w, windows * self.window)
        images = min(b, max(1, windows // across))
        rows = self.window * max(1, windows // (across * b))
        for image in range(0, b, images):
            for top in range(0, h, rows):
                for left in range(0, w, columns):
                    yield _Part(
                        slice(image, min(b, image + images)),
                        slice(top, min(h, top + rows)),
                        slice(left, min(w, left + columns)),
                    )


class _Tokens(NamedTuple):
    rows: Tensor  # (T, C), the part's pixels in row-major order
    shape: tuple[int, int, int]  # images, height and width of the part
    last: tuple[bool, bool]  # whether it contains the last row, and the last column, of the map


def _in_parts(
    backward: Callable[[_Tokens, Tensor], tuple[Tensor, Sums]],
    grad: Tensor,
    x: Tensor,
    weights: tuple[Tensor | None, ...],
    parts: _Parts,
) -> list[Tensor]:
    """Gradients of x and `weights`, of those that require one, summed over the parts of the rolled map."""
    b, c, h, w = x.shape
    totals = [None if weight is None else torch.zeros_like(weight) for weight in weights]
    of_x = torch.empty_like(x)
    rows, columns = (torch.arange(side, device="cpu").roll(-parts.shift) for side in (h, w))
    for part in parts.walk(b, h, w) if x.numel() else ():
        place = (part.images, slice(None), rows[part.rows, None], columns[part.columns])
        shape = (part.images.stop - part.images.start, *(s.stop - s.start for s in part[1:]))
        pixels, grads = (t[place].permute(0, 2, 3, 1).reshape(-1, c) for t in (x, grad))
        last = (part.rows.stop == h, part.columns.stop == w)
        found, sums = backward(_Tokens(pixels, shape, last), grads)
        of_x[place] = found.view(*shape, c).permute(0, 3, 1, 2)
        for total, value in zip(totals, sums, strict=True):
            if total is not None and value is not None:
                total.add_(value.reshape(total.shape))
    wanted = zip((x, *weights), (of_x, *totals), strict=True)
    return [value for source, value in wanted if value is not None and source is not None and source.requires_grad]


# ---- the two halves on the tokens of a part --------------------------------------------------------------------------


class _Normed(NamedTuple):
    out: Tensor
    mean: Tensor
    inverse: Tensor  # 1 / sqrt(variance + eps)


def _norm(rows: Tensor, weight: Tensor, bias: Tensor) -> _Normed:
    return _Normed(*torch.ops.aten.native_layer_norm(rows, rows.shape[1:], weight, bias, _EPS))


def _norm_backward(grad: Tensor, rows: Tensor, normed: _Normed, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    """Gradients of rows, weight and bias."""
    return torch.ops.aten.native_layer_norm_backward(
        grad, rows, rows.shape[1:], normed.mean, normed.inverse, weight, bias, [True] * 3
    )


def _linear_backward(rows: Tensor, grad: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradients of weight (out, in) and bias of a 1x1 convolution of `rows` (T, in), those that are wanted."""
    of_bias = grad.sum(0) if bias is not None and bias.requires_grad else None
    return grad.T @ rows if weight.requires_grad else None, of_bias


def _ffn_backward(y: Tensor, grad: Tensor, ffn: FFNWeights) -> tuple[Tensor, Sums]:
    """Gradients of y and of the weights; y and grad (T, C)."""
    normed = _norm(y, ffn.norm_weight, ffn.norm_bias)
    x1, x2 = F.linear(normed.out, ffn.project_in.flatten(1), ffn.project_in_bias).chunk(2, dim=1)
    of_out, of_out_bias = _linear_backward(x1 * x2, grad, ffn.project_out, ffn.project_out_bias)
    of_gate = grad @ ffn.project_out.flatten(1)
    of_hidden = torch.cat((of_gate * x2, of_gate * x1), dim=1)
    of_in, of_in_bias = _linear_backward(normed.out, of_hidden, ffn.project_in, ffn.project_in_bias)
    of_y, of_weight, of_bias = _norm_backward(
        of_hidden @ ffn.project_in.flatten(1), y, normed, ffn.norm_weight, ffn.norm_bias
    )
    fields = {
        "norm_weight": of_weight,
        "norm_bias": of_bias,
        "project_in": of_in,
        "project_out": of_out,
        "project_in_bias": of_in_bias,
        "project_out_bias": of_out_bias,
    }
    return of_y.add_(grad), [fields[name] for name in ffn._fields]


class _Recomputed(NamedTuple):
    normed: _Normed
    u: Tensor  # (T, 3C)
    attended: Tensor  # (T, C)


def _recompute_attention(tokens: _Tokens, weights: AttentionWeights, core: _Core) -> _Recomputed:
    normed = _norm(tokens.rows, weights.norm_weight, weights.norm_bias)
    u = F.linear(normed.out, weights.qkv.flatten(1), weights.qkv_bias)
    return _Recomputed(normed, u, core.forward(u, tokens))


def _attention_backward(
    tokens: _Tokens, recomputed: _Recomputed, grad: Tensor, weights: AttentionWeights, core: _Core
) -> tuple[Tensor, Sums]:
    """Gradients of the part's tokens and of the weights; grad (T, C) is that of y."""
    of_proj, of_proj_bias = _linear_backward(recomputed.attended, grad, weights.proj, weights.proj_bias)
    of_u, of_dwconv, of_bias, of_log_scale = core.backward(recomputed.u, grad @ weights.proj.flatten(1), tokens)
    of_qkv, of_qkv_bias = _linear_backward(recomputed.normed.out, of_u, weights.qkv, weights.qkv_bias)
    of_x, of_weight, of_norm_bias = _norm_backward(
        of_u @ weights.qkv.flatten(1), tokens.rows, recomputed.normed, weights.norm_weight, weights.norm_bias
    )
    sigmoid = torch.sigmoid(weights.bias_table)
    fields: dict[str, Tensor | None] = {
        "norm_weight": of_weight,
        "norm_bias": of_norm_bias,
        "qkv": of_qkv,
        "dwconv": of_dwconv[:, :9],
        "proj": of_proj,
        "logit_scale": of_log_scale * (weights.logit_scale.flatten() <= MAX_LOG_SCALE),
        "bias_table": of_bias.T * (16 * sigmoid * (1 - sigmoid)),
        "qkv_bias": of_qkv_bias,
        "dwconv_bias": of_dwconv[:, 9],
        "proj_bias": of_proj_bias,
    }
    return of_x.add_(grad), [fields[name] for name in weights._fields]


class _Core(NamedTuple):
    """The functions of csrc/block/swda_core.h on the tokens of a part."""

    weights: Any  # of pack_core
    heads: int
    window: int
    shift: int

    def forward(self, u: Tensor, tokens: _Tokens) -> Tensor:
        """(T, 3C) -> (T, C)."""
        attended = u.new_empty(u.shape[0], u.shape[1] // 3)
        native.extension().swda_core(
            qkv=_image(u, tokens), attended=_image(attended, tokens), **self._common(attended, tokens)
        )
        return attended

    def backward(self, u: Tensor, grad: Tensor, tokens: _Tokens) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradients of u (T, 3C), of taps and bias of the depth-wise convolution (3C, 10), of the position bias
        (heads, (2w-1)^2) and of the logarithm of the scale (heads,)."""
        b, height, w = tokens.shape
        windows = b * (height // self.window) * (w // self.window)
        size = u.shape[1] // 6 // self.heads
        of_u = torch.empty_like(u)
        dwconv = u.new_empty(windows, 2, self.heads, 3, size, 10)
        bias = u.new_empty(windows, self.heads, (2 * self.window - 1) ** 2)
        log_scale = u.new_empty(windows, self.heads)
        native.extension().swda_core_backward(
            qkv=_image(u, tokens),
            grad_attended=_image(grad, tokens),
            grad_qkv=_image(of_u, tokens),
            grad_dwconv=dense(dwconv),
            grad_bias=dense(bias),
            grad_log_scale=dense(log_scale),
            **self._common(grad, tokens),
        )
        return of_u, dwconv.sum(0).transpose(1, 2).reshape(-1, 10), bias.sum(0), log_scale.sum(0)

    def _common(self, attended: Tensor, tokens: _Tokens) -> dict[str, Any]:
        threads = torch.get_num_threads()
        floats = native.extension().swda_core_scratch(attended.shape[1], self.heads, self.window)
        last_row, last_column = tokens.last
        return {
            "core": self.weights,
            "shift": self.shift,
            "last_row": last_row,
            "last_column": last_column,
            "scratch": dense(attended.new_empty(threads * floats)),
            "threads": threads,
        }


def _image(rows: Tensor, tokens: _Tokens) -> View:
    """(T, channels) as (images, channels, height, width)."""
    return view(rows.view(*tokens.shape, -1).permute(0, 3, 1, 2))
