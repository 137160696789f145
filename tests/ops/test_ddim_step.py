"""ddim_step: every backend, instruction set and thread source against the formula in float64 and against diffusers."""

import math
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swintormer_kernels.backends.reference.ddim_step import Prediction, ddim_sigma, ddim_step_backward
from swintormer_kernels.backends.reference.ddim_step import ddim_step as reference
from swintormer_kernels.ops.ddim_step import OP, PREDICTIONS, cases, cost, ddim_step
from swintormer_kernels.registry import BackendError, explain, use_backend

SCHEDULE = {"alpha_bar_t": 0.25, "alpha_bar_s": 0.4}
BIG = (3, 5, 97, 101)  # 146955 elements: four workers' worth, and no multiple of any vector length
EPS = torch.finfo(torch.float32).eps


def double(x):
    return x.double() if isinstance(x, torch.Tensor) else x


def exact(z, noise_pred, noise=None, prediction=Prediction(), **options):  # noqa: B008
    """The reference in float64."""
    prediction = prediction._replace(unconditional=double(prediction.unconditional))
    with use_backend("reference"):
        return ddim_step(double(z), double(noise_pred), noise=double(noise), prediction=prediction, **options)


def sizes_of_terms(z, noise_pred, a, b, prediction):
    """|z|, and the largest that x0 and e and what they are put together from can be."""
    z, p = double(z).abs(), double(noise_pred).abs()
    if prediction.unconditional is not None:
        u = double(prediction.unconditional).abs()
        p = u + abs(prediction.guidance_scale) * (p + u)
    if prediction.kind == "epsilon":
        return z, (z + b * p) / a, p
    return (z, p, (z + a * p) / b) if prediction.kind == "sample" else (z, a * z + b * p, a * p + b * z)


def rounding(z, noise_pred, *, alpha_bar_t, alpha_bar_s, eta=0.0, clip=None, noise=None, **options):
    """Bound of the rounding error of one element: 8 operations of half an ulp, each of the largest term's size.

    Guidance is 3 more. `options`: the prediction, and the dtype that is rounded to, float32 by default.
    """
    prediction, dtype = options.get("prediction", Prediction()), options.get("dtype", torch.float32)
    eps = torch.finfo(dtype).eps
    a, b = math.sqrt(alpha_bar_t), math.sqrt(1 - alpha_bar_t)
    sigma = ddim_sigma(alpha_bar_t, alpha_bar_s, eta)
    d = math.sqrt(abs(1 - alpha_bar_s - sigma**2))
    z, x0, implied = sizes_of_terms(z, noise_pred, a, b, prediction)
    if clip is not None:
        implied = (z + a * x0) / b
    # d itself is the root of a difference in float64, whose rounding weighs more the smaller d is.
    d_error = torch.finfo(torch.float64).eps / d if d else 0.0
    size = math.sqrt(alpha_bar_s) * x0 + (d + d_error / eps) * implied
    if noise is not None and eta > 0:
        size = size + sigma * double(noise).abs()
    return (8 if prediction.unconditional is None else 11) * eps / 2 * size


def assert_exact_up_to_rounding(out, z, noise_pred, **options):
    excess = (double(out) - exact(z, noise_pred, **options)).abs() - rounding(z, noise_pred, **options)
    assert out.shape == z.shape
    assert not out.isnan().any(), "an element that nobody wrote"
    assert (excess <= 0).all(), f"beyond the rounding bound by {excess.max().item():.3g}"


def latents(shape, seed=0, count=3):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


# ---- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [case for case in cases() if case.tested], ids=lambda case: case.name)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_cases_agree_with_float64(case, backend, extension):
    (z, noise_pred), options = case.make(1)
    with use_backend(backend):
        out = ddim_step(z, noise_pred, **options)
    assert_exact_up_to_rounding(out, z, noise_pred, **options)
    assert out.stride() == torch.empty_like(z).stride()


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("timestep", [1, 51, 501, 951])
def test_agrees_with_diffusers(timestep, kind, eta, clip):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.0015,
        beta_end=0.0155,
        beta_schedule="scaled_linear",
        prediction_type=kind,
        clip_sample=clip is not None,
        clip_sample_range=clip or 1.0,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    scheduler.set_timesteps(20)
    assert timestep in scheduler.timesteps
    alphas = scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    earlier = timestep - 50
    options = {
        "alpha_bar_t": alphas[timestep].item(),
        "alpha_bar_s": (alphas[earlier] if earlier >= 0 else scheduler.final_alpha_cumprod).item(),
        "eta": eta,
        "clip": clip,
    }
    z, noise_pred, noise, unconditional = latents((2, 3, 8, 8), count=4)
    options["prediction"] = Prediction(kind, unconditional, 3.0)
    theirs = scheduler.step(  # as diffusers' pipelines: guided, then stepped
        double(unconditional) + 3.0 * (double(noise_pred) - double(unconditional)),
        timestep,
        double(z),
        eta=eta,
        use_clipped_model_output=clip is not None,
        variance_noise=double(noise) if eta else None,
    ).prev_sample
    ours64 = exact(z, noise_pred, noise, **options)
    bound64 = rounding(z, noise_pred, noise=noise, dtype=torch.float64, **options)
    assert ((ours64 - theirs).abs() <= 2 * bound64).all(), "two float64 computations, each within the bound"
    ours = ddim_step(z, noise_pred, noise=noise, **options)
    assert ((double(ours) - theirs).abs() <= rounding(z, noise_pred, noise=noise, **options) + bound64).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_served_by_the_reference_and_rounded_once(dtype):
    z, noise_pred, noise = (x.to(dtype) for x in latents((2, 3, 8, 8)))
    options = {**SCHEDULE, "eta": 0.5, "clip": 1.0, "noise": noise}
    out = ddim_step(z, noise_pred, **options)
    assert out.dtype == dtype
    assert explain(ddim_step, z, noise_pred, **options).backend == "reference"
    wide = rounding(z, noise_pred, dtype=torch.promote_types(dtype, torch.float32), **options)
    error = (double(out) - exact(z, noise_pred, **options)).abs()
    assert (error <= wide + torch.finfo(dtype).eps / 2 * double(out).abs() * (1 + EPS)).all()


def test_mixed_dtypes_keep_the_latents_dtype():
    z, noise_pred, _ = latents((2, 3, 8, 8))
    out = ddim_step(z, noise_pred.bfloat16(), **SCHEDULE)
    assert out.dtype == torch.float32
    assert_exact_up_to_rounding(out, z, noise_pred.bfloat16(), **SCHEDULE)


def test_inversion_step_undoes_the_step():
    z, noise_pred, _ = latents((2, 3, 8, 8))
    there = ddim_step(z, noise_pred, **SCHEDULE)
    back = ddim_step(there, noise_pred, alpha_bar_t=SCHEDULE["alpha_bar_s"], alpha_bar_s=SCHEDULE["alpha_bar_t"])
    first = rounding(z, noise_pred, **SCHEDULE)  # shrinks on the way back, as alpha-bar does
    second = rounding(there, noise_pred, alpha_bar_t=SCHEDULE["alpha_bar_s"], alpha_bar_s=SCHEDULE["alpha_bar_t"])
    assert ((back - z).abs() <= first + second).all()


@pytest.mark.parametrize("clip", [None, 1.0])
def test_last_step_gives_x0(clip):
    z, noise_pred, noise = latents((2, 3, 8, 8))
    out = ddim_step(z, noise_pred, alpha_bar_t=0.25, alpha_bar_s=1.0, eta=1.0, clip=clip, noise=noise)
    x0 = (double(z) - math.sqrt(0.75) * double(noise_pred)) / 0.5
    if clip is not None:
        x0 = x0.clamp(-clip, clip)
    assert ((double(out) - x0).abs() <= rounding(z, noise_pred, alpha_bar_t=0.25, alpha_bar_s=1.0, clip=clip)).all()


def test_nan_stays_where_it_was_and_infinity_is_bounded(extension):
    z, noise_pred, _ = latents((40,))
    z[7], z[20], noise_pred[30] = math.nan, math.inf, math.nan
    out = ddim_step(z, noise_pred, **SCHEDULE, clip=1.0)
    assert out.isnan().nonzero().flatten().tolist() == [7, 30]
    assert torch.equal(out.isinf(), exact(z, noise_pred, **SCHEDULE, clip=1.0).isinf())


def test_noise_is_not_read_when_eta_is_zero():
    z, noise_pred, _ = latents((4, 5))
    nothing = torch.full_like(z, math.nan)
    for backend in ("reference", "cpu"):
        with use_backend(backend):
            assert torch.equal(
                ddim_step(z, noise_pred, **SCHEDULE, noise=nothing), ddim_step(z, noise_pred, **SCHEDULE)
            )


# ---- layouts ---------------------------------------------------------------------------------------------------------


@st.composite
def any_layout(draw, shape):
    """A float32 tensor of `shape`: permuted, cut out of a larger one, or expanded."""
    rank = len(shape)
    order = draw(st.permutations(range(rank)))
    steps = [draw(st.sampled_from([1, 1, 2, 3])) for _ in range(rank)]
    offsets = [draw(st.integers(0, 2)) for _ in range(rank)]
    expanded = [draw(st.sampled_from([False, False, False, True])) for _ in range(rank)]
    extent = [1 if e else o + s * n for n, s, o, e in zip(shape, steps, offsets, expanded, strict=True)]
    seed = draw(st.integers(0, 2**16))
    base = torch.randn([extent[i] for i in order], generator=torch.Generator().manual_seed(seed))
    base = base.permute([order.index(i) for i in range(rank)])
    index = tuple(
        slice(None) if e else slice(o, o + s * n, s) for n, s, o, e in zip(shape, steps, offsets, expanded, strict=True)
    )
    return base[index].expand(shape)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_shape_and_strides(data):
    shape = data.draw(st.lists(st.sampled_from([0, 1, 1, 2, 3, 5, 8, 17]), max_size=5).map(tuple))
    z, noise_pred, noise = (data.draw(any_layout(shape)) for _ in range(3))
    unconditional = data.draw(st.none() | any_layout(shape))
    kind = data.draw(st.sampled_from(PREDICTIONS))
    prediction = Prediction(kind, unconditional, data.draw(st.sampled_from([0.0, 1.0, 7.5, -2.0])))
    eta = data.draw(st.sampled_from([0.0, 0.3, 1.0]))
    clip = data.draw(st.sampled_from([None, 0.7]))
    alpha_bar_t = data.draw(st.one_of(st.floats(0.004, 0.99), st.sampled_from([0.9985, 0.9999, 1 - 1e-6])))
    earliest = 0.004 if eta == 0.0 else alpha_bar_t  # below alpha_bar_t is an inversion step
    options = {"alpha_bar_t": alpha_bar_t, "alpha_bar_s": data.draw(st.floats(earliest, 1.0)), "clip": clip}
    with use_backend("cpu"):
        out = ddim_step(z, noise_pred, **options, eta=eta, noise=noise, prediction=prediction)
    assert out.stride() == torch.empty_like(z).stride()
    assert_exact_up_to_rounding(out, z, noise_pred, **options, eta=eta, noise=noise, prediction=prediction)


@pytest.mark.parametrize(("alpha_bar_t", "alpha_bar_s"), [(0.9985, 0.9), (0.9999, 0.5), (1 - 1e-6, 0.5)])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_first_inversion_steps_do_not_cancel(alpha_bar_t, alpha_bar_s, backend):
    z, noise_pred, _ = latents((4, 33, 17))
    options = {"alpha_bar_t": alpha_bar_t, "alpha_bar_s": alpha_bar_s}
    with use_backend(backend):
        assert_exact_up_to_rounding(ddim_step(z, noise_pred, **options), z, noise_pred, **options)


def test_many_dimensions():
    z, noise_pred, _ = latents([1] * 59 + [2] * 5)
    assert_exact_up_to_rounding(ddim_step(z, noise_pred, **SCHEDULE), z, noise_pred, **SCHEDULE)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "expanded", "mixed"])
def test_layouts_give_the_same_bits(layout, engine):
    z, noise_pred, noise = latents(BIG)
    expected = ddim_step(z, noise_pred, **SCHEDULE, eta=0.5, clip=1.0, noise=noise)
    if layout == "channels_last":
        z, noise_pred, noise = (x.contiguous(memory_format=torch.channels_last) for x in (z, noise_pred, noise))
    elif layout == "transposed":
        z, noise_pred, noise = (x.mT.contiguous().mT for x in (z, noise_pred, noise))
    elif layout == "mixed":
        noise_pred, noise = noise_pred.contiguous(memory_format=torch.channels_last), noise.mT.contiguous().mT
    elif layout == "expanded":
        noise_pred = noise_pred[:, :1].expand(BIG)
        expected = ddim_step(z, noise_pred.contiguous(), **SCHEDULE, eta=0.5, clip=1.0, noise=noise)
    out = ddim_step(z, noise_pred, **SCHEDULE, eta=0.5, clip=1.0, noise=noise)
    assert torch.equal(out, expected)
    assert out.stride() == z.stride()


# ---- instruction sets and threads ------------------------------------------------------------------------------------


def run_native(extension, isa, threads, own):
    extension.use_isa(isa)
    extension.use_own_threads(own)
    torch.set_num_threads(threads)
    z, noise_pred, noise = latents(BIG)
    with use_backend("cpu"):
        return ddim_step(z, noise_pred, **SCHEDULE, eta=0.5, clip=1.0, noise=noise)


def test_every_instruction_set_and_thread_count(engine):
    z, noise_pred, noise = latents(BIG)
    assert "portable" in engine.supported_isas()
    for isa in engine.supported_isas():
        alone = run_native(engine, isa, 1, False)
        assert engine.isa() == isa
        assert_exact_up_to_rounding(alone, z, noise_pred, **SCHEDULE, eta=0.5, clip=1.0, noise=noise)
        for threads in (2, 3, 4):
            for own in (False, True):
                assert torch.equal(run_native(engine, isa, threads, own), alone), (isa, threads, own)


def test_instruction_sets_that_fuse_give_the_same_bits(engine):
    fused = [isa for isa in engine.supported_isas() if isa != "portable"]
    if len(fused) < 2:
        pytest.skip(f"this machine runs {fused} beside the portable build")
    results = [run_native(engine, isa, 1, False) for isa in fused]
    assert all(torch.equal(result, results[0]) for result in results)


def test_the_threads_are_those_of_torch(engine):
    if "OpenMP" not in torch.__config__.parallel_info().split("ATen parallel backend:")[1]:
        pytest.skip("this torch has no OpenMP")
    if "libgomp" not in (maps := open("/proc/self/maps").read()) and "omp" not in maps:  # noqa: SIM115
        pytest.skip("no OpenMP runtime is loaded")
    assert engine.thread_source() == "openmp"


@pytest.mark.parametrize("own", [False, True])
def test_calls_from_several_threads_at_once(engine, own):
    expected = run_native(engine, engine.isa(), 2, own)
    wrong = []

    def call():
        for _ in range(5):
            if not torch.equal(run_native(engine, engine.isa(), 2, own), expected):
                wrong.append(threading.get_ident())

    callers = [threading.Thread(target=call) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


# ---- torch sees the op -----------------------------------------------------------------------------------------------


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
def test_gradients_of_every_prediction_and_of_its_guidance(clip, kind, extension):
    def step(z, pred, noise, unconditional):
        options = {**SCHEDULE, "eta": 0.7, "clip": clip, "noise": noise}
        return ddim_step(z, pred, **options, prediction=Prediction(kind, unconditional, 3.0))

    leaves = [x.requires_grad_() for x in latents((2, 3, 8, 8), count=4)]
    leaves64 = [x.detach().double().requires_grad_() for x in leaves]
    weight = latents((2, 3, 8, 8), seed=5, count=1)[0]
    with use_backend("cpu"):
        grads = torch.autograd.grad(step(*leaves), leaves, weight)
    with use_backend("reference"):
        grads64 = torch.autograd.grad(step(*leaves64), leaves64, double(weight))
    for grad, grad64 in zip(grads, grads64, strict=True):
        # As below, and guidance triples them.
        assert ((double(grad) - grad64).abs() <= 8 * EPS / 2 * 3 * 9 * double(weight).abs()).all()


@pytest.mark.parametrize("clip", [None, 0.8])
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_gradients_are_those_of_the_reference(eta, clip, extension):
    leaves = [x.requires_grad_() for x in latents((2, 3, 8, 8))]
    leaves64 = [x.detach().double().requires_grad_() for x in leaves]
    weight = latents((2, 3, 8, 8), seed=5, count=1)[0]
    used = 3 if eta else 2
    with use_backend("cpu"):
        out = ddim_step(leaves[0], leaves[1], **SCHEDULE, eta=eta, clip=clip, noise=leaves[2])
    grads = torch.autograd.grad(out, leaves[:used], weight)
    out64 = exact(leaves64[0], leaves64[1], leaves64[2], **SCHEDULE, eta=eta, clip=clip)
    for grad, grad64 in zip(grads, torch.autograd.grad(out64, leaves64[:used], double(weight)), strict=True):
        # Up to 8 roundings of terms at most (1 + 1/a)(1 + 1/b) = 9 times the weight's size.
        assert ((double(grad) - grad64).abs() <= 8 * EPS / 2 * 9 * double(weight).abs()).all()


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

    with use_backend("cpu"):
        out = torch.vmap(step, in_dims=dims)(*mapped)
        one_by_one = [
            step(*(x if dim is None else x.select(dim, i) for x, dim in zip(mapped, dims, strict=True)))
            for i in range(2)
        ]
    assert torch.equal(out, torch.stack(one_by_one))


def test_functional_gradients_go_to_the_reference(extension):
    z, noise_pred, _ = latents((2, 6))

    def loss(x, e):
        return ddim_step(x, e, **SCHEDULE, clip=1.0).square().sum()

    leaf = z.clone().requires_grad_()
    with use_backend("reference"):
        loss(leaf, noise_pred).backward()
    assert torch.equal(torch.func.grad(loss)(z, noise_pred), leaf.grad)
    assert torch.equal(torch.vmap(torch.func.grad(loss))(z, noise_pred), leaf.grad)
    assert torch.equal(torch.func.grad(lambda x: torch.vmap(loss)(x, noise_pred).sum())(z), leaf.grad)
    with use_backend("cpu"), pytest.raises(BackendError, match=r"torch\.func\.grad"):
        torch.func.grad(loss)(z, noise_pred)


# ---- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise_pred": torch.zeros(3)}, r"noise_pred must have z's shape \(2, 3\)"),
        ({"noise": torch.zeros(2), "eta": 0.5}, "noise must have z's shape"),
        ({"z": torch.zeros(2, 3, dtype=torch.int64)}, "floating point"),
        ({"alpha_bar_t": 0.0}, "alpha_bar_t must lie strictly between 0 and 1, found 0.0"),
        ({"alpha_bar_t": 1.0}, "alpha_bar_t"),
        ({"alpha_bar_t": math.nan}, "alpha_bar_t"),
        ({"alpha_bar_s": 1.1}, "alpha_bar_s"),
        ({"eta": 1.5}, r"eta must lie in \[0, 1\]"),
        ({"eta": 0.5}, "pass `noise`"),
        ({"eta": 0.5, "noise": torch.zeros(2, 3), "alpha_bar_s": 0.1}, "inversion step"),
        ({"clip": 0.0}, "clip must be above 0"),
        ({"prediction": Prediction("noise")}, "one of epsilon, sample, v_prediction, found 'noise'"),
        ({"prediction": Prediction(unconditional=torch.zeros(2))}, "unconditional must have z's shape"),
    ],
)
def test_bad_arguments_get_one_clear_sentence(change, message):
    z, noise_pred, _ = latents((2, 3))
    arguments = {"z": z, "noise_pred": noise_pred, **SCHEDULE, **change}
    with pytest.raises(ValueError, match=message):
        ddim_step(arguments.pop("z"), arguments.pop("noise_pred"), **arguments)


def test_a_backend_asked_for_by_name_does_not_give_way(extension):
    z, noise_pred, _ = (double(x) for x in latents((2, 3)))
    with use_backend("cpu"), pytest.raises(BackendError, match=r"takes float32, found torch\.float64"):
        ddim_step(z, noise_pred, **SCHEDULE)
    with use_backend("cuda"), pytest.raises(BackendError, match="not written yet"):
        ddim_step(z, noise_pred, **SCHEDULE)
    assert OP.select(z, noise_pred) == "reference"
    assert "sparse" in explain(ddim_step, torch.zeros(2, 2).to_sparse(), torch.zeros(2, 2), **SCHEDULE).reasons["cpu"]


def test_the_binding_refuses_views_that_disagree(extension):
    x, y = torch.zeros(4), torch.zeros(5)
    views = [(t.data_ptr(), t.shape, t.stride()) for t in (x, y)]
    eight = (1.0,) * 8
    with pytest.raises(ValueError, match="differ in shape"):
        extension.ddim_step(views[0], views[0], views[1], None, None, eight, 1)
    with pytest.raises(ValueError, match="differ in shape"):
        extension.ddim_step(views[0], views[0], views[0], None, views[1], eight, 1)
    with pytest.raises(ValueError, match="one stride for each size"):
        extension.ddim_step((x.data_ptr(), (4,), ()), views[0], views[0], None, None, eight, 1)
    with pytest.raises(ValueError, match="eight coefficients"):
        extension.ddim_step(views[0], views[0], views[0], None, None, eight[:7], 1)


def test_cost_counts_what_the_formula_needs():
    z, noise_pred, noise = latents((2, 3))
    assert cost(z, noise_pred, **SCHEDULE) == (2 * 6, 3 * 6 * 4)
    assert cost(z, noise_pred, **SCHEDULE, clip=1.0) == (4 * 6, 3 * 6 * 4)
    assert cost(z, noise_pred, **SCHEDULE, eta=1.0, noise=noise) == (3 * 6, 4 * 6 * 4)
