"""`swintormer evaluate` on datasets in their layouts and on one's own pairs, through the command line."""

from __future__ import annotations

import csv
import math
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_files import TINY

from swintormer import Deblurrer, Swintormer, load_checkpoint, save_checkpoint
from swintormer.cli import evaluate as command
from swintormer.data.datasets import PairFiles
from swintormer.evaluation import lpips, metrics, scores
from swintormer.evaluation.pairs import DPDD_INDOOR, DPDD_TEST, named_pairs, with_rooms
from swintormer.evaluation.published import PUBLISHED, published_table
from swintormer.images.picture import wrap
from swintormer.images.reading import read_image

pytestmark = pytest.mark.usefixtures("one_thread")
SIDE = 24


def picture(path: str, seed: int, bits: int = 8, channels: int = 3, side: tuple[int, int] = (SIDE, SIDE)) -> Path:
    """Noise, so that any two differ."""
    place = Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    dtype = np.uint8 if bits == 8 else np.uint16
    pixels = np.random.default_rng(seed).integers(0, 2**bits, (*side, channels)).astype(dtype)
    wrap(pixels).write_to_file(str(place))
    return place


@pytest.fixture(scope="module")
def identity(tmp_path_factory) -> Path:
    """Weights that leave every picture as it is."""
    net = Swintormer(TINY)
    net.output[0].weight.data.zero_()
    path = tmp_path_factory.mktemp("weights") / "identity.safetensors"
    save_checkpoint(net, path, training_tile=32)
    return path


@pytest.fixture
def run(run):
    """`swintormer evaluate` in the temporary folder."""
    return lambda *words, code=0: run("evaluate", *words, code=code)


def rows(path: str = "rows.csv") -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def own_pairs(count: int = 2) -> tuple[str, ...]:
    for number in range(count):
        picture(f"blurred/{number}.png", number)
        picture(f"sharp/{number}.png", 100 + number)
    return "--blurred", "blurred", "--sharp", "sharp"


def test_an_installed_network_is_measured_as_deblur_restores_with_it(run, identity, monkeypatch):
    seen: list[dict[str, Any]] = []
    methods = scores.network_methods

    def watched(*arguments: Any, **settings: Any) -> Any:
        seen.append(settings)
        return methods(*arguments, **settings)

    monkeypatch.setattr(scores, "network_methods", watched)
    monkeypatch.setattr("swintormer.checkpoint.checkpoint.default_weights", lambda name: identity)
    pairs = own_pairs(1)
    run(*pairs, "--model", "strong", "--csv", "rows.csv")
    run(*pairs, "--model", "wide")
    run(*pairs, "--weights", identity)
    assert [settings.get("scales", 1) for settings in seen] == [1, "auto", 1]
    other = run(*pairs, "--model", "wide", "--csv", "rows.csv", code=1).stderr
    assert "scales auto" in other.partition("this one is")[2]
    assert "scales" not in other.partition("this one is")[0]
    run(*pairs, "--weights", identity, "--csv", "same.csv")
    assert "2 scores stand in same.csv already" in run(*pairs, "--model", "small", "--csv", "same.csv").stderr
    assert "scales auto" in run(*pairs, "--model", "wide", "--csv", "same.csv", code=1).stderr
    assert "--model, --prior and --weights" in run(*pairs, "--model", "strong", "--prior", code=1).stderr
    assert "There is no model 'huge'" in run(*pairs, "--model", "huge", code=1).stderr


# One's own pairs


@pytest.mark.parametrize("which", ["blurred/1.png", "sharp/1.png"])
def test_one_damaged_picture_is_named_and_the_others_are_measured(run, identity, which):
    options = own_pairs(3)
    whole = Path(which).read_bytes()
    Path(which).write_bytes(whole[: len(whole) // 2])
    result = run(*options, "--weights", identity, "--csv", "rows.csv", code=1)
    assert {row["picture"] for row in rows()} == {"0", "2"}
    assert "1 could not be measured:\n" in result.stderr
    assert f"  {which} is damaged, cut short" in result.stderr
    assert "dB" in result.stdout

    Path(which).write_bytes(whole)
    run(*options, "--weights", identity, "--csv", "rows.csv")
    assert {row["picture"] for row in rows()} == {"0", "1", "2"}


def test_one_damaged_sharp_picture_is_named_and_the_others_are_measured(run, identity):
    own_pairs(2)
    Path("sharp/0.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    result = run("--sharp", "sharp", "--weights", identity, "--csv", "rows.csv", code=1)
    assert [row["picture"] for row in rows()] == ["1.png"]
    assert result.stderr.count("sharp/0.png") == 1


def test_nothing_but_damaged_pictures(run, identity):
    options = own_pairs(1)
    Path("sharp/0.png").write_bytes(b"")
    result = run(*options, "--weights", identity, code=1)
    assert "Error: sharp/0.png is empty" in result.output
    assert "|" not in result.stdout


def test_pictures_in_other_formats_beside_pairs_are_named(run, identity):
    options = own_pairs(1)
    Path("blurred/1.cr2").write_bytes(b"anything")
    result = run(*options, "--weights", identity)
    assert "Left out, in formats that are not read here: blurred/1.cr2." in result.stderr


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_scores_are_those_of_what_the_pipeline_restores(run, weights, bits, channels):
    picture("blurred/deep/a.png", 0, bits, channels)
    picture("sharp/deep/a.tif", 1, bits, channels)
    text = run("--blurred", "blurred", "--sharp", "sharp", "--csv", "rows.csv").stdout
    blurred, truth = read_image("blurred/deep/a.png"), read_image("sharp/deep/a.tif")
    full = 2**bits - 1
    deep = blurred.pixels.astype(np.uint16) * np.uint16(65535 // full)
    restored = Deblurrer(load_checkpoint(weights), tile=32).restore_array(deep) / 65535
    expected = {"input": blurred.pixels / full, "network": restored}
    assert [row["picture"] for row in rows()] == ["deep/a", "deep/a"]
    eps = float(np.finfo(np.float32).eps)
    for row in rows():
        # Pixels went through float32 with a relative error of eps; the rest is the CSV's last digit.
        pair = expected[row["method"]], truth.pixels / full
        assert float(row["mae"]) == pytest.approx(metrics.mae(*pair), abs=2 * eps + 5e-7)
        assert float(row["psnr"]) == pytest.approx(metrics.psnr(*pair), rel=100 * eps, abs=5e-5)
    assert "| deep/a |" in text
    assert "| all (1) | network |" in text


def test_formats_may_differ_within_a_pair(run):
    picture("blurred/1.jpg", 0)
    picture("sharp/1.png", 1, bits=16)
    assert "| 1 |" in run("--blurred", "blurred", "--sharp", "sharp").stdout


def test_equal_pictures_are_identical(run, identity):
    picture("blurred/a.png", 0)
    picture("sharp/a.png", 0)
    own_pairs(1)
    text = run("--blurred", "blurred", "--sharp", "sharp", "--weights", identity, "--csv", "rows.csv").stdout
    assert "| a | identical (1.000) | identical (1.000) |" in text
    assert "2 of 4 results are identical" in text
    for words in (text, Path("rows.csv").read_text()):
        assert "nan" not in words
        assert "inf" not in words


def test_pairs_that_cannot_be_measured(run):
    folders = own_pairs()
    assert "There is no folder missing" in run("--blurred", "missing", "--sharp", "sharp", code=1).stderr
    picture("blurred/2.png", 2)
    assert "the first is 2" in run(*folders, code=1).stderr
    picture("sharp/2.png", 2, side=(SIDE, SIDE + 1))
    sentence = "blurred/2.png and sharp/2.png must have the same size and channels, found 24x24 RGB and 25x24 RGB."
    assert sentence in run(*folders, code=1).stderr
    picture("sharp/2.png", 2, channels=1)
    assert "found 24x24 RGB and 24x24 gray" in run(*folders, code=1).stderr
    for folder in ("blurred", "sharp"):
        picture(f"{folder}/2.png", 2, side=(6, SIDE))
    assert "is 24x6: SSIM needs sides of at least 7 pixels" in run(*folders, code=1).stderr
    Path("sharp/2.png").write_text("no picture")
    assert "sharp/2.png is not a picture" in run(*folders, code=1).stderr


def test_without_scikit_image(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.metrics", None)
    assert "SSIM needs scikit-image, which is not installed: pip install" in run(*own_pairs(1), code=1).stderr


def test_dual_pixel_pairs(run, dual_weights):
    folders = own_pairs(1)
    picture("right/0.png", 7)
    run(*folders, "--right", "right", "--weights", dual_weights, "--csv", "rows.csv")
    left, right, truth = (read_image(f"{name}/0.png").pixels.astype(np.uint16) * np.uint16(257)
                          for name in ("blurred", "right", "sharp"))  # fmt: skip
    restored = Deblurrer(load_checkpoint(dual_weights), tile=32).restore_array(left, right)
    assert float(rows()[1]["psnr"]) == pytest.approx(metrics.psnr(restored / 65535, truth / 65535), abs=1e-4)


def test_weights_of_other_views_get_one_sentence(run, dual_weights, weights):
    folders = own_pairs(1)
    picture("right/0.png", 7)
    assert (
        "dual-pixel pairs: name the folder of right views with --right"
        in run(*folders, "--weights", dual_weights, code=1).stderr
    )
    assert f"{weights} restores single pictures: leave out --right" in run(*folders, "--right", "right", code=1).stderr
    assert "these pictures have one view" in run("--weights", dual_weights, code=1).stderr
    assert "these pictures have one view" in run("--sharp", "sharp", "--weights", dual_weights, code=1).stderr
    for folder in ("source", "target"):
        picture(f"realdof/{folder}/0.png", 0)
    dataset = "--dataset", "realdof", "--root", "realdof"
    assert "0 has no dual-pixel views" in run(*dataset, "--weights", dual_weights, code=1).stderr


def test_tile_stride_and_limit(run, weights):
    folders = own_pairs()
    run(*folders, "--tile", 16, "--stride", 8, "--limit", 1, "--csv", "rows.csv")
    assert {row["picture"] for row in rows()} == {"0"}
    assert "tile 16, stride 8" in rows()[0]["settings"]
    pixels = read_image("blurred/0.png").pixels.astype(np.uint16) * np.uint16(257)
    restored = Deblurrer(load_checkpoint(weights), tile=16, stride=8).restore_array(pixels) / 65535
    truth = read_image("sharp/0.png").pixels / 255
    assert float(rows()[1]["psnr"]) == pytest.approx(metrics.psnr(restored, truth), abs=1e-4)
    assert "The stride must be 1 to 16" in run(*folders, "--tile", 16, "--stride", 17, code=1).stderr


def test_an_evaluation_goes_on_from_its_file(run, monkeypatch):
    folders = own_pairs(3)
    whole = run(*folders).stdout
    run(*folders, "--limit", 2, "--csv", "rows.csv")
    half = rows()
    calls = []
    restore = Deblurrer.restore_array

    def counted(self, *words):
        calls.append(words[0].shape)
        return restore(self, *words)

    monkeypatch.setattr(Deblurrer, "restore_array", counted)
    result = run(*folders, "--csv", "rows.csv")
    assert len(calls) == 1
    assert result.stdout == whole
    assert "4 scores stand in rows.csv already" in result.stderr
    assert rows()[:4] == half
    assert len(rows()) == 6
    assert "holds another measurement" in run(*folders, "--tile", 16, "--csv", "rows.csv", code=1).stderr


def test_an_interrupt_keeps_what_is_done(run, monkeypatch):
    folders = own_pairs(3)
    follow = command._Progress.finished

    def interrupt(self, name):
        follow(self, name)
        if name == "1":
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(command._Progress, "finished", interrupt)
    result = run(*folders, "--csv", "rows.csv", code=130)
    assert "Interrupted after 2 of 3 pictures; the same command continues." in result.stderr
    assert result.stdout == ""
    assert [row["picture"] for row in rows()] == ["0", "0", "1", "1"]
    monkeypatch.setattr(command._Progress, "finished", follow)
    run(*folders, "--csv", "rows.csv")
    assert len(rows()) == 6


def test_options_that_do_not_go_together(run):
    for words, sentence in {
        ("--blurred", "a"): "both folders",
        ("--right", "a"): "--right goes with --blurred",
        ("--dataset", "dpdd"): "needs both its name",
        ("--root", "a"): "needs both its name",
        ("--dataset", "dpdd", "--root", "a", "--sharp", "b"): "finds its own folders",
        ("--dataset", "abacus", "--root", "a"): "choose one of dpdd, realdof",
        ("--blurred", "a", "--sharp", "b", "--side", "32"): "are for the held-out photographs",
        ("--sharp", "b", "--skip-rows", "1"): "is for pairs of pictures",
        ("--prior",): "--prior selects installed weights",
    }.items():
        assert sentence in run(*words, code=1).stderr


def test_sharp_pictures_are_measured_against_themselves(run, identity):
    picture("kodak/1.png", 1)
    picture("kodak/below/2.jpg", 2)
    text = run("--sharp", "kodak", "--csv", "rows.csv").stdout
    found = [float(row["psnr"]) for row in rows()]
    assert len(found) == 2
    assert f"Sharp photographs stay within {min(found):.1f} dB of themselves" in text
    assert "| below/2.jpg |" in text
    assert "All 2 sharp photographs come back identical." in run("--sharp", "kodak", "--weights", identity).stdout


def test_photographs_of_ones_own_are_degraded(run):
    picture("photos/1.png", 1, side=(40, 40))
    text = run("--photos", "photos", "--side", 32, "--network-only").stdout
    assert "| disc 2.5 |" in text
    assert "| 1.png |" in text
    assert "Sharp photographs stay within" in text


def test_named_pairs_each_other(run):
    for name in ("01_blur", "01_sharp", "01_other", "below/x_blurred", "below/x_truth", "y_blur"):
        picture(f"real/{name}.png", len(name))
    assert [(pair.name, pair.group) for pair in named_pairs(Path("real"))] == [("01", ""), ("below/x", "below")]
    result = run("--dataset", "pairs", "--root", "real", "--skip-rows", 10, "--csv", "rows.csv")
    assert "| all (2) | network |" in result.stdout
    assert "Left out for want of a partner" in result.stderr
    assert f"NAME_blur.png: {Path('real/y_blur.png')}." in result.stderr
    blurred, truth = (read_image(f"real/01_{name}.png").pixels[10:] / 255 for name in ("blur", "sharp"))
    assert float(rows()[0]["psnr"]) == pytest.approx(metrics.psnr(blurred, truth), abs=1e-4)
    assert "leaves none of them" in run("--dataset", "pairs", "--root", "real", "--skip-rows", 99, code=1).stderr
    picture("real/01_truth.jpg", 0)
    assert "are the same picture of one pair" in run("--dataset", "pairs", "--root", "real", code=1).stderr
    picture("alone/a.png", 0)
    assert "holds no pair named like" in run("--dataset", "pairs", "--root", "alone", code=1).stderr


# Datasets


def dpdd(count: int) -> None:
    for number in range(count):
        for view in "clr":
            picture(f"DPDD/test_{view}/source/1P0A{number:04}.png", 10 * number + ord(view), bits=16, side=(8, 9))
        picture(f"DPDD/test_c/target/1P0A{number:04}.png", 10 * number, bits=16, side=(8, 9))


def test_dpdd_has_rows_for_indoor_and_outdoor(run, weights):
    """All 76 pictures: 37 of them are indoor, by the order of their names."""
    assert len(DPDD_INDOOR) == 37
    dpdd(DPDD_TEST)
    text = run("--dataset", "dpdd", "--root", "DPDD", "--tile", 8, "--csv", "rows.csv").stdout
    for words in ("| indoor (37) | input |", "| outdoor (39) | network |", "| all (76) | network |"):
        assert words in text
    assert text.index("| indoor") < text.index("| outdoor") < text.index("| all")  # as papers have them
    indoor = [float(row["psnr"]) for row in rows() if row["method"] == "network" and row["group"] == "indoor"]
    assert f"| indoor (37) | network | {sum(indoor) / 37:.2f} |" in text
    assert {int(row["picture"][4:]) for row in rows() if row["group"] == "indoor"} == DPDD_INDOOR
    assert "arXiv 2401.05907" in text
    # Of one view a network sees the centre picture, in tiles that are averaged uniformly.
    place = "DPDD/test_c/{}/1P0A0000.png"
    blurred, truth = (read_image(place.format(kind)).pixels for kind in ("source", "target"))
    restored = Deblurrer(load_checkpoint(weights), tile=8, blend="uniform").restore_array(blurred)
    assert float(rows()[1]["psnr"]) == pytest.approx(metrics.psnr(restored / 65535, truth / 65535), abs=1e-4)


def test_dpdd_in_part(run, dual_weights):
    dpdd(2)
    result = run("--dataset", "dpdd", "--root", "DPDD", "--weights", dual_weights, "--csv", "rows.csv")
    assert "2 pictures, not all 76: no rows for indoor and outdoor" in result.stderr
    assert "indoor (" not in result.stdout
    left, right = (read_image(f"DPDD/test_{view}/source/1P0A0000.png").pixels for view in "lr")
    truth = read_image("DPDD/test_c/target/1P0A0000.png").pixels
    restored = Deblurrer(load_checkpoint(dual_weights), tile=32).restore_array(left, right)
    assert float(rows()[1]["psnr"]) == pytest.approx(metrics.psnr(restored / 65535, truth / 65535), abs=1e-4)
    centre = read_image("DPDD/test_c/source/1P0A0000.png").pixels
    assert float(rows()[0]["psnr"]) == pytest.approx(metrics.psnr(centre / 65535, truth / 65535), abs=1e-4)


def test_rooms_that_the_dataset_names_stay():
    pairs = [PairFiles(str(i), Path("a"), Path("b"), group="indoor" if i == 5 else "") for i in range(DPDD_TEST)]
    assert with_rooms(pairs) == pairs
    assert with_rooms(pairs[:5]) == pairs[:5]


@pytest.mark.parametrize(
    ("dataset", "files", "words"),
    [
        ("realdof", ("source/1.png", "target/1.png"), "| all (1) |"),
        ("gopro", ("test/A/blur/1.png", "test/A/sharp/1.png", "test/B/blur/1.png", "test/B/sharp/1.png"), "| B (1) |"),
        ("hide", ("test/test-close-ups/1.png", "GT/1.png", "test/test-long-shot/2.png", "GT/2.png"), "close-ups (1) |"),
        ("realblur", ("test/input/1.png", "test/target/1.png"), "| all (1) |"),
        ("folders", ("blurred/1.png", "sharp/1.jpg"), "| all (1) |"),
    ],
)
def test_layouts(run, dataset, files, words):
    for number, name in enumerate(files):
        picture(f"root/{name}", number)
    text = run("--dataset", dataset, "--root", "root").stdout
    assert words in text
    assert ("| published |" in text) == (dataset in PUBLISHED)
    assert "does not hold the layout reds" in run("--dataset", "reds", "--root", "root", code=1).stderr


def test_published_figures_name_their_sources():
    for dataset, figures in PUBLISHED.items():
        lines = published_table(dataset).splitlines()
        for number, figure in enumerate(figures):
            cells = [cell.strip() for cell in lines[2 + number].strip("|").split("|")]
            assert cells[0] == figure.method
            assert cells[-1] == figure.source
            assert f"{figure.psnr:.2f}" in cells
            assert math.isfinite(figure.psnr)
    assert published_table("realdof") == ""


def test_the_perceptual_distance_is_shown_where_it_is_at_hand(run, monkeypatch):
    shapes = []

    def distance(restored, truth):
        shapes.append(truth.shape)
        return 0.25

    monkeypatch.setattr(lpips, "perceptual_distance", lambda: distance)
    text = run(*own_pairs(1), "--csv", "rows.csv").stdout
    assert "| all (1) | network |" in text
    assert text.rstrip().endswith("| 0.250 |")
    assert rows()[0]["lpips"] == "0.25000"
    assert shapes == [(SIDE, SIDE, 3)] * 2


def test_the_perceptual_distance_of_gray_and_of_small_pictures(monkeypatch):
    monkeypatch.setattr(lpips, "lpips_available", lambda: False)
    assert lpips.perceptual_distance() is None
    monkeypatch.setattr(lpips, "lpips_available", lambda: True)
    monkeypatch.setattr(lpips, "lpips", lambda restored, truth: float(restored.shape == truth.shape == (30, 40, 3)))
    distance = lpips.perceptual_distance()
    assert distance is not None
    gray, small = np.zeros((30, 40, 1), np.float32), np.zeros((20, 40, 3), np.float32)
    assert distance(gray, gray) == 1.0
    assert distance(small, small) is None


def test_hidden_files_are_no_pictures(run):
    """Other systems leave `._name.png` beside a picture, which is none."""
    picture("sharp/0.png", 0)
    Path("sharp/._0.png").write_bytes(b"no picture")
    assert "| 0.png |" in run("--sharp", "sharp").stdout
