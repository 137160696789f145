"""Between stored values and light, and light brighter than a file can hold.

Light adds up, stored values do not: every blur is computed in linear light, and clipped only afterwards. A picture's
own values end at 1, the light of a lamp does not; blurred, it fills its disc or its streak with white.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from swintormer.data.degrade.stacks import column, rows


@dataclass(frozen=True)
class Light:
    """How the light of a scene is computed from a stored picture, and how light becomes a picture again.

    Attributes:
        gains: exposure and white balance, one factor a channel in linear light; blurred and sharp alike.
        contrast: exponent of the camera's tone curve (`tone`), from 1 (none) up.
        stored: the stored values are blurred as if they were light, as when a finished file is blurred.
        threshold: stored lightness from which highlights are raised (`highlight_gain`).
        boost: how many times brighter the light of white is.
        lamps: (N, 6) point lights: y and x from the middle of the picture and radius in pixels, light in red, green
            and blue.
    """

    gains: tuple[float, float, float] = (1.0, 1.0, 1.0)
    contrast: float = 1.0
    stored: bool = False
    threshold: float = 0.95
    boost: float = 1.0
    lamps: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 6), np.float32))


def srgb_to_light(values: torch.Tensor) -> torch.Tensor:
    """Linear light of sRGB values in [0, 1] (IEC 61966-2-1)."""
    return torch.where(values <= 0.04045, values / 12.92, ((values.clamp_min(0.0) + 0.055) / 1.055) ** 2.4)


def light_to_srgb(light: torch.Tensor) -> torch.Tensor:
    """sRGB values of linear light in [0, 1]."""
    return torch.where(light <= 0.0031308, light * 12.92, 1.055 * light.clamp_min(0.0031308) ** (1 / 2.4) - 0.055)


def tone(values: torch.Tensor, contrast: torch.Tensor | float) -> torch.Tensor:
    """x^c / (x^c + (1 - x)^c) on [0, 1]: an S for c > 1, undone by 1 / c. Cameras add one to sRGB's curve."""
    rise, fall = values**contrast, (1 - values) ** contrast
    return rise / (rise + fall)


def to_light(values: torch.Tensor, lights: Sequence[Light]) -> torch.Tensor:
    """The scene's linear light, highlights and lamps above 1.

    Args:
        values: (B, C, H, W) stored values in [0, 1], C 1 or 3.
        lights: one for each of the B pictures.
    """
    contrast = column([light.contrast for light in lights], values)
    light = tone(values, 1 / contrast) if any(light.contrast != 1 for light in lights) else values
    stored = column([float(light.stored) for light in lights], values)
    if not all(light.stored for light in lights):
        light = torch.where(stored > 0, light, srgb_to_light(light))
    if any(light.boost != 1 for light in lights):
        light = light * highlight_gain(
            values,
            column([light.threshold for light in lights], values),
            column([light.boost for light in lights], values),
        )
    if any(len(light.lamps) for light in lights):
        size = (values.shape[-2], values.shape[-1])
        light = light + rows([_lamps(light.lamps, *size) for light in lights], values)[:, : values.shape[1]]
    if any(light.gains != (1.0, 1.0, 1.0) for light in lights):
        light = light * rows([np.array(light.gains) for light in lights], values)[:, : values.shape[1], None, None]
    return light


def highlight_gain(values: torch.Tensor, threshold: torch.Tensor, boost: torch.Tensor) -> torch.Tensor:
    """(B, 1, H, W): 1 up to the threshold, `boost` at 1, with the square of the distance between.

    Of the mean of a pixel's largest and smallest channel: white things are raised and keep their hue, skies are not.
    """
    lightness = (values.amax(1, keepdim=True) + values.amin(1, keepdim=True)) / 2
    ramp = ((lightness - threshold) / (1 - threshold)).clamp_min(0.0)
    return 1 + (boost - 1) * ramp * ramp


def to_values(light: torch.Tensor, lights: Sequence[Light]) -> torch.Tensor:
    """Stored values of linear light (B, C, H, W), clipped to [0, 1]: what `to_light` undoes, but for its gains."""
    light = light.clamp(0.0, 1.0)
    contrast = column([plan.contrast for plan in lights], light)
    stored = column([float(plan.stored) for plan in lights], light)
    values = light if all(plan.stored for plan in lights) else torch.where(stored > 0, light, light_to_srgb(light))
    # sRGB's curve may end an epsilon above 1, where the tone curve is not defined.
    return tone(values.clamp(0.0, 1.0), contrast) if any(plan.contrast != 1 for plan in lights) else values


def _lamps(lamps: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """(3, height, width) light of discs with soft edges."""
    canvas = np.zeros((3, height, width), np.float32)
    for down, across, radius, *colour in lamps:
        y, x = down + (height - 1) / 2, across + (width - 1) / 2
        reach = int(radius) + 2
        top, left = max(0, round(y) - reach), max(0, round(x) - reach)
        part = canvas[:, top : max(0, round(y) + reach + 1), left : max(0, round(x) + reach + 1)]
        if part.size:
            dy = np.arange(part.shape[1], dtype=np.float32)[:, None] + np.float32(top - y)
            dx = np.arange(part.shape[2], dtype=np.float32)[None, :] + np.float32(left - x)
            part += np.clip(radius + 0.5 - np.hypot(dy, dx), 0, 1) * np.array(colour, np.float32)[:, None, None]
    return canvas
