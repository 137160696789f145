"""Generated sharp pictures: dead leaves over textures.

Leaves of power-law radii (density r^-3) that hide one another give a picture the edge, contrast and spectrum statistics
of photographs at every scale (Lee, Mumford and Huang, "Occlusion models for natural images", 2001). Networks trained
on them restore photographs nearly as well as those trained on photographs (Achddou, Gousseau and Ladjal, 2021).
No photograph is read here, so every photograph can be used as a test.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

TEXTURES_PER_SCENE = 4
MAX_LEAVES = 900  # beyond this a 512x512 scene costs more than the crops drawn from it
COVER_LAYERS = 2.2  # mean number of leaves over a pixel; the rest is background


def power_noise(rng: np.random.Generator, side: int, exponent: float) -> Array:
    """(side, side) noise of amplitude spectrum f^-exponent, mean 0, deviation 1; 0 is white, 1 like photographs."""
    spectrum = np.fft.rfft2(rng.standard_normal((side, side), dtype=np.float32))
    fy, fx = np.fft.fftfreq(side).astype(np.float32), np.fft.rfftfreq(side).astype(np.float32)
    power = fy[:, None] ** 2 + fx[None, :] ** 2
    power[0, 0] = np.inf
    noise = np.fft.irfft2(spectrum * power ** np.float32(-exponent / 2), s=(side, side)).astype(np.float32)
    return noise / max(float(noise.std()), 1e-6)


def _rotated_ramp(rng: np.random.Generator, side: int) -> Array:
    angle = rng.uniform(0, np.pi)
    axis = np.arange(side, dtype=np.float32)
    return np.float32(np.cos(angle)) * axis[None, :] + np.float32(np.sin(angle)) * axis[:, None]


def _stripes(rng: np.random.Generator, side: int) -> Array:
    """Parallel bars in -1..1, from sinusoidal to hard-edged, straight or bent by smooth noise."""
    period = np.exp(rng.uniform(np.log(3.0), np.log(40.0)))
    phase = _rotated_ramp(rng, side) * np.float32(2 * np.pi / period)
    if rng.random() < 0.4:
        phase = phase + np.float32(rng.uniform(0.5, 3.0)) * power_noise(rng, side, 2.0)
    hardness = np.float32(np.exp(rng.uniform(np.log(0.5), np.log(period / 2))))
    return np.clip(hardness * np.sin(phase), -1, 1).astype(np.float32)


def make_texture(rng: np.random.Generator, side: int) -> Array:
    """One (side, side) texture of mean about 0 and standard deviation about 1."""
    kind = rng.choice(6, p=(0.45, 0.15, 0.1, 0.1, 0.1, 0.1))
    if kind == 0:
        return power_noise(rng, side, rng.uniform(0.4, 1.8))
    if kind == 1:
        return _stripes(rng, side)
    if kind == 2:  # checkers, or bars that cross
        return _stripes(rng, side) * _stripes(rng, side)
    if kind == 3:  # thin lines that cross
        return 2 * np.maximum(_stripes(rng, side), _stripes(rng, side)) - 1
    if kind == 4:  # hard-edged blotches: bark, stone, foliage from afar
        blotches = power_noise(rng, side, rng.uniform(0.8, 1.6))
        return np.clip(np.float32(rng.uniform(1, 6)) * blotches, -1, 1)
    noise = power_noise(rng, side, rng.uniform(0.6, 1.2))  # ridges: veins, hair, ripples
    return 1 - np.minimum(2 * np.abs(noise), 2)


def make_palette(rng: np.random.Generator) -> Array:
    """(K, 3) anchor colours in [0, 1]; muted more often than vivid, one picture in six without colour."""
    count = int(rng.integers(3, 8))
    value = rng.beta(0.9, 0.9, size=(count, 1))
    if rng.random() < 1 / 6:
        return np.repeat(value, 3, axis=1).astype(np.float32)
    tint = rng.uniform(-1, 1, size=(count, 3))
    saturation = rng.beta(1.2, 2.5, size=(count, 1))
    return np.clip(value * (1 + saturation * tint), 0, 1).astype(np.float32)


def _pick_colour(rng: np.random.Generator, palette: Array) -> Array:
    colour = palette[rng.integers(len(palette))]
    jitter = 0.08 * rng.standard_normal() + (0.02 * rng.standard_normal(3) if np.ptp(colour) > 0 else 0)
    return np.asarray(np.clip(colour + jitter, 0, 1), dtype=np.float32)


# Shapes of size r about the origin, as signed distance in pixels (inside negative, to first order) at points (u, v).
def _disc(rng: np.random.Generator, u: Array, v: Array, r: float) -> Array:
    return np.hypot(u, v) - np.float32(r)


def _ellipse(rng: np.random.Generator, u: Array, v: Array, r: float) -> Array:
    a, b = np.float32(r), np.float32(r * rng.uniform(0.2, 0.9))
    f = np.hypot(u / a, v / b)  # f - 1 over the length of its gradient
    return f * (f - 1) / np.maximum(np.hypot(u / a**2, v / b**2), np.float32(1e-6))


def _rectangle(rng: np.random.Generator, u: Array, v: Array, r: float) -> Array:
    return np.maximum(np.abs(u) - np.float32(r), np.abs(v) - np.float32(r * rng.uniform(0.1, 1.0)))


def _polygon(rng: np.random.Generator, u: Array, v: Array, r: float) -> Array:
    corners = int(rng.integers(3, 8))
    angles = 2 * np.pi * (np.arange(corners) + rng.uniform(-0.3, 0.3, corners)) / corners
    planes = [np.float32(np.cos(t)) * u + np.float32(np.sin(t)) * v for t in angles]
    return np.maximum.reduce(planes) - np.float32(r * rng.uniform(0.5, 0.9))


def _blob(rng: np.random.Generator, u: Array, v: Array, r: float) -> Array:
    lobes, phase = np.float32(rng.integers(2, 9)), np.float32(rng.uniform(0, 2 * np.pi))
    waves = np.float32(rng.uniform(0.05, 0.2)) * np.sin(lobes * np.arctan2(v, u) + phase)
    return np.hypot(u, v) - np.float32(r) * (np.float32(0.8) + waves)


def _stroke(rng: np.random.Generator, u: Array, v: Array, r: float) -> Array:
    return np.hypot(np.maximum(np.abs(u) - np.float32(r), 0), v) - np.float32(rng.uniform(0.4, 2.0))


def _ring(rng: np.random.Generator, u: Array, v: Array, r: float) -> Array:
    """Wire, hair, handwriting."""
    line = np.hypot(u, v - np.float32(r * 0.5)) - np.float32(r * 0.8)
    return np.abs(line) - np.float32(rng.uniform(0.4, 2.0))


_SHAPES = (_disc, _ellipse, _rectangle, _polygon, _blob, _stroke, _ring)
_SHAPE_SHARES = (0.2, 0.15, 0.2, 0.15, 0.12, 0.1, 0.08)


def _draw_leaf(rng: np.random.Generator, image: Array, palette: Array, textures: list[Array], r: float) -> None:
    """Lay one textured leaf over `image` (side, side, 3) in place; edges cover pixels by area."""
    side = image.shape[0]
    cy, cx = rng.uniform(-0.3 * r, side + 0.3 * r, 2)
    reach = 1.42 * r + 2  # half diagonal of a square
    y0, y1 = max(0, int(cy - reach)), min(side, int(cy + reach) + 1)
    x0, x1 = max(0, int(cx - reach)), min(side, int(cx + reach) + 1)
    if y0 >= y1 or x0 >= x1:
        return
    dy = (np.arange(y0, y1, dtype=np.float32) - np.float32(cy))[:, None]
    dx = (np.arange(x0, x1, dtype=np.float32) - np.float32(cx))[None, :]
    angle = rng.uniform(0, 2 * np.pi)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    u, v = cos * dx + sin * dy, cos * dy - sin * dx
    shape = _SHAPES[rng.choice(len(_SHAPES), p=_SHAPE_SHARES)]
    cover = np.clip(0.5 - shape(rng, u, v, r), 0, 1)[..., None]
    colour = _pick_colour(rng, palette)
    if rng.random() < 0.75:
        texture = textures[rng.integers(len(textures))]
        ty, tx = rng.integers(0, side - (y1 - y0) + 1), rng.integers(0, side - (x1 - x0) + 1)
        shade = np.float32(rng.exponential(0.07)) * texture[ty : ty + y1 - y0, tx : tx + x1 - x0]
        shade = shade + np.float32(0.12 * rng.standard_normal() / r) * u  # light from one side
        tint = colour + 0.15  # textures follow the leaf's colour and stay neutral on gray
        paint: Array = colour + shade[..., None] * (tint / tint.mean())
    else:
        paint = colour
    patch = image[y0:y1, x0:x1]
    patch += cover * (paint - patch)


def _leaf_radii(rng: np.random.Generator, side: int) -> Array:
    """Radii of density r^-3 between random bounds, enough of them for COVER_LAYERS, largest never above side / 3."""
    low, high = np.exp(rng.uniform(np.log(2.5), np.log(14.0))), side / 3
    mean_area = 2 * np.pi * low**2 * np.log(high / low)  # of that density, about
    count = int(min(MAX_LEAVES * (side / 512) ** 2, COVER_LAYERS * side**2 / mean_area)) + 1
    share = rng.random(count)  # inverse of the cumulative density
    return (low / np.sqrt(1 - share * (1 - (low / high) ** 2))).astype(np.float32)


def soften(image: Array, sigma: float) -> Array:
    """A Gaussian of `sigma` pixels over (side, side, 3), wrapped at the edges: lens, sensor and demosaicing."""
    side = image.shape[0]
    fy, fx = np.fft.fftfreq(side).astype(np.float32), np.fft.rfftfreq(side).astype(np.float32)
    response = np.exp(np.float32(-2 * (np.pi * sigma) ** 2) * (fy[:, None] ** 2 + fx[None, :] ** 2))
    spectrum = np.fft.rfft2(image, axes=(0, 1)) * response[..., None]
    return np.fft.irfft2(spectrum, s=(side, side), axes=(0, 1)).astype(np.float32)


def make_scene(rng: np.random.Generator, side: int) -> Array:
    """One sharp picture (side, side, 3), float32 in [0, 1], values as a file stores them.

    It is as sharp as a good camera's picture, not sharp to the pixel. Without this softening, a network trained for
    1000 steps treated every photograph as blurred: for a disc of radius 1.5 over a picture of a cat, it lost 1.6 dB
    instead of gaining.
    """
    textures = [make_texture(rng, side) for _ in range(TEXTURES_PER_SCENE)]
    palette = make_palette(rng)
    low, high = _pick_colour(rng, palette), _pick_colour(rng, palette)
    mix = 0.5 + np.float32(rng.uniform(0.1, 0.4)) * textures[0]
    image = low + mix[..., None] * (high - low)
    if rng.random() < 0.9:
        for r in _leaf_radii(rng, side):
            _draw_leaf(rng, image, palette, textures, float(r))
    if rng.random() < 0.5:  # the same light and grain over the whole picture
        image *= (1 + np.float32(rng.exponential(0.04)) * textures[-1])[..., None]
    if rng.random() < 0.5:
        image *= (1 + np.float32(rng.uniform(0, 0.15)) * power_noise(rng, side, 2.0))[..., None]
    contrast, centre = np.float32(rng.uniform(0.6, 1.15)), np.float32(rng.uniform(0.35, 0.6))
    if rng.random() < 0.3:  # haze, fur, walls: the blur of a faint texture is not the blur of an edge
        contrast *= np.float32(rng.uniform(0.15, 0.7))
    sigma = rng.uniform(0.35, 1.1) if rng.random() < 0.6 else rng.uniform(1.0, 2.6)
    image = soften(centre + contrast * (image - np.float32(0.5)), sigma)
    return np.clip(image, 0, 1)
