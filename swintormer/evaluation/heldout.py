"""The held-out test: photographs that are never trained on, and fixed ways to degrade them.

The photographs ship inside scikit-image. Two tables of ten: kernels on stored values, as in most published tests, and
faults as cameras make them. Changing a line of the tables makes older figures incomparable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np
import torch
from numpy.typing import NDArray

from swintormer.data.blurs import GAMMA, RADIUS, blur, disc_kernel, gaussian_kernel, motion_kernel, random_path
from swintormer.data.camera import add_noise, jpeg, round_8bit
from swintormer.data.degrade import MARGIN, Plan, carry_out
from swintormer.data.degrade.bank import REACH, Bank, blend_weights, combined, impulse
from swintormer.data.degrade.camera import Camera, noise_for_mid_grey
from swintormer.data.degrade.defocus import Aperture, Layers, defocus, layer_kernels
from swintormer.data.degrade.light import Light
from swintormer.data.degrade.mattes import bars, body
from swintormer.data.degrade.motion import Motion, random_camera_maps, thing_maps
from swintormer.data.degrade.recipe import JPEG_GRID, Blur, random_lamps
from swintormer.errors import SwintormerError

Array = NDArray[np.float32]

SIDE = 384
CAMERA_SEED = 11  # of shapes, paths and lamps in CAMERA_DEGRADATIONS

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


@dataclass(frozen=True)
class CameraDegradation:
    """One way to degrade a photograph as a camera does, in linear light (`swintormer.data.degrade`).

    Attributes:
        blur: makes the blur of a picture (height, width) from a generator of a fixed seed.
        noise: standard deviation at middle grey, in 1/255 of stored values; its seed is that of `degrade`.
        light: makes the light, likewise.
        quality: JPEG quality; None for no JPEG.
    """

    name: str
    blur: Callable[[np.random.Generator, int, int], Blur]
    noise: float = 1.0
    light: Callable[[np.random.Generator, int, int], Light] = lambda rng, height, width: Light()
    quality: int | None = None


def _layers(*radii: float) -> Callable[[np.random.Generator, int, int], Layers]:
    """Layers of these radii from the back to the front: the picture, a body in front of it, twigs in front of both."""

    def make(rng: np.random.Generator, height: int, width: int) -> Layers:
        size = (height + 2 * REACH, width + 2 * REACH)
        mattes = np.stack([matte(rng, *size) for matte in (body, bars)[: len(radii) - 1]])
        return Layers(layer_kernels(radii, Aperture(blades=7, roundness=0.5), 1), mattes, (0, 1, 2)[: len(radii)])

    return make


def _field(rng: np.random.Generator, height: int, width: int) -> Bank:
    """In focus at the left edge, radius 8 at the right one, six blades with a bright rim."""
    radii = np.linspace(0, 8, 9)
    kernels = layer_kernels(radii.tolist(), Aperture(blades=6, rim=0.5), 1)
    across = np.broadcast_to(np.linspace(0, len(radii) - 1, width, dtype=np.float32), (height, width))
    return Bank(kernels, blend_weights(across, len(radii)))


def _moving(rng: np.random.Generator, height: int, width: int) -> Motion:
    """A body that moves by 20 pixels before a ground at rest."""
    thing = thing_maps(random_path(rng, 20.0, 32), np.zeros(32))
    return Motion(None, thing, body(rng, height + 2 * REACH, width + 2 * REACH), 1)


def _night(rng: np.random.Generator, height: int, width: int) -> Light:
    """A third of the light, white things 16 times as bright, and twelve lamps."""
    return Light(gains=(0.33, 0.33, 0.33), threshold=0.95, boost=16.0, lamps=random_lamps(rng, 12, height, width, 64.0))


def _shake(length: float) -> Callable[[np.random.Generator, int, int], Motion]:
    return lambda rng, height, width: Motion(random_camera_maps(rng, length, height, width))


def _disc(radius: float) -> Callable[[np.random.Generator, int, int], Bank]:
    return lambda rng, height, width: Bank(defocus(radius)[None, None])


def _dual(rng: np.random.Generator, height: int, width: int) -> Bank:
    """A disc of radius 3, then a shake of 9 pixels."""
    return Bank(combined(defocus(3.0)[None, None], motion_kernel(random_path(rng, 9.0))[None, None]))


CAMERA_DEGRADATIONS = (
    CameraDegradation("layers 6, 0", _layers(6.0, 0.0)),
    CameraDegradation("layers 12, 5, 0", _layers(12.0, 5.0, 0.0)),
    CameraDegradation("defocus 0 to 8 across", _field),
    CameraDegradation("camera shake 31", _shake(31.0)),
    CameraDegradation("moving thing 20", _moving),
    CameraDegradation("night lights, shake 15", _shake(15.0), light=_night),
    CameraDegradation("disc 2, noise 10", _disc(2.0), noise=10.0),
    CameraDegradation("disc 2.5, JPEG 60", _disc(2.5), quality=60),
    CameraDegradation("sharp, noise 4", lambda rng, height, width: Bank(impulse()), noise=4.0),
    CameraDegradation("disc 3 and shake 9", _dual),
)


def photograph(name: str) -> Array:
    """One of PHOTOGRAPHS, (H, W, C) with C 1 or 3, float32 in [0, 1].

    Raises:
        SwintormerError: scikit-image is not installed, or lacks the photograph.
    """
    from swintormer.images.reading import read_image

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


def degrade(
    image: Array, degradation: Degradation | CameraDegradation, seed: int, side: int = SIDE
) -> tuple[Array, Array]:
    """The middle of a photograph, degraded and as it should be: two arrays (h, w, C), h and w at most `side`.

    The blur uses the photograph beyond its middle and mirrors it only at its edges. `seed` is the seed of the noise.
    What should be is the photograph itself, except where a CameraDegradation puts things or lamps in front of it.
    """
    if isinstance(degradation, CameraDegradation):
        return _degrade_as_a_camera(image, degradation, seed, side)
    truth = centre(image, side)
    canvas = _with_margin(image, side, RADIUS)
    kernels = list(degradation.kernels())
    across = np.broadcast_to(np.linspace(0, 1, truth.shape[1], dtype=np.float32), truth.shape[:2])
    if degradation.linear:
        result = np.maximum(blur(canvas ** np.float32(GAMMA), kernels, across), 0) ** np.float32(1 / GAMMA)
    else:
        result = blur(canvas, kernels, across)
    result = add_noise(np.random.default_rng(seed), result, degradation.noise / 255, 0.0)
    return round_8bit(result) if degradation.quality is None else jpeg(result, degradation.quality), truth


def _with_margin(image: Array, side: int, margin: int) -> Array:
    """The middle of a picture with `margin` more pixels at every edge, mirrored where it has none."""
    truth, wide = centre(image, side), centre(image, side + 2 * margin)
    missing = [truth.shape[axis] + 2 * margin - wide.shape[axis] for axis in (0, 1)]
    pads = [(count - count // 2, count // 2) for count in missing]
    return np.pad(wide, (*pads, (0, 0)), mode="symmetric")


def _degrade_as_a_camera(image: Array, degradation: CameraDegradation, seed: int, side: int) -> tuple[Array, Array]:
    canvas = torch.from_numpy(_with_margin(image, side, MARGIN)).permute(2, 0, 1)[None]
    height, width = (length - 2 * MARGIN for length in canvas.shape[-2:])
    rng = np.random.default_rng(CAMERA_SEED)
    light = degradation.light(rng, height, width)
    blurring = degradation.blur(rng, height + JPEG_GRID, width + JPEG_GRID)
    shot, read = noise_for_mid_grey(degradation.noise / 255)
    camera = Camera(shot, read, balance=(1.8, 1.0, 1.6), quality=degradation.quality, seed=seed)
    results = carry_out(canvas, [Plan(light, blurring, camera)])
    degraded, truth = (result[0].permute(1, 2, 0).contiguous().numpy() for result in results)
    return degraded, truth
