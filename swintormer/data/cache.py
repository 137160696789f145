"""Decoded pictures in a folder, to be mapped into memory: a window of one costs no decoding, in any process."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from swintormer.errors import SwintormerError
from swintormer.images.files import exists, reason, replacing
from swintormer.images.formats import SUFFIXES
from swintormer.images.picture import Samples
from swintormer.images.reading import read_image, sample_bytes

Say = Callable[[str], None]

REPORT_EVERY = 10.0  # seconds between two lines of progress
_THREADS = 4  # that decode; libvips has its own besides
_SPARE = 256 * 2**20  # bytes of a disk that are left free
_HEADER = 128  # bytes before the samples of a .npy file


def to_stderr(line: str) -> None:
    """Print, unless this is a worker, whose parent has said the same."""
    if multiprocessing.parent_process() is None:
        print(line, file=sys.stderr, flush=True)


def default_folder() -> Path:
    """$SWINTORMER_CACHE/pictures, else swintormer/pictures in $XDG_CACHE_HOME or ~/.cache."""
    folder = os.environ.get("SWINTORMER_CACHE")
    if folder:
        return Path(folder) / "pictures"
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "swintormer" / "pictures"


@dataclass(frozen=True)
class Picture:
    """A decoded picture.

    Attributes:
        path: the picture. file: its samples, a .npy file.
        shape: (H, W, C), C 1 or 3; without alpha.
    """

    path: Path
    file: Path
    shape: tuple[int, int, int]

    def map(self) -> Samples:
        """(H, W, C), uint8 or uint16, read-only; read from the disk where it is touched."""
        return _map(self.file)


def decode(paths: Sequence[Path], folder: Path | None = None, say: Say = to_stderr) -> list[Picture]:
    """Make sure that all pictures are in the cache, and return them in the order of `paths`.

    What is there is not decoded again, unless size or time of the file have changed. Several processes may do this at
    once: each file appears complete or not at all, and they share the work. Pictures that cannot be read are named
    through `say` and left out; damaged ones are tried again once their file has changed, others (no permission, a disk
    that does not answer, a format that not every libvips reads) every time.

    Args:
        folder: of the cache; None for `default_folder`. It may be removed at any time when nothing reads it.
        say: takes lines of progress and warnings.

    Raises:
        SwintormerError: the folder cannot be written, or the disk has no room for the samples.
    """
    folder = default_folder() if folder is None else folder
    places = {path: _place(folder, path) for path in paths}
    missing = {
        path: place for path, place in places.items() if place and not exists(place) and not exists(_note(place))
    }
    unread: dict[Path, str] = {}
    if missing:
        _check_room(list(missing), folder)
        unread = _decode_all(missing, folder, say)
    pictures = []
    for path, place in places.items():
        if place is None:
            say(f"Left out: there is no file {path}.")
        elif exists(place):
            height, width, channels = _map(place).shape
            pictures.append(Picture(path, place, (height, width, channels)))
        else:
            say(f"Left out: {unread[path] if path in unread else _note(place).read_text(encoding='utf-8')}")
    return pictures


def _place(folder: Path, path: Path) -> Path | None:
    """Where the samples of the file in its present state belong; None if there is no such file."""
    try:
        state = os.stat(path)
    except OSError:
        return None
    name = hashlib.blake2b(os.fsencode(os.path.realpath(path)), digest_size=16).hexdigest()
    return folder / name[:2] / f"{name}-{state.st_size:x}-{state.st_mtime_ns:x}.npy"


def _note(place: Path) -> Path:
    """Where it is written why a picture is damaged, so that it is not tried again until the file changes."""
    return place.with_suffix(".txt")


def _check_room(missing: Sequence[Path], folder: Path) -> None:
    needed = sum(sample_bytes(path) + _HEADER for path in missing)
    there = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    free = shutil.disk_usage(there).free
    if needed + _SPARE > free:
        raise SwintormerError(
            f"The cache of decoded pictures in {folder} needs {needed / 2**30:.1f} GiB and its disk has "
            f"{free / 2**30:.1f} free: choose a folder with more room as `cache`, or fewer pictures."
        )


def _decode_all(missing: dict[Path, Path], folder: Path, say: Say) -> dict[Path, str]:
    """Why pictures that may be whole could not be read this time, by path."""
    order = random.sample(list(missing), len(missing))  # so that processes that start together share the work
    last = time.monotonic()
    unread: dict[Path, str] = {}
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        jobs = {pool.submit(_decode_one, path, missing[path]): path for path in order}
        try:
            for done, job in enumerate(as_completed(jobs), 1):
                if why := job.result():
                    unread[jobs[job]] = why
                if time.monotonic() - last > REPORT_EVERY:
                    last = time.monotonic()
                    say(f"Decoding pictures into {folder}: {done} of {len(jobs)}.")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return unread


def _decode_one(path: Path, place: Path) -> str | None:
    """Write the samples, or what is damaged, unless another process has. Returns any other reason why it has none."""
    if exists(place):
        return None
    try:
        samples = np.ascontiguousarray(read_image(path).pixels)
    except SwintormerError as error:
        why = error.__context__
        passing = isinstance(why, OSError | MemoryError) or "out of memory" in str(why)
        if passing or path.suffix.lower() not in SUFFIXES:  # another libvips may read it
            return str(error)
        with replacing(_note(place)) as file:
            file.write(str(error).encode("utf-8", "replace"))
    else:
        with replacing(place) as file:
            np.save(file, samples)
    name = place.stem.split("-")[0]
    for old in place.parent.glob(f"{name}-*"):  # of the picture before it was changed
        if old.stem != place.stem:
            with suppress(OSError):
                old.unlink()
    return None


def _map(file: Path) -> Samples:
    try:
        return np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))
    except OSError as error:
        raise SwintormerError(f"Cannot read {file} in the cache of decoded pictures: {reason(error)}.") from error
    except ValueError as error:
        raise SwintormerError(
            f"{file} in the cache of decoded pictures is damaged: remove it and start again."
        ) from error
