"""The program as a process of its own: its exit code, its streams, its signals."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli_files import TINY, default_signals, files, make_bad, photo

from swintormer import Swintormer, save_checkpoint

PROGRAM = [sys.executable, "-m", "swintormer.cli.app"]
PATIENCE = 200  # seconds until a program that hangs fails its test


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Threads gain nothing on these sizes and cost much on a busy machine."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_checkpoint(Swintormer(TINY), path, training_tile=32)
    return path


def start(weights: Path, *words: object) -> subprocess.Popen[str]:
    command = [*PROGRAM, "deblur", *map(str, words), "--weights", str(weights)]
    with default_signals():
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8")


def test_a_bad_file_among_good_ones(tmp_path, monkeypatch, weights):
    monkeypatch.chdir(tmp_path)
    bad = make_bad("truncated")
    photo("in/zzz.png")
    with start(weights, "in", "-o", "out") as program:
        output, errors = program.communicate(timeout=PATIENCE)
    assert program.returncode == 1
    assert "in/zzz.png -> out/zzz.png" in output
    assert errors.startswith(f"1 restored, 1 failed:\n  {bad} is damaged, cut short")
    assert errors.count("\n") == 2
    assert files("out") == {"zzz.png"}


def test_an_interrupt_in_the_middle_of_a_picture(tmp_path, monkeypatch, weights):
    """The line of the first picture says that the second has begun, and that one has 36481 tiles."""
    monkeypatch.chdir(tmp_path)
    photo("in/a.png", side=(32, 32))
    photo("in/b.png", side=(222, 222))
    with start(weights, "in", "-o", "out", "--tile", 32, "--stride", 1) as program:
        try:
            assert "in/a.png -> out/a.png" in program.stdout.readline()
            program.send_signal(signal.SIGINT)
            _, errors = program.communicate(timeout=PATIENCE)
        finally:
            program.kill()
    assert program.returncode == 128 + signal.SIGINT
    assert errors.startswith("Interrupted: 1 restored, no incomplete file is left")
    assert errors.count("\n") == 1
    assert files("out") == {"a.png"}


def test_nobody_reads_the_output(tmp_path, monkeypatch, weights):
    """As in `swintormer deblur ... | true`: the pictures are still wanted."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png", "c.png"):
        photo(f"in/{name}", side=(8, 8))
    with start(weights, "in", "-o", "out") as program:
        program.stdout.close()
        errors = program.stderr.read()
        program.wait(timeout=PATIENCE)
    assert (program.returncode, errors) == (0, "")
    assert files("out") == {"a.png", "b.png", "c.png"}


def test_a_terminal_gets_a_progress_bar(tmp_path, weights):
    photo(tmp_path / "a.png", side=(100, 200))
    master, slave = pty.openpty()
    words = ["deblur", str(tmp_path / "a.png"), "-o", str(tmp_path / "out"), "--weights", str(weights)]
    environment = os.environ | {"COLUMNS": "120", "TERM": "xterm"}
    command = [*PROGRAM, *words]
    with subprocess.Popen(command, stdout=slave, stderr=slave, env=environment) as process:
        os.close(slave)
        shown = b""
        while True:
            try:
                chunk = os.read(master, 4096)
            except OSError:  # Linux reports the other end's closing so
                break
            if not chunk:
                break
            shown += chunk
    os.close(master)
    text = shown.decode()
    assert process.returncode == 0, text
    for word in ("a.png", "tiles", "megapixels/s", "left", "200x100, RGB, 8 bits, 28 tiles"):
        assert word in text


def test_help_needs_no_torch_and_shows_examples():
    script = """
import sys
from swintormer.cli.app import app
try:
    app(sys.argv[1:])
finally:
    heavy = {"torch", "numpy", "pyvips"} & set(sys.modules)
    assert not heavy, heavy
"""
    for words in (["--help"], ["deblur", "--help"]):
        command = [sys.executable, "-c", script, *words]
        result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=PATIENCE)
        assert result.returncode == 0, result.stderr
    assert "swintormer deblur photo.jpg -o sharp.png" in result.stdout
    for option in ("--weights", "--tile", "--memory", "--skip-existing", "--compare"):
        assert option in result.stdout


WITHOUT_DIFFUSERS = """
import sys
sys.modules["diffusers"] = None  # importing it raises ImportError
from swintormer.cli.app import app
app(sys.argv[1:])
"""


def without_diffusers(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT_DIFFUSERS, *map(str, words)]
    return subprocess.run(command, check=False, capture_output=True, text=True, encoding="utf-8", timeout=PATIENCE)


def test_diffusers_is_needed_for_the_prior_only(tmp_path):
    picture = photo(tmp_path / "a.png", side=(32, 32))
    restored = without_diffusers("deblur", picture, "-o", tmp_path / "out")
    assert restored.returncode == 0, restored.stderr
    assert files(tmp_path / "out") == {"a.png"}
    told = without_diffusers("info")
    assert told.returncode == 0, told.stderr
    assert "Weights" in told.stdout
    with_prior = without_diffusers("deblur", picture, "-o", tmp_path / "prior", "--prior")
    assert with_prior.returncode == 1
    assert "diffusers" in with_prior.stderr
    assert with_prior.stderr.startswith("Error: ")
    assert with_prior.stderr.count("\n") == 1
    assert files(tmp_path) == {"a.png", "out/a.png"}
