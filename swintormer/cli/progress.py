"""What `swintormer deblur` shows of its progress: a bar on a terminal, and a line for each finished file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swintormer.cli.messages import discard
from swintormer.images.files import harmless

if TYPE_CHECKING:
    from swintormer.cli.plan import Job
    from swintormer.images.picture import Image


class Following:
    """Progress of one file, reported by `restore_file` and the pipeline. A signal in `caught` ends the work there.

    Args:
        show: takes the share of the file that is done, and tiles and speed as a text.
        told: how a text is shown to the user.
    """

    def __init__(
        self, job: Job, caught: list[int], show: Callable[[float, str], None], told: Callable[[str], str] = str
    ):
        self.job, self.caught, self.show, self.told = job, caught, show, told
        self.image: Image | None = None
        self.notes: list[str] = []
        self.tiles = 0
        self.start = time.monotonic()

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
        rate = self.megapixels * done / total / self.seconds
        self.show(done / total, f"{done}/{total} tiles, {rate:.2f} megapixels/s")

    def __str__(self) -> str:
        picture = "" if self.image is None else describe(self.image)
        tiles = f"{self.tiles} tile" + "s" * (self.tiles != 1)
        rate = f"{self.megapixels / self.seconds:.2f} megapixels/s"
        text = f"{self.job.source} -> {self.job.target}: {picture}, {tiles}, {self.seconds:.1f} s, {rate}"
        return self.told("\n".join([text, *(f"  Note: {note}" for note in self.notes)]))


class Reporter:
    """Shows the progress of all files: on a terminal a bar for the whole batch, whose measure is the files' bytes.

    Args:
        told: how a text is shown to the user.
        to_errors: whether lines go to the error stream, because standard output takes the picture.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        quiet: bool = False,
        told: Callable[[str], str] = str,
        to_errors: bool = False,
    ):
        self.sizes = [_size(job.source) for job in jobs]
        self.files, self.quiet, self.told, self.to_errors = len(jobs), quiet, told, to_errors
        self.number = 0
        self.bar: Any = _make_bar() if sys.stderr.isatty() and not quiet else None
        self.task = None if self.bar is None else self.bar.add_task("", total=sum(self.sizes), details="")

    def __enter__(self) -> Reporter:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.update(self.task, visible=False)
            with suppress(OSError):  # a terminal that has been closed
                self.bar.stop()

    @contextmanager
    def file(self, job: Job, caught: list[int]) -> Iterator[Following]:
        """Follow one file, and print a line when it is done; nothing if it fails."""
        counter = f"{self.number + 1}/{self.files} " if self.files > 1 else ""
        title = counter + harmless(job.source.name).replace("\n", "\\n")
        before, size = sum(self.sizes[: self.number]), self.sizes[self.number]
        self.number += 1

        def show(share: float, details: str) -> None:
            if self.bar is not None:
                done = before + share * size  # drawn ten times a second; the end of a file at once, for short ones
                self.bar.update(self.task, description=title, completed=done, details=details, refresh=share == 1)

        show(0, "reading")
        follow = Following(job, caught, show, self.told)
        yield follow
        self.say(str(follow))

    def ended(self, job: Job, line: str) -> None:
        """A file on which another process worked, in whatever order they end: its line, and its share of the bar."""
        self.number += 1
        if line:
            self.say(line)
        if self.bar is not None:
            title = f"{self.number}/{self.files} " + harmless(job.source.name).replace("\n", "\\n")
            self.bar.update(self.task, description=title, advance=_size(job.source), refresh=True)

    def failed(self, sentence: str) -> None:
        if self.files > 1:  # the failure of a single file is reported at the end
            self.say(f"Failed: {sentence}")

    def say(self, text: str) -> None:
        """Print a line. When nobody reads the output any more (`| head`), the work continues without output."""
        if self.quiet:
            return
        text = harmless(self.told(text))
        try:
            if self.bar is not None:
                self.bar.console.print(text, soft_wrap=True, markup=False, highlight=False)
            else:
                print(text, file=sys.stderr if self.to_errors else sys.stdout, flush=True)
        except OSError:
            self.quiet = True
            if not self.to_errors:
                discard(sys.stdout)


def _size(path: Path) -> int:
    """Bytes of a file; 1 where it has none or is not there, so that it counts."""
    with suppress(OSError):
        return path.stat().st_size or 1
    return 1


def describe(image: Image) -> str:
    """Size, colours and bits, in a few words."""
    height, width, channels = image.pixels.shape
    return f"{width}x{height}, {'gray' if channels == 1 else 'RGB'}, {image.bits} bits"


def _make_bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("left  {task.fields[details]}"),
        console=Console(stderr=True),
    )
