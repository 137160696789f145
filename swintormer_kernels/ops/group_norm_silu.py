"""group_norm_silu: GroupNorm (Wu and He 2018, arXiv 1803.08494), an optional modulation, SiLU; per image and channel.

    u = (x - mean) / sqrt(variance + eps) * weight + bias     mean and variance of C / groups channels by H W pixels
    y = v * sigmoid(v), v = u * (1 + scale) + shift           scale and shift per image and channel

The modulation is that of diffusers' "scale_shift" time embedding (Dhariwal and Nichol 2021, arXiv 2105.05233, "AdaGN").
Bytes: x once for the statistics and once to apply them, y once; x once in all where a group stays in cache. Backward
of the cpu backend (csrc/denoiser/group_norm_silu.h has formulas): x three times, y's gradient once, x's gradient three
times.
FlopCounterMode counts none of this, so the formula for it is 0; `cost()` has the figures.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from swintormer_kernels.backends.reference.group_norm_silu import group_norm_silu as _reference
from swintormer_kernels.backends.reference.group_norm_silu import group_norm_silu_gradients
from swintormer_kernels.backends.triton.layout import dense_on_gpu
from swintormer_kernels.registry import Op
from swintormer_kernels.testing.cases import Case, Cost
from swintormer_kernels.torch_op import Signature, define_block_op, float32_or_autocast, gradients_wanted


class GroupNormWeights(NamedTuple):
    """Parameters of a GroupNorm and the modulation after it."""

    weight: Tensor | None = None  # (C,), 1 where it is None
    bias: Tensor | None = None  # (C,), 0 where it is None
    scale: Tensor | None = None  # (B, C), 0 where it is None
    shift: Tensor | None = None  # (B, C), 0 where it is None


def _cpu_serves(x: Tensor, norm: GroupNormWeights, groups: int, eps: float = 1e-5) -> str | None:
    return float32_or_autocast(x, *norm)


def _triton_serves(x: Tensor, norm: GroupNormWeights, groups: int, eps: float = 1e-5) -> str | None:
    return dense_on_gpu(x, *norm)


def _cpu_slower(x: Tensor, norm: GroupNormWeights, groups: int, eps: float = 1e-5) -> str | None:
    # Two threads, reference / cpu (bench/bench_group_norm_silu.py): 32768 elements 0.6 to 0.8, 163840 0.95 to 1.1, from
    # 1.3 M on 1.2 to 1.6 with a modulation or in NCHW, 0.9 to 1.0 in channels_last without one.
    if x.numel() < 1 << 18:
        return f"{x.numel()} elements are less work than a call of the cpu backend"
    if norm.scale is not None or norm.shift is not None:
        return None
    in_rows = x.stride(1) == 1
    if not gradients_wanted(x, *norm):
        return "in channels_last torch's own GroupNorm and SiLU are as fast" if in_rows else None
    # Forward and backward (the same bench): with a modulation 1.7; without, in channels_last 1.06 to 2.1, in NCHW 0.91
    # at 983040 elements and 1.04 at 1310720.
    if in_rows or x.numel() >= 5 << 18:
        return None
    return f"with gradients torch's own GroupNorm and SiLU are as fast on {x.numel()} elements in NCHW"


OP = Op(
    "group_norm_silu",
    serves={"cpu": _cpu_serves, "triton": _triton_serves},
    absent={"cuda": "not written yet"},
    slower={"cpu": _cpu_slower},
)


@OP.public
def group_norm_silu(x: Tensor, norm: GroupNormWeights, groups: int, eps: float = 1e-5) -> Tensor:
    """silu(group_norm(x) * (1 + scale) + shift).

    Args:
        x: (B, C, H, W), any strides.
        norm: the parameters, shapes as in `GroupNormWeights`.
        groups: how many, a divisor of C.
        eps: added to the variance, at least 0.

    Returns:
        (B, C, H, W), in x's layout where x is dense.

    Raises:
        ValueError: a shape, `groups` or `eps` does not fit.
    """
    check_input(x, norm, groups, eps)
    backend = OP.select(x, norm, groups, eps)
    if backend == "reference":
        return _reference(x, norm, groups, eps)
    return _run(*_SIGNATURE.flat(x, norm, groups, eps), backend)


def check_input(x: Tensor, norm: GroupNormWeights, groups: int, eps: float) -> None:
    """Raises ValueError where `group_norm_silu` cannot take these arguments."""
    if x.ndim != 4:
        raise ValueError(f"x must be (B, C, H, W), found shape {tuple(x.shape)}")
    batch, channels = x.shape[:2]
    if groups < 1 or channels % groups:
        raise ValueError(f"groups must divide the {channels} channels of x, found {groups}")
    if not eps >= 0:
        raise ValueError(f"eps must be at least 0, found {eps}")
    wanted = ((channels,), (channels,), (batch, channels), (batch, channels))
    for name, tensor, shape in zip(GroupNormWeights._fields, norm, wanted, strict=True):
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name} must be {shape} with x {tuple(x.shape)}, found {tuple(tensor.shape)}")


# ---- for tests and benches -------------------------------------------------------------------------------------------


def cost(x: Tensor, norm: GroupNormWeights, groups: int, eps: float = 1e-5) -> Cost:
    """Work of `group_norm_silu`: no products to speak of, and x and y once each."""
    small = sum(tensor.numel() for tensor in norm if tensor is not None)
    return Cost(0, (2 * x.numel() + small) * x.element_size())


def make_weights(batch: int, channels: int, modulated: bool = False) -> GroupNormWeights:
    """Random weights of the size that a trained network has."""
    scale, shift = (0.3 * torch.randn(2, batch, channels)).unbind() if modulated else (None, None)
    return GroupNormWeights(1 + 0.2 * torch.randn(channels), 0.2 * torch.randn(channels), scale, shift)


def cases() -> list[Case]:
    """Shapes of the released denoiser's res blocks and of a compact U-Net's at a 32 latent, and unusual ones."""

    def case(
        name: str, shape: tuple[int, int, int, int], groups: int, layout: str = "channels_last", **options: Any
    ) -> Case:
        tags = {"modulated": False, "affine": True, "offset": 0.0, "timed": False, **options}

        def make(seed: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                x = LAYOUTS[layout](torch.randn(shape) + tags["offset"])
                norm = make_weights(*shape[:2], modulated=tags["modulated"])
            return (x, norm if tags["affine"] else GroupNormWeights(), groups), {}

        return Case(name, make, timed=tags["timed"], tested=x_elements(shape) < 1_000_000)

    def x_elements(shape: tuple[int, int, int, int]) -> int:
        return shape[0] * shape[1] * shape[2] * shape[3]

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


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "sliced": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "channels of more": lambda x: torch.cat([x, x, x], 1)[:, x.shape[1] : 2 * x.shape[1]],
    "rows of more": lambda x: torch.cat([x, x, x], 1).contiguous(memory_format=torch.channels_last)[:, : x.shape[1]],
    "expanded": lambda x: x[:1].expand(x.shape),
}

_SIGNATURE = Signature((GroupNormWeights,), ("groups",), ("eps",))
_run = define_block_op(OP, _SIGNATURE, group_norm_silu_gradients, cost)
