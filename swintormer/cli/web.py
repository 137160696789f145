"""`swintormer web`: the page in the browser. What it does with a picture is what `swintormer deblur` does."""

from __future__ import annotations

import os
import secrets
import sys
import webbrowser
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from swintormer.errors import PriorError, SwintormerError

if TYPE_CHECKING:
    from swintormer.cli.deblur import Settings
    from swintormer.web.desk import Network

WEB = (
    "Restore photographs on a page in the browser: drop them, compare before and after, download.\n\n"
    "Pictures stay on this machine: the page is served from here, asks nobody else, and all files are removed when it "
    "ends (Ctrl-C). It needs the extra 'web'."
)
WEB_EXAMPLES = "Examples:\n\nswintormer web\n\nswintormer web --host 0.0.0.0 --port 8000 --no-browser"
PORT, OTHER_PORTS = 8321, 20
_OWN = "own"  # name of the network of --weights on the page


def web(
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Where to listen. Others than this machine need a token.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(
            "--port", metavar="N", min=0, max=65535, show_default=False, help=f"Default: {PORT}, or the next free one."
        ),
    ] = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")] = True,
    token: Annotated[
        bool, typer.Option("--token", help="Ask for a token on this machine, too: where other users share it.")
    ] = False,
    device: Annotated[str, typer.Option("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps or auto.")] = "auto",
    precision: Annotated[str, typer.Option("--precision", metavar="NAME", help="float32, bfloat16 or auto.")] = "auto",
    weights: Annotated[
        Path | None,
        typer.Option("--weights", metavar="FILE", show_default=False, help="Another network, first of all."),
    ] = None,
    max_pixels: Annotated[
        int | None,
        typer.Option(
            "--max-pixels", metavar="N", min=1, show_default=False, help="Largest width times height (1000000000)."
        ),
    ] = None,
) -> None:
    """Serve the page until Ctrl-C."""
    from swintormer.cli.deblur import Settings
    from swintormer.cli.models import MODELS
    from swintormer.images.reading import MAX_PIXELS
    from swintormer_kernels.backends.cpu.scratch import keep_freed_memory

    try:
        from swintormer.web.desk import Models
        from swintormer.web.guard import is_loopback
        from swintormer.web.server import listen, serve
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("starlette", "uvicorn"):
            raise
        raise SwintormerError(
            f"The page needs the package {package}: pip install 'swintormer-kernels[web]'."
        ) from error
    keep_freed_memory()
    settings = Settings(device=device, precision=precision, weights=weights)
    purposes = {name: model.purpose for name, model in MODELS.items()}
    if weights is not None:
        purposes = {_OWN: str(weights), **purposes}
    models = Models(purposes, lambda name: _load(settings, name))
    models.load(next(iter(purposes)))  # what is wrong with the settings is told before a page is opened
    secret = secrets.token_urlsafe(24) if token or not is_loopback(host) else ""
    sock = listen(host, PORT if port is None else port, OTHER_PORTS if port is None else 0)

    def ready(address: str) -> None:
        print(f"The page is at {address}", flush=True)
        if not is_loopback(host):
            print("Whoever has this address may use the page; what is sent is not encrypted.", flush=True)
        print("Ctrl-C ends it and removes its files.", flush=True)
        if browser and _has_screen():
            webbrowser.open(address)

    serve(models, sock, host, secret, max_pixels or MAX_PIXELS, ready)


def _load(settings: Settings, name: str) -> Network:
    """A network by its name, as `swintormer deblur --model` takes it."""
    from swintormer.cli.deblur import make_deblurrer
    from swintormer.cli.models import named
    from swintormer.web.desk import Network

    try:
        if name == _OWN:
            return Network(make_deblurrer(settings))
        return Network(make_deblurrer(replace(settings, model=name, weights=None)), named(name).alone)
    except PriorError as error:
        raise SwintormerError(f"{str(error).rstrip('.')}, or choose another model.") from error


def _has_screen() -> bool:
    """Whether a browser would be a window, and not a program in this terminal."""
    return sys.platform in ("win32", "darwin") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
