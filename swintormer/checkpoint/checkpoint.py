"""Checkpoints: write safetensors that describe themselves; read those and the release's layout; never run code.

A file of ours carries in its metadata `swintormer.config` (JSON of `NetworkConfig`), `swintormer.training_tile` and
`swintormer.card` (JSON object of strings). Any other file has its configuration read off the tensors' shapes.
"""

from __future__ import annotations

import json
import pickle
import re
import struct
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from swintormer.checkpoint.infer import DEFAULT_WINDOW, check_shapes, config_from_shapes
from swintormer.errors import SwintormerError
from swintormer.images.files import reason, replacing
from swintormer.model.config import NetworkConfig
from swintormer.model.network import Swintormer
from swintormer.prior import checkpoint as prior_weights
from swintormer.prior.config import PriorConfig

if TYPE_CHECKING:
    from swintormer.prior.model import LatentPrior

_WRAPPERS = {"module", "_orig_mod", "_checkpoint_wrapped_module"}
_LONGEST_HEADER = 100_000_000  # the limit of the safetensors format
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class _Nothing:
    """Stands for a class that a training program left beside the weights, and does nothing."""


# What CompVis' checkpoints name beside numbers: a key in the list of Lightning's callbacks.
_HARMLESS: list[Any] = [(_Nothing, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")]
_EXPECTED = "expected safetensors or a PyTorch .pth with the released Swintormer layout"


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint says about itself.

    Attributes:
        config: from the metadata, or else read off the shapes.
        training_tile: side in pixels of the crops it was trained on; None where the file does not say.
        card: summary of the model card; empty where the file has none.
        parameters: number of parameters.
        describes_itself: whether `config` is from the metadata. If not, the window is the caller's or the released 16.
        prior: configuration of the prior in the same file; None where there is none. `parameters` counts it too.
    """

    config: NetworkConfig
    training_tile: int | None = None
    card: dict[str, str] = field(default_factory=dict)
    parameters: int = 0
    describes_itself: bool = False
    prior: PriorConfig | None = None


def save_checkpoint(
    net: Swintormer,
    path: str | Path,
    *,
    training_tile: int | None = None,
    card: Mapping[str, str] | str | None = None,
    prior: LatentPrior | None = None,
) -> None:
    """Write a network as safetensors; whatever stood at `path` is replaced only once the new file is complete.

    Args:
        net: a network, or what torch.compile made of one.
        training_tile: side in pixels of the training crops; None for the one that `net` was loaded with, if any.
        card: the model card in short, as name and text pairs; a string alone becomes its `summary`; None for the one
            that `net` was loaded with, if any, and an empty one for none.
        prior: goes into the same file, for a network that takes it in; None for the one attached to `net`, if any.

    Raises:
        SwintormerError: the file cannot be written, the training tile is not positive, or the prior has other channels
            than the network takes.
    """
    training_tile = getattr(net, "training_tile", None) if training_tile is None else training_tile
    metadata = {"format": "pt", "swintormer.config": net.config.model_dump_json()}
    if training_tile is not None:
        if training_tile < 1:
            raise SwintormerError(f"The training tile must be at least 1 pixel, found {training_tile}.")
        metadata["swintormer.training_tile"] = str(training_tile)
    card = getattr(net, "card", None) if card is None else card
    if card:
        metadata["swintormer.card"] = json.dumps({"summary": card} if isinstance(card, str) else dict(card))
    state = {_strip(name): tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    prior = prior or getattr(net, "_orig_mod", net).prior
    if prior is not None:
        check_channels(net.config, prior.latent_channels)
        metadata[prior_weights.METADATA] = prior_weights.config_of(prior).model_dump_json()
        state |= prior_weights.prior_tensors(prior.state_dict())
    with replacing(Path(path)) as file:
        file.write(save(state, metadata))


def load_checkpoint(
    path: str | Path, *, device: str | torch.device = "cpu", window_size: int | None = None
) -> Swintormer:
    """The network of a checkpoint, in evaluation mode.

    Reads files of `save_checkpoint`, the released layout as `.pth` (a dict with `params_ema` or `params`, the former
    preferred, or a bare state dict; prefixes of wrappers stripped) and as safetensors without metadata. The kind is
    told by the content, not by the name. Pickles go through the restricted unpickler: nothing in a file is ever run.

    Args:
        window_size: w for files that do not describe themselves, as it stands in no shape; None for the released 16.

    Returns:
        The network on `device`, with the file's prior attached, if it holds one (`net.prior`; made at its first use).
        Its attribute `training_tile` holds the training crop in pixels, or None; `card` the model card;
        `describes_itself` whether the configuration is the file's own: if not, the window is `window_size`.

    Raises:
        SwintormerError: there is no such file, it holds anything else, or it names another window; says what was found
            and what was expected.
    """
    path = Path(path)
    state, metadata = read_tensors(path)
    info = _describe(path, state, metadata, window_size)
    net = Swintormer(info.config)
    own, others = _parted(state)
    net.load_state_dict(own)
    if info.prior is not None:
        net.attach_prior(partial(prior_weights.prior_from, info.prior, others))
    # type: ignore, because nn.Module annotates its attributes as modules and tensors only
    net.training_tile = info.training_tile  # type: ignore[assignment]
    net.card = info.card  # type: ignore[assignment]
    net.describes_itself = info.describes_itself  # type: ignore[assignment]
    return net.to(device).eval()


def checkpoint_info(path: str | Path, *, window_size: int | None = None) -> CheckpointInfo:
    """What a checkpoint holds, without building the network.

    Args:
        window_size: as for `load_checkpoint`.

    Raises:
        SwintormerError: as for `load_checkpoint`.
    """
    path = Path(path)
    return _describe(path, *read_tensors(path), window_size)


def default_weights(preset: Literal["small", "small-prior"] = "small") -> Path:
    """The weights that ship with the package: of a preset, "small-prior" with its prior in the same file.

    Raises:
        SwintormerError: this installation does not have them.
    """
    path = Path(__file__).parents[1] / "assets" / f"{preset}.safetensors"
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
        if text:
            config = NetworkConfig.model_validate_json(text)
        else:
            config = config_from_shapes(shapes, DEFAULT_WINDOW if window_size is None else window_size)
        check_shapes(shapes, config)
        tile = metadata.get("swintormer.training_tile")
        training_tile = int(tile) if tile else None
        if training_tile is not None and training_tile < 1:
            raise ValueError(f"the training tile is {training_tile}")
        card = _parsed_card(metadata.get("swintormer.card", "{}"))
        described = metadata.get(prior_weights.METADATA)
        prior = prior_weights.parse_config(described) if described else None
        if prior is None and (surplus := next(iter(_parted(state)[1]), None)):
            raise ValueError(f"it holds {prior_weights.PREFIX + surplus!r} and does not say what prior that is of")
        if prior is not None:
            check_channels(config, prior.latent_channels)
    except ValidationError as error:
        first = error.errors()[0]
        where, message = ".".join(str(part) for part in first["loc"]), first["msg"].removeprefix("Value error, ")
        raise SwintormerError(
            f"{path} describes a network that cannot be built: {where and where + ': '}{message}."
        ) from error
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
        parameters=sum(tensor.numel() for tensor in state.values()),
        describes_itself=bool(text),
        prior=prior,
    )


def check_channels(config: NetworkConfig, latent_channels: int) -> None:
    """Raises SwintormerError unless a network takes in a latent of that many channels."""
    if config.prior_channels != latent_channels:
        raise SwintormerError(
            f"The prior's latent has {latent_channels} channels, and the network takes {config.prior_channels}."
        )


def _parted(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The network's tensors, and the prior's by the prior's own names."""
    prefix = prior_weights.PREFIX
    prior = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    return {name: tensor for name, tensor in state.items() if not name.startswith(prefix)}, prior


def _parsed_card(text: str) -> dict[str, str]:
    try:
        card = json.loads(text)
        if not isinstance(card, dict):
            raise ValueError("the model card is not a JSON object")
        return {name: str(value) for name, value in card.items()}
    except RecursionError:
        raise ValueError("the model card is nested too deeply") from None


def read_tensors(
    path: Path, wanted: Callable[[str], bool] = lambda _: True
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by bare name, all of finite floating-point numbers, and metadata; only of names that are `wanted`."""
    if _kind(path) == "safetensors":
        with _open_safetensors(path) as file:
            tensors: Mapping[Any, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    else:
        tensors, metadata = _load_pickle(path), {}
    state: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        bare = _strip(str(name))
        if not wanted(bare):
            continue
        if strange := _strangeness(tensor):
            raise SwintormerError(
                f"{path} holds {bare!r} {strange}, where a dense floating-point tensor of 16 to 64 bits was expected."
            )
        if bare in state:
            raise SwintormerError(f"{path} holds {bare!r} twice once the prefixes of wrappers are stripped.")
        if not torch.isfinite(tensor).all():
            raise SwintormerError(f"{path} holds values that are not finite in {bare!r}: its training went wrong.")
        state[bare] = tensor
    return state, metadata


def _strangeness(tensor: object) -> str | None:
    """In words what sets it apart from a plain tensor of numbers; None for a plain one."""
    if not isinstance(tensor, Tensor):
        return f"of type {type(tensor).__name__}"
    if tensor.is_nested or tensor.layout != torch.strided:
        return f"in a {'nested' if tensor.is_nested else str(tensor.layout).removeprefix('torch.')} layout"
    if tensor.device.type != "cpu":  # map_location leaves meta tensors, which hold no numbers, where they are
        return f"on the device {tensor.device.type}"
    if tensor.dtype not in _DTYPES:
        return f"of type {tensor.dtype}"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():  # one number said to be 2**60
        return f"of shape {tuple(tensor.shape)}, more elements than it stores"
    return None


def _kind(path: Path) -> str:
    """ "safetensors" or "pickle", by the first bytes."""
    try:
        with path.open("rb") as file:
            head = file.read(9)
        size = path.stat().st_size
    except FileNotFoundError:
        raise SwintormerError(f"There is no checkpoint {path}.") from None
    except OSError as error:
        raise SwintormerError(f"Cannot read {path}: {reason(error)}.") from error
    if not head:
        raise SwintormerError(f"{path} is empty; {_EXPECTED}.")
    header = struct.unpack("<Q", head[:8])[0] if head[8:] == b"{" else None
    if header is not None and header <= _LONGEST_HEADER:
        if header + 8 > size:
            raise SwintormerError(f"{path} is cut off: its header alone needs {header + 8} bytes and it has {size}.")
        return "safetensors"
    if head.startswith((b"PK\x03\x04", b"\x80")):  # a zip archive, or a pickle of protocol 2 and up
        return "pickle"
    raise SwintormerError(f"{path} is no checkpoint: it begins with {head[:8]!r}; {_EXPECTED}.")


def _open_safetensors(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise SwintormerError(f"{path} is a damaged or cut-off safetensors file ({error}).") from error
    except OSError as error:
        raise SwintormerError(f"Cannot read {path}: {reason(error)}.") from error


def _load_pickle(path: Path) -> Mapping[Any, Any]:
    """The state dict in a `.pth`, without ever running code from it."""
    try:
        # A file object, because of a path torch.load would judge by its ending. It warns of unusual pickle protocols.
        with path.open("rb") as file, warnings.catch_warnings(), torch.serialization.safe_globals(_HARMLESS):
            warnings.simplefilter("ignore")
            found = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))  # "Unsupported global: GLOBAL os.system was not an allowed ..."
        found = f"would run the code {wanted[1]} to load" if wanted else "is damaged or no PyTorch file"
        raise SwintormerError(f"{path} {found}; {_EXPECTED}.") from error
    except OSError as error:
        raise SwintormerError(f"Cannot read {path}: {reason(error)}.") from error
    except Exception as error:  # the reader raises RuntimeError, EOFError, KeyError and others on damage
        first = re.split(r"\.\s|\n", str(error).strip(), maxsplit=1)[0] or type(error).__name__
        raise SwintormerError(f"{path} cannot be read as a PyTorch file ({first}).") from error
    for name in ("params_ema", "params", "state_dict"):
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            return found[name]
    if not isinstance(found, Mapping):
        raise SwintormerError(f"{path} holds one object of type {type(found).__name__}, no state dict; {_EXPECTED}.")
    return found


def _strip(name: str) -> str:
    """A key without what DataParallel, torch.compile and activation checkpointing add, wherever it stands."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)
