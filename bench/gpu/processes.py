"""Commands that run at once, each for a limited time."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from pathlib import Path
from subprocess import STDOUT, Popen, TimeoutExpired
from tempfile import TemporaryFile
from typing import TextIO

ROOT = Path(__file__).resolve().parents[2]


def run_together(commands: dict[str, list[str]], limit: float, log: TextIO) -> dict[str, str]:
    """Run all at once; what they print goes to the log in turn.

    Returns:
        Name -> "done", "failed (status)" or "stopped after N s".
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // max(1, len(commands))))
    until, outcomes = time.monotonic() + limit, {}
    with ExitStack() as stack:
        running = {}
        for name, command in commands.items():
            output = stack.enter_context(TemporaryFile("w+", encoding="utf-8", errors="replace"))
            process = Popen(command, stdout=output, stderr=STDOUT, cwd=ROOT, env=environment)
            stack.callback(process.wait)
            stack.callback(process.kill)  # of one that ended: nothing
            running[name] = process, output
        for name, (process, output) in running.items():
            try:
                status = process.wait(max(0.0, until - time.monotonic()))
                outcomes[name] = f"failed ({status})" if status else "done"
            except TimeoutExpired:
                outcomes[name] = f"stopped after {limit:.0f} s"
            output.seek(0)
            print(f"\n$ {' '.join(commands[name])}\n{output.read()}", file=log, flush=True)
    return outcomes
