"""gated_ffn in Triton against the reference and float64, forward and backward; interpreted where there is no GPU."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import swintormer_kernels as sk
from swintormer_kernels import packed
from swintormer_kernels.backends.triton import layout as triton_tensors
from swintormer_kernels.ops import gated_ffn as module
from swintormer_kernels.records import FFNWeights
from swintormer_kernels.testing.block_cases import ffn_weights

pytest.importorskip("triton")
from swintormer_kernels.backends.triton import gated_ffn as backend
from swintormer_kernels.backends.triton import runtime

pytestmark = pytest.mark.usefixtures("one_thread")
DEVICE = torch.device("cpu" if triton_tensors.INTERPRETED else "cuda")


class Sample(NamedTuple):
    """(batch, C, height, width), a layout, and whether the projections have biases."""

    shape: tuple[int, int, int, int]
    layout: str = "channels_last"
    bias: bool = False

    def make(self, dtype: torch.dtype) -> tuple[Tensor, FFNWeights]:
        b, c, h, w = self.shape
        x = {
            "channels_last": lambda: torch.randn(b, h, w, c).permute(0, 3, 1, 2),
            "contiguous": lambda: torch.randn(b, c, h, w),
            "sliced": lambda: torch.randn(b, c, h, 2 * w)[..., ::2],
            "expanded": lambda: torch.randn(1, c, h, w).expand(b, -1, -1, -1),
            "turned": lambda: torch.randn(b, c, w, h).mT,
        }[self.layout]()
        weights = ffn_weights(c, int(c * 2.66), self.bias)
        return x.to(DEVICE, dtype), FFNWeights(*(t if t is None else t.to(DEVICE, dtype) for t in weights))


SAMPLES = [
    Sample((2, 48, 5, 9)),  # hidden 127, three pieces, blocks that are not full
    Sample((2, 96, 3, 11), "contiguous", bias=True),  # hidden 255, a block for each image
    Sample((1, 384, 2, 3)),  # hidden 1021
    Sample((1, 24, 7, 6), "turned", bias=True),  # hidden 63, one piece padded from 24 to 32
    Sample((1, 192, 1, 3), "sliced"),  # hidden 510
    Sample((3, 10, 4, 5), "expanded"),
    Sample((1, 2, 1, 1), bias=True),
]
DTYPES = pytest.mark.parametrize("dtype", triton_tensors.DTYPES, ids=str)
if not triton_tensors.INTERPRETED:  # tuned blocks are larger than the samples above
    SAMPLES[:0] = [Sample((2, 48, 37, 41)), Sample((2, 96, 19, 23), "contiguous", bias=True), Sample((1, 384, 30, 31))]


@pytest.fixture(autouse=True)
def small_blocks(fixed_blocks):
    """Interpreted, blocks of 32 pixels: the samples then have several, and full and partial ones."""
    if triton_tensors.INTERPRETED:
        blocks = {"BLOCK_P": 32, "BLOCK_H": 64, "num_warps": 4, "num_stages": 1}
        fixed_blocks("gated_ffn", blocks)
        fixed_blocks("gated_ffn_backward", blocks)
        fixed_blocks("gated_ffn_weights", {**blocks, "BLOCK_P": 16})


# float16 takes the way of bfloat16 in the kernels and an easier one in the interpreter: on two samples.
EACH = pytest.mark.parametrize(
    ("sample", "dtype"),
    [
        pytest.param(sample, dtype, id=f"{sample.shape}, {sample.layout}, {dtype}")
        for dtype in triton_tensors.DTYPES
        for sample in (SAMPLES[-2:] if dtype == torch.float16 else SAMPLES)
    ],
)


def widened(weights: FFNWeights) -> FFNWeights:
    return FFNWeights(*(t if t is None else t.detach().double() for t in weights))


def error(value: Tensor, truth: Tensor) -> float:
    return ((value.double() - truth).norm() / truth.norm()).item()


def assert_as_good(value: Tensor, reference: Tensor, truth: Tensor) -> None:
    """At most twice the reference's own error, and half a unit in the last place, with which the truth is stored."""
    assert not value.isnan().any(), "an element that nobody wrote"
    assert error(value, truth) <= 2 * error(reference, truth) + torch.finfo(value.dtype).eps / 2


def on(name: str, x: Tensor, weights: FFNWeights) -> Tensor:
    with sk.use_backend(name):
        return sk.gated_ffn(x, weights)


def gradients(name: str, x: Tensor, weights: FFNWeights, grad: Tensor) -> list[Tensor]:
    leaves = [x.detach().requires_grad_(), *(t if t is None else t.detach().requires_grad_() for t in weights)]
    y = on(name, leaves[0], FFNWeights(*leaves[1:]))
    return list(torch.autograd.grad(y, [leaf for leaf in leaves if leaf is not None], grad.to(y.dtype)))


# ---- numbers ---------------------------------------------------------------------------------------------------------


@EACH
def test_forward(sample, dtype):
    x, weights = sample.make(dtype)
    out = on("triton", x, weights)
    assert out.stride() == torch.empty_like(x).stride()
    assert out.dtype == dtype
    assert_as_good(out, on("reference", x, weights), on("reference", x.double(), widened(weights)))


@EACH
def test_backward(sample, dtype):
    x, weights = sample.make(dtype)
    grad = torch.randn(x.shape, device=DEVICE).to(dtype)
    found = gradients("triton", x, weights, grad)
    reference = gradients("reference", x, weights, grad)
    truth = gradients("reference", x.double(), widened(weights), grad.double())
    for value, plain, true in zip(found, reference, truth, strict=True):
        assert value.shape == plain.shape
        assert value.dtype == dtype
        assert_as_good(value, plain, true)


def test_gradients_in_several_bands_and_of_a_part_of_the_inputs(monkeypatch):
    x, weights = SAMPLES[0].make(torch.float32)
    grad = torch.randn(x.shape, device=DEVICE)
    whole = gradients("triton", x, weights, grad)
    monkeypatch.setattr(backend, "BAND_BYTES", 1)  # a band for each block of pixels
    bands = gradients("triton", x, weights, grad)
    truth = gradients("reference", x.double(), widened(weights), grad.double())
    assert torch.equal(whole[0], bands[0])
    for value, plain, true in zip(bands[1:], whole[1:], truth[1:], strict=True):
        assert_as_good(value, plain, true)

    leaf, only = x.clone().requires_grad_(), weights._replace(project_out=weights.project_out.clone().requires_grad_())
    assert torch.equal(torch.autograd.grad(on("triton", leaf, weights), leaf, grad)[0], whole[0])
    assert torch.equal(torch.autograd.grad(on("triton", x, only), only.project_out, grad)[0], bands[4])


def test_the_same_bits_twice_and_for_any_batch():
    x, weights = SAMPLES[0].make(torch.float32)
    grad = torch.randn(x.shape, device=DEVICE)
    first, second = (gradients("triton", x, weights, grad) for _ in range(2))
    assert all(map(torch.equal, first, second))
    assert torch.equal(on("triton", x, weights)[1:], on("triton", x[1:], weights))


def test_a_gradient_of_zero_strides():
    """What `sum().backward()` sends."""
    x, weights = SAMPLES[1].make(torch.float32)
    one = torch.ones((), device=DEVICE)
    expanded = gradients("triton", x, weights, one.expand(x.shape))
    assert all(map(torch.equal, expanded, gradients("triton", x, weights, torch.ones_like(x))))


@pytest.mark.parametrize("shape", [(0, 48, 4, 4), (2, 48, 0, 4)])
def test_empty(shape):
    _, weights = SAMPLES[0].make(torch.float32)
    x = torch.empty(shape, device=DEVICE)
    assert on("triton", x, weights).shape == shape
    assert all(g.count_nonzero() == 0 for g in gradients("triton", x, weights, x))


@pytest.mark.parametrize("name", ["block_d16_h1_w8_s0_b2_16x24", "block_d48_h1_w16_s0_b1_32x48"])
def test_golden_blocks_feed_forward_part(name, oracle):
    """out.y = z + ffn(norm2(z)) of the released network, with z = y - that branch; a strip of the image."""
    golden = {key: value.to(DEVICE) for key, value in load_file(oracle / f"{name}.safetensors").items()}
    names = ("norm2.body.weight", "norm2.body.bias", "ffn.project_in.weight", "ffn.project_out.weight")
    weights = FFNWeights(*(golden[f"param.{n}"] for n in names))
    z = (golden["in.x"] + golden["out.attention_of_norm1"])[:, :, :2]
    truth = on("reference", z.double(), widened(weights))
    stored = 4 * torch.finfo(torch.float32).eps  # two rounded tensors were added to make z
    assert error(truth, golden["out.y"][:, :, :2].double()) <= stored
    assert_as_good(on("triton", z, weights), on("reference", z, weights), truth)


def test_layouts_that_the_kernels_take():
    image = torch.empty(2, 3, 4, 5)
    assert triton_tensors.dense_layout(image) is image
    assert triton_tensors.dense_layout(image[..., ::2]).is_contiguous()
    rows = image.to(memory_format=torch.channels_last)
    assert triton_tensors.dense_layout(rows) is rows
    huge = torch.empty(1, 2, 2**15, 2**15, device="meta")
    assert triton_tensors.is_rows(triton_tensors.dense_layout(huge)), "offsets in NCHW would not fit 32 bits"


def test_nan_stays_in_its_pixel():
    x, weights = SAMPLES[0].make(torch.float32)
    x[1, 3, 2, 1] = float("nan")
    spoilt = on("triton", x, weights).isnan()
    assert spoilt[1, :, 2, 1].all()
    assert spoilt.sum() == x.shape[1]


# ---- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channels", "pieces", "piece", "hidden"),
    [(48, 3, 16, 128), (96, 3, 32, 256), (192, 3, 64, 512), (384, 3, 128, 1024), (24, 1, 32, 64), (320, 3, 128, 896)],
)
def test_what_is_padded(channels, pieces, piece, hidden):
    sizes = backend.sizes_of(ffn_weights(channels, int(channels * 2.66)))
    assert sizes == {"C": channels, "HIDDEN": hidden, "PIECES": pieces, "PIECE": piece}


def test_a_change_of_a_parameter_is_seen_and_the_packed_copy_serves_again(monkeypatch):
    x, weights = SAMPLES[0].make(torch.float32)
    before = on("triton", x, weights)
    made = []
    monkeypatch.setattr(backend.F, "pad", lambda *a, pad=backend.F.pad: made.append(1) or pad(*a))
    leaves = FFNWeights(*(t if t is None else t.requires_grad_() for t in weights))
    on("triton", x, leaves).sum().backward()
    assert not made, "the backward of parameters takes what the forward packed"
    with torch.no_grad():
        weights.project_out.add_(1)
    assert not torch.equal(on("triton", x, weights), before)
    assert made
    assert all(len(copies) <= 2 for copies in packed._kept.values())


# ---- torch -----------------------------------------------------------------------------------------------------------


@DTYPES
def test_opcheck(dtype):
    x, weights = Sample((1, 6, 2, 3), "contiguous", bias=True).make(dtype)
    leaves = [t if t is None else t.requires_grad_() for t in (x, *weights)]
    torch.library.opcheck(module._run.default, (*leaves, "triton"))


def test_compile():
    x, weights = Sample((1, 16, 2, 5)).make(torch.float32)
    weights = FFNWeights(*(t if t is None else t.requires_grad_() for t in weights))
    with sk.use_backend("triton"):
        compiled = torch.compile(lambda x: sk.gated_ffn(2 * x, weights).square(), fullgraph=True, backend="aot_eager")
        out, expected = compiled(x), sk.gated_ffn(2 * x, weights).square()
        assert torch.equal(out, expected)
        found = torch.autograd.grad(out.sum(), weights.project_in)
        assert torch.equal(found[0], torch.autograd.grad(expected.sum(), weights.project_in)[0])


def test_flops_are_the_formulas():
    x, weights = SAMPLES[0].make(torch.float32)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), runtime.recording():
        on("triton", x, weights)
    assert counter.get_total_flops() == 2 * module.cost(x, weights).macs == 6 * x.numel() * 127


def test_bytes_are_what_the_header_counts():
    """Forward: x read and y written, nothing else allocated. Backward: a band's size as counted, and no more bands."""
    x, weights = SAMPLES[0].make(torch.bfloat16)
    with runtime.recording() as launches:
        on("triton", x, weights)
    assert [launch.kernel.__name__ for launch in launches] == ["forward"]
    image, out = launches[0].arguments[:2]
    assert image.data_ptr() == x.data_ptr()
    assert out.numel() * out.element_size() == 2 * x.numel()
    with runtime.recording() as launches:
        gradients("triton", x, weights, x)
    _, backward, products = launches
    band, rows = backward.arguments[4], products.arguments[2]
    assert band is products.arguments[0]
    pixels = x.numel() // 48
    assert rows == -(-pixels // backward.constants["BLOCK_P"]) * backward.constants["BLOCK_P"]
    assert band.hidden.nbytes + band.sides.nbytes == rows * 2 * (3 * 128 + 2 * 48)


def test_more_channels_than_registers_hold_go_elsewhere():
    x, weights = Sample((1, 386, 1, 1)).make(torch.float32)
    assert "384 at most, found 386" in sk.explain(sk.gated_ffn, x, weights).reasons["triton"]
    with pytest.raises(sk.BackendError, match="384 at most"):
        on("triton", x, weights)
