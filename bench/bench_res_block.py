"""Times res_block: `pytest bench/bench_res_block.py`."""

import pytest
from measure import measure_op

from swintormer_kernels.ops import res_block as module


@pytest.mark.parametrize("case", [case for case in module.cases() if case.timed], ids=lambda case: case.name)
@pytest.mark.parametrize("backend", ["cpu"])
def bench(case, backend, benchmark, rows):
    benchmark.group = f"res_block, {case.name}"
    rows.append(measure_op(benchmark, module, case, backend))
