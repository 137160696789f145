"""A page of before and after: one HTML file with a slider for each picture, which needs no network."""

from __future__ import annotations

import base64
from contextlib import ExitStack
from html import escape
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from swintormer.errors import SwintormerError
from swintormer.images.compare import most_changed, upright
from swintormer.images.files import harmless, reason, replacing
from swintormer.images.picture import Image, Samples

SIDE = 600  # longest side in pixels of what is shown of a picture
# About 0.3 MB for a photograph: itself reduced, and the part that changed most at 1:1, before and after.
_JPEG = {"Q": 80, "subsample_mode": "off"}

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Before and after</title>
<meta name="viewport" content="width=device-width">
<style>
body { font: 16px sans-serif; margin: 2em; background: #eee; color: #222 }
section { margin-bottom: 3em }
.pair { display: inline-grid; margin: 0 1em 1em 0; --at: 50%; vertical-align: top }
.pair img, .pair input { grid-area: 1 / 1; max-width: 100% }
.pair img + img { clip-path: inset(0 0 0 var(--at)) }
.pair i { grid-area: 1 / 1; width: 2px; margin-left: var(--at); background: #fff; pointer-events: none }
.pair:focus-within { outline: 3px solid #06c }
.pair input { width: 100%; height: 100%; margin: 0; opacity: 0; cursor: ew-resize }
.pair span { grid-row: 2; font-size: 14px }
</style>
<script>
addEventListener("input", e => e.target.parentNode.style.setProperty("--at", e.target.value + "%"))
</script></head><body>
<h1>Before and after</h1>
<p>Move the pointer over a picture with the button held down, or use the arrow keys: left of the line before, right of
it after.</p>
"""
_FOOT = "</body></html>\n"


class Page:
    """Takes pictures one by one, and writes each into the file at once. The file appears when the block ends, if there
    are any.

    Raises:
        SwintormerError: the file cannot be written.
    """

    def __init__(self, path: Path):
        self.path = path
        self._stack = ExitStack()
        self._file: BinaryIO | None = None

    def __enter__(self) -> Page:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None and error is None:
            self._write(_FOOT)
        self._stack.__exit__(kind, error, trace)

    def add(self, title: str, text: str, before: Image, after: Samples) -> None:
        """One picture.

        Args:
            text: what is told of it, in lines.
            after: (H, W, C) restored pixels of `before`.
        """
        halves = upright(before, after)
        longest = max(halves[0].width, halves[0].height)
        lines = "<br>\n".join(_text(line.strip()) for line in text.splitlines())
        parts = [_pair(halves, title, "at 1:1")]
        if longest > SIDE:
            reduced = [half.resize(SIDE / longest) for half in halves]
            region = most_changed(halves, SIDE, SIDE)
            cropped = [half.crop(*region) for half in halves]
            parts = [
                _pair(reduced, title, f"at {SIDE / longest:.0%}"),
                _pair(cropped, title, "what changed most, at 1:1"),
            ]
        if self._file is None:
            self._file = self._stack.enter_context(replacing(self.path))
            self._write(_HEAD)
        self._write(f"<section><h2>{_text(title)}</h2>\n<p>{lines}</p>\n{''.join(parts)}</section>\n")

    def _write(self, text: str) -> None:
        assert self._file is not None
        try:
            self._file.write(text.encode("utf-8", "backslashreplace"))  # names of files need not be UTF-8
        except OSError as error:
            raise SwintormerError(f"Cannot write {self.path}: {reason(error)}.") from error


def _text(text: str) -> str:
    """Text as HTML, which allows no control characters."""
    return escape(harmless(text))


def _pair(halves: list[Any], title: str, caption: str) -> str:
    before, after = (
        f'<img alt="{_text(title)} {name}" src="{_data(half)}">'
        for name, half in zip(("before", "after"), halves, strict=True)
    )
    label = f"{_text(title)}, {caption}: percent shown as it was before"
    slider = f'<input type="range" min="0" max="100" step="0.5" aria-label="{label}">'
    return f'<div class="pair">{before}{after}<i aria-hidden="true"></i>{slider}<span>{caption}</span></div>\n'


def _data(picture: Any) -> str:
    jpeg = picture.write_to_buffer(".jpg", **_JPEG)
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
