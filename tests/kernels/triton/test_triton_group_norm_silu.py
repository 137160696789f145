"""group_norm_silu in Triton against the reference and float64, both ways; interpreted where there is no GPU."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import swintormer_kernels as sk
from swintormer_kernels.backends.triton import layout as triton_tensors
from swintormer_kernels.ops import group_norm_silu as module
from swintormer_kernels.records import GroupNormWeights
from swintormer_kernels.testing.denoiser_cases import norm_weights

pytest.importorskip("triton")
from swintormer_kernels.backends.triton import group_norm_silu as backend
from swintormer_kernels.backends.triton import runtime

pytestmark = pytest.mark.usefixtures("one_thread")
DEVICE = torch.device("cpu" if triton_tensors.INTERPRETED else "cuda")
EPS = torch.finfo(torch.float32).eps


class Sample(NamedTuple):
    """(batch, C, height, width), groups, a layout, and which tensors of the record are there."""

    shape: tuple[int, int, int, int]
    groups: int
    layout: str = "channels_last"
    present: str = "weight bias scale shift"

    def make(self, dtype: torch.dtype) -> tuple[Tensor, GroupNormWeights, int]:
        b, c, h, w = self.shape
        x = {
            "channels_last": lambda: torch.randn(b, h, w, c).permute(0, 3, 1, 2),
            "contiguous": lambda: torch.randn(b, c, h, w),
            "sliced": lambda: torch.randn(b, c, h, 2 * w)[..., ::2],
            "expanded": lambda: torch.randn(1, c, h, w).expand(b, -1, -1, -1),
            "turned": lambda: torch.randn(b, c, w, h).mT,
            "channels of more": lambda: torch.randn(b, c + 3, h, w)[:, 2 : c + 2],
            "rows of more": lambda: torch.randn(b, h, w, c + 3).permute(0, 3, 1, 2)[:, 2 : c + 2],
        }[self.layout]()
        norm = norm_weights(b, c, modulated=True)
        kept = (t.to(DEVICE, dtype) if name in self.present else None for name, t in norm._asdict().items())
        return x.to(DEVICE, dtype), GroupNormWeights(*kept), self.groups


SAMPLES = [
    Sample((2, 40, 9, 7), 4),  # groups of 10, padded to 16
    Sample((2, 24, 4, 8), 3, "contiguous", "weight bias"),  # planes of a multiple of 16 pixels
    Sample((3, 14, 5, 7), 7, "rows of more", "weight shift"),
    Sample((2, 6, 3, 7), 1, "channels of more", "weight scale"),
    Sample((1, 5, 6, 5), 5, "turned", ""),
    Sample((2, 12, 1, 6), 3, "sliced"),
    Sample((3, 12, 2, 5), 3, "expanded", "scale"),
    Sample((2, 12, 1, 1), 3),
    Sample((2, 1, 5, 7), 1, "contiguous"),  # dense rows and dense planes at once
]
EACH = pytest.mark.parametrize(
    ("sample", "dtype"),
    [
        pytest.param(sample, dtype, id=f"{sample.shape}, {sample.layout}, {dtype}")
        for dtype in triton_tensors.DTYPES
        for sample in (SAMPLES[:2] if dtype == torch.float16 else SAMPLES)
    ],
)
# The same images through each way of taking the statistics: bounds of one program, and elements of a tile.
WAYS = {"whole": (16384, 65536, 4096), "one program": (1, 65536, 256), "shared out": (1, 1, 256)}


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    for name, value in zip(("WHOLE", "ONE_PROGRAM", "TILE"), WAYS[request.param], strict=True):
        monkeypatch.setattr(backend, name, value)
    return request.param


def widened(norm: GroupNormWeights) -> GroupNormWeights:
    return GroupNormWeights(*(t if t is None else t.detach().double() for t in norm))


def error(value: Tensor, truth: Tensor) -> float:
    return ((value.double() - truth).norm() / truth.norm().clamp_min(EPS)).item()  # one number a group gives 0


def assert_as_good(value: Tensor, reference: Tensor, truth: Tensor) -> None:
    """At most twice the reference's own error, and half a unit in the last place, with which the truth is stored."""
    assert not value.isnan().any(), "an element that nobody wrote"
    assert error(value, truth) <= 2 * error(reference, truth) + torch.finfo(value.dtype).eps / 2


def on(name: str, x: Tensor, norm: GroupNormWeights, groups: int) -> Tensor:
    with sk.use_backend(name):
        return sk.group_norm_silu(x, norm, groups)


def gradients(name: str, x: Tensor, norm: GroupNormWeights, groups: int, grad: Tensor) -> list[Tensor]:
    leaves = [x.detach().requires_grad_(), *(t if t is None else t.detach().requires_grad_() for t in norm)]
    y = on(name, leaves[0], GroupNormWeights(*leaves[1:]), groups)
    return list(torch.autograd.grad(y, [leaf for leaf in leaves if leaf is not None], grad.to(y.dtype)))


# ---- numbers ---------------------------------------------------------------------------------------------------------


@EACH
def test_forward(sample, dtype, way):
    x, norm, groups = sample.make(dtype)
    out = on("triton", x, norm, groups)
    assert out.stride() == torch.empty_like(x).stride()
    assert out.dtype == dtype
    truth = on("reference", x.double(), widened(norm), groups)
    assert_as_good(out, on("reference", x, norm, groups), truth)


@EACH
def test_backward(sample, dtype):
    x, norm, groups = sample.make(dtype)
    grad = torch.randn(x.shape, device=DEVICE).to(dtype)
    found = gradients("triton", x, norm, groups, grad)
    reference = gradients("reference", x, norm, groups, grad)
    truth = gradients("reference", x.double(), widened(norm), groups, grad.double())
    for value, plain, true in zip(found, reference, truth, strict=True):
        assert value.shape == plain.shape
        assert value.dtype == dtype
        assert_as_good(value, plain, true)


def test_backward_in_several_chunks(monkeypatch):
    x, norm, groups = SAMPLES[0].make(torch.float32)
    grad = torch.randn(x.shape, device=DEVICE)
    monkeypatch.setattr(backend, "TILE", 256)
    found = gradients("triton", x, norm, groups, grad)
    again = gradients("triton", x, norm, groups, grad)
    assert all(map(torch.equal, found, again)), "sums have one order"
    reference = gradients("reference", x, norm, groups, grad)
    truth = gradients("reference", x.double(), widened(norm), groups, grad.double())
    for value, plain, true in zip(found, reference, truth, strict=True):
        assert_as_good(value, plain, true)


@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
def test_a_large_mean_does_not_cancel(layout, way):
    """Roundings of the mean to float32 are all that is left: a chunk's, a merged one's and the last, over deviation 1.

    SiLU's slope is below 1.1.
    """
    x, _, _ = Sample((1, 4, 16, 16), 2, layout).make(torch.float32)
    x = x + 1e5
    truth = on("reference", x.double(), GroupNormWeights(), 2)
    assert (on("triton", x, GroupNormWeights(), 2) - truth).abs().max() <= 3 * 1.1 * (EPS / 2 * 1e5)


def test_an_outlier_in_the_first_pixel_does_not_cancel(way):
    """Deviations are taken from that pixel first."""
    x, norm, groups = Sample((1, 8, 9, 9), 2).make(torch.float32)
    x[:, :, 0, 0] = 1e4
    truth = on("reference", x.double(), widened(norm), groups)
    assert_as_good(on("triton", x, norm, groups), on("reference", x, norm, groups), truth)


def test_nan_stays_in_its_group(way):
    x, norm, groups = SAMPLES[0].make(torch.float32)
    x[1, 12, 3, 2] = float("nan")
    spoilt = on("triton", x, norm, groups).isnan().flatten(2)
    assert spoilt[1, 10:20].all()
    assert spoilt.sum() == 10 * 63


def test_far_tails_of_silu():
    bias = torch.tensor([-1e4, -200.0, -88.5, -60.0, 60.0, 200.0, 1e4, 0.0], device=DEVICE)
    x, norm = torch.randn(1, 8, 3, 3, device=DEVICE), GroupNormWeights(bias=bias)
    truth = on("reference", x.double(), widened(norm), 8)
    small = torch.finfo(torch.float32).tiny * bias.abs().max()  # below it relative to the input nothing is left
    assert ((on("triton", x, norm, 8) - truth).abs() <= small + 64 * EPS * truth.abs()).all()
    assert not any(g.isnan().any() for g in gradients("triton", x, norm, 8, torch.ones_like(x)))


def test_the_same_bits_for_any_batch(way):
    x, norm, groups = SAMPLES[0].make(torch.float32)
    alone = norm._replace(scale=norm.scale[1:], shift=norm.shift[1:])
    assert torch.equal(on("triton", x, norm, groups)[1:], on("triton", x[1:], alone, groups))


def test_only_needed_gradients_are_made_and_zero_strides_are_taken():
    x, norm, groups = SAMPLES[0].make(torch.float32)
    shift = norm.shift.clone().requires_grad_()
    on("triton", x, norm._replace(shift=shift), groups).sum().backward()
    expected = gradients("triton", x, norm, groups, torch.ones_like(x))[4]
    assert torch.equal(shift.grad, expected)


@pytest.mark.parametrize("shape", [(0, 12, 4, 4), (2, 12, 0, 4)])
def test_empty(shape):
    x, norm = torch.empty(shape, device=DEVICE), norm_weights(shape[0], 12)
    norm = GroupNormWeights(*(t if t is None else t.to(DEVICE) for t in norm))
    assert on("triton", x, norm, 3).shape == shape
    assert all(g.count_nonzero() == 0 for g in gradients("triton", x, norm, 3, x))


# ---- launches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "layout", "expected"),
    [
        (32, "channels_last", ["whole"]),
        (64, "channels_last", ["group_statistics", "apply"]),
        (96, "contiguous", ["statistics", "merge", "apply"]),
    ],
)
def test_bytes_are_what_the_header_counts(side, layout, expected):
    """x is read once where a group fits, else twice, and y written once; the statistics between them are small."""
    x, norm, groups = Sample((1, 32, side, side), 4, layout).make(torch.bfloat16)
    with runtime.recording() as launches:
        on("triton", x, norm, groups)
    assert [launch.kernel.__name__ for launch in launches] == expected
    reads = sum(any(a is t for a in launch.arguments) for launch in launches for t in [launch.arguments[0]])
    assert reads == len(expected)
    images = [a for launch in launches for a in launch.arguments if isinstance(a, Tensor) and a.dtype == x.dtype]
    assert sum(a.data_ptr() == x.data_ptr() for a in images) == (1 if expected == ["whole"] else 2)
    assert sum(a.data_ptr() != x.data_ptr() for a in images) == 1
    others = [a for launch in launches for a in launch.arguments if isinstance(a, Tensor) and a.dtype != x.dtype]
    assert sum(a.nbytes for a in others) <= 0.2 * x.nbytes


@pytest.mark.parametrize("layout", ["channels_last", "contiguous", "rows of more", "channels of more"])
def test_no_copy_is_made_of_these_layouts(layout):
    x, norm, groups = Sample((2, 12, 5, 7), 3, layout).make(torch.float32)
    with runtime.recording() as launches:
        on("triton", x, norm, groups)
    assert launches[0].arguments[0].data_ptr() == x.data_ptr()


# ---- torch -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(dtype):
    x, norm, groups = Sample((2, 6, 2, 3), 3).make(dtype)
    leaves = [t if t is None else t.requires_grad_() for t in (x, *norm)]
    torch.library.opcheck(module._run.default, (*leaves, groups, 1e-5, "triton"))


def test_compile():
    x, norm, groups = Sample((2, 6, 2, 3), 3).make(torch.float32)
    norm.weight.requires_grad_()
    with sk.use_backend("triton"):
        compiled = torch.compile(lambda x: sk.group_norm_silu(2 * x, norm, groups), fullgraph=True, backend="aot_eager")
        out, expected = compiled(x), sk.group_norm_silu(2 * x, norm, groups)
    assert torch.equal(out, expected)
    found = [torch.autograd.grad(y.square().sum(), norm.weight)[0] for y in (out, expected)]
    assert torch.equal(*found)
