"""Formats that are only read, where the installed libvips can; and kinds of pictures that decoders call damaged."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import pyvips
import tifffile
from cli_files import files, photo
from PIL import Image as Pillow

from swintormer.errors import SwintormerError
from swintormer.images import formats, reading
from swintormer.images.formats import reads
from swintormer.images.picture import wrap
from swintormer.images.reading import read_image
from swintormer.images.writing import check_target, write_image

MAKE, ORIENTATION = 0x010F, 0x0112
needs_heif = pytest.mark.skipif(not reads(Path("a.avif")), reason="the installed libvips reads no AVIF")


def pixels(side: tuple[int, int] = (32, 48)) -> np.ndarray:
    y, x = np.mgrid[: side[0], : side[1]]
    return np.stack([4 * x, 7 * y, 2 * (x + y)], axis=-1).astype(np.uint8)


def avif(path: Path, array: np.ndarray, **options: object) -> Path:
    content = wrap(array).write_to_buffer(".avif", lossless=True, compression="av1", **options)
    path.write_bytes(content)
    return path


@needs_heif
@pytest.mark.parametrize("target", [".png", ".tif", ".jpg", ".webp"])
def test_avif_is_read_and_stands_upright(tmp_path, target):
    tags = Pillow.Exif()
    tags[MAKE], tags[ORIENTATION] = "Nikon", 6
    Pillow.fromarray(pixels()).save(tmp_path / "in.avif", exif=tags, quality=100)
    source = read_image(tmp_path / "in.avif")
    assert source.samples.shape == (48, 32, 3), "libvips turns it as the file says"
    assert check_target(source, tmp_path / f"out{target}") == []
    write_image(tmp_path / f"out{target}", source.pixels, source)
    with Pillow.open(tmp_path / f"out{target}") as image:
        assert image.size == (32, 48)
        assert image.getexif().get(ORIENTATION, 1) == 1
        assert image.getexif()[MAKE] == "Nikon"


@needs_heif
@pytest.mark.parametrize("bits", [10, 12])
def test_white_of_ten_and_twelve_bits_is_white(tmp_path, bits):
    array = np.zeros((32, 32, 3), np.uint16)
    array[:, 16:] = 65535
    samples = read_image(avif(tmp_path / "in.avif", array, bitdepth=bits)).samples
    assert samples.dtype == np.uint16
    assert (samples.min(), samples.max()) == (0, 65535)


@needs_heif
def test_avif_becomes_jpeg(run):
    avif(Path("a.avif"), pixels())
    avif(Path("b.HEIC"), pixels())  # told by its content, not by its name
    run("deblur", ".", "-o", "out")
    assert files("out") == {"a.jpg", "b.jpg"}
    run("deblur", "a.avif", "-o", "other", "--format", "png")
    assert files("other") == {"a.png"}
    assert "must end in one of .png" in run("deblur", "a.avif", "-o", "out.avif", code=1).output


@needs_heif
def test_avif_through_the_streams_becomes_jpeg(run):
    content = avif(Path("a.avif"), pixels()).read_bytes()
    result = run("deblur", "-", "-o", "-", data=content)
    assert result.stdout_bytes[:3] == b"\xff\xd8\xff"
    assert run("deblur", "a.avif", "-o", "-").stdout_bytes == result.stdout_bytes


@needs_heif
def test_a_damaged_avif_is_named_with_its_format(tmp_path):
    whole = avif(tmp_path / "a.avif", pixels()).read_bytes()
    (tmp_path / "a.avif").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SwintormerError, match=r"a\.avif is damaged or a kind of AVIF that .*: convert it to PNG"):
        read_image(tmp_path / "a.avif")


@pytest.fixture
def without_loaders(monkeypatch):
    """As with a libvips that reads none of these formats."""
    for module in (formats, reading):
        monkeypatch.setattr(module, "has_loader", lambda form: False)


@pytest.mark.parametrize(
    ("name", "start", "words"),
    [
        ("a.heic", b"\0\0\0\x18ftypheic", r"HEIC, which needs a package \(pip install pillow-heif\)"),
        ("a.avif", b"\0\0\0\x18ftypavif", "AVIF, which needs a libvips with heifload_source"),
        ("a.jxl", b"\xff\x0a", r"JPEG XL, which needs a package \(pip install pillow-jxl-plugin\)"),
        ("a.jxl", b"\0\0\0\x0cJXL \r\n\x87\n", r"JPEG XL, which needs a package \(pip install pillow-jxl-plugin\)"),
        ("a.bmp", b"BM", r"BMP, which needs a package \(pip install pillow\)"),
    ],
)
def test_what_is_missing_is_named(tmp_path, monkeypatch, without_loaders, name, start, words):
    for module in ("pillow_heif", "pillow_jxl", "PIL"):
        monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / name).write_bytes(start + bytes(100))
    with pytest.raises(
        SwintormerError, match=words + ": install it, or convert the picture to PNG, TIFF, JPEG or WebP"
    ):
        read_image(tmp_path / name)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1"])
def test_bmp_through_pillow(tmp_path, without_loaders, mode):
    picture = Pillow.fromarray(pixels()).convert(mode)
    picture.save(tmp_path / "in.bmp", dpi=(300, 300))
    source = read_image(tmp_path / "in.bmp")
    expected = picture.convert({"P": "RGB", "1": "L"}.get(mode, mode))
    np.testing.assert_array_equal(source.pixels, np.array(expected).reshape(source.pixels.shape))
    assert bool(source.notes) == (mode in "P1")
    write_image(tmp_path / "out.png", source.pixels, source)
    assert Pillow.open(tmp_path / "out.png").info["dpi"] == pytest.approx((300, 300), abs=0.1)


@pytest.mark.parametrize(("form", "plugin"), [("heic", "pillow_heif"), ("jxl", "pillow_jxl")])
def test_heic_and_jpeg_xl_through_pillow(tmp_path, without_loaders, form, plugin):
    module = pytest.importorskip(plugin)
    if form == "heic":
        module.register_heif_opener()
    exif, make = Pillow.Exif(), 0x010F
    exif[make] = "Telephone"
    path = tmp_path / f"in.{form}"
    Pillow.fromarray(pixels()).resize((320, 240)).save(path, exif=exif.tobytes(), quality=95)
    source = read_image(path)
    assert (formats.detect_format(path), source.samples.shape) == (form, (240, 320, 3))
    write_image(tmp_path / "out.jpg", source.pixels, source)
    assert Pillow.open(tmp_path / "out.jpg").getexif()[make] == "Telephone"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(SwintormerError, match="damaged, cut short"):
        read_image(path)


def test_damaged_and_enormous_bmp(tmp_path, without_loaders):
    path = tmp_path / "x.bmp"
    Pillow.fromarray(pixels()).save(path)
    content = path.read_bytes()
    for length in (20, 60, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(SwintormerError, match="damaged, cut short"):
            read_image(path)
    path.write_bytes(content[:18] + struct.pack("<ii", 60000, 60000) + content[26:])
    with pytest.raises(SwintormerError, match="60000x60000 = 3,600,000,000 pixels"):
        read_image(path)


@pytest.mark.parametrize("suffix", [".jpe", ".jfif", ".JPE"])
def test_other_endings_of_jpeg(run, suffix):
    photo("a.jpg")
    run("deblur", "a.jpg", "-o", f"sharp{suffix}")
    run("deblur", f"sharp{suffix}", "-o", "again")
    assert Pillow.open(f"again/sharp{suffix}").format == "JPEG"
    run("deblur", ".", "-o", "all")
    assert files("all") == {"a.jpg", f"sharp{suffix}"}


def tiff_of(bits: int, colours: int = 1) -> bytes:
    """One channel of 48x32, uncompressed, all zero."""
    data = bytes(48 * 32 * bits // 8)
    shorts = {256: 48, 257: 32, 258: bits, 259: 1, 262: colours, 273: 8, 277: 1, 278: 32}
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in shorts.items())
    entries += struct.pack("<HHII", 279, 4, 1, len(data))
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", 9) + entries + bytes(4)


def _kinds(folder: Path) -> dict[str, str]:
    """Pictures of kinds that are not read, and what they are called."""
    lab = pyvips.Image.new_from_array(pixels()).copy(interpretation="srgb").colourspace("lab")
    lab.write_to_file(str(folder / "lab.tif"))
    lab.colourspace("labs").write_to_file(str(folder / "labs.tif"))
    tifffile.imwrite(folder / "lab8.tif", pixels(), photometric="cielab")
    tifffile.imwrite(folder / "lab16.tif", pixels().astype(np.uint16), photometric="cielab", byteorder=">")
    tifffile.imwrite(folder / "icclab.tif", pixels(), photometric=9)
    for bits in (10, 12, 14, 24):
        (folder / f"{bits}.tif").write_bytes(tiff_of(bits))
    (folder / "sensor.tif").write_bytes(tiff_of(16, 32803))
    planes = {"photometric": "minisblack", "planarconfig": "contig", "extrasamples": [0, 0, 0]}
    tifffile.imwrite(folder / "planes.tif", np.zeros((8, 8, 4), np.uint8), **planes)
    for name, subsampling in (("ycc11.tif", (1, 1)), ("ycc22.tif", (2, 2))):
        ycc = struct.pack("<HHIHH", 530, 3, 2, *subsampling)  # colours of full and of half resolution
        content = tiff_of(24, 6)
        count = content.index(struct.pack("<H", 9) + struct.pack("<HHI", 256, 3, 1))
        patched = content[:count] + struct.pack("<H", 10) + content[count + 2 : -4] + ycc + content[-4:]
        bits = struct.pack("<HHIHH", 258, 3, 1, 24, 0)
        (folder / name).write_bytes(patched.replace(bits, struct.pack("<HHIHH", 258, 3, 1, 8, 0)))
    jpeg = bytearray(wrap(pixels()).write_to_buffer(".jpg"))
    jpeg[jpeg.index(b"\xff\xc0") + 4] = 12
    (folder / "12.jpg").write_bytes(jpeg)
    return {
        **dict.fromkeys(("lab.tif", "labs.tif", "lab8.tif", "lab16.tif", "icclab.tif"), "Lab colours"),
        **{f"{bits}.tif": f"{bits} bits per sample" for bits in (10, 12, 14, 24)},
        "planes.tif": "4 channels where gray has one or two",
        **dict.fromkeys(("ycc11.tif", "ycc22.tif"), "YCbCr colours"),
        "sensor.tif": "the raw data of a sensor",
        "12.jpg": "12 bits per sample",
    }


@pytest.mark.parametrize("kind", ["sub-directory", "DNG"])
def test_a_raw_file_is_not_taken_for_the_small_copy_that_it_begins_with(tmp_path, kind):
    """As cameras write it: the first directory is a small RGB picture, the sensor's data are in one below."""
    path, version = tmp_path / "raw.nef", [(0xC612, "B", 4, (1, 4, 0, 0), True)]
    with tifffile.TiffWriter(path) as file:
        tags = version if kind == "DNG" else []
        file.write(pixels((8, 12)), photometric="rgb", subfiletype=1, subifds=int(kind != "DNG"), extratags=tags)
        if kind != "DNG":
            file.write(pixels()[..., 0], photometric="cfa", extratags=[])
    with pytest.raises(SwintormerError, match="has the raw data of a sensor: convert it to RGB or gray"):
        read_image(path)


def test_a_smaller_copy_in_a_directory_below_is_no_harm(tmp_path):
    with tifffile.TiffWriter(tmp_path / "x.tif") as file:
        file.write(pixels(), photometric="rgb", subifds=1)
        file.write(pixels()[::2, ::2], photometric="rgb", subfiletype=1)
    np.testing.assert_array_equal(read_image(tmp_path / "x.tif").samples, pixels())


@needs_heif
def test_a_gain_map_is_announced(tmp_path):
    """Stands for a telephone's file: the name of the map is in a box that decoders pass over."""
    content = avif(tmp_path / "in.avif", pixels()).read_bytes()
    assert read_image(tmp_path / "in.avif").notes == ()
    name = b"urn:com:apple:photo:2020:aux:hdrgainmap"
    (tmp_path / "in.avif").write_bytes(content + struct.pack(">I", 8 + len(name)) + b"free" + name)
    (note,) = read_image(tmp_path / "in.avif").notes
    assert note.endswith("holds a gain map for bright screens: only the picture itself is written.")


@needs_heif
def test_a_sequence_of_avif_is_refused(tmp_path):
    frames = [Pillow.fromarray(pixels()), Pillow.fromarray(pixels()[::-1].copy())]
    frames[0].save(tmp_path / "in.avif", save_all=True, append_images=frames[1:])
    with pytest.raises(SwintormerError, match=r"in\.avif (holds 2 pages|is damaged or a kind of AVIF that)"):
        read_image(tmp_path / "in.avif")


def test_tiff_in_jpeg_is_read_as_rgb(tmp_path):
    """Its colours are stored as YCbCr, too, and libvips converts them."""
    path = tmp_path / "x.tif"
    wrap(pixels()).write_to_file(str(path), compression="jpeg", Q=75)
    with tifffile.TiffFile(path) as file:
        assert file.pages[0].photometric.name == "YCBCR"
    stored = np.asarray(Pillow.fromarray(pixels()).convert("YCbCr"))
    to_rgb, to_stored = (np.abs(read_image(path).samples.astype(int) - other).mean() for other in (pixels(), stored))
    assert to_rgb < to_stored


def test_a_whole_file_of_a_rare_kind_is_not_called_damaged(tmp_path):
    for name, words in _kinds(tmp_path).items():
        with pytest.raises(SwintormerError) as caught:
            read_image(tmp_path / name)
        expected = f"{tmp_path / name} has {words}: convert it to RGB or gray of 8 or 16 bits first."
        assert str(caught.value) == expected
