"""`swintormer export`: a network as a file for other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from swintormer.cli.messages import complain
from swintormer.errors import SwintormerError

EXPORT_EXAMPLES = (
    "Examples:\n\n"
    "swintormer export -o strong.onnx\n\n"
    "swintormer export -o mine.pt2 --weights mine.safetensors --tile 128"
)
FORMATS = {"onnx": ".onnx", "torch": ".pt2"}


def export(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="NAME.onnx or NAME.pt2 (torch.export).")],
    form: Annotated[
        str, typer.Option("--format", metavar="NAME", help="onnx or torch. Default: as FILE ends.", show_default=False)
    ] = "",
    model: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Of `swintormer models` (default: strong), or the hub's OWNER/NAME.",
            show_default=False,
        ),
    ] = "",
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Another network (.safetensors, .pth).", show_default=False)
    ] = None,
    tile: Annotated[
        int, typer.Option(min=1, metavar="PIXELS", help="Side of the tiles, a multiple of the network's stride.")
    ] = 256,
    any_size: Annotated[
        bool, typer.Option("--any-size", help="All multiples of the network's stride, ONNX only.")
    ] = False,
) -> None:
    """Write a network for other runtimes: tiles of one size or of any, batches of any, without the prior.

    ONNX files run in onnxruntime, OpenVINO, TensorRT and in browsers; those of torch.export in any torch.
    """
    from swintormer.checkpoint.checkpoint import read_checkpoint
    from swintormer.cli.deblur import Settings, weights_of
    from swintormer.cli.models import DEFAULT, MODELS

    kinds = {ending: name for name, ending in FORMATS.items()}
    form = form or kinds.get(out.suffix.lower(), "")
    if form not in FORMATS:
        endings = " or ".join(FORMATS.values())
        raise SwintormerError(f"Give --format {' or '.join(FORMATS)}, or a name that ends in {endings}; found {out}.")
    if any_size and form != "onnx":
        raise SwintormerError("--any-size is for ONNX: torch.export takes one size of tile.")
    if weights is None:
        model = model or DEFAULT
    checkpoint = read_checkpoint(weights_of(Settings(weights=weights, model=model)), prior=False)
    if form == "onnx":
        from swintormer.export.onnx import export_onnx

        export_onnx(checkpoint, out, None if any_size else tile)
    else:
        from swintormer.export.torch import export_torch

        export_torch(checkpoint, out, tile)
    sides = "height, width" if any_size else f"{tile}, {tile}"
    if weights is None and model in MODELS and MODELS[model].scales != 1:
        complain(f"Note: {out} holds the network alone: deblur runs it at several resolutions.")
    print(f"{out}: image (batch, {checkpoint.net.config.in_channels}, {sides}), {out.stat().st_size / 1e6:.1f} MB")
