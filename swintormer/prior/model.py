"""The latent diffusion prior, and the sampler of its latent z_0 for images of any size.

From noise and a blurred image, the prior makes the latent z_0 of the sharp image. The denoiser (a diffusers U-Net) gets
z_t and the latent of the blurred image, or z_t and the image itself; DDIM takes z_t from noise to z_0
(arXiv 2401.05907; DDIM: Song et al. 2021, arXiv 2010.02502). z_0 is used without decoding it.

The sampler runs the networks on one image or one piece at a time and without autocast, so z_0 depends neither on the
rest of the batch nor on the caller's settings. On CUDA, all steps of an image in one piece are one graph, and so is a
pass over a piece of a larger image: see `LatentPrior.loop`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from math import isqrt
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swintormer.errors import InputError, SwintormerError, described
from swintormer.execution.cuda_graph import GraphedForward
from swintormer.execution.tiling import Grid, make_grid
from swintormer.model.padding import pad_to
from swintormer.prior.config import Sampling
from swintormer.prior.latent import ImageLatent
from swintormer.prior.threads import Each, in_turn, one_thread_each
from swintormer_kernels import Prediction, ddim_step

if TYPE_CHECKING:
    from diffusers import DDIMScheduler, UNet2DModel

PREDICTIONS = ("epsilon", "sample", "v_prediction")

Cut: TypeAlias = Callable[[slice, slice], Tensor]
"""(rows, columns) of the image in pixels -> (3, rows, columns) in [0, 1]."""

# The most bytes that are kept of the condition's part of the first convolution, for all pieces together. If they need
# more, each piece's part is computed again in every step. 100 megapixels with the prior `compact` need 382 MB.
CONDITION_CACHE = 256 * 2**20


@dataclass(frozen=True)
class Step:
    """One DDIM update from time t to time s: the denoiser's time input t, and alpha-bar at t and at s."""

    time: int
    alpha_bar_t: float
    alpha_bar_s: float


def step_times(schedule: tuple[Step, ...], device: torch.device) -> Tensor:
    """The times of a schedule, (1, steps)."""
    return torch.tensor([[step.time for step in schedule]], device=device)


class LatentPrior(nn.Module):
    """A latent diffusion prior built from models of diffusers.

    Args:
        autoencoder: AutoencoderTiny or VQModel. If it takes 3 p^2 channels it sees the image after PixelUnshuffle(p).
        denoiser: UNet2DModel; its input is z_t and the condition, concatenated; its output has z's channels. Its first
            convolution becomes a `SplitConv`, under the same parameter names.
        scheduler: DDIMScheduler that predicts the noise ("epsilon"), x_0 ("sample") or "v_prediction".
        sampling: defaults of `sample`, and how large images are cut.

    Raises:
        ValueError: parts that do not fit each other.

    Attributes:
        factor: side in pixels of what one latent position covers.
        loop: all DDIM steps of an image in one piece. On CUDA it is a graph from the second image of a size on, for the
            same steps and eta (`GraphedForward`; its `reason` says why there is no graph). A graph's tensors are
            shared, so on CUDA only one thread at a time may sample from a prior.
        piece_pass: one pass of the denoiser over a piece of a larger image; on CUDA also a graph, the same for all
            pieces and steps.
    """

    # Any: diffusers' classes as the type checker sees them have no attributes.
    autoencoder: Any
    denoiser: Any
    scheduler: Any

    def __init__(
        self, autoencoder: nn.Module, denoiser: UNet2DModel, scheduler: DDIMScheduler, sampling: Sampling | None = None
    ):
        super().__init__()
        self.sampling = sampling = sampling or Sampling()
        self.autoencoder, self.denoiser, self.scheduler = autoencoder, denoiser, scheduler
        sizes = self.autoencoder.config
        self.latent_channels = int(self.denoiser.config["out_channels"])
        condition = int(self.denoiser.config["in_channels"]) - self.latent_channels
        expected = int(sizes["latent_channels"]) if sampling.condition == "latent" else 3
        if condition != expected:
            raise ValueError(
                f"the denoiser takes {condition} channels in addition to z's {self.latent_channels}, but its "
                f"condition, the {sampling.condition}, has {expected}"
            )
        self.patch = isqrt(int(sizes["in_channels"]) // 3)
        if sizes["in_channels"] != 3 * self.patch**2:
            raise ValueError(f"an autoencoder of {sizes['in_channels']} channels takes no RGB image, unshuffled or not")
        if self.scheduler.config["prediction_type"] not in PREDICTIONS:
            raise ValueError(f"the scheduler must predict one of {', '.join(PREDICTIONS)}")
        widths = sizes.get("encoder_block_out_channels")
        halvings = len(widths or sizes["block_out_channels"]) - 1
        self.encoder_factor = self.patch * 2**halvings
        self.factor = self.encoder_factor if sampling.condition == "latent" else 1
        # Latent sides are padded to whole positions at the denoiser's deepest level.
        self.align = 2 ** (len(self.denoiser.config["block_out_channels"]) - 1)
        if sampling.piece % self.align:
            raise ValueError(f"the piece must be a multiple of {self.align}, found {sampling.piece}")
        if not isinstance(self.denoiser.conv_in, SplitConv):
            self.denoiser.conv_in = SplitConv(self.denoiser.conv_in, self.latent_channels)
        self.loop = GraphedForward(self, function=self.all_steps)
        self.piece_pass = GraphedForward(self, function=self.predict)

    def encode(self, image: Tensor) -> Tensor:
        """The autoencoder's latent. (B, 3, H, W) in [0, 1], sides multiples of `encoder_factor` -> (B, C, H/f, W/f)."""
        x = F.pixel_unshuffle(2 * image - 1, self.patch)
        latent: Tensor = self.autoencoder.encode(x, return_dict=False)[0]
        return latent

    def decode(self, latent: Tensor) -> Tensor:
        """The autoencoder's image of a latent, around [0, 1] and not clamped: (B, C, h, w) -> (B, 3, f h, f w)."""
        x: Tensor = self.autoencoder.decode(latent, return_dict=False)[0]
        return (F.pixel_shuffle(x, self.patch) + 1) / 2

    def condition(self, image: Tensor) -> Tensor:
        """The denoiser's condition, from a blurred image: (B, 3, H, W) in [0, 1] -> (B, C, H/factor, W/factor)."""
        return self.encode(image) if self.sampling.condition == "latent" else 2 * image - 1

    def schedule(self, steps: int) -> tuple[Step, ...]:
        """The updates of that many steps, as diffusers' DDIMScheduler makes them.

        Raises:
            SwintormerError: no step, or more than the scheduler was made for.
        """
        count = int(self.scheduler.config["num_train_timesteps"])
        if not 1 <= steps <= count:
            raise SwintormerError(f"The prior takes 1 to {count} steps, found {steps}.")
        scheduler = copy.copy(self.scheduler)  # set_timesteps changes it, and other threads use it
        scheduler.set_timesteps(steps)
        alphas = scheduler.alphas_cumprod.tolist()

        def alpha_bar(time: int) -> float:
            return alphas[time] if time >= 0 else float(scheduler.final_alpha_cumprod)

        # Diffusers' rounding gives a time of -1 with some numbers of steps, such as 61, and its offset 1000 with 1000.
        times = [time for time in scheduler.timesteps.tolist() if 0 <= time < count]
        return tuple(Step(time, alpha_bar(time), alpha_bar(time - count // steps)) for time in times)

    def predict(self, z: Tensor, time: int | Tensor, part: Tensor) -> Tensor:
        """One pass of the denoiser.

        Args:
            z: (B, Cz, h, w), h and w multiples of `align`.
            time: one time for all of z, or one for each image, (B,).
            part: `condition_part` of the condition, (B, C_0, h, w).

        Returns:
            (B, Cz, h, w): noise, x_0 or v, as the scheduler's configuration says.
        """
        predicted: Tensor = self.denoiser(torch.cat((z, part), dim=1), time, return_dict=False)[0]
        return predicted

    def condition_part(self, condition: Tensor) -> Tensor:
        """The condition's part of the first convolution, which is the same in every step."""
        part: Tensor = self.denoiser.conv_in.condition_part(condition)
        return part

    def denoise(self, condition: Tensor, noise: Tensor, steps: int, eta: float = 0.0) -> Tensor:
        """Sample z_0 from noise, in one piece and one batch; differentiable, for training.

        Args:
            condition: (B, C, h, w), see `condition`.
            noise: z_T ~ N(0, 1), (B, Cz, h, w).
        """
        schedule = self.schedule(steps)
        drawn = [torch.randn_like(noise) for _ in schedule] if eta > 0 else []
        fresh = torch.stack(drawn, dim=1) if drawn else noise.new_empty(len(noise), 0)
        times = step_times(schedule, noise.device).expand(len(noise), -1)
        return self.all_steps(noise, self.condition_part(condition), times, fresh, schedule, eta)

    def all_steps(
        self,
        z: Tensor,
        part: Tensor,
        times: Tensor,
        fresh: Tensor,
        schedule: tuple[Step, ...],
        eta: float,
        *_: object,
        progress: Callable[[], None] | None = None,
    ) -> Tensor:
        """Sample z_0 from noise in one piece. No tensor is made from a number, so that a CUDA graph can capture it.

        Args:
            z: z_T, (B, Cz, h, w), of the dtype in which it is updated.
            part: `condition_part` of the condition.
            times: of the schedule, (B, steps).
            fresh: the noise of each step, (B, steps, Cz, h, w); not read if eta is 0.
            progress: called after every step on a CPU; an exception from it ends the run.
        """
        for index, step in enumerate(schedule):
            # Keep z's memory format: convolution results differ in the last bits between layouts.
            predicted = self.predict(z.to(part), times[:, index], part).to(z).contiguous()
            z = self.update(z, predicted, step, eta, fresh[:, index] if eta > 0 else None)
            if progress is not None and z.device.type == "cpu":  # a GPU has only queued the step
                progress()
        return z

    def update(self, z: Tensor, predicted: Tensor, step: Step, eta: float, noise: Tensor | None) -> Tensor:
        """One DDIM update: z_t, the denoiser's prediction and fresh noise (None if eta is 0) -> z_s."""
        return ddim_step(
            z,
            predicted,
            alpha_bar_t=step.alpha_bar_t,
            alpha_bar_s=step.alpha_bar_s,
            eta=eta,
            clip=self.sampling.clip,
            noise=noise,
            prediction=Prediction(self.scheduler.config["prediction_type"]),
        )

    def sample(
        self,
        image: Tensor,
        steps: int | None = None,
        seed: int = 0,
        eta: float | None = None,
        *,
        deterministic: bool = False,
    ) -> Tensor:
        """Sample z_0 for each image of a batch.

        Args:
            image: (B, 3, H, W) in [0, 1], any H and W from 1 up.
            steps, seed, eta, deterministic: see `Sampler`. Every image of the batch gets the noise that it would get
                alone.

        Returns:
            (B, Cz, ceil(H / factor), ceil(W / factor)) of the prior's dtype, on the image's device.

        Raises:
            InputError: no tensor, another shape or an integer dtype. SwintormerError: steps, seed or eta out of range.
        """
        if not isinstance(image, Tensor):
            raise InputError(f"Expected an image as a tensor (B, 3, H, W) in [0, 1], found {described(image)}.")
        if not image.is_floating_point():
            raise InputError(f"Expected an image in [0, 1], found {image.dtype}: divide it by its largest value.")
        if image.ndim != 4 or image.shape[1] != 3 or 0 in image.shape[2:]:
            raise InputError(f"Expected an image of shape (B, 3, H, W) with H, W >= 1, found {tuple(image.shape)}.")
        height, width = image.shape[2:]
        sampler = Sampler(self, steps=steps, seed=seed, eta=eta, deterministic=deterministic)

        def latent(picture: Tensor) -> Tensor:
            return sampler.sample(lambda rows, columns: picture[:, rows, columns], height, width).latent

        sides = -(-height // self.factor), -(-width // self.factor)
        weight = next(self.denoiser.parameters())
        latents = [latent(picture).to(image.device) for picture in image]
        return torch.stack(latents) if latents else weight.new_empty(0, self.latent_channels, *sides)

    def grid(self, height: int, width: int) -> Grid:
        """The pieces of the latent of an image of height x width pixels; a single one if it fits."""
        rows, columns = (-(-side // (self.factor * self.align)) * self.align for side in (height, width))
        return make_grid(rows, columns, self.sampling.piece, self.sampling.stride, "feather")


class SplitConv(nn.Conv2d):
    """conv(cat(z, c)) = conv_z(z) + conv_c(c), so that the condition's half is computed once and not in every step.

    The parameters are those of `conv`, under the same names. The input is cat(z, c) or cat(z, `condition_part(c)`); the
    number of channels tells which.

    Args:
        conv: of z and the condition, concatenated in this order.
        latent_channels: of z.

    Raises:
        ValueError: `conv` has as many output channels as the condition, so that the two inputs have the same shape.
    """

    def __init__(self, conv: nn.Conv2d, latent_channels: int):
        sizes = (conv.kernel_size, conv.stride, conv.padding, conv.dilation)
        super().__init__(conv.in_channels, conv.out_channels, *sizes, device="meta")  # type: ignore[arg-type]
        if conv.out_channels == conv.in_channels - latent_channels:
            raise ValueError(f"the first convolution has {conv.out_channels} channels, as many as the condition")
        self.weight, self.bias = conv.weight, conv.bias
        self.latent_channels = latent_channels

    def condition_part(self, condition: Tensor) -> Tensor:
        """conv_c(c) + bias: (B, C, h, w) -> (B, C_0, h, w)."""
        return self._conv_forward(condition, self.weight[:, self.latent_channels :], self.bias)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] == self.in_channels:
            return super().forward(x)
        z, part = x.split((self.latent_channels, self.out_channels), dim=1)
        y = self._conv_forward(z, self.weight[:, : self.latent_channels], None)
        return y + part.to(y.dtype)  # under autocast, concatenation may have changed its dtype


class Sampler:
    """Samples z_0 of images of any size, with one prior and one choice of settings.

    By default it uses all of torch's threads: the same seed gives the same bits on the same machine with the same
    number of threads. `deterministic` gives the same bits with any number of threads, and takes longer for a small
    image.

    Args:
        prior: the networks.
        steps: DDIM steps; None for the prior's own number.
        seed: of the noise. Noise is drawn on the CPU for the whole image, so it does not depend on the device.
        eta: share of fresh noise in [0, 1]; None for the prior's own.
        deterministic: on a CPU, every pass through a network runs on one thread, because oneDNN chooses its blocking,
            and with it the order of its sums, by the thread count (1e-6 apart, torch 2.13). The threads work on
            different pieces instead.

    Raises:
        SwintormerError: steps, seed or eta out of range.
    """

    def __init__(
        self,
        prior: LatentPrior,
        *,
        steps: int | None = None,
        seed: int = 0,
        eta: float | None = None,
        deterministic: bool = False,
    ) -> None:
        eta = prior.sampling.eta if eta is None else eta
        if not 0 <= eta <= 1:
            raise SwintormerError(f"The share of fresh noise (eta) must lie in [0, 1], found {eta}.")
        if not 0 <= seed < 2**63:
            raise SwintormerError(f"The seed must be a whole number from 0 to 2**63 - 1, found {seed}.")
        self.schedule = prior.schedule(prior.sampling.steps if steps is None else steps)
        self.prior, self.seed, self.eta, self.deterministic = prior, seed, eta, deterministic

    @torch.inference_mode()
    def sample(self, cut: Cut, height: int, width: int, progress: Callable[[], None] | None = None) -> ImageLatent:
        """Sample z_0 of one image that is read piece by piece.

        Pieces overlap; in every step their predictions are blended, and the whole latent is updated, as in the release.
        This takes `sampling_bytes` of memory.

        Args:
            progress: called after every piece, and on a CPU after every step of an image in one piece; an exception
                from it ends the run.

        Returns:
            z_0 of ceil(height / factor) x ceil(width / factor) positions, on the CPU.
        """
        prior, progress = self.prior, progress or (lambda: None)
        weight = next(prior.denoiser.parameters())
        grid = prior.grid(height, width)
        generator = torch.Generator("cpu").manual_seed(self.seed)
        sides = grid.rows.length, grid.columns.length
        z = torch.empty(1, prior.latent_channels, *sides, dtype=torch.float32, device="cpu").normal_(
            generator=generator
        )
        with self._map(weight.device, len(grid)) as each:
            kept = []
            for piece in each(lambda place: self._piece(cut, height, width, grid, place), grid):
                kept.append(piece)
                progress()
            if len(grid) == 1:
                (z,) = each(lambda part: self._in_one_piece(z, part, generator, progress), kept)
            else:
                z = self._in_pieces(z, partial(self._predict_pieces, kept, grid, each), generator, progress)
        z = z[0, :, : -(-height // prior.factor), : -(-width // prior.factor)]
        # A copy, because z may be the output of a graph, which the next replay overwrites.
        latent = torch.empty(z.shape, dtype=weight.dtype, device="cpu").copy_(z)
        return ImageLatent(latent, prior.factor)

    def _map(self, device: torch.device, pieces: int) -> AbstractContextManager[Each]:
        """How pieces are computed: several at once on a thread each, or one after the other on all threads."""
        if self.deterministic or pieces >= torch.get_num_threads():
            return one_thread_each(device)
        return nullcontext(partial(in_turn, device.type))

    def _in_one_piece(
        self, z: Tensor, part: Tensor, generator: torch.Generator, progress: Callable[[], None]
    ) -> Tensor:
        """All steps through the prior's `loop`, on the prior's device; their noise is drawn before the first."""
        fresh = z.new_empty(1, len(self.schedule) if self.eta > 0 else 0, *z.shape[1:])
        for index in range(fresh.shape[1]):
            fresh[:, index].normal_(generator=generator)
        inputs = z.to(part.device), part, step_times(self.schedule, part.device), fresh.to(part.device)
        read = self.prior.sampling.clip, self.prior.scheduler.config["prediction_type"]  # read by every update
        return self.prior.loop(*inputs, settings=(self.schedule, self.eta, *read), progress=progress)

    def _in_pieces(
        self,
        z: Tensor,
        predict: Callable[[Tensor, Tensor], Iterator[tuple[slice, slice, Tensor]]],
        generator: torch.Generator,
        progress: Callable[[], None],
    ) -> Tensor:
        """All steps on the CPU, each with the predictions of all pieces."""
        times = step_times(self.schedule, next(self.prior.denoiser.parameters()).device)
        predicted, noise = torch.empty_like(z), torch.empty_like(z) if self.eta > 0 else None
        for index, step in enumerate(self.schedule):
            predicted.zero_()
            for rows, columns, part in predict(z, times[:, index]):
                predicted[:, :, rows, columns].add_(part)
                progress()
            if noise is not None:
                noise.normal_(generator=generator)
            z = self.prior.update(z, predicted, step, self.eta, noise)
        return z

    def _piece(self, cut: Cut, height: int, width: int, grid: Grid, place: tuple[int, int]) -> Tensor:
        """A piece's part of the first convolution; its condition if the parts of all pieces take too much memory."""
        f, spans = self.prior.factor, (grid.rows.span(place[0]), grid.columns.span(place[1]))
        rows, columns = (
            slice(f * span.start, min(f * span.stop, side)) for span, side in zip(spans, (height, width), strict=True)
        )
        weight = next(self.prior.denoiser.parameters())
        image = cut(rows, columns)[None].to(weight)
        condition = self.prior.condition(pad_to(image, f * grid.rows.tile, f * grid.columns.tile))
        return self.prior.condition_part(condition) if self._keeps_parts(grid) else condition

    def _keeps_parts(self, grid: Grid) -> bool:
        conv = self.prior.denoiser.conv_in
        positions = len(grid) * grid.rows.tile * grid.columns.tile
        return len(grid) == 1 or bool(positions * conv.out_channels * conv.weight.element_size() <= CONDITION_CACHE)

    def _predict_pieces(
        self, kept: list[Tensor], grid: Grid, each: Each, z: Tensor, time: Tensor
    ) -> Iterator[tuple[slice, slice, Tensor]]:
        """(rows, columns, prediction) of every piece, weighted so that they add up to the whole."""
        keeps = self._keeps_parts(grid)

        def predict(piece: tuple[tuple[int, int], Tensor]) -> Tensor:
            (row, column), held = piece
            part = held if keeps else self.prior.condition_part(held)
            return self.prior.piece_pass(z[:, :, grid.rows.span(row), grid.columns.span(column)].to(part), time, part)

        rows, columns = (torch.from_numpy(axis.weights) for axis in (grid.rows, grid.columns))
        pieces = zip(grid, kept, strict=True)
        for (row, column), prediction in zip(grid, each(predict, pieces), strict=True):
            weighted = prediction.to(z).mul_(rows[row][:, None]).mul_(columns[column])
            yield grid.rows.span(row), grid.columns.span(column), weighted

    def latent_bytes(self, height: int, width: int) -> int:
        """Bytes of z_0 for an image of height x width pixels."""
        factor = self.prior.factor
        return 4 * self.prior.latent_channels * -(-height // factor) * -(-width // factor)

    def sampling_bytes(self, height: int, width: int) -> int:
        """Upper bound of the bytes that `sample` holds, without the weights and the denoiser's own tensors.

        That is z up to four times, and in one piece the noise of all steps; at most CONDITION_CACHE bytes of the
        condition's part, or the pieces' conditions; and a graph's own copy of its inputs.
        """
        prior, grid = self.prior, self.prior.grid(height, width)
        conv, piece = prior.denoiser.conv_in, grid.rows.tile * grid.columns.tile
        held = conv.out_channels if self._keeps_parts(grid) else conv.in_channels - prior.latent_channels
        fresh = len(self.schedule) if self.eta > 0 and len(grid) == 1 else 0
        whole = (4 + fresh) * prior.latent_channels * grid.rows.length * grid.columns.length
        graph = ((1 + fresh) * prior.latent_channels + conv.out_channels) * piece
        return int(4 * (whole + held * len(grid) * piece + graph * (conv.weight.device.type != "cpu")))
