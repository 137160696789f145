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


def peak_gflops(dtype: str = "float32", threads: int = 1) -> float | None:
    """Billions of operations a second that `threads` cores reach in multiply-adds of registers, measured in 0.2 s.

    The most that any kernel can reach on the instruction set in use (SWINTORMER_ISA forces one), and what a share of
    the machine's rate is a share of. A multiply-add counts as two operations. The best of several slices is taken, so
    that other work on the machine lowers it little.

    Args:
        dtype: "float32", or "bfloat16" for dot products of bfloat16 with float32 sums.
        threads: at least 1; more than there are cores only share them.

    Returns:
        None without the extension, and for "bfloat16" where the CPU, the compiler that built the extension or the
        instruction set in use has no such dot product.

    Raises:
        ValueError: another dtype, or fewer threads.
    """
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype must be 'float32' or 'bfloat16', found {dtype!r}")
    if threads < 1:
        raise ValueError(f"threads must be at least 1, found {threads}")
    if why_absent() is not None:
        return None
    return extension().peak_gflops(dtype, threads) or None


def extension() -> ModuleType:
    """The loaded extension.

    Raises:
        ImportError: it is absent; the message says why and which command builds it.
    """
    if _extension is None:
        raise ImportError(why_absent())
    return _extension
