"""gated_ffn: x + project_out(x1 * x2), with [x1, x2] = project_in(LayerNorm(x)).

Both projections are 1x1 convolutions; the LayerNorm runs over the channels of each pixel (eps 1e-5); there is no
activation, the product of the halves is the gate (arXiv 2401.05907). MACs per pixel: C * 2hid + hid * C.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..backends.reference.gated_ffn import gated_ffn as _reference
from ..registry import Op

OP = Op(
    "gated_ffn",
    serves={},
    absent={
        "cpu": "not written yet: the C++ engine has only ddim_step so far",
        "triton": "not written yet",
        "cuda": "not written yet",
    },
)


class FFNWeights(NamedTuple):
    """Parameters of `gated_ffn`; hid hidden channels."""

    norm_weight: Tensor  # (C,)
    norm_bias: Tensor  # (C,)
    project_in: Tensor  # (2 hid, C, 1, 1)
    project_out: Tensor  # (C, hid, 1, 1)
    project_in_bias: Tensor | None = None  # (2 hid,)
    project_out_bias: Tensor | None = None  # (C,)


@OP.public
def gated_ffn(x: Tensor, weights: FFNWeights) -> Tensor:
    """x + ffn(norm2(x)), per pixel.

    Args:
        x: (B, C, H, W), any strides.
        weights: the parameters, shapes as in `FFNWeights`.

    Returns:
        (B, C, H, W).

    Raises:
        ValueError: x is not 4-D, or its channels are not those of the weights.
    """
    check_input(x, weights)
    OP.select(x, weights)
    return _reference(x, weights)


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
