"""Sizes for which there are kernels. Each function returns None, or why they cannot serve."""

from __future__ import annotations

import torch
from torch import Tensor

from swintormer_kernels import native
from swintormer_kernels.backends.cuda import device
from swintormer_kernels.records import AttentionWeights
from swintormer_kernels.transforms import constant_in_compiled_code

HEADS = (12, 16, 24, 32, 48)  # channels of a head
WINDOWS = (8, 16)
MOST_NORMED = 2048  # of a group norm: 8 channels for each of 256 threads
CHANNELS = (24, 32, 48, 64, 96, 128, 192, 256, 384)


def attention_lacks(x: Tensor, weights: AttentionWeights, window: int) -> str | None:
    """Sizes of `swda_attention`."""
    head = x.shape[1] // 2 // weights.logit_scale.shape[0]
    if head not in HEADS:
        return f"the cuda backend takes heads of {_listed(HEADS)} channels, found {head}"
    if window not in WINDOWS:
        return f"the cuda backend takes windows of 8 or 16, found {window}"
    return tail_lacks(x)


def _listed(numbers: tuple[int, ...]) -> str:
    return f"{', '.join(map(str, numbers[:-1]))} or {numbers[-1]}"


def attention_slower(op: str, x: Tensor, weights: AttentionWeights, window: int, gradients: bool) -> str | None:
    """`slower` predicate of the ops with attention: None at the sizes at which the kernels were timed and faster.

    Weights are packed again whenever they change, in some dozens of launches, and that was not timed: each step of a
    training changes them, and autocast converts them in each call.
    """
    if device.EMULATOR is None and (gradients or torch.is_autocast_enabled(x.device.type)):
        return f"has not been timed {'with gradients' if gradients else 'under autocast'}; ask for it by name"
    head = x.shape[1] // 2 // weights.logit_scale.shape[0]
    return device.why_slower(op, x, device.Size(x.shape[1], head, window))


def tail_lacks(x: Tensor) -> str | None:
    """Sizes of `gated_ffn` and of the second half of a block."""
    if x.shape[1] not in CHANNELS:
        return f"the cuda backend takes {_listed(CHANNELS)} channels, found {x.shape[1]}"
    return _shared_lacks(x.shape[1], x.device) if x.device.type == "cuda" else None


@constant_in_compiled_code
def _shared_lacks(channels: int, where: torch.device) -> str | None:
    smallest = native.extension().cuda_choose_tail(True, channels, True, 1, 1, 2**31 - 1)
    needed, limit = smallest[2], device.facts(where).shared_bytes
    if needed > limit:
        return f"{channels} channels take {needed} bytes of shared memory a block, and this GPU has {limit}"
    return None


def norm_lacks(x: Tensor) -> str | None:
    """Sizes of `group_norm_silu` and `norm_silu_conv3x3`."""
    if x.ndim == 4 and (x.shape[1] % 8 or x.shape[1] > MOST_NORMED):
        return f"the cuda backend takes multiples of 8 channels up to {MOST_NORMED}, found {x.shape[1]}"
    return None
