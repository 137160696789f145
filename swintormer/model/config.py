"""The sizes of a network as a frozen record, and the presets by name."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from swintormer.errors import InputError, described, first_fault

# Upper bounds, far above any published network, so that no network is built from the numbers of a damaged file.
Channels = Annotated[int, Field(le=64)]
Dim = Annotated[int, Field(le=4096)]
Blocks = Annotated[int, Field(le=256)]
Heads = Annotated[int, Field(le=256)]
Window = Annotated[int, Field(le=256)]
Expansion = Annotated[float, Field(le=64, allow_inf_nan=False)]


class NetworkConfig(BaseModel):
    """Sizes of a `Swintormer`; the defaults are the released ones (arXiv 2401.05907).

    Attributes:
        in_channels: channels of the input image; 3 for one picture, 6 for a dual-pixel pair (right view first).
        out_channels: channels of the restored image; the first `out_channels` input channels are the residual's base.
        dim: D, channels at half resolution; the levels below have 2D, 4D and 8D.
        num_blocks: blocks at 1/2, 1/4, 1/8 of the resolution (encoder and decoder alike) and at 1/16.
        num_refinement_blocks: blocks after the decoder, at 1/2 of the resolution and 2D channels.
        heads: attention heads at the four levels; refinement uses the first.
        ffn_expansion: hidden channels of the feed-forward part, `int(C * ffn_expansion)`.
        window_size: w, side of a window in tokens; shifted blocks roll by w // 2.
        bias: whether convolutions have a bias.
        prior_channels: Cz, channels of the prior's latent z_0, an additional input; 0 for a network without prior.

    Raises:
        pydantic.ValidationError: a size out of range, or channels that the heads do not divide.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    in_channels: Channels = 6
    out_channels: Channels = 3
    dim: Dim = 48
    num_blocks: tuple[Blocks, Blocks, Blocks, Blocks] = (2, 4, 6, 8)
    num_refinement_blocks: Blocks = 4
    heads: tuple[Heads, Heads, Heads, Heads] = (1, 2, 4, 8)
    ffn_expansion: Expansion = 2.66
    window_size: Window = 16
    bias: bool = False
    prior_channels: Annotated[int, Field(ge=0, le=64)] = 0

    @model_validator(mode="after")
    def _check(self) -> NetworkConfig:
        if self.in_channels < self.out_channels or self.out_channels < 1:
            raise ValueError(f"in_channels {self.in_channels} must be at least out_channels {self.out_channels} >= 1")
        if self.window_size < 2:
            raise ValueError(f"window_size must be at least 2, found {self.window_size}")
        if min(self.num_blocks) < 0 or self.num_refinement_blocks < 0:
            raise ValueError("block counts must not be negative")
        if self.dim < 2 or self.dim % 2:
            raise ValueError(f"dim must be even (attention splits it into two halves), found {self.dim}")
        for level, heads in enumerate(self.heads):
            half = self.dim * 2**level // 2
            if heads < 1 or half % heads:
                raise ValueError(f"heads {heads} at level {level} must divide {half}, half of its {2 * half} channels")
        if int(self.dim * self.ffn_expansion) < 1:
            raise ValueError(f"ffn_expansion {self.ffn_expansion} leaves no hidden channel for dim {self.dim}")
        return self

    @property
    def two_views(self) -> bool:
        """Whether the network takes the two views of a dual-pixel pair, the right one first."""
        return self.in_channels == 2 * self.out_channels

    @property
    def stride(self) -> int:
        """Sides that need no padding are multiples of this: the deepest level, at 1/16, holds whole windows."""
        return 16 * self.window_size


def config_of(config: NetworkConfig | None, sizes: dict[str, object]) -> NetworkConfig:
    """The configuration (None for the released one) with other sizes by name.

    Raises:
        InputError: a size that does not exist or is out of range, or what is no configuration.
    """
    if config is None:
        config = NetworkConfig()
    if not isinstance(config, NetworkConfig):
        raise InputError(
            f"A network is made from a NetworkConfig or from sizes by name, found {described(config)}: "
            "PRESETS has configurations by name."
        )
    known = NetworkConfig.model_fields
    for name in sizes:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            advice = f"did you mean {close[0]}" if close else f"choose from {', '.join(known)}"
            raise InputError(f"A network has no size named {name}: {advice}{'?' if close else '.'}")
    try:
        return NetworkConfig(**(config.model_dump() | sizes))
    except ValidationError as error:
        raise InputError(f"A network of these sizes cannot be built: {first_fault(error)}.") from error


PRESETS: dict[str, NetworkConfig] = {
    "released": NetworkConfig(),
    # RGB, sized so that network and prior together stay under the paper's 8.02 GMACs per 256x256 tile.
    "small": NetworkConfig(
        in_channels=3, dim=24, num_blocks=(2, 2, 2, 2), num_refinement_blocks=2, heads=(1, 2, 4, 8), window_size=8
    ),
}
# The same, with the latent of the prior `compact` (swintormer.prior.config.PRIORS).
PRESETS["small-prior"] = PRESETS["small"].model_copy(update={"prior_channels": 8})
