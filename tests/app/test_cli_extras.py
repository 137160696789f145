"""What `swintormer deblur` does beside restoring: leaving alone what needs nothing, previews, reports, models."""

from __future__ import annotations

import base64
import io
import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from cli_files import default_signals, files, make_bad, photo
from PIL import Image as Pillow

from swintormer import Deblurrer, load_checkpoint, read_checkpoint
from swintormer.checkpoint import checkpoint
from swintormer.cli import models
from swintormer.cli.app import app
from swintormer.images import page
from swintormer.images.compare import CAPTION, change
from swintormer.images.formats import reads
from swintormer.images.reading import read_image

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def install(weights, monkeypatch):
    """Make the tiny network the installed one, with this threshold of what needs nothing."""

    def as_model(alone: float | None) -> None:
        monkeypatch.setattr(checkpoint, "default_weights", lambda name: weights)
        small = models.Model("small", "small", "tests", "none", alone)
        monkeypatch.setitem(models.MODELS, "small", small)
        monkeypatch.setitem(models.MODELS, models.DEFAULT, replace(small, name=models.DEFAULT))

    return as_model


# A picture that needs nothing


@pytest.mark.parametrize("target", ["out.png", "out.tif"])
def test_a_picture_that_needs_nothing_is_left_alone_and_said_so(run, install, weights, target):
    source = read_image(photo("in.png")).pixels
    restored = Deblurrer(read_checkpoint(weights)).restore_array(source)
    found = change(source, restored)
    install(found)
    left = run("deblur", "in.png", "-o", target, "--model", "small", "--compare")
    assert "in.png needs nothing and is left as it is; --force restores it." in left.stdout
    np.testing.assert_array_equal(read_image(target).pixels, source)
    assert (Path(target).read_bytes() == Path("in.png").read_bytes()) == (target == "out.png")
    assert files() == {"in.png", target, "out.compare.png"}
    assert "in.png needs nothing" in run("deblur", "in.png", "-o", "b.png", "--model", models.DEFAULT).stdout
    install(np.nextafter(found, np.inf))
    assert "needs nothing" not in run("deblur", "in.png", "-o", target, "--model", "small").stdout
    np.testing.assert_array_equal(read_image(target).pixels, restored)


def test_what_writing_would_change_is_told_only_where_it_is_written(run, install):
    Path("in").mkdir()
    Pillow.fromarray(np.zeros((8, 8), np.uint8)).convert("P").save("in/palette.png")
    install(-np.inf)
    words = ("deblur", "in/palette.png", "--model", "small", "-o")
    assert "palette" not in run(*words, "out.png").stdout.split("Note: ", 1)[1].replace("palette.png", "")
    assert "has a palette" in run(*words, "out.tif").stdout


def test_damage_is_told_of_a_copy_too(run, install):
    install(-np.inf)
    content = photo("a.jpg").read_bytes()
    Path("a.jpg").write_bytes(content.replace(b"\xff\xdb", b"\0\0\xff\xdb", 1))
    assert "a.jpg is damaged (" in run("deblur", "a.jpg", "-o", "out", "--model", "small").stdout


@pytest.mark.skipif(not reads(Path("a.avif")), reason="the installed libvips reads no AVIF")
def test_avif_that_needs_nothing_is_converted(run, install):
    install(-np.inf)
    Pillow.open(photo("in.png")).save("in.avif")
    assert "needs nothing" in run("deblur", "in.avif", "-o", "out.png", "--model", "small").stdout
    np.testing.assert_array_equal(read_image("out.png").pixels, read_image("in.avif").pixels)


def test_who_insists_gets_it_restored(run, install, weights):
    source = read_image(photo("in.png")).pixels
    restored = Deblurrer(read_checkpoint(weights)).restore_array(source)
    install(-np.inf)
    for words in (["--model", "small", "--force"], ["--weights", weights]):  # nothing is known of other weights
        assert "needs nothing" not in run("deblur", "in.png", "-o", "out.png", *words).stdout
        np.testing.assert_array_equal(read_image("out.png").pixels, restored)
    run("deblur", "in.png", "-o", "out.png", "--model", "small", "--strength", "0.5")
    assert (read_image("out.png").pixels != source).any()


# Models


def test_models_by_name(run, install, weights):
    install(None)
    text = run("models").stdout
    for words in (
        "small\n",
        "strong\n",
        "wide\n",
        "small-prior\n",
        "for      tests",
        "size     ",
        "megapixels/s",
        "licence  Apache-2.0",
    ):
        assert words in text
    photo("a.png")
    words = ("deblur", "a.png", "-o", "out", "--model")
    assert (
        "There is no model 'huge': choose one of strong, small, wide, small-prior" in run(*words, "huge", code=1).stderr
    )
    both = run(*words, "small", "--weights", weights, code=1)
    assert both.stderr == "Error: --model and --weights both name a network: leave one of them out.\n"
    assert files() == {"a.png"}


def test_no_help_loses_words_in_brackets():
    """Typer takes [word] for markup and leaves it out."""
    for name, command in typer.main.get_command(app).commands.items():
        texts = [command.help, command.epilog, *(getattr(one, "help", "") for one in command.params)]
        assert not re.search(r"\[[a-z]", " ".join(filter(None, texts))), name


def test_every_model_is_installed():
    for model in models.MODELS.values():
        assert model.path().is_file()
        assert model.purpose
        assert model.licence


# Previews


def test_a_preview_restores_the_busiest_part(run, monkeypatch, weights):
    from swintormer.cli import deblur

    monkeypatch.setattr(deblur, "PREVIEW_SIDE", 32)
    pixels = np.full((100, 200, 3), 90, np.uint8)
    pixels[48:80:2, 112:144] = 160
    Path("in").mkdir()
    Pillow.fromarray(pixels).save("in/a.png")
    photo("in/a.jpg")
    run("deblur", "in", "-o", "in", "--preview", "--compare")
    results = {"a.jpg.preview.png", "a.png.preview.png"}
    assert files("in") == {"a.jpg", "a.png"} | results
    shown = read_image("in/a.png.preview.png").pixels
    busiest = pixels[48:80, 112:144]
    np.testing.assert_array_equal(shown[CAPTION:, :32], busiest)
    restored = Deblurrer(load_checkpoint(weights)).restore_array(busiest)
    np.testing.assert_array_equal(shown[CAPTION:, -32:], restored)
    again = run("deblur", "in", "-o", "in", "--preview", "--skip-existing")
    assert again.stdout.startswith("2 of 2 are restored"), "previews are no inputs"
    assert "in/a.png -> one.jpg: 32x32, RGB" in run("deblur", "in/a.png", "-o", "one.jpg", "--preview").stdout
    assert read_image("one.jpg").pixels.shape == shown.shape


def test_a_preview_of_two_views(run, monkeypatch, dual_weights):
    from swintormer.cli import deblur

    monkeypatch.setattr(deblur, "PREVIEW_SIDE", 32)
    left, right = (read_image(photo(f"{name}/a.png", seed=seed)).pixels for seed, name in enumerate(("left", "right")))
    run("deblur", "left/a.png", "--right", "right/a.png", "-o", ".", "--preview", "--weights", dual_weights)
    shown = read_image("a.preview.png").pixels[CAPTION:]
    ((y, x),) = [(y, x) for y in range(9) for x in range(19) if (left[y : y + 32, x : x + 32] == shown[:, :32]).all()]
    part = np.s_[y : y + 32, x : x + 32]
    expected = Deblurrer(read_checkpoint(dual_weights)).restore_array(left[part], right=right[part])
    np.testing.assert_array_equal(shown[:, -32:], expected)


# Reports


def pictures(path: str) -> list[Pillow.Image]:
    """The pictures in a page, which must need nothing else."""
    text = Path(path).read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert text.endswith("</html>\n")
    found = re.findall(r'src="([^"]*)"', text)
    assert re.findall(r"https?:|url\(|href", text) == []
    start = "data:image/jpeg;base64,"
    assert all(source.startswith(start) for source in found)
    return [Pillow.open(io.BytesIO(base64.b64decode(source.removeprefix(start)))) for source in found]


def test_a_report_shows_every_picture_before_and_after(run, monkeypatch):
    monkeypatch.setattr(page, "SIDE", 60)
    photo("in/a & <b>.png", bits=16)
    photo("in/long.png", channels=2, side=(40, 90))
    bad = make_bad("text")
    result = run("deblur", "in", "-o", "out", "--report", "out/page.html", code=1)
    assert files("out") == {"a & <b>.png", "long.png", "page.html"}
    assert f"2 restored, 1 failed:\n  {bad}" in result.stderr
    text = Path("out/page.html").read_text(encoding="utf-8")
    assert "<h2>a &amp; &lt;b&gt;.png</h2>" in text
    assert "50x40, RGB, 16 bits" in text
    sizes = [picture.size for picture in pictures("out/page.html")]
    assert sizes == [(50, 40)] * 2 + [(60, 27)] * 2 + [(60, 40)] * 2
    before, after, *_ = pictures("out/page.html")
    shown = read_image("in/a & <b>.png").pixels / 257, read_image("out/a & <b>.png").pixels / 257
    for picture, own, other in ((before, *shown), (after, *shown[::-1])):
        error, another = (np.abs(np.asarray(picture) - pixels).mean() for pixels in (own, other))
        assert error < another, "JPEG"
    assert "Cannot write page.txt: the name of a report must end in .html." in (
        run("deblur", "in", "-o", "new", "--report", "page.txt", code=1).stderr
    )
    assert files() == {"in/a & <b>.png", "in/long.png", "in/text.png", *(f"out/{name}" for name in files("out"))}


def test_a_report_of_an_interrupted_run_is_whole(run, monkeypatch):
    for name in ("a.png", "b.png"):
        photo(f"in/{name}")
    restore, started = Deblurrer.restore_array, []

    def interrupted(self, pixels, **options):
        started.append(pixels)
        if len(started) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return restore(self, pixels, **options)

    monkeypatch.setattr(Deblurrer, "restore_array", interrupted)
    with default_signals():
        run("deblur", "in", "-o", "out", "--report", "page.html", "--batch", 1, code=128 + signal.SIGTERM)
    assert files("out") == {"a.png"}
    assert len(pictures("page.html")) == 2


def test_a_report_of_the_rest_says_so(run):
    photo("in/a.png")
    run("deblur", "in", "-o", "out", "--report", "page.html")
    photo("in/b.png")
    again = run("deblur", "in", "-o", "out", "--report", "page.html", "--skip-existing")
    assert "page.html shows only what this run restores.\n" in again.stdout
    assert run("deblur", "in", "-o", "out", "--report", "page.html", "--skip-existing").stdout.count("\n") == 1


def test_a_preview_of_a_damaged_picture_says_so(run):
    content = Path(photo("a.jpg")).read_bytes()
    Path("a.jpg").write_bytes(content.replace(b"\xff\xdb", b"\0\0\xff\xdb", 1))
    assert "a.jpg is damaged (" in run("deblur", "a.jpg", "-o", ".", "--preview").stdout


def test_a_report_of_nothing_is_not_written(run):
    run("deblur", make_bad("text"), "-o", "out", "--report", "page.html", code=1)
    assert files() == {"in/text.png"}


def test_quality_and_lossless(run) -> None:
    from swintormer.images import parts

    photo("in/a.jpg")
    photo("in/b.webp")
    run("deblur", "in", "-o", "out", "--quality", 61)
    with open("out/a.jpg", "rb") as file:
        assert parts.jpeg_quality(file) == 61
    run("deblur", "in/b.webp", "-o", "out", "--lossless")
    with open("out/b.webp", "rb") as file:
        assert parts.webp_is_lossless(file)
    result = run("deblur", "in", "-o", "out2", "--lossless", code=1)
    assert "Cannot write out2/a.jpg without loss: choose --format png, tiff or webp." in result.stderr
    assert files("out2") == {"b.webp"}
    for words in (["--quality", 0], ["--quality", 90, "--lossless"]):
        run("deblur", "in", "-o", "out3", *words, code=1)
        assert not Path("out3").exists()
