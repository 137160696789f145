"""The sampler: diffusers' own steps, bits that depend on image and seed alone, pieces, and the split convolution."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel
from priors import AUTOENCODER, DENOISER, TINY, tiny

import swintormer_kernels as sk
from swintormer.errors import SwintormerError
from swintormer.execution.tiling import make_grid
from swintormer.prior import model
from swintormer.prior.checkpoint import make_prior
from swintormer.prior.config import PRIORS, PriorConfig, Sampling
from swintormer.prior.model import Sampler, SplitConv
from swintormer.prior.threads import one_thread_each
from swintormer_kernels.registry import asked_backend

pytestmark = pytest.mark.usefixtures("one_thread")
EPSILON = torch.finfo(torch.float32).eps


@pytest.fixture(scope="module")
def prior():
    return tiny()


def image(height: int = 48, width: int = 64, count: int = 1, seed: int = 5) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def by_diffusers(prior, picture: torch.Tensor, steps: int, seed: int, eta: float) -> torch.Tensor:
    """The same sample with UNet2DModel on concatenated input and DDIMScheduler.step, in float64."""
    config = {name: DENOISER[name] for name in DENOISER} | {"in_channels": prior.denoiser.config["in_channels"]}
    unet = UNet2DModel(**config).double().eval()
    unet.load_state_dict(prior.denoiser.state_dict())
    scheduler = DDIMScheduler.from_config(prior.scheduler.config)
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        condition = prior.condition(picture).double()
        shape = (1, 4, *condition.shape[2:])
        z = torch.empty(shape).normal_(generator=generator).double()
        for time in scheduler.timesteps:
            noise = torch.empty(shape).normal_(generator=generator).double() if eta else None
            predicted = unet(torch.cat((z, condition), dim=1), time).sample
            z = scheduler.step(predicted, time, z, eta=eta, variance_noise=noise).prev_sample
    return z


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["sample", "epsilon", "v_prediction"])
def test_it_is_what_diffusers_samples(kind: str, eta: float) -> None:
    """Betas that end early keep sqrt(alpha-bar) near 1, so that rounding is not divided by it."""
    scheduler = {**TINY.scheduler, "prediction_type": kind, "beta_end": 0.002}
    torch.manual_seed(0)
    prior = make_prior(TINY.model_copy(update={"scheduler": scheduler})).eval()
    picture, steps = image(), 4
    ours = prior.sample(picture, steps=steps, seed=3, eta=eta)
    truth = by_diffusers(prior, picture, steps, 3, eta)
    # A pass of the denoiser has 40 layers, of at most 9 * 32 products each.
    bound = steps * 40 * math.sqrt(9 * 32) * EPSILON * float(truth.abs().max())
    assert float((ours - truth).abs().max()) <= bound
    other = by_diffusers(prior, picture, steps, 4, eta)
    assert float((other - truth).abs().max()) > 100 * bound  # the bound would see another seed


def test_schedule_of_the_release() -> None:
    """Times 1, 51, ..., 951 and the alpha-bars of betas linear in their square root (diffusion.md)."""
    prior = tiny()
    prior.scheduler = DDIMScheduler(**PRIORS["ldm-sr"].scheduler)
    schedule = prior.schedule(20)
    assert [step.time for step in schedule] == list(range(951, 0, -50))
    betas = torch.linspace(0.0015**0.5, 0.0155**0.5, 1000, dtype=torch.float64).square()
    alphas = (1 - betas).cumprod(0)
    rounding = 1000 * EPSILON  # of diffusers' product of a thousand float32 factors
    for step, after in zip(schedule, [*schedule[1:], None], strict=True):
        assert step.alpha_bar_t == pytest.approx(float(alphas[step.time]), rel=rounding)
        assert step.alpha_bar_s == (after.alpha_bar_t if after else pytest.approx(float(alphas[0]), rel=rounding))


@pytest.mark.parametrize(("height", "width"), [(48, 64), (100, 131)])  # in one piece, and in six
@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_bits_depend_on_image_and_seed_alone(prior, height: int, width: int, eta: float) -> None:
    pictures = image(height, width, count=2)
    whole = prior.sample(pictures, seed=7, eta=eta, deterministic=True)
    assert torch.equal(whole, prior.sample(pictures, seed=7, eta=eta, deterministic=True))
    assert torch.equal(whole[1:], prior.sample(pictures[1:], seed=7, eta=eta, deterministic=True))
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert torch.equal(whole, prior.sample(pictures, seed=7, eta=eta, deterministic=True))
        assert torch.get_num_threads() == threads  # put back
    torch.set_num_threads(1)
    assert not torch.equal(whole, prior.sample(pictures, seed=8, eta=eta, deterministic=True))


@pytest.mark.parametrize("pieces", [1, 4])
def test_bits_do_not_depend_on_threads_where_a_pass_is_large_enough_to_be_split(pieces: int) -> None:
    """The preset `compact`, whose convolutions oneDNN blocks by thread count at this size."""
    torch.manual_seed(0)
    config = PRIORS["compact"]
    if pieces == 4:
        config = config.model_copy(update={"sampling": Sampling(steps=2, piece=48, stride=32)})
    prior, picture = make_prior(config).eval(), image(512, 512)
    assert len(prior.grid(512, 512)) == pieces
    expected = prior.sample(picture, steps=2, deterministic=True)
    torch.set_num_threads(2)
    assert torch.equal(prior.sample(picture, steps=2, deterministic=True), expected)
    by_default = prior.sample(picture, steps=2)
    assert torch.equal(prior.sample(picture, steps=2), by_default)  # same seed, same number of threads
    torch.testing.assert_close(by_default, expected, rtol=0, atol=1e-3 * float(expected.abs().max()))


def test_each_call_has_one_of_torchs_threads() -> None:
    torch.set_num_threads(2)
    with one_thread_each(torch.device("cpu")) as each:
        assert set(each(lambda _: torch.get_num_threads(), range(6))) == {1}
    assert torch.get_num_threads() == 2


def test_by_default_one_piece_runs_on_all_threads(prior, monkeypatch) -> None:
    counts = []
    encode = prior.encode
    monkeypatch.setattr(prior, "encode", lambda x: counts.append(torch.get_num_threads()) or encode(x))
    torch.set_num_threads(2)
    prior.sample(image())
    prior.sample(image(), deterministic=True)
    assert counts == [2, 1]


def test_random_state_is_left_alone(prior) -> None:
    before = torch.get_rng_state()
    prior.sample(image(), eta=1.0)
    assert torch.equal(before, torch.get_rng_state())


def test_condition_parts_are_made_once_or_where_they_do_not_fit_each_step(prior, monkeypatch) -> None:
    picture, made = image(100, 131), []
    original = SplitConv.condition_part
    monkeypatch.setattr(SplitConv, "condition_part", lambda conv, c: made.append(1) or original(conv, c))
    kept = prior.sample(picture, steps=3)
    pieces = len(prior.grid(100, 131))
    assert pieces == 6
    assert len(made) == pieces
    monkeypatch.setattr(model, "CONDITION_CACHE", 0)
    assert torch.equal(kept, prior.sample(picture, steps=3))
    assert len(made) == pieces + 3 * pieces


def test_shapes(prior) -> None:
    for height, width in ((1, 1), (8, 8), (9, 17), (100, 131)):
        z = prior.sample(image(height, width))
        assert z.shape == (1, 4, -(-height // 8), -(-width // 8))
        assert z.isfinite().all()
    assert prior.sample(torch.empty(0, 3, 32, 32)).shape == (0, 4, 4, 4)


def test_one_piece_is_what_training_runs(prior) -> None:
    picture = image()
    noise = torch.empty(1, 4, 6, 8).normal_(generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        z = prior.denoise(prior.condition(picture), noise, steps=2)
    assert torch.equal(z, prior.sample(picture, steps=2, seed=2))


def test_gradients_reach_encoder_and_denoiser_through_every_step(prior) -> None:
    picture = image().requires_grad_()
    noise = torch.randn(1, 4, 6, 8)
    prior.denoise(prior.condition(picture), noise, steps=3).square().sum().backward()
    for part in (prior.autoencoder.encoder, prior.denoiser):
        assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in part.parameters())
    assert picture.grad.abs().sum() > 0
    prior.zero_grad(set_to_none=True)


def test_pieces_are_blended_in_every_step(prior) -> None:
    """Beside a loop in the open: predictions of each piece, weighted by the feathered grid, one update for all."""
    picture = image(96, 160)
    grid = make_grid(12, 20, 8, 6, "feather")
    assert len(grid) == 6
    z = torch.empty(1, 4, 12, 20).normal_(generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for step in prior.schedule(2):
            blended = torch.zeros_like(z)
            for row, column in grid:
                rows, columns = grid.rows.span(row), grid.columns.span(column)
                pixels = picture[:, :, 8 * rows.start : 8 * rows.stop, 8 * columns.start : 8 * columns.stop]
                predicted = prior.denoiser(
                    torch.cat((z[:, :, rows, columns], prior.encode(pixels)), 1), step.time
                ).sample
                weights = torch.outer(
                    torch.from_numpy(grid.rows.weights[row]), torch.from_numpy(grid.columns.weights[column])
                )
                blended[:, :, rows, columns] += weights * predicted
            z = prior.update(z, blended, step, 0.0, None)
    difference = (prior.sample(picture, steps=2, seed=1) - z).abs().max()
    # Both sum the same products in another order; the update divides by sqrt(1 - alpha-bar), 0.69 at the last step.
    assert float(difference) <= 2 * 40 * math.sqrt(9 * 32) * EPSILON * float(z.abs().max()) / 0.69


def test_image_as_condition() -> None:
    """As the release: z_0 at the image's own resolution, and the image in [-1, 1] beside z_t."""
    denoiser = {**DENOISER, "in_channels": 6, "out_channels": 3}
    autoencoder = {**AUTOENCODER, "latent_channels": 3}
    config = TINY.model_copy(update={"denoiser": denoiser, "autoencoder": autoencoder})
    prior = make_prior(config.model_copy(update={"sampling": Sampling(condition="image", piece=16, stride=8)})).eval()
    picture = image(20, 17)
    assert prior.sample(picture).shape == (1, 3, 20, 17)
    assert torch.equal(prior.condition(picture), 2 * picture - 1)


@torch.no_grad()
def test_split_convolution_is_the_convolution() -> None:
    conv = torch.nn.Conv2d(7, 5, 3, padding=1)
    ours = SplitConv(conv, latent_channels=3)
    assert ours.state_dict().keys() == conv.state_dict().keys()
    assert ours.weight is conv.weight
    z, c = torch.randn(2, 3, 6, 5), torch.randn(2, 4, 6, 5)
    whole = conv(torch.cat((z, c), dim=1))
    assert torch.equal(ours(torch.cat((z, c), dim=1)), whole)
    halves = ours(torch.cat((z, ours.condition_part(c)), dim=1))
    truth = conv.double()(torch.cat((z, c), dim=1).double())
    error = float((whole - truth).abs().max())
    assert float((halves - truth).abs().max()) <= 2 * error + 63 * EPSILON  # another order of 63 terms near 1


def test_split_convolution_tells_its_two_inputs_apart() -> None:
    with pytest.raises(ValueError, match="4 channels, as many as the condition"):
        SplitConv(torch.nn.Conv2d(7, 4, 3, padding=1), latent_channels=3)


def test_update_runs_through_the_kernel(prior, monkeypatch) -> None:
    calls = []
    monkeypatch.setattr(model, "ddim_step", lambda *a, **k: calls.append(k) or sk.ddim_step(*a, **k))
    prior.sample(image(), steps=3)
    assert [call["alpha_bar_s"] for call in calls][-1] == 1.0
    assert len(calls) == 3


def test_backend_reaches_the_threads(prior, monkeypatch) -> None:
    asked = []
    predict = prior.predict
    monkeypatch.setattr(prior.piece_pass, "_function", lambda *x: asked.append(asked_backend()) or predict(*x))
    torch.set_num_threads(2)
    with sk.use_backend("reference"):
        prior.sample(image(100, 131))
    assert len(asked) > 2
    assert set(asked) == {"reference"}


@pytest.mark.parametrize("size", [(48, 64), (100, 131)])
def test_autocast_takes_no_part(prior, size: tuple[int, int]) -> None:
    plain = prior.sample(image(*size), deterministic=True)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(prior.sample(image(*size), deterministic=True), plain)


@pytest.mark.parametrize("setting", [torch.float64, "meta"])
def test_torchs_defaults_take_no_part(prior, setting) -> None:
    expected = prior.sample(image(), eta=0.5)
    picture = image()
    if isinstance(setting, torch.dtype):
        before = torch.get_default_dtype()
        torch.set_default_dtype(setting)
        try:
            found = prior.sample(picture, eta=0.5)
        finally:
            torch.set_default_dtype(before)
    else:
        with torch.device(setting):
            found = prior.sample(picture, eta=0.5)
    assert torch.equal(found, expected)


def test_several_threads_may_sample_at_once(prior) -> None:
    """Each its own steps and its own picture; and torch's thread counts are afterwards what they were."""
    torch.set_num_threads(2)
    pictures = [image(100, 131, seed=seed) for seed in range(6)]
    expected = [
        prior.sample(picture, steps=1 + index % 3, deterministic=True) for index, picture in enumerate(pictures)
    ]
    with ThreadPoolExecutor(3) as pool:
        everybody = Barrier(3)
        assert list(pool.map(lambda _: (everybody.wait() and 0) or torch.get_num_threads(), range(3))) == [2, 2, 2]
        found = list(
            pool.map(lambda index: prior.sample(pictures[index], steps=1 + index % 3, deterministic=True), range(6))
        )
        counts = set(pool.map(lambda _: torch.get_num_threads(), range(6)))
    assert all(map(torch.equal, found, expected))
    with ThreadPoolExecutor(1) as later:
        counts |= {later.submit(torch.get_num_threads).result()}
    assert counts | {torch.get_num_threads()} == {2}


def test_a_schedule_leaves_the_scheduler_alone(prior) -> None:
    before = prior.scheduler.num_inference_steps
    prior.schedule(7)
    assert prior.scheduler.num_inference_steps == before


@pytest.mark.parametrize("name", ["compact", "ldm-sr"])
def test_every_number_of_steps_has_times_of_the_schedule(name: str) -> None:
    prior = tiny()
    prior.scheduler = DDIMScheduler(**PRIORS[name].scheduler)
    for steps in range(1, 1001):
        times = [step.time for step in prior.schedule(steps)]
        assert times == sorted(set(times), reverse=True)
        assert 0 <= times[-1] <= times[0] < 1000
        if name == "compact":  # trailing: from the last time on
            assert len(times) == steps
            assert times[0] == 999


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"steps": 0}, "1 to 1000 steps, found 0"),
        ({"steps": 1001}, "found 1001"),
        ({"eta": -0.1}, "must lie in"),
        ({"seed": -1}, "The seed must be"),
    ],
)
def test_settings_out_of_range(prior, arguments: dict, complaint: str) -> None:
    with pytest.raises(SwintormerError, match=complaint):
        prior.sample(image(), **arguments)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 4, 8, 8), (1, 3, 0, 8)])
def test_other_shapes_are_refused(prior, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="Expected an image of shape"):
        prior.sample(torch.rand(shape))


def test_whole_numbers_are_refused(prior) -> None:
    with pytest.raises(ValueError, match=r"found torch\.uint8: divide it by its largest value"):
        prior.sample(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"denoiser": {**DENOISER, "in_channels": 9}}, "takes 5 channels in addition to z's 4"),
        ({"autoencoder": {**AUTOENCODER, "in_channels": 5, "out_channels": 5}}, "5 channels takes no RGB"),
        ({"scheduler": {**TINY.scheduler, "prediction_type": "epsilons"}}, "must predict one of"),
        ({"sampling": Sampling(piece=7, stride=6)}, "multiple of 2"),
        ({"denoiser": {**DENOISER, "norm_num_groups": 3}}, "The prior cannot be made"),
        ({"autoencoder": {**AUTOENCODER, "depth": 3}}, "unexpected keyword argument 'depth'"),
    ],
)
def test_parts_that_do_not_fit(changes: dict, complaint: str) -> None:
    with pytest.raises(SwintormerError, match=complaint):
        make_prior(TINY.model_copy(update=changes))


def test_stride_that_leaves_gaps() -> None:
    with pytest.raises(ValueError, match="leaves gaps"):
        PriorConfig(**(TINY.model_dump() | {"sampling": {"piece": 8, "stride": 9}}))


def test_estimate_covers_what_sampling_holds(prior, monkeypatch) -> None:
    """All live tensors at the peak, less what the denoiser takes for one piece."""
    from swintormer_kernels.testing.timing import peak_memory

    picture = image(256, 320)
    one_piece = peak_memory(lambda: prior.sample(image(64, 64)))
    measured = peak_memory(lambda: prior.sample(picture))
    assert measured - one_piece <= Sampler(prior).sampling_bytes(256, 320) <= 2 * measured
    parts = Sampler(prior).sampling_bytes(256, 320)
    monkeypatch.setattr(model, "CONDITION_CACHE", 0)
    assert Sampler(prior).sampling_bytes(256, 320) <= parts
