"""`swintormer demo`: restores the photograph that ships with the package, and shows before and after."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from swintormer.images.picture import Samples

T = TypeVar("T")

ASSETS = Path(__file__).parents[1] / "assets"
BLURRED, TRUTH = ASSETS / "demo.png", ASSETS / "demo_truth.png"
OUTPUT = Path("demo_output")
CROP = 296  # pixels; three in a row are as wide as a page that shows them in full resolution

PHOTOGRAPH = "coffee.png"  # in scikit-image; assets/README.md names author and licence
RADII = (2.0, 3.0, 4.0, 5.0)  # pixels; defocus that grows from the left edge to the right
SEED = 0  # of the noise


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")] = OUTPUT,
    make: Annotated[
        bool, typer.Option("--make", hidden=True, help="Make the two pictures in the package again.")
    ] = False,
) -> None:
    """Restore the photograph that ships with the package, measure it, and show before and after side by side."""
    if make:
        from swintormer.images.picture import wrap
        from swintormer.images.writing import save_vips

        for path, pixels in zip((BLURRED, TRUTH), make_pictures(), strict=True):
            save_vips(path, wrap(pixels))
            print(path)
        return
    for name, text in run(out).items():
        print(f"{name:<11} {text}")


def make_pictures() -> tuple[Samples, Samples]:
    """The blurred picture and the ground truth, (H, W, 3) uint8. Needs scikit-image, which has the photograph.

    Blurred in linear light, as in a camera, with noise of 1/255, rounded to 8 bits.
    """
    import numpy as np

    from swintormer.data.blurs import disc_kernel
    from swintormer.evaluation import heldout

    degradation = heldout.Degradation("demo", lambda: [disc_kernel(radius) for radius in RADII], noise=1.0, linear=True)
    photograph = heldout.photograph(PHOTOGRAPH)
    blurred, truth = heldout.degrade(photograph, degradation, SEED, side=max(photograph.shape))
    return np.rint(blurred * 255).astype(np.uint8), np.rint(truth * 255).astype(np.uint8)


def run(out: Path = OUTPUT) -> dict[str, str]:
    """Restore the photograph into `out` and write a comparison; returns what was done, as name and text."""
    import torch

    from swintormer.cli.bench import blocks_backends
    from swintormer.cli.deblur import Settings, make_deblurrer
    from swintormer.evaluation.metrics import psnr
    from swintormer.images.compare import write_comparison, write_crops
    from swintormer.images.reading import read_image
    from swintormer.images.writing import write_image
    from swintormer_kernels import use_backend

    deblurrer = make_deblurrer(Settings())
    image, truth = read_image(BLURRED), read_image(TRUTH).pixels
    height, width = truth.shape[:2]
    plan = deblurrer.plan(height, width)
    net = deblurrer.net
    with torch.inference_mode():
        backends = blocks_backends(
            net, torch.zeros(1, 3, net.config.stride, net.config.stride, device=deblurrer.device)
        )
    deblurrer.restore_array(image.pixels)  # the first pass packs weights and fills caches
    seconds, restored = _timed(lambda: deblurrer.restore_array(image.pixels))
    with use_backend("reference"):
        plain_seconds, _ = _timed(lambda: deblurrer.restore_array(image.pixels))
    write_image(out / "restored.png", restored, image)
    write_comparison(out / "before_after.png", image, restored)
    write_crops(out / "crops.png", [image.pixels, restored, truth], CROP)
    before, after = (psnr(pixels / 255, truth / 255) for pixels in (image.pixels, restored))
    return {
        "photograph": f"{BLURRED.name}, {width}x{height} pixels, defocus of {RADII[0]} to {RADII[-1]} pixels",
        "backend": f"{'+'.join(backends)}, on {deblurrer.device}, {torch.get_num_threads()} threads",
        "tiles": f"{len(plan.grid)} of {plan.tile}x{plan.tile} pixels, stride {plan.stride}, {deblurrer.blend} blend",
        "seconds": f"{seconds:.2f}; plain PyTorch {plain_seconds:.2f}, {plain_seconds / seconds:.1f} times as long",
        "PSNR": f"{before:.2f} dB before, {after:.2f} dB after ({after - before:+.2f} dB)",
        "pictures": f"{out / 'before_after.png'}: before on the left, after on the right; "
        f"{out / 'crops.png'}: a part of both in full resolution, and the truth",
    }


def _timed(restore: Callable[[], T]) -> tuple[float, T]:
    start = time.monotonic()
    restored = restore()
    return time.monotonic() - start, restored
