"""Whole pairs of swintormer.data.degrade: light, camera, shares and strengths, and that a pair is its seed's alone."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from swintormer.data.camera import jpeg
from swintormer.data.degrade import MARGIN, Plan, Recipe, carry_out, degrade
from swintormer.data.degrade.bank import REACH, Bank, impulse
from swintormer.data.degrade.camera import Camera, develop, noise_for_mid_grey, resized
from swintormer.data.degrade.defocus import defocus
from swintormer.data.degrade.light import Light, light_to_srgb, srgb_to_light, to_light, to_values, tone
from swintormer.data.degrade.motion import Motion, corners, moved
from swintormer.data.degrade.process import _together
from swintormer.data.degrade.recipe import FAMILIES, JPEG_GRID, Families, draw, random_lamps, strength
from swintormer.data.scenes import make_scene

EPS = float(np.finfo(np.float32).eps)
CROP = 16
pytestmark = pytest.mark.usefixtures("one_thread")


def windows(count=3, crop=CROP):
    side = crop + 2 * MARGIN
    scenes = [make_scene(np.random.default_rng(n), side).transpose(2, 0, 1) for n in range(count)]
    return torch.from_numpy(np.stack(scenes).astype(np.float32))


def only(family, **changes):
    return Recipe(families=Families(**{name: float(name == family) for name in FAMILIES}), **changes)


PLAIN = {"exposed": 0, "contrasted": 0, "highlights": 0, "lamps": 0, "noisy": 0, "jpeg": 0, "resized": 0}


# Light


def plain_srgb(value):
    """IEC 61966-2-1, one value at a time."""
    return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4


def test_srgb_is_its_standard():
    values = torch.linspace(0, 1, 256)
    expected = np.array([plain_srgb(float(v)) for v in values])
    light = srgb_to_light(values)
    # A power of 2.4 multiplies the relative error of its base by as much, sums and quotients add an eps each.
    assert np.abs(light.double().numpy() - expected).max() <= 8 * EPS
    # The way back has a slope of 12.92 at black.
    assert (light_to_srgb(light) - values).abs().max() <= 12.92 * 8 * EPS


def test_tone_curve_adds_contrast_and_is_undone_by_its_inverse():
    values = torch.linspace(0, 1, 101)
    curve = tone(values, 1.4)
    assert curve[[0, 50, 100]].tolist() == pytest.approx([0, 0.5, 1])
    assert (curve.diff() > 0).all()
    assert curve[25] < values[25]
    # At black x^(1 / 1.4) has no bounded slope: an error e of the curve is e^(1 / 1.4) there.
    assert (tone(curve, 1 / 1.4) - values).abs().max() <= (8 * EPS) ** (1 / 1.4)


@pytest.mark.parametrize("light", [Light(), Light(stored=True), Light(contrast=1.3), Light(contrast=1.2, stored=True)])
def test_values_come_back_from_light(light):
    values = windows()
    back = to_values(to_light(values, [light] * 3), [light] * 3)
    assert (back - values).abs().max() <= 12.92 * (16 * EPS) ** (1 / light.contrast)


def test_highlights_are_above_white_and_clipped_afterwards():
    values = torch.tensor([0.2, 0.9, 0.95, 1.0]).expand(1, 3, 1, 4).clone()
    light = Light(threshold=0.9, boost=16.0)
    raised = to_light(values, [light])[0, 0, 0]
    plain = srgb_to_light(values)[0, 0, 0]
    assert raised.tolist() == pytest.approx((plain * torch.tensor([1, 1, 1 + 15 * 0.25, 16])).tolist(), rel=1e-5)
    assert to_values(raised[None, None, None], [light]).max() == pytest.approx(1, abs=2 * EPS)
    blue = torch.tensor([0.5, 0.7, 1.0]).view(1, 3, 1, 1)
    assert torch.equal(to_light(blue, [light]), to_light(blue, [Light()])), "a blue sky is no lamp"


def test_gains_and_lamps_are_light():
    values = torch.full((1, 3, 21, 31), 0.5)
    lamp = np.array([[2.0, -3.0, 1.0, 8.0, 4.0, 2.0]], np.float32)
    light = to_light(values, [Light(gains=(0.5, 1.0, 2.0), lamps=lamp)])[0]
    grey = plain_srgb(0.5)
    assert light[:, 0, 0].tolist() == pytest.approx([grey / 2, grey, grey * 2], rel=1e-5)
    assert light[:, 12, 12].tolist() == pytest.approx([(grey + 8) / 2, grey + 4, (grey + 2) * 2], rel=1e-5)
    # A disc of radius 1 with an edge of a pixel: light of an area between pi 0.5^2 and pi 1.5^2.
    assert np.pi / 4 < float((light[1] - grey).sum()) / 4 < np.pi * 2.25
    outside = to_light(values, [Light(lamps=np.array([[-40.0, 0, 2, 9, 9, 9]], np.float32))])
    assert torch.equal(outside, to_light(values, [Light()]))


# Camera


def test_noise_has_its_variance_before_the_curve():
    """Shot and read noise, each amplified by the white balance; five deviations of a sample variance, sqrt(2 / n)."""
    stored = [Light(stored=True)]
    grey = torch.full((1, 2, 3, 150, 150), 0.4)
    camera = Camera(shot=2e-4, read=1e-5, balance=(2.0, 1.0, 1.5), eight_bits=False, seed=3)
    noise = develop(grey, stored, [camera]) - grey
    for view in range(2):
        for channel, gain in enumerate(camera.balance):
            expected = gain * camera.shot * 0.4 + gain**2 * camera.read
            assert float(noise[0, view, channel].var()) == pytest.approx(expected, rel=5 * np.sqrt(2 / 150**2))
    assert abs(float(np.corrcoef(noise[0, 0].flatten(), noise[0, 1].flatten())[0, 1])) < 5 / np.sqrt(3 * 150**2)
    fine, coarse = (develop(grey, stored, [replace(camera, grain=grain)])[0, 0] - grey[0, 0] for grain in (0.0, 0.5))
    spread = 5 * np.sqrt(2 / (3 * 150**2 / 9))  # of a sample variance, where nine pixels are alike
    assert float(coarse.var()) == pytest.approx(float(fine.var()), rel=spread), "grain keeps the variance"
    alike = float(np.corrcoef(coarse[1, :, 1:].flatten(), coarse[1, :, :-1].flatten())[0, 1])
    assert alike == pytest.approx(2 * 0.5 / (1 + 2 * 0.25), abs=spread), "and makes neighbours alike"
    shot, read = noise_for_mid_grey(4 / 255)
    grey = torch.full((1, 1, 1, 150, 150), 0.18)
    values = develop(grey, [Light()], [Camera(shot, read, eight_bits=False)])
    # The curve is not straight over a few deviations, and read noise adds a little.
    assert float(values.std()) == pytest.approx(4 / 255, rel=0.05)


def test_develop_rounds_to_8_bits_and_encodes_as_libjpeg():
    light = to_light(windows(1, 32), [Light()])[:, None]
    exact = develop(light, [Light()], [Camera(eight_bits=False)])
    levels = develop(light, [Light()], [Camera()])
    assert (levels * 255 - (levels * 255).round()).abs().max() <= 255 * EPS
    assert (levels - exact).abs().max() <= 0.5 / 255 + EPS
    encoded = develop(light, [Light()], [Camera(quality=60)])[0, 0]
    pixels = (levels[0, 0].permute(1, 2, 0) * 255).round().byte().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "jpeg", quality=60, subsampling="4:2:0")
    expected = np.asarray(Image.open(file), np.float32).transpose(2, 0, 1) / 255
    # Both are libjpeg's, but decoders may round transforms and upsample chroma their own way, a level or two.
    assert np.abs(encoded.numpy() - expected).mean() <= 1 / 255


def test_resized_pictures_stay_in_place():
    picture = torch.rand(3, 40, 52, generator=torch.Generator().manual_seed(0))
    small = resized(picture, 1.6)
    assert small.shape == picture.shape
    assert (resized(torch.full_like(picture, 0.3), 1.7) - 0.3).abs().max() <= 16 * EPS
    assert (resized(picture.flip(-1), 1.6).flip(-1) - small).abs().max() <= 64 * EPS
    assert small.std() < picture.std()


# Pairs


@pytest.mark.parametrize("views", [False, True])
def test_a_pair_depends_on_its_window_and_seed_alone(views):
    sharp_windows = windows()
    seeds = [(7, n) for n in range(3)]
    together = degrade(sharp_windows, seeds, views=views)
    order = [2, 0]
    apart = degrade(sharp_windows[order], [seeds[n] for n in order], views=views)
    for a, b in zip(together, apart, strict=True):
        assert torch.equal(a[order], b)
    assert together[0].shape == (3, 6 if views else 3, CROP, CROP)
    assert together[1].shape == (3, 3, CROP, CROP)
    for image in together:
        assert image.dtype == torch.float32
        assert image.min() >= 0
        assert image.max() <= 1
    assert not torch.equal(degrade(sharp_windows[:1], [8], views=views)[0], together[0][:1])


def test_samples_computed_together_are_those_computed_alone():
    """As on devices other than the CPU; no rounding to levels here, which a rounding error may flip."""
    recipe = Recipe(jpeg=0, full_precision=1)
    sharp_windows = windows(24)
    plans = [draw(np.random.default_rng(n), CROP, CROP, recipe) for n in range(24)]
    assert len({plan.blur.key for plan in plans}) < 24, "some must share a batch"
    # FFTs and places of samples in float32, through the curve's slope of 12.92 at black, and its noise's slope.
    bound = 12.92 * 64 * EPS * max(Recipe().brightest, REACH)
    for a, b in zip(_together(sharp_windows, plans), carry_out(sharp_windows, plans), strict=True):
        assert (a - b).abs().max() <= bound


@pytest.mark.parametrize("family", FAMILIES)
def test_a_constant_picture_stays_constant(family):
    """Weights, kernels, mattes and steps add up to one everywhere: no edge glows, no border darkens."""
    grey = torch.full((4, 3, CROP + 2 * MARGIN, CROP + 2 * MARGIN), 0.6)
    recipe = only(family, full_precision=1, **PLAIN)
    for views in (False, True):
        blurred, sharp = degrade(grey, range(4), recipe, views=views)
        assert (sharp - 0.6).abs().max() <= 16 * EPS
        # Sums over a kernel of 49 x 49 in three layers.
        assert (blurred - 0.6).abs().max() <= 3 * (2 * REACH + 1) ** 2 * EPS


def test_identity_pairs_differ_by_the_camera_alone():
    sharp_windows = windows(4)
    blurred, sharp = degrade(sharp_windows, range(4), only("none", full_precision=1, **PLAIN))
    middle = sharp_windows[..., MARGIN:-MARGIN, MARGIN:-MARGIN]
    assert (blurred - sharp).abs().max() == 0
    assert (sharp - middle).abs().max() <= 12.92 * 16 * EPS, "the crop is the middle of the window"
    exposed = only("none", full_precision=1, **(PLAIN | {"exposed": 1, "contrasted": 1, "highlights": 1}))
    blurred, sharp = degrade(sharp_windows, range(4), exposed)
    assert (blurred - sharp).abs().max() == 0, "curve and white balance change both alike"
    assert (sharp - middle).abs().mean() > 0.01
    noisy = only("none", **(PLAIN | {"noisy": 1, "noise": (4.0, 4.0)}))
    blurred, sharp = degrade(sharp_windows, range(4), noisy)
    assert 0.5 < float((blurred - sharp).std()) * 255 < 8


def test_a_crop_lies_anywhere_on_the_grid_of_jpeg():
    """The file starts `offset` before the crop: its blocks do, too."""
    sharp_windows = windows(1, 32)
    plan = Plan(Light(), Bank(impulse()), Camera(quality=50))
    for y, x in ((0, 0), (3, 11)):
        blurred, _ = carry_out(sharp_windows, [replace(plan, offset=(y, x))])
        top, left = MARGIN - y, MARGIN - x
        file = sharp_windows[0, :, top : top + 32 + JPEG_GRID, left : left + 32 + JPEG_GRID]
        expected = jpeg(file.permute(1, 2, 0).numpy(), 50).transpose(2, 0, 1)[:, y : y + 32, x : x + 32]
        assert np.array_equal(blurred[0].numpy(), expected)


def test_left_and_right_views_are_halves_of_the_whole():
    sharp_windows = windows(6)
    for family in ("defocus", "layers"):
        recipe = only(family, full_precision=1, stored=1, radius=(4.0, 12.0), **PLAIN)
        whole, sharp = degrade(sharp_windows, range(6), recipe)
        pair, same = degrade(sharp_windows, range(6), recipe, views=True)
        assert torch.equal(sharp, same)
        assert (pair[:, :3] - pair[:, 3:]).abs().max() > 0.01
        if family == "defocus":  # layers cover one another by what each half of the lens sees
            assert ((pair[:, :3] + pair[:, 3:]) / 2 - whole).abs().max() <= (2 * REACH + 1) ** 2 * EPS


def test_pictures_need_not_be_square_or_coloured():
    window = windows(1, 32)[:, :1, : 16 + 2 * MARGIN]
    for seed in range(8):
        blurred, sharp = degrade(window, [seed])
        assert blurred.shape == sharp.shape == (1, 1, 16, 32)


def test_a_lamp_fills_its_disc_with_white():
    """It is clipped after the blur, not before: a hundredth of its light is white still."""
    dark = torch.full((1, 3, 33 + 2 * MARGIN, 33 + 2 * MARGIN), 0.1)
    # The file's middle is that of the crop and the rest of JPEG's grid, half a block further.
    lamp = np.array([[-JPEG_GRID / 2, -JPEG_GRID / 2, 1.5, 400, 400, 400]], np.float32)
    blurred, sharp = carry_out(dark, [Plan(Light(lamps=lamp), Bank(defocus(8.0)[None, None]), Camera())])
    y, x = np.mgrid[-16:17, -16:17]
    within, beyond = (torch.from_numpy(np.hypot(y, x)) < 5, torch.from_numpy(np.hypot(y, x)) > 11)
    assert (blurred[0][:, within] == 1).all()
    assert (blurred[0][:, beyond] - 0.1).abs().max() <= 0.5 / 255 + (2 * REACH + 1) ** 2 * EPS * 400
    assert int((sharp[0, 0] > 0.99).sum()) < 20


def test_windows_may_overshoot_a_little():
    """As resampled photographs do; a power of a negative number would be nan."""
    window = torch.full((1, 3, 8 + 2 * MARGIN, 8 + 2 * MARGIN), 1.02)
    window[..., ::3] = -0.02
    kept = window.clone()
    for plan in (Plan(Light(contrast=1.3), Bank(impulse()), Camera()), Plan(Light(), Bank(impulse()), Camera())):
        for image in carry_out(window, [plan]):
            assert image.min() >= 0
            assert image.max() <= 1
    assert torch.equal(window, kept)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"windows must be \(B, 1 or 3, h \+ "):
        degrade(torch.zeros(1, 3, 2 * MARGIN, 200), [0])
    with pytest.raises(ValueError, match="every window needs one seed or plan, found 2 for 1"):
        degrade(windows(1), [0, 1])
    for wrong in ({"radius": (3.0, 20.0)}, {"path": (9.0, 1.0)}, {"jpeg": 1.5}, {"colour": 1}, {"quality": (0, 90)}):
        with pytest.raises(ValidationError):
            Recipe(**wrong)
    with pytest.raises(ValidationError, match="at least one family"):
        Families(**dict.fromkeys(FAMILIES, 0.0))


# Shares and strengths


def quantile_bound(q, count, density):
    """Five deviations of a sample quantile, sqrt(q (1 - q) / n) / density."""
    return 5 * np.sqrt(q * (1 - q) / count) / density


@pytest.mark.parametrize(("lean", "span"), [(3.0, (0.4, 15.0)), (5.0, (0.0, 12.0)), (2.0, (0.0, 48.0))])
def test_strengths_follow_their_density(lean, span):
    rng, count = np.random.default_rng(0), 4000
    found = np.array([strength(rng, lean, span) for _ in range(count)])
    assert span[0] <= found.min() <= found.max() <= span[1]
    for q in (0.1, 0.5, 0.9, 0.99):
        s = 1 - (1 - q) ** (1 / lean)
        bound = quantile_bound(q, count, lean * (1 - s) ** (lean - 1)) * (span[1] - span[0])
        assert np.quantile(found, q) == pytest.approx(span[0] + (span[1] - span[0]) * s, abs=bound)


def plans_of(recipe, count, seed=1):
    return [draw(np.random.default_rng((seed, n)), CROP, CROP, recipe) for n in range(count)]


def test_quantiles_of_the_recipe_are_those_it_states():
    """The table of recipe.py, from the plans themselves: median and 90 % of paths, radii, noise and JPEG."""
    count = 400

    def check(found, median, most):
        for q, expected in ((0.5, median), (0.9, most)):
            share = np.mean(np.array(found) <= expected)
            assert abs(share - q) <= 5 * np.sqrt(q * (1 - q) / len(found)) + 1 / len(found)

    def travel(maps):
        path = moved(maps, corners(CROP + JPEG_GRID, CROP + JPEG_GRID))
        return np.linalg.norm(np.diff(path, axis=0), axis=-1).sum(0).mean()

    def radius(bank):  # of an even disc, sqrt of 4 times the variance
        axis = np.arange(bank.kernels.shape[-1]) - bank.kernels.shape[-1] // 2
        return np.sqrt(4 * float(bank.kernels[0, 0].sum(0) @ axis**2))

    # The margin cuts a few of the longest straight paths, beyond the ninth tenth.
    check([travel(plan.blur.camera) for plan in plans_of(only("shake"), count)], 9.0 * 1.01, 21.9)
    discs = [plan.blur for plan in plans_of(only("defocus", varying=0), count)]
    # Rims and blades change the variance of a disc by up to a third: only the middle is checked.
    assert np.median([radius(bank) for bank in discs if bank.weights is None]) == pytest.approx(3.4, rel=0.25)
    cameras = [plan.camera for plan in plans_of(only("none", jpeg=1, noisy=1), count)]
    shots = [np.sqrt(camera.shot * 0.18) * 1.195 * 255 for camera in cameras]
    check(shots, 1.55, 4.43)
    check([98 - camera.quality for camera in cameras], 14.5, 33.5)


def test_families_and_faults_come_in_their_shares():
    recipe, count = Recipe(), 1500
    plans = plans_of(recipe, count)

    def check(found, share):
        assert abs(found / count - share) <= 5 * np.sqrt(share * (1 - share) / count)

    families = recipe.families
    check(sum(isinstance(plan.blur, Motion) and plan.blur.thing is None for plan in plans), families.shake)
    check(sum(isinstance(plan.blur, Motion) and plan.blur.thing is not None for plan in plans), families.moving)
    check(sum(plan.blur.key[0] == "layers" for plan in plans), families.layers)
    check(sum(isinstance(plan.blur, Bank) and plan.blur.kernels.size == 1 for plan in plans), families.none)
    check(sum(plan.camera.quality is not None for plan in plans), recipe.jpeg)
    check(sum(plan.camera.shrink != 1 for plan in plans), recipe.resized)
    check(sum(plan.camera.shot > 0 for plan in plans), recipe.noisy)
    check(sum(plan.light.boost != 1 for plan in plans), recipe.highlights)
    check(sum(len(plan.light.lamps) > 0 for plan in plans), recipe.lamps)
    check(sum(plan.light.stored for plan in plans), recipe.stored)
    assert all(50 <= plan.camera.quality <= 98 for plan in plans if plan.camera.quality is not None)
    assert max(plan.light.boost for plan in plans) <= 16
    for plan in plans:
        if isinstance(plan.blur, Motion) and plan.blur.camera is not None:
            places = corners(CROP + JPEG_GRID, CROP + JPEG_GRID)
            assert np.abs(moved(plan.blur.camera, places) - places).max() < REACH


def test_lamps_lie_about_the_picture():
    lamps = random_lamps(np.random.default_rng(0), 50, 100, 200, 16.0)
    assert lamps.shape == (50, 6)
    assert np.abs(lamps[:, 0]).max() <= 55
    assert lamps[:, 3:].max(1).min() >= 1
    assert lamps[:, 3:].max() <= 16
