"""A prior's sampling through graphs: all steps of an image in one piece, and passes over pieces. Captures are imitated
but where there is a GPU."""

from __future__ import annotations

import copy
import math
import pickle
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from priors import TINY, tiny
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import swintormer_kernels as sk
from swintormer.execution.cuda_graph import Forward, GraphedForward
from swintormer.prior.checkpoint import make_prior
from swintormer.prior.model import LatentPrior, Sampler
from swintormer_kernels.testing.timing import peak_memory

pytestmark = pytest.mark.usefixtures("one_thread")
EPSILON = torch.finfo(torch.float32).eps


class Imitation:
    """Stands for CUDA graphs: inputs are copied in, and every replay writes to the same place."""

    def __init__(self, error: str | None = None) -> None:
        self.captures, self.replays, self.error = 0, 0, error

    def __call__(self, function: Forward, *examples: Tensor) -> Forward:
        self.captures += 1
        if self.error is not None:
            raise RuntimeError(self.error)
        inputs = [example.clone() for example in examples]
        output = function(*inputs)

        def replay(*given: Tensor) -> Tensor:
            self.replays += 1
            for kept, x in zip(inputs, given, strict=True):
                kept[: len(x)].copy_(x)
            output.copy_(function(*inputs))
            return output[: len(given[0])]

        return replay


def imitate(prior: LatentPrior, error: str | None = None) -> tuple[Imitation, Imitation]:
    """Captures of the prior's `loop` and `piece_pass` from now on."""
    whole, piece = Imitation(error), Imitation(error)
    prior.loop = GraphedForward(prior, whole, device="cpu", function=prior.all_steps)
    prior.piece_pass = GraphedForward(prior, piece, device="cpu", function=prior.predict)
    return whole, piece


def image(seed: int = 5, height: int = 48, width: int = 64, count: int = 1) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("eta", [0.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_from_the_second_image_on_all_steps_are_replayed_with_the_same_bits(dtype: torch.dtype, eta: float) -> None:
    prior, plain = tiny().to(dtype), tiny().to(dtype)
    whole, piece = imitate(prior)
    for index, (captures, replays) in enumerate([(0, 0), (1, 2), (1, 3)]):  # the first replay is the comparison
        given = {"steps": 3, "seed": index, "eta": eta}
        assert torch.equal(prior.sample(image(index), **given), plain.sample(image(index), **given))
        assert (whole.captures, whole.replays) == (captures, replays)
    assert prior.loop.reason is None
    assert piece.captures == 0


def other_weights(prior: LatentPrior) -> None:
    with torch.no_grad():
        prior.denoiser.conv_out.weight.add_(1)


def other_denoiser(prior: LatentPrior) -> None:
    prior.denoiser = tiny(seed=3).denoiser


CHANGES = {
    "weights": other_weights,
    "denoiser": other_denoiser,
    "kernels": lambda prior: sk.restore(prior.denoiser),
    "prediction": lambda prior: prior.scheduler.register_to_config(prediction_type="v_prediction"),
    "clip": lambda prior: setattr(prior, "sampling", prior.sampling.model_copy(update={"clip": 0.1})),
}
GIVEN = {"steps": {"steps": 4}, "eta": {"eta": 1.0}, "size": {"height": 32}, "backend": {}, "image": {"seed": 7}}


@pytest.mark.parametrize("change", [*CHANGES, *GIVEN])
def test_what_makes_another_graph(change: str) -> None:
    prior = tiny()
    whole, _ = imitate(prior)
    given: dict[str, Any] = {"steps": 3, "seed": 1, "eta": 0.0, "height": 48}

    def sample(prior: LatentPrior) -> Tensor:
        return prior.sample(image(given["seed"], given["height"]), **{k: given[k] for k in ("steps", "seed", "eta")})

    sample(prior), sample(prior)
    assert (whole.captures, whole.replays) == (1, 2)
    CHANGES.get(change, lambda _: None)(prior)
    given |= GIVEN.get(change, {})
    plain = tiny()
    plain.load_state_dict(prior.state_dict())
    plain.sampling, plain.scheduler = prior.sampling, prior.scheduler
    if change == "kernels":
        sk.restore(plain.denoiser)
    with sk.use_backend("reference") if change == "backend" else nullcontext():
        for call in range(2):
            assert torch.equal(sample(prior), sample(plain))
            assert whole.captures == (1 if change == "image" else 1 + call)


def test_a_reason_tells_why_images_are_sampled_plainly() -> None:
    prior, plain = tiny(), tiny()
    whole, piece = imitate(prior, error="operation not permitted when stream is capturing\nmore")
    for seed, x in enumerate((image(), image(), image(), image(height=100, width=131))):
        assert torch.equal(prior.sample(x, seed=seed), plain.sample(x, seed=seed))
    told = "the graph could not be captured (operation not permitted when stream is capturing)"
    assert prior.loop.reason == prior.piece_pass.reason == told
    assert whole.captures == piece.captures == 1


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_pieces_of_a_larger_image_share_one_graph_of_a_pass(eta: float) -> None:
    prior, plain = tiny(), tiny()
    whole, piece = imitate(prior)
    x, other = image(height=100, width=131), image(6, height=100, width=131)
    given = {"steps": 3, "seed": 1, "eta": eta}
    assert torch.equal(prior.sample(x, **given), plain.sample(x, **given))
    passes = 3 * len(prior.grid(100, 131))
    assert (piece.captures, piece.replays) == (1, passes)  # the first pass was plain, and one replay compared
    assert torch.equal(prior.sample(other, **given), plain.sample(other, **given))
    assert (piece.captures, piece.replays) == (1, 2 * passes)
    assert whole.captures == 0


def test_the_loop_keeps_the_cpu_out_of_it() -> None:
    """A capture ends at a tensor made of numbers for the GPU and at a number read from there."""

    class Watch(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[str] = []

        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            if op.overloadpacket in (
                torch.ops.aten.lift_fresh,
                torch.ops.aten._local_scalar_dense,
                torch.ops.aten.item,
            ):
                self.seen.append(str(op))
            return op(*args, **kwargs or {})

    prior, schedule = tiny(), tiny().schedule(3)
    z, fresh, times = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 4, 8, 8), torch.tensor([[999, 500, 1]])
    with torch.inference_mode(), sk.use_backend("reference"):
        part = prior.condition_part(torch.randn(1, 4, 8, 8))
        with Watch() as watch:
            prior.all_steps(z, part, times, fresh, schedule, 0.5)
        assert watch.seen == []
        with Watch() as watch:
            prior.predict(z, 999, part)  # what the loop must not do
        assert watch.seen == ["aten.lift_fresh.default"]


def test_every_step_of_one_piece_is_told_and_may_be_the_last() -> None:
    prior, ticks = tiny(), []
    x, sampler = image()[0], Sampler(prior, steps=5)
    sampler.sample(lambda rows, columns: x[:, rows, columns], 48, 64, lambda: ticks.append(1))
    assert len(ticks) == 1 + 5

    def stop() -> None:
        ticks.append(1)
        if len(ticks) == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sampler.sample(lambda rows, columns: x[:, rows, columns], 48, 64, stop)
    prior.sample(x[None])
    assert len(ticks) == 9  # nobody listens any more


def test_copies_have_no_part_in_a_graph() -> None:
    prior = tiny()
    imitate(prior)
    x = image()
    expected = prior.sample(x), prior.sample(x)
    assert prior.loop._replay is not None
    for made in (copy.deepcopy(prior), pickle.loads(pickle.dumps(tiny()))):
        assert made.loop._replay is None
        assert made.loop.net is made
        assert torch.equal(made.sample(x), expected[1])
        with torch.no_grad():
            made.denoiser.conv_out.weight.zero_()
        assert not torch.equal(made.sample(x), expected[1])
    assert torch.equal(prior.sample(x), expected[1])


def test_estimate_covers_the_noise_of_all_steps() -> None:
    """Beside what the steps take anyway; the encoder's peak, which hides them, is left out."""
    prior = tiny(piece=64, stride=48)
    noise = 4 * 4 * 32 * 32  # bytes of a step's

    def peak(steps: int, eta: float) -> int:
        sampler = Sampler(prior, steps=steps, eta=eta)
        z, generator = torch.randn(1, 4, 32, 32), torch.Generator()
        with torch.inference_mode():
            part = prior.condition_part(torch.randn(1, 4, 32, 32))
            return peak_memory(lambda: sampler._in_one_piece(z, part, generator, lambda: None))

    peak(1, 0.0)  # makes what is made once
    for steps in (10, 50):
        more = peak(steps, 1.0) - peak(steps, 0.0)
        bare, estimate = (Sampler(prior, steps=steps, eta=eta).sampling_bytes(256, 256) for eta in (0.0, 1.0))
        assert more >= steps * noise
        assert estimate == bare + steps * noise
        assert more <= estimate
    assert Sampler(prior).sampling_bytes(256, 256) == bare


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@pytest.mark.parametrize(("height", "width"), [(48, 64), (100, 131)])  # in one piece, and in six
@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_on_the_gpu_a_replay_gives_what_a_plain_run_gives(height: int, width: int, eta: float) -> None:
    """Betas that end early keep sqrt(alpha-bar) near 1, so that rounding is not divided by it."""
    torch.manual_seed(0)
    scheduler = {**TINY.scheduler, "beta_end": 0.002}
    prior = make_prior(TINY.model_copy(update={"scheduler": scheduler})).eval().cuda()
    plain = copy.deepcopy(prior)
    plain.loop = GraphedForward(plain.denoiser, device="none", function=plain.all_steps)
    plain.piece_pass = GraphedForward(plain.denoiser, device="none", function=plain.predict)
    steps = 4
    for seed in range(3):
        given = {"steps": steps, "seed": seed, "eta": eta}
        x = image(seed, height, width)
        replayed, expected = prior.sample(x, **given), plain.sample(x, **given)
        # A pass of the denoiser has 40 layers, of at most 9 * 32 products each; TF32 keeps 10 bits of a factor.
        epsilon = 2**-11 if torch.backends.cudnn.allow_tf32 else EPSILON
        bound = steps * 40 * math.sqrt(9 * 32) * epsilon * float(expected.abs().max())
        assert float((replayed - expected).abs().max()) <= bound
    graphed = prior.loop if len(prior.grid(height, width)) == 1 else prior.piece_pass
    assert graphed.reason is None
    assert graphed._replay is not None
