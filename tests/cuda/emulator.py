"""Builds kernels with g++ and the host layer of csrc/cuda/host, and runs them by name: docs/cuda.md.

>>> library = Emulator(build("race", [CUDA / "kernels" / "tail.cu"]))
>>> library.run("tail_bfloat16_48", 4, 256, 22016, [given("x", x), wanted("out", out)], [height, width])
[]

Kinds of build: "plain", for numbers alone; "race", which sees every load and store; "asan", with the address and
undefined behaviour sanitizers, for a process that has libasan preloaded.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import os
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
CUDA = ROOT / "csrc" / "cuda"
KERNEL_SOURCES = sorted(set((CUDA / "kernels").glob("*.cu")) - {CUDA / "kernels" / "candidates.cu"})
# Debug lines, which reports and the traffic's table are written with: version 4, whose file names of inlined functions
# addr2line reads right (binutils 2.40 takes wrong ones from version 5).
FLAGS = ["-std=c++17", "-g1", "-gdwarf-4", "-fPIC", "-Wall", "-Wextra", "-fvisibility=hidden", "-fno-strict-aliasing"]
FLAGS += ["-ffp-contract=off"]
HOST = ["-O2"]
# No vector instructions, which would merge accesses. -O2 takes half as long again to compile and runs no faster: the
# fibers and what looks at the accesses cost more than the kernels' own code.
KERNELS = ["-O1", "-fno-tree-vectorize", "-fno-tree-slp-vectorize", "-Wno-unknown-pragmas"]
KINDS = {
    "plain": [],
    "race": ["-fsanitize=thread", "--param", "tsan-instrument-func-entry-exit=0"],
    "asan": ["-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=all"],
}
SCHEDULES = ("forward", "reverse", "random", "warp_by_warp", "warp_by_warp_reverse")


def schedules_of(dtype: object) -> tuple[str, ...]:
    """Those in which a kernel's results must be the same bits: all for bfloat16, one for float16.

    Both are instances of one source, and the shadow memory's verdict does not depend on the schedule.
    """
    return SCHEDULES if str(dtype).endswith("bfloat16") else ("random",)


class BuildError(Exception):
    """What the compiler said."""


def compiler() -> str:
    """g++, whose instrumentation the layer is written for, or a skip."""
    found = shutil.which("g++")
    if found is None:
        pytest.skip("needs g++ on PATH, to build CUDA kernels for the CPU")
    return found


def _sources_of(source: Path) -> set[Path]:
    """A file and all that it includes, by name and not from the system."""
    found, left = set(), [source]
    while left:
        file = left.pop()
        if file not in found:
            found.add(file)
            names = re.findall(r'^#include "(.+)"', file.read_text(), re.MULTILINE)
            left += [near.resolve() if (near := file.parent / name).exists() else CUDA / name for name in names]
    return found


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:20]


@functools.cache
def _version() -> str:
    return subprocess.run([compiler(), "--version"], capture_output=True, text=True, check=True).stdout


def made(folder: Path, name: str, command: Sequence[object], report: str | None = None) -> Path:
    """A file that a command makes, unless it is there: the command ends with its path.

    One process makes it, and others wait for it; it appears whole or not at all. `report`: a file in the same folder
    that gets what the command says.
    """
    file = folder / name
    if file.exists():
        return file
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists():
            part = folder / f"{name}.part"
            done = subprocess.run([*map(str, command), part], capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise BuildError(done.stderr)
            if report is not None:
                (folder / report).write_text(done.stderr)
            part.replace(file)
    return file


def _object(folder: Path, source: Path, flags: Sequence[str]) -> Path:
    """Named after the texts that it depends on and how it is compiled."""
    flags = [*FLAGS, *flags]
    texts = sorted((file.name, file.read_text()) for file in _sources_of(source))
    name = f"{source.stem}_{_digest(texts, flags, _version())}.o"
    if (_kept() / name).exists():
        return _kept() / name
    return made(folder, name, [compiler(), *flags, f"-I{CUDA}", "-x", "c++", "-c", source, "-o"])


def _kept() -> Path:
    """Where what was built stays for the next run."""
    if os.access(ROOT, os.W_OK):
        return ROOT / "build" / "emulated"
    return Path(tempfile.gettempdir()) / f"swintormer_emulated_{os.getuid()}"


def build(kind: str, sources: Sequence[Path], only: Sequence[str] = (), folder: Path | None = None) -> Path:
    """The shared library of some kernels' files; the same files give the same one without work.

    Args:
        kind: "plain", "race" or "asan".
        sources: kernels' files.
        only: names of the instances that are wanted; all by default.
        folder: for what is not worth keeping.
    """
    folder = folder or _kept()
    flags = [*KERNELS, *KINDS[kind], *([f'-DSWK_ONLY="{" ".join(sorted(only))}"'] if only else [])]
    jobs = [(folder, source, flags) for source in sorted(sources)]
    jobs += [(_kept(), source, HOST) for source in sorted((CUDA / "host").glob("*.cpp"))]
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(lambda job: _object(*job), jobs))
    links = KINDS["asan"] if kind == "asan" else []
    command = [compiler(), "-shared", "-Wl,--no-undefined", *links, *objects, "-ldl", "-o"]
    return made(folder, f"kernels_{_digest(kind, [o.name for o in objects])}.so", command)


def build_for_gpus(source: Path) -> Path:
    """The same file by nvcc, or what it made before of the same text; a skip without either."""
    texts = sorted((file.name, file.read_text()) for file in _sources_of(source) if file.parent.name != "host")
    image = _kept() / f"{source.stem}_{_digest(texts)}.fatbin"
    nvcc = shutil.which("nvcc")
    if not image.exists() and nvcc is None:
        pytest.skip(f"needs nvcc on PATH, or {image.name} that it made")
    codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in (80, 90)]
    return made(image.parent, image.name, [nvcc, "-std=c++17", "-fatbin", *codes, f"-I{CUDA}", source, "-o"])


class _Buffer(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("bytes", ctypes.c_int64),
        ("name", ctypes.c_char_p),
        ("access", ctypes.c_int32),
    ]


class _Options(ctypes.Structure):
    _fields_ = [
        ("schedule", ctypes.c_int32),
        ("seed", ctypes.c_uint32),
        ("late_copies", ctypes.c_int32),
        ("check", ctypes.c_int32),
        ("count", ctypes.c_int32),
    ]


class Buffer(NamedTuple):
    """Memory that a kernel gets the address of. `array`: of numpy or torch, contiguous; None for a null pointer."""

    name: str
    array: Any
    access: int

    @property
    def address(self) -> int:
        if self.array is None:
            return 0
        return self.array.ctypes.data if isinstance(self.array, np.ndarray) else self.array.data_ptr()


def given(name: str, array: Any) -> Buffer:
    """An input: the kernel may not write to it."""
    return Buffer(name, array, 0)


def wanted(name: str, array: Any) -> Buffer:
    """An output: full of NaN when the kernel starts, and read only where it was written."""
    return Buffer(name, array, 1)


def changed(name: str, array: Any) -> Buffer:
    """Input and output."""
    return Buffer(name, array, 2)


class Traffic(NamedTuple):
    """Accesses of a source line in block 0: wavefronts of shared memory or 32-byte sectors of global memory."""

    requests: int
    cost: int
    least: int


class Emulator:
    """A library of `build`."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))
        self.text = ctypes.create_string_buffer(1 << 20)

    def names(self) -> list[str]:
        """All kernels."""
        self.library.swk_names(self.text, len(self.text))
        return sorted(self.text.value.decode().split())

    def run(
        self,
        name: str,
        grid: int,
        threads: int,
        shared: int,
        buffers: Sequence[Buffer],
        ints: Sequence[int] = (),
        floats: Sequence[float] = (),
        *,
        schedule: str = "forward",
        seed: int = 1,
        late: bool = False,
        check: bool = True,
        count: bool = False,
    ) -> list[str]:
        """Launch a kernel; the sentences of what was wrong.

        Raises ValueError if the launch is refused: a wrong name, number of threads or size of arguments.
        """
        addresses = [buffer.address for buffer in buffers]
        arguments = struct.pack(f"={len(addresses)}Q{len(ints)}i{len(floats)}f", *addresses, *ints, *floats)
        there = [b for b in buffers if b.array is not None]
        table = (_Buffer * len(there))(*((b.address, b.array.nbytes, b.name.encode(), b.access) for b in there))
        options = _Options(SCHEDULES.index(schedule), seed, late, check, count)
        sizes = grid, threads, shared, arguments, len(arguments), table, len(there), ctypes.byref(options)
        found = self.library.swk_emulate(name.encode(), *sizes, self.text, len(self.text))
        said = self.text.value.decode()
        if found < 0:
            raise ValueError(said)
        return said.splitlines()

    def traffic(self) -> dict[tuple[str, str], Traffic]:
        """Of the last launch, which counted: (source line, "shared" or "global") and its accesses."""
        self.library.swk_traffic(self.text, len(self.text))
        rows = (line.split(",") for line in self.text.value.decode().splitlines())
        return {(place, space): Traffic(*map(int, numbers)) for place, space, *numbers in rows}
