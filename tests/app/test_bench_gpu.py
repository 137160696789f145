"""bench/gpu: small and on a CPU, every call that a GPU would get; those of CUDA: tests/cuda/test_bench_cuda.py."""

from __future__ import annotations

import csv
import os
import select
import signal
import sys
from types import SimpleNamespace

import pytest
import torch
from priors import TINY as TINY_PRIOR

import swintormer_kernels as sk
from bench.gpu import __main__ as main
from bench.gpu import cases, checks, network, notes, ops, priors, rows, timing
from bench.gpu.meter import Meter
from bench.gpu.predictions import PREDICTED, predicted
from bench.gpu.processes import ROOT, run_together
from swintormer import NetworkConfig
from swintormer_kernels.backends.triton.layout import INTERPRETED
from swintormer_kernels.testing.block_cases import Shape

pytestmark = pytest.mark.usefixtures("one_thread", "language_patched_once")
TINY = NetworkConfig(
    in_channels=3, dim=4, num_blocks=(1, 1, 0, 0), num_refinement_blocks=0, heads=(1, 1, 1, 1), window_size=4
)


@pytest.fixture
def meter(tmp_path, monkeypatch):
    for name, value in (("WARM_UPS", 1), ("LEAST", 2), ("MOST", 2)):
        monkeypatch.setattr(timing, name, value)
    return Meter("part", tmp_path, "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so_in_one_sentence(tmp_path):
    with pytest.raises(SystemExit, match="needs a CUDA device and torch sees none"):
        main.main(["--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_parts_end_done_or_failed_and_are_logged(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")

    def python(script):
        return [sys.executable, "-c", script]

    told = python("import os; print('interpreted', 'TRITON_INTERPRET' in os.environ)")
    with (tmp_path / "log").open("w") as log:
        ended = run_together({"told": told, "failing": python("1 / 0")}, 60, log)
    assert ended == {"told": "done", "failing": "failed (1)"}
    text = (tmp_path / "log").read_text()
    assert all(said in text for said in ("interpreted False", "ZeroDivisionError", "1 / 0"))


def test_what_a_stopped_command_printed_and_started_is_not_lost(tmp_path):
    """Python is interrupted first, so that pytest tells its failures; and no program of a program lives on.

    Also in a background job of a shell, which ignores interrupts.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    written = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    started = ["sh", "-c", f"(echo started; exec sleep 600) > {fifo} & wait"]  # a shell's & is deaf to interrupts
    said = [sys.executable, "-c", "import time\nprint('first')\ntry: time.sleep(600)\nfinally: print('last')"]
    try:
        with (tmp_path / "log").open("w") as log:
            ended = run_together({"said": said, "started": started}, 3, log)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended == dict.fromkeys(("said", "started"), "stopped after 3 s")
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines.index("first") < lines.index("last")
    assert os.read(written, 100) == b"started\n"
    assert select.select([written], [], [], 10)[0]
    assert os.read(written, 100) == b""  # nobody holds the other end
    os.close(written)


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def ran(monkeypatch):
    """Step by step what would run, and for how long; every command ends well."""
    found = []
    monkeypatch.setattr(main, "run_together", lambda commands, limit, log: found.append((commands, limit)) or ends)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(main, "machine_lacks", lambda name: None)
    monkeypatch.setattr(main, "machine", lambda: "a machine")
    monkeypatch.setattr(notes, "machine", lambda: "a machine")
    monkeypatch.setattr(main, "built", lambda: SimpleNamespace(images={"candidates"}))
    monkeypatch.setattr(main.shutil, "which", lambda name, path=None: f"/bin/{name}")
    ends = {"it": "done"}
    return SimpleNamespace(steps=found, ends=ends)


def parts_of(commands):
    return [command[command.index("--part") + 1] for command in commands.values()]


def test_all_steps_share_the_time_that_is_given(ran, tmp_path, capsys):
    main.main(["--out", str(tmp_path), "--seconds", "50"])
    limits = [limit for _, limit in ran.steps]
    assert len(ran.steps) == len(main.STEPS)
    assert limits[0] == pytest.approx(0.3 * 50, rel=0.1)
    assert max(limits) <= 50
    tests, checked, *alone = (commands for commands, _ in ran.steps)
    assert {"test_ops_on_cuda.py", "test_block_kernels.py", "test_operations.py", "test_graphs.py"} <= tests.keys()
    assert "gpu and not slow" in tests["test_block_kernels.py"]
    assert set(parts_of(checked)) == {
        *(f"check:{op}" for op in checks.OPS),
        *(f"warm:{case}" for case in cases.RELEASED),
        "warm:others",
        "selfcheck",
        "emulator",
    }
    prepared = next(commands for commands in alone if len(commands) == len(cases.TRAINED))
    alone.remove(prepared)
    assert parts_of(prepared) == [f"trains:{case}" for case in cases.TRAINED]
    sanitized = alone.pop(2)
    assert list(sanitized) == ["memcheck", "racecheck", "initcheck", "synccheck"]
    assert set(parts_of(sanitized)) == {"smallest"}
    assert [parts_of(commands) for commands in alone] == [
        [step] for step in ("ops", "network", "bits", "candidates", "training", "gradients", "compile", "priors")
    ]
    assert "- priors: done" in (tmp_path / "notes.md").read_text()
    assert "- priors: done" in capsys.readouterr().out


def test_a_short_visit_takes_some_steps_of_one_backend(ran, tmp_path):
    main.main(["--out", str(tmp_path), "--only", "cuda,network,tests"])
    tests, timed = (commands for commands, _ in ran.steps)
    assert list(tests) == ["test_operations.py", "test_ops_on_cuda.py", "test_block_kernels.py"]
    (command,) = timed.values()
    assert command[command.index("--only") + 1] == "cuda"
    ran.steps.clear()
    main.main(["--out", str(tmp_path), "--only", "triton,sanitizer,checks,candidates"])
    (checked,) = (commands for commands, _ in ran.steps)
    *warmed, last = parts_of(checked)
    assert all(part.startswith("warm:") for part in warmed)
    assert last == "selfcheck"
    assert "- candidates: is for the CUDA kernels" in (tmp_path / "notes.md").read_text()
    with pytest.raises(SystemExit):
        main.main(["--out", str(tmp_path), "--only", "cuda,netwrok"])


def test_a_backend_that_is_not_there_is_not_taken_for_one_that_passed(ran, tmp_path, monkeypatch):
    """Tests of the CUDA kernels would run emulated, and checks skip all cases."""
    monkeypatch.setattr(main, "machine_lacks", {"cuda": "not built", "triton": None}.get)
    main.main(["--out", str(tmp_path), "--only", "tests,checks,ops"])
    tests, checked, timed = (commands for commands, _ in ran.steps)
    assert "test_ops_on_cuda.py" not in tests
    assert not [part for part in parts_of(checked) if part.startswith("check:")]
    assert timed["ops"][timed["ops"].index("--only") + 1] == "triton"
    assert "- cuda: left out: not built" in (tmp_path / "notes.md").read_text()
    with pytest.raises(SystemExit, match="cuda: not built"):
        main.main(["--out", str(tmp_path), "--only", "cuda,tests"])
    monkeypatch.setattr(main, "machine_lacks", lambda name: "absent")
    with pytest.raises(SystemExit, match="cuda: absent\ntriton: absent"):
        main.main(["--out", str(tmp_path)])


def test_what_failed_or_could_not_run_is_told_and_the_rest_goes_on(ran, tmp_path, monkeypatch):
    ran.ends.update(it="failed (1)")
    monkeypatch.setattr(main.shutil, "which", lambda name, path=None: None)
    monkeypatch.setattr(main, "built", lambda: SimpleNamespace(images=()))
    with pytest.raises(SystemExit, match="Not all tests and checks ended well: it, it; see"):
        main.main(["--out", str(tmp_path)])
    lines = (tmp_path / "notes.md").read_text().splitlines()
    assert "- tests: failed (1)" in lines
    assert "- sanitizer: compute-sanitizer is not installed" in lines
    assert "- bits: needs g++" in lines
    assert "- candidates: not built (CMake's SWINTORMER_CUDA_CANDIDATES)" in lines
    assert "- priors: failed (1)" in lines
    ran.steps.clear()
    main.main(["--out", str(tmp_path), "--only", "ops,priors", "--seconds", "0"])
    assert not ran.steps
    assert "- priors: no time was left" in (tmp_path / "notes.md").read_text()


def test_a_step_whose_packages_are_missing_says_so(ran, tmp_path, monkeypatch):
    monkeypatch.setattr(main, "find_spec", lambda name: None if name in ("pydantic", "diffusers") else name)
    main.main(["--out", str(tmp_path), "--only", "network,priors,gradients"])
    assert [parts_of(commands) for commands, _ in ran.steps] == [["gradients"]]
    lines = (tmp_path / "notes.md").read_text().splitlines()
    assert "- network: needs pydantic, not installed here" in lines
    assert "- priors: needs pydantic and diffusers, not installed here" in lines


def test_gradients_of_ops_are_timed_without_the_network(tmp_path, monkeypatch, capsys):
    timed = []
    monkeypatch.setitem(sys.modules, "bench.gpu.network", None)  # its import fails
    monkeypatch.delattr("bench.gpu.network")
    monkeypatch.setattr(ops, "time_op", lambda meter, name, *rest: timed.append(name))
    ops.run_gradients(tmp_path, "cpu", ())
    assert set(timed) == set(cases.BLOCKS)
    assert "ModuleNotFoundError" in capsys.readouterr().err


def test_the_selfcheck_prints_its_table_and_fails_with_it(tmp_path, monkeypatch, capsys):
    failures = []
    report = type("Report", (), {"failures": failures, "__str__": lambda self: "a table"})()
    monkeypatch.setattr(main.sk, "selfcheck", lambda dtypes: report)
    assert main.run_part("selfcheck", tmp_path, "cpu", main.BACKENDS) == 0
    failures.append("a row")
    assert main.run_part("selfcheck", tmp_path, "cpu", main.BACKENDS) == 1
    assert capsys.readouterr().out.splitlines() == ["a table"] * 2


def test_notes_are_there_after_every_step(ran, tmp_path, monkeypatch):
    """A visit that is cut off keeps what it has."""

    def cut_off(commands, limit, log):
        if "ops" in commands:
            raise KeyboardInterrupt
        return dict.fromkeys(commands, "done")

    monkeypatch.setattr(main, "run_together", cut_off)
    with pytest.raises(KeyboardInterrupt):
        main.main(["--out", str(tmp_path)])
    assert "- checks: 14 of 14 done" in (tmp_path / "notes.md").read_text()


@pytest.mark.parametrize("step", main.TIMED)
def test_every_step_calls_what_it_names(step, tmp_path, monkeypatch):
    module, function = main.TIMED[step]
    called = []
    monkeypatch.setattr(f"bench.gpu.{module}.{function}", lambda *given: called.append(given))
    assert main.run_part(step, tmp_path, "cpu", ("cuda",)) == 0
    assert called == [(tmp_path, "cpu", ("cuda",))]


def test_the_files_of_tests_exist():
    assert all((ROOT / command[-1]).exists() for command in main.tests(main.BACKENDS).values())


# ---- rows and notes --------------------------------------------------------------------------------------------------


def test_rows_are_read_as_they_were_written_and_summed_up(meter, tmp_path):
    what = {"what": "released", "case": "40 tiles of 256", "dtype": torch.bfloat16, "eager_ms": 120.0}
    meter.row(**what, by="eager", ms=120.0)
    meter.row(**what, by="cuda", ms=16.0)
    meter.row(**what, by="cuda", ms=12.0, launched="graph")
    meter.row(**what, by="automatic", ms=24.0)
    found = rows.read_rows(tmp_path)
    assert [(row.by, row.launched, row.ms, row.ratio) for row in found] == [
        ("eager", "plain", 120.0, 1.0),
        ("cuda", "plain", 16.0, 7.5),
        ("cuda", "graph", 12.0, 10.0),
        ("automatic", "plain", 24.0, 5.0),
    ]
    assert rows.read_rows(tmp_path / "nowhere") == []
    first, _, line = notes.table(found).splitlines()
    assert first.split(" | ")[4:9] == ["cuda", "triton", "compile", "eager", "automatic"]
    assert line.split(" | ")[4:10] == ["12", "-", "-", "120", "24", "7 to 8"]


def test_the_blocks_times_are_added_up_as_often_as_the_network_has_them(tmp_path, monkeypatch):
    monkeypatch.setattr(notes, "machine", lambda: "a machine")
    meter = Meter("ops", tmp_path, "cpu")
    for case in cases.RELEASED:
        meter.row(what="swda_block", case=case, dtype=torch.bfloat16, by="cuda", ms=0.5)
    notes.write_notes(tmp_path, {"ops": {"ops": "done"}})
    assert "by cuda: 18.00 ms" in (tmp_path / "notes.md").read_text()  # 36 blocks


def test_predictions_are_of_what_is_timed():
    known = {(op, case) for op, case, _ in cases.timed()} | {("released", f"{cases.TILES} tiles of {cases.TILE}")}
    assert PREDICTED.keys() <= known
    assert predicted("swda_block", "level1, C 48, shifted") == "0.22"
    assert predicted("released", "40 tiles of 256") == "7 to 8"
    assert predicted("swda_block", "small, level1, C 24") == "-"


def test_the_documentation_has_the_predictions_and_what_was_measured():
    """docs/cuda.md beside predictions.py and bench/results/cuda_h200.csv."""
    with (ROOT / "bench" / "results" / "cuda_h200.csv").open(newline="") as lines:
        found = {(row["what"], row["case"]): float(row["ms"]) for row in csv.DictReader(lines) if row["by"] == "cuda"}
    text = (ROOT / "docs" / "cuda.md").read_text().split("## Predicted and measured")[1].split("\n## ")[0]
    _, *table = (line.split(" | ") for line in text.splitlines() if " | " in line)
    told = {(what.removeprefix("| "), case): (expected, ms) for what, case, _, expected, ms, _ in table}
    assert {key for key, (expected, _) in told.items() if expected != "-"} == PREDICTED.keys()
    assert {key for key, (_, ms) in told.items() if ms != "-"} == found.keys()
    for key, (expected, ms) in told.items():
        assert expected == predicted(*key)
        assert ms == "-" or float(ms) == pytest.approx(found[key], rel=5e-3)


# ---- what is timed ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("passes", ["forward", "both"])
def test_an_op_is_timed_with_eager_beside_it(meter, tmp_path, monkeypatch, passes):
    if sk.backends()["triton"] is not None or not INTERPRETED:
        pytest.skip("on CPU tensors Triton kernels run in the interpreter only")
    monkeypatch.setitem(cases.SMALL, "tiny", Shape(2, 1, 4, 6, window=2))
    ops.time_op(meter, "gated_ffn", "tiny", 2, ("triton",), torch.float32, passes)
    found = rows.read_rows(tmp_path)
    assert [(row.dtype, row.by, row.passes) for row in found] == [("float32", by, passes) for by in ("eager", "triton")]
    macs = 3 * 2 * 2 * (4 * 6) * 5 * (3 if passes == "both" else 1)  # 3 C hid for each pixel of two tiles
    for row in found:
        assert row.gmac == pytest.approx(macs / 1e9, rel=1e-3)  # a row holds four digits
        assert 0 < row.error < 0.05
    assert found[0].ratio == 1


def test_what_cannot_be_timed_is_told_and_the_next_follows(tmp_path, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(ops, "time_op", lambda meter, name, case, *rest: seen.append((name, case)) or 1 / 0)
    ops.run(tmp_path, "cpu", ())
    assert seen == [(op, case) for op, case, _ in cases.timed()]
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_kernels_of_a_training_step_are_prepared(monkeypatch):
    calls = []
    monkeypatch.setattr(cases, "both", lambda backend, _op, made, _keywords: calls.append((backend, made)))
    for case, shift in (("small, latent, C 192", 4), ("small, latent, C 192, not shifted", 0)):
        cases.warm_training(case, "cpu")
        backend, made = calls.pop()
        assert (backend, made[0].shape, made[0].dtype, made[-1]) == ("triton", (2, 192, 16, 16), torch.bfloat16, shift)
        assert made[0].is_contiguous(memory_format=torch.channels_last)


def test_there_is_a_case_of_whatever_is_timed():
    for op, case in {(op, case) for op, case, _ in cases.timed()}:
        (x, *_), _ = cases.given(op, case, "cpu")
        assert x.dtype == torch.bfloat16


def test_the_network_is_timed_in_all_its_forms(meter, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda net, mode=None: net)
    monkeypatch.setitem(network.PRESETS, "released", TINY)
    monkeypatch.setitem(cases.SMALL, "tiny", Shape(4, 1, 4, 4, window=4))
    network.time_network(meter, "released", torch.float32, (), tile=32, tiles=2)
    network.time_picture(meter, "released", (), (40, 48))
    network.time_training(meter, "released", torch.float32, (), tile=32, batch=1)
    network.time_steps(meter, 1, (), tile=32)
    network.time_compiled_network(meter, tile=32, tiles=1)
    network.time_compiled_block(meter, "tiny", 1)
    found = rows.read_rows(tmp_path)
    assert [(row.what, row.case, row.passes, row.by) for row in found] == [
        ("released", "2 tiles of 32", "forward", "eager"),
        ("released", "picture of 48x40", "forward", "eager"),
        ("released", "picture of 48x40", "forward", "automatic"),
        ("released", "batch 1 of 32", "both", "eager"),
        *2 * [("training step", "small, batch 1 of 32", "both", "eager")],
        ("released", "1 tiles of 32", "forward", "compile"),
        ("swda_block", "tiny", "forward", "compile"),
    ]
    assert 0 < found[0].error < 1e-5


def test_a_unet_is_timed_before_and_after_it_is_optimized(meter, tmp_path):
    priors.time_unet(meter, "tiny", TINY_PRIOR, 8, torch.float32)
    found = rows.read_rows(tmp_path)
    expected = [(f"tiny {what}", by) for by in ("eager", "optimized") for what in ("step", "sample")]
    assert [(row.what, row.by) for row in found] == expected
    assert all(row.error < 1e-4 for row in found)


def test_rotated_copies_are_of_their_own_and_take_turns():
    x = torch.randn(3)
    first, second, *_ = timing.rotated((x, [x], 5), "cpu")
    assert torch.equal(first[0], x)
    assert first[2] == 5
    assert len({t.data_ptr() for t in (x, first[0], first[1][0], second[0])}) == 4
    seen = []
    assert timing.rotating_ms([lambda: seen.append("a"), lambda: seen.append("b")], "cpu", seconds=0.001) >= 0
    assert seen[:3] == ["a", "b", "a"]
    assert seen[4:8] == ["a", "b", "a", "b"]
