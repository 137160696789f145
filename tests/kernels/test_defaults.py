"""The cpu backend asks torch for float32 on the CPU by name: what the user made the default changes nothing."""

from __future__ import annotations

import importlib
import pkgutil

import pytest
import torch

from swintormer_kernels import ops, use_backend
from swintormer_kernels.backends.cpu import packing
from swintormer_kernels.testing.cases import cases_of

MODULES = [importlib.import_module(f"{ops.__name__}.{module.name}") for module in pkgutil.iter_modules(ops.__path__)]


def calls(module):
    """A small call, and one whose x is no whole tensor, of the op's smaller cases."""
    cases = [case for case in cases_of(module.OP.name) if case.tested]
    odd = [case for case in cases if any(word in case.name for word in ("odd", "apart", "sliced", "expanded"))]
    for case in [cases[0], *odd[:1]]:
        args, kwargs = case.make(0)
        yield args, kwargs


def run(module, args, kwargs):
    packing._zeros.cache_clear()
    packing._bias_index.cache_clear()
    x = args[0].detach().requires_grad_(module.OP.own_backward("cpu") is not None)
    out = getattr(module, module.OP.name)(x, *args[1:], **kwargs)
    return [out.detach(), *(torch.autograd.grad(out, x, torch.full_like(out, 0.5)) if x.requires_grad else ())]


@pytest.fixture
def defaults():
    """Sets them; they are torch's own again after the test."""
    yield {"float64": lambda: torch.set_default_dtype(torch.float64), "meta": lambda: torch.set_default_device("meta")}
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


@pytest.mark.parametrize("default", ["float64", "meta"])
@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.OP.name)
def test_the_defaults_change_nothing(module, default, defaults, extension):
    inputs = list(calls(module))
    with use_backend("cpu"):
        expected = [run(module, *call) for call in inputs]
        inputs = list(calls(module))  # anew, or what was derived from the weights would be found
        defaults[default]()
        found = [run(module, *call) for call in inputs]
    for before, after in zip(expected, found, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
