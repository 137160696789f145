"""norm_silu_conv3x3 in Triton against the reference and float64, both ways; interpreted where there is no GPU."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

import swintormer_kernels as sk
from swintormer_kernels.backends.triton import layout as triton_tensors
from swintormer_kernels.ops import norm_silu_conv3x3
from swintormer_kernels.records import ConvWeights, GroupNormWeights
from swintormer_kernels.testing.denoiser_cases import conv_weights, norm_weights

pytest.importorskip("triton")
from swintormer_kernels.backends.triton import norm_silu_conv3x3 as backend
from swintormer_kernels.backends.triton import runtime

pytestmark = pytest.mark.usefixtures("one_thread")
DEVICE = torch.device("cpu" if triton_tensors.INTERPRETED else "cuda")


class Sample(NamedTuple):
    """(batch, C, height, width), outputs, groups, a layout, whether there is more than the weight, BLOCK_P."""

    shape: tuple[int, int, int, int]
    outputs: int
    groups: int
    layout: str = "channels_last"
    plain: bool = False
    block: int = 64

    def make(self, dtype: torch.dtype) -> tuple[Any, ...]:
        b, c, h, w = self.shape

        def laid(channels: int) -> Tensor:
            return {
                "channels_last": lambda: torch.randn(b, h, w, channels).permute(0, 3, 1, 2),
                "contiguous": lambda: torch.randn(b, channels, h, w),
                "sliced": lambda: torch.randn(b, channels, h, 2 * w)[..., ::2],
                "expanded": lambda: torch.randn(1, channels, h, w).expand(b, -1, -1, -1),
                "rows of more": lambda: torch.randn(b, h, w, channels + 3).permute(0, 3, 1, 2)[:, 2 : channels + 2],
            }[self.layout]()

        norm = norm_weights(b, c, modulated=True)
        conv = conv_weights(b, c, self.outputs, (h, w), self.plain)
        if not self.plain:
            conv = conv._replace(skip=laid(self.outputs))
        arguments = (laid(c), GroupNormWeights() if self.plain else norm, conv, self.groups)
        return tree_map(lambda t: t.to(DEVICE, dtype) if isinstance(t, Tensor) else t, arguments)


SAMPLES = [
    Sample((2, 10, 5, 8), 7, 2, block=16),  # runs of whole image rows, the last one shorter
    Sample((2, 20, 7, 5), 36, 4, block=16),  # runs with a margin, several chunks of channels and blocks of outputs
    Sample((1, 16, 3, 70), 16, 4, block=16),  # image rows longer than a run
    Sample((2, 8, 4, 3), 5, 2, "rows of more"),
    Sample((1, 6, 3, 6), 16, 3, "contiguous", plain=True),
    Sample((2, 6, 3, 4), 16, 3, "expanded"),
    Sample((1, 6, 1, 9), 3, 2, "sliced"),
    Sample((2, 4, 1, 1), 3, 2),
]
EACH = pytest.mark.parametrize(
    ("sample", "dtype"),
    [
        pytest.param(sample, dtype, id=f"{sample.shape}, {sample.layout}, {dtype}")
        for dtype in triton_tensors.DTYPES
        for sample in (SAMPLES[:1] if dtype == torch.float16 else SAMPLES)
    ],
)


@pytest.fixture(autouse=True)
def small_blocks(request, fixed_blocks):
    """Blocks of the sample's pixels, so that few pixels make several; else 64."""
    sample = getattr(request.node, "callspec", None) and request.node.callspec.params.get("sample")
    candidate = {"BLOCK_P": sample.block if sample else 64, "BLOCK_N": 32, "BLOCK_C": 16}
    fixed_blocks("norm_silu_conv3x3", {**candidate, "num_warps": 4, "num_stages": 1})


def widened(arguments: Any) -> Any:
    return tree_map(lambda t: t.detach().double() if isinstance(t, Tensor) else t, arguments)


def error(value: Tensor, truth: Tensor) -> float:
    return ((value.double() - truth).norm() / truth.norm()).item()


def assert_as_good(value: Tensor, reference: Tensor, truth: Tensor) -> None:
    """At most twice the reference's own error, and half a unit in the last place, with which the truth is stored."""
    assert not value.isnan().any(), "an element that nobody wrote"
    assert error(value, truth) <= 2 * error(reference, truth) + torch.finfo(value.dtype).eps / 2


def on(name: str, *arguments: Any) -> Tensor:
    with sk.use_backend(name):
        return sk.norm_silu_conv3x3(*arguments)


def gradients(name: str, arguments: Any, grad: Tensor) -> list[Tensor]:
    leaves = tree_map(lambda t: t.detach().requires_grad_() if isinstance(t, Tensor) else t, arguments)
    wanted = [leaf for leaf in tree_leaves(leaves) if isinstance(leaf, Tensor)]
    y = on(name, *leaves)
    return list(torch.autograd.grad(y, wanted, grad.to(y.dtype)))


# ---- numbers ---------------------------------------------------------------------------------------------------------


@EACH
def test_forward(sample, dtype):
    arguments = sample.make(dtype)
    out = on("triton", *arguments)
    assert out.dtype == dtype
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert_as_good(out, on("reference", *arguments), on("reference", *widened(arguments)))


@EACH
def test_backward(sample, dtype):
    arguments = sample.make(dtype)
    grad = torch.randn(on("reference", *arguments).shape, device=DEVICE).to(dtype)
    found, reference = (gradients(name, arguments, grad) for name in ("triton", "reference"))
    truth = gradients("reference", widened(arguments), grad.double())
    for value, plain, true in zip(found, reference, truth, strict=True):
        assert value.shape == plain.shape
        assert value.dtype == dtype
        assert_as_good(value, plain, true)


def test_only_needed_gradients_are_made():
    x, norm, conv, groups = SAMPLES[0].make(torch.float32)
    grad = torch.randn(2, 7, 5, 8, device=DEVICE)
    everything = gradients("triton", (x, norm, conv, groups), grad)
    for place, record, field in ((1, norm, "weight"), (5, conv, "weight"), (6, conv, "bias"), (8, conv, "skip")):
        leaf = getattr(record, field).detach().requires_grad_()
        changed = record._replace(**{field: leaf})
        arguments = (x, changed, conv, groups) if record is norm else (x, norm, changed, groups)
        assert torch.equal(torch.autograd.grad(on("triton", *arguments), leaf, grad)[0], everything[place])


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


@pytest.mark.parametrize("shape", [(0, 12, 4, 4), (2, 12, 0, 4)])
def test_empty(shape):
    batch, _, *sides = shape
    conv = conv_weights(batch, 12, 8, tuple(sides))
    arguments = (torch.empty(shape, device=DEVICE), GroupNormWeights(), tree_map(lambda t: t.to(DEVICE), conv), 3)
    out = on("triton", *arguments)
    assert out.shape == (batch, 8, *sides)
    assert all(g.count_nonzero() == 0 for g in gradients("triton", arguments, out))


# ---- launches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "statistics"), [(16, ["group_statistics"]), (160, ["statistics", "merge"])])
def test_half_a_res_block_is_its_statistics_and_one_kernel(side, statistics):
    """And x, skip and out are all of their size that it touches, each once in a launch."""
    x, norm, conv, groups = Sample((1, 8, side, side), 8, 2).make(torch.bfloat16)
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
    after = on("triton", x, norm, conv, groups)
    assert_as_good(after, on("reference", x, norm, conv, groups), on("reference", *widened((x, norm, conv, groups))))
    assert not torch.equal(before, after)


# ---- torch -----------------------------------------------------------------------------------------------------------


def test_opcheck():
    x, norm, conv, groups = Sample((1, 4, 2, 3), 3, 2).make(torch.float32)
    leaves = [t.requires_grad_() for t in (x, *norm, *conv)]
    torch.library.opcheck(norm_silu_conv3x3._run.default, (*leaves, groups, 1e-5, "triton"))


def test_flops_are_the_formulas():
    x, norm, conv, groups = SAMPLES[0].make(torch.float32)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        on("triton", x, norm, conv, groups)
    assert counter.get_total_flops() == 2 * 2 * 5 * 8 * 9 * 10 * 7
