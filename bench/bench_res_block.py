"""Times res_block: `pytest bench/bench_res_block.py`."""

import pytest
from measure import measure_op

from swintormer_kernels.ops import res_block as module
from swintormer_kernels.testing.cases import cases_of


@pytest.mark.parametrize("case", [case for case in cases_of("res_block") if case.timed], ids=lambda c: c.name)
@pytest.mark.parametrize("backend", ["cpu"])
def bench(case, backend, benchmark, rows):
    benchmark.group = f"res_block, {case.name}"
    rows.append(measure_op(benchmark, module, case, backend))
