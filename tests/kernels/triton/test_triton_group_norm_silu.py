"""What group_norm_silu in Triton has beside the other ops: ways of taking the statistics, tails, means, launches."""

from __future__ import annotations

import pytest
import torch
from ops import EPS, assert_forward, assert_gradients, double
from torch import Tensor
from triton_samples import DEVICE, WAYS, Sample

import swintormer_kernels as sk
from swintormer_kernels.records import GroupNormWeights

pytest.importorskip("triton")
from swintormer_kernels.backends.triton import group_norm_silu as backend
from swintormer_kernels.backends.triton import runtime

pytestmark = pytest.mark.usefixtures("one_thread")
SAMPLE = Sample("group_norm_silu", (2, 40, 9, 7), groups=4)  # groups of 10, padded to 16


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    for name, value in zip(("WHOLE", "ONE_PROGRAM", "TILE"), WAYS[request.param], strict=True):
        monkeypatch.setattr(backend, name, value)
    return request.param


def on(name, *arguments):
    return SAMPLE.on(name, arguments)


def gradients(name, x, norm, groups, grad):
    return SAMPLE.gradients(name, (x, norm, groups), grad)


# ---- numbers ---------------------------------------------------------------------------------------------------------


def test_backward_in_several_chunks(monkeypatch):
    x, norm, groups = SAMPLE.make(torch.float32)
    grad = torch.randn(x.shape, device=DEVICE)
    monkeypatch.setattr(backend, "TILE", 256)
    found = gradients("triton", x, norm, groups, grad)
    again = gradients("triton", x, norm, groups, grad)
    assert all(map(torch.equal, found, again)), "sums have one order"
    assert_gradients("triton", sk.group_norm_silu, (x, norm, groups), grad)


@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
def test_a_large_mean_does_not_cancel(layout, way):
    """Roundings of the mean to float32 are all that is left: a chunk's, a merged one's and the last, over deviation 1.

    SiLU's slope is below 1.1.
    """
    x, _, _ = Sample("group_norm_silu", (1, 4, 16, 16), layout, 2).make(torch.float32)
    x = x + 1e5
    truth = on("reference", x.double(), GroupNormWeights(), 2)
    assert (on("triton", x, GroupNormWeights(), 2) - truth).abs().max() <= 3 * 1.1 * (EPS / 2 * 1e5)


def test_an_outlier_in_the_first_pixel_does_not_cancel(way):
    """Deviations are taken from that pixel first."""
    x, norm, groups = Sample("group_norm_silu", (1, 8, 9, 9), groups=2).make(torch.float32)
    x[:, :, 0, 0] = 1e4
    assert_forward("triton", sk.group_norm_silu, (x, norm, groups))


def test_nan_stays_in_its_group(way):
    x, norm, groups = SAMPLE.make(torch.float32)
    x[1, 12, 3, 2] = float("nan")
    spoilt = on("triton", x, norm, groups).isnan().flatten(2)
    assert spoilt[1, 10:20].all()
    assert spoilt.sum() == 10 * 63


def test_far_tails_of_silu():
    bias = torch.tensor([-1e4, -200.0, -88.5, -60.0, 60.0, 200.0, 1e4, 0.0], device=DEVICE)
    x, norm = torch.randn(1, 8, 3, 3, device=DEVICE), GroupNormWeights(bias=bias)
    truth = on("reference", x.double(), double(norm), 8)
    small = torch.finfo(torch.float32).tiny * bias.abs().max()  # below it relative to the input nothing is left
    assert ((on("triton", x, norm, 8) - truth).abs() <= small + 64 * EPS * truth.abs()).all()
    assert not any(g.isnan().any() for g in gradients("triton", x, norm, 8, torch.ones_like(x)))


def test_the_same_bits_for_any_batch(way):
    x, norm, groups = SAMPLE.make(torch.float32)
    alone = norm._replace(scale=norm.scale[1:], shift=norm.shift[1:])
    assert torch.equal(on("triton", x, norm, groups)[1:], on("triton", x[1:], alone, groups))


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
    x, norm, groups = Sample("group_norm_silu", (1, 32, side, side), layout, 4).make(torch.bfloat16)
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
    x, norm, groups = Sample("group_norm_silu", (2, 12, 5, 7), layout, 3).make(torch.float32)
    with runtime.recording() as launches:
        on("triton", x, norm, groups)
    assert launches[0].arguments[0].data_ptr() == x.data_ptr()
