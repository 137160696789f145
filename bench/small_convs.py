"""Where small images or few channels leave Winograd's tiles and panels empty: reference / cpu, the worst ones last.

`python -m bench.small_convs` (half a minute; OMP_NUM_THREADS=1 for one thread). Both take turns; the best of each
counts, because these calls are shorter than a time slice of a busy machine. The `slower` predicates of
norm_silu_conv3x3 and upsample_conv3x3 come from it: none of what it lists below 1 may be chosen by automatic selection.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch

import swintormer_kernels as sk
from bench.measure import print_worst
from swintormer_kernels.ops import norm_silu_conv3x3, upsample_conv3x3
from swintormer_kernels.testing.denoiser_cases import conv_weights, norm_weights

SIDES, CHANNELS, OUTS, BATCHES = (1, 2, 3, 4, 6, 8, 16, 32), (4, 16, 32, 64, 160, 640), (3, 8, 16, 32, 64, 640), (1, 4)


def calls() -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    """(name, op, arguments)."""
    for side, channels, out, batch in itertools.product(SIDES, CHANNELS, OUTS, BATCHES):
        if batch * side**2 * channels * out > 32 * 32 * 64 * 64:
            continue  # enough work for every backend
        x = torch.randn(batch, channels, side, side).contiguous(memory_format=torch.channels_last)
        norm = norm_weights(batch, channels)
        conv = conv_weights(batch, channels, out, (side, side))
        conv = conv._replace(
            weight=conv.weight.contiguous(memory_format=torch.channels_last),
            skip=conv.skip.contiguous(memory_format=torch.channels_last),
        )
        name = f"{channels} to {out} channels, {side}x{side}, batch {batch}"
        yield f"norm_silu_conv3x3, {name}", norm_silu_conv3x3.norm_silu_conv3x3, (x, norm, conv, 4)
        up = sk.UpsampleWeights(conv.weight, conv.bias)
        yield f"upsample_conv3x3, {name}", upsample_conv3x3.upsample_conv3x3, (x, up)


if __name__ == "__main__":
    print_worst(calls(), 60)
