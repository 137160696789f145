"""All that is to be known of the kernels on a GPU, in under ten minutes.

    python -m bench.gpu --out DIR [--seconds 570] [--only cuda,ops,network]

Steps, each with a limit and in processes of its own; one that fails is noted and the next goes on:

    tests       those of the kernels that use a GPU
    checks      every op of the CUDA kernels beside float64 (checks.csv); meanwhile Triton's kernels and the emulated
                device are compiled, and `swintormer selfcheck` runs in bfloat16: automatic selection needs its verdicts
    ops         blocks of the released network and of `small`, the denoiser's ops: eager, CUDA, Triton
    network     both networks for 40 tiles, as graphs, and a picture of 1680x1120 through `Deblurrer`
    sanitizer   compute-sanitizer's four tools on small cases, where it is installed
    bits        results of the GPU beside those of the emulated device (bits.csv), where g++ is installed
    candidates  instances of the CUDA kernels that no table chooses yet, where they were built
    prepared    Triton's kernels of a training step of `small`, compiled, so that the next step and `make train-gpu`
                find them in Triton's cache
    training    steps of `small` as the trainer takes them, as launches and as graphs
    gradients   forward and backward of the blocks' ops, and a training step
    compile     blocks and the released network through torch.compile
    priors      the latent diffusion's denoisers

DIR gets gpu.csv (a line for each time, at once), the other tables, log.txt (all that was printed) and notes.md
(machine, outcomes, times beside each other and beside what was predicted), which is written after each step. Rows are
added to those that are there, so that a visit may follow another. --only names steps, and with "cuda" or "triton" the
backends; of both, one that this machine lacks is left out, and notes.md says why.
"""

from __future__ import annotations

import argparse
import importlib
import shutil
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch

import swintormer_kernels as sk
from bench.gpu import bits, cases, checks
from bench.gpu.notes import machine, write_notes
from bench.gpu.processes import ROOT, run_together
from swintormer_kernels.backends.cuda.built import built
from swintormer_kernels.registry import machine_lacks

NO_GPU = "this bench needs a CUDA device and torch sees none: run it on a machine with a GPU and a CUDA build of torch"
STEPS = {  # in their order -> share of the time that is left
    "tests": 0.3,
    "checks": 0.25,
    "ops": 0.3,
    "network": 0.4,
    "sanitizer": 0.35,
    "bits": 0.25,
    "candidates": 0.25,
    "prepared": 0.5,
    "training": 0.3,
    "gradients": 0.4,
    "compile": 0.6,
    "priors": 1.0,
}
TIMED = {  # step -> its module and function, which takes (out, device, backends)
    "ops": ("ops", "run"),
    "gradients": ("ops", "run_gradients"),
    "network": ("network", "run"),
    "training": ("network", "run_training"),
    "compile": ("network", "run_compiled"),
    "bits": ("bits", "run"),
    "candidates": ("candidates", "run"),
    "priors": ("priors", "run"),
}
PREPARING: dict[str, Callable[[str, str], None]] = {
    "warm": cases.warm,
    "trains": cases.warm_training,
    "smallest": lambda _rest, device: cases.run_smallest(device),
}
BACKENDS = ("cuda", "triton")
NETWORK = ("pydantic", "safetensors", "typer")
NEEDED = {"network": NETWORK, "training": (*NETWORK, "pyvips"), "compile": NETWORK, "priors": (*NETWORK, "diffusers")}
"""Step -> packages without which it runs nothing; the kernels alone need torch."""
OF_CUDA = ("sanitizer", "bits", "candidates")  # steps
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
# Those that compile for other GPUs or test the C++ engine: minutes, and no GPU.
LEFT_OUT = ("test_compile.py", "test_swda_block.py")
LEAST_SECONDS = 3.0


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--seconds", type=float, default=570, help="what all steps may take together")
    parser.add_argument("--only", type=_names, default=(), help="steps and backends, with commas; all by default")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.exit(NO_GPU)
    asked.out = asked.out.resolve()  # the parts run in the repository's folder
    named = tuple(name for name in BACKENDS if name in asked.only)
    if asked.part:
        sys.exit(run_part(asked.part, asked.out, "cuda", named))
    absent = {name: why for name in named or BACKENDS if (why := machine_lacks(name)) is not None}
    backends = tuple(name for name in named or BACKENDS if name not in absent)
    if absent and (named or not backends):  # else all would pass, emulated or skipped
        sys.exit("\n".join(f"{name}: {why}" for name, why in absent.items()))
    asked.out.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + asked.seconds
    outcomes = {name: {name: f"left out: {why}"} for name, why in absent.items()}
    with (asked.out / "log.txt").open("a", encoding="utf-8") as log:
        print(machine(), file=log, flush=True)
        for step in [name for name in STEPS if name in asked.only] or STEPS:
            limit = STEPS[step] * (until - time.monotonic())
            together = commands(step, asked.out, backends)
            if isinstance(together, str):
                outcomes[step] = {step: together}
            elif limit < LEAST_SECONDS:
                outcomes[step] = dict.fromkeys(together, "no time was left")
            else:
                outcomes[step] = run_together(together, limit, log)
            write_notes(asked.out, outcomes)
    print((asked.out / "notes.md").read_text(encoding="utf-8"))
    wrong = [name for step in ("tests", "checks") for name, how in outcomes.get(step, {}).items() if how != "done"]
    if wrong:
        sys.exit(f"Not all tests and checks ended well: {', '.join(wrong)}; see {asked.out}/log.txt.")


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := [name for name in names if name not in (*STEPS, *BACKENDS)]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join((*STEPS, *BACKENDS))}")
    return names


def commands(step: str, out: Path, backends: tuple[str, ...]) -> dict[str, list[str]] | str:
    """Name -> command of what a step runs at once, or why it runs nothing."""

    def part(name: str) -> list[str]:
        return [sys.executable, "-m", "bench.gpu", "--out", str(out), "--only", ",".join(backends), "--part", name]

    if step == "tests":
        return tests(backends)
    if step == "checks":
        names = [f"check:{op}" for op in checks.OPS] if "cuda" in backends else []
        if names and shutil.which("g++"):
            names.append("emulator")
        if "triton" in backends:
            names += [*(f"warm:{case}" for case in cases.RELEASED), "warm:others", "selfcheck"]
        return {name: part(name) for name in names}
    if step == "prepared":
        if "triton" not in backends:
            return "is for Triton's kernels"
        return {name: part(name) for name in (f"trains:{case}" for case in cases.TRAINED)}
    if absent := [name for name in NEEDED.get(step, ()) if find_spec(name) is None]:
        return f"needs {' and '.join(absent)}, not installed here"
    if step in OF_CUDA and "cuda" not in backends:
        return "is for the CUDA kernels"
    if step == "sanitizer":
        tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
        if tool is None:
            return "compute-sanitizer is not installed"
        # Without torch's cache each tensor is an allocation of its own, and what lies between them is out of bounds.
        start = ["env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1", tool, "--error-exitcode", "9", "--tool"]
        return {name: [*start, name, *part("smallest")] for name in SANITIZERS}
    if step == "bits" and shutil.which("g++") is None:
        return "needs g++"
    if step == "candidates" and "candidates" not in built().images:
        return "not built (CMake's SWINTORMER_CUDA_CANDIDATES)"
    return {step: part(step)}


def tests(backends: tuple[str, ...]) -> dict[str, list[str]]:
    """pytest for each file; of those in tests/cuda the tests that are marked as a GPU's."""
    pytest = [sys.executable, "-m", "pytest", "-q", "--maxfail=5", "-p", "no:cacheprovider"]
    found: dict[str, list[str]] = {}
    if "triton" in backends:
        kernels = ROOT / "tests" / "kernels"
        files = [file for folder in (kernels / "triton", kernels) for file in sorted(folder.glob("test_*.py"))]
        app = ROOT / "tests" / "app"
        files += [*sorted(app.glob("test_graphs*.py")), app / "test_train_graph.py", app / "test_scales.py"]
        found |= {file.name: [*pytest, str(file)] for file in files if file.name not in LEFT_OUT}
    if "cuda" in backends:
        for name in ("test_operations.py", "test_ops_on_cuda.py", "test_block_kernels.py"):
            found[name] = [*pytest, "-m", "gpu and not slow", str(ROOT / "tests" / "cuda" / name)]
    return found


def run_part(part: str, out: Path, device: str, backends: tuple[str, ...]) -> int:
    """A part of a step, in this process; the exit status."""
    part, _, rest = part.partition(":")
    if part == "check":
        return 0 if checks.check_op(rest, out, device) else 1
    if part == "emulator":
        bits.library()
        return 0
    if part == "selfcheck":
        report = sk.selfcheck(dtypes=(torch.bfloat16,))
        print(report)
        return 1 if report.failures else 0
    if part in PREPARING:
        PREPARING[part](rest, device)
        return 0
    module, function = TIMED[part]
    timed: Callable[[Path, str, tuple[str, ...]], None]
    timed = getattr(importlib.import_module(f"bench.gpu.{module}"), function)
    timed(out, device, backends)
    return 0


if __name__ == "__main__":
    main()
