"""Pictures of the page of `swintormer web` for the documentation, from a real browser (chromium and chromedriver).

`python -m bench.web_pictures [--out docs]` writes web-light.png, web-dark.png and web-narrow.png (half a minute). The
photographs are the demonstration's and three more of scikit-image's (public domain or CC0), with defocus.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from bench.browser import Window, browser, why_absent
from swintormer.cli.demo import BLURRED
from swintormer.data.blurs import disc_kernel
from swintormer.evaluation import heldout
from swintormer.images.picture import wrap
from swintormer.images.vips import libvips

OTHERS = ("chelsea.png", "astronaut.png", "rocket.jpg")
RADIUS = 2.5  # pixels
DONE = "return document.querySelectorAll('.card.done').length == arguments[0]"
_PNG = {"palette": True, "Q": 90, "effort": 10}  # a third of the bytes, and hardly to be seen


def pictures(folder: Path) -> list[Path]:
    """The files that are dropped."""
    paths = [folder / "coffee.png"]
    paths[0].write_bytes(BLURRED.read_bytes())
    defocus = heldout.Degradation("defocus", lambda: [disc_kernel(RADIUS)], noise=1.0, linear=True)
    for name in OTHERS:
        photograph = heldout.photograph(name)
        blurred, _ = heldout.degrade(photograph, defocus, 0, side=max(photograph.shape))
        paths.append(folder / f"{Path(name).stem}.png")
        wrap(np.rint(blurred * 255).astype(np.uint8)).write_to_file(str(paths[-1]))
    return paths


@contextmanager
def program() -> Iterator[str]:
    """The program with the default network; gives the address of its page."""
    command = [sys.executable, "-m", "swintormer", "web", "--port", "0", "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[-1]
        finally:
            process.terminate()


def save(window: Window, path: Path) -> None:
    """What is seen, when all tiles are there."""
    window.run("await new Promise(done => setTimeout(done, 1000))")
    image = libvips().Image.new_from_buffer(window.picture(), "")
    image.extract_band(0, n=3).write_to_file(str(path), keep="none", **_PNG)
    print(path, f"{path.stat().st_size / 1000:.0f} kB")


def main() -> None:
    """Write the three pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder for the pictures")
    out = parser.parse_args().out
    if reason := why_absent():
        raise SystemExit(f"There is no browser: {reason}.")
    with tempfile.TemporaryDirectory() as name, program() as address, browser(Path(name)) as new:
        folder = Path(name)
        window: Window = new()
        window.size(1120, 680)
        window.open(address)
        window.wait("return document.querySelectorAll('#model option').length")
        window.drop(*pictures(folder))
        window.wait(DONE, 1 + len(OTHERS))
        save(window, out / "web-light.png")
        window.size(1120, 680, dark=True)
        window.click("#pictures li:nth-child(3) .card")
        window.run("strength.value = 70; strength.dispatchEvent(new Event('input'))")
        window.click("#zoom-one")
        save(window, out / "web-dark.png")
        window.size(390, 760)
        window.click("#pictures li:nth-child(2) .card")
        save(window, out / "web-narrow.png")


if __name__ == "__main__":
    main()
