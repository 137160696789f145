"""Files and folders: look at them and write them, with one sentence for whatever the system refuses."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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


def prepare_folder(target: Path) -> Path:
    """Make the folder that `target` goes into.

    Returns:
        The path to write: `target`, or where it leads if it is a symbolic link.

    Raises:
        SwintormerError: the folder cannot be made or takes no such file, a link leads nowhere, or the name belongs to
            something that is no regular file.
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
    """A new file that takes the place of `target` when the block ends, and vanishes if it raises.

    It is made in the same folder, so that the last step is one rename within a file system; missing folders are made.
    A symbolic link stays, and the file it leads to is replaced. A replaced file hands its permissions on, and its owner
    and group where the system allows it; a new file gets the permissions that the umask leaves.

    Raises:
        SwintormerError: as `prepare_folder`, or the file cannot be written.
    """
    place = prepare_folder(target)
    beside = place.parent / f".swintormer-{secrets.token_hex(8)}.part"
    try:
        old = _status(place)
        with _create(beside, 0o666 if old is None else 0o600) as file, _removing(beside):
            if old is not None:
                _take_over(file, old)
            yield file
            file.flush()
            os.fsync(file.fileno())  # a full disk may show only now
            os.replace(beside, place)
    except OSError as error:
        raise SwintormerError(f"Cannot write {target}: {reason(error)}.") from error


def _create(path: Path, mode: int) -> BinaryIO:
    """A new file, never another program's ("x"), with `mode` less the umask."""
    return open(path, "x+b", opener=lambda name, flags: os.open(name, flags, mode))


def _take_over(file: BinaryIO, old: os.stat_result) -> None:
    """Give the file another's owner and group, as far as permitted, and then its permissions."""
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
    """Whatever happens, also an interrupt, the file is gone afterwards unless it was renamed."""
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def reason(error: OSError) -> str:
    """The system's own words, without the number and the path that `str` adds."""
    return error.strerror or str(error)
