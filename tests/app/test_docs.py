"""What the site says exists: sections that it takes from elsewhere, names of the reference, options of commands."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from bench.browser import browser, why_absent
from swintormer.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.fixture
def hooks(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    yield importlib.import_module("docs_hooks")
    sys.modules.pop("docs_hooks")


def entries(nav: object) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    parts = nav.values() if isinstance(nav, dict) else nav
    return [page for part in parts for page in entries(part)]


def test_every_page_is_in_the_navigation_once():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    assert sorted(entries(nav)) == [page.name for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages(page, hooks):
    text = hooks.on_page_markdown(page.read_text())
    assert "<!-- include" not in text
    shown = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    taken = {name: ROOT / path for path, name in hooks.FILES.items()}
    for target in re.findall(r"\]\(([^)#\s]+)", shown):
        assert "://" in target or taken.get(target, ROOT / "docs" / target).exists(), target
    assert not re.search(r"\n\*[^*\n]+\* \(`[^`]+\.(png|jpg|svg)`\)", text), "a picture that the site does not have"


def test_a_section_that_is_gone(hooks):
    with pytest.raises(KeyError, match="has no section 'Of old'"):
        hooks.on_page_markdown('<!-- include README.md "Of old" -->')
    text = hooks.section("README.md", "Two commands")
    assert text.startswith("```\nmake demo     #"), "a comment in a shell is no heading"
    assert "## " not in text


def test_pages_load_nothing_from_elsewhere(hooks):
    page = f'<head>{hooks.ELSEWHERE}</head><body><a href="https://arxiv.org">x</a><img src="demo.png"></body>'
    written = hooks.on_post_page(page)
    assert "window.Worker = class" in written
    assert "unpkg" not in written
    for tag in (
        '<script async src="https://x.y/z.js"></script>',
        '<img alt="" src="http://x.y/z.png">',
        '<link rel="stylesheet" href="https://fonts.x.y/css">',
    ):
        with pytest.raises(ValueError, match="loads something from elsewhere: <"):
            hooks.on_post_page(page + tag)


@pytest.mark.skipif(bool(why_absent()), reason=why_absent())
def test_a_worker_in_a_page_from_a_folder(hooks, tmp_path):
    """As the site's search is one; the browser itself refuses."""
    (tmp_path / "worker.js").write_text("addEventListener('message', async (e) => postMessage(['got', e.data]))")
    script = "const own = new Worker('worker.js'); own.addEventListener('message', (e) => (window.told = e.data));"
    page = f"<!doctype html><head>{{}}</head><body><script>{script} own.postMessage({{{{a: 1}}}})</script></body>"
    for name, head in (("with", hooks.on_post_page(hooks.ELSEWHERE)), ("without", "")):
        (tmp_path / f"{name}.html").write_text(page.format(head))
    with browser(tmp_path) as new:
        window = new()
        window.open((tmp_path / "with.html").as_uri())
        assert window.wait("return window.told") == ["got", {"a": 1}]
        window.open((tmp_path / "without.html").as_uri())
        assert window.run("return window.told ?? null") is None


def test_the_names_of_the_reference():
    text = (ROOT / "docs/reference.md").read_text()
    for name, options in re.findall(r"^::: (\S+)(?:\n    options: \{(.*)\})?", text, re.MULTILINE):
        members = re.search(r"members: \[(.*?)\]", options)
        for member in members[1].split(", ") if members else []:
            assert hasattr(found(name), member), f"{name} has no {member}"


def found(name: str) -> object:
    """A module, or what stands in one."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        module, _, rest = name.rpartition(".")
        return getattr(importlib.import_module(module), rest)


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_commands_have_the_options_that_are_shown(page):
    commands = get_command(app).commands
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        if language:
            continue
        for line in re.findall(r"(?:^|[ /])swintormer ((?:[a-z]+) [^|&\n]*)", block, re.MULTILINE):
            name, *words = shlex.split(line, comments=True)
            options = [(*parameter.opts, *parameter.secondary_opts) for parameter in commands[name].params]
            known = {option for several in options for option in several}
            assert {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)} <= known, line
