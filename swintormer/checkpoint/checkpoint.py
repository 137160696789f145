"""Checkpoints: write safetensors that describe themselves; read those and the release's layout; never run code.

A file of ours carries in its metadata `swintormer.config` (JSON of `NetworkConfig`), `swintormer.training_tile`,
`swintormer.card` (JSON object of strings) and `swintormer.checksum` of its tensors; and, where the window is not the
released one, a tensor that names it (`infer.WINDOW`). For any other file, the shapes of the tensors give the
configuration.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from swintormer.checkpoint.infer import (
    DEFAULT_WINDOW,
    WINDOW,
    check_shapes,
    config_from_shapes,
    is_marked,
    marked_window,
)
from swintormer.errors import InputError, SwintormerError, described, first_fault
from swintormer.images.files import replacing
from swintormer.model.config import NetworkConfig
from swintormer.model.network import Swintormer
from swintormer.prior import checkpoint as prior_weights
from swintormer.prior.config import PriorConfig
from swintormer.tensors import bare_name, read_tensors, to_safetensors

if TYPE_CHECKING:
    from swintormer.prior.model import LatentPrior


@dataclass(frozen=True)
class Checkpoint:
    """A network with what came in its file.

    Attributes:
        net: the network.
        prior: the prior in the same file; None where there is none, or where it was left out.
        training_tile: side in pixels of the crops it was trained on; None where the file does not say.
        card: summary of the model card; empty where the file has none.
        describes_itself: whether the file names the window of `net`, in its metadata or in a tensor. If not, it is the
            caller's or the released 16; no tensor's shape depends on it.
    """

    net: Swintormer
    prior: LatentPrior | None = None
    training_tile: int | None = None
    card: Mapping[str, str] = field(default_factory=dict)
    describes_itself: bool = True


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint says about itself.

    Attributes:
        config: from the metadata, or else inferred from the shapes.
        training_tile: side in pixels of the crops it was trained on; None where the file does not say.
        card: summary of the model card; empty where the file has none.
        parameters: number of parameters.
        describes_itself: as in `Checkpoint`.
        prior: configuration of the prior in the same file; None where there is none. `parameters` counts it too.
    """

    config: NetworkConfig
    training_tile: int | None = None
    card: dict[str, str] = field(default_factory=dict)
    parameters: int = 0
    describes_itself: bool = False
    prior: PriorConfig | None = None


def save_checkpoint(
    net: Swintormer | Checkpoint,
    path: str | Path,
    *,
    training_tile: int | None = None,
    card: Mapping[str, str] | str | None = None,
    prior: LatentPrior | None = None,
) -> None:
    """Write a network as safetensors; an existing file is replaced only once the new one is complete.

    Args:
        net: a network, also one compiled by torch.compile, or a `Checkpoint`, whose other contents are written, too,
            except what is given here.
        training_tile: side in pixels of the training crops.
        card: the model card in short, as name and text pairs; a string alone becomes its `summary`; an empty one is
            left out.
        prior: written into the same file; the network must take its latent as input.

    Raises:
        InputError: neither network nor checkpoint, no path, or a training tile that is not positive.
        SwintormerError: the file cannot be written, or the prior's channels are not those that the network takes.
    """
    found = checkpoint_of(net)
    training_tile = found.training_tile if training_tile is None else training_tile
    card = found.card if card is None else card
    prior = found.prior if prior is None else prior
    net = found.net
    metadata = {"format": "pt", "swintormer.config": net.config.model_dump_json()}
    if training_tile is not None:
        if training_tile < 1:
            raise InputError(f"The training tile must be at least 1 pixel, found {training_tile}.")
        metadata["swintormer.training_tile"] = str(training_tile)
    if card:
        metadata["swintormer.card"] = json.dumps({"summary": card} if isinstance(card, str) else dict(card))
    state = {bare_name(name): tensor for name, tensor in net.state_dict().items()}
    if is_marked(net.config):
        state[WINDOW] = torch.tensor([float(net.config.window_size)])  # floating point, as every tensor of a file
    if prior is not None:
        check_channels(net.config, prior.latent_channels)
        metadata[prior_weights.METADATA] = prior_weights.config_of(prior).model_dump_json()
        state |= prior_weights.prior_tensors(prior.state_dict())
    with replacing(_path_of(path)) as file:
        file.write(to_safetensors(state, metadata))


def read_checkpoint(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    window_size: int | None = None,
    prior: bool = True,
) -> Checkpoint:
    """Read a whole checkpoint: network and prior in evaluation mode, training tile and model card.

    Reads files of `save_checkpoint`, the released layout as `.pth` (a dict with `params_ema` or `params`, the former
    preferred, or a bare state dict; prefixes of wrappers stripped) and as safetensors without metadata. The kind of
    a file is recognised by its content, not its name. Pickles are read with the restricted unpickler: no code in a
    file is ever run.

    Args:
        device: of the network and the prior.
        window_size: w for files that do not describe themselves, as no shape depends on it; None for the released 16.
        prior: False leaves the file's prior out, which does not need diffusers then.

    Raises:
        InputError: no path.
        SwintormerError: there is no such file, it holds something else, it stores another window, or the prior cannot
            be made. The sentence says what was found and what was expected.
    """
    path = _path_of(path)
    state, metadata = read_tensors(path)
    info = _describe(path, state, metadata, window_size)
    own, others = _parted(state)
    net = Swintormer(info.config)
    net.load_state_dict(own)
    made = None
    if prior and info.prior is not None:
        made = prior_weights.prior_from(info.prior, others).to(device)
    return Checkpoint(net.to(device).eval(), made, info.training_tile, info.card, info.describes_itself)


def load_checkpoint(
    path: str | Path, *, device: str | torch.device = "cpu", window_size: int | None = None
) -> Swintormer:
    """The network of a checkpoint alone, in evaluation mode: `read_checkpoint(path, prior=False).net`."""
    return read_checkpoint(path, device=device, window_size=window_size, prior=False).net


def checkpoint_info(path: str | Path, *, window_size: int | None = None) -> CheckpointInfo:
    """What a checkpoint holds, without building the network.

    Args:
        window_size: as for `read_checkpoint`.

    Raises:
        SwintormerError: as for `read_checkpoint`.
    """
    path = _path_of(path)
    return _describe(path, *read_tensors(path), window_size)


def default_weights(name: Literal["small", "strong", "small-prior"] = "strong") -> Path:
    """The weights that ship with the package.

    Args:
        name: "strong", which `deblur` runs; "small", earlier weights of the same preset; or "small-prior", which has a
            prior in it.

    Raises:
        SwintormerError: this installation does not have them.
    """
    path = Path(__file__).parents[1] / "assets" / f"{name}.safetensors"
    if not path.is_file():
        raise SwintormerError(
            f"The weights that ship with swintormer are missing ({path}): reinstall it, or name a file with --weights."
        )
    return path


def _describe(
    path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str], window_size: int | None
) -> CheckpointInfo:
    """Configuration from the metadata or else the shapes, checked against every key and shape of that network."""
    shapes = {name: tuple(tensor.shape) for name, tensor in _parted(state)[0].items()}
    text = metadata.get("swintormer.config")
    try:
        marked = marked_window(state)
        if text:
            config = NetworkConfig.model_validate_json(text)
            if marked not in (None, config.window_size):
                raise ValueError(f"its metadata names the window {config.window_size} and its tensors {marked}")
        else:
            known = next((window for window in (marked, window_size) if window is not None), DEFAULT_WINDOW)
            config = config_from_shapes(shapes, known)
        check_shapes(shapes, config)
        tile = metadata.get("swintormer.training_tile")
        training_tile = int(tile) if tile else None
        if training_tile is not None and training_tile < 1:
            raise ValueError(f"the training tile is {training_tile}")
        card = _parsed_card(metadata.get("swintormer.card", "{}"))
        prior_text = metadata.get(prior_weights.METADATA)
        prior = prior_weights.parse_config(prior_text) if prior_text else None
        if prior is None and (surplus := next(iter(_parted(state)[1]), None)):
            raise ValueError(
                f"it holds {prior_weights.PREFIX + surplus!r} of a prior, but not the prior's configuration"
            )
        if prior is not None:
            check_channels(config, prior.latent_channels)
    except ValidationError as error:
        raise SwintormerError(f"{path} describes a network that cannot be built: {first_fault(error)}.") from error
    except ValueError as error:
        raise SwintormerError(f"{path} is not a Swintormer checkpoint: {error}.") from error
    if window_size not in (None, config.window_size):
        raise SwintormerError(
            f"{path} says that its window is {config.window_size}, not {window_size}: leave the window out."
        )
    return CheckpointInfo(
        config,
        training_tile,
        card,
        parameters=sum(tensor.numel() for tensor in state.values()) - (marked is not None),
        describes_itself=bool(text) or marked is not None,
        prior=prior,
    )


def checkpoint_of(net: object) -> Checkpoint:
    """The checkpoint itself, or one of the network alone, which may be compiled by torch.compile.

    Raises:
        InputError: it is neither network nor checkpoint.
    """
    checkpoint = net if isinstance(net, Checkpoint) else Checkpoint(cast(Swintormer, net))
    inner: object = checkpoint.net
    if isinstance(inner, nn.Module) and isinstance(getattr(inner, "config", None), NetworkConfig):
        return checkpoint
    advice = "; read a file with read_checkpoint" if isinstance(inner, str | Path) else ""
    raise InputError(f"Expected a Swintormer or a Checkpoint, found {described(inner)}{advice}.")


def _path_of(path: object) -> Path:
    if not isinstance(path, str | Path):
        raise InputError(f"Expected the path of a checkpoint, found {described(path)}.")
    return Path(path)


def check_channels(config: NetworkConfig, latent_channels: int) -> None:
    """Raises SwintormerError unless the network takes a latent of that many channels as input."""
    if config.prior_channels != latent_channels:
        raise SwintormerError(
            f"The prior's latent has {latent_channels} channels, and the network takes {config.prior_channels}."
        )


def _parted(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The network's tensors, and the prior's by the prior's own names; without the one that names the window."""
    prefix = prior_weights.PREFIX
    prior = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    return {name: tensor for name, tensor in state.items() if not name.startswith(prefix) and name != WINDOW}, prior


def _parsed_card(text: str) -> dict[str, str]:
    try:
        card = json.loads(text)
        if not isinstance(card, dict):
            raise ValueError("the model card is not a JSON object")
        return {name: str(value) for name, value in card.items()}
    except RecursionError:
        raise ValueError("the model card is nested too deeply") from None
