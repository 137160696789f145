"""`swintormer web` in a real browser: what a user does with the page. Skipped where there is no Chromium."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_files import default_signals, make_bad, photo
from cli_program import PATIENCE, PROGRAM

from bench.browser import Window, browser, why_absent
from swintormer import Deblurrer, read_checkpoint
from swintormer.cli.models import MODELS
from swintormer.data.degrade.light import light_to_srgb, srgb_to_light
from swintormer.images.picture import Samples
from swintormer.images.reading import read_image

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytestmark = [
    pytest.mark.skipif(bool(why_absent()), reason=why_absent()),
    pytest.mark.usefixtures("one_thread_everywhere"),
]

DONE = "return document.querySelectorAll('.card.done').length == arguments[0]"
SIDE = 141, 240


@pytest.fixture(scope="module")
def address(weights: Path, tmp_path_factory) -> Iterator[str]:  # type: ignore[no-untyped-def]
    """Of the program, in a process of its own that leaves nothing."""
    temporary = tmp_path_factory.mktemp("temporary")
    root = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    surroundings = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": paths}
    command = [*PROGRAM, "web", "--port", "0", "--no-browser", "--weights", str(weights), "--precision", "float32"]
    with default_signals():
        program = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=surroundings)
    try:
        yield program.stdout.readline().split()[-1]  # type: ignore[union-attr]
        program.send_signal(signal.SIGINT)
        _, errors = program.communicate(timeout=PATIENCE)
        assert (program.returncode, errors) == (0, "")
        assert not list(temporary.iterdir())
    finally:
        program.kill()


@pytest.fixture(scope="module")
def make() -> Iterator[Callable[[], Window]]:
    """Opens windows, each of a browser of its own."""
    with tempfile.TemporaryDirectory() as folder, browser(Path(folder)) as window:
        yield window


@pytest.fixture(scope="module")
def kept(make) -> Window:  # type: ignore[no-untyped-def]
    """To start a browser takes seconds."""
    window: Window = make()
    return window


@pytest.fixture
def window(kept, address) -> Iterator[Window]:  # type: ignore[no-untyped-def]
    """The page, as one that was never opened before."""
    show(kept, address)
    yield kept
    assert [entry for entry in kept.log("browser") if entry["level"] == "SEVERE"] == []
    kept.run("sessionStorage.clear()")


def show(window: Window, address: str) -> None:
    window.size(1000, 700)
    window.open(address)
    window.wait("return document.querySelectorAll('#model option').length == arguments[0]", 1 + len(MODELS))


def seen(window: Window, left: int, top: int) -> Samples:
    """A part of the canvas, (*SIDE, 3), once all tiles are there and nothing is left to draw."""
    window.run("await new Promise(done => requestAnimationFrame(() => setTimeout(done, 300)))")
    script = "return Array.from(canvas.getContext('2d').getImageData(...arguments).data)"
    values = window.run(script, left, top, *SIDE[::-1])
    return np.array(values, np.uint8).reshape(*SIDE, 4)[..., :3]


def test_drop_slide_download(window, run, weights, tmp_path, address):
    """A picture from the drop to the file: before and after are where they should be, pixel for pixel."""
    path = photo(tmp_path / "my photo.png", side=SIDE)
    window.drop(path)
    window.wait(DONE, 1)
    window.keys("1", "#viewer")
    before = read_image(path).samples
    after = Deblurrer(read_checkpoint(weights), precision="float32").restore_array(before)
    room = window.run("return [canvas.height, canvas.width]")
    top, left = ((whole - side + 1) // 2 for whole, side in zip(room, SIDE, strict=True))

    def shown() -> Samples:
        return seen(window, left, top)

    def halves(pixels: Samples, at: int) -> list[int]:
        pairs = (before, slice(0, at)), (after, slice(at, None))
        return [int(np.abs(pixels[:, part].astype(int) - truth[:, part]).max()) for truth, part in pairs]

    assert halves(shown(), SIDE[1] // 2) == [0, 0]
    x, y = left + SIDE[1] // 2, top + SIDE[0] // 2
    corner = window.run("const b = canvas.getBoundingClientRect(); return [b.left, b.top]")
    window.mouse("mousePressed", corner[0] + x, corner[1] + y)
    window.mouse("mouseMoved", corner[0] + left + 100, corner[1] + y)
    window.mouse("mouseReleased", corner[0] + left + 100, corner[1] + y)
    assert halves(shown(), 100) == [0, 0]
    window.keys("\ue012\ue012", "#divider")  # the arrow to the left, twice, from 42
    assert window.run("return divider.value") == "40"

    # Strength without restoring again: what is seen is mixed of what the screen can show of both.
    window.run("strength.value = 40; strength.dispatchEvent(new Event('input'))")
    window.run("divider.value = 0; divider.dispatchEvent(new Event('input'))")
    light = [srgb_to_light(torch.from_numpy(pixels / 255)) for pixels in (before, after)]
    mixed = 255 * light_to_srgb(0.6 * light[0] + 0.4 * light[1]).numpy()
    assert np.abs(shown() - mixed).max() <= 1
    window.click("#download")
    run("deblur", path, "-o", "out", "--strength", 0.4, "--precision", "float32")
    assert window.downloaded("my photo_sharp.png") == (tmp_path / "out/my photo.png").read_bytes()

    urls = {
        url for entry in window.log("performance") for url in re.findall(r'"url":"(\w+://[^/"]+/)', entry["message"])
    }
    assert urls == {address}


def test_zoom_by_wheel_keys_and_buttons(window, tmp_path):
    window.drop(photo(tmp_path / "wide.png", side=(300, 2400)))
    window.wait(DONE, 1)
    value = "return Number(document.getElementById('zoom-value').textContent.replace(' %', ''))"
    fit = window.run(value)
    assert 20 <= fit < 100
    window.mouse("mouseWheel", 600, 300, deltaX=0, deltaY=-200)
    wheel = window.wait(value + f" > {fit} && {value.removeprefix('return ')}")
    window.keys("-", "#viewer")
    assert fit <= window.run(value) < wheel
    window.click("#zoom-one")
    assert window.run(value) == 100
    window.keys("0", "#viewer")
    assert window.run(value) == fit
    window.devtools("Input.synthesizePinchGesture", x=600, y=300, scaleFactor=2, gestureSourceType="touch")
    assert window.run(value) > fit


def test_files_that_are_no_pictures(window, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = tmp_path / "<img src=x onerror=alert(1)>.png"
    make_bad("text").rename(named)
    window.drop(make_bad("truncated").absolute(), named, photo(tmp_path / "good.png"))
    window.wait(DONE, 1)
    window.wait("return document.querySelectorAll('.card.failed').length == 2")
    texts = window.run("return [...document.querySelectorAll('.card.failed .state')].map(e => e.textContent)")
    assert sorted(texts)[0].startswith(f"{named.name} is not a picture in PNG, TIFF, JPEG or WebP although")
    assert sorted(texts)[1].startswith("truncated.png is damaged, cut short or of a rare kind")
    bad = window.run("return document.querySelector('.card.failed').click() || unread.textContent")
    assert bad in texts, "in place of the picture, without controls that would do nothing"
    assert window.run("return [unread, controls, zoom].map(e => e.offsetHeight > 0)") == [True, False, False]
    window.run("document.querySelector('.card.done').click()")
    assert window.run("return [unread, controls, zoom].map(e => e.offsetHeight > 0)") == [False, True, True]
    window.click("#pictures li:nth-child(1) .close")
    window.wait("return document.querySelectorAll('.card').length == 2")


def test_two_windows_at_once(window, make, address, run, tmp_path):
    """Each has its own pictures, all of them are restored, and a window that is loaded again has them still."""
    windows = [window, make()]
    show(windows[1], address)
    for number, one in enumerate(windows):
        one.drop(*(photo(tmp_path / f"{number}{letter}.png", side=SIDE, seed=number) for letter in "ab"))
    for number, one in enumerate(windows):
        one.wait(DONE, 2)
        names = one.run("return [...document.querySelectorAll('.name')].map(e => e.textContent)")
        assert sorted(names) == [f"{number}a.png", f"{number}b.png"]
    windows[1].run("location.reload()")
    windows[1].wait(DONE, 2)
    windows[1].click("#download-all")
    with zipfile.ZipFile(io.BytesIO(windows[1].downloaded("swintormer.zip"))) as archive:
        for letter in "ab":
            run("deblur", tmp_path / f"1{letter}.png", "-o", "out", "--precision", "float32")
            assert archive.read(f"1{letter}_sharp.png") == (tmp_path / f"out/1{letter}.png").read_bytes()


def test_choosing_and_pasting(window, tmp_path):
    path = photo(tmp_path / "chosen.png")
    window.run("files.hidden = false")
    window.keys(str(path), "#files")
    window.wait(DONE, 1)
    script = """const bytes = Uint8Array.from(arguments[0]), transfer = new DataTransfer()
    transfer.items.add(new File([bytes], 'pasted.png'))
    dispatchEvent(new ClipboardEvent('paste', {clipboardData: transfer}))"""
    window.run(script, list(path.read_bytes()))
    window.wait(DONE, 2)


def test_every_control_has_a_name(window, tmp_path):
    """As a screen reader tells it; and everything can be reached by the Tab key."""
    window.drop(photo(tmp_path / "a.png"))
    window.wait(DONE, 1)
    assert window.run("return purpose.textContent").startswith(window.run("return model.value") + ": ")
    briefs = [f"{name}: {model.purpose.partition(';')[0]}" for name, model in MODELS.items()]
    assert window.run("return [...model.options].map(e => e.textContent)")[1:] == briefs, "after the file of --weights"
    window.click("#help")
    assert window.run("return keys.open")
    assert (
        window.run("return document.activeElement.id") == "keys-title"
    )  # not "End the program", for who presses Enter
    window.click("#keys form button")
    assert not window.run("return keys.open")
    nodes = window.devtools("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "slider", "combobox", "checkbox", "progressbar", "link", "group", "dialog"}
    named = [(n["role"]["value"], n["name"]["value"]) for n in nodes if n.get("role", {}).get("value") in roles]
    assert len(named) > 10
    assert [pair for pair in named if not pair[1]] == []
    reached = set()
    for _ in range(30):
        window.devtools("Input.dispatchKeyEvent", type="keyDown", key="Tab", windowsVirtualKeyCode=9)
        reached.add(window.run("return document.activeElement.id || document.activeElement.className"))
    assert {"add", "help", "viewer", "divider", "zoom-in", "strength", "model", "format", "download"} <= reached
    assert any("card" in name for name in reached)


def test_nothing_is_wider_than_the_window(window, tmp_path):
    window.drop(photo(tmp_path / ("long name " * 9 + ".png")), photo(tmp_path / "b.png"))
    window.wait(DONE, 2)
    window.run("strength.value = 60; strength.dispatchEvent(new Event('input'))")
    window.click("#for-all")
    window.click("#pictures li:nth-child(2) .card")
    assert window.run("return strength.value") == "60"
    assert window.run("return document.getElementById('for-all').style.visibility") == "hidden"
    window.run("model.value = 'small'; model.dispatchEvent(new Event('change'))")
    outside = """return [...document.querySelectorAll('button, select, input[type=range]')]
        .filter(e => e.offsetParent && !e.closest('#side')).map(e => e.getBoundingClientRect())
        .filter(b => b.left < 0 || b.right > innerWidth || b.bottom > innerHeight).length"""
    for width, height in ((360, 700), (800, 700), (2560, 700), (740, 360)):
        window.size(width, height)
        sides = window.run("const e = document.documentElement; return [e.scrollWidth, e.scrollHeight]")
        assert sides == [width, height]
        assert window.run(outside.replace("|| b.bottom > innerHeight", "") if height < 700 else outside) == 0
        assert window.run("return canvas.getBoundingClientRect().height") > height / 4
