"""What the host layer offers beside reports: schedules, copies, poisoned memory, traffic, sanitizers, other fibers."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from emulator import CUDA, ROOT, SCHEDULES, Emulator, build, compiler, wanted
from test_faults import BLOCKS, SOURCE, THREADS, launch, lines_marked


@pytest.fixture(scope="module")
def planted() -> Emulator:
    return Emulator(build("race", [SOURCE]))


@pytest.fixture(scope="module")
def plain() -> Emulator:
    return Emulator(build("plain", [SOURCE]))


def test_schedules_differ(plain: Emulator) -> None:
    """Each thread writes its number to one place and reads it: the orders of threads that this shows."""
    seen = {tuple(launch(plain, "who_is_last", fault=False, schedule=schedule)[1]) for schedule in SCHEDULES}
    assert len(seen) == 1  # nobody waits: each thread runs from start to end
    after_a_barrier = {
        schedule: launch(plain, "missing_second_sync", fault=True, schedule=schedule)[1] for schedule in SCHEDULES
    }
    assert len({tuple(out) for out in after_a_barrier.values()}) > 1


def test_copies_come_at_once_or_when_waited_for(plain: Emulator) -> None:
    said, early = launch(plain, "copied_at_once", fault=False, late=False)
    assert said == []
    assert np.array_equal(early, np.arange(THREADS * BLOCKS))
    _, late = launch(plain, "copied_at_once", fault=False, late=True)
    assert np.isnan(late).all()


def test_unwritten_memory_is_nan(plain: Emulator) -> None:
    _, out = launch(plain, "uninitialised", fault=True)
    assert np.flatnonzero(np.isnan(out)).tolist() == [5, THREADS + 5]


def test_outputs_start_as_nan_and_inputs_stay(plain: Emulator) -> None:
    _, out = launch(plain, "blocks_write_one_place", fault=True)
    assert np.isnan(out[THREADS:]).all()
    assert not np.isnan(out[:THREADS]).any()


def test_bank_conflicts_are_counted(planted: Emulator) -> None:
    for fault, cost in ((False, 1), (True, 2)):
        launch(planted, "bank_conflict", fault, count=True)
        (line,) = lines_marked("COST", "bank_conflict")
        requests, wavefronts, least = planted.traffic()[line, "shared"]
        assert (requests, wavefronts, least) == (2, 2 * cost, 2)  # two warps


def test_sectors_are_counted(planted: Emulator) -> None:
    for fault, sectors in ((False, 1), (True, 8)):
        launch(planted, "strided", fault, count=True)
        (line,) = lines_marked("COST", "strided")
        assert planted.traffic()[line, "global"] == (1, sectors, 1)


def test_sanitizers_find_what_they_are_for(tmp_path: Path) -> None:
    """In other processes, which a fault ends."""
    skip_without_sanitizer(tmp_path)
    library = build("asan", [SOURCE])
    names = ["past_a_buffer", "past_shared_memory", "local_array", "signed_overflow"]
    program = "import sys; from pathlib import Path; from emulator import Emulator; from test_faults import launch\n"
    program += "library = Emulator(Path(sys.argv[1]))\n"
    program += "for name in sys.argv[3:]: assert launch(library, name, sys.argv[2] == 'True')[0] == []"
    done = with_sanitizer(program, library, False, *names)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in names:
        done = with_sanitizer(program, library, True, name)
        (line,) = lines_marked("FAULT", name)
        assert done.returncode != 0, name
        assert line in done.stderr, done.stderr


def skip_without_sanitizer(folder: Path) -> None:
    source = folder / "empty.cpp"
    source.write_text("int main() {}\n")
    command = [compiler(), "-fsanitize=address,undefined", source, "-o", folder / "empty"]
    links = subprocess.run([*map(str, command)], capture_output=True, check=False).returncode == 0
    if not links or subprocess.run([folder / "empty"], capture_output=True, check=False).returncode != 0:
        pytest.skip("the compiler has no -fsanitize=address,undefined, or its programs do not run here")


def with_sanitizer(program: str, *arguments: object) -> subprocess.CompletedProcess:
    """Run a Python program, whose imports may be the modules of these tests."""
    words = [compiler(), "-print-file-name=libasan.so"]
    preloaded = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    folders = os.pathsep.join(str(folder) for folder in (ROOT, ROOT / "tests", ROOT / "tests" / "cuda"))
    settings = {"LD_PRELOAD": preloaded, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONPATH": folders}
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={**os.environ, **settings, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_stack_switch_that_is_not_ours(tmp_path: Path) -> None:
    """ucontext, which processors without our assembly take."""
    source = tmp_path / "program.cpp"
    source.write_text(
        """
        #include "host/fiber.h"
        using namespace gpu::host;
        Context scheduler, fibers[3];
        int running, sum;
        void run() {
            for (int i = 0; i < 4; ++i) {
                sum = sum * 3 % 1000003 + running;
                switch_context(fibers[running], scheduler);
            }
        }
        int main() {
            Stacks stacks;
            stacks.reserve(3);
            for (int i = 0; i < 3; ++i)
                prepare(fibers[i], stacks.bottom(i) + Stacks::kPage, Stacks::kBytes - Stacks::kPage, run);
            int expected = 0;
            for (int round = 0; round < 4; ++round)
                for (running = 0; running < 3; ++running) {
                    switch_context(scheduler, fibers[running]);
                    expected = expected * 3 % 1000003 + running;
                }
            return sum == expected ? 0 : 1;
        }
        """
    )
    for define in ([], ["-DSWK_UCONTEXT"]):
        program = tmp_path / "program"
        command = [
            compiler(),
            "-std=c++17",
            "-O1",
            *define,
            f"-I{CUDA}",
            source,
            CUDA / "host" / "fiber.cpp",
            "-o",
            program,
        ]
        subprocess.run([*map(str, command)], check=True)
        assert subprocess.run([program], check=False).returncode == 0


def test_the_same_files_are_built_once() -> None:
    library = build("race", [SOURCE])
    before = library.stat().st_mtime_ns
    assert build("race", [SOURCE]) == library
    assert library.stat().st_mtime_ns == before
    assert set(Emulator(library).names()) >= {"local_array_kernel", "strided_kernel"}
    only = build("race", [SOURCE], ["strided_kernel", "who_is_last_kernel"])
    assert Emulator(only).names() == ["strided_kernel", "who_is_last_kernel"]


def test_a_buffer_may_be_absent_or_given_twice(planted: Emulator) -> None:
    x = np.arange(THREADS, dtype=np.float32)
    both = [wanted("x", x), wanted("out", x), wanted("counter", None)]
    # An output read before it was written: the input's name is the same memory, and both are outputs.
    said = planted.run("past_a_buffer_kernel", 1, THREADS, 0, both, [THREADS, 0])
    assert said[0].startswith("Uninitialised: ")
    x[:] = np.arange(THREADS)
    both[0] = both[0]._replace(access=0)
    assert planted.run("past_a_buffer_kernel", 1, THREADS, 0, both, [THREADS, 0]) == []
    assert np.array_equal(x, np.arange(THREADS))


def test_the_example_of_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", (ROOT / "docs" / "cuda.md").read_text(), re.MULTILINE | re.DOTALL)
    (source,), (program,), (report,) = ([text for kind, text in blocks if kind == k] for k in ("cpp", "python", ""))
    (tmp_path / "reversed_sum.cu").write_text(source)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(program, names)
    assert capsys.readouterr().out == report
    assert (names["out"] == 4).all()
    loop_end = "        sum += tile[63 - gpu::thread()];\n"
    (tmp_path / "reversed_sum.cu").write_text(source.replace(loop_end, loop_end + "        gpu::block_sync();\n"))
    exec(program, names)
    assert capsys.readouterr().out == "\n"
