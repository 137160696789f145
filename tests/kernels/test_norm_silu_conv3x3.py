"""norm_silu_conv3x3: every backend, instruction set, layout, thread count against float64; gradients; torch's view."""

from __future__ import annotations

import pytest
import torch
from denoiser_ops import ISAS, comparing, leaves_of, mapped
from hypothesis import given, settings
from hypothesis import strategies as st

import swintormer_kernels as sk
from swintormer_kernels import native
from swintormer_kernels.backends.cpu.layout import dense, view
from swintormer_kernels.backends.cpu.winograd import winograd_weight
from swintormer_kernels.ops.norm_silu_conv3x3 import norm_silu_conv3x3
from swintormer_kernels.records import ConvWeights, GroupNormWeights
from swintormer_kernels.registry import BackendError, explain, use_backend
from swintormer_kernels.testing.cases import cases_of
from swintormer_kernels.testing.denoiser_cases import LAYOUTS, conv_weights, norm_weights

CASES = [pytest.param(case, id=case.name) for case in cases_of("norm_silu_conv3x3") if case.tested]
SMALL = [case for case in CASES if case.values[0].name in ("modulated, batch 3", "plain, NCHW", "columns apart")]
on, assert_as_good_as_the_reference = comparing(norm_silu_conv3x3)


def random_call(batch, channels, out, sides, groups, layout="channels_last"):
    x = LAYOUTS[layout](torch.randn(batch, channels, *sides))
    norm = norm_weights(batch, channels, modulated=True)
    return x, norm, conv_weights(batch, channels, out, sides), groups


# ---- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", CASES)
def test_cases_agree_with_float64(case, isa, engine):
    engine.use_isa(isa)
    arguments, _ = case.make(1)
    assert_as_good_as_the_reference(arguments)
    assert on("cpu", arguments).is_contiguous(memory_format=torch.channels_last)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_any_shape_and_strides(data):
    if native.why_absent():
        pytest.skip(native.why_absent())
    groups = data.draw(st.integers(1, 4))
    channels, out = groups * data.draw(st.integers(1, 20)), data.draw(st.integers(1, 40))
    sides = data.draw(st.integers(1, 17)), data.draw(st.integers(1, 21))
    layout = data.draw(st.sampled_from(list(LAYOUTS)))
    arguments = random_call(data.draw(st.integers(0, 2)), channels, out, sides, groups, layout)
    keep = data.draw(st.lists(st.booleans(), min_size=3, max_size=3))
    conv = arguments[2]
    conv = ConvWeights(conv.weight, *(t if k else None for t, k in zip(conv[1:], keep, strict=True)))
    assert_as_good_as_the_reference((*arguments[:2], conv, groups))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("sides", [(16, 16), (37, 50)])
def test_same_bits_for_any_thread_count_and_batch(sides, isa, engine):
    """4 blocks are shared by 3 threads and taken whole by 2."""
    engine.use_isa(isa)
    x, norm, conv, groups = random_call(1, 96, 70, sides, 8)
    outs = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        outs.append(on("cpu", (x, norm, conv, groups)))
    engine.use_own_threads(True)
    outs.append(on("cpu", (x, norm, conv, groups)))
    twice = [mapped(lambda t: t.repeat(2, *[1] * (t.ndim - 1)), part) for part in (x, norm[2:], conv[2:])]
    both = (twice[0], GroupNormWeights(*norm[:2], *twice[1]), ConvWeights(*conv[:2], *twice[2]), groups)
    outs.append(on("cpu", both)[1:])
    assert all(torch.equal(out, outs[0]) for out in outs)


def test_nan_stays_in_its_group_and_reach(extension):
    """A NaN spoils its whole group, so with two groups and a convolution that reads one of them, nothing or all."""
    x, norm, conv, groups = random_call(1, 8, 4, (9, 9), 2)
    conv.weight[:2, :4] = 0
    x[0, 0, 4, 4] = float("nan")
    assert torch.equal(on("cpu", (x, norm, conv, groups)).isnan(), on("reference", (x, norm, conv, groups)).isnan())


def test_transformed_weights_are_rounded_once():
    weight = torch.randn(5, 3, 3, 3)
    g = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], dtype=torch.float64)
    packed = winograd_weight(weight, 4)
    assert packed.shape == (2, 16, 3, 4)
    expected = (g @ weight[4, 2].double() @ g.T).float().flatten()
    assert torch.equal(packed[1, :, 2, 0], expected)
    assert (packed[1, :, :, 1:] == 0).all()


def test_every_weight_change_is_seen(extension):
    arguments = random_call(1, 8, 4, (6, 6), 2)
    first = on("cpu", arguments)
    arguments[2].weight.add_(1)
    second = on("cpu", arguments)
    assert not torch.equal(first, second)
    assert_as_good_as_the_reference(arguments)


# ---- gradients -------------------------------------------------------------------------------------------------------


# ---- torch sees the op -----------------------------------------------------------------------------------------------


def test_compiles_to_one_graph_and_gives_the_same_bits(extension):
    torch._dynamo.reset()
    arguments, _ = SMALL[0].values[0].make(0)
    with use_backend("cpu"):
        expected = norm_silu_conv3x3(*arguments)
        compiled = torch.compile(norm_silu_conv3x3, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(*arguments), expected)
        leaves, tensors = leaves_of(arguments)
        grads = [
            torch.autograd.grad(function(*leaves).square().sum(), tensors) for function in (compiled, norm_silu_conv3x3)
        ]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_automatic_selection_passes_over_what_was_measured_to_lose(extension):
    def chosen(channels, out, side, batch=1):
        return explain(norm_silu_conv3x3, *random_call(batch, channels, out, (side, side), 4)).backend

    assert chosen(32, 32, 32) == chosen(96, 96, 8) == chosen(32, 8, 32) == "cpu"
    assert chosen(8, 32, 32) == chosen(64, 64, 1) == chosen(64, 3, 64) == chosen(64, 8, 32, batch=4) == "reference"
    trained = random_call(1, 32, 32, (32, 32), 4)
    trained[2].weight.requires_grad_()
    explanation = explain(norm_silu_conv3x3, *trained)
    assert explanation.backend == "reference"
    assert "computes the forward again" in explanation.reasons["cpu"]
    with torch.no_grad():
        assert explain(norm_silu_conv3x3, *trained).backend == "cpu"


def test_other_dtypes_are_served_by_the_reference(extension):
    arguments = mapped(torch.Tensor.double, SMALL[0].values[0].make(0)[0])
    assert norm_silu_conv3x3(*arguments).dtype == torch.float64
    assert explain(norm_silu_conv3x3, *arguments).backend == "reference"
    with use_backend("cpu"), pytest.raises(BackendError, match="takes float32"):
        norm_silu_conv3x3(*arguments)


# ---- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.zeros(4, 5, 3, 3)}, r"weight must be \(4, 6, 3, 3\)"),
        ({"weight": torch.zeros(4, 6, 1, 1)}, r"weight must be \(4, 6, 3, 3\)"),
        ({"bias": torch.zeros(6)}, r"bias must be \(4,\)"),
        ({"embedding": torch.zeros(4)}, r"embedding must be \(2, 4\)"),
        ({"skip": torch.zeros(2, 4, 3, 1)}, r"skip must be \(2, 4, 3, 3\)"),
    ],
)
def test_bad_arguments_get_one_clear_sentence(change, message):
    conv = ConvWeights(torch.zeros(4, 6, 3, 3))._replace(**change)
    with pytest.raises(ValueError, match=message):
        norm_silu_conv3x3(torch.zeros(2, 6, 3, 3), GroupNormWeights(), conv, 3)


def test_the_binding_refuses_what_does_not_fit(extension):
    x = torch.zeros(1, 4, 3, 5).contiguous(memory_format=torch.channels_last)
    image, planes, narrow = view(x), view(x.contiguous()), view(x[..., :4])
    panel, floats = extension.conv3x3_layout(1, 4, 3, 5, 1)
    weight, bias = torch.zeros(-(-4 // panel) * panel * 16 * 4), torch.zeros(4)
    arguments = {
        "out": image,
        "x": image,
        "skip": None,
        "norm": extension.Norm(groups=2, eps=1e-5),
        "conv": extension.Conv(weight=dense(weight), bias=dense(bias), embedding=dense(bias)),
        "norm_scratch": dense(torch.zeros(extension.group_norm_scratch(1, 4, 15, 2))),
        "conv_scratch": dense(torch.zeros(floats)),
        "threads": 1,
    }
    extension.norm_silu_conv3x3(**arguments)
    spoilt = {
        "neighbours": {"x": planes},
        "do not fit in shape": {"out": narrow},
        "differ in shape": {"skip": narrow},
        "weight of the convolution must hold": {"conv": extension.Conv(weight=dense(weight[1:]))},
        "bias of the convolution must hold 4": {"conv": extension.Conv(weight=dense(weight), bias=dense(bias[1:]))},
        "embedding must hold 4": {"conv": extension.Conv(weight=dense(weight), embedding=dense(bias[1:]))},
        "scratch of the convolution": {"conv_scratch": dense(torch.zeros(floats - 1))},
    }
    for message, change in spoilt.items():
        with pytest.raises(ValueError, match=message):
            extension.norm_silu_conv3x3(**{**arguments, **change})
    with pytest.raises(TypeError, match="incompatible"):
        extension.norm_silu_conv3x3(**{**arguments, "norm_scratch": x.data_ptr()})
    with pytest.raises(TypeError, match="incompatible"):
        extension.norm_silu_conv3x3(*arguments.values())


def test_it_is_public():
    assert sk.norm_silu_conv3x3 is norm_silu_conv3x3
    assert sk.ConvWeights is ConvWeights
