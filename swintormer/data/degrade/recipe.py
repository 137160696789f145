"""How often which fault occurs, and how strong it is.

Every strength is drawn from one density: s in [0, 1] with p(s) = k (1 - s)^(k - 1), Beta(1, k), so small faults are
common and large ones rare. The quantile q is 1 - (1 - q)^(1 / k). A size goes linearly from its least (s = 0) to its
greatest (s = 1):

    | fault                        | from | to  | k | median | 90 % | 99 % |
    |------------------------------|------|-----|---|--------|------|------|
    | radius of defocus, pixels    | 0.4  | 15  | 3 | 3.4    | 8.2  | 11.9 |
    | path of motion, pixels       | 1    | 40  | 3 | 9.0    | 21.9 | 31.6 |
    | Gaussian sigma, pixels       | 0.3  | 5   | 3 | 1.3    | 2.8  | 4.0  |
    | noise at middle grey, 1/255  | 0    | 12  | 5 | 1.6    | 4.4  | 7.2  |
    | JPEG, 98 - quality           | 0    | 48  | 2 | 14     | 33   | 43   |

The shares are what training showed. With 12 % of pictures without blur, noise in 80 % and soft truths (`soft` of
`[data]`) in 35 %, 4,250 steps of `small` gained +0.65 dB on the ten faults of `swintormer evaluate` and +1.15 on the
ten of cameras; 500 steps more with the shares below, +0.99 and +1.10, and a sharp picture stays 3 dB nearer to itself.

L1 counts a strongly blurred picture for more than one that needs little, and so restores more. Under the mean PSNR
every picture counts alike, and the network restores less: 400 steps of 8 from weights that gained +1.10 dB on the 20
faults of `swintormer evaluate` brought it to +0.82, and with L1 to +1.05. The last part of `strong` uses it for that,
at a low rate (MODEL_CARD.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from swintormer.data.blurs import motion_kernel, random_path, smooth_field
from swintormer.data.degrade.bank import (
    REACH,
    Array,
    Bank,
    blend_weights,
    combined,
    impulse,
    reach_for,
)
from swintormer.data.degrade.camera import Camera, noise_for_mid_grey
from swintormer.data.degrade.defocus import (
    Aperture,
    Layers,
    cats_eyes,
    defocus,
    layer_kernels,
    views_of,
)
from swintormer.data.degrade.gaussian import TAIL, gaussian
from swintormer.data.degrade.light import Light
from swintormer.data.degrade.mattes import body, random_matte
from swintormer.data.degrade.motion import Maps, Motion, random_camera_maps, steps_for, thing_maps

Blur: TypeAlias = Bank | Layers | Motion
JPEG_GRID = 16  # JPEG's block with halved chroma: crops start anywhere on it, as in a file
MARGIN = JPEG_GRID + REACH
Range: TypeAlias = tuple[float, float]


@dataclass(frozen=True)
class Plan:
    """Everything that happens to one sample, in numbers.

    Attributes:
        offset: (y, x) of the crop on JPEG's grid, 0 to JPEG_GRID - 1.
        views: pictures that the camera takes at once, 2 with a dual-pixel sensor.
    """

    light: Light
    blur: Blur
    camera: Camera
    offset: tuple[int, int] = (0, 0)
    views: int = 1


class Families(BaseModel):
    """How often each kind of blur occurs, relative to the others."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    none: float = Field(default=0.22, ge=0)
    gaussian: float = Field(default=0.16, ge=0)
    defocus: float = Field(default=0.22, ge=0)
    layers: float = Field(default=0.12, ge=0)
    shake: float = Field(default=0.17, ge=0)
    moving: float = Field(default=0.06, ge=0)
    mixed: float = Field(default=0.05, ge=0)

    @model_validator(mode="after")
    def _not_all_zero(self) -> Families:
        if sum(self.model_dump().values()) <= 0:
            raise ValueError("at least one family of blurs needs a share above 0")
        return self


class Recipe(BaseModel):
    """Shares and strengths of the faults. Shares are of all samples; strengths are explained above.

    Attributes:
        lean: k of the sizes of blurs.
        varying: share of Gaussian and defocus blurs that vary over the picture.
        sharp_somewhere: share of the varying blurs and of the layers with a place in focus.
        highlights: share of pictures whose brightest values are raised, 1 to `brightest` times.
        lamps: share of pictures with point lights.
        exposed: share of pictures with another exposure and white balance.
        contrasted: share of pictures with a tone curve of more contrast than sRGB's.
        stored: share of pictures in which stored values are blurred, as editors and some published test sets do.
        noisy, grainy: share of pictures with noise, and with noise that neighbours share.
        resized: share of pictures that were made smaller, down to half, and large again.
        full_precision: share of pictures that are not rounded to 8 bits, of those without JPEG.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    families: Families = Families()
    lean: float = Field(default=3.0, ge=1)
    radius: Range = (0.4, 15.0)
    path: Range = (1.0, 40.0)
    sigma: Range = (0.3, 5.0)
    varying: float = Field(default=0.6, ge=0, le=1)
    sharp_somewhere: float = Field(default=0.5, ge=0, le=1)
    highlights: float = Field(default=0.3, ge=0, le=1)
    brightest: float = Field(default=16.0, ge=1)
    lamps: float = Field(default=0.06, ge=0, le=1)
    exposed: float = Field(default=0.3, ge=0, le=1)
    contrasted: float = Field(default=0.3, ge=0, le=1)
    stored: float = Field(default=0.3, ge=0, le=1)
    noisy: float = Field(default=0.5, ge=0, le=1)
    noise: Range = (0.0, 12.0)
    noise_lean: float = Field(default=5.0, ge=1)
    grainy: float = Field(default=0.5, ge=0, le=1)
    resized: float = Field(default=0.05, ge=0, le=1)
    jpeg: float = Field(default=0.3, ge=0, le=1)
    quality: tuple[int, int] = (50, 98)
    quality_lean: float = Field(default=2.0, ge=1)
    full_precision: float = Field(default=0.1, ge=0, le=1)

    @model_validator(mode="after")
    def _ranges(self) -> Recipe:
        limits = {"radius": (0, 15), "path": (0, 40), "sigma": (0.05, 8), "noise": (0, 255), "quality": (1, 100)}
        for name, (least, most) in limits.items():
            low, high = getattr(self, name)
            if not least <= low <= high <= most:
                raise ValueError(f"{name} must be two rising numbers within {least} and {most}, found {low}, {high}")
        return self


def strength(rng: np.random.Generator, lean: float, span: Range = (0.0, 1.0)) -> float:
    """A number of the density above, by its quantile function."""
    s = 1 - (1 - rng.random()) ** (1 / lean)
    return float(span[0] + (span[1] - span[0]) * s)


def draw(rng: np.random.Generator, height: int, width: int, recipe: Recipe, views: int = 1) -> Plan:
    """The plan of one crop (height, width)."""
    light = _light(rng, height, width, recipe)
    shares = np.array(list(recipe.families.model_dump().values()))
    family = list(FAMILIES)[rng.choice(len(shares), p=shares / shares.sum())]
    blur = FAMILIES[family](rng, height + JPEG_GRID, width + JPEG_GRID, recipe, views)
    y, x = (int(n) for n in rng.integers(0, JPEG_GRID, 2))
    return Plan(light, blur, _camera(rng, recipe), (y, x), views)


def _light(rng: np.random.Generator, height: int, width: int, recipe: Recipe) -> Light:
    gains, contrast, boost = (1.0, 1.0, 1.0), 1.0, 1.0
    if rng.random() < recipe.exposed:
        exposure, tint = np.exp(rng.uniform(-0.7, 0.2)), np.exp(rng.normal(0, 0.06, 2))
        gains = (float(exposure * tint[0]), float(exposure), float(exposure * tint[1]))
    if rng.random() < recipe.contrasted:
        contrast = float(rng.uniform(1.0, 1.4))
    if rng.random() < recipe.highlights:
        boost = float(np.exp(rng.uniform(0, np.log(recipe.brightest))))
    lamps = np.zeros((0, 6), np.float32)
    if rng.random() < recipe.lamps:
        lamps = random_lamps(rng, int(rng.integers(1, 9)), height, width, recipe.brightest)
    return Light(gains, contrast, rng.random() < recipe.stored, float(rng.uniform(0.85, 0.97)), boost, lamps)


def random_lamps(rng: np.random.Generator, count: int, height: int, width: int, brightest: float = 16.0) -> Array:
    """(count, 6) point lights for `Light`: radius 0.5 to 2.5 pixels, light of 1 to `brightest`, some coloured."""
    y, x = rng.uniform(-0.55, 0.55, (2, count)) * np.array([[height], [width]])
    colour = np.exp(-rng.exponential(0.4, (count, 3)))
    light = np.exp(rng.uniform(0, np.log(brightest), (count, 1))) * colour / colour.max(1, keepdims=True)
    return np.column_stack([y, x, rng.uniform(0.5, 2.5, count), light]).astype(np.float32)


def _camera(rng: np.random.Generator, recipe: Recipe) -> Camera:
    shot = read = 0.0
    if rng.random() < recipe.noisy:
        shot, read = noise_for_mid_grey(strength(rng, recipe.noise_lean, recipe.noise) / 255)
        read *= float(np.exp(rng.normal(0, 0.26)))
    balance = (float(rng.uniform(1.2, 2.4)), 1.0, float(rng.uniform(1.2, 2.4)))
    grain = float(rng.uniform(0, 0.6)) if rng.random() < recipe.grainy else 0.0
    shrink = 1 + strength(rng, 2.0) if rng.random() < recipe.resized else 1.0
    quality, eight_bits = None, True
    if rng.random() < recipe.jpeg:
        low, high = recipe.quality
        quality = round(high - strength(rng, recipe.quality_lean, (0, high - low)))
    else:
        eight_bits = rng.random() >= recipe.full_precision
    return Camera(shot, read, balance, grain, shrink, eight_bits, quality, int(rng.integers(2**63)))


def random_aperture(rng: np.random.Generator) -> Aperture:
    """A lens: half of them round, half with 5 to 9 blades; rims even, soft or bright."""
    blades = int(rng.integers(5, 10)) if rng.random() < 0.5 else 0
    rim = float(rng.choice((0.0, rng.uniform(-1, 0), rng.uniform(0, 2)), p=(0.4, 0.3, 0.3)))
    return Aperture(
        float(rng.uniform(0.5, 1.0)), rim, blades, float(rng.uniform(0, 2 * np.pi)), float(rng.uniform(0, 0.8))
    )


def _none(rng: np.random.Generator, height: int, width: int, recipe: Recipe, views: int) -> Bank:
    return Bank(impulse(views))


def _gaussian(rng: np.random.Generator, height: int, width: int, recipe: Recipe, views: int) -> Bank:
    ratio, angle = (1.0, 0.0) if rng.random() < 0.5 else (float(rng.uniform(0.3, 1.0)), float(rng.uniform(0, np.pi)))
    sigmas = _sizes(rng, recipe, recipe.sigma, spacing=1.0)
    reach = reach_for(TAIL * float(np.max(sigmas)))
    kernels = np.stack([gaussian(max(s, 0.05), ratio, angle, reach) for s in sigmas])
    return _bank(rng, np.repeat(kernels[None], views, 0), height, width)


def _defocus(rng: np.random.Generator, height: int, width: int, recipe: Recipe, views: int) -> Bank:
    aperture, sign = random_aperture(rng), float(rng.choice((-1, 1)))
    if rng.random() < 0.25:
        return _cats_eyes(rng, height, width, recipe, views, aperture)
    radii = _sizes(rng, recipe, recipe.radius, spacing=1.5)
    if len(radii) > 1 and radii[0] == 0 and rng.random() < 0.4:  # the focus lies within: blurs on both sides of it
        radii = np.concatenate([-radii[:0:-1], radii])[:: 1 if len(radii) < 5 else 2]
    radii = sign * radii
    kernels = layer_kernels(list(radii), aperture, views)
    return _bank(rng, kernels, height, width)


def _cats_eyes(
    rng: np.random.Generator, height: int, width: int, recipe: Recipe, views: int, aperture: Aperture
) -> Bank:
    """Nine kernels: the crop is one half to one sixth of a photograph's width, and its blur rises to one side."""
    radius, sign = strength(rng, recipe.lean, recipe.radius), float(rng.choice((-1, 1)))
    part = 1 / rng.uniform(2, 6)
    middle = rng.uniform(part - 1, 1 - part, 2)
    slope, cut = rng.uniform(-0.3, 0.3, 2), float(rng.uniform(0.4, 1.0))
    nodes = [np.array([y, x]) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    radii = [sign * float(np.clip(radius * (1 + slope @ node), *recipe.radius)) for node in nodes]
    return cats_eyes(radii, [middle + part * node for node in nodes], cut, aperture, views, (height, width))


def _layers(rng: np.random.Generator, height: int, width: int, recipe: Recipe, views: int) -> Layers:
    count = 2 if rng.random() < 0.7 else 3
    radii = [strength(rng, recipe.lean, recipe.radius) * float(rng.choice((-1, 1))) for _ in range(count)]
    if rng.random() < recipe.sharp_somewhere:
        radii[rng.integers(count)] = 0.0
    mattes = [random_matte(rng, height + 2 * REACH, width + 2 * REACH) for _ in range(count - 1)]
    # The same picture in two depths now and then: a jump of the blur where there is no edge.
    turns = (0, *(int(t) for t in rng.choice((0, 1, 2, 3), count - 1, p=(0.2, 0.3, 0.25, 0.25))))
    return Layers(layer_kernels(radii, random_aperture(rng), views), np.stack(mattes), turns)


def _shake(rng: np.random.Generator, height: int, width: int, recipe: Recipe, views: int) -> Motion:
    return Motion(random_camera_maps(rng, strength(rng, recipe.lean, recipe.path), height, width))


def _moving(rng: np.random.Generator, height: int, width: int, recipe: Recipe, views: int) -> Motion:
    length = strength(rng, recipe.lean, recipe.path)
    steps = steps_for(length)
    camera = None
    if rng.random() < 0.4:
        camera = random_camera_maps(rng, strength(rng, recipe.lean, (recipe.path[0], steps)), height, width)
        camera = _resampled(camera, steps)
    turns = np.linspace(-0.5, 0.5, steps) * rng.normal(0, 0.05)
    thing = thing_maps(random_path(rng, length, steps), turns)
    matte = body(rng, height + 2 * REACH, width + 2 * REACH)
    return Motion(camera, thing, matte, int(rng.integers(4)))


def _resampled(maps: Maps, steps: int) -> Maps:
    """`steps` of the maps, evenly."""
    return maps[np.linspace(0, len(maps) - 1, steps).round().astype(int)]


def _mixed(rng: np.random.Generator, height: int, width: int, recipe: Recipe, views: int) -> Bank:
    """Two blurs after another, each of half the reach of a single one."""
    radius = min(strength(rng, recipe.lean, recipe.radius), 7.0) * float(rng.choice((-1, 1)))
    if rng.random() < 0.6:
        first = views_of(defocus(radius, random_aperture(rng)), radius, views)
    else:
        sigma = min(strength(rng, recipe.lean, recipe.sigma), 2.6)
        first = np.repeat(gaussian(sigma)[None], views, 0)
    length = min(strength(rng, recipe.lean, recipe.path), 20.0)
    second = _trimmed(motion_kernel(random_path(rng, length)), REACH - first.shape[-1] // 2)
    return Bank(combined(first[:, None], second[None, None]))


def _trimmed(kernel: Array, most: int) -> Array:
    """A kernel without its empty rim, of reach `most` at most."""
    middle = kernel.shape[0] // 2
    rows, columns = np.nonzero(kernel)
    reach = min(int(max(np.abs(rows - middle).max(), np.abs(columns - middle).max())), most)
    part = kernel[middle - reach : middle + reach + 1, middle - reach : middle + reach + 1]
    return part / part.sum()


def _sizes(rng: np.random.Generator, recipe: Recipe, span: Range, spacing: float) -> Array:
    """One size, or rising ones at most about `spacing` apart that a picture's blur runs through, seven at most."""
    most = strength(rng, recipe.lean, span)
    if rng.random() >= recipe.varying:
        return np.array([most], np.float32)
    least = 0.0 if rng.random() < recipe.sharp_somewhere else max(span[0], most * rng.uniform(0.2, 0.9))
    count = int(np.clip(np.ceil((most - least) / spacing) + 1, 2, 7))
    return np.linspace(least, most, count, dtype=np.float32)


def _bank(rng: np.random.Generator, kernels: Array, height: int, width: int) -> Bank:
    """The kernels (V, K, k, k) laid out over a picture: along waves, or up a slope as of a floor."""
    count = kernels.shape[1]
    if count == 1:
        return Bank(kernels)
    if rng.random() < 0.5:
        field = smooth_field(rng, height, width)
    else:
        y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
        x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
        angle, steep = rng.uniform(0, 2 * np.pi), rng.uniform(0.4, 2.0)
        field = np.clip(
            np.float32(0.5) + np.float32(0.5 * steep) * (np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y),
            0,
            1,
        )
    return Bank(kernels, blend_weights(field * np.float32(count - 1), count))


FAMILIES: dict[str, Callable[[np.random.Generator, int, int, Recipe, int], Blur]] = {
    "none": _none,
    "gaussian": _gaussian,
    "defocus": _defocus,
    "layers": _layers,
    "shake": _shake,
    "moving": _moving,
    "mixed": _mixed,
}
