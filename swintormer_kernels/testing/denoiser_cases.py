"""Cases of the ops of a denoiser's step, and random weights for them."""

from __future__ import annotations

import math
from typing import Any

import torch

from swintormer_kernels.records import (
    ConvWeights,
    GroupNormWeights,
    LinearWeights,
    Prediction,
    ResBlockWeights,
    ShuffleWeights,
    UpsampleWeights,
)
from swintormer_kernels.testing.case import Case, seeded

LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "sliced": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "channels of more": lambda x: torch.cat([x, x, x], 1)[:, x.shape[1] : 2 * x.shape[1]],
    "rows of more": lambda x: torch.cat([x, x, x], 1).contiguous(memory_format=torch.channels_last)[:, : x.shape[1]],
    "expanded": lambda x: x[:1].expand(x.shape),
}


def norm_weights(batch: int, channels: int, modulated: bool = False) -> GroupNormWeights:
    """Random weights of the size that a trained network has."""
    scale, shift = (0.3 * torch.randn(2, batch, channels)).unbind() if modulated else (None, None)
    return GroupNormWeights(1 + 0.2 * torch.randn(channels), 0.2 * torch.randn(channels), scale, shift)


def conv_weights(batch: int, channels: int, out: int, side: tuple[int, int], plain: bool = False) -> ConvWeights:
    """Random weights that keep the size of what passes through; `plain`: without bias, embedding and skip."""
    weight = torch.randn(out, channels, 3, 3) / (3 * channels**0.5)
    if plain:
        return ConvWeights(weight)
    return ConvWeights(weight, torch.randn(out), torch.randn(batch, out), torch.randn(batch, out, *side))


def res_block_weights(batch: int, channels: int, middle: int, out: int, modulated: bool = False) -> ResBlockWeights:
    """Random weights that keep the size of what passes through; with a shortcut where the channels differ."""
    norms = [norm_weights(batch, c, modulated=modulated) for c in (channels, middle)]
    shortcut = None if out == channels else torch.randn(out, channels, 1, 1) / channels**0.5
    return ResBlockWeights(
        torch.randn(middle, channels, 3, 3) / (3 * channels**0.5),
        torch.randn(out, middle, 3, 3) / (3 * middle**0.5),
        torch.randn(middle),
        torch.randn(out),
        *norms[0][:2],
        *norms[1][:2],
        None if modulated else torch.randn(batch, middle),
        *norms[1][2:],
        shortcut,
        None if shortcut is None else torch.randn(out),
    )


Sizes = tuple[int, int, int, int]


def group_norm_silu_cases() -> list[Case]:
    """Shapes of the released denoiser's ResNet blocks and of a compact U-Net's at a 32 latent, and unusual ones."""

    def case(name: str, shape: Sizes, groups: int, layout: str = "channels_last", **options: Any) -> Case:
        def build() -> tuple[Any, ...]:
            x = LAYOUTS[layout](torch.randn(shape) + options.get("offset", 0.0))
            norm = norm_weights(*shape[:2], modulated=options.get("modulated", False))
            return x, norm if options.get("affine", True) else GroupNormWeights(), groups

        return seeded(name, build, options.get("timed", False), tested=math.prod(shape) < 1_000_000)

    released = {"160x128x128": (160, 128), "320x64x64": (320, 64), "640x16x16": (640, 16), "960x32x32": (960, 32)}
    compact = {"32x32x32": (32, 32), "64x16x16": (64, 16), "96x8x8": (96, 8)}
    timed = [
        case(f"{name}, {layout}", (1, channels, side, side), groups, layout, timed=True)
        for sizes, groups in ((released, 32), (compact, 8))
        for name, (channels, side) in sizes.items()
        for layout in ("channels_last", "contiguous")
    ]
    return [
        *timed,
        case("modulated 320x64x64", (1, 320, 64, 64), 32, modulated=True, timed=True),
        case("modulated, batch 3", (3, 40, 9, 7), 4, modulated=True),
        case("a last run of 67 pixels", (2, 64, 29, 31), 8, modulated=True),
        case("2048 channels", (1, 2048, 2, 3), 32),
        case("modulated, batch 3, NCHW", (3, 40, 9, 7), 4, "contiguous", modulated=True),
        case("no affine", (2, 24, 5, 6), 3, affine=False),
        case("mean 1000", (2, 24, 33, 31), 3, offset=1000.0),
        case("mean 1000, NCHW", (2, 24, 33, 31), 3, "contiguous", offset=1000.0),
        case("one group, long", (1, 6, 150, 131), 1, "contiguous"),
        case("one group, rows", (1, 6, 150, 131), 1),
        case("a group for each channel", (2, 7, 5, 9), 7),
        case("one pixel", (2, 12, 1, 1), 3),
        case("columns apart", (2, 12, 5, 9), 3, "sliced"),
        case("channels of a larger image", (2, 12, 5, 9), 3, "channels of more"),
        case("rows of more channels", (2, 12, 5, 9), 3, "rows of more"),
        case("one channel of rows of more", (2, 1, 5, 9), 1, "rows of more"),
        case("one image for the batch", (3, 12, 5, 9), 3, "expanded"),
        case("empty batch", (0, 12, 5, 9), 3),
    ]


def norm_silu_conv3x3_cases() -> list[Case]:
    """ResNet blocks of the released denoiser at a 128 latent, of a compact U-Net at a 32 latent, and unusual ones."""

    def case(name: str, shape: Sizes, out: int, groups: int, layout: str = "channels_last", **options: Any) -> Case:
        def build() -> tuple[Any, ...]:
            x = LAYOUTS[layout](torch.randn(shape))
            norm = norm_weights(*shape[:2], modulated=options.get("modulated", False))
            conv = conv_weights(shape[0], shape[1], out, shape[2:], options.get("plain", False))
            if conv.skip is not None:
                conv = conv._replace(skip=LAYOUTS[layout](conv.skip))
            return x, norm, conv, groups

        return seeded(name, build, options.get("timed", False), math.prod(shape[1:]) * out < 20_000_000)

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
        case("3 outputs", (2, 24, 10, 7), 3, 3),
        case("plain, 130 outputs", (2, 72, 9, 17), 130, 4, plain=True),
        case("plain, NCHW", (2, 24, 14, 17), 5, 3, "contiguous", plain=True),
        case("several blocks, odd sizes", (1, 70, 31, 37), 50, 7),
        case("columns apart", (2, 12, 5, 9), 33, 3, "sliced"),
        case("rows of more channels", (2, 12, 5, 9), 16, 3, "rows of more"),
        case("one image for the batch", (3, 12, 5, 9), 12, 3, "expanded"),
        case("one pixel", (2, 12, 1, 1), 7, 3),
        case("one channel", (2, 1, 6, 5), 1, 1),
        case("empty batch", (0, 12, 5, 9), 8, 3),
    ]


def res_block_cases() -> list[Case]:
    """ResNet blocks of the compact U-Net at a 32 latent, of the released one at 32 and 128, and unusual ones."""

    def case(
        name: str, shape: Sizes, sizes: tuple[int, int], groups: int, layout: str = "channels_last", **options: Any
    ) -> Case:
        def build() -> tuple[Any, ...]:
            x = LAYOUTS[layout](torch.randn(shape))
            block = res_block_weights(shape[0], shape[1], *sizes, options.get("modulated", False))
            if options.get("plain", False):
                block = ResBlockWeights(block.conv1, block.conv2, shortcut=block.shortcut)
            return x, block, groups, groups

        return seeded(name, build, options.get("timed", False), math.prod(shape[1:]) * sizes[0] < 10_000_000)

    compact = [(32, 32, 32), (64, 64, 16), (128, 64, 16), (96, 32, 32)]
    released = [(160, 160, 128), (320, 320, 32), (960, 320, 32)]
    timed = [
        case(f"{channels} to {out}, {side}x{side}", (1, channels, side, side), (out, out), groups, timed=True)
        for sizes, groups in ((compact, 8), (released, 32))
        for channels, out, side in sizes
    ]
    return [
        *timed,
        case("modulated, batch 3", (3, 40, 9, 7), (24, 33), 4, modulated=True),
        case("plain, NCHW", (2, 24, 14, 17), (6, 5), 3, "contiguous", plain=True),
        case("plain, no shortcut", (2, 24, 14, 17), (48, 24), 3, plain=True),
        case("several blocks, odd sizes", (1, 70, 31, 37), (35, 50), 7),
        case("columns apart", (2, 12, 5, 9), (33, 12), 3, "sliced"),
        case("rows of more channels", (2, 12, 5, 9), (12, 16), 3, "rows of more"),
        case("one column of more channels", (2, 12, 7, 1), (12, 16), 3, "rows of more"),
        case("one image for the batch", (3, 12, 5, 9), (12, 12), 3, "expanded"),
        case("one pixel", (2, 12, 1, 1), (9, 7), 3),
        case("one channel", (2, 1, 6, 5), (1, 1), 1),
        case("empty batch", (0, 12, 5, 9), (12, 8), 3),
    ]


def norm_projection_cases() -> list[Case]:
    """Queries, keys and values of the compact U-Net at latents of 32 and 128, of the released one, and unusual ones."""

    def case(name: str, shape: Sizes, out: int, groups: int, layout: str = "channels_last", **options: Any) -> Case:
        def build() -> tuple[Any, ...]:
            x = LAYOUTS[layout](torch.randn(shape) + options.get("offset", 0.0))
            norm = norm_weights(*shape[:2], modulated=options.get("modulated", False))
            weight = torch.randn(out, shape[1]) / shape[1] ** 0.5
            return x, norm, LinearWeights(weight, torch.randn(out) if options.get("bias", True) else None), groups

        return seeded(name, build, options.get("timed", False), math.prod(shape) * out < 50_000_000)

    timed = [(64, 16, 8), (64, 64, 8), (320, 32, 32), (640, 8, 32), (640, 16, 32), (512, 64, 32)]
    return [
        *(case(f"{c}, {s}x{s}", (1, c, s, s), 3 * c, groups, timed=True) for c, s, groups in timed),
        case("modulated, batch 3", (3, 40, 9, 7), 33, 4, modulated=True),
        case("NCHW, no bias", (2, 24, 14, 17), 5, 3, "contiguous", bias=False),
        case("mean 1000", (2, 24, 14, 17), 72, 3, offset=1000.0),
        case("columns apart", (2, 12, 5, 9), 36, 3, "sliced"),
        case("rows of more channels", (2, 12, 5, 9), 36, 3, "rows of more"),
        case("one image for the batch", (3, 12, 5, 9), 36, 3, "expanded"),
        case("one pixel", (2, 12, 1, 1), 7, 3),
        case("one column", (2, 12, 50, 1), 70, 3, "rows of more"),
        case("one channel", (2, 1, 6, 5), 3, 1),
        case("empty batch", (0, 12, 5, 9), 36, 3),
    ]


def upsample_conv3x3_cases() -> list[Case]:
    """Upsampling in the released denoiser at a 128 latent, of a compact U-Net at a 32 latent, and unusual ones."""

    def case(name: str, shape: Sizes, out: int, layout: str = "channels_last", **options: Any) -> Case:
        def build() -> tuple[Any, ...]:
            x = LAYOUTS[layout](torch.randn(shape))
            weight = torch.randn(out, shape[1], 3, 3) / (3 * shape[1] ** 0.5)
            return x, UpsampleWeights(weight, torch.randn(out) if options.get("bias", True) else None)

        return seeded(name, build, options.get("timed", False), math.prod(shape[1:]) * out < 5_000_000)

    released, compact = [(640, 16), (320, 32), (320, 64)], [(96, 8), (64, 16)]
    return [
        *(case(f"{c}, {s}x{s}", (1, c, s, s), c, timed=True) for c, s in (*released, *compact)),
        case("batch 3, odd sizes", (3, 40, 7, 13), 24),
        case("NCHW, no bias", (2, 24, 7, 9), 5, "contiguous", bias=False),
        case("columns apart", (2, 12, 5, 9), 33, "sliced"),
        case("one pixel", (2, 12, 1, 1), 7),
        case("empty batch", (0, 12, 5, 9), 8),
    ]


def conv3x3_shuffle_cases() -> list[Case]:
    """Up and down steps of the networks `small` and `released` in one 256x256 tile, and unusual ones."""

    def case(name: str, shape: Sizes, out: int, shuffle: int, layout: str = "channels_last", **options: Any) -> Case:
        def build() -> tuple[Any, ...]:
            x = LAYOUTS[layout](torch.randn(shape))
            weight = torch.randn(out, shape[1], 3, 3) / (3 * shape[1] ** 0.5)
            return x, ShuffleWeights(weight, torch.randn(out) if options.get("bias", True) else None), shuffle

        return seeded(name, build, options.get("timed", False), math.prod(shape[1:]) * out < 5_000_000)

    # channels and side of x, outputs, shuffle
    small = [(12, 128, 24, 1), (24, 128, 12, 1), (48, 64, 24, 1), (96, 32, 48, 1)]
    small += [(192, 16, 384, 2), (96, 32, 192, 2), (48, 64, 96, 2), (48, 128, 12, 2)]
    released = [(2 * c, side, 2 * out, shuffle) for c, side, out, shuffle in small[1:]]
    return [
        *(
            case(f"{c} to {out}, {s}x{s}, shuffle {shuffle}", (1, c, s, s), out, shuffle, timed=True)
            for c, s, out, shuffle in (*small, *released)
        ),
        case("batch 3, odd sizes", (3, 40, 7, 13), 28, 2),
        case("NCHW, no bias", (2, 24, 7, 9), 5, 1, "contiguous", bias=False),
        case("one channel for each pixel", (2, 24, 7, 9), 4, 2),
        case("columns apart", (2, 12, 5, 9), 100, 2, "sliced"),
        case("one pixel", (2, 12, 1, 1), 8, 2),
        case("empty batch", (0, 12, 5, 9), 8, 2),
    ]


def ddim_step_cases() -> list[Case]:
    """Latents of a 256x256 tile and of whole images at 1/8, with and without bound and noise; unusual layouts."""

    def case(name: str, shape: tuple[int, ...], layout: str = "contiguous", **options: Any) -> Case:
        def make(seed: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
            generator = torch.Generator().manual_seed(seed)
            z, noise_pred, noise = (_LATENT_LAYOUTS[layout](torch.randn(shape, generator=generator)) for _ in range(3))
            kind, scale = options.get("kind", "epsilon"), options.get("guidance_scale")
            second = None if scale is None else _LATENT_LAYOUTS[layout](torch.randn(shape, generator=generator))
            given = {name: value for name, value in options.items() if name in ("eta", "clip")}
            prediction = Prediction(kind, second, 1.0 if scale is None else scale)
            return (z, noise_pred), {
                **schedule, **given, "noise": noise if options.get("eta") else None, "prediction": prediction,
            }  # fmt: skip

        elements = math.prod(shape)
        return Case(name, make, timed=elements >= 4096, tested=elements < 2_000_000)

    schedule = {"alpha_bar_t": 0.25, "alpha_bar_s": 0.4}
    return [
        case("tile 4x32x32", (1, 4, 32, 32)),
        case("tile 4x32x32, eta 1, clip", (1, 4, 32, 32), eta=1.0, clip=1.0),
        case("image 4x140x210", (1, 4, 140, 210), clip=1.0),
        case("24 MP image 4x500x750, eta 1, clip", (1, 4, 500, 750), eta=1.0, clip=1.0),
        case("100 MP image 4x1024x1536", (1, 4, 1024, 1536)),
        case("100 MP image 4x1024x1536, eta 1, clip", (1, 4, 1024, 1536), eta=1.0, clip=1.0),
        case("100 MP image, channels_last", (1, 4, 1024, 1536), layout="channels_last"),
        case("100 MP image, transposed", (1, 4, 1024, 1536), layout="transposed"),
        case("image 4x140x210, x0", (1, 4, 140, 210), clip=1.0, kind="sample"),
        case("image 4x140x210, v, guided", (1, 4, 140, 210), eta=1.0, kind="v_prediction", guidance_scale=7.5),
        case("odd sizes, sliced, x0, guided", (3, 5, 7, 9), layout="sliced", kind="sample", guidance_scale=-2.0),
        case("empty batch", (0, 4, 8, 8), eta=0.5),
        case("one number", (), clip=0.5),
        case("odd sizes, sliced", (3, 5, 7, 9), layout="sliced", eta=0.5, clip=0.5),
    ]


_LATENT_LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
    "sliced": lambda x: x.repeat_interleave(2, -1)[..., ::2],
}
