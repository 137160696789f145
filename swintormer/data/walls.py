"""Generated walls: courses of bricks, tiles, planks or slats with joints that are soft by nature.

A band of mortar some pixels wide, light on a plain face and with rounded shoulders, looks like a thin line out of
focus. Only the fine grain beside it tells that nothing is blurred. Photographs show that too seldom: a network that
took 12,358 steps of 16 pairs, nearly all of photographs, made the joints of `brick`, a test picture, thinner and
brighter, and lost up to 6.6 dB (swintormer/assets/MODEL_CARD.md). Walls of all widths, shoulders and grains, blurred
and not, teach it to look at the grain, so every wall has some.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from swintormer.data.scenes import make_palette, make_texture, power_noise, soften

Array = NDArray[np.float32]

COURSE = (9.0, 90.0)  # height of a course in pixels, log-uniform
WIDEST = 0.35  # of a joint, in heights of a course
PLANKS = 0.25  # share of walls whose courses have no joints across
TILT = 0.5  # largest difference of depth from one side of the picture to the other, where the middle's is 1
GRAIN = 0.006  # least deviation of the grain, before the picture is softened


def _plane(rng: np.random.Generator, side: int) -> tuple[Array, Array, Array]:
    """The wall at a slant: its coordinates (u, v) at every pixel, and how many of its pixels a picture's pixel spans.

    All are (side, side). Coordinates are in pixels of the wall, which are those of the picture in its middle.
    """
    axis = np.arange(side, dtype=np.float32) - np.float32(side / 2)
    y, x = axis[:, None], axis[None, :]
    angle = rng.uniform(0, 2 * np.pi) if rng.random() < 0.3 else rng.choice(4) * np.pi / 2 + rng.normal(0, 0.06)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    tilt = rng.uniform(-TILT, TILT, 2).astype(np.float32) / side
    depth = 1 + tilt[0] * x + tilt[1] * y
    u, v = (cos * x + sin * y) / depth, (cos * y - sin * x) / depth
    wave = np.float32(rng.exponential(1.0))  # pixels by which it is uneven
    return u + wave * power_noise(rng, side, 2.0), v + wave * power_noise(rng, side, 2.0), 1 / depth**2


def _distance(at: Array, period: float) -> Array:
    """Distance to the nearest multiple of `period`."""
    return np.abs(at - np.float32(period) * np.round(at / np.float32(period)))


def _joints(rng: np.random.Generator, u: Array, v: Array, height: float) -> tuple[Array, NDArray[np.int64]]:
    """The distance of each place from the middle of the nearest joint, in pixels, and the number of its brick.

    Args:
        u, v: coordinates along the courses and across. height: of a course.

    Returns:
        Both as u and v; bricks are counted from 0.
    """
    v = v + np.float32(rng.uniform(0, height))
    course = np.floor(v / np.float32(height)).astype(np.int64)
    distance = _distance(v, height)
    length = height * rng.uniform(1.0, 4.5)
    bond = rng.choice([0.0, 1 / 3, 0.5, rng.random()])  # shift from course to course
    along = u + np.float32(rng.uniform(0, length)) + np.float32(bond * length) * course.astype(np.float32)
    if rng.random() < PLANKS:
        brick = course
    else:
        distance = np.minimum(distance, _distance(along, length))
        brick = course * 100_000 + np.floor(along / np.float32(length)).astype(np.int64)
    return distance, np.unique(brick, return_inverse=True)[1].reshape(brick.shape)


def _paint(rng: np.random.Generator, side: int, colour: Array, amplitude: float) -> Array:
    """(side, side, 3) of a colour with a texture and grain to the pixel."""
    texture = np.float32(rng.exponential(amplitude)) * make_texture(rng, side)
    grain = np.float32(GRAIN + rng.exponential(GRAIN)) * rng.standard_normal((side, side), dtype=np.float32)
    return colour + (texture + grain)[..., None]


def make_wall(rng: np.random.Generator, side: int) -> Array:
    """One sharp picture (side, side, 3), float32 in [0, 1], values as a file stores them."""
    u, v, span = _plane(rng, side)
    height = float(np.exp(rng.uniform(*np.log(COURSE))))
    distance, brick = _joints(rng, u, v, height)
    half = max(0.6, 0.5 * height * WIDEST * rng.random())  # of a joint's width
    shoulder = float(np.exp(rng.uniform(np.log(0.5), np.log(max(1.0, 2 * half)))))
    # A shoulder narrower than a pixel covers it in part.
    cover = np.clip((np.float32(half) - distance) / np.maximum(np.float32(shoulder), span) + np.float32(0.5), 0, 1)
    if rng.random() < 0.7:
        cover = cover * cover * (3 - 2 * cover)  # rounded
    cover = cover * (1 + np.float32(rng.uniform(0, 0.15)) * power_noise(rng, side, 1.0))

    palette = make_palette(rng)
    palette = palette + np.float32(rng.random()) * (palette.mean(1, keepdims=True) - palette)  # stones are muted
    face, joint = palette[rng.choice(len(palette), 2, replace=False)]
    joint = face + np.float32(rng.uniform(0.3, 1.0)) * (joint - face)
    shade = np.float32(rng.exponential(0.02)) * rng.standard_normal(brick.max() + 1, dtype=np.float32)  # of each brick
    faces = _paint(rng, side, face, 0.025) + shade[brick][..., None]
    image = faces + cover[..., None] * (_paint(rng, side, joint, 0.025) - faces)
    if rng.random() < 0.4:  # a dark line at the joint's foot
        width = np.maximum(np.float32(rng.uniform(0.8, 2.5)), span)
        line = np.clip(1 - np.abs(distance - np.float32(half + shoulder / 2)) / width, 0, 1)
        image -= (np.float32(rng.uniform(0, 0.2)) * line)[..., None]
    image *= (1 + np.float32(rng.uniform(0, 0.12)) * power_noise(rng, side, 2.0))[..., None]
    return np.clip(soften(image, rng.uniform(0.3, 0.9)), 0, 1)


class WallWindows:
    """`windows[i]` is a window (3, side, side), float32 in [0, 1], of a wall of its own; any i >= 0."""

    def __init__(self, key: tuple[int, ...], side: int):
        self.key, self.side = key, side

    def __getitem__(self, index: int) -> torch.Tensor:
        wall = make_wall(np.random.default_rng((*self.key, index)), self.side)
        return torch.from_numpy(np.ascontiguousarray(wall.transpose(2, 0, 1)))
