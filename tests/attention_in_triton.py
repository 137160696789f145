"""What the tests of the Triton attention share: arguments, and how far a result is from the truth."""

from __future__ import annotations

import torch

from swintormer_kernels.backends.triton import layout as triton_tensors
from swintormer_kernels.testing.block_cases import attention_weights, ffn_weights

DEVICE = torch.device("cpu" if triton_tensors.INTERPRETED else "cuda")


def mapped(function, arguments):
    """`function` of every tensor in the arguments, which may hold records of tensors."""
    return [
        type(a)(*mapped(function, a)) if isinstance(a, tuple) else function(a) if isinstance(a, torch.Tensor) else a
        for a in arguments
    ]


def attention_arguments(shape, dtype=torch.float32):
    weights = attention_weights(shape.channels, shape.heads, shape.window, shape.bias)
    return mapped(lambda t: t.to(DEVICE, dtype), (shape.image(), weights, shape.window, shape.shift))


def with_ffn(arguments, shape):
    """Arguments of swda_block, made of those of swda_attention."""
    x, attention, *rest = arguments
    ffn = ffn_weights(shape.channels, shape.hidden, shape.bias)
    return [x, attention, *mapped(lambda t: t.to(DEVICE, x.dtype), [ffn]), *rest]


def error(value, truth):
    return ((value.double() - truth).norm() / truth.norm()).item()
