"""What parts of the method are worth: small networks trained for the same minutes, with and without each of them.

    python -m bench.ablation --minutes 5 --rows prior,shift,tile,stride,views --out runs/ablation

Every run takes the same configuration (`--config`, default configs/small.toml) and differs in one thing. `base` is
trained once, for all rows:

| row | what differs |
|---|---|
| prior | with z_0 of the prior in `--prior-weights` (stage `joint`), or without |
| shift | every second block's windows shifted, or none |
| tile | trained on crops as large as the tiles of inference, or half as large (four times as many), or tiles twice as large |
| stride | nothing is trained: tile and stride of inference with `--weights` |
| views | trained on dual-pixel pairs (six channels) or on one view; measured on pairs of the validation stream; with the degradation "camera" where `[data]` has "simple", which makes no views |
| width, blocks, refinement, window, loss, batch, rate, precision, data | the recipe: one setting (`RECIPE`) |
| schedule | crops twice as large, a quarter as many, for the last 30 % of the steps, or for all |
| deconvolved | with fourteen deconvolved views of the picture as further input channels, or without |

With `--paced` the minutes are those of one core of this machine that nobody else uses: the time of a step is measured
for every network before its training (the fastest of `PACE_STEPS` steps), and decides the number of steps. So a busy
machine takes longer and trains the same.

The measure is the gain in PSNR over the input, for two views, too, over the picture of one. Of every photograph it is the mean over the ten held-out faults; the
standard error is over photographs (over pairs for `views`), and that of a difference over differences picture by
picture. It does not count what another seed would change. Interrupted, the same command goes on.
"""  # noqa: E501

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from pydantic import ValidationError

from bench import deconvolved
from swintormer.checkpoint.checkpoint import Checkpoint, default_weights, read_checkpoint
from swintormer.cli.macs import count_macs
from swintormer.errors import SwintormerError
from swintormer.evaluation import heldout
from swintormer.evaluation.metrics import psnr
from swintormer.evaluation.record import Record, digest
from swintormer.evaluation.scores import (
    NETWORK,
    Array,
    Restore,
    degraded_scores,
    heldout_photographs,
    network_methods,
)
from swintormer.evaluation.tables import gains
from swintormer.execution.tiling import PAPER_TILE, default_stride
from swintormer.inference.deblurrer import Deblurrer
from swintormer.model import network
from swintormer.prior.checkpoint import config_of, load_prior
from swintormer.training.config import CropPhase, JointConfig, RestorationConfig, TrainConfig, read_config
from swintormer.training.data import validation_source
from swintormer.training.loop import MakeRun, make_run, pick_device, train
from swintormer.training.run import right_first
from swintormer.training.state import FREE, changed

RECIPE: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "width": [("D 16", {"network": {"dim": 16}}), ("D 32", {"network": {"dim": 32}})],
    "blocks": [
        ("blocks 1, 1, 2, 2", {"network": {"num_blocks": (1, 1, 2, 2)}}),
        ("blocks 2, 3, 4, 4", {"network": {"num_blocks": (2, 3, 4, 4)}}),
    ],
    "refinement": [("no refinement", {"network": {"num_refinement_blocks": 0}})],
    # Crops of 256, because those of 128 are padded to them: level 1/16 holds a whole window.
    "window": [("windows of 16, crop 256, batch 1", {"network": {"window_size": 16}, "crop": 256, "batch": 1})],
    "loss": [("L1 and 0.1 Fourier", {"fourier": 0.1}), ("PSNR", {"loss": "psnr"})],
    "batch": [("batch 2", {"batch": 2}), ("batch 8", {"batch": 8})],
    "rate": [("rate 3e-4", {"lr": 3e-4}), ("rate 1.4e-3", {"lr": 1.4e-3})],
    "precision": [("float32", {"dtype": "float32"})],
    "data": [("half photographs", {"data": {"scenes": 0.5, "photos_share": 0.5}})],
}
"""Rows of the recipe: what is said of each variant, and its changes of the configuration, sizes and data by name."""
ROWS = ("prior", "shift", "tile", "stride", "views", *RECIPE, "schedule", "deconvolved")
FIRST = 0.7  # share of the steps that take small crops, in the row schedule
PACE_STEPS = 8
TILE = 256  # side of the picture whose multiplications are counted
FAULTS = heldout.DEGRADATIONS
INTERRUPTED = 130
Gains = dict[str, float]
"""Gain in dB by picture."""


@dataclass(frozen=True)
class Trained:
    """A network to train.

    Attributes:
        name: of its folder.
        changes: of the configuration.
        shifted: whether every second block shifts its windows.
        first: share of the steps, from the first on, that take crops and batch of the base.
        deconvolved: whether the network sees deconvolved views.
    """

    name: str = "base"
    changes: dict[str, Any] = field(default_factory=dict)
    shifted: bool = True
    first: float = 0.0
    deconvolved: bool = False

    @contextmanager
    def making(self) -> Iterator[None]:
        """Networks that are made inside are of its kind."""
        with windows(self.shifted), deconvolved.embedded() if self.deconvolved else nullcontext():
            yield


@dataclass(frozen=True)
class Variant:
    """A line of the table: a network, and how it is used. The first of a row is what the others are compared with."""

    text: str
    tile: int
    stride: int | None = None
    trained: Trained | None = None  # None: the given weights

    def making(self) -> AbstractContextManager[None]:
        """Networks that are made inside are of the variant's kind."""
        return nullcontext() if self.trained is None else self.trained.making()


@dataclass(frozen=True)
class Ablation:
    """What the command line asks for."""

    base: RestorationConfig
    out: Path
    weights: Path
    prior_weights: Path
    photographs: int
    side: int
    photos: Path | None = None
    paced: float | None = None  # minutes

    def variants(self, row: str) -> list[Variant]:
        crop = self.base.crop
        base = Trained()
        if row in RECIPE:
            others = [
                Variant(text, changes.get("crop", crop), None, self._changed(text, changes))
                for text, changes in RECIPE[row]
            ]
            return [Variant("base", crop, None, base), *others]
        if row == "prior":
            with_prior = Trained("prior", self._joint())
            return [Variant("without z_0", crop, None, base), Variant("with z_0", crop, None, with_prior)]
        if row == "shift":
            fixed = Trained("unshifted", {}, shifted=False)
            return [Variant("windows shifted", crop, None, base), Variant("not shifted", crop, None, fixed)]
        if row == "schedule":
            if self.base.crops or self.base.batch % 4:
                raise SwintormerError(
                    "The row schedule needs a configuration without `crops` and its batch a multiple of 4."
                )
            if self.paced is None and math.isfinite(self.base.minutes):
                raise SwintormerError("The row schedule divides the steps: add --paced, or let steps end the run.")
            double = {"crop": 2 * crop, "batch": self.base.batch // 4}
            late, all_along = Trained("crops_grow", double, first=FIRST), Trained("double_crop", double)
            return [
                Variant(f"crops of {crop}, tile {2 * crop}", 2 * crop, None, base),
                Variant(f"crops of {crop}, then of {2 * crop}", 2 * crop, None, late),
                Variant(f"crops of {2 * crop}", 2 * crop, None, all_along),
            ]
        if row == "deconvolved":
            more = Trained("deconvolved", deconvolved=True)
            return [Variant("the picture", crop, None, base), Variant("and deconvolved views", crop, None, more)]
        if row == "tile":
            half = Trained("half_crop", {"crop": crop // 2, "batch": 4 * self.base.batch})
            return [
                Variant(f"trained on {crop}, tile {crop}", crop, None, base),
                Variant(f"trained on {crop // 2}, tile {crop}", crop, None, half),
                Variant(f"trained on {crop}, tile {2 * crop}", 2 * crop, None, base),
            ]
        if row == "views":
            data = self.base.data.model_dump()
            if self.base.data.degradation == "simple":  # which makes no views
                data["degradation"] = "camera"
                base = Trained("one_view", {"data": data})
            sizes = self.base.network.model_dump() | {"in_channels": 6}
            pair = Trained("views", {"network": sizes, "data": data | {"views": True}})
            return [Variant("one view", crop, None, base), Variant("two views", crop, None, pair)]
        tile = read_checkpoint(self.weights).training_tile or PAPER_TILE
        paper = default_stride(tile)
        return [
            Variant(f"tile {t}, stride {s}", t, s)
            for t, s in (
                (tile, paper),
                (tile, tile),
                (tile, tile // 2),
                (tile // 2, default_stride(tile // 2)),
                (2 * tile, default_stride(2 * tile)),
            )
        ]

    def _changed(self, text: str, changes: dict[str, Any]) -> Trained:
        """A network whose configuration has other settings, those of `network` and `data` by name."""
        changes = dict(changes)
        if "network" in changes:
            changes["network"] = self.base.network.model_dump() | changes["network"]
        if "data" in changes:
            photos = self.photos or self.base.data.photos
            if not photos:
                raise SwintormerError("The row data needs a folder of sharp photographs: name it with --photos.")
            changes["data"] = self.base.data.model_dump() | {"photos": photos} | changes["data"]
        return Trained(text.replace(",", "").replace(" ", "_"), changes)

    def _joint(self) -> dict[str, Any]:
        """Changes that make a run of stage `joint`, as in configs/prior_joint.toml."""
        prior = config_of(load_prior(self.prior_weights))
        sizes = self.base.network.model_dump() | {"prior_channels": prior.latent_channels}
        more = {"prior": prior, "prior_weights": self.prior_weights, "latent": 0.01, "prior_rate": 3.0}
        return {"stage": "joint", "network": sizes, **more}

    def config(self, trained: Trained) -> RestorationConfig | JointConfig:
        """The configuration of a run."""
        kind = JointConfig if trained.changes.get("stage") == "joint" else RestorationConfig
        shared = {name: value for name, value in self.base.model_dump().items() if name in kind.model_fields}
        values = shared | {"out": self.out / trained.name} | trained.changes
        try:
            config = kind.model_validate(values)
            if self.paced is not None:
                config = self._in_minutes(config, trained, self.paced)
            if not trained.first:
                return config
            small = CropPhase(
                steps=max(1, round(trained.first * config.steps)), crop=self.base.crop, batch=self.base.batch
            )
            return kind.model_validate(config.model_dump() | {"crops": (small,)})
        except ValidationError as error:
            fault = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise SwintormerError(f"The run {trained.name} cannot be made of this configuration: {fault}.") from error

    def _in_minutes(
        self, config: RestorationConfig | JointConfig, trained: Trained, minutes: float
    ) -> RestorationConfig | JointConfig:
        """The configuration with the steps of so many minutes, measured once and kept in `out`."""
        path = config.out / "seconds_a_step.txt"
        if not path.exists():
            print(f"Measuring a step of {config.out.name}.", file=sys.stderr, flush=True)
            with TemporaryDirectory() as folder, trained.making():
                seconds = seconds_a_step(config.model_copy(update={"out": Path(folder)}))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{seconds:.4f}\n")
        steps = max(1, round(60 * minutes / float(path.read_text())))
        return type(config).model_validate(config.model_dump() | {"steps": steps, "minutes": math.inf})


def seconds_a_step(config: RestorationConfig | JointConfig) -> float:
    """Of the fastest of some steps, without its pairs, which workers make on another core."""
    few = {"workers": 0, "steps": PACE_STEPS, "minutes": math.inf}
    run = make_run(config.model_copy(update=few), pick_device(config.device))
    batches = run.batches(0)
    times = []
    for _ in range(PACE_STEPS):
        pairs = next(batches)
        start = time.perf_counter()
        run.train_step(*pairs)
        times.append(time.perf_counter() - start)
    return min(times)


@contextmanager
def windows(shifted: bool) -> Iterator[None]:
    """Networks that are made inside shift the windows of every second block, or of none."""
    block = network.Block
    if not shifted:
        network.Block = lambda *sizes, shift=0, **more: block(*sizes, shift=0, **more)  # type: ignore[assignment,misc]
    try:
        yield
    finally:
        network.Block = block  # type: ignore[misc]


def trained_weights(config: TrainConfig, make: MakeRun = make_run) -> Path:
    """The weights of a run, trained now unless they are there already.

    Raises:
        SwintormerError: those there are of another configuration.
        KeyboardInterrupt: the training was interrupted; it goes on from there next time.
    """
    path = config.out / "weights.safetensors"
    if path.exists():
        recipe = json.loads(read_checkpoint(path, prior=False).card.get("recipe", "{}"))
        if changes := changed(recipe, json.loads(config.model_dump_json(exclude=FREE))):
            raise SwintormerError(
                f"{path} is of another configuration, {', '.join(changes)}: name another folder with --out."
            )
        return path
    print(f"Training {config.out.name}.", file=sys.stderr, flush=True)
    stopped_by: list[int] = []
    found = train(config, stopped_by=stopped_by, make=make)
    if stopped_by or found != path:
        raise KeyboardInterrupt
    return path


def measured(ablation: Ablation, row: str, variant: Variant) -> tuple[Gains, Checkpoint]:
    """The gains of a variant by picture, and the network."""
    trained = variant.trained
    with variant.making():
        path = ablation.weights if trained is None else trained_weights(ablation.config(trained))
        checkpoint = read_checkpoint(path)
    settings = {"tile": variant.tile, "stride": variant.stride, "blend": "uniform", "device": ablation.base.device}
    if row == "views":
        assert trained is not None
        return validation_gains(ablation, trained, checkpoint, **settings), checkpoint
    place = ablation.out / "scores" / f"{row} {variant.text}.csv".replace(" ", "_").replace(",", "")
    words = f"{digest(path)}, tile {variant.tile}, stride {variant.stride}, side {ablation.side}"
    pictures = heldout_photographs(heldout.PHOTOGRAPHS[: ablation.photographs])
    restore = network_methods(checkpoint, **settings)[NETWORK]
    return heldout_gains(restore, pictures, ablation.side, Record(place, words)), checkpoint


def heldout_gains(restore: Restore, pictures: Iterator[tuple[str, Array]], side: int, record: Record) -> Gains:
    """The mean gain over the held-out faults by picture; `record` keeps the scores, and its own are not computed."""
    scores = []
    try:
        for score in degraded_scores({NETWORK: restore}, pictures, FAULTS, side, record.known):
            record.add(score)
            scores.append(score)
    finally:
        record.save()
    by_picture = defaultdict(list)
    for (picture, _), gain in gains(scores).items():
        by_picture[picture].append(gain)
    return {picture: statistics.mean(values) for picture, values in by_picture.items()}


def validation_gains(ablation: Ablation, trained: Trained, checkpoint: Checkpoint, **settings: Any) -> Gains:
    """Gains on the pairs of the validation stream, over the picture that a sensor without views takes.

    So the difference between one view and two is that of the results. A picture's name holds a checksum of the truth,
    so that only pairs of the same truth are compared.
    """
    config = ablation.config(trained)
    source = validation_source(config)
    one_view = config.data.model_copy(update={"views": False})
    inputs = validation_source(config.model_copy(update={"data": one_view}))
    deblur = Deblurrer(checkpoint, **settings)
    found = {}
    for index in range(config.validation):
        blurred, sharp = source.batch(index, 1)
        after = psnr(deblur(right_first(blurred)).clamp(0, 1).numpy()[0], sharp.numpy()[0])
        before = psnr(*(picture.numpy()[0] for picture in inputs.batch(index, 1)))
        if math.isfinite(before) and math.isfinite(after):
            found[f"{index} {zlib.crc32(sharp.numpy().tobytes())}"] = after - before
    return found


def with_error(values: Sequence[float]) -> str:
    """Mean and standard error, in dB."""
    if not values:
        return "-"
    mean = f"{statistics.mean(values):+.3f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values) / math.sqrt(len(values)):.3f}"


COLUMNS = ("row", "variant", "GMACs", "pictures", "gain, dB", "against the first, dB", "steps", "minutes")
HEADER = "| " + " | ".join(COLUMNS) + " |\n|---|---|" + "---:|" * (len(COLUMNS) - 2)


def lines(ablation: Ablation, row: str) -> Iterator[str]:
    """The table's lines of a row, each as soon as it is measured."""
    first: Gains | None = None
    for variant in ablation.variants(row):
        found, checkpoint = measured(ablation, row, variant)
        differences = "" if first is None else with_error([found[key] - first[key] for key in found if key in first])
        first = first or found
        card = checkpoint.card if variant.trained is not None else {}
        with variant.making():
            cost = count_macs(checkpoint.net.config, TILE, TILE).total / 1e9
        cells = [row, variant.text, f"{cost:.2f}", str(len(found)), with_error(list(found.values())), differences]
        yield "| " + " | ".join([*cells, card.get("steps", ""), card.get("minutes", "")]) + " |"


def parse(arguments: Sequence[str]) -> tuple[Ablation, list[str]]:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.ablation", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--config", type=Path, default=Path("configs/small.toml"), help="of stage restoration")
    parser.add_argument("--minutes", type=float, help="of training for each network (default: of the configuration)")
    parser.add_argument("--paced", action="store_true", help="minutes of an idle core, see above")
    parser.add_argument("--photos", type=Path, help="folder of sharp photographs, for the row data")
    parser.add_argument("--rows", default=",".join(ROWS[:5]), help=f"some of {','.join(ROWS)}")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs, the scores and table.md")
    parser.add_argument("--weights", type=Path, help="for the row stride (default: the installed ones)")
    parser.add_argument("--prior-weights", type=Path, help="of a trained prior (default: the installed one)")
    parser.add_argument("--photographs", type=int, default=len(heldout.PHOTOGRAPHS), help="the first so many")
    parser.add_argument("--side", type=int, default=heldout.SIDE, help="of the photographs, in pixels")
    words = parser.parse_args(arguments)
    rows = words.rows.split(",")
    if unknown := [row for row in rows if row not in ROWS]:
        raise SwintormerError(f"There is no row {unknown[0]!r}: --rows takes some of {','.join(ROWS)}.")
    base = read_config(words.config)
    if not isinstance(base, RestorationConfig):
        raise SwintormerError(f"{words.config} is of stage {base.stage}: the ablation needs one of stage restoration.")
    if words.paced and words.minutes is None:
        raise SwintormerError("--paced needs --minutes.")
    if words.minutes is not None and not words.paced:
        base = RestorationConfig.model_validate(base.model_dump() | {"minutes": words.minutes})
    weights = words.weights or default_weights("small")
    prior_weights = words.prior_weights or default_weights("small-prior")
    places = words.out, weights, prior_weights
    paced = words.minutes if words.paced else None
    return Ablation(base, *places, words.photographs, words.side, words.photos, paced), rows


def main(arguments: Sequence[str]) -> int:
    """Print the table, and keep it in `out/table.md`; returns the exit code."""
    return exit_code(lambda: _table(arguments))


def exit_code(work: Callable[[], None]) -> int:
    """Do the work; what is wrong, or that it goes on next time, is told on the error stream."""
    try:
        work()
    except SwintormerError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted: the same command goes on.", file=sys.stderr)
        return INTERRUPTED
    return 0


def _table(arguments: Sequence[str]) -> None:
    ablation, rows = parse(arguments)
    if ablation.base.threads:
        torch.set_num_threads(ablation.base.threads)
    for variant in (variant for row in rows for variant in ablation.variants(row)):
        if variant.trained is not None:  # before hours of training, not after them
            ablation.config(variant.trained)
    text = HEADER
    print(text, flush=True)
    for row in rows:
        for line in lines(ablation, row):
            print(line, flush=True)
            text += "\n" + line
    ablation.out.mkdir(parents=True, exist_ok=True)
    (ablation.out / "table.md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
