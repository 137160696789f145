"""Check and write files and folders; errors of the operating system become one sentence."""

from __future__ import annotations

import errno
import os
import secrets
import stat
import time
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from swintormer.errors import SwintormerError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_PART = ".swintormer-{}.part"
_AGE = 1.0  # seconds after which a new file has its lock
_swept: set[Path] = set()
"""Folders in which this process has removed the unfinished files of processes that were killed."""


def exists(path: Path) -> bool:
    """Whether a file or folder of that name exists. Raises SwintormerError if that cannot be determined."""
    return _status(path) is not None


def is_folder(path: Path) -> bool:
    """Whether it is a folder. Raises SwintormerError if that cannot be determined."""
    status = _status(path)
    return status is not None and stat.S_ISDIR(status.st_mode)


def _status(path: Path) -> os.stat_result | None:
    """None if there is no such file. For other errors, `Path.exists` raises or not, depending on the Python version."""
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:  # no permission, a name of 300 characters, circular links, a lost network
        raise SwintormerError(f"Cannot look at {path}: {reason(error)}.") from error


def open_file(path: Path) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        SwintormerError: there is none, it cannot be read, or it is a folder, a device, or a pipe or socket, on which
            reading would wait for ever.
    """
    try:
        file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115
    except FileNotFoundError:
        if path.is_symlink():
            raise SwintormerError(f"{path} is a link to a file that is not there: leave it out.") from None
        raise SwintormerError(f"There is no file {path}.") from None
    except OSError as error:
        if error.errno == errno.ENXIO:  # what opening a socket gives
            raise SwintormerError(f"{path} is a socket and not a file: leave it out.") from error
        raise SwintormerError(f"Cannot read {path}: {reason(error)}.") from error
    mode = os.fstat(file.fileno()).st_mode
    if not stat.S_ISREG(mode):
        file.close()
        kind = "pipe" if stat.S_ISFIFO(mode) else "device"
        raise SwintormerError(f"{path} is a {kind} and not a file: leave it out.")
    return file


def _without_waiting(name: str, flags: int) -> int:
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))


def prepare_folder(target: Path) -> Path:
    """Make the folder of `target`, and check that `target` can be written there.

    Returns:
        The path to write: `target`, or the target of the link if it is a symbolic link.

    Raises:
        SwintormerError: the folder cannot be made or written, a link leads into a missing folder, or `target` exists
            and is not a regular file.
    """
    place = target
    if os.path.islink(target):
        place = Path(os.path.realpath(target))
        if not exists(place.parent):  # perhaps a disk that is not mounted: its folder must not be made
            raise SwintormerError(f"Cannot write {target}: it is a link to {place}, and that folder does not exist.")
    folder = place.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SwintormerError(f"Cannot create the folder {folder}: {reason(error)}.") from error
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        raise SwintormerError(f"Cannot write into the folder {folder}: choose another or change its permissions.")
    status = _status(place)
    if status is not None and stat.S_ISDIR(status.st_mode):
        raise SwintormerError(f"Cannot write {target}: a folder has that name.")
    if status is not None and not stat.S_ISREG(status.st_mode):  # a rename would replace /dev/null by a file
        raise SwintormerError(f"Cannot write {target}: it is a device or a pipe, not a file.")
    return place


@contextmanager
def replacing(target: Path) -> Iterator[BinaryIO]:
    """A new file that replaces `target` when the block ends, and is removed if the block raises an exception.

    It is made in the same folder, so that the last step is a rename within one file system. Missing folders are made.
    A process that is killed leaves its unfinished file; the next one that writes into the folder removes it.
    A symbolic link is kept, and the file it points to is replaced. The permissions of a replaced file are kept, and its
    owner and group if the system allows it; a new file gets the permissions of the umask.

    Raises:
        SwintormerError: as `prepare_folder`, or the file cannot be written.
    """
    place = prepare_folder(target)
    sweep(place.parent)
    beside = place.parent / _PART.format(secrets.token_hex(8))
    try:
        old = _status(place)
        with _create(beside, 0o666 if old is None else 0o600) as file, _removing(beside):
            _lock(file)
            if old is not None:
                _take_over(file, old)
            yield file
            file.flush()
            os.fsync(file.fileno())  # a full disk may show only now
            os.replace(beside, place)
    except OSError as error:
        raise SwintormerError(f"Cannot write {target}: {reason(error)}.") from error


def _lock(file: BinaryIO) -> bool:
    """Take the lock that says that a process is writing the file; False if another has it or it cannot be known."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another process has it, or the file system knows no locks
        return False
    return True


def sweep(folder: Path) -> None:
    """Remove unfinished files of processes that were killed: nobody holds their locks any more. Once for a folder."""
    if folder in _swept:
        return
    _swept.add(folder)
    for path in folder.glob(_PART.format("*")):
        with suppress(OSError), path.open("r+b") as file:  # it may be removed meanwhile, or not ours
            if time.time() - os.fstat(file.fileno()).st_mtime > _AGE and _lock(file):
                path.unlink()


def _create(path: Path, mode: int) -> BinaryIO:
    """A new file with `mode` and the umask; an existing file, perhaps another program's, is an error."""
    return open(path, "x+b", opener=lambda name, flags: os.open(name, flags, mode))


def _take_over(file: BinaryIO, old: os.stat_result) -> None:
    """Copy owner and group of `old` to the file, as far as permitted, and then the permissions."""
    if not hasattr(os, "fchown"):  # Windows
        return
    new = os.fstat(file.fileno())
    if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
        for owner in ((old.st_uid, old.st_gid), (-1, old.st_gid)):
            with suppress(PermissionError):
                os.fchown(file.fileno(), *owner)
                break
    os.fchmod(file.fileno(), old.st_mode & 0o777)  # no set-user-ID: the owner may be another now


@contextmanager
def _removing(path: Path) -> Iterator[None]:
    """Remove the file afterwards, also after an interrupt, unless it was renamed."""
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def harmless(text: str) -> str:
    """Text with its control characters as escapes, except ends of lines: a file's name must not command a terminal."""
    return "".join(c if c == "\n" or unicodedata.category(c) != "Cc" else repr(c)[1:-1] for c in text)


def some_names(names: Sequence[str]) -> str:
    """The first five, and how many more there are."""
    more = len(names) - 5
    return ", ".join(names[:5]) + (f" and {more} more" if more > 0 else "")


def reason(error: OSError) -> str:
    """The system's message, without the number and the path that `str` adds."""
    return error.strerror or str(error)
