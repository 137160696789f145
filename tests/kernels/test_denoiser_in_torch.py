"""What holds for the denoiser's ops alike: gradients through the reference, and that torch sees each as one op."""

from __future__ import annotations

import importlib

import pytest
import torch
from denoiser_ops import EPS, error, leaves_of, mapped
from torch.utils.flop_counter import FlopCounterMode

from swintormer_kernels.registry import use_backend
from swintormer_kernels.testing.cases import cases_of

# op: cases of its own, and its numbers that have defaults
SMALL = {
    "norm_projection": (("modulated, batch 3", "NCHW, no bias", "columns apart"), (1e-5,)),
    "norm_silu_conv3x3": (("modulated, batch 3", "plain, NCHW", "columns apart"), (1e-5,)),
    "res_block": (("modulated, batch 3", "plain, NCHW", "columns apart"), (1e-5, 1e-5)),
}
MODULES = {name: importlib.import_module(f"swintormer_kernels.ops.{name}") for name in SMALL}
CASES = [
    pytest.param(name, case, id=f"{name}, {case.name}")
    for name, (wanted, _) in SMALL.items()
    for case in cases_of(name)
    if case.name in wanted
]


def test_every_case_is_there():
    assert len(CASES) == sum(len(wanted) for wanted, _ in SMALL.values())


def op_and_first_case(name):
    arguments, _ = next(case for case in cases_of(name) if case.name in SMALL[name][0]).make(0)
    return getattr(MODULES[name], name), arguments


@pytest.mark.parametrize(("name", "case"), CASES)
def test_gradients(name, case, extension):
    op = getattr(MODULES[name], name)
    arguments, _ = case.make(0)
    with torch.no_grad(), use_backend("reference"):
        grad = torch.randn(op(*arguments).shape)
    found = {}
    for kind, backend, dtype in (("cpu", "cpu", None), ("plain", "reference", None), ("true", "reference", "double")):
        leaves, tensors = leaves_of(mapped(torch.Tensor.double, arguments) if dtype else arguments)
        with use_backend(backend):
            found[kind] = torch.autograd.grad(op(*leaves), tensors, grad.to(leaves[0].dtype))
    for value, plain, true in zip(found["cpu"], found["plain"], found["true"], strict=True):
        assert error(value, true) <= 2 * error(plain, true) + EPS


@pytest.mark.parametrize(("name", "case"), CASES)
def test_opcheck(name, case, extension):
    leaves, _ = leaves_of(case.make(0)[0])
    module = MODULES[name]
    flat = module._SIGNATURE.flat(*leaves, *SMALL[name][1])
    torch.library.opcheck(module._run.default, (*flat, "cpu"))


@pytest.mark.parametrize("name", SMALL)
def test_compiles_to_one_graph_and_gives_the_same_bits(name, extension):
    torch._dynamo.reset()
    op, arguments = op_and_first_case(name)
    with use_backend("cpu"):
        expected = op(*arguments)
        compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(*arguments), expected)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("name", SMALL)
def test_flops_are_those_of_direct_products(name, backend, extension):
    op, arguments = op_and_first_case(name)
    with FlopCounterMode(display=False) as counter, use_backend(backend):
        op(*arguments)
    assert counter.get_total_flops() == 2 * MODULES[name].cost(*arguments).macs
