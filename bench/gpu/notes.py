"""notes.md: where, what ran, the checks that failed, and times beside each other and beside what was predicted."""

from __future__ import annotations

from pathlib import Path

import torch

import swintormer_kernels as sk
from bench.gpu.cases import RELEASED
from bench.gpu.checks import verdicts
from bench.gpu.predictions import predicted
from bench.gpu.rows import Row, read_rows
from swintormer.images.files import replacing

FIRST = ("cuda", "triton", "compile", "eager")  # columns; others follow


def machine() -> str:
    """The GPU and the versions, a line each."""
    lines = [f"torch {torch.__version__}, CUDA {torch.version.cuda}", *str(sk.backends()).splitlines()]
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        name = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {properties.multi_processor_count} SMs"
        lines.insert(0, name)
    return "\n".join(lines)


def write_notes(out: Path, outcomes: dict[str, dict[str, str]]) -> None:
    """`outcomes`: step -> part -> how it ended."""
    rows = read_rows(out)
    parts = "\n".join(f"- {step}: {_ended(ended)}" for step, ended in outcomes.items())
    text = f"# Kernels on a GPU\n\n```\n{machine()}\n```\n\n{parts}\n\n{_checks(out)}\n\n{table(rows)}\n{_blocks(rows)}"
    with replacing(out / "notes.md") as file:
        file.write(text.encode())


def _ended(ended: dict[str, str]) -> str:
    if len(ended) == 1:
        return next(iter(ended.values()))
    different = [f"{name} {how}" for name, how in ended.items() if how != "done"]
    return "; ".join([f"{len(ended) - len(different)} of {len(ended)} done", *different])


def _checks(out: Path) -> str:
    found = verdicts(out)
    wrong = [f"{', '.join(check)}: {verdict}" for check, verdict in found.items() if verdict != "ok"]
    return f"{len(found) - len(wrong)} of {len(found)} checks passed" + "".join(f"\n- {line}" for line in wrong)


def table(rows: list[Row]) -> str:
    """A line for each (what, case, dtype, passes): the best time of each column, in ms, graphs and launches alike."""
    columns = [*FIRST, *(by for by in dict.fromkeys(row.by for row in rows) if by not in FIRST)]
    best: dict[tuple[str, str, str, str], dict[str, Row]] = {}
    for row in rows:
        beside = best.setdefault((row.what, row.case, row.dtype, row.passes), {})
        beside[row.by] = min(row, beside.get(row.by, row), key=lambda r: r.ms)
    names = ["what", "case", "dtype", "passes", *columns, "predicted of cuda", "cuda's share of the matrix product"]
    lines = [names, ["---"] * len(names)]
    for (what, case, dtype, passes), beside in best.items():
        cells = [f"{beside[by].ms:.4g}" if by in beside else "-" for by in columns]
        expected = predicted(what, case) if (dtype, passes) == ("bfloat16", "forward") else "-"
        share = f"{beside['cuda'].matmul_share:.2f}" if "cuda" in beside else "-"
        lines.append([what, case, dtype, passes, *cells, expected, share])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _blocks(rows: list[Row]) -> str:
    """What the released network's blocks take in all by their own times, for each backend that has them all."""
    text = ""
    for by in ("cuda", "triton", "eager"):
        ms = {
            r.case: r.ms
            for r in rows
            if (r.what, r.by, r.passes, r.part) == ("swda_block", by, "forward", "ops") and r.case in RELEASED
        }
        if len(ms) == len(RELEASED):
            text += (
                f"\nAll blocks of the released network by {by}: {sum(RELEASED[c] * t for c, t in ms.items()):.2f} ms"
            )
    return text + "\n" if text else ""
