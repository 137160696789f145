"""From a wheel to a restored photograph on the page, as somebody does it for the first time, with a stopwatch.

`python -m bench.newcomer dist/swintormer_kernels-....whl [--torch torch==2.13.0]` makes an environment, installs the
wheel where no compiler is found, opens the page in chromium, drops a photograph, downloads the result and compares it
with what `swintormer deblur` writes. It needs chromium, chromedriver and a package index, and ends with status 1 if the
two files differ.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.browser import browser, why_absent
from swintormer.cli.demo import BLURRED


class Stopwatch:
    """Prints what was done since the last time."""

    def __init__(self) -> None:
        self.began = self.last = time.monotonic()

    def lap(self, what: str) -> None:
        now = time.monotonic()
        print(f"{now - self.last:6.1f} s  {what}", flush=True)
        self.last = now


def main() -> None:
    """Do the steps and print their times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--torch", default="torch", help="requirement, such as torch==2.13.0")
    parser.add_argument("--python", default=sys.executable)
    words = parser.parse_args()
    if reason := why_absent():
        raise SystemExit(f"There is no browser: {reason}.")
    with tempfile.TemporaryDirectory(prefix="newcomer-") as folder:
        same = steps(Path(folder), words.wheel.resolve(), words.torch, words.python)
    raise SystemExit(0 if same else "The page's file is not that of swintormer deblur.")


def steps(folder: Path, wheel: Path, torch: str, python: str) -> bool:
    """Whether the page's file is that of the command line."""
    programs, temporary = folder / "photos" / "bin", folder / "temporary"
    temporary.mkdir()
    environ = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "CC", "CXX")}
    environ |= {"PATH": str(programs), "TMPDIR": str(temporary)}
    photograph = folder / "holiday.png"
    photograph.write_bytes(BLURRED.read_bytes())
    watch = Stopwatch()
    subprocess.run([python, "-m", "venv", folder / "photos"], check=True)
    watch.lap("an environment")
    subprocess.run(
        [programs / "pip", "install", "--quiet", torch, f"{wheel}[web]"],
        check=True, env=environ, cwd=folder, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    watch.lap(f"pip install {torch} WHEEL[web]")
    command = [programs / "swintormer", "web", "--port", "0", "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ, cwd=folder) as program:
        assert program.stdout is not None
        address = program.stdout.readline().split()[-1]
        watch.lap("swintormer web, until it gives its address")
        with browser(folder) as new:
            window = new()
            window.open(address)
            window.wait("return document.querySelectorAll('#model option').length")
            watch.lap("a browser, until it shows the page")
            window.drop(photograph)
            window.wait("return document.querySelectorAll('.card.done').length")
            watch.lap(f"a photograph of {photograph.stat().st_size / 1e3:.0f} kB, from the drop until it is restored")
            window.click("#download")
            downloaded = window.downloaded("holiday_sharp.png")
            watch.lap("the download")
        program.terminate()
    print(f"{watch.last - watch.began:6.1f} s  in all", flush=True)
    subprocess.run(
        [programs / "swintormer", "deblur", photograph, "-o", folder / "shell.png"],
        check=True, env=environ, cwd=folder, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    same = downloaded == (folder / "shell.png").read_bytes()
    size = sum(path.stat().st_size for path in (folder / "photos").rglob("*") if path.is_file())
    print(f"wheel {wheel.stat().st_size / 1e6:.1f} MB, environment {size / 1e9:.2f} GB, load {os.getloadavg()[0]:.0f}")
    print(f"left among the temporary files: {sorted(path.name for path in temporary.iterdir()) or 'nothing'}")
    print(f"the file of swintormer deblur: {'the same bytes' if same else 'other bytes'}")
    return same


if __name__ == "__main__":
    main()
