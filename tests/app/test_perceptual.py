"""The perceptual distance: its formula in the open on random weights, and on the public weights where they are."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from swintormer.errors import SwintormerError
from swintormer.evaluation import lpips as measure
from swintormer.training import perceptual
from swintormer.training.perceptual import SCALE, SHIFT, SMALLEST, Blur, PerceptualDistance

pytestmark = pytest.mark.usefixtures("one_thread")
EPSILON = torch.finfo().eps
# Where the weights files have their convolutions, between blurs, pools and ReLUs: (slice, index within the stack).
FILED = {
    "alex": [(1, 0), (2, 5), (3, 9), (4, 11), (5, 13)],
    "vgg": [
        (1, 0),
        (1, 2),
        (2, 6),
        (2, 8),
        (3, 12),
        (3, 14),
        (3, 16),
        (4, 20),
        (4, 22),
        (4, 24),
        (5, 28),
        (5, 30),
        (5, 32),
    ],
}


@pytest.fixture(params=["alex", "vgg"])
def stack(request) -> str:
    return request.param


def filed(distance: PerceptualDistance, stack: str) -> dict[str, torch.Tensor]:
    """Its weights under the names of the public files, with what those hold besides."""
    state = {"scaling_layer.shift": torch.tensor(SHIFT), "net.slice2.4.filt": torch.ones(64, 1, 3, 3)}
    for part, index in FILED[stack]:
        for leaf in ("weight", "bias"):
            state[f"net.slice{part}.{index}.{leaf}"] = getattr(distance.layers[index], leaf).data
    return state | {f"lin{i}.model.1.weight": head.data[None] for i, head in enumerate(distance.heads)}


def test_blur_is_the_binomial_one_on_every_second_sample() -> None:
    x = torch.rand(2, 3, 9, 6)
    kernel = torch.tensor([1.0, 2, 1]).outer(torch.tensor([1.0, 2, 1])) / 16
    padded = F.pad(x, (2, 2, 2, 2), mode="reflect")
    expected = torch.zeros(2, 3, 6, 4)
    for y in range(6):
        for z in range(4):
            expected[:, :, y, z] = (padded[:, :, 2 * y : 2 * y + 3, 2 * z : 2 * z + 3] * kernel).sum((2, 3))
    found = Blur()(x)
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= 9 * EPSILON


def test_distance_is_the_formula(stack: str) -> None:
    distance = PerceptualDistance(stack)
    a, b = torch.rand(2, 2, 3, 32, 32)
    convolutions = [i for i, layer in enumerate(distance.layers) if isinstance(layer, nn.Conv2d)]
    assert convolutions == [index for _, index in FILED[stack]]
    expected = torch.zeros(2)
    x, y = (((2 * t - 1) - torch.tensor(SHIFT)[:, None, None]) / torch.tensor(SCALE)[:, None, None] for t in (a, b))
    level = 0
    for index, layer in enumerate(distance.layers):
        x, y = layer(x), layer(y)
        if index in distance.taken:
            unit = [t / t.square().sum(1, keepdim=True).sqrt() for t in (x, y)]
            expected += (distance.heads[level] * (unit[0] - unit[1]) ** 2).sum(1).mean((1, 2))
            level += 1
    assert level == 5
    found = distance(a, b)
    assert found.shape == (2,)
    # A square of differences of unit vectors: relative to the heads' sum and not to the small distance.
    bound = 512 * EPSILON * sum(float(head.sum()) for head in distance.heads)
    assert float((found - expected).abs().max()) <= bound
    assert float(distance(a, a).abs().max()) == 0


def test_gradient_is_finite_where_no_feature_is_active(stack: str) -> None:
    distance = PerceptualDistance(stack)
    with torch.no_grad():
        for layer in distance.layers:
            if isinstance(layer, nn.Conv2d):
                layer.bias.fill_(-100.0)
    output = torch.rand(1, 3, 32, 32, requires_grad=True)
    distance(output, torch.rand(1, 3, 32, 32)).sum().backward()
    assert output.grad.isfinite().all()
    assert not any(parameter.requires_grad for parameter in distance.parameters())


def test_smallest_sides(stack: str) -> None:
    side, distance = SMALLEST[stack], PerceptualDistance(stack)
    distance(torch.rand(1, 3, side, side), torch.rand(1, 3, side, side))
    with pytest.raises(RuntimeError, match="Padding size should be less"):
        distance(torch.rand(1, 3, side - 1, side), torch.rand(1, 3, side - 1, side))


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A package with weights files as the public one has them, random ones, and code that must not run."""
    root = tmp_path / perceptual.PACKAGE
    weights = root / "weights" / "vST0.0"
    weights.mkdir(parents=True)
    (root / "__init__.py").write_text("raise RuntimeError('its code ran')")
    for stack in FILED:
        torch.manual_seed(1)
        torch.save(filed(PerceptualDistance(stack), stack), weights / f"{stack}_shift_tolerant.pth")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(measure, "_distance", measure._distance.__wrapped__)
    return weights


def test_weights_come_from_the_package_without_its_code(stack: str, package) -> None:
    found = PerceptualDistance.trained(stack)
    torch.manual_seed(1)
    expected = PerceptualDistance(stack).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.state_dict().items())


def test_other_weights_are_refused(package) -> None:
    file = package / "vgg_shift_tolerant.pth"
    torch.save({"net.slice1.0.weight": torch.ones(64, 3, 3, 3)}, file)
    with pytest.raises(SwintormerError, match="does not hold the expected perceptual weights"):
        PerceptualDistance.trained("vgg")
    file.unlink()
    with pytest.raises(SwintormerError, match="vgg_shift_tolerant"):
        PerceptualDistance.trained("vgg")


def test_without_the_package_one_sentence_says_how_to_get_it(monkeypatch) -> None:
    monkeypatch.setattr(perceptual, "PACKAGE", "no_such_package")
    assert not measure.lpips_available()
    with pytest.raises(SwintormerError, match=r"pip install stlpips-pytorch"):
        PerceptualDistance.trained("alex")


def test_lpips_of_pictures(package) -> None:
    assert measure.lpips_available()
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 24, 40, 3))
    assert measure.lpips(a, a) == 0
    distance = PerceptualDistance.trained("alex")
    x, y = (torch.from_numpy(p.transpose(2, 0, 1)[None].astype(np.float32)) for p in (a, b))
    assert measure.lpips(a, b) == float(distance(x, y))
    for faulty in ((a, b[:, 1:]), (a[..., :1], b[..., :1]), (a[:20], b[:20])):
        with pytest.raises(ValueError, match="found"):
            measure.lpips(*faulty)


def test_public_weights_order_pictures_by_their_blur_and_noise() -> None:
    if perceptual.weights_file("vgg") is None:
        pytest.skip("the package stlpips-pytorch is not installed")
    data = pytest.importorskip("skimage.data")
    picture = torch.from_numpy(data.astronaut()[:96, 192:288]).permute(2, 0, 1)[None] / 255
    noise = torch.randn_like(picture) / 255
    for stack in FILED:
        distance = PerceptualDistance.trained(stack)
        assert float(distance(picture, picture)) == 0
        blurred = [F.avg_pool2d(F.pad(picture, [r] * 4, mode="reflect"), 2 * r + 1, 1) for r in (1, 2, 4)]
        noisy = [picture + noise * level for level in (2, 8, 32)]
        for series in (blurred, noisy):
            distances = [float(distance(worse, picture)) for worse in series]
            assert 0 < distances[0] < distances[1] < distances[2] < math.inf
