"""norm_silu_conv3x3: half a res block of a diffusion U-Net (Ho et al. 2020, arXiv 2006.11239), one pass over the image.

    out = conv3x3(silu(group_norm(x))) + bias + embedding + skip      stride 1, padded with one 0 on each side

norm and SiLU are those of `group_norm_silu`, modulation included; the embedding is that of the time, one number for an
image and a channel; skip is what the whole res block adds. MACs per pixel: 9 C_in C_out. A fused backend reads x twice
(once for the statistics) and skip once, and writes out once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from swintormer_kernels.backends.reference.norm_silu_conv3x3 import norm_silu_conv3x3 as _reference
from swintormer_kernels.backends.reference.norm_silu_conv3x3 import norm_silu_conv3x3_gradients
from swintormer_kernels.backends.triton.layout import dense_on_gpu
from swintormer_kernels.ops import group_norm_silu
from swintormer_kernels.ops.group_norm_silu import GroupNormWeights
from swintormer_kernels.registry import Op
from swintormer_kernels.testing.cases import Case, Cost
from swintormer_kernels.torch_op import Signature, define_block_op, float32_or_autocast, slower_with_gradients


class ConvWeights(NamedTuple):
    """Parameters of the 3x3 convolution, and what is added to its result."""

    weight: Tensor  # (C_out, C_in, 3, 3)
    bias: Tensor | None = None  # (C_out,)
    embedding: Tensor | None = None  # (B, C_out)
    skip: Tensor | None = None  # (B, C_out, H, W), any strides


def _cpu_serves(x: Tensor, norm: GroupNormWeights, conv: ConvWeights, groups: int, eps: float = 1e-5) -> str | None:
    return float32_or_autocast(x, *norm, *conv)


def _cpu_slower(x: Tensor, norm: GroupNormWeights, conv: ConvWeights, groups: int, eps: float = 1e-5) -> str | None:
    reason = too_small(x.shape[0], x.shape[1], conv.weight.shape[0], (x.shape[2], x.shape[3]))
    return slower_with_gradients(x, *norm, *conv) if reason is None else reason


def too_small(batch: int, channels: int, out: int, sides: tuple[int, int]) -> str | None:
    """Where the cpu backend was measured to lose against the reference, in words; else None."""
    # bench/small_convs.py, two threads, reference / cpu: below 16 channels 0.7 to 1.2. Where less than 0.4 of the
    # products is used, single images of 16x16 to 32x32 pixels still reach 1.01 to 1.7, others 0.4 to 1.1; above 0.4
    # the worst of 87 shapes is 0.95, the others 1.0 and more.
    height, width = sides
    used = used_products(height, width, out)
    if channels < 16:
        return f"{channels} input channels fill too little of the cpu backend's vectors"
    if used < 0.4 and not (batch == 1 and 256 <= height * width <= 1024):
        return f"{height}x{width} pixels of {out} channels use {used:.0%} of the cpu backend's products"
    return None


def used_products(height: int, width: int, out_channels: int) -> float:
    """Share of the cpu backend's products that the result needs: tiles of 2x2, 12 tiles by 32 channels at a time."""
    tiles = -(-height // 2) * -(-width // 2)
    in_rows, in_panels = 12 * max(1, -(-tiles // 12)), 32 * max(1, -(-out_channels // 32))
    return height * width / 4 / in_rows * out_channels / in_panels


def _triton_serves(x: Tensor, norm: GroupNormWeights, conv: ConvWeights, groups: int, eps: float = 1e-5) -> str | None:
    return dense_on_gpu(x, *norm, *conv)


OP = Op(
    "norm_silu_conv3x3",
    serves={"cpu": _cpu_serves, "triton": _triton_serves},
    absent={"cuda": "not written yet"},
    slower={"cpu": _cpu_slower},
)


@OP.public
def norm_silu_conv3x3(x: Tensor, norm: GroupNormWeights, conv: ConvWeights, groups: int, eps: float = 1e-5) -> Tensor:
    """conv3x3(silu(group_norm(x) * (1 + scale) + shift)) + bias + embedding + skip.

    Args:
        x: (B, C_in, H, W), any strides.
        norm: parameters of the norm, shapes as in `GroupNormWeights`.
        conv: those of the convolution, and what is added, shapes as in `ConvWeights`.
        groups: how many, a divisor of C_in.
        eps: added to the variance, at least 0.

    Returns:
        (B, C_out, H, W).

    Raises:
        ValueError: a shape, `groups` or `eps` does not fit.
    """
    check_input(x, norm, conv, groups, eps)
    backend = OP.select(x, norm, conv, groups, eps)
    if backend == "reference":
        return _reference(x, norm, conv, groups, eps)
    return _run(*_SIGNATURE.flat(x, norm, conv, groups, eps), backend)


def check_input(x: Tensor, norm: GroupNormWeights, conv: ConvWeights, groups: int, eps: float) -> None:
    """Raises ValueError where `norm_silu_conv3x3` cannot take these arguments."""
    group_norm_silu.check_input(x, norm, groups, eps)
    batch, channels, height, width = x.shape
    out = conv.weight.shape[0]
    wanted = ((out, channels, 3, 3), (out,), (batch, out), (batch, out, height, width))
    for name, tensor, shape in zip(ConvWeights._fields, conv, wanted, strict=True):
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name} must be {shape} with x {tuple(x.shape)}, found {tuple(tensor.shape)}")


def _like_output(x: Tensor, *tensors: Any) -> Tensor:
    # The cpu backend computes in channels_last; the order is part of what torch.compile is told.
    weight = tensors[len(GroupNormWeights._fields)]
    return x.new_empty((x.shape[0], weight.shape[0], *x.shape[2:])).to(memory_format=torch.channels_last)


# ---- for tests and benches -------------------------------------------------------------------------------------------


def cost(x: Tensor, norm: GroupNormWeights, conv: ConvWeights, groups: int, eps: float = 1e-5) -> Cost:
    """Work of `norm_silu_conv3x3`: the products of a direct convolution; x, skip, weights and out once each."""
    out = conv.weight.shape[0]
    pixels = x.numel() // max(1, x.shape[1])
    tensors = [tensor for tensor in (x, *norm, *conv) if tensor is not None]
    elements = pixels * out + sum(tensor.numel() for tensor in tensors)
    return Cost(pixels * 9 * x.shape[1] * out, elements * x.element_size())


def make_weights(batch: int, channels: int, out: int, side: tuple[int, int], plain: bool = False) -> ConvWeights:
    """Random weights that keep the size of what passes through; `plain`: without bias, embedding and skip."""
    weight = torch.randn(out, channels, 3, 3) / (3 * channels**0.5)
    if plain:
        return ConvWeights(weight)
    return ConvWeights(weight, torch.randn(out), torch.randn(batch, out), torch.randn(batch, out, *side))


def cases() -> list[Case]:
    """Res blocks of the released denoiser at a 128 latent, of a compact U-Net at a 32 latent, and unusual ones."""

    def case(
        name: str, shape: tuple[int, int, int, int], out: int, groups: int, layout: str = "", **options: Any
    ) -> Case:
        tags = {"modulated": False, "plain": False, "timed": False, **options}
        arrange = group_norm_silu.LAYOUTS[layout or "channels_last"]

        def make(seed: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                x = arrange(torch.randn(shape))
                norm = group_norm_silu.make_weights(*shape[:2], modulated=tags["modulated"])
                conv = make_weights(shape[0], shape[1], out, shape[2:], tags["plain"])
                if conv.skip is not None:
                    conv = conv._replace(skip=arrange(conv.skip))
            return (x, norm, conv, groups), {}

        return Case(name, make, timed=tags["timed"], tested=shape[1] * out * shape[2] * shape[3] < 20_000_000)

    released = [(160, 160, 128), (320, 320, 64), (320, 320, 32), (640, 640, 16), (320, 160, 128), (1280, 640, 16)]
    compact = [(32, 32, 32), (64, 64, 16), (96, 96, 8), (64, 32, 32)]
    timed = [
        case(f"{channels} to {out}, {side}x{side}", (1, channels, side, side), out, groups, timed=True)
        for sizes, groups in ((released, 32), (compact, 8))
        for channels, out, side in sizes
    ]
    return [
        *timed,
        case("320 to 320, 64x64, NCHW", (1, 320, 64, 64), 320, 32, "contiguous", timed=True),
        case("modulated, batch 3", (3, 40, 9, 7), 24, 4, modulated=True),
        case("plain, NCHW", (2, 24, 14, 17), 5, 3, "contiguous", plain=True),
        case("several blocks, odd sizes", (1, 70, 31, 37), 50, 7),
        case("columns apart", (2, 12, 5, 9), 33, 3, "sliced"),
        case("rows of more channels", (2, 12, 5, 9), 16, 3, "rows of more"),
        case("one image for the batch", (3, 12, 5, 9), 12, 3, "expanded"),
        case("one pixel", (2, 12, 1, 1), 7, 3),
        case("one channel", (2, 1, 6, 5), 1, 1),
        case("empty batch", (0, 12, 5, 9), 8, 3),
    ]


_SIGNATURE = Signature((GroupNormWeights, ConvWeights), ("groups",), ("eps",))
_run = define_block_op(OP, _SIGNATURE, norm_silu_conv3x3_gradients, cost, _like_output)
