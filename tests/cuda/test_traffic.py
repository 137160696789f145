"""Bank conflicts of the kernels, which the host layer counts: matrices come from shared memory without any."""

from __future__ import annotations

import pytest
import torch
from emulator import Emulator
from mutations import KERNELS
from ops import mapped, on
from test_mutations import CASES, library_of

from swintormer_kernels import native
from swintormer_kernels.backends.cuda import device, emulator

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("case", ["block", "block8", "wide", "conv"])
def test_ldmatrix_has_no_bank_conflicts(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = native.why_absent()
    if reason is not None:
        pytest.skip(reason)
    library = library_of("race", KERNELS, case)
    counted = {}
    original = emulator.launch

    def launch(*arguments) -> None:  # the counts are of one launch
        original(*arguments)
        counted.update(Emulator(library).traffic())

    monkeypatch.setattr(emulator, "launch", launch)
    monkeypatch.setattr(emulator, "options", emulator.Options(count=True))
    monkeypatch.setattr(device, "EMULATOR", library)
    function, *arguments = mapped(lambda t: t.to(torch.bfloat16), CASES[case][0]())
    on("cuda", function, arguments)
    loads = 0
    for (place, space), traffic in counted.items():
        file, line = place.split(":")
        if space == "shared" and "gpu::ldmatrix" in (KERNELS / file).read_text().splitlines()[int(line) - 1]:
            loads += traffic.requests
            assert traffic.cost == traffic.least, place
    assert loads > 1000
