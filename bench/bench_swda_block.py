"""Times swda_block at the released network's shapes: `pytest bench/bench_swda_block.py`."""

import pytest
from measure import measure_op

from swintormer_kernels.ops import swda_block as module
from swintormer_kernels.testing.cases import cases_of


@pytest.mark.parametrize("case", [case for case in cases_of("swda_block") if case.timed], ids=lambda c: c.name)
@pytest.mark.parametrize("backend", ["cpu"])
def bench(case, backend, benchmark, rows):
    benchmark.group = f"swda_block, {case.name}"
    rows.append(measure_op(benchmark, module, case, backend))
