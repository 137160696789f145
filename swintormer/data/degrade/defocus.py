"""Defocus: the aperture's image at every point, and depth in layers that hide one another.

Layers are composed back to front. Each is blurred together with its matte, premultiplied, and laid over what is behind
it by its blurred matte. Blurring the finished picture instead would smear a sharp foreground into its background, and
laying an unmatted blur over it would make its edges glow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from swintormer.data.degrade.bank import REACH, Array, Bank, Convolver, grid, grid_weights, inner, padded, reach_for
from swintormer.data.degrade.stacks import rows


@dataclass(frozen=True)
class Aperture:
    """The shape of a point out of focus, apart from its size.

    Attributes:
        softness: half the width of the edge, in pixels; 0.5 covers pixels by area. At most radius + 0.5 of it is used,
            so that radius 0 is the identity.
        rim: light at the edge, from -1 (fades out) over 0 (even) to bright rims of 2 (three times the middle's).
        blades: sides of the polygon, 0 for a disc.
        turn: angle of the first blade in radians.
        roundness: 0 for straight blades, 1 for a disc.
    """

    softness: float = 0.5
    rim: float = 0.0
    blades: int = 0
    turn: float = 0.0
    roundness: float = 0.0


DISC = Aperture()


def defocus_reach(radius: float, aperture: Aperture = DISC) -> int:
    """One of REACHES, for kernels of this signed radius: a pentagon's corners lie 1.15 times as far as a disc's rim."""
    furthest = _corner(aperture.blades) if aperture.blades else 1.0
    return reach_for(abs(radius) * furthest + aperture.softness)


def defocus(
    radius: float, aperture: Aperture = DISC, vignette: tuple[float, float] = (0.0, 0.0), reach: int | None = None
) -> Array:
    """(2 r + 1, 2 r + 1) of sum 1: the image of a point.

    Args:
        radius: in pixels; polygons have the area of that disc. Its sign, the side of the focus, only matters for views.
        vignette: (y, x) offset of the lens's second opening, in radii, which cuts the disc to a cat's eye: 0 in the
            middle of a picture, to about 1 in its corners.
    """
    size = abs(radius)
    y, x = grid(defocus_reach(size, aperture) if reach is None else reach)
    distance = _distance(y, x, aperture)
    if vignette != (0.0, 0.0):
        # Two openings, moved apart by half the offset each, so that the image of a point stays in its place.
        dy, dx = (0.5 * size * offset for offset in vignette)
        distance = np.maximum(_distance(y - dy, x - dx, aperture), np.hypot(y + dy, x + dx))
    softness = min(aperture.softness, size + 0.5)  # polygons would reach the next pixel at radius 0
    kernel = np.clip((size - distance) / (2 * softness) + 0.5, 0, 1)
    if aperture.rim:
        kernel *= np.maximum(1 + aperture.rim * np.minimum(distance / max(size, 1e-6), 1) ** 4, 0)
    middle = kernel.shape[0] // 2
    kernel[middle, middle] = max(kernel[middle, middle], 1e-3)  # a radius near 0 is the identity
    return (kernel / kernel.sum()).astype(np.float32)


def _corner(blades: int) -> float:
    """Distance of the corners of a polygon of area pi."""
    return float(np.sqrt(2 * np.pi / (blades * np.sin(2 * np.pi / blades))))


def _distance(y: Array, x: Array, aperture: Aperture) -> NDArray[np.floating]:
    """Radius of the aperture on whose rim a point lies."""
    circle = np.hypot(y, x)
    if not aperture.blades:
        return circle
    angles = aperture.turn + 2 * np.pi * np.arange(aperture.blades) / aperture.blades
    sides = np.max([np.cos(t) * x + np.sin(t) * y for t in angles], axis=0)
    apothem = _corner(aperture.blades) * np.cos(np.pi / aperture.blades)
    return (1 - aperture.roundness) * sides / apothem + aperture.roundness * circle


def halves(kernel: Array, radius: float) -> Array:
    """(2, k, k): what the left and the right half of the aperture see, each of sum 1; their mean is the kernel.

    A dual-pixel sensor reads both. The halves change sides with the sign of the radius: in front of the focus, or
    behind it. Real halves overlap a little (Punnappurath et al., "Modeling defocus-disparity in dual-pixel sensors",
    2020): the light changes from one to the other over a third of the disc.
    """
    columns = kernel.sum(axis=0, dtype=np.float64)
    x = np.arange(len(columns)) - len(columns) // 2
    width = max(abs(radius) / 3, 1.0)
    low, high = float(-len(x)), float(len(x))
    for _ in range(40):  # find the line that halves the light: an aperture need not be symmetric
        line = (low + high) / 2
        share = np.clip(0.5 + np.sign(radius) * (x - line) / width, 0, 1)
        if (columns @ share > 0.5) == (radius > 0):
            low = line
        else:
            high = line
    return np.stack([2 * kernel * share, 2 * kernel * (1 - share)]).astype(np.float32)


def views_of(kernel: Array, radius: float, views: int) -> Array:
    """(V, k, k): the halves for two views, the kernel itself for one."""
    return kernel[None] if views == 1 else halves(kernel, radius)


def cats_eyes(
    radii: Sequence[float],
    places: Sequence[NDArray[np.floating]],
    cut: float,
    aperture: Aperture,
    views: int,
    size: tuple[int, int],
) -> Bank:
    """Defocus that a lens cuts more and more towards the corners of its photograph.

    Args:
        radii: signed radii at n x n places on a grid over the picture, row by row.
        places: (y, x) of each in the photograph, from -1 to 1 from edge to edge.
        cut: `vignette` of `defocus` in the photograph's corners.
        size: (height, width) of the picture.
    """
    reach = max(defocus_reach(radius, aperture) for radius in radii)
    kernels = []
    for radius, (y, x) in zip(radii, places, strict=True):
        vignette = (float(cut * y) / 2**0.5, float(cut * x) / 2**0.5)  # corners lie at a distance of sqrt 2
        kernels.append(views_of(defocus(radius, aperture, vignette, reach), radius, views))
    return Bank(np.stack(kernels, 1), grid_weights(*size, round(len(radii) ** 0.5)))


@dataclass(frozen=True)
class Layers:
    """A scene in layers of one depth each, from the back to the front.

    Attributes:
        kernels: (V, L, 2 r + 1, 2 r + 1), the blur of each layer.
        mattes: (L - 1, h + 2 REACH, w + 2 REACH) in [0, 1]; the last layer, at the back, covers everything.
        turns: L; how the picture is turned to become each layer (`turned`).
    """

    kernels: Array
    mattes: Array
    turns: tuple[int, ...]

    @property
    def key(self) -> tuple[object, ...]:
        """Samples of one key can be computed as one batch."""
        return ("layers", self.kernels.shape, self.turns)


def turned(images: torch.Tensor, turn: int) -> torch.Tensor:
    """(..., H, W) as it is (0), mirrored (1), upside down (2) or both (3)."""
    axes = [axis for axis, bit in ((-1, 1), (-2, 2)) if turn & bit]
    return images.flip(axes) if axes else images


def apply_layers(scenes: torch.Tensor, plans: Sequence[Layers]) -> tuple[torch.Tensor, torch.Tensor]:
    """Blurred (B, V, C, h, w) and sharp (B, C, h, w) light.

    Args:
        scenes: (B, C, h + 2 REACH, w + 2 REACH) linear light.
        plans: B of them, of one key.
    """
    kernels = rows([plan.kernels for plan in plans], scenes)
    mattes = rows([plan.mattes for plan in plans], scenes)
    views, count, size = kernels.shape[1:4]
    reach, turns = size // 2, plans[0].turns
    sharp = inner(turned(scenes, turns[0]), REACH)
    convolve = Convolver(inner(turned(scenes, turns[0]), REACH - reach), reach)
    blurred = [convolve(kernels[:, view, 0]) for view in range(views)]
    for layer in range(1, count):
        matte = mattes[:, layer - 1 : layer]
        content = torch.cat([turned(scenes, turns[layer]) * matte, matte], 1)
        sharp_layer = inner(content, REACH)
        sharp = sharp_layer[:, :-1] + (1 - sharp_layer[:, -1:]) * sharp
        convolve = Convolver(inner(content, REACH - reach), reach)
        for view in range(views):
            over = convolve(kernels[:, view, layer])
            blurred[view] = over[:, :-1] + (1 - over[:, -1:]) * blurred[view]
    return torch.stack(blurred, 1), sharp


def layer_kernels(radii: Sequence[float], aperture: Aperture, views: int) -> Array:
    """(V, L, 2 r + 1, 2 r + 1) for layers of these signed radii."""
    reach = max(defocus_reach(radius, aperture) for radius in radii)
    kernels = [views_of(defocus(radius, aperture, reach=reach), radius, views) for radius in radii]
    return padded(np.stack(kernels, 1), reach)
