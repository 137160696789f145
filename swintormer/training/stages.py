"""The stages that train the prior: autoencoder, denoiser on its latents, and both networks jointly through the sampler.

The paper trains in this order (arXiv 2401.05907). In the last stage gradients also reach the denoiser, through every
step of the sampler, as in DiffIR (Xia et al. ICCV 2023), because the best latent for the network may differ from the
autoencoder's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swintormer.errors import SwintormerError
from swintormer.model.network import Swintormer
from swintormer.prior.checkpoint import config_of, load_prior, make_prior, save_prior
from swintormer.prior.model import LatentPrior
from swintormer.training.config import AutoencoderConfig, DenoiserConfig, DenoisingStageConfig, JointConfig, TrainConfig
from swintormer.training.losses import l1_loss, moment_loss
from swintormer.training.run import ImageRun, Run, first_network

MOMENTS = 0.01  # weight of `moment_loss`: the noise schedule assumes latents of mean 0 and variance 1
POOL_BATCH = 16


class PriorRun(Run):
    """Common parts of the stages that train the prior alone."""

    config: AutoencoderConfig | DenoiserConfig
    net: LatentPrior

    def identity(self) -> dict[str, Any]:
        return {"prior": self.config.prior.model_dump(mode="json")}

    def write(self, path: Path, card: dict[str, str]) -> None:
        with self.averaged() as net:
            assert isinstance(net, LatentPrior)
            save_prior(net, path, card)


class AutoencoderRun(PriorRun, ImageRun):
    """Trains the autoencoder on sharp and on blurred pictures, because the denoiser needs latents of both.

    `moment_loss` is computed for each part of the batch where `accumulate` or several processes split it.
    """

    config: AutoencoderConfig

    def build(self) -> nn.Module:
        prior = make_prior(self.config.prior)
        _check_crop(self.config, prior.encoder_factor)
        prior.denoiser.requires_grad_(False)
        return prior

    def loss(self, blurred: Tensor, sharp: Tensor) -> Tensor:
        image = torch.cat((blurred, sharp))
        with self.autocast():
            latent = self.net.encode(image)
            output = self.net.decode(latent)
        return self.image_loss(output, image) + MOMENTS * moment_loss(latent)

    def shown(self, blurred: Tensor, sharp: Tensor) -> tuple[Tensor, Tensor]:
        """The sharp picture, encoded and decoded; the blurred one."""
        with self.autocast():
            return self.net.decode(self.net.encode(sharp)), blurred


class DenoiserRun(PriorRun):
    """Trains the denoiser, from noise and the blurred picture's latent to the sharp one's. Latents are made once."""

    config: DenoiserConfig

    def build(self) -> nn.Module:
        prior = _given_prior(self.config)
        _check_crop(self.config, prior.factor * prior.align)
        prior.autoencoder.requires_grad_(False)
        return prior

    def batches(self, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs (condition, sharp latent) from `pool`; the step number alone selects them."""
        conditions, latents = self.pool
        for step in range(start, self.config.steps):
            chosen = np.random.default_rng((self.config.seed, step)).integers(len(latents), size=self.config.batch)
            own = torch.from_numpy(chosen)[self.place.share(self.config.batch)]
            yield conditions[own], latents[own]

    def prepare(self) -> None:
        super().prepare()
        self.pool  # noqa: B018

    @cached_property
    @torch.no_grad()
    def pool(self) -> tuple[Tensor, Tensor]:
        pairs = self.sources[self.config.crop]
        made: list[tuple[Tensor, Tensor]] = []
        for start in range(0, self.config.pool, POOL_BATCH):
            blurred, sharp = pairs.batch(start, min(POOL_BATCH, self.config.pool - start))
            condition = self.net.condition(blurred.to(self.device))
            made.append((condition.cpu(), self.net.encode(sharp.to(self.device)).cpu()))
        conditions, latents = zip(*made, strict=True)
        return torch.cat(conditions), torch.cat(latents)

    def loss(self, blurred: Tensor, sharp: Tensor) -> Tensor:
        """Mean squared error of the denoiser's prediction; see `target`."""
        with self.autocast():
            part = self.net.condition_part(blurred)
        return denoising_loss(self.autocast(), self.net, sharp, part, self.chance(len(sharp)))

    def shown(self, blurred: Tensor, sharp: Tensor) -> tuple[Tensor, Tensor]:
        """z_0 from the sampler, decoded; the blurred picture through the autoencoder."""
        with self.autocast():
            z = self.net.sample(blurred)
            return self.net.decode(z), self.net.decode(self.net.encode(blurred))


class Joint(nn.Module):
    """Network and prior side by side."""

    def __init__(self, network: Swintormer, prior: LatentPrior):
        super().__init__()
        self.network, self.prior = network, prior


class JointRun(ImageRun):
    """Trains the restoration network with z_0 from the sampler, and with it denoiser and encoder, but not the decoder.

    The encoder is trained, too, because the first stage gives blurred and sharp pictures nearly the same latent: after
    9 minutes the two differ by 0.1 % of their variance. The target of z_0 comes from the previous stage's encoder, so
    that the decoder can still decode z_0.
    """

    config: JointConfig
    net: Joint

    def __init__(self, config: JointConfig, device: torch.device):
        super().__init__(config, device)
        self.before = _given_prior(config).requires_grad_(False).to(device)

    def build(self) -> nn.Module:
        prior = _given_prior(self.config)
        _check_crop(self.config, prior.factor * prior.align)
        prior.autoencoder.decoder.requires_grad_(False)
        return Joint(first_network(self.config), prior)

    def learning(self) -> list[dict[str, Any]]:
        fresh = [parameter for parameter in self.net.prior.parameters() if parameter.requires_grad]
        fusion = self.net.network.prior_fusion
        new = [] if fusion is None else list(fusion.parameters())
        known = {id(parameter) for parameter in new}
        trained = [parameter for parameter in self.net.network.parameters() if id(parameter) not in known]
        return [{"params": trained}, {"params": new + fresh, "rate": self.config.prior_rate}]

    def identity(self) -> dict[str, Any]:
        return {name: getattr(self.config, name).model_dump(mode="json") for name in ("network", "prior")}

    def truth(self, blurred: Tensor, sharp: Tensor) -> Tensor:
        """The target of z_0, (B, Cz, h, w)."""
        return self.before.encode(sharp)

    def loss(self, blurred: Tensor, sharp: Tensor) -> Tensor:
        prior = self.net.prior
        shape = (prior.latent_channels, *_sides(self.net, blurred))
        noise = torch.stack([torch.randn(shape, generator=generator) for generator in self.chance(len(blurred))])
        dropped = np.random.default_rng((self.config.seed, self.step)).random() < self.config.prior_dropout
        with self.autocast():
            with torch.no_grad():
                truth = self.truth(blurred, sharp)
            z = prior.denoise(prior.condition(blurred), noise.to(blurred), prior.sampling.steps, prior.sampling.eta)
            output = self.net.network(blurred, prior=None if dropped else z, prior_factor=prior.factor)
        loss = self.image_loss(output, sharp)
        return loss + self.config.latent * l1_loss(z, truth)

    def shown(self, blurred: Tensor, sharp: Tensor) -> tuple[Tensor, Tensor]:
        with self.autocast():
            z = self.net.prior.sample(blurred)
            return self.net.network(blurred, prior=z, prior_factor=self.net.prior.factor), blurred

    def write(self, path: Path, card: dict[str, str]) -> None:
        from swintormer.checkpoint.checkpoint import save_checkpoint

        tile = self.config.training_tile or self.config.crop
        with self.averaged() as net:
            assert isinstance(net, Joint)
            save_checkpoint(net.network, path, card=card, training_tile=tile, prior=net.prior)


def _sides(net: Joint, image: Tensor) -> tuple[int, int]:
    return image.shape[2] // net.prior.factor, image.shape[3] // net.prior.factor


def _check_crop(config: TrainConfig, multiple: int) -> None:
    """Raises SwintormerError unless every crop is a multiple of the prior's coarsest positions."""
    for phase in config.phases:
        if phase.crop % multiple:
            raise SwintormerError(
                f"Stage {config.stage} takes crops of a multiple of {multiple} pixels with this prior, "
                f"found {phase.crop}: set `crop` to {phase.crop + -phase.crop % multiple}."
            )


def _given_prior(config: DenoisingStageConfig) -> LatentPrior:
    prior = load_prior(config.prior_weights)
    made, asked = config_of(prior), config_of(make_prior(config.prior))
    if made != asked:
        raise SwintormerError(f"{config.prior_weights} holds a prior of another configuration than `prior`.")
    return prior


def denoising_loss(
    autocast: AbstractContextManager[None],
    prior: LatentPrior,
    latent: Tensor,
    part: Tensor,
    chance: list[torch.Generator],
) -> Tensor:
    """Mean squared error of the denoiser for a latent (B, Cz, h, w) at random times; `part` as for `predict`."""
    last = prior.scheduler.config["num_train_timesteps"]
    times = torch.cat([torch.randint(last, (1,), generator=generator) for generator in chance]).to(latent.device)
    noise = torch.stack([torch.randn(latent.shape[1:], generator=generator) for generator in chance]).to(latent.device)
    z = prior.scheduler.add_noise(latent, noise, times)
    with autocast:
        predicted = prior.predict(z, times, part)
    return F.mse_loss(predicted.float(), target(prior, latent, noise, times))


def target(prior: LatentPrior, sharp: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """What the denoiser has to predict at these times: x_0, the noise, or the velocity."""
    kind = prior.scheduler.config["prediction_type"]
    if kind == "sample":
        return sharp
    return noise if kind == "epsilon" else prior.scheduler.get_velocity(sharp, noise, times)


STAGES: dict[str, type[Run]] = {
    "autoencoder": AutoencoderRun,
    "denoiser": DenoiserRun,
    "joint": JointRun,
}
