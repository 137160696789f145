"""The native extension, or the reason for its absence. Only this module imports `swintormer_kernels._native`."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

BUILD_COMMAND = "`pip install -e .` in the source tree, with a C++17 compiler at hand,"
ABSENCE_NOTE = Path(__file__).with_name("_native_absent.txt")
"""setup.py writes the reason here if it cannot build the extension, and removes the file if it can."""

_extension: ModuleType | None = None
_import_error = ""
try:
    from swintormer_kernels import _native as _extension  # type: ignore[attr-defined,no-redef]
except ImportError as error:
    _import_error = str(error)


def why_absent() -> str | None:
    """None if the extension can run, otherwise the reason and the remedy."""
    if _extension is not None:
        try:
            _extension.isa()
        except ValueError as error:  # SWINTORMER_ISA names an instruction set that this machine does not have
            return f"the native extension cannot run: {error}"
        return None
    if ABSENCE_NOTE.exists():
        reason = ABSENCE_NOTE.read_text(encoding="utf-8").strip()
    else:
        reason = f"it could not be imported ({_import_error})"
    return f"the native extension is absent: {reason}; {BUILD_COMMAND} builds it"


def peak_gflops(dtype: str = "float32", threads: int = 1) -> float | None:
    """Peak rate of `threads` cores in 1e9 operations per second, measured in 0.2 s with multiply-adds in registers.

    This is the upper bound for every kernel on the instruction set in use (SWINTORMER_ISA forces one), and the
    reference of "share of peak" in the benchmarks. A multiply-add counts as two operations. The best of several slices
    is returned, so that other processes affect it little.

    Args:
        dtype: "float32", or "bfloat16" for dot products of bfloat16 with float32 sums.
        threads: at least 1; more threads than cores give no higher rate.

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
        ImportError: the extension is absent. The message gives the reason and the command that builds it.
    """
    if _extension is None:
        raise ImportError(why_absent())
    return _extension
