"""Readers of the published datasets' folders, on tiny folders in each layout."""

import dataset_folders
import numpy as np
import pytest
from dataset_folders import picture, pictures

from swintormer.data.datasets import LAYOUTS, find_pictures, pair_folders, read_pairs
from swintormer.errors import SwintormerError


def test_dpdd_original(tmp_path):
    """Sharp pictures and views are matched by order, which is that of the numbers."""
    dataset_folders.dpdd(tmp_path, "test")
    pairs = read_pairs("dpdd", tmp_path, "test")
    assert [p.name for p in pairs] == ["1P0A9", "1P0A11"]
    assert [p.sharp.name for p in pairs] == ["1P0A10.png", "1P0A12.png"]
    assert [(p.left.name, p.right.name) for p in pairs] == [
        ("1P0A9_L.png", "1P0A9_R.png"),
        ("1P0A11_L.png", "1P0A11_R.png"),
    ]
    assert [p.group for p in pairs] == ["", ""]
    with pytest.raises(SwintormerError, match="does not hold the layout dpdd: looked for train_c/source and train_c/"):
        read_pairs("dpdd", tmp_path, "train")


def test_dpdd_needs_equal_counts(tmp_path):
    picture(dataset_folders.dpdd(tmp_path) / "train_l" / "source" / "more.png")
    with pytest.raises(SwintormerError, match=r"unequal numbers of pictures: 2 in .*train_c/source, .*3 in .*train_l"):
        read_pairs("dpdd", tmp_path)


def test_dpdd_of_restormer_with_labels(tmp_path):
    for side in "CLR":
        pictures(tmp_path / f"input{side}", ["a.png", "b.png", "c.png"])
    pictures(tmp_path / "target", ["a.png", "b.png", "c.png"])
    np.save(tmp_path / "indoor_labels.npy", np.array([1, 3]))
    np.save(tmp_path / "outdoor_labels.npy", np.array([2]))
    pairs = read_pairs("dpdd", tmp_path, "test")
    assert [(p.name, p.group) for p in pairs] == [("a", "indoor"), ("b", "outdoor"), ("c", "indoor")]
    assert pairs[0].left == tmp_path / "inputL" / "a.png"
    with pytest.raises(SwintormerError, match="dpdd"):  # a folder without a split's name is the test split
        read_pairs("dpdd", tmp_path, "train")


def test_realdof(tmp_path):
    pictures(tmp_path, ["RealDOF/source/1.png", "RealDOF/target/1.png"])
    (pair,) = read_pairs("realdof", tmp_path, "test")  # found in the folder that the archive unpacks
    assert (pair.blurred, pair.sharp) == (tmp_path / "RealDOF/source/1.png", tmp_path / "RealDOF/target/1.png")
    with pytest.raises(SwintormerError, match="realdof has no split 'train': choose test"):
        read_pairs("realdof", tmp_path, "train")


def test_gopro(tmp_path):
    """Scores are of `blur`; training takes `blur_gamma`, too."""
    dataset_folders.gopro(tmp_path, "train")
    dataset_folders.gopro(tmp_path, "test")
    assert len(read_pairs("gopro", tmp_path, "train")) == 6
    pairs = read_pairs("gopro", tmp_path, "test")
    assert [p.name for p in pairs] == [f"GOPR{s}/blur/00000{i}" for s in (1, 2) for i in (1, 2)]
    assert pairs[0].sharp == tmp_path / "test/GOPR1/sharp/000001.png"
    assert pairs[0].group == "GOPR1"


def test_gopro_partners(tmp_path):
    (dataset_folders.gopro(tmp_path) / "train/GOPR2/sharp/000002.png").unlink()
    with pytest.raises(SwintormerError, match=r"1 of 2 pictures in .*GOPR2/blur have no partner.*first is 000002"):
        read_pairs("gopro", tmp_path)


def test_hide(tmp_path):
    dataset_folders.hide(tmp_path)
    pairs = read_pairs("hide", tmp_path, "test")
    assert [(p.name, p.group) for p in pairs] == [
        ("test-close-ups/b1", "test-close-ups"),
        ("test-long-shot/c1", "test-long-shot"),
    ]
    assert pairs[0].sharp == tmp_path / "GT/b1.png"
    assert [(p.name, p.group) for p in read_pairs("hide", tmp_path, "train")] == [("a1", "")]


def test_realblur(tmp_path):
    dataset_folders.realblur(tmp_path / "both")
    dataset_folders.realblur(tmp_path / "one", "R")
    assert [p.group for p in read_pairs("realblur", tmp_path / "both", "test")] == ["J", "J", "R", "R"]
    pairs = read_pairs("realblur", tmp_path / "one", "test")
    assert [p.group for p in pairs] == ["R", "R"]
    assert pairs[0].blurred.name == "blur_1.png"
    assert pairs[0].sharp.name == "gt_1.png"
    pairs[1].sharp.unlink()
    with pytest.raises(SwintormerError, match=r"The list of pairs names .*gt_2\.png, which is missing"):
        read_pairs("realblur", tmp_path / "one", "test")


@pytest.mark.parametrize("layout", ["gopro", "hide", "realblur", "realdof"])
def test_input_and_target(tmp_path, layout):
    """As Restormer and its successors pass the sets on."""
    pictures(tmp_path, ["input/1.png", "target/1.png"])
    assert len(read_pairs(layout, tmp_path, "test")) == 1


def test_reds(tmp_path):
    dataset_folders.reds(tmp_path)
    pairs = read_pairs("reds", tmp_path, "val")
    assert [(p.name, p.group) for p in pairs] == [("000/00000000", "000"), ("001/00000000", "001")]
    assert pairs[0].blurred == tmp_path / "val/val_blur/000/00000000.png"
    with pytest.raises(SwintormerError, match="choose train or val, the truths of its test split are not public"):
        read_pairs("reds", tmp_path, "test")


def test_rsblur(tmp_path):
    dataset_folders.rsblur(tmp_path)
    for number, split in enumerate(("train", "val", "test")):
        (pair,) = read_pairs("rsblur", tmp_path, split)
        assert pair.sharp == tmp_path / f"RSBlur/0001/00000{number}/gt/gt_sharp.png"
        assert pair.blurred.name == "real_blur.png"
    for path in tmp_path.glob("*.txt"):  # the lists may lie inside, too
        path.rename(tmp_path / "RSBlur" / path.name)
    assert read_pairs("rsblur", tmp_path / "RSBlur", "val")[0].blurred.is_file()


def test_folders_of_ones_own(tmp_path):
    """Nested, in any of the formats, whatever the endings; hidden files are no pictures."""
    pictures(tmp_path / "blurred", ["1.png", "in/2.jpg", "in/deep/3.webp", "10.tif"])
    pictures(tmp_path / "sharp", ["1.jpg", "in/2.png", "in/deep/3.tiff", "10.png"])
    (tmp_path / "blurred" / "._1.png").write_bytes(b"resource fork")
    (tmp_path / "sharp" / "notes.txt").write_text("mine")
    pairs = read_pairs("folders", tmp_path, "train")
    assert [p.name for p in pairs] == ["1", "10", "in/2", "in/deep/3"]
    assert all(p.sharp.is_file() and p.left is None for p in pairs)


def test_links_are_followed_and_circles_end(tmp_path):
    pictures(tmp_path, ["elsewhere/2.png", "mine/1.png", "mine/in/3.png"])
    (tmp_path / "mine" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "mine" / "in" / "circle").symlink_to(tmp_path / "mine")
    names = [path.relative_to(tmp_path / "mine").as_posix() for path in find_pictures(tmp_path / "mine")]
    assert names == ["1.png", "in/3.png", "linked/2.png"]


def test_folders_of_splits_and_views(tmp_path):
    for split in ("train", "test"):
        pictures(tmp_path / split, [f"{kind}/{split}.png" for kind in ("blurred", "sharp", "left", "right")])
    (pair,) = read_pairs("folders", tmp_path, "test")
    assert pair.left == tmp_path / "test/left/test.png"
    with pytest.raises(SwintormerError, match="looked for blurred and sharp, also below val; found test/, train/"):
        read_pairs("folders", tmp_path, "val")


def test_two_folders_with_a_right_view(tmp_path):
    pictures(tmp_path, ["b/1.png", "s/1.png", "r/1.png"])
    (pair,) = pair_folders(tmp_path / "b", tmp_path / "s", tmp_path / "r")
    assert pair.left == pair.blurred == tmp_path / "b/1.png"
    assert pair.right == tmp_path / "r/1.png"


def test_two_pictures_of_one_name(tmp_path):
    pictures(tmp_path, ["b/1.png", "b/1.jpg", "s/1.png"])
    with pytest.raises(SwintormerError, match=r"1\.jpg and .*1\.png have the same name but for its ending"):
        pair_folders(tmp_path / "b", tmp_path / "s")


def test_truths_without_partner(tmp_path):
    pictures(tmp_path, ["b/1.png", "s/1.png", "s/2.png"])
    with pytest.raises(SwintormerError, match=r"1 of 2 pictures in .*s have no partner in .*b, the first is 2"):
        pair_folders(tmp_path / "b", tmp_path / "s")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_wrong_folder(tmp_path, layout):
    """One sentence names what was looked for and what was found."""
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "a.txt").write_text("x")
    with pytest.raises(SwintormerError) as raised:
        read_pairs(layout, tmp_path, "val" if layout == "reds" else "test")
    assert f"does not hold the layout {layout}: looked for " in str(raised.value)
    assert str(raised.value).endswith("found holiday/.")
    with pytest.raises(SwintormerError, match=r"There is no folder .*missing"):
        read_pairs(layout, tmp_path / "missing", "val" if layout == "reds" else "test")


def test_two_datasets_in_one_folder(tmp_path):
    pictures(tmp_path, [f"{name}/{kind}/1.png" for name in ("test_c", "train_c") for kind in ("source", "target")])
    with pytest.raises(SwintormerError, match=r"Several folders in .* have the layout realdof, test_c and train_c"):
        read_pairs("realdof", tmp_path, "test")


def test_unknown_layout(tmp_path):
    with pytest.raises(SwintormerError, match="no dataset layout 'goppro': choose one of dpdd, realdof"):
        read_pairs("goppro", tmp_path)
