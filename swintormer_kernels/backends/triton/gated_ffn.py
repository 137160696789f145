"""gated_ffn through ffn_kernels.py: float32, bfloat16, float16; channels_last and NCHW as they are, others copied.

Memory beside the result: none forward; backward what `BAND_BYTES` says and the gradients. Only x is saved between them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from ...derived import derived
from . import ffn_kernels
from .ffn_kernels import PackedFFN
from .runtime import choice, launch, precision

if TYPE_CHECKING:
    from swintormer_kernels.ops.gated_ffn import FFNWeights

HIDDEN_MULTIPLE = 64  # every BLOCK_H divides it, so loops over hidden channels need no mask


def gated_ffn(x: Tensor, weights: FFNWeights) -> Tensor:
    """See `swintormer_kernels.ops.gated_ffn`."""
    out = torch.empty_like(x)
    if x.numel() == 0:
        return out
    dense = dense_layout(x)
    result = out if out.stride() == dense.stride() else torch.empty_like(dense)
    tuned = choice("gated_ffn", {"C": x.shape[1]}, x)
    sizes = sizes_of(weights)
    pixels, blocks, programs = blocks_of(dense, tuned["BLOCK_P"])
    launch(
        ffn_kernels.forward,
        (programs,),
        *(dense, result, pack(weights), pixels, blocks),
        **sizes,
        ROWS=is_rows(dense),
        PRECISION=precision(),
        **tuned,
    )
    return out if result is out else out.copy_(result)


# ---- layout ----------------------------------------------------------------------------------------------------------


def is_rows(x: Tensor) -> bool:
    """Whether the batch is one dense matrix (pixels, C)."""
    return x.is_contiguous(memory_format=torch.channels_last)


def dense_layout(x: Tensor) -> Tensor:
    """x if it lies in channels_last or NCHW, else a copy in NCHW."""
    return x if is_rows(x) else x.contiguous()


def blocks_of(x: Tensor, block: int) -> tuple[int, int, int]:
    """(pixels of an image, its blocks, blocks in all); in rows the batch counts as one image."""
    batch, _, height, width = x.shape
    images, pixels = (1, batch * height * width) if is_rows(x) else (batch, height * width)
    blocks = triton.cdiv(pixels, block)
    return pixels, blocks, images * blocks


# ---- weights ---------------------------------------------------------------------------------------------------------


def sizes_of(weights: FFNWeights) -> dict[str, int]:
    """C, HIDDEN, PIECES and PIECE of the kernels: one piece or three, whichever pads C less."""
    channels, hidden = weights.project_out.shape[:2]
    pieces = min((1, 3), key=lambda pieces: pieces * _piece(channels, pieces))
    return {
        "C": channels,
        "HIDDEN": triton.cdiv(hidden, HIDDEN_MULTIPLE) * HIDDEN_MULTIPLE,
        "PIECES": pieces,
        "PIECE": _piece(channels, pieces),
    }


def _piece(channels: int, pieces: int) -> int:
    return max(16, triton.next_power_of_2(triton.cdiv(channels, pieces)))


def pack(weights: FFNWeights) -> PackedFFN:
    """The weights as the kernels take them, made once for each version of a parameter."""
    sizes = sizes_of(weights)
    padded = (sizes["HIDDEN"], sizes["PIECES"] * sizes["PIECE"])

    def made(source: Tensor | None, how: Any) -> Tensor | None:
        return None if source is None else derived([source], (how, padded), lambda: how(source, *padded).contiguous())

    return PackedFFN(
        weights.norm_weight,
        weights.norm_bias,
        made(weights.project_in, _packed_in),
        made(weights.project_out, _packed_out),
        made(weights.project_in_bias, _packed_in_bias),
        weights.project_out_bias,
    )


def _packed_in(matrix: Tensor, hidden: int, channels: int) -> Tensor:
    """(2 hid, C, 1, 1) -> (2, HIDDEN, CP)."""
    rows = matrix.flatten(1).unflatten(0, (2, -1))
    return F.pad(rows, (0, channels - rows.shape[2], 0, hidden - rows.shape[1]))


def _packed_out(matrix: Tensor, hidden: int, channels: int) -> Tensor:
    """(C, hid, 1, 1) -> (HIDDEN, CP)."""
    rows = matrix.flatten(1).T
    return F.pad(rows, (0, channels - rows.shape[1], 0, hidden - rows.shape[0]))


def _packed_in_bias(bias: Tensor, hidden: int, channels: int) -> Tensor:
    """(2 hid,) -> (2, HIDDEN)."""
    halves = bias.unflatten(0, (2, -1))
    return F.pad(halves, (0, hidden - halves.shape[1]))
