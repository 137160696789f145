"""Fused ops for shifted-window attention with depth-wise convolution, and for the steps of a diffusion denoiser.

import swintormer_kernels as sk

sk.explain(sk.ddim_step, z, e, alpha_bar_t=.2, alpha_bar_s=.5)   # the backend these inputs get, and each rejection
sk.backends()                                  # the backends of this machine, and why others are missing
with sk.use_backend("reference"): ...          # or "cpu", "triton", "cuda"; scoped
report = sk.optimize(model)                    # replaces known blocks of a model by the ops, in place; reports which
sk.restore(model)
print(sk.selfcheck())                          # every op and backend against the reference, on this machine's devices
"""

from swintormer_kernels.ops.conv3x3_shuffle import conv3x3_shuffle
from swintormer_kernels.ops.ddim_step import ddim_step
from swintormer_kernels.ops.gated_ffn import gated_ffn
from swintormer_kernels.ops.group_norm_silu import group_norm_silu
from swintormer_kernels.ops.norm_projection import norm_projection
from swintormer_kernels.ops.norm_silu_conv3x3 import norm_silu_conv3x3
from swintormer_kernels.ops.res_block import res_block
from swintormer_kernels.ops.swda_attention import swda_attention
from swintormer_kernels.ops.swda_block import swda_block
from swintormer_kernels.ops.upsample_conv3x3 import upsample_conv3x3
from swintormer_kernels.packed import forget
from swintormer_kernels.patch import optimize, restore
from swintormer_kernels.records import (
    AttentionWeights,
    ConvWeights,
    FFNWeights,
    GroupNormWeights,
    LinearWeights,
    Prediction,
    ResBlockWeights,
    ShuffleWeights,
    UpsampleWeights,
)
from swintormer_kernels.registry import BACKENDS, BackendError, backends, explain, use_backend
from swintormer_kernels.selfcheck import selfcheck

__all__ = [
    "BACKENDS",
    "AttentionWeights",
    "BackendError",
    "ConvWeights",
    "FFNWeights",
    "GroupNormWeights",
    "LinearWeights",
    "Prediction",
    "ResBlockWeights",
    "ShuffleWeights",
    "UpsampleWeights",
    "backends",
    "conv3x3_shuffle",
    "ddim_step",
    "explain",
    "forget",
    "gated_ffn",
    "group_norm_silu",
    "norm_projection",
    "norm_silu_conv3x3",
    "optimize",
    "res_block",
    "restore",
    "selfcheck",
    "swda_attention",
    "swda_block",
    "upsample_conv3x3",
    "use_backend",
]
