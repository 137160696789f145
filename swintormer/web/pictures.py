"""A picture of the page: its files, what is known of it, and what it is doing."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from swintormer.images.files import harmless
from swintormer.images.formats import SUFFIXES, reads
from swintormer.inference.kept import Kept
from swintormer.web.previews import TILE, Levels

State = Literal["receiving", "opening", "waiting", "restoring", "done", "stopped", "failed"]
LONGEST_NAME = 120  # characters of a file's name that are kept


@dataclass(frozen=True)
class Restored:
    """What one network made of a picture.

    Attributes:
        kept: the numbers, from which results of any strength are made.
        levels: what the page shows of it.
        needs_nothing: whether `swintormer deblur` would leave the picture as it came.
        seconds: that it took.
    """

    kept: Kept
    levels: Levels
    needs_nothing: bool
    seconds: float


@dataclass(eq=False)
class Picture:
    """One picture of one window. Its fields are changed under the desk's lock.

    Attributes:
        window: name of the browser window that it belongs to.
        name: of the file as the user knows it, without folders.
        folder: takes all its files.
        model: the network that is asked for.
        share: of the restoration that is done.
        error: why it failed; empty otherwise.
        size: width and height in pixels as stored; None before it was opened.
        before: what is shown of it as it came.
        results: by the name of the network.
        stopping: whether its restoration is to end.
        cancelled: whether that is because the user does not want it, and not for another network.
        closed: whether the user has closed it; its folder is removed when nobody uses it any more.
        uses: threads that work with its files.
    """

    window: str
    name: str
    folder: Path
    model: str
    id: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    state: State = "receiving"
    share: float = 0.0
    error: str = ""
    notes: list[str] = field(default_factory=list)
    size: tuple[int, int] | None = None
    described: str = ""
    before: Levels | None = None
    results: dict[str, Restored] = field(default_factory=dict)
    started: float = 0.0
    stopping: bool = False
    cancelled: bool = False
    closed: bool = False
    uses: int = 0

    @property
    def source(self) -> Path:
        """The file. It keeps its ending, which decides the format of the result."""
        ending = Path(self.name).suffix
        return self.folder / f"{self.id}-in{ending if reads(Path(self.name)) is not None else ''}"

    @property
    def megapixels(self) -> float:
        return 0.0 if self.size is None else self.size[0] * self.size[1] / 1e6

    def result(self, ending: str) -> tuple[Path, str]:
        """Where a result is written, and its name for the user: as `swintormer deblur --suffix _sharp` names it."""
        stem = Path(self.name).stem if reads(Path(self.name)) is not None else self.name
        return self.folder / f"{self.id}-out{ending}", f"{stem}_sharp{ending}"

    def told(self, text: str) -> str:
        """A sentence of the program with the names that the user knows, and without options of a command line."""
        text = text.replace(f"{self.folder}/", "").replace(f"{self.folder}\\", "")
        text = text.replace(self.source.name, self.name)
        for suffix in SUFFIXES:
            for ending in (suffix, suffix.upper(), Path(self.name).suffix):
                path, name = self.result(ending)
                text = text.replace(path.name, name)
        return harmless(text.replace("choose --format ", "choose the format "))

    def status(self, position: int) -> dict[str, Any]:
        """What the page is told.

        Args:
            position: in the queue, from 1; 0 if it is not waiting.
        """
        levels = self.before
        return {
            "id": self.id,
            "name": self.name,
            "state": self.state,
            "share": self.share,
            "error": self.error,
            "notes": self.notes,
            "described": self.described,
            "model": self.model,
            "position": position,
            "shown": None
            if levels is None
            else {
                "width": levels.width,
                "height": levels.height,
                "levels": levels.count,
                "tile": TILE,
                "transparent": levels.transparent,
            },
            "results": {
                name: {"needs_nothing": result.needs_nothing, "seconds": round(result.seconds, 2)}
                for name, result in self.results.items()
            },
            "left": self._seconds_left(),
        }

    def _seconds_left(self) -> float | None:
        if self.state != "restoring" or self.share <= 0:
            return None
        return (time.monotonic() - self.started) * (1 - self.share) / self.share


def plain_name(name: str) -> str:
    """The name of a file that a browser sends, without folders, control characters and what is too long."""
    name = harmless(name.replace("\\", "/").rpartition("/")[2].replace("\n", " ")).strip().lstrip(".")
    if len(name) > LONGEST_NAME:
        ending = Path(name).suffix[:8]
        name = name[: LONGEST_NAME - len(ending)] + ending
    return name or "picture"
