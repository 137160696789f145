"""norm_silu_conv3x3 through csrc/cpu/norm_silu_conv3x3.cpp: float32, result in channels_last."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import native
from ...derived import derived
from .group_norm_silu import dense_norm, scratch_floats
from .tensors import view

if TYPE_CHECKING:
    from swintormer_kernels.ops.group_norm_silu import GroupNormWeights
    from swintormer_kernels.ops.norm_silu_conv3x3 import ConvWeights


def norm_silu_conv3x3(x: Tensor, norm: GroupNormWeights, conv: ConvWeights, groups: int, eps: float) -> Tensor:
    """See `swintormer_kernels.ops.norm_silu_conv3x3`."""
    batch, channels, height, width = x.shape
    out = torch.empty((batch, conv.weight.shape[0], height, width), memory_format=torch.channels_last)
    if out.numel() == 0:
        return out
    threads = torch.get_num_threads()
    panel, floats = _layout(batch, channels, height, width, threads, native.extension().isa())
    scratch = torch.empty(scratch_floats(batch, channels, height * width, groups)), torch.empty(floats)
    source, skip = _rows(x), None if conv.skip is None else _rows(conv.skip)
    norm_kept, addresses = dense_norm(norm)
    conv_kept = [_transformed(conv.weight, panel), *(_dense(tensor) for tensor in (conv.bias, conv.embedding))]
    native.extension().norm_silu_conv3x3(
        view(out),
        view(source),
        None if skip is None else view(skip),
        addresses,
        [0 if tensor is None else tensor.data_ptr() for tensor in conv_kept],
        groups,
        eps,
        [tensor.data_ptr() for tensor in scratch],
        threads,
    )
    del norm_kept, conv_kept  # until here
    return out


def _dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _rows(x: Tensor) -> Tensor:
    """`x` or a copy with a pixel's channels next to one another and its rows of pixels after one another."""
    _, channel, down, right = x.stride()
    _, _, height, width = x.shape
    if channel == 1 and (height == 1 or width == 1 or down == width * right):
        return x
    return x.contiguous(memory_format=torch.channels_last)


def _transformed(weight: Tensor, panel: int) -> Tensor:
    return derived([weight], ("winograd", panel), lambda: winograd_weight(weight, panel))


def winograd_weight(weight: Tensor, panel: int) -> Tensor:
    """G w Gt of (out, in, 3, 3): (panels, 16, in, panel), out channels filled up with 0. Rounded once, from float64."""
    g = weight.new_tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], dtype=torch.float64)
    points = (g @ weight.double() @ g.T).to(weight.dtype).flatten(2)
    points = F.pad(points, (0, 0, 0, 0, 0, -weight.shape[0] % panel))
    return points.unflatten(0, (-1, panel)).permute(0, 3, 2, 1).contiguous()


@functools.lru_cache(maxsize=256)
def _layout(batch: int, channels: int, height: int, width: int, threads: int, isa: str) -> tuple[int, int]:
    return native.extension().conv3x3_layout(batch, channels, height, width, threads)
