"""Files and folders: look at them and write them, with one sentence for whatever the system refuses."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from swintormer.errors import SwintormerError


def exists(path: Path) -> bool:
    """Whether there is anything of that name. Raises SwintormerError where the system does not tell."""
    return _status(path) is not None


def is_folder(path: Path) -> bool:
    """Whether it is a folder. Raises SwintormerError where the system does not tell."""
    status = _status(path)
    return status is not None and stat.S_ISDIR(status.st_mode)


def _status(path: Path) -> os.stat_result | None:
    """None where there is no such file. `Path.exists` would raise, by its Python version, on what else may be wrong."""
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:  # a closed folder, a name of 300 characters, links in a circle, a network that is away
        raise SwintormerError(f"Cannot look at {path}: {reason(error)}.") from error


def prepare_folder(target: Path) -> None:
    """Make the folder that `target` goes into; SwintormerError if that cannot be or if it takes no such file."""
    folder = target.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SwintormerError(f"Cannot create the folder {folder}: {reason(error)}.") from error
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        raise SwintormerError(f"Cannot write into the folder {folder}: choose another or change its permissions.")
    if is_folder(target):
        raise SwintormerError(f"Cannot write {target}: a folder has that name.")


@contextmanager
def replacing(target: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of `target` when the block ends, and vanishes if it raises.

    It stands in the same folder, so that the last step is one rename within a file system; missing folders are made.

    Raises:
        SwintormerError: the folder cannot be made, or the file cannot be written.
    """
    prepare_folder(target)
    beside = target.parent / f".swintormer-{secrets.token_hex(8)}.part"
    try:
        with beside.open("x+b") as file, _removing(beside):  # "x": never another program's file
            yield file
            file.flush()
            os.fsync(file.fileno())  # a full disk may show only now
            os.replace(beside, target)
    except OSError as error:
        raise SwintormerError(f"Cannot write {target}: {reason(error)}.") from error


@contextmanager
def _removing(path: Path) -> Iterator[None]:
    """Whatever happens, also an interrupt, the file is gone afterwards unless it was renamed."""
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def reason(error: OSError) -> str:
    """The system's own words, without the number and the path that `str` adds."""
    return error.strerror or str(error)
