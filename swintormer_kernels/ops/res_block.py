"""res_block: a whole res block of a diffusion U-Net (Ho et al. 2020, arXiv 2006.11239), two `norm_silu_conv3x3`.

    hidden = conv3x3(silu(group_norm(x))) + bias + embedding
    out    = conv3x3(silu(group_norm(hidden) (1 + scale) + shift)) + bias + skip     skip = x, or x's 1x1 convolution

For small images, where what a call costs beside its work is as long as the work. MACs per pixel: 9 C_in C_mid +
9 C_mid C_out, and C_in C_out for the shortcut. The hidden image never becomes a tensor.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from swintormer_kernels.backends.reference.res_block import res_block as _reference
from swintormer_kernels.backends.reference.res_block import res_block_gradients
from swintormer_kernels.ops import group_norm_silu, norm_silu_conv3x3
from swintormer_kernels.registry import Op
from swintormer_kernels.testing.cases import Case, Cost
from swintormer_kernels.torch_op import Signature, define_block_op, float32_or_autocast, slower_with_gradients


class ResBlockWeights(NamedTuple):
    """Parameters of a res block, and what the time embedding adds."""

    conv1: Tensor  # (C_mid, C_in, 3, 3)
    conv2: Tensor  # (C_out, C_mid, 3, 3)
    conv1_bias: Tensor | None = None  # (C_mid,)
    conv2_bias: Tensor | None = None  # (C_out,)
    norm1_weight: Tensor | None = None  # (C_in,), 1 where it is None
    norm1_bias: Tensor | None = None  # (C_in,), 0 where it is None
    norm2_weight: Tensor | None = None  # (C_mid,)
    norm2_bias: Tensor | None = None  # (C_mid,)
    embedding: Tensor | None = None  # (B, C_mid), added to conv1's result
    scale: Tensor | None = None  # (B, C_mid), of norm2's result
    shift: Tensor | None = None  # (B, C_mid)
    shortcut: Tensor | None = None  # (C_out, C_in, 1, 1); x itself is added where it is None
    shortcut_bias: Tensor | None = None  # (C_out,)


class Norms(NamedTuple):
    """Groups of the two norms, and what is added to their variances."""

    groups1: int
    groups2: int
    eps1: float = 1e-5
    eps2: float = 1e-5


def _cpu_serves(x: Tensor, block: ResBlockWeights, *norms: float) -> str | None:
    return float32_or_autocast(x, *block)


def _cpu_slower(x: Tensor, block: ResBlockWeights, *norms: float) -> str | None:
    for conv in (block.conv1, block.conv2):
        reason = norm_silu_conv3x3.too_small(x.shape[0], conv.shape[1], conv.shape[0], (x.shape[2], x.shape[3]))
        if reason is not None:
            return reason
    return slower_with_gradients(x, *block)


OP = Op(
    "res_block",
    serves={"cpu": _cpu_serves},
    absent={"triton": "two norm_silu_conv3x3 and a captured graph do it", "cuda": "not written yet"},
    slower={"cpu": _cpu_slower},
)


@OP.public
def res_block(
    x: Tensor, block: ResBlockWeights, groups1: int, groups2: int, eps1: float = 1e-5, eps2: float = 1e-5
) -> Tensor:
    """A res block: norm, SiLU, 3x3 convolution, the time; norm, SiLU, 3x3 convolution, the skip.

    Args:
        x: (B, C_in, H, W), any strides.
        block: the parameters, shapes as in `ResBlockWeights`.
        groups1, groups2: of the two norms, divisors of C_in and C_mid.
        eps1, eps2: added to their variances, at least 0.

    Returns:
        (B, C_out, H, W).

    Raises:
        ValueError: a shape, a number of groups or an eps does not fit.
    """
    norms = Norms(groups1, groups2, eps1, eps2)
    out = fused_res_block(x, block, norms)
    return _reference(x, block, *norms) if out is None else out


def fused_res_block(x: Tensor, block: ResBlockWeights, norms: Norms) -> Tensor | None:
    """`res_block`, or None where these arguments get the reference: for callers that have something better then."""
    check_input(x, block, norms)
    backend = OP.select(x, block, *norms)
    return None if backend == "reference" else _run(*_SIGNATURE.flat(x, block, *norms), backend)


def check_input(x: Tensor, block: ResBlockWeights, norms: Norms) -> None:
    """Raises ValueError where `res_block` cannot take these arguments."""
    if x.ndim != 4:
        raise ValueError(f"x must be (B, C, H, W), found shape {tuple(x.shape)}")
    batch, channels = x.shape[:2]
    middle, out = block.conv1.shape[0], block.conv2.shape[0]
    for number, groups, of, eps in ((1, norms.groups1, channels, norms.eps1), (2, norms.groups2, middle, norms.eps2)):
        if groups < 1 or of % groups:
            raise ValueError(f"groups{number} must divide {of} channels, found {groups}")
        if not eps >= 0:
            raise ValueError(f"eps{number} must be at least 0, found {eps}")
    wanted = (
        *((middle, channels, 3, 3), (out, middle, 3, 3), (middle,), (out,)),
        *((channels,), (channels,), (middle,), (middle,)),
        *((batch, middle), (batch, middle), (batch, middle)),
        *((out, channels, 1, 1), (out,)),
    )
    for name, tensor, shape in zip(ResBlockWeights._fields, block, wanted, strict=True):
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name} must be {shape} with x {tuple(x.shape)}, found {tuple(tensor.shape)}")
    if block.shortcut is None and (out != channels or block.shortcut_bias is not None):
        raise ValueError(f"from {channels} to {out} channels, or with a shortcut_bias, a res block needs a shortcut")


def _like_output(x: Tensor, *tensors: Any) -> Tensor:
    return x.new_empty((x.shape[0], tensors[1].shape[0], *x.shape[2:])).to(memory_format=torch.channels_last)


# ---- for tests and benches -------------------------------------------------------------------------------------------


def cost(x: Tensor, block: ResBlockWeights, *norms: float) -> Cost:
    """Work of `res_block`: the products of direct convolutions; x, weights and out once each."""
    pixels, out = x.numel() // max(1, x.shape[1]), block.conv2.shape[0]
    products = block.conv1.numel() + block.conv2.numel()
    products += 0 if block.shortcut is None else block.shortcut.numel()
    weights = sum(tensor.numel() for tensor in block if tensor is not None)
    return Cost(pixels * products, (x.numel() + pixels * out + weights) * x.element_size())


def make_weights(batch: int, channels: int, middle: int, out: int, modulated: bool = False) -> ResBlockWeights:
    """Random weights that keep the size of what passes through; with a shortcut where the channels differ."""
    norms = [group_norm_silu.make_weights(batch, c, modulated=modulated) for c in (channels, middle)]
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


def cases() -> list[Case]:
    """Res blocks of the compact U-Net at a 32 latent, of the released one at 32 and 128, and unusual ones."""

    def case(
        name: str,
        shape: tuple[int, int, int, int],
        sizes: tuple[int, int],
        groups: int,
        layout: str = "",
        **options: Any,
    ) -> Case:
        arrange = group_norm_silu.LAYOUTS[layout or "channels_last"]
        plain = options.get("plain", False)

        def make(seed: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                x = arrange(torch.randn(shape))
                block = make_weights(shape[0], shape[1], *sizes, options.get("modulated", False))
            if plain:
                block = ResBlockWeights(block.conv1, block.conv2, shortcut=block.shortcut)
            return (x, block, groups, groups), {}

        small = shape[2] * shape[3] * shape[1] * sizes[0] < 10_000_000
        return Case(name, make, timed=options.get("timed", False), tested=small)

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


_SIGNATURE = Signature((ResBlockWeights,), ("groups1", "groups2"), ("eps1", "eps2"))
_run = define_block_op(OP, _SIGNATURE, res_block_gradients, cost, _like_output)
