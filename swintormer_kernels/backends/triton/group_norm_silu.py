"""Launches of group_norm_silu (group_norm_kernels.py): float32, bfloat16, float16; result in x's memory layout.

Inputs are channels_last or NCHW, also slices of more channels; other layouts are copied first. The backward computes
the statistics again; only the inputs are saved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
from torch import Tensor

from swintormer_kernels.backends.triton import group_norm_kernels as kernels
from swintormer_kernels.backends.triton.layout import dense, is_rows
from swintormer_kernels.backends.triton.runtime import launch

if TYPE_CHECKING:
    from swintormer_kernels.records import GroupNormWeights

# Elements of the tile in which `whole` keeps a group: 32 float32 values for each of 512 threads. The group's channels
# are padded to a power of two: with 320 channels in 32 groups, 10 become 16 and at most 1024 pixels fit.
WHOLE = 16384
WHOLE_WARPS = 16
# Up to this many elements, one program computes the statistics of a group, in one launch instead of two. The 32 groups
# of an image then use only 32 multiprocessors, so beyond 64 K elements (4 us at 32 bytes a clock) pixels are divided.
ONE_PROGRAM = 65536
# Elements of all other tiles: 32 for each of 128 threads, which leaves registers for at least 8 programs per
# multiprocessor.
TILE = 4096
TILE_WARPS = 4


class Image(NamedTuple):
    """An image in a memory layout of group_norm_kernels.py."""

    tensor: Tensor
    rows: bool
    pitch: int

    @property
    def pixels(self) -> int:
        return self.tensor.shape[2] * self.tensor.shape[3]


def group_norm_silu(x: Tensor, norm: GroupNormWeights, groups: int, eps: float) -> Tensor:
    """See `swintormer_kernels.ops.group_norm_silu`."""
    out = torch.empty_like(x)
    if x.numel() == 0:
        return out
    image = image_of(x, is_rows(out))
    target = out if pitch_of(out, image.rows) == x.shape[1] else dense_like(image)
    apply_norm(image, dense(norm), groups, eps, target)
    return out if target is out else out.copy_(target)


def apply_norm(image: Image, norm: GroupNormWeights, groups: int, eps: float, out: Tensor) -> None:
    """out = group_norm_silu(image); `out` has the image's memory layout without gaps, and `norm` is contiguous."""
    x, (batch, channels) = image.tensor, image.tensor.shape[:2]
    group, layout = _group(channels, groups), _layout(image)
    block = _pixels_of_whole(group["BLOCK_D"])
    if image.pixels <= block:
        launch(
            kernels.whole,
            (batch * groups,),
            *(x, out, norm, image.pixels, eps),
            **group,
            BLOCK_P=block,
            **layout,
            num_warps=WHOLE_WARPS,
        )
        return
    table = norm_table(image, norm, groups, eps)
    blocks, grid, chunks = _tiles(image)
    launch(
        kernels.apply,
        grid,
        *(x, out, table, image.pixels, chunks),
        C=channels,
        **blocks,
        **layout,
        num_warps=TILE_WARPS,
    )


def norm_table(image: Image, norm: GroupNormWeights, groups: int, eps: float) -> Tensor:
    """(B, 4, C) float32: mean, rstd, factor and offset of every channel, see group_norm_kernels.py."""
    x, (batch, channels) = image.tensor, image.tensor.shape[:2]
    group, layout = _group(channels, groups), _layout(image)
    table = x.new_empty(batch, 4, channels, dtype=torch.float32)
    if group["D"] * image.pixels <= ONE_PROGRAM:
        block = max(1, TILE // group["BLOCK_D"])
        constants = {**group, "BLOCK_P": block, **layout, "num_warps": TILE_WARPS}
        launch(kernels.group_statistics, (batch * groups,), *(x, norm, table, image.pixels, eps), **constants)
        return table
    blocks, grid, chunks = _tiles(image)
    partial = x.new_empty(batch, chunks, 2, channels, dtype=torch.float32)
    launch(
        kernels.statistics,
        grid,
        *(x, partial, image.pixels, chunks),
        C=channels,
        **blocks,
        **layout,
        num_warps=TILE_WARPS,
    )
    block = max(1, TILE // group["BLOCK_D"] // 4)
    constants = {**group, "BLOCK_K": block, "BLOCK_P": blocks["BLOCK_P"], "num_warps": TILE_WARPS}
    launch(kernels.merge, (batch * groups,), *(partial, norm, table, image.pixels, chunks, eps), **constants)
    return table


def group_norm_silu_backward(grad: Tensor, x: Tensor, norm: GroupNormWeights, groups: int, eps: float) -> list[Tensor]:
    """Gradients of `group_norm_silu` for those of x and the record's tensors that require one, in order."""
    inputs = dict(zip(("x", *norm._fields), (x, *norm), strict=True))
    wanted = {name: tensor for name, tensor in inputs.items() if tensor is not None and tensor.requires_grad}
    found = {name: torch.zeros_like(tensor) for name, tensor in wanted.items()}
    if x.numel() == 0 or not wanted:
        return list(found.values())
    image, small = image_of(x.detach(), is_rows(found.get("x", x))), dense(norm)
    grad = grad if pitch_of(grad, image.rows) == x.shape[1] else _copied(grad, image.rows)
    table = norm_table(image, small, groups, eps)
    totals = _totals(image, grad, table)
    if "x" in found:
        of_x = found["x"] if pitch_of(found["x"], image.rows) == x.shape[1] else dense_like(image)
        _gradient_of_x(image, grad, table, _means(totals, small, groups, image.pixels), of_x)
        if of_x is not found["x"]:
            found["x"].copy_(of_x)
    for name, value in _gradients_of_norm(totals, small).items():
        if name in found:
            found[name].copy_(value)
    return list(found.values())


def _totals(image: Image, grad: Tensor, table: Tensor) -> Tensor:
    """(B, 2, C) float32: sums of dv and of dv xhat over the pixels."""
    x, (batch, channels) = image.tensor, image.tensor.shape[:2]
    blocks, grid, chunks = _tiles(image)
    partial = x.new_empty(batch, chunks, 2, channels, dtype=torch.float32)
    launch(
        kernels.sums,
        grid,
        *(x, grad, table, partial, image.pixels, chunks),
        C=channels,
        **blocks,
        **_layout(image),
        num_warps=TILE_WARPS,
    )
    return partial.sum(1)


def _gradient_of_x(image: Image, grad: Tensor, table: Tensor, means: Tensor, out: Tensor) -> None:
    blocks, grid, chunks = _tiles(image)
    channels, groups = image.tensor.shape[1], means.shape[2]
    sizes = {"C": channels, "D": channels // groups}
    launch(
        kernels.gradient,
        grid,
        *(image.tensor, grad, out, table, means, image.pixels, chunks),
        **sizes,
        **blocks,
        **_layout(image),
        num_warps=TILE_WARPS,
    )


def _means(totals: Tensor, norm: GroupNormWeights, groups: int, pixels: int) -> Tensor:
    """(B, 2, groups): means of gain dv and of gain dv xhat over a group."""
    gain = totals if norm.weight is None else totals * norm.weight.float()
    gain = gain if norm.scale is None else gain * (1 + norm.scale.float())[:, None]
    shared = gain.unflatten(2, (groups, -1))
    return shared.sum(3) / (pixels * shared.shape[3])


def _gradients_of_norm(totals: Tensor, norm: GroupNormWeights) -> dict[str, Tensor]:
    of_offset, of_factor = totals.unbind(1)
    found = {"shift": of_offset}
    of_u = of_factor if norm.weight is None else of_factor * norm.weight.float()
    found["scale"] = of_u if norm.bias is None else of_u + norm.bias.float() * of_offset
    scale = 1.0 if norm.scale is None else 1 + norm.scale.float()
    return {**found, "weight": (scale * of_factor).sum(0), "bias": (scale * of_offset).sum(0)}


# ---- layout ----------------------------------------------------------------------------------------------------------


def image_of(x: Tensor, rows: bool) -> Image:
    """x, or a copy, in rows of channels or in planes."""
    pitch = pitch_of(x, rows)
    return Image(x, rows, pitch) if pitch else Image(_copied(x, rows), rows, x.shape[1])


def dense_like(image: Image) -> Tensor:
    """An uninitialised tensor in the image's memory layout, without gaps."""
    layout = torch.channels_last if image.rows else torch.contiguous_format
    return torch.empty_like(image.tensor, memory_format=layout)


def pitch_of(x: Tensor, rows: bool) -> int:
    """PITCH of the kernels if x is in rows of channels (or in planes), otherwise 0."""
    batch, channels, height, width = x.shape
    image, channel, down, right = x.stride()
    pixels = height * width
    step = right if width > 1 else down  # stride between pixels; any value if there is only one
    even = height == 1 or width == 1 or down == width * right
    if rows:
        pitch = step if pixels > 1 else image if batch > 1 else channels
        fits = even and (channels == 1 or channel == 1) and (batch == 1 or image == pixels * pitch)
    else:
        pitch = image // pixels if batch > 1 else channels
        fits = (pixels == 1 or (even and step == 1)) and (channels == 1 or channel == pixels)
        fits = fits and (batch == 1 or image == pixels * pitch)
    return pitch if fits and pitch >= channels else 0


def _copied(x: Tensor, rows: bool) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last if rows else torch.contiguous_format)


def _layout(image: Image) -> dict[str, int]:
    return {"PITCH": image.pitch, "ROWS": image.rows}


def _group(channels: int, groups: int) -> dict[str, int]:
    size = channels // groups
    return {"C": channels, "D": size, "BLOCK_D": triton.next_power_of_2(size)}


def _pixels_of_whole(block_d: int) -> int:
    return WHOLE // block_d


def _tiles(image: Image) -> tuple[dict[str, int], tuple[int, int], int]:
    """(tile sizes, grid, chunks of an image). In rows 16 to 64 channels with the least padding; in planes at most 4."""
    channels = image.tensor.shape[1]
    most = min(64 if image.rows else 4, triton.next_power_of_2(channels))
    sizes = [size for size in (64, 32, 16, 8, 4, 2, 1) if most >= size >= min(most, 16)]
    block = min(sizes, key=lambda size: triton.cdiv(channels, size) * size)
    blocks = {"BLOCK_P": TILE // block, "BLOCK_C": block}
    chunks = triton.cdiv(image.pixels, blocks["BLOCK_P"])
    return blocks, (image.tensor.shape[0] * chunks, triton.cdiv(channels, block)), chunks
