"""The one call into the C++ engine that swda_block, swda_attention and gated_ffn share."""

from __future__ import annotations

import torch
from torch import Tensor

from swintormer_kernels import native
from swintormer_kernels.backends.cpu.layout import view
from swintormer_kernels.backends.cpu.packing import Packed


def run(op: str, x: Tensor, attention: Packed, ffn: Packed, sizes: tuple[int, int, int, int]) -> Tensor:
    """`op` on x (B, C, H, W), any strides; the result is in x's layout if x is dense. sizes: heads, w, s, hidden."""
    out = torch.empty_like(x)
    if x.numel() == 0:
        return out
    engine, threads = native.extension(), torch.get_num_threads()
    heads, window, _, hidden = sizes
    _, scratch_floats, _ = engine.swda_layout(x.shape[1], heads, window, hidden)
    scratch = torch.empty(threads * scratch_floats, dtype=torch.float32, device="cpu")
    call = getattr(engine, op)
    call(view(out), view(x), dense(attention), dense(ffn), sizes, dense([scratch]), threads)
    return out


def dense(tensors: Packed) -> list[tuple[int, int]]:
    """(address, floats) of each, which csrc/python/native.cpp reads. Keep `tensors` alive during the call."""
    assert all(t.dtype == torch.float32 and t.is_contiguous() for t in tensors), "the native code reads dense float32"
    return [(tensor.data_ptr(), tensor.numel()) for tensor in tensors]
