"""The CSV file of a measurement, from which an interrupted one goes on."""

from __future__ import annotations

import csv
import hashlib
import io
import math
import time
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

from swintormer.errors import SwintormerError
from swintormer.evaluation.scores import Key, Score
from swintormer.evaluation.tables import IDENTICAL
from swintormer.images.files import exists, prepare_folder, reason, replacing

COLUMNS = (*(field.name for field in fields(Score)), "settings")
SECONDS_BETWEEN_WRITES = 5.0


def digest(weights: Path) -> str:
    """What tells weights from others in the settings of a record."""
    return hashlib.sha256(weights.read_bytes()).hexdigest()[:12]


class Record:
    """Scores in the order in which they were added, and the file that they are written to.

    Args:
        path: the CSV file; None keeps scores in memory alone.
        settings: one line that says which weights were measured and how. It stands in every row, so that rows of
            another measurement are never taken for this one's.

    Attributes:
        known: the scores that the file held already.

    Raises:
        SwintormerError: the file cannot be read or written, or is of another measurement.
    """

    def __init__(self, path: Path | None, settings: str):
        self.path, self.settings = path, settings
        self.scores: dict[Key, Score] = {}
        if path is not None:
            prepare_folder(path)
            if exists(path):
                self.scores = _read(path, settings)
        self.known = dict(self.scores)
        self._written = time.monotonic()
        self._pending = False

    def add(self, score: Score) -> None:
        """Keep a score. The file is written every few seconds; `save` writes what is missing."""
        if score.key in self.scores:
            return
        self.scores[score.key] = score
        self._pending = True
        if time.monotonic() - self._written > SECONDS_BETWEEN_WRITES:
            self.save()

    def save(self) -> None:
        """Write the file if it lacks scores; whole, beside the old one first."""
        if self.path is not None and self._pending:
            write_csv(self.scores.values(), self.path, self.settings)
            self._written, self._pending = time.monotonic(), False


def write_csv(scores: Iterable[Score], path: Path, settings: str = "") -> None:
    """Write all scores, one per line, with the digits that float32 pictures carry."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for s in scores:
        decibels = f"{s.psnr:.4f}" if math.isfinite(s.psnr) else IDENTICAL
        distance = "" if s.lpips is None else f"{s.lpips:.5f}"
        values = [decibels, f"{s.ssim:.5f}", f"{s.mae:.6f}", distance]
        rows.writerow([s.picture, s.degradation, s.method, *values, s.group, settings])
    with replacing(path) as file:
        file.write(text.getvalue().encode())


def _read(path: Path, settings: str) -> dict[Key, Score]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            if tuple(rows.fieldnames or ()) != COLUMNS:
                raise _foreign(path)
            found = {}
            for row in rows:
                if row["settings"] != settings:
                    raise SwintormerError(
                        f"{path} holds another measurement ({row['settings']}; this one is {settings}): name another "
                        "file or remove it."
                    )
                score = _parse(row)
                found[score.key] = score
            return found
    except OSError as error:
        raise SwintormerError(f"Cannot read {path}: {reason(error)}.") from error
    except UnicodeDecodeError as error:  # no text, perhaps a picture
        raise _foreign(path) from error
    except (ValueError, TypeError, csv.Error) as error:  # a cell that is no number, or is not there
        raise SwintormerError(f"{path} is damaged: remove it, and the measurement starts over.") from error


def _foreign(path: Path) -> SwintormerError:
    return SwintormerError(f"{path} is no file of `evaluate --csv`: name another file.")


def _parse(row: dict[str, str]) -> Score:
    decibels = math.inf if row["psnr"] == IDENTICAL else float(row["psnr"])
    distance = float(row["lpips"]) if row["lpips"] else None
    values = decibels, float(row["ssim"]), float(row["mae"]), distance
    return Score(row["picture"], row["degradation"], row["method"], *values, row["group"])
