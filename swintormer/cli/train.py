"""`swintormer train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from swintormer.cli.messages import SIGNALLED
from swintormer.errors import SwintormerError, is_out_of_memory


def train(
    config: Annotated[Path, typer.Argument(help="TOML file, such as configs/photos.toml.")],
    restart: Annotated[
        bool, typer.Option("--restart", help="Start from the beginning instead of continuing an earlier run.")
    ] = False,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Continue although settings differ from those of the earlier run.")
    ] = False,
) -> None:
    """Train a network. Ctrl-C stops after the current step; the same command continues from there.

    On several GPUs or machines: torchrun --nproc_per_node 4 --no-python swintormer train CONFIG
    """
    from swintormer.training.config import read_config
    from swintormer.training.loop import train as run

    stopped_by: list[int] = []
    settings = read_config(config)
    try:
        path = run(settings, resume=not restart, accept_changes=accept_changes, stopped_by=stopped_by)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise SwintormerError(
            "The memory is not sufficient for this training: lower `batch` or `crop`, or raise `accumulate`, which "
            "takes the pairs of a step in parts."
        ) from error
    if path is not None:
        print(path)
    if stopped_by:
        raise typer.Exit(SIGNALLED + stopped_by[0])
