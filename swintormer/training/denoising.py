"""What the denoiser's training minimises, whatever the latent is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from swintormer.prior.model import LatentPrior
    from swintormer.training.run import Run


def denoising_loss(run: Run, prior: LatentPrior, latent: Tensor, part: Tensor) -> Tensor:
    """Mean square error of the denoiser on a latent (B, Cz, h, w) at random times; `part` as for `predict`."""
    times = torch.randint(prior.scheduler.config["num_train_timesteps"], (len(latent),)).to(latent.device)
    noise = torch.randn(latent.shape).to(latent.device)
    z = prior.scheduler.add_noise(latent, noise, times)
    with run.autocast():
        predicted = prior.predict(z, times, part)
    return F.mse_loss(predicted.float(), target(prior, latent, noise, times))


def target(prior: LatentPrior, sharp: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """What the denoiser has to predict at these times: x_0, the noise, or the velocity."""
    kind = prior.scheduler.config["prediction_type"]
    if kind == "sample":
        return sharp
    return noise if kind == "epsilon" else prior.scheduler.get_velocity(sharp, noise, times)
