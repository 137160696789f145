"""The curves of a run as an SVG file, which any browser shows; drawn here, so that nothing needs to be installed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 860, 240  # of a panel, in pixels
LEFT, RIGHT, TOP, BOTTOM = 80, 20, 30, 30
COLOURS = ("#1f6fb2", "#999999")
POINTS = 400  # of a curve; more rows are averaged in groups

Curve = list[tuple[float, float]]

PANELS: tuple[tuple[str, bool, dict[str, str]], ...] = (
    ("loss", True, {"loss": "loss"}),
    ("validation PSNR, dB", False, {"val_psnr": "restored", "val_psnr_blurred": "input"}),
    ("learning rate", False, {"lr": "learning rate"}),
)


def draw(rows: Sequence[Mapping[str, str]]) -> str:
    """Loss (on a logarithmic scale), validation PSNR with that of the input, and learning rate by step.

    Args:
        rows: of log.csv; fields that are missing or no numbers are left out.
    """
    panels = []
    for number, (title, logarithmic, columns) in enumerate(PANELS):
        curves = {label: _curve(rows, column) for column, label in columns.items()}
        panels.append(f'<g transform="translate(0 {number * HEIGHT})">{_panel(title, curves, logarithmic)}</g>')
    size = f'width="{WIDTH}" height="{HEIGHT * len(PANELS)}"'
    style = 'font-family="sans-serif" font-size="12"'
    background = '<rect width="100%" height="100%" fill="white"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>{background}{"".join(panels)}</svg>\n'


def _curve(rows: Sequence[Mapping[str, str]], column: str) -> Curve:
    points = []
    for row in rows:
        try:
            x, y = float(row["step"]), float(row[column])
        except (KeyError, TypeError, ValueError):
            continue
        if math.isfinite(x) and math.isfinite(y):
            points.append((x, y))
    size = -(-len(points) // POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size or 1)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def _panel(title: str, curves: Mapping[str, Curve], logarithmic: bool) -> str:
    logarithmic = logarithmic and all(y > 0 for curve in curves.values() for _, y in curve)
    scaled = {
        label: [(x, math.log10(y) if logarithmic else y) for x, y in curve] for label, curve in curves.items() if curve
    }
    parts = [f'<text x="{LEFT}" y="18" font-weight="bold">{escape(title)}</text>']
    if not scaled:
        return parts[0] + f'<text x="{LEFT}" y="60">nothing so far</text>'
    xs, ys = zip(*(point for curve in scaled.values() for point in curve), strict=True)
    across = _axis(min(0, *xs), max(xs), LEFT, WIDTH - RIGHT)
    up = _axis(min(ys), max(ys), HEIGHT - BOTTOM, TOP)
    for share in (0, 0.25, 0.5, 0.75, 1):
        x, y = max(xs) * share, min(ys) + (max(ys) - min(ys)) * share
        parts.append(f'<path d="M{LEFT} {up(y):.1f}H{WIDTH - RIGHT}" stroke="#dddddd"/>')
        shown = f"{10**y if logarithmic else y:.4g}"
        parts.append(f'<text x="{LEFT - 6}" y="{up(y) + 4:.1f}" text-anchor="end">{shown}</text>')
        parts.append(f'<text x="{across(x):.1f}" y="{HEIGHT - 10}" text-anchor="middle">{x:.0f}</text>')
    for number, (label, curve) in enumerate(scaled.items()):
        colour = COLOURS[number]
        line = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in curve)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts += [f'<circle cx="{across(x):.1f}" cy="{up(y):.1f}" r="2" fill="{colour}"/>' for x, y in curve[-1:]]
        last = curves[label][-1][1]
        place = f'x="{WIDTH - RIGHT}" y="18" dx="{-150 * number}" text-anchor="end"'
        parts.append(f'<text {place} fill="{colour}">{escape(label)} {last:.4g}</text>')
    return "".join(parts)


def _axis(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """From values to pixels; values that are all equal lie in the middle."""
    if high == low:
        return lambda _: (start + end) / 2
    return lambda value: start + (value - low) / (high - low) * (end - start)
