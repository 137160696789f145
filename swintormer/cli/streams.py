"""Standard input and standard output in place of files: pictures pass through a temporary folder."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from swintormer.cli.messages import discard
from swintormer.errors import SwintormerError
from swintormer.images.files import is_folder, reason
from swintormer.images.formats import FORMATS, SUFFIXES, result_format
from swintormer.signals import exiting

STREAM = Path("-")


@dataclass(frozen=True)
class Streams:
    """Files that stand for "-".

    Attributes:
        inputs, out: as given, with files in the places of "-".
        folder: where these files are, with a separator at its end; empty if there is no "-".
        is_output: whether `out` goes to standard output.
    """

    inputs: list[Path]
    out: Path
    folder: str = ""
    is_output: bool = False

    def told(self, text: str) -> str:
        """A text for the user, in which these files are called stdin and stdout."""
        return text.replace(self.folder, "") if self.folder else text


@contextmanager
def streamed(inputs: list[Path], out: Path, form: str | None, alone: bool = True) -> Iterator[Streams]:
    """Read standard input first where an input is "-"; write the result to standard output last where `out` is "-".

    Args:
        form: name in `FORMATS` of the result; None for the format of the input.
        alone: whether the result is one file, without a comparison beside it.

    Raises:
        SwintormerError: several pictures for one stream, a terminal in place of one, or a stream that breaks.
    """
    if STREAM not in (*inputs, out):
        yield Streams(inputs, out)
        return
    if STREAM in inputs and len(inputs) > 1:
        raise SwintormerError("Standard input (-) is one picture: name it alone.")
    if out == STREAM and (len(inputs) > 1 or is_folder(inputs[0])):
        raise SwintormerError("Standard output (-) takes one picture: name one file, or a folder for the results.")
    if out == STREAM and not alone:
        raise SwintormerError("Standard output (-) takes one picture: leave out --compare.")
    with exiting(), tempfile.TemporaryDirectory(prefix="swintormer-") as name:
        folder = Path(name).resolve()
        streams = Streams(inputs, out, f"{folder}{os.sep}", out == STREAM)
        try:
            if STREAM in inputs:
                streams = replace(streams, inputs=[folder / "stdin"])
                _read(folder / "stdin")
            if streams.is_output:
                _check(sys.stdout, "output")
                ending = FORMATS[form or _format_of(streams.inputs[0])].suffixes[0]
                streams = replace(streams, out=folder / f"stdout{ending}")
            yield streams
        except SwintormerError as error:
            raise SwintormerError(streams.told(str(error))) from error
        if streams.is_output:
            _write(streams.out)


def _format_of(path: Path) -> str:
    """By the name where it tells, as for a result in a file, else by the content."""
    return SUFFIXES.get(path.suffix.lower()) or result_format(path)


def _read(target: Path) -> None:
    _check(sys.stdin, "input")
    try:
        with target.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
    except OSError as error:
        raise SwintormerError(f"Cannot read standard input: {reason(error)}.") from error


def _write(source: Path) -> None:
    try:
        with source.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()
    except OSError as error:
        discard(sys.stdout)
        raise SwintormerError(f"Cannot write standard output: {reason(error)}.") from error


def _check(stream: TextIO | None, name: str) -> None:
    """Raise an error for a stream that holds no picture: a terminal, or none at all, where the caller closed it."""
    if stream is None:
        raise SwintormerError(f"Standard {name} is closed, where a picture was expected: redirect it.")
    if stream.isatty():
        raise SwintormerError(f"Standard {name} is a terminal, where a picture was expected: redirect it.")
