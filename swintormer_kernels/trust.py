"""The GPU kernels that automatic selection may use: those that agreed with the reference on this device.

A backend in `CHECKED` is selected automatically for an op and a dtype only after `selfcheck.check` has passed. The
check runs at the first use, and its verdict is stored in a file for this device and these versions. A backend requested
by name is not checked; the check itself requests its backend by name.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import json
import os
import tempfile
import threading
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from swintormer_kernels.transforms import constant_in_compiled_code

CHECKED = ("cuda", "triton")
"""Backends that must pass the check before automatic selection uses them."""

HALVES = (torch.bfloat16, torch.float16)
"""The dtypes of the cuda backend; float32 is converted by autocast before its kernels see it, and never checked."""

NOT_CHECKED = (
    "its kernels have not been checked on this device, and no check can run while a call is traced or captured; "
    "call swintormer_kernels.selfcheck() first"
)

_known: dict[tuple[str, str, str, torch.dtype], str] = {}  # (op, backend, device, dtype) -> "" if passed, else why not
_warned: set[tuple[str, str, str, torch.dtype]] = set()  # compiled without a verdict, and the user was told
_lock = threading.RLock()


def why_not_trusted(op: str, backend: str, x: Any) -> str | None:
    """None if automatic selection may use `backend` for x's device and dtype, otherwise the reason.

    Runs the check if there is no verdict. While the call is traced, transformed or captured no check can run; then a
    backend without verdict is not used.
    """
    if backend not in CHECKED or not isinstance(x, Tensor):
        return None
    dtypes = [x.dtype]
    if torch.is_autocast_enabled(x.device.type):
        dtypes.append(torch.get_autocast_dtype(x.device.type))  # each op decides in which of the two it computes
    if backend == "cuda":
        dtypes = [dtype for dtype in dtypes if dtype in HALVES]
    if torch.compiler.is_compiling():
        for dtype in dtypes:
            reason = _recorded_while_compiling(op, backend, x.device, dtype)
            if reason is not None:
                return reason
        return None
    for dtype in dtypes:
        found = _known.get((op, backend, str(x.device), dtype))
        if found is None:
            reason = _recorded(op, backend, x.device, dtype) if _not_now() else _checked(op, backend, x.device, dtype)
        else:
            reason = found or None
        if reason is not None:
            return reason
    return None


@constant_in_compiled_code
def _recorded_while_compiling(op: str, backend: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """As `_recorded`; warns once if there is no verdict, because the compiled code keeps the next backend."""
    reason = _recorded(op, backend, device, dtype)
    key = (op, backend, str(device), dtype)
    with _lock:
        warn = reason is NOT_CHECKED and key not in _warned
        if warn:
            _warned.add(key)
    if warn:
        warnings.warn(
            f"swintormer_kernels: torch.compile does not use the {backend} kernels of {op} in {dtype} on "
            f"{_device_name(device)}: {NOT_CHECKED}, then compile again.",
            RuntimeWarning,
            stacklevel=2,
        )
    return reason


def _recorded(op: str, backend: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """The verdict of this process or of the file, NOT_CHECKED without one. Runs no check."""
    key = (op, backend, str(device), dtype)
    with _lock:
        if key not in _known:
            verdict = _read().get(_file_key(op, backend, device, dtype))
            if verdict is None:
                return NOT_CHECKED
            _known[key] = verdict
        return _known[key] or None


def _checked(op: str, backend: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """The verdict; runs the check if there is none. Other threads wait."""
    key, warning = (op, backend, str(device), dtype), None
    with _lock:
        if key not in _known:
            name = _file_key(op, backend, device, dtype)
            verdict = _read().get(name)
            if verdict is None:
                verdict, keep = _in_a_fresh_thread(op, backend, device, dtype)
                if keep:
                    _write(name, verdict)
                if verdict:
                    warning = (
                        f"swintormer_kernels: the {backend} kernels of {op} in {dtype} are not used on "
                        f"{_device_name(device)}: {verdict}. The next backend is used. Please report this with the "
                        "output of `swintormer selfcheck`."
                    )
            _known[key] = verdict
        verdict = _known[key]
    if warning is not None:
        warnings.warn(warning, RuntimeWarning, stacklevel=2)
    return verdict or None


def record(op: str, backend: str, device: torch.device, dtype: torch.dtype, failure: str | None) -> None:
    """Store the verdict of a check that the user started (`selfcheck`)."""
    if backend in CHECKED:
        with _lock:
            _known[op, backend, str(device), dtype] = failure or ""
            _write(_file_key(op, backend, device, dtype), failure or "")


_checks: list[Callable[..., Any]] = []


def checked_by(check: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: registers `check(op, backend, dtype, device)`, which this module cannot import (it needs the ops)."""
    _checks[:] = [check]
    return check


def forget_verdicts() -> None:
    """Clear the verdicts and warnings of this process, not those of the file. For tests."""
    with _lock:
        _known.clear()
        _warned.clear()


def _not_now() -> bool:
    """Whether a dispatch mode, a transform, a trace or a graph capture is active in this thread."""
    return (
        torch._C._functorch.maybe_current_level() is not None
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._get_tracing_state() is not None
        or (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())
    )


def _in_a_fresh_thread(op: str, backend: str, device: torch.device, dtype: torch.dtype) -> tuple[str, bool]:
    """(reason of the failure or "", whether to store it). In a new thread, without the caller's autocast and modes."""
    found: list[tuple[str, bool]] = []

    def run() -> None:
        try:
            row = _checks[0](op, backend, dtype, device)
            # A case that does not fit into memory now may fit next time.
            found.append((row.failure or row.not_served or "", row.not_served is None and not row.out_of_memory))
        except Exception as error:  # an error of the check itself: not stored, so the next process tries again
            found.append((f"the check itself failed: {error!r}", False))

    thread = threading.Thread(target=run, name="swintormer_kernels selfcheck")
    thread.start()
    thread.join()
    return found[0] if found else ("the check ended without a result", False)


# ---- the file --------------------------------------------------------------------------------------------------------


def cache_file() -> Path:
    """File of the verdicts: in $SWINTORMER_CACHE, otherwise in swintormer_kernels/ of $XDG_CACHE_HOME or ~/.cache."""
    folder = os.environ.get("SWINTORMER_CACHE")
    if folder:
        return Path(folder) / "selfcheck.json"
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "swintormer_kernels" / "selfcheck.json"


def _read() -> dict[str, str]:
    """Contents of the file; empty if it is absent or damaged."""
    try:
        held = json.loads(cache_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(held, dict):
        return {}
    return {key: value for key, value in held.items() if isinstance(value, str)}


def _write(key: str, verdict: str) -> None:
    """Add one verdict by replacing the whole file. If that fails, the next process checks again."""
    file = cache_file()
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=file.name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as out:
                json.dump({**_read(), key: verdict}, out, indent=1, sort_keys=True)
            os.replace(name, file)
        except OSError:
            os.unlink(name)
            raise


def _file_key(op: str, backend: str, device: torch.device, dtype: torch.dtype) -> str:
    return " | ".join([op, backend, str(dtype).removeprefix("torch."), _device_name(device), *versions()])


def _device_name(device: torch.device) -> str:
    if device.type != "cuda":
        return device.type
    properties = torch.cuda.get_device_properties(device)
    architecture = getattr(properties, "gcnArchName", None) or f"sm_{properties.major}{properties.minor}"
    return f"{properties.name} {architecture}"


@functools.lru_cache(maxsize=1)
def versions() -> tuple[str, ...]:
    """Versions that a verdict depends on: torch, triton, this package and a hash of the kernels' sources."""
    installed = []
    for package in ("triton", "swintormer-kernels"):
        try:
            installed.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            found = importlib.util.find_spec(package.replace("-", "_"))
            installed.append(f"{package} {'of unknown version' if found else 'absent'}")
    sources = hashlib.sha256()
    here = Path(__file__).parent
    for file in sorted((*here.glob("backends/*/*.py"), *here.glob("cuda/*.fatbin"))):
        sources.update(file.read_bytes())
    return (f"torch {torch.__version__}", *installed, f"kernels {sources.hexdigest()[:12]}")
