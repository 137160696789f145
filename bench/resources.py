"""Writes what the Triton kernels take of each GPU: `python bench/resources.py [FILTER ...]`.

Compiles ahead of time (swintormer_kernels/backends/triton/aot.py; no GPU needed, about two seconds a row) and replaces
tests/triton/resources.csv, which tests/triton/test_aot.py compares. With filters, rows whose words contain one of them
are made anew, and the others stay.
"""

from __future__ import annotations

import csv
import io
import sys
from dataclasses import asdict, fields
from pathlib import Path

from swintormer.images.files import replacing

TABLE = Path(__file__).resolve().parents[1] / "tests" / "kernels" / "triton" / "resources.csv"


def main(*filters: str) -> None:
    from swintormer_kernels.backends.triton import aot

    aot.refuse_interpreter()
    kept = {row.key: row for row in read_table()[1]} if filters and TABLE.exists() else {}
    for row in aot.rows(*filters):
        print(", ".join(map(str, asdict(row).values())), flush=True)
        kept[row.key] = row
    order = {key: place for place, key in enumerate(aot.keys())}
    rows = sorted((row for key, row in kept.items() if key in order), key=lambda row: order[row.key])
    text = io.StringIO()
    text.write(f"# triton {aot.triton.__version__}\n")
    writer = csv.DictWriter(text, [field.name for field in fields(aot.Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(asdict, rows))
    with replacing(TABLE) as file:
        file.write(text.getvalue().encode())
    print(f"wrote {TABLE}: {len(rows)} rows")


def read_table() -> tuple[str, list]:  # type: ignore[type-arg]  # of aot.Row, whose module needs triton
    """The version of triton that the table is for, and its rows."""
    from swintormer_kernels.backends.triton import aot

    version, *lines = TABLE.read_text(encoding="utf-8").splitlines()
    counts = {field.name for field in fields(aot.Row) if field.type == "int"}
    rows = [
        aot.Row(**{name: int(value) if name in counts else value for name, value in line.items()})
        for line in csv.DictReader(lines)
    ]
    return version.removeprefix("# triton "), rows


if __name__ == "__main__":
    main(*sys.argv[1:])
