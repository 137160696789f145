"""What the site takes from the repository's own texts: no text stands in two files.

A line `<!-- include README.md "From the shell" -->` is replaced by that section, without its heading and with links
that fit the site; without a title by the whole file, without its first heading.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = '<script src="https://unpkg.com/iframe-worker/shim"></script>'  # of the theme, for the search from a folder
FRAME_WORKER = Path(__file__).with_name("frame_worker.js")
INCLUDE = re.compile(r'^<!-- include (\S+?)(?: "(.+)")? -->$', re.MULTILINE)
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)]*)?\)")
CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
FILES = {"bench/results/roofline_avx512bf16.png": "roofline.png"}  # others that the site takes
LOADED = re.compile(
    r'<(?:script|img|iframe)\b[^>]*\bsrc="https?:[^>]*>|<link\b[^>]*\brel="(?:stylesheet|icon)"[^>]*https?:[^>]*>'
)
PAGES = {  # files of the repository that are pages of the site
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "swintormer/assets/MODEL_CARD.md": "model-card.md",
    "comfyui/README.md": "programs.md",
}


def on_files(files: Any, config: Any) -> Any:
    """Called by MkDocs with what the site is made of."""
    from mkdocs.structure.files import File

    for path, name in FILES.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Called by MkDocs for every page."""
    return INCLUDE.sub(lambda found: section(found[1], found[2]), _relinked(markdown, "docs"))


def on_post_page(output: str, **_: object) -> str:
    """Called by MkDocs for every page as it is written: none may load anything from elsewhere."""
    output = output.replace(ELSEWHERE, f"<script>\n{FRAME_WORKER.read_text(encoding='utf-8')}</script>")
    if found := LOADED.search(output):
        raise ValueError(f"the page loads something from elsewhere: {found[0]}")
    return output


def section(file: str, title: str | None) -> str:
    """A file's text under a heading, up to the next heading of the same level or a higher one.

    Raises:
        KeyError: there is no such heading.
    """
    text = (ROOT / file).read_text(encoding="utf-8")
    headings = [
        (found.start(), found.end(), len(found[1]), found[2])
        for found in re.finditer(r"^(#{1,6}) (.+)$", _without_code(text), re.MULTILINE)
    ]
    wanted = [i for i, (*_, name) in enumerate(headings) if title in (None, name)]
    if not wanted:
        raise KeyError(f"{file} has no section {title!r}")
    _, start, level, _ = headings[wanted[0]]
    ends = [begin for begin, _, depth, _ in headings[wanted[0] + 1 :] if depth <= level]
    body = text[start : ends[0] if ends else len(text)].strip()
    return _relinked(body, posixpath.dirname(file))


def _without_code(text: str) -> str:
    """The text with the lines of code blocks blanked, of the same length: a comment in a shell is no heading."""
    return CODE.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)


def _relinked(text: str, folder: str) -> str:
    """A text of that folder with links as the site has them; code stays as it is."""
    done, at = [], 0
    for code in CODE.finditer(text):
        done += [LINK.sub(lambda found: _link(found, folder), text[at : code.start()]), code[0]]
        at = code.end()
    return "".join([*done, LINK.sub(lambda found: _link(found, folder), text[at:])])


def _link(found: re.Match[str], folder: str) -> str:
    """A link to a page or picture of the site, else the words alone."""
    mark, words, target, anchor = found.groups()
    if "://" in target:
        return found[0]
    path = posixpath.normpath(posixpath.join(folder, target))
    taken = PAGES | FILES
    if path in taken:
        return f"{mark}[{words}]({taken[path]}{anchor or ''})"
    if path.startswith("docs/"):
        return f"{mark}[{words}]({path.removeprefix('docs/')}{anchor or ''})"
    return f"*{words}* (`{path}`)"
