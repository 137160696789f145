"""Gradients of swda_attention and swda_block in Triton, against the reference and float64; the memory they take."""

from __future__ import annotations

import pytest
import torch
import triton_samples
from ops import EPS, assert_as_good, double, gradients, leaves_of
from torch.utils._python_dispatch import TorchDispatchMode
from triton_samples import DEVICE, with_ffn

import swintormer_kernels as sk
from swintormer_kernels.backends.reference.blocks import gated_ffn as reference_ffn
from swintormer_kernels.backends.reference.blocks import swda_attention as reference_attention
from swintormer_kernels.backends.triton import layout as triton_tensors
from swintormer_kernels.testing.block_cases import Shape

pytest.importorskip("triton")
from swintormer_kernels.backends.triton import attention_forward, attention_gradients, runtime, window_setup

pytestmark = pytest.mark.usefixtures("one_thread", "large_blocks")
# Small: the interpreter takes about a second for a window and head.
ONE_WINDOW = Shape(8, 1, 8, 8, shift=4, window=8, bias=True)
TWO_WINDOWS = Shape(8, 2, 4, 8, shift=1, window=4, layout="contiguous")
SHAPES = {
    "one window, shifted, bias": ONE_WINDOW,
    "two windows, two heads, NCHW": TWO_WINDOWS,
    "four blocks of queries, d 24": Shape(48, 1, 16, 16, shift=8),
    "d 48": Shape(96, 1, 4, 4, window=4),
    "window 3, d 1, sliced": Shape(2, 1, 3, 3, window=3, layout="sliced"),
}


def attention_arguments(shape, dtype=torch.float32):
    x, weights, *rest = triton_samples.attention_arguments(shape, dtype)
    # No clamp: where it holds every head, the gradient is 0 and says nothing. There is a test of its own.
    return [x, weights._replace(logit_scale=weights.logit_scale.clamp(max=4)), *rest]


def magnitude_of_terms(x, weights, window, shift, *ffn_and_grad):
    """(heads,) sum |terms| of logit_scale's gradient over the pairs of tokens of every window, in float64."""
    ffn, grad = ffn_and_grad[:-1], ffn_and_grad[-1].double()
    x, weights = double((x, weights))
    # One scale for each pair of tokens, whose gradient is the sum's term.
    scale = weights.logit_scale.expand(-1, window**2, window**2).clone().requires_grad_()
    y = reference_attention(x, weights._replace(logit_scale=scale), window, shift)
    y = reference_ffn(y, double(ffn)[0]) if ffn else y
    total = 0
    for row in range(0, x.shape[2], window):
        for column in range(0, x.shape[3], window):
            # Windows share no pixel, so the result's gradient in one of them gives that window's terms.
            inside = torch.zeros_like(grad)
            inside[:, :, row : row + window, column : column + window] = 1
            inside = inside.roll((shift, shift), (2, 3))
            terms = torch.autograd.grad(y, scale, grad * inside, retain_graph=True)[0]
            total = total + terms.abs().sum((1, 2))
    return total


def rounding_of_scale(arguments, grad, dtype):
    """(heads,) worst case of the rounding errors of logit_scale's gradient, to first order.

    The gradient of a head is the sum of dl_ij cos_ij scale over N^2 pairs in each of W windows. A sum of n terms, in
    whatever order, is off by at most n eps/2 sum |terms|, and by no less where the terms cancel, so n is the number of
    roundings behind the longest path and not its root: a random walk is what happens on most machines, no bound.
        N + d + N W    the sum itself: over keys, channels, then queries and windows
        2 N + d + C    P's divisor, Delta = sum_j P_ij g_ij, g = dO v^T, dO = (gradient of y) proj
        (scale + 16) (2 C + 9 + d + 3)
                       P is an exponential, so its relative error is the absolute error of the logit, at most scale + 16
                       in size: norm and qkv over C, 9 taps, the cosine over d, then scale, bias and maximum
    Half types round a term 7 times more on its way through memory: n, q and k before and after the convolution (counted
    once each), dO, `attended`, dl, the result.
    """
    x, weights, *_, window, _ = arguments
    channels, heads, tokens = x.shape[1], weights.logit_scale.shape[0], window**2
    size, windows = channels // 2 // heads, x.numel() // (channels * tokens)
    logit = weights.logit_scale.double().exp().max().item() + 16
    roundings = tokens * (3 + windows) + 2 * size + channels + logit * (2 * channels + 9 + size + 3)
    eps = roundings * EPS + (7 * torch.finfo(dtype).eps if dtype != torch.float32 else 0)
    x, weights, *ffn, window, shift = arguments
    return eps / 2 * magnitude_of_terms(x, weights, window, shift, *ffn, grad)


def assert_as_good_as_the_reference(op, arguments):
    grad = torch.randn(arguments[0].shape, device=DEVICE).to(arguments[0].dtype)
    found, reference = (gradients(name, op, arguments, grad) for name in ("triton", "reference"))
    truth = gradients("reference", op, double(arguments), grad)
    for value, plain, true in zip(found, reference, truth, strict=True):
        # Half a unit in the last place, with which the gradient itself is stored. That of logit_scale is one sum for
        # each head, so the reference's error may be 0 by luck.
        more = torch.finfo(value.dtype).eps / 2
        if value.shape[1:] == (1, 1):
            more += (rounding_of_scale(arguments, grad, value.dtype).norm() / true.norm()).item()
        assert_as_good(value, plain, true, more)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_float32_agrees_with_float64(shape):
    assert_as_good_as_the_reference(sk.swda_attention, attention_arguments(shape))


@pytest.mark.parametrize("dtype", triton_tensors.DTYPES[1:], ids=str)
def test_half_types_are_as_good_as_the_reference(dtype):
    assert_as_good_as_the_reference(sk.swda_attention, attention_arguments(ONE_WINDOW, dtype))


@pytest.mark.parametrize("dtype", triton_tensors.DTYPES[:2], ids=str)
def test_a_block(dtype):
    shape = Shape(24, 1, 8, 8, shift=4, window=8, bias=True)  # a level of the small network
    assert_as_good_as_the_reference(sk.swda_block, with_ffn(attention_arguments(shape, dtype), shape))


def test_no_gradient_passes_the_clamp_of_the_scale():
    x, weights, *rest = attention_arguments(Shape(8, 2, 4, 4, window=4))
    weights = weights._replace(logit_scale=torch.tensor([9.0, 2.0], device=DEVICE).view(2, 1, 1))
    grad = torch.randn_like(x)
    of_scale = [gradients(name, sk.swda_attention, (x, weights, *rest), grad)[6] for name in ("triton", "reference")]
    assert of_scale[0][0] == of_scale[1][0] == 0
    assert of_scale[0][1] != 0


def test_bands_of_one_window_and_a_part_of_the_inputs(monkeypatch):
    arguments = attention_arguments(TWO_WINDOWS)
    grad = torch.randn_like(arguments[0])
    whole = gradients("triton", sk.swda_attention, arguments, grad)
    assert all(map(torch.equal, whole, gradients("triton", sk.swda_attention, arguments, grad))), "the same bits twice"
    monkeypatch.setattr(attention_gradients, "BAND_BYTES", 1)
    bands = gradients("triton", sk.swda_attention, arguments, grad)
    truth = gradients("reference", sk.swda_attention, double(arguments), grad)
    if DEVICE == "cpu":  # a GPU's library chooses another way to multiply smaller matrices
        assert torch.equal(whole[0], bands[0])
    for value, plain, true in zip(bands, whole, truth, strict=True):
        assert_as_good(value, plain, true)

    leaf = arguments[1].qkv.clone().requires_grad_()
    x, weights, *rest = arguments
    with sk.use_backend("triton"):
        y = sk.swda_attention(x, weights._replace(qkv=leaf), *rest)
    assert torch.equal(torch.autograd.grad(y, leaf, grad)[0], bands[3])


def test_an_empty_batch_has_gradients_of_zero():
    arguments = attention_arguments(Shape(8, 1, 8, 8, window=8, batch=0))
    for gradient in gradients("triton", sk.swda_attention, arguments, torch.randn_like(arguments[0])):
        assert not gradient.any()


def test_sums_by_offset_are_those_by_index():
    from swintormer_kernels.backends.reference.blocks import relative_position_index

    window, heads = 5, 3
    pairs = torch.randn(heads, window**2, window**2, dtype=torch.float64)
    index = relative_position_index(window, pairs.device).flatten()
    expected = torch.zeros(heads, (2 * window - 1) ** 2, dtype=torch.float64).index_add(1, index, pairs.flatten(1))
    torch.testing.assert_close(attention_gradients.offset_sums(pairs, window), expected)


# ---- memory ----------------------------------------------------------------------------------------------------------


class Allocated(TorchDispatchMode):
    """Sums the bytes of every new tensor that is made inside, whether or not it is still there."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        made = isinstance(out, torch.Tensor) and not any(r.alias_info for r in function._schema.returns)
        self.bytes += out.numel() * out.element_size() if made else 0
        return out


@pytest.mark.parametrize("channels", [48, 384])
@pytest.mark.parametrize("dtype", triton_tensors.DTYPES[:2], ids=str)
def test_what_is_allocated_is_what_is_counted(channels, dtype):
    """The kernels are written down and not run. Forward: C elements a pixel and slots; backward: a band's windows."""
    shape = Shape(channels, channels // 48, 16, 32, shift=8)
    x, weights, window, shift = attention_arguments(shape, dtype)
    S, element = window_setup.sizes_of(x, weights, window, shift), x.element_size()
    packed = window_setup.pack(weights)
    with runtime.recording(), Allocated() as forward:
        attention_forward.attend(x, packed, shift, S)
    slot = 6 * S.area * S.padded * element + 2 * S.area * 4
    programs = min(2 * 2 * S.heads, 2 * attention_forward.processors(x))
    assert forward.bytes == x.numel() * element + programs * slot

    with runtime.recording(), Allocated() as backward:
        band = attention_gradients._Band(x, packed, shift, S, (0, 2))
        rows, buffers = band._rows(x), band._forward()
        of_attended = rows.grad @ packed.proj.view(channels, channels)
        gradients = band._of_qkv(buffers, of_attended)
        _ = gradients.qkv @ packed.qkv.view(3 * channels, channels)
        x.new_empty(2, band._blocks(S.tokens), 2, channels, dtype=torch.float32)  # NormGradient.norm
    assert backward.bytes == 2 * attention_gradients.window_bytes(S, element)


def test_a_larger_image_takes_no_larger_bands():
    S = window_setup.sizes_of(*attention_arguments(Shape(48, 1, 16, 16)))
    for element in (2, 4):
        windows = attention_gradients.band_windows(S, element)
        assert windows * attention_gradients.window_bytes(S, element) <= attention_gradients.BAND_BYTES
        assert windows * 2 * S.heads >= 132, "fewer units than an H100 has processors"


def test_forward_keeps_only_its_inputs():
    x, weights, *rest = attention_arguments(Shape(8, 1, 4, 4, window=4))
    leaf = x.clone().requires_grad_()
    with sk.use_backend("triton"):
        y = sk.swda_attention(leaf, weights, *rest)
    saved = [tensor for tensor in y.grad_fn.saved_tensors if tensor is not None]
    inputs = {tensor.data_ptr() for tensor in leaves_of((leaf, weights))[1]}
    assert {tensor.data_ptr() for tensor in saved} <= inputs
