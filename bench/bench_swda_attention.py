"""Times swda_attention at the released network's shapes: `pytest bench/bench_swda_attention.py`."""

import pytest
from measure import measure_op

from swintormer_kernels.ops import swda_attention as module
from swintormer_kernels.testing.cases import cases_of


@pytest.mark.parametrize(
    "case", [case for case in cases_of("swda_attention") if case.timed], ids=lambda case: case.name
)
@pytest.mark.parametrize("backend", ["cpu"])
def bench(case, backend, benchmark, rows):
    benchmark.group = f"swda_attention, {case.name}"
    rows.append(measure_op(benchmark, module, case, backend))
