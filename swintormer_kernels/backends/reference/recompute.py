"""Gradients of the block by computing the reference again, a few windows at a time.

Windows share nothing but the weights, so the rolled map is cut into bands of whole window rows; each band is run
forward and backward by itself and freed. Memory stays that of one band. Cost: one forward more than the reference's own
backward.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .gated_ffn import gated_ffn
from .layers import from_windows, layer_norm, shift_mask, to_windows
from .swda_attention import attend_windows

if TYPE_CHECKING:
    from collections.abc import Callable

    from swintormer_kernels.ops.gated_ffn import FFNWeights
    from swintormer_kernels.ops.swda_attention import AttentionWeights

_BAND = 64  # windows times heads at a time: about 200 MB of logits and their gradients at window 16


def block_gradients(
    grad: Tensor, x: Tensor, attention: AttentionWeights, ffn: FFNWeights | None, window: int, shift: int
) -> list[Tensor]:
    """Gradients of swda_block, or of swda_attention if `ffn` is None, for those inputs that require one.

    First that of x, then those of the weights in the order of their fields.
    """
    b, _, h, w = x.shape
    heads = attention.logit_scale.shape[0]
    rows = window * max(1, _BAND // max(1, b * heads * (w // window)))

    def block(band: Tensor, top: int) -> Tensor:
        y = band + _attention(band, attention, window, _band_mask(h, top, band, window, shift))
        return y if ffn is None else gated_ffn(y, ffn)

    return _in_bands(block, grad, x, (*attention, *(ffn or ())), rows, shift)


def ffn_gradients(grad: Tensor, x: Tensor, ffn: FFNWeights) -> list[Tensor]:
    """Gradients of gated_ffn for those inputs that require one, x first."""
    rows = max(1, _BAND * 256 // max(1, x.shape[0] * x.shape[3]))
    return _in_bands(lambda band, _: gated_ffn(band, ffn), grad, x, tuple(ffn), rows, shift=0)


def _in_bands(
    function: Callable[[Tensor, int], Tensor],
    grad: Tensor,
    x: Tensor,
    weights: tuple[Tensor | None, ...],
    rows: int,
    shift: int,
) -> list[Tensor]:
    """Gradients of `function(band, its first row)`, over bands of `rows` rows of the rolled map."""
    wanted = [weight for weight in weights if weight is not None and weight.requires_grad]
    totals = [torch.zeros_like(weight) for weight in wanted]
    bands: list[Tensor] = []
    rolled, rolled_grad = (torch.roll(t.detach(), (-shift, -shift), dims=(2, 3)) for t in (x, grad))
    for top in range(0, x.shape[2] if x.numel() else 0, rows):
        band = rolled[:, :, top : top + rows].requires_grad_(x.requires_grad)
        with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
            y = function(band, top)
            found = torch.autograd.grad(y, wanted + [band] * x.requires_grad, rolled_grad[:, :, top : top + rows])
        for total, gradient in zip(totals, found, strict=False):
            total.add_(gradient)
        bands += found[len(wanted) :]
    if not x.requires_grad:
        return totals
    of_x = torch.cat(bands, dim=2) if x.numel() else torch.zeros_like(x)
    return [torch.roll(of_x, (shift, shift), dims=(2, 3)), *totals]


def _attention(band: Tensor, weights: AttentionWeights, window: int, mask: Tensor | None) -> Tensor:
    b, _, h, w = band.shape
    normed = layer_norm(band, weights.norm_weight, weights.norm_bias)
    return from_windows(attend_windows(to_windows(normed, window), weights, mask), b, h, w)


def _band_mask(h: int, top: int, band: Tensor, window: int, shift: int) -> Tensor | None:
    """The band's part of the shift mask. Only the last window row has regions above one another."""
    if not shift:
        return None
    rows, w = band.shape[2:]
    if top + rows == h:
        return shift_mask(rows, w, window, shift, band)
    return shift_mask(rows + window, w, window, shift, band)[: -(w // window)]
