"""The work of `swintormer deblur`: file after file through one network; a failure stops nothing but its own file."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from swintormer.backend import backend_scope
from swintormer.cli.plan import Job
from swintormer.errors import SwintormerError, counted
from swintormer.images.files import prepare_folder
from swintormer.images.io import Image, Samples, check_target, read_image, write_image
from swintormer.signals import stoppable

if TYPE_CHECKING:
    from swintormer.checkpoint.checkpoint import Checkpoint
    from swintormer.inference.deblurrer import Deblurrer
    from swintormer.prior.sampling import Sampler


@dataclass(frozen=True)
class Settings:
    """What the restoration runs with; None leaves the choice to the pipeline.

    Attributes:
        weights: checkpoint file; None for what is installed with the program, with or without a prior.
        memory: bytes that the work may take beside the picture itself.
        window: side of the attention windows, for weights that do not say.
        backend: of the ops; "auto" takes the best of each.
        prior: whether the prior takes part; None where the weights hold one.
        steps, seed, deterministic: of the prior's sampler.
    """

    weights: Path | None = None
    tile: int | str | None = None
    stride: int | None = None
    blend: str | None = None
    memory: int | None = None
    batch: int | None = None
    window: int | None = None
    device: str = "auto"
    backend: str = "auto"
    prior: bool | None = None
    steps: int | None = None
    seed: int | None = None
    deterministic: bool = False


@dataclass
class Outcome:
    """How a run ended: pictures written, one sentence for each that failed, and the signal that cut it short, or 0."""

    written: int = 0
    failures: list[str] = field(default_factory=list)
    stopped_by: int = 0


def restore_all(jobs: list[Job], settings: Settings, reporter: Reporter) -> Outcome:
    """Restore every job. What fails in one picture is kept in the outcome; Ctrl-C ends the run after the current tile.

    Raises:
        SwintormerError: the weights or the settings will not do for any picture.
    """
    from swintormer_kernels import keep_freed_memory

    outcome = Outcome()
    keep_freed_memory()  # tile after tile takes the same: 8 % faster on two AVX-512 cores, tiles of 256
    with backend_scope(settings.backend), reporter:
        checkpoint = read_weights(settings, dual_pixel=jobs[0].right is not None)
        deblurrer = make_deblurrer(settings, checkpoint)
        if note := window_note(settings.weights, checkpoint, settings.window):
            reporter.say(note)
        with stoppable() as caught:
            try:
                for job in jobs:
                    error = _try(deblurrer, job, reporter, caught)
                    if error is None:
                        outcome.written += 1
                    else:
                        outcome.failures.append(error)
            except KeyboardInterrupt:
                outcome.stopped_by = caught[0] if caught else signal.SIGINT
    return outcome


def read_weights(settings: Settings, dual_pixel: bool = False) -> Checkpoint:
    """The network, and its prior unless that is to be left out.

    Raises:
        SwintormerError: unusable weights, or a network for another number of views.
    """
    from swintormer.checkpoint.checkpoint import default_weights, read_checkpoint

    weights = settings.weights or default_weights("small-prior" if settings.prior else "small")
    checkpoint = read_checkpoint(weights, window_size=settings.window, prior=settings.prior is not False)
    config = checkpoint.net.config
    if dual_pixel and config.in_channels == config.out_channels:
        raise SwintormerError(f"{weights} restores single pictures: leave out --right, or name dual-pixel --weights.")
    if not dual_pixel and config.in_channels == 2 * config.out_channels:
        raise SwintormerError(f"{weights} restores dual-pixel pairs: name the second view with --right.")
    return checkpoint


def make_deblurrer(settings: Settings, checkpoint: Checkpoint | None = None) -> Deblurrer:
    """The network and its tiling, on its device; `checkpoint` is None for what the settings name.

    Raises:
        SwintormerError: unusable weights or settings.
    """
    from swintormer.inference.deblurrer import Deblurrer

    checkpoint = checkpoint or read_weights(settings)
    chosen = {name: getattr(settings, name) for name in ("tile", "stride", "blend", "memory", "batch", "device")}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    return Deblurrer(checkpoint, **chosen, prior=_sampler(checkpoint, settings) or False)


def _sampler(checkpoint: Checkpoint, settings: Settings) -> Sampler | None:
    """How the prior is sampled; None for no prior. Settings of a sampler that does not run are refused."""
    from swintormer.prior.sampling import Sampler

    if checkpoint.prior is not None:
        return Sampler(
            checkpoint.prior, steps=settings.steps, seed=settings.seed or 0, deterministic=settings.deterministic
        )
    if settings.prior:
        raise SwintormerError("These weights hold no prior: leave out --prior, or name weights that hold one.")
    if settings.steps is not None or settings.seed is not None or settings.deterministic:
        raise SwintormerError(
            "No prior takes part, so --steps, --seed and --deterministic have nothing to act on: leave them out, or "
            "add --prior (and name weights that hold one, if you name any)."
        )
    return None


def window_note(weights: Path | None, checkpoint: Checkpoint, asked: int | None) -> str:
    """What to tell where the window is an assumption; no tensor's shape depends on it, so a wrong one shows nowhere."""
    if checkpoint.describes_itself or asked is not None:
        return ""
    return (
        f"Note: {weights} does not say how wide its windows are: {checkpoint.net.config.window_size} pixels are "
        "assumed, and --window names another."
    )


def _try(deblurrer: Deblurrer, job: Job, reporter: Reporter, caught: list[int]) -> str | None:
    """Restore one picture; None, or the sentence that says why it failed."""
    from swintormer_kernels import BackendError

    try:
        with reporter.file(job, caught) as follow:
            restore_file(deblurrer, job, follow)
    except SwintormerError as error:
        sentence = str(error)
    except BackendError:
        raise  # of the machine and the settings, not of the picture
    except Exception as error:  # whatever it is, the other pictures may still be restored
        if _is_out_of_memory(error):
            sentence = f"{job.source} does not fit into memory: try --tile 128 --batch 1, or close other programs."
        else:
            sentence = f"{job.source} failed by a fault of the program ({_in_short(error)}): please report it."
    else:
        return None
    reporter.failed(sentence)
    return sentence


def _is_out_of_memory(error: Exception) -> bool:
    """Torch's own errors differ by device and have no common class."""
    return isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error)


def _in_short(error: Exception) -> str:
    """Kind and first line: torch adds lines of hints and of its own stack."""
    lines = str(error).strip().splitlines()
    return type(error).__name__ + (f": {lines[0].rstrip('.')}" if lines else "")


def restore_file(deblurrer: Deblurrer, job: Job, follow: Following) -> None:
    """Restore one picture into its target, and write the comparison if one is asked for.

    Raises:
        SwintormerError: the source cannot be read, the views do not fit, or a result cannot be written. What can fail
            is tried before the long work.
    """
    image = read_image(job.source)
    follow.opened(image, check_target(image, job.target))
    prepare_folder(job.target)
    right = None if job.right is None else _read_right(job.right, image)
    try:
        pixels = deblurrer.restore_array(image.pixels, right=right, progress=follow)
    except SwintormerError as error:  # the pipeline knows no file names
        raise SwintormerError(f"{job.source}: {error}") from error
    write_image(job.target, pixels, image)
    if job.comparison is not None:
        from swintormer.images.compare import write_comparison

        write_comparison(job.comparison, image, pixels)


def _read_right(path: Path, left: Image) -> Samples:
    right = read_image(path)
    if right.pixels.shape != left.pixels.shape or right.bits != left.bits:
        raise SwintormerError(
            f"{left.path} ({_kind(left)}) and {path} ({_kind(right)}) are not two views of one picture: size, channels "
            "and bits must be the same."
        )
    return right.pixels


def _kind(image: Image) -> str:
    height, width, channels = image.pixels.shape
    return f"{width}x{height}, {'gray' if channels == 1 else 'RGB'}, {image.bits} bits"


class Following:
    """One file's progress: what `restore_file` and the pipeline report to. Signals in `caught` end it there."""

    def __init__(self, job: Job, caught: list[int], bar: Any, title: str):
        self.job, self.caught, self.bar = job, caught, bar
        self.image: Image | None = None
        self.notes: list[str] = []
        self.tiles = 0
        self.start = time.monotonic()
        self.task = None if bar is None else bar.add_task(title, total=None, rate="")

    @property
    def megapixels(self) -> float:
        return 0.0 if self.image is None else self.image.pixels.shape[0] * self.image.pixels.shape[1] / 1e6

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start

    def opened(self, image: Image, notes: list[str]) -> None:
        self.image, self.notes = image, notes
        self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        if self.caught:
            raise KeyboardInterrupt

    def __call__(self, done: int, total: int) -> None:
        """The pipeline's callback: tiles done, and tiles in all."""
        if done < total:  # once all is restored it may as well be written
            self._stop_if_asked()
        self.tiles = total
        if self.bar is not None:
            rate = f"{self.megapixels * done / total / self.seconds:.2f} megapixels/s"
            self.bar.update(self.task, completed=done, total=total, rate=rate)

    def __str__(self) -> str:
        text = f"{self.job.source} -> {self.job.target}: {_kind(self.image) if self.image else ''}, "
        text += (
            f"{counted(self.tiles, 'tile')}, {self.seconds:.1f} s, {self.megapixels / self.seconds:.2f} megapixels/s"
        )
        return "\n".join([text, *(f"  Note: {note}" for note in self.notes)])


class Reporter:
    """What the person at the keyboard sees: a bar on a terminal, and a line for each finished file."""

    def __init__(self, files: int, quiet: bool = False):
        self.files, self.quiet = files, quiet
        self.number = 0
        self.bar: Any = _make_bar() if sys.stderr.isatty() and not quiet else None

    def __enter__(self) -> Reporter:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            with suppress(OSError):  # a terminal that has been closed
                self.bar.stop()

    @contextmanager
    def file(self, job: Job, caught: list[int]) -> Iterator[Following]:
        """Follow one file, and say how it went when it is done; nothing where it fails."""
        self.number += 1
        counter = f"{self.number}/{self.files} " if self.files > 1 else ""
        follow = Following(job, caught, self.bar, counter + job.source.name)
        try:
            yield follow
            self.say(str(follow))
        finally:
            if self.bar is not None:
                self.bar.remove_task(follow.task)

    def failed(self, sentence: str) -> None:
        if self.files > 1:  # of a single file it is told at the end
            self.say(f"Failed: {sentence}")

    def say(self, text: str) -> None:
        """A line for the person at the keyboard. Once nobody reads any more (`| head`) the work goes on in silence."""
        if self.quiet:
            return
        try:
            if self.bar is not None:
                self.bar.console.print(text, soft_wrap=True, markup=False, highlight=False)
            else:
                print(text, flush=True)
        except OSError:
            self.quiet = True
            discard(sys.stdout)


def discard(stream: TextIO) -> None:
    """Send what is still written there to nowhere, or Python would complain at its end of what it cannot write."""
    with suppress(OSError), open(os.devnull, "w") as nowhere:  # a stand-in for a stream may have no descriptor
        os.dup2(nowhere.fileno(), stream.fileno())


def _make_bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("tiles  {task.fields[rate]} "),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=Console(stderr=True),
    )
