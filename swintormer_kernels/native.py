"""The native extension, or why it is absent. The only place that imports `swintormer_kernels._native`."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

BUILD_COMMAND = "`pip install -e .` in the source tree, with a C++17 compiler at hand,"
ABSENCE_NOTE = Path(__file__).with_name("_native_absent.txt")
"""setup.py writes here why it could not build the extension, and removes the file when it could."""

_extension: ModuleType | None = None
_import_error = ""
try:
    from swintormer_kernels import _native as _extension  # type: ignore[attr-defined,no-redef]
except ImportError as error:
    _import_error = str(error)


def why_absent() -> str | None:
    """None if the extension can run, else why it cannot and what would help."""
    if _extension is not None:
        try:
            _extension.isa()
        except ValueError as error:  # SWINTORMER_ISA names what this machine has not
            return f"the native extension cannot run: {error}"
        return None
    if ABSENCE_NOTE.exists():
        reason = ABSENCE_NOTE.read_text(encoding="utf-8").strip()
    else:
        reason = f"it could not be imported ({_import_error})"
    return f"the native extension is absent: {reason}; {BUILD_COMMAND} builds it"


def extension() -> ModuleType:
    """The loaded extension.

    Raises:
        ImportError: it is absent; the message says why and which command builds it.
    """
    if _extension is None:
        raise ImportError(why_absent())
    return _extension
