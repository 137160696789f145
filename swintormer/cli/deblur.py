"""`swintormer deblur`: restores file after file with one network; a failure ends only the work on its own file."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from swintormer.cli.messages import FAILED, SIGNALLED, complain
from swintormer.cli.progress import Following, Reporter, describe
from swintormer.errors import PriorError, SwintormerError, first_line, is_out_of_memory
from swintormer.images.files import prepare_folder
from swintormer.signals import stoppable

if TYPE_CHECKING:
    from swintormer.checkpoint.checkpoint import Checkpoint
    from swintormer.cli.models import Model
    from swintormer.cli.plan import Job, Naming
    from swintormer.cli.streams import Streams
    from swintormer.images.page import Page
    from swintormer.images.picture import Image, Samples
    from swintormer.images.writing import Saving
    from swintormer.inference.deblurrer import Deblurrer
    from swintormer.prior.model import Sampler

DEBLUR = (
    "Sharpen blurred photographs: PNG, TIFF, JPEG, WebP and AVIF; HEIC, JPEG XL and BMP with the extra 'formats'.\n\n"
    "Bit depth, transparency, colour profile, EXIF data and orientation are kept. If a photograph cannot be restored, "
    "the others are, and the failure is reported at the end."
)
DEBLUR_EXAMPLES = (
    "Examples:\n\n"
    "swintormer deblur photo.jpg -o sharp.png\n\n"
    "swintormer deblur holiday/ -o restored/ --recursive --compare\n\n"
    "swintormer deblur photo.jpg -o . --suffix _sharp --strength 0.7"
)


def _option(panel: str, text: str, *names: str, metavar: str = "", **more: Any) -> Any:
    return typer.Option(*names, help=text, metavar=metavar, rich_help_panel=panel, show_default=False, **more)


# The order of the parameters is the order of the help: common options first, rare ones last.
_MAIN, _PRIOR, _RARE = "Options", "Diffusion prior: slower, for research", "Rarely needed"
PREVIEW_SIDE = 512  # pixels
WHOLE = (1, 1)  # the only shard of one


def deblur(
    inputs: Annotated[
        list[Path], typer.Argument(metavar="IN", help="Photographs, folders of them, or - for standard input.")
    ],
    out: Annotated[
        Path,
        _option(_MAIN, "A file, a folder, or - (standard output).", "--out", "-o", metavar="OUT"),
    ],
    recursive: Annotated[
        bool, _option(_MAIN, "Include folders inside folders; OUT gets the same folders.", "--recursive", "-r")
    ] = False,
    preview: Annotated[
        bool, _option(_MAIN, "Only the busiest 512 pixels, before and after: NAME.preview.png.", "--preview")
    ] = False,
    strength: Annotated[float, _option(_MAIN, "From 0 (as it came) to 1 (default).", metavar="X")] = 1.0,
    force: Annotated[bool, _option(_MAIN, "Also restore pictures that need nothing.", "--force")] = False,
    compare: Annotated[bool, _option(_MAIN, "Also before and after: NAME.compare.png.", "--compare")] = False,
    report: Annotated[Path | None, _option(_MAIN, "Also an HTML page of before and after.", metavar="FILE")] = None,
    suffix: Annotated[str, _option(_MAIN, "Added to names: _sharp gives photo_sharp.jpg.", metavar="TEXT")] = "",
    form: Annotated[
        str, _option(_MAIN, "png, tiff, jpeg or webp. Default: as the input.", "--format", metavar="NAME")
    ] = "",
    quality: Annotated[
        int | None, _option(_MAIN, "Of JPEG and WebP. Default: a JPEG's own, else 95.", metavar="1-100")
    ] = None,
    lossless: Annotated[bool, _option(_MAIN, "WebP without loss.", "--lossless")] = False,
    skip_existing: Annotated[
        bool, _option(_MAIN, "Skip pictures that have a result: continues a run.", "--skip-existing")
    ] = False,
    shard: Annotated[str, _option(_MAIN, "Only share K of N of the pictures.", metavar="K/N")] = "",
    model: Annotated[
        str,
        _option(
            _MAIN,
            "small, strong, wide, small-prior, a folder, or OWNER/NAME of the hub.",
            metavar="NAME",
        ),
    ] = "",
    memory: Annotated[str, _option(_MAIN, "Limit such as 500M, besides photograph and network.", metavar="SIZE")] = "",
    device: Annotated[str, _option(_MAIN, "cpu, cuda, cuda:1, mps or auto (default).", metavar="NAME")] = "auto",
    quiet: Annotated[bool, _option(_MAIN, "Print errors only.", "--quiet", "-q")] = False,
    prior: Annotated[
        bool | None,
        _option(_PRIOR, "Default: where the model has one.", "--prior/--no-prior"),
    ] = None,
    steps: Annotated[
        int | None,
        _option(_PRIOR, "Default: 4, or as the weights say.", min=1, metavar="N"),
    ] = None,
    seed: Annotated[
        int | None,
        _option(_PRIOR, "Default: 0. It decides the result.", min=0, metavar="N"),
    ] = None,
    deterministic: Annotated[
        bool,
        _option(_PRIOR, "Same bits with any number of threads.", "--deterministic"),
    ] = False,
    weights: Annotated[Path | None, _option(_RARE, "Another network (.safetensors, .pth).", metavar="FILE")] = None,
    right: Annotated[Path | None, _option(_RARE, "Right dual-pixel view, or a folder.", metavar="PATH")] = None,
    ray: Annotated[str, _option(_RARE, "A Ray cluster: local, auto or address.", metavar="WHERE")] = "",
    tile: Annotated[str, _option(_RARE, "Side of the tiles, or auto.", metavar="PIXELS")] = "",
    stride: Annotated[
        int | None,
        _option(_RARE, "Distance between tiles.", metavar="PIXELS"),
    ] = None,
    blend: Annotated[str, _option(_RARE, "Tiles meet by feather (default) or uniform.", metavar="NAME")] = "",
    batch: Annotated[int | None, _option(_RARE, "Tiles processed at once.", metavar="N")] = None,
    scales: Annotated[
        str,
        _option(_RARE, "Resolutions: 1 (default) to 4, or auto.", metavar="N"),
    ] = "",
    window: Annotated[
        int | None,
        _option(_RARE, "Attention windows, where weights lack it.", min=1, metavar="PIXELS"),
    ] = None,
    precision: Annotated[
        str,
        _option(_RARE, "float32, bfloat16 or auto (default).", metavar="NAME"),
    ] = "auto",
    backend: Annotated[str, _option(_RARE, "What computes; see `swintormer info`.", metavar="NAME")] = "auto",
    max_pixels: Annotated[
        int | None, _option(_RARE, "Largest width times height (1000000000).", min=1, metavar="N")
    ] = None,
) -> None:
    """Plan the work, leave out what is done, restore the rest, and report how it went."""
    from swintormer.cli.plan import Naming
    from swintormer.cli.streams import streamed
    from swintormer.images.writing import Saving

    settings = Settings(
        weights=weights,
        model=model,
        tile=parse_tile(tile),
        stride=stride,
        blend=blend or None,
        memory=parse_memory(memory),
        batch=batch,
        window=window,
        device=device,
        precision=precision,
        backend=backend,
        prior=prior,
        steps=steps,
        seed=seed,
        deterministic=deterministic,
        strength=strength,
        scales=parse_scales(scales),
        max_pixels=max_pixels,
    )
    extras = Extras(force, report, Saving(quality, lossless or None))
    with streamed(inputs, out, parse_format(form), alone=not compare) as streams:
        naming = Naming(streams.out, recursive, suffix, parse_format(form), compare and not preview, right, preview)
        _run(streams, naming, settings, extras, Choice(skip_existing, parse_shard(shard), ray), quiet)


def _run(streams: Streams, naming: Naming, settings: Settings, extras: Extras, choice: Choice, quiet: bool) -> None:
    """Restore what is to be restored, and exit with an error where something failed."""
    from swintormer.cli.plan import check_page, plan, shard_of
    from swintormer.images.files import some_names

    foreign: list[Path] = []
    jobs, problems = plan(streams.inputs, naming, foreign)
    if extras.page is not None:
        check_page(extras.page)
    if choice.cluster and (extras.page is not None or streams.folder):
        raise SwintormerError("Pictures on a cluster come from files and go to files: leave out --report and -.")
    planned, jobs = len(jobs), shard_of(jobs, *choice.shard)
    pending = [job for job in jobs if not (choice.skip_existing and job.is_done())]
    reporter = Reporter(pending, quiet, streams.told, to_errors=streams.is_output)
    if foreign:
        names = some_names([str(path) for path in foreign])
        reporter.say(f"Left out, in formats that are not read here: {names}.")
    if choice.shard != WHOLE:
        number, shards = choice.shard
        reporter.say(f"Share {number} of {shards} holds {len(jobs)} of {planned} pictures.")
    if len(pending) < len(jobs):
        reporter.say(f"{len(jobs) - len(pending)} of {len(jobs)} are restored already and stay as they are.")
        if extras.page is not None and pending:
            reporter.say(f"{extras.page} shows only what this run restores.")
    outcome = Outcome()
    if pending and choice.cluster:
        outcome = restore_on_cluster(pending, settings, reporter, extras, choice.cluster)
    elif pending:
        outcome = restore_all(pending, settings, reporter, extras)
    _finish(outcome, [streams.told(sentence) for sentence in (*problems, *outcome.failures)])


def _finish(outcome: Outcome, failures: list[str]) -> None:
    """Report what failed, and exit with the code that tells it."""
    if len(failures) == 1 and not outcome.written:
        complain(f"Error: {failures[0]}")
    elif failures:
        complain(f"{outcome.written} restored, {len(failures)} failed:")
        for sentence in failures:
            complain(f"  {sentence}")
    if outcome.stopped_by:
        complain(
            f"Interrupted: {outcome.written} restored, no incomplete file is left; the same command with "
            "--skip-existing continues."
        )
        raise typer.Exit(SIGNALLED + outcome.stopped_by)
    if failures:
        raise typer.Exit(FAILED)


def parse_format(text: str) -> str | None:
    """png, tif, .JPG ... -> the name in `images.formats.FORMATS`; None for an empty text."""
    from swintormer.images.formats import FORMATS, SUFFIXES

    name = text.lower().lstrip(".")
    if not name:
        return None
    if name not in FORMATS and "." + name not in SUFFIXES:
        raise SwintormerError(f"--format takes one of {', '.join(FORMATS)}, found {text!r}.")
    return name if name in FORMATS else SUFFIXES["." + name]


def parse_shard(text: str) -> tuple[int, int]:
    """(2, 5) of 2/5, which is share 2 of the shares 1 to 5; `WHOLE` for an empty text."""
    if not text:
        return WHOLE
    match = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", text)
    if not match or int(match[1]) > int(match[2]):
        raise SwintormerError(f"--shard takes a share and their number, from 1/5 to 5/5 for five, found {text!r}.")
    return int(match[1]), int(match[2])


def parse_tile(text: str) -> int | str | None:
    """A number of pixels, or "auto"; None for an empty text."""
    if text in ("", "auto"):
        return text or None
    if not re.fullmatch(r"[1-9]\d*", text):
        raise SwintormerError(f"--tile takes a number of pixels or auto, found {text!r}.")
    return int(text)


def parse_scales(text: str) -> int | Literal["auto"] | None:
    """A number of scales, or "auto"; None for an empty text."""
    if text == "auto":
        return "auto"
    if text and not re.fullmatch(r"[1-4]", text):
        raise SwintormerError(f"--scales takes 1 to 4 or auto, found {text!r}.")
    return int(text) if text else None


def parse_memory(text: str) -> int | None:
    """Bytes of 500M, 1.5G, 2 GB or 2GiB, all of them powers of 1024; None for an empty text."""
    if not text:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt])(?:i?b)?", text.strip().lower())
    if not match or float(match[1]) == 0:
        raise SwintormerError(f"--memory takes a size with its unit, such as 500M or 2G, found {text!r}.")
    return int(float(match[1]) * 1024 ** ("kmgt".index(match[2]) + 1))


@dataclass(frozen=True)
class Settings:
    """Settings of the restoration; None leaves the choice to the pipeline.

    Attributes:
        weights: checkpoint file; None for an installed one.
        model: name of the installed one, or a folder, or a repository of the hub; empty for the
            default.
        memory: bytes of working memory, in addition to the picture and the network.
        window: size of the attention windows, for weights that do not store it.
        precision: "auto", "float32" or "bfloat16".
        backend: of the ops; "auto" takes the best one for each op.
        prior: whether the prior is used; None uses the prior of the weights, if they contain one.
        steps, seed, deterministic: of the prior's sampler.
        strength: share of the restoration in the result.
        scales: of `Deblurrer`; None for those of the model.
        max_pixels: width times height of the largest picture that is read.
    """

    weights: Path | None = None
    model: str = ""
    tile: int | str | None = None
    stride: int | None = None
    blend: str | None = None
    memory: int | None = None
    batch: int | None = None
    window: int | None = None
    device: str = "auto"
    precision: str = "auto"
    backend: str = "auto"
    prior: bool | None = None
    steps: int | None = None
    seed: int | None = None
    deterministic: bool = False
    strength: float = 1.0
    scales: int | Literal["auto"] | None = None
    max_pixels: int | None = None


@dataclass(frozen=True)
class Choice:
    """Which of the planned pictures a run restores, and where.

    Attributes:
        skip_existing: only those that have no result yet.
        shard: (k, n): share k of n, counted from 1.
        cluster: address of a Ray cluster; empty for this process.
    """

    skip_existing: bool = False
    shard: tuple[int, int] = WHOLE
    cluster: str = ""


@dataclass(frozen=True)
class Extras:
    """What is done beside restoring.

    Attributes:
        force: restore a picture that needs nothing, too.
        page: HTML file of before and after.
        saving: how results are compressed; None for `images.writing.Saving()`.
    """

    force: bool = False
    page: Path | None = None
    saving: Saving | None = None


@dataclass
class Outcome:
    """How a run ended: pictures written, a sentence for each that failed, and the signal that ended it early, or 0."""

    written: int = 0
    failures: list[str] = field(default_factory=list)
    stopped_by: int = 0


def restore_all(jobs: list[Job], settings: Settings, reporter: Reporter, extras: Extras | None = None) -> Outcome:
    """Restore every job. The outcome lists the pictures that failed; Ctrl-C ends the run after the current tile.

    Raises:
        SwintormerError: the weights or the settings are unusable for every picture.
    """
    from swintormer_kernels.backends.cpu.scratch import keep_freed_memory

    outcome, extras = Outcome(), extras or Extras()
    keep_freed_memory()  # every tile needs the same: 8 % faster on two AVX-512 cores, tiles of 256
    with _on_backend(settings.backend), reporter, _page(extras.page) as page:
        try:
            checkpoint = read_weights(settings, dual_pixel=jobs[0].right is not None)
        except PriorError as cause:
            raise SwintormerError(f"{str(cause).rstrip('.')}, or restore without the prior (--no-prior).") from cause
        deblurrer = make_deblurrer(settings, checkpoint)
        if note := window_note(settings.weights or Path(settings.model), checkpoint, settings.window):
            reporter.say(note)
        alone = None if extras.force else _alone(settings)
        with stoppable() as caught:
            try:
                for job in jobs:
                    work = partial(
                        restore_file,
                        deblurrer,
                        job,
                        alone=alone,
                        page=page,
                        saving=extras.saving,
                        max_pixels=settings.max_pixels,
                    )
                    error = _try(work, job, reporter, caught)
                    if error is None:
                        outcome.written += 1
                    else:
                        outcome.failures.append(error)
            except KeyboardInterrupt:
                outcome.stopped_by = caught[0] if caught else signal.SIGINT
    return outcome


class Elsewhere:
    """`restore_file` with the network and the settings of a run, in a process of a cluster.

    Raises:
        SwintormerError: the weights or the settings are unusable for every picture.
    """

    def __init__(self, settings: Settings, extras: Extras, dual_pixel: bool):
        from swintormer_kernels.backends.cpu.scratch import keep_freed_memory

        keep_freed_memory()
        self.settings, self.extras, self.caught = settings, extras, list[int]()
        self.alone = None if extras.force else _alone(settings)
        with _on_backend(settings.backend):
            self.deblurrer = make_deblurrer(settings, read_weights(settings, dual_pixel))

    def __call__(self, job: Job) -> tuple[str, str]:
        """What there is to tell of the restored picture, and why it failed; both are empty after `stop`."""
        follow = Following(job, self.caught, lambda *_: None)
        alone, saving, most = self.alone, self.extras.saving, self.settings.max_pixels
        try:
            with _on_backend(self.settings.backend):
                restore_file(self.deblurrer, job, follow, alone, saving=saving, max_pixels=most)
        except KeyboardInterrupt:
            return "", ""
        except Exception as error:
            return "", sentence_of(error, job)
        return str(follow), ""

    def stop(self) -> None:
        """The picture at hand ends after its tile."""
        self.caught.append(signal.SIGINT)


def restore_on_cluster(
    jobs: list[Job], settings: Settings, reporter: Reporter, extras: Extras, address: str
) -> Outcome:
    """`restore_all` by the workers of a Ray cluster; see `integrations.ray.cluster` for its address.

    Raises:
        SwintormerError: as `restore_all`, or the cluster cannot be used.
    """
    from swintormer.images.files import sweep
    from swintormer.integrations.ray import Team, cluster

    outcome = Outcome()
    make = partial(Elsewhere, settings, extras, jobs[0].right is not None)
    with cluster(address) as ray, reporter, stoppable() as caught:  # Ray sets handlers of signals, so it goes first
        team = Team(ray, make, use_gpus=settings.device.partition(":")[0] in ("auto", "cuda"))
        for job, ended in team.each(jobs, lambda: caught):
            line, failure = ("", f"{job.source}: {ended}.") if isinstance(ended, SwintormerError) else ended
            if failure:
                outcome.failures.append(failure)
                reporter.failed(failure)
            outcome.written += bool(line)
            reporter.ended(job, line)
        outcome.stopped_by = caught[0] if caught else 0
        if team.deaths:
            for folder in {job.target.parent for job in jobs if job.target.parent.is_dir()}:
                sweep(folder)
    return outcome


def _page(path: Path | None) -> AbstractContextManager[Page | None]:
    from swintormer.images.page import Page

    return nullcontext() if path is None else Page(path)


def _alone(settings: Settings) -> float | None:
    """The change in dB from which a picture needs nothing: known of installed networks as they are by default."""
    if settings.weights is not None or _elsewhere(settings.model) or settings.strength != 1:
        return None
    model = installed(settings)
    return model.alone if settings.scales in (None, model.scales) else None


def _elsewhere(model: str) -> bool:
    """Whether --model names a folder, or a repository of the hub, and no installed network."""
    from swintormer.cli.models import MODELS
    from swintormer.images.files import is_folder

    return "/" in model or (bool(model) and model not in MODELS and is_folder(Path(model)))


def installed(settings: Settings) -> Model:
    """The installed network that the settings name.

    Raises:
        SwintormerError: they name weights, too, or no model.
    """
    from swintormer.cli.models import DEFAULT, WITH_PRIOR, named

    if settings.weights is not None:
        raise SwintormerError("--model and --weights both name a network: leave one of them out.")
    return named(settings.model or (WITH_PRIOR if settings.prior else DEFAULT))


def _on_backend(name: str) -> AbstractContextManager[None]:
    """The scope in which ops run on that backend, or on the best one for each op if it is "auto"."""
    from swintormer_kernels import BACKENDS, use_backend

    if name == "auto":
        return nullcontext()
    if name not in BACKENDS:
        raise SwintormerError(f"There is no backend {name!r}: choose one of auto, {', '.join(BACKENDS)}.")
    return use_backend(name)


def read_weights(settings: Settings, dual_pixel: bool = False) -> Checkpoint:
    """The network, and its prior unless that is to be left out.

    Raises:
        SwintormerError: unusable weights, or a network for another number of views.
    """
    from swintormer.checkpoint.checkpoint import read_checkpoint

    weights = weights_of(settings)
    checkpoint = read_checkpoint(weights, window_size=settings.window, prior=settings.prior is not False)
    config = checkpoint.net.config
    if dual_pixel and config.in_channels == config.out_channels:
        raise SwintormerError(f"{weights} restores single pictures: leave out --right, or name dual-pixel --weights.")
    if not dual_pixel and config.two_views:
        raise SwintormerError(f"{weights} restores dual-pixel pairs: name the second view with --right.")
    return checkpoint


def weights_of(settings: Settings) -> Path:
    """The file of the network that the settings name; one of the hub is fetched, since they say so."""
    if settings.weights is not None and not settings.model:
        return settings.weights
    if settings.weights is None and _elsewhere(settings.model):
        from swintormer.checkpoint.hub import pretrained_file

        return pretrained_file(settings.model)
    return installed(settings).path()


def make_deblurrer(settings: Settings, checkpoint: Checkpoint | None = None) -> Deblurrer:
    """The network and its tiling, on its device; `checkpoint` is None for what the settings name.

    Raises:
        SwintormerError: unusable weights or settings.
    """
    from swintormer.inference.deblurrer import Deblurrer

    checkpoint = checkpoint or read_weights(settings)
    smallest = checkpoint.net.config.stride  # every tile is padded to a multiple of it
    if isinstance(settings.tile, int) and settings.tile < smallest:
        raise SwintormerError(f"--tile {settings.tile} is too small for this network: use {smallest} or more.")
    names = ("tile", "stride", "blend", "memory", "batch", "device", "precision", "strength")
    chosen = {name: getattr(settings, name) for name in names}
    own = settings.weights is None and not _elsewhere(settings.model)
    chosen["scales"] = settings.scales or (installed(settings).scales if own else None)
    chosen = {name: value for name, value in chosen.items() if value is not None}
    return Deblurrer(checkpoint, **chosen, prior=_sampler(checkpoint, settings) or False)


def _sampler(checkpoint: Checkpoint, settings: Settings) -> Sampler | None:
    """How the prior is sampled; None for no prior. Settings of a sampler that does not run are refused."""
    from swintormer.prior.model import Sampler

    if checkpoint.prior is not None:
        return Sampler(
            checkpoint.prior, steps=settings.steps, seed=settings.seed or 0, deterministic=settings.deterministic
        )
    if settings.prior:
        raise SwintormerError("These weights hold no prior: leave out --prior, or name weights that hold one.")
    if settings.steps is not None or settings.seed is not None or settings.deterministic:
        raise SwintormerError(
            "--steps, --seed and --deterministic need the prior: add --prior, or leave them out. Weights given with "
            "--weights must contain one."
        )
    return None


def window_note(weights: Path | None, checkpoint: Checkpoint, asked: int | None) -> str:
    """A note that the window size is assumed, or "". No tensor's shape shows it, so a wrong one raises no error."""
    if checkpoint.describes_itself or asked is not None:
        return ""
    return (
        f"Note: {weights} does not store its window size: {checkpoint.net.config.window_size} pixels are assumed; "
        "--window sets another."
    )


def _try(restore: Callable[[Following], None], job: Job, reporter: Reporter, caught: list[int]) -> str | None:
    """Restore one picture; None, or the sentence that says why it failed."""
    try:
        with reporter.file(job, caught) as follow:
            restore(follow)
    except Exception as error:
        sentence = sentence_of(error, job)
    else:
        return None
    reporter.failed(sentence)
    return sentence


def sentence_of(error: Exception, job: Job) -> str:
    """Why a picture failed. Whatever the error is, the other pictures may still be restored.

    Raises:
        BackendError: it is one, and concerns the settings, not the picture.
    """
    from swintormer_kernels import BackendError

    if isinstance(error, BackendError):
        raise error
    if isinstance(error, SwintormerError):
        return str(error)
    if is_out_of_memory(error):
        return f"{job.source} does not fit into memory: try --tile 128 --batch 1, or close other programs."
    cause = f"{type(error).__name__}: {first_line(error)}"
    return f"{job.source} failed because of an error in the program ({cause}): please report it."


def restore_file(
    deblurrer: Deblurrer,
    job: Job,
    follow: Following,
    alone: float | None = None,
    page: Page | None = None,
    saving: Saving | None = None,
    max_pixels: int | None = None,
) -> None:
    """Restore one picture into its target, and write the comparison if one is asked for.

    Args:
        alone: a picture that the network changes by less than this (dB; more is less change) is left as it is.
        page: takes before and after.
        saving: how the result is compressed; None for `images.writing.Saving()`.
        max_pixels: width times height of the largest picture that is read; None for the default.

    Raises:
        SwintormerError: the source cannot be read, the views do not fit, or a result cannot be written. As much as
            possible is checked before the restoration, which takes long.
    """
    from swintormer.images.compare import busiest_part, change, write_comparison
    from swintormer.images.reading import MAX_PIXELS, read_image
    from swintormer.images.writing import Saving, check_target, write_image, write_unchanged

    saving, most = saving or Saving(), max_pixels or MAX_PIXELS
    image = read_image(job.source, most)
    follow.opened(image, list(image.notes) if job.preview else check_target(image, job.target, saving))
    prepare_folder(job.target)
    right = None if job.right is None else _read_right(job.right, image, most)
    if job.preview:
        follow.image, region = busiest_part(image, PREVIEW_SIDE)
        image = follow.image
        right = right if right is None else right[region]
    try:
        pixels = deblurrer.restore_array(image.pixels, right=right, progress=follow)
    except SwintormerError as error:  # the pipeline does not know the file's name
        raise SwintormerError(f"{job.source}: {error}") from error
    if job.preview:
        write_comparison(job.target, image, pixels)
    elif alone is not None and change(image.pixels, pixels) >= alone:
        pixels = image.pixels
        if write_unchanged(job.target, image, saving):
            follow.notes = [image.damage] if image.damage else []
        follow.notes = [*follow.notes, f"{job.source} needs nothing and is left as it is; --force restores it."]
    else:
        write_image(job.target, pixels, image, saving)
    if job.comparison is not None:
        write_comparison(job.comparison, image, pixels)
    if page is not None:
        page.add(job.source.name, str(follow), image, pixels)


def _read_right(path: Path, left: Image, max_pixels: int) -> Samples:
    from swintormer.images.reading import read_image

    right = read_image(path, max_pixels)
    if right.pixels.shape != left.pixels.shape or right.bits != left.bits:
        raise SwintormerError(
            f"{left.path} ({describe(left)}) and {path} ({describe(right)}) are not two views of one picture: size, "
            "channels and bits must be the same."
        )
    return right.pixels
