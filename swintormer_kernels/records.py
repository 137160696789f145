"""Records of weights and settings that the ops take, shapes beside each field."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class AttentionWeights(NamedTuple):
    """Parameters of `swda_attention`; the number of heads is read off `logit_scale`."""

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
    """Parameters of a GroupNorm and the modulation after it."""

    weight: Tensor | None = None  # (C,), 1 where it is None
    bias: Tensor | None = None  # (C,), 0 where it is None
    scale: Tensor | None = None  # (B, C), 0 where it is None
    shift: Tensor | None = None  # (B, C), 0 where it is None


class ConvWeights(NamedTuple):
    """Parameters of the 3x3 convolution, and what is added to its result."""

    weight: Tensor  # (C_out, C_in, 3, 3)
    bias: Tensor | None = None  # (C_out,)
    embedding: Tensor | None = None  # (B, C_out)
    skip: Tensor | None = None  # (B, C_out, H, W), any strides


class ResBlockWeights(NamedTuple):
    """Parameters of a ResNet block, and what the time embedding adds."""

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


class LinearWeights(NamedTuple):
    """Parameters of a linear map."""

    weight: Tensor  # (C_out, C_in)
    bias: Tensor | None = None  # (C_out,)


class UpsampleWeights(NamedTuple):
    """Parameters of `upsample_conv3x3`."""

    weight: Tensor  # (C_out, C_in, 3, 3)
    bias: Tensor | None = None  # (C_out,)


class Prediction(NamedTuple):
    """What the network predicts, and a second prediction to be guided away from."""

    kind: str = "epsilon"  # or "sample" (x0), or "v_prediction": diffusers' names
    unconditional: Tensor | None = None  # the prediction without the condition; None for no guidance
    guidance_scale: float = 1.0  # g of unconditional + g (conditional - unconditional)
