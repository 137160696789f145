"""Plans carried out, on batches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import torch

from swintormer.data.degrade.bank import REACH, Bank, apply_banks
from swintormer.data.degrade.camera import develop
from swintormer.data.degrade.defocus import Layers, apply_layers
from swintormer.data.degrade.light import to_light, to_values
from swintormer.data.degrade.motion import Motion, apply_motion
from swintormer.data.degrade.recipe import JPEG_GRID, MARGIN, Plan, Recipe, draw

Seed = int | Sequence[int]


def degrade(
    windows: torch.Tensor, seeds: Sequence[Seed], recipe: Recipe | None = None, views: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Degrade sharp pictures as cameras do.

    Sample b depends on windows[b] and seeds[b] alone: on the CPU bit for bit, whatever else is in the batch. Other
    devices compute alike samples together; all random numbers come from the CPU, so results agree but for rounding.

    Args:
        windows: (B, C, h + 2 MARGIN, w + 2 MARGIN) sRGB values in [0, 1], C 1 or 3.
        seeds: B seeds of numpy generators.
        recipe: what happens how often; None for `Recipe()`.
        views: make the two views of a dual-pixel sensor.

    Returns:
        blurred (B, C, h, w), or (B, 2 C, h, w) with the left view first, and sharp (B, C, h, w), both in [0, 1].
    """
    height, width = (length - 2 * MARGIN for length in windows.shape[-2:])
    recipe = recipe or Recipe()
    plans = [draw(np.random.default_rng(seed), height, width, recipe, 2 if views else 1) for seed in seeds]
    return carry_out(windows, plans)


@torch.no_grad()
def carry_out(windows: torch.Tensor, plans: Sequence[Plan]) -> tuple[torch.Tensor, torch.Tensor]:
    """`degrade` with plans made before.

    Raises:
        ValueError: a window is not larger than its margins, or there is not one plan for each.
    """
    if windows.ndim != 4 or min(windows.shape[-2:]) <= 2 * MARGIN or windows.shape[1] not in (1, 3):
        raise ValueError(
            f"windows must be (B, 1 or 3, h + {2 * MARGIN}, w + {2 * MARGIN}), found {tuple(windows.shape)}"
        )
    if len(plans) != len(windows):
        raise ValueError(f"every window needs one seed or plan, found {len(plans)} for {len(windows)} windows")
    if windows.device.type != "cpu":
        return _together(windows, plans)
    # One at a time: MKL's FFTs of batches take up to five times as long a picture, and may round differently.
    results = [_together(windows[b : b + 1], plans[b : b + 1]) for b in range(len(plans))]
    blurred, sharp = zip(*results, strict=True)
    return torch.cat(blurred), torch.cat(sharp)


def _together(windows: torch.Tensor, plans: Sequence[Plan]) -> tuple[torch.Tensor, torch.Tensor]:
    height, width = (length - 2 * MARGIN for length in windows.shape[-2:])
    # The file begins up to a block before the crop, and the light reaches in from beyond the file.
    tall, wide = height + JPEG_GRID + 2 * REACH, width + JPEG_GRID + 2 * REACH
    starts = [tuple(JPEG_GRID - shift for shift in plan.offset) for plan in plans]
    files = torch.stack([w[:, y : y + tall, x : x + wide] for w, (y, x) in zip(windows, starts, strict=True)])
    files.clamp_(0, 1)  # what a resampled photograph overshoots has no tone
    lights, cameras = [plan.light for plan in plans], [plan.camera for plan in plans]
    blurred, sharp = blur(to_light(files, lights), plans)
    values, truth = develop(blurred, lights, cameras), to_values(sharp, lights)
    crops = []
    for b, (y, x) in enumerate(plan.offset for plan in plans):
        cut = (..., slice(y, y + height), slice(x, x + width))
        crops.append((values[b][cut].reshape(-1, height, width), truth[b][cut]))
    degraded, target = zip(*crops, strict=True)
    return torch.stack(degraded), torch.stack(target)


def blur(scenes: torch.Tensor, plans: Sequence[Plan]) -> tuple[torch.Tensor, torch.Tensor]:
    """Blurred (B, V, C, h, w) and sharp (B, C, h, w) of light (B, C, h + 2 REACH, w + 2 REACH); like blurs together."""
    groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for b, plan in enumerate(plans):
        groups[plan.blur.key].append(b)
    results: list[tuple[torch.Tensor, torch.Tensor]] = [()] * len(plans)  # type: ignore[list-item]
    for members in groups.values():
        blurs = [plans[b].blur for b in members]
        part = scenes if len(groups) == 1 else scenes[members]
        blurred, sharp = _APPLY[type(blurs[0])](part, blurs)
        for place, b in enumerate(members):
            results[b] = blurred[place], sharp[place]
    blurred_views = [blurred.expand(plan.views, -1, -1, -1) for (blurred, _), plan in zip(results, plans, strict=True)]
    return torch.stack(blurred_views), torch.stack([sharp for _, sharp in results])


_APPLY: dict[type, Callable[..., tuple[torch.Tensor, torch.Tensor]]] = {
    Bank: apply_banks,
    Layers: apply_layers,
    Motion: apply_motion,
}
