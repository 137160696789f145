"""Forward-mode AD and torch.func around every op: the reference serves, other backends refuse with the reason."""

import importlib

import pytest
import torch
from torch.autograd import forward_ad

import swintormer_kernels as sk
from swintormer_kernels.registry import BackendError, explain, use_backend
from swintormer_kernels.testing.cases import cases_of
from swintormer_kernels.transforms import constant_in_compiled_code

pytestmark = pytest.mark.usefixtures("one_thread", "extension")

OPS = {
    "conv3x3_shuffle": "batch 3, odd sizes",
    "ddim_step": "odd sizes, sliced, x0, guided",
    "gated_ffn": "window 8, C 16",
    "group_norm_silu": "modulated, batch 3",
    "norm_projection": "modulated, batch 3",
    "norm_silu_conv3x3": "modulated, batch 3",
    "res_block": "modulated, batch 3",
    "swda_attention": "window 8, C 16",
    "swda_block": "window 8, C 16",
    "upsample_conv3x3": "batch 3, odd sizes",
}


@pytest.fixture(params=OPS)
def call(request, monkeypatch):
    """(function of x alone, its x, the public op, all its arguments); the cpu backend is what it gets outside."""
    module = importlib.import_module(f"swintormer_kernels.ops.{request.param}")
    case = next(case for case in cases_of(module.OP.name) if case.name == OPS[request.param])
    (x, *rest), options = case.make(0)
    op = getattr(sk, request.param)
    monkeypatch.setattr(op.op, "slower", {})  # however small, the cpu backend is preferred
    assert explain(op, x, *rest, **options).backend == "cpu"
    return lambda x: op(x, *rest, **options), x, op, (rest, options)


def on_reference(function, *arguments):
    with use_backend("reference"):
        return function(*arguments)


def dual(function, x, tangent):
    """Value and tangent by torch.autograd.forward_ad."""
    with forward_ad.dual_level():
        return tuple(forward_ad.unpack_dual(function(forward_ad.make_dual(x, tangent))))


def jvp(function, x, tangent):
    return torch.func.jvp(function, (x,), (tangent,))


def vmap(function, x, y):
    return torch.vmap(function)(torch.stack([x, y]))


def grad(function):
    return torch.func.grad(lambda x: function(x).square().sum())


TRANSFORMS = {
    "forward_ad": dual,
    "jvp": jvp,
    "vmap": vmap,
    "vmap over the last dimension": lambda f, x, y: torch.vmap(f, -1)(torch.stack([x, y], -1)),
    "grad": lambda f, x, _: grad(f)(x),
    "vmap of grad": lambda f, x, y: vmap(grad(f), x, y),
    "grad of vmap": lambda f, x, y: grad(torch.vmap(f))(torch.stack([x, y])),
    "jvp of grad": lambda f, x, y: jvp(grad(f), x, y),
    "vmap of jvp": lambda f, x, y: vmap(lambda tangent: jvp(f, x, tangent), x, y),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_automatic_choice_serves_a_transform_by_the_reference(transform, call):
    function, x, *_ = call
    apply, tangent = TRANSFORMS[transform], torch.randn_like(x)
    found, expected = apply(function, x, tangent), on_reference(apply, function, x, tangent)
    for ours, theirs in zip(*((t if isinstance(t, tuple) else (t,)) for t in (found, expected)), strict=True):
        assert theirs is not None
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=False)


def test_results_of_transforms_are_those_of_single_calls_and_of_autograd(call):
    function, x, *_ = call
    mapped = torch.vmap(function)(torch.stack([x, 2 * x]))
    torch.testing.assert_close(mapped, torch.stack([on_reference(function, x), on_reference(function, 2 * x)]))
    leaf, tangent, weight = x.clone().requires_grad_(), torch.randn_like(x), torch.randn_like(function(x))
    (gradient,) = torch.autograd.grad(on_reference(function, leaf), leaf, weight)
    terms = (dual(function, x, tangent)[1] * weight).double()
    rounding = torch.finfo(torch.float32).eps * x.numel() * terms.abs().sum()
    assert ((gradient.double() * tangent).sum() - terms.sum()).abs() <= rounding  # <J^T w, t> = <w, J t>


@pytest.mark.parametrize(
    ("transform", "named"), [("forward_ad", r"torch\.autograd\.forward_ad"), ("jvp", r"torch\.func"), ("vmap", "vmap")]
)
def test_a_backend_asked_for_by_name_refuses_a_transform(transform, named, call):
    function, x, *_ = call
    with use_backend("cpu"), pytest.raises(BackendError, match=named):
        TRANSFORMS[transform](function, x, torch.randn_like(x))


def test_explain_names_the_transform(call):
    _, x, op, (rest, options) = call
    seen = []

    def ask(x):
        seen.append(explain(op, x, *rest, **options))
        return x

    torch.vmap(ask)(x[None])
    dual(ask, x, torch.randn_like(x))
    assert [explanation.backend for explanation in seen] == ["reference"] * 2
    assert "torch.func" in seen[0].reasons["cpu"]
    assert "forward-mode AD" in seen[1].reasons["cpu"]
    assert explain(op, x, *rest, **options).backend == "cpu", "only while the transform is at work"


def test_compiled_code_follows_transforms_inside_and_around_it(call):
    function, x, *_ = call
    images = torch.stack([x, torch.randn_like(x)])
    torch._dynamo.reset()
    mapped = torch.compile(torch.vmap(function), fullgraph=True, backend="eager")
    torch.testing.assert_close(mapped(images), on_reference(torch.vmap(function), images), rtol=0, atol=0)
    compiled = torch.compile(function, fullgraph=True, backend="eager")
    with use_backend("cpu"):
        expected = function(x)
    assert torch.equal(compiled(x), expected)
    tangent = torch.randn_like(x)
    found = dual(compiled, x, tangent)[1]
    assert torch.equal(found, on_reference(dual, function, x, tangent)[1])
    assert torch.equal(compiled(x), expected)


def test_a_block_follows_transforms_of_its_parameters(monkeypatch):
    block = sk.nn.Block(16, 1, 8, 4).eval()
    x, parameters = torch.randn(1, 16, 16, 16), dict(block.named_parameters())
    tangents = {name: torch.randn_like(parameter) for name, parameter in parameters.items()}

    def run(parameters):
        return torch.func.functional_call(block, parameters, (x,))

    def pushed():
        return torch.func.jvp(run, (parameters,), (tangents,))

    def ensemble():
        stacked = {name: torch.stack([parameter, tangents[name]]) for name, parameter in parameters.items()}
        return torch.vmap(run)(stacked)

    def by_forward_ad():
        with forward_ad.dual_level():
            duals = {name: forward_ad.make_dual(parameter, tangents[name]) for name, parameter in parameters.items()}
            return tuple(forward_ad.unpack_dual(run(duals)))

    with torch.no_grad():
        for transformed in (pushed, ensemble, by_forward_ad):
            torch.testing.assert_close(transformed(), on_reference(transformed))


def test_constants_are_marked_as_torch_marks_them():
    """Ours does not import the compiler."""

    def one() -> int:
        return 1

    def other() -> int:
        return 1

    marked, expected = constant_in_compiled_code(one), torch.compiler.assume_constant_result(other)
    assert marked is one
    assert vars(marked) == vars(expected) != {}
