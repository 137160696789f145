"""ddim_step in Triton against the reference and float64; interpreted where there is no GPU."""

from __future__ import annotations

import pytest
import torch
from torch.utils._pytree import tree_map

import swintormer_kernels as sk
from swintormer_kernels import Prediction
from swintormer_kernels.backends.triton import layout as triton_tensors
from swintormer_kernels.ops.ddim_step import PREDICTIONS
from swintormer_kernels.testing.cases import cases_of

pytest.importorskip("triton")
from swintormer_kernels.backends.triton import ddim_step as backend
from swintormer_kernels.backends.triton import runtime

pytestmark = pytest.mark.usefixtures("one_thread")
DEVICE = torch.device("cpu" if triton_tensors.INTERPRETED else "cuda")
SCHEDULE = {"alpha_bar_t": 0.25, "alpha_bar_s": 0.4}
SMALL = [pytest.param(case, id=case.name) for case in cases_of("ddim_step") if case.make(0)[0][0].numel() < 200_000]


def cast(arguments, dtype):
    return tree_map(lambda t: t.to(DEVICE, dtype) if isinstance(t, torch.Tensor) else t, arguments)


def on(name, arguments, options):
    with sk.use_backend(name):
        return sk.ddim_step(*arguments, **options)


def error(value, truth):
    return ((value.double() - truth).norm() / truth.norm().clamp_min(1e-30)).item()


def assert_as_good(arguments, options, dtype):
    """At most twice the reference's own error, and half a unit in the last place, with which the truth is stored."""
    arguments, options = cast(arguments, dtype), cast(options, dtype)
    out, reference = on("triton", arguments, options), on("reference", arguments, options)
    truth = on("reference", cast(arguments, torch.float64), cast(options, torch.float64))
    assert out.dtype == dtype
    assert out.shape == truth.shape
    assert out.stride() == torch.empty_like(arguments[0]).stride()
    assert not out.isnan().any(), "an element that nobody wrote"
    assert error(out, truth) <= 2 * error(reference, truth) + torch.finfo(dtype).eps / 2


@pytest.mark.parametrize("dtype", triton_tensors.DTYPES, ids=str)
@pytest.mark.parametrize("case", SMALL)
def test_cases(case, dtype):
    assert_as_good(*case.make(1), dtype)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("clip", [None, 0.7])
@pytest.mark.parametrize("eta", [0.0, 0.6])
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_kinds_bounds_and_noise(kind, eta, clip, guided):
    z, pred, noise, second = torch.randn(4, 2, 3, 5, 7)
    prediction = Prediction(kind, second, 2.5) if guided else Prediction(kind)
    options = {**SCHEDULE, "eta": eta, "clip": clip, "noise": noise, "prediction": prediction}
    assert_as_good((z, pred), options, torch.float32)


@pytest.mark.parametrize("alpha_bar_t", [1e-4, 0.9985, 1 - 1e-6])
def test_ends_of_the_schedule(alpha_bar_t):
    z, pred = torch.randn(2, 1, 4, 8, 8)
    assert_as_good((z, pred), {"alpha_bar_t": alpha_bar_t, "alpha_bar_s": 0.999}, torch.float32)


def test_gradients():
    z, pred, noise, second = (t.to(DEVICE).requires_grad_() for t in torch.randn(4, 2, 3, 5, 7))
    found = []
    for name in ("triton", "reference"):
        prediction = Prediction("epsilon", second, 2.0)
        options = {**SCHEDULE, "eta": 0.5, "clip": 0.9, "noise": noise, "prediction": prediction}
        found.append(torch.autograd.grad(on(name, (z, pred), options).square().sum(), (z, pred, noise, second)))
    for value, expected in zip(*found, strict=True):
        torch.testing.assert_close(value, expected)


def test_nan_stays_where_it_is():
    z, pred = torch.randn(2, 3, 50, device=DEVICE)
    z[1, 7] = float("nan")
    out = on("triton", (z, pred), {**SCHEDULE, "clip": 1.0})
    assert torch.equal(out.isnan(), z.isnan())


def test_one_launch_that_copies_only_what_lies_otherwise():
    z, pred = torch.randn(2, 1, 4, 8, 8, device=DEVICE)
    rows = pred.contiguous(memory_format=torch.channels_last)
    for given in (pred, rows):
        with runtime.recording() as launches:
            on("triton", (z, given), SCHEDULE)
        assert [launch.kernel for launch in launches] == [backend.step]
        of_z, of_pred, fresh, second = launches[0].arguments[0]
        assert of_z.data_ptr() == z.data_ptr()
        assert (of_pred.data_ptr() == given.data_ptr()) == (given is pred)
        assert fresh is None
        assert second is None


def test_opcheck_and_compile():
    z, pred, noise = (t.to(DEVICE) for t in torch.randn(3, 1, 2, 3, 5))
    schedule = torch.tensor([0.25, 0.4], dtype=torch.float64)
    leaves = [t.clone().requires_grad_() for t in (z, pred)]
    rest = (schedule, 0.5, 1.0, noise, None, 1.0, "epsilon", "triton")
    torch.library.opcheck(torch.ops.swintormer.ddim_step.default, (*leaves, *rest))
    options = {**SCHEDULE, "eta": 0.5, "noise": noise}
    with sk.use_backend("triton"):
        compiled = torch.compile(sk.ddim_step, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(z, pred, **options), sk.ddim_step(z, pred, **options))
