"""upsample_conv3x3: instruction sets, layouts and thread counts against float64; gradients; torch's view of it."""

from __future__ import annotations

import functools

import pytest
import torch
from denoiser_ops import EPS, ISAS, comparing, error, leaves_of, mapped
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

import swintormer_kernels as sk
from swintormer_kernels import native
from swintormer_kernels.backends.cpu.layout import dense, view
from swintormer_kernels.ops import upsample_conv3x3 as module
from swintormer_kernels.ops.upsample_conv3x3 import upsample_conv3x3
from swintormer_kernels.records import UpsampleWeights
from swintormer_kernels.registry import use_backend
from swintormer_kernels.testing.cases import cases_of
from swintormer_kernels.testing.denoiser_cases import LAYOUTS

CASES = [pytest.param(case, id=case.name) for case in cases_of("upsample_conv3x3") if case.tested]
SMALL = [case for case in CASES if case.values[0].name in ("batch 3, odd sizes", "NCHW, no bias", "columns apart")]
on, assert_as_good_as_the_reference = comparing(upsample_conv3x3)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", CASES)
def test_cases_agree_with_float64(case, isa, engine):
    engine.use_isa(isa)
    arguments, _ = case.make(1)
    assert_as_good_as_the_reference(arguments)
    assert on("cpu", arguments).is_contiguous(memory_format=torch.channels_last)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.data())
def test_any_shape_and_strides(data):
    if native.why_absent():
        pytest.skip(native.why_absent())
    channels, out = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 40))
    shape = data.draw(st.integers(0, 2)), channels, data.draw(st.integers(1, 9)), data.draw(st.integers(1, 11))
    x = LAYOUTS[data.draw(st.sampled_from(list(LAYOUTS)))](torch.randn(shape))
    bias = torch.randn(out) if data.draw(st.booleans()) else None
    assert_as_good_as_the_reference((x, UpsampleWeights(torch.randn(out, channels, 3, 3), bias)))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("sides", [(8, 8), (19, 25)])
def test_same_bits_for_any_thread_count_and_batch(sides, isa, engine):
    engine.use_isa(isa)
    x, conv = torch.randn(1, 96, *sides), UpsampleWeights(torch.randn(70, 96, 3, 3), torch.randn(70))
    outs = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        outs.append(on("cpu", (x, conv)))
    engine.use_own_threads(True)
    outs.append(on("cpu", (x, conv)))
    outs.append(on("cpu", (x.repeat(2, 1, 1, 1), conv))[1:])
    assert all(torch.equal(out, outs[0]) for out in outs)


def test_nan_stays_within_reach(extension):
    x, conv = torch.randn(1, 8, 9, 9), UpsampleWeights(torch.randn(4, 8, 3, 3))
    x[0, 0, 4, 4] = float("nan")
    assert torch.equal(on("cpu", (x, conv)).isnan(), on("reference", (x, conv)).isnan())


@pytest.mark.parametrize("case", SMALL)
def test_gradients_and_opcheck(case, extension):
    arguments, _ = case.make(0)
    grad = torch.randn(on("reference", arguments).shape)
    found = {}
    for name, backend, dtype in (("cpu", "cpu", None), ("plain", "reference", None), ("true", "reference", "double")):
        leaves, tensors = leaves_of(mapped(torch.Tensor.double, arguments) if dtype else arguments)
        with use_backend(backend):
            found[name] = torch.autograd.grad(upsample_conv3x3(*leaves), tensors, grad.to(leaves[0].dtype))
    for value, plain, true in zip(found["cpu"], found["plain"], found["true"], strict=True):
        assert error(value, true) <= 2 * error(plain, true) + EPS
    leaves, _ = leaves_of(arguments)
    torch.library.opcheck(module._run.default, (*module._SIGNATURE.flat(*leaves), "cpu"))


def test_compiles_to_one_graph_and_counts_the_direct_convolution(extension):
    torch._dynamo.reset()
    arguments, _ = SMALL[0].values[0].make(0)
    with use_backend("cpu"):
        compiled = torch.compile(upsample_conv3x3, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(*arguments), upsample_conv3x3(*arguments))
    for backend in ("reference", "cpu"):
        with FlopCounterMode(display=False) as counter, use_backend(backend):
            upsample_conv3x3(*arguments)
        assert counter.get_total_flops() == 2 * module.cost(*arguments).macs


@pytest.mark.parametrize(
    ("conv", "message"),
    [
        (UpsampleWeights(torch.zeros(4, 5, 3, 3)), r"weight must be \(C_out, C_in, 3, 3\)"),
        (UpsampleWeights(torch.zeros(4, 6, 1, 1)), "weight must be"),
        (UpsampleWeights(torch.zeros(4, 6, 3, 3), torch.zeros(6)), r"bias must be \(4,\)"),
    ],
)
def test_bad_arguments_get_one_clear_sentence(conv, message):
    with pytest.raises(ValueError, match=message):
        upsample_conv3x3(torch.zeros(2, 6, 3, 3), conv)


def test_the_binding_refuses_sizes_that_disagree(extension):
    x = torch.zeros(1, 4, 3, 5).contiguous(memory_format=torch.channels_last)
    out = torch.zeros(1, 4, 6, 10).contiguous(memory_format=torch.channels_last)
    panel, floats = extension.conv3x3_layout(1, 4, 6, 10, 1)
    weight, scratch = torch.zeros(-(-4 // panel) * panel * 9 * 4), torch.zeros(floats)
    conv, short = (extension.Conv(weight=dense(tensor)) for tensor in (weight, weight[1:]))
    call = functools.partial(extension.upsample_conv3x3, x=view(x), threads=1)
    call(out=view(out), conv=conv, conv_scratch=dense(scratch))
    with pytest.raises(ValueError, match="do not fit in shape"):
        call(out=view(x), conv=conv, conv_scratch=dense(scratch))
    with pytest.raises(ValueError, match="weight of the convolution"):
        call(out=view(out), conv=short, conv_scratch=dense(scratch))
    with pytest.raises(ValueError, match="scratch of the convolution"):
        call(out=view(out), conv=conv, conv_scratch=dense(scratch[1:]))


def test_it_is_public():
    assert sk.upsample_conv3x3 is upsample_conv3x3
    assert sk.UpsampleWeights is UpsampleWeights
