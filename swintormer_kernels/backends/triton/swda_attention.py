"""swda_attention through attention_forward.py and attention_backward.py: float32, bfloat16 and float16.

channels_last and NCHW as they are, others copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from swintormer_kernels.backends.triton.attention_forward import attend, project
from swintormer_kernels.backends.triton.attention_gradients import attention_gradients
from swintormer_kernels.backends.triton.gated_ffn import dense_layout
from swintormer_kernels.backends.triton.runtime import Tuning
from swintormer_kernels.backends.triton.window_setup import pack, sizes_of

if TYPE_CHECKING:
    from swintormer_kernels.records import AttentionWeights

TUNED = {
    "swda_attention": Tuning(
        "attention_forward",
        tuple(
            dict(zip(("tokens", "queries", "keys", "chunk", "programs", "num_warps", "num_stages"), sizes, strict=True))
            for sizes in (
                *((64, 64, 64, 64, 2, 4, 1), (64, 64, 64, 32, 2, 8, 1), (64, 64, 32, 32, 2, 4, 1)),
                *((64, 64, 32, 16, 2, 4, 1), (32, 64, 32, 16, 3, 4, 1), (32, 64, 32, 16, 2, 4, 1)),
                *((32, 32, 32, 16, 2, 8, 1), (16, 32, 32, 16, 2, 4, 1), (16, 32, 16, 16, 2, 4, 1)),
            )
        ),
        lambda candidate, sizes, element: False,
    )
}


def swda_attention(x: Tensor, weights: AttentionWeights, window: int, shift: int) -> Tensor:
    """See `swintormer_kernels.ops.swda_attention`."""
    out = torch.empty_like(x)
    if x.numel() == 0:
        return out
    dense = dense_layout(x)
    result = out if out.stride() == dense.stride() else torch.empty_like(dense)
    packed, sizes = pack(weights), sizes_of(dense, weights, window, shift)
    attended = attend(dense, packed, shift, sizes)
    project(dense, attended, packed, result, shift, sizes)
    return out if result is out else out.copy_(result)


def swda_attention_backward(
    grad: Tensor, x: Tensor, weights: AttentionWeights, window: int, shift: int
) -> list[Tensor]:
    """Gradients of those among x and the weights that require one, x first."""
    return attention_gradients(grad, x, weights, window, shift)


def ahead_of_time(
    dtype: torch.dtype, device: str = "cpu", side: int = 32
) -> Iterator[tuple[str, Callable[[], object]]]:
    """Configurations for aot.py: every head size of the released network and of `small`, masked.

    Yields (configuration, a forward and a backward on two images of `side` pixels a side, on `device`). Channels and
    heads only count loops, so that one number of channels stands for each head size.
    """
    from swintormer_kernels.records import AttentionWeights

    for channels, window, bias, layout in (
        (48, 16, False, torch.channels_last),
        (96, 16, False, torch.channels_last),
        (24, 8, True, torch.contiguous_format),
    ):
        x = torch.randn(2, channels, side, side, dtype=dtype, device=device).contiguous(memory_format=layout)
        shapes = {
            "norm_weight": (channels,), "norm_bias": (channels,), "qkv": (3 * channels, channels, 1, 1),
            "dwconv": (3 * channels, 1, 3, 3), "proj": (channels, channels, 1, 1), "logit_scale": (1, 1, 1),
            "bias_table": ((2 * window - 1) ** 2, 1),
        }  # fmt: skip
        if bias:
            shapes |= {"qkv_bias": (3 * channels,), "dwconv_bias": (3 * channels,), "proj_bias": (channels,)}
        made = {name: torch.randn(shape, dtype=dtype, device=device) for name, shape in shapes.items()}
        weights = AttentionWeights(**{name: tensor.requires_grad_() for name, tensor in made.items()})

        def call(x: Tensor = x, weights: AttentionWeights = weights, window: int = window) -> None:
            with torch.no_grad():
                swda_attention(x, weights, window, window // 2)
                swda_attention_backward(x, x, weights, window, window // 2)

        yield f"C {channels}, d {channels // 2}{', NCHW, bias' if bias else ''}", call
