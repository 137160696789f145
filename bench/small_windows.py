"""Where few tokens meet many channels: reference / cpu on shapes that fill little of a vector, the worst ones last.

`python -m bench.small_windows` (minutes; OMP_NUM_THREADS=1 for one thread). Both take turns; the best of each
counts, because these calls are shorter than a time slice of a busy machine. The `slower` predicates in
swintormer_kernels/ops come from it: none of what it lists below 1 may be chosen by automatic selection.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch

from bench.measure import print_worst
from swintormer_kernels.ops import gated_ffn, swda_attention, swda_block
from swintormer_kernels.testing.block_cases import attention_weights, ffn_weights

SIDES, CHANNELS, HEADS, WINDOWS, BATCHES = (2, 3, 4, 5, 6, 7, 8), (8, 16, 64, 128, 384), (1, 4), (1, 8), (1, 4)


def calls() -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    """(name, op, arguments)."""
    for side, channels, heads, across, batch in itertools.product(SIDES, CHANNELS, HEADS, WINDOWS, BATCHES):
        if batch * across > 8 and channels > 64:
            continue  # enough work for every backend
        x = torch.randn(batch, channels, across * side, across * side).contiguous(memory_format=torch.channels_last)
        attention = attention_weights(channels, heads, side, False)
        ffn = ffn_weights(channels, int(channels * 2.66), False)
        name = f"window {side}, C {channels}, heads {heads}, {across}x{across} windows, batch {batch}"
        yield f"swda_attention, {name}", swda_attention.swda_attention, (x, attention, side, side // 2)
        yield f"swda_block, {name}", swda_block.swda_block, (x, attention, ffn, side, side // 2)
        if heads == 1:
            yield f"gated_ffn, {name}", gated_ffn.gated_ffn, (x, ffn)


if __name__ == "__main__":
    print_worst(calls(), 40)
