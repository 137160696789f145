"""The ops of a block through the C++ engine: against float64, on every instruction set, thread count and layout."""

from __future__ import annotations

import functools
import gc
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

import swintormer_kernels as sk
from swintormer_kernels import native, packed
from swintormer_kernels.nn import Block
from swintormer_kernels.ops import gated_ffn, swda_attention, swda_block
from swintormer_kernels.testing.block_cases import Shape, attention_weights, ffn_weights
from swintormer_kernels.testing.cases import cases_of

OPS = {"swda_block": swda_block, "swda_attention": swda_attention, "gated_ffn": gated_ffn}
ISAS = native.extension().supported_isas() if native.why_absent() is None else ["none"]
EPS = torch.finfo(torch.float32).eps
CASES = [
    pytest.param(getattr(module, name), case, id=f"{name}, {case.name}")
    for name, module in OPS.items()
    for case in cases_of(module.OP.name)
    if case.tested
]
SMALL = {"window 8, C 16", "one window, odd shift", "window 3, d 1, odd sizes"}
SMALL_CASES = [case for case in CASES if case.values[1].name in SMALL]


# Not the largest (seconds in float64), nor C 2, where d is 1 and a cosine 1 or -1: its gradient is mere rounding.
GRADIENT_CASES = [case for case in CASES if "C 384" not in case.id and "C 2" not in case.id]


def mapped(function, arguments):
    """`function` of every tensor in the arguments, which may hold records of tensors."""
    return [
        type(a)(*mapped(function, a)) if isinstance(a, tuple) else function(a) if isinstance(a, torch.Tensor) else a
        for a in arguments
    ]


def tensors(arguments):
    found = []
    mapped(lambda t: found.append(t) or t, arguments)
    return found


def on(backend, op, arguments):
    with torch.no_grad(), sk.use_backend(backend):
        return op(*arguments)


def exact(op, arguments):
    return on("reference", op, mapped(torch.Tensor.double, arguments))


def error(value, truth):
    return ((value.double() - truth).norm() / truth.norm()).item()


def assert_as_good_as_the_reference(op, arguments):
    truth, out = exact(op, arguments), on("cpu", op, arguments)
    assert out.shape == truth.shape
    assert not out.isnan().any(), "an element that nobody wrote"
    if truth.numel():
        assert error(out, truth) <= 2 * error(on("reference", op, arguments), truth) + EPS


# ---- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("op", "case"), CASES)
def test_cases_agree_with_float64(op, case, isa, engine):
    engine.use_isa(isa)
    arguments, _ = case.make(1)
    assert_as_good_as_the_reference(op, arguments)
    assert on("cpu", op, arguments).stride() == torch.empty_like(arguments[0]).stride()


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
        assert_as_good_as_the_reference(sk.swda_block, (shape.image(), attention, ffn, shape.window, shape.shift))
    finally:
        extension.use_isa(before)
        torch.set_num_threads(threads_before)


@pytest.mark.parametrize("isa", ISAS)
def test_masked_pairs_can_still_win(isa, engine):
    """Logits reach 100 + 16, so -100 must be added and not stand for minus infinity."""
    engine.use_isa(isa)
    weights = attention_weights(8, 1, 16)
    weights = weights._replace(logit_scale=torch.full((1, 1, 1), 9.0))
    assert_as_good_as_the_reference(sk.swda_attention, (Shape(8, 1, 32, 32).image(), weights, 16, 8))


def test_nan_stays_in_its_window(engine):
    arguments, _ = next(case for case in cases_of("swda_block") if case.name == "window 8, C 16").make(0)
    arguments[0][0, 3, 5, 6] = float("nan")
    spoilt = on("cpu", sk.swda_block, arguments).isnan()
    assert torch.equal(spoilt, on("reference", sk.swda_block, arguments).isnan())
    assert 0 < spoilt.sum() < spoilt.numel()


@pytest.mark.parametrize("isa", ISAS)
def test_same_bits_for_any_thread_count_batch_and_layout(isa, engine):
    """3 windows split over their insides when threads are many; 6 do not."""
    engine.use_isa(isa)
    arguments, _ = cases_of("swda_block")[5].make(0)
    x, *rest = arguments
    x = x[:, :, :32, :48]
    outs = []
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        outs.append(on("cpu", sk.swda_block, (x, *rest)))
    engine.use_own_threads(True)
    outs.append(on("cpu", sk.swda_block, (x, *rest)))
    outs.append(on("cpu", sk.swda_block, (x.contiguous(), *rest)))
    outs.append(on("cpu", sk.swda_block, (x.repeat(2, 1, 1, 1), *rest))[1:])
    assert all(torch.equal(out, outs[0]) for out in outs)


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
    assert all(len(copies) <= 2 for copies in packed._kept.values())


# ---- torch -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("op", "case"), SMALL_CASES)
def test_opcheck(op, case, extension):
    arguments, _ = case.make(0)
    arguments = mapped(lambda t: t.clone().requires_grad_(), arguments)
    signature = OPS[op.op.name]._SIGNATURE
    torch.library.opcheck(OPS[op.op.name]._run.default, (*signature.flat(*arguments), "cpu"))


def gradients(op, arguments, backend, grad):
    leaves = mapped(lambda t: t.detach().clone().requires_grad_(), arguments)
    with sk.use_backend(backend):
        return torch.autograd.grad(op(*leaves), tensors(leaves), grad.to(leaves[0].dtype))


@functools.lru_cache(maxsize=2)  # the cases stand beside one another; instruction sets share what they are held to
def case_with_truth(op, case):
    """Arguments, gradient of the result, and the reference's gradients in float32 and in float64."""
    arguments, _ = case.make(0)
    grad = torch.randn(arguments[0].shape)
    plain = gradients(op, arguments, "reference", grad)
    truth = gradients(op, mapped(torch.Tensor.double, arguments), "reference", grad)
    return arguments, grad, plain, truth


@pytest.mark.parametrize(("isa", "part_bytes"), [(isa, 1) for isa in ISAS] + [(ISAS[0], 1 << 30)])
@pytest.mark.parametrize(("op", "case"), GRADIENT_CASES)
def test_gradients(op, case, isa, part_bytes, engine, monkeypatch):
    """Against the reference in float64, one window at a time and all at once.

    A weight's gradient is a sum over all pixels, whose rounding errors add up as a random walk, or nearly.
    """
    from swintormer_kernels.backends.cpu import block_backward

    monkeypatch.setattr(block_backward, "_PART_BYTES", part_bytes)
    engine.use_isa(isa)
    arguments, grad, plain, truth = case_with_truth(op, case)
    found = gradients(op, arguments, "cpu", grad)
    pixels = grad.numel() // max(1, grad.shape[1])
    for i, (value, rounded, true) in enumerate(zip(found, plain, truth, strict=True)):
        assert value.shape == true.shape
        if true.norm():
            assert error(value, true) <= 2 * error(rounded, true) + EPS * (8 * math.sqrt(pixels) if i else 16)
        else:
            assert not value.any()


@pytest.mark.parametrize(("op", "case"), SMALL_CASES)
def test_gradients_of_a_part_of_the_inputs(op, case, extension):
    arguments, _ = case.make(0)
    leaves = mapped(lambda t: t.clone().requires_grad_(), arguments)
    grad = torch.randn(arguments[0].shape)
    with sk.use_backend("cpu"):
        found = torch.autograd.grad(op(*leaves), tensors(leaves), grad)
        some = torch.autograd.grad(op(*leaves), tensors(leaves)[2:4], grad)
    assert all(torch.equal(a, b) for a, b in zip(some, found[2:4], strict=True))


def test_the_cores_gradients_have_the_same_bits_for_any_thread_count(engine):
    """Of the C++ part: torch's own products may sum in another order."""
    from swintormer_kernels.backends.cpu.block_backward import _Core, _Tokens
    from swintormer_kernels.backends.cpu.packing import pack_core

    core = _Core(pack_core(attention_weights(24, 2, 8), 8), 2, 8, 3)
    tokens = _Tokens(torch.randn(2 * 16 * 24, 24), (2, 16, 24), (True, True))
    u, results = torch.randn(tokens.rows.shape[0], 72), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append((core.forward(u, tokens), *core.backward(u, tokens.rows, tokens)))
    assert all(torch.equal(a, b) for result in results[1:] for a, b in zip(result, results[0], strict=True))


def test_equal_logits_share_the_maximums_gradient(extension):
    """Windows of equal tokens: all logits of a row tie where no position bias tells them apart, as in torch's amax."""
    weights = attention_weights(8, 1, 4)._replace(bias_table=torch.zeros(49, 1))
    weights = weights._replace(dwconv=weights.dwconv * torch.eye(3)[1].outer(torch.eye(3)[1]))
    arguments = (torch.randn(1, 8, 1, 1).expand(1, 8, 4, 8).clone(), weights, 4, 0)
    grad = torch.randn(1, 8, 4, 8)
    found = gradients(sk.swda_attention, arguments, "cpu", grad)
    truth = gradients(sk.swda_attention, mapped(torch.Tensor.double, arguments), "reference", grad)
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


def test_autocast_computes_and_returns_float32(extension):
    block, x = block_and_input()
    expected = run(block, x)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), sk.use_backend("cpu"):
        out = block(x)
        half = sk.gated_ffn(x.bfloat16(), block.ffn.weights(block.norm2))
    assert out.dtype == half.dtype == torch.float32
    assert torch.equal(out, expected)
    assert sk.explain(sk.gated_ffn, x.bfloat16(), block.ffn.weights(block.norm2)).backend == "reference"


@pytest.mark.parametrize(("op", "case"), SMALL_CASES)
def test_flops_are_those_of_the_references_products(op, case, extension):
    arguments, _ = case.make(0)
    counts = []
    for backend in ("reference", "cpu"):
        with FlopCounterMode(display=False) as counter:
            on(backend, op, arguments)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] == 2 * OPS[op.op.name].cost(*arguments).macs


@pytest.mark.parametrize(("change", "reason"), [(torch.Tensor.double, "takes float32"), (torch.Tensor.half, "float32")])
def test_other_dtypes_go_to_the_reference(change, reason, extension):
    arguments, _ = next(case for case in cases_of("gated_ffn") if case.name == "window 8, C 16").make(0)
    arguments = mapped(change, arguments)
    explanation = sk.explain(sk.gated_ffn, *arguments)
    assert explanation.backend == "reference"
    assert reason in explanation.reasons["cpu"]


@pytest.mark.parametrize("name", ["norm_bias", "project_in", "project_out", "project_out_bias", "scratch"])
def test_the_binding_refuses_memory_of_the_wrong_size(name, engine):
    """One float less than the kernel would touch."""
    from swintormer_kernels.backends.cpu.layout import dense, view

    x = view(torch.zeros(1, 16, 8, 8))
    tile, scratch_floats, _ = engine.swda_layout(16, 0, 0, 42)
    in_rows, out_rows = (-(-rows // unit) * tile for rows, unit in ((42, tile // 2), (16, tile)))
    floats = {"norm_weight": 16, "norm_bias": 16, "project_in": in_rows * 16, "project_in_bias": in_rows}
    floats |= {"project_out": out_rows * 42, "project_out_bias": out_rows, "scratch": scratch_floats}

    def call():
        memory = {key: dense(torch.zeros(count)) for key, count in floats.items()}
        scratch = memory.pop("scratch")
        engine.gated_ffn(out=x, x=x, ffn=engine.Ffn(**memory, hidden=42), scratch=scratch, threads=1)

    call()
    floats[name] -= 1
    with pytest.raises(ValueError, match=f"{name} must hold .*{floats[name] + 1} floats, found {floats[name]}"):
        call()


def test_the_binding_refuses_weights_of_other_windows(engine):
    from swintormer_kernels.backends.cpu.layout import dense, view
    from swintormer_kernels.backends.cpu.packing import pack_attention

    x, scratch = view(torch.zeros(1, 16, 12, 12)), dense(torch.zeros(1 << 20))
    attention = pack_attention(attention_weights(16, 1, 8), 8, 0)
    call = functools.partial(engine.swda_attention, out=x, x=x, scratch=scratch, threads=1)
    with pytest.raises(ValueError, match="window must divide the sides"):
        call(attention=attention, shift=0)
    with pytest.raises(ValueError, match="heads must divide"):
        call(attention=pack_attention(attention_weights(18, 3, 4), 4, 0), shift=0)
    with pytest.raises(ValueError, match="shift must be"):
        call(attention=pack_attention(attention_weights(16, 1, 4), 4, 0), shift=4)


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
