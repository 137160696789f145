"""What the tests of the command line share: a tiny network, pictures good and bad, and a user without rights."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from bench.fuzz import seeds
from swintormer.images.picture import wrap
from swintormer.signals import ENDING

TINY = seeds.TINY
ROOT_CAN_BE_NOBODY = hasattr(os, "geteuid") and os.geteuid() == 0


def photo(path: str | Path, channels: int = 3, bits: int = 8, side: tuple[int, int] = (40, 50), seed: int = 0) -> Path:
    """A picture with large and small shapes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[: side[0], : side[1]]
    wave = (np.sin(x / 5 + seed) * np.cos(y / 7) + 1) / 2
    pixels = np.repeat(wave[..., None], channels, axis=2) * (2**bits - 1)
    wrap(np.ascontiguousarray(pixels.astype(np.uint8 if bits == 8 else np.uint16))).write_to_file(str(path))
    return path


def files(folder: str | Path = ".") -> set[str]:
    """Every file under it, hidden ones too."""
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def make_bad(name: str) -> Path:
    """A file that cannot be restored, by the name of what is wrong with it."""
    path = photo(f"in/{name}.png")
    if name == "truncated":
        _cut(path)
    elif name == "empty":
        path.write_bytes(b"")
    elif name == "text":
        path.write_text("This is not a picture.\n")
    elif name == "cmyk":
        import pyvips

        path.unlink()
        path = path.with_suffix(".jpg")
        pyvips.Image.black(8, 8, bands=4).copy(interpretation="cmyk").write_to_file(str(path))
    elif name == "float":
        import tifffile

        path.unlink()
        path = path.with_suffix(".tif")
        tifffile.imwrite(path, np.zeros((8, 8, 3), np.float32), photometric="rgb")
    return path


@contextmanager
def nobody() -> Iterator[None]:
    """Root may read and write everything, so permissions are tried as another user; others keep their own rights."""
    if not ROOT_CAN_BE_NOBODY:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@contextmanager
def default_signals() -> Iterator[None]:
    """Signals as at a terminal, here and in processes started inside, also when the tests run under nohup or with &."""
    defaults = dict.fromkeys(ENDING, signal.SIG_DFL) | {signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, default) for number, default in defaults.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
