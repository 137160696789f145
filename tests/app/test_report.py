"""The picture of before and after: whole, upright, in the source's colours."""

from __future__ import annotations

import numpy as np
import pytest
import pyvips
from PIL import Image as Pillow
from PIL import ImageCms

from swintormer.images import compare as report
from swintormer.images.compare import write_comparison
from swintormer.images.io import read_image, wrap

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
        shown = np.asarray(picture).reshape(30, 20 + 6 + 20, -1)
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
    assert shown.shape == (64 + 6 + 64, 64 + 6 + 64, 3)
    assert (shown[70:, 70:] == 180).sum() == 3 * 100, "all of it, pixel by pixel"
