"""What group_norm_silu has beside the other ops: its own gradients, layouts that keep their bits, tails, means."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops import EPS, ISAS, any_layout, double, leaves_of, mapped, on

from swintormer_kernels import native
from swintormer_kernels.ops.group_norm_silu import group_norm_silu
from swintormer_kernels.records import GroupNormWeights
from swintormer_kernels.registry import explain, use_backend
from swintormer_kernels.testing.cases import case_of, cases_of
from swintormer_kernels.testing.denoiser_cases import LAYOUTS, norm_weights

CASES = [pytest.param(case, id=case.name) for case in cases_of("group_norm_silu") if case.tested]


# ---- numbers ---------------------------------------------------------------------------------------------------------


def any_arguments(data):
    groups = data.draw(st.integers(1, 5))
    batch, channels = data.draw(st.integers(0, 3)), groups * data.draw(st.integers(1, 9))
    x = data.draw(any_layout((batch, channels, data.draw(st.integers(1, 9)), data.draw(st.integers(1, 70)))))
    norm = norm_weights(batch, channels, modulated=data.draw(st.booleans()))
    present = data.draw(st.lists(st.booleans(), min_size=4, max_size=4))
    norm = GroupNormWeights(*(tensor if keep else None for tensor, keep in zip(norm, present, strict=True)))
    return x, norm, groups, data.draw(st.sampled_from([1e-6, 1e-5, 0.1]))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_large_mean_does_not_cancel(layout, extension):
    """Roundings of the mean to float32 are all that is left, each eps / 2 of it over the deviation, which is 1.

    A chunk's mean, a merged one, and the last; SiLU's slope is below 1.1.
    """
    x = (torch.randn(1, 8, 64, 64) + 1e5).contiguous(memory_format=layout)
    truth = on("reference", group_norm_silu, (x.double(), GroupNormWeights(), 2))
    assert (on("cpu", group_norm_silu, (x, GroupNormWeights(), 2)) - truth).abs().max() <= 3 * 1.1 * (EPS / 2 * 1e5)


def test_a_constant_group_gives_silu_of_its_bias(extension):
    norm = GroupNormWeights(torch.ones(4), torch.tensor([-1.0, 0.0, 1.0, 2.0]))
    y = on("cpu", group_norm_silu, (torch.full((1, 4, 5, 7), 3.0), norm, 2))
    expected = torch.nn.functional.silu(norm.bias)[None, :, None, None].expand_as(y)
    torch.testing.assert_close(y, expected, rtol=2 * EPS, atol=0)


@pytest.mark.parametrize("isa", ISAS)
def test_far_tails_of_silu(isa, engine):
    engine.use_isa(isa)
    norm = GroupNormWeights(bias=torch.tensor([-1e4, -200.0, -88.5, -60.0, 60.0, 200.0, 1e4, 0.0]))
    arguments = (torch.randn(1, 8, 3, 3), norm, 8)
    truth = on("reference", group_norm_silu, double(arguments))
    # Below float32's smallest normal number relative to the input nothing is left to compare.
    small = torch.finfo(torch.float32).tiny * norm.bias.abs().max()
    assert ((on("cpu", group_norm_silu, arguments) - truth).abs() <= small + 64 * EPS * truth.abs()).all()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_nan_stays_in_its_group(layout, extension):
    x = torch.randn(2, 12, 9, 7).contiguous(memory_format=layout)
    x[1, 5, 3, 2] = float("nan")
    spoilt = on("cpu", group_norm_silu, (x, GroupNormWeights(), 3)).isnan().flatten(2).all(2)
    expected = torch.zeros(2, 12, dtype=torch.bool)
    expected[1, 4:8] = True
    assert torch.equal(spoilt, expected)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("groups", [1, 3, 32])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_same_bits_for_any_thread_count_and_batch(layout, groups, isa, engine):
    engine.use_isa(isa)
    x = torch.randn(1, 96, 41, 33).contiguous(memory_format=layout)
    norm = norm_weights(1, 96, modulated=True)
    outs = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        outs.append(on("cpu", group_norm_silu, (x, norm, groups)))
    engine.use_own_threads(True)
    outs.append(on("cpu", group_norm_silu, (x, norm, groups)))
    twice = x.repeat(2, 1, 1, 1).contiguous(memory_format=layout)
    both = norm._replace(scale=norm.scale.repeat(2, 1), shift=norm.shift.repeat(2, 1))
    outs.append(on("cpu", group_norm_silu, (twice, both, groups))[1:])
    assert all(torch.equal(out, outs[0]) for out in outs)


# ---- gradients -------------------------------------------------------------------------------------------------------


# Of one element's dv, in units of EPS: the exponential 1.26 (csrc/base/simd.h); a half for each of v, 1 + e,
# 1 / (1 + e), e s, 1 + v e s, and two products.
ROUNDINGS = 1.26 + 7 / 2


def gradients(backend, arguments, grad):
    """Those of x and of every parameter that is there."""
    leaves, tensors = leaves_of(arguments)
    if backend == "reference" and leaves[1].weight is None:  # torch's backward fails where there is only a bias
        leaves = (leaves[0], leaves[1]._replace(weight=leaves[0].new_ones(leaves[0].shape[1])), *leaves[2:])
    with use_backend(backend):
        return torch.autograd.grad(group_norm_silu(*leaves), tensors, grad.to(leaves[0].dtype))


def assert_gradients_as_good_as_the_reference(arguments, grad):
    """Of x relative to the first of its three terms: the other two may cancel it, and do where a group is one number.

    Of a parameter relative to the norm of what is summed, which is that of `grad` but for factors near 1.
    """
    x, norm, groups, eps = (*arguments, 1e-5)[:4]
    wide = double(arguments)
    true, plain = gradients("reference", wide, grad), gradients("reference", arguments, grad)
    found = gradients("cpu", arguments, grad)
    in_groups = wide[0].unflatten(1, (groups, -1))
    variance = (in_groups - in_groups.mean((2, 3, 4), keepdim=True)).square().mean((2, 3, 4))
    gain = torch.ones(1, 1) if norm.weight is None else norm.weight
    gain = gain if norm.scale is None else gain * (1 + norm.scale)
    factor = (gain.expand(x.shape[:2]).unflatten(1, (groups, -1)) / (variance + eps).sqrt()[..., None]).flatten(1)
    term = (grad * factor[..., None, None]).norm()
    for index, (value, a, b) in enumerate(zip(found, plain, true, strict=True)):
        assert value.shape == b.shape
        assert not value.isnan().any(), "an element that nobody wrote"
        size = max(b.norm(), term if index == 0 else grad.norm())
        assert (value - b).norm() <= 2 * (a - b).norm() + ROUNDINGS * EPS * size


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", CASES)
def test_gradients(case, isa, engine):
    engine.use_isa(isa)
    arguments, _ = case.make(0)
    assert_gradients_as_good_as_the_reference(arguments, torch.randn(arguments[0].shape))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_gradients_of_any_shape_and_strides(data):
    if native.why_absent():
        pytest.skip(native.why_absent())
    arguments = any_arguments(data)
    grad = data.draw(any_layout(arguments[0].shape))
    assert_gradients_as_good_as_the_reference(arguments, grad)


@pytest.mark.parametrize("grad", ["expanded", "contiguous", "channels_last", "transposed"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_of_results_in_any_layout(layout, grad, extension):
    x = LAYOUTS[layout](torch.randn(3, 12, 5, 9))
    norm = norm_weights(3, 12, modulated=True)
    dense = torch.randn(3, 12, 1, 1).expand(x.shape) if grad == "expanded" else torch.randn(x.shape)
    given = {"channels_last": lambda: LAYOUTS["channels_last"](dense), "transposed": lambda: dense.mT.contiguous().mT}
    passed = given.get(grad, lambda: dense)()
    expected = gradients("cpu", (x, norm, 3), LAYOUTS["channels_last"](dense))
    before = passed.clone()
    for a, b in zip(gradients("cpu", (x, norm, 3), passed), expected, strict=True):
        assert (a - b).norm() <= 16 * EPS * b.norm()  # x may be walked in planes or in rows
    assert torch.equal(passed, before), "the caller's gradient is the caller's"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("groups", [1, 3, 32])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_have_the_same_bits_for_any_thread_count(layout, groups, isa, engine):
    engine.use_isa(isa)
    x, grad = (t.contiguous(memory_format=layout) for t in torch.randn(2, 2, 96, 71, 63).unbind())
    norm, found = norm_weights(2, 96, modulated=True), []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        found.append(gradients("cpu", (x, norm, groups), grad))
    engine.use_own_threads(True)
    found.append(gradients("cpu", (x, norm, groups), grad))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("isa", ISAS)
def test_gradients_in_far_tails(isa, engine):
    engine.use_isa(isa)
    norm = GroupNormWeights(bias=torch.tensor([-1e4, -200.0, -88.5, -60.0, 60.0, 200.0, 1e4, 0.0]))
    arguments, grad = (torch.randn(1, 8, 3, 3), norm, 8), torch.randn(1, 8, 3, 3)
    assert_gradients_as_good_as_the_reference(arguments, grad)
    of_x, of_bias = gradients("cpu", arguments, grad)
    assert (of_x[:, :2].abs() < 1e-30).all()
    torch.testing.assert_close(of_bias[5:7], grad[0, 5:7].sum((1, 2)))


def test_gradients_beside_a_large_mean(extension):
    """As for the result: the mean is rounded three times, which moves the normed x, and with it the slope of SiLU."""
    x, grad = torch.randn(1, 8, 64, 64) + 1e4, torch.randn(1, 8, 64, 64)
    for layout in (torch.contiguous_format, torch.channels_last):
        arguments = (x.contiguous(memory_format=layout), GroupNormWeights(), 2)
        (true,) = gradients("reference", double(arguments), grad)
        (found,) = gradients("cpu", arguments, grad)
        # SiLU's second derivative is at most 0.5, and the other terms together move less than the first.
        assert ((found - true).abs() <= 2 * 0.5 * 3 * (EPS / 2 * 1e4) * (1 + grad.abs())).all()


def test_automatic_selection_takes_it_in_training_where_it_wins(extension):
    def chosen(shape, layout="contiguous", modulated=False):
        x = LAYOUTS[layout](torch.empty(1).expand(shape)).requires_grad_()
        return explain(group_norm_silu, x, norm_weights(*shape[:2], modulated=modulated), 32).backend

    large, medium, small = (1, 320, 64, 64), (1, 320, 32, 32), (1, 640, 16, 16)
    assert [chosen(shape) for shape in (large, medium, small)] == ["cpu", "reference", "reference"]
    assert [chosen(shape, "channels_last") for shape in (large, medium, small)] == ["cpu", "cpu", "reference"]
    assert [chosen(shape, modulated=True) for shape in (large, medium, small)] == ["cpu", "cpu", "reference"]


def test_only_needed_gradients_are_made(extension):
    arguments, _ = case_of("group_norm_silu", "modulated, batch 3").make(0)
    arguments[1].shift.requires_grad_()
    with use_backend("cpu"):
        group_norm_silu(*arguments).sum().backward()
    assert arguments[1].shift.grad is not None
    assert arguments[0].grad is None


def test_autocast_computes_in_float32(extension):
    arguments, _ = case_of("group_norm_silu", "modulated, batch 3").make(0)
    half = mapped(torch.Tensor.bfloat16, arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16), use_backend("cpu"):
        out = group_norm_silu(*half)
    assert torch.equal(out, on("cpu", group_norm_silu, mapped(torch.Tensor.float, half)))
