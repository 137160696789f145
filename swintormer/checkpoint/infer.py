"""The sizes of a network, inferred from the shapes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fractions import Fraction
from math import ceil

import torch
from torch import Tensor

from swintormer.model.config import PRESETS, NetworkConfig
from swintormer.model.network import Swintormer

DEFAULT_WINDOW = 16  # the released value; no shape depends on it

WINDOW = "window_size"
"""A tensor of one number that files of ours hold where `is_marked`.

Programs such as spandrel and ComfyUI pass the tensors of a file on and drop its metadata. Without the tensor they would
run a network with the wrong window, which raises no error. A file without it has the released window, and exactly the
released keys.
"""

FUSION = "prior_fusion.latent.weight"

Shapes = Mapping[str, tuple[int, ...]]

# Channels of the stages in units of D; the first four are the levels.
_STAGES = {
    "encoder_level1": 1,
    "encoder_level2": 2,
    "encoder_level3": 4,
    "latent": 8,
    "decoder_level3": 4,
    "decoder_level2": 2,
    "decoder_level1": 2,
    "refinement": 2,
}
_LEVELS = tuple(_STAGES)[:4]


def config_from_shapes(shapes: Shapes, window_size: int = DEFAULT_WINDOW) -> NetworkConfig:
    """The configuration whose `Swintormer` would have these tensors; `check_shapes` tells whether it really has.

    Every stage must have a block: without one, the file is more likely damaged than a network of that kind.

    Args:
        shapes: by the released key names.
        window_size: taken as it is.

    Raises:
        ValueError: a tensor that every Swintormer has is missing or has another shape; a sentence without full stop.
        pydantic.ValidationError: the sizes fit no network.
    """
    # patch_embed: (D, 4 C_in, 3, 3); output: (4 C_out, 2D, 3, 3)
    dim, unshuffled, *_ = _shape(shapes, "patch_embed.proj2.weight", ndim=4)
    shuffled, *_ = _shape(shapes, "output.0.weight", ndim=4)
    return NetworkConfig(
        in_channels=unshuffled // 4,
        out_channels=shuffled // 4,
        dim=dim,
        num_blocks=_four(_count_blocks(shapes, stage) for stage in _LEVELS),
        num_refinement_blocks=_count_blocks(shapes, "refinement"),
        # logit_scale: (heads, 1, 1)
        heads=_four(_shape(shapes, f"{stage}.0.attn.logit_scale", ndim=3)[0] for stage in _LEVELS),
        ffn_expansion=_ffn_expansion(shapes, dim),
        window_size=window_size,
        bias="output.0.bias" in shapes,
        # prior_fusion.latent: (8D, Cz, 1, 1)
        prior_channels=_shape(shapes, FUSION, ndim=4)[1] if FUSION in shapes else 0,
    )


def is_marked(config: NetworkConfig) -> bool:
    """Whether files of such a network hold the tensor `WINDOW`: its window is not the released one.

    Or it is, but a preset of the same sizes has another: files of that preset were once written without the tensor.
    """
    others = {preset.window_size for preset in PRESETS.values() if _without_window(preset) == _without_window(config)}
    return bool({*others, config.window_size} - {DEFAULT_WINDOW})


def _without_window(config: NetworkConfig) -> NetworkConfig:
    return config.model_copy(update={"window_size": DEFAULT_WINDOW})


def marked_window(state: Mapping[str, Tensor]) -> int | None:
    """The window that the tensors of a file name (see `WINDOW`); None where they name none.

    Raises:
        ValueError: the tensor is not one whole number; a sentence without full stop.
    """
    marker = state.get(WINDOW)
    if marker is None:
        return None
    if marker.numel() != 1 or marker.item() != round(marker.item()):
        raise ValueError(f"{WINDOW!r} is not one whole number")
    return round(marker.item())


def check_shapes(shapes: Shapes, config: NetworkConfig) -> None:
    """Raises ValueError, a sentence without full stop, unless these are exactly the tensors of that network."""
    if sum(config.num_blocks) + config.num_refinement_blocks > len(shapes):  # before anything of that size is built
        raise ValueError(f"it names more blocks than it has tensors ({len(shapes)})")
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in Swintormer(config).state_dict().items()}
    missing = [name for name in expected if name not in shapes]
    surplus = [name for name in shapes if name not in expected]
    for names, what in ((missing, "lacks"), (surplus, "has, in addition to the network's,")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ValueError(f"it {what} the tensor {names[0]!r}{more}, for a network of {len(expected)} tensors")
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise ValueError(f"{name!r} has the shape {shapes[name]}, where {shape} was expected")


def _shape(shapes: Shapes, name: str, ndim: int) -> tuple[int, ...]:
    if name not in shapes:
        found = f"it holds {min(shapes)!r} and the like" if shapes else "it holds no tensors"
        raise ValueError(f"{found}, where {name!r} was expected among others")
    if len(shapes[name]) != ndim or 0 in shapes[name]:
        raise ValueError(f"{name!r} has the shape {shapes[name]}, where {ndim} dimensions were expected")
    return shapes[name]


def _four(values: Iterable[int]) -> tuple[int, int, int, int]:
    first, second, third, fourth = values
    return first, second, third, fourth


def _count_blocks(shapes: Shapes, stage: str) -> int:
    indices = (re.match(rf"{stage}\.(\d+)\.", name) for name in shapes)
    return 1 + max((int(match[1]) for match in indices if match), default=-1)


def _ffn_expansion(shapes: Shapes, dim: int) -> float:
    """The shortest decimal e with int(C * e) = hidden in every stage.

    Each level says hidden / C <= e < (hidden + 1) / C. The released 127, 255, 510, 1021 give 2.66.
    """
    hidden = {  # by C; project_out: (C, hidden, 1, 1)
        multiple * dim: _shape(shapes, f"{stage}.0.ffn.project_out.weight", ndim=4)[1]
        for stage, multiple in _STAGES.items()
    }
    low = max(Fraction(h, c) for c, h in hidden.items())
    high = min(Fraction(h + 1, c) for c, h in hidden.items())
    for digits in range(18):
        first, end = ceil(low * 10**digits), ceil(high * 10**digits)
        # The second candidate, where C * e in floating point falls just short of the integer that C * low is.
        for expansion in (k / 10**digits for k in range(first, min(end, first + 2))):
            if all(int(c * expansion) == h for c, h in hidden.items()):
                return expansion
    raise ValueError(f"its feed-forward sizes {hidden} (by channels) are in no common ratio to the channels")
