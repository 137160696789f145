"""Times ddim_step: `pytest bench/bench_ddim_step.py`."""

import pytest
from measure import measure_op

from swintormer_kernels.ops import ddim_step as module
from swintormer_kernels.testing.cases import cases_of


@pytest.mark.parametrize("case", [case for case in cases_of("ddim_step") if case.timed], ids=lambda c: c.name)
@pytest.mark.parametrize("backend", ["cpu"])
def bench(case, backend, benchmark, rows):
    benchmark.group = f"ddim_step, {case.name}"
    rows.append(measure_op(benchmark, module, case, backend))
