"""What `swintormer deblur` shows of its progress: a bar on a terminal, and a line for each finished file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from swintormer.cli.messages import discard

if TYPE_CHECKING:
    from swintormer.cli.plan import Job
    from swintormer.images.io import Image


class Following:
    """Progress of one file, reported by `restore_file` and the pipeline. A signal in `caught` ends the work there."""

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
        """The pipeline's callback, with the tiles that are done and their total number."""
        if done < total:  # a picture that is restored is written before the program ends
            self._stop_if_asked()
        self.tiles = total
        if self.bar is not None:
            rate = f"{self.megapixels * done / total / self.seconds:.2f} megapixels/s"
            self.bar.update(self.task, completed=done, total=total, rate=rate)

    def __str__(self) -> str:
        picture = "" if self.image is None else describe(self.image)
        tiles = f"{self.tiles} tile" + "s" * (self.tiles != 1)
        rate = f"{self.megapixels / self.seconds:.2f} megapixels/s"
        text = f"{self.job.source} -> {self.job.target}: {picture}, {tiles}, {self.seconds:.1f} s, {rate}"
        return "\n".join([text, *(f"  Note: {note}" for note in self.notes)])


class Reporter:
    """Shows the progress of all files."""

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
        """Follow one file, and print a line when it is done; nothing if it fails."""
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
        if self.files > 1:  # the failure of a single file is reported at the end
            self.say(f"Failed: {sentence}")

    def say(self, text: str) -> None:
        """Print a line. When nobody reads the output any more (`| head`), the work continues without output."""
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


def describe(image: Image) -> str:
    """Size, colours and bits, in a few words."""
    height, width, channels = image.pixels.shape
    return f"{width}x{height}, {'gray' if channels == 1 else 'RGB'}, {image.bits} bits"


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
