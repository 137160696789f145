"""Tiny folders in the layouts of the published datasets, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from swintormer.images.picture import wrap
from swintormer.images.writing import save_vips


def picture(path: Path, seed: int = 0, side: int = 8, bits: int = 8, channels: int = 3) -> Path:
    """Write noise of `seed`: (side, side + 2, channels)."""
    rng = np.random.default_rng(seed)
    kind = np.uint8 if bits == 8 else np.uint16
    samples = rng.integers(0, 2**bits, (side, side + 2, channels)).astype(kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_vips(path, wrap(samples))
    return path


def pictures(root: Path, names: Sequence[str], side: int = 8, bits: int = 8) -> None:
    for seed, name in enumerate(names):
        picture(root / name, seed, side, bits)


def dpdd(root: Path, split: str = "train", count: int = 2, side: int = 8) -> Path:
    """The original distribution: the sharp picture bears the next number, the views a suffix."""
    for i in range(count):
        number = 2 * i + 9  # 9 and 11: natural order is not that of the letters
        picture(root / f"{split}_c" / "source" / f"1P0A{number}.png", 4 * i, side, 16)
        picture(root / f"{split}_c" / "target" / f"1P0A{number + 1}.png", 4 * i + 1, side, 16)
        picture(root / f"{split}_l" / "source" / f"1P0A{number}_L.png", 4 * i + 2, side, 16)
        picture(root / f"{split}_r" / "source" / f"1P0A{number}_R.png", 4 * i + 3, side, 16)
    return root


def gopro(root: Path, split: str = "train", side: int = 8) -> Path:
    names = [
        f"{split}/GOPR{scene}/{kind}/00000{i}.png" for scene in (1, 2) for kind in ("blur", "sharp") for i in (1, 2)
    ]
    pictures(root, [*names, f"{split}/GOPR1/blur_gamma/000001.png", f"{split}/GOPR1/blur_gamma/000002.png"], side)
    return root


def hide(root: Path, side: int = 8) -> Path:
    inner = ("train/a1.png", "test/test-close-ups/b1.png", "test/test-long-shot/c1.png")
    pictures(root, [*inner, *(f"GT/{Path(name).name}" for name in inner)], side)
    return root


def realblur(root: Path, kinds: str = "JR", side: int = 8) -> Path:
    """Both lists are always there, the pictures of `kinds` alone."""
    folders = {
        "J": "RealBlur-J_ECC_IMCORR_centroid_itensity_ref",
        "R": "RealBlur-R_BM3D_ECC_IMCORR_centroid_itensity_ref",
    }
    for kind, folder in folders.items():
        for split, scene in (("train", "scene001"), ("test", "scene002")):
            names = [(f"{folder}/{scene}/gt/gt_{i}.png", f"{folder}/{scene}/blur/blur_{i}.png") for i in (1, 2)]
            root.mkdir(parents=True, exist_ok=True)
            lines = "".join(f"{sharp} {blurred} \n" for sharp, blurred in names)
            (root / f"RealBlur_{kind}_{split}_list.txt").write_text(lines)
            if kind in kinds:
                pictures(root, [name for pair in names for name in pair], side)
    return root


def reds(root: Path, side: int = 8) -> Path:
    for split in ("train", "val"):
        names = [f"{split}/{split}_{kind}/00{n}/00000000.png" for kind in ("blur", "sharp") for n in (0, 1)]
        pictures(root, names, side)
    return root


def rsblur(root: Path, side: int = 8) -> Path:
    """The folder RSBlur with the lists beside it."""
    for number, split in enumerate(("train", "val", "test")):
        base = f"RSBlur/0001/00000{number}"
        pair = (f"{base}/gt/gt_sharp.png", f"{base}/real_blur/real_blur.png")
        pictures(root, [*pair, f"{base}/avg65_img/avg_blur.png"], side)
        (root / f"RSBlur_real_{split}.txt").write_text(" ".join(pair) + "\n")
    return root
