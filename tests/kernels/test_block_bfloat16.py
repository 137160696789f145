"""The block's ops and their gradients with products of bfloat16, by the CPU's instruction or emulated."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from ops import BLOCK_OPS, EPS, ISAS, assert_as_good, double, error, gradients, mapped, on, public
from test_swda_block import CASES, GRADIENT_CASES, SMALL, SMALL_CASES, block_and_input, shapes
from torch import Tensor

import swintormer_kernels as sk
from swintormer_kernels import native
from swintormer_kernels.precision import emulated_bfloat16, multiplies_bfloat16, with_precision
from swintormer_kernels.records import AttentionWeights
from swintormer_kernels.testing.block_cases import attention_weights, ffn_weights
from swintormer_kernels.testing.cases import case_of

HALF_ULP = torch.finfo(torch.bfloat16).eps / 2  # 2^-8, of the two factors of a product together
FIRST_AND_LAST = list(dict.fromkeys((ISAS[0], ISAS[-1])))


@pytest.fixture
def emulated():
    """Calls of bfloat16 multiply bfloat16 on every instruction set."""
    with emulated_bfloat16():
        yield


def autocast(backend, op, arguments):
    with torch.autocast("cpu", torch.bfloat16):
        return on(backend, op, arguments)


def halved(arguments):
    return mapped(lambda t: t.bfloat16(), arguments)


@functools.lru_cache(maxsize=2)
def autocast_case(op, case):
    """Arguments, the reference's result under autocast, and the result in float64."""
    arguments, _ = case.make(0)
    return arguments, autocast("reference", op, arguments).float(), on("reference", op, double(arguments))


# ---- products of bfloat16 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("op", "case"), CASES)
def test_autocast_is_at_least_as_exact_as_the_reference_under_autocast(op, case, isa, engine, emulated):
    engine.use_isa(isa)
    arguments, plain, truth = autocast_case(op, case)
    out = autocast("cpu", op, arguments)
    assert out.dtype == torch.float32
    assert out.stride() == torch.empty_like(arguments[0]).stride()
    assert not out.isnan().any()
    assert error(out, truth) <= error(plain, truth)
    if truth.numel():  # and it did multiply bfloat16
        assert error(out, truth) > 4 * error(on("reference", op, arguments), truth)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", SMALL)
def test_every_number_of_the_ffn_is_within_the_rounding_of_its_factors(name, isa, engine, emulated):
    """A sum of products changes by at most 2^-8 of the sum of their absolute values; the rest is float32."""
    engine.use_isa(isa)
    (x, weights), _ = case_of("gated_ffn", name).make(0)
    out = autocast("cpu", sk.gated_ffn, (x, weights)).double()
    x, weights = double((x, weights))
    mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
    normed = (x - mean) / torch.sqrt(variance + 1e-5) * weights.norm_weight[:, None, None]
    normed = normed + weights.norm_bias[:, None, None]

    def sums(values, weight, bias):
        """A 1x1 convolution, and the sum of its absolute products."""
        total = torch.nn.functional.conv2d(values, weight, bias)
        return total, torch.nn.functional.conv2d(values.abs(), weight.abs())

    # Both factors are rounded, 2^-9 each: (1 + 2^-9)^2 - 1. In float32, a sum of C or hidden numbers rounds that often.
    step = (1 + HALF_ULP / 2) ** 2 - 1
    hidden = weights.project_out.shape[1]
    both, absolute = sums(normed, weights.project_in, weights.project_in_bias)
    (x1, x2), (moved1, moved2) = both.chunk(2, 1), (absolute * (step + EPS * (x.shape[1] + 16))).chunk(2, 1)
    gate = x1.abs() * moved2 + x2.abs() * moved1 + moved1 * moved2  # how far x1 * x2 may be off
    largest = (x1 * x2).abs() + gate
    total, _ = sums(x1 * x2, weights.project_out, weights.project_out_bias)
    bound = torch.nn.functional.conv2d(gate + largest * (step + EPS * hidden), weights.project_out.abs())
    assert ((out - (x + total)).abs() <= bound + EPS * (x.abs() + total.abs())).all()


@settings(max_examples=30, deadline=None, derandomize=True)
@given(shapes())
def test_any_shape_and_strides(shape):
    if native.why_absent():
        pytest.skip(native.why_absent())
    attention = attention_weights(shape.channels, shape.heads, shape.window, shape.bias)
    ffn = ffn_weights(shape.channels, shape.hidden, shape.bias)
    arguments = (shape.image(), attention, ffn, shape.window, shape.shift)
    extension, outs = native.extension(), []
    before, truth = extension.isa(), on("reference", sk.swda_block, double(arguments))
    plain = autocast("reference", sk.swda_block, arguments).float()
    try:
        with emulated_bfloat16():
            for isa in ISAS:
                extension.use_isa(isa)
                outs.append(autocast("cpu", sk.swda_block, arguments))
                assert_as_good(outs[-1], plain, truth, HALF_ULP)
    finally:
        extension.use_isa(before)


@pytest.mark.parametrize(("op", "case"), SMALL_CASES)
def test_the_instruction_and_its_emulation_give_the_same_bits(op, case, engine, emulated):
    """The documented operation of vdpbf16ps: the second product of a pair is added first, each sum is rounded."""
    if "avx512bf16" not in ISAS:
        pytest.skip("this CPU has no AVX512_BF16")
    arguments, _ = case.make(0)
    outs = []
    for isa in ("avx512bf16", "avx512"):
        engine.use_isa(isa)
        outs.append(autocast("cpu", op, arguments))
    assert torch.equal(*outs)


@pytest.mark.parametrize("isa", FIRST_AND_LAST)
@pytest.mark.parametrize("sides", [(32, 48), (16, 48)])
def test_same_bits_for_any_thread_count_and_batch(sides, isa, engine, emulated):
    engine.use_isa(isa)
    x, *rest = case_of("swda_block", "level2, C 96, shifted").make(0)[0]
    arguments, outs = (x[:, :, : sides[0], : sides[1]], *rest), []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        outs.append(autocast("cpu", sk.swda_block, arguments))
    engine.use_own_threads(True)
    outs.append(autocast("cpu", sk.swda_block, (arguments[0].contiguous(), *rest)))
    outs.append(autocast("cpu", sk.swda_block, (torch.cat([arguments[0]] * 2), *rest))[1:])
    assert all(torch.equal(out, outs[0]) for out in outs)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", BLOCK_OPS)
def test_nan_stays_within_reach(name, isa, engine, emulated):
    engine.use_isa(isa)
    arguments, _ = case_of(name, "window 8, C 16").make(0)
    arguments[0][1, 3, 1, 2] = float("nan")
    spoilt = on("reference", public(name), arguments).isnan()
    assert torch.equal(autocast("cpu", public(name), arguments).isnan(), spoilt)
    assert torch.equal(on("cpu", public(name), halved(arguments)).isnan(), spoilt)


def test_weight_changes_are_seen_in_both_precisions(extension, emulated):
    block, x = block_and_input()
    run = lambda: autocast("cpu", block, (x,))  # noqa: E731
    for name, parameter in block.named_parameters():
        exact, before = on("cpu", block, (x,)), run()
        assert not torch.equal(exact, before)
        with torch.no_grad():
            parameter.add_(torch.randn_like(parameter))
        assert not torch.equal(run(), before), name
        assert not torch.equal(on("cpu", block, (x,)), exact), name


# ---- tensors of bfloat16 ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("multiplied", [True, False])
@pytest.mark.parametrize(("op", "case"), CASES)
def test_tensors_of_bfloat16(op, case, multiplied, isa, engine, request):
    """Products of bfloat16, or of float32: then the only roundings are those of the result."""
    if multiplied:
        request.getfixturevalue("emulated")
    elif isa == "avx512bf16":
        pytest.skip("multiplies bfloat16")
    engine.use_isa(isa)
    arguments = halved(case.make(0)[0])
    out = on("cpu", op, arguments)
    assert out.dtype == torch.bfloat16
    assert out.stride() == torch.empty_like(arguments[0]).stride()
    in_float32 = mapped(Tensor.float, arguments)
    assert sk.explain(op, *arguments).backend == sk.explain(op, *in_float32).backend  # the cpu's, where it wins
    if not multiplied:
        assert torch.equal(out, on("cpu", op, in_float32).bfloat16())
    elif out.numel():
        assert_as_good(out, on("reference", op, arguments), on("reference", op, double(arguments)))


def test_half_precision_tensors_beside_others_go_to_the_reference(extension):
    arguments, _ = case_of("gated_ffn", "window 8, C 16").make(0)
    mixed = (arguments[0].bfloat16(), arguments[1])
    explanation = sk.explain(sk.gated_ffn, *mixed)
    assert explanation.backend == "reference"
    assert "takes bfloat16 beside an input of bfloat16, found torch.float32" in explanation.reasons["cpu"]


# ---- gradients -------------------------------------------------------------------------------------------------------

CHAIN = 8  # products, with two rounded factors each, on the longest way from the gradient of y to that of a weight


def gradients_under_autocast(backend, op, arguments, grad):
    with torch.autocast("cpu", torch.bfloat16):
        return gradients(backend, op, arguments, grad)


@functools.lru_cache(maxsize=2)
def gradient_case(op, case):
    """Arguments, y's gradient, and those of the inputs from the reference: under autocast and in float64."""
    arguments, _ = case.make(0)
    grad = torch.randn(arguments[0].shape, generator=torch.Generator().manual_seed(1))
    plain = gradients_under_autocast("reference", op, arguments, grad)
    return arguments, grad, plain, gradients("reference", op, double(arguments), grad)


def of_scale(op, i):
    """Whether gradient i is that of logit_scale: a number for each head, in which nearly everything cancels."""
    return op is not sk.gated_ffn and i == 1 + AttentionWeights._fields.index("logit_scale")


def assert_gradients_as_exact(op, found, plain, truth):
    """Each at most twice the reference's error under autocast, and all together no worse than that."""
    for i, (value, rounded, true) in enumerate(zip(found, plain, truth, strict=True)):
        assert not value.isnan().any()
        if not of_scale(op, i) and true.norm():
            assert error(value, true) <= 2 * error(rounded, true) + CHAIN * HALF_ULP, i
    flat = [torch.cat([part.double().flatten() for part in parts]) for parts in (found, plain, truth)]
    assert error(flat[0], flat[2]) <= 2 * error(flat[1], flat[2])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("op", "case"), GRADIENT_CASES)
def test_gradients_under_autocast(op, case, isa, engine, emulated):
    engine.use_isa(isa)
    arguments, grad, plain, truth = gradient_case(op, case)
    found = gradients_under_autocast("cpu", op, arguments, grad)
    assert_gradients_as_exact(op, found, plain, truth)
    if grad.numel():  # and they did multiply bfloat16
        assert error(found[0], truth[0]) > 4 * error(gradients("cpu", op, arguments, grad)[0], truth[0])


@settings(max_examples=20, deadline=None, derandomize=True)
@given(shapes())
def test_gradients_for_any_shape_and_strides(shape):
    if native.why_absent():
        pytest.skip(native.why_absent())
    attention = attention_weights(shape.channels, shape.heads, shape.window, shape.bias)
    ffn = ffn_weights(shape.channels, shape.hidden, shape.bias)
    arguments = (shape.image(), attention, ffn, shape.window, shape.shift)
    extension, grad = native.extension(), torch.randn(shape.image().shape)
    before, truth = extension.isa(), gradients("reference", sk.swda_block, double(arguments), grad)
    plain = gradients_under_autocast("reference", sk.swda_block, arguments, grad)
    try:
        with emulated_bfloat16():
            for isa in ISAS:
                extension.use_isa(isa)
                found = gradients_under_autocast("cpu", sk.swda_block, arguments, grad)
                flat = [torch.cat([part.double().flatten() for part in parts]) for parts in (found, plain, truth)]
                assert error(flat[0], flat[2]) <= 2 * error(flat[1], flat[2]) + CHAIN * HALF_ULP
    finally:
        extension.use_isa(before)


@pytest.mark.parametrize(("op", "case"), SMALL_CASES)
def test_gradients_by_the_instruction_and_its_emulation_have_the_same_bits(op, case, engine, emulated):
    if "avx512bf16" not in ISAS:
        pytest.skip("this CPU has no AVX512_BF16")
    arguments, _ = case.make(0)
    grad, found = torch.randn(arguments[0].shape), []
    for isa in ("avx512bf16", "avx512"):
        engine.use_isa(isa)
        found.append(gradients_under_autocast("cpu", op, arguments, grad))
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("isa", FIRST_AND_LAST)
def test_same_bits_of_gradients_for_any_thread_count(isa, engine, emulated):
    engine.use_isa(isa)
    arguments, _ = case_of("swda_block", "window 8, C 16").make(0)
    grad, found = torch.randn(arguments[0].shape), []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        found.append(gradients_under_autocast("cpu", sk.swda_block, arguments, grad))
    engine.use_own_threads(True)
    found.append(gradients_under_autocast("cpu", sk.swda_block, arguments, grad))
    assert all(torch.equal(*pair) for other in found[1:] for pair in zip(other, found[0], strict=True))


@pytest.mark.parametrize("name", BLOCK_OPS)
def test_gradients_of_bfloat16_tensors(name, extension, emulated):
    """They are those of the rounded numbers under autocast, rounded once more."""
    arguments, _ = case_of(name, "window 8, C 16").make(0)
    arguments = halved(arguments)
    grad = torch.randn(arguments[0].shape).bfloat16()
    found = gradients("cpu", public(name), arguments, grad)
    wide = gradients_under_autocast("cpu", public(name), mapped(Tensor.float, arguments), grad.float())
    assert all(value.dtype == torch.bfloat16 for value in found)
    assert all(torch.equal(value, true.bfloat16()) for value, true in zip(found, wide, strict=True))


@pytest.mark.parametrize("name", BLOCK_OPS)
def test_gradients_of_bfloat16_tensors_where_products_are_of_float32(name, engine):
    """They are computed in float32 from the rounded numbers and rounded once."""
    engine.use_isa(ISAS[-1])
    arguments, _ = case_of(name, "window 8, C 16").make(0)
    arguments = halved(arguments)
    grad = torch.randn(arguments[0].shape).bfloat16()
    found = gradients("cpu", public(name), arguments, grad)
    exact = gradients("cpu", public(name), mapped(Tensor.float, arguments), grad.float())
    assert all(value.dtype == torch.bfloat16 for value in found)
    assert all(torch.equal(value, true.bfloat16()) for value, true in zip(found, exact, strict=True))


def test_training_under_autocast(extension, emulated):
    block, x = block_and_input()
    with torch.autocast("cpu", torch.bfloat16), sk.use_backend("cpu"):
        block(x.bfloat16()).square().sum().backward()
    found = [parameter.grad.clone() for parameter in block.parameters()]
    block.zero_grad()
    with sk.use_backend("cpu"):
        block(x).square().sum().backward()
    for value, parameter in zip(found, block.parameters(), strict=True):
        assert value.dtype == torch.float32
        assert error(value, parameter.grad.double()) < 16 * HALF_ULP


# ---- which precision -------------------------------------------------------------------------------------------------


def test_the_instruction_set_decides(engine):
    x = torch.zeros(1)
    for isa in engine.supported_isas():
        engine.use_isa(isa)
        assert engine.has_bfloat16() == multiplies_bfloat16() == (isa == "avx512bf16")
        chosen = "cpu:bfloat16" if isa == "avx512bf16" else "cpu"
        assert with_precision("cpu", x) == "cpu"
        assert with_precision("cpu", x.bfloat16()) == chosen
        with torch.autocast("cpu", torch.bfloat16):
            assert with_precision("cpu", x) == chosen
            assert with_precision("reference", x) == "reference"
        with torch.autocast("cpu", torch.float16):
            assert with_precision("cpu", x) == "cpu"


@pytest.mark.parametrize("isa", ISAS)
def test_without_the_instruction_autocast_has_the_bits_of_float32(isa, engine):
    engine.use_isa(isa)
    block, x = block_and_input()
    expected, out = on("cpu", block, (x,)), autocast("cpu", block, (x,))
    assert out.dtype == torch.float32
    assert torch.equal(out, expected) != engine.has_bfloat16()


@pytest.mark.parametrize("name", BLOCK_OPS)
def test_compiled_code_keeps_the_precision_of_its_call(name, extension, emulated):
    torch._dynamo.reset()
    op, (arguments, _) = public(name), case_of(name, "window 8, C 16").make(0)
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    exact, out, again = (run("cpu", compiled, arguments) for run in (on, autocast, on))
    assert torch.equal(out, autocast("cpu", op, arguments))
    assert torch.equal(exact, on("cpu", op, arguments))
    assert torch.equal(again, exact)
    assert not torch.equal(out, exact)
