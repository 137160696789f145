"""What nvcc makes of the kernels of a block for sm_90: registers, spills, blocks per multiprocessor, and instructions.

Without a GPU these figures are the nearest to timing. Each bound is what the layout of the kernel's header promises.
"""

from __future__ import annotations

import functools
import hashlib
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
from emulator import CUDA, ROOT, made

from swintormer_kernels import native

NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
pytestmark = pytest.mark.skipif(NVCC is None, reason="needs nvcc")
REGISTERS, SHARED_BYTES, THREADS = 65536, 228 * 1024, 2048  # of a multiprocessor of sm_90
RESERVED = 1024  # shared bytes that each block takes for the system
SPILLED = 64  # bytes of a thread, outside of the inner loops


# Channels, a number of pixels for which one multiprocessor takes the instance, and its blocks of a multiprocessor.
TAILS = (
    *((24, 1, 2), (32, 1, 2), (48, 1, 2), (64, 1, 2), (96, 1, 1), (128, 1, 2), (128, 128, 1)),
    *((192, 1, 2), (192, 160, 1), (256, 1, 2), (256, 80, 1), (384, 1, 2), (384, 64, 1), (384, 80, 1)),
)


class Instance(NamedTuple):
    """A kernel as the tables choose it, and how many of its blocks must fit a multiprocessor."""

    name: str
    threads: int
    shared: int
    blocks: int


def instances(image):
    """Those that the tables of kernels/*.h can choose."""
    choose = native.extension()
    found = {}
    for bfloat16 in (True, False):
        if image == "attention":
            for d, blocks in ((12, 2), (24, 2), (32, 1), (48, 1)):
                for side in (8, 16):
                    name, threads, shared, _ = choose.cuda_choose_attention(bfloat16, d, side)
                    found[name] = Instance(name, threads, shared, blocks)
        else:
            for channels, pixels, blocks in TAILS:
                for projects in (True, False):
                    name, threads, shared, _ = choose.cuda_choose_tail(
                        bfloat16, channels, projects, pixels, 1, 227 * 1024
                    )
                    found[name] = Instance(name, threads, shared, blocks)
    return found


class Compiled(NamedTuple):
    """A cubin and what ptxas told of each kernel: (registers, bytes of stores to spilled registers)."""

    path: Path
    used: dict[str, tuple[int, int]]


@functools.cache
def compiled(image):
    """Kept in build/, by all that it is made of; processes that want the same one wait for it."""
    parts = [CUDA / "gpu.h", *sorted((CUDA / "kernels").glob("*.*"))]
    digest = hashlib.sha256(subprocess.run([NVCC, "--version"], capture_output=True, check=True).stdout)
    for part in parts:
        digest.update(part.read_bytes())
    folder, report = ROOT / "build" / "cubins" / digest.hexdigest()[:20], f"{image}.txt"
    command = [NVCC, "-std=c++17", "-O3", "-arch=sm_90", "-cubin", "-Xptxas", "-v"]
    cubin = made(folder, f"{image}.cubin", [*command, CUDA / "kernels" / f"{image}.cu", "-o"], report)
    pattern = r"entry function '(\w+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers"
    found = re.findall(pattern, (folder / report).read_text(), re.DOTALL)
    return Compiled(cubin, {name: (int(registers), int(spilled)) for name, spilled, registers in found})


@pytest.mark.parametrize("image", ["attention", "tail"])
def test_registers_spills_and_blocks_of_a_multiprocessor(image):
    used = compiled(image).used
    wanted = instances(image)
    assert used.keys() == wanted.keys(), "an instance that no table chooses, or one that is not compiled"
    for name, (registers, spilled) in used.items():
        kernel = wanted[name]
        held = min(
            REGISTERS // (-(-registers // 8) * 8 * kernel.threads),
            SHARED_BYTES // (kernel.shared + RESERVED),
            THREADS // kernel.threads,
        )
        assert held >= kernel.blocks, f"{name}: {registers} registers, {kernel.shared} bytes shared"
        assert spilled <= SPILLED, f"{name}: {spilled} bytes spilled"


# ---- machine code ----------------------------------------------------------------------------------------------------


def disassembler():
    found = shutil.which("cuobjdump")
    if found is None:
        triton = pytest.importorskip("triton", reason="needs cuobjdump")
        found = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        if not found.exists():
            pytest.skip("needs cuobjdump")
    return found


@functools.cache
def machine_code(image):
    """Kernel -> [(address, instruction, operands)]."""
    command = [disassembler(), "-sass", compiled(image).path]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {}
    for part in text.split("Function : ")[1:]:
        line = r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)([^;]*);"
        found[part.split()[0]] = [(int(at, 16), name, rest) for at, name, rest in re.findall(line, part)]
    return found


LONGEST_LOOP = 700  # instructions; what jumps farther back is code out of line, such as that of a square root


def product_loops(code):
    """Counts of the instructions of each loop with tensor-core products that contains no other such loop."""
    jumps = [(int(to[1], 16), at) for at, name, rest in code if name == "BRA" and (to := re.search(r"0x(\w+)", rest))]
    found = {}
    for first, last in jumps:
        inside = Counter(name.split(".")[0] for at, name, _ in code if first <= at <= last)
        if inside["HMMA"] and inside.total() < LONGEST_LOOP:
            found[first, last] = inside
    return [
        inside
        for (first, last), inside in found.items()
        if not any((first, last) != other and first <= other[0] and other[1] <= last for other in found)
    ]


@pytest.mark.parametrize("image", ["attention", "tail"])
def test_tensor_cores_and_asynchronous_copies_are_used_and_no_product_loop_touches_local_memory(image):
    """One test, so that one process reads the machine code."""
    for name, code in machine_code(image).items():
        count = Counter(instruction.split(".")[0] for _, instruction, _ in code)
        for wanted in ("HMMA", "LDSM", "LDGSTS"):
            assert count[wanted], f"{name} has no {wanted}"
        loops = product_loops(code)
        assert loops, name
        allowed = 12 if name.endswith("_c48") else 0  # 128 registers, for two blocks of a multiprocessor
        assert all(loop["LDL"] + loop["STL"] <= allowed for loop in loops), name


def test_the_loops_over_keys_take_no_more_exponentials_than_they_have_logits():
    """32 keys at once: 32 x 32 logits a warp, 32 a lane; online four more, one for each row of the sums."""
    for side in (8, 16):
        loops = product_loops(machine_code("attention")[f"attention_bf16_d24_w{side}"])
        assert sorted(loop["MUFU"] for loop in loops if loop["MUFU"]) == [32, 32, 36, 36]


# ---- the denoiser's kernels ------------------------------------------------------------------------------------------

HELD = {  # blocks that fit a multiprocessor, and their threads and shared bytes
    "norm_silu_conv3x3_n32": (2, 256, 80 * (360 + 288) + 12 * 640),
    "norm_silu_conv3x3_n64": (2, 256, 80 * (360 + 576) + 12 * 640),
    "norm_silu_conv3x3_n128": (2, 256, 80 * (360 + 768) + 12 * 640),
    "group_norm_statistics": (4, 256, 16384),
    "group_norm_table": (4, 256, 32),
    "group_norm_apply": (3, 256, 0),
    "ddim_step": (8, 128, 0),
}


@pytest.mark.parametrize("image", ["norm_silu_conv3x3", "group_norm", "ddim_step"])
def test_the_denoisers_kernels_spill_nothing_and_fit(image):
    for name, (registers, spilled) in compiled(image).used.items():
        blocks, threads, shared = HELD[name.rsplit("_", 1)[0]]
        assert spilled == 0, name
        assert blocks * -(-registers // 8) * 8 * threads <= REGISTERS, f"{name}: {registers} registers"
        assert blocks * (shared + RESERVED) <= SHARED_BYTES, name


def test_shared_memory_of_the_convolution_is_what_its_table_says():
    for outputs, patches in ((160, 32), (320, 8), (640, 512)):
        name, threads, shared, _ = native.extension().cuda_choose_conv3x3(True, 640, outputs, patches, 132, 2**30)
        assert HELD[name.removesuffix("_bf16")][1:] == (threads, shared)


def test_the_convolution_uses_tensor_cores_and_asynchronous_copies_and_no_local_memory():
    for name, code in machine_code("norm_silu_conv3x3").items():
        count = Counter(instruction.split(".")[0] for _, instruction, _ in code)
        outputs = int(re.search(r"_n(\d+)_", name)[1])
        rows, tiles = (4, outputs // 32) if outputs >= 64 else (2, outputs // 16)  # of a warp
        assert count["HMMA"] == 3 * 2 * 3 * rows * tiles, "columns, halves, taps, rows, tiles"
        assert count["LDSM"] == 3 * 2 * (rows + 2 + 3 * tiles // 2)
        assert count["LDGSTS"]
        assert not count["LDL"] + count["STL"], name
