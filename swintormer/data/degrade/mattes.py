"""Outlines of things that stand or move in front of others."""

from __future__ import annotations

import numpy as np

from swintormer.data.degrade.bank import Array


def random_matte(rng: np.random.Generator, height: int, width: int) -> Array:
    """(height, width) in [0, 1], 1 inside: a body (half of them), a side or bars."""
    kind = rng.choice(3, p=(0.5, 0.25, 0.25))
    return (body, side, bars)[kind](rng, height, width)


def body(rng: np.random.Generator, height: int, width: int, small: bool = False) -> Array:
    """A round thing with bumps somewhere in the picture; `small` ones leave most of it free."""
    least = min(height, width)
    radius = least * (rng.uniform(0.08, 0.25) if small else rng.uniform(0.12, 0.45))
    y = np.arange(height, dtype=np.float32)[:, None] - np.float32(height * rng.uniform(0.25, 0.75))
    x = np.arange(width, dtype=np.float32)[None, :] - np.float32(width * rng.uniform(0.25, 0.75))
    stretch = np.float32(np.exp(rng.uniform(-0.5, 0.5)))
    y, x = y * stretch, x / stretch
    distance, angle = np.hypot(y, x), np.arctan2(y, x)
    outline = np.ones_like(distance)
    for waves in range(2, 8):
        outline += np.float32(rng.normal(0, 0.35 / waves)) * np.cos(waves * angle + np.float32(rng.uniform(0, 6.3)))
    return _cover(rng, np.float32(radius) * np.maximum(outline, np.float32(0.15)) - distance)


def side(rng: np.random.Generator, height: int, width: int) -> Array:
    """Everything on one side of a wavy line near the middle."""
    along, across = _axes(rng, height, width)
    least = min(height, width)
    edge = np.full_like(along, rng.uniform(-0.2, 0.2) * least)
    for _ in range(3):
        period = least * rng.uniform(0.15, 1.5)
        edge += np.float32(0.06 * period * rng.normal()) * np.sin(along * np.float32(2 * np.pi / period))
    return _cover(rng, edge - across)


def bars(rng: np.random.Generator, height: int, width: int) -> Array:
    """Twigs, wires, a fence: one to six bars of 2 to 14 pixels, bent a little."""
    inside = np.full((height, width), -np.inf, np.float32)
    least = min(height, width)
    for _ in range(int(rng.integers(1, 7))):
        along, across = _axes(rng, height, width)
        period = np.float32(least * rng.uniform(0.5, 2.0))
        bend = np.float32(rng.normal(0, 0.03)) * period * np.sin(along * (2 * np.float32(np.pi) / period))
        place, half = np.float32(rng.uniform(-0.35, 0.35) * least), np.float32(rng.uniform(1.0, 7.0))
        inside = np.maximum(inside, half - np.abs(across - place - bend))
    return _cover(rng, inside)


def _cover(rng: np.random.Generator, inside: Array) -> Array:
    """The share of each pixel that lies within an outline, `inside` pixels from it.

    Edges are 1 to 2.4 pixels wide, as a sharp photograph's are. Against lamps, edges of one pixel look like stairs.
    """
    return np.clip(inside * np.float32(0.5 / rng.uniform(0.5, 1.2)) + np.float32(0.5), 0, 1)


def _axes(rng: np.random.Generator, height: int, width: int) -> tuple[Array, Array]:
    """Coordinates along and across a direction, from the middle, each (height, width)."""
    angle = rng.uniform(0, 2 * np.pi)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    y = np.arange(height, dtype=np.float32)[:, None] - np.float32((height - 1) / 2)
    x = np.arange(width, dtype=np.float32)[None, :] - np.float32((width - 1) / 2)
    return cos * x + sin * y, cos * y - sin * x
