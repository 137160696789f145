"""What commands share when they talk to the shell: error messages, exit codes, presets by name."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO

from swintormer.errors import SwintormerError
from swintormer.images.files import harmless

if TYPE_CHECKING:
    from swintormer.model.config import NetworkConfig

FAILED = 1
SIGNALLED = 128  # plus the signal's number, as shells count


def complain(text: str) -> None:
    """Print to the error stream, if anyone still reads it; the exit code tells in any case."""
    with suppress(OSError):  # a closed terminal or pipe
        print(harmless(text), file=sys.stderr, flush=True)


def discard(stream: TextIO) -> None:
    """Send further output of a stream that nobody reads to the null device; Python would report an error at its end."""
    with suppress(OSError), open(os.devnull, "w") as nowhere:  # a stand-in for a stream may have no descriptor
        os.dup2(nowhere.fileno(), stream.fileno())


def preset_named(name: str) -> NetworkConfig:
    """One of `model.config.PRESETS`. Raises SwintormerError for another name."""
    from swintormer.model.config import PRESETS

    if name not in PRESETS:
        raise SwintormerError(f"There is no preset {name!r}: choose one of {', '.join(PRESETS)}.")
    return PRESETS[name]
