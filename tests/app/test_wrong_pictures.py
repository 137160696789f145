"""No wrong picture in silence: what a decoder gives only in part, takes as one of several, or changes."""

from __future__ import annotations

import io
import os
import socket
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import pyvips
import tifffile
from PIL import Image as Pillow
from PIL import ImageCms

from swintormer.errors import SwintormerError
from swintormer.images import parts
from swintormer.images.picture import wrap
from swintormer.images.reading import read_image, sample_bytes
from swintormer.images.writing import Saving, check_target, write_image

TILES = {"tile": True, "tile_width": 16, "tile_height": 16}


def noise(channels: int = 3, side: int = 96, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, channels), dtype=np.uint8)


def smooth(side: int = 64) -> np.ndarray:
    y, x = np.mgrid[:side, :side]
    return np.stack([128 + 100 * np.sin(x / 9 + c) * np.cos(y / 7) for c in range(3)], -1).astype(np.uint8)


# ---- a decoder that gives up halfway


@pytest.mark.parametrize("compression", ["deflate", "lzw", "packbits", "jpeg", "webp", "none"])
@pytest.mark.parametrize("layout", [TILES, {}], ids=["tiles", "strips"])
def test_a_tiff_whose_samples_are_missing_is_refused(tmp_path, compression, layout):
    """The directory is at the end of libtiff's files: the samples alone are cut, as a copy with holes has it."""
    path = tmp_path / "x.tif"
    wrap(noise()).write_to_file(str(path), compression=compression, **layout)
    with tifffile.TiffFile(path) as file:
        offsets = file.pages[0].tags["TileOffsets" if layout else "StripOffsets"]
    with path.open("r+b") as file:  # the last tile or strip lies beyond the end
        file.seek(offsets.valueoffset + 4 * (offsets.count - 1))
        file.write(struct.pack("<I", path.stat().st_size + 1000))
    with pytest.raises(SwintormerError, match="is damaged, cut short or of a rare kind"):
        read_image(path)


@pytest.mark.parametrize("layout", [TILES, {}], ids=["tiles", "strips"])
def test_a_tiff_with_a_wrong_checksum_is_refused(tmp_path, layout):
    path = tmp_path / "x.tif"
    wrap(noise(side=32)).write_to_file(str(path), compression="deflate", **layout)
    with tifffile.TiffFile(path) as file:
        last = file.pages[0].dataoffsets[-1] + file.pages[0].databytecounts[-1] - 1
    content = bytearray(path.read_bytes())
    content[last] ^= 1
    path.write_bytes(content)
    with pytest.raises(SwintormerError, match=r"wrong checksum|incorrect data check"):
        read_image(path)


def test_a_checksum_that_the_decoder_does_not_reach_is_compared(tmp_path):
    """libtiff stops at the last sample: a damaged stream that still decodes gives other samples in silence."""
    path, array = tmp_path / "x.tif", smooth()
    stream = bytearray(zlib.compress(array.tobytes() + bytes(64)))
    tifffile.imwrite(path, array, photometric="rgb")
    with tifffile.TiffFile(path) as file:
        tags, start = file.pages[0].tags, file.pages[0].dataoffsets[0]
        compression, count = tags["Compression"].valueoffset, tags["StripByteCounts"].valueoffset

    def write(stream: bytes) -> None:
        with path.open("r+b") as file:
            for place, content in (
                (start, stream),
                (compression, struct.pack("<H", 8)),
                (count, struct.pack("<I", len(stream))),
            ):
                file.seek(place)
                file.write(content)

    write(stream)
    assert np.array_equal(read_image(path).samples, array)
    stream[-1] ^= 1
    write(stream)
    with pytest.raises(SwintormerError, match="wrong checksum"):
        read_image(path)


@pytest.mark.parametrize("kind", [34925, 34887, 34712, 50002, 50000])  # LZMA, LERC, JPEG 2000, JPEG XL, zstd
@pytest.mark.parametrize("layout", [TILES, {}], ids=["tiles", "strips"])
def test_a_tiff_in_a_compression_that_is_not_there_is_refused(tmp_path, kind, layout):
    path = tmp_path / "x.tif"
    wrap(noise()).write_to_file(str(path), compression="deflate", **layout)
    with tifffile.TiffFile(path) as file:
        place = file.pages[0].tags[259].valueoffset
    with path.open("r+b") as file:
        file.seek(place)
        file.write(struct.pack("<H", kind))
    with pytest.raises(SwintormerError, match="is damaged, cut short or of a rare kind"):
        read_image(path)


@pytest.mark.parametrize("layout", [{"tile": (16, 16)}, {"rowsperstrip": 16}], ids=["tiles", "strips"])
def test_tags_that_libtiff_warns_of_do_not_make_a_tiff_damaged(tmp_path, layout):
    """Unknown ones, and a resolution of the wrong type; samples that are missing beside them are seen."""
    path, array = tmp_path / "x.tif", noise()
    tags = [(65001, "s", 0, "hello", True), (700, "B", 4, b"abcd", True), (33432, 3, 2, (1, 2), True)]
    tifffile.imwrite(path, array, extratags=tags, photometric="rgb", metadata=None, **layout)
    with tifffile.TiffFile(path) as file:
        found = file.pages[0].tags
        resolution = found["XResolution"].offset
        offsets = found["TileOffsets" if "tile" in layout else "StripOffsets"].valueoffset
    content = bytearray(path.read_bytes())
    content[resolution + 2 : resolution + 8] = struct.pack("<HI", 3, 5)  # five short numbers for one rational
    path.write_bytes(content)
    assert np.array_equal(read_image(path).samples, array)
    content[offsets + 4 : offsets + 8] = struct.pack("<I", len(content) + 1000)
    path.write_bytes(content)
    with pytest.raises(SwintormerError, match="is damaged, cut short or of a rare kind"):
        read_image(path)


def _jpeg(path: Path, **options: object) -> bytearray:
    wrap(smooth()).jpegsave(str(path), **options)
    return bytearray(path.read_bytes())


def _after_scan(content: bytearray) -> int:
    at = content.index(b"\xff\xda")
    return at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")


def _restart(content: bytearray) -> None:
    """Remove what is between two restart markers."""
    start = content.index(b"\xff\xd1")
    del content[start + 2 : content.index(b"\xff\xd2")]


def _marker(content: bytearray) -> None:
    """A marker in the middle of the samples ends them."""
    at = _after_scan(content) + 200
    content[at : at + 2] = b"\xff\xd9"


def _stray(content: bytearray) -> None:
    at = content.index(b"\xff\xdb")
    content[at:at] = bytes(3)


@pytest.mark.parametrize("damage", [_restart, _marker, _stray])
def test_a_damaged_jpeg_is_read_with_a_note(tmp_path, damage):
    path = tmp_path / "x.jpg"
    content = _jpeg(path, Q=90, restart_interval=2)
    assert read_image(path).notes == ()
    damage(content)
    path.write_bytes(content)
    (note,) = read_image(path).notes
    assert "is damaged (" in note
    assert note.endswith("look at its result, parts of it may be wrong.")


# ---- several pictures in one file


def test_animated_png_is_refused(tmp_path):
    frames = [Pillow.fromarray(noise(seed=seed, side=8)) for seed in range(3)]
    frames[0].save(tmp_path / "x.png", save_all=True, append_images=frames[1:])
    with pytest.raises(SwintormerError, match="holds 3 pages or frames: save each as a file of its own first"):
        read_image(tmp_path / "x.png")


def test_png_animation_of_one_frame_is_a_picture(tmp_path):
    frame = noise(side=8)
    wrap(frame).write_to_file(str(tmp_path / "x.png"))
    content = (tmp_path / "x.png").read_bytes()
    chunk = b"acTL" + struct.pack(">II", 1, 0)
    at = 8 + 25
    control = struct.pack(">I", 8) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "x.png").write_bytes(content[:at] + control + content[at:])
    assert np.array_equal(read_image(tmp_path / "x.png").samples, frame)


def test_animated_webp_is_refused(tmp_path):
    frames = [Pillow.fromarray(noise(seed=seed, side=8)) for seed in range(2)]
    frames[0].save(tmp_path / "x.webp", save_all=True, append_images=frames[1:])
    with pytest.raises(SwintormerError, match="holds 2 pages or frames"):
        read_image(tmp_path / "x.webp")


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize(("kinds", "count"), [((0, 1), 1), ((0, 1, 1), 1), ((0, 0), 2), ((0, 1, 0), 2), ((0, 2), 2)])
def test_reduced_copies_in_a_tiff_are_no_further_pictures(tmp_path, kinds, count, big):
    path, array = tmp_path / "x.tif", noise(side=32)
    with tifffile.TiffWriter(path, bigtiff=big) as file:
        for kind in kinds:
            file.write(array if kind == 0 else array[::2, ::2], photometric="rgb", subfiletype=kind, metadata=None)
    if count == 1:
        assert np.array_equal(read_image(path).samples, array)
    else:
        with pytest.raises(SwintormerError, match=f"holds {count} pages or frames"):
            read_image(path)


@pytest.mark.parametrize("tag", [254, 255])
def test_a_tiff_that_begins_with_a_small_copy_is_refused(tmp_path, tag):
    """libvips would take the copy, as would most programs."""
    path = tmp_path / "x.tif"
    with tifffile.TiffWriter(path) as file:
        old = [(255, "H", 1, 2, True)]
        file.write(noise(side=8), photometric="rgb", subfiletype=int(tag == 254), extratags=old if tag == 255 else [])
        file.write(noise(side=32), photometric="rgb")
    if tag == 255:  # the new tag, which is written always, takes precedence
        content = path.read_bytes()
        path.write_bytes(content.replace(struct.pack("<HHII", 254, 4, 1, 0), struct.pack("<HHII", 253, 4, 1, 0), 1))
    with pytest.raises(SwintormerError, match="begins with a small copy of its picture: save the picture alone"):
        read_image(path)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_a_tiff_that_lacks_its_number_of_samples_is_refused(tmp_path, channels):
    """libtiff takes one then: another picture."""
    path = tmp_path / "x.tif"
    wrap(noise(channels, side=16)).write_to_file(str(path))
    with tifffile.TiffFile(path) as file:
        place = file.pages[0].tags["SamplesPerPixel"].valueoffset
    with path.open("r+b") as file:
        file.seek(place)
        file.write(struct.pack("<H", 1))
    with pytest.raises(SwintormerError, match="is damaged, cut short or of a rare kind"):
        read_image(path)


def test_a_single_page_is_a_picture_whatever_it_is_called(tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", noise(side=8), photometric="rgb", subfiletype=1)
    assert np.array_equal(read_image(tmp_path / "x.tif").samples, noise(side=8))


def test_a_tiff_whose_pages_cannot_be_counted_is_refused(tmp_path):
    path = tmp_path / "x.tif"
    tags = [(65001, "s", 0, "a private text", True)]
    tifffile.imwrite(path, noise(side=8), photometric="rgb", extratags=tags)
    with tifffile.TiffFile(path) as file:
        place = file.pages[0].tags[65001].offset + 8
    with path.open("r+b") as file:
        file.seek(place)
        file.write(struct.pack("<I", 10**6))
    with pytest.raises(SwintormerError, match="is damaged, cut short or of a rare kind"):
        read_image(path)


@pytest.mark.parametrize("xmp", [b"<a GCamera:MotionPhoto='1'/>", b"<GCamera:MicroVideo>1</GCamera:MicroVideo>"])
def test_a_video_in_a_jpeg_is_announced(tmp_path, xmp):
    Pillow.fromarray(smooth()).save(tmp_path / "x.jpg", xmp=xmp)
    (note,) = read_image(tmp_path / "x.jpg").notes
    assert note.endswith("holds a short video, too: only the picture is written.")
    Pillow.fromarray(smooth()).save(tmp_path / "x.jpg", xmp=xmp.replace(b"1", b"0"))
    assert read_image(tmp_path / "x.jpg").notes == ()


def test_further_pictures_in_a_jpeg_are_announced(tmp_path):
    views = [Pillow.fromarray(smooth()), Pillow.fromarray(smooth())]
    views[0].save(tmp_path / "x.jpg", format="MPO", save_all=True, append_images=views[1:])
    (note,) = read_image(tmp_path / "x.jpg").notes
    assert note.endswith("holds further pictures, such as a second view or a gain map: only the first is written.")


# ---- what is no regular file


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipes_sockets_and_devices_are_named_and_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    os.mkfifo("pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.jpg")
        os.symlink("/dev/null", "device.jpg")
        for kind in ("pipe", "socket", "device"):
            with pytest.raises(SwintormerError, match=f"{kind}.jpg is a {kind} and not a file: leave it out"):
                read_image(f"{kind}.jpg")
            assert sample_bytes(Path(f"{kind}.jpg")) == 0


# ---- what reading or writing changes


def _profile(kind: str) -> bytes:
    if kind == "damaged":
        return b"no profile at all" * 20
    if kind == "RGB":
        return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    content = bytearray(_profile("RGB"))
    content[16:20] = {"GRAY": b"GRAY", "CMYK": b"CMYK", "Lab": b"Lab "}[kind]
    return bytes(content)


@pytest.mark.parametrize("suffix", [".jpg", ".tif", ".webp"])
@pytest.mark.parametrize("kind", ["RGB", "GRAY", "CMYK", "Lab", "damaged"])
def test_a_profile_for_another_kind_of_picture_is_left_out_with_a_note(tmp_path, kind, suffix):
    path = tmp_path / f"x{suffix}"
    Pillow.fromarray(smooth()).save(path, icc_profile=_profile(kind))
    image = read_image(path)
    if kind == "RGB":
        assert image.notes == ()
        assert image.header.get("icc-profile-data") == _profile("RGB")
    else:
        (note,) = image.notes
        assert f"is RGB and its colour profile is {'damaged' if kind == 'damaged' else 'for ' + kind}" in note
        assert image.header.get("icc-profile-data") is None


@pytest.mark.parametrize("kind", ["CMYK", "Lab", "damaged"])
def test_a_profile_that_the_decoder_of_png_drops_is_announced(tmp_path, kind):
    Pillow.fromarray(smooth()).save(tmp_path / "x.png", icc_profile=_profile(kind))
    (note,) = read_image(tmp_path / "x.png").notes
    assert note.endswith("has a colour profile that is damaged or for other colours: the profile is left out.")
    Pillow.fromarray(smooth()).save(tmp_path / "x.png", icc_profile=_profile("RGB"))
    assert read_image(tmp_path / "x.png").notes == ()


def test_webp_holds_no_profile_for_gray(tmp_path):
    Pillow.fromarray(smooth()[..., 0]).save(tmp_path / "x.tif", icc_profile=_profile("GRAY"))
    image = read_image(tmp_path / "x.tif")
    (note,) = check_target(image, tmp_path / "y.webp")
    assert note.startswith("y.webp is without the colour profile of ")
    assert check_target(image, tmp_path / "y.jpg") == []


def test_a_palette_is_announced(tmp_path):
    for suffix in (".png", ".tif"):
        Pillow.fromarray(smooth()).quantize(16).save(tmp_path / f"x{suffix}")
        (note,) = read_image(tmp_path / f"x{suffix}").notes
        assert "has a palette" in note


def test_associated_alpha_is_announced(tmp_path):
    for name, kind, count in (("assoc", "assocalpha", 1), ("unassoc", "unassalpha", 0)):
        tifffile.imwrite(tmp_path / f"{name}.tif", noise(4), photometric="rgb", extrasamples=[kind])
        notes = read_image(tmp_path / f"{name}.tif").notes
        assert len(notes) == count
        assert all("colours multiplied by its transparency" in note for note in notes)


@pytest.mark.parametrize("quality", range(1, 101))
@pytest.mark.parametrize("library", ["libvips", "Pillow"])
def test_quality_of_a_jpeg_is_read_off_its_table(tmp_path, quality, library):
    path = tmp_path / "x.jpg"
    if library == "libvips":
        wrap(smooth()).jpegsave(str(path), Q=quality)
    else:
        Pillow.fromarray(smooth()).save(path, quality=quality)
    with path.open("rb") as file:
        assert parts.jpeg_quality(file) == quality


def test_every_jpeg_whose_table_cannot_be_read_has_no_quality():
    for content in (b"", b"\xff\xd8", b"\xff\xd8\xff\xdb\x00\x05\x00\x01", b"\xff\xd8\xff\xda\x00\x02"):
        assert parts.jpeg_quality(io.BytesIO(content)) is None
        assert not parts.jpeg_has_others(io.BytesIO(content))


@pytest.mark.parametrize(
    ("stored", "saving", "expected"),
    [(90, Saving(), 90), (60, Saving(), 75), (98, Saving(), 98), (90, Saving(quality=40), 40), (None, Saving(), 95)],
)
def test_a_jpeg_keeps_its_quality(tmp_path, stored, saving, expected):
    source, target = tmp_path / ("x.jpg" if stored else "x.png"), tmp_path / "y.jpg"
    if stored:
        _jpeg(source, Q=stored)
    else:
        wrap(smooth()).write_to_file(str(source))
    image = read_image(source)
    write_image(target, image.pixels, image, saving)
    with target.open("rb") as file:
        assert parts.jpeg_quality(file) == expected


@pytest.mark.parametrize("mode", ["on", "off"])
def test_a_jpeg_keeps_the_resolution_of_its_colours(tmp_path, mode):
    _jpeg(tmp_path / "x.jpg", Q=90, subsample_mode=mode)
    image = read_image(tmp_path / "x.jpg")
    write_image(tmp_path / "y.jpg", image.pixels, image)
    for name in ("x.jpg", "y.jpg"):
        chroma = pyvips.Image.new_from_file(str(tmp_path / name)).get("jpeg-chroma-subsample")
        assert chroma == ("4:2:0" if mode == "on" else "4:4:4")


@pytest.mark.parametrize(
    ("lossless", "saving", "expected"),
    [
        (True, Saving(), True),
        (False, Saving(), False),
        (False, Saving(lossless=True), True),
        (True, Saving(quality=80), False),
    ],
)
def test_a_lossless_webp_stays_lossless(tmp_path, lossless, saving, expected):
    wrap(smooth()).webpsave(str(tmp_path / "x.webp"), lossless=lossless)
    image = read_image(tmp_path / "x.webp")
    write_image(tmp_path / "y.webp", image.pixels, image, saving)
    with (tmp_path / "y.webp").open("rb") as file:
        assert parts.webp_is_lossless(file) is expected
    assert np.array_equal(read_image(tmp_path / "y.webp").pixels, image.pixels) is expected


def test_lossless_webp_keeps_colours_that_are_not_seen(tmp_path):
    array = noise(4)
    array[:48, :, 3] = 0
    wrap(array).write_to_file(str(tmp_path / "x.png"))
    image = read_image(tmp_path / "x.png")
    write_image(tmp_path / "y.webp", image.pixels, image, Saving(lossless=True))
    assert np.array_equal(read_image(tmp_path / "y.webp").samples, array)


def test_impossible_savings_are_refused(tmp_path):
    wrap(smooth()).write_to_file(str(tmp_path / "x.png"))
    image = read_image(tmp_path / "x.png")
    with pytest.raises(SwintormerError, match="without loss: choose --format png, tiff or webp"):
        check_target(image, tmp_path / "y.jpg", Saving(lossless=True))
    with pytest.raises(SwintormerError, match="must be 1 to 100, found 101"):
        Saving(quality=101)
    with pytest.raises(SwintormerError, match="leave one of the two out"):
        Saving(quality=90, lossless=True)
