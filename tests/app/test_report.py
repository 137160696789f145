"""The picture of before and after: whole, upright, in the source's colours."""

from __future__ import annotations

import numpy as np
import pytest
import pyvips
from PIL import Image as Pillow
from PIL import ImageCms

from swintormer.images import compare as report
from swintormer.images.compare import CAPTION, busiest_part, change, write_comparison
from swintormer.images.page import Page
from swintormer.images.picture import wrap
from swintormer.images.reading import read_image

ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GRAY_ICC = ICC[:16] + b"GRAY" + ICC[20:]  # libvips drops profiles of the wrong colours


def turned(path, channels):
    """A 16-bit file that viewers turn by 90 degrees clockwise."""
    samples = np.random.default_rng(0).integers(0, 65536, (20, 30, channels), dtype=np.uint16)
    image = wrap(samples).copy()
    image.set_type(pyvips.GValue.blob_type, "icc-profile-data", ICC if channels > 2 else GRAY_ICC)
    image.set_type(pyvips.GValue.gint_type, "orientation", 6)
    image.write_to_file(str(path))
    return samples


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_both_halves_upright_in_eight_bits_with_the_profile(tmp_path, channels):
    samples = turned(tmp_path / "in.png", channels)
    before = read_image(tmp_path / "in.png")
    after = np.ascontiguousarray(before.pixels[:, ::-1])
    write_comparison(tmp_path / "out.png", before, after)
    with Pillow.open(tmp_path / "out.png") as picture:
        assert picture.info["icc_profile"] == (ICC if channels > 2 else GRAY_ICC)
        assert picture.getexif().get(0x0112, 1) == 1
        shown = np.asarray(picture).reshape(CAPTION + 30, 20 + 6 + 20, -1)[CAPTION:]
    colours = np.round(samples[..., : after.shape[2]] / 257).astype(np.uint8)
    np.testing.assert_array_equal(shown[:, :20], np.rot90(colours, -1))
    np.testing.assert_array_equal(shown[:, -20:], np.rot90(colours[:, ::-1], -1))
    assert (shown[:, 20:26] == 255).all()


def test_the_region_that_changed_most(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "PANEL", 64)
    flat = np.full((256, 256, 3), 100, np.uint8)
    wrap(flat).write_to_file(str(tmp_path / "in.png"))
    after = flat.copy()
    after[100:110, 200:210] = 180
    write_comparison(tmp_path / "out.png", read_image(tmp_path / "in.png"), after)
    shown = read_image(tmp_path / "out.png").pixels
    assert shown.shape == (CAPTION + 64 + 6 + CAPTION + 64, 64 + 6 + 64, 3)
    assert (shown[-64:, 70:] == 180).sum() == 3 * 100, "all of it, pixel by pixel"
    for rows in (slice(0, CAPTION), slice(CAPTION + 64 + 6, -64)):
        assert (shown[rows, :64] < 128).any(), "letters"
        assert (shown[rows, :64] == 255).any()


@pytest.mark.parametrize("bits", [8, 16])
def test_the_busiest_part(tmp_path, bits):
    full = 2**bits - 1
    pixels = np.full((256, 300, 4), full // 2, np.uint8 if bits == 8 else np.uint16)
    pixels[..., 3] = np.arange(300)[None] % 2 * full  # edges of transparency do not count
    pixels[180:212:2, 220:252, :3] = full
    wrap(pixels).write_to_file(str(tmp_path / "in.png"))
    part, (rows, columns) = busiest_part(read_image(tmp_path / "in.png"), 64)
    assert (rows.stop - rows.start, columns.stop - columns.start) == (64, 64)
    np.testing.assert_array_equal(part.samples, pixels[rows, columns])
    assert (part.pixels == full).sum() == 3 * 16 * 32
    small, _ = busiest_part(read_image(tmp_path / "in.png"), 1000)
    np.testing.assert_array_equal(small.samples, pixels)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_change_is_that_of_the_part_that_changed_most(monkeypatch, dtype):
    monkeypatch.setattr(report, "PART", 40)
    before = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (150, 40, 3), dtype)
    after = before.copy()
    after[10] //= 4
    after[80:100] //= 2
    parts = (slice(0, 37), slice(37, 75), slice(75, 112), slice(112, 150))
    difference = np.square((after.astype(float) - before) / np.iinfo(dtype).max)
    expected = -10 * np.log10(max(difference[rows].mean() for rows in parts))
    # Squares of float32, summed in float64.
    assert change(before, after) == pytest.approx(expected, abs=10 / np.log(10) * 4 * np.finfo(np.float32).eps)
    assert change(before.transpose(1, 0, 2), after.transpose(1, 0, 2)) == pytest.approx(change(before, after))
    assert change(before, before) == np.inf


@pytest.mark.parametrize("shape", [(1, 1, 3), (5, 7, 1), (1, 40, 3), (3000, 1, 3), (1, 3000, 1)])
def test_pictures_of_very_few_rows_or_columns_are_compared(tmp_path, shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    wrap(pixels).write_to_file(str(tmp_path / "in.png"))
    image = read_image(tmp_path / "in.png")
    write_comparison(tmp_path / "out.png", image, pixels)
    part, _ = busiest_part(image, 512)
    assert part.pixels.shape == tuple(min(side, 512) for side in shape[:2]) + shape[2:]
    with Page(tmp_path / "page.html") as page:
        page.add("in.png", "", image, pixels)


def test_a_page_names_its_pictures_without_control_characters(tmp_path):
    pixels = np.zeros((8, 8, 3), np.uint8)
    wrap(pixels).write_to_file(str(tmp_path / "in.png"))
    with Page(tmp_path / "page.html") as page:
        page.add('a\x1b[31m"<.png', "b\x07", read_image(tmp_path / "in.png"), pixels)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    name = "a\\x1b[31m&quot;&lt;.png"
    assert f"<h2>{name}</h2>" in text
    assert f'alt="{name} before"' in text
    assert f'aria-label="{name}, at 1:1: percent shown as it was before"' in text
    assert not any(ord(c) < 32 and c != "\n" for c in text)
