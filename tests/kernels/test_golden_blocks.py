"""Every backend of the block against the released network's own float64 results, forward and backward."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import swintormer_kernels as sk
from swintormer_kernels.backends.reference.blocks import attention_branch, ffn_branch
from swintormer_kernels.backends.triton.layout import INTERPRETED
from swintormer_kernels.nn import Block

HERE = Path(__file__).resolve().parents[1] / "golden"
ORACLE = Path(__file__).resolve().parents[3] / "shared" / "oracle"
FILES = sorted({f.name: f for folder in (ORACLE, HERE) for f in folder.glob("block_*.safetensors")}.values())
# The cuda backend takes no float32; tests/cuda has its own comparison.
BACKENDS = [name for name in sk.BACKENDS if name not in ("cuda", *sk.swda_block.op.absent)]

pytestmark = pytest.mark.usefixtures("language_patched_once")

# Golden values are float64 results rounded to float32: relative error at most half a unit in the last place.
STORED = torch.finfo(torch.float32).eps / 2


def device_of(backend: str) -> str:
    """Where the backend's tensors lie; the interpreter's lie on the CPU."""
    return "cuda" if backend == "triton" and not INTERPRETED else "cpu"


def relative_error(value: torch.Tensor, golden: torch.Tensor) -> float:
    return ((value.double() - golden.double()).norm() / golden.double().norm()).item()


def make_block(file: Path, golden: dict[str, torch.Tensor], dtype: torch.dtype) -> Block:
    channels, heads, window, shift = map(int, re.search(r"d(\d+)_h(\d+)_w(\d+)_s(\d+)", file.name).groups())
    block = Block(channels, heads, window, shift).to(golden["in.x"].device, dtype)
    parameters = {k.removeprefix("param."): v.to(dtype) for k, v in golden.items() if k.startswith("param.")}
    block.load_state_dict(parameters, strict=True)
    return block


def errors_of(file: Path, golden: dict[str, torch.Tensor], dtype: torch.dtype, backend: str) -> dict[str, float]:
    """Relative error of the output, of the input's gradient and of every stored parameter gradient."""
    device = device_of(backend)
    golden = {name: tensor.to(device) for name, tensor in golden.items()}
    block = make_block(file, golden, dtype)
    x = golden["in.x"].to(dtype, copy=True).requires_grad_()
    with sk.use_backend(backend):
        y = block(x)
        y.backward(golden["in.grad_y"].to(dtype))
    values = {"out.y": y.detach(), "out.grad_x": x.grad}
    values |= {f"grad.{name}": p.grad for name, p in block.named_parameters() if f"grad.{name}" in golden}
    assert len(values) == 2 + sum(name.startswith("grad.") for name in golden)
    return {name: relative_error(value, golden[name]) for name, value in values.items()}


def test_the_two_committed_files_are_there():
    assert {"block_d16_h1_w8_s0_b2_16x24", "block_d16_h1_w8_s4_b1_24x32"} <= {f.stem for f in FILES}


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_reference_in_float64_is_the_released_block(file):
    golden = load_file(file)
    for name, error in errors_of(file, golden, torch.float64, "reference").items():
        assert error <= STORED, name


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_the_branches_alone(file):
    golden = load_file(file)
    block = make_block(file, golden, torch.float64)
    x = golden["in.x"].double()
    with torch.no_grad():
        attention = attention_branch(block.norm1(x), block.attn.weights(block.norm1), block.window, block.shift)
        ffn = ffn_branch(block.norm2(x), block.ffn.weights(block.norm2))
        halves = block.feed_forward(block.attention(x))
    assert relative_error(attention, golden["out.attention_of_norm1"]) <= STORED
    assert relative_error(ffn, golden["out.ffn_of_norm2"]) <= STORED
    assert relative_error(halves, golden["out.y"]) <= STORED


# The interpreter takes up to ten minutes for a block, and 20 seconds for this one.
INTERPRETED_BY_DEFAULT = "block_d16_h1_w8_s4_b1_24x32"
PAIRS = [
    pytest.param(
        file,
        backend,
        id=f"{file.stem}-{backend}",
        marks=[pytest.mark.slow] * (backend == "triton" and INTERPRETED and file.stem != INTERPRETED_BY_DEFAULT),
    )
    for backend in BACKENDS
    for file in FILES
]


@pytest.mark.parametrize(("file", "backend"), PAIRS)
def test_every_backend_in_float32(file, backend):
    lacks = sk.backends()[backend]
    if lacks is not None:
        pytest.skip(lacks)
    golden = load_file(file)
    reference = errors_of(file, golden, torch.float32, "reference")
    window, hidden = make_block(file, golden, torch.float32).window, golden["param.ffn.project_out.weight"].shape[1]
    bound = torch.finfo(torch.float32).eps * max(window**2, hidden)  # the longest sum of a block
    errors = reference if backend == "reference" else errors_of(file, golden, torch.float32, backend)
    for name, error in errors.items():
        assert error <= bound, name
        if backend != "reference":
            # A weight's gradient is a sum over the pixels, whose rounding errors add up to epsilon times their number.
            sums = torch.finfo(torch.float32).eps * golden["in.x"][:, 0].numel() if name.startswith("grad.") else 0
            assert error <= 2 * reference[name] + STORED + sums, name
