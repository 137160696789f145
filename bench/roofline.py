"""Draws bench/results/roofline_<isa>.png, one for each instruction set, from recorded rows: `python -m bench.roofline`.

The floor of a shape is the time that its arithmetic takes at the rate of float32 multiply-adds between registers, or
that its memory takes at the rate of a copy, whichever is longer; both rates are of the row's own run. A bar is the
share of the floor that was reached, for the backend and for the plain PyTorch reference, newest row of each shape. Rows
without the rate of multiply-adds are left out.
"""

from __future__ import annotations

import csv
import math
import os
import sys
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"
OPS = ("swda_block", "norm_silu_conv3x3", "upsample_conv3x3", "network")  # what whole networks spend their time in


def main(folder: Path = RESULTS) -> None:
    rows = newest_rows([folder / f"{op}.csv" for op in OPS if (folder / f"{op}.csv").exists()])
    if not rows:
        sys.exit("there are no rows to draw; record some first: pytest bench --record")
    for isa in dict.fromkeys(row["isa"] for row in rows):
        draw([row for row in rows if row["isa"] == isa], folder / f"roofline_{isa}.png")


def draw(rows: list[dict[str, str]], target: Path) -> None:
    """One picture of `rows`."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.32 * len(rows)), layout="constrained")
    places = range(len(rows))
    own = [share_of_floor(row) for row in rows]
    eager = [
        share * float(row["forward_ms"]) / float(row["reference_ms"]) for share, row in zip(own, rows, strict=True)
    ]
    axes.barh([place - 0.2 for place in places], own, height=0.4, label="fused", color="#2a6f97")
    axes.barh([place + 0.2 for place in places], eager, height=0.4, label="plain PyTorch", color="#c9ada7")
    for place, share, row in zip(places, own, rows, strict=True):
        axes.text(share, place - 0.2, f" {float(row['forward_ratio']):.1f}x", va="center", fontsize=8)
    axes.set_yticks(list(places), [f"{row['op']}: {row['case']} ({row['backend']})" for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel(f"share of the floor (1 = as fast as the machine allows), {machine(rows)}")
    axes.legend(loc="lower right")
    beside = target.with_suffix(".part.png")
    figure.savefig(beside, dpi=130)
    os.replace(beside, target)
    print(f"wrote {target}: {len(rows)} shapes")


def newest_rows(files: list[Path]) -> list[dict[str, str]]:
    """The last row of each (op, case, backend, isa) that has `fma_share`; files grow at their end."""
    newest: dict[tuple[str, ...], dict[str, str]] = {}
    for file in files:
        with file.open(newline="", encoding="utf-8") as lines:
            for row in csv.DictReader(lines):
                if not math.isnan(float(row["fma_share"])):
                    newest[row["op"], row["case"], row["backend"], row["isa"]] = row
    return list(newest.values())


def share_of_floor(row: dict[str, str]) -> float:
    """Floor time over measured time: the larger of the two shares, because the longer of the two times binds."""
    fma, copy = float(row["fma_share"]), float(row["copy_share"])
    return fma if math.isnan(copy) else max(fma, copy)


def machine(rows: list[dict[str, str]]) -> str:
    """Where the rows come from, each machine once."""
    return "; ".join(dict.fromkeys(f"{row['machine']}, {row['isa']}, {row['threads']} threads" for row in rows))


if __name__ == "__main__":
    main()
