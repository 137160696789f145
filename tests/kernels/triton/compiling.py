"""Compiles the Triton kernels for GPUs that are not there: `python tests/kernels/triton/compiling.py [FILTER ...]`.

A kernel's sizes, types and constants are those of its real launches: each op runs forward and backward on CPU tensors
while runtime.py writes its launches down. Prints a line for each kernel: op, configuration, kernel, dtype, target,
bytes that a thread spills, bytes of shared memory of a program. With filters only those whose words contain each of
them; with --quick every kernel once for each target, in bfloat16.
Interpreted kernels cannot be compiled, so TRITON_INTERPRET must not be set.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from swintormer_kernels.backends.triton import (
    ddim_step,
    gated_ffn,
    group_norm_silu,
    norm_silu_conv3x3,
    swda_attention,
)
from swintormer_kernels.backends.triton.layout import DTYPES
from swintormer_kernels.backends.triton.runtime import Launch, recording
from swintormer_kernels.records import AttentionWeights, ConvWeights, FFNWeights, GroupNormWeights, Prediction

TARGETS = {"sm_90": GPUTarget("cuda", 90, 32), "gfx942": GPUTarget("hip", "gfx942", 64)}
Configurations = Iterator[tuple[str, Callable[[], object]]]
ROWS, PLANES = torch.channels_last, torch.contiguous_format


def _of_gated_ffn(dtype: torch.dtype, side: int) -> Configurations:
    """The levels of the released network and of `small`, and NCHW with biases."""
    for channels, bias in ((48, False), (24, False), (96, False), (192, False), (384, False), (48, True)):
        hidden = int(channels * 2.66)
        x = torch.empty(2, channels, side, side, dtype=dtype).contiguous(memory_format=PLANES if bias else ROWS)
        shapes = ((channels,), (channels,), (2 * hidden, channels, 1, 1), (channels, hidden, 1, 1))
        biases = ((2 * hidden,), (channels,)) if bias else ()
        weights = FFNWeights(*(torch.ones(shape, dtype=dtype, requires_grad=True) for shape in (*shapes, *biases)))

        def call(x: Tensor = x, weights: FFNWeights = weights) -> None:
            gated_ffn.gated_ffn(x, weights)
            gated_ffn.gated_ffn_backward(x, x, weights)

        yield f"C {channels}{', NCHW, bias' if bias else ''}", call


def _of_swda_attention(dtype: torch.dtype, side: int) -> Configurations:
    """Every head size of the released network and of `small`, masked. Channels and heads only count loops."""
    for channels, window, bias in ((48, 16, False), (96, 16, False), (24, 8, True)):
        x = torch.empty(2, channels, side, side, dtype=dtype).contiguous(memory_format=PLANES if bias else ROWS)
        shapes = [(channels,), (channels,), (3 * channels, channels, 1, 1), (3 * channels, 1, 3, 3)]
        shapes += [(channels, channels, 1, 1), (1, 1, 1), ((2 * window - 1) ** 2, 1)]
        shapes += [(3 * channels,), (3 * channels,), (channels,)] if bias else []
        weights = AttentionWeights(*(torch.ones(shape, dtype=dtype, requires_grad=True) for shape in shapes))

        def call(x: Tensor = x, weights: AttentionWeights = weights, window: int = window) -> None:
            swda_attention.swda_attention(x, weights, window, window // 2)
            swda_attention.swda_attention_backward(x, x, weights, window, window // 2)

        yield f"C {channels}, d {channels // 2}{', NCHW, bias' if bias else ''}", call


def _of_group_norm_silu(dtype: torch.dtype, side: int) -> Configurations:
    """Levels of the released denoiser and of a compact one, and NCHW."""
    for channels, groups, times, layout in ((32, 8, 1, ROWS), (160, 32, 4, ROWS), (320, 32, 4, PLANES)):
        x = torch.empty(1, channels, times * side, times * side, dtype=dtype).contiguous(memory_format=layout)
        x.requires_grad_()
        norm = GroupNormWeights(*x.new_empty(2, channels).unbind(), *x.new_empty(2, 1, channels).unbind())

        def call(x: Tensor = x, norm: GroupNormWeights = norm, groups: int = groups) -> None:
            group_norm_silu.group_norm_silu(x, norm, groups, 1e-5)
            group_norm_silu.group_norm_silu_backward(x, x, norm, groups, 1e-5)

        yield f"C {channels}{', NCHW' if layout == PLANES else ''}", call


def _of_norm_silu_conv3x3(dtype: torch.dtype, side: int) -> Configurations:
    """Levels of the released denoiser and of a compact one, with all that can be added."""
    for channels, groups in ((32, 8), (160, 32), (320, 32)):
        x = torch.empty(1, channels, side, side, dtype=dtype).to(memory_format=ROWS)
        norm = GroupNormWeights(*x.new_empty(2, channels).unbind())
        conv = ConvWeights(x.new_empty(channels, channels, 3, 3), x.new_empty(channels), x.new_empty(1, channels), x)

        def call(x: Tensor = x, norm: GroupNormWeights = norm, conv: ConvWeights = conv, groups: int = groups) -> None:
            norm_silu_conv3x3.norm_silu_conv3x3(x, norm, conv, groups, 1e-5)

        yield f"C {channels}", call


def _of_ddim_step(dtype: torch.dtype, side: int) -> Configurations:
    """A step with all that there is, and the plain one."""
    z = torch.empty(1, 4, side, side, dtype=dtype)
    for name, eta, clip, second in (("bound, noise, guidance", 1.0, 1.0, z), ("plain", 0.0, None, None)):

        def call(eta: float = eta, clip: float | None = clip, second: Tensor | None = second) -> None:
            ddim_step.ddim_step(z, z, 0.25, 0.4, eta, clip, z, Prediction("epsilon", second, 2.0))

        yield name, call


OPS = {
    "gated_ffn": _of_gated_ffn,
    "swda_attention": _of_swda_attention,
    "group_norm_silu": _of_group_norm_silu,
    "norm_silu_conv3x3": _of_norm_silu_conv3x3,
    "ddim_step": _of_ddim_step,
}
"""The configuration that comes first stands for the others in a quick run."""


def launches(dtype: torch.dtype, side: int = 32) -> Iterator[tuple[str, str, Launch]]:
    """(op, configuration, launch) for every kernel of every configuration, each set of constants once."""
    for op, configurations in OPS.items():
        for configuration, call in configurations(dtype, side):
            with torch.no_grad(), recording() as recorded:
                call()
            seen = set()
            for launch in recorded:
                key = (launch.kernel.__name__, *sorted(launch.constants.items()))
                if key not in seen:
                    seen.add(key)
                    yield op, configuration, launch


def quick() -> list[tuple[str, str, Launch]]:
    """One launch of every kernel in bfloat16."""
    first: dict[tuple[str, str], tuple[str, str, Launch]] = {}
    for op, configuration, launch in launches(torch.bfloat16):
        first.setdefault((launch.kernel.fn.__module__, launch.kernel.__name__), (op, configuration, launch))
    return list(first.values())


def specialised(launch: Launch, target: str) -> tuple[Any, ...]:
    """What Triton makes of the arguments: their types with the hints that it compiles for, and the options."""
    backend = make_backend(TARGETS[target])
    kernel, keywords = launch.kernel, {**launch.constants, "debug": False, "instrumentation_mode": ""}
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    return (backend, keywords, *binder(*launch.arguments, **keywords))


def usage(launch: Launch, target: str) -> tuple[int, int]:
    """(bytes that a thread spills, bytes of shared memory of a program) of the kernel compiled for the target."""
    backend, keywords, bound, specialisation, options = specialised(launch, target)
    kernel = launch.kernel
    options, signature, constants, attributes = kernel._pack_args(backend, keywords, bound, specialisation, options)
    source = ASTSource(kernel, signature, constants, attributes)
    binary = triton.compile(source, target=TARGETS[target], options=options.__dict__)
    spills = _cuda_spills(binary.asm["cubin"]) if target.startswith("sm") else _amd_spills(binary.asm["amdgcn"])
    return spills, binary.metadata.shared


def _cuda_spills(cubin: bytes) -> int:
    # The size of a thread's stack: kernels keep no arrays there, so these are spilled registers.
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "-res-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return _number(r"STACK:(\d+)", said)


def _amd_spills(assembly: str) -> int:
    return _number(r"\.private_segment_fixed_size:\s*(\d+)", assembly)


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"no {pattern} in: {text[:2000]}")
    return int(found[1])


def main(*arguments: str) -> None:
    for target in TARGETS:
        every = (found for dtype in DTYPES for found in launches(dtype))
        chosen = quick() if "--quick" in arguments else every
        for op, configuration, launch in chosen:
            dtype = next(a.dtype for a in _tensors(launch.arguments))
            words = (op, configuration, launch.kernel.__name__, str(dtype).removeprefix("torch."), target)
            if all(part in " ".join(words) for part in arguments if part != "--quick"):
                print("|".join(map(str, (*words, *usage(launch, target)))), flush=True)


def _tensors(arguments: tuple[Any, ...]) -> Iterator[Tensor]:
    for argument in arguments:
        if isinstance(argument, tuple):
            yield from _tensors(argument)
        elif isinstance(argument, Tensor):
            yield argument


if __name__ == "__main__":
    main(*sys.argv[1:])
