"""A network as a program of torch.export: plain torch operators, which any torch runs without this package."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch.export import Dim

from swintormer.checkpoint.checkpoint import Checkpoint, checkpoint_of
from swintormer.errors import InputError
from swintormer.images.files import replacing
from swintormer.model.network import Swintormer
from swintormer_kernels import use_backend


def export_torch(net: Swintormer | Checkpoint, path: str | Path, tile: int = 256) -> None:
    """Write the network for images (B, C_in, tile, tile) in [0, 1], any B, as `torch.export.load` reads it.

    The program holds the parameters once; position biases and masks are computed when it runs. Its
    `module()(image)` gives (B, C_out, tile, tile), not clamped. Without a prior.

    Args:
        tile: side of the tiles in pixels.

    Raises:
        InputError: the network cannot take tiles of that side without padding.
        SwintormerError: the file cannot be written.
    """
    checkpoint = checkpoint_of(net)
    net = getattr(checkpoint.net, "_orig_mod", checkpoint.net)  # of torch.compile
    stride = net.config.stride
    if tile < 1 or tile % stride:
        raise InputError(f"The tile must be a multiple of {stride} pixels for this network, found {tile}.")
    weight = next(net.parameters())
    # Heights and widths are fixed: exported as multiples of the stride they take minutes, and torch's guards then
    # refuse some of them (2.13).
    example = torch.zeros(2, net.config.in_channels, tile, tile, dtype=weight.dtype, device=weight.device)
    training = net.training
    try:
        with use_backend("reference"), torch.no_grad():
            program = torch.export.export(net.eval(), (example,), dynamic_shapes={"image": {0: Dim.AUTO}})
    finally:
        net.train(training)
    about = {"config": net.config.model_dump(), "tile": tile, **checkpoint.card}
    with replacing(Path(path)) as file:
        torch.export.save(program, file, extra_files={"swintormer.json": json.dumps(about)})
