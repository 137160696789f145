"""A prior made from its configuration, and its weights in a file, alone or together with the network's.

In a safetensors file, the names of its tensors begin with `prior.`, and the metadata `swintormer.prior` hold its
`PriorConfig`.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError
from torch import Tensor

from swintormer.errors import PriorError, SwintormerError, first_fault, first_line
from swintormer.images.files import replacing
from swintormer.prior.config import PriorConfig
from swintormer.tensors import read_tensors, to_safetensors
from swintormer_kernels import optimize

if TYPE_CHECKING:
    from swintormer.prior.model import LatentPrior

PREFIX = "prior."
METADATA = "swintormer.prior"


def make_prior(config: PriorConfig) -> LatentPrior:
    """A prior with random weights, on torch's current default device; its denoiser's blocks run through the kernels.

    Raises:
        PriorError: diffusers is not installed or cannot make these parts, or the parts do not fit each other.
    """
    from swintormer.prior.model import LatentPrior

    try:
        from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DModel, VQModel

        kinds = {"AutoencoderTiny": AutoencoderTiny, "VQModel": VQModel}
        autoencoder: Any = kinds[config.autoencoder_kind](**config.autoencoder)
        denoiser: Any = UNet2DModel(**config.denoiser)
        optimize(denoiser)
        return LatentPrior(autoencoder, denoiser, DDIMScheduler(**config.scheduler), config.sampling)
    except Exception as error:  # whatever another version of diffusers raises
        if isinstance(error, ModuleNotFoundError) and error.name == "diffusers":
            raise PriorError(
                'The prior needs diffusers, which is not installed: pip install "swintormer-kernels[prior]".'
            ) from error
        raise PriorError(
            f"The prior cannot be made from its configuration ({type(error).__name__}: {first_line(error)}): "
            "install another version of diffusers."
        ) from error


def prior_from(config: PriorConfig, state: Mapping[str, Tensor]) -> LatentPrior:
    """The prior with these weights, in evaluation mode. `state` has the names of `LatentPrior.state_dict`.

    Raises:
        SwintormerError: tensors of other names or shapes; PriorError as `make_prior`.
    """
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in make_prior(config).state_dict().items()}
    check_names(expected, state)
    prior = make_prior(config)
    prior.load_state_dict(state)
    return prior.eval()


def check_names(expected: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor]) -> None:
    """Raises SwintormerError unless these are exactly the tensors expected."""
    for names, what in ((expected.keys() - state.keys(), "lacks"), (state.keys() - expected.keys(), "does not have")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise SwintormerError(f"The prior {what} the tensor {min(names)!r}{more}.")
    for name, shape in expected.items():
        if tuple(state[name].shape) != shape:
            raise SwintormerError(f"The prior's {name!r} has the shape {tuple(state[name].shape)}, expected {shape}.")


def config_of(prior: LatentPrior) -> PriorConfig:
    """The configuration that would make such a prior."""
    return PriorConfig(
        autoencoder_kind=type(prior.autoencoder).__name__,  # type: ignore[arg-type]
        autoencoder=_arguments(prior.autoencoder),
        denoiser=_arguments(prior.denoiser),
        scheduler=_arguments(prior.scheduler),
        sampling=prior.sampling,
    )


def _arguments(part: Any) -> dict[str, object]:
    """The constructor arguments in a diffusers model's configuration; tuples become lists, as in JSON."""
    taken = inspect.signature(type(part).__init__).parameters
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in part.config.items() if name in taken
    }


def parse_config(text: str) -> PriorConfig:
    """The configuration in a file's metadata. Raises ValueError, a sentence without full stop, if it is not valid."""
    try:
        return PriorConfig.model_validate_json(text)
    except ValidationError as error:
        raise ValueError(f"its prior cannot be built: {first_fault(error)}") from error


def save_prior(prior: LatentPrior, path: str | Path, card: Mapping[str, str] | None = None) -> None:
    """Write a prior alone, as `load_prior` reads it; the file is replaced only once the new one is complete."""
    metadata = {"format": "pt", METADATA: config_of(prior).model_dump_json(), "swintormer.card": json.dumps(card or {})}
    with replacing(Path(path)) as file:
        file.write(to_safetensors(prior_tensors(prior.state_dict()), metadata))


def prior_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under their names in a file."""
    return {PREFIX + name: tensor for name, tensor in state.items()}


def load_prior(path: str | Path, device: str | torch.device = "cpu") -> LatentPrior:
    """The prior of a file that holds one, alone or beside a network.

    Raises:
        SwintormerError: no such file, or none with a prior.
    """
    path = Path(path)
    state, metadata = read_tensors(path)
    if METADATA not in metadata:
        raise SwintormerError(f"{path} holds no prior.")
    try:
        config = parse_config(metadata[METADATA])
    except ValueError as error:
        raise SwintormerError(f"{path} is damaged: {error}.") from error
    own = {name.removeprefix(PREFIX): tensor for name, tensor in state.items() if name.startswith(PREFIX)}
    return prior_from(config, own).to(device)
