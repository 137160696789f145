"""What holds for every op on images alike: the cpu backend against float64, and that torch sees each as one op."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops import (
    BLOCK_OPS,
    EPS,
    ISAS,
    MODULES,
    any_layout,
    assert_forward,
    assert_gradients,
    leaves_of,
    mapped,
    on,
    public,
)
from torch.utils.flop_counter import FlopCounterMode

import swintormer_kernels as sk
from swintormer_kernels import native
from swintormer_kernels.records import ConvWeights, LinearWeights, ResBlockWeights, ShuffleWeights, UpsampleWeights
from swintormer_kernels.registry import BackendError, explain, use_backend
from swintormer_kernels.testing.cases import case_of, cases_of
from swintormer_kernels.testing.denoiser_cases import conv_weights, norm_weights, res_block_weights

BLOCK_SMALL = ("window 8, C 16", "one window, odd shift", "window 3, d 1, odd sizes")
SMALL = {
    "group_norm_silu": ("modulated, batch 3", "no affine", "columns apart"),
    "norm_projection": ("modulated, batch 3", "NCHW, no bias", "columns apart"),
    "norm_silu_conv3x3": ("modulated, batch 3", "plain, NCHW", "columns apart"),
    "res_block": ("modulated, batch 3", "plain, NCHW", "columns apart"),
    "conv3x3_shuffle": ("batch 3, odd sizes", "NCHW, no bias", "one channel for each pixel", "columns apart"),
    "upsample_conv3x3": ("batch 3, odd sizes", "NCHW, no bias", "columns apart"),
    **dict.fromkeys(BLOCK_OPS, BLOCK_SMALL),
}
DENOISER_OPS = [name for name in MODULES if name not in BLOCK_OPS]
WITHOUT_BACKWARD = [name for name in DENOISER_OPS if public(name).op.own_backward("cpu") is None]
IN_ROWS = (
    "conv3x3_shuffle",
    "norm_silu_conv3x3",
    "res_block",
    "upsample_conv3x3",
)  # their results lie in channels_last

EVERY = pytest.mark.parametrize("name", MODULES)
EVERY_CASE = pytest.mark.parametrize(
    ("name", "case"),
    [pytest.param(name, c, id=f"{name}, {c.name}") for name in MODULES for c in cases_of(name) if c.tested],
)


def small_cases(names):
    pairs = [(name, case_of(name, case)) for name in names for case in SMALL[name]]
    return pytest.mark.parametrize(("name", "case"), [pytest.param(*p, id=f"{p[0]}, {p[1].name}") for p in pairs])


def small(name, seed=0):
    """Arguments of the first small case."""
    return case_of(name, SMALL[name][0]).make(seed)[0]


# ---- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", ISAS)
@EVERY_CASE
def test_cases_agree_with_float64(name, case, isa, engine):
    engine.use_isa(isa)
    arguments, _ = case.make(1)
    out = assert_forward("cpu", public(name), arguments, EPS)
    if name in IN_ROWS:
        assert out.is_contiguous(memory_format=torch.channels_last)
    elif name != "norm_projection":  # whose result is no image
        assert out.stride() == torch.empty_like(arguments[0]).stride()


MOST = {  # groups, channels of a group, outputs, width
    "group_norm_silu": (5, 9, 1, 70),
    "norm_projection": (4, 40, 100, 21),
    "norm_silu_conv3x3": (4, 20, 40, 21),
    "res_block": (3, 20, 70, 21),
    "conv3x3_shuffle": (1, 70, 20, 21),
    "upsample_conv3x3": (1, 70, 40, 11),
}


def drawn(data, name):
    """Arguments of an op of the denoiser: any sizes, layout and parts of its records."""
    groups, each, out, width = (data.draw(st.integers(1, most)) for most in MOST[name])
    batch, height, channels = data.draw(st.integers(0, 3)), data.draw(st.integers(1, 17)), groups * each
    sides = height, width
    x = data.draw(any_layout((batch, channels, *sides)))
    norm = norm_weights(batch, channels, modulated=data.draw(st.booleans()))

    def some(record, *always):
        keep = {field: field in always or data.draw(st.booleans()) for field in record._fields}
        return type(record)(*(tensor if keep[field] else None for field, tensor in record._asdict().items()))

    if name == "group_norm_silu":
        return x, some(norm), groups, data.draw(st.sampled_from([1e-6, 1e-5, 0.1]))
    if name == "conv3x3_shuffle":
        shuffle = data.draw(st.sampled_from([1, 2]))
        out *= shuffle**2
        weights = ShuffleWeights(torch.randn(out, channels, 3, 3), torch.randn(out))
        return x, some(weights, "weight"), shuffle
    if name == "upsample_conv3x3":
        return x, some(UpsampleWeights(torch.randn(out, channels, 3, 3), torch.randn(out)), "weight")
    if name == "norm_projection":
        return x, norm, some(LinearWeights(torch.randn(out, channels), torch.randn(out)), "weight"), groups
    if name == "norm_silu_conv3x3":
        return x, norm, some(conv_weights(batch, channels, out, sides), "weight"), groups
    middle, out = groups * data.draw(st.integers(1, 15)), data.draw(st.sampled_from([channels, out]))
    block = res_block_weights(batch, channels, middle, out, modulated=data.draw(st.booleans()))
    return x, some(block, "conv1", "conv2", "shortcut"), groups, groups


def several(op, count=8):
    """The op with its weights in `count` orders of their inputs, stacked.

    What is drawn may have a single output, whose error in the reference can be 0 by luck: a bound in units of that
    error needs more than one sum.
    """

    def orders(x, *rest):
        rolls = (mapped(lambda t, by=by: t.roll(by, 1) if t.ndim > 1 else t, rest) for by in range(count))
        return torch.stack([op(x, *rolled) for rolled in rolls])

    return orders


@pytest.mark.parametrize("name", DENOISER_OPS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_shape_and_strides(name, data):
    if native.why_absent():
        pytest.skip(native.why_absent())
    arguments = drawn(data, name)
    assert_forward("cpu", several(public(name)), arguments, EPS)


def large(name, sides):
    """Arguments that make work for several threads."""
    x, norm = torch.randn(1, 96, *sides), norm_weights(1, 96, modulated=True)
    return {
        "norm_projection": lambda: (x, norm, LinearWeights(torch.randn(150, 96), torch.randn(150)), 8),
        "norm_silu_conv3x3": lambda: (x, norm, conv_weights(1, 96, 70, sides), 8),
        "res_block": lambda: (x, res_block_weights(1, 96, 32, 70, modulated=True), 8, 8),
        "conv3x3_shuffle": lambda: (x, ShuffleWeights(torch.randn(72, 96, 3, 3), torch.randn(72)), 2),
        "upsample_conv3x3": lambda: (x, UpsampleWeights(torch.randn(70, 96, 3, 3), torch.randn(70))),
        "swda_block": lambda: case_of("swda_block", "level2, C 96, shifted").make(0)[0],
    }[name]()


def twice(arguments):
    """The same image, and what belongs to it, two times."""
    x, *rest = arguments

    def both(record):
        fields = {"scale", "shift", "embedding", "skip"} & set(getattr(record, "_fields", ()))
        found = {field: getattr(record, field) for field in fields}
        return record._replace(**{f: torch.cat([t, t]) for f, t in found.items() if t is not None}) if found else record

    return torch.cat([x, x]), *map(both, rest)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("name", "sides"),
    [
        *(("norm_projection", sides) for sides in ((4, 5), (16, 16), (37, 50))),  # 48 pixels a block, some shared
        *(("norm_silu_conv3x3", sides) for sides in ((16, 16), (37, 50))),  # 4 blocks: shared by 3 threads, not by 2
        *(("res_block", sides) for sides in ((16, 16), (37, 50))),
        *(("conv3x3_shuffle", sides) for sides in ((16, 16), (37, 50))),
        *(("upsample_conv3x3", sides) for sides in ((8, 8), (19, 25))),
        ("swda_block", (32, 48)),  # 6 windows, which do not split over their insides; 3 of the next do
        ("swda_block", (16, 48)),
    ],
)
def test_same_bits_for_any_thread_count_and_batch(name, sides, isa, engine):
    engine.use_isa(isa)
    x, *rest = large(name, sides)
    arguments = (x[:, :, : sides[0], : sides[1]], *rest)
    outs = []
    for threads in (1, 2, 3, 4, 7):
        torch.set_num_threads(threads)
        outs.append(on("cpu", public(name), arguments))
    engine.use_own_threads(True)
    outs.append(on("cpu", public(name), arguments))
    outs.append(on("cpu", public(name), (arguments[0].contiguous(), *rest)))
    outs.append(on("cpu", public(name), twice(arguments))[1:])
    assert all(torch.equal(out, outs[0]) for out in outs)


@EVERY
def test_nan_stays_within_reach(name, extension):
    arguments = small(name)
    arguments[0][1, 3, 1, 2] = float("nan")
    spoilt = on("cpu", public(name), arguments).isnan()
    assert torch.equal(spoilt, on("reference", public(name), arguments).isnan())
    assert 0 < spoilt.sum() < spoilt.numel()


@pytest.mark.parametrize("name", DENOISER_OPS)
def test_every_weight_change_is_seen(name, extension):
    arguments = small(name)
    for tensor in leaves_of(arguments[1:])[1]:
        before = on("cpu", public(name), arguments)
        with torch.no_grad():
            tensor.add_(1)
        assert not torch.equal(on("cpu", public(name), arguments), before)
    assert_forward("cpu", public(name), arguments, EPS)


# ---- torch sees the op -----------------------------------------------------------------------------------------------


@small_cases(WITHOUT_BACKWARD)
def test_gradients(name, case, extension):
    arguments, _ = case.make(0)
    grad = torch.randn(on("reference", public(name), arguments).shape)
    assert_gradients("cpu", public(name), arguments, grad, EPS)


@small_cases(MODULES)
def test_opcheck(name, case, extension):
    leaves = mapped(lambda t: t.clone().requires_grad_(), case.make(0)[0])
    signature = MODULES[name]._SIGNATURE
    numbers = (1e-5,) * len(signature.floats)
    torch.library.opcheck(MODULES[name]._run.default, (*signature.flat(*leaves, *numbers), "cpu"))


@EVERY
def test_compiles_to_one_graph_and_gives_the_same_bits(name, extension):
    torch._dynamo.reset()
    op, arguments = public(name), small(name)
    with use_backend("cpu"):
        compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(*arguments), op(*arguments))
        leaves, tensors = leaves_of(arguments)
        grads = [torch.autograd.grad(function(*leaves).square().sum(), tensors) for function in (compiled, op)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


@EVERY
def test_exports_and_gives_the_same_bits(name, extension):
    x, *rest = small(name)

    class Call(torch.nn.Module):
        def forward(self, x):
            return public(name)(x, *rest)

    with use_backend("cpu"), torch.no_grad():
        program = torch.export.export(Call(), (x,))
        assert torch.equal(program.module()(x), public(name)(x, *rest))
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert called == [f"swintormer.{name}.default"]


@small_cases(name for name in MODULES if name != "group_norm_silu")  # which has no product
def test_flops_are_those_of_direct_products(name, case, extension):
    arguments, _ = case.make(0)
    for backend in ("reference", "cpu"):
        with FlopCounterMode(display=False) as counter:
            on(backend, public(name), arguments)
        assert counter.get_total_flops() == 2 * MODULES[name].cost(*arguments).macs


@EVERY
def test_other_dtypes_are_served_by_the_reference(name, extension):
    op = public(name)
    for dtype in (torch.float64, torch.half, *([] if name in BLOCK_OPS else [torch.bfloat16])):
        arguments = mapped(lambda t, to=dtype: t.to(to), small(name))
        assert op(*arguments).dtype == dtype
        explanation = explain(op, *arguments)
        assert explanation.backend == "reference"
        assert "takes float32" in explanation.reasons["cpu"]
        with use_backend("cpu"), pytest.raises(BackendError, match="takes float32"):
            op(*arguments)


# ---- selection and arguments -----------------------------------------------------------------------------------------


def explanation_of(name, channels, out, side, batch=1, trained=False):
    x = torch.randn(batch, channels, side, side, requires_grad=trained)
    if name == "res_block":
        return explain(public(name), x, res_block_weights(batch, channels, out, out), 4, 4)
    norm = norm_weights(batch, channels)
    if name == "conv3x3_shuffle":
        return explain(public(name), x, ShuffleWeights(torch.randn(out, channels, 3, 3)), 2)
    if name == "norm_projection":
        return explain(public(name), x, norm, LinearWeights(torch.randn(out, channels)), 4)
    return explain(public(name), x, norm, conv_weights(batch, channels, out, (side, side)), 4)


@pytest.mark.parametrize(
    ("name", "wins", "loses"),
    [
        ("norm_projection", [(640, 1920, 4)], [(64, 192, 4)]),
        (
            "norm_silu_conv3x3",
            [(32, 32, 32), (96, 96, 8), (32, 8, 32)],
            [(8, 32, 32), (64, 64, 1), (64, 3, 64), (64, 8, 32, 4)],
        ),
        ("conv3x3_shuffle", [(48, 96, 64), (48, 24, 64)], [(12, 32, 64), (48, 12, 64), (48, 96, 2)]),
        ("res_block", [(32, 32, 32), (96, 64, 16)], [(8, 32, 32), (64, 64, 1), (32, 4, 32)]),
    ],
)
def test_automatic_selection_passes_over_what_was_measured_to_lose(name, wins, loses, extension):
    assert {explanation_of(name, *sizes).backend for sizes in wins} == {"cpu"}
    assert {explanation_of(name, *sizes).backend for sizes in loses} == {"reference"}
    trained = explanation_of(name, *wins[0], trained=True)
    assert trained.backend == "reference"
    assert "computes the forward again" in trained.reasons["cpu"]
    with torch.no_grad():
        assert explanation_of(name, *wins[0], trained=True).backend == "cpu"


NORM, IMAGE = sk.GroupNormWeights(), torch.zeros(2, 6, 3, 3)
CALLS = {
    "group_norm_silu": {"x": IMAGE, "norm": NORM, "groups": 3, "eps": 1e-5},
    "norm_silu_conv3x3": {"x": IMAGE, "norm": NORM, "conv": ConvWeights(torch.zeros(4, 6, 3, 3)), "groups": 3},
    "norm_projection": {"x": IMAGE, "norm": NORM, "linear": LinearWeights(torch.zeros(4, 6)), "groups": 3},
    "conv3x3_shuffle": {"x": IMAGE, "conv": ShuffleWeights(torch.zeros(4, 6, 3, 3)), "shuffle": 2},
    "upsample_conv3x3": {"x": IMAGE, "conv": UpsampleWeights(torch.zeros(4, 6, 3, 3))},
    "res_block": {
        "x": IMAGE,
        "block": ResBlockWeights(torch.zeros(4, 6, 3, 3), torch.zeros(6, 4, 3, 3)),
        **{"groups1": 3, "groups2": 2, "eps1": 1e-5, "eps2": 1e-5},
    },
}


@pytest.mark.parametrize(
    ("name", "argument", "field", "value", "message"),
    [
        ("group_norm_silu", "x", None, (2, 6, 3), r"x must be \(B, C, H, W\)"),
        ("group_norm_silu", "groups", None, 4, "groups must divide the 6 channels of x, found 4"),
        ("group_norm_silu", "groups", None, 0, "groups must divide"),
        ("group_norm_silu", "eps", None, -1.0, "eps must be at least 0"),
        ("group_norm_silu", "norm", "weight", (5,), r"weight must be \(6,\)"),
        ("group_norm_silu", "norm", "scale", (6,), r"scale must be \(2, 6\)"),
        ("norm_silu_conv3x3", "conv", "weight", (4, 5, 3, 3), r"weight must be \(4, 6, 3, 3\)"),
        ("norm_silu_conv3x3", "conv", "weight", (4, 6, 1, 1), r"weight must be \(4, 6, 3, 3\)"),
        ("norm_silu_conv3x3", "conv", "bias", (6,), r"bias must be \(4,\)"),
        ("norm_silu_conv3x3", "conv", "embedding", (4,), r"embedding must be \(2, 4\)"),
        ("norm_silu_conv3x3", "conv", "skip", (2, 4, 3, 1), r"skip must be \(2, 4, 3, 3\)"),
        ("norm_projection", "linear", "weight", (4, 5), r"weight must be \(C_out, 6\), found \(4, 5\)"),
        ("norm_projection", "linear", "bias", (6,), r"bias must be \(4,\), found \(6,\)"),
        ("norm_projection", "groups", None, 4, "groups must divide the 6 channels"),
        ("conv3x3_shuffle", "conv", "weight", (4, 5, 3, 3), r"weight must be \(C_out, C_in, 3, 3\)"),
        ("conv3x3_shuffle", "conv", "bias", (6,), r"bias must be \(4,\)"),
        ("conv3x3_shuffle", "shuffle", None, 3, "must divide the 4 output channels, found 3"),
        ("conv3x3_shuffle", "shuffle", None, 0, "must divide the 4 output channels, found 0"),
        ("upsample_conv3x3", "conv", "weight", (4, 5, 3, 3), r"weight must be \(C_out, C_in, 3, 3\)"),
        ("upsample_conv3x3", "conv", "weight", (4, 6, 1, 1), "weight must be"),
        ("upsample_conv3x3", "conv", "bias", (6,), r"bias must be \(4,\)"),
        ("res_block", "x", None, (2, 6, 3), r"x must be \(B, C, H, W\)"),
        ("res_block", "groups1", None, 4, "groups1 must divide 6 channels, found 4"),
        ("res_block", "groups2", None, 3, "groups2 must divide 4 channels, found 3"),
        ("res_block", "eps2", None, -1.0, "eps2 must be at least 0"),
        ("res_block", "block", "conv1_bias", (6,), r"conv1_bias must be \(4,\)"),
        ("res_block", "block", "conv2", (6, 4, 1, 1), r"conv2 must be \(6, 4, 3, 3\)"),
        ("res_block", "block", "embedding", (4,), r"embedding must be \(2, 4\)"),
        ("res_block", "block", "shortcut", (6, 6), r"shortcut must be \(6, 6, 1, 1\)"),
        ("res_block", "block", "conv2", (5, 4, 3, 3), "needs a shortcut"),
        ("res_block", "block", "shortcut_bias", (6,), "needs a shortcut"),
    ],
)
def test_bad_arguments_get_one_clear_sentence(name, argument, field, value, message):
    call = dict(CALLS[name])
    value = torch.zeros(value) if isinstance(value, tuple) else value
    call[argument] = call[argument]._replace(**{field: value}) if field else value
    with pytest.raises(ValueError, match=message):
        public(name)(*call.values())


@EVERY
def test_it_is_public(name):
    assert getattr(sk, name) is public(name)
    assert all(getattr(sk, record.__name__) is record for record in MODULES[name]._SIGNATURE.records)
