"""The held-out test: photographs that are never trained on, and fixed ways to degrade them.

The photographs ship inside scikit-image. Changing a line of the tables makes older figures incomparable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from swintormer.data.blurs import GAMMA, RADIUS, blur, disc_kernel, gaussian_kernel, motion_kernel, random_path
from swintormer.data.camera import add_noise, jpeg, round_8bit
from swintormer.errors import SwintormerError

Array = NDArray[np.float32]

SIDE = 384

# All photographs in the package that are sharp somewhere. Left out: clock_motion and text (blurred when taken, so there
# is no ground truth), motorcycle_right (the same scene as the left one), cell, ihc and microaneurysms (taken through a
# microscope; 102 pixels), lfw_subset (25 pixels a side), and drawn or computed images.
PHOTOGRAPHS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "moon.png",
    "motorcycle_left.png",
    "page.png",
    "retina.jpg",
    "rocket.jpg",
)


@dataclass(frozen=True)
class Degradation:
    """One way to degrade a photograph: blur, then noise, then rounding to 8 bits or JPEG.

    Attributes:
        kernels: makes the kernels; several are blended from left to right over the picture.
        noise: standard deviation in 1/255.
        linear: whether linear light is blurred, as in a camera, or the stored values, as in most published tests.
        quality: JPEG quality; None for no JPEG.
    """

    name: str
    kernels: Callable[[], Sequence[Array]]
    noise: float = 1.0
    linear: bool = False
    quality: int | None = None


def _path(seed: int, length: float) -> Sequence[Array]:
    return [motion_kernel(random_path(np.random.default_rng(seed), length))]


SHARP = Degradation("none", lambda: [disc_kernel(0.0)], noise=0.0)
DEGRADATIONS = (
    Degradation("disc 1.5", lambda: [disc_kernel(1.5)], noise=0.5),
    Degradation("disc 2.5", lambda: [disc_kernel(2.5)]),
    Degradation("disc 4", lambda: [disc_kernel(4.0)]),
    Degradation("disc 0.5 to 3 across", lambda: [disc_kernel(r) for r in (0.5, 1.75, 3.0)]),
    Degradation("disc 2.5, linear light", lambda: [disc_kernel(2.5)], linear=True),
    Degradation("disc 2, JPEG 85", lambda: [disc_kernel(2.0)], noise=0.0, quality=85),
    Degradation("Gaussian 1", lambda: [gaussian_kernel(1.0)], noise=2.0),
    Degradation("Gaussian 2", lambda: [gaussian_kernel(2.0)], noise=0.5),
    Degradation("motion 7", lambda: _path(7, 7.0)),
    Degradation("motion 13", lambda: _path(13, 13.0), noise=0.5),
)


def photograph(name: str) -> Array:
    """One of PHOTOGRAPHS, (H, W, C) with C 1 or 3, float32 in [0, 1].

    Raises:
        SwintormerError: scikit-image is not installed, or lacks the photograph.
    """
    from swintormer.images.io import read_image

    try:
        place = resources.files("skimage.data") / name
    except ModuleNotFoundError as error:
        raise SwintormerError(
            'The held-out photographs ship with scikit-image: pip install "swintormer-kernels[train]".'
        ) from error
    with resources.as_file(place) as path:
        if not path.is_file():
            raise SwintormerError(f"This scikit-image has no photograph {name}: install version 0.22 or later.")
        return (read_image(path).pixels / 255).astype(np.float32)


def centre(image: Array, side: int) -> Array:
    """The middle of a picture, at most `side` pixels wide and high."""
    top, left = (max(0, (length - side) // 2) for length in image.shape[:2])
    return image[top : top + side, left : left + side]


def degrade(image: Array, degradation: Degradation, seed: int, side: int = SIDE) -> tuple[Array, Array]:
    """The middle of a photograph, degraded and original: two arrays (h, w, C), h and w at most `side`.

    The blur uses the photograph beyond its middle and mirrors it only at its edges. `seed` is the seed of the noise.
    """
    truth = centre(image, side)
    wide = centre(image, side + 2 * RADIUS)
    missing = [(side_of(truth) + 2 * RADIUS - side_of(wide)) for side_of in (len, lambda a: a.shape[1])]
    pads = [(count - count // 2, count // 2) for count in missing]
    canvas = np.pad(wide, (*pads, (0, 0)), mode="symmetric")
    kernels = list(degradation.kernels())
    across = np.broadcast_to(np.linspace(0, 1, truth.shape[1], dtype=np.float32), truth.shape[:2])
    if degradation.linear:
        result = np.maximum(blur(canvas ** np.float32(GAMMA), kernels, across), 0) ** np.float32(1 / GAMMA)
    else:
        result = blur(canvas, kernels, across)
    result = add_noise(np.random.default_rng(seed), result, degradation.noise / 255, 0.0)
    return round_8bit(result) if degradation.quality is None else jpeg(result, degradation.quality), truth
