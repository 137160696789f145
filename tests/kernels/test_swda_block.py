"""The ops of a block through the C++ engine: odd windows and logits, packed weights, gradients, modules in torch."""

from __future__ import annotations

import functools
import gc
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops import BLOCK_OPS, EPS, ISAS, assert_forward, double, error, gradients, leaves_of, public

import swintormer_kernels as sk
from swintormer_kernels import native, packed
from swintormer_kernels.nn import Block
from swintormer_kernels.testing.block_cases import Shape, attention_weights, ffn_weights
from swintormer_kernels.testing.cases import case_of, cases_of

CASES = [
    pytest.param(public(name), case, id=f"{name}, {case.name}")
    for name in BLOCK_OPS
    for case in cases_of(name)
    if case.tested
]
SMALL = ("window 8, C 16", "one window, odd shift", "window 3, d 1, odd sizes")
SMALL_CASES = [case for case in CASES if case.values[1].name in SMALL]
# Not the largest (seconds in float64), nor C 2, where d is 1 and a cosine 1 or -1: its gradient is mere rounding.
GRADIENT_CASES = [case for case in CASES if "C 384" not in case.id and "C 2" not in case.id]


# ---- numbers ---------------------------------------------------------------------------------------------------------


@st.composite
def shapes(draw):
    heads, window = draw(st.integers(1, 3)), draw(st.integers(2, 9) | st.sampled_from([16, 17, 20]))
    return Shape(
        channels=2 * heads * draw(st.integers(1, 19)),
        heads=heads,
        height=window * draw(st.integers(1, 3)),
        width=window * draw(st.integers(1, 2)),
        shift=draw(st.integers(0, window - 1)),
        window=window,
        batch=draw(st.integers(1, 2)),
        bias=draw(st.booleans()),
        layout=draw(st.sampled_from(["contiguous", "channels_last", "sliced", "expanded"])),
    )


@settings(max_examples=40, deadline=None, derandomize=True)
@given(shapes(), st.sampled_from(ISAS), st.integers(1, 3))
def test_any_shape_and_strides(shape, isa, threads):
    if native.why_absent():
        pytest.skip(native.why_absent())
    extension = native.extension()
    before, threads_before = extension.isa(), torch.get_num_threads()
    try:
        extension.use_isa(isa)
        torch.set_num_threads(threads)
        attention = attention_weights(shape.channels, shape.heads, shape.window, shape.bias)
        ffn = ffn_weights(shape.channels, shape.hidden, shape.bias)
        assert_forward("cpu", sk.swda_block, (shape.image(), attention, ffn, shape.window, shape.shift), EPS)
    finally:
        extension.use_isa(before)
        torch.set_num_threads(threads_before)


@pytest.mark.parametrize("isa", ISAS)
def test_masked_pairs_can_still_win(isa, engine):
    """Logits reach 100 + 16, so -100 must be added and not stand for minus infinity."""
    engine.use_isa(isa)
    weights = attention_weights(8, 1, 16)
    weights = weights._replace(logit_scale=torch.full((1, 1, 1), 9.0))
    assert_forward("cpu", sk.swda_attention, (Shape(8, 1, 32, 32).image(), weights, 16, 8), EPS)


# ---- weights ---------------------------------------------------------------------------------------------------------


def block_and_input():
    return Block(16, 1, 8, 4), torch.randn(1, 16, 16, 16)


def kept():
    gc.collect()
    return len(packed._kept)


def run(block, x):
    with torch.no_grad(), sk.use_backend("cpu"):
        return block(x)


def test_every_parameter_change_is_seen(extension):
    block, x = block_and_input()
    for name, parameter in block.named_parameters():
        before = run(block, x)
        with torch.no_grad():
            parameter.add_(torch.randn_like(parameter))
        changed = run(block, x)
        assert not torch.equal(before, changed), name
        fresh = Block(16, 1, 8, 4)
        fresh.load_state_dict(block.state_dict())
        assert torch.equal(run(fresh, x), changed), f"{name}: the packed copy gives other bits"
        parameter.data = torch.randn_like(parameter)
        assert not torch.equal(run(block, x), changed), f"{name}: another tensor behind the parameter"


def test_parameters_made_in_inference_mode(extension):
    with torch.inference_mode():
        block, x = block_and_input()
        first = run(block, x)
        block.ffn.project_in.weight.add_(1)
        assert not torch.equal(run(block, x), first)


def test_copies_made_in_inference_mode_serve_training(extension):
    block, x = block_and_input()
    with torch.inference_mode(), sk.use_backend("cpu"):
        block(x)
    block.attn.requires_grad_(False)
    with sk.use_backend("cpu"):
        block(x).sum().backward()
    assert block.ffn.project_in.weight.grad is not None


def test_a_dead_model_leaves_nothing_behind(extension):
    before = kept()
    block, x = block_and_input()
    run(block, x)
    assert kept() > before
    del block
    assert kept() == before


def test_memory_stays_flat_over_changing_shapes_and_weights(extension):
    block, _ = block_and_input()
    run(block, torch.randn(1, 16, 8, 8))
    before = kept()
    for i in range(200):
        with torch.no_grad():
            block.attn.qkv.weight.add_(1e-3)
        run(block, torch.randn(1, 16, 8 * (1 + i % 3), 8 * (1 + i % 2)))
    assert kept() == before
    assert all(len(packed._kept.get(parameter, ())) <= 2 for parameter in block.parameters())


# ---- torch -----------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=2)  # the cases stand beside one another; instruction sets share what they are held to
def case_with_truth(op, case):
    """Arguments, gradient of the result, and the gradients in float64 with the errors of the reference in float32.

    The gradient of a scale is a sum that nearly cancels, of which the reference's own error tells little: it may happen
    to be small. So it is the largest over four inputs that differ by the rounding of float32.
    """
    arguments, _ = case.make(0)
    grad = torch.randn(arguments[0].shape)
    truth = gradients("reference", op, double(arguments), grad)
    allowed = [0.0] * len(truth)
    for _ in range(4):
        rounded = gradients("reference", op, arguments, grad)
        errors = [error(*pair) if pair[1].norm() else 0.0 for pair in zip(rounded, truth, strict=True)]
        allowed = list(map(max, allowed, errors))
        arguments = (arguments[0] * (1 + EPS * torch.randn_like(arguments[0])), *arguments[1:])
    return case.make(0)[0], grad, truth, allowed


@pytest.mark.parametrize(("isa", "chunks"), [(isa, 32) for isa in ISAS] + [(ISAS[0], 1)])
@pytest.mark.parametrize(("op", "case"), GRADIENT_CASES)
def test_gradients(op, case, isa, chunks, engine, monkeypatch):
    """Against the reference in float64, summed over chunks of windows and over all windows at once.

    A weight's gradient is a sum over all pixels, whose rounding errors add up as a random walk, or nearly.
    """
    from swintormer_kernels.backends.cpu import block_backward

    monkeypatch.setattr(block_backward, "_MOST_CHUNKS", chunks)
    engine.use_isa(isa)
    arguments, grad, truth, allowed = case_with_truth(op, case)
    found = gradients("cpu", op, arguments, grad)
    pixels = grad.numel() // max(1, grad.shape[1])
    for i, (value, true, rounding) in enumerate(zip(found, truth, allowed, strict=True)):
        assert value.shape == true.shape
        if true.norm():
            assert error(value, true) <= 2 * rounding + EPS * (8 * math.sqrt(pixels) if i else 16)
        else:
            assert not value.any()


@pytest.mark.parametrize(("op", "case"), SMALL_CASES)
def test_gradients_of_a_part_of_the_inputs(op, case, extension):
    arguments, _ = case.make(0)
    leaves, tensors = leaves_of(arguments)
    grad = torch.randn(arguments[0].shape)
    with sk.use_backend("cpu"):
        found = torch.autograd.grad(op(*leaves), tensors, grad)
        some = torch.autograd.grad(op(*leaves), tensors[2:4], grad)
    assert all(torch.equal(a, b) for a, b in zip(some, found[2:4], strict=True))


@pytest.mark.parametrize("op", BLOCK_OPS)
def test_gradients_have_the_same_bits_for_any_thread_count(op, engine):
    arguments, results = case_of(op, "window 8, C 16").make(0)[0], []
    grad = torch.randn(arguments[0].shape)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(gradients("cpu", public(op), arguments, grad))
    assert all(torch.equal(a, b) for result in results[1:] for a, b in zip(result, results[0], strict=True))


def test_equal_logits_share_the_maximums_gradient(extension):
    """Windows of equal tokens: all logits of a row tie where no position bias tells them apart, as in torch's amax."""
    weights = attention_weights(8, 1, 4)._replace(bias_table=torch.zeros(49, 1))
    weights = weights._replace(dwconv=weights.dwconv * torch.eye(3)[1].outer(torch.eye(3)[1]))
    arguments = (torch.randn(1, 8, 1, 1).expand(1, 8, 4, 8).clone(), weights, 4, 0)
    grad = torch.randn(1, 8, 4, 8)
    found = gradients("cpu", sk.swda_attention, arguments, grad)
    truth = gradients("reference", sk.swda_attention, double(arguments), grad)
    assert error(found[0], truth[0]) <= 32 * EPS * 8
    assert truth[6].norm() == pytest.approx(found[6].norm().item(), abs=grad.numel() * EPS)


def test_compile_export_and_autograd_through_a_block(extension):
    block, x = block_and_input()
    with sk.use_backend("cpu"):
        expected = block(x)
        compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
        out = compiled(x)
        torch.testing.assert_close(out, expected, rtol=0, atol=8 * EPS * expected.abs().max().item())
        gradients = [torch.autograd.grad(y.square().sum(), list(block.parameters())) for y in (out, expected)]
        exported = torch.export.export(block, (x,)).module()
        torch.testing.assert_close(exported(x), expected, rtol=0, atol=8 * EPS * expected.abs().max().item())
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1024 * EPS, atol=1024 * EPS * b.abs().max().item())


def test_inductor_gives_the_same_values_for_another_size_too(extension):
    block, x = block_and_input()
    with torch.no_grad(), sk.use_backend("cpu"):
        compiled = torch.compile(block, fullgraph=True, dynamic=True)
        for image in (x, torch.randn(1, 16, 24, 8)):
            expected = block(image)
            bound = 8 * EPS * expected.abs().max().item()
            torch.testing.assert_close(compiled(image), expected, rtol=0, atol=bound)


def test_autocast_returns_float32(extension):
    """Under bfloat16, test_block_bfloat16.py; float16 is not multiplied."""
    block, x = block_and_input()
    expected = run(block, x)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.float16), sk.use_backend("cpu"):
        assert torch.equal(block(x), expected)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), sk.use_backend("cpu"):
        half = sk.gated_ffn(x.bfloat16(), block.ffn.weights(block.norm2))
        assert block(x).dtype == half.dtype == torch.float32


def test_where_vectors_stay_empty_the_reference_is_chosen(extension):
    attention, ffn = attention_weights(128, 1, 4, False), ffn_weights(128, 340, False)
    small, large = torch.randn(1, 128, 4, 4), torch.randn(1, 128, 8, 8)
    block = sk.explain(sk.swda_block, large, attention, ffn, 4, 0)
    assert block.backend == "reference"
    assert "4x4 tokens" in block.reasons["cpu"]
    assert sk.explain(sk.swda_attention, large, attention, 4, 0).backend == "reference"
    assert sk.explain(sk.gated_ffn, small, ffn).backend == "reference"
    assert sk.explain(sk.gated_ffn, large, ffn).backend == "cpu"
    with sk.use_backend("cpu"):
        assert sk.explain(sk.swda_block, large, attention, ffn, 4, 0).backend == "cpu"


@pytest.mark.parametrize(("channels", "heads", "window"), [(32, 3, 8), (32, 0, 8), (32, 2, 0), (32, 2, 1)])
def test_sizes_that_a_block_cannot_have(channels, heads, window):
    with pytest.raises(ValueError, match=r"multiple of 2 \* heads|window must be at least 2"):
        Block(channels, heads, window, shift=0)
