"""What training minimises."""

from __future__ import annotations

import torch
from torch import Tensor


def l1_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference, in float32 whatever autocast made of `output`; the release trains with this alone."""
    return torch.nn.functional.l1_loss(output.float(), target.float())
