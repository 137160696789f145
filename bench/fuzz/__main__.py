"""Damage files at random and read them.

    python -m bench.fuzz --minutes 5            # as long as that
    python -m bench.fuzz --cases 10000 --out D  # so many pictures and so many checkpoints

Faults end the run with exit code 1; their files are kept in the folder `--out`, named by verdict:

| verdict | what happened |
|---|---|
| CRASH, HANG | the process died, or did not answer within SECONDS |
| TRACEBACK, WORDS | an error that is no sentence of the program's, or more than one line |
| CUT | a file that was cut short was read without a note, and differs from the whole one |
| HOLE | a picture has lost a part, a block of one colour, without a note |
| NAN | weights gave a picture that is not finite |
"""

from __future__ import annotations

import argparse
import itertools
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from bench.fuzz.mutations import mutate
from bench.fuzz.seeds import write_checkpoints, write_pictures
from bench.fuzz.worker import FINE

SECONDS = 20.0
COMMAND = ["-X", "faulthandler", "-m", "bench.fuzz.worker"]


class Worker:
    """The process that reads; a new one after each crash or hang."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - what a process says that dies, as long as the worker

    def ask(self, kind: str, seed: Path, mutant: Path, cut: bool) -> tuple[str, str]:
        """The verdict of one file."""
        process = self._process or self._start()
        assert process.stdin
        assert process.stdout
        process.stdin.write(f"{kind}\t{seed}\t{mutant}\t{int(cut)}\n")
        process.stdin.flush()
        if not select.select([process.stdout], [], [], SECONDS)[0]:
            self.close()
            return "HANG", f"no answer in {SECONDS:.0f} s"
        answer = process.stdout.readline()
        if not answer:
            code = process.wait()
            self._process = None
            self._errors.seek(0)
            return "CRASH", f"exit code {code}: {self._errors.read()[-2000:].decode(errors='replace')}"
        word, _, detail = answer.rstrip("\n").partition("\t")
        return word, detail

    def _start(self) -> subprocess.Popen[str]:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._errors}
        self._process = subprocess.Popen([sys.executable, *COMMAND], text=True, **pipes)
        assert self._process.stdout
        self._process.stdout.readline()
        return self._process

    def close(self) -> None:
        """End the process."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None


def fuzz(folder: Path, out: Path | None, minutes: float, cases: int, seed: int, say: bool = True) -> Counter[str]:
    """Count the verdicts as "kind verdict"; `folder` takes the files, `out` those of faults."""
    rng = np.random.default_rng(seed)
    seeds = {"picture": write_pictures(folder), "checkpoint": write_checkpoints(folder)}
    contents = {path: path.read_bytes() for paths in seeds.values() for path in paths}
    worker, counts, end = Worker(), Counter[str](), time.monotonic() + 60 * minutes
    try:
        for number in itertools.count():
            if number >= cases or time.monotonic() > end:
                return counts
            for kind, paths in seeds.items():
                path = paths[rng.integers(len(paths))]
                others = [other for other in paths if other.suffix == path.suffix]
                mutant = mutate(rng, contents[path], contents[others[rng.integers(len(others))]])
                file = folder / f"mutant{path.suffix}"
                file.write_bytes(mutant.content)
                word, detail = worker.ask(kind, path, file, mutant.cut)
                counts[f"{kind} {word}"] += 1
                if word not in FINE:
                    _keep(out, f"{word}-{number}-{path.name}", mutant.content, detail)
            if say and number % 500 == 499:
                print(f"{number + 1} of each: {dict(sorted(counts.items()))}", flush=True)
    finally:
        worker.close()
    raise AssertionError("unreachable")


def faults(counts: Counter[str]) -> int:
    """How many files were read wrongly."""
    return sum(count for name, count in counts.items() if name.split()[1] not in FINE)


def _keep(out: Path | None, name: str, content: bytes, detail: str) -> None:
    print(f"{name}: {detail}", flush=True)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.fuzz", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--cases", type=int, default=10_000, help="pictures, and as many checkpoints")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"), help="folder for the files of faults")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts = fuzz(Path(folder), given.out, given.minutes, given.cases, given.seed)
    for name, count in sorted(counts.items()):
        print(f"{name:24} {count}")
    sys.exit(1 if faults(counts) else 0)


if __name__ == "__main__":
    main()
