"""How an op is measured: checked first, then timed in turn (A B A B) with the reference and the machine's own floors.

The machines are shared, so a row's ratios are what counts; all times in a row were taken in turn, and are medians.
"""

from __future__ import annotations

import csv
import importlib
import math
import pkgutil
import platform
import statistics
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

import swintormer_kernels as sk
import swintormer_kernels.ops
from swintormer_kernels import native
from swintormer_kernels.packed import kept_bytes
from swintormer_kernels.testing.case import Case
from swintormer_kernels.testing.timing import peak_memory, peak_rate, timed

RESULTS = Path(__file__).resolve().parent / "results"
SECONDS_PER_CASE = 1.0
MIN_ROUNDS, MAX_ROUNDS = 7, 300


@dataclass(frozen=True)
class Row:
    """One line of bench/results/<op>.csv. Times are medians; shares are of rates measured in the same run."""

    date: str
    commit: str
    machine: str
    torch: str
    isa: str
    threads: int
    op: str
    case: str
    backend: str
    automatic: str  # the backend that automatic selection takes
    rounds: int
    forward_ms: float
    reference_ms: float
    forward_ratio: float  # reference / backend: above 1 the backend wins
    both_ms: float  # forward and backward
    both_reference_ms: float
    both_ratio: float
    gmac: float
    gflops: float
    gemm_share: float  # of the rate of torch's float32 matrix product
    gb_s: float
    copy_share: float  # of the rate of a copy of as many bytes
    peak_mb: float  # of live tensors above inputs and packed weights, forward
    error: float  # largest against float64, relative to the largest element
    reference_error: float
    fma_share: float  # of the rate of float32 multiply-adds between registers; nan in rows from before it was measured
    packed_mb: float  # weights that the backend keeps beside the model's own

    @property
    def moved_mb(self) -> float:
        """What is read and written at least in a forward call."""
        return self.gb_s * self.forward_ms


TABLE = (
    "op", "case", "backend", "forward_ms", "forward_ratio", "both_ms", "both_ratio", "gmac", "moved_mb",
    "gflops", "fma_share", "gemm_share", "gb_s", "copy_share", "peak_mb", "packed_mb", "error", "reference_error",
)  # fmt: skip


def op_modules(backend: str) -> list[ModuleType]:
    """Modules of the ops that `backend` has."""
    names = [module.name for module in pkgutil.iter_modules(swintormer_kernels.ops.__path__)]
    modules = [importlib.import_module(f"swintormer_kernels.ops.{name}") for name in names]
    return [module for module in modules if backend in module.OP.serves]


def measure_op(benchmark: Any, module: ModuleType, case: Case, backend: str) -> Row:
    """Checks `backend` on `case` of the op in `module`, then times it. Fails on red numerics without timing."""
    op = getattr(module, module.OP.name)
    args, kwargs = case.make(0)

    def call(name: str, *inputs: Any) -> Tensor:
        with sk.use_backend(name):
            return op(*(inputs or args), **kwargs)

    error, reference_error = errors(op, args, kwargs, backend)
    budget = 2 * reference_error + torch.finfo(torch.float32).eps
    assert error <= budget, f"{case.name}: relative error {error:.3g} of {backend} exceeds {budget:.3g}; not timed"

    work = module.cost(*args, **kwargs)
    source = torch.randn(max(1, work.bytes // 8))  # read once and written once: work.bytes in all
    target = torch.empty_like(source)
    leaves = tree_map(lambda x: x.clone().requires_grad_() if isinstance(x, Tensor) else x, args)
    gradient = torch.randn_like(call("reference"))  # dense, as in a network; that of sum() is one number, expanded
    turns: dict[str, Callable[[], object]] = {
        "reference": lambda: call("reference"),
        "copy": lambda: target.copy_(source),
        "both_reference": lambda: call("reference", *leaves).backward(gradient),
        "both": lambda: call(backend, *leaves).backward(gradient),
    }
    rounds, median = _between(benchmark, lambda: call(backend), turns)
    forward = benchmark.stats.stats.median
    return make_row(
        op=module.OP.name,
        case=case.name,
        backend=backend,
        automatic=str(sk.explain(op, *args, **kwargs).backend),
        rounds=rounds,
        forward=forward,
        reference=median["reference"],
        both=(median["both"], median["both_reference"]),
        macs=work.macs,
        moved=work.bytes,
        copy_share=median["copy"] / forward,
        peak_bytes=peak_memory(lambda: call(backend)),
        errors=(error, reference_error),
        packed_bytes=kept_bytes(t for t in tree_leaves(args) if isinstance(t, Tensor)),
    )


def make_row(
    *,
    forward: float,
    reference: float,
    macs: float,
    errors: tuple[float, ...],
    peak_bytes: float,
    packed_bytes: float,
    both: tuple[float, float] = (math.nan, math.nan),
    moved: float = math.nan,
    copy_share: float = math.nan,
    product_rate: float | None = None,
    **told: Any,
) -> Row:
    """A row from seconds, multiply-accumulates and bytes; `errors` and `both` are the backend's and the reference's.

    `product_rate` in FLOP/s is of torch's matrix product, measured now if None; `told` are columns as they are.
    """
    return Row(
        **environment(),
        **told,
        forward_ms=1e3 * forward,
        reference_ms=1e3 * reference,
        forward_ratio=reference / forward,
        both_ms=1e3 * both[0],
        both_reference_ms=1e3 * both[1],
        both_ratio=both[1] / both[0],
        gmac=macs / 1e9,
        gflops=2 * macs / forward / 1e9,
        gemm_share=2 * macs / forward / (product_rate or gemm_rate()),
        gb_s=moved / forward / 1e9,
        copy_share=copy_share,
        peak_mb=peak_bytes / 1e6,
        error=errors[0],
        reference_error=errors[1],
        fma_share=2 * macs / forward / peak_rate(),
        packed_mb=packed_bytes / 1e6,
    )


def _between(
    benchmark: Any, measured: Callable[[], object], turns: dict[str, Callable[[], object]]
) -> tuple[int, dict[str, float]]:
    """Gives `benchmark` its rounds of `measured`, with all `turns` before each; their count, and the turns' medians."""
    seconds: dict[str, list[float]] = {name: [] for name in turns}

    def others() -> None:
        for name, turn in turns.items():
            seconds[name].append(timed(turn))

    others()
    rounds = round(SECONDS_PER_CASE / max(1e-9, sum(s[0] for s in seconds.values())))
    rounds = min(MAX_ROUNDS, max(MIN_ROUNDS, rounds))
    for times in seconds.values():
        times.clear()
    measured()
    benchmark.pedantic(measured, setup=others, rounds=rounds, warmup_rounds=2)
    return rounds, {name: statistics.median(times) for name, times in seconds.items()}


def errors(op: Callable[..., Tensor], args: Any, kwargs: Any, backend: str) -> tuple[float, float]:
    """Largest error of `backend` and of the reference against float64, relative to the largest element."""
    wide_args, wide_kwargs = tree_map(lambda x: x.double() if isinstance(x, Tensor) else x, (args, kwargs))
    with sk.use_backend("reference"):
        exact, reference = op(*wide_args, **wide_kwargs), op(*args, **kwargs)
    with sk.use_backend(backend):
        out = op(*args, **kwargs)
    largest = exact.abs().max().item()
    # nan_to_num: an element that nobody wrote must not hide behind a comparison with NaN.
    return tuple((x - exact).abs().nan_to_num(nan=torch.inf).max().item() / largest for x in (out, reference))  # type: ignore[return-value]


def gemm_rate() -> float:
    """FLOP/s of a 768x768x768 float32 matrix product, median of 9."""
    n = 768
    a, b = torch.randn(n, n), torch.randn(n, n)
    a @ b
    return 2 * n**3 / statistics.median(timed(lambda: a @ b) for _ in range(9))


def rates() -> str:
    """In a sentence, what this machine does at this moment: multiply-adds between registers, and torch's product."""
    peaks = {f"multiply-adds in {dtype}": peak_rate(dtype) for dtype in ("float32", "bfloat16")}
    told = [f"{rate / 1e9:.0f} of {what}" for what, rate in peaks.items() if not math.isnan(rate)]
    told.append(f"{gemm_rate() / 1e9:.0f} of torch's float32 matrix product")
    return f"GFLOP/s on {torch.get_num_threads()} threads: {', '.join(told)}"


def environment() -> dict[str, Any]:
    """The columns that say where and with what a row was measured."""
    here = Path(__file__).resolve().parent

    def git(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=here, capture_output=True, text=True, check=False).stdout.strip()

    machine = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        machine = f"{names[0]} x{len(names)}" if names else machine
    changed = git("status", "--porcelain", "--untracked-files=no", "--", "../csrc", "../swintormer_kernels", ".")
    return {
        "date": date.today().isoformat(),
        "commit": git("rev-parse", "--short", "HEAD") + ("+changes" if changed else ""),
        "machine": machine,
        "torch": torch.__version__,
        "isa": native.extension().isa() if native.why_absent() is None else "",
        "threads": torch.get_num_threads(),
    }


def format_table(rows: list[Row], columns: tuple[str, ...]) -> str:
    """Aligned text, one line for each row."""
    lines = [list(columns)] + [[_text(getattr(row, column)) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "".join(
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() + "\n" for line in lines
    )


def append_csv(rows: list[Row]) -> list[Path]:
    """Appends each op's rows to its file, with a header where the file is new; returns the files."""
    RESULTS.mkdir(exist_ok=True)
    files = []
    for op in dict.fromkeys(row.op for row in rows):
        file = RESULTS / f"{op}.csv"
        new = not file.exists()
        with file.open("a", newline="", encoding="utf-8") as out:
            writer = csv.DictWriter(out, [field.name for field in fields(Row)])
            if new:
                writer.writeheader()
            for row in rows:
                if row.op == op:
                    writer.writerow({name: _text(value) for name, value in asdict(row).items()})
        files.append(file)
    return files


def append_notes(notes: list[str]) -> list[Path]:
    """Appends sentences to notes.txt, under a line that says when, where and at which commit they were measured."""
    if not notes:
        return []
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / "notes.txt"
    with file.open("a", encoding="utf-8") as out:
        out.write(", ".join(f"{name} {value}" for name, value in environment().items()) + "\n")
        out.writelines(f"  {note}\n" for note in notes)
    return [file]


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
