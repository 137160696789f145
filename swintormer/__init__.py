"""Swintormer: restore photographs with defocus or motion blur, tile by tile, on any machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swintormer.checkpoint.checkpoint import Checkpoint, load_checkpoint, read_checkpoint, save_checkpoint
    from swintormer.checkpoint.hub import read_pretrained
    from swintormer.errors import InputError, SwintormerError
    from swintormer.inference.deblurrer import Deblurrer
    from swintormer.model.config import PRESETS, NetworkConfig
    from swintormer.model.network import Swintormer

__all__ = [
    "PRESETS",
    "Checkpoint",
    "Deblurrer",
    "InputError",
    "NetworkConfig",
    "Swintormer",
    "SwintormerError",
    "load_checkpoint",
    "read_checkpoint",
    "read_pretrained",
    "save_checkpoint",
]

_HOME = {
    "PRESETS": "model.config",
    "Checkpoint": "checkpoint.checkpoint",
    "Deblurrer": "inference.deblurrer",
    "InputError": "errors",
    "NetworkConfig": "model.config",
    "Swintormer": "model.network",
    "SwintormerError": "errors",
    "load_checkpoint": "checkpoint.checkpoint",
    "read_checkpoint": "checkpoint.checkpoint",
    "read_pretrained": "checkpoint.hub",
    "save_checkpoint": "checkpoint.checkpoint",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that `swintormer --help` answers without loading torch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value
