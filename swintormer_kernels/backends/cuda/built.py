"""What the build made of csrc/cuda/kernels: fatbins in swintormer_kernels/cuda, and a note of the compiler beside them.

The note has a line for each fact: `nvcc 13.0`, `architectures 80 90 100 120 ptx90`, `error ...` with the first error of
a kernel that did not compile, or `absent ...` with the reason why none was compiled. CMakeLists.txt and setup.py write
it.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).resolve().parents[2] / "cuda"
NOTE = "built.txt"


class Built(NamedTuple):
    """Facts of the build.

    Attributes:
        images: names of the fatbins, without suffix.
        nvcc: (major, minor), or None.
        architectures: compute capabilities times ten that have machine code.
        ptx: the architecture for which there is PTX, which the driver compiles for newer GPUs; None without.
        why_absent: why there are no kernels, or why some are missing; None if all were built.
    """

    images: frozenset[str]
    nvcc: tuple[int, int] | None
    architectures: tuple[int, ...]
    ptx: int | None
    why_absent: str | None

    def told(self) -> str:
        """`built by nvcc 13.0 for compute capability 8.x, 9.0, 10.x, 12.x`."""
        version = "" if self.nvcc is None else f" by nvcc {self.nvcc[0]}.{self.nvcc[1]}"
        return f"built{version} for compute capability {self.capabilities()}"

    def capabilities(self) -> str:
        """Compute capabilities with machine code: sm_80 runs on 8.x, sm_90 on 9.0, sm_100 on 10.x, sm_120 on 12.x."""
        names = [f"{a // 10}.x" if a // 10 != 9 else "9.0" for a in self.architectures]
        return ", ".join(names) + ("" if self.ptx is None else " and newer ones")

    def runs_on(self, major: int, minor: int) -> bool:
        """Whether there is machine code or PTX for a GPU of this compute capability."""
        capability = 10 * major + minor
        return any(a // 10 == major and a <= capability for a in self.architectures) or (
            self.ptx is not None and capability >= self.ptx
        )


@functools.lru_cache(maxsize=1)
def built(folder: Path = FOLDER) -> Built:
    """What lies in `folder`. Read once in a process."""
    images = frozenset(file.stem for file in folder.glob("*.fatbin"))
    try:
        lines = (folder / NOTE).read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    facts = {name: rest for name, _, rest in (line.partition(" ") for line in lines)}
    names = facts.get("architectures", "").split()
    numbers = [int(part) for part in facts.get("nvcc", "").split(".") if part.isdigit()]
    reason = facts.get("error") or facts.get("absent")
    if reason is None and not images:
        reason = "this installation was made without them"
    return Built(
        images,
        (numbers[0], numbers[1]) if len(numbers) > 1 else None,
        tuple(int(name) for name in names if name.isdigit()),
        next((int(name.removeprefix("ptx")) for name in names if name.startswith("ptx")), None),
        reason,
    )
