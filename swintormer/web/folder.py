"""A temporary folder that is gone when the program ends, or when the next one starts."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from swintormer.errors import SwintormerError
from swintormer.images.files import reason

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_PREFIX = "swintormer-web-"
_LOCK = "in-use"
_TRIES = 5  # a thread that has not ended in time may just be making a file
_AGE = 1.0  # seconds after which a new folder has its lock


@contextmanager
def private_folder() -> Iterator[Path]:
    """A folder that only this user can read, removed at the end with all that is in it.

    A process that is killed cannot remove its folder; the next one does, because nobody holds its lock any more.

    Raises:
        SwintormerError: it cannot be made.
    """
    _sweep(Path(tempfile.gettempdir()))
    try:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX)).resolve()
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise SwintormerError(f"Cannot make a temporary folder: {reason(error)}.") from error
    try:
        _is_free(lock)  # takes the lock
        yield folder
    finally:
        os.close(lock)
        remove(folder)


def remove(folder: Path) -> None:
    """Remove a folder and all that is in it; nothing if it is gone."""
    for _ in range(_TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return


def _sweep(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):  # another user's, or being removed
            lock = os.open(folder / _LOCK, os.O_RDWR)
            try:
                free = time.time() - os.fstat(lock).st_mtime > _AGE and _is_free(lock)
            finally:
                os.close(lock)
            if free:
                remove(folder)


def _is_free(lock: int) -> bool:
    """Take the lock; False if another process has it, or the system knows no locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
