"""res_block: a whole ResNet block of a diffusion U-Net (Ho et al. 2020, arXiv 2006.11239), two `norm_silu_conv3x3`.

    hidden = conv3x3(silu(group_norm(x))) + bias + embedding
    out    = conv3x3(silu(group_norm(hidden) (1 + scale) + shift)) + bias + skip     skip = x or conv1x1(x)

For small images, where the overhead of a call takes as long as its work. MACs per pixel: 9 C_in C_mid + 9 C_mid C_out,
and C_in C_out for the shortcut. The hidden image stays in scratch memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from swintormer_kernels.backends.reference.denoiser import res_block as _reference
from swintormer_kernels.ops import norm_silu_conv3x3
from swintormer_kernels.records import Norms, ResBlockWeights
from swintormer_kernels.registry import Op
from swintormer_kernels.torch_op import Cost, Signature, define_block_op, float32_or_autocast, slower_with_gradients


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
    absent={
        "cuda": "there is no CUDA kernel for the whole ResNet block; call norm_silu_conv3x3 twice",
        "triton": "there is no Triton kernel for the whole ResNet block; call norm_silu_conv3x3 twice",
    },
    slower={"cpu": _cpu_slower},
)


@OP.public
def res_block(
    x: Tensor, block: ResBlockWeights, groups1: int, groups2: int, eps1: float = 1e-5, eps2: float = 1e-5
) -> Tensor:
    """A ResNet block: norm, SiLU, 3x3 convolution, time embedding; norm, SiLU, 3x3 convolution, skip connection.

    Args:
        x: (B, C_in, H, W), any strides.
        block: the parameters, shapes as in `ResBlockWeights`.
        groups1, groups2: numbers of groups of the two norms, divisors of C_in and C_mid.
        eps1, eps2: constants added to their variances, at least 0.

    Returns:
        (B, C_out, H, W).

    Raises:
        ValueError: a tensor has another shape, a number of groups is no divisor, or an eps is negative.
    """
    norms = Norms(groups1, groups2, eps1, eps2)
    out = fused_res_block(x, block, norms)
    return _reference(x, block, *norms) if out is None else out


def fused_res_block(x: Tensor, block: ResBlockWeights, norms: Norms) -> Tensor | None:
    """`res_block`, or None if these arguments select the reference, for callers with a faster alternative."""
    check_input(x, block, norms)
    backend = OP.select(x, block, *norms)
    return None if backend == "reference" else _run(*_SIGNATURE.flat(x, block, *norms), backend)


def check_input(x: Tensor, block: ResBlockWeights, norms: Norms) -> None:
    """Raises ValueError if `res_block` does not accept these arguments."""
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
        raise ValueError(f"a ResNet block from {channels} to {out} channels, or with shortcut_bias, needs a shortcut")


def _like_output(x: Tensor, *tensors: Any) -> Tensor:
    return x.new_empty((x.shape[0], tensors[1].shape[0], *x.shape[2:])).to(memory_format=torch.channels_last)


def cost(x: Tensor, block: ResBlockWeights, *norms: float) -> Cost:
    """Work of `res_block`: MACs of direct convolutions; x, weights and out once each."""
    pixels, out = x.numel() // max(1, x.shape[1]), block.conv2.shape[0]
    products = block.conv1.numel() + block.conv2.numel()
    products += 0 if block.shortcut is None else block.shortcut.numel()
    weights = sum(tensor.numel() for tensor in block if tensor is not None)
    return Cost(pixels * products, (x.numel() + pixels * out + weights) * x.element_size())


_SIGNATURE = Signature((ResBlockWeights,), ("groups1", "groups2"), ("eps1", "eps2"))
_run = define_block_op(OP, _SIGNATURE, cost, _like_output)
