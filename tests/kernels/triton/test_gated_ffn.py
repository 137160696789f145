"""What gated_ffn in Triton has beside the other ops: bands, padded weights, the released network's part of it."""

from __future__ import annotations

import pytest
import torch
from ops import assert_as_good, double, error
from safetensors.torch import load_file
from triton_samples import DEVICE, Sample

import swintormer_kernels as sk
from swintormer_kernels import packed
from swintormer_kernels.backends.triton import layout as triton_tensors
from swintormer_kernels.records import FFNWeights
from swintormer_kernels.testing.block_cases import ffn_weights

pytest.importorskip("triton")
from swintormer_kernels.backends.triton import gated_ffn as backend
from swintormer_kernels.backends.triton import runtime

pytestmark = pytest.mark.usefixtures("one_thread")
SAMPLE = Sample("gated_ffn", (2, 48, 5, 9), parts="")  # hidden 127, three pieces, blocks that are not full


@pytest.fixture(autouse=True)
def small_blocks(fixed_blocks):
    """Interpreted, blocks of 32 pixels: the sample then has several, and full and partial ones."""
    if triton_tensors.INTERPRETED:
        blocks = {"BLOCK_P": 32, "BLOCK_H": 64, "num_warps": 4, "num_stages": 1}
        fixed_blocks("gated_ffn", blocks)
        fixed_blocks("gated_ffn_backward", blocks)
        fixed_blocks("gated_ffn_weights", {**blocks, "BLOCK_P": 16})


def on(name, x, weights):
    return SAMPLE.on(name, (x, weights))


def gradients(name, x, weights, grad):
    return SAMPLE.gradients(name, (x, weights), grad)


def test_gradients_in_several_bands(monkeypatch):
    x, weights = SAMPLE.make(torch.float32)
    grad = torch.randn(x.shape, device=DEVICE)
    whole = gradients("triton", x, weights, grad)
    monkeypatch.setattr(backend, "BAND_BYTES", 1)  # a band for each block of pixels
    bands = gradients("triton", x, weights, grad)
    truth = gradients("reference", *double((x, weights)), grad.double())
    assert torch.equal(whole[0], bands[0])
    for value, plain, true in zip(bands[1:], whole[1:], truth[1:], strict=True):
        assert_as_good(value, plain, true)


@pytest.mark.parametrize("name", ["block_d16_h1_w8_s0_b2_16x24", "block_d48_h1_w16_s0_b1_32x48"])
def test_golden_blocks_feed_forward_part(name, oracle):
    """out.y = z + ffn(norm2(z)) of the released network, with z = y - that branch; a strip of the image."""
    golden = {key: value.to(DEVICE) for key, value in load_file(oracle / f"{name}.safetensors").items()}
    names = ("norm2.body.weight", "norm2.body.bias", "ffn.project_in.weight", "ffn.project_out.weight")
    weights = FFNWeights(*(golden[f"param.{n}"] for n in names))
    z = (golden["in.x"] + golden["out.attention_of_norm1"])[:, :, :2]
    truth = on("reference", *double((z, weights)))
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
    x, weights = SAMPLE.make(torch.float32)
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
    x, weights = SAMPLE.make(torch.float32)
    before = on("triton", x, weights)
    made = []
    monkeypatch.setattr(backend.F, "pad", lambda *a, pad=backend.F.pad: made.append(1) or pad(*a))
    leaves = FFNWeights(*(t if t is None else t.requires_grad_() for t in weights))
    with sk.use_backend("triton"):
        sk.gated_ffn(x, leaves).sum().backward()
    assert not made, "the backward of parameters takes what the forward packed"
    with torch.no_grad():
        weights.project_out.add_(1)
    assert not torch.equal(on("triton", x, weights), before)
    assert made
    assert all(len(packed._kept.get(leaf, {})) <= 2 for leaf in weights if leaf is not None)


def test_bytes_are_what_the_header_counts():
    """Forward: x read and y written, nothing else allocated. Backward: a band's size as counted, and no more bands."""
    x, weights = SAMPLE.make(torch.bfloat16)
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
    x, weights = Sample("gated_ffn", (1, 386, 1, 1), parts="").make(torch.float32)
    assert "384 at most, found 386" in sk.explain(sk.gated_ffn, x, weights).reasons["triton"]
    with pytest.raises(sk.BackendError, match="384 at most"):
        on("triton", x, weights)
