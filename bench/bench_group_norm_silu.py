"""Times group_norm_silu: `pytest bench/bench_group_norm_silu.py`."""

import pytest
from measure import measure_op

from swintormer_kernels.ops import group_norm_silu as module
from swintormer_kernels.testing.cases import cases_of


@pytest.mark.parametrize(
    "case", [case for case in cases_of("group_norm_silu") if case.timed], ids=lambda case: case.name
)
@pytest.mark.parametrize("backend", ["cpu"])
def bench(case, backend, benchmark, rows):
    benchmark.group = f"group_norm_silu, {case.name}"
    rows.append(measure_op(benchmark, module, case, backend))
