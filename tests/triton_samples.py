"""Arguments that the tests of the Triton kernels share, on the device that runs them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from ops import gradients, mapped, on, public
from torch import Tensor

from swintormer_kernels.backends.triton import layout as triton_tensors
from swintormer_kernels.records import GroupNormWeights
from swintormer_kernels.testing.block_cases import Shape, attention_weights, ffn_weights
from swintormer_kernels.testing.denoiser_cases import conv_weights, norm_weights

DEVICE = torch.device("cpu" if triton_tensors.INTERPRETED else "cuda")
# Ways of group_norm_silu to take the statistics of the same images: bounds of one program, and elements of a tile.
WAYS = {"whole": (16384, 65536, 4096), "one program": (1, 65536, 256), "shared out": (1, 1, 256)}


def moved(arguments: Any, dtype: torch.dtype) -> Any:
    return mapped(lambda t: t.to(DEVICE, dtype), arguments)


class Sample(NamedTuple):
    """(batch, C, height, width), a layout, and what else an op takes.

    Attributes:
        parts: fields of the norm that are there; "bias" for gated_ffn's biases; "" for a convolution and nothing else.
        block: BLOCK_P of a convolution, in the interpreter.
    """

    op: str
    shape: tuple[int, int, int, int]
    layout: str = "channels_last"
    groups: int = 1
    parts: str = "weight bias scale shift"
    outputs: int = 0
    block: int = 64

    def image(self, c: int) -> Tensor:
        b, _, h, w = self.shape
        return {
            "channels_last": lambda: torch.randn(b, h, w, c).permute(0, 3, 1, 2),
            "contiguous": lambda: torch.randn(b, c, h, w),
            "sliced": lambda: torch.randn(b, c, h, 2 * w)[..., ::2],
            "expanded": lambda: torch.randn(1, c, h, w).expand(b, -1, -1, -1),
            "turned": lambda: torch.randn(b, c, w, h).mT,
            "channels of more": lambda: torch.randn(b, c + 3, h, w)[:, 2 : c + 2],
            "rows of more": lambda: torch.randn(b, h, w, c + 3).permute(0, 3, 1, 2)[:, 2 : c + 2],
        }[self.layout]()

    def make(self, dtype: torch.dtype) -> tuple[Any, ...]:
        b, c, *sides = self.shape
        if self.op == "gated_ffn":
            return moved((self.image(c), ffn_weights(c, int(c * 2.66), self.parts == "bias")), dtype)
        x = self.image(c) if self.op == "group_norm_silu" else None
        norm = norm_weights(b, c, modulated=True)
        norm = GroupNormWeights(*(t if name in self.parts else None for name, t in norm._asdict().items()))
        if x is not None:
            return moved((x, norm, self.groups), dtype)
        conv = conv_weights(b, c, self.outputs, tuple(sides), plain=not self.parts)
        if self.parts:
            conv = conv._replace(skip=self.image(self.outputs))
        return moved((self.image(c), norm, conv, self.groups), dtype)

    def on(self, backend: str, arguments: Any) -> Tensor:
        return on(backend, public(self.op), arguments)

    def gradients(self, backend: str, arguments: Any, grad: Tensor) -> Any:
        return gradients(backend, public(self.op), arguments, grad)


def attention_arguments(shape: Shape, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    weights = attention_weights(shape.channels, shape.heads, shape.window, shape.bias)
    return moved((shape.image(), weights, shape.window, shape.shift), dtype)


def with_ffn(arguments: Any, shape: Shape) -> tuple[Any, ...]:
    """Arguments of swda_block, made of those of swda_attention."""
    x, attention, *rest = arguments
    ffn = moved(ffn_weights(shape.channels, shape.hidden, shape.bias), x.dtype)
    return x, attention, ffn, *rest
