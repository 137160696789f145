"""`swintormer evaluate`: how well a network restores, on datasets, on your pictures or on the held-out photographs."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from swintormer.cli.deblur import Settings, parse_scales, parse_tile, window_note
from swintormer.cli.messages import FAILED, SIGNALLED, complain
from swintormer.errors import SwintormerError
from swintormer.signals import stoppable

if TYPE_CHECKING:
    from swintormer.checkpoint.checkpoint import Checkpoint
    from swintormer.cli.models import Model
    from swintormer.data.datasets import PairFiles
    from swintormer.evaluation.record import Record
    from swintormer.evaluation.scores import Score

EVALUATE = (
    "Measure how well a network restores: PSNR, SSIM and MAE of its results, beside those of the blurred pictures.\n\n"
    "With --dataset on a published dataset, as its papers measure, and beside published figures. With --blurred and "
    "--sharp on your own pairs of pictures. With --sharp alone: how much it alters pictures that need no restoring. "
    "Without any of these on the held-out photographs of the model card, beside classical deconvolution."
)
EVALUATE_EXAMPLES = (
    "Examples:\n\n"
    "swintormer evaluate --dataset dpdd --root DPDD --weights mine.safetensors --csv mine.csv\n\n"
    "swintormer evaluate --blurred test/blurred --sharp test/sharp"
)
NAMED = "pairs"  # beside `datasets.LAYOUTS`: pairs in one folder, told by their names
SECONDS_BETWEEN_LINES = 10.0
MOST_GROUPS = 12  # parts of a dataset that get rows of their own; scenes of video are many


def _option(panel: str, text: str, *names: str, metavar: str = "", **more: Any) -> Any:
    return typer.Option(*names, help=text, metavar=metavar, rich_help_panel=panel, show_default=False, **more)


_MAIN, _DATASET, _OWN, _HELDOUT, _RARE = (
    "Options",
    "A published dataset",
    "Your own pictures",
    "Held-out photographs",
    "Rarely needed",
)


def evaluate(
    weights: Annotated[
        Path | None, _option(_MAIN, "Network to measure (default: the installed one).", metavar="FILE")
    ] = None,
    model: Annotated[
        str, _option(_MAIN, "Another installed network by name, as deblur restores with it.", metavar="NAME")
    ] = "",
    csv: Annotated[
        Path | None,
        _option(_MAIN, "Also write every score here; the same command continues from it.", metavar="FILE"),
    ] = None,
    device: Annotated[
        str, _option(_MAIN, "cpu, cuda, cuda:1 (second GPU), mps or auto (default).", metavar="NAME")
    ] = "auto",
    prior: Annotated[
        bool, _option(_MAIN, "Measure the installed network with a prior, with and without the prior.", "--prior")
    ] = False,
    limit: Annotated[int | None, _option(_MAIN, "Only the first N pictures.", min=1, metavar="N")] = None,
    dataset: Annotated[
        str,
        _option(
            _DATASET,
            "Its test split: dpdd, realdof, gopro, hide, realblur, reds, rsblur or folders (blurred and sharp); "
            "or pairs: any folder that holds NAME_blur.png with NAME_sharp.png.",
            metavar="NAME",
        ),
    ] = "",
    root: Annotated[Path | None, _option(_DATASET, "Folder that holds the dataset.", metavar="DIR")] = None,
    blurred: Annotated[
        Path | None, _option(_OWN, "Folder of blurred pictures, or of left dual-pixel views.", metavar="DIR")
    ] = None,
    sharp: Annotated[
        Path | None,
        _option(_OWN, "Folder of the sharp pictures: same folders and names, of any format.", metavar="DIR"),
    ] = None,
    right: Annotated[
        Path | None, _option(_OWN, "Folder of the right dual-pixel views, for dual-pixel weights.", metavar="DIR")
    ] = None,
    photos: Annotated[
        Path | None, _option(_HELDOUT, "Degrade the photographs of this folder instead.", metavar="DIR")
    ] = None,
    side: Annotated[
        int | None, _option(_HELDOUT, "Largest side of the photographs (default: 384).", min=7, metavar="PIXELS")
    ] = None,
    network_only: Annotated[
        bool, _option(_HELDOUT, "Leave out classical deconvolution, the slow part.", "--network-only")
    ] = False,
    tile: Annotated[
        str,
        _option(_RARE, "Size of the tiles, or auto (default: the training tile of the weights).", metavar="PIXELS"),
    ] = "",
    stride: Annotated[
        int | None, _option(_RARE, "Distance between tiles (default: the paper's share, 220 of 256).", metavar="PIXELS")
    ] = None,
    scales: Annotated[
        str,
        _option(
            _RARE,
            "2: at half size first; 3: a quarter; auto: where it finds more to change (default: 1).",
            metavar="N",
        ),
    ] = "",
    window: Annotated[
        int | None,
        _option(_RARE, "Attention window size, for weights that do not store it.", min=1, metavar="PIXELS"),
    ] = None,
    skip_rows: Annotated[
        int, _option(_RARE, "Rows at the top of every pair to leave out, such as a caption.", min=0, metavar="N")
    ] = 0,
) -> None:
    """Check which of the four measurements is meant, and print its tables."""
    from swintormer.cli.models import DEFAULT, WITH_PRIOR, named

    kind = _kind(dataset, root, blurred, sharp, right)
    if model and (prior or weights is not None):
        raise SwintormerError("--model, --prior and --weights each name a network: leave the others out.")
    if prior and weights is not None:
        raise SwintormerError("--prior selects installed weights: leave it out; a prior in --weights is used anyway.")
    if kind != "held-out" and (side is not None or network_only or photos is not None):
        raise SwintormerError(
            "--photos, --side and --network-only are for the held-out photographs: leave them out for other pictures."
        )
    if skip_rows and kind not in ("dataset", "pairs"):
        raise SwintormerError("--skip-rows is for pairs of pictures: leave it out.")
    installed = named(model or (WITH_PRIOR if prior else DEFAULT))
    settings = Settings(
        weights or installed.path(),
        tile=parse_tile(tile),
        stride=stride,
        scales=parse_scales(scales),
        window=window,
        device=device,
    )
    run = _Run(settings, csv, limit, None if weights is not None else installed)
    if kind == "held-out":
        print(_heldout(run, photos, side, network_only))
    elif kind == "sharp":
        assert sharp is not None
        print(_sharp(run, sharp))
    elif kind == "dataset":
        assert root is not None
        print(_dataset(run, dataset, root, skip_rows))
    else:
        assert blurred is not None
        assert sharp is not None
        print(_folders(run, blurred, sharp, right, skip_rows))
    if run.failures:
        complain(f"{len(run.failures)} could not be measured:")
        for sentence in run.failures:
            complain(f"  {sentence}")
        raise typer.Exit(FAILED)


def _kind(dataset: str, root: Path | None, blurred: Path | None, sharp: Path | None, right: Path | None) -> str:
    """Which measurement the options ask for. Raises SwintormerError where they do not go together."""
    if dataset or root is not None:
        if not dataset or root is None:
            raise SwintormerError("A dataset needs both its name, --dataset, and its folder, --root.")
        if blurred is not None or sharp is not None or right is not None:
            raise SwintormerError("--dataset finds its own folders: leave out --blurred, --sharp and --right.")
        return "dataset"
    if blurred is not None:
        if sharp is None:
            raise SwintormerError("Pairs need both folders, --blurred and --sharp.")
        return "pairs"
    if right is not None:
        raise SwintormerError("--right goes with --blurred, the left views, and --sharp.")
    return "held-out" if sharp is None else "sharp"


@dataclass
class _Run:
    """What the measurements share: the settings, where scores are kept, and how many pictures are wanted.

    `installed` is the network where it was not given as weights. `failures` takes a sentence for each of one's own
    pictures that cannot be measured.
    """

    settings: Settings
    csv: Path | None
    limit: int | None
    installed: Model | None = None
    failures: list[str] = field(default_factory=list)

    def check(self, found: Sequence[Score]) -> None:
        """Raise the first failure if there is nothing else to report."""
        if self.failures and not found:
            raise SwintormerError(self.failures[0])

    def chosen(self, **defaults: Any) -> dict[str, Any]:
        """Settings of the pipeline: those that were given, and a measurement's own defaults.

        In float32, so that figures do not depend on what the CPU can multiply.
        """
        given = {name: getattr(self.settings, name) for name in ("tile", "stride", "scales", "device")}
        given = {name: value for name, value in given.items() if value is not None}
        own = {} if self.installed is None else {"scales": self.installed.scales}
        return {"precision": "float32"} | own | defaults | given

    def load(self) -> Checkpoint:
        from swintormer.checkpoint.checkpoint import read_checkpoint

        checkpoint = read_checkpoint(self.weights, window_size=self.settings.window)
        if note := window_note(self.weights, checkpoint, self.settings.window):
            complain(note)
        return checkpoint

    @property
    def weights(self) -> Path:
        assert self.settings.weights is not None
        return self.settings.weights

    def record(self, *what: str) -> Record:
        """Where this measurement's scores are kept, with those of an interrupted one."""
        from swintormer.evaluation.record import Record, digest

        words = [f"{self.weights.name} {digest(self.weights)}", *what]
        given = {name: getattr(self.settings, name) for name in ("tile", "stride", "window", "scales")}
        if self.installed is not None:
            given["scales"] = given["scales"] or self.installed.scales
        words += [f"{name} {value}" for name, value in given.items() if value and (name, value) != ("scales", 1)]
        record = Record(self.csv, ", ".join(words))
        if record.known:
            complain(f"{len(record.known)} scores stand in {self.csv} already and are not computed again.")
        return record


class _Progress:
    """A bar on a terminal, else a line now and then, both on the error stream; a signal in `caught` ends the work."""

    def __init__(self, pictures: int, caught: list[int], title: str):
        self.pictures, self.caught, self.title, self.done = pictures, caught, title, 0
        self.last = time.monotonic()
        self.bar: Any = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn()
            self.bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
            self.bar.start()
            self.task = self.bar.add_task(title, total=pictures)

    def __call__(self, _done: int, _total: int) -> None:
        """The pipeline's callback, after every batch of tiles."""
        if self.caught:
            raise KeyboardInterrupt

    def finished(self, name: str) -> None:
        """One more picture is measured."""
        self.done += 1
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done, description=self.title + name)
        elif time.monotonic() - self.last > SECONDS_BETWEEN_LINES:
            complain(f"{self.title}{self.done} of {self.pictures} measured, the last is {name}")
            self.last = time.monotonic()

    def follow(self, scores: Iterable[Score], record: Record, per_picture: int) -> list[Score]:
        """All scores, each kept as soon as it is there."""
        found: list[Score] = []
        for score in scores:
            record.add(score)
            found.append(score)
            if len(found) % per_picture == 0:
                self.finished(score.picture)
            self(0, 0)
        return found

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()


@contextmanager
def _following(run: _Run, record: Record, pictures: int, title: str = "") -> Iterator[_Progress]:
    """Progress of a measurement. Ctrl-C ends it after the current tiles, with exit code 130; what is done is kept."""
    with stoppable() as caught:
        progress = _Progress(pictures, caught, title and title + ": ")
        try:
            yield progress
        except KeyboardInterrupt:
            progress.close()
            record.save()
            advice = "the same command continues" if run.csv else "with --csv FILE the same command would continue"
            complain(f"Interrupted{title and ' at ' + title} after {progress.done} of {pictures} pictures; {advice}.")
            raise typer.Exit(SIGNALLED + (caught[0] if caught else signal.SIGINT)) from None
        finally:
            progress.close()
            record.save()


def _heldout(run: _Run, photos: Path | None, side: int | None, network_only: bool) -> str:
    """The tables of the model card."""
    from swintormer.evaluation import heldout, scores, tables
    from swintormer.evaluation.classical import CLASSICAL

    side = side or heldout.SIDE
    checkpoint = _for_one_view(run)
    names = heldout.PHOTOGRAPHS[: run.limit]
    paths = [] if photos is None else scores.pictures_below(photos)[: run.limit]
    count = len(names) if photos is None else len(paths)
    record = run.record("held-out photographs" if photos is None else f"photographs of {photos}", f"side {side}")

    def photographs() -> Iterator[tuple[str, scores.Array]]:
        return (
            scores.heldout_photographs(names) if photos is None else scores.photographs_in(photos, paths, run.failures)
        )

    found: list[list[Score]] = []
    kinds: dict[str, Sequence[heldout.Degradation | heldout.CameraDegradation]] = {
        "kernels of blur": heldout.DEGRADATIONS,
        "blur as of cameras": heldout.CAMERA_DEGRADATIONS,
    }
    for title, degradations in kinds.items():
        with _following(run, record, count, title) as progress:
            networks = scores.network_methods(checkpoint, progress=progress, **run.chosen())
            methods = networks | ({} if network_only else CLASSICAL)
            rows = scores.degraded_scores(methods, photographs(), degradations, side=side, known=record.known)
            found.append(progress.follow(rows, record, len(degradations) * (1 + len(methods))))
            run.check(found[-1])
    with _following(run, record, count, "sharp photographs") as progress:
        networks = scores.network_methods(checkpoint, progress=progress, **run.chosen())
        untouched = scores.sharp_scores(networks[scores.NETWORK], photographs(), side, record.known)
        sharp = progress.follow(untouched, record, 1)
    parts = []
    for of_a_kind in found:
        shown = tables.with_best_classical(of_a_kind)
        parts += [tables.table(shown, "degradation"), tables.table(shown, "picture"), tables.left_out(shown)]
    return _joined(*parts, tables.sharp_sentence(sharp))


def _for_one_view(run: _Run) -> Checkpoint:
    """The network, for measurements on pictures that have one view."""
    checkpoint = run.load()
    config = checkpoint.net.config
    if config.in_channels != config.out_channels:
        raise SwintormerError(
            f"{run.weights} restores dual-pixel pairs, and these pictures have one view: measure it with "
            "--dataset dpdd, or with --blurred, --right and --sharp."
        )
    return checkpoint


def _sharp(run: _Run, folder: Path) -> str:
    """How much a network alters pictures that are sharp already."""
    from swintormer.evaluation import scores, tables

    checkpoint = _for_one_view(run)
    paths = scores.pictures_below(folder)[: run.limit]
    record = run.record(f"sharp pictures of {folder}")
    with _following(run, record, len(paths)) as progress:
        network = scores.network_methods(checkpoint, 255, progress, **run.chosen())[scores.NETWORK]
        rows = scores.sharp_scores(network, scores.photographs_in(folder, paths, run.failures), None, record.known)
        found = progress.follow(rows, record, 1)
        run.check(found)
    return _joined(tables.table(found, "picture", gained=False), tables.sharp_sentence(found))


def _dataset(run: _Run, dataset: str, root: Path, skip_rows: int) -> str:
    """The paper's measures of a dataset's test split, and published figures below."""
    from swintormer.data.datasets import LAYOUTS, read_pairs
    from swintormer.evaluation import pairs as protocol
    from swintormer.evaluation.published import published_table

    if dataset not in (*LAYOUTS, NAMED):
        raise SwintormerError(f"There is no dataset {dataset!r}: choose one of {', '.join((*LAYOUTS, NAMED))}.")
    checkpoint = run.load()
    if dataset == NAMED:
        files = protocol.named_pairs(root)
    else:
        files = read_pairs(dataset, root, "val" if dataset == "reds" else "test")
    if dataset == "dpdd":
        files = protocol.with_rooms(files)
        if not any(pair.group for pair in files):
            complain(f"Note: {len(files)} pictures, not all {protocol.DPDD_TEST}: no rows for indoor and outdoor.")
    parts = _measure(run, checkpoint, files, f"{dataset} of {root}", skip_rows, {"blend": protocol.PAPER_BLEND})
    return _joined(*parts, published_table(dataset))


def _folders(run: _Run, blurred: Path, sharp: Path, right: Path | None, skip_rows: int) -> str:
    """The measures of one's own pairs, each and all."""
    from swintormer.data.datasets import pair_folders

    checkpoint = run.load()
    two_views = checkpoint.net.config.two_views
    if two_views and right is None:
        raise SwintormerError(f"{run.weights} restores dual-pixel pairs: name the folder of right views with --right.")
    if right is not None and not two_views:
        raise SwintormerError(
            f"{run.weights} restores single pictures: leave out --right, or name dual-pixel --weights."
        )
    files = pair_folders(blurred, sharp, right)
    names = ", ".join(str(folder) for folder in (blurred, right, sharp) if folder is not None)
    return _joined(*_measure(run, checkpoint, files, names, skip_rows, {}, each=True))


def _measure(
    run: _Run,
    checkpoint: Checkpoint,
    files: list[PairFiles],
    what: str,
    skip_rows: int,
    defaults: dict[str, Any],
    each: bool = False,
) -> list[str]:
    """Tables of pairs: every picture if `each`, and the means over groups and over all."""
    from swintormer.evaluation import scores, tables
    from swintormer.evaluation.lpips import perceptual_distance
    from swintormer.evaluation.pairs import pair_scores

    files = files[: run.limit]
    words = [what, *([f"without the first {skip_rows} rows"] if skip_rows else [])]
    distance = perceptual_distance()
    record = run.record(*words, *(["with ST-LPIPS"] if distance else []))
    with _following(run, record, len(files)) as progress:
        # Results of 16 bits, so that rounding to 8 does not enter the scores.
        methods = scores.network_methods(checkpoint, 65535, progress, **run.chosen(**defaults))
        failures = run.failures if each else None  # the mean of a published dataset is that of all its pictures
        rows = pair_scores(
            methods, files, known=record.known, skip_rows=skip_rows, distance=distance, failures=failures
        )
        found = progress.follow(rows, record, 1 + len(methods))
        run.check(found)
    groups = sorted({pair.group for pair in files if pair.group})
    shown = groups if 1 < len(groups) <= MOST_GROUPS else []
    parts = [tables.table(found, "picture")] if each else []
    return [*parts, tables.summary(found, shown), tables.left_out(found)]


def _joined(*parts: str) -> str:
    """Tables and sentences with an empty line between them."""
    return "\n\n".join(part for part in parts if part)
