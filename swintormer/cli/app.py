"""The command line. Each command imports what it needs when it runs, so that `--help` answers at once."""

from __future__ import annotations

import re
import signal
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from swintormer.errors import SwintormerError

if TYPE_CHECKING:
    from swintormer.cli.deblur import Outcome
    from swintormer.model.config import NetworkConfig

FAILED = 1
SIGNALLED = 128  # plus the signal's number, as shells count


class _Commands(TyperGroup):
    """Turns errors meant for the user into one sentence and an exit code, whichever command raised them."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except SwintormerError as error:
            _complain(f"Error: {error}")
            raise typer.Exit(FAILED) from error
        except KeyboardInterrupt:
            _complain("Interrupted: nothing half-written is left.")
            raise typer.Exit(SIGNALLED + signal.SIGINT) from None


def _complain(text: str) -> None:
    with suppress(OSError):  # a closed terminal or pipe: the exit code still tells
        print(text, file=sys.stderr, flush=True)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Restore photographs with defocus or motion blur.",
    epilog="`swintormer COMMAND --help` tells more. Start with: swintormer deblur photo.jpg -o sharp.jpg",
)


def _tell_version(asked: bool) -> None:
    if asked:
        from swintormer.cli.info import version

        print("swintormer", version("swintormer-kernels"))
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Tell the version and exit.")
    ] = False,
) -> None:
    """What stands before a command."""


# The options of `deblur`, in the order of its help.


def _option(panel: str, text: str, *names: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=text, metavar=metavar, rich_help_panel=panel)


_FILES, _RESULT, _SPEED = "Files", "Restoration", "Memory and speed"
_Inputs = Annotated[list[Path], typer.Argument(metavar="IN", help="Pictures, and folders of pictures.")]
_Out = Annotated[
    Path, typer.Option("--out", "-o", help="Folder for the results; or the name of the result, for a single picture.")
]
_Recursive = Annotated[
    bool, _option(_FILES, "Look into folders inside folders too; OUT mirrors them.", "--recursive", "-r")
]
_Suffix = Annotated[str, _option(_FILES, "Added to the names: _sharp makes photo_sharp.jpg of photo.jpg.")]
_Format = Annotated[
    str,
    _option(_FILES, "Write this format; otherwise each keeps its own.", "--format", metavar="png|tiff|jpeg|webp"),
]
_Compare = Annotated[bool, _option(_FILES, "Also write NAME.compare.png: before and after side by side.", "--compare")]
_SkipExisting = Annotated[
    bool,
    _option(_FILES, "Leave out what an earlier run has done; goes on after an interrupt.", "--skip-existing"),
]
_Weights = Annotated[
    Path | None,
    _option(_RESULT, "Network to use (.safetensors or .pth); otherwise the installed one.", metavar="FILE"),
]
_Right = Annotated[
    Path | None,
    _option(_RESULT, "Second view of a dual-pixel picture; or a folder of them, by the same names.", metavar="PATH"),
]
_Tile = Annotated[str, _option(_RESULT, "Side of the squares that are restored one by one.", metavar="PIXELS|auto")]
_Stride = Annotated[
    int | None,
    _option(_RESULT, "From one square to the next; less than the tile, so that they overlap.", metavar="PIXELS"),
]
_Blend = Annotated[
    str, _option(_RESULT, "Where squares overlap: average them, or fade over.", metavar="uniform|feather")
]
_Memory = Annotated[
    str, _option(_SPEED, "Memory to work in beside the picture itself, such as 500M or 2G.", metavar="SIZE")
]
_Batch = Annotated[int | None, _option(_SPEED, "Squares restored at once.", metavar="N")]
_Window = Annotated[
    int | None,
    typer.Option(min=1, metavar="PIXELS", rich_help_panel=_RESULT, help="Attention window of weights that do not say."),
]
_Prior = Annotated[
    bool | None,
    _option(
        _RESULT,
        "Sample the diffusion prior, or restore without it; by default where the weights you name hold one.",
        "--prior/--no-prior",
    ),
]
_Steps = Annotated[int | None, typer.Option(min=1, metavar="N", rich_help_panel=_RESULT, help="Steps of the prior.")]
_Seed = Annotated[
    int | None,
    typer.Option(
        min=0, metavar="N", rich_help_panel=_RESULT, help="Of the prior, 0 by default: the same, the same picture."
    ),
]
_Device = Annotated[str, _option(_SPEED, "auto, cpu, cuda, or cuda:1 for the second GPU.", metavar="NAME")]
_Backend = Annotated[str, _option(_SPEED, "Kernels to use, as `swintormer info` lists them.", metavar="NAME")]
_Quiet = Annotated[bool, _option(_SPEED, "Say nothing but errors.", "--quiet", "-q")]

_DEBLUR = (
    "Restore blurred photographs: PNG, TIFF, JPEG and WebP.\n\n"
    "Bit depth, transparency, colour profile, EXIF and the way a picture is turned stay as they were. "
    "A picture that cannot be restored does not stop the others; a summary names it at the end."
)
_DEBLUR_EXAMPLES = (
    "Examples:\n\n"
    "swintormer deblur photo.jpg -o sharp.png\n\n"
    "swintormer deblur holiday/ -o restored/ --recursive --compare\n\n"
    "swintormer deblur a.tif b.tif -o . --suffix _sharp\n\n"
    "swintormer deblur scan.tif -o out/ --memory 1G      on a small machine\n\n"
    "swintormer deblur left.png --right right.png -o out/ --weights dual.safetensors\n\n"
    "swintormer deblur photo.jpg -o b.png --prior --seed 7      with the diffusion prior: slower, a little better"
)


@app.command(help=_DEBLUR, epilog=_DEBLUR_EXAMPLES)
def deblur(  # noqa: PLR0913, PLR0917 - one parameter for each option
    inputs: _Inputs,
    out: _Out,
    recursive: _Recursive = False,
    suffix: _Suffix = "",
    form: _Format = "",
    compare: _Compare = False,
    skip_existing: _SkipExisting = False,
    weights: _Weights = None,
    right: _Right = None,
    tile: _Tile = "",
    stride: _Stride = None,
    blend: _Blend = "",
    memory: _Memory = "",
    batch: _Batch = None,
    window: _Window = None,
    prior: _Prior = None,
    steps: _Steps = None,
    seed: _Seed = None,
    device: _Device = "auto",
    backend: _Backend = "auto",
    quiet: _Quiet = False,
) -> None:
    """Plan, leave out what is done, restore, and say how it went."""
    from swintormer.cli.deblur import Outcome, Reporter, Settings, restore_all
    from swintormer.cli.plan import Naming, plan

    jobs, problems = plan(inputs, Naming(out, recursive, suffix, parse_format(form), compare, right))
    pending = [job for job in jobs if not (skip_existing and job.is_done())]
    reporter = Reporter(len(pending), quiet)
    if len(pending) < len(jobs):
        reporter.say(f"{len(jobs) - len(pending)} of {len(jobs)} are restored already and stay as they are.")
    settings = Settings(
        weights, parse_tile(tile), stride, blend or None, parse_memory(memory), batch, window, device, backend
    )
    settings = replace(settings, prior=prior, steps=steps, seed=seed)
    outcome = restore_all(pending, settings, reporter) if pending else Outcome()
    _finish(outcome, problems)


def _finish(outcome: Outcome, problems: list[str]) -> None:
    """Say what failed, and leave with the exit code."""
    failures = [*problems, *outcome.failures]
    if len(failures) == 1 and not outcome.written:
        _complain(f"Error: {failures[0]}")
    elif failures:
        _complain(f"{outcome.written} restored, {len(failures)} failed:")
        for sentence in failures:
            _complain(f"  {sentence}")
    if outcome.stopped_by:
        _complain(
            f"Interrupted: {outcome.written} restored, nothing half-written is left; the same command with "
            "--skip-existing goes on."
        )
        raise typer.Exit(SIGNALLED + outcome.stopped_by)
    if failures:
        raise typer.Exit(FAILED)


@app.command()
def info(
    weights: Annotated[Path | None, typer.Option(help="Describe this network instead of the installed one.")] = None,
    window: _Window = None,
) -> None:
    """Tell what is installed and what this machine can do."""
    from swintormer.cli.info import describe

    print(describe(weights, window))


@app.command(epilog="Example: swintormer macs --preset released --size 1680x1120")
def macs(
    preset: Annotated[
        str | None, typer.Option(help="A network by name: small (by default), small-prior or released.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Count for the network in this file instead.")] = None,
    tile: Annotated[int, typer.Option(min=1, metavar="PIXELS", help="Side of a tile.")] = 256,
    stride: Annotated[int | None, typer.Option(metavar="PIXELS", help="From one tile to the next.")] = None,
    size: Annotated[
        list[str] | None, typer.Option(metavar="WIDTHxHEIGHT", help="Image to count for; may be given several times.")
    ] = None,
) -> None:
    """Count what a network costs, by stage: multiply-accumulates (MACs) per tile and per image."""
    from swintormer.cli.macs import describe

    if preset is not None and weights is not None:
        raise SwintormerError("--preset and --weights both name a network: leave one of them out.")
    sizes = [parse_size(text) for text in size or ["1680x1120"]]
    if weights is None:
        config, prior = preset_named(preset or "small"), None
    else:
        from swintormer.checkpoint.checkpoint import checkpoint_info

        found = checkpoint_info(weights)
        config, prior = found.config, found.prior
    print(describe(config, tile, stride, sizes, prior))


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="TOML file, such as configs/small.toml.")],
    restart: Annotated[
        bool, typer.Option("--restart", help="Start over instead of going on where it stopped.")
    ] = False,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Go on although settings differ from those it began with.")
    ] = False,
) -> None:
    """Train a network. Ctrl-C stops it after the current step; the same command goes on from there."""
    from swintormer.training.loop import read_config
    from swintormer.training.loop import train as run

    stopped_by: list[int] = []
    print(run(read_config(config), resume=not restart, accept_changes=accept_changes, stopped_by=stopped_by))
    if stopped_by:
        raise typer.Exit(SIGNALLED + stopped_by[0])


@app.command(epilog="Example: swintormer evaluate --blurred test/blurred --sharp test/sharp")
def evaluate(
    weights: Annotated[Path | None, typer.Option(help="Network to measure; otherwise the installed one.")] = None,
    blurred: Annotated[Path | None, typer.Option(help="Folder of blurred pictures.")] = None,
    sharp: Annotated[Path | None, typer.Option(help="Folder of the true pictures, by the same names.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write every row to this file too.")] = None,
    prior: Annotated[
        bool, typer.Option("--prior", help="The installed one with a prior, beside doing without.")
    ] = False,
) -> None:
    """Measure how well a network restores: PSNR and SSIM against leaving the pictures as they are.

    Without folders on the held-out photographs of the model card, and against classical deconvolution too.
    """
    if (blurred is None) != (sharp is None):
        raise SwintormerError("Pairs need both folders, --blurred and --sharp.")
    import swintormer.evaluation.scores as measure
    from swintormer.checkpoint.checkpoint import default_weights
    from swintormer.cli.deblur import Settings, make_deblurrer

    if prior and weights is not None:
        raise SwintormerError(
            "--prior names the installed weights: leave it out, weights that hold a prior are used with it."
        )
    weights = default_weights("small-prior") if prior else weights
    if blurred is None or sharp is None:
        words = {"--weights": weights, "--csv": csv}
        code = measure.main([part for name, path in words.items() if path for part in (name, str(path))])
        raise typer.Exit(code)
    # 16 bits, so that rounding to a file's 8 does not enter the measure.
    methods = measure.network_methods(make_deblurrer(Settings(weights)).net, levels=65535)
    scores = list(measure.folder_scores(methods, blurred, sharp))
    if csv is not None:
        measure.write_csv(scores, csv)
    print(measure.table(scores, "picture"))


@app.command()
def bench(
    preset: Annotated[str, typer.Option(help="Network to time: small, small-prior or released.")] = "small",
    rounds: Annotated[int, typer.Option(min=1, help="How often each turn runs.")] = 5,
) -> None:
    """Time this machine: one tile through the network, beside plain PyTorch."""
    from swintormer.cli.bench import run

    print(run(preset_named(preset), rounds))


def preset_named(name: str) -> NetworkConfig:
    """One of `config.PRESETS`."""
    from swintormer.model.config import PRESETS

    if name not in PRESETS:
        raise SwintormerError(f"There is no preset {name!r}: choose one of {', '.join(PRESETS)}.")
    return PRESETS[name]


def parse_format(text: str) -> str | None:
    """png, tif, .JPG ... -> the name in `images.FORMATS`; None for an empty text."""
    from swintormer.images.io import FORMATS, SUFFIXES

    name = text.lower().lstrip(".")
    if not name:
        return None
    if name not in FORMATS and "." + name not in SUFFIXES:
        raise SwintormerError(f"--format takes one of {', '.join(FORMATS)}, found {text!r}.")
    return name if name in FORMATS else SUFFIXES["." + name]


def parse_tile(text: str) -> int | str | None:
    """A number of pixels, or "auto"; None for an empty text."""
    if text in ("", "auto"):
        return text or None
    if not re.fullmatch(r"[1-9]\d*", text):
        raise SwintormerError(f"--tile takes a number of pixels or auto, found {text!r}.")
    return int(text)


def parse_memory(text: str) -> int | None:
    """Bytes of 500M, 1.5G, 2 GB or 2GiB, all of them powers of 1024; None for an empty text."""
    if not text:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt])(?:i?b)?", text.strip().lower())
    if not match or float(match[1]) == 0:
        raise SwintormerError(f"--memory takes a size with its unit, such as 500M or 2G, found {text!r}.")
    return int(float(match[1]) * 1024 ** ("kmgt".index(match[2]) + 1))


def parse_size(text: str) -> tuple[int, int]:
    """(width, height) of 1680x1120."""
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text.strip().lower())
    if not match:
        raise SwintormerError(f"--size takes width and height in pixels, such as 1680x1120, found {text!r}.")
    return int(match[1]), int(match[2])


def main() -> None:
    """The program `swintormer`."""
    app()


if __name__ == "__main__":
    main()
