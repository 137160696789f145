"""A second network that hesitates where the first one errs: it is asked where the first changes a tile much more.

It runs on the part of a tile that the first network changes most, a quarter of it. Where the first goes much further
there, it runs on the whole tile, too. So it takes a quarter of the first one's time at least, and half of it over sharp
and degraded photographs of Kodak (52 % of the pixels: `python -m bench.guard DIR --limit 6`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from swintormer.checkpoint.checkpoint import Checkpoint, checkpoint_of
from swintormer.errors import InputError
from swintormer.execution.cuda_graph import GraphedForward
from swintormer.inference.choice import guard_share, most_changed
from swintormer.model.network import Swintormer


class Guard:
    """The guard of one network.

    Args:
        net: the second network, on the device and in the memory layout of the first: see `fitting`.
    """

    def __init__(self, net: Swintormer) -> None:
        self.net = net
        # Two sizes of tiles, each with a graph of its own.
        self._part, self._whole = GraphedForward(net), GraphedForward(net)

    def __call__(self, tiles: Tensor, restored: Tensor) -> Tensor:
        """The first network's result, or the guard's where the first goes much further (`choice.guard_share`).

        What becomes of a tile does not depend on the others.

        Args:
            tiles: (B, C_in, H, W), on the networks' device.
            restored: (B, C_out, H, W), what the first network made of them. It is not changed.

        Returns:
            As `restored`. NaN where the guard's result is not finite.
        """
        base = tiles[:, : restored.shape[1]]
        share = self._share_of_part(tiles, restored - base)
        if not share.any():
            return restored
        careful = self._whole(tiles).to(restored)
        # The lesser of the two rises gradually with both.
        share = torch.minimum(share, guard_share(restored - base, careful - base))
        return torch.lerp(restored, careful, share.to(restored))

    def _share_of_part(self, tiles: Tensor, change: Tensor) -> Tensor:
        """`guard_share` where the first network changes each tile most, (B, 1, 1, 1).

        1 where that part would hardly be smaller than the tile; NaN where the guard's result is not finite.
        """
        step = self.net.config.stride
        rows, columns = tiles.shape[-2:]
        height, width = (min(-(-side // (2 * step)) * step, side) for side in (rows, columns))
        if 2 * padded(height, width, step) > padded(rows, columns, step):
            return torch.ones_like(change[:, :1, :1, :1])
        parts = [(index, slice(None), *place) for index, place in enumerate(most_changed(change, height, width))]
        asked = torch.stack([tiles[part] for part in parts])
        if asked.device.type == "cuda":
            asked = asked.contiguous(memory_format=torch.channels_last)
        theirs = self._part(asked).to(change) - asked[:, : change.shape[1]]
        share = guard_share(torch.stack([change[part] for part in parts]), theirs)
        return share.where(theirs.isfinite().flatten(1).all(1)[:, None, None, None], torch.nan)


def fitting(guard: Swintormer | Checkpoint, net: Swintormer) -> Swintormer:
    """The second network, on the device and in the memory layout of the first. Raises InputError if it does not fit."""
    other = checkpoint_of(guard)
    channels = [(each.config.in_channels, each.config.out_channels) for each in (net, other.net)]
    if channels[0] != channels[1] or other.net.config.prior_channels:
        raise InputError("The guard must be a network of the same channels as the first and without a prior.")
    weight, of_guard = (next(each.parameters()) for each in (net, other.net))
    if weight.dtype != of_guard.dtype:
        raise InputError(
            f"The guard has weights of {of_guard.dtype}, the network of {weight.dtype}: convert one of them."
        )
    moved = other.net.to(weight.device)
    if weight.device.type == "cuda":
        moved.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved


def padded(rows: int, columns: int, stride: int) -> int:
    """Pixels of a tile whose sides are padded to multiples of the network's stride."""
    return -(-rows // stride) * stride * (-(-columns // stride) * stride)
