"""Times gated_ffn at the released network's shapes: `pytest bench/bench_gated_ffn.py`."""

import pytest
from measure import measure_op

from swintormer_kernels.ops import gated_ffn as module
from swintormer_kernels.testing.cases import cases_of


@pytest.mark.parametrize("case", [case for case in cases_of("gated_ffn") if case.timed], ids=lambda c: c.name)
@pytest.mark.parametrize("backend", ["cpu"])
def bench(case, backend, benchmark, rows):
    benchmark.group = f"gated_ffn, {case.name}"
    rows.append(measure_op(benchmark, module, case, backend))
