"""Commands that run at once, each for a limited time."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from signal import SIG_IGN, SIGINT, SIGKILL, default_int_handler, getsignal, signal
from subprocess import STDOUT, Popen, TimeoutExpired
from tempfile import TemporaryFile
from typing import TextIO

ROOT = Path(__file__).resolve().parents[2]
GRACE = 3.0  # seconds after an interrupt, in which pytest tells what failed so far


def run_together(commands: dict[str, list[str]], limit: float, log: TextIO) -> dict[str, str]:
    """Run all at once; what they print goes to the log in turn. Whatever they started ends with them.

    Returns:
        Name -> "done", "failed (status)" or "stopped after N s".
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // max(1, len(commands))))
    environment["PYTHONUNBUFFERED"] = "1"  # what is stopped has told what it did
    if getsignal(SIGINT) == SIG_IGN:  # as a shell's background jobs have it, and pass it on to what they start
        signal(SIGINT, default_int_handler)
    until, outcomes, stopped = time.monotonic() + limit, {}, set()
    with ExitStack() as stack:
        running = {}
        for name, command in commands.items():
            output = stack.enter_context(TemporaryFile("w+", encoding="utf-8", errors="replace"))
            process = Popen(command, stdout=output, stderr=STDOUT, cwd=ROOT, env=environment, start_new_session=True)
            stack.callback(process.wait)
            stack.callback(_signal, process, SIGKILL)
            running[name] = process, output
        for name, (process, output) in running.items():
            if not _ended(process, until) and not stopped:
                stopped = {other for other, (one, _) in running.items() if one.poll() is None}
                for other in stopped:
                    _signal(running[other][0], SIGINT)
            if name in stopped:
                _ended(process, until + GRACE)
                outcomes[name] = f"stopped after {limit:.0f} s"
            else:
                outcomes[name] = f"failed ({process.returncode})" if process.returncode else "done"
            output.seek(0)
            print(f"\n$ {' '.join(commands[name])}\n{output.read()}", file=log, flush=True)
    return outcomes


def _ended(process: Popen[bytes], until: float) -> bool:
    with suppress(TimeoutExpired):
        process.wait(max(0.0, until - time.monotonic()))
    return process.returncode is not None


def _signal(process: Popen[bytes], number: int) -> None:
    """To it and all that it started: compute-sanitizer's program and torch's compilers would go on using the GPU."""
    with suppress(ProcessLookupError):  # all have ended
        os.killpg(process.pid, number)
