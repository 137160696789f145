"""gated_ffn: x + project_out(x1 * x2), with [x1, x2] = project_in(LayerNorm(x)).

Both projections are 1x1 convolutions; the LayerNorm runs over the channels of each pixel (eps 1e-5); there is no
activation: one half gates the other by their product (arXiv 2401.05907). MACs per pixel: 3 C hid, with hid hidden
channels.
"""

from __future__ import annotations

from torch import Tensor

from swintormer_kernels.backends.cuda.layout import half_rows_on_gpu
from swintormer_kernels.backends.cuda.limits import tail_lacks
from swintormer_kernels.backends.reference.blocks import gated_ffn as _reference
from swintormer_kernels.backends.triton.layout import MOST_CHANNELS, dense_on_gpu
from swintormer_kernels.precision import with_precision
from swintormer_kernels.records import FFNWeights
from swintormer_kernels.registry import Op
from swintormer_kernels.torch_op import (
    Cost,
    Signature,
    check_shapes,
    define_block_op,
    element_bytes,
    float32_bfloat16_or_autocast,
    gradients_wanted,
)


def _cpu_serves(x: Tensor, weights: FFNWeights) -> str | None:
    return float32_bfloat16_or_autocast(x, *weights)


def _triton_serves(x: Tensor, weights: FFNWeights) -> str | None:
    return triton_lacks(x) or dense_on_gpu(x, *weights)


def triton_lacks(x: Tensor) -> str | None:
    """Why the Triton kernels do not support this number of channels, or None. Also used by `swda_block`."""
    if x.shape[1] > MOST_CHANNELS:
        return f"the triton backend keeps a pixel's channels in registers, {MOST_CHANNELS} at most, found {x.shape[1]}"
    return None


def _cuda_serves(x: Tensor, weights: FFNWeights) -> str | None:
    return tail_lacks(x) or half_rows_on_gpu("tail", x, *weights)


def _cpu_slower(x: Tensor, weights: FFNWeights) -> str | None:
    # bench/small_shapes.py, one thread, reference / cpu: 4 to 16 pixels reach 0.7 to 0.9 from 128 channels on, 1.0 to
    # 1.2 at 64; 36 pixels and more win.
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    if x.shape[1] >= 128 and pixels < 32:
        return f"{pixels} pixels fill too little of the cpu backend's vectors at {x.shape[1]} channels"
    # Forward and backward in bench/results/gated_ffn.csv (one Zen 4 core): 2.2 times as fast as the reference at C 48,
    # 1.4 to 2.0 at C 96, 1.06 at C 192, 0.91 at C 384.
    if x.shape[1] >= 256 and gradients_wanted(x, *weights):
        return f"its gradient reads and writes too many weights at {x.shape[1]} channels"
    return None


OP = Op(
    "gated_ffn",
    serves={"cpu": _cpu_serves, "triton": _triton_serves, "cuda": _cuda_serves},
    slower={"cpu": _cpu_slower},
)


@OP.public
def gated_ffn(x: Tensor, weights: FFNWeights) -> Tensor:
    """x + ffn(norm2(x)), per pixel.

    Args:
        x: (B, C, H, W), any strides. Dtypes as in `swda_block`.
        weights: the parameters, shapes as in `FFNWeights`.

    Returns:
        (B, C, H, W).

    Raises:
        ValueError: x is not 4-D, or its channels are not those of the weights.
    """
    check_input(x, weights)
    backend = OP.select(x, weights)
    if backend == "reference":
        return _reference(x, weights)
    return _run(*_SIGNATURE.flat(x, weights), with_precision(backend, x))


def check_input(x: Tensor, weights: FFNWeights) -> None:
    """Raises ValueError where `gated_ffn` cannot take these arguments."""
    channels, hidden = weights.project_out.shape[:2]
    if x.ndim != 4 or x.shape[1] != channels:
        raise ValueError(f"gated_ffn takes x of shape (B, {channels}, H, W) with these weights, found {tuple(x.shape)}")
    if weights.project_in.shape[:2] != (2 * hidden, channels):
        raise ValueError(
            f"project_in must be (2 * {hidden}, {channels}, 1, 1) to go with project_out, "
            f"found {tuple(weights.project_in.shape)}"
        )
    wanted = {"norm_weight": (channels,), "norm_bias": (channels,), "project_out": (channels, hidden, 1, 1)}
    check_shapes(weights, wanted | {"project_in_bias": (2 * hidden,), "project_out_bias": (channels,)})


def cost(x: Tensor, weights: FFNWeights) -> Cost:
    """Work of `gated_ffn` with these arguments."""
    hidden = weights.project_out.shape[1]
    return Cost(3 * x.numel() * hidden, element_bytes(2 * x.numel(), *weights))


_SIGNATURE = Signature((FFNWeights,), ())
_run = define_block_op(OP, _SIGNATURE, cost)
