"""Where small shapes leave vectors, tiles and panels empty: reference / cpu, forward, the worst ratios last.

`python -m bench.small_shapes windows` (minutes) or `convs` (half a minute); OMP_NUM_THREADS=1 for one thread. Both take
turns; the best of each counts, because these calls are shorter than a time slice of a busy machine. The `slower`
predicates in swintormer_kernels/ops come from it: automatic selection may choose none of what it lists below 1.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch

import swintormer_kernels as sk
from swintormer_kernels.ops import gated_ffn, norm_silu_conv3x3, swda_attention, swda_block, upsample_conv3x3
from swintormer_kernels.testing import block_cases
from swintormer_kernels.testing.denoiser_cases import conv_weights, norm_weights
from swintormer_kernels.testing.timing import in_turn

Calls: TypeAlias = Iterator[tuple[str, Callable[..., Any], tuple[Any, ...]]]
"""(name, op, arguments)."""


def rows(*shape: int) -> torch.Tensor:
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


def windows() -> Calls:
    """Few tokens and many channels."""
    sides, sizes = (2, 3, 4, 5, 6, 7, 8), (8, 16, 64, 128, 384)
    for side, channels, heads, across, batch in itertools.product(sides, sizes, (1, 4), (1, 8), (1, 4)):
        if batch * across > 8 and channels > 64:
            continue  # enough work for every backend
        x = rows(batch, channels, across * side, across * side)
        attention = block_cases.attention_weights(channels, heads, side, False)
        ffn = block_cases.ffn_weights(channels, int(channels * 2.66), False)
        name = f"window {side}, C {channels}, heads {heads}, {across}x{across} windows, batch {batch}"
        yield f"swda_attention, {name}", swda_attention.swda_attention, (x, attention, side, side // 2)
        yield f"swda_block, {name}", swda_block.swda_block, (x, attention, ffn, side, side // 2)
        if heads == 1:
            yield f"gated_ffn, {name}", gated_ffn.gated_ffn, (x, ffn)


def convs() -> Calls:
    """Small images and few channels."""
    sides, sizes, outs = (1, 2, 3, 4, 6, 8, 16, 32), (4, 16, 32, 64, 160, 640), (3, 8, 16, 32, 64, 640)
    for side, channels, out, batch in itertools.product(sides, sizes, outs, (1, 4)):
        if batch * side**2 * channels * out > 32 * 32 * 64 * 64:
            continue  # enough work for every backend
        x, norm = rows(batch, channels, side, side), norm_weights(batch, channels)
        conv = conv_weights(batch, channels, out, (side, side))
        last = {key: getattr(conv, key).contiguous(memory_format=torch.channels_last) for key in ("weight", "skip")}
        conv = conv._replace(**last)
        name = f"{channels} to {out} channels, {side}x{side}, batch {batch}"
        yield f"norm_silu_conv3x3, {name}", norm_silu_conv3x3.norm_silu_conv3x3, (x, norm, conv, 4)
        up = sk.UpsampleWeights(conv.weight, conv.bias)
        yield f"upsample_conv3x3, {name}", upsample_conv3x3.upsample_conv3x3, (x, up)


def ratio(op: Callable[..., Any], arguments: tuple[Any, ...]) -> float:
    """reference / cpu."""

    def call(backend: str) -> None:
        with sk.use_backend(backend), torch.inference_mode():
            op(*arguments)

    seconds = in_turn({name: lambda name=name: call(name) for name in ("reference", "cpu")}, rounds=9)
    return min(seconds["reference"]) / min(seconds["cpu"])


if __name__ == "__main__":
    kinds = {"windows": windows, "convs": convs}
    if sys.argv[1:] not in [[kind] for kind in kinds]:
        sys.exit("which shapes: `windows` or `convs`?")
    found = [(ratio(op, given), sk.explain(op, *given).backend, name) for name, op, given in kinds[sys.argv[1]]()]
    for value, chosen, name in sorted(found, reverse=True)[-60:]:
        print(f"{value:5.2f}  {name} ({chosen} is chosen)")
