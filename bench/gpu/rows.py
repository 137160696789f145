"""A line of gpu.csv, written as soon as it is measured."""

from __future__ import annotations

import csv
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Row:
    """One time. `ratio` is eager's time over this one; shares are of rates measured in the same process."""

    part: str
    what: str
    case: str
    dtype: str
    passes: str  # "forward" or "both": forward and backward
    by: str  # "eager", "cuda", "triton", "compile", or what a part compares
    ms: float
    ratio: float
    gmac: float  # forward and backward count as three times the forward
    tflops: float
    matmul_share: float
    gb_s: float
    copy_share: float
    peak_mb: float
    error: float  # ||y - exact|| / ||exact||, exact in float64
    card: str = ""
    driver: str = ""
    clock_mhz: float = math.nan  # of the multiprocessors, right after the time was taken
    launched: str = "plain"  # or "graph": a replay of a CUDA graph, whose launches cost next to nothing


def append(out: Path, row: Row) -> None:
    """A line more in gpu.csv, at once: a part that is stopped later has told what it measured."""
    append_line(out / "gpu.csv", asdict(row), 4)
    print(", ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in asdict(row).values()), flush=True)


def append_line(file: Path, values: dict[str, Any], digits: int) -> None:
    """A line more in a CSV file, whose first line is the names; numbers with so many digits."""
    new = not file.exists()
    with file.open("a", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, list(values), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow({k: f"{v:.{digits}g}" if isinstance(v, float) else v for k, v in values.items()})


def read_rows(out: Path) -> list[Row]:
    """What gpu.csv holds; nothing if there is none."""
    file = out / "gpu.csv"
    if not file.exists():
        return []
    numbers = {field.name for field in fields(Row) if field.type == "float"}
    with file.open(newline="", encoding="utf-8") as lines:
        return [Row(**{k: float(v) if k in numbers else v for k, v in line.items()}) for line in csv.DictReader(lines)]
