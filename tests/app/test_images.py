"""Image files: what goes in comes out as it was, and bad files end in one sentence.

Pillow and tifffile read what libvips wrote, and the other way round, so that no library checks itself where it can be
helped; 16-bit colour in PNG is the exception, which Pillow cannot hold.
"""

from __future__ import annotations

import io
import resource
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import pyvips
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from PIL import ImageCms
from PIL.PngImagePlugin import PngInfo

from swintormer.errors import SwintormerError
from swintormer.images import reading
from swintormer.images.files import replacing
from swintormer.images.picture import to_eight_bit, wrap
from swintormer.images.reading import read_image, sample_bytes
from swintormer.images.tiff_exif import append_exif, read_exif
from swintormer.images.writing import check_target, write_image

SUFFIXES = [".png", ".tif", ".jpg", ".webp"]
LOSSLESS = [".png", ".tif"]
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>five stars</x:xmpmeta>"
EXIF_IFD, GPS_IFD = 0x8769, 0x8825
MAKE, ORIENTATION, COPYRIGHT, EXPOSURE, TAKEN, LATITUDE = 0x010F, 0x0112, 0x8298, 0x829A, 0x9003, 1


def samples(bits: int = 8, channels: int = 3, side: tuple[int, int] = (30, 40), seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 2**bits, (*side, channels), dtype=np.uint8 if bits == 8 else np.uint16)


def save(path: Path, array: np.ndarray, **options: object) -> Path:
    wrap(array).write_to_file(str(path), **options)
    return path


def exif() -> Pillow.Exif:
    block = Pillow.Exif()
    block[MAKE], block[ORIENTATION], block[COPYRIGHT] = "Nikon", 6, "A. Photographer, all rights reserved"
    block.get_ifd(EXIF_IFD)[EXPOSURE] = 1 / 128
    block.get_ifd(EXIF_IFD)[TAKEN] = "2020:01:02 03:04:05"
    block.get_ifd(GPS_IFD)[LATITUDE] = "N"
    return block


def with_tags(path: Path) -> Path:
    """A picture with EXIF, profile, XMP and resolution, written without libvips."""
    image, common = Pillow.fromarray(samples()), {"icc_profile": ICC, "dpi": (300, 300)}
    if path.suffix == ".tif":  # Pillow leaves out the EXIF and GPS directories here
        image.save(path, tiffinfo={700: XMP, ORIENTATION: 6}, **common)
        with path.open("r+b") as file:
            append_exif(file, exif().tobytes())
    elif path.suffix == ".png":
        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", XMP.decode())
        image.save(path, exif=exif(), pnginfo=info, **common)
    else:
        image.save(path, exif=exif(), xmp=XMP, **common)
    return path


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("suffix", LOSSLESS)
def test_samples_come_back_as_they_were(tmp_path, suffix, channels, bits):
    array = samples(bits, channels)
    source = read_image(save(tmp_path / f"in{suffix}", array))
    np.testing.assert_array_equal(source.samples, array)
    assert (source.bits, source.has_alpha, source.notes) == (bits, channels in (2, 4), ())

    restored = np.array(source.pixels)[::-1].copy()
    write_image(tmp_path / f"out{suffix}", restored, source)
    again = read_image(tmp_path / f"out{suffix}")
    np.testing.assert_array_equal(again.pixels, restored)
    assert again.samples.dtype == array.dtype
    if source.has_alpha:
        np.testing.assert_array_equal(again.alpha, array[..., -1])
    else:
        assert again.alpha is None


def test_sixteen_bit_tiff_as_another_library_reads_and_writes_it(tmp_path):
    array = samples(16)
    tifffile.imwrite(tmp_path / "in.tif", array, byteorder=">")
    source = read_image(tmp_path / "in.tif")
    np.testing.assert_array_equal(source.pixels, array)
    write_image(tmp_path / "out.tif", source.pixels, source)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.tif"), array)


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
@pytest.mark.parametrize("channels", [1, 3])
def test_lossy_formats_stay_close(tmp_path, suffix, channels):
    ramp = np.linspace(0, 255, 64, dtype=np.uint8)[None, :, None]
    array = np.ascontiguousarray(np.broadcast_to(ramp, (48, 64, channels)))
    source = read_image(save(tmp_path / "in.png", array))
    write_image(tmp_path / f"out{suffix}", source.pixels, source)
    again = np.asarray(Pillow.open(tmp_path / f"out{suffix}").convert("RGB")).astype(int)
    assert np.abs(again - array.astype(int)).mean() < 2  # grey levels; quality 95 on a ramp


@pytest.mark.parametrize("target", SUFFIXES)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_profile_and_tags_go_along(tmp_path, suffix, target):
    source = read_image(with_tags(tmp_path / f"in{suffix}"))
    assert source.samples.shape == (30, 40, 3), "the orientation tag must not turn the pixels"
    out = tmp_path / f"out{target}"
    write_image(out, source.pixels, source)
    with Pillow.open(out) as image:
        tags = image.getexif()
        stored = (tags[0x100], tags[0x101]) if target == ".tif" else image.size  # Pillow turns the size of TIFF files
        assert stored == (40, 30)
        assert (tags[MAKE], tags[ORIENTATION]) == ("Nikon", 6)
        assert tags[COPYRIGHT].startswith("A. Photographer")
        assert tags.get_ifd(EXIF_IFD)[TAKEN] == "2020:01:02 03:04:05"
        assert float(tags.get_ifd(EXIF_IFD)[EXPOSURE]) == 1 / 128
        assert tags.get_ifd(GPS_IFD)[LATITUDE] == "N"
        assert image.info["icc_profile"] == ICC
        packets = (tags.get(700), image.info.get("XML:com.adobe.xmp"), image.info.get("xmp"))
        assert any("five stars" in str(packet) for packet in packets)
        if target != ".webp" and suffix != ".webp":  # WebP has no field for the resolution
            assert image.info["dpi"] == pytest.approx((300, 300), abs=0.01)


def test_the_thumbnail_of_the_blurred_picture_is_dropped(tmp_path):
    small = io.BytesIO()
    Pillow.fromarray(samples()).resize((16, 12)).save(small, "JPEG")
    with_tags(tmp_path / "in.jpg")
    image = pyvips.Image.new_from_file(str(tmp_path / "in.jpg")).copy()
    image.set_type(pyvips.GValue.blob_type, "jpeg-thumbnail-data", small.getvalue())
    image.write_to_file(str(tmp_path / "thumb.jpg"))
    assert small.getvalue() in (tmp_path / "thumb.jpg").read_bytes()

    source = read_image(tmp_path / "thumb.jpg")
    write_image(tmp_path / "out.jpg", source.pixels, source)
    assert small.getvalue() not in (tmp_path / "out.jpg").read_bytes()
    assert Pillow.open(tmp_path / "out.jpg").getexif()[MAKE] == "Nikon"


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
def test_exif_in_tiff_of_either_byte_order_and_width(tmp_path, order, big):
    path = tmp_path / "x.tif"
    array = samples(16)
    tifffile.imwrite(path, array, byteorder=order, bigtiff=big, metadata=None)
    with path.open("r+b") as file:
        append_exif(file, exif().tobytes())
    np.testing.assert_array_equal(tifffile.imread(path), array)
    block = Pillow.Exif()
    block.load(read_exif(path))
    assert (block[MAKE], block.get_ifd(EXIF_IFD)[TAKEN]) == ("Nikon", "2020:01:02 03:04:05")
    assert float(block.get_ifd(EXIF_IFD)[EXPOSURE]) == 1 / 128


@settings(max_examples=60, deadline=None)
@given(cut=st.floats(0, 1), flip=st.integers(0, 10_000), value=st.integers(0, 255))
def test_damaged_exif_neither_raises_nor_harms_the_picture(tmp_path_factory, cut, flip, value):
    folder = tmp_path_factory.mktemp("exif")
    block = bytearray(exif().tobytes()[6:])
    block[flip % len(block)] = value
    block = block[: round(cut * len(block))]
    (folder / "block.tif").write_bytes(bytes(block))
    read_exif(folder / "block.tif")
    array = samples(8, 3, (5, 6))
    tifffile.imwrite(folder / "x.tif", array)
    with (folder / "x.tif").open("r+b") as file:
        append_exif(file, b"Exif\0\0" + bytes(block))
    np.testing.assert_array_equal(tifffile.imread(folder / "x.tif"), array)


def test_eight_bits_are_rounded_and_announced(tmp_path):
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
    np.testing.assert_array_equal(
        to_eight_bit(wrap(every)).numpy().reshape(-1), np.round(np.arange(65536) / 257).astype(np.uint8)
    )
    source = read_image(save(tmp_path / "in.png", every))
    (note,) = check_target(source, tmp_path / "out.jpg")
    assert "16 bits" in note
    assert "JPEG holds 8" in note
    assert check_target(source, tmp_path / "out.tif") == []
    write_image(tmp_path / "out.jpg", source.pixels, source)
    assert read_image(tmp_path / "out.jpg").bits == 8


def test_palette_and_few_bits_are_expanded_and_announced(tmp_path):
    Pillow.fromarray(samples()).quantize(16).save(tmp_path / "palette.png")
    source = read_image(tmp_path / "palette.png")
    assert source.pixels.shape == (30, 40, 3)
    assert "palette" in source.notes[0]
    write_image(tmp_path / "out.png", source.pixels, source)
    assert Pillow.open(tmp_path / "out.png").mode == "RGB"

    bits = samples(channels=1)[..., 0] > 127
    Pillow.fromarray(bits).save(tmp_path / "bit.png")
    source = read_image(tmp_path / "bit.png")
    np.testing.assert_array_equal(source.pixels[..., 0], np.where(bits, 255, 0))
    assert "1 bit" in source.notes[0]


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [2, 4])
def test_premultiplied_tiff_does_not_darken(tmp_path, channels, bits):
    """Colours times alpha in the file; libvips divides while it reads, and the result says that it holds them plain."""
    unit = 2 ** (bits - 8)
    array = np.full((8, 8, channels), 100 * unit, samples(bits).dtype)
    array[..., -1] = 128 * unit
    photometric = "rgb" if channels == 4 else "minisblack"
    tifffile.imwrite(tmp_path / "in.tif", array, photometric=photometric, extrasamples=["assocalpha"])
    source = read_image(tmp_path / "in.tif")
    plain = 100 * unit * (2**bits - 1) / (128 * unit)
    assert np.abs(source.pixels - plain).max() <= 1, "it truncates"
    np.testing.assert_array_equal(source.alpha, array[..., -1])
    write_image(tmp_path / "out.tif", source.pixels, source)
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        assert file.pages[0].extrasamples == (tifffile.EXTRASAMPLE.UNASSALPHA,)
        np.testing.assert_array_equal(file.pages[0].asarray(), source.samples)


def _odd_files(folder: Path) -> dict[str, str]:
    """Files that are refused, and what the sentence must name."""
    rgb = Pillow.fromarray(samples())
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    rgb.convert("CMYK").save(folder / "cmyk.tif")
    rgb.save(folder / "pages.tif", save_all=True, append_images=[rgb])
    rgb.save(folder / "frames.webp", save_all=True, append_images=[rgb.rotate(180)])
    rgb.save(folder / "x.gif")
    rgb.save(folder / "gif.png", format="GIF")
    tifffile.imwrite(folder / "float.tif", samples().astype(np.float32))
    tifffile.imwrite(folder / "int.tif", samples(16).astype(np.int32))
    tifffile.imwrite(folder / "five.tif", samples(channels=5), photometric="rgb")
    (folder / "text.png").write_text("not a picture")
    (folder / "empty.png").touch()
    (folder / "folder.png").mkdir()
    return {
        "cmyk.jpg": "CMYK", "cmyk.tif": "CMYK", "pages.tif": "2 pages", "frames.webp": "2 pages or frames",
        "x.gif": "not a picture in PNG", "gif.png": "although its name", "float.tif": "floating-point",
        "int.tif": "32-bit", "five.tif": "5 channels", "text.png": "although its name", "empty.png": "empty",
        "folder.png": "directory", "missing.png": "no file",
    }  # fmt: skip


def test_what_cannot_be_kept_is_refused_in_one_sentence(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refused = _odd_files(tmp_path)
    for name, words in refused.items():
        with pytest.raises(SwintormerError) as caught:
            read_image(tmp_path / name)
        text = str(caught.value)
        assert words in text, name
        assert name in text
        assert "\n" not in text
        assert text.endswith(".")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_cut_short_anywhere_is_refused(tmp_path, suffix):
    whole = save(tmp_path / f"whole{suffix}", samples(side=(64, 48))).read_bytes()
    path = tmp_path / f"cut{suffix}"
    for length in {1, 2, 7, 11, 12, 40, *np.linspace(50, len(whole) - 1, 20, dtype=int)}:
        path.write_bytes(whole[:length])
        with pytest.raises(SwintormerError, match=r"cut short|not a picture"):
            read_image(path)


def _claiming(folder: Path) -> dict[str, Path]:
    """Small files whose headers claim 60000x60000 pixels."""
    side = 60_000
    ihdr = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    png = save(folder / "claim.png", samples(channels=1)).read_bytes()
    (folder / "claim.png").write_bytes(png[:12] + ihdr + struct.pack(">I", zlib.crc32(ihdr)) + png[33:])
    jpeg = bytearray(save(folder / "claim.jpg", samples()).read_bytes())
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", side, side)
    (folder / "claim.jpg").write_bytes(jpeg)
    tifffile.imwrite(folder / "claim.tif", samples())
    with tifffile.TiffFile(folder / "claim.tif", mode="r+b") as file:
        for name in ("ImageWidth", "ImageLength", "RowsPerStrip"):
            file.pages[0].tags[name].overwrite(side)
    return {suffix: folder / f"claim{suffix}" for suffix in (".png", ".jpg", ".tif")}


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_a_header_that_claims_too_much_is_refused_before_anything_is_decoded(tmp_path, monkeypatch, suffix):
    path = _claiming(tmp_path)[suffix]
    monkeypatch.setattr(reading, "interruptible", None)  # decodes
    with pytest.raises(SwintormerError, match=r"60000x60000 = 3,600,000,000 pixels.* raise --max-pixels\."):
        read_image(path)
    assert sample_bytes(path) == 0, "a cache needs no room for it"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_limit_of_pixels(tmp_path, suffix):
    path = save(tmp_path / f"in{suffix}", samples())
    assert read_image(path, max_pixels=1200).samples.shape == (30, 40, 3)
    with pytest.raises(SwintormerError, match="more than 1,199 are not decoded"):
        read_image(path, max_pixels=1199)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_leaves_nothing_and_spares_the_old_file(tmp_path, suffix):
    source = read_image(save(tmp_path / "in.png", samples(side=(256, 256))))
    folder = tmp_path / "out"
    folder.mkdir()
    target = folder / f"out{suffix}"
    target.write_bytes(b"older")
    for limit in (0, 10, 20_000):
        with _file_size_limit(limit), pytest.raises(SwintormerError, match=r"Cannot write .*: File too large"):
            write_image(target, source.pixels, source)
        assert [path.name for path in folder.iterdir()] == [target.name]
        assert target.read_bytes() == b"older"
    write_image(target, source.pixels, source)
    assert read_image(target).pixels.shape == source.pixels.shape


@contextmanager
def _file_size_limit(size: int) -> Iterator[None]:
    """The nearest thing to a full disk that needs no rights: the kernel fails writes beyond a size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    source = read_image(save(tmp_path / "in.png", samples()))
    with pytest.raises(SwintormerError, match="Cannot create the folder"):
        write_image(tmp_path / "file" / "out.png", source.pixels, source)


def test_targets_that_cannot_hold_the_picture(tmp_path):
    transparent = read_image(save(tmp_path / "in.png", samples(channels=4)))
    with pytest.raises(SwintormerError, match="transparency, which JPEG"):
        check_target(transparent, tmp_path / "out.jpg")
    long = read_image(save(tmp_path / "long.png", np.zeros((1, 16384, 1), np.uint8)))
    with pytest.raises(SwintormerError, match="16384x1 and WebP allows at most 16383 pixels a side"):
        check_target(long, tmp_path / "out.webp")
    with pytest.raises(SwintormerError, match=r"must end in one of \.png"):
        check_target(long, tmp_path / "out.gif")
    with pytest.raises(ValueError, match="expected pixels"):
        write_image(tmp_path / "out.png", long.pixels[:, 1:], long)


@pytest.mark.parametrize(
    "name", ["a[1].png", "a[page=1].tif", "sp ace ümläut 写真.png", b"bytes\xff\xfe.png", ".png.jpg"]
)
def test_any_file_name(tmp_path, name):
    path = tmp_path / (name if isinstance(name, str) else name.decode(errors="surrogateescape"))
    array = samples()
    with replacing(path) as file:
        file.write(wrap(array).write_to_buffer(".png"))
    source = read_image(path)
    write_image(path.with_name("new" + path.name), source.pixels, source)
    assert read_image(path.with_name("new" + path.name)).pixels.shape == array.shape


def test_memory_is_the_samples_and_little_more(tmp_path):
    """96 MB of 16-bit RGB; the process may take a third of it beside, for decoder, encoder and rows in flight."""
    source = tmp_path / "in.tif"
    array = np.zeros((4000, 4000, 3), np.uint16)
    wrap(array).write_to_file(str(source))
    script = """
import sys
from pathlib import Path
from swintormer.images.reading import read_image
from swintormer.images.writing import write_image

def peak():  # of this process alone; ru_maxrss starts with the parent's
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

import pyvips
before = peak()
image = read_image(sys.argv[1])
write_image(Path(sys.argv[1]).with_name("out.tif"), image.pixels, image)
print((peak() - before) / image.samples.nbytes)
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("peak memory is read from /proc")
    out = subprocess.run([sys.executable, "-c", script, str(source)], capture_output=True, text=True, check=True)
    assert float(out.stdout) < 4 / 3
