"""The kernels `attention` and `tail`, every instance: beside the reference, beside float64 with the kernels' roundings,
on masked winners, and for races.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from emulator import schedules_of
from ops import assert_forward, error, mapped, on
from torch import Tensor
from triton_samples import with_ffn

import swintormer_kernels as sk
from swintormer_kernels.backends.cuda import device, emulator
from swintormer_kernels.backends.cuda.block_kernels import attend, finish
from swintormer_kernels.backends.cuda.limits import CHANNELS
from swintormer_kernels.backends.reference import blocks as reference
from swintormer_kernels.records import AttentionWeights
from swintormer_kernels.testing.block_cases import Shape, attention_weights, ffn_weights

pytestmark = pytest.mark.usefixtures("one_thread", "empty_is_nan")

HALVES = (torch.bfloat16, torch.float16)
LOG2_E = 1 / torch.log(torch.tensor(2.0, dtype=torch.float64)).item()

SHAPES = {
    "d 12, w 8, C 24, half a block": Shape(24, 1, 8, 16, shift=3, window=8, bias=True),
    "d 12, w 8, C 48, batch 2": Shape(48, 2, 16, 24, shift=4, window=8, batch=2),
    "d 12, w 16, C 24": Shape(24, 1, 32, 16, shift=8, bias=True),
    "d 16, w 8, C 96": Shape(96, 3, 8, 8, window=8, bias=True),
    "d 16, w 16, C 192": Shape(192, 6, 16, 16, shift=15),
    "d 24, w 8, C 48": Shape(48, 1, 8, 40, shift=1, window=8, bias=True),
    "d 24, w 16, C 96": Shape(96, 2, 16, 32, shift=5, bias=True),
    "d 48, w 8, C 96": Shape(96, 1, 24, 8, shift=4, window=8),
    "d 48, w 16, C 96": Shape(96, 1, 16, 32, shift=8, bias=True),
    "d 16, w 8, C 32": Shape(32, 1, 8, 24, shift=2, window=8, bias=True),
    "d 32, w 16, C 64": Shape(64, 1, 16, 32, shift=9, bias=True),
    "d 32, w 8, C 128": Shape(128, 2, 8, 24, shift=3, window=8, bias=True),
    "d 32, w 8, C 256": Shape(256, 4, 8, 8, window=8, bias=True),
    "d 12, w 8, C 192": Shape(192, 8, 8, 8, window=8, bias=True),
    "d 24, w 8, C 384": Shape(384, 8, 8, 16, shift=4, window=8, bias=True),
}


@pytest.fixture
def empty_is_nan():
    """New tensors are full of NaN, so that what no kernel wrote is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def arguments(shape, where, dtype):
    weights = attention_weights(shape.channels, shape.heads, shape.window, shape.bias)
    x = (1.5 * shape.image() + 0.3).contiguous(memory_format=torch.channels_last)
    return mapped(lambda t: t.to(where, dtype), (x, weights, shape.window, shape.shift))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_every_instance_beside_the_reference(where, name, dtype):
    given = arguments(SHAPES[name], where, dtype)
    x, weights, ffn, *rest = with_ffn(given, SHAPES[name])
    ffn = mapped(lambda t: t.to(where), ffn)
    out = assert_forward("cuda", sk.swda_block, (x, weights, ffn, *rest))
    assert out.stride() == x.stride()
    assert_forward("cuda", sk.swda_attention, given)
    assert_forward("cuda", sk.gated_ffn, (x, ffn))


@pytest.mark.parametrize("pixels", [1, 63, 65, 129, 257])
def test_the_ffn_of_blocks_that_are_not_full(where, pixels):
    for channels in (24, 192):
        x, ffn = torch.randn(1, channels, 1, pixels), ffn_weights(channels, 40, True)
        assert_forward("cuda", sk.gated_ffn, mapped(lambda t: t.to(where, torch.bfloat16), (rows(x), ffn)))


def test_an_image_that_starts_between_two_vectors(where):
    x = torch.randn(1 + 24 * 64).to(where, torch.bfloat16)[1:].view(1, 8, 8, 24).permute(0, 3, 1, 2)
    weights = mapped(lambda t: t.to(where, torch.bfloat16), ffn_weights(24, 63))
    assert torch.equal(on("cuda", sk.gated_ffn, (x, weights)), on("cuda", sk.gated_ffn, (x.clone(), weights)))


def test_changed_weights_are_packed_again(where):
    x, weights, *rest = arguments(SHAPES["d 12, w 8, C 24, half a block"], where, torch.bfloat16)
    first = on("cuda", sk.swda_attention, (x, weights, *rest))
    with torch.no_grad():
        weights.proj_bias.add_(1)
        weights.dwconv.mul_(2)
    assert_forward("cuda", sk.swda_attention, (x, weights, *rest))
    assert not torch.equal(first, on("cuda", sk.swda_attention, (x, weights, *rest)))


def rows(x):
    return x.contiguous(memory_format=torch.channels_last)


# ---- float64 with the kernels' roundings -----------------------------------------------------------------------------


def attended_with_roundings(given, dtype: torch.dtype | None) -> Tensor:
    """What `attend` returns, in float64; with roundings to `dtype` where the kernel rounds, or with none."""

    def rounded(t: Tensor) -> Tensor:
        return t if dtype is None else t.to(dtype).double()

    x, w, window, shift = mapped(lambda t: t.detach().double(), given)
    b, c, height, width = x.shape
    heads = w.logit_scale.shape[0]
    x = torch.roll(x, (-shift, -shift), (2, 3))
    mask = reference.shift_mask(height, width, window, shift, x) if shift else 0.0
    n = (x - x.mean(1, keepdim=True)) / torch.sqrt(x.var(1, unbiased=False, keepdim=True) + 1e-5)
    tiles = reference.to_windows(n, window)
    matrix = rounded((w.qkv * w.norm_weight[:, None, None]) if dtype is None else folded(given[1]))
    bias = w.qkv.flatten(1) @ w.norm_bias + (0 if w.qkv_bias is None else w.qkv_bias)
    y = rounded(F.conv2d(tiles, matrix.reshape(3 * c, c, 1, 1), bias))
    u = F.conv2d(y, w.dwconv, w.dwconv_bias, padding=1, groups=3 * c)
    halves = u.flatten(2).unflatten(1, (2, 3, heads, c // 2 // heads)).transpose(-1, -2)  # windows, 2, 3, heads, N, d
    (q, k, v), (qc, kc, vc) = halves.permute(1, 2, 0, 3, 4, 5)
    scale = w.logit_scale.clamp(max=torch.log(torch.tensor(100.0)).item()).exp() * LOG2_E
    logits = rounded(F.normalize(q, dim=-1) * scale) @ rounded(F.normalize(k, dim=-1)).mT / LOG2_E
    table = 16 * torch.sigmoid(w.bias_table[reference.relative_position_index(window, x.device)]).movedim(-1, 0)
    logits = logits + table
    if shift:
        logits = (logits.unflatten(0, (b, -1)) + mask[:, None]).flatten(0, 1)
    e = torch.exp(logits - logits.amax(-1, keepdim=True))
    out = (rounded(e) @ rounded(v)) / (1 + e.sum(-1, keepdim=True))
    norms = qc.norm(dim=-2, keepdim=True).clamp_min(1e-12), kc.norm(dim=-2, keepdim=True).clamp_min(1e-12)
    weights = reference.softmax_one(rounded(qc).mT @ rounded(kc) / (norms[0].mT * norms[1]))
    channel = rounded(vc) @ rounded(weights).mT
    return torch.stack((out, channel), 1).permute(0, 3, 1, 2, 4).flatten(2)


def folded(weights: AttentionWeights) -> Tensor:
    """qkv times the norm's weight, rounded as at packing."""
    matrix = weights.qkv.float().flatten(1) * weights.norm_weight.float()
    return matrix.to(weights.qkv.dtype).double()


def assert_nearer_than_the_roundings(given, dtype):
    """The kernel is as near to float64 with its roundings as those are to float64 without."""
    exact, expected = attended_with_roundings(given, None), attended_with_roundings(given, dtype)
    found = attend(*given).double()
    half = exact.shape[-1] // 2
    for part in (slice(0, half), slice(half, None)):
        roundings = error(expected[..., part], exact[..., part])
        assert error(found[..., part], expected[..., part]) <= roundings + torch.finfo(dtype).eps / 2


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("scale", [10.0, 90.0], ids=["bounded", "online"])
@pytest.mark.parametrize("name", ["d 12, w 8, C 24, half a block", "d 24, w 16, C 96", "d 48, w 8, C 96"])
def test_the_attended_tokens_beside_float64_with_the_same_roundings(where, name, scale, dtype):
    x, weights, *rest = arguments(SHAPES[name], where, dtype)
    weights = weights._replace(logit_scale=torch.full_like(weights.logit_scale, scale).log())
    assert_nearer_than_the_roundings((x, weights, *rest), dtype)


@pytest.mark.parametrize("name", ["d 12, w 8, C 24, half a block", "d 24, w 16, C 96"])
def test_tokens_far_from_zero(where, name):
    """The norm comes behind the product: the mean must leave no more than float32 loses of it."""
    x, weights, *rest = arguments(SHAPES[name], where, torch.float16)
    weights = weights._replace(logit_scale=torch.full_like(weights.logit_scale, 2.3))
    assert_nearer_than_the_roundings((x + 100, weights, *rest), torch.float16)


def masked_winners(where, dtype, window):
    """Attention whose masked pairs come near the others: cosines of -0.55 in a region, 0.55 between, at scale 90."""
    channels, d = 48, 24
    _, w, *_ = arguments(Shape(channels, 1, window, window, window=window), "cpu", torch.float32)
    u = torch.randn(channels)
    u = (u - u.mean()) / u.std(unbiased=False)
    q = torch.randn(d, channels) / channels**0.5
    along, other = q @ u, torch.randn(d)
    other -= along * (other @ along) / (along @ along)
    k = -0.55 * along + 0.835 * other * along.norm() / other.norm()
    w.qkv[:d, :, 0, 0] = q
    w.qkv[d : 2 * d, :, 0, 0] = k[:, None] * u / (u @ u) + 0.02 * torch.randn(d, channels)
    w.dwconv[: 2 * d] = F.pad(torch.ones(1, 1), (1, 1, 1, 1))
    height, width, shift = 2 * window, window, window // 2
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    cut = ((row - shift) % height >= height - shift) ^ ((column - shift) % width >= width - shift)
    x = torch.where(cut, -1.0, 1.0) * u[:, None, None] + 0.05 * torch.randn(channels, height, width)
    w = w._replace(norm_weight=torch.ones(channels), norm_bias=torch.zeros(channels))
    w = w._replace(logit_scale=torch.full((1, 1, 1), 90.0).log())
    return mapped(lambda t: t.to(where, dtype), (rows(x[None]), w, window, shift))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("window", [8, 16])
def test_masked_pairs_that_win(where, window, dtype):
    given = masked_winners(where, dtype, window)
    exact = attended_with_roundings(given, None)
    without = attended_with_roundings((*given[:3], 0), None)
    assert exact.shape == without.shape  # of other tokens
    assert_nearer_than_the_roundings(given, dtype)


# ---- races -----------------------------------------------------------------------------------------------------------


def assert_same_in_all_schedules(monkeypatch, run, schedules):
    found = []
    for schedule in schedules:
        for late in (False, True):
            monkeypatch.setattr(emulator, "options", emulator.Options(schedule, late_copies=late))
            found.append(run())
    assert not found[0].isnan().any()
    assert all(torch.equal(found[0], out) for out in found[1:])


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("window", [8, 16])
@pytest.mark.parametrize("channels", [24, 32, 48, 64, 96])  # of one head: d 12, 16, 24, 32, 48
def test_races_of_the_attention(emulated, monkeypatch, channels, window, dtype):
    emulated("race")
    given = arguments(Shape(channels, 1, window, window, 3, window, bias=True), "cpu", dtype)
    assert_same_in_all_schedules(monkeypatch, lambda: attend(*given), schedules_of(dtype))


def on_one_multiprocessor(monkeypatch):
    """Batches that fill no GPU, but this one: blocks of more pixels are chosen."""
    monkeypatch.setattr(device, "EMULATED", device.EMULATED._replace(multiprocessors=1))


def test_the_size_of_the_tails_blocks(extension):
    """By rounds of all multiprocessors; 99 KB of shared memory are those of consumers' cards."""

    def rows_of(channels, pixels, multiprocessors=132, kilobytes=227):
        return extension.cuda_choose_tail(True, channels, True, pixels, multiprocessors, kilobytes * 1024)[3]

    assert (rows_of(192, 40 * 32 * 32), rows_of(384, 40 * 16 * 16)) == (160, 80)  # 2 rounds, 1 round
    assert (rows_of(192, 32 * 32), rows_of(384, 16 * 16)) == (64, 32)  # most multiprocessors are idle
    assert rows_of(384, 132 * 64) == 64  # 1 round, as with 80
    assert (rows_of(192, 10**6, 128, 99), rows_of(384, 10**6, 128, 99)) == (64, 32)
    assert [rows_of(c, 10**6, 128, 99) for c in (128, 256)] == [128, 32]
    assert [rows_of(c, 1) for c in CHANNELS] == [256, 128, 256, 128, 256, 64, 64, 32, 32]
    assert [rows_of(c, 320, 1) for c in (128, 256)] == [128, 80]
    assert rows_of(384, 10**6, 108, 163) == 64
    assert rows_of(384, 2**31 - 1) in (64, 80)
    with pytest.raises(ValueError, match="no instance"):
        rows_of(384, 64, kilobytes=64)


@pytest.mark.parametrize(("channels", "windows"), [(128, 2), (192, 5), (256, 5), (384, 1), (384, 5)])
def test_the_tail_with_blocks_of_many_pixels(emulated, monkeypatch, channels, windows):
    emulated("plain")
    on_one_multiprocessor(monkeypatch)
    shape = Shape(channels, channels // (64 if channels % 48 else 48), 8, 8 * windows, 3, 8, bias=True)
    x, weights, *rest = arguments(shape, "cpu", torch.bfloat16)
    ffn = mapped(lambda t: t.to(torch.bfloat16), ffn_weights(channels, 150, True))
    assert_forward("cuda", sk.swda_block, (x, weights, ffn, *rest))
    assert_forward("cuda", sk.gated_ffn, (rows(x[..., : 8 * windows - 3]), ffn))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("projects", [True, False], ids=["tail", "ffn"])
@pytest.mark.parametrize(
    ("channels", "windows", "multiprocessors"),
    [
        *((channels, 1, 132) for channels in CHANNELS),
        *((128, 2, 1), (192, 5, 1), (256, 5, 1), (384, 1, 1), (384, 5, 1)),
    ],
)
def test_races_of_the_tail(emulated, monkeypatch, channels, windows, multiprocessors, projects, dtype):
    emulated("race")
    if multiprocessors == 1:
        on_one_multiprocessor(monkeypatch)
    shape = Shape(channels, 1, 8, 8 * windows, 3, 8, bias=True)
    x, weights, *rest = arguments(shape, "cpu", dtype)
    ffn = mapped(lambda t: t.to(dtype), ffn_weights(channels, 130 if channels == 384 else 70))
    tokens = torch.randn(windows, 64, channels).to(dtype)
    attended = (tokens, weights, *rest) if projects else None
    schedules = schedules_of(dtype) if multiprocessors > 1 else ("random",)  # larger blocks of the same code
    assert_same_in_all_schedules(monkeypatch, lambda: finish(x, attended, ffn), schedules)
