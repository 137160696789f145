"""group_norm_silu: GroupNorm (Wu and He 2018, arXiv 1803.08494), an optional scale and shift, and SiLU.

    u = (x - mean) / sqrt(variance + eps) * weight + bias     mean and variance over C / groups channels by H W pixels
    y = v * sigmoid(v), v = u * (1 + scale) + shift           scale and shift per image and channel

Scale and shift are those of the "scale_shift" time embedding of diffusers (Dhariwal and Nichol 2021, arXiv 2105.05233,
"AdaGN"). Memory traffic: x is read for the statistics and again for the result, once in total if a group stays in
cache; y is written once. Backward on the cpu backend: 28 bytes per element, see csrc/denoiser/group_norm_silu.h.
FlopCounterMode counts no elementwise ops, so the registered formula is 0; `cost()` has the figures.
"""

from __future__ import annotations

from torch import Tensor

from swintormer_kernels.backends.cuda.layout import half_rows_on_gpu
from swintormer_kernels.backends.cuda.limits import norm_lacks
from swintormer_kernels.backends.reference.denoiser import group_norm_silu as _reference
from swintormer_kernels.backends.triton.layout import dense_on_gpu
from swintormer_kernels.records import GroupNormWeights
from swintormer_kernels.registry import Op
from swintormer_kernels.torch_op import Cost, Signature, define_block_op, float32_or_autocast, gradients_wanted


def _cpu_serves(x: Tensor, norm: GroupNormWeights, groups: int, eps: float = 1e-5) -> str | None:
    return float32_or_autocast(x, *norm)


def _triton_serves(x: Tensor, norm: GroupNormWeights, groups: int, eps: float = 1e-5) -> str | None:
    return dense_on_gpu(x, *norm)


def _cuda_serves(x: Tensor, norm: GroupNormWeights, groups: int, eps: float = 1e-5) -> str | None:
    return norm_lacks(x) or half_rows_on_gpu("group_norm", x, *norm)


def _cpu_slower(x: Tensor, norm: GroupNormWeights, groups: int, eps: float = 1e-5) -> str | None:
    # Two threads, reference / cpu (bench/bench_ops.py): 32768 elements 0.6 to 0.8, 163840 0.95 to 1.1, from
    # 1.3 M on 1.2 to 1.6 with a modulation or in NCHW, 0.9 to 1.0 in channels_last without one.
    if x.numel() < 1 << 18:
        return f"{x.numel()} elements take less time than a call of the cpu backend"
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
    serves={"cpu": _cpu_serves, "triton": _triton_serves, "cuda": _cuda_serves},
    slower={"cpu": _cpu_slower},
)


@OP.public
def group_norm_silu(x: Tensor, norm: GroupNormWeights, groups: int, eps: float = 1e-5) -> Tensor:
    """silu(group_norm(x) * (1 + scale) + shift).

    Args:
        x: (B, C, H, W), any strides.
        norm: the parameters, shapes as in `GroupNormWeights`.
        groups: number of groups, a divisor of C.
        eps: added to the variance, at least 0.

    Returns:
        (B, C, H, W), in x's memory layout if x is dense.

    Raises:
        ValueError: a tensor has another shape, `groups` does not divide C, or `eps` is negative.
    """
    check_input(x, norm, groups, eps)
    backend = OP.select(x, norm, groups, eps)
    if backend == "reference":
        return _reference(x, norm, groups, eps)
    return _run(*_SIGNATURE.flat(x, norm, groups, eps), backend)


def check_input(x: Tensor, norm: GroupNormWeights, groups: int, eps: float) -> None:
    """Raises ValueError if `group_norm_silu` does not accept these arguments."""
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


def cost(x: Tensor, norm: GroupNormWeights, groups: int, eps: float = 1e-5) -> Cost:
    """Work of `group_norm_silu`: no MACs counted; x and y once each."""
    small = sum(tensor.numel() for tensor in norm if tensor is not None)
    return Cost(0, (2 * x.numel() + small) * x.element_size())


_SIGNATURE = Signature((GroupNormWeights,), ("groups",), ("eps",))
_run = define_block_op(OP, _SIGNATURE, cost)
