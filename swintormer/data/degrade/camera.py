"""What a camera adds to light: noise, its tone curve, 8 bits, JPEG, and now and then another size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from swintormer.data.camera import jpeg
from swintormer.data.degrade.light import Light, to_values
from swintormer.data.degrade.stacks import rows


@dataclass(frozen=True)
class Camera:
    """What happens to the light of one sample.

    Attributes:
        shot: variance of the shot noise per unit of light.
        read: variance of the read noise.
        balance: gains of the white balance after the sensor; noise of weak channels is amplified with them.
        grain: what neighbours share of a pixel's noise, as demosaicing leaves it: 0 for none, 0.5 for two pixels wide.
        shrink: the picture is made smaller by this factor and large again, 1 for no change.
        eight_bits: whether values are rounded to 256 levels.
        quality: JPEG quality; None for no JPEG.
        seed: of the noise.
    """

    shot: float = 0.0
    read: float = 0.0
    balance: tuple[float, float, float] = (1.0, 1.0, 1.0)
    grain: float = 0.0
    shrink: float = 1.0
    eight_bits: bool = True
    quality: int | None = None
    seed: int = 0


def noise_for_mid_grey(deviation: float) -> tuple[float, float]:
    """(shot, read) variances that make a noise of `deviation`, in stored values, where a picture is middle grey.

    Read noise follows shot noise as in real cameras: log read = 2.18 log shot + 1.20 (Brooks et al., "Unprocessing
    images for learned raw denoising", 2019). Middle grey is 0.18 of light, where sRGB's curve has a slope of 1.195.
    """
    shot = (deviation / 1.195) ** 2 / 0.18
    return shot, float(np.exp(2.18 * np.log(max(shot, 1e-12)) + 1.20))


def develop(light: torch.Tensor, lights: Sequence[Light], cameras: Sequence[Camera]) -> torch.Tensor:
    """Stored values (B, V, C, H, W) of linear light of that shape.

    Noise of every view is its own. JPEG's grid starts at the first pixel. The order is that of a camera: noise,
    clipping at white, tone curve, size, 8 bits, JPEG.
    """
    batch, views, channels, height, width = light.shape
    if any(camera.shot or camera.read for camera in cameras):
        light = light + _noise(light, cameras)
    values = to_values(light.reshape(batch, views * channels, height, width), lights)
    for sample, camera in enumerate(cameras):
        if camera.shrink != 1:
            values[sample] = resized(values[sample], camera.shrink)
    rounded = torch.round(values * 255).clamp_(0, 255).div_(255)
    values = values.view(light.shape)
    result = rounded.view(light.shape)
    for sample, camera in enumerate(cameras):
        if camera.quality is not None:
            for view in range(views):
                picture = jpeg(values[sample, view].permute(1, 2, 0).cpu().numpy(), camera.quality)
                result[sample, view] = torch.from_numpy(picture).permute(2, 0, 1).to(light.device)
        elif not camera.eight_bits:
            result[sample] = values[sample].clamp(0, 1)
    return result


def resized(values: torch.Tensor, shrink: float) -> torch.Tensor:
    """(C, H, W) made smaller by a factor, filtered, and large again: a picture that came from a smaller file."""
    size = (values.shape[-2], values.shape[-1])
    small = [max(1, round(length / shrink)) for length in size]
    smaller = F.interpolate(values[None], small, mode="bicubic", antialias=True, align_corners=False)
    return F.interpolate(smaller, size, mode="bicubic", align_corners=False)[0].clamp(0, 1)


def _noise(light: torch.Tensor, cameras: Sequence[Camera]) -> torch.Tensor:
    """Noise of variance g shot light + g^2 read, g the white balance; drawn on the CPU, the same for every device."""
    # A pixel more at every edge, which only feeds its neighbours.
    shape = (*light.shape[1:-2], light.shape[-2] + 2, light.shape[-1] + 2)
    draws = [
        np.random.default_rng(camera.seed).standard_normal(shape, dtype=np.float32)
        if camera.shot or camera.read
        else np.zeros(shape, np.float32)
        for camera in cameras
    ]
    gains = [np.array(camera.balance if shape[1] == 3 else (1.0,)) for camera in cameras]
    shot = rows([camera.shot * gain for camera, gain in zip(cameras, gains, strict=True)], light)
    read = rows([camera.read * gain * gain for camera, gain in zip(cameras, gains, strict=True)], light)
    # Light beyond white is clipped, whatever its noise.
    variance = light.clamp(0, 2) * shot[:, None, :, None, None] + read[:, None, :, None, None]
    noise = rows(draws, light)
    grain = rows([np.array(camera.grain) for camera in cameras], light)[:, None, None, None, None]
    if any(camera.grain for camera in cameras):
        noise = noise[..., 1:-1, :] + grain * (noise[..., :-2, :] + noise[..., 2:, :])
        noise = noise[..., 1:-1] + grain * (noise[..., :-2] + noise[..., 2:])
        noise /= 1 + 2 * grain * grain
    else:
        noise = noise[..., 1:-1, 1:-1]
    return variance.sqrt_().mul_(noise)
