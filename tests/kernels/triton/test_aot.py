"""What kernels take of GPUs that are not there: compiled ahead of time, compared with the table that is checked in.

Every row with `-m slow` (fifteen minutes); otherwise the level C 48 in bfloat16 on every target and in float32 on one.
After a change of a kernel or of its choices `python bench/resources.py` writes the table anew.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")
BENCH = Path(__file__).resolve().parents[3] / "bench"
TABLE = Path(__file__).with_name("resources.csv")
SHARED_LIMITS = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}
SUBSET = [
    *(f" C 48 {kernel} bfloat16" for kernel in ("forward", "backward", "weight_gradients")),
    " C 48, d 24 attention_forward bfloat16 sm_90",
    " C 48, d 24 attended_by_queries bfloat16 sm_",  # what Triton could once not compile for sm_100
]


def without_interpreter(*command: str) -> str:
    """Standard output of Python without TRITON_INTERPRET: interpreted kernels cannot be compiled."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def table() -> tuple[str, dict[tuple[str, ...], dict[str, str]]]:
    version, *lines = TABLE.read_text().splitlines()
    return version, by_key(lines)


def by_key(lines: list[str]) -> dict[tuple[str, ...], dict[str, str]]:
    keys = ("op", "configuration", "kernel", "dtype", "target")
    return {tuple(row[name] for name in keys): row for row in csv.DictReader(lines)}


def compare(*filters: str) -> None:
    version, recorded = table()
    if version != f"# triton {triton.__version__}":
        pytest.skip(f"the table is for {version.removeprefix('# ')}, this is triton {triton.__version__}")
    found = by_key(without_interpreter("-m", "swintormer_kernels.backends.triton.aot", *filters).splitlines())
    assert found
    for key, row in found.items():
        assert key in recorded, f"{key} is not in the table; run `python bench/resources.py`"
        assert row["constants"] == recorded[key]["constants"], key
        assert int(row["spill_bytes"]) <= int(recorded[key]["spill_bytes"]), key
        assert int(row["shared_bytes"]) <= SHARED_LIMITS[row["target"]], key
        assert int(row["programs"]) >= 1, key


def test_a_part_of_the_table():
    compare(*SUBSET, " C 48 forward float32 sm_90")
    compare("ddim_step plain step bfloat16", "group_norm_silu C 32 whole bfloat16", "C 160 forward bfloat16 sm_90")


@pytest.mark.slow
def test_the_whole_table():
    compare()


def test_the_table_is_complete_and_fits():
    """Without compiling: a row for each launch, with the choices of now, within the shared memory of its target."""
    script = "from swintormer_kernels.backends.triton import aot; print(*('|'.join(k) for k in aot.keys()), sep='\\n')"
    keys = [tuple(line.split("|")) for line in without_interpreter("-c", script).splitlines()]
    _, recorded = table()
    assert sorted(keys) == sorted(recorded)
    for key, row in recorded.items():
        assert int(row["shared_bytes"]) <= SHARED_LIMITS[row["target"]], key


SECOND_SIZE = """
import torch
from swintormer_kernels.backends.triton import aot, runtime
import importlib
for op in aot.OPS:
    module = importlib.import_module("swintormer_kernels.backends.triton." + op)
    for dtype in (torch.float32, torch.bfloat16):
        compiled = {}
        for side in (32, 48, 16):
            for configuration, call in module.ahead_of_time(dtype, side=side):
                with runtime.recording("sm_90") as launches:
                    call()
                for launch in launches:
                    key = str(aot.specialised(launch, "sm_90")[3:])
                    compiled.setdefault((configuration, launch.kernel.__name__), set()).add(key)
        print(*(len(keys) for keys in compiled.values()))
"""


def test_a_second_image_size_compiles_nothing():
    """The JIT's cache key of every launch, as Triton computes it, is one and the same for three image sizes."""
    counts = without_interpreter("-c", SECOND_SIZE).split()
    assert len(counts) >= 2 * 3 * 6
    assert set(counts) == {"1"}


def test_interpreted_kernels_are_refused_in_one_sentence():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "swintormer_kernels.backends.triton.aot"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1
    assert done.stderr == "TRITON_INTERPRET is set, and interpreted kernels cannot be compiled: run without it.\n"


def test_the_writer_keeps_the_rows_that_it_does_not_make(tmp_path, monkeypatch):
    script = (
        f"import sys; sys.path.insert(0, {str(BENCH)!r}); import resources; from pathlib import Path; "
        f"resources.TABLE = Path({str(tmp_path / 'table.csv')!r}); resources.TABLE.write_text({TABLE.read_text()!r}); "
        "resources.main('no row has these words')"
    )
    without_interpreter("-c", script)
    assert by_key((tmp_path / "table.csv").read_text().splitlines()[1:]) == table()[1]
