"""The ops of a denoiser in csrc/denoiser: GroupNorm with SiLU, 3x3 convolutions, and projection. float32.

group_norm_silu reads NCHW and channels_last, also slices of larger tensors, and returns x's memory layout. The other
ops read channels_last and return channels_last. Inputs in other memory layouts are copied first.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from swintormer_kernels import native
from swintormer_kernels.backends.cpu.layout import dense, image_like, like_planes, rows_of_channels, view, walkable
from swintormer_kernels.backends.cpu.scratch import Scratch
from swintormer_kernels.backends.cpu.winograd import (
    ALL_POINTS,
    POINTS_OF_DOUBLED,
    in_order_of_pixels,
    in_panels,
    layout,
    transformed_weight,
)

if TYPE_CHECKING:
    from swintormer_kernels.records import (
        ConvWeights,
        GroupNormWeights,
        LinearWeights,
        ResBlockWeights,
        ShuffleWeights,
        UpsampleWeights,
    )


def group_norm_silu(x: Tensor, norm: GroupNormWeights, groups: int, eps: float) -> Tensor:
    """See `swintormer_kernels.ops.group_norm_silu`."""
    out = torch.empty_like(x)
    if x.numel() == 0:
        return out
    source, target, transposed = like_planes(x, out)
    batch, channels, height, width = x.shape
    (scratch,) = Scratch(_norm_floats(batch, channels, height * width, groups)).buffers
    native.extension().group_norm_silu(
        out=view(target.mT if transposed else target),
        x=view(source.mT if transposed else source),
        norm=_norm(norm, groups, eps),
        scratch=scratch,
        threads=torch.get_num_threads(),
    )
    return out if target is out else out.copy_(target)


def group_norm_silu_backward(grad: Tensor, x: Tensor, norm: GroupNormWeights, groups: int, eps: float) -> list[Tensor]:
    """Gradients of those tensors among the arguments that require one, in order."""
    batch, channels, height, width = x.shape
    sums = torch.zeros((batch, 2, channels), dtype=torch.float32, device="cpu")
    source, of_x, transposed = like_planes(x, torch.empty_like(x))
    if x.numel():
        common = set(walkable(source)) & set(walkable(of_x)) & set(walkable(grad))
        if not any(kind[1] == transposed for kind in common):
            grad = of_x.copy_(grad)  # the kernel may overwrite its input element by element
        pixels = height * width
        norm_floats = _norm_floats(batch, channels, pixels, groups)
        floats = native.extension().group_norm_silu_backward_scratch(batch, channels, pixels)
        norm_scratch, scratch = Scratch(norm_floats, floats).buffers
        native.extension().group_norm_silu_backward(
            grad_x=view(of_x.mT if transposed else of_x),
            grad=view(grad.mT if transposed else grad),
            x=view(source.mT if transposed else source),
            norm=_norm(norm, groups, eps),
            sums=dense(sums),
            norm_scratch=norm_scratch,
            scratch=scratch,
            threads=torch.get_num_threads(),
        )
    return [*([of_x] if x.requires_grad else []), *_of_parameters(sums, norm)]


def norm_silu_conv3x3(x: Tensor, norm: GroupNormWeights, conv: ConvWeights, groups: int, eps: float) -> Tensor:
    """See `swintormer_kernels.ops.norm_silu_conv3x3`."""
    out = image_like(x, conv.weight.shape[0])
    if out.numel() == 0:
        return out
    batch, channels, height, width = x.shape
    threads = torch.get_num_threads()
    panel, conv_floats = layout(channels, batch, height, width, threads)
    norm_scratch, conv_scratch = Scratch(_norm_floats(batch, channels, height * width, groups), conv_floats).buffers
    source, skip = rows_of_channels(x), None if conv.skip is None else rows_of_channels(conv.skip)
    native.extension().norm_silu_conv3x3(
        out=view(out),
        x=view(source),
        skip=None if skip is None else view(skip),
        norm=_norm(norm, groups, eps),
        conv=_conv(conv.weight, conv.bias, conv.embedding, panel),
        norm_scratch=norm_scratch,
        conv_scratch=conv_scratch,
        threads=threads,
    )
    return out


def res_block(x: Tensor, block: ResBlockWeights, groups1: int, groups2: int, eps1: float, eps2: float) -> Tensor:
    """See `swintormer_kernels.ops.res_block`."""
    middle, out_channels = block.conv1.shape[0], block.conv2.shape[0]
    out = image_like(x, out_channels)
    if out.numel() == 0:
        return out
    batch, channels, height, width = x.shape
    threads, pixels, extension = torch.get_num_threads(), height * width, native.extension()
    panel, first_floats = layout(channels, batch, height, width, threads)
    _, second_floats = layout(middle, batch, height, width, threads)
    norm_scratch, conv_scratch, hidden, skip = Scratch(
        max(_norm_floats(batch, channels, pixels, groups1), _norm_floats(batch, middle, pixels, groups2)),
        max(first_floats, second_floats),
        batch * pixels * middle,
        0 if block.shortcut is None else batch * pixels * out_channels,
    ).buffers
    source, shortcut = rows_of_channels(x), None
    if block.shortcut is not None:
        weight = in_panels(block.shortcut, panel)
        shortcut = extension.Linear(weight=dense(weight), bias=dense(block.shortcut_bias))
    norm1 = extension.Norm(weight=dense(block.norm1_weight), bias=dense(block.norm1_bias), groups=groups1, eps=eps1)
    norm2 = extension.Norm(
        weight=dense(block.norm2_weight),
        bias=dense(block.norm2_bias),
        scale=dense(block.scale),
        shift=dense(block.shift),
        groups=groups2,
        eps=eps2,
    )
    extension.res_block(
        out=view(out),
        x=view(source),
        norm1=norm1,
        conv1=_conv(block.conv1, block.conv1_bias, block.embedding, panel),
        norm2=norm2,
        conv2=_conv(block.conv2, block.conv2_bias, None, panel),
        shortcut=shortcut,
        hidden_channels=middle,
        norm_scratch=norm_scratch,
        conv_scratch=conv_scratch,
        hidden=hidden,
        skip=skip,
        threads=threads,
    )
    return out


def norm_projection(x: Tensor, norm: GroupNormWeights, linear: LinearWeights, groups: int, eps: float) -> Tensor:
    """See `swintormer_kernels.ops.norm_projection`."""
    batch, channels, height, width = x.shape
    out = torch.empty((batch, height * width, linear.weight.shape[0]), device=x.device, dtype=x.dtype)
    if out.numel() == 0:
        return out
    extension, threads = native.extension(), torch.get_num_threads()
    panel, _ = layout(channels, batch, height, width, threads)
    norm_floats = _norm_floats(batch, channels, height * width, groups)
    norm_scratch, scratch = Scratch(norm_floats, threads * extension.normed_floats(channels)).buffers
    source = rows_of_channels(x)
    extension.norm_projection(
        out=view(out),
        x=view(source),
        norm=_norm(norm, groups, eps),
        linear=extension.Linear(weight=dense(in_panels(linear.weight, panel)), bias=dense(linear.bias)),
        norm_scratch=norm_scratch,
        scratch=scratch,
        threads=threads,
    )
    return out


def upsample_conv3x3(x: Tensor, conv: UpsampleWeights) -> Tensor:
    """See `swintormer_kernels.ops.upsample_conv3x3`."""
    out = image_like(x, conv.weight.shape[0], scale=2)
    if out.numel() == 0:
        return out
    threads = torch.get_num_threads()
    batch, channels, height, width = x.shape
    panel, floats = layout(channels, batch, 2 * height, 2 * width, threads)
    (scratch,), source = Scratch(floats).buffers, rows_of_channels(x)
    native.extension().upsample_conv3x3(
        out=view(out),
        x=view(source),
        conv=_conv(conv.weight, conv.bias, None, panel, POINTS_OF_DOUBLED),
        conv_scratch=scratch,
        threads=threads,
    )
    return out


def conv3x3_shuffle(x: Tensor, conv: ShuffleWeights, shuffle: int) -> Tensor:
    """See `swintormer_kernels.ops.conv3x3_shuffle`."""
    out = image_like(x, conv.weight.shape[0] // shuffle**2, scale=shuffle)
    if out.numel() == 0:
        return out
    threads = torch.get_num_threads()
    batch, channels, height, width = x.shape
    panel, floats = layout(channels, batch, height, width, threads)
    (scratch,), source = Scratch(floats).buffers, rows_of_channels(x)
    weight = transformed_weight(conv.weight, panel, ALL_POINTS, shuffle)
    bias = None if conv.bias is None else in_order_of_pixels(conv.bias, shuffle)
    native.extension().conv3x3_shuffle(
        out=view(out),
        x=view(source),
        conv=native.extension().Conv(weight=dense(weight), bias=dense(bias)),
        shuffle=shuffle,
        conv_scratch=scratch,
        threads=threads,
    )
    return out


# ---- arguments of the extension --------------------------------------------------------------------------------------


def _norm(norm: GroupNormWeights, groups: int, eps: float) -> Any:
    return native.extension().Norm(
        weight=dense(norm.weight),
        bias=dense(norm.bias),
        scale=dense(norm.scale),
        shift=dense(norm.shift),
        groups=groups,
        eps=eps,
    )


def _conv(
    weight: Tensor, bias: Tensor | None, embedding: Tensor | None, panel: int, points: tuple[int, ...] = ALL_POINTS
) -> Any:
    transformed = transformed_weight(weight, panel, points)
    return native.extension().Conv(weight=dense(transformed), bias=dense(bias), embedding=dense(embedding))


@functools.lru_cache(maxsize=256)
def _norm_floats(batch: int, channels: int, pixels: int, groups: int) -> int:
    """Floats of scratch for the statistics."""
    return native.extension().group_norm_scratch(batch, channels, pixels, groups)


def _of_parameters(sums: Tensor, norm: GroupNormWeights) -> list[Tensor]:
    """Gradients of `norm` from sums per image and channel: of v's gradient, and of that times the normalised x."""
    of_v, of_product = sums.unbind(1)
    keep = 1 if norm.scale is None else 1 + norm.scale
    found = []
    for name, tensor in zip(norm._fields, norm, strict=True):
        if tensor is None or not tensor.requires_grad:
            continue
        if name == "weight":
            found.append((of_product * keep).sum(0))
        elif name == "bias":
            found.append((of_v * keep).sum(0))
        elif name == "scale":
            of_scale = of_product if norm.weight is None else of_product * norm.weight
            found.append(of_scale if norm.bias is None else of_scale + of_v * norm.bias)
        else:
            found.append(of_v)
    return found
