"""Arguments of the attention kernels: packed weights, and sizes with block sizes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from swintormer_kernels.backends.triton.blocks import blocks_for
from swintormer_kernels.backends.triton.layout import is_rows
from swintormer_kernels.backends.triton.runtime import precision
from swintormer_kernels.backends.triton.window_parts import Sizes, Weights
from swintormer_kernels.packed import packed_weight

if TYPE_CHECKING:
    from swintormer_kernels.records import AttentionWeights


def sizes_of(x: Tensor, weights: AttentionWeights, window: int, shift: int) -> Sizes:
    """The constants of the compiled code for these tensors."""
    tuned = blocks_for("swda_attention", x.shape[1] // 2 // weights.logit_scale.shape[0], x.dtype)
    return Sizes(
        channels=x.shape[1],
        heads=weights.logit_scale.shape[0],
        window=window,
        tokens=tuned["tokens"],
        queries=tuned["queries"],
        keys=tuned["keys"],
        chunk=tuned["chunk"] if x.shape[1] % tuned["chunk"] == 0 else 16,  # 48 is three of 16
        outputs=next((size for size in (64, 32, 16) if x.shape[1] % size == 0), 16),
        rows=is_rows(x),
        shifted=shift > 0,
        precision=precision(),
    )


def pack(weights: AttentionWeights) -> Weights:
    """Contiguous weights; 16 sigmoid(table) log2(e) is cached for each version of the table."""
    dense: dict[str, Any] = {name: None if t is None else t.contiguous() for name, t in weights._asdict().items()}
    table = dense.pop("bias_table")
    bias = packed_weight([weights.bias_table], "triton bias", lambda: bias_in_powers_of_two(table))
    return Weights(**dense, bias=bias)


def bias_in_powers_of_two(table: Tensor) -> Tensor:
    """16 sigmoid(table) log2(e) in float32: ((2w-1)^2, heads) -> (heads, (2w-1)^2)."""
    return (16 * math.log2(math.e) * torch.sigmoid(table.detach().float())).T.contiguous()
