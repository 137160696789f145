"""Compiles every kernel for GPUs that are not there, and reads what it takes: registers, spills, shared memory.

    python -m swintormer_kernels.backends.triton.aot [FILTER ...]   # CSV on the standard output

A kernel's sizes, types and constants are those of its real launches: each op of `OPS` runs forward and backward on CPU
tensors while runtime.py writes its launches down. `bench/resources.py` keeps the table that tests/triton compares.
"""

from __future__ import annotations

import csv
import importlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from swintormer_kernels.backends.triton.layout import DTYPES, INTERPRETED
from swintormer_kernels.backends.triton.runtime import Launch, recording

OPS = ("gated_ffn", "swda_attention", "group_norm_silu", "ddim_step", "norm_silu_conv3x3")
"""Modules here with `ahead_of_time(dtype)`, which yields (configuration, call on CPU tensors) worth compiling."""


class Target(NamedTuple):
    """A GPU: what Triton calls it, whose choices it takes, and a multiprocessor's limits."""

    gpu: GPUTarget
    architecture: str
    shared_bytes: int  # that one program may have
    shared_total: int
    registers: int  # of 32 bits
    threads: int


# CUDA C++ programming guide, table "technical specifications per compute capability"; CDNA 3 ISA: 64 KB of LDS, 4 SIMDs
# of 512 registers of 64 lanes, 8 waves each.
TARGETS = {
    "sm_80": Target(GPUTarget("cuda", 80, 32), "sm_80", 163 * 1024, 164 * 1024, 65536, 2048),
    "sm_90": Target(GPUTarget("cuda", 90, 32), "sm_90", 227 * 1024, 228 * 1024, 65536, 2048),
    "sm_100": Target(GPUTarget("cuda", 100, 32), "sm_90", 227 * 1024, 228 * 1024, 65536, 2048),
    "gfx942": Target(GPUTarget("hip", "gfx942", 64), "default", 64 * 1024, 64 * 1024, 4 * 512 * 64, 2048),
}


@dataclass(frozen=True)
class Row:
    """What one kernel takes on one target; `programs` is how many run on a multiprocessor at once."""

    op: str
    configuration: str
    kernel: str
    dtype: str
    target: str
    constants: str
    registers: int
    spill_bytes: int
    shared_bytes: int
    programs: int

    @property
    def key(self) -> tuple[str, ...]:
        """What tells rows of the table apart."""
        return self.op, self.configuration, self.kernel, self.dtype, self.target


def launches(target: str, dtype: torch.dtype) -> Iterator[tuple[str, str, Launch]]:
    """(op, configuration, launch) for every kernel of every configuration, each set of constants once."""
    for op in OPS:
        for configuration, call in importlib.import_module(f"{__package__}.{op}").ahead_of_time(dtype):
            with recording(TARGETS[target].architecture) as recorded:
                call()
            seen = set()
            for launch in recorded:
                key = (launch.kernel.__name__, *sorted(launch.constants.items()))
                if key not in seen:
                    seen.add(key)
                    yield op, configuration, launch


def specialised(launch: Launch, target: str) -> tuple[Any, ...]:
    """What Triton makes of the arguments: their types with the hints that it compiles for, and the options."""
    backend = make_backend(TARGETS[target].gpu)
    kernel, keywords = launch.kernel, {**launch.constants, "debug": False, "instrumentation_mode": ""}
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    return (backend, keywords, *binder(*launch.arguments, **keywords))


def compiled(launch: Launch, target: str) -> Any:
    """The launch's kernel for `target`; Triton keeps it in its cache folder."""
    backend, keywords, bound, specialisation, options = specialised(launch, target)
    kernel = launch.kernel
    options, signature, constants, attributes = kernel._pack_args(backend, keywords, bound, specialisation, options)
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=TARGETS[target].gpu, options=options.__dict__)


def row(key: tuple[str, ...], launch: Launch) -> Row:
    """Compile for the target that the key ends with, and read off what it takes."""
    target = TARGETS[key[-1]]
    binary = compiled(launch, key[-1])
    cuda = target.gpu.backend == "cuda"
    registers, spills = _cuda_usage(binary.asm["cubin"]) if cuda else _amd_usage(binary.asm["amdgcn"])
    constants = {**launch.constants, **getattr(launch.constants.get("S"), "tuned", {})}
    tuned = {name: value for name, value in constants.items() if name.startswith(("BLOCK", "num_"))}
    op, configuration, kernel, dtype, name = key
    return Row(
        op,
        configuration,
        kernel,
        dtype,
        name,
        " ".join(f"{constant}={value}" for constant, value in tuned.items()),
        registers,
        spills,
        binary.metadata.shared,
        _programs(registers, binary.metadata.shared, binary.metadata.num_warps, target),
    )


def _cuda_usage(cubin: bytes) -> tuple[int, int]:
    """(registers of a thread, bytes of its stack: kernels keep no arrays there, so these are spills)."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "-res-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", said)
    if found is None:
        raise RuntimeError(f"cuobjdump told no resource usage but: {said}")
    return int(found[1]), int(found[2])


def _amd_usage(assembly: str) -> tuple[int, int]:
    """(vector registers of a lane, bytes of scratch of a lane)."""
    values = {}
    for name in ("vgpr_count", "private_segment_fixed_size"):
        found = re.search(rf"\.{name}:\s*(\d+)", assembly)
        if found is None:
            raise RuntimeError(f"the AMD assembly does not tell .{name}")
        values[name] = int(found[1])
    return values["vgpr_count"], values["private_segment_fixed_size"]


def _programs(registers: int, shared: int, warps: int, target: Target) -> int:
    """Programs of a multiprocessor at once; NVIDIA gives registers to a warp in units of 256."""
    threads = warps * target.gpu.warp_size
    of_a_warp = -(-registers * target.gpu.warp_size // 256) * 256
    limits = [target.registers // (of_a_warp * warps), target.threads // threads, 32]
    if shared:
        limits.append(target.shared_total // (shared + 1024))  # the system keeps 1 KB for each program
    return min(limits)


def _every() -> Iterator[tuple[tuple[str, ...], Launch]]:
    """(a row's key, the launch) for the whole table, in its order."""
    for target in TARGETS:
        for dtype in DTYPES:
            for op, configuration, launch in launches(target, dtype):
                short = str(dtype).removeprefix("torch.")
                yield (op, configuration, launch.kernel.__name__, short, target), launch


def keys() -> list[tuple[str, ...]]:
    """`Row.key` of every row, in the table's order; compiles nothing."""
    return [key for key, _ in _every()]


def rows(*filters: str) -> Iterator[Row]:
    """The table; with filters only rows whose key, joined by blanks, contains one of them."""
    for key, launch in _every():
        if not filters or any(words in " ".join(key) for words in filters):
            yield row(key, launch)


def refuse_interpreter() -> None:
    """Ends the program in one sentence where nothing can be compiled."""
    if INTERPRETED:
        sys.exit("TRITON_INTERPRET is set, and interpreted kernels cannot be compiled: run without it.")


def main() -> None:
    refuse_interpreter()
    writer = csv.DictWriter(sys.stdout, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    for found in rows(*sys.argv[1:]):
        writer.writerow(asdict(found))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
