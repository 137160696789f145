"""Times every op of the cpu backend beside the reference: `pytest bench/bench_ops.py`, `-k swda_block` for one op."""

from __future__ import annotations

import pytest

from bench.measure import measure_op, op_modules
from swintormer_kernels.testing.cases import cases_of

BACKEND = "cpu"
CASES = [
    pytest.param(module, case, id=f"{module.OP.name}, {case.name}")
    for module in op_modules(BACKEND)
    for case in cases_of(module.OP.name)
    if case.timed
]


@pytest.mark.parametrize(("module", "case"), CASES)
def bench(module, case, benchmark, rows):
    benchmark.group = module.OP.name
    benchmark.name = case.name
    rows.append(measure_op(benchmark, module, case, BACKEND))
