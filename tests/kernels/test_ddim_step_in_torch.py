"""ddim_step as torch sees it: opcheck, gradients, torch.compile, export, vmap and functional transforms."""

import pytest
import torch
from ddim_step_bounds import EPS, SCHEDULE, double, latents

from swintormer_kernels.backends.reference.ddim_step import ddim_step as reference
from swintormer_kernels.backends.reference.ddim_step import ddim_step_backward
from swintormer_kernels.ops.ddim_step import PREDICTIONS, ddim_step
from swintormer_kernels.records import Prediction
from swintormer_kernels.registry import use_backend


@pytest.mark.parametrize(("eta", "clip"), [(0.0, None), (0.7, 0.8)])
def test_opcheck(eta, clip, extension):
    z, noise_pred, noise = (x.requires_grad_() for x in latents((2, 3, 4, 5)))
    schedule = torch.tensor([0.25, 0.4], dtype=torch.float64)
    args = (z, noise_pred, schedule, eta, clip, noise if eta else None)
    second = latents((2, 3, 4, 5), seed=3, count=1)[0].requires_grad_()
    torch.library.opcheck(torch.ops.swintormer.ddim_step.default, (*args, second, 3.0, "v_prediction", "cpu"))
    args = (*args, None, 1.0, "epsilon", "cpu")
    torch.library.opcheck(torch.ops.swintormer.ddim_step.default, args)
    channels_last = z.detach().contiguous(memory_format=torch.channels_last)
    fake = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.swintormer.ddim_step.default, (channels_last, *args[1:]), test_utils=fake)


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("clip", [None, 0.8])
@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_gradients_are_those_of_the_reference(guidance, eta, clip, kind, extension):
    def step(z, pred, noise=None, unconditional=None):
        options = {**SCHEDULE, "eta": eta, "clip": clip, "noise": noise}
        return ddim_step(z, pred, **options, prediction=Prediction(kind, unconditional, guidance))

    leaves = latents((2, 3, 8, 8), count=4)
    leaves = [leaves[0], leaves[1], leaves[2] if eta else None, leaves[3] if guidance > 1 else None]
    wanted = [x.requires_grad_() for x in leaves if x is not None]
    wanted64 = [x.detach().double().requires_grad_() for x in wanted]
    fresh = iter(wanted64)
    weight = latents((2, 3, 8, 8), seed=5, count=1)[0]
    with use_backend("cpu"):
        grads = torch.autograd.grad(step(*leaves), wanted, weight)
    with use_backend("reference"):
        out64 = step(*(None if x is None else next(fresh) for x in leaves))
        grads64 = torch.autograd.grad(out64, wanted64, double(weight))
    for grad, grad64 in zip(grads, grads64, strict=True):
        # Up to 8 roundings of terms at most (1 + 1/a)(1 + 1/b) = 9 times the weight's size; guidance triples them.
        assert ((double(grad) - grad64).abs() <= 8 * EPS / 2 * guidance * 9 * double(weight).abs()).all()


@pytest.mark.parametrize("clip", [None, 0.8])
def test_backward_formula_agrees_with_autograd_in_float64(clip):
    z, noise_pred, noise = (double(x).requires_grad_() for x in latents((50,)))
    grad = torch.randn(50, dtype=torch.float64)
    out = reference(z, noise_pred, 0.3, 0.5, 0.6, clip, noise)
    autograd = torch.autograd.grad(out, (z, noise_pred, noise), grad)
    bounded = None if clip is None else (z, noise_pred, clip)
    for ours, theirs in zip(ddim_step_backward(grad, bounded, 0.3, 0.5, 0.6), autograd, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_only_needed_gradients_are_made(extension):
    z, noise_pred, _ = latents((3, 4))
    noise_pred.requires_grad_()
    ddim_step(z, noise_pred, **SCHEDULE, clip=1.0).sum().backward()
    assert z.grad is None
    assert noise_pred.grad is not None


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_whole_schedule_compiles_to_two_graphs(backend, extension):
    torch._dynamo.reset()
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph

    compiled = torch.compile(ddim_step, fullgraph=True, backend=count)
    with use_backend(backend):
        for step in range(1, 20):
            options = {"alpha_bar_t": step / 20, "alpha_bar_s": (step + 1) / 20, "clip": 1.0}
            z, noise_pred, _ = latents((1, 4, 6 + step, 9), seed=step)  # and every size
            assert torch.equal(compiled(z, noise_pred, **options), ddim_step(z, noise_pred, **options))
    assert len(graphs) <= 3, "static, then sizes or numbers symbolic"


def test_inductor_compiles_forward_and_backward(extension):
    torch._dynamo.reset()
    compiled = torch.compile(ddim_step, fullgraph=True)
    for step in range(1, 12):
        options = {"alpha_bar_t": step / 20, "alpha_bar_s": (step + 1) / 20, "clip": 1.0}
        z, noise_pred, _ = (x.requires_grad_() for x in latents((1, 4, 6, 9), seed=step))
        with use_backend("cpu"):
            out = compiled(z, noise_pred, **options)
            plain = ddim_step(z, noise_pred, **options)
        assert torch.equal(out, plain)
        for ours, theirs in zip(
            torch.autograd.grad(out.sum(), (z, noise_pred)),
            torch.autograd.grad(plain.sum(), (z, noise_pred)),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs)


def test_export(extension):
    class Step(torch.nn.Module):
        def forward(self, z, noise_pred):
            return ddim_step(z, noise_pred, **SCHEDULE, clip=1.0)

    z, noise_pred, _ = latents((1, 4, 6, 9))
    program = torch.export.export(Step(), (z, noise_pred))
    assert torch.equal(program.module()(z, noise_pred), ddim_step(z, noise_pred, **SCHEDULE, clip=1.0))


@pytest.mark.parametrize("dims", [(0, 0, 0, 0), (1, None, 2, None), (None, 0, None, 1), (-1, 1, 0, 2)])
def test_vmap(dims, extension):
    tensors = latents((3, 4, 5), count=4)
    mapped = [
        x if dim is None else x.unsqueeze(0).repeat(2, 1, 1, 1).movedim(0, dim)
        for x, dim in zip(tensors, dims, strict=True)
    ]
    for x, dim in zip(mapped, dims, strict=True):
        if dim is not None:
            x.select(dim, 1).mul_(0.5)

    def step(z, noise_pred, noise, unconditional):
        guided = Prediction("epsilon", unconditional, 3.0)
        return ddim_step(z, noise_pred, **SCHEDULE, eta=0.5, clip=1.0, noise=noise, prediction=guided)

    out = torch.vmap(step, in_dims=dims)(*mapped)
    one_by_one = [
        step(*(x if dim is None else x.select(dim, i) for x, dim in zip(mapped, dims, strict=True))) for i in range(2)
    ]
    assert torch.equal(out, torch.stack(one_by_one))
