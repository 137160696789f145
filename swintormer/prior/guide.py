"""z_0 for tiled inference: sampled once for an image, and cut for each tile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from swintormer.errors import SwintormerError

if TYPE_CHECKING:
    from swintormer.model.network import Swintormer
    from swintormer.prior.model import Cut, LatentPrior


@dataclass(frozen=True)
class Guidance:
    """How a `Deblurrer` samples z_0.

    Attributes:
        prior: None for the one that came with the network's weights.
        steps, seed, eta: as in `LatentPrior.sample`. The same seed gives the same picture.
    """

    prior: LatentPrior | None = None
    steps: int | None = None
    seed: int = 0
    eta: float | None = None


class Guide:
    """A prior with its settings, checked.

    Raises:
        SwintormerError: no prior, one of other channels than the network takes, or settings out of range.
    """

    def __init__(self, net: Swintormer, guidance: Guidance, device: torch.device) -> None:
        from swintormer.checkpoint.checkpoint import check_channels

        prior = guidance.prior or net.prior
        if prior is None:
            raise SwintormerError("These weights hold no prior: leave out --prior, or name weights that hold one.")
        check_channels(net.config, prior.latent_channels)
        self.prior = prior.to(device).eval()
        if device.type == "cuda":  # as the network's weights: convolutions and Triton kernels take it without copies
            self.prior.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.draws = prior.draws(guidance.steps, guidance.seed, guidance.eta)

    def sample(self, cut: Cut, height: int, width: int, tick: Callable[[], None]) -> ImageLatent:
        """z_0 of the image that `cut` reads. Of a dual-pixel pair it sees the view that is restored.

        `tick` is called after every piece or step, see `LatentPrior.sample_from`; what it raises ends the run.
        """
        latent = self.prior.sample_from(lambda rows, columns: cut(rows, columns)[:3], height, width, self.draws, tick)
        return ImageLatent(latent, self.prior.factor)

    def latent_bytes(self, height: int, width: int) -> int:
        """What z_0 of such an image takes."""
        factor = self.prior.factor
        return 4 * self.prior.latent_channels * -(-height // factor) * -(-width // factor)

    def sampling_bytes(self, height: int, width: int) -> int:
        """What sampling it takes at its peak, without the denoiser's own tensors of a piece."""
        return self.prior.sampling_bytes(height, width, self.draws)


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
