"""What the denoiser's convolutions have beside the other ops: weights transformed once, and a block of two halves."""

from __future__ import annotations

import torch
from ops import EPS, assert_forward, on

import swintormer_kernels as sk
from swintormer_kernels.backends.cpu.winograd import winograd_weight
from swintormer_kernels.testing.cases import case_of
from swintormer_kernels.testing.denoiser_cases import res_block_weights


def test_transformed_weights_are_rounded_once():
    weight = torch.randn(5, 3, 3, 3)
    g = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], dtype=torch.float64)
    packed = winograd_weight(weight, 4)
    assert packed.shape == (2, 16, 3, 4)
    expected = (g @ weight[4, 2].double() @ g.T).float().flatten()
    assert torch.equal(packed[1, :, 2, 0], expected)
    assert (packed[1, :, :, 1:] == 0).all()


def test_a_res_block_has_the_same_bits_as_its_two_halves(extension):
    """Where there is no shortcut it is the same code in the same order."""
    x, block = torch.randn(2, 32, 14, 18), res_block_weights(2, 32, 48, 32)
    norm1, norm2 = sk.GroupNormWeights(*block[4:6]), sk.GroupNormWeights(*block[6:8])
    first = sk.ConvWeights(block.conv1, block.conv1_bias, block.embedding)
    hidden = on("cpu", sk.norm_silu_conv3x3, (x, norm1, first, 8))
    second = sk.ConvWeights(block.conv2, block.conv2_bias, skip=x)
    halves = on("cpu", sk.norm_silu_conv3x3, (hidden, norm2, second, 16))
    assert torch.equal(on("cpu", sk.res_block, (x, block, 8, 16)), halves)


def test_one_channel_through_a_shortcut(extension):
    """Less work than a vector for each row of the product: it was divided by."""
    x, block, *groups = case_of("res_block", "one channel").make(1)[0]
    block = block._replace(shortcut=torch.randn(1, 1, 1, 1))
    assert_forward("cpu", sk.res_block, (x, block, *groups), EPS)
