"""Public weights of the release's prior, CompVis' super-resolution model, from a folder in diffusers' layout.

That folder has a subfolder for each part, with a `config.json` and the weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from swintormer.errors import SwintormerError
from swintormer.prior.checkpoint import prior_from
from swintormer.prior.config import PRIORS, PriorConfig
from swintormer.tensors import read_tensors

if TYPE_CHECKING:
    from swintormer.prior.model import LatentPrior

# Subfolders of the parts in diffusers' layout; the autoencoder's is named by its kind.
FOLDERS = {"autoencoder": ("vqvae", "vae", "autoencoder"), "denoiser": ("unet",)}
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")


def load_public_prior(path: str | Path, config: PriorConfig | None = None) -> LatentPrior:
    """The prior of a diffusers folder, with `unet/` and `vqvae/` in it. Nothing is downloaded.

    Args:
        config: of the parts; None for the preset `ldm-sr`. The sizes in the folder's own configuration are not used:
            the shapes of its tensors are checked.

    Raises:
        SwintormerError: there is no such folder, or it holds other tensors than that configuration's.
    """
    path, config = Path(path), config or PRIORS["ldm-sr"]
    if not path.is_dir():
        raise SwintormerError(f"There is no folder {path}: expected the folder of a diffusers model.")
    return prior_from(config, _read_folder(path))


def _read_folder(path: Path) -> dict[str, Tensor]:
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


# Names of the attention layers in diffusers up to 0.16, which wrote the public folder.
_OLD = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


def _modern(name: str) -> str:
    if ".attentions." in name:
        for old, new in _OLD.items():
            name = name.replace(old, new)
    return name
