"""Pictures from standard input and to standard output."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import tempfile
from pathlib import Path

import pytest
from cli_files import files, photo
from cli_program import PATIENCE, PROGRAM
from PIL import Image as Pillow


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """A folder for temporary files that must be empty in the end."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    assert files(folder) == set()


def test_a_picture_through_both_streams(run):
    source = photo("in.png", bits=16)
    run("deblur", "in.png", "-o", "out.png")
    result = run("deblur", "-", "-o", "-", data=source.read_bytes())
    assert result.stdout_bytes == Path("out.png").read_bytes()
    assert result.stderr.startswith("stdin -> stdout.png: 50x40, RGB, 16 bits")
    assert result.stderr.count("\n") == 1


def test_one_stream_and_one_file(run):
    source = photo("in.png")
    assert "stdin -> out/sharp.png: " in run("deblur", "-", "-o", "out/sharp.png", data=source.read_bytes()).stdout
    run("deblur", "-", "-o", "out", data=source.read_bytes())
    assert files("out") == {"sharp.png", "stdin.png"}
    jpeg = run("deblur", "in.png", "-o", "-", "--format", "jpeg", "--quiet")
    assert Pillow.open(io.BytesIO(jpeg.stdout_bytes)).format == "JPEG"
    assert jpeg.stderr == ""
    run("deblur", "-", "-o", "-", "--report", "out/page.html", data=source.read_bytes())
    assert "<p>stdin -&gt; stdout.png: " in Path("out/page.html").read_text(encoding="utf-8")
    assert files() == {"in.png", "out/sharp.png", "out/stdin.png", "out/page.html"}


@pytest.mark.parametrize(
    ("words", "data", "sentence"),
    [
        (["-", "-o", "-"], b"", "stdin is empty (0 bytes)"),
        (["-", "-o", "out.png"], b"no picture", "stdin is not a picture in PNG"),
        (["-", "a.png", "-o", "out"], b"", "Standard input (-) is one picture: name it alone."),
        (["a.png", "b.png", "-o", "-"], b"", "Standard output (-) takes one picture"),
        ([".", "-o", "-"], b"", "Standard output (-) takes one picture"),
        (["a.png", "-o", "-", "--compare"], b"", "leave out --compare"),
    ],
)
def test_what_a_stream_cannot_be_ends_in_one_sentence(run, words, data, sentence):
    for name in ("a.png", "b.png"):
        photo(name, side=(8, 8))
    result = run("deblur", *words, data=data, code=1)
    assert result.stdout_bytes == b""
    assert result.stderr.startswith("Error: ")
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1
    assert files() == {"a.png", "b.png"}


def test_nobody_reads_the_picture(tmp_path, weights, one_program):
    photo(tmp_path / "a.png")
    command = [*PROGRAM, "deblur", str(tmp_path / "a.png"), "-o", "-", "--quiet", "--weights", str(weights)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        program.stdout.close()
        errors = program.stderr.read()
    assert program.returncode == 1
    assert errors == b"Error: Cannot write standard output: Broken pipe.\n"


def test_a_picture_is_not_written_to_a_terminal(tmp_path, weights, one_program):
    photo(tmp_path / "a.png", side=(8, 8))
    master, slave = pty.openpty()
    command = [*PROGRAM, "deblur", str(tmp_path / "a.png"), "-o", "-", "--weights", str(weights)]
    result = subprocess.run(command, check=False, stdout=slave, stderr=subprocess.PIPE, timeout=PATIENCE)
    os.close(slave)
    os.close(master)
    assert result.returncode == 1
    assert result.stderr == b"Error: Standard output is a terminal, where a picture was expected: redirect it.\n"


@pytest.mark.parametrize(
    ("words", "closed", "name"), [(["-", "-o", "a.png"], "<&-", "input"), (["in.png", "-o", "-"], ">&-", "output")]
)
def test_a_closed_stream_is_named(tmp_path, monkeypatch, words, closed, name):
    monkeypatch.chdir(tmp_path)
    photo("in.png")
    shell = ["sh", "-c", f'"$@" {closed}', "sh", *PROGRAM, "deblur", *words]
    done = subprocess.run(shell, check=False, capture_output=True, text=True, timeout=PATIENCE)
    expected = f"Error: Standard {name} is closed, where a picture was expected: redirect it.\n"
    assert (done.returncode, done.stderr) == (1, expected)
