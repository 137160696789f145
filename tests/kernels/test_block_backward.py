"""Gradients of the block as torch's users meet them: autocast, compilation, double backward, memory, odd weights."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from ops import BLOCK_OPS, EPS, ISAS, MODULES, double, error, gradients, leaves_of, mapped, public

import swintormer_kernels as sk
from swintormer_kernels.nn import Block
from swintormer_kernels.ops import swda_block
from swintormer_kernels.testing.block_cases import attention_weights, ffn_weights
from swintormer_kernels.testing.cases import case_of
from swintormer_kernels.testing.timing import peak_memory


def small(op: str = "swda_block"):
    return case_of(op, "window 8, C 16").make(0)[0]


@pytest.mark.parametrize("op", BLOCK_OPS)
@pytest.mark.parametrize("forward", [True, False])
def test_the_forward_decides_the_precision_of_the_gradient(op, forward, extension):
    """Not the autocast region in which the backward runs."""
    leaves, tensors = leaves_of(small(op))
    grad, found = torch.randn(leaves[0].shape), []
    for backward in (False, True):
        with sk.use_backend("cpu"), torch.autocast("cpu", torch.bfloat16, enabled=forward):
            y = public(op)(*leaves)
        with torch.autocast("cpu", torch.bfloat16, enabled=backward):
            found.append(torch.autograd.grad(y, tensors, grad))
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("how", [lambda c: torch.randn(2 * c)[::2], lambda c: torch.ones(1).expand(c)])
def test_weights_with_any_strides(how, extension):
    x, attention, ffn, *sizes = small()
    attention, ffn = (
        weights._replace(norm_weight=how(16), norm_bias=how(16), **{name: getattr(weights, name).mT.contiguous().mT})
        for weights, name in ((attention, "dwconv"), (ffn, "project_in"))
    )
    arguments, grad = (x, attention, ffn, *sizes), torch.randn(x.shape)
    found, plain = (gradients(backend, sk.swda_block, arguments, grad) for backend in ("cpu", "reference"))
    truth = gradients("reference", sk.swda_block, double(arguments), grad)
    for value, rounded, true in zip(found, plain, truth, strict=True):
        assert error(value, true) <= 2 * error(rounded, true) + EPS * 8 * math.sqrt(grad.numel())


@pytest.mark.parametrize(("channels", "window"), [(98, 2), (164, 8)])
def test_heads_with_more_channels_than_a_row_of_tokens(channels, window, engine):
    attention, x = attention_weights(channels, 1, window), torch.randn(1, channels, window, 2 * window)
    arguments, grad = (x, attention, window, 0), torch.randn(x.shape)
    truth = gradients("reference", sk.swda_attention, double(arguments), grad)
    plain = gradients("reference", sk.swda_attention, arguments, grad)
    for isa in ISAS:
        engine.use_isa(isa)
        found = gradients("cpu", sk.swda_attention, arguments, grad)
        for i, (value, rounded, true) in enumerate(zip(found, plain, truth, strict=True)):
            if i != 6 and true.norm():  # the gradient of the scale nearly cancels
                assert error(value, true) <= 2 * error(rounded, true) + EPS * 8 * math.sqrt(grad.numel())


@pytest.mark.parametrize("op", BLOCK_OPS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_opcheck_of_the_backward_op(op, layout, extension):
    x, *rest = small(op)
    signature = MODULES[op]._SIGNATURE
    x = x.contiguous(memory_format=layout)
    flat = signature.flat(*mapped(lambda t: t.clone().requires_grad_(), (x, *rest)))
    needed = [isinstance(t, torch.Tensor) for t in flat if not isinstance(t, int)]
    backward = getattr(torch.ops.swintormer, f"{op}_backward").default
    checks = ("test_schema", "test_faketensor")  # there is no second derivative to check
    torch.library.opcheck(backward, (torch.randn_like(x), *flat, "cpu", needed), test_utils=checks)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_training_through_inductor(layout, extension):
    block = Block(16, 1, 8, 4)
    x = torch.randn(1, 16, 16, 16).contiguous(memory_format=layout)
    with sk.use_backend("cpu"):
        results = [
            torch.autograd.grad(function(x).square().sum(), list(block.parameters()))
            for function in (block, torch.compile(block, fullgraph=True))
        ]
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1024 * EPS, atol=1024 * EPS * plain.abs().max().item())


@pytest.mark.parametrize("op", BLOCK_OPS)
def test_gradients_of_gradients_are_refused(op, extension):
    leaves, tensors = leaves_of(small(op))
    with sk.use_backend("cpu"):
        first = torch.autograd.grad(public(op)(*leaves).square().sum(), tensors, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"use_backend\('reference'\)"):
        torch.autograd.grad(first[0].sum(), leaves[0])


@pytest.mark.parametrize("logit_scale", [-60.0, -45.0, -16.0, 9.0])
def test_any_logit_scale(logit_scale, extension):
    """From scales whose square is below float32's range to those that the clamp holds."""
    x, weights, *sizes = small("swda_attention")
    arguments = (x, weights._replace(logit_scale=torch.full((1, 1, 1), logit_scale)), *sizes)
    grad = torch.randn(x.shape)
    found, plain = (gradients(backend, sk.swda_attention, arguments, grad) for backend in ("cpu", "reference"))
    truth = gradients("reference", sk.swda_attention, double(arguments), grad)
    for i, (value, rounded, true) in enumerate(zip(found, plain, truth, strict=True)):
        assert value.isfinite().all()
        if true.norm() and i != 6:  # that of a scale of 1e-7 and less is a sum of pure cancellation
            assert error(value, true) <= 2 * error(rounded, true) + EPS * 8 * math.sqrt(grad.numel())


@pytest.mark.parametrize(("batch", "height", "width"), [(8, 32, 64), (1, 32, 512), (1, 256, 64)])
def test_memory_is_bounded_whichever_way_the_image_grows(batch, height, width, extension, monkeypatch, one_thread):
    from swintormer_kernels.backends.cpu import block_backward

    sums = 1 << 20
    monkeypatch.setattr(block_backward, "_SUMS_BYTES", sums)
    attention, ffn = attention_weights(16, 1, 8), ffn_weights(16, 42)
    x = torch.randn(batch, 16, height, width).contiguous(memory_format=torch.channels_last)
    leaves, tensors = leaves_of((x, attention, ffn, 8, 4))
    grad = torch.randn_like(x)
    with sk.use_backend("cpu"):
        y = sk.swda_block(*leaves)
    backward = lambda: torch.autograd.grad(y, tensors, grad, retain_graph=True)  # noqa: E731
    backward()
    assert peak_memory(backward) <= 4 * x.numel() + 2 * sums  # x's gradient, the sums of the chunks, and scratch


# ---- what is derived from parameters ---------------------------------------------------------------------------------


def test_modules_that_share_an_attention(extension):
    one, two = Block(16, 1, 8, 0), Block(16, 1, 8, 4)
    two.attn = one.attn
    x = torch.randn(1, 16, 16, 16)
    with torch.no_grad():
        for block in (one, two, one):
            expected = copy.deepcopy(block)(x)
            assert torch.equal(block(x), expected)
        one.attn.cpb_mlp[0].weight = torch.nn.Parameter(torch.randn(512, 2))
        assert torch.equal(one(x), copy.deepcopy(one)(x))


def test_a_new_storage_at_an_old_address_is_seen(extension):
    block, x = Block(16, 1, 8, 4), torch.randn(1, 16, 16, 16)
    with torch.no_grad():
        for _ in range(8):
            block(x)
            block.bfloat16().float()
            assert torch.equal(block(x), copy.deepcopy(block)(x))


def test_forget_serves_writes_that_the_version_counter_does_not_see(extension):
    block, x = Block(16, 1, 8, 4), torch.randn(1, 16, 16, 16)
    with torch.no_grad():
        block(x)
        block.ffn.project_in.weight.data.mul_(2)
        sk.forget(block)
        assert torch.equal(block(x), copy.deepcopy(block)(x))


@pytest.mark.parametrize("field", ["norm_weight", "qkv", "dwconv", "proj"])
def test_a_weight_of_another_shape_is_named(field):
    x, attention, ffn, *sizes = small()
    spoilt = attention._replace(**{field: getattr(attention, field)[:-1]})
    with pytest.raises(ValueError, match=field if field != "proj" else "x of shape"):
        swda_block.swda_block(x, spoilt, ffn, *sizes)
