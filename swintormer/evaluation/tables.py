"""Tables of scores as Markdown. Equal pictures have no PSNR: they are called identical and left out of means."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from swintormer.evaluation.classical import CLASSICAL
from swintormer.evaluation.scores import BEST_CLASSICAL, INPUT, NETWORK, Score

IDENTICAL, NOTHING = "identical", "-"


def with_best_classical(scores: Iterable[Score]) -> list[Score]:
    """Replace the classical methods of each picture and degradation by the one with the highest PSNR."""
    kept: list[Score] = []
    best: dict[tuple[str, str], Score] = {}
    for score in scores:
        if score.method not in CLASSICAL:
            kept.append(score)
            continue
        key = (score.picture, score.degradation)
        if key not in best or score.psnr > best[key].psnr:
            best[key] = score
    return kept + [replace(score, method=BEST_CLASSICAL) for score in best.values()]


def gains(scores: Iterable[Score], method: str = NETWORK) -> dict[tuple[str, str], float]:
    """Gain in PSNR over the input, in dB, by (picture, degradation), where neither is identical to the truth."""
    by_method: dict[str, dict[tuple[str, str], float]] = defaultdict(dict)
    for score in scores:
        if math.isfinite(score.psnr):
            by_method[score.method][score.picture, score.degradation] = score.psnr
    inputs = by_method[INPUT]
    return {key: value - inputs[key] for key, value in by_method[method].items() if key in inputs}


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)


def _decibels(scores: Iterable[Score]) -> str:
    """Mean PSNR of the scores that have one."""
    scores = list(scores)
    finite = [score.psnr for score in scores if math.isfinite(score.psnr)]
    if finite:
        return f"{_mean(finite):.2f}"
    return IDENTICAL if scores else NOTHING


def table(scores: Sequence[Score], by: str, gained: bool = True) -> str:
    """Markdown: mean PSNR and SSIM of every method for each value of `by` ("degradation" or "picture"), and over all.

    If `gained`, the last rows hold each method's mean, worst and best gain in PSNR over the input.
    """
    methods = list(dict.fromkeys(score.method for score in scores))
    lines = [
        f"| {by} | " + " | ".join(f"{method}, dB (SSIM)" for method in methods) + " |",
        "|---|" + "---:|" * len(methods),
    ]
    groups = [*dict.fromkeys(getattr(score, by) for score in scores), None]
    for group in groups:
        cells = []
        for method in methods:
            rows = [s for s in scores if s.method == method and group in (None, getattr(s, by))]
            cells.append(f"{_decibels(rows)} ({_mean(s.ssim for s in rows):.3f})" if rows else NOTHING)
        lines.append(f"| {'**all**' if group is None else group} | " + " | ".join(cells) + " |")
    reductions: dict[str, Callable[[list[float]], float]] = {"mean gain": _mean, "worst gain": min, "best gain": max}
    for name, reduce in reductions.items() if gained else ():
        by_method = [list(gains(scores, method).values()) for method in methods]
        # Adding 0 turns the -0.00 that rounding may give into +0.00.
        cells = [f"{round(reduce(values), 2) + 0.0:+.2f}" if values else NOTHING for values in by_method]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def left_out(scores: Sequence[Score]) -> str:
    """What the means of PSNR in tables leave out, as a sentence; empty if they leave out nothing."""
    count = sum(not math.isfinite(score.psnr) for score in scores)
    if not count:
        return ""
    are = "is" if count == 1 else "are"
    return f"{count} of {len(scores)} results {are} identical to the truth and left out of means of PSNR."


def summary(scores: Sequence[Score], groups: Sequence[str] = (), whole: str = "all") -> str:
    """Markdown: the paper's measures of every method, for each of `groups` and over all pictures.

    The perceptual distance has a column where it was measured. It is the shift-tolerant form of LPIPS, which does not
    compare with published LPIPS.
    """
    with_lpips = any(score.lpips is not None for score in scores)
    columns = ["PSNR, dB", "SSIM", "MAE", *(["ST-LPIPS"] if with_lpips else [])]
    lines = ["| pictures | method | " + " | ".join(columns) + " |", "|---|---|" + "---:|" * len(columns)]
    for group in [*groups, None]:
        rows = [score for score in scores if group in (None, score.group)]
        count = len({score.picture for score in rows})
        for method in dict.fromkeys(score.method for score in rows):
            own = [score for score in rows if score.method == method]
            cells = [_decibels(own), f"{_mean(s.ssim for s in own):.3f}", f"{_mean(s.mae for s in own):.4f}"]
            if with_lpips:
                distances = [score.lpips for score in own if score.lpips is not None]
                cells.append(f"{_mean(distances):.3f}" if distances else NOTHING)
            name = f"{whole if group is None else group} ({count})"
            lines.append(f"| {name} | {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def sharp_sentence(scores: Sequence[Score]) -> str:
    """What a network does to photographs that are sharp already."""
    finite = [score.psnr for score in scores if math.isfinite(score.psnr)]
    same = len(scores) - len(finite)
    if not finite:
        return f"All {same} sharp photographs come back identical."
    text = f"Sharp photographs stay within {min(finite):.1f} dB of themselves, {_mean(finite):.1f} dB on average"
    return f"{text}; {same} of {len(scores)} come back identical and are left out." if same else f"{text}."
