"""Times upsample_conv3x3: `pytest bench/bench_upsample_conv3x3.py`."""

import pytest
from measure import measure_op

from swintormer_kernels.ops import upsample_conv3x3 as module
from swintormer_kernels.testing.cases import cases_of


@pytest.mark.parametrize(
    "case", [case for case in cases_of("upsample_conv3x3") if case.timed], ids=lambda case: case.name
)
@pytest.mark.parametrize("backend", ["cpu"])
def bench(case, backend, benchmark, rows):
    benchmark.group = f"upsample_conv3x3, {case.name}"
    rows.append(measure_op(benchmark, module, case, backend))
