"""What is timed and watched on a GPU, and the calls that compile Triton's kernels before they are timed."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch

import swintormer_kernels as sk
from bench.gpu.calls import both, on, on_device
from swintormer_kernels.registry import Op
from swintormer_kernels.testing.block_cases import Shape, arguments_of
from swintormer_kernels.testing.case import seeded
from swintormer_kernels.testing.cases import case_of

TILES, TILE = 40, 256  # 40 tiles of 256 are a picture of 1680x1120
BLOCKS = ("swda_block", "swda_attention", "gated_ffn")
RELEASED = {  # blocks of the released network -> how many of each it has
    "level1, C 48, shifted": 2,
    "decoder_level1, C 96, shifted": 6,
    "level2, C 96, shifted": 8,
    "level3, C 192, shifted": 12,
    "latent, C 384, shifted": 8,
}
SMALL = {  # blocks of the network `small` for a tile of 256
    "small, level1, C 24": Shape(24, 1, 128, 128, 4, window=8),
    "small, decoder_level1, C 48": Shape(48, 1, 128, 128, 4, window=8),
    "small, level2, C 48": Shape(48, 2, 64, 64, 4, window=8),
    "small, level3, C 96": Shape(96, 4, 32, 32, 4, window=8),
    "small, latent, C 192": Shape(192, 8, 16, 16, 4, window=8),
}
NOT_SHIFTED = {f"{case}, not shifted": replace(shape, shift=0) for case, shape in SMALL.items()}
TRAINED = (*SMALL, *NOT_SHIFTED)  # every block of a training step of `small`
DENOISER = {
    "norm_silu_conv3x3": ("160 to 160, 128x128", "320 to 320, 64x64", "640 to 640, 16x16"),
    "group_norm_silu": ("160x128x128, channels_last", "320x64x64, channels_last"),
    "ddim_step": ("tile 4x32x32, eta 1, clip", "100 MP image 4x1024x1536, eta 1, clip"),
}
# For compute-sanitizer: every size of a head and every number of channels once.
SMALLEST = {
    "d 12, w 8, C 24": Shape(24, 1, 8, 16, 3, window=8, bias=True),
    "d 24, w 16, C 48": Shape(48, 1, 16, 16, 5),
    "d 16, w 8, C 32": Shape(32, 1, 8, 8, 1, window=8),
    "d 32, w 16, C 64": Shape(64, 1, 16, 16, 5),
    "d 32, w 8, C 128": Shape(128, 2, 8, 8, window=8),
    "d 32, w 8, C 256": Shape(256, 4, 8, 8, 4, window=8),
    "d 48, w 8, C 96": Shape(96, 1, 8, 8, window=8),
    "d 16, w 8, C 192": Shape(192, 6, 8, 8, 4, window=8),
    "d 24, w 8, C 384": Shape(384, 8, 8, 8, 1, window=8),
}
SMALLEST_OF_DENOISER = {
    "norm_silu_conv3x3": "32 to 32, 32x32",
    "group_norm_silu": "32x32x32, channels_last",
    "ddim_step": "odd sizes, sliced",
}


def timed() -> Iterator[tuple[str, str, int]]:
    """(op, case, tiles) of the released network, then of `small`, then of the denoiser."""
    for case in (*RELEASED, *SMALL):
        for op in BLOCKS:
            yield op, case, TILES
    for op, cases in DENOISER.items():
        for case in cases:
            yield op, case, 1


def given(op: str, case: str, device: str, tiles: int = 1, dtype: torch.dtype = torch.bfloat16) -> tuple[Any, Any]:
    """Arguments and keywords of a case. gated_ffn knows no shifts."""
    shape = SMALL.get(case) or NOT_SHIFTED.get(case) or SMALLEST.get(case)
    if shape is not None:
        made = seeded(case, partial(arguments_of, op, shape)).make(0)
    else:
        made = case_of(op, case.removesuffix(", shifted") if op == "gated_ffn" else case).make(0)
    return on_device(made, device, dtype, tiles)


def run_smallest(device: str) -> None:
    """Every CUDA kernel on a small case, for compute-sanitizer."""
    pairs = [("swda_block", case) for case in SMALLEST] + [("gated_ffn", next(iter(SMALLEST)))]
    for dtype in (torch.bfloat16, torch.float16):
        for op, case in (*pairs, *SMALLEST_OF_DENOISER.items()):
            on("cuda", getattr(sk, op), *given(op, case, device, dtype=dtype))
    if device != "cpu":
        torch.cuda.synchronize()


def warm(which: str, device: str) -> None:
    """Triton's kernels for a block of the released network, or for all else ("others"), compiled and cached."""
    shapes = list(SMALL) if which == "others" else [which]
    pairs = [(op, case, 2) for case in shapes for op in BLOCKS]
    if which == "others":
        pairs += [(op, case, 1) for op, cases in DENOISER.items() for case in cases]
    for op, case, tiles in pairs:
        or_told(on, "triton", function(op), *given(op, case, device, tiles))


def warm_training(which: str, device: str) -> None:
    """Triton's kernels for forward and backward of one of TRAINED, compiled and cached."""
    both("triton", sk.swda_block, *given("swda_block", which, device, tiles=2))


def or_told(call: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """What the call returns; None if it raises, which is printed: what follows is worth timing all the same."""
    try:
        return call(*arguments, **keywords)
    except Exception:
        traceback.print_exc()
        return None


def function(op: str) -> Callable[..., Any]:
    """The public function of an op."""
    found: Callable[..., Any] = getattr(sk, op)
    return found


def op_of(op: str) -> Op:
    found: Op = getattr(sk, op).op
    return found
