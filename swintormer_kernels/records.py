"""Named tuples of weights and settings that the ops take. Shapes are beside the fields."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class AttentionWeights(NamedTuple):
    """Parameters of `swda_attention`. The number of heads is the length of `logit_scale`."""

    norm_weight: Tensor  # (C,)
    norm_bias: Tensor  # (C,)
    qkv: Tensor  # (3C, C, 1, 1)
    dwconv: Tensor  # (3C, 1, 3, 3)
    proj: Tensor  # (C, C, 1, 1)
    logit_scale: Tensor  # (heads, 1, 1)
    bias_table: Tensor  # ((2w-1)^2, heads), before 16 * sigmoid; row difference first
    qkv_bias: Tensor | None = None  # (3C,)
    dwconv_bias: Tensor | None = None  # (3C,)
    proj_bias: Tensor | None = None  # (C,)


class FFNWeights(NamedTuple):
    """Parameters of `gated_ffn`; hid hidden channels."""

    norm_weight: Tensor  # (C,)
    norm_bias: Tensor  # (C,)
    project_in: Tensor  # (2 hid, C, 1, 1)
    project_out: Tensor  # (C, hid, 1, 1)
    project_in_bias: Tensor | None = None  # (2 hid,)
    project_out_bias: Tensor | None = None  # (C,)


class GroupNormWeights(NamedTuple):
    """Parameters of a GroupNorm and of the scale and shift after it."""

    weight: Tensor | None = None  # (C,), None for 1
    bias: Tensor | None = None  # (C,), None for 0
    scale: Tensor | None = None  # (B, C), None for 0
    shift: Tensor | None = None  # (B, C), None for 0


class ConvWeights(NamedTuple):
    """Parameters of a 3x3 convolution and the tensors added to its result."""

    weight: Tensor  # (C_out, C_in, 3, 3)
    bias: Tensor | None = None  # (C_out,)
    embedding: Tensor | None = None  # (B, C_out)
    skip: Tensor | None = None  # (B, C_out, H, W), any strides


class ResBlockWeights(NamedTuple):
    """Parameters of a ResNet block and the projections of the time embedding."""

    conv1: Tensor  # (C_mid, C_in, 3, 3)
    conv2: Tensor  # (C_out, C_mid, 3, 3)
    conv1_bias: Tensor | None = None  # (C_mid,)
    conv2_bias: Tensor | None = None  # (C_out,)
    norm1_weight: Tensor | None = None  # (C_in,), None for 1
    norm1_bias: Tensor | None = None  # (C_in,), None for 0
    norm2_weight: Tensor | None = None  # (C_mid,)
    norm2_bias: Tensor | None = None  # (C_mid,)
    embedding: Tensor | None = None  # (B, C_mid), added to conv1's result
    scale: Tensor | None = None  # (B, C_mid), applied to the result of norm2
    shift: Tensor | None = None  # (B, C_mid)
    shortcut: Tensor | None = None  # (C_out, C_in, 1, 1); None to add x itself
    shortcut_bias: Tensor | None = None  # (C_out,)


class Norms(NamedTuple):
    """Numbers of groups of the two norms, and the constants added to their variances."""

    groups1: int
    groups2: int
    eps1: float = 1e-5
    eps2: float = 1e-5


class LinearWeights(NamedTuple):
    """Parameters of a linear map."""

    weight: Tensor  # (C_out, C_in)
    bias: Tensor | None = None  # (C_out,)


class UpsampleWeights(NamedTuple):
    """Parameters of `upsample_conv3x3`."""

    weight: Tensor  # (C_out, C_in, 3, 3)
    bias: Tensor | None = None  # (C_out,)


class ShuffleWeights(NamedTuple):
    """Parameters of `conv3x3_shuffle`."""

    weight: Tensor  # (C_out, C_in, 3, 3)
    bias: Tensor | None = None  # (C_out,)


class Prediction(NamedTuple):
    """Kind of the network's prediction, and the unconditional prediction for classifier-free guidance."""

    kind: str = "epsilon"  # or "sample" (x0) or "v_prediction", the names of diffusers
    unconditional: Tensor | None = None  # the prediction without the condition; None for no guidance
    guidance_scale: float = 1.0  # g of unconditional + g (conditional - unconditional)
