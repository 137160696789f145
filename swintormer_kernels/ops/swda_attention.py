"""swda_attention: x + attention(LayerNorm(x)), shifted-windows-dconv attention (arXiv 2401.05907).

1. Roll by (-s, -s), cut into w*w windows (N tokens each); 1x1 convolution C -> 3C, then a 3x3 depth-wise convolution
   zero-padded inside each window.
2. First 3C/2 channels, per window and head: softmax_one(scale * cos(q, k) + bias + mask) v over tokens, with
   scale = exp(min(logit_scale, ln 100)), bias = 16 sigmoid(bias_table[pair]), mask -100 between different regions.
3. Second 3C/2 channels, per window and head: softmax_one(cos(q, k)) v over channels, norms over the N tokens.
4. Concatenate, 1x1 convolution C -> C, roll back, add x.

softmax_one(l) = exp(l - m) / (1 + sum exp(l - m)), m the row maximum.
MACs per pixel: 3C^2 (qkv) + 27C (depth-wise) + C N (window half) + C d (channel half) + C^2 (projection).
"""

from __future__ import annotations

from torch import Tensor

from swintormer_kernels.backends.cuda.layout import half_rows_on_gpu
from swintormer_kernels.backends.cuda.limits import attention_lacks, attention_slower
from swintormer_kernels.backends.reference.blocks import swda_attention as _reference
from swintormer_kernels.backends.triton.layout import dense_on_gpu
from swintormer_kernels.precision import with_precision
from swintormer_kernels.records import AttentionWeights
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


def _cpu_serves(x: Tensor, weights: AttentionWeights, window: int, shift: int) -> str | None:
    return float32_bfloat16_or_autocast(x, *weights)


def _triton_serves(x: Tensor, weights: AttentionWeights, window: int, shift: int) -> str | None:
    return triton_lacks(x, weights, window) or dense_on_gpu(x, *weights)


def _cuda_serves(x: Tensor, weights: AttentionWeights, window: int, shift: int) -> str | None:
    return attention_lacks(x, weights, window) or half_rows_on_gpu("attention tail", x, *weights)


def triton_lacks(x: Tensor, weights: AttentionWeights, window: int) -> str | None:
    """Why the Triton kernels do not support these sizes, or None. Also used by `swda_block`."""
    head = x.shape[1] // 2 // weights.logit_scale.shape[0]
    if head > 64:
        return f"the triton backend takes heads of at most 64 channels, found {head}; use more heads"
    if window > 32:
        return f"the triton backend takes windows of at most 32x32 tokens, found {window}x{window}"
    return None


def cpu_slower(x: Tensor, window: int) -> str | None:
    """Why the cpu backend is slower for windows that leave most of a vector panel (up to 32 tokens) empty, or None.

    Also used by `swda_block`. bench/small_shapes.py, one thread, reference / cpu: windows of 2 to 4 reach 0.3 to 1.1
    from 64 channels on, where the products take most of the time, and 1.1 or more below; windows of 5 and more are
    faster.
    """
    if window <= 4 and x.shape[1] >= 64:
        return (
            f"windows of {window}x{window} tokens fill too little of the cpu backend's vectors at {x.shape[1]} channels"
        )
    return None


def _cpu_slower(x: Tensor, weights: AttentionWeights, window: int, shift: int) -> str | None:
    return cpu_slower(x, window)


def _cuda_slower(x: Tensor, weights: AttentionWeights, window: int, shift: int) -> str | None:
    return attention_slower("swda_attention", x, weights, window, gradients_wanted(x, *weights))


OP = Op(
    "swda_attention",
    serves={"cpu": _cpu_serves, "triton": _triton_serves, "cuda": _cuda_serves},
    slower={"cpu": _cpu_slower, "cuda": _cuda_slower},
)


@OP.public
def swda_attention(x: Tensor, weights: AttentionWeights, window: int, shift: int) -> Tensor:
    """x + attention(norm1(x)).

    Args:
        x: (B, C, H, W), any strides, H and W multiples of the window. Dtypes as in `swda_block`.
        weights: parameters, shapes as in `AttentionWeights`; C a multiple of 2 * heads.
        window: w, side of a window, at least 2.
        shift: s, 0 <= s < w.

    Returns:
        (B, C, H, W).

    Raises:
        ValueError: a tensor has another shape, or window or shift is out of range.
    """
    check_input(x, weights, window, shift)
    backend = OP.select(x, weights, window, shift)
    if backend == "reference":
        return _reference(x, weights, window, shift)
    return _run(*_SIGNATURE.flat(x, weights, window, shift), with_precision(backend, x))


def check_input(x: Tensor, weights: AttentionWeights, window: int, shift: int) -> None:
    """Raises ValueError if `swda_attention` does not accept these arguments."""
    channels, heads = weights.proj.shape[0], weights.logit_scale.shape[0]
    if x.ndim != 4 or x.shape[1] != channels:
        raise ValueError(
            f"swda_attention takes x of shape (B, {channels}, H, W) with these weights, found {tuple(x.shape)}"
        )
    if window < 2 or not 0 <= shift < window:
        raise ValueError(f"need window >= 2 and 0 <= shift < window, found window {window} and shift {shift}")
    if x.shape[2] % window or x.shape[3] % window:
        raise ValueError(
            f"height and width must be multiples of the window {window}, found {x.shape[2]}x{x.shape[3]}; pad first"
        )
    if heads < 1 or channels % (2 * heads):
        raise ValueError(
            f"channels {channels} must be a multiple of 2 * heads, and heads at least 1, found {heads} heads"
        )
    if weights.bias_table.shape != ((2 * window - 1) ** 2, heads):
        raise ValueError(
            f"bias_table must be ({(2 * window - 1) ** 2}, {heads}) for window {window} and {heads} heads, "
            f"found {tuple(weights.bias_table.shape)}"
        )
    c = channels
    wanted = {"norm_weight": (c,), "norm_bias": (c,), "qkv": (3 * c, c, 1, 1), "dwconv": (3 * c, 1, 3, 3)}
    wanted |= {"proj": (c, c, 1, 1), "qkv_bias": (3 * c,), "dwconv_bias": (3 * c,), "proj_bias": (c,)}
    check_shapes(weights, wanted)


def cost(x: Tensor, weights: AttentionWeights, window: int, shift: int) -> Cost:
    """Work of `swda_attention` with these arguments; the formula of the MACs is in the module docstring."""
    channels, heads = weights.proj.shape[0], weights.logit_scale.shape[0]
    pixels = x.numel() // channels
    macs = 4 * channels**2 + 27 * channels + channels * window**2 + channels * (channels // 2 // heads)
    return Cost(pixels * macs, element_bytes(2 * x.numel(), *weights))


_SIGNATURE = Signature((AttentionWeights,), ("window", "shift"))
_run = define_block_op(OP, _SIGNATURE, cost)
