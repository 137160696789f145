"""group_norm_silu through csrc/cpu/group_norm_silu.cpp: float32, result in x's layout.

Images in planes (NCHW) or in rows of channels (channels_last), cut out of larger ones too, are taken as they are; of
anything else a copy is made first.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from swintormer_kernels import native
from swintormer_kernels.backends.cpu.layout import View
from swintormer_kernels.backends.cpu.scratch import Scratch

if TYPE_CHECKING:
    from swintormer_kernels.records import GroupNormWeights


def group_norm_silu(x: Tensor, norm: GroupNormWeights, groups: int, eps: float) -> Tensor:
    """See `swintormer_kernels.ops.group_norm_silu`."""
    out = torch.empty_like(x)
    if x.numel() == 0:
        return out
    source, target, transposed = like_planes(x, out)
    batch, channels, height, width = x.shape
    scratch = Scratch(scratch_floats(batch, channels, height * width, groups))
    weights, addresses = dense(norm)
    native.extension().group_norm_silu(
        *(plane_view(tensor, transposed) for tensor in (target, source)),
        addresses,
        groups,
        eps,
        scratch.addresses[0],
        torch.get_num_threads(),
    )
    del weights  # until here
    return out if target is out else out.copy_(target)


def group_norm_silu_backward(grad: Tensor, x: Tensor, norm: GroupNormWeights, groups: int, eps: float) -> list[Tensor]:
    """Gradients of those tensors among the arguments that require one, in order."""
    batch, channels, height, width = x.shape
    sums = torch.zeros((batch, 2, channels), dtype=torch.float32, device="cpu")
    source, of_x, transposed = like_planes(x, torch.empty_like(x))
    if x.numel():
        common = set(_kinds(source)) & set(_kinds(of_x)) & set(_kinds(grad))
        if not any(kind[1] == transposed for kind in common):
            grad = of_x.copy_(grad)  # which the kernel may overwrite element by element
        pixels = height * width
        backward_floats = native.extension().group_norm_silu_backward_scratch(batch, channels, pixels)
        scratch = Scratch(scratch_floats(batch, channels, pixels, groups), backward_floats)
        weights, addresses = dense(norm)
        native.extension().group_norm_silu_backward(
            *(plane_view(tensor, transposed) for tensor in (of_x, grad, source)),
            addresses,
            groups,
            eps,
            [sums.data_ptr(), *scratch.addresses],
            torch.get_num_threads(),
        )
        del weights  # until here
    return [*([of_x] if x.requires_grad else []), *_of_parameters(sums, norm)]


def _of_parameters(sums: Tensor, norm: GroupNormWeights) -> list[Tensor]:
    """Gradients of `norm` from the sums over an image's channel: of v's gradient, and of it times the normed x."""
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


def dense(parameters: Iterable[Tensor | None]) -> tuple[list[Tensor | None], list[int]]:
    """The tensors, dense, and their addresses, 0 for None. Keep the tensors alive during the call."""
    tensors = [None if tensor is None else tensor.contiguous() for tensor in parameters]
    return tensors, [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


def like_planes(x: Tensor, out: Tensor) -> tuple[Tensor, Tensor, bool]:
    """`x` and `out`, or copies, both in planes or both in rows of channels; and whether width comes before height."""
    kinds = _kinds(out)
    if not kinds:
        out = torch.empty(x.shape, dtype=torch.float32, device="cpu")
        kinds = _kinds(out)
    common = [kind for kind in _kinds(x) if kind in kinds]
    if common:
        return x, out, common[0][1]
    return torch.empty_like(out).copy_(x), out, kinds[0][1]


def plane_view(x: Tensor, transposed: bool) -> View:
    """As `tensors.view`; height and width change places where `transposed`."""
    shape, stride = x.shape, x.stride()
    if transposed:
        shape, stride = x.mT.shape, x.mT.stride()
    return x.data_ptr(), shape, stride


def _kinds(x: Tensor) -> list[tuple[str, bool]]:
    """How the native code can walk `x`: in planes or in rows, and whether width comes before height."""
    _, _, height, width = x.shape
    _, channel, down, right = x.stride()
    found = []
    for transposed, outer, inner, size in ((False, down, right, width), (True, right, down, height)):
        pixels = height * width
        if 1 < size < pixels and outer != inner * size:
            continue
        if (inner if size > 1 else outer) == 1 or pixels == 1:
            found.append(("planes", transposed))
        if channel == 1:
            found.append(("rows", transposed))
    return found


@functools.lru_cache(maxsize=256)
def scratch_floats(batch: int, channels: int, pixels: int, groups: int) -> int:
    """Floats of scratch that the statistics take."""
    return native.extension().group_norm_scratch(batch, channels, pixels, groups)
