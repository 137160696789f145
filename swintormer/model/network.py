"""Swintormer: a U-Net of shifted-window, depth-wise-convolution attention blocks (arXiv 2401.05907).

The resolution falls from 1/2 to 1/16 and back while channels go D, 2D, 4D, 8D; parameter names are the released ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swintormer.errors import InputError, described
from swintormer.model.config import NetworkConfig, config_of
from swintormer.model.fusion import PriorFusion, over_image
from swintormer.model.padding import pad_to_multiple
from swintormer_kernels.nn import Block
from swintormer_kernels.ops.conv3x3_shuffle import OP as CONVOLUTION
from swintormer_kernels.ops.conv3x3_shuffle import conv3x3_shuffle
from swintormer_kernels.records import ShuffleWeights
from swintormer_kernels.registry import asked_backend
from swintormer_kernels.transforms import constant_in_compiled_code


class Swintormer(nn.Module):
    """The restoration network.

    Args:
        config: sizes; None for the released ones.
        **overrides: single sizes by name, as in `NetworkConfig`: `Swintormer(dim=24, heads=(1, 2, 4, 8))`.

    Raises:
        InputError: a size out of range or unknown.

    Attributes:
        config: the `NetworkConfig` it was made from.
    """

    def __init__(self, config: NetworkConfig | None = None, **overrides: object):
        super().__init__()
        self.config = config = config_of(config, overrides)
        d, blocks, bias = config.dim, config.num_blocks, config.bias

        self.patch_embed = PatchEmbed(config.in_channels, d, bias)
        self.encoder_level1 = self._stage(0, blocks[0], d)
        self.down1_2 = Downsample(d, bias)
        self.encoder_level2 = self._stage(1, blocks[1], 2 * d)
        self.down2_3 = Downsample(2 * d, bias)
        self.encoder_level3 = self._stage(2, blocks[2], 4 * d)
        self.down3_4 = Downsample(4 * d, bias)
        self.latent = self._stage(3, blocks[3], 8 * d)

        self.up4_3 = Upsample(8 * d, bias)
        self.reduce_chan_level3 = nn.Conv2d(8 * d, 4 * d, 1, bias=bias)
        self.decoder_level3 = self._stage(2, blocks[2], 4 * d)
        self.up3_2 = Upsample(4 * d, bias)
        self.reduce_chan_level2 = nn.Conv2d(4 * d, 2 * d, 1, bias=bias)
        self.decoder_level2 = self._stage(1, blocks[1], 2 * d)
        self.up2_1 = Upsample(2 * d, bias)
        self.decoder_level1 = self._stage(0, blocks[0], 2 * d)
        self.refinement = self._stage(0, config.num_refinement_blocks, 2 * d)

        self.skip_conv = nn.Conv2d(d, 2 * d, 1, bias=bias)
        self.output = ShuffledConv(2 * d, 4 * config.out_channels, bias)
        self.prior_fusion = PriorFusion(d, config.prior_channels) if config.prior_channels else None

    @classmethod
    def from_pretrained(cls, place: str | Path, **download: Any) -> Swintormer:
        """The network of a folder, or of a repository on the hub: see `swintormer.checkpoint.hub.read_pretrained`."""
        from swintormer.checkpoint.hub import read_pretrained

        return read_pretrained(place, prior=False, **download).net

    def save_pretrained(self, folder: str | Path, *, license: str | None = None) -> None:
        """Write a folder that `from_pretrained` reads: see `swintormer.checkpoint.hub.save_pretrained`."""
        from swintormer.checkpoint.hub import save_pretrained

        save_pretrained(self, folder, license=license)

    def push_to_hub(self, repository: str, **options: Any) -> str:
        """Write a repository on the hub: see `swintormer.checkpoint.hub.push_to_hub`."""
        from swintormer.checkpoint.hub import push_to_hub

        return push_to_hub(self, repository, **options)

    def _stage(self, level: int, count: int, channels: int) -> nn.Sequential:
        """Blocks of one resolution; the shift alternates, starting with 0."""
        config = self.config
        return nn.Sequential(
            *(
                Block(
                    channels,
                    config.heads[level],
                    config.window_size,
                    shift=config.window_size // 2 if i % 2 else 0,
                    expansion=config.ffn_expansion,
                    bias=config.bias,
                )
                for i in range(count)
            )
        )

    def forward(self, image: Tensor, prior: Tensor | None = None, prior_factor: int | None = None) -> Tensor:
        """Restore a batch of images.

        Args:
            image: (B, in_channels, H, W) in [0, 1], any H and W from 1 up. Sides that are not multiples of
                `config.stride` are padded inside and cropped at the end.
            prior: the latent z_0 of these images, (B, prior_channels, h, w), at any resolution. None has the same
                result as zeros.
            prior_factor: side in pixels of the area of one position of z_0 (`LatentPrior.factor`): h is
                ceil(H / factor), w likewise. None stretches z_0 over the image.

        Returns:
            (B, out_channels, H, W), around [0, 1] and not clamped.

        Raises:
            InputError: no tensor, not 4-D, wrong channels, an empty height or width, or another dtype than the
                network's (autocast takes any of its own); a prior that does not fit.
        """
        check_image(image, self.config.in_channels, self.skip_conv.weight.dtype)
        h, w = image.shape[2:]
        self._check_prior(image, prior, prior_factor)
        if image.shape[0] == 0:  # torch's pixel_unshuffle leaves the channels of an empty batch as they are
            return image[:, : self.config.out_channels]
        x = pad_to_multiple(2 * image - 1, self.config.stride)
        if prior is not None:
            prior = over_image(prior.to(x.dtype), (h, w), (x.shape[2], x.shape[3]), prior_factor)
        y = self.restore_features(x, prior)[..., :h, :w]
        y = (
            2 * image[:, : self.config.out_channels] - 1
        ) + y  # the first addend decides the memory layout: the image's
        return (y + 1) / 2

    def _check_prior(self, image: Tensor, prior: Tensor | None, factor: int | None) -> None:
        channels = self.config.prior_channels
        if prior is None:
            return
        if not channels:
            raise InputError("This network takes no prior: make it with prior_channels, or leave the prior out.")
        if not isinstance(prior, Tensor):
            raise InputError(f"Expected a prior as a tensor (B, {channels}, h, w), found {described(prior)}.")
        if prior.ndim != 4 or prior.shape[:2] != (image.shape[0], channels) or 0 in prior.shape[2:]:
            raise InputError(
                f"Expected a prior of shape ({image.shape[0]}, {channels}, h, w) with h, w >= 1, "
                f"found {tuple(prior.shape)}."
            )
        if factor is not None:
            expected = tuple(-(-side // factor) for side in image.shape[2:])
            if tuple(prior.shape[2:]) != expected:
                raise InputError(
                    f"Expected a prior of {expected} positions of {factor} pixels, found {tuple(prior.shape[2:])}."
                )

    def restore_features(self, x: Tensor, prior: Tensor | None = None) -> Tensor:
        """The U-Net: x in [-1, 1] at multiples of the stride -> the residual to add to it.

        `prior` is z_0 over all of x, see `fusion.over_image`; it is added where a stage begins.
        """
        if x.is_cpu:
            # 2 to 5 % of a tile: blocks read and write vectors of channels, convolutions need no other layout inside.
            x = x.contiguous(memory_format=torch.channels_last)
        # Tensors are freed before the last stages, which hold three maps of 2D channels at 1/2 of the resolution.
        embedded = self.patch_embed(x)
        del x
        level1 = self.encoder_level1(self._fused("encoder_level1", embedded, prior))
        level2 = self.encoder_level2(self._fused("encoder_level2", self.down1_2(level1), prior))
        level3 = self.encoder_level3(self._fused("encoder_level3", self.down2_3(level2), prior))
        latent = self.latent(self._fused("latent", self.down3_4(level3), prior))

        y = self.reduce_chan_level3(torch.cat((self.up4_3(latent), level3), dim=1))
        del latent, level3
        y = self.decoder_level3(self._fused("decoder_level3", y, prior))
        y = self.reduce_chan_level2(torch.cat((self.up3_2(y), level2), dim=1))
        del level2
        y = self.decoder_level2(self._fused("decoder_level2", y, prior))
        y = torch.cat((self.up2_1(y), level1), dim=1)
        del level1
        y = self.decoder_level1(self._fused("decoder_level1", y, prior))
        y = self.refinement(y)
        skip = self.skip_conv(embedded)
        # Under autocast the convolution's result is bfloat16 and y float32, and torch has no vectorised sum of the two.
        return self.output(skip.to(y.dtype).add_(y))

    def _fused(self, stage: str, y: Tensor, prior: Tensor | None) -> Tensor:
        return y if prior is None or self.prior_fusion is None else self.prior_fusion(stage, y, prior)


def check_image(image: Tensor, channels: int, own: torch.dtype) -> None:
    """Raises InputError unless `image` is a batch (B, channels, H, W) in the dtype `own` of a network.

    Under autocast, the dtypes that it converts will do as well. Values are not looked at.
    """
    if not isinstance(image, Tensor):
        from_array = ": make one with torch.from_numpy" if type(image).__module__ == "numpy" else ""
        raise InputError(
            f"Expected an image as a tensor (B, {channels}, H, W) of {own} in [0, 1], "
            f"found {described(image)}{from_array}."
        )
    if image.ndim != 4 or image.shape[1] != channels or 0 in image.shape[2:]:
        raise InputError(
            f"Expected an image of shape (B, {channels}, H, W) with H, W >= 1, found {tuple(image.shape)}."
        )
    found, device = image.dtype, image.device.type
    if found == own:
        return
    casts = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    if casts and found in (torch.float32, torch.float16, torch.bfloat16):
        return
    advice = "convert the one or the other with .to()"
    if not (found.is_floating_point or found.is_complex or found == torch.bool):
        advice = f"divide it by its largest value, {torch.iinfo(found).max}"
    raise InputError(f"Expected an image of {own} in [0, 1], the network's dtype, found {found}: {advice}.")


class PatchEmbed(nn.Module):
    """PixelUnshuffle(2), then a 3x3 convolution 4 C_in -> D. (B, C_in, H, W) -> (B, D, H/2, W/2)."""

    def __init__(self, in_channels: int, dim: int, bias: bool):
        super().__init__()
        self.proj1 = nn.PixelUnshuffle(2)
        self.proj2 = nn.Conv2d(4 * in_channels, dim, 3, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return _convolved(self.proj2, in_rows(x, -2) if _loses_rows(x) else self.proj1(x))


class Downsample(nn.Module):
    """3x3 convolution C -> C/2, PixelUnshuffle(2). (B, C, H, W) -> (B, 2C, H/2, W/2)."""

    def __init__(self, channels: int, bias: bool):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, channels // 2, 3, padding=1, bias=bias), nn.PixelUnshuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        y = _convolved(self.body[0], x)
        return in_rows(y, -2) if _loses_rows(y) else self.body[1](y)


class Upsample(nn.Module):
    """3x3 convolution C -> 2C, PixelShuffle(2). (B, C, H, W) -> (B, C/2, 2H, 2W)."""

    def __init__(self, channels: int, bias: bool):
        super().__init__()
        self.body = ShuffledConv(channels, 2 * channels, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class ShuffledConv(nn.Sequential):
    """3x3 convolution C_in -> C_out, PixelShuffle(2). (B, C_in, H, W) -> (B, C_out/4, 2H, 2W)."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool):
        super().__init__(nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        return _convolved(self[0], x, shuffle=2)


@constant_in_compiled_code
def _only_for_blocks() -> bool:
    """Whether `use_backend` names a backend that has no convolution, as Triton: it then serves the blocks alone."""
    return asked_backend() in CONVOLUTION.absent


def _convolved(conv: nn.Module, x: Tensor, shuffle: int = 1) -> Tensor:
    """PixelShuffle(shuffle) of `conv`, a 3x3 nn.Conv2d, of x."""
    # Whatever somebody has put in the place of the convolution, or hung on it, is called as a module.
    hooked = conv._forward_hooks or conv._forward_pre_hooks or conv._backward_hooks
    if type(conv) is not nn.Conv2d or hooked or _only_for_blocks():
        y = conv(x)
        return in_rows(y, shuffle) if shuffle > 1 and _loses_rows(y) else F.pixel_shuffle(y, shuffle)
    return conv3x3_shuffle(x, ShuffleWeights(conv.weight, conv.bias), shuffle)


def _loses_rows(x: Tensor) -> bool:
    """Whether torch's PixelShuffle and PixelUnshuffle turn x, in channels_last, into NCHW: they do except on a CPU."""
    return not x.is_cpu and x.is_contiguous(memory_format=torch.channels_last)


def in_rows(x: Tensor, shuffle: int) -> Tensor:
    """PixelShuffle(shuffle), or PixelUnshuffle(-shuffle), of x in channels_last as one copy in channels_last.

    The CUDA kernels take no other layout, and convolutions on a GPU would convert a copy.
    """
    rows = x.permute(0, 2, 3, 1)
    if shuffle > 0:
        parts = rows.unflatten(3, (-1, shuffle, shuffle)).permute(0, 1, 4, 2, 5, 3)  # B, H, down, W, right, C
        return parts.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)
    parts = rows.unflatten(2, (-1, -shuffle)).unflatten(1, (-1, -shuffle)).permute(0, 1, 3, 5, 2, 4)
    return parts.flatten(3).permute(0, 3, 1, 2)
