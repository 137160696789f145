"""res_block: every backend, instruction set, layout, thread count against float64; gradients; torch's view."""

from __future__ import annotations

import pytest
import torch
from denoiser_ops import ISAS, comparing, mapped
from hypothesis import given, settings
from hypothesis import strategies as st

import swintormer_kernels as sk
from swintormer_kernels import native
from swintormer_kernels.backends.cpu.layout import dense, view
from swintormer_kernels.ops.res_block import res_block
from swintormer_kernels.records import ResBlockWeights
from swintormer_kernels.registry import BackendError, explain, use_backend
from swintormer_kernels.testing.cases import cases_of
from swintormer_kernels.testing.denoiser_cases import LAYOUTS, res_block_weights

CASES = [pytest.param(case, id=case.name) for case in cases_of("res_block") if case.tested]
SMALL = [case for case in CASES if case.values[0].name in ("modulated, batch 3", "plain, NCHW", "columns apart")]
on, assert_as_good_as_the_reference = comparing(res_block)


# ---- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", CASES)
def test_cases_agree_with_float64(case, isa, engine):
    engine.use_isa(isa)
    arguments, _ = case.make(1)
    assert_as_good_as_the_reference(arguments)
    assert on("cpu", arguments).is_contiguous(memory_format=torch.channels_last)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.data())
def test_any_shape_and_strides(data):
    if native.why_absent():
        pytest.skip(native.why_absent())
    groups = data.draw(st.integers(1, 3))
    channels, middle = groups * data.draw(st.integers(1, 20)), groups * data.draw(st.integers(1, 15))
    out = data.draw(st.sampled_from([channels, data.draw(st.integers(1, 70))]))
    batch, sides = data.draw(st.integers(0, 2)), (data.draw(st.integers(1, 17)), data.draw(st.integers(1, 21)))
    x = LAYOUTS[data.draw(st.sampled_from(list(LAYOUTS)))](torch.randn(batch, channels, *sides))
    block = res_block_weights(batch, channels, middle, out, modulated=data.draw(st.booleans()))
    keep = dict(zip(ResBlockWeights._fields, data.draw(st.lists(st.booleans(), min_size=13, max_size=13)), strict=True))
    keep |= {"conv1": True, "conv2": True, "shortcut": True}
    block = ResBlockWeights(*(t if keep[name] else None for name, t in block._asdict().items()))
    assert_as_good_as_the_reference((x, block, groups, groups))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("sides", [(16, 16), (37, 50)])
def test_same_bits_for_any_thread_count_and_batch(sides, isa, engine):
    engine.use_isa(isa)
    x, block = torch.randn(1, 96, *sides), res_block_weights(1, 96, 32, 70, modulated=True)
    outs = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        outs.append(on("cpu", (x, block, 8, 8)))
    engine.use_own_threads(True)
    outs.append(on("cpu", (x, block, 8, 8)))
    both = block._replace(scale=block.scale.repeat(2, 1), shift=block.shift.repeat(2, 1))
    outs.append(on("cpu", (x.repeat(2, 1, 1, 1), both, 8, 8))[1:])
    assert all(torch.equal(out, outs[0]) for out in outs)


def test_same_bits_as_its_two_halves(extension):
    """Where there is no shortcut it is the same code in the same order."""
    x, block = torch.randn(2, 32, 14, 18), res_block_weights(2, 32, 48, 32)
    with torch.no_grad(), use_backend("cpu"):
        norm1, norm2 = sk.GroupNormWeights(*block[4:6]), sk.GroupNormWeights(*block[6:8])
        first = sk.ConvWeights(block.conv1, block.conv1_bias, block.embedding)
        hidden = sk.norm_silu_conv3x3(x, norm1, first, 8)
        halves = sk.norm_silu_conv3x3(hidden, norm2, sk.ConvWeights(block.conv2, block.conv2_bias, skip=x), 16)
        assert torch.equal(res_block(x, block, 8, 16), halves)


def test_every_weight_change_is_seen(extension):
    x, block = torch.randn(1, 8, 6, 6), res_block_weights(1, 8, 4, 12)
    for name, tensor in block._asdict().items():
        if tensor is not None:
            before = on("cpu", (x, block, 2, 2))
            tensor.add_(1)
            assert not torch.equal(on("cpu", (x, block, 2, 2)), before), name
    assert_as_good_as_the_reference((x, block, 2, 2))


# ---- gradients -------------------------------------------------------------------------------------------------------


# ---- torch sees the op -----------------------------------------------------------------------------------------------


def test_automatic_selection(extension):
    def chosen(channels, middle, side):
        arguments = torch.randn(1, channels, side, side), res_block_weights(1, channels, middle, middle), 4, 4
        return explain(res_block, *arguments)

    assert chosen(32, 32, 32).backend == chosen(96, 64, 16).backend == "cpu"
    assert chosen(8, 32, 32).backend == chosen(64, 64, 1).backend == chosen(32, 4, 32).backend == "reference"
    arguments = torch.randn(1, 32, 32, 32, requires_grad=True), res_block_weights(1, 32, 32, 32), 4, 4
    assert "computes the forward again" in explain(res_block, *arguments).reasons["cpu"]


def test_other_dtypes_are_served_by_the_reference(extension):
    arguments = mapped(torch.Tensor.double, SMALL[0].values[0].make(0)[0])
    assert res_block(*arguments).dtype == torch.float64
    with use_backend("cpu"), pytest.raises(BackendError, match="takes float32"):
        res_block(*arguments)


# ---- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 6, 3)}, r"x must be \(B, C, H, W\)"),
        ({"groups1": 4}, "groups1 must divide 6 channels, found 4"),
        ({"groups2": 3}, "groups2 must divide 4 channels, found 3"),
        ({"eps2": -1.0}, "eps2 must be at least 0"),
        ({"conv1_bias": torch.zeros(6)}, r"conv1_bias must be \(4,\)"),
        ({"conv2": torch.zeros(6, 4, 1, 1)}, r"conv2 must be \(6, 4, 3, 3\)"),
        ({"embedding": torch.zeros(4)}, r"embedding must be \(2, 4\)"),
        ({"shortcut": torch.zeros(6, 6)}, r"shortcut must be \(6, 6, 1, 1\)"),
        ({"conv2": torch.zeros(5, 4, 3, 3)}, "needs a shortcut"),
        ({"shortcut_bias": torch.zeros(6)}, "needs a shortcut"),
    ],
)
def test_bad_arguments_get_one_clear_sentence(change, message):
    block = ResBlockWeights(torch.zeros(4, 6, 3, 3), torch.zeros(6, 4, 3, 3))
    block = block._replace(**{name: value for name, value in change.items() if name in block._fields})
    numbers = {"x": torch.zeros(2, 6, 3, 3), "groups1": 3, "groups2": 2, "eps1": 1e-5, "eps2": 1e-5}
    x, *norms = (change.get(name, value) for name, value in numbers.items())
    with pytest.raises(ValueError, match=message):
        res_block(x, block, *norms)


def test_the_binding_refuses_what_does_not_fit(extension):
    x = torch.zeros(1, 4, 3, 5).contiguous(memory_format=torch.channels_last)
    image, fewer = view(x), view(x[:, :2])
    narrow = view(torch.zeros(1, 4, 3, 4).contiguous(memory_format=torch.channels_last))
    panel, floats = extension.conv3x3_layout(1, 4, 3, 5, 1)
    weight, linear = torch.zeros(-(-4 // panel) * panel * 16 * 4), torch.zeros(-(-4 // panel) * panel * 4)
    norm = extension.Norm(groups=2, eps=1e-5)
    conv = extension.Conv(weight=dense(weight))
    arguments = {
        "out": image,
        "x": image,
        "norm1": norm,
        "conv1": conv,
        "norm2": norm,
        "conv2": conv,
        "shortcut": extension.Linear(weight=dense(linear)),
        "hidden_channels": 4,
        "norm_scratch": dense(torch.zeros(extension.group_norm_scratch(1, 4, 15, 2))),
        "conv_scratch": dense(torch.zeros(floats)),
        "hidden": dense(torch.zeros(60)),
        "skip": dense(torch.zeros(60)),
        "threads": 1,
    }
    extension.res_block(**arguments)
    half = extension.Conv(weight=dense(torch.zeros(weight.numel() // 2)))
    spoilt = {
        "do not fit in shape": {"x": narrow},
        "differ in shape": {"x": fewer, "conv1": half, "shortcut": None},
        "weight of the convolution": {"conv2": extension.Conv(weight=dense(weight[1:]))},
        "weight of the product": {"shortcut": extension.Linear(weight=dense(linear[1:]))},
        "bias of the shortcut": {"shortcut": extension.Linear(weight=dense(linear), bias=dense(torch.zeros(3)))},
        "bias of the norm must hold 4": {"norm2": extension.Norm(bias=dense(torch.zeros(3)), groups=2, eps=1e-5)},
        "hidden must hold at least 60": {"hidden": dense(torch.zeros(59))},
        "skip must hold at least 60": {"skip": None},
    }
    for message, change in spoilt.items():
        with pytest.raises(ValueError, match=message):
            extension.res_block(**{**arguments, **change})


def test_it_is_public():
    assert sk.res_block is res_block
    assert sk.ResBlockWeights is ResBlockWeights


def test_one_channel_through_a_shortcut(extension):
    """Less work than a vector for each row of the product: it was divided by."""
    x, block, *groups = next(c for c in cases_of("res_block") if c.name == "one channel").make(1)[0]
    assert_as_good_as_the_reference((x, block._replace(shortcut=torch.randn(1, 1, 1, 1)), *groups))
