"""swda_attention and swda_block through Triton's interpreter: against float64 and the released blocks.

On a GPU (TRITON_INTERPRET unset) the same tests run there.
"""

from __future__ import annotations

import pytest
import torch
from ops import EPS, assert_forward, mapped, on
from triton_samples import attention_arguments, with_ffn

import swintormer_kernels as sk
from swintormer_kernels.backends.triton import layout as triton_tensors
from swintormer_kernels.ops import swda_attention, swda_block
from swintormer_kernels.testing.block_cases import Shape

pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("one_thread", "large_blocks")

DTYPES = triton_tensors.DTYPES
# Each is there for what no other has; small, because the interpreter takes 0.1 to 0.3 s for a window and head.
SHAPES = {
    "shifted, bias": Shape(16, 1, 16, 24, shift=4, window=8, bias=True),
    "batch 2, NCHW, odd shift": Shape(24, 1, 8, 16, shift=3, window=8, batch=2, layout="contiguous"),
    "two heads, window 3, d 1, sliced": Shape(4, 2, 6, 6, shift=1, window=3, layout="sliced"),
    "window 7, d 5, expanded": Shape(10, 1, 7, 7, window=7, batch=2, layout="expanded"),
    "d 24, 4 query blocks": Shape(48, 1, 16, 16, shift=8),
    "d 48": Shape(96, 1, 8, 8, window=8),
    "empty batch": Shape(16, 1, 8, 8, window=8, batch=0),
}


def assert_as_good_as_the_reference(op, arguments):
    out = assert_forward("triton", op, arguments, EPS)
    assert out.stride() == torch.empty_like(arguments[0]).stride()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_float32_agrees_with_float64(shape):
    assert_as_good_as_the_reference(sk.swda_attention, attention_arguments(shape))


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_half_types_are_as_good_as_the_reference(dtype):
    assert_as_good_as_the_reference(sk.swda_attention, attention_arguments(SHAPES["shifted, bias"], dtype))


def test_masked_pairs_can_still_win():
    """Logits reach 100 + 16, so -100 must be added and not stand for minus infinity."""
    x, weights, *rest = attention_arguments(Shape(8, 1, 16, 16, shift=4, window=8))
    weights = weights._replace(logit_scale=torch.full_like(weights.logit_scale, 9.0))
    assert_as_good_as_the_reference(sk.swda_attention, (x, weights, *rest))


def test_nan_stays_in_its_window():
    arguments = attention_arguments(SHAPES["shifted, bias"])
    arguments[0][0, 3, 5, 6] = float("nan")
    spoilt = on("triton", sk.swda_attention, arguments).isnan()
    assert torch.equal(spoilt, on("reference", sk.swda_attention, arguments).isnan())
    assert 0 < spoilt.sum() < spoilt.numel()


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_a_block_is_its_two_halves(dtype):
    shape = Shape(24, 1, 8, 8, shift=4, window=8, bias=True)
    assert_as_good_as_the_reference(sk.swda_block, with_ffn(attention_arguments(shape, dtype), shape))


def test_what_the_kernels_do_not_take_is_said_in_a_sentence():
    wide = attention_arguments(Shape(132, 1, 8, 8, window=8))
    assert "heads of at most 64 channels, found 66" in sk.explain(sk.swda_attention, *wide).reasons["triton"]
    large = attention_arguments(Shape(4, 1, 33, 33, window=33))
    assert "at most 32x32 tokens" in sk.explain(sk.swda_attention, *large).reasons["triton"]
    double = attention_arguments(SHAPES["shifted, bias"], torch.float64)
    assert "float64" in sk.explain(sk.swda_attention, *double).reasons["triton"]


# ---- torch -----------------------------------------------------------------------------------------------------------


def tiny_block_arguments():
    """Two windows of 2x2 tokens: what is run here, torch runs many times."""
    shape = Shape(4, 1, 2, 4, shift=1, window=2)
    return with_ffn(attention_arguments(shape), shape)


def test_opcheck():
    arguments = mapped(lambda t: t.clone().requires_grad_(), tiny_block_arguments())
    torch.library.opcheck(swda_block._run.default, (*swda_block._SIGNATURE.flat(*arguments), "triton"))
    arguments = (*arguments[:2], *arguments[3:])
    torch.library.opcheck(swda_attention._run.default, (*swda_attention._SIGNATURE.flat(*arguments), "triton"))


@pytest.mark.slow  # AOTAutograd runs everything several times, in the interpreter
def test_compiled_without_a_graph_break():
    arguments = mapped(lambda t: t.clone().requires_grad_(), tiny_block_arguments())
    with sk.use_backend("triton"):
        expected = sk.swda_block(*arguments)
        out = torch.compile(sk.swda_block, fullgraph=True, backend="aot_eager")(*arguments)
        gradients = [torch.autograd.grad(y.square().sum(), arguments[0])[0] for y in (out, expected)]
    assert torch.equal(out, expected)
    assert torch.equal(*gradients)
