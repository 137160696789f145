"""Sizes of blocks, warps and stages of the Triton kernels. Imports no triton.

Chosen by compiling for gfx942 (64 KB of shared memory) and sm_90 (227 KB): the largest blocks that fit and spilled no
or few registers (`tests/kernels/triton/test_compile.py`). They were not tuned by timing.
"""

from __future__ import annotations

import torch

_FFN = ("BLOCK_P", "BLOCK_H", "num_warps", "num_stages")
_CONV = ("BLOCK_P", "BLOCK_N", "BLOCK_C", "num_warps", "num_stages")
_ATTENTION = ("tokens", "queries", "keys", "chunk", "programs", "num_warps", "num_stages")
_MORE = 2**31

# Kernel -> names, and for float32 and the half types (largest size, values). The size is C, and d, the channels of a
# head, for swda_attention.
SIZES: dict[str, tuple[tuple[str, ...], dict[str, tuple[tuple[int, tuple[int, ...]], ...]]]] = {
    "gated_ffn": (
        _FFN,
        {
            "float32": (
                *((48, (128, 32, 8, 3)), (96, (128, 32, 8, 2)), (192, (64, 16, 8, 2))),
                (_MORE, (32, 16, 8, 1)),
            ),
            "half": (
                *((48, (128, 64, 8, 3)), (96, (128, 32, 8, 3)), (192, (128, 32, 8, 2))),
                (_MORE, (64, 16, 8, 2)),
            ),
        },
    ),
    "gated_ffn_backward": (
        _FFN,
        {
            "float32": (
                *((48, (128, 32, 8, 2)), (96, (64, 16, 8, 2)), (192, (32, 16, 4, 2))),
                (_MORE, (16, 16, 4, 1)),
            ),
            "half": ((96, (128, 32, 8, 2)), (192, (64, 16, 8, 2)), (_MORE, (32, 16, 8, 2))),
        },
    ),
    "gated_ffn_weights": (
        _FFN,
        {
            "float32": ((48, (64, 64, 8, 3)), (192, (32, 64, 8, 3)), (_MORE, (16, 32, 4, 2))),
            "half": ((192, (64, 64, 8, 3)), (_MORE, (32, 64, 8, 3))),
        },
    ),
    "norm_silu_conv3x3": (
        _CONV,
        {
            "float32": ((_MORE, (64, 64, 16, 8, 2)),),
            "half": ((32, (128, 64, 32, 8, 3)), (_MORE, (128, 64, 32, 8, 2))),
        },
    ),
    "swda_attention": (
        _ATTENTION,
        {
            "float32": ((24, (32, 64, 32, 16, 3, 4, 1)), (_MORE, (16, 32, 32, 16, 2, 4, 1))),
            "half": ((24, (64, 64, 32, 32, 2, 4, 1)), (_MORE, (32, 64, 32, 16, 2, 4, 1))),
        },
    ),
}


def blocks_for(kernel: str, size: int, dtype: torch.dtype) -> dict[str, int]:
    """The kernel's blocks by name, with num_warps and num_stages, for C (or d) channels of this dtype."""
    names, by_dtype = SIZES[kernel]
    listed = by_dtype["float32" if dtype == torch.float32 else "half"]
    values = next(values for most, values in listed if size <= most)
    return dict(zip(names, values, strict=True))
