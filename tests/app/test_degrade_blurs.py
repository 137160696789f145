"""Blurs of swintormer.data.degrade, each against a slow plain version in double precision."""

import numpy as np
import pytest
import torch

from swintormer.data.blurs import random_path
from swintormer.data.degrade.bank import (
    REACH,
    REACHES,
    Bank,
    apply_banks,
    blend_weights,
    combined,
    grid_weights,
    impulse,
    padded,
    spectrum_size,
)
from swintormer.data.degrade.defocus import (
    Aperture,
    Layers,
    apply_layers,
    cats_eyes,
    defocus,
    halves,
    layer_kernels,
    turned,
)
from swintormer.data.degrade.gaussian import gaussian
from swintormer.data.degrade.mattes import random_matte
from swintormer.data.degrade.motion import (
    Motion,
    Placement,
    apply_motion,
    camera_maps,
    corners,
    moved,
    random_camera_maps,
    scaled_to,
    thing_maps,
)

EPS = float(np.finfo(np.float32).eps)
HEIGHT, WIDTH = 5, 7
SIZE = (HEIGHT + 2 * REACH, WIDTH + 2 * REACH)
pytestmark = pytest.mark.usefixtures("one_thread")


def scene(seed=0, channels=2, bright=4.0):
    """Light of a random picture, beyond white here and there."""
    return torch.from_numpy(
        np.random.default_rng(seed).random((1, channels, *SIZE), dtype=np.float32) * np.float32(bright)
    )


def error_bound(kernels, bright=4.0):
    """Of float32 sums over a kernel: eps times the terms times the largest value."""
    return EPS * kernels[0, 0].size * bright


def plain_convolution(image, kernel):
    """(C, h, w) of (C, h + 2 REACH, w + 2 REACH), pixel by pixel."""
    reach = kernel.shape[0] // 2
    flipped = kernel[::-1, ::-1].astype(np.float64)
    out = np.zeros((len(image), HEIGHT, WIDTH))
    for y in range(HEIGHT):
        for x in range(WIDTH):
            top, left = y + REACH - reach, x + REACH - reach
            out[:, y, x] = (image[:, top : top + 2 * reach + 1, left : left + 2 * reach + 1] * flipped).sum((1, 2))
    return out


def test_bank_is_the_blend_of_its_convolutions():
    rng = np.random.default_rng(1)
    kernels = rng.random((2, 3, 9, 9), dtype=np.float32)
    kernels /= kernels.sum((2, 3), keepdims=True)
    weights = blend_weights(rng.uniform(0, 2, (HEIGHT, WIDTH)).astype(np.float32), 3)
    light = scene()
    blurred, sharp = apply_banks(light, [Bank(kernels, weights)])
    image = light[0].double().numpy()
    assert torch.equal(sharp, light[..., REACH:-REACH, REACH:-REACH])
    for view in range(2):
        expected = sum(w * plain_convolution(image, k) for w, k in zip(weights, kernels[view], strict=True))
        assert np.abs(blurred[0, view].numpy() - expected).max() <= error_bound(kernels)


def test_no_blur_changes_nothing():
    light = scene()
    for blur, apply in ((Bank(impulse()), apply_banks), (Motion(np.tile(np.eye(3), (16, 1, 1))), apply_motion)):
        blurred, sharp = apply(light, [blur])
        # Sampling at whole pixels computes their places in float32: 8 eps of a place is 8 eps * slope of light.
        assert (blurred[:, 0] - sharp).abs().max() <= 8 * EPS * max(SIZE) * 4
    blurred, _ = apply_banks(light, [Bank(impulse(2))])
    assert blurred.shape == (1, 2, 2, HEIGHT, WIDTH)


@pytest.mark.parametrize("pixels", [1, 7, 64, 130, 151, 152, 192])
def test_sizes_of_ffts_are_fast_and_hold_the_picture(pixels):
    size = spectrum_size(pixels)
    assert pixels <= size <= 2 * pixels
    for factor in (2, 3, 5):
        while size % factor == 0:
            size //= factor
    assert size == 1


def test_weights_add_up():
    field = np.random.default_rng(0).uniform(0, 4, (9, 8)).astype(np.float32)
    for weights in (blend_weights(field, 5), grid_weights(9, 8, 3)):
        assert weights.min() >= 0
        assert np.abs(weights.sum(0) - 1).max() <= 4 * len(weights) * EPS
    assert grid_weights(3, 3, 2)[:, 0, -1].tolist() == [0, 1, 0, 0]
    assert grid_weights(3, 5, 2)[:, 1, 1].tolist() == [0.375, 0.125, 0.375, 0.125]


def shapes():
    return {
        "disc": Aperture(),
        "soft rim": Aperture(softness=1.0, rim=-1.0),
        "bright rim": Aperture(rim=2.0),
        "pentagon": Aperture(blades=5, turn=0.3),
        "round heptagon": Aperture(blades=7, roundness=0.6),
    }


@pytest.mark.parametrize("name", shapes())
@pytest.mark.parametrize("radius", [0.0, 0.7, 3.2, -8.0, 15.0])
def test_apertures_are_kernels(name, radius):
    for vignette in ((0.0, 0.0), (0.5, -0.4)):
        kernel = defocus(radius, shapes()[name], vignette)
        assert kernel.dtype == np.float32
        assert kernel.min() >= 0
        assert kernel.shape[0] // 2 in REACHES
        assert kernel.sum(dtype=np.float64) == pytest.approx(1, abs=EPS * kernel.size)
        if kernel.shape[0] > 1:
            assert max(kernel[0].max(), kernel[:, -1].max()) == 0, "the kernel must fit into its square"


@pytest.mark.parametrize("blades", [0, 5, 6, 7, 8, 9])
@pytest.mark.parametrize("roundness", [0.0, 0.8])
def test_radius_0_is_the_identity(blades, roundness):
    """Whatever the edge's softness; and it is reached without a jump."""
    for turn in (0.0, 0.56):
        aperture = Aperture(1.0, 0.0, blades, turn, roundness)
        kernel = defocus(0.0, aperture)
        middle = len(kernel) // 2
        assert kernel[middle, middle] == 1
        assert kernel.sum() == 1
        assert defocus(0.01, aperture)[middle, middle] == pytest.approx(1, abs=0.1)


def moments(kernel):
    """Centre (y, x) and variance along y and x."""
    axis = np.arange(len(kernel)) - len(kernel) // 2
    rows, columns = kernel.sum(1, dtype=np.float64), kernel.sum(0, dtype=np.float64)
    centre = np.array([rows @ axis, columns @ axis])
    return centre, np.array([rows @ axis**2, columns @ axis**2]) - centre**2


def test_apertures_have_their_size():
    """Variance of a disc r^2 / 4; a polygon covers as many pixels; rims move light outwards or inwards."""
    pixel = 1 / 12  # variance that a pixel's own area may add or hide
    radius = 9.0
    disc = defocus(radius)
    assert moments(disc)[1] == pytest.approx([radius**2 / 4] * 2, abs=2 * pixel)
    for blades in (5, 6, 9):
        polygon = defocus(radius, Aperture(blades=blades))
        # The even share of each covered pixel is 1 / area; the rim of pixels that are cut is not counted.
        assert 1 / polygon.max() == pytest.approx(np.pi * radius**2, rel=2 / radius**2)
        assert polygon.max() == pytest.approx(np.median(polygon[polygon > 0]), rel=EPS * 4)
    soft, bright = defocus(radius, Aperture(rim=-1)), defocus(radius, Aperture(rim=2))
    assert moments(soft)[1].sum() < moments(disc)[1].sum() < moments(bright)[1].sum()


def test_cats_eye_is_narrow_towards_the_corner_and_stays_in_place():
    kernel = defocus(10.0, vignette=(0.0, 0.8))
    centre, variance = moments(kernel)
    assert np.abs(centre).max() <= EPS * kernel.size * 16
    assert variance[1] < 0.8 * variance[0]
    places = [np.array([y, x]) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    bank = cats_eyes([10.0] * 9, places, 0.9, Aperture(), 1, (9, 9))
    assert np.array_equal(bank.kernels[0, 4], defocus(10.0)), "a disc in the middle"
    areas = [(kernel > 0).sum() for kernel in bank.kernels[0]]
    assert max(areas[0], areas[2], areas[6], areas[8]) < min(areas[1], areas[3]) < areas[4]
    assert moments(defocus(10.0, vignette=(0.8, 0.0)))[1] == pytest.approx(variance[::-1], rel=1e-5)


@pytest.mark.parametrize("name", shapes())
def test_dual_pixel_views_are_the_halves_of_the_disc(name):
    for radius in (4.3, -4.3, 12.0):
        kernel = defocus(radius, shapes()[name])
        left, right = halves(kernel, radius)
        assert min(left.min(), right.min()) >= 0
        assert np.abs((left + right) / 2 - kernel).max() <= 4 * EPS * kernel.max()
        for half in (left, right):
            assert half.sum(dtype=np.float64) == pytest.approx(1, abs=EPS * kernel.size)
        apart = moments(left)[0][1] - moments(right)[0][1]
        assert np.sign(apart) == np.sign(radius), "views change sides at the focus"
        assert abs(apart) > abs(radius) / 2
    front, behind = halves(defocus(6.0), 6.0), halves(defocus(6.0), -6.0)
    assert np.abs(front[0] - behind[1]).max() <= 4 * EPS * front.max()


def test_gaussians_have_their_deviations_and_angle():
    kernel = gaussian(3.0, 0.5, np.pi / 2)
    assert kernel.sum(dtype=np.float64) == pytest.approx(1, abs=EPS * kernel.size)
    # Cut at four deviations along the axis: the rest has less than 0.2 % of the variance.
    assert moments(kernel)[1] == pytest.approx([9.0, 2.25], rel=0.002)


def test_combined_kernel_is_one_blur_after_another():
    disc, other = defocus(3.0), gaussian(1.2, 0.4, 0.7)
    both = combined(disc[None, None], other[None, None])[0, 0]
    centre, variance = moments(both)
    assert both.shape[0] // 2 in REACHES
    assert np.abs(centre).max() <= EPS * both.size * REACH
    assert variance == pytest.approx(moments(disc)[1] + moments(other)[1], rel=1e-4)
    assert combined(halves(disc, 3.0)[:, None], other[None, None]).shape == (2, 1, *both.shape)


def plain_layers(image, plan, view):
    """Back to front, each layer and its matte blurred pixel by pixel."""
    result = None
    mattes = [np.ones(SIZE), *plan.mattes.astype(np.float64)]
    for layer, (matte, turn) in enumerate(zip(mattes, plan.turns, strict=True)):
        content = turned(torch.from_numpy(image), turn).numpy() * matte
        over = plain_convolution(content, plan.kernels[view, layer])
        cover = plain_convolution(matte[None], plan.kernels[view, layer])
        result = over if result is None else over + (1 - cover) * result
    return result


def test_layers_are_composed_back_to_front_with_blurred_mattes():
    rng = np.random.default_rng(2)
    mattes = np.stack([random_matte(rng, *SIZE) for _ in range(2)])
    plan = Layers(layer_kernels([5.0, 0.0, -2.5], Aperture(blades=6), 2), mattes, (0, 3, 1))
    light = scene()
    blurred, sharp = apply_layers(light, [plan])
    image = light[0].double().numpy()
    for view in range(2):
        expected = plain_layers(image, plan, view)
        assert np.abs(blurred[0, view].numpy() - expected).max() <= len(plan.turns) * error_bound(plan.kernels)
    still = Layers(layer_kernels([0.0, 0.0, 0.0], Aperture(), 1), mattes, plan.turns)
    assert np.abs(sharp[0].numpy() - plain_layers(image, still, 0)).max() <= 3 * error_bound(still.kernels)


def test_a_background_stays_behind_a_sharp_foreground():
    """A bright background out of focus ends at the edge of a dark thing in focus; blurring the picture smears it in."""
    matte = np.zeros((1, *SIZE), np.float32)
    edge = REACH + WIDTH // 2
    matte[..., :edge] = 1
    light = torch.full((1, 1, *SIZE), 8.0)
    light[..., :edge] = 0.01
    plan = Layers(layer_kernels([6.0, 0.0], Aperture(), 1), matte, (0, 0))
    blurred, sharp = apply_layers(light, [plan])
    bound = 2 * error_bound(plan.kernels, 8.0)
    dark = sharp < 1
    assert (blurred[:, 0][dark] - 0.01).abs().max() <= bound
    # The other way round the thing in front is out of focus: light passes its edge as far as its radius, no further.
    wide = torch.full((1, 1, 1 + 2 * REACH, 41 + 2 * REACH), 8.0)
    matte = np.zeros((1, *wide.shape[-2:]), np.float32)
    matte[..., : REACH + 20] = 1
    wide[..., : REACH + 20] = 0.01
    blurred, _ = apply_layers(wide, [Layers(layer_kernels([0.0, 6.0], Aperture(), 1), matte, (0, 0))])
    row = blurred[0, 0, 0, 0]
    assert (row[: 20 - 7] - 0.01).abs().max() <= bound
    assert (row[20 + 7 :] - 8).abs().max() <= bound
    assert (row.diff() >= -bound).all(), "no glowing edge: light rises from the dark to the bright side alone"


def plain_view(image, maps, matte=None):
    """(T, C, h, w): what each map sees, bilinearly, pixel by pixel."""
    content = image if matte is None else np.concatenate([image * matte, matte[None]])
    out = np.zeros((len(maps), len(content), HEIGHT, WIDTH))
    for step, full in enumerate(maps):
        for y in range(HEIGHT):
            for x in range(WIDTH):
                place = full @ np.array([x - (WIDTH - 1) / 2, y - (HEIGHT - 1) / 2, 1.0])
                across, down = place[:2] / place[2] + (np.array(SIZE[::-1]) - 1) / 2
                left, top = int(np.floor(across)), int(np.floor(down))
                for row, col in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
                    share = (1 - abs(down - row)) * (1 - abs(across - col))
                    out[step, :, y, x] += share * content[:, row, col]
    return out


def motion_bound(steps):
    """Places are computed in float32, up to half a scene from 0: their error times the steepest slope of light."""
    return 16 * EPS * max(SIZE) * 4 + steps * EPS * 4


def test_camera_motion_is_the_mean_of_its_views():
    light = scene()
    maps = random_camera_maps(np.random.default_rng(3), 12.0, HEIGHT, WIDTH)
    blurred, sharp = apply_motion(light, [Motion(maps)])
    expected = plain_view(light[0].double().numpy(), maps).mean(0)
    assert torch.equal(sharp, light[..., REACH:-REACH, REACH:-REACH])
    assert np.abs(blurred[0, 0].numpy() - expected).max() <= motion_bound(len(maps))


@pytest.mark.parametrize("ground", [False, True])
def test_a_thing_moves_before_its_ground(ground):
    rng = np.random.default_rng(4)
    light, matte = scene(), random_matte(rng, *SIZE)
    camera = random_camera_maps(rng, 5.0, HEIGHT, WIDTH) if ground else None
    thing = thing_maps(random_path(rng, 9.0, 16), np.linspace(-0.1, 0.1, 16))
    blurred, sharp = apply_motion(light, [Motion(camera, thing, matte, 2)])
    image, rest = light[0].double().numpy(), np.eye(3)[None]
    over = plain_view(turned(light[0], 2).double().numpy(), thing, matte.astype(np.float64))
    behind = plain_view(image, camera if ground else rest)
    expected = (over[:, :-1] + (1 - over[:, -1:]) * behind).mean(0)
    assert np.abs(blurred[0, 0].numpy() - expected).max() <= 3 * motion_bound(16)
    over = plain_view(turned(light[0], 2).double().numpy(), rest, matte.astype(np.float64))[0]
    expected = over[:-1] + (1 - over[-1:]) * plain_view(image, rest)[0]
    assert np.abs(sharp[0].numpy() - expected).max() <= 3 * EPS * 4


def test_a_rotation_blurs_more_away_from_its_axis():
    """About the line of sight a pixel moves by angle times distance; about the others by focal length times angle."""
    turn = np.linspace(-0.01, 0.01, 16)
    zero = np.zeros_like(turn)
    camera, still = Placement(500.0), np.zeros((16, 2))
    places = np.array([[0.0, 0.0], [100.0, 0.0], [0.0, 200.0]])
    roll = moved(camera_maps(camera, np.stack([zero, zero, turn], 1), still), places)
    assert np.linalg.norm(roll[-1] - roll[0], axis=1) == pytest.approx([0, 2, 4], rel=1e-4, abs=1e-9)
    yaw = moved(camera_maps(camera, np.stack([zero, turn, zero], 1), still), places)
    assert (yaw[-1] - yaw[0])[0] == pytest.approx([10.0, 0.0], rel=1e-4, abs=1e-9)
    pitch = moved(camera_maps(camera, np.stack([turn, zero, zero], 1), still), places)
    assert np.abs((pitch[-1] - pitch[0])[0]) == pytest.approx([0.0, 10.0], rel=1e-4, abs=1e-9)
    shift = moved(camera_maps(camera, np.zeros((16, 3)), np.stack([turn, zero], 1)), places)
    assert shift[-1] - places == pytest.approx(np.tile([0.01, 0.0], (3, 1)))


def test_paths_have_their_length_and_stay_in_the_margin():
    rng = np.random.default_rng(5)
    for length in (1.0, 8.0, 31.0, 40.0):
        for _ in range(5):
            maps = random_camera_maps(rng, length, 144, 144)
            path = moved(maps, corners(144, 144))
            travel = np.linalg.norm(np.diff(path, axis=0), axis=-1).sum(0)
            furthest = np.abs(path - corners(144, 144)).max()
            assert furthest <= REACH - 1
            assert travel.mean() == pytest.approx(length, rel=0.02) or furthest > REACH - 2
            assert 16 <= len(maps) <= 64
    apart = [
        np.ptp(
            np.linalg.norm(
                np.diff(moved(random_camera_maps(rng, 20.0, 144, 144), corners(144, 144)), axis=0), axis=-1
            ).sum(0)
        )
        for _ in range(20)
    ]
    assert np.median(apart) > 2, "blur must vary over a picture"


def test_scaling_keeps_the_mean_pose():
    rng = np.random.default_rng(6)
    angles, shifts = rng.normal(1, 0.01, (16, 3)) * 0.01, rng.normal(3, 1, (16, 2))
    maps = scaled_to(10.0, Placement(300.0), angles, shifts, (100, 100))
    middle = moved(maps, np.zeros((1, 2))).mean(0)
    assert np.abs(middle).max() < 0.05  # rotations are linear to the second order of small angles


def test_padded_kernels_stay_in_the_middle():
    kernel = defocus(2.0)
    wide = padded(kernel, 12)
    assert wide.shape == (25, 25)
    assert np.array_equal(wide[8:17, 8:17], kernel)
