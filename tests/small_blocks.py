"""Small models of released blocks, which the tests of optimize and of recognise share."""

from __future__ import annotations

import torch
from released_standin import TransformerBlock
from torch import nn

EPS = torch.finfo(torch.float32).eps
SIZES = (16, 2, 4)  # channels, heads, window of the small blocks below


def small_block(shift: int = 2, cls: type = TransformerBlock) -> nn.Module:
    return cls(*SIZES, shift)


def small_model(count: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(16, 16, 1), *(small_block(2 * (i % 2)) for i in range(count)))


def one_block_model() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(16, 16, 1), small_block())


def swapped_names(report) -> list[str]:
    return list(report.swapped)


def assert_close(value: torch.Tensor, expected: torch.Tensor, blocks: int = 1) -> None:
    """Two float32 orders of the same sums: each within eps times the longest one (42 hidden channels), per block."""
    assert (value - expected).norm() <= 2 * EPS * 42 * blocks * expected.norm()


class Negative(nn.Module):
    def forward(self, weight):
        return -weight
