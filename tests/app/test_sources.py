"""Photographs and pairs as sources of training: the cache, windows, crops, and mixtures of them."""

import math
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import dataset_folders
import numpy as np
import pytest
import torch
from dataset_folders import picture, pictures
from pydantic import ValidationError

from swintormer.data import cache, mixture, photos
from swintormer.data.config import DataConfig
from swintormer.data.datasets import pair_folders, read_pairs
from swintormer.data.degrade.recipe import FAMILIES
from swintormer.data.mixture import BLOCK, _scene_names, allot, held_out, make_source
from swintormer.data.pairs import PairCrops, decode_pairs
from swintormer.data.photos import PhotoWindows, decode_folders
from swintormer.data.synthetic import MARGIN as SIMPLE_MARGIN
from swintormer.data.synthetic import SyntheticPairs
from swintormer.errors import SwintormerError
from swintormer.images import reading
from swintormer.images.picture import wrap
from swintormer.images.reading import read_image, sample_bytes
from swintormer.images.writing import save_vips

EPS = torch.finfo(torch.float32).eps
SIDE = 96  # of the photographs: a crop of 16 with the margins of the simple degradation takes 62
CROP = 16


@pytest.fixture
def folder(tmp_path):
    """Twelve photographs, one of 16 bits, one gray, in nested folders."""
    place = tmp_path / "photos"
    pictures(place, [f"{i}.png" for i in range(6)] + [f"in/{i}.jpg" for i in range(4)], SIDE)
    picture(place / "deep" / "er" / "16.tif", 90, SIDE, 16)
    picture(place / "gray.png", 91, SIDE, channels=1)
    return place


@pytest.fixture
def config(folder, tmp_path):
    return DataConfig(photos=folder, cache=tmp_path / "cache")


def never(*arguments):
    raise AssertionError("a picture was decoded")


# The cache
def test_cache_holds_the_samples(folder, tmp_path):
    """8 and 16 bits, gray and colour, bit for bit; in the order of the paths."""
    paths = sorted(folder.rglob("*.*"))
    found = cache.decode(paths, tmp_path / "cache")
    assert [entry.path for entry in found] == paths
    for entry in found:
        samples, truth = entry.map(), read_image(entry.path).pixels
        assert samples.dtype == truth.dtype
        assert samples.shape == entry.shape
        assert np.array_equal(samples, truth)
    assert {entry.map().dtype for entry in found} == {np.dtype(np.uint8), np.dtype(np.uint16)}


def test_cached_pictures_are_not_decoded_again(folder, tmp_path, monkeypatch):
    first = decode_folders([folder], tmp_path / "cache")
    monkeypatch.setattr(cache, "read_image", never)
    assert decode_folders([folder], tmp_path / "cache") == first


def test_changed_picture_is_decoded_anew(folder, tmp_path):
    decode_folders([folder], tmp_path / "cache")
    path = picture(folder / "0.png", 1234, SIDE)
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))  # where the file system's clock is coarse
    (found,) = cache.decode([path], tmp_path / "cache")
    assert np.array_equal(found.map(), read_image(path).pixels)
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 12  # the old samples are gone


def test_pictures_in_other_formats_are_named(folder, tmp_path):
    """A raw file, which nothing reads, and one that is HEIC by its name, which not every libvips reads."""
    for name in ("b.cr2", "deep/a.gif", "c.heic", "notes.txt", ".hidden.gif"):
        (folder / name).write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    for _ in range(2):
        said = []
        assert len(decode_folders([folder], tmp_path / "cache", said.append)) == 12
        assert f"{folder / 'b.cr2'}, {folder / 'deep' / 'a.gif'}" in said[0]
        assert said[0].startswith("Left out, in formats that are not read here: ")
        assert str(folder / "c.heic") in "".join(said)
        assert "notes" not in "".join(said)
    assert not list((tmp_path / "cache").rglob("*.txt")), "another libvips may read the HEIC"


def test_damaged_picture_is_named_and_left_out(folder, tmp_path, monkeypatch):
    """Every time; but it is not tried again before the file has changed."""
    whole = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(whole[:300])
    said = []
    assert len(decode_folders([folder], tmp_path / "cache", said.append)) == 11
    with monkeypatch.context() as patch:
        patch.setattr(cache, "read_image", never)
        assert len(decode_folders([folder], tmp_path / "cache", said.append)) == 11
    assert said[0] == said[1]
    assert said[0].startswith(f"Left out: {folder / '1.png'} is damaged, cut short")
    (folder / "1.png").write_bytes(whole)
    assert len(decode_folders([folder], tmp_path / "cache", said.append)) == 12
    assert len(said) == 2
    assert {path.suffix for path in (tmp_path / "cache").rglob("*") if path.is_file()} == {".npy"}


def test_picture_that_could_not_be_read_is_tried_again(folder, tmp_path, monkeypatch):
    """Unlike a damaged one: neither its size nor its time change when it may be read."""
    shut, read = folder / "1.png", reading.detect_format
    said = []

    def refuse(path):
        if path == shut:
            try:
                raise PermissionError(13, "Permission denied")
            except OSError as error:
                raise SwintormerError(f"Cannot read {path}: permission denied.") from error
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(reading, "detect_format", refuse)
        for count in (1, 2):
            assert len(decode_folders([folder], tmp_path / "cache", said.append)) == 11
            assert said == [f"Left out: Cannot read {shut}: permission denied."] * count
    assert len(decode_folders([folder], tmp_path / "cache", said.append)) == 12
    assert len(said) == 2


def test_no_readable_picture(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(SwintormerError, match=r"None of the 1 pictures below .* can be read"):
        decode_folders([tmp_path], tmp_path / "cache", lambda line: None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SwintormerError, match="There is no picture below"):
        decode_folders([tmp_path / "empty"], tmp_path / "cache")
    with pytest.raises(SwintormerError, match=r"There is no folder .*: give a folder of sharp photographs"):
        decode_folders([tmp_path / "none"], tmp_path / "cache")


def test_full_disk_is_refused_before_anything_is_decoded(folder, tmp_path, monkeypatch):
    usage = cache.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda place: usage._replace(free=cache._SPARE + 1000))
    monkeypatch.setattr(cache, "read_image", never)
    with pytest.raises(SwintormerError, match=r"needs 0\.0 GiB .* choose a folder with more room as `cache`"):
        decode_folders([folder], tmp_path / "cache")


def test_size_of_samples_is_read_from_the_header(tmp_path):
    for bits, channels in ((8, 3), (16, 3), (8, 1), (16, 1), (8, 4)):
        path = picture(tmp_path / f"{bits}-{channels}.png", 0, 8, bits, channels)
        assert sample_bytes(path) == read_image(path).pixels.nbytes
    path.write_bytes(b"no picture")
    assert sample_bytes(path) == sample_bytes(tmp_path / "none") == 0


def test_progress_is_told(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "REPORT_EVERY", -1.0)
    said = []
    decode_folders([folder], tmp_path / "cache", said.append)
    assert said[-1] == f"Decoding pictures into {tmp_path / 'cache'}: 12 of 12."


def test_two_processes_build_one_cache(folder, tmp_path):
    code = (
        "import sys; from pathlib import Path; from swintormer.data.photos import decode_folders;"
        "print(len(decode_folders([sys.argv[1]], Path(sys.argv[2]))))"
    )
    arguments = [sys.executable, "-c", code, str(folder), str(tmp_path / "cache")]
    both = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0] for process in both] == ["12\n", "12\n"]
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert len(files) == 12
    assert {path.suffix for path in files} == {".npy"}


def test_what_another_process_has_decoded_is_left(folder, tmp_path, monkeypatch):
    (found,) = cache.decode([folder / "0.png"], tmp_path / "cache")
    monkeypatch.setattr(cache, "read_image", never)
    cache._decode_one(found.path, found.file)


def test_damaged_cache_is_one_sentence(folder, tmp_path):
    (found,) = cache.decode([folder / "0.png"], tmp_path / "cache")
    found.file.write_bytes(found.file.read_bytes()[:200])
    with pytest.raises(SwintormerError, match=r"in the cache of decoded pictures is damaged: remove it"):
        found.map()
    found.file.unlink()
    with pytest.raises(SwintormerError, match=r"Cannot read .* in the cache of decoded pictures: No such file"):
        found.map()


def test_default_cache_folder(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/there")
    monkeypatch.delenv("SWINTORMER_CACHE", raising=False)
    assert cache.default_folder().as_posix() == "/there/swintormer/pictures"
    monkeypatch.setenv("SWINTORMER_CACHE", "/mine")
    assert cache.default_folder().as_posix() == "/mine/pictures"


# Windows of photographs
def windows(folder, tmp_path, side=40, key=(1,), soft=0.0):
    return PhotoWindows(decode_folders([folder], tmp_path / "cache"), key, side, soft=soft)


def test_windows(folder, tmp_path):
    source = windows(folder, tmp_path, soft=0.5)
    for index in range(24):
        window = source[index]
        assert window.shape == (3, 40, 40)
        assert window.dtype == torch.float32
        assert window.is_contiguous()
        assert 0 <= window.min() <= window.max() <= 1
    assert torch.equal(source[7], windows(folder, tmp_path, soft=0.5)[7])
    assert not torch.equal(source[7], source[8])
    assert not torch.equal(source[7], windows(folder, tmp_path, key=(2,))[7])


def plain(monkeypatch, **shares):
    """Windows as stored, without faint or gray ones, unless `shares` says otherwise."""
    for name, share in ({"AS_STORED": 1.0, "FAINT": 0.0, "GRAY": 0.0} | shares).items():
        monkeypatch.setattr(photos, name, share)


@pytest.mark.parametrize("bits", [8, 16])
def test_window_as_stored_is_a_turned_part_of_the_file(tmp_path, monkeypatch, bits):
    """The way through linear light and back changes nothing beyond its rounding: 16 bits stay."""
    plain(monkeypatch)
    picture(tmp_path / "photos" / "one.png", 5, 40, bits)  # 40 by 42: a window of 40 has few places
    samples = read_image(tmp_path / "photos" / "one.png").pixels
    values = torch.from_numpy(samples.astype(np.float32) / np.float32(2**bits - 1)).permute(2, 0, 1)
    window = windows(tmp_path / "photos", tmp_path)[0]
    # Slope of the two curves at most 12.92; each takes a power, good to 2 eps of its exponent's range
    bound = 12.92 * 8 * EPS
    distances = [
        (torch.rot90(part.flip(-1) if mirror else part, turns, (-2, -1)) - window).abs().max()
        for part in (values[..., x : x + 40] for x in range(3))
        for mirror in (False, True)
        for turns in range(4)
    ]
    assert min(distances) <= bound < 1 / 65535


def test_reduction_averages_light(tmp_path, monkeypatch):
    """A fine checkerboard of black and white, reduced, is the gray of half the light, not of half the value."""
    plain(monkeypatch, AS_STORED=0.0)
    y, x = np.mgrid[:120, :120]
    board = np.repeat(((y + x) % 2 * 255).astype(np.uint8)[..., None], 3, axis=2)
    (tmp_path / "photos").mkdir()
    save_vips(tmp_path / "photos" / "board.png", wrap(board))
    source = windows(tmp_path / "photos", tmp_path)
    monkeypatch.setattr(photos, "_random_reduction", lambda rng, largest: largest)
    half = 1.055 * 0.5 ** (1 / 2.4) - 0.055
    inner = torch.stack([source[i] for i in range(4)])[..., 4:-4, 4:-4]
    assert (inner - half).abs().max() < 0.1  # of 0.735; half the value would be 0.5
    assert abs(inner.mean() - half) < 0.01


def test_reductions_cover_their_range(monkeypatch):
    rng = np.random.default_rng(0)
    drawn = np.array([photos._random_reduction(rng, 10.0) for _ in range(400)])
    assert 0.2 < np.mean(drawn == 1) < 0.4
    assert 2.8 < drawn.max() <= 3
    assert photos._random_reduction(rng, 1.0) == 1


def test_sharp_windows_are_preferred(tmp_path, monkeypatch):
    """A picture of which a quarter has texture: fewer flat windows than at random, but more than where none of the
    candidates had any."""
    plain(monkeypatch)
    samples = np.full((128, 512, 3), 128, np.uint8)
    samples[:, :128] = np.random.default_rng(0).integers(0, 256, (128, 128, 3))
    (tmp_path / "photos").mkdir()
    save_vips(tmp_path / "photos" / "one.png", wrap(samples))
    source = windows(tmp_path / "photos", tmp_path, side=32)
    flat = np.mean([float(source[i].std()) < 1 / 255 for i in range(200)])
    at_random = 1 - 160 / 481  # places of a window beside the texture
    assert at_random**photos.CANDIDATES + 0.05 < flat < 0.75 * at_random


def test_soft_and_faint_windows_are_met(folder, tmp_path, monkeypatch):
    plain(monkeypatch)
    sharp = [windows(folder, tmp_path)[i] for i in range(8)]
    soft = [windows(folder, tmp_path, soft=1.0)[i] for i in range(8)]
    plain(monkeypatch, FAINT=1.0)
    faint = [windows(folder, tmp_path)[i] for i in range(8)]
    plain(monkeypatch, GRAY=1.0)
    gray = [windows(folder, tmp_path)[i] for i in range(8)]
    for a, b, c, d in zip(sharp, soft, faint, gray, strict=True):
        assert b.diff(dim=-1).square().mean() < a.diff(dim=-1).square().mean()
        assert photos.CONTRAST[0] - 8 * EPS <= c.std() / a.std() <= photos.CONTRAST[1] + 8 * EPS
        assert torch.equal(d[0], d[2])


@pytest.mark.parametrize("kind", photos.KINDS)
def test_every_kind_of_softness_loses_detail_and_keeps_light(monkeypatch, kind):
    monkeypatch.setattr(photos, "KINDS", {kind: 1.0})
    light = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(1))
    soft = photos._softened(np.random.default_rng(2), light)
    assert soft.shape == light.shape
    amplitudes = [torch.fft.rfft2(t).abs() for t in (light, soft)]
    fine = amplitudes[1][:, 24:40, 24:].mean() / amplitudes[0][:, 24:40, 24:].mean()
    coarse = amplitudes[1][:, :3, :3].mean() / amplitudes[0][:, :3, :3].mean()
    assert fine < 0.6 * coarse
    assert abs(soft.mean() - light.mean()) < 0.02


def test_a_steep_spectrum_falls_by_a_power_of_frequency(monkeypatch):
    monkeypatch.setattr(photos, "KINDS", {"steep": 1.0})
    monkeypatch.setattr(photos, "STEEP", (0.7, 0.7))
    point = torch.zeros(1, 64, 64)
    point[0, 0, 0] = 1
    response = torch.fft.rfft2(photos._softened(np.random.default_rng(0), point))[0].abs()
    for row, column in ((0, 0), (0, 16), (8, 8), (32, 32)):
        corners = math.hypot(row / 64, column / 64) / photos.CORNER
        assert float(response[row, column]) == pytest.approx((1 + corners**2) ** -0.35, abs=100 * EPS)


def test_small_photographs(folder, tmp_path):
    picture(folder / "small.png", 3, 32)
    said = []
    found = decode_folders([folder], tmp_path / "cache")
    assert len(PhotoWindows(found, (1,), 40, said.append).pictures) == 12
    small = folder / "small.png"
    assert said == [f"1 of 13 photographs have less than 40 pixels a side and are left out: {small}."]
    with pytest.raises(SwintormerError, match="None of the 13 photographs has 400 pixels a side"):
        PhotoWindows(found, (1,), 400)


# Crops of pairs
def crops(files, tmp_path, views=False, crop=6, key=(1,)):
    return PairCrops(decode_pairs(files, views, tmp_path / "cache"), key, crop)


def position_pair(root, bits=16):
    """Pictures whose samples name their place: y in red, x in green. Blurred, left and right add 1, 2 and 3 in blue."""
    y, x = np.mgrid[:12, :14]
    for mark, kind in enumerate(("sharp", "blurred", "left", "right")):
        samples = np.stack([y, x, np.full_like(x, mark)], axis=2).astype(np.uint16) * 4096 + 5
        (root / kind).mkdir(parents=True, exist_ok=True)
        save_vips(root / kind / "1.png", wrap(samples))
    return read_pairs("folders", root)


def test_crops_are_aligned_and_keep_16_bits(tmp_path):
    source = crops(position_pair(tmp_path), tmp_path)
    for index in range(16):
        blurred, sharp = source[index]
        assert blurred.shape == sharp.shape == (3, 6, 6)
        assert torch.equal(blurred[:2], sharp[:2])
        assert torch.equal(sharp[2], torch.full((6, 6), np.float32(5) / np.float32(65535)))
        assert torch.equal(blurred[2], torch.full((6, 6), np.float32(4101) / np.float32(65535)))
    ways = set()
    for _, sharp in (source[i] for i in range(64)):
        slopes = (sharp[:2, 1, 0] - sharp[:2, 0, 0], sharp[:2, 0, 1] - sharp[:2, 0, 0])
        ways.add(tuple(torch.cat(slopes).sign().tolist()))
    assert len(ways) == 8  # mirrored and turned in every way


def test_mirrored_views_change_sides(tmp_path):
    """The left view is the first three channels, until the scene is mirrored from left to right."""
    source = crops(position_pair(tmp_path), tmp_path, views=True)
    met = set()
    for index in range(32):
        blurred, sharp = source[index]
        assert blurred.shape == (6, 6, 6)
        assert torch.equal(blurred[:2], sharp[:2])
        assert torch.equal(blurred[3:5], sharp[:2])
        first, second = ((blurred[c, 0, 0] * 65535).round() // 4096 for c in (2, 5))
        assert sharp[0, 0, 1] == sharp[0, 0, 0]  # rows stay rows: no quarter turn
        mirrored = bool(sharp[1, 0, 1] < sharp[1, 0, 0])
        assert (first, second) == ((3, 2) if mirrored else (2, 3))
        met.add((mirrored, bool(sharp[0, 1, 0] < sharp[0, 0, 0])))
    assert len(met) == 4


def test_gray_pairs_have_three_channels(tmp_path):
    for kind in ("b", "s"):
        picture(tmp_path / kind / "1.png", 1, 8, channels=1)
    blurred, sharp = crops(pair_folders(tmp_path / "b", tmp_path / "s"), tmp_path)[0]
    assert torch.equal(blurred, sharp)
    assert torch.equal(sharp[0], sharp[2])


def test_unequal_sizes_and_missing_views(tmp_path):
    picture(tmp_path / "b" / "1.png", 1, 8)
    picture(tmp_path / "s" / "1.png", 1, 10)
    files = pair_folders(tmp_path / "b", tmp_path / "s")
    with pytest.raises(SwintormerError, match=r"1.png is 10x8 and its sharp partner .* is 12x10"):
        crops(files, tmp_path)
    with pytest.raises(SwintormerError, match="has no dual-pixel views: set views to false"):
        crops(files, tmp_path, views=True)
    with pytest.raises(SwintormerError, match="None of the 1 pairs has 16 pixels a side"):
        crops([replace(files[0], blurred=files[0].sharp)], tmp_path, crop=16)


def test_pair_with_a_damaged_picture_is_left_out(tmp_path):
    pictures(tmp_path, ["b/1.png", "b/2.png", "s/1.png", "s/2.png"])
    (tmp_path / "b" / "1.png").write_bytes(b"")
    said = []
    (pair,) = decode_pairs(pair_folders(tmp_path / "b", tmp_path / "s"), False, tmp_path / "cache", said.append)
    assert pair.sharp.path.name == "2.png"
    assert len(said) == 1
    assert "1.png is empty" in said[0]


# Mixtures
def test_default_is_the_synthetic_pairs():
    source = make_source(DataConfig(), 3, 32, 1, 96)
    assert isinstance(source, SyntheticPairs)
    for ours, theirs in zip(source.batch(4, 2), SyntheticPairs(3, 32, 96, 1).batch(4, 2), strict=True):
        assert torch.equal(ours, theirs)


def test_mixture_is_a_function_of_the_index(config, tmp_path):
    """In another order, in batches of other sizes, and in another process, which decodes nothing."""
    dataset_folders.gopro(tmp_path / "gopro", side=20)
    pairs = {"layout": "gopro", "root": tmp_path / "gopro"}
    both = DataConfig(**config.model_dump() | {"scenes": 1.0, "pairs": pairs, "degradation": "camera"})
    source = make_source(both, 7, CROP)
    blurred, sharp = source.batch(5, 12)
    assert blurred.shape == sharp.shape == (12, 3, CROP, CROP)
    fresh = make_source(both, 7, CROP)
    for at in (11, 0, 6):
        for ours, theirs in zip(fresh[5 + at], (blurred[at], sharp[at]), strict=True):
            assert torch.equal(ours, theirs)
    code = (
        "import pickle, sys; from swintormer.data import cache\n"
        "def never(path): raise AssertionError\n"
        "cache.read_image = never\n"
        "source = pickle.load(open(sys.argv[1], 'rb')); pickle.dump(source.batch(5, 12), open(sys.argv[2], 'wb'))"
    )
    (tmp_path / "source").write_bytes(pickle.dumps(fresh))
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "source"), str(tmp_path / "pairs")], check=True)
    elsewhere = pickle.loads((tmp_path / "pairs").read_bytes())
    assert torch.equal(elsewhere[0], blurred)
    assert torch.equal(elsewhere[1], sharp)
    other = make_source(both, 8, CROP)
    assert not torch.equal(other.batch(5, 12)[1], sharp)


def test_shares_hold_and_no_pair_comes_twice(config, tmp_path):
    """In every block each source has its share, and the indices of each run on without gap."""
    pictures(tmp_path / "own", ["blurred/1.png", "sharp/1.png"], 20)
    values = config.model_dump() | {"scenes": 0.2, "photos_share": 0.4, "walls": 0.1}
    values["pairs"] = ({"layout": "folders", "root": tmp_path / "own", "share": 0.3},)
    source = make_source(DataConfig(**values), 1, CROP)
    places = [source.locate(index) for index in range(2 * BLOCK)]
    for part, share in enumerate((0.2, 0.4, 0.1, 0.3)):
        indices = [inner for owner, inner in places if owner == part]
        assert indices == list(range(round(2 * BLOCK * share)))
        first = [inner for owner, inner in places[:BLOCK] if owner == part]
        assert len(first) == round(BLOCK * share)
    assert {owner for owner, _ in places[:40]} == {0, 1, 2, 3}
    assert source.describe() == (
        "20% generated scenes (simple degradation); 40% 11 photographs of photos (simple degradation); "
        "10% generated walls (simple degradation); 30% 1 pairs of folders (own, train)"
    )


def test_allotment():
    assert allot([1.0], 10) == [10]
    assert allot([1, 1, 1], 10) == [4, 3, 3]
    assert allot([0.9, 0.1], 1000) == [900, 100]
    assert allot([1e-9, 1.0], 1000) == [1, 999]


def test_batches_of_workers_hold_different_pairs(config):
    """Worker w of n takes every n-th batch, as a loader deals them: together they have every pair once."""
    source = make_source(config, 1, CROP)
    seen = [
        tuple(sharp.flatten()[:40].tolist())
        for w in range(3)
        for k in range(w, 12, 3)
        for sharp in source.batch(4 * k, 4)[1]
    ]
    assert len(set(seen)) == 48


def test_validation_pictures_are_not_trained_on(config):
    def names(stream):
        part = make_source(config, 1, CROP, stream).parts[0]
        return {picture.path for picture in part.source.source.windows.pictures}

    assert len(names(0)) == 11
    assert len(names(1)) == 1
    assert not names(0) & names(1)


def test_what_is_too_small_to_validate_on_is_not_kept_for_it(config, folder):
    """For any crop of training: or a picture would be validated on that was trained on with another one."""
    (name,) = kept_names(config, 1)
    (small,) = folder.rglob(name)
    picture(small, 99, CROP + SIMPLE_MARGIN - 1)
    said = []
    kept = kept_names(config, 1)
    assert len(kept) == 1
    assert small.name not in kept
    others = {path.name for path in folder.rglob("*.*")} - kept
    assert kept_names(config, 0, say=said.append) == others - {small.name}
    side = CROP + SIMPLE_MARGIN
    assert said == [f"1 of 11 photographs have less than {side} pixels a side and are left out: {small}."]
    assert kept_names(config, 0, crop=CROP - 4, validation_crop=CROP) == others


def kept_names(config, stream, crop=CROP, **more):
    part = make_source(config, 1, crop, stream, **more).parts[0]
    return {picture.path.name for picture in part.source.source.windows.pictures}


def test_pairs_that_are_left_out_are_all_named(tmp_path):
    """Also those that validation would have taken: it says nothing itself."""
    names = [f"{kind}/{n}.png" for n in range(20) for kind in ("blurred", "sharp")]
    pictures(tmp_path / "set", names, 20)
    pairs = {"layout": "folders", "root": tmp_path / "set"}
    config = DataConfig(pairs=pairs, cache=tmp_path / "cache")
    (kept,) = make_source(config, 1, CROP, 1).parts[0].source.source.pairs
    for kind in ("blurred", "sharp"):
        picture(tmp_path / "set" / kind / kept.sharp.path.name, 99, CROP - 2)
    (next_kept,) = make_source(config, 1, CROP, 1).parts[0].source.source.pairs
    assert next_kept.sharp.path != kept.sharp.path
    next_kept.sharp.path.write_bytes(b"")
    said = []
    training = make_source(config, 1, CROP, 0, say=said.append).parts[0].source.source.pairs
    assert len(training) == 17
    assert f"Left out: {next_kept.sharp.path} is empty" in said[0]
    assert said[1] == f"1 of 18 pairs have less than {CROP} pixels a side and are left out: {kept.files.blurred}."
    assert len(said) == 2


def test_validation_on_training_pictures_is_said(tmp_path):
    pictures(tmp_path / "few", [f"{i}.png" for i in range(7)], CROP + SIMPLE_MARGIN)
    said = []
    config = DataConfig(photos=tmp_path / "few", cache=tmp_path / "cache")
    make_source(config, 1, CROP, say=said.append)
    few = "Photographs of few: 7 are too few to keep some for validation, which takes 8"
    assert said == [f"{few}; it sees pictures that are trained on."]


def test_held_out_scenes_stay_whole():
    scenes = [f"scene{i // 5}" for i in range(100)]
    training, validation = held_out(range(100), scenes, 0), held_out(range(100), scenes, 1)
    assert sorted(training + validation) == list(range(100))
    assert len({scenes[i] for i in validation}) == 1
    assert len(validation) == 5
    assert held_out([1, 2], ["a", "b"], 0) == held_out([1, 2], ["a", "b"], 1) == [1, 2]  # too few to divide


@pytest.mark.parametrize("layout", ["realblur", "rsblur", "gopro"])
def test_no_scene_is_in_training_and_in_validation(tmp_path, layout):
    """RealBlur's scenes come twice, as J and R; frames of a GoPro of few scenes as blur and blur_gamma."""
    truths = {
        "realblur": lambda n: [f"{kind}/scene{n // 3}/gt/gt_{n % 3}.png" for kind in "JR"],
        "rsblur": lambda n: [f"RSBlur/{n // 3:04}/{n % 3}/gt/gt_sharp.png"],
        "gopro": lambda n: [f"train/scene{n // 12}/sharp/{n % 12}.png"],
    }[layout]
    for n in range(36):
        for truth in map(Path, truths(n)):
            inputs = [truth.parents[1] / "blur" / f"b{n}.png"]
            if layout == "gopro":
                inputs = [truth.parents[1] / kind / truth.name for kind in ("blur", "blur_gamma")]
            for path in (tmp_path / place for place in (truth, *inputs)):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
            if layout != "gopro":
                name = {"realblur": f"RealBlur_{truth.parts[0]}_train_list.txt", "rsblur": "RSBlur_real_train.txt"}
                with (tmp_path / name[layout]).open("a") as file:
                    file.write(f"{truth} {inputs[0]}\n")
    files = read_pairs(layout, tmp_path)
    training, validation = (held_out(files, _scene_names(files), stream) for stream in (0, 1))
    assert len(training) + len(validation) == len(files) == {"realblur": 72, "rsblur": 36, "gopro": 72}[layout]

    def shown(pairs):
        return {pair.sharp if layout == "gopro" else pair.sharp.relative_to(tmp_path).parts[1] for pair in pairs}

    assert validation
    assert not shown(training) & shown(validation)


def test_views_of_photographs_scenes_and_pairs(config, tmp_path):
    """All sources of a mixture have six channels."""
    dataset_folders.dpdd(tmp_path / "dpdd", side=20)
    pairs = {"layout": "dpdd", "root": tmp_path / "dpdd"}
    views = {"views": True, "degradation": "camera", "scenes": 1.0, "pairs": pairs}
    source = make_source(DataConfig(**config.model_dump() | views), 1, CROP)
    assert {source.locate(index)[0] for index in range(20)} == {0, 1, 2}
    blurred, sharp = source.batch(0, 20)
    assert blurred.shape == (20, 6, CROP, CROP)
    assert sharp.shape == (20, 3, CROP, CROP)
    assert min(blurred.min(), sharp.min()) >= 0
    assert max(blurred.max(), sharp.max()) <= 1


def test_recipe_of_the_configuration(config):
    """Without any fault but rounding; of photographs and of scenes."""
    none = dict.fromkeys(FAMILIES, 0.0) | {"none": 1.0}
    shares = dict.fromkeys(("highlights", "lamps", "exposed", "contrasted", "noisy", "resized", "jpeg"), 0.0)
    values = {"scenes": 1.0, "degradation": "camera", "recipe": {"families": none, **shares}}
    source = make_source(DataConfig(**config.model_dump() | values), 1, CROP)
    assert {source.locate(index)[0] for index in range(8)} == {0, 1}
    blurred, sharp = source.batch(0, 8)
    assert not torch.equal(blurred, sharp)
    assert float((blurred - sharp).abs().max()) <= 0.5 / 255 + 16 * EPS  # light and back, once more than the truth
    with pytest.raises(ValidationError, match='`recipe` is for the "camera" degradation'):
        DataConfig(recipe={"jpeg": 0.5})


def test_dual_pixel_pairs_for_six_channels(tmp_path):
    dataset_folders.dpdd(tmp_path / "dpdd", side=20)
    config = DataConfig(pairs={"layout": "dpdd", "root": tmp_path / "dpdd"}, views=True, cache=tmp_path / "cache")
    blurred, sharp = make_source(config, 1, CROP).batch(0, 3)
    assert blurred.shape == (3, 6, CROP, CROP)
    assert sharp.shape == (3, 3, CROP, CROP)


def test_configuration():
    assert DataConfig().scenes_share == 1
    assert DataConfig(photos="a").scenes_share == 0
    assert DataConfig(photos=["a", "b"], scenes=0.1).scenes_share == 0.1
    assert DataConfig(photos="~/a").photos[0].is_absolute()
    with pytest.raises(ValidationError, match="there is no source of pairs"):
        DataConfig(scenes=0)
    with pytest.raises(ValidationError, match="finite number"):
        DataConfig(photos="a", photos_share=float("inf"))
    with pytest.raises(ValidationError, match="makes no dual-pixel views"):
        DataConfig(photos="a", views=True)
    with pytest.raises(ValidationError, match="makes no dual-pixel views"):
        DataConfig(walls=1, views=True)
    with pytest.raises(ValidationError, match="Input should be 'dpdd'"):
        DataConfig(pairs={"layout": "goppro", "root": "a"})


@pytest.mark.parametrize("degradation", ["simple", "camera"])
def test_walls_alone_are_a_source(degradation):
    source = make_source(DataConfig(walls=1, degradation=degradation), 1, CROP)
    blurred, sharp = source.batch(3, 2)
    assert blurred.shape == sharp.shape == (2, 3, CROP, CROP)
    assert not torch.equal(blurred, sharp)
    assert torch.equal(sharp[1], source[4][1])
    assert source.describe() == f"100% generated walls ({degradation} degradation)"


def test_a_wrong_folder_is_one_sentence(tmp_path):
    for values, sentence in (
        ({"photos": tmp_path / "none"}, "There is no folder"),
        ({"pairs": {"layout": "gopro", "root": tmp_path}}, "does not hold the layout gopro"),
    ):
        with pytest.raises(SwintormerError, match=sentence):
            make_source(DataConfig(**values), 1, CROP)


def test_mixture_module_has_no_stray_keys():
    """The keys of the parts differ from one another and from those of SyntheticPairs, 0 and 1."""
    keys = [mixture._PHOTOS, mixture._PAIRS, mixture._DEGRADATION, mixture._ORDER, mixture._SCENES]
    assert len({0, 1, *keys, mixture._WALLS}) == 8
    assert len({mixture._OF_SCENES, mixture._OF_PHOTOS, mixture._OF_WALLS}) == 3
