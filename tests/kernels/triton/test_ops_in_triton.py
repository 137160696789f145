"""What holds for gated_ffn and the denoiser's ops in Triton alike: against float64 both ways, and torch's view."""

from __future__ import annotations

import pytest
import torch
from ops import MODULES, assert_forward, assert_gradients, leaves_of, mapped, public
from torch.utils.flop_counter import FlopCounterMode
from triton_samples import DEVICE, WAYS, Sample

import swintormer_kernels as sk
from swintormer_kernels.backends.triton import layout as triton_tensors

pytest.importorskip("triton")
from swintormer_kernels.backends.triton import group_norm_silu as norm_backend

pytestmark = pytest.mark.usefixtures("one_thread")


def ffn(shape, layout="channels_last", bias=False):
    return Sample("gated_ffn", shape, layout, parts="bias" if bias else "")


def norm(shape, groups, layout="channels_last", parts="weight bias scale shift"):
    return Sample("group_norm_silu", shape, layout, groups, parts)


def conv(shape, outputs, groups, layout="channels_last", parts="weight bias scale shift", block=64):
    return Sample("norm_silu_conv3x3", shape, layout, groups, parts, outputs, block)


SAMPLES = {
    "gated_ffn": [
        ffn((3, 10, 4, 5), "expanded"),
        ffn((1, 2, 1, 1), bias=True),
        ffn((2, 48, 5, 9)),  # hidden 127, three pieces, blocks that are not full
        ffn((2, 96, 3, 11), "contiguous", bias=True),  # hidden 255, a block for each image
        ffn((1, 384, 2, 3)),  # hidden 1021; float32 reads its channels in chunks
        ffn((2, 100, 5, 7), "contiguous", bias=True),  # hidden 266, one piece padded from 100 to 128, in chunks as well
        ffn((1, 24, 7, 6), "turned", bias=True),  # hidden 63, one piece padded from 24 to 32
        ffn((1, 192, 1, 3), "sliced"),  # hidden 510
    ],
    "group_norm_silu": [
        norm((2, 40, 9, 7), 4),  # groups of 10, padded to 16
        norm((2, 24, 4, 8), 3, "contiguous", "weight bias"),  # planes of a multiple of 16 pixels
        norm((3, 14, 5, 7), 7, "rows of more", "weight shift"),
        norm((2, 6, 3, 7), 1, "channels of more", "weight scale"),
        norm((1, 5, 6, 5), 5, "turned", ""),
        norm((2, 12, 1, 6), 3, "sliced"),
        norm((3, 12, 2, 5), 3, "expanded", "scale"),
        norm((2, 12, 1, 1), 3),
        norm((2, 1, 5, 7), 1, "contiguous"),  # dense rows and dense planes at once
    ],
    "norm_silu_conv3x3": [
        conv((2, 10, 5, 8), 7, 2, block=16),  # runs of whole image rows, the last one shorter
        conv((2, 20, 7, 5), 36, 4, block=16),  # a margin, several chunks of channels and blocks of outputs
        conv((1, 16, 3, 70), 16, 4, block=16),  # image rows longer than a run
        conv((2, 8, 4, 3), 5, 2, "rows of more"),
        conv((1, 6, 3, 6), 16, 3, "contiguous", ""),
        conv((2, 6, 3, 4), 16, 3, "expanded"),
        conv((1, 6, 1, 9), 3, 2, "sliced"),
        conv((2, 4, 1, 1), 3, 2),
    ],
}
if not triton_tensors.INTERPRETED:  # tuned blocks are larger than the samples above
    larger = [ffn((2, 48, 37, 41)), ffn((2, 96, 19, 23), "contiguous", bias=True), ffn((1, 384, 30, 31))]
    SAMPLES["gated_ffn"] += larger
# float16 takes the way of bfloat16 in the kernels and an easier one in the interpreter: on two samples.
EACH = pytest.mark.parametrize(
    ("sample", "dtype"),
    [
        pytest.param(sample, dtype, id=f"{sample.op}, {sample.shape}, {sample.layout}, {dtype}")
        for samples in SAMPLES.values()
        for dtype in triton_tensors.DTYPES
        for sample in (samples[:2] if dtype == torch.float16 else samples)
    ],
)
TINY = [
    ffn((1, 6, 2, 3), "contiguous", bias=True),
    norm((2, 6, 2, 3), 3),
    conv((1, 4, 2, 3), 3, 2),
]
EVERY = pytest.mark.parametrize("sample", TINY, ids=lambda sample: sample.op)


@pytest.fixture(autouse=True)
def small_blocks(request, fixed_blocks):
    """Interpreted, so few pixels that a sample has several blocks, full and partial ones."""
    sample = getattr(request.node, "callspec", None) and request.node.callspec.params.get("sample")
    rest = {"num_warps": 4, "num_stages": 1}
    fixed_blocks("norm_silu_conv3x3", {"BLOCK_P": sample.block if sample else 64, "BLOCK_N": 32, "BLOCK_C": 16, **rest})
    if triton_tensors.INTERPRETED:
        fixed_blocks("gated_ffn", {"BLOCK_P": 32, "BLOCK_H": 64, **rest})
        fixed_blocks("gated_ffn_backward", {"BLOCK_P": 32, "BLOCK_H": 64, **rest})
        fixed_blocks("gated_ffn_weights", {"BLOCK_P": 16, "BLOCK_H": 64, **rest})


@EACH
def test_forward(sample, dtype, monkeypatch):
    arguments = sample.make(dtype)
    for way in WAYS.values() if sample.op == "group_norm_silu" else [()]:
        for name, value in zip(("WHOLE", "ONE_PROGRAM", "TILE"), way, strict=False):
            monkeypatch.setattr(norm_backend, name, value)
        out = assert_forward("triton", public(sample.op), arguments)
        if sample.op == "norm_silu_conv3x3":
            assert out.is_contiguous(memory_format=torch.channels_last)
        else:
            assert out.stride() == torch.empty_like(arguments[0]).stride()


@EACH
def test_backward(sample, dtype):
    arguments = sample.make(dtype)
    grad = torch.randn(sample.on("reference", arguments).shape, device=DEVICE).to(dtype)
    assert_gradients("triton", public(sample.op), arguments, grad)


@pytest.mark.parametrize("sample", [samples[0] for samples in SAMPLES.values()], ids=lambda sample: sample.op)
def test_only_needed_gradients_are_made_and_the_same_bits_twice(sample):
    arguments = sample.make(torch.float32)
    grad = torch.ones((), device=DEVICE).expand(sample.on("reference", arguments).shape)  # what sum().backward() sends
    everything = sample.gradients("triton", arguments, torch.ones_like(grad))
    assert all(map(torch.equal, everything, sample.gradients("triton", arguments, grad)))
    for number, expected in enumerate(everything):
        leaves, tensors = leaves_of(arguments)
        for other in tensors[:number] + tensors[number + 1 :]:
            other.requires_grad_(False)
        with sk.use_backend("triton"):
            (found,) = torch.autograd.grad(public(sample.op)(*leaves), tensors[number], grad)
        assert torch.equal(found, expected)


@pytest.mark.parametrize("sides", [(0, 4, 4), (2, 0, 4)])
@EVERY
def test_empty(sample, sides):
    batch, height, width = sides
    sample = sample._replace(shape=(batch, 12, height, width), groups=3)
    arguments = sample.make(torch.float32)
    out = sample.on("triton", arguments)
    assert out.shape == (batch, sample.outputs or 12, height, width)
    assert all(g.count_nonzero() == 0 for g in sample.gradients("triton", arguments, out))


# ---- torch -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", triton_tensors.DTYPES, ids=str)
@EVERY
def test_opcheck(sample, dtype):
    leaves, _ = leaves_of(sample.make(dtype))
    signature = MODULES[sample.op]._SIGNATURE
    numbers = (1e-5,) * len(signature.floats)
    torch.library.opcheck(MODULES[sample.op]._run.default, (*signature.flat(*leaves, *numbers), "triton"))


@EVERY
def test_compile(sample):
    torch._dynamo.reset()
    (x, *rest), tensors = leaves_of(sample.make(torch.float32))
    with sk.use_backend("triton"):
        function = lambda x: public(sample.op)(2 * x, *rest).square()  # noqa: E731
        out, expected = torch.compile(function, fullgraph=True, backend="aot_eager")(x), function(x)
        assert torch.equal(out, expected)
        assert all(map(torch.equal, *(torch.autograd.grad(y.sum(), tensors) for y in (out, expected))))


@EVERY
def test_flops_are_the_formulas(sample):
    arguments = sample.make(torch.float32)
    with FlopCounterMode(display=False) as counter:
        sample.on("triton", arguments)
    pixels, c = arguments[0].numel() // arguments[0].shape[1], arguments[0].shape[1]
    products = {"gated_ffn": 3 * c * int(c * 2.66), "norm_silu_conv3x3": 9 * c * sample.outputs}
    macs = MODULES[sample.op].cost(*arguments).macs
    assert counter.get_total_flops() == 2 * macs
    assert macs == pixels * products.get(sample.op, macs // pixels)


def test_batches_have_the_bits_of_their_images():
    for samples in SAMPLES.values():
        arguments = samples[-1]._replace(shape=(2, 12, 3, 5), groups=3).make(torch.float32)
        alone = mapped(lambda t: t[1:] if t.shape[0] == 2 and t.ndim in (2, 4) else t, arguments)
        assert torch.equal(samples[-1].on("triton", arguments)[1:], samples[-1].on("triton", alone))
