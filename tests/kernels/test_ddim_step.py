"""ddim_step: every backend, instruction set and thread source against the formula in float64 and against diffusers."""

import math
import threading

import pytest
import torch
from ddim_step_bounds import EPS, SCHEDULE, assert_exact_up_to_rounding, double, exact, latents, rounding
from hypothesis import given, settings
from hypothesis import strategies as st
from ops import any_layout

from swintormer_kernels.ops.ddim_step import OP, PREDICTIONS, cost, ddim_step
from swintormer_kernels.records import Prediction
from swintormer_kernels.registry import BackendError, explain, use_backend
from swintormer_kernels.testing.cases import cases_of

BIG = (3, 5, 97, 101)  # 146955 elements: four workers' worth, and no multiple of any vector length


# ---- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [case for case in cases_of("ddim_step") if case.tested], ids=lambda case: case.name)
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


def test_noise_is_not_read_when_eta_is_zero(engine):
    z, noise_pred, _ = latents((4, 5))
    nothing = torch.full_like(z, math.nan)
    for backend in ("reference", "cpu"):
        with use_backend(backend):
            assert torch.equal(
                ddim_step(z, noise_pred, **SCHEDULE, noise=nothing), ddim_step(z, noise_pred, **SCHEDULE)
            )


# ---- layouts ---------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_shape_and_strides(extension, data):
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
def test_first_inversion_steps_do_not_cancel(engine, alpha_bar_t, alpha_bar_s, backend):
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
    assert OP.select(z, noise_pred) == "reference"
    assert "sparse" in explain(ddim_step, torch.zeros(2, 2).to_sparse(), torch.zeros(2, 2), **SCHEDULE).reasons["cpu"]


def test_cost_counts_what_the_formula_needs():
    z, noise_pred, noise = latents((2, 3))
    assert cost(z, noise_pred, **SCHEDULE) == (2 * 6, 3 * 6 * 4)
    assert cost(z, noise_pred, **SCHEDULE, clip=1.0) == (4 * 6, 3 * 6 * 4)
    assert cost(z, noise_pred, **SCHEDULE, eta=1.0, noise=noise) == (3 * 6, 4 * 6 * 4)
