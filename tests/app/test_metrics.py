"""The paper's measures against scikit-image's, and against what can be worked out by hand."""

import math
import sys

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from swintormer.errors import SwintormerError
from swintormer.evaluation import metrics
from swintormer.evaluation.metrics import mae, psnr, ssim

EPS = np.finfo(np.float64).eps


@pytest.fixture(params=[(300, 20, 3), (263, 9), (7, 7, 1)], ids=str)
def pictures(request):
    """Higher than a strip of rows, so that strips meet inside; (restored, truth) float32."""
    rng = np.random.default_rng(0)
    truth = rng.random(request.param, dtype=np.float32)
    return np.clip(truth + 0.1 * rng.standard_normal(request.param, dtype=np.float32), 0, 1), truth


def ssim_error(truth):
    """Variances are differences of means over 49 values up to 1, and stand over at least C1 C2 = 1e-4 * 9e-4."""
    return 49 * EPS * truth.shape[0] / 9e-8


def test_without_scikit_image_the_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.metrics", None)  # as if it were not installed
    picture = np.zeros((8, 8, 3), np.float32)
    with pytest.raises(SwintormerError, match=r'pip install "swintormer-kernels\[train\]"') as error:
        ssim(picture, picture)
    assert "\n" not in str(error.value)


def test_psnr_is_scikit_images(pictures):
    restored, truth = (p.astype(np.float64) for p in pictures)
    expected = peak_signal_noise_ratio(truth, restored, data_range=1)
    assert psnr(*pictures) == pytest.approx(expected, rel=EPS * truth.size)


def test_ssim_is_scikit_images_over_the_whole_picture(pictures):
    restored, truth = (p.astype(np.float64) for p in pictures)
    channel_axis = 2 if truth.ndim == 3 else None
    expected = structural_similarity(restored, truth, data_range=1, win_size=7, channel_axis=channel_axis)
    assert ssim(*pictures) == pytest.approx(expected, abs=ssim_error(truth))


def test_values_known_by_hand():
    truth = np.zeros((300, 8, 3), np.float32)
    restored = truth + np.float32(0.1)
    single = float(np.finfo(np.float32).eps)
    assert psnr(restored, truth) == pytest.approx(20, rel=single)
    assert mae(restored, truth) == pytest.approx(0.1, rel=single)
    assert mae(truth, restored) == mae(restored, truth)
    assert psnr(truth, truth) == math.inf
    assert mae(truth, truth) == 0
    assert ssim(truth, truth) == pytest.approx(1, abs=EPS * truth.size)


def test_strips_do_not_show(monkeypatch, pictures):
    whole = [measure(*pictures) for measure in (psnr, ssim, mae)]
    monkeypatch.setattr(metrics, "ROWS", 5)
    for measure, expected in zip((psnr, ssim, mae), whole, strict=True):
        bound = ssim_error(pictures[1]) if measure is ssim else EPS * pictures[1].size * expected
        assert measure(*pictures) == pytest.approx(expected, abs=bound)


def test_pictures_that_cannot_be_compared():
    a = np.zeros((8, 8, 3), np.float32)
    for measure in (psnr, ssim, mae):
        with pytest.raises(ValueError, match="same shape"):
            measure(a, a[:7])
        with pytest.raises(ValueError, match="same shape"):
            measure(a[:0], a[:0])
    with pytest.raises(ValueError, match="at least 7 pixels"):
        ssim(a[:6], a[:6])
