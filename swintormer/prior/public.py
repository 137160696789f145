"""Public weights of the release's prior, CompVis' super-resolution model: from diffusers' folder, or their own file.

Both hold the same numbers. CompVis (github.com/CompVis/latent-diffusion) keeps one state dict: the autoencoder under
`first_stage_model.`, the U-Net under `model.diffusion_model.`, and its running average under `model_ema.` with the dots
left out. diffusers keeps a folder for each part, with a `config.json` and the weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from swintormer.errors import SwintormerError
from swintormer.prior.config import PRIORS, PriorConfig

if TYPE_CHECKING:
    from swintormer.prior.model import LatentPrior

FIRST_STAGE, DENOISER, AVERAGE = "first_stage_model.", "model.diffusion_model.", "model_ema."
# Folders of the parts in diffusers' layout; the autoencoder's is called by its kind.
FOLDERS = {"autoencoder": ("vqvae", "vae", "autoencoder"), "denoiser": ("unet",)}
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")


def load_public_prior(path: str | Path, config: PriorConfig | None = None) -> LatentPrior:
    """The prior of a diffusers folder (with `unet/` and `vqvae/`), or of a CompVis checkpoint file.

    Nothing is downloaded, and no code from a file is run. In a CompVis file the averaged weights of the U-Net are
    preferred, as the release samples with them.

    Args:
        config: of the parts; None for the preset `ldm-sr`. A folder's own numbers are not trusted: shapes must fit.

    Raises:
        SwintormerError: there is no such thing, or it holds other tensors than that configuration's.
    """
    from swintormer.prior.checkpoint import prior_from

    path, config = Path(path), config or PRIORS["ldm-sr"]
    state = _from_folder(path) if path.is_dir() else _from_compvis(path, config)
    return prior_from(config, state)


# ---- diffusers -------------------------------------------------------------------------------------------------------


def _from_folder(path: Path) -> dict[str, Tensor]:
    from swintormer.checkpoint.checkpoint import read_tensors

    state: dict[str, Tensor] = {}
    for part, names in FOLDERS.items():
        files = [path / name / file for name in names for file in WEIGHTS]
        found = next((file for file in files if file.is_file()), None)
        if found is None:
            raise SwintormerError(f"{path} holds no {names[0]}/{WEIGHTS[0]}: expected the folder of a diffusers model.")
        _check_class(found.with_name("config.json"), "UNet2DModel" if part == "denoiser" else "VQModel")
        tensors, _ = read_tensors(found)
        state |= {f"{part}.{_modern(name)}": tensor for name, tensor in tensors.items()}
    return state


def _check_class(file: Path, expected: str) -> None:
    """A folder's configuration, where it has one, must name the class; its sizes are checked by shape."""
    try:
        found: Any = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise SwintormerError(f"Cannot read {file}: {error}.") from error
    name = found.get("_class_name", expected) if isinstance(found, dict) else None
    if name != expected:
        raise SwintormerError(f"{file} is of a {name}, where a {expected} was expected.")


# Attention's layers as diffusers called them until 0.16; the folder that is public was written then.
_OLD = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


def _modern(name: str) -> str:
    if ".attentions." in name:
        for old, new in _OLD.items():
            name = name.replace(old, new)
    return name


# ---- CompVis ---------------------------------------------------------------------------------------------------------


def _from_compvis(path: Path, config: PriorConfig) -> dict[str, Tensor]:
    from swintormer.checkpoint.checkpoint import read_tensors

    pairs = [("autoencoder.", FIRST_STAGE, pair) for pair in autoencoder_names(config.autoencoder)]
    pairs += [("denoiser.", DENOISER, pair) for pair in denoiser_names(config.denoiser)]
    names = {
        (f"{own}{pair.ours}.{leaf}", pair): f"{foreign}{pair.theirs}.{leaf}"
        for own, foreign, pair in pairs
        for leaf in ("weight", "bias")
    }
    wanted = set(names.values()) | {_averaged(name) for name in names.values()}
    tensors, _ = read_tensors(path, wanted=wanted.__contains__)
    state: dict[str, Tensor] = {}
    for (ours, pair), theirs in names.items():
        tensor = tensors.get(_averaged(theirs), tensors.get(theirs))
        if tensor is not None:
            state[ours] = _fitted(pair, tensor, config)
    if not state:
        raise SwintormerError(
            f"{path} holds neither {FIRST_STAGE}* nor {DENOISER}*: expected a checkpoint of CompVis' latent diffusion."
        )
    return state


def _averaged(name: str) -> str:
    """Where the running average of a weight stands: `model.` and all dots left out of its name."""
    return AVERAGE + name.removeprefix("model.").replace(".", "")


def _fitted(pair: Pair, tensor: Tensor, config: PriorConfig) -> Tensor:
    """Attention's projections: 1x1 convolutions there, over one or two axes, and linear here; and q, k, v in one.

    The one of all three lists, head by head, that head's q, k and v.
    """
    if ".attentions." in pair.ours and tensor.ndim > 2:
        tensor = tensor.flatten(1)
    if pair.third is None:
        return tensor
    width = int(config.denoiser["attention_head_dim"])
    if tensor.shape[0] % (3 * width):
        raise SwintormerError(f"{pair.theirs!r} has {tensor.shape[0]} rows, no multiple of 3 times {width}.")
    return tensor.unflatten(0, (-1, 3, width))[:, pair.third].flatten(0, 1)


class Pair(NamedTuple):
    """One layer's name here and there; `third` says which of q, k, v it is, where they are one layer there."""

    ours: str
    theirs: str
    third: int | None = None


_RESNET = {  # of the U-Net; diffusers' name: CompVis'
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_RESNET_1 = {name: name for name in ("norm1", "conv1", "norm2", "conv2")} | {"conv_shortcut": "nin_shortcut"}
_ATTENTION_1 = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def denoiser_names(config: Mapping[str, Any]) -> Iterator[Pair]:
    """Every layer of UNet2DModel(**config) that may be there, beside its name under `model.diffusion_model.`."""
    levels, layers = len(config["block_out_channels"]), config["layers_per_block"]
    yield Pair("time_embedding.linear_1", "time_embed.0")
    yield Pair("time_embedding.linear_2", "time_embed.2")
    yield Pair("conv_in", "input_blocks.0.0")
    yield Pair("conv_norm_out", "out.0")
    yield Pair("conv_out", "out.2")
    for level, kind in enumerate(config["down_block_types"]):
        for layer in range(layers):
            here, there = f"down_blocks.{level}", f"input_blocks.{1 + level * (layers + 1) + layer}"
            yield from _block(here, there, layer, attends=kind.startswith("Attn"))
        yield Pair(f"down_blocks.{level}.downsamplers.0.conv", f"input_blocks.{(level + 1) * (layers + 1)}.0.op")
    yield from _renamed("mid_block.resnets.0", "middle_block.0", _RESNET)
    yield from _attention("mid_block.attentions.0", "middle_block.1")
    yield from _renamed("mid_block.resnets.1", "middle_block.2", _RESNET)
    for level, kind in enumerate(config["up_block_types"]):
        attends = kind.startswith("Attn")
        for layer in range(layers + 1):
            here, there = f"up_blocks.{level}", f"output_blocks.{level * (layers + 1) + layer}"
            yield from _block(here, there, layer, attends)
        if level < levels - 1:
            yield Pair(f"up_blocks.{level}.upsamplers.0.conv", f"{there}.{1 + attends}.conv")


def _block(here: str, there: str, layer: int, attends: bool) -> Iterator[Pair]:
    yield from _renamed(f"{here}.resnets.{layer}", f"{there}.0", _RESNET)
    if attends:
        yield from _attention(f"{here}.attentions.{layer}", f"{there}.1")


def _attention(here: str, there: str) -> Iterator[Pair]:
    yield Pair(f"{here}.group_norm", f"{there}.norm")
    yield Pair(f"{here}.to_out.0", f"{there}.proj_out")
    for third, name in enumerate(("to_q", "to_k", "to_v")):
        yield Pair(f"{here}.{name}", f"{there}.qkv", third)


def _renamed(here: str, there: str, names: Mapping[str, str]) -> Iterator[Pair]:
    return (Pair(f"{here}.{ours}", f"{there}.{theirs}") for ours, theirs in names.items())


def autoencoder_names(config: Mapping[str, Any]) -> Iterator[Pair]:
    """Every layer of VQModel(**config) that may be there, beside its name under `first_stage_model.`."""
    levels, layers = len(config["block_out_channels"]), config["layers_per_block"]
    for name in ("quant_conv", "post_quant_conv", "quantize.embedding"):
        yield Pair(name, name)
    for half in ("encoder", "decoder"):
        for ours, theirs in {"conv_in": "conv_in", "conv_norm_out": "norm_out", "conv_out": "conv_out"}.items():
            yield Pair(f"{half}.{ours}", f"{half}.{theirs}")
        for index in range(2):
            yield from _renamed(f"{half}.mid_block.resnets.{index}", f"{half}.mid.block_{index + 1}", _RESNET_1)
        yield from _renamed(f"{half}.mid_block.attentions.0", f"{half}.mid.attn_1", _ATTENTION_1)
    for level in range(levels):
        here, there = f"encoder.down_blocks.{level}", f"encoder.down.{level}"
        for layer in range(layers):
            yield from _renamed(f"{here}.resnets.{layer}", f"{there}.block.{layer}", _RESNET_1)
        yield Pair(f"{here}.downsamplers.0.conv", f"{there}.downsample.conv")
        # The decoder's levels are counted from the finest there, and in the order of work here.
        here, there = f"decoder.up_blocks.{level}", f"decoder.up.{levels - 1 - level}"
        for layer in range(layers + 1):
            yield from _renamed(f"{here}.resnets.{layer}", f"{there}.block.{layer}", _RESNET_1)
        yield Pair(f"{here}.upsamplers.0.conv", f"{there}.upsample.conv")
