"""The program `swintormer`: its commands, and one sentence and an exit code for each error.

Each command has a file, and imports what it needs when it runs, so that `--help` answers at once.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from swintormer.cli.bench import bench
from swintormer.cli.deblur import DEBLUR, DEBLUR_EXAMPLES, deblur
from swintormer.cli.demo import demo
from swintormer.cli.evaluate import EVALUATE, EVALUATE_EXAMPLES, evaluate
from swintormer.cli.export import EXPORT_EXAMPLES, export
from swintormer.cli.info import info, version
from swintormer.cli.macs import macs
from swintormer.cli.messages import FAILED, SIGNALLED, complain
from swintormer.cli.models import models
from swintormer.cli.selfcheck import selfcheck
from swintormer.cli.train import train
from swintormer.cli.web import WEB, WEB_EXAMPLES, web
from swintormer.errors import SwintormerError


class _Commands(TyperGroup):
    """Turns errors meant for the user into one sentence and an exit code, whichever command raised them."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except SwintormerError as error:
            complain(f"Error: {error}")
            raise typer.Exit(FAILED) from error
        except KeyboardInterrupt:
            complain("Interrupted: no incomplete file is left.")
            raise typer.Exit(SIGNALLED + signal.SIGINT) from None
        except Exception as error:
            if not _is_backend_error(error):
                raise
            complain(f"Error: {error}; `swintormer info` lists the backends.")
            raise typer.Exit(FAILED) from error


def _is_backend_error(error: Exception) -> bool:
    """Whether a requested backend cannot serve. Does not import the kernels, which import torch."""
    kernels = sys.modules.get("swintormer_kernels")
    return kernels is not None and isinstance(error, kernels.BackendError)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Restore photographs with defocus or motion blur.",
    epilog="`swintormer COMMAND --help` describes a command. Start with: swintormer deblur photo.jpg -o sharp.jpg",
)


def _print_version(asked: bool) -> None:
    if asked:
        print("swintormer", version("swintormer-kernels"))
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options that come before a command."""


app.command(help=DEBLUR, epilog=DEBLUR_EXAMPLES)(deblur)
app.command(help=WEB, epilog=WEB_EXAMPLES)(web)
app.command()(models)
app.command()(info)
app.command(epilog="Example: swintormer macs --preset released --size 1680x1120")(macs)
app.command()(bench)
app.command()(train)
app.command(help=EVALUATE, epilog=EVALUATE_EXAMPLES)(evaluate)
app.command(epilog=EXPORT_EXAMPLES)(export)
app.command()(demo)
app.command()(selfcheck)


# How long a thread of libgomp, the OpenMP runtime in torch's Linux wheels, spins before it sleeps. Two cores (Zen 4),
# `small`, one 256x256 tile, median in ms; busy: two more processes; last column: a sample of `compact`, minimum in ms.
#   spins    quiet  busy  sample
#   default   93.4   546    30.5
#   0         92.5   143    41.6
#   1000      93.5   150    36.2
#   10000     91.7   192    32.8
# Quiet: real-time priority on a shared machine. The package's own threads block at once (csrc/base/parallel.cpp).
# 1000 although a sample takes 6 ms longer: a picture needs one sample, and every one of its tiles 42 ms less than with
# 10000 where other programs are at work.
SPINS = "1000"
WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def bound_spinning() -> None:
    """Let OpenMP threads sleep soon, unless the user has set how they wait. The runtime reads it as torch loads."""
    if not any(name in os.environ for name in WAITING):
        os.environ["GOMP_SPINCOUNT"] = SPINS


def print_every_name() -> None:
    """Let names that the terminal's encoding lacks be printed with escapes, not end the program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None without a console
            stream.reconfigure(errors="backslashreplace")


def main() -> None:
    """The program `swintormer`."""
    bound_spinning()
    print_every_name()
    app()


if __name__ == "__main__":
    main()
