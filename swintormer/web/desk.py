"""The desk behind the page: every window puts its pictures on it, and one queue serves them all."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from swintormer.errors import SwintormerError, first_line, is_out_of_memory
from swintormer.images.compare import change
from swintormer.images.formats import result_ending
from swintormer.images.picture import Image
from swintormer.images.reading import MAX_PIXELS, read_image
from swintormer.images.writing import Saving, check_target, write_image, write_unchanged
from swintormer.inference.deblurrer import Deblurrer
from swintormer.inference.kept import Kept
from swintormer.inference.memory import binary
from swintormer.web.folder import remove
from swintormer.web.pictures import Picture, Restored
from swintormer.web.previews import make_levels

PATIENCE = 600.0  # seconds after which the pictures of a window that was closed, and not only loaded again, are closed
SPARE = 2**26  # bytes that a disk keeps free
_LOOK_EVERY = 20.0  # seconds


class Stopped(Exception):
    """The user has stopped or closed the picture, or the program is ending."""


@dataclass(frozen=True)
class Network:
    """A network that is loaded, of the full strength.

    Attributes:
        alone: a picture that it changes by less than this (dB) needs nothing; None where that is not known.
    """

    deblurrer: Deblurrer
    alone: float | None = None


@dataclass(frozen=True)
class Models:
    """The networks that the user may choose.

    Attributes:
        purposes: what each is for, by name; the first is the default.
        load: loads one by name. Raises SwintormerError.
    """

    purposes: Mapping[str, str]
    load: Callable[[str], Network]


@dataclass(frozen=True)
class Wanted:
    """A result to be written.

    Attributes:
        strength: 0 to 1.
        force: also restore a picture that needs nothing.
        form: name in `images.formats.FORMATS`; None for that of the picture.
    """

    model: str
    strength: float = 1.0
    force: bool = False
    form: str | None = None


@dataclass
class Desk:
    """Opens and restores pictures in two threads of its own, one after the other in each.

    Args:
        folder: takes the files of all pictures.
        max_pixels: width times height of the largest picture that is read.
    """

    folder: Path
    models: Models
    max_pixels: int = MAX_PIXELS
    pictures: dict[str, Picture] = field(default_factory=dict)
    _left: dict[str, float] = field(default_factory=dict)
    _networks: dict[str, Network] = field(default_factory=dict)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _ending: bool = False
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        """Begin to work."""
        for work in (self._open_all, self._restore_all):
            thread = threading.Thread(target=work, daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self, patience: float = 10.0) -> None:
        """End the work: a restoration after its tile at hand, decoding and encoding when they are done.

        Args:
            patience: seconds to wait for that.
        """
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        end = time.monotonic() + patience
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    # What the windows ask for

    def add(self, window: str, name: str, model: str) -> Picture:
        """A new picture, whose file is still to come: see `received`. Raises SwintormerError for an unknown model."""
        self._check_model(model)
        picture = Picture(window, name, self.folder, model)
        picture.folder = self.folder / picture.id
        picture.folder.mkdir()
        with self._changed:
            self.pictures[picture.id] = picture
        return picture

    def received(self, picture: Picture) -> None:
        """Its file is complete."""
        self._set(picture, state="opening")

    def find(self, name: str) -> Picture:
        """Raises SwintormerError if there is no such picture, or it is closed."""
        with self._changed:
            picture = self.pictures.get(name)
        if picture is None:
            raise SwintormerError("This picture is closed: drop it again.")
        return picture

    def restore(self, picture: Picture, model: str) -> None:
        """Put a picture into the queue again, unless this network has restored it already."""
        self._check_model(model)
        with self._changed:
            other, picture.model, picture.cancelled = model != picture.model, model, False
            if picture.state in ("opening", "receiving") or picture.before is None:
                return
            if picture.state == "restoring":
                picture.stopping = picture.stopping or other
                return
            picture.state = "done" if model in picture.results else "waiting"
            picture.error = ""
            self._to_the_end(picture)
            self._changed.notify_all()

    def cancel(self, picture: Picture) -> None:
        """Take a picture from the queue, or end its restoration after the tile at hand."""
        with self._changed:
            if picture.state == "waiting":
                picture.state = "stopped"
            elif picture.state == "restoring":
                picture.stopping = picture.cancelled = True

    def close(self, picture: Picture) -> None:
        """Forget a picture and remove its files."""
        with self._changed:
            self.pictures.pop(picture.id, None)
            picture.stopping = picture.closed = True
            unused = not picture.uses
        if unused:
            remove(picture.folder)

    def leave(self, window: str) -> None:
        """A window is closed or loaded again, which is not known yet. One that only sleeps says nothing."""
        with self._changed:
            self._left[window] = time.monotonic()

    def status(self, window: str) -> dict[str, Any]:
        """What a window is told: its own pictures, and how far all work is."""
        with self._changed:
            self._left.pop(window, None)
            queue = [picture for picture in self.pictures.values() if picture.state == "waiting"]
            own = [picture for picture in self.pictures.values() if picture.window == window]
            before = sum(picture.state == "restoring" for picture in self.pictures.values())
            positions = {picture.id: before + index + 1 for index, picture in enumerate(queue)}
            return {"pictures": [picture.status(positions.get(picture.id, 0)) for picture in own]}

    # What is done with a picture

    @contextmanager
    def using(self, picture: Picture) -> Iterator[None]:
        """A scope in which the picture's files stay. Raises SwintormerError if it is closed."""
        with self._changed:
            if picture.closed:
                raise SwintormerError("This picture is closed: drop it again.")
            picture.uses += 1
        try:
            yield
        finally:
            with self._changed:
                picture.uses -= 1
                unused = picture.closed and not picture.uses
            if unused:
                remove(picture.folder)

    def write(self, picture: Picture, wanted: Wanted) -> tuple[Path, str, list[str]]:
        """Write a result as `swintormer deblur` does: its file, its name for the user, and notes.

        Raises:
            SwintormerError: the picture is not restored by that network, or the format cannot hold it.
        """
        with self.using(picture), self._telling(picture):
            restored = picture.results.get(wanted.model)
            if restored is None:
                raise SwintormerError(f"{picture.name} is not restored yet: wait, or restore it first.")
            image = read_image(picture.source, self.max_pixels)
            target, name = picture.result(result_ending(picture.source, wanted.form))
            notes = check_target(image, target)
            if restored.needs_nothing and not wanted.force:
                if write_unchanged(target, image):
                    notes = [image.damage] if image.damage else []
            else:
                write_image(target, restored.kept.samples(image.pixels, wanted.strength), image, Saving())
            return target, name, [picture.told(note) for note in notes]

    def _open_all(self) -> None:
        while picture := self._next("opening"):
            self._attempt(picture, partial(self._open, picture))

    def _open(self, picture: Picture) -> None:
        image = read_image(picture.source, self.max_pixels)
        self._check_room(image)
        notes = check_target(image, picture.result(result_ending(picture.source))[0])
        levels = make_levels(picture.folder, "before", image, image.pixels)
        height, width, channels = image.pixels.shape
        with self._changed:
            picture.size = width, height
            picture.described = f"{width}x{height}, {'gray' if channels == 1 else 'RGB'}, {image.bits} bits"
            picture.notes = [picture.told(note) for note in notes]
            picture.before = levels
            picture.state = "waiting"
            self._changed.notify_all()

    def _restore_all(self) -> None:
        while picture := self._next("waiting"):
            self._attempt(picture, partial(self._restore, picture))

    def _restore(self, picture: Picture) -> None:
        with self._changed:
            model, picture.state, picture.share, picture.started = picture.model, "restoring", 0.0, time.monotonic()
            picture.stopping = picture.cancelled = False
        image = read_image(picture.source, self.max_pixels)
        self._check_room(image)
        network = self._network(model)
        kept = Kept(picture.folder / f"{model}.f32")

        def progress(done: int, total: int) -> None:
            if picture.stopping or self._ending:
                raise Stopped
            picture.share = done / total

        start = time.monotonic()
        try:
            network.deblurrer.restore_parts(image.pixels, kept.take, progress=progress)
            pixels = kept.samples(image.pixels, 1.0)
            nothing = network.alone is not None and change(image.pixels, pixels) >= network.alone
            levels = make_levels(picture.folder, f"after-{model}", image, pixels)
        except BaseException:
            kept.path.unlink(missing_ok=True)
            raise
        with self._changed:
            picture.results[model] = Restored(kept, levels, nothing, time.monotonic() - start)
            picture.state = "done" if picture.model in picture.results else "waiting"

    def _network(self, name: str) -> Network:
        if name not in self._networks:
            self._networks[name] = self.models.load(name)
        return self._networks[name]

    def _attempt(self, picture: Picture, work: Callable[[], None]) -> None:
        """Whatever happens to one picture, the others go on."""
        try:
            with self.using(picture), self._telling(picture):
                work()
        except Stopped:
            with self._changed:
                if picture.cancelled:
                    picture.state = "stopped"
                else:  # for another network
                    picture.state = "done" if picture.model in picture.results else "waiting"
        except SwintormerError as error:
            self._set(picture, state="failed", error=str(error))

    @contextmanager
    def _telling(self, picture: Picture) -> Iterator[None]:
        """Every error as a SwintormerError in words for the user."""
        try:
            yield
        except Stopped:
            raise
        except SwintormerError as error:
            raise SwintormerError(picture.told(str(error))) from error
        except Exception as error:
            if is_out_of_memory(error):
                sentence = f"{picture.name} does not fit into memory: close other programs, or crop it first."
            else:
                cause = picture.told(f"{type(error).__name__}: {first_line(error)}")
                sentence = f"{picture.name} failed because of an error in the program ({cause}): please report it."
            raise SwintormerError(sentence) from error

    def _next(self, state: str) -> Picture | None:
        """Wait for a picture in that state; None when the program ends."""
        with self._changed:
            while not self._ending:
                for picture in self.pictures.values():
                    if picture.state == state:
                        return picture
                self._changed.wait(_LOOK_EVERY)
                self._forget_windows()
        return None

    def _forget_windows(self) -> None:
        """Close the pictures of windows that are gone."""
        now = time.monotonic()
        gone = {window for window, left in self._left.items() if now - left > PATIENCE}
        for picture in [picture for picture in self.pictures.values() if picture.window in gone]:
            self.close(picture)
        for window in gone:
            del self._left[window]

    def _to_the_end(self, picture: Picture) -> None:
        """The order of the pictures is that of the queue."""
        if self.pictures.pop(picture.id, None) is not None:
            self.pictures[picture.id] = picture

    def _set(self, picture: Picture, **fields: Any) -> None:
        with self._changed:
            for name, value in fields.items():
                setattr(picture, name, value)
            self._changed.notify_all()

    def _check_model(self, name: str) -> None:
        if name not in self.models.purposes:
            raise SwintormerError(f"There is no model {name!r}: choose one of {', '.join(self.models.purposes)}.")

    def _check_room(self, image: Image) -> None:
        """Raise an error unless the temporary folder has room for the restoration and what is shown of it."""
        height, width, channels = image.pixels.shape
        need = width * height * (4 * channels + 3 * (channels + 1))
        free = max(0, shutil.disk_usage(self.folder).free - SPARE)
        if need > free:
            raise SwintormerError(
                f"{image.path} needs {binary(need)} in the temporary folder, and {binary(free)} are free: close other "
                "pictures, or set TMPDIR to a folder on a larger disk."
            )
