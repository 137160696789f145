"""The network as an architecture of spandrel, which ComfyUI and others load models with.

After `register()`, `spandrel.ModelLoader` recognises files of this package, and files in the released layout, by their
keys. spandrel passes on tensors without metadata, so the window comes from a tensor (`checkpoint.infer.WINDOW`). Files
without it have the released window; those of an earlier version, of which that is not certain, are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from swintormer.checkpoint.infer import (
    DEFAULT_WINDOW,
    WINDOW,
    check_shapes,
    config_from_shapes,
    is_marked,
    marked_window,
)
from swintormer.errors import SwintormerError
from swintormer.model.config import NetworkConfig
from swintormer.model.network import Swintormer
from swintormer.prior.checkpoint import PREFIX
from swintormer.tensors import bare_name

KEYS = ("patch_embed.proj2.weight", "encoder_level1.0.attn.cpb_mlp.0.weight", "encoder_level1.0.attn.qkv_dwconv.weight")


def register() -> None:
    """Make spandrel know the architecture `Swintormer`; a second call changes nothing.

    Raises:
        SwintormerError: spandrel is not installed, or cannot be imported.
    """
    spandrel = _spandrel()
    spandrel.MAIN_REGISTRY.add(spandrel.ArchSupport.from_architecture(_architecture()()), ignore_duplicates=True)


def network_of(state: Mapping[str, Tensor]) -> tuple[NetworkConfig, dict[str, Tensor]]:
    """The sizes of a network and its tensors, from the tensors of a file by bare names. A prior is left out.

    Raises:
        SwintormerError: they are not those of a network, or do not tell its window.
    """
    own = {name: tensor for name, tensor in state.items() if name != WINDOW and not name.startswith(PREFIX)}
    shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
    try:
        window = marked_window(state)
        config = config_from_shapes(shapes, DEFAULT_WINDOW if window is None else window)
        check_shapes(shapes, config)
    except ValueError as error:
        raise SwintormerError(f"The file is not a Swintormer checkpoint: {error}.") from error
    if window is None and is_marked(config):
        raise SwintormerError(
            "The file does not tell its window to programs that drop its metadata. If it came from an earlier version "
            "of swintormer, save_checkpoint(read_checkpoint(file), file) mends it."
        )
    return config, own


def _spandrel() -> Any:
    try:
        import spandrel
    except ImportError as error:  # also where torchvision is missing, which spandrel needs
        raise SwintormerError(
            f"spandrel cannot be imported ({error}): pip install 'swintormer-kernels[spandrel]'."
        ) from error
    return spandrel


@cache
def _architecture() -> Any:
    """The class, made when spandrel is there."""
    spandrel = _spandrel()
    base: Any = spandrel.Architecture

    class SwintormerArch(base):
        def __init__(self) -> None:
            super().__init__(id="Swintormer", detect=lambda state: set(KEYS) <= set(map(bare_name, state)))

        def load(self, state_dict: Mapping[str, Tensor]) -> Any:
            config, state = network_of({bare_name(name): tensor for name, tensor in state_dict.items()})
            with torch.inference_mode(False):  # ComfyUI loads in it; weights would have no versions: see packed.py
                net = Swintormer(config).eval()
            return spandrel.ImageModelDescriptor(
                net,
                state,
                architecture=self,
                purpose="Restoration",
                tags=[f"{config.dim}dim", f"w{config.window_size}"],
                supports_half=False,
                supports_bfloat16=True,
                scale=1,
                input_channels=config.in_channels,
                output_channels=config.out_channels,
            )

    return SwintormerArch
