"""norm_projection: every backend, instruction set, layout, thread count against float64; gradients; torch's view."""

from __future__ import annotations

import pytest
import torch
from denoiser_ops import ISAS, comparing, mapped
from hypothesis import given, settings
from hypothesis import strategies as st

import swintormer_kernels as sk
from swintormer_kernels import native
from swintormer_kernels.backends.cpu.layout import dense, view
from swintormer_kernels.ops.norm_projection import norm_projection
from swintormer_kernels.records import GroupNormWeights, LinearWeights
from swintormer_kernels.registry import BackendError, explain, use_backend
from swintormer_kernels.testing.cases import cases_of
from swintormer_kernels.testing.denoiser_cases import LAYOUTS, norm_weights

CASES = [pytest.param(case, id=case.name) for case in cases_of("norm_projection") if case.tested]
SMALL = [case for case in CASES if case.values[0].name in ("modulated, batch 3", "NCHW, no bias", "columns apart")]
on, assert_as_good_as_the_reference = comparing(norm_projection)


# ---- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", CASES)
def test_cases_agree_with_float64(case, isa, engine):
    engine.use_isa(isa)
    arguments, _ = case.make(1)
    assert_as_good_as_the_reference(arguments)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.data())
def test_any_shape_and_strides(data):
    if native.why_absent():
        pytest.skip(native.why_absent())
    groups = data.draw(st.integers(1, 4))
    channels, out = groups * data.draw(st.integers(1, 40)), data.draw(st.integers(1, 100))
    batch, sides = data.draw(st.integers(0, 2)), (data.draw(st.integers(1, 17)), data.draw(st.integers(1, 21)))
    x = LAYOUTS[data.draw(st.sampled_from(list(LAYOUTS)))](torch.randn(batch, channels, *sides))
    norm = norm_weights(batch, channels, modulated=data.draw(st.booleans()))
    bias = torch.randn(out) if data.draw(st.booleans()) else None
    assert_as_good_as_the_reference((x, norm, LinearWeights(torch.randn(out, channels), bias), groups))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("sides", [(4, 5), (16, 16), (37, 50)])
def test_same_bits_for_any_thread_count_and_batch(sides, isa, engine):
    """Whole blocks of 48 pixels for each worker, and blocks that workers share."""
    engine.use_isa(isa)
    x, norm = torch.randn(1, 96, *sides), norm_weights(1, 96)
    linear, outs = LinearWeights(torch.randn(150, 96), torch.randn(150)), []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        outs.append(on("cpu", (x, norm, linear, 8)))
    engine.use_own_threads(True)
    outs.append(on("cpu", (x, norm, linear, 8)))
    outs.append(on("cpu", (x.repeat(2, 1, 1, 1), norm, linear, 8))[1:])
    assert all(torch.equal(out, outs[0]) for out in outs)


def test_every_weight_change_is_seen(extension):
    x, linear = torch.randn(1, 8, 6, 6), LinearWeights(torch.randn(5, 8))
    before = on("cpu", (x, GroupNormWeights(), linear, 2))
    linear.weight.add_(1)
    assert not torch.equal(on("cpu", (x, GroupNormWeights(), linear, 2)), before)
    assert_as_good_as_the_reference((x, GroupNormWeights(), linear, 2))


# ---- gradients -------------------------------------------------------------------------------------------------------


# ---- torch sees the op -----------------------------------------------------------------------------------------------


def test_automatic_selection_passes_over_what_was_measured_to_lose(extension):
    def chosen(channels, **options):
        weight = torch.randn(3 * channels, channels, **options)
        return explain(norm_projection, torch.randn(1, channels, 4, 4), GroupNormWeights(), LinearWeights(weight), 8)

    assert chosen(640).backend == "cpu"
    assert chosen(64).backend == "reference"
    assert "computes the forward again" in chosen(640, requires_grad=True).reasons["cpu"]


def test_other_dtypes_are_served_by_the_reference(extension):
    arguments = mapped(torch.Tensor.double, SMALL[0].values[0].make(0)[0])
    assert norm_projection(*arguments).dtype == torch.float64
    with use_backend("cpu"), pytest.raises(BackendError, match="takes float32"):
        norm_projection(*arguments)


# ---- arguments -------------------------------------------------------------------------------------------------------


def test_bad_arguments_get_one_clear_sentence():
    x = torch.zeros(2, 6, 3, 3)
    with pytest.raises(ValueError, match=r"weight must be \(C_out, 6\), found \(4, 5\)"):
        norm_projection(x, GroupNormWeights(), LinearWeights(torch.zeros(4, 5)), 3)
    with pytest.raises(ValueError, match=r"bias must be \(4,\), found \(6,\)"):
        norm_projection(x, GroupNormWeights(), LinearWeights(torch.zeros(4, 6), torch.zeros(6)), 3)
    with pytest.raises(ValueError, match="groups must divide the 6 channels"):
        norm_projection(x, GroupNormWeights(), LinearWeights(torch.zeros(4, 6)), 4)


def test_the_binding_refuses_what_does_not_fit(extension):
    x = torch.zeros(1, 4, 3, 5).contiguous(memory_format=torch.channels_last)
    rows, short_rows = view(torch.zeros(1, 15, 6)), view(torch.zeros(1, 14, 6))
    panel, _ = extension.conv3x3_layout(1, 4, 3, 5, 1)
    weight = torch.zeros(-(-6 // panel) * panel * 4)
    short_bias = extension.Linear(weight=dense(weight), bias=dense(torch.zeros(5)))
    arguments = {
        "out": rows,
        "x": view(x),
        "norm": extension.Norm(groups=2, eps=1e-5),
        "linear": extension.Linear(weight=dense(weight), bias=dense(torch.zeros(6))),
        "norm_scratch": dense(torch.zeros(extension.group_norm_scratch(1, 4, 15, 2))),
        "scratch": dense(torch.zeros(extension.normed_floats(4))),
        "threads": 1,
    }
    extension.norm_projection(**arguments)
    spoilt = {
        "neighbours": {"x": view(x.contiguous())},
        "out must be dense": {"out": short_rows},
        "weight of the product must hold": {"linear": extension.Linear(weight=dense(weight[1:]))},
        "bias of the product must hold 6": {"linear": short_bias},
        "scratch of the product": {"threads": 2},
        "scratch of the norm": {"norm_scratch": None},
    }
    for message, change in spoilt.items():
        with pytest.raises(ValueError, match=message):
            extension.norm_projection(**{**arguments, **change})


def test_it_is_public():
    assert sk.norm_projection is norm_projection
    assert sk.LinearWeights is LinearWeights
