"""All that is to be known of the kernels on a GPU, in under ten minutes: `python -m bench.gpu.main --out DIR`.

First the tests on the device; nothing is timed if one fails. Then, each in a process of its own with a time limit: op
by op, the whole network, and the network through torch.compile. DIR gets gpu.csv (a line for each time), log.txt (all
that was printed) and notes.md (machine, versions and a summary). Times are medians of CUDA events.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from subprocess import STDOUT, Popen, TimeoutExpired
from tempfile import TemporaryFile
from typing import TextIO

import torch

import swintormer_kernels as sk
from bench.gpu.rows import Row, read_rows
from swintormer.images.files import replacing

ROOT = Path(__file__).resolve().parents[2]
NO_GPU = "this bench needs a CUDA device and torch sees none: run it on a machine with a GPU and a CUDA build of torch"
# The C++ engine's own tests and those that compile for other GPUs need no GPU and take minutes of its time.
LEFT_OUT = ("test_compile.py", "test_swda_block.py")
LIMITS = {"tests": 200, "ops": 130, "network": 110, "compile": 130}  # seconds, 570 in all
SUMMARY = """\
| released network, 40 tiles of 256 (an image of 1680x1120), bfloat16 | measured |
|---|---|
| forward, against eager bfloat16 | {forward} |
| forward, against torch.compile, max-autotune | {compiled} |
| images in a second | {images} |
| peak memory of forward, against eager | {memory} |
| training step, batch 8 of 256, against eager | {training} |
| graph replay, against plain launches | {graph} |
"""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.csv, log.txt and notes.md")
    parser.add_argument("--part", choices=[part for part in LIMITS if part != "tests"], help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.exit(NO_GPU)
    if asked.part:
        from bench.gpu import parts

        parts.run(asked.part, asked.out, "cuda")
        return
    asked.out = asked.out.resolve()  # the parts run in the repository's folder
    asked.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with (asked.out / "log.txt").open("w", encoding="utf-8") as log:
        print(machine(), file=log, flush=True)
        outcomes = {"tests": run_together(tests(), LIMITS["tests"], log)}
        if outcomes["tests"] == "done":
            for part in ("ops", "network", "compile"):
                command = [sys.executable, "-m", "bench.gpu.main", "--out", str(asked.out), "--part", part]
                outcomes[part] = run_together([command], LIMITS[part], log)
    rows = read_rows(asked.out)
    write_notes(asked.out, rows, outcomes, time.monotonic() - started)
    if outcomes["tests"] != "done":
        sys.exit(
            f"The tests on the GPU did not pass ({outcomes['tests']}), so nothing was timed; see {asked.out}/log.txt."
        )
    print(f"wrote {asked.out}/gpu.csv ({len(rows)} rows), log.txt and notes.md")


def tests() -> list[list[str]]:
    """Commands to run at once: pytest for each file."""
    folders = (ROOT / "tests" / "kernels" / "triton", ROOT / "tests" / "kernels")
    files = [f for folder in folders for f in sorted(folder.glob("test_*.py")) if f.name not in LEFT_OUT]
    files.append(ROOT / "tests" / "cuda" / "test_ops_on_cuda.py")
    pytest = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    return [[*pytest, str(file)] for file in (*files, *sorted((ROOT / "tests" / "app").glob("test_graphs*.py")))]


def run_together(commands: list[list[str]], limit: float, log: TextIO) -> str:
    """Run all at once: "done", "stopped after N s" or "failed: COMMAND"; what they print goes to the log in turn."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // max(1, len(commands))))
    until, outcome = time.monotonic() + limit, "done"
    with ExitStack() as stack:
        running = []
        for command in commands:
            output = stack.enter_context(TemporaryFile("w+", encoding="utf-8", errors="replace"))
            process = Popen(command, stdout=output, stderr=STDOUT, cwd=ROOT, env=environment)
            stack.callback(process.wait)
            stack.callback(process.kill)  # of one that ended: nothing
            running.append((command, process, output))
        for command, process, output in running:
            try:
                if process.wait(max(0.0, until - time.monotonic())) and outcome == "done":
                    outcome = f"failed: {' '.join(command[1:])}"
            except TimeoutExpired:
                outcome = f"stopped after {limit:g} s"
            output.seek(0)
            print(f"\n$ {' '.join(command)}\n{output.read()}", file=log, flush=True)
    return outcome


def machine() -> str:
    """The GPU and the versions, a line each."""
    lines = [f"torch {torch.__version__}, CUDA {torch.version.cuda}", *str(sk.backends()).splitlines()]
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        name = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {properties.multi_processor_count} SMs"
        lines.insert(0, name)
    return "\n".join(lines)


def write_notes(out: Path, rows: list[Row], outcomes: dict[str, str], seconds: float) -> None:
    """notes.md: where, what ran, and a summary; "not measured" where a part did not get there."""

    def network(passes: str, by: str) -> Row | None:
        found = [
            r for r in rows if r.what == "released" and r.dtype == "bfloat16" and r.passes == passes and r.by == by
        ]
        return found[-1] if found else None

    def told(figure: Callable[[], str]) -> str:
        try:
            return figure()
        except AttributeError:  # a row that is not there
            return "not measured"

    eager, fused, graph, compiled = (network("forward", by) for by in ("eager", "triton", "graph", "compile"))
    training, training_eager = network("both", "triton"), network("both", "eager")
    best = min((r for r in (fused, graph) if r), key=lambda r: r.ms, default=None)
    figures = {
        "forward": lambda: f"{eager.ms / best.ms:.2f}x",
        "compiled": lambda: f"{compiled.ms / best.ms:.2f}x",
        "images": lambda: f"{1e3 / best.ms:.1f}",
        "memory": lambda: f"{fused.peak_mb / eager.peak_mb:.2f}",
        "training": lambda: f"{training_eager.ms / training.ms:.2f}x",
        "graph": lambda: f"{fused.ms / graph.ms:.2f}x",
    }
    table = SUMMARY.format(**{name: told(figure) for name, figure in figures.items()})
    parts = "\n".join(f"- {part}: {outcome}" for part, outcome in outcomes.items())
    text = f"# Kernels on a GPU\n\n```\n{machine()}\n```\n\n{parts}\n- {seconds:.0f} s in all\n\n{table}"
    with replacing(out / "notes.md") as file:
        file.write(text.encode())


if __name__ == "__main__":
    main()
