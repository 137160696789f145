"""The real program on real files in a temporary folder, with a tiny network of random weights."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import tempfile
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_files import TINY, default_signals, files, make_bad, nobody, photo

from swintormer import Deblurrer, Swintormer, load_checkpoint, read_checkpoint
from swintormer.cli import plan as cli_plan
from swintormer.cli.deblur import parse_format, parse_memory, parse_tile
from swintormer.cli.macs import count_macs, parse_size
from swintormer.errors import SwintormerError
from swintormer.images import compare as report
from swintormer.images.reading import read_image
from swintormer.model.config import PRESETS
from swintormer_kernels import BackendError

pytestmark = pytest.mark.usefixtures("one_thread_everywhere")


# Results


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_the_result_is_what_the_pipeline_restores(run, weights, suffix, channels, bits):
    source = read_image(photo(f"in{suffix}", channels, bits))
    result = run("deblur", f"in{suffix}", "-o", f"out{suffix}", "--tile", 32, "--stride", 24)
    restored = read_image(f"out{suffix}")
    expected = Deblurrer(load_checkpoint(weights), tile=32, stride=24).restore_array(source.pixels)
    np.testing.assert_array_equal(restored.pixels, expected)
    assert (restored.pixels != source.pixels).any()
    if source.has_alpha:
        np.testing.assert_array_equal(restored.alpha, source.alpha)
    assert f"in{suffix} -> out{suffix}: 50x40" in result.stdout
    assert f"{bits} bits, 4 tiles" in result.stdout
    assert result.stdout.count("\n") == 1


def test_the_memory_of_a_tile_is_kept_for_the_next(run, monkeypatch):
    from swintormer_kernels.backends.cpu import scratch

    calls = []
    monkeypatch.setattr(scratch, "keep_freed_memory", lambda: calls.append(True))
    photo("in.png")
    run("deblur", "in.png", "-o", "out.png")
    assert calls == [True]


def test_the_limit_of_pixels_is_an_option(run):
    photo("in.png")
    assert "raise --max-pixels" in run("deblur", "in.png", "-o", "out.png", "--max-pixels", 1999, code=1).output
    run("deblur", "in.png", "-o", "out.png", "--max-pixels", 2000)


def test_options_reach_the_pipeline(run):
    photo("in.png", side=(100, 100))
    assert "100x100, RGB, 8 bits, 16 tiles" in run("deblur", "in.png", "-o", "a", "--blend", "feather").stdout
    assert ", 1 tile, " in run("deblur", "in.png", "-o", "b", "--tile", "auto").stdout
    assert ", 9 tiles" in run("deblur", "in.png", "-o", "c", "--tile", 40, "--stride", 40, "--batch", 3).stdout
    run("deblur", "in.png", "-o", "d", "--backend", "reference", "--device", "cpu", "--memory", "1G")
    feather, average = read_image("a/in.png").pixels, read_image("c/in.png").pixels
    assert (feather != average).any()


def test_strength(run, weights):
    source = read_image(photo("in.png", bits=16)).pixels
    for strength in (0, 0.3, 1):
        run("deblur", "in.png", "-o", f"{strength}.png", "--strength", strength)
        expected = Deblurrer(read_checkpoint(weights), strength=strength).restore_array(source)
        np.testing.assert_array_equal(read_image(f"{strength}.png").pixels, expected)
    np.testing.assert_array_equal(read_image("0.png").pixels, source)


def test_dual_pixel_pairs(run, dual_weights):
    photo("left/a.png", seed=1)
    photo("right/a.png", seed=2)
    run("deblur", "left/a.png", "--right", "right/a.png", "-o", "one.png", "--weights", dual_weights)
    left, right = (read_image(f"{side}/a.png").pixels for side in ("left", "right"))
    expected = Deblurrer(read_checkpoint(dual_weights)).restore_array(left, right=right)
    np.testing.assert_array_equal(read_image("one.png").pixels, expected)
    run("deblur", "left", "--right", "right", "-o", "out", "--weights", dual_weights)
    np.testing.assert_array_equal(read_image("out/a.png").pixels, expected)


def test_before_and_after_side_by_side(run, monkeypatch):
    monkeypatch.setattr(report, "PANEL", 120)
    photo("small.png", bits=16)
    photo("large.png", side=(30, 130))
    run("deblur", "small.png", "large.png", "-o", "out", "--compare")
    small = read_image("out/small.compare.png").pixels
    assert small.shape == (report.CAPTION + 40, 50 + 6 + 50, 3)
    assert small.dtype == np.uint8
    small = small[report.CAPTION :]
    before, after = (read_image(path).pixels for path in ("small.png", "out/small.png"))
    np.testing.assert_array_equal(small[:, :50], np.round(before / 257))
    np.testing.assert_array_equal(small[:, -50:], np.round(after / 257))
    large = read_image("out/large.compare.png").pixels
    captions = 2 * report.CAPTION
    assert large.shape == (captions + 28 + 6 + 28, 120 + 6 + 120, 3), "reduced pair above, pixel by pixel below"
    large = large[captions:]
    before, after = (read_image(path).pixels.astype(int) for path in ("large.png", "out/large.png"))
    change = np.abs(after - before)
    places = [
        (y, x) for y in range(3) for x in range(11) if (before[y : y + 28, x : x + 120] == large[34:, :120]).all()
    ]
    ((y, x),) = places
    assert change[y : y + 28, x : x + 120].sum() >= change[:28, :120].sum()
    np.testing.assert_array_equal(large[34:, -120:], after[y : y + 28, x : x + 120])


# Names


def test_a_folder_is_mirrored(run):
    for name in ("a.png", "b.JPG", "notes.txt", ".hidden.png", "deep/er/c.tif", "deep/d.webp"):
        if name == "notes.txt":
            Path(name).parent.mkdir(exist_ok=True)
            Path("in").mkdir(exist_ok=True)
            Path("in", name).write_text("x")
        else:
            photo(Path("in", name).with_suffix(Path(name).suffix.lower())).rename(Path("in", name))
    run("deblur", "in", "-o", "flat")
    assert files("flat") == {"a.png", "b.JPG"}
    run("deblur", "in", "-r", "-o", "in/out")
    assert files("in/out") == {"a.png", "b.JPG", "deep/er/c.tif", "deep/d.webp"}
    result = run("deblur", "in", "-r", "-o", "in/out", "--skip-existing")
    assert result.stdout == "4 of 4 are restored already and stay as they are.\n", "results must not become inputs"


def test_suffix_and_format(run):
    photo("a.png", bits=16)
    result = run("deblur", "a.png", "-o", ".", "--suffix", "_sharp", "--format", "jpg")
    assert files() == {"a.png", "a_sharp.jpg"}
    assert "Note: a.png has 16 bits per channel and JPEG holds 8" in result.stdout
    run("deblur", ".", "-o", ".", "--suffix", "_sharp", "--format", "jpg", "--compare")
    assert files() == {"a.png", "a_sharp.jpg", "a_sharp.compare.png"}, "earlier results are no inputs"


def test_pictures_whose_results_would_share_a_name_keep_their_old_ending(run):
    for name in ("in/a.png", "in/a.jpg", "in/a.tif", "in/b.jpg"):
        photo(name, side=(8, 8))
    run("deblur", "in", "-o", "out", "--compare")
    pictures = {"a.png", "a.jpg", "a.tif", "b.jpg"}
    assert files("out") == pictures | {
        "a.png.compare.png", "a.jpg.compare.png", "a.tif.compare.png", "b.compare.png",
    }  # fmt: skip
    run("deblur", "in", "-o", "png", "--format", "png")
    assert files("png") == {"a.png", "a.jpg.png", "a.tif.png", "b.png"}
    run("deblur", "in", "-o", "in", "--format", "png", "--suffix", "_x")
    assert files("in") == pictures | {"a_x.png", "a.jpg_x.png", "a.tif_x.png", "b_x.png"}
    again = run("deblur", "in", "-o", "in", "--format", "png", "--suffix", "_x", "--skip-existing")
    assert again.stdout == "4 of 4 are restored already and stay as they are.\n"


def test_pictures_of_other_formats_in_a_folder_are_named(run):
    """A folder that seems restored would lack them."""
    photo("in/a.png")
    for name in ("b.GIF", "c.cr2", "notes.txt", ".hidden.gif"):
        Path("in", name).write_bytes(b"anything")
    names = ", ".join(str(Path("in", name)) for name in ("b.GIF", "c.cr2"))
    sentence = f"Left out, in formats that are not read here: {names}.\n"
    assert sentence in run("deblur", "in", "-o", "out").stdout
    assert sentence not in run("deblur", "in", "-o", "out", "--quiet").stdout
    assert "Left out" not in run("deblur", "in/a.png", "-o", "out").stdout


def test_skip_existing_restores_only_what_is_missing(run):
    photo("in/a.png")
    photo("in/b.png")
    run("deblur", "in/a.png", "-o", "out")
    before = Path("out/a.png").stat().st_mtime_ns
    result = run("deblur", "in", "-o", "out", "--skip-existing")
    assert "1 of 2 are restored already" in result.stdout
    assert "in/b.png -> out/b.png" in result.stdout
    assert "in/a.png ->" not in result.stdout
    assert Path("out/a.png").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["a.png", "-o", "."], "a.png would overwrite an input"),
        (["a.png", "-o", "a.png"], "would overwrite an input"),
        (["a.png", "deep/a.png", "-o", "out"], "Both a.png and deep/a.png would become out/a.png"),
        (["a.png", "b.png", "-o", "a.jpg"], "a.jpg is a file, but the results of several pictures need a folder"),
        (["deep", "-o", "a.jpg"], "a.jpg is a file, but the results of a folder need a folder"),
        (
            ["a.png", "b.png", "-o", "h.jpg"],
            "h.jpg names one picture, but the results of several pictures need a folder",
        ),
        (["deep", "-o", "h.jpg"], "h.jpg names one picture, but the results of a folder need a folder: name one."),
        (["a.png", "-o", "out.gif"], "must end in one of .png"),
        (["a.png", "-o", os.devnull], f"Cannot write {os.devnull}: its name must end in one of .png"),
        (["a.png", "-o", "out.png", "--format", "tiff"], "out.png is a name for PNG, but --format asks for tiff"),
        (["a.png", "-o", "out.png", "--suffix", "_x"], "leave out --suffix"),
        (["a.png", "-o", "out", "--suffix", "../x"], "must not hold a '/'"),
        (["a.png", "-o", "out", "--format", "gif"], "--format takes one of png, tiff, jpeg, webp, found 'gif'"),
        (["missing.png", "-o", "out"], "There is no file or folder missing.png"),
        (["empty", "-o", "out"], "There is no PNG, TIFF, JPEG or WebP picture in empty (--recursive"),
        (["a.png", "-o", "out", "--right", "missing.png"], "There is no file or folder missing.png (--right)"),
        (["deep", "-o", "out", "--right", "a.png"], "a.png is one file, but deep is a folder"),
        (["a.png", "-o", "out", "--right", "b.png"], "restores single pictures: leave out --right"),
        (["a.png", "-o", "out", "--seed", "0"], "--steps, --seed and --deterministic need the prior"),
        (["a.png", "-o", "out", "--steps", "4"], "--steps, --seed and --deterministic need the prior"),
        (["a.png", "-o", "out", "--tile", "big"], "--tile takes a number of pixels or auto, found 'big'"),
        (["a.png", "-o", "out", "--tile", "3"], "--tile 3 is too small for this network: use 32 or more."),
        (["a.png", "-o", "out", "--stride", "99"], "stride must be 1 to 32"),
        (["a.png", "-o", "out", "--blend", "magic"], "blend must be one of uniform, feather"),
        (["a.png", "-o", "out", "--memory", "2"], "--memory takes a size with its unit"),
        (["a.png", "-o", "out", "--memory", "1K"], "of memory, but the memory limit is 1 KiB: raise the memory limit"),
        (["a.png", "-o", "out", "--memory", "0.1K"], "a.png: One tile of 32 pixels needs about"),
        (["a.png", "-o", "out", "--strength", "2"], "The strength must be 0 (the picture as it came) to 1, found 2.0."),
        (["a.png", "-o", "out", "--batch", "0"], "batch must be at least 1"),
        (["a.png", "-o", "out", "--device", "tpu"], "The device must be cpu, cuda or mps, found 'tpu'"),
        (["a.png", "-o", "out", "--backend", "magic"], "There is no backend 'magic': choose one of auto, cuda, triton"),
        (["a.png", "-o", "out", "--weights", "a.png"], "a.png is no checkpoint"),
        (["a.png", "-o", "out", "--weights", "missing.pth"], "There is no checkpoint missing.pth"),
        (["a.png", "-o", "a.jpg/out"], "Cannot create the folder a.jpg/out"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_written(run, words, sentence):
    for name in ("a.png", "a.jpg", "b.png", "deep/a.png"):
        photo(name)
    Path("empty").mkdir()
    before = files()
    result = run("deblur", *words, code=1)
    assert sentence in result.stderr
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert files() == before


def test_one_view_for_a_dual_pixel_network(run, dual_weights):
    photo("a.png")
    assert "--right" in run("deblur", "a.png", "-o", "out", "--weights", dual_weights, code=1).stderr
    photo("b.png", side=(40, 51))
    words = ("deblur", "a.png", "--right", "b.png", "-o", "out", "--weights", dual_weights)
    assert "a.png (50x40, RGB, 8 bits) and b.png (51x40, RGB, 8 bits)" in run(*words, code=1).stderr


# Bad files


BAD = {
    "truncated": "cut short",
    "empty": "is empty",
    "text": "is not a picture",
    "cmyk": "CMYK",
    "float": "floating-point",
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_ends_in_one_sentence(run, name):
    path = make_bad(name)
    result = run("deblur", path, "-o", "out.png", code=1)
    assert result.stderr.startswith(f"Error: {path}")
    assert BAD[name] in result.stderr
    assert result.stderr.count("\n") == 1
    assert files() == {str(path)}


def test_failures_in_a_folder_do_not_stop_the_others(run):
    bad = [make_bad(name) for name in BAD]
    photo("in/aaa.png")
    photo("in/zzz.tif")
    result = run("deblur", "in", "-o", "out", code=1)
    assert files("out") == {"aaa.png", "zzz.tif"}
    assert "2 restored, 5 failed:" in result.stderr
    summary = result.stderr.split("failed:")[1]
    assert all(str(path) in summary for path in bad)
    assert result.stdout.count("Failed: ") == 5


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            RuntimeError("odd shapes.\nmore"),
            "a.png failed because of an error in the program (RuntimeError: odd shapes)",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "a.png does not fit into memory"),
    ],
)
def test_an_error_that_nobody_foresaw_is_one_failure(run, monkeypatch, error, words):
    photo("a.png", side=(8, 8))
    photo("b.png", side=(9, 9))
    restore = Deblurrer.restore_array

    def failing(self, pixels, **options):
        if len(pixels) == 8:
            raise error
        return restore(self, pixels, **options)

    monkeypatch.setattr(Deblurrer, "restore_array", failing)
    result = run("deblur", "a.png", "b.png", "-o", "out", code=1)
    assert files("out") == {"b.png"}
    assert words in result.stderr
    assert result.stderr.count("\n") == 2


def test_a_backend_that_cannot_serve_ends_the_run_in_one_sentence(run, monkeypatch):
    photo("a.png", side=(8, 8))
    photo("b.png", side=(8, 8))

    def failing(*_, **__):
        raise BackendError("cpu cannot serve swda_block: no such instructions")

    monkeypatch.setattr(Deblurrer, "restore_array", failing)
    result = run("deblur", "a.png", "b.png", "-o", "out", "--backend", "cpu", code=1)
    assert result.stderr == (
        "Error: cpu cannot serve swda_block: no such instructions; `swintormer info` lists the backends.\n"
    )


def test_window_of_weights_that_do_not_say(run, weights):
    photo("a.png", side=(33, 33))
    torch.save(load_checkpoint(weights).state_dict(), "bare.pth")
    words = ("deblur", "a.png", "--tile", 256, "--weights")
    assert "bare.pth does not store its window size" in run(*words, "bare.pth", "-o", "assumed").stdout
    said = run(*words, "bare.pth", "-o", "named", "--window", TINY.window_size).stdout
    assert "does not store" not in said
    run(*words, weights, "-o", "own")
    assumed, named, own = (read_image(f"{name}/a.png").pixels for name in ("assumed", "named", "own"))
    np.testing.assert_array_equal(named, own)
    assert (assumed != own).any()
    assert "its window is 2, not 4" in run(*words, weights, "-o", "own", "--window", 4, code=1).stderr
    assert "window 16 (assumed: the file does not say)" in run("info", "--weights", "bare.pth").stdout
    assert "window 2 (as given)" in run("info", "--weights", "bare.pth", "--window", 2).stdout
    assert "window 2\n" in run("info", "--weights", weights).stdout
    assert "its window is 2, not 4" in run("info", "--weights", weights, "--window", 4, code=1).stderr


def test_a_missing_second_view_is_one_failure(run, dual_weights):
    for name in ("left/a.png", "left/b.png", "right/b.png"):
        photo(name)
    result = run("deblur", "left", "--right", "right", "-o", "out", "--weights", dual_weights, code=1)
    assert "There is no file right/a.png" in result.stderr
    assert files("out") == {"b.png"}


def test_folders_without_permission(run, weights, monkeypatch):
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to other users
        monkeypatch.chdir(folder)
        Path(folder).chmod(0o777)
        for name in ("in/a.png", "in/closed/b.png", "shut/c.png", "readonly/d.png"):
            photo(name)
        shutil.copy(weights, "weights")
        words = ("--weights", "weights", "-o")
        run("deblur", "in/a.png", *words, "warm")  # what is imported lazily is imported by now
        for name, mode in {"in/closed": 0, "shut": 0, "readonly": 0o555}.items():
            Path(name).chmod(mode)
        try:
            with nobody():
                partly = run("deblur", "in", "-r", *words, "out", code=1)
                wholly = run("deblur", "shut", *words, "out", code=1)
                unwritable = run("deblur", "in/a.png", *words, "readonly", code=1)
        finally:
            for name in ("in/closed", "shut", "readonly"):
                Path(name).chmod(0o777)
        assert partly.stderr == ("1 restored, 1 failed:\n  Cannot look into the folder in/closed: Permission denied.\n")
        assert "Cannot look into the folder shut: Permission denied." in wholly.stderr
        assert "Error: Cannot write into the folder readonly" in unwritable.stderr
        assert files("out") == {"a.png"}
        assert files("readonly") == {"d.png"}
        monkeypatch.undo()  # leave the folder before it goes


def test_a_full_disk(run):
    photo("a.png", side=(64, 64))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))  # bytes; the result has more
    try:
        result = run("deblur", "a.png", "-o", "out/a.tif", "--tile", 64, code=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert result.stderr == "Error: Cannot write out/a.tif: File too large.\n"
    assert files() == {"a.png"}


# Interrupts, terminals, the other commands


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupt_and_going_on(run, monkeypatch, number):
    for name in ("a.png", "b.png", "c.png"):
        photo(f"in/{name}")
    restore, started = Deblurrer.restore_array, []

    def interrupted(self, pixels, **options):
        started.append(pixels)
        if len(started) == 2:
            os.kill(os.getpid(), number)
        return restore(self, pixels, **options)

    with monkeypatch.context() as patch, default_signals():
        patch.setattr(Deblurrer, "restore_array", interrupted)
        # One by one, so that a tile is left when the signal is seen.
        result = run("deblur", "in", "-o", "out", "--batch", 1, code=128 + number)
    assert len(started) == 2
    assert result.stderr == (
        "Interrupted: 1 restored, no incomplete file is left; the same command with --skip-existing continues.\n"
    )
    assert files("out") == {"a.png"}
    assert "1 of 3 are restored already" in run("deblur", "in", "-o", "out", "--skip-existing").stdout
    assert files("out") == {"a.png", "b.png", "c.png"}


def test_an_interrupt_outside_the_work(run, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_plan, "plan", interrupted)
    result = run("deblur", ".", "-o", "out", code=130)
    assert result.stderr == "Interrupted: no incomplete file is left.\n"


def test_quiet_says_only_errors(run):
    photo("a.png")
    result = run("deblur", "a.png", "-o", "out", "-q")
    assert (result.stdout, result.stderr) == ("", "")
    make_bad("text")
    result = run("deblur", "in/text.png", "a.png", "-o", "out", "-q", code=1)
    assert result.stdout == ""
    assert "1 restored, 1 failed:" in result.stderr


def test_wrong_usage_is_told_apart_from_failure(run):
    assert "out" in run("deblur", "a.png", code=2).stderr
    assert run("deblurr", code=2).stderr


def test_version(run):
    assert run("--version").stdout == f"swintormer {metadata.version('swintormer-kernels')}\n"
    help_text = run("--help").stdout
    assert "--version" in help_text
    assert "Restore photographs" in help_text


def test_info(run, weights):
    text = run("info", "--weights", weights).stdout
    for words in ("torch", torch.__version__, "libvips", "reference  available", "threads", "random numbers"):
        assert words in text
    assert "32x32 pixels" in text
    assert f"{sum(p.numel() for p in Swintormer(TINY).parameters()):,} parameters" in text


def test_info_names_the_extras(run, monkeypatch):
    from swintormer.cli import info

    monkeypatch.setattr(info, "version", lambda package: "not installed" if package in ("uvicorn", "ray") else "1.0")
    text = run("info").stdout
    assert "strong.safetensors" in text
    assert "  web         the page of `swintormer web`: not installed, pip install 'swintormer-kernels[web]'\n" in text
    assert "  export      `export --format onnx`\n" in text
    assert text.count("not installed, pip") == 2


def test_macs(run, weights):
    text = run("macs", "--size", "1680x1120").stdout
    assert "refinement" in text
    assert "1680x1120 pixels: 40 tiles of 256x256, stride 220" in text
    small = run("macs", "--weights", weights, "--tile", 64, "--size", "64x64", "--size", "10x20").stdout
    total = count_macs(TINY, 64, 64).total
    assert f"{total / 1e9:.3f}" in small
    assert "64x64 pixels: 1 tile of" in small
    # Name, then GMAC and share of a tile and of each image.
    (row,) = [line.split() for line in text.splitlines() if line.startswith("refinement")]
    stage = count_macs(PRESETS["small"], 256, 256).stages["refinement"] / 1e9
    assert (row[1], row[3]) == (f"{stage:,.3f}", f"{40 * stage:,.3f}")
    both = run("macs", "--preset", "small", "--weights", weights, code=1)
    assert both.stderr == "Error: --preset and --weights both name a network: leave one of them out.\n"
    assert "no preset 'huge'" in run("macs", "--preset", "huge", code=1).stderr
    assert "--size takes" in run("macs", "--size", "big", code=1).stderr


def test_train(run):
    sizes = {**TINY.model_dump(), "num_refinement_blocks": 0}
    table = "\n".join(f"{name} = {json.dumps(value)}" for name, value in sizes.items())
    Path("run.toml").write_text(
        f'out = "run"\nsteps = 1\nbatch = 1\ncrop = 32\nvalidation = 1\nthreads = 1\n[network]\n{table}\n'
    )
    result = run("train", "run.toml")
    assert result.stdout.strip() == "run/weights.safetensors"
    assert load_checkpoint("run/weights.safetensors").config.dim == TINY.dim
    assert "missing.toml" in run("train", "missing.toml", code=1).stderr
    Path("device.toml").write_text('device = "abacus"\nout = "run"\n')
    assert "no device 'abacus'" in run("train", "device.toml", code=1).stderr
    assert run("train", code=2).stderr


def test_parsers():
    assert [parse_memory(text) for text in ("", "500M", "1.5G", "2 GB", "1KiB")] == [
        None, 500 * 2**20, 3 * 2**29, 2**31, 1024,
    ]  # fmt: skip
    assert [parse_format(text) for text in ("", "png", "TIF", ".jpg", "webp")] == [None, "png", "tiff", "jpeg", "webp"]
    assert [parse_tile(text) for text in ("", "auto", "256")] == [None, "auto", 256]
    assert parse_size("1680x1120") == (1680, 1120)
    for parse, text in ((parse_memory, "0G"), (parse_memory, "G"), (parse_tile, "0"), (parse_size, "0x4")):
        with pytest.raises(SwintormerError):
            parse(text)
