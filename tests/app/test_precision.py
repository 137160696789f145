"""In which precision pictures are restored: what is asked for, and what "auto" takes."""

from __future__ import annotations

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from weakref import WeakKeyDictionary

import numpy as np
import pytest
import torch
from cli_files import TINY, photo

from swintormer import Deblurrer, Swintormer, load_checkpoint, read_checkpoint
from swintormer.checkpoint.checkpoint import default_weights
from swintormer.errors import SwintormerError
from swintormer.images.reading import read_image
from swintormer.inference import precision
from swintormer_kernels import use_backend
from swintormer_kernels.precision import emulated_bfloat16


@pytest.fixture
def capable(monkeypatch):
    """A CPU that multiplies bfloat16."""
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: True)
    with emulated_bfloat16():
        yield


@pytest.fixture
def agreements(monkeypatch):
    """The decibels that the next measurements find; what is left over was not measured."""
    values = []
    monkeypatch.setattr(precision, "_known", WeakKeyDictionary())
    monkeypatch.setattr(precision, "agreement", lambda net: values.pop(0))
    return values


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return Swintormer(TINY).eval()


@pytest.fixture(scope="module")
def results(net):
    """An image, and the network's results in float32 and in bfloat16."""
    image = torch.rand(1, 3, 32, 32)
    with torch.inference_mode(), emulated_bfloat16():
        exact = net(image)
        with torch.autocast("cpu", torch.bfloat16):
            return image, exact, net(image)


def restored(net, image, precision):
    return Deblurrer(net, tile=32, precision=precision)(image)


def test_what_is_asked_for_is_what_runs(net, results, capable):
    image, exact, rounded = results
    assert not torch.equal(exact, rounded)
    assert torch.equal(restored(net, image, "float32"), exact)
    assert torch.equal(restored(net, image, "bfloat16"), rounded)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(restored(net, image, "float32"), exact)
        assert torch.equal(restored(net, image, "auto"), rounded)


def test_threads_that_begin_at_once_measure_once(net, capable, agreements, monkeypatch):
    measured, begun = [], threading.Barrier(3)

    def slow(net):
        measured.append(net)
        time.sleep(0.05)  # the others ask meanwhile
        return math.inf

    def begin():
        begun.wait()
        with precision.Chosen("auto", net).scope():
            return torch.is_autocast_enabled("cpu")

    monkeypatch.setattr(precision, "agreement", slow)
    with ThreadPoolExecutor(3) as pool:
        assert [future.result() for future in [pool.submit(begin) for _ in range(3)]] == [True] * 3
    assert measured == [net]


def test_auto_takes_bfloat16_where_the_results_agree_and_measures_once(net, results, capable, agreements):
    image, exact, rounded = results
    agreements += [precision.LEAST_AGREEMENT, precision.LEAST_AGREEMENT - 0.1]
    for _ in range(2):
        assert torch.equal(restored(net, image, "auto"), rounded)
    assert len(agreements) == 1
    with torch.no_grad():
        next(net.parameters()).add_(0)  # other weights, as far as one can see
    assert torch.equal(restored(net, image, "auto"), exact)
    assert agreements == []


def test_auto_is_float32_on_other_cpus_and_for_other_backends_and_dtypes(
    net, results, capable, agreements, monkeypatch
):
    image, exact, _ = results
    with use_backend("reference"):
        plain = restored(net, image, "float32")
        assert torch.equal(restored(net, image, "auto"), plain)
    assert restored(Swintormer(TINY).double(), image.double(), "auto").dtype == torch.float64
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: False)
    assert torch.equal(restored(net, image, "auto"), exact)


def test_the_agreement_is_measured_on_a_photograph(net, results):
    """Both results again, from the part of the photograph that it takes."""
    probe = precision._probe()
    assert probe.shape == (1, 3, precision.PROBE_SIDE, precision.PROBE_SIDE)
    assert 0.1 < probe.std() < 0.5
    with torch.inference_mode(), emulated_bfloat16():
        exact = net(probe)
        with torch.autocast("cpu", torch.bfloat16):
            mse = (net(probe) - exact).square().mean()
        assert precision.agreement(net) == pytest.approx(-10 * mse.log10().item(), abs=1e-3)
        assert precision.agreement(Swintormer(TINY, in_channels=6).eval()) > 0


@pytest.mark.parametrize("name", ["small", "strong", "small-prior"])
def test_the_shipped_weights_agree(name, extension):
    net = read_checkpoint(default_weights(name), prior=False).net.eval()
    with emulated_bfloat16():
        assert precision.agreement(net) > precision.LEAST_AGREEMENT


def test_results_that_are_not_finite_never_agree(net):
    with torch.no_grad():
        net.output[0].weight[0, 0, 0, 0] = math.nan
    assert precision.agreement(net) == -math.inf


def test_a_precision_that_does_not_exist(net):
    with pytest.raises(SwintormerError, match=r"one of auto, float32, bfloat16, found 'half'\."):
        Deblurrer(net, precision="half")


def test_the_command_line_has_the_same_choice(run, weights, capable):
    photo("in.png")
    source, tiny = read_image("in.png").pixels, load_checkpoint(weights)
    for name in ("float32", "bfloat16"):
        run("deblur", "in.png", "-o", f"{name}.png", "--precision", name)
        expected = Deblurrer(tiny, tile=32, precision=name).restore_array(source)
        np.testing.assert_array_equal(read_image(f"{name}.png").pixels, expected)
    result = run("deblur", "in.png", "-o", "out.png", "--precision", "half", code=1)
    assert "one of auto, float32, bfloat16, found 'half'" in result.output
