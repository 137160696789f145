"""The host layer on small kernels with one fault each: it must be reported, with its source line, in every schedule."""

import re
from pathlib import Path

import numpy as np
import pytest
from emulator import SCHEDULES, Emulator, build, changed, given, wanted

SOURCE = Path(__file__).parent / "planted" / "faults.cu"
THREADS, BLOCKS = 64, 2

# What the report begins with.
FAULTS = {
    "missing_block_sync": "Race: ",
    "missing_second_sync": "Race: ",
    "missing_warp_sync": "Race: ",
    "two_writers": "Race: ",
    "missing_copy_wait": "Copy not waited for: ",
    "wait_without_barrier": "Race: ",
    "no_wait_at_all": "Copy not waited for: ",
    "past_shared_memory": "Out of bounds: ",
    "past_a_buffer": "Out of bounds: ",
    "before_a_buffer": "Out of bounds: ",
    "far_away": "Out of bounds: ",
    "matrix_outside": "Out of bounds: ",
    "uninitialised": "Uninitialised: ",
    "output_read": "Uninitialised: ",
    "input_written": "Input changed: ",
    "misaligned": "Misaligned: ",
    "different_operations": "Divergence: ",
    "half_a_warp_leaves": "Never ends: ",
    "barrier_in_a_branch": "Never ends: ",
    "two_barriers": "Divergence: ",
    "blocks_write_one_place": "Race between blocks: ",
    "block_reads_another": "Race between blocks: ",
    "atomic_and_plain": "Race",
}


def lines_marked(mark: str, name: str) -> set[str]:
    found = enumerate(SOURCE.read_text().splitlines(), 1)
    return {f"{SOURCE.name}:{i}" for i, line in found if re.search(rf"{mark} {name}\b", line)}


@pytest.fixture(scope="module")
def planted() -> Emulator:
    return Emulator(build("race", [SOURCE]))


def launch(library: Emulator, name: str, fault: bool, **options) -> tuple[list[str], np.ndarray]:
    x = np.arange(THREADS * BLOCKS, dtype=np.float32)
    out, counter = np.zeros_like(x), np.zeros(1, np.int32)
    shared = 0 if name == "past_a_buffer" else 4 * THREADS
    buffers = [given("x", x), wanted("out", out), changed("counter", counter)]
    said = library.run(f"{name}_kernel", BLOCKS, THREADS, shared, buffers, [THREADS, int(fault)], **options)
    return said, out


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_found_and_named(name: str, planted: Emulator) -> None:
    for schedule in SCHEDULES:
        for late in (False, True):
            said, out = launch(planted, name, fault=False, schedule=schedule, late=late)
            assert said == []
            assert not np.isnan(out).any()
            said, _ = launch(planted, name, fault=True, schedule=schedule, late=late)
            first = said[0] if said else "nothing"
            assert first.startswith(FAULTS[name]), (schedule, late, said)
            places = lines_marked("FAULT", name) | lines_marked("OTHER", name)
            assert places
            assert all(place in first for place in places), first
