"""Training pairs: the same from the same seed, blurred as their kernels say, sharp and blurred in register."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from swintormer.data import SyntheticPairs, synthetic, walls
from swintormer.data.blurs import RADIUS, blur, disc_kernel, gaussian_kernel, motion_kernel, random_kernels, random_path
from swintormer.data.camera import add_noise, jpeg, random_camera, round_8bit
from swintormer.data.scenes import make_scene, make_texture, power_noise, soften
from swintormer.data.walls import WallWindows, make_wall

EPS = np.finfo(np.float32).eps
SMALL = 96  # side of the scenes here; the region of a crop of 32 is 78


def error_bound(image, kernel):
    """Of a float32 convolution: eps times the terms of the sum times the largest value."""
    return EPS * kernel.size * np.abs(image).max()


def pairs(**arguments):
    return SyntheticPairs(**({"seed": 3, "crop": 32, "scene_side": SMALL} | arguments))


def test_pair_is_float32_in_range_and_channels_first():
    for image in pairs()[5]:
        assert image.shape == (3, 32, 32)
        assert image.dtype == torch.float32
        assert image.is_contiguous()
        assert 0 <= image.min() <= image.max() <= 1


def test_pair_depends_on_seed_and_index_alone():
    """Not on what was asked for before, nor on the scenes still held: index 900 lies beyond a whole pool of them."""
    source = pairs()
    forwards = {i: source[i] for i in (0, 1, 40, 900)}
    fresh = pairs()
    for i in (900, 0, 40, 1):
        for a, b in zip(forwards[i], fresh[i], strict=True):
            assert torch.equal(a, b)
    assert not torch.equal(pairs(seed=4)[0][1], forwards[0][1])
    assert not torch.equal(pairs(stream=1)[0][1], forwards[0][1])
    assert not torch.equal(forwards[1][1], forwards[0][1])


def test_scenes_are_replaced_one_at_a_time_and_each_serves_its_share(monkeypatch):
    """Each of the pool's scenes once in every pool * uses pairs, evenly spread, so that no step waits for many."""
    made = []
    monkeypatch.setattr(synthetic, "make_scene", lambda rng, side: made.append(index) or np.zeros((side, side, 3)))
    source = pairs()
    span = synthetic.SCENE_POOL * synthetic.SCENE_USES
    for index in range(2 * span):
        source.scenes[index]
    replaced = np.array([index for index in made if index >= span])
    assert len(replaced) == synthetic.SCENE_POOL
    assert len(np.unique(replaced % synthetic.SCENE_POOL)) == synthetic.SCENE_POOL
    assert np.bincount(replaced // synthetic.SCENE_POOL).max() <= -(-synthetic.SCENE_POOL // synthetic.SCENE_USES)


def test_blurred_and_sharp_are_in_register(monkeypatch):
    """With no blur and no camera the two are equal: crop, flip and rotation are the same for both."""
    monkeypatch.setattr(synthetic, "random_kernels", lambda rng: [disc_kernel(0.0)])
    monkeypatch.setattr(synthetic, "random_camera", lambda rng, image: image)
    # An error e of the convolution in linear light is e^(1 / gamma) at black.
    bound = error_bound(np.ones(1), disc_kernel(0.0)) ** (1 / synthetic.GAMMA)
    source, moved = pairs(), 0.0
    for i in range(8):
        blurred, sharp = source[i]
        assert (blurred - sharp).abs().max() <= bound
        moved = max(moved, float((blurred.roll(1, -1) - sharp).abs().max()))
    assert moved > 4 * bound, "pictures without detail would pass whatever their place"


def test_a_crop_too_large_for_its_scenes_is_refused():
    with pytest.raises(ValueError, match="scene_side 64 must hold"):
        pairs(scene_side=64)
    assert SyntheticPairs(0, crop=512).scene_side >= 512 + 2 * RADIUS


def test_no_photograph_enters():
    """All photographs of the held-out test come from scikit-image, which training pairs never import."""
    code = "import sys; from swintormer.data import SyntheticPairs; SyntheticPairs(0, 32, 96)[0]; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "swintormer.data.scenes" in modules
    assert not [name for name in modules if name.split(".")[0] in ("skimage", "imageio")]


@given(st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_kernels_keep_brightness_and_place(seed):
    axis = np.arange(-RADIUS, RADIUS + 1)
    for kernel in random_kernels(np.random.default_rng(seed)):
        assert kernel.shape == (2 * RADIUS + 1, 2 * RADIUS + 1)
        assert kernel.min() >= 0
        assert abs(kernel.sum(dtype=np.float64) - 1) <= EPS * kernel.size
        centre = [float((kernel.sum(axis=a, dtype=np.float64) * axis).sum()) for a in (0, 1)]
        assert np.abs(centre).max() <= EPS * kernel.size * RADIUS


def test_kernel_sizes():
    """Standard deviations of the continuous shapes: r / 2 along an axis for a disc, sigma for a Gaussian."""

    def deviation(kernel):
        return float(np.sqrt((kernel.sum(axis=0) * np.arange(-RADIUS, RADIUS + 1) ** 2).sum()))

    pixel = 1 / 12  # variance that a pixel's own area may add or hide
    for radius in (2.0, 3.5, 5.0):
        assert deviation(disc_kernel(radius)) ** 2 == pytest.approx(radius**2 / 4, abs=2 * pixel)
    for sigma in (1.0, 2.0, 3.0):
        assert deviation(gaussian_kernel(sigma)) ** 2 == pytest.approx(sigma**2, abs=pixel)
    straight = np.stack([np.zeros(64), np.linspace(0, 9, 64)], axis=1)
    assert 0 <= deviation(motion_kernel(straight)) ** 2 - straight[:, 1].var() <= 1 / 4  # spread over two pixels
    path = random_path(np.random.default_rng(0), 9.0)
    assert np.linalg.norm(np.diff(path, axis=0), axis=1).sum() == pytest.approx(9.0, rel=2 / len(path))


def test_blur_is_a_convolution():
    rng = np.random.default_rng(0)
    image = rng.random((50, 61, 3), dtype=np.float32)
    kernel = motion_kernel(np.array([[0.0, 0.0], [0.0, 3.0], [4.0, 4.0]]))  # of no symmetry
    weight = torch.from_numpy(kernel[::-1, ::-1].copy()).double().expand(3, 1, -1, -1)
    expected = F.conv2d(torch.from_numpy(image).double().permute(2, 0, 1)[None], weight, groups=3)[0].permute(1, 2, 0)
    found = blur(image, [kernel])
    assert found.shape == (20, 31, 3)
    assert found.dtype == np.float32
    assert np.abs(found - expected.numpy()).max() <= error_bound(image, kernel)


def test_blur_blends_its_kernels_by_the_field():
    rng = np.random.default_rng(0)
    image = rng.random((RADIUS * 2 + 4, RADIUS * 2 + 5, 3), dtype=np.float32)
    kernels = [disc_kernel(r) for r in (0.0, 2.0, 4.0)]
    alone = [blur(image, [kernel]) for kernel in kernels]
    field = np.zeros((4, 5), np.float32)
    field[0, 1], field[0, 2], field[0, 3] = 0.25, 0.5, 1.0
    mixed = blur(image, kernels, field)
    bound = error_bound(image, kernels[0])
    for place, expected in (
        ((1, 0), alone[0][1, 0]),
        ((0, 1), (alone[0][0, 1] + alone[1][0, 1]) / 2),
        ((0, 2), alone[1][0, 2]),
        ((0, 3), alone[2][0, 3]),
    ):
        assert np.abs(mixed[place] - expected).max() <= bound


def test_noise_has_the_variance_asked_for():
    """Read and shot noise add in variance; the bound is five deviations of a sample variance, sqrt(2 / n)."""
    rng = np.random.default_rng(0)
    image = np.full((200, 200, 3), 0.5, np.float32)
    noise = add_noise(rng, image, read=0.01, shot=0.02) - image
    assert noise.var() == pytest.approx(0.01**2 + 0.02**2 * 0.5, rel=5 * np.sqrt(2 / noise.size))


def test_camera_leaves_what_a_file_can_hold():
    image = np.linspace(-0.1, 1.1, 16 * 16 * 3, dtype=np.float32).reshape(16, 16, 3)
    levels = round_8bit(image) * 255
    assert np.abs(levels - np.rint(levels)).max() <= 255 * EPS
    assert np.abs(round_8bit(image) - np.clip(image, 0, 1)).max() <= 0.5 / 255 + EPS
    for seed in range(12):
        result = random_camera(np.random.default_rng(seed), image)
        assert result.dtype == np.float32
        assert 0 <= result.min() <= result.max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_loses_more_at_lower_quality(channels):
    image = make_scene(np.random.default_rng(1), 64)[..., :channels]
    losses = [float(np.abs(jpeg(image, quality) - image).mean()) for quality in (100, 90, 60)]
    assert losses == sorted(losses)
    assert 0 < losses[0] < losses[2]
    assert jpeg(image, 90).shape == image.shape


def test_noise_textures_follow_their_spectrum():
    """Amplitude f^-exponent: doubling the frequency divides the power by 4^exponent. Mean over rings of many bins."""
    side = 256
    for exponent in (0.5, 1.0, 1.5):
        noise = power_noise(np.random.default_rng(0), side, exponent)
        assert noise.std() == pytest.approx(1, abs=1e-3)
        power = np.abs(np.fft.rfft2(noise)) ** 2
        frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :])
        rings = [power[(frequency > f * 0.95) & (frequency < f * 1.05)] for f in (0.1, 0.2)]
        spread = 5 * np.sqrt(sum(1 / ring.size for ring in rings))  # power of one bin varies as much as its mean
        assert rings[0].mean() / rings[1].mean() == pytest.approx(4**exponent, rel=spread)


def test_scenes_and_textures_are_pictures():
    rng = np.random.default_rng(0)
    for _ in range(12):
        texture = make_texture(rng, 64)
        assert texture.shape == (64, 64)
        assert np.isfinite(texture).all()
    scenes = [make_scene(rng, 64) for _ in range(12)]
    for scene in scenes:
        assert scene.dtype == np.float32
        assert 0 <= scene.min() <= scene.max() <= 1
    assert np.mean([scene.std() for scene in scenes]) > 0.05, "pictures without contrast teach nothing"


def test_softening_is_the_gaussian_kernel():
    image = np.random.default_rng(0).random((64, 64, 3), dtype=np.float32)
    kernel = gaussian_kernel(1.1)
    middle = soften(image, 1.1)[RADIUS:-RADIUS, RADIUS:-RADIUS]
    # The kernel is sampled in space, the softening in frequency: they differ by the spectrum beyond Nyquist.
    aliased = 2 * np.exp(-2 * (np.pi * 1.1 * 0.5) ** 2)
    assert np.abs(middle - blur(image, [kernel])).max() <= aliased + error_bound(image, kernel)


def test_walls_are_pictures_with_grain():
    """Noise to the pixel, by the median of the Laplacian, so that a blurred wall can be told from a soft one.

    Where a wall is black or white, there is none.
    """
    grains = []
    for seed in range(100):
        wall = make_wall(np.random.default_rng((3, seed)), 64)
        assert wall.shape == (64, 64, 3)
        assert wall.dtype == np.float32
        assert 0 <= wall.min() < wall.max() <= 1
        green = wall[..., 1]
        fine = 4 * green[1:-1, 1:-1] - green[:-2, 1:-1] - green[2:, 1:-1] - green[1:-1, :-2] - green[1:-1, 2:]
        grains.append(1.4826 * np.median(np.abs(fine)) / np.sqrt(20))  # deviation of white noise
    assert np.quantile(grains, 0.05) > 0.5 / 255
    again = make_wall(np.random.default_rng((3, 99)), 64)
    np.testing.assert_array_equal(wall, again)


@pytest.mark.parametrize("planks", [False, True])
def test_joints_lie_between_courses_and_bricks(monkeypatch, planks):
    monkeypatch.setattr(walls, "PLANKS", float(planks))
    axis = np.arange(120, dtype=np.float32)
    u, v = np.meshgrid(axis, axis)
    distance, brick = walls._joints(np.random.default_rng(4), u, v, height=30)
    assert 14 < distance.max() <= 15
    assert set(np.unique(brick)) == set(range(brick.max() + 1))
    for axis in (0, 1):
        here, there = np.moveaxis(brick, axis, 0)[:-1], np.moveaxis(brick, axis, 0)[1:]
        near = np.moveaxis(distance, axis, 0)[:-1]
        assert np.all(near[here != there] <= 1)  # another brick begins at a joint
    joints = (distance <= 0.5).mean()
    if planks:
        np.testing.assert_array_equal(brick, brick[:, :1].repeat(120, 1))
        assert len(np.unique(brick)) == 5
        assert joints == pytest.approx(1 / 30, rel=0.3)
    else:
        assert len(np.unique(brick)) > 5
        assert joints > 1 / 30


def test_windows_of_walls_are_a_function_of_the_index():
    windows = WallWindows((1, 2), 64)
    assert windows[5].shape == (3, 64, 64)
    assert torch.equal(windows[5], WallWindows((1, 2), 64)[5])
    assert not torch.equal(windows[5], windows[6])
    assert not torch.equal(windows[5], WallWindows((1, 3), 64)[5])
