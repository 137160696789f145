"""What stands around every Triton kernel: who may run it, launches, the products' precision, blocks."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import swintormer_kernels as sk
from swintormer_kernels import torch_op
from swintormer_kernels.backends.triton import blocks
from swintormer_kernels.backends.triton import layout as tensors

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
runtime = pytest.importorskip("swintormer_kernels.backends.triton.runtime")

DEVICE = "cpu" if tensors.INTERPRETED else "cuda"


@triton.jit(do_not_specialize=["n"])
def _double(x, out, n, BLOCK: tl.constexpr):
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + places, 2 * tl.load(x + places, places < n), places < n)


@triton.jit
def _product(a, b, out, N: tl.constexpr, PRECISION: tl.constexpr):
    rows, columns = tl.arange(0, N)[:, None], tl.arange(0, N)[None, :]
    places = rows * N + columns
    zero = tl.zeros((N, N), tl.float32)
    tl.store(out + places, runtime.dot(tl.load(a + places), tl.load(b + places), zero, PRECISION))


def test_a_launch_runs_its_programs_and_an_empty_grid_none():
    x, out = torch.randn(100, device=DEVICE), torch.empty(100, device=DEVICE)
    runtime.launch(_double, (0,), x, out, 0, BLOCK=32, num_warps=4)
    assert out.isnan().all()
    runtime.launch(_double, (4,), x, out, 100, BLOCK=32, num_warps=4)
    assert torch.equal(out, 2 * x)


def test_recorded_launches_do_not_run():
    x = torch.empty(8, device="meta")
    with runtime.recording() as launches:
        runtime.launch(_double, (1,), x, x, 8, BLOCK=8, num_warps=4)
    assert launches == [(_double, (1,), (x, x, 8), {"BLOCK": 8, "num_warps": 4})]


@pytest.mark.parametrize("dtype", tensors.DTYPES)
def test_products_are_exact_and_sums_are_float32(dtype):
    a, b = torch.randn(2, 16, 16, device=DEVICE).to(dtype)
    out = torch.empty(16, 16, device=DEVICE)
    runtime.launch(_product, (1,), a, b, out, N=16, PRECISION=runtime.precision(), num_warps=4)
    exact = a.double() @ b.double()
    bound = 16 * torch.finfo(torch.float32).eps * (a.double().abs() @ b.double().abs())
    assert ((out - exact).abs() <= bound).all()


def test_tf32_only_where_the_user_allows_it():
    script = (
        "import torch; from swintormer_kernels.backends.triton.runtime import precision as p; "
        "print(p()); torch.backends.cuda.matmul.allow_tf32 = True; print(p()); "
        "torch.backends.cuda.matmul.fp32_precision = 'ieee'; print(p()); "
        "torch.backends.cuda.matmul.fp32_precision = 'tf32'; print(p())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["ieee", "tf32", "ieee", "tf32"]


@pytest.mark.parametrize("kernel", blocks.SIZES)
@pytest.mark.parametrize("dtype", tensors.DTYPES, ids=str)
def test_there_are_blocks_for_every_size(kernel, dtype):
    small, large = (blocks.blocks_for(kernel, size, dtype) for size in (1, 2000))
    assert small.keys() == large.keys() >= {"num_warps", "num_stages"}
    assert large.get("BLOCK_P", 0) <= small.get("BLOCK_P", 0)


# ---- who may run -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", tensors.DTYPES)
def test_one_dtype_on_one_device_serves(dtype):
    assert tensors.dense_on_gpu(torch.empty(1, 2, 3, 4, dtype=dtype, device=DEVICE), None) is None


@pytest.mark.parametrize(
    ("others", "reason"),
    [
        ((torch.float64,), "takes float32, bfloat16 or float16, found torch.float64"),
        ((torch.float32, torch.float16), "one dtype, found torch.float32 and torch.float16"),
    ],
)
def test_what_does_not_serve_is_named(others, reason):
    assert reason in tensors.dense_on_gpu(*(torch.empty(2, dtype=dtype, device=DEVICE) for dtype in others))


def test_other_devices_layouts_and_sizes_do_not_serve():
    x = torch.empty(1, 2, 3, 4, device=DEVICE)
    assert "found one on meta" in tensors.dense_on_gpu(x.to("meta"))
    assert "one device" in tensors.dense_on_gpu(x, x.to("meta"))
    assert "layout torch.sparse_coo" in tensors.dense_on_gpu(x, torch.zeros(2, 2, device=DEVICE).to_sparse())
    assert "pixels" in tensors.dense_on_gpu(torch.empty(1, 1, 1, 1, device=DEVICE).expand(2, 1, 2**15, 2**15))


def test_autocast_brings_dtypes_together():
    x, half = torch.empty(2, device=DEVICE), torch.empty(2, device=DEVICE, dtype=torch.bfloat16)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        assert tensors.dense_on_gpu(x, half) is None
        assert "float64" in tensors.dense_on_gpu(x, half.double())
    assert torch_op.in_autocast_dtype(x, torch.float16).dtype == torch.float16
    assert torch_op.in_autocast_dtype(x.double(), torch.float16).dtype == torch.float64
    assert torch_op.in_autocast_dtype(3, torch.float16) == 3


@pytest.mark.parametrize("op", [sk.gated_ffn, sk.swda_attention, sk.swda_block])
def test_cuda_autocast_is_registered(op):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"swintormer::{op.op.name}", "AutocastCUDA")


def test_the_interpreter_is_never_chosen_automatically(monkeypatch):
    toy = sk.registry.Op("toy", serves={"triton": lambda x: None}, absent={"cuda": "a test", "cpu": "a test"})
    monkeypatch.setattr(sk.registry.triton_tensors, "INTERPRETED", True)
    x = torch.ones(1)
    assert toy.select(x) == "reference"
    with sk.use_backend("triton"):
        assert toy.select(x) == "triton"
    assert "interpreter" in toy.why_slower("triton", x)
