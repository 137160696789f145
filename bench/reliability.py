"""What becomes of pictures when things go wrong: killed processes, full disks, two programs at once, long batches.

    python -m bench.reliability             # everything, about five minutes on two cores
    python -m bench.reliability --rows killed,memory

| row | what is done |
|---|---|
| killed | KILLS batches are ended by SIGKILL at random moments, then one runs to its end |
| together | two programs restore one folder into one folder |
| full | the disk is full halfway (a limit on the size of files stands for it) |
| memory | one process restores PICTURES pictures |

Afterwards every file is whole and nothing else is left; a full disk gives one sentence and exit code 1; the peak of
memory does not grow by more than GROWTH after the first 50 pictures.

A file is whole if its pixels are those of an undisturbed run. The network is a tiny one: the subject is files.
"""

from __future__ import annotations

import argparse
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from bench.fuzz.seeds import TINY
from swintormer import Swintormer, save_checkpoint
from swintormer.errors import SwintormerError
from swintormer.images.picture import wrap
from swintormer.images.reading import read_image

BATCH = 8  # pictures of a disturbed batch
KILLS, FOLDERS = 50, 5  # batches that are killed, and folders that they continue in turn
PICTURES = 500
GROWTH = 16 * 2**20  # bytes
SEED = 1


class Stage:
    """A folder with weights, pictures, and what an undisturbed run makes of them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.weights = folder, folder / "tiny.safetensors"
        torch.manual_seed(SEED)
        save_checkpoint(Swintormer(TINY), self.weights, training_tile=32)
        self.pictures = folder / "in"
        self.pictures.mkdir()
        for number in range(BATCH):
            write_picture(self.pictures / f"{number}{('.png', '.tif', '.webp', '.jpg')[number % 4]}", number)
        self.start("expected").wait()
        self.expected = {path.name: read_image(path).samples for path in (folder / "expected").iterdir()}
        assert len(self.expected) == BATCH

    def start(self, out: str) -> subprocess.Popen[str]:
        """Restore the pictures into the folder `out`."""
        words = ["deblur", str(self.pictures), "-o", str(self.folder / out), "--weights", str(self.weights)]
        command = [sys.executable, "-m", "swintormer", *words, "--tile", "32"]
        return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def faults(self, out: str, complete: bool) -> list[str]:
        """What is wrong in the folder `out`; unfinished files are allowed unless it must be `complete`."""
        folder = self.folder / out
        found = sorted(path for path in folder.iterdir()) if folder.exists() else []
        wrong = [f"missing: {name}" for name in self.expected if complete and not (folder / name).exists()]
        for path in found:
            if path.name not in self.expected:
                if complete or not path.name.startswith(".swintormer-"):
                    wrong.append(f"left behind: {path.name}")
                continue
            try:
                samples = read_image(path).samples
            except SwintormerError as error:
                wrong.append(f"not whole: {error}")
                continue
            if not np.array_equal(samples, self.expected[path.name]):
                wrong.append(f"other pixels: {path.name}")
        return wrong


def write_picture(path: Path, seed: int, side: int = 160) -> None:
    """A picture of noise, which compresses badly."""
    rng = np.random.default_rng(seed)
    wrap(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).write_to_file(str(path))


def killed(stage: Stage) -> list[str]:
    """SIGKILL at moments spread over the time in which a batch writes its files."""
    began = time.monotonic()
    stage.start("timed").wait()
    whole, moments = time.monotonic() - began, random.Random(SEED)
    wrong, finished = [], []
    for number in range(KILLS):
        out = f"killed{number % FOLDERS}"
        process = stage.start(out)
        time.sleep(moments.uniform(0.5, 1.1) * whole)
        finished.append(process.poll() is not None)
        process.kill()
        process.wait()
        wrong += stage.faults(out, complete=False)
    print(f"  {KILLS} batches, {sum(finished)} of them had ended before they were killed")
    for number in range(FOLDERS):
        code = stage.start(f"killed{number}").wait()
        wrong += [f"exit code {code}"] * bool(code) + stage.faults(f"killed{number}", complete=True)
    return wrong


def together(stage: Stage) -> list[str]:
    """Two programs on one folder."""
    wrong = []
    for number in range(3):
        processes = [stage.start(f"together{number}") for _ in range(2)]
        codes = [process.wait() for process in processes]
        wrong += [f"exit codes {codes}"] * any(codes) + stage.faults(f"together{number}", complete=True)
    return wrong


def full(stage: Stage) -> list[str]:
    """A limit on the size of a file stands for a full disk: writing fails in the middle (EFBIG for ENOSPC)."""
    limit = 60_000  # bytes; the pictures need 77 kB without compression
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        process = stage.start("full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = process.communicate()[0]
    wrong = [] if process.returncode == 1 else [f"exit code {process.returncode}"]
    wrong += ["a traceback"] * ("Traceback" in said) + ["no sentence"] * ("Cannot write" not in said)
    left = [path.name for path in (stage.folder / "full").iterdir() if path.name.startswith(".")]
    return wrong + [f"left behind: {name}" for name in left] + stage.faults("full", complete=False)


def memory(stage: Stage) -> list[str]:
    """The peak of one process over many pictures, after 50 and at the end."""
    folder = stage.folder / "many"
    folder.mkdir()
    suffixes = (".png", ".tif", ".webp", ".jpg")
    for number in range(PICTURES):
        write_picture(folder / f"{number}{suffixes[number % 4]}", number, side=96)
    program = (
        "import resource, sys\n"
        "from swintormer.cli import deblur\n"
        "from swintormer.cli.app import main\n"
        "from swintormer.images import writing\n"
        "real, peaks = writing.write_image, []\n"
        "def counted(*words, **options):\n"
        "    real(*words, **options)\n"
        "    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
        "for module in list(sys.modules.values()):\n"
        "    if getattr(module, 'write_image', None) is real:\n"
        "        module.write_image = counted\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    print('PEAKS', len(peaks), peaks[49], peaks[-1])\n"
    )
    words = ["deblur", str(folder), "-o", str(stage.folder / "many_out"), "--weights", str(stage.weights)]
    ran = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=False)
    line = next((line for line in ran.stdout.splitlines() if line.startswith("PEAKS")), None)
    if line is None:
        return [f"exit code {ran.returncode}: {ran.stderr[-300:]}"]
    count, early, late = (int(word) for word in line.split()[1:])
    print(f"  {count} pictures, peak {early / 1024:.0f} MiB after 50 of them and {late / 1024:.0f} MiB at the end")
    wrong = [] if count == PICTURES else [f"{count} of {PICTURES} pictures"]
    return wrong + ["the peak grows"] * ((late - early) * 1024 > GROWTH)


ROWS: dict[str, Callable[[Stage], list[str]]] = {
    "killed": killed,
    "together": together,
    "full": full,
    "memory": memory,
}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.reliability")
    parser.add_argument("--rows", default=",".join(ROWS), help="names of rows, with commas between them")
    names = parser.parse_args().rows.split(",")
    failed = False
    folder = Path(tempfile.mkdtemp())
    try:
        stage = Stage(folder)
        for name in names:
            began = time.monotonic()
            wrong = ROWS[name](stage)
            failed |= bool(wrong)
            print(f"{name}: {'; '.join(wrong) or 'as it must be'} ({time.monotonic() - began:.0f} s)", flush=True)
    finally:
        shutil.rmtree(folder)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
