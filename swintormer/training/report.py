"""The output of a training run: progress, log.csv, curves, a picture of validation pairs, TensorBoard if installed."""

from __future__ import annotations

import csv
import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swintormer.errors import SwintormerError
from swintormer.images.files import reason, replacing
from swintormer.training.config import TrainConfig
from swintormer.training.curves import draw
from swintormer.training.run import Run, Validation

COLUMNS = ("step", "samples", "minutes", "lr", "loss", "grad_norm", "val_psnr", "val_psnr_blurred", "data_wait")
GAP = 4  # pixels between the pictures


class Reporter:
    """Progress bar on a terminal, else a line every `log_every` steps; files in the run folder in any case.

    log.csv has a row every `log_every` steps; `data_wait` is the share of the time since the row before in which the
    trainer waited for data. Every validation renews curves.svg and validation.png.
    """

    def __init__(self, config: TrainConfig, run: Run):
        self.config = config
        self.path = config.out / "log.csv"
        self._keep_log_before(run.step)
        self.losses: list[Tensor] = []
        self.seconds, self.waited = run.seconds, run.waited  # at the last row
        self.board = _board(config, run.step)
        self.bar: Any = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), TimeRemainingColumn())
            self.bar = Progress(*columns, console=Console(stderr=True))
            self.task = self.bar.add_task("training", total=1.0)
            self.bar.start()

    def _keep_log_before(self, step: int) -> None:
        """Drop rows that a run killed after its last checkpoint wrote: they will be computed again."""
        rows = self._rows() if step else []
        kept = [[row.get(name) or "" for name in COLUMNS] for row in rows if int(row["step"]) <= step]
        with replacing(self.path) as file:
            file.write("".join(",".join(row) + "\n" for row in [COLUMNS, *kept]).encode())

    def _rows(self) -> list[dict[str, str]]:
        """Of log.csv, without those that are no rows: a run may have been killed while it wrote one."""
        try:
            with self.path.open(encoding="utf-8", errors="replace", newline="") as file:
                return [row for row in csv.DictReader(file) if (row.get("step") or "").isdecimal()]
        except FileNotFoundError:
            return []
        except (OSError, csv.Error) as error:
            raise SwintormerError(f"Cannot read {self.path}: {error}.") from error

    def update(self, run: Run, loss: Tensor, norm: Tensor, lr: float, scores: Validation | None) -> None:
        self.losses.append(loss)
        if scores is None and run.step % self.config.log_every and run.progress < 1:
            return
        mean = float(torch.stack(self.losses).mean())
        self.losses.clear()
        row = {
            "step": str(run.step),
            "samples": str(self.config.phase(run.step).first),
            "minutes": f"{run.seconds / 60:.3f}",
            "lr": f"{lr:.4g}",
            "loss": f"{mean:.6g}",
            "grad_norm": f"{float(norm):.4g}",
            "val_psnr": f"{scores.psnr:.4f}" if scores else "",
            "val_psnr_blurred": f"{scores.psnr_without:.4f}" if scores else "",
            "data_wait": f"{(run.waited - self.waited) / max(run.seconds - self.seconds, 1e-9):.3f}",
        }
        self.seconds, self.waited = run.seconds, run.waited
        try:
            with self.path.open("a") as file:
                file.write(",".join(row[name] for name in COLUMNS) + "\n")
        except OSError as error:
            raise SwintormerError(f"Cannot write {self.path}: {reason(error)}.") from error
        if scores:
            self._show(run, scores)
        if self.board is not None:
            for name in COLUMNS[3:]:
                if row[name]:
                    self.board.add_scalar(name, float(row[name]), run.step)
        self._tell(run, mean, lr, scores)

    def _tell(self, run: Run, loss: float, lr: float, scores: Validation | None) -> None:
        text = f"step {run.step}, loss {loss:.5f}, lr {lr:.2e}, {run.seconds / run.step:.3f} s a step"
        if scores:
            text += f", validation {scores.psnr:.2f} dB (blurred {scores.psnr_without:.2f})"
        if self.bar:
            self.bar.update(self.task, completed=run.progress, description=text)
        else:
            print(f"{text}, {run.progress:.1%} done", file=sys.stderr, flush=True)

    def _show(self, run: Run, scores: Validation) -> None:
        from swintormer.images.picture import wrap
        from swintormer.images.writing import save_vips

        with replacing(self.config.out / "curves.svg") as file:
            file.write(draw(self._rows()).encode())
        pixels = sheet(scores.pictures)
        save_vips(self.config.out / "validation.png", wrap(pixels))
        if self.board is not None:
            self.board.add_image("input, output, truth", pixels, run.step, dataformats="HWC")

    def close(self) -> None:
        if self.bar:
            self.bar.stop()
        if self.board is not None:
            self.board.close()


def sheet(rows: list[tuple[Tensor, Tensor, Tensor]]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Pictures (3, S, S) in [0, 1], a row for each pair, as (H, W, 3) uint8 on white."""
    side = rows[0][0].shape[-1]
    step = side + GAP
    pixels = np.full((step * len(rows) - GAP, step * len(rows[0]) - GAP, 3), 255, np.uint8)
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            place = pixels[y * step : y * step + side, x * step : x * step + side]
            place[:] = (picture.permute(1, 2, 0).clamp(0, 1) * 255).round().byte().numpy()
    return pixels


def _board(config: TrainConfig, step: int) -> Any:
    """TensorBoard's writer, in a folder of the run's; None where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(config.out / "tensorboard"), purge_step=step + 1)
