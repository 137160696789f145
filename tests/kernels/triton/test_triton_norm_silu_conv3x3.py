"""What norm_silu_conv3x3 in Triton has beside the other ops: what lies outside an image, launches, blocks."""

from __future__ import annotations

import pytest
import torch
from ops import assert_forward
from triton_samples import DEVICE, Sample

import swintormer_kernels as sk
from swintormer_kernels.records import ConvWeights, GroupNormWeights

pytest.importorskip("triton")
from swintormer_kernels.backends.triton import norm_silu_conv3x3 as backend
from swintormer_kernels.backends.triton import runtime

pytestmark = pytest.mark.usefixtures("one_thread")
SAMPLES = [
    Sample("norm_silu_conv3x3", (2, 10, 5, 8), groups=2, outputs=7, block=16),  # whole image rows, the last run shorter
    Sample("norm_silu_conv3x3", (2, 20, 7, 5), groups=4, outputs=36, block=16),  # several chunks of both
    Sample("norm_silu_conv3x3", (1, 16, 3, 70), groups=4, outputs=16, block=16),  # image rows longer than a run
]


@pytest.fixture(autouse=True)
def small_blocks(request, fixed_blocks):
    """Blocks of the sample's pixels, so that few pixels make several; else 64."""
    sample = getattr(request.node, "callspec", None) and request.node.callspec.params.get("sample")
    candidate = {"BLOCK_P": sample.block if sample else 64, "BLOCK_N": 32, "BLOCK_C": 16}
    fixed_blocks("norm_silu_conv3x3", {**candidate, "num_warps": 4, "num_stages": 1})


def on(name, *arguments):
    return SAMPLES[0].on(name, arguments)


# ---- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sample", SAMPLES[:3])
def test_nan_reaches_its_group_and_no_other_image(sample):
    x, _, conv, groups = sample.make(torch.float32)
    x = torch.cat([x, x])
    x[0, 0, -1, -1] = float("nan")
    conv = ConvWeights(conv.weight, conv.bias)
    out = on("triton", x, GroupNormWeights(), conv, groups)
    assert out[0].isnan().all()
    assert torch.equal(out[len(x) // 2 :], on("triton", x[len(x) // 2 :], GroupNormWeights(), conv, groups))


@pytest.mark.parametrize("sample", SAMPLES[:3])
def test_what_lies_outside_counts_as_zero(sample):
    """Ones through a filter of ones count the taps inside the image."""
    _, channels, height, width = sample.shape
    x = torch.ones(1, channels, height, width, device=DEVICE)
    norm = GroupNormWeights(bias=torch.full((channels,), 1.0, device=DEVICE))  # x is its own mean
    conv = ConvWeights(torch.ones(1, channels, 3, 3, device=DEVICE))
    count = torch.nn.functional.conv2d(x, conv.weight, padding=1)
    expected = count * torch.nn.functional.silu(torch.ones(()))
    torch.testing.assert_close(on("triton", x, norm, conv, sample.groups), expected.contiguous())


# ---- launches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "statistics"), [(16, ["group_statistics"]), (160, ["statistics", "merge"])])
def test_half_a_res_block_is_its_statistics_and_one_kernel(side, statistics):
    """And x, skip and out are all of their size that it touches, each once in a launch."""
    x, norm, conv, groups = Sample("norm_silu_conv3x3", (1, 8, side, side), groups=2, outputs=8).make(torch.bfloat16)
    with runtime.recording() as launches:
        out = on("triton", x, norm, conv, groups)
    assert [launch.kernel.__name__ for launch in launches] == [*statistics, "forward"]
    image, target, table, packed = launches[-1].arguments[:4]
    assert launches[0].arguments[0].data_ptr() == image.data_ptr() == x.data_ptr()
    assert packed.skip.data_ptr() == conv.skip.data_ptr()
    assert target.data_ptr() == out.data_ptr()
    partial = launches[0].arguments[1]
    others = table.nbytes + (partial.nbytes if statistics[0] == "statistics" else 0)
    assert others <= 0.1 * x.nbytes


@pytest.mark.parametrize(("outputs", "block"), [(640, 128), (320, 128), (160, 64), (32, 32), (3, 16)])
def test_blocks_of_outputs(outputs, block):
    assert backend._outputs_of_a_program(outputs, 128) == block


def test_a_change_of_the_weight_is_seen():
    x, norm, conv, groups = SAMPLES[0].make(torch.float32)
    before = on("triton", x, norm, conv, groups)
    conv.weight.mul_(2)
    after = assert_forward("triton", sk.norm_silu_conv3x3, (x, norm, conv, groups))
    assert not torch.equal(before, after)
