"""What training pairs look like, and what they cost.

`python -m bench.degradations [--out docs/degradations.jpg]` writes a picture of one photograph in sixteen degradations
(five seconds). The photograph is scikit-image's coffee (Rachel Michetti, courtesy of Pikolo Espresso Bar, CC0). Fixed
seeds; strong faults, which the recipe draws seldom, so that they can be seen.

`python -m bench.degradations --time` prints the milliseconds of one core that a pair of crops of 128 takes, by family
and for the whole recipe, with one view and with two (half a minute). It is the process's own time, which a busy
machine lengthens less than the clock's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from swintormer.data.blurs import motion_kernel, random_path
from swintormer.data.degrade import MARGIN, Plan, Recipe, carry_out, degrade
from swintormer.data.degrade.bank import REACH, Array, Bank, blend_weights, combined, impulse
from swintormer.data.degrade.camera import Camera, noise_for_mid_grey
from swintormer.data.degrade.defocus import DISC, Aperture, Layers, cats_eyes, defocus, layer_kernels, views_of
from swintormer.data.degrade.gaussian import gaussian
from swintormer.data.degrade.light import Light
from swintormer.data.degrade.mattes import bars, body
from swintormer.data.degrade.motion import Motion, random_camera_maps, thing_maps
from swintormer.data.degrade.recipe import FAMILIES, JPEG_GRID, Blur, Families, random_lamps
from swintormer.evaluation import heldout

PHOTOGRAPH = "coffee.png"
HEIGHT, WIDTH = 224, 288  # of a tile
COLUMNS = 4
LABEL = 22  # height of the line of text above a tile
BRIGHT = Light(threshold=0.96, boost=16.0)
HEXAGON = Aperture(blades=6, rim=0.5, turn=0.3)


def plans(height: int = HEIGHT, width: int = WIDTH) -> Iterator[tuple[str, Plan, int]]:
    """(label, plan, number of the view that is shown)."""
    rng = np.random.default_rng(6)
    file = (height + JPEG_GRID, width + JPEG_GRID)
    scene = (file[0] + 2 * REACH, file[1] + 2 * REACH)

    def plan(blur: Blur, light: Light = BRIGHT, noise: float = 1.0, quality: int | None = None, views: int = 1) -> Plan:
        shot, read = noise_for_mid_grey(noise / 255)
        return Plan(light, blur, Camera(shot, read, (1.8, 1.0, 1.6), quality=quality, seed=1), views=views)

    def shake(length: float) -> Motion:
        return Motion(random_camera_maps(rng, length, *file))

    yield "sharp, a little noise", plan(Bank(impulse()), Light(), 2.0), 0
    yield "Gaussian 4 by 1.5", plan(Bank(gaussian(4.0, 0.375, 0.6)[None, None]), Light()), 0
    yield "disc 9, bright rim", plan(Bank(defocus(9.0, Aperture(rim=1.5))[None, None])), 0
    yield "six blades, radius 9", plan(Bank(defocus(9.0, HEXAGON)[None, None])), 0
    nodes = [np.array([y, x]) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    lamps = np.array([[*(0.4 * node * file), 1.0, 60, 60, 60] for node in nodes], np.float32)
    yield "cat's eyes, radius 9", plan(cats_eyes([9.0] * 9, nodes, 1.2, DISC, 1, file), Light(lamps=lamps)), 0
    radii = [float(r) for r in range(10)]
    across = np.broadcast_to(np.linspace(0, len(radii) - 1, file[1], dtype=np.float32), file)
    yield "defocus 0 to 9 across", plan(Bank(layer_kernels(radii, DISC, 1), blend_weights(across, len(radii)))), 0
    mattes = np.stack([body(rng, *scene), bars(rng, *scene)])
    yield (
        "layers 9, 4, 0: twigs in focus",
        plan(Layers(layer_kernels([9.0, 4.0, 0.0], HEXAGON, 1), mattes, (0, 1, 2))),
        0,
    )
    yield "layers 0, 9: ground in focus", plan(Layers(layer_kernels([0.0, 9.0], HEXAGON, 1), mattes[:1], (0, 1))), 0
    pair = plan(Bank(views_of(defocus(10.0), 10.0, 2)[:, None]), views=2)
    yield "disc 10, left half", pair, 0
    yield "disc 10, right half", pair, 1
    yield "camera shake 30", plan(shake(30.0)), 0
    thing = thing_maps(random_path(rng, 25.0, 32), np.zeros(32))
    yield "moving thing 25", plan(Motion(None, thing, body(rng, *scene, small=True), 1)), 0
    lamps = random_lamps(rng, 10, *file, brightest=64.0)
    yield "night lights, shake 15", plan(shake(15.0), Light((0.3, 0.3, 0.3), boost=16.0, lamps=lamps)), 0
    yield "disc 2, noise 10", plan(Bank(defocus(2.0)[None, None]), Light(), 10.0), 0
    yield "disc 2, JPEG 50", plan(Bank(defocus(2.0)[None, None]), Light(), quality=50), 0
    both = combined(defocus(4.0)[None, None], motion_kernel(random_path(rng, 14.0))[None, None])
    yield "disc 4 and shake 14", plan(Bank(both)), 0


def tiles(height: int = HEIGHT, width: int = WIDTH) -> Iterator[tuple[str, Array]]:
    """(label, (height, width, 3) in [0, 1])."""
    photograph = heldout.photograph(PHOTOGRAPH)
    top, left = ((have - want) // 2 - MARGIN for have, want in zip(photograph.shape, (height, width), strict=False))
    window = photograph[top : top + height + 2 * MARGIN, left : left + width + 2 * MARGIN]
    light = torch.from_numpy(np.ascontiguousarray(window.transpose(2, 0, 1)))[None]
    for label, plan, view in plans(height, width):
        blurred, _ = carry_out(light, [plan])
        yield label, blurred[0, 3 * view : 3 * view + 3].permute(1, 2, 0).numpy()


def picture() -> NDArray[np.uint8]:
    """All tiles, each below its label."""
    pages = [framed(label, tile) for label, tile in tiles()]
    return np.concatenate([np.concatenate(pages[n : n + COLUMNS], 1) for n in range(0, len(pages), COLUMNS)])


def framed(label: str, tile: Array) -> NDArray[np.uint8]:
    """(h, w, 3) in [0, 1] below a line of text, with white around both."""
    height, width = tile.shape[:2]
    page = np.full((height + LABEL + 4, width + 4, 3), 255, np.uint8)
    page[LABEL : LABEL + height, 2 : 2 + width] = np.rint(tile * 255)
    text = _text(label)[: LABEL - 4, :width]
    page[3 : 3 + text.shape[0], 3 : 3 + text.shape[1]] = text[..., None]
    return page


def _text(label: str) -> NDArray[np.uint8]:
    """Black on white, (h, w)."""
    import pyvips

    image: Any = pyvips.Image.text(label.replace("&", "&amp;"), font="sans 10", dpi=90)
    return 255 - image.numpy().reshape(image.height, image.width)


def milliseconds(recipe: Recipe, views: bool, pairs: int, crop: int = 128) -> float:
    """Of the processor, for each of `pairs` pairs from windows of the photograph, batches of 8."""
    photograph = torch.from_numpy(heldout.photograph(PHOTOGRAPH)).permute(2, 0, 1)
    rng, side = np.random.default_rng(0), crop + 2 * MARGIN
    corners = [(int(rng.integers(length - side)) for length in photograph.shape[1:]) for _ in range(8)]
    windows = torch.stack([photograph[:, y : y + side, x : x + side] for y, x in corners])
    degrade(windows, range(8), recipe, views)
    start = time.process_time()
    for first in range(0, pairs, 8):
        degrade(windows, [(first, n) for n in range(8)], recipe, views)
    return (time.process_time() - start) / pairs * 1000


def print_times(pairs: int = 64) -> None:
    """A row for each family and for the recipe."""
    torch.set_num_threads(1)
    print("| ms a pair | one view | two views |\n|---|---:|---:|")
    for name in FAMILIES:
        recipe = Recipe(families=Families(**{family: float(family == name) for family in FAMILIES}))
        print(f"| {name} | {milliseconds(recipe, False, pairs):.1f} | {milliseconds(recipe, True, pairs):.1f} |")
    # Families differ: four times as many pairs for their mean.
    print(
        f"| recipe | {milliseconds(Recipe(), False, 4 * pairs):.1f} | {milliseconds(Recipe(), True, 4 * pairs):.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/degradations.jpg"), help="picture to write")
    parser.add_argument("--time", action="store_true", help="print times instead")
    arguments = parser.parse_args()
    if arguments.time:
        print_times()
        return
    out = arguments.out
    from swintormer.images.picture import wrap

    wrap(picture()).jpegsave(str(out), Q=88)
    print(out)


if __name__ == "__main__":
    main()
