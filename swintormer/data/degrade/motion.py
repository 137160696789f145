"""Motion: what a camera sees on its way, and things that move on their own.

A camera that turns and shifts maps one view on another by a homography. A picture's blur is the mean of the views along
the way, in linear light, so that it differs from place to place. A thing that moves is laid over the ground at every
step, so that the ground shows through its ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from swintormer.data.blurs import random_path
from swintormer.data.degrade.bank import REACH, Array, inner
from swintormer.data.degrade.defocus import turned
from swintormer.data.degrade.stacks import rows

STEPS = (16, 32, 64)
Maps = NDArray[np.float64]
"""(T, 3, 3): at each step the place (x, y, 1) in the scene, from the middle, that a pixel sees."""


@dataclass(frozen=True)
class Motion:
    """Blur by motion.

    Attributes:
        camera: maps of the ground; None where it stands still.
        thing: maps of a thing in front of it, of as many steps; None without.
        matte: (h + 2 REACH, w + 2 REACH) of the thing at rest.
        turn: how the picture is turned to become the thing (`turned`).
    """

    camera: Maps | None
    thing: Maps | None = None
    matte: Array | None = None
    turn: int = 0

    @property
    def key(self) -> tuple[object, ...]:
        """Samples of one key can be computed as one batch."""
        camera, thing = (None if maps is None else len(maps) for maps in (self.camera, self.thing))
        return ("motion", camera, thing, self.turn)


def steps_for(length: float) -> int:
    """Steps for a path of this many pixels: at most a pixel between two where there are enough."""
    return next((steps for steps in STEPS if length <= steps), STEPS[-1])


@dataclass(frozen=True)
class Placement:
    """Where a picture lies in the photograph that the camera takes.

    Attributes:
        focal: focal length in pixels: rotations by small angles move a picture by focal * angle.
        centre: (x, y) of the photograph's middle from that of the picture, in pixels.
    """

    focal: float
    centre: tuple[float, float] = (0.0, 0.0)


def camera_maps(camera: Placement, angles: NDArray[np.float64], shifts: NDArray[np.float64]) -> Maps:
    """Homographies C R C^-1 and shifts (Hartley and Zisserman, "Multiple view geometry", 2004, section 8.4).

    Args:
        angles: (T, 3) rotation about x (pitch), y (yaw) and the line of sight (roll), radians.
        shifts: (T, 2) in pixels, x and y, as of a flat scene that a camera moves along.
    """
    (sx, sy, sz), (cx, cy, cz) = np.sin(angles).T, np.cos(angles).T
    zero, one = np.zeros(len(angles)), np.ones(len(angles))

    def stack(*entries: NDArray[np.float64]) -> Maps:
        return np.stack(entries, 1).reshape(-1, 3, 3)

    pitch = stack(one, zero, zero, zero, cx, -sx, zero, sx, cx)
    yaw = stack(cy, zero, sy, zero, one, zero, -sy, zero, cy)
    roll = stack(cz, -sz, zero, sz, cz, zero, zero, zero, one)
    calibration = np.array([[camera.focal, 0, camera.centre[0]], [0, camera.focal, camera.centre[1]], [0, 0, 1.0]])
    maps = calibration @ roll @ yaw @ pitch @ np.linalg.inv(calibration)
    move = np.tile(np.eye(3), (len(angles), 1, 1))
    move[:, :2, 2] = shifts
    return move @ maps


def moved(maps: Maps, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """(T, N, 2): where the maps take N points (x, y)."""
    full = np.concatenate([points, np.ones((len(points), 1))], 1) @ maps.transpose(0, 2, 1)
    return full[..., :2] / full[..., 2:]


def corners(height: int, width: int) -> NDArray[np.float64]:
    """(5, 2): middle and corners of a picture, (x, y) from its middle."""
    x, y = (width - 1) / 2, (height - 1) / 2
    return np.array([[0, 0], [-x, -y], [x, -y], [-x, y], [x, y]], np.float64)


def scaled_to(
    length: float, camera: Placement, angles: NDArray[np.float64], shifts: NDArray[np.float64], size: tuple[int, int]
) -> Maps:
    """Maps along a path made smaller or larger, until middle and corners travel `length` pixels on average.

    Less where a corner would leave the picture's margin of REACH pixels. The path's mean pose is the picture's own.
    """
    angles, shifts = angles - angles.mean(0), shifts - shifts.mean(0)
    places = corners(*size)
    for _ in range(4):  # travel is all but linear in the scale
        path = moved(camera_maps(camera, angles, shifts), places)
        travel = float(np.linalg.norm(np.diff(path, axis=0), axis=-1).sum(0).mean())
        furthest = float(np.abs(path - places).max())
        factor = min(length / max(travel, 1e-9), (REACH - 1.5) / max(furthest, 1e-9))
        angles, shifts = angles * factor, shifts * factor
    return camera_maps(camera, angles, shifts)


def random_camera_maps(rng: np.random.Generator, length: float, height: int, width: int) -> Maps:
    """A shaking hand: rotation about three axes and shift, `length` pixels on average over the picture.

    The picture is a part, one half to one sixth as wide, of a photograph taken with a lens between wide and tele.
    """
    steps, side = steps_for(length), max(height, width)
    photograph = side * rng.uniform(2, 6)
    away = (photograph - side) / 2
    camera = Placement(
        photograph * rng.uniform(0.7, 2.5), (float(rng.uniform(-away, away)), float(rng.uniform(-away, away)))
    )
    path, drift = random_path(rng, 1.0, steps), random_path(rng, 1.0, steps)
    turn = random_path(rng, 1.0, steps)[:, 0] * rng.normal(0, 1.5) / photograph
    angles = np.stack([path[:, 0] / camera.focal, path[:, 1] / camera.focal, turn], 1)
    return scaled_to(length, camera, angles, drift * rng.uniform(0, 0.5), (height, width))


def thing_maps(path: NDArray[np.float64], turns: NDArray[np.float64], centre: tuple[float, float] = (0.0, 0.0)) -> Maps:
    """Maps of a thing that moves along `path` (T, 2), (y, x), and turns about `centre`, (x, y), by `turns` (T) radians.

    The path's mean is put where the thing rests, and a path that leaves the margin of REACH pixels is cut there.
    """
    path = np.clip(path - path.mean(0), 1.5 - REACH, REACH - 1.5)
    cos, sin = np.cos(turns), np.sin(turns)
    maps = np.tile(np.eye(3), (len(path), 1, 1))
    maps[:, 0, 0], maps[:, 0, 1], maps[:, 1, 0], maps[:, 1, 1] = cos, -sin, sin, cos
    middle = np.array(centre)
    maps[:, :2, 2] = middle - maps[:, :2, :2] @ middle + path[:, ::-1]
    return maps


def apply_motion(scenes: torch.Tensor, plans: Sequence[Motion]) -> tuple[torch.Tensor, torch.Tensor]:
    """Blurred (B, 1, C, h, w) and sharp (B, C, h, w) light.

    Args:
        scenes: (B, C, h + 2 REACH, w + 2 REACH) linear light.
        plans: B of them, of one key.
    """
    sharp = inner(scenes, REACH)
    cameras = [plan.camera for plan in plans if plan.camera is not None]
    things = [plan.thing for plan in plans if plan.thing is not None]
    if not things:
        return _mean_view(scenes, cameras)[:, None], sharp
    matte = rows([plan.matte for plan in plans if plan.matte is not None], scenes)[:, None]
    content = torch.cat([turned(scenes, plans[0].turn) * matte, matte], 1)
    front = inner(content, REACH)
    ground, sharp = sharp, front[:, :-1] + (1 - front[:, -1:]) * sharp
    if not cameras:
        mean = _mean_view(content, things)
        return (mean[:, :-1] + (1 - mean[:, -1:]) * ground)[:, None], sharp
    total = torch.zeros_like(ground)
    for over, behind in zip(_views(content, things), _views(scenes, cameras), strict=True):
        total += (over[:, :-1] + (1 - over[:, -1:]) * behind).sum(2)
    return (total / len(things[0]))[:, None], sharp


def _mean_view(scenes: torch.Tensor, maps: Sequence[Maps]) -> torch.Tensor:
    """(B, C, h, w): the mean over the steps of `_views`."""
    total = torch.zeros_like(inner(scenes, REACH))
    for views in _views(scenes, maps):
        total += views.sum(2)
    return total / len(maps[0])


def _views(scenes: torch.Tensor, maps: Sequence[Maps]) -> Iterator[torch.Tensor]:
    """(B, C, n, h, w): what n of the steps of `maps`, B times (T, 3, 3), see of (B, C, h + 2 REACH, ...), n by n."""
    batch, channels, full_height, full_width = scenes.shape
    height, width = full_height - 2 * REACH, full_width - 2 * REACH
    # From pixels to grid_sample's coordinates, -1 to 1 from edge to edge of the scene, in double precision.
    scale = np.diag([2 / full_width, 2 / full_height, 1.0])
    steps = rows([scale @ m for m in maps], scenes)
    y = torch.arange(height, dtype=scenes.dtype, device=scenes.device) - (height - 1) / 2
    x = torch.arange(width, dtype=scenes.dtype, device=scenes.device) - (width - 1) / 2
    chunk = 4  # steps at once: their views stay in the caches of a CPU
    for first in range(0, steps.shape[1], chunk):
        part = steps[:, first : first + chunk, :, :, None, None]
        places = scenes.new_empty(batch, part.shape[1], height, width, 2)
        # Every row of a map is a sum of one term in x and one in y: three sums and two quotients a pixel.
        rises = (part[:, :, row, 0] * x + (part[:, :, row, 1] * y[:, None] + part[:, :, row, 2]) for row in range(3))
        along, across, scaled = rises
        torch.div(along, scaled, out=places[..., 0])
        torch.div(across, scaled, out=places[..., 1])
        flat = places.view(batch, -1, width, 2)
        views = F.grid_sample(scenes, flat, mode="bilinear", padding_mode="border", align_corners=False)
        yield views.view(batch, channels, part.shape[1], height, width)
