"""Figures that others published for the datasets, each with its source: what a network's own are read beside.

Only figures that could be checked are here. A mean of PSNR over pictures in RGB, unless a note says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swintormer.evaluation.tables import NOTHING

_ABSTRACT = "arXiv 2401.05907, abstract"
_MMAGIC = "the authors' weights measured by MMagic (configs/restormer/README.md)"
_ISSUE = "8-bit weights on 16-bit pictures, measured by the author of the released network (Restormer, issue 77)"
_HI_DIFF = "README of zhengchen1999/HI-Diff, models"
_MATLAB = "Published SSIM of this dataset is mostly that of MATLAB, whose window is a Gaussian: only PSNR compares."


@dataclass(frozen=True)
class Figures:
    """What a source says of a method on a dataset's test split.

    Attributes:
        input: what the method sees: "1 view" or "2 views" (dual pixel); of motion, "".
        psnr: dB over all pictures; `indoor` and `outdoor` over these alone.
    """

    method: str
    input: str
    source: str
    psnr: float
    ssim: float | None = None
    mae: float | None = None
    indoor: float | None = None
    outdoor: float | None = None


PUBLISHED: dict[str, tuple[Figures, ...]] = {
    "dpdd": (
        Figures("Swintormer", "2 views", _ABSTRACT, 27.07),
        Figures("GRL", "2 views", _ABSTRACT, 27.04),
        Figures("Restormer", "2 views", _MMAGIC, 26.62, 0.835, 0.0354),
        Figures("Restormer", "1 view", _MMAGIC, 25.98, 0.817, 0.0378, 28.87, 23.24),
        Figures("IFAN", "1 view", _ISSUE, 26.02, 0.806, 0.0371, 28.70, 23.49),
    ),
    "gopro": (
        Figures("HI-Diff", "", _HI_DIFF, 33.33, 0.964),
        Figures("Restormer", "", _MMAGIC, 32.93, 0.950),
    ),
    "hide": (Figures("Restormer", "", f"trained on GoPro; {_MMAGIC}", 31.23, 0.935),),
    "realblur": (
        Figures("HI-Diff, RealBlur-J", "", f"trained on it; {_HI_DIFF}", 33.70, 0.941),
        Figures("HI-Diff, RealBlur-R", "", f"trained on it; {_HI_DIFF}", 41.01, 0.978),
    ),
}
NOTES = {
    "gopro": _MATLAB,
    "hide": _MATLAB,
    "realblur": "Published figures are measured after each result is aligned with its truth (ECC), which is not done "
    "here: they are higher for that alone.",
}


def published_table(dataset: str) -> str:
    """Markdown: the published figures of a dataset, and a note on how they compare; empty if there are none."""
    figures = PUBLISHED.get(dataset, ())
    if not figures:
        return ""
    by_room = any(f.indoor for f in figures)
    columns = ["published"]
    columns += ["input", "indoor, dB", "outdoor, dB", "all, dB"] if by_room else ["PSNR, dB"]
    columns += ["SSIM", *(["MAE"] if by_room else []), "source"]
    lines = ["| " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) - 2) + "---|"]
    for f in figures:
        cells = [f.method]
        cells += [f.input, *_numbers(2, f.indoor, f.outdoor, f.psnr)] if by_room else _numbers(2, f.psnr)
        cells += [*_numbers(3, f.ssim), *(_numbers(4, f.mae) if by_room else []), f.source]
        lines.append("| " + " | ".join(cells) + " |")
    note = NOTES.get(dataset, "")
    return "\n".join(lines) + (f"\n\n{note}" if note else "")


def _numbers(digits: int, *values: float | None) -> Sequence[str]:
    return [NOTHING if value is None else f"{value:.{digits}f}" for value in values]
