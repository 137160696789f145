"""swda_block as two kernels: `attention`, and `tail` with projection and FFN. bfloat16 and float16, channels_last.

5 C elements a pixel are read or written: x, the attended tokens (written and read), x again and the result. One kernel
would save three of them and need 89 KB (C 48) to 220 KB (C 192) of shared memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from swintormer_kernels.backends.cuda.block_kernels import attend, finish
from swintormer_kernels.backends.cuda.layout import aligned

if TYPE_CHECKING:
    from swintormer_kernels.records import AttentionWeights, FFNWeights


def swda_block(x: Tensor, attention: AttentionWeights, ffn: FFNWeights, window: int, shift: int) -> Tensor:
    """See `swintormer_kernels.ops.swda_block`."""
    if x.numel() == 0:
        return torch.empty_like(x)
    x = aligned(x)
    return finish(x, (attend(x, attention, window, shift), attention, window, shift), ffn)
