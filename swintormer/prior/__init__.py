"""The latent diffusion prior: its configuration, networks, sampler and weight files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swintormer.prior.model import LatentPrior

__all__ = ["LatentPrior"]


def __getattr__(name: str) -> Any:
    """Import on first use: the model brings in diffusers, which takes seconds."""
    if name != "LatentPrior":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from swintormer.prior.model import LatentPrior

    return LatentPrior
