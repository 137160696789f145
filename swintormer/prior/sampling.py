"""Sampling z_0 of an image: piece by piece, on the CPU's threads, and cut for the tiles of the network.

Every image and every piece passes through the networks alone and without autocast, so z_0 depends neither on what else
is in the batch nor on the caller's settings. On CUDA all steps of an image in one piece are one graph, and so is a pass
over a piece of a larger image: see `LatentPrior.loop`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import torch
from torch import Tensor

from swintormer.errors import SwintormerError
from swintormer.model.padding import pad_to
from swintormer_kernels import use_backend
from swintormer_kernels.registry import asked_backend

if TYPE_CHECKING:
    from swintormer.inference.tiling import Grid
    from swintormer.prior.model import LatentPrior

T = TypeVar("T")
R = TypeVar("R")
Each: TypeAlias = Callable[[Callable[[T], R], Iterable[T]], Iterable[R]]
"""(function, arguments) -> results in order."""
Cut: TypeAlias = Callable[[slice, slice], Tensor]
"""(rows, columns) of the image in pixels -> (3, rows, columns) in [0, 1]."""

# Bytes of the condition's part of the first convolution that are kept for all pieces; where all take more, each piece's
# is made again in every step, from its condition. 100 megapixels of the compact prior: 382 MB.
CONDITION_CACHE = 256 * 2**20


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Step:
    """One update, t -> s: the time that the denoiser is told, and alpha-bar at both."""

    time: int
    alpha_bar_t: float
    alpha_bar_s: float


def step_times(schedule: tuple[Step, ...], device: torch.device) -> Tensor:
    """The times of a schedule, (1, steps)."""
    return torch.tensor([[step.time for step in schedule]], device=device)


@dataclass(frozen=True)
class ImageLatent:
    """z_0 of a whole image, (Cz, h, w); a position covers factor x factor pixels."""

    latent: Tensor
    factor: int

    def crop(self, rows: slice, columns: slice) -> Tensor:
        """z_0 of a tile, (Cz, ceil(rows / factor), ceil(columns / factor)), its first position at the tile's corner.

        A tile that begins between two positions gets the mean of both, weighted by nearness; beyond the image the last
        position goes on.
        """
        return self._along(self._along(self.latent, 1, rows), 2, columns)

    def _along(self, latent: Tensor, axis: int, span: slice) -> Tensor:
        first, rest = divmod(span.start, self.factor)
        count = -(-(span.stop - span.start) // self.factor)
        here = self._from(latent, axis, first, count)
        if not rest:
            return here
        return here.lerp(self._from(latent, axis, first + 1, count), rest / self.factor)

    @staticmethod
    def _from(latent: Tensor, axis: int, first: int, count: int) -> Tensor:
        places = torch.arange(first, first + count, device=latent.device).clamp_(max=latent.shape[axis] - 1)
        return latent.index_select(axis, places)


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
            and with it the order of its sums, by the thread count (1e-6 apart, torch 2.13). Threads take pieces
            instead.

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

        Pieces overlap; in every step their predictions are blended, and the whole latent takes the step (as the
        release does). `sampling_bytes` is what this holds.

        Args:
            progress: called after every piece, and on a CPU after every step of an image in one piece; what it raises
                ends the run.

        Returns:
            z_0 of ceil(height / factor) x ceil(width / factor) positions, on the CPU.
        """
        prior, progress = self.prior, progress or _nothing
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
        # A copy, because z may be a graph's, which writes there again.
        latent = torch.empty(z.shape, dtype=weight.dtype, device="cpu").copy_(z)
        return ImageLatent(latent, prior.factor)

    def _map(self, device: torch.device, pieces: int) -> AbstractContextManager[Each]:
        """How pieces are computed: several at once on a thread each, or one after the other on all threads."""
        if self.deterministic or pieces >= torch.get_num_threads():
            return one_thread_each(device)
        return nullcontext(partial(_in_turn, device.type))

    def _in_one_piece(
        self, z: Tensor, part: Tensor, generator: torch.Generator, progress: Callable[[], None]
    ) -> Tensor:
        """All steps through the prior's `loop`, on the prior's device; their noise is drawn before the first."""
        fresh = z.new_empty(1, len(self.schedule) if self.eta > 0 else 0, *z.shape[1:])
        for index in range(fresh.shape[1]):
            fresh[:, index].normal_(generator=generator)
        inputs = z.to(part.device), part, step_times(self.schedule, part.device), fresh.to(part.device)
        read = self.prior.sampling.clip, self.prior.scheduler.config["prediction_type"]  # by every update
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
        """A piece's part of the first convolution, or its condition alone where all of them would take too much."""
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
        """What z_0 of an image of height x width pixels takes."""
        factor = self.prior.factor
        return 4 * self.prior.latent_channels * -(-height // factor) * -(-width // factor)

    def sampling_bytes(self, height: int, width: int) -> int:
        """What `sample` holds beside the weights and the denoiser's own tensors of a piece: an upper bound.

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


# ---- threads ---------------------------------------------------------------------------------------------------------

_STARTING = threading.Lock()


@contextmanager
def one_thread_each(device: torch.device) -> Iterator[Each]:
    """A `map` whose calls each compute on one of torch's threads, without gradients and without autocast.

    On a CPU each call runs on one of torch's threads, and as many calls at once as torch has threads here; elsewhere
    one after the other.
    """
    with _STARTING:  # a thread's first question is answered with what holds for the process then
        count = torch.get_num_threads()
    if device.type != "cpu" or count == 1:
        yield partial(_in_turn, device.type)
        return
    pool = _started(count)
    try:
        yield partial(_on_threads, pool)
    finally:
        pool.shutdown(cancel_futures=True)  # after an interrupt the pieces that wait are not begun


def _started(count: int) -> ThreadPoolExecutor:
    """That many threads of one torch thread each.

    torch.set_num_threads sets the calling thread's count and the one that later threads of the process begin with. So
    all start now, and then the second is put back; the caller's own never changes. One caller at a time does this, or
    one would put back what the other had set. A thread of somebody else's that first asks torch within that millisecond
    keeps a count of one: torch has no way to set it for one thread only.
    """
    with _STARTING:
        everybody = threading.Barrier(count)
        pool = ThreadPoolExecutor(count, initializer=_take_one_thread)
        try:
            list(pool.map(lambda _: everybody.wait(), range(count)))
        except BaseException:  # a thread that could not start would leave the others waiting
            everybody.abort()
            pool.shutdown(wait=False)
            raise
        finally:
            torch.set_num_threads(count)
    return pool


def _take_one_thread() -> None:
    torch.set_num_threads(1)
    # A thread's own count is fixed by its first question. Asked later, it would be the process's count, put back then.
    torch.get_num_threads()


def _call(function: Callable[[T], R], device: str, backend: str | None, argument: T) -> R:
    with (
        torch.inference_mode(),
        torch.autocast(device, enabled=False),
        nullcontext() if backend is None else use_backend(backend),
    ):
        return function(argument)


def _in_turn(device: str, function: Callable[[T], R], arguments: Iterable[T]) -> Iterator[R]:
    for argument in arguments:
        yield _call(function, device, None, argument)


def _on_threads(pool: ThreadPoolExecutor, function: Callable[[T], R], arguments: Iterable[T]) -> Iterator[R]:
    call = partial(_call, function, "cpu", asked_backend())
    futures = deque(pool.submit(copy_context().run, call, argument) for argument in arguments)
    while futures:
        yield futures.popleft().result()  # and nothing keeps it here
