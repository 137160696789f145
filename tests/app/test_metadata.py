"""Metadata across every pair of formats: kept, or named. Pillow writes and reads them, libvips and this package do not.

EXIF in detail, and the orientation: test_images.py.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow
from PIL import ImageCms, IptcImagePlugin, JpegImagePlugin
from PIL.PngImagePlugin import PngInfo

from swintormer.images.metadata import NOTHING, read_extra
from swintormer.images.reading import read_image
from swintormer.images.tiff_exif import append_exif
from swintormer.images.writing import check_target, write_image

SUFFIXES = [".png", ".tif", ".jpg", ".webp"]
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>five stars</x:xmpmeta>"
IPTC_TAG, RESOURCES_TAG, XMP_TAG, MAKE, MAKER_NOTE, EXIF_IFD = 33723, 34377, 700, 0x010F, 0x927C, 0x8769
CAPTION, PHOTOGRAPHER = (2, 120), (2, 80)
IPTC = b"".join(
    struct.pack(">BBBH", 0x1C, *name, len(value)) + value
    for name, value in {CAPTION: "A café".encode(), PHOTOGRAPHER: b"Anna"}.items()
)
THUMBNAIL, COPYRIGHTED = 0x040C, 0x040A


def resource(number: int, content: bytes) -> bytes:
    return b"8BIM" + struct.pack(">HHI", number, 0, len(content)) + content + b"\0" * (len(content) % 2)


RESOURCES = resource(COPYRIGHTED, b"\1") + resource(0x0404, IPTC) + resource(THUMBNAIL, b"the blurred picture")


def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def exif() -> Pillow.Exif:
    block = Pillow.Exif()
    block[MAKE] = "Nikon"
    return block


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def insert(path: Path, at: int, data: bytes) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[:at] + data + content[at:])
    return path


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def raw_profile(kind: str, content: bytes) -> str:
    """As ImageMagick writes it."""
    return f"\n{kind}\n{len(content):8d}\n{content.hex()}\n"


def with_everything(path: Path) -> Path:
    """A picture with every kind of metadata that its format holds."""
    image, common = Pillow.fromarray(pixels()), {"icc_profile": ICC, "dpi": (300, 300)}
    if path.suffix == ".tif":
        image.save(path, tiffinfo={XMP_TAG: XMP, IPTC_TAG: IPTC, RESOURCES_TAG: RESOURCES}, **common)
        with path.open("r+b") as file:
            append_exif(file, exif().tobytes())
    elif path.suffix == ".png":
        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", XMP.decode())
        info.add_text("Raw profile type iptc", raw_profile("iptc", RESOURCES), zip=True)
        info.add_text("Title", "Été")
        info.add_itxt("Comment", "日本 ü", "ja", "コメント")
        image.save(path, exif=exif(), pnginfo=info, **common)
    elif path.suffix == ".jpg":
        image.save(path, exif=exif(), xmp=XMP, comment="日本 ü".encode(), **common)
        insert(path, 2, segment(0xED, b"Photoshop 3.0\0" + RESOURCES))
    else:
        block = exif()
        block[0x011A], block[0x011B], block[0x0128] = 300.0, 300.0, 2
        image.save(path, exif=block, xmp=XMP, icc_profile=ICC)
    return path


def iptc_in(image: Pillow.Image) -> dict:
    """As Pillow reads it; of PNG it reads only the text."""
    if image.format != "PNG":
        return IptcImagePlugin.getiptcinfo(image) or {}
    kind, size, *digits = image.text["Raw profile type iptc"].split()
    content = bytes.fromhex("".join(digits))
    assert (kind, int(size)) == ("iptc", len(content))
    start = content.index(b"8BIM\x04\x04") + 12
    length = int.from_bytes(content[start - 4 : start], "big")
    stand_in = Pillow.new("L", (1, 1))
    stand_in.info["photoshop"] = {0x0404: content[start : start + length]}
    stand_in.__class__ = JpegImagePlugin.JpegImageFile
    return IptcImagePlugin.getiptcinfo(stand_in) or {}


@pytest.mark.parametrize("target", SUFFIXES)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_pair_of_formats_keeps_or_names_what_a_file_holds(tmp_path, suffix, target):
    source = read_image(with_everything(tmp_path / f"in{suffix}"))
    out = tmp_path / f"out{target}"
    notes = " ".join(check_target(source, out))
    write_image(out, source.pixels, source)
    again = read_image(out)
    assert abs(again.header.xres * 25.4 - 300) < 0.01
    with Pillow.open(out) as image:
        image.load()
        assert image.getexif()[MAKE] == "Nikon"
        assert image.info["icc_profile"] == ICC
        packets = image.getexif().get(XMP_TAG), image.info.get("XML:com.adobe.xmp"), image.info.get("xmp")
        assert any("five stars" in str(packet) for packet in packets)
        if suffix != ".webp":
            kept = iptc_in(image).get(CAPTION) == "A café".encode() and iptc_in(image).get(PHOTOGRAPHER) == b"Anna"
            assert kept == (target != ".webp")
            assert kept != ("the IPTC data" in notes)
            assert (resource(COPYRIGHTED, b"\1") == again.extra.resources) != ("the data of Photoshop" in notes)
            assert b"the blurred picture" not in out.read_bytes()
        comment = image.info.get("comment", b"").decode() or getattr(image, "text", {}).get("Comment", "")
        assert (comment == "日本 ü") == (target in (".png", ".jpg") and suffix in (".png", ".jpg"))
        assert ("Comment" in notes) == (target not in (".png", ".jpg") and suffix in (".png", ".jpg"))
        if suffix == ".png":
            assert (getattr(image, "text", {}).get("Title") == "Été") == (target == ".png") != ("Title" in notes)
    if suffix == target:
        assert notes == ""
        assert again.extra == source.extra


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("swapped", [False, True])
def test_iptc_as_numbers_of_four_bytes_in_tiff_is_whole(tmp_path, order, swapped):
    """The type that libtiff gives it; writers differ in whether they turn the bytes round."""
    import tifffile

    padded = IPTC + b"\0" * (-len(IPTC) % 4)
    numbers = np.frombuffer(padded, "<u4" if (order == "<") != swapped else ">u4")
    tags = [(IPTC_TAG, "I", len(numbers), tuple(int(number) for number in numbers), True)]
    tifffile.imwrite(tmp_path / "in.tif", pixels(), byteorder=order, extratags=tags, metadata=None)
    source = read_image(tmp_path / "in.tif")
    assert source.extra.iptc == IPTC
    write_image(tmp_path / "out.tif", source.pixels, source)
    with Pillow.open(tmp_path / "out.tif") as image:
        assert iptc_in(image)[PHOTOGRAPHER] == b"Anna"


def test_comments_of_jpeg_without_an_encoding(tmp_path):
    """Latin-1 and zeros, which a text of PNG must not hold."""
    Pillow.fromarray(pixels()).save(tmp_path / "in.jpg", comment=b"caf\xe9\0x\0")
    source = read_image(tmp_path / "in.jpg")
    write_image(tmp_path / "out.png", source.pixels, source)
    write_image(tmp_path / "out.jpg", source.pixels, source)
    assert Pillow.open(tmp_path / "out.png").text == {"Comment": "caféx"}
    assert Pillow.open(tmp_path / "out.jpg").info["comment"].decode() == "caféx"


def test_iptc_longer_than_a_segment_of_jpeg(tmp_path):
    long = b"\x1c\x02\x78\x7f\xff" + b"c" * 0x7FFF
    Pillow.fromarray(pixels()).save(tmp_path / "in.tif", tiffinfo={IPTC_TAG: long * 3})
    source = read_image(tmp_path / "in.tif")
    write_image(tmp_path / "out.jpg", source.pixels, source)
    assert read_image(tmp_path / "out.jpg").extra.iptc == long * 3
    assert check_target(source, tmp_path / "out.jpg") == []


def test_what_is_too_long_for_jpeg_is_named(tmp_path):
    info, block = PngInfo(), exif()
    info.add_itxt("XML:com.adobe.xmp", "<x>" + "a" * 70_000 + "</x>")
    info.add_text("Comment", "b" * 70_000)
    block.get_ifd(EXIF_IFD)[MAKER_NOTE] = b"m" * 70_000
    Pillow.fromarray(pixels()).save(tmp_path / "in.png", exif=block, pnginfo=info)
    source = read_image(tmp_path / "in.png")
    (note,) = check_target(source, tmp_path / "out.jpg")
    assert "EXIF data beyond 64 KB" in note
    assert "XMP data, which exceed 64 KB" in note
    assert "Comment" in note
    write_image(tmp_path / "out.jpg", source.pixels, source)
    assert Pillow.open(tmp_path / "out.jpg").getexif()[MAKE] == "Nikon"

    (note,) = check_target(source, tmp_path / "out.tif")
    assert "64 KB" not in note
    write_image(tmp_path / "out.tif", source.pixels, source)
    assert len(Pillow.open(tmp_path / "out.tif").getexif().get_ifd(EXIF_IFD)[MAKER_NOTE]) == 70_000


def test_further_parts_of_xmp_in_jpeg_are_named(tmp_path):
    Pillow.fromarray(pixels()).save(tmp_path / "in.jpg", xmp=XMP)
    insert(tmp_path / "in.jpg", 2, segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + b"0" * 40 + b"<x/>"))
    source = read_image(tmp_path / "in.jpg")
    for suffix in SUFFIXES:
        assert "XMP data beyond 64 KB" in check_target(source, tmp_path / f"out{suffix}")[0]


def test_exif_of_older_png_files(tmp_path):
    info = PngInfo()
    info.add_text("Raw profile type exif", raw_profile("exif", exif().tobytes()), zip=True)
    Pillow.fromarray(pixels()).save(tmp_path / "in.png", pnginfo=info)
    source = read_image(tmp_path / "in.png")
    for suffix in SUFFIXES:
        write_image(tmp_path / f"out{suffix}", source.pixels, source)
        assert Pillow.open(tmp_path / f"out{suffix}").getexif()[MAKE] == "Nikon"


def test_the_gamma_of_a_png_goes_along_or_is_named(tmp_path):
    linear = chunk(b"gAMA", struct.pack(">I", 100_000))
    Pillow.fromarray(pixels()).save(tmp_path / "in.png")
    source = read_image(insert(tmp_path / "in.png", 33, linear))
    write_image(tmp_path / "out.png", source.pixels, source)
    assert Pillow.open(tmp_path / "out.png").info["gamma"] == 1
    assert "colour space" in check_target(source, tmp_path / "out.jpg")[0]

    Pillow.fromarray(pixels()).save(tmp_path / "in.png")
    source = read_image(insert(tmp_path / "in.png", 33, chunk(b"gAMA", struct.pack(">I", 45455))))
    assert check_target(source, tmp_path / "out.jpg") == []


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
def test_damaged_metadata_does_no_harm(tmp_path, suffix):
    """Any of 300 bytes changed, at any place before the samples: the file is read with what is left, or refused."""
    whole = with_everything(tmp_path / f"whole{suffix}").read_bytes()
    rng, path = np.random.default_rng(1), tmp_path / f"in{suffix}"
    form = {".png": "png", ".tif": "tiff", ".jpg": "jpeg"}[suffix]
    for at in rng.integers(8, len(whole), 300):
        content = bytearray(whole)
        content[at] = rng.integers(256)
        path.write_bytes(content)
        read_extra(path, form)
    assert read_extra(tmp_path / "missing.png", form) == NOTHING


def test_a_bomb_of_text_is_not_unpacked(tmp_path):
    Pillow.fromarray(pixels()).save(tmp_path / "in.png")
    bomb = chunk(b"zTXt", b"Title\0\0" + zlib.compress(bytes(2**27)))
    insert(tmp_path / "in.png", 33, bomb)
    ((_, text),) = read_extra(tmp_path / "in.png", "png").texts
    assert len(text) <= 2**26


def test_a_large_file_is_moved_in_blocks(tmp_path, monkeypatch):
    from swintormer.images import metadata

    monkeypatch.setattr(metadata, "_BLOCK", 100)
    source = read_image(with_everything(tmp_path / "in.png"))
    write_image(tmp_path / "out.png", source.pixels, source)
    np.testing.assert_array_equal(np.asarray(Pillow.open(tmp_path / "out.png")), pixels())


@pytest.mark.parametrize("source", [".png", ".jpg", ".webp"])
def test_the_mark_of_adobe_rgb_reaches_every_format(tmp_path, source):
    """Cameras that embed no profile say it in a directory inside the EXIF directory."""
    block, mark = exif(), {1: "R03", 2: b"0100"}
    block.get_ifd(EXIF_IFD)[0xA005] = mark
    Pillow.fromarray(pixels()).save(tmp_path / f"in{source}", exif=block)
    image = read_image(tmp_path / f"in{source}")
    write_image(tmp_path / "out.tif", image.pixels, image)
    again = read_image(tmp_path / "out.tif")
    for suffix in SUFFIXES:
        write_image(tmp_path / f"again{suffix}", again.pixels, again)
        with Pillow.open(tmp_path / f"again{suffix}") as picture:
            assert picture.getexif().get_ifd(0xA005) == mark


def test_a_pointer_to_nothing_costs_no_other_metadata(tmp_path):
    """Nor the look at what kind of picture it is."""
    tags, place = [(MAKE, "s", 0, "Nikon", True), (0x8824, "I", 1, 2**32 - 1, True)], tmp_path / "in.tif"
    tifffile.imwrite(place, pixels(), photometric="rgb", extratags=tags)
    of_gps = [struct.pack("<HHI", tag, 4, 1) for tag in (0x8824, 0x8825)]  # which tifffile does not write
    assert place.read_bytes().count(of_gps[0]) == 1
    place.write_bytes(place.read_bytes().replace(*of_gps))
    image = read_image(tmp_path / "in.tif")
    write_image(tmp_path / "out.jpg", image.pixels, image)
    with Pillow.open(tmp_path / "out.jpg") as picture:
        assert picture.getexif()[MAKE] == "Nikon"


def test_names_of_documents_and_pages_are_kept(tmp_path):
    document, page = 0x010D, 0x011D
    Pillow.fromarray(pixels()).save(tmp_path / "in.tif", tiffinfo={document: "Album", page: "Page one"})
    image = read_image(tmp_path / "in.tif")
    for suffix in SUFFIXES:
        write_image(tmp_path / f"out{suffix}", image.pixels, image)
        with Pillow.open(tmp_path / f"out{suffix}") as picture:
            assert picture.getexif()[document] == "Album"
            assert suffix != ".tif" or picture.getexif()[page] == "Page one"
