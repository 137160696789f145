"""Tiled inference: a photograph of any size through the network, tile by tile.

Tiles are cut from the image on its own device, copied to the network's device in small batches, and added to a band
along the image's shorter side that is one tile deep. Parts of the band that no later tile touches are written to the
output at once. Besides the image, its result and the changes that several scales keep, memory depends on the tile, the
batch and the image's shorter side, not on its longer one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice, product
from numbers import Integral
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from swintormer.checkpoint.checkpoint import Checkpoint, check_channels, checkpoint_of
from swintormer.errors import InputError, SwintormerError, described, first_line
from swintormer.execution.cuda_graph import GraphedForward
from swintormer.execution.tiling import PAPER_TILE, Blend, Grid, check_tiling, default_stride, make_grid
from swintormer.inference.band import Band
from swintormer.inference.kept import Samples, mixed, write_part
from swintormer.inference.memory import (
    available_bytes,
    binary,
    packed_bytes,
    packed_convolution_bytes,
    resident_bytes,
)
from swintormer.inference.precision import Chosen, Precision
from swintormer.inference.scales import MOST_SCALES, ImageCut, ImagePart, Scale, added, coarser_share, doubled
from swintormer.model.network import Swintormer, check_image
from swintormer.prior.latent import ImageLatent
from swintormer.prior.model import Sampler

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the number of tiles done and their total, after every batch, and after every piece of z_0's sampling."""

DEVICES = ("cpu", "cuda", "mps")  # with a number behind a colon where there are several
# Over the held-out photographs the first weights gained 0.67 dB feathered and 0.66 dB averaged uniformly; no other
# version of them that was tried did better uniformly (`swintormer evaluate` after a change of this line).
DEFAULT_BLEND: Blend = "feather"
# Seconds for a megapixel of image, preset `small`, two cores, medians of four rounds in turn, with the work that the
# overlap repeats: 1.17 in tiles of 128 one by one and 0.97 in fours, 1.01 at 256 one by one and 0.93 in fours, 0.78 at
# 512, 0.86 at 1024.
LARGEST_AUTO_TILE = 512
CPU_BATCH_PIXELS = 256**2
LARGEST_AUTO_BATCH = 16
# Share of the free memory to use when no budget is given; the rest is for the image, its result and other programs.
SHARE_OF_AVAILABLE = 0.5
# An image in [0, 1] may leave it by noise or resampling; one in [-1, 1] or [0, 255] does by more.
RANGE = (-0.5, 1.5)


@dataclass(frozen=True)
class Plan:
    """How one image is cut into tiles.

    Attributes:
        tile: side of a tile in pixels; along a shorter side of the image, tiles are as long as that side.
        stride: pixels from one tile to the next.
        batch: tiles that run at once.
        grid: positions of the tiles; `len(grid)` is their number.
    """

    tile: int
    stride: int
    batch: int
    grid: Grid


class Deblurrer:
    """Restores images of any size with a network, tile by tile.

    `Deblurrer(net, tile=256, stride=220, blend="uniform")` is the paper's inference (arXiv 2401.05907).

    Args:
        net: a network, or a `Checkpoint` with its prior and training tile; moved to the device once, and run in
            evaluation mode without gradients.
        tile: side in pixels; "auto" takes the largest multiple of the network's stride that the memory budget allows,
            up to 512. None is the tile that the network was trained on (the checkpoint's `training_tile`; 256 where
            unknown), which is the paper's train/inference consistency; together with a memory budget it means "auto".
            Unless a number or a stride is given, tiles are longer along an image that is narrower than a tile.
        stride: pixels from one tile to the next; None is the paper's 220 of 256, see `tiling.default_stride`. An
            automatic tile is not smaller than the stride, unless one tile covers the image.
        blend: "uniform" or "feather", see `tiling.make_grid`.
        batch: tiles at once; None is what the memory budget allows, on a CPU up to 256x256 pixels in all (4 tiles of
            128, 1 of 256), elsewhere up to 16 tiles. The result does not depend on it beyond rounding: two batch sizes
            differ by at most twice the network's own largest float32 error against float64 (test_pipeline.py);
            measured for the preset `small`: 6e-7.
        memory: budget in bytes for the tiles that are processed and the kernels' packed copies of the weights, not
            counting the image, its result and the weights, nor what several scales keep: 3 bytes for each of the
            image's pixels with two scales, 3.75 with three. None is half of the device's free memory, determined for
            each image.
        device: None leaves the network where it is; "auto" is a CUDA device if there is one, else the CPU.
        prior: where z_0 comes from, which is sampled once for each image: True for the checkpoint's prior, if it has
            one, with the prior's own settings and seed 0; False for none; or a `Sampler`. z_0 of a picture stays in
            memory with it: half a byte for each pixel with the prior `compact`.
        precision: in which the network multiplies: "float32", or "bfloat16", which is faster on CPUs with AVX512_BF16
            and on GPUs. "auto" takes bfloat16 on such CPUs where the results keep 60 dB and more of those in float32,
            which is measured once for the network's weights, and else float32. The prior is sampled in float32.
        strength: 0 to 1: the share of the restoration in the result; the rest is the image as it came. They are mixed
            in linear light (sRGB's curve), as if the light of both fell on one sensor. 1 is the restoration bit for
            bit, and 0 the image.
        scales: 2 for wide blur, 10 pixels and more: the image is restored at half size first; 3 begins at a quarter.
            "auto" restores at three scales and takes the coarser ones where they find more to change (scales.py); with
            a network of two views it is 1.

    Attributes:
        forward: runs the network on a batch of tiles; on CUDA it replays a graph (`cuda_graph.GraphedForward`; its
            `reason` says why there is no graph).

    Raises:
        InputError: neither network nor checkpoint, a size or budget that is no whole number of at least one, an
            unknown blend or precision, a strength outside 0 to 1, several scales for a network of two views.
        SwintormerError: a device that is not there, or a prior that does not fit the network.
    """

    def __init__(
        self,
        net: Swintormer | Checkpoint,
        *,
        tile: int | Literal["auto"] | None = None,
        stride: int | None = None,
        blend: Blend = DEFAULT_BLEND,
        batch: int | None = None,
        memory: int | None = None,
        device: str | torch.device | None = None,
        prior: bool | Sampler = True,
        precision: Precision = "auto",
        strength: float = 1.0,
        scales: int | Literal["auto"] = 1,
    ) -> None:
        checkpoint = checkpoint_of(net)
        self._may_stretch = not isinstance(tile, int) and stride is None
        if tile is None:
            tile = "auto" if memory is not None else checkpoint.training_tile or PAPER_TILE
        if isinstance(tile, str) and tile != "auto":
            raise InputError(f'The tile must be a number of pixels or "auto", found {tile!r}.')
        automatic = {"tile": tile, "number of scales": scales}
        optional = {"stride": stride, "batch": batch, "memory budget": memory}
        numbers = [(name, value) for name, value in automatic.items() if value != "auto"]
        numbers += [(name, value) for name, value in optional.items() if value is not None]
        for name, value in numbers:
            if not isinstance(value, Integral):
                raise InputError(f"The {name} must be a whole number, found {described(value)}.")
            if value < 1:
                raise InputError(f"The {name} must be at least 1, found {value}.")
        if not isinstance(prior, bool | Sampler):
            raise InputError(f"The prior must be True, False or a Sampler, found {described(prior)}.")
        if not 0 <= strength <= 1:
            raise InputError(f"The strength must be 0 (the picture as it came) to 1, found {strength}.")
        one_view = checkpoint.net.config.in_channels == checkpoint.net.config.out_channels
        if scales not in ("auto", 1) and not one_view:
            raise InputError("Several scales are for networks of one view: leave scales at 1.")
        self.strength, self.scales = strength, scales if one_view else 1
        largest = LARGEST_AUTO_TILE if isinstance(tile, str) else tile
        check_tiling(largest, default_stride(largest) if stride is None else stride, blend)
        self.tile, self.stride, self.blend, self.batch, self.memory = tile, stride, blend, batch, memory
        self.net = _moved(checkpoint.net, device)
        weight = next(self.net.parameters())
        self.device, self.dtype = weight.device, weight.dtype
        # The GPU's convolutions and the Triton kernels both take channels_last without copies.
        self._layout = torch.channels_last if self.device.type == "cuda" else torch.preserve_format
        if self.device.type == "cuda":
            self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.forward = GraphedForward(self.net)
        self._precision = Chosen(precision, self.net)
        if isinstance(prior, bool):
            self.sampler = Sampler(checkpoint.prior) if prior and checkpoint.prior is not None else None
        else:
            self.sampler = prior
        if self.sampler is not None:
            check_channels(self.net.config, self.sampler.prior.latent_channels)
            self.sampler.prior.to(self.device).eval()
            if self.device.type == "cuda":
                self.sampler.prior.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._packed = self._packed_bytes()

    def plan(self, height: int, width: int) -> Plan:
        """How an image of height x width pixels is cut.

        Raises:
            SwintormerError: the memory budget does not hold one tile.
        """
        if isinstance(self.tile, int) and self.memory is None and (self.batch or self.device.type == "cpu"):
            tile, batch = self._stretched(self.tile, height, width), self.batch or self._most_tiles(self.tile)
        else:
            tile, batch = self._fit(height, width)
        stride = default_stride(tile) if self.stride is None else self.stride
        if tile >= max(height, width):  # one tile: an automatic one may be shorter than the stride
            stride = min(stride, tile)
        return Plan(tile, stride, batch, make_grid(height, width, tile, stride, self.blend))

    def __call__(self, image: Tensor, progress: Progress | None = None) -> Tensor:
        """Restore a batch of images.

        Args:
            image: (B, C_in, H, W) in [0, 1] and in the network's dtype (under autocast, any that it converts), any H
                and W from 1 up, any strides, on any device. Only tiles of it go to the network's device. Values a
                little outside of [0, 1], as noise and resampling leave them, are taken.
            progress: see `Progress`; of the tiles of all images. An exception from it ends the run.

        Returns:
            (B, C_out, H, W) of the image's dtype and device, not clamped.

        Raises:
            InputError: no tensor, another shape or dtype, values that are NaN, infinite or far from [0, 1].
            SwintormerError: the memory budget does not hold one tile, or the network's result is not finite.
        """
        check_image(image, self.net.config.in_channels, self.dtype)
        _check_range(image)
        count, _, height, width = image.shape
        restored = self.net.config.out_channels
        output = image.new_empty(count, restored, height, width)

        def cut(index: int, rows: slice, columns: slice) -> Tensor:
            return image[index, :, rows, columns]

        def emit(index: int, rows: slice, columns: slice, finished: Tensor) -> None:
            finished = mixed(finished, lambda: cut(index, rows, columns)[:restored], self.strength)
            output[index, :, rows, columns] = finished

        self._run(height, width, count, _Ends(cut, emit, image.device), progress)
        return output

    def restore_array(self, pixels: Samples, right: Samples | None = None, progress: Progress | None = None) -> Samples:
        """Restore a picture as it comes from a file.

        Args:
            pixels: (H, W, C), C 1 or 3, uint8 or uint16 over its full range. A gray picture enters the network as three
                equal channels; its result is the mean of the three output channels.
            right: the right view of a dual-pixel pair, of the same shape and dtype, where `pixels` is the left one; for
                networks of six channels and for those only. The result is then the right view restored.
            progress: see `Progress`. An exception from it ends the run.

        Returns:
            A new array of the same shape and dtype, rounded to the nearest and clamped.

        Raises:
            InputError: no array, or a shape or dtype that is no picture, or views that do not fit each other.
            SwintormerError: a network that takes no such pictures, a memory budget that does not hold one tile, or a
                result of the network that is not finite.
        """
        original = self._views(pixels, right)[0]
        output = np.empty_like(pixels, order="C")

        def store(rows: slice, columns: slice, part: Tensor) -> None:
            write_part(output, original, rows, columns, part, self.strength)

        self.restore_parts(pixels, store, right, progress)
        return output

    def restore_parts(
        self,
        pixels: Samples,
        take: Callable[[slice, slice, Tensor], None],
        right: Samples | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Restore a picture part by part, before it is mixed with the original (`strength`), rounded and clamped.

        Args:
            take: gets rows, columns and (C, rows, columns) of each finished part, in the network's scale of [0, 1], on
                the CPU. The tensor is only valid during the call. The parts cover the picture without overlap.
            pixels, right, progress: as of `restore_array`, which also says what is raised.
        """
        views = self._views(pixels, right)
        height, width, channels = pixels.shape
        full = float(np.iinfo(pixels.dtype).max)

        def cut(_: int, rows: slice, columns: slice) -> Tensor:
            samples = [np.broadcast_to(view[rows, columns], (*view[rows, columns].shape[:2], 3)) for view in views]
            return torch.from_numpy(np.concatenate(samples, axis=2, dtype=np.float32) / full).permute(2, 0, 1)

        def emit(_: int, rows: slice, columns: slice, finished: Tensor) -> None:
            take(rows, columns, finished if channels == 3 else finished.mean(0, keepdim=True))

        self._run(height, width, 1, _Ends(cut, emit, torch.device("cpu")), progress)

    def _views(self, pixels: Samples, right: Samples | None) -> list[Samples]:
        """The views in the order of the network's channels, checked."""
        for view in (pixels,) if right is None else (pixels, right):
            if not isinstance(view, np.ndarray):
                raise InputError(f"A picture is a numpy array (H, W, 3) of uint8 or uint16, found {described(view)}.")
        if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or 0 in pixels.shape:
            raise InputError(f"A picture has the shape (H, W, 1) or (H, W, 3), found {pixels.shape}.")
        if pixels.dtype not in (np.uint8, np.uint16):
            raise InputError(f"A picture has samples of uint8 or uint16, found {pixels.dtype}.")
        config = self.net.config
        if config.in_channels not in (3, 6) or config.out_channels != 3:
            raise SwintormerError(
                f"Pictures need a network with 3 or 6 channels in and 3 out, "
                f"this one has {config.in_channels} and {config.out_channels}."
            )
        if config.in_channels == 3:
            if right is not None:
                raise InputError("This network restores single pictures: leave out the right view.")
            return [pixels]
        if right is None:
            raise InputError("This network restores dual-pixel pairs: give the right view too.")
        if right.shape != pixels.shape or right.dtype != pixels.dtype:
            raise InputError(
                f"The two views must have the same size and depth, found {_described(pixels)} and {_described(right)}."
            )
        return [right, pixels]

    def _run(self, height: int, width: int, images: int, ends: _Ends, progress: Progress | None) -> None:
        """Restore images at every scale, from the coarsest on; `ends.emit` gets finished parts of the finest."""
        scales = [Scale(height, width, ends.cut)]
        while len(scales) < self._scales_of(height, width):
            scales.append(scales[-1].half())
        plans = [self.plan(scale.height, scale.width) for scale in scales]
        total, done = images * sum(len(plan.grid) for plan in plans), 0
        coarser: ImageCut | None = None
        for plan, scale in reversed([*zip(plans, scales, strict=True)]):
            cut, emit = scale.cut, ends.emit
            if coarser is not None and self.scales != "auto":
                cut, coarser = added(cut, coarser), None
            if scale is not scales[0]:
                kind = torch.promote_types(self.dtype, torch.float32)
                size = images, self.net.config.out_channels, scale.height, scale.width
                change = torch.empty(size, dtype=kind, device=ends.device)
                emit = scale.keep_change(change)
            later = None if progress is None else partial(_later, progress, done, total)
            self._run_tiles(plan, images, _Ends(cut, emit, ends.device), coarser, later)
            if scale is not scales[0]:
                coarser = doubled(change)
            done += images * len(plan.grid)

    def _scales_of(self, height: int, width: int) -> int:
        """For an image, whose coarsest one has a pixel at least; an automatic one as many as tiles are padded to."""
        if self.scales != "auto":
            return min(self.scales, 1 + math.ceil(math.log2(max(height, width))))
        halvings = math.log2(max(min(height, width) / self.net.config.stride, 1))
        return 1 + min(int(halvings), MOST_SCALES - 1)

    def _run_tiles(
        self, plan: Plan, images: int, ends: _Ends, coarser: ImageCut | None, progress: Progress | None
    ) -> None:
        """Run every tile of every image through the network, in the band's order; `ends.emit` gets finished parts.

        Args:
            coarser: the change that the scale below makes, which is taken where it is the larger one; None for none.
        """
        grid = plan.grid
        band = Band(grid, self.net.config.out_channels, torch.promote_types(self.dtype, torch.float32), ends.device)
        tiles = ((image, row, column) for image, (row, column) in product(range(images), band.walk()))
        total, done = images * len(grid), 0
        latents: dict[int, ImageLatent] = {}
        with torch.inference_mode(), _evaluating(self.net), self._precision.scope():
            while batch := list(islice(tiles, plan.batch)):
                spans = [(image, grid.rows.span(row), grid.columns.span(column)) for image, row, column in batch]
                # Converted first: under autocast to bfloat16, stack does not take float16.
                cuts = [ends.cut(*span).to(self.dtype) for span in spans]
                cut = torch.stack(cuts).to(self.device, memory_format=self._layout)
                sampled = None if progress is None else partial(progress, done, total)
                z = None
                if self.sampler is not None:
                    z = self._crops(spans, partial(self._latent, ends, grid, sampled), latents)
                restored = self._forward(cut, z, band.pixels.dtype)
                if coarser is not None:
                    changes = torch.stack([coarser(*span) for span in spans]).to(self.device)
                    share = coarser_share(changes, restored - cut).to(restored)
                    if share.any():
                        restored = restored.clone()  # the numbers of a CUDA graph last until its next replay
                        again = self._forward((cut + changes).to(cut), z, restored.dtype)
                        restored = torch.lerp(restored, again, share)
                # A sum tells it in one pass: it is finite only if every term is.
                if not restored.sum().isfinite():
                    raise SwintormerError(
                        "The network's result has values that are not finite (NaN or infinity): its weights are "
                        "damaged or too large; take other weights."
                    )
                for (image, row, column), tile in zip(batch, restored.to(band.pixels), strict=True):
                    band.add(tile, row, column)
                    band.flush(row, column, partial(ends.emit, image))
                done += len(batch)
                if progress is not None:
                    progress(done, total)

    def _forward(self, tiles: Tensor, z: Tensor | None, dtype: torch.dtype) -> Tensor:
        """The network's results, on its device."""
        if z is None:
            return self.forward(tiles).to(dtype)
        assert self.sampler is not None
        return self.forward(tiles, z, settings=(self.sampler.prior.factor,)).to(dtype)

    def _latent(self, ends: _Ends, grid: Grid, progress: Callable[[], None] | None, image: int) -> ImageLatent:
        """z_0 of an image. Of a dual-pixel pair the prior sees the view that is restored."""
        assert self.sampler is not None
        height, width = grid.rows.length, grid.columns.length
        return self.sampler.sample(lambda rows, columns: ends.cut(image, rows, columns)[:3], height, width, progress)

    def _crops(
        self,
        spans: list[tuple[int, slice, slice]],
        sample: Callable[[int], ImageLatent],
        latents: dict[int, ImageLatent],
    ) -> Tensor:
        """z_0 of tiles, (B, Cz, h, w); `latents` keeps that of the images being restored."""
        for passed in [image for image in latents if image < spans[0][0]]:
            del latents[passed]
        for image, _, _ in spans:
            if image not in latents:
                latents[image] = sample(image)
        crops = [latents[image].crop(rows, columns) for image, rows, columns in spans]
        return torch.stack(crops).to(self.device, self.dtype)

    def _fit(self, height: int, width: int) -> tuple[int, int]:
        """The largest tile, and then the largest batch, that fit into the memory budget."""
        budget = self.memory or int(SHARE_OF_AVAILABLE * available_bytes(self.device))
        if self.memory is not None:
            limit, more = f"the memory limit is {binary(budget)}", "raise the memory limit"
        else:
            limit = f"only {binary(budget)}, half of the free memory, may be used"
            more = "close other programs or set a higher memory limit"
        if self.sampler is not None and self.sampler.sampling_bytes(height, width) > budget:
            need = binary(self.sampler.sampling_bytes(height, width))
            raise SwintormerError(
                f"The prior needs about {need} of memory for {width}x{height} pixels, but {limit}: "
                f"{more}, or restore without the prior."
            )
        step = self.net.config.stride
        if isinstance(self.tile, int):
            candidates = [self.tile]
        else:
            # A tile larger than the image's longer side changes nothing.
            largest = min(self._stretched(LARGEST_AUTO_TILE, height, width), max(height, width))
            covering = -(-largest // step) * step
            candidates = [covering, *range(covering - step, (self.stride or 1) - 1, -step)]
        least = self.batch or 1
        for tile in candidates:
            if self._cost(tile, least, height, width) <= budget:
                break
        else:
            need = binary(self._cost(candidates[-1], least, height, width))
            what = f"{'One tile' if least == 1 else f'{least} tiles'} of {candidates[-1]} pixels"
            if self.tile != "auto":
                more = f'choose a smaller tile or "auto", or {more}'
            elif self.stride is not None and candidates[-1] > step:
                what = f"{what}, the smallest for a stride of {self.stride},"
                more = f"choose a smaller stride, or {more}"
            needs = "needs" if least == 1 else "need"
            raise SwintormerError(f"{what} {needs} about {need} of memory, but {limit}: {more}.")
        if self.batch is not None:
            return tile, least
        most = self._most_tiles(tile)
        return tile, max(b for b in range(1, most + 1) if self._cost(tile, b, height, width) <= budget)

    def _stretched(self, tile: int, height: int, width: int) -> int:
        """The side of a tile along an image narrower than it: with the padding, as many pixels as the square has.

        So 1x20000 pixels, padded to 128 rows for `small`, take 42 tiles of 512 instead of 91 of 256.
        """
        step = self.net.config.stride
        across, along = (-(-side // step) * step for side in sorted((height, width)))
        if not self._may_stretch or across >= tile or along <= tile:
            return tile
        return min(tile**2 // across // step * step, along)

    def _packed_bytes(self) -> int:
        """Bytes of the weights that the C++ kernels keep in their own memory layout; 0 where they do not run."""
        if self.device.type != "cpu" or self.dtype != torch.float32:
            return 0
        denoiser = () if self.sampler is None else self.sampler.prior.denoiser.parameters()
        return packed_bytes(self.net.config) + packed_convolution_bytes(denoiser)

    def _most_tiles(self, tile: int) -> int:
        """Tiles of an automatic batch that still pay off; see `CPU_BATCH_PIXELS`."""
        fill = CPU_BATCH_PIXELS // tile**2 if self.device.type == "cpu" else LARGEST_AUTO_BATCH
        return min(max(fill, 1), LARGEST_AUTO_BATCH)

    def _cost(self, tile: int, batch: int, height: int, width: int) -> int:
        """Bytes for a batch of tiles and packed weights; on a CPU also for the band and one tile being copied."""
        rows, columns = min(tile, height), min(tile, width)
        config = self.net.config
        padded = (-(-rows // config.stride) * config.stride) * (-(-columns // config.stride) * config.stride)
        cost = self._packed + resident_bytes(config, batch * padded, self.dtype.itemsize)
        across = min(tile, max(height, width)) * min(height, width) + rows * columns
        if self.device.type != "cpu":
            return cost
        latents = self.sampler.latent_bytes(height, width) if self.sampler is not None else 0
        # A tile of a coarser scale is made from the region that it covers, and that from the finer scales' region.
        halvings = self._scales_of(height, width) - 1
        regions = sum(min(2**n * (tile + 16), height) * min(2**n * (tile + 16), width) for n in range(1, halvings + 1))
        return cost + 4 * config.out_channels * (across + 2 * regions) + latents


@dataclass(frozen=True)
class _Ends:
    """The source of tiles and the destination of finished parts, both on one device.

    Attributes:
        cut: (image, rows, columns) -> (C_in, rows, columns) in [0, 1].
        emit: takes (image, rows, columns, (C_out, rows, columns)); the tensor is only valid during the call.
    """

    cut: ImageCut
    emit: ImagePart
    device: torch.device


def _later(progress: Progress, first: int, total: int, done: int, _: int) -> None:
    """Progress of tiles that come after `first` others."""
    progress(first + done, total)


def _check_range(image: Tensor) -> None:
    """Raises InputError unless all values are finite and about [0, 1]."""
    if not image.numel():
        return
    least, largest = (value.item() for value in image.detach().aminmax())
    if not (math.isfinite(least) and math.isfinite(largest)):  # a NaN anywhere makes both NaN
        raise InputError("Expected an image in [0, 1], found values that are NaN or infinite: replace them.")
    if not (RANGE[0] <= least and largest <= RANGE[1]):
        raise InputError(
            f"Expected an image in [0, 1], found values from {least:.4g} to {largest:.4g}: scale them to [0, 1]."
        )


def _moved(net: Swintormer, device: str | torch.device | None) -> Swintormer:
    if device is None:
        return net
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if str(device).partition(":")[0] not in DEVICES:
        raise SwintormerError(f"The device must be cpu, cuda or mps, found {str(device)!r}.")
    try:
        return net.to(device)
    # AssertionError: "Torch not compiled with CUDA enabled"; TypeError: MPS has no float64.
    except (RuntimeError, AssertionError, TypeError) as error:
        raise SwintormerError(f"Cannot use the device {device}: {first_line(error)}.") from error


@contextmanager
def _evaluating(net: Swintormer) -> Iterator[None]:
    """Evaluation mode inside; a network in training goes back to it, also after an interrupt."""
    training = net.training
    net.eval()
    try:
        yield
    finally:
        net.train(training)


def _described(pixels: Samples) -> str:
    return f"{pixels.shape[1]}x{pixels.shape[0]}x{pixels.shape[2]} {pixels.dtype}"
