"""Multiply-accumulates of the network: what is counted follows from the formulas."""

from __future__ import annotations

from swintormer import PRESETS
from swintormer.cli.macs import count_macs


def test_macs_follow_the_formulas():
    """One block of C channels over T pixels in windows of N (network.md of the paper's release): attention and FFN."""
    config = PRESETS["small"]
    c, tokens, window, heads = config.dim, 64 * 64, config.window_size**2, config.heads[0]
    hidden, half = int(c * config.ffn_expansion), c // 2
    convolutions = 3 * c * c + 9 * 3 * c + c * c + 3 * c * hidden
    attention = 2 * half * window + 2 * half * half // heads
    table = (2 * config.window_size - 1) ** 2 * 512 * (2 + heads)
    cost = count_macs(config, 128, 128)
    assert cost.stages["encoder_level1"] == 2 * (tokens * (convolutions + attention) + table)
    assert cost.stages["output"] == tokens * 9 * 2 * c * 4 * 3
    assert count_macs(config, 100, 125).total == cost.total, "sides are padded to multiples of 128"
