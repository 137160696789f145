"""The program as a process of its own: its exit code, its streams, its signals."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cli_files import default_signals, files, make_bad, photo
from cli_program import PATIENCE, PROGRAM

pytestmark = pytest.mark.usefixtures("one_program")


def start(weights: Path, *words: object) -> subprocess.Popen[str]:
    command = [*PROGRAM, "deblur", *map(str, words), "--weights", str(weights)]
    with default_signals():
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8")


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


def test_nobody_reads_the_output_and_a_file_is_bad(tmp_path, monkeypatch, weights):
    """As in `swintormer deblur ... | true`: the pictures are still wanted, and errors go to the other stream."""
    monkeypatch.chdir(tmp_path)
    bad = make_bad("truncated")
    for name in ("a.png", "b.png", "zzz.png"):
        photo(f"in/{name}", side=(8, 8))
    with start(weights, "in", "-o", "out") as program:
        program.stdout.close()
        errors = program.stderr.read()
        program.wait(timeout=PATIENCE)
    assert program.returncode == 1
    assert errors.startswith(f"3 restored, 1 failed:\n  {bad} is damaged, cut short")
    assert errors.count("\n") == 2
    assert files("out") == {"a.png", "b.png", "zzz.png"}


def test_a_terminal_gets_a_progress_bar(tmp_path, weights):
    photo(tmp_path / "in/a.png", side=(100, 200))
    photo(tmp_path / "in/\x1b[31mb.png", side=(100, 200))  # a name that would colour the terminal red
    master, slave = pty.openpty()
    words = ["deblur", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--weights", str(weights)]
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
    for word in ("/2 ", "/28 tiles", "megapixels/s", "%", "left", "200x100, RGB, 8 bits, 28 tiles"):
        assert word in text
    assert "b.png" in text
    assert "\x1b[31mb.png" not in text
    assert "/?" not in text


@pytest.mark.parametrize(
    ("name", "encoding"),
    [
        (b"caf\xe9.png", {"LC_ALL": "C.UTF-8", "PYTHONUTF8": "1"}),
        ("日本.png".encode(), {"PYTHONIOENCODING": "latin-1"}),
    ],
)
def test_names_that_the_terminal_cannot_print(tmp_path, monkeypatch, weights, name, encoding):
    monkeypatch.chdir(tmp_path)
    for variable, value in encoding.items():
        monkeypatch.setenv(variable, value)
    source = photo("zzz.png", side=(8, 8)).read_bytes()
    os.makedirs("in")
    for place in (name, b"bad-" + name, b"zzz.png"):
        Path(os.fsdecode(b"in/" + place)).write_bytes(b"" if place.startswith(b"bad") else source)
    command = [*PROGRAM, "deblur", "in", "-o", "out", "--compare", "--report", "page.html"]
    command += ["--weights", str(weights)]
    result = subprocess.run(command, check=False, capture_output=True, timeout=PATIENCE)
    assert result.returncode == 1, result.stderr
    assert b"Traceback" not in result.stderr
    assert result.stderr.startswith(b"2 restored, 1 failed:")
    done = {os.path.basename(os.fsencode(path)) for path in Path("out").iterdir()}
    assert {name, b"zzz.png", name.replace(b".png", b".compare.png"), b"zzz.compare.png"} == done
    title = os.fsdecode(name).encode("utf-8", "backslashreplace").decode()
    assert f"<h2>{title}</h2>" in Path("page.html").read_text(encoding="utf-8")


def test_help_needs_no_torch_and_shows_examples(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
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
    places = [
        result.stdout.index(name) for name in ("--out", "--compare", "--memory", "--prior", "--weights", "--tile")
    ]
    assert places == sorted(places), "what is rarely needed comes last"
    assert len(result.stdout.splitlines()) <= 80, "two screens of 40 lines"


WITHOUT_DIFFUSERS = """
import sys
sys.modules["diffusers"] = None  # importing it raises ImportError
from swintormer.cli.app import app
for command in (["info"], ["deblur", "a.png", "-o", "out"], ["deblur", "a.png", "-o", "prior", "--prior"]):
    try:
        app(command)
    except SystemExit as leaving:
        print("exit code", leaving.code, flush=True)
"""


def test_diffusers_is_needed_for_the_prior_only(tmp_path):
    photo(tmp_path / "a.png", side=(32, 32))
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_DIFFUSERS],
        check=True,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=PATIENCE,
        cwd=tmp_path,
    )
    codes = [line for line in result.stdout.splitlines() if line.startswith("exit code")]
    assert codes == ["exit code 0", "exit code 0", "exit code 1"], result.stderr
    assert files(tmp_path) == {"a.png", "out/a.png"}
    assert result.stderr.startswith("Error: ")
    assert 'pip install "swintormer-kernels[prior]", or restore without the prior (--no-prior).' in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_compiler_of_torch_is_not_imported(tmp_path):
    """It takes half of the time to start, and leaves a folder among the temporary files."""
    photo(tmp_path / "a.png", side=(32, 32))
    (tmp_path / "temporary").mkdir()
    script = """
import sys
from swintormer.cli.app import main
try:
    main()
finally:
    print("torch._dynamo" in sys.modules)
"""
    result = subprocess.run(
        [sys.executable, "-c", script, "deblur", "a.png", "-o", "out"],
        check=True,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        cwd=tmp_path,
        env=os.environ | {"TMPDIR": str(tmp_path / "temporary")},
    )
    assert result.stdout.splitlines()[-1] == "False", result.stderr
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.parametrize(
    ("given", "spins"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)]
)
def test_threads_spin_for_a_bounded_time_unless_the_user_says_otherwise(given, spins):
    script = """
import os, sys
from swintormer.cli import app
app.app = lambda: print(os.environ.get("GOMP_SPINCOUNT"), "torch" in sys.modules)
app.main()
"""
    kept = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE, env=kept | given)
    assert result.stdout.split() == [str(spins), "False"], "set before torch loads"
