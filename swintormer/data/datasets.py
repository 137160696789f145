"""Pairs of blurred and sharp photographs in the folders in which the published datasets come, and in folders of one's own.

`read_pairs` lists files and opens no picture. `root` is the folder that holds what the table shows, or one folder
above it (archives often unpack into a folder of their own).

| layout | splits | folders below the root |
|---|---|---|
| dpdd | train, val, test | `SPLIT_c/source` blurred, `SPLIT_c/target` sharp, `SPLIT_l/source`, `SPLIT_r/source` the dual-pixel views (dd_dp_dataset_canon, 16-bit PNG); or `[SPLIT/]inputC`, `inputL`, `inputR`, `target` (Restormer's copy) |
| realdof | test | `source`, `target` |
| gopro | train, test | `SPLIT/SCENE/blur`, `blur_gamma`, `sharp` |
| hide | train, test | `train/*`, `test/test-close-ups/*`, `test/test-long-shot/*` blurred, `GT/*` sharp, of the same names |
| realblur | train, test | `RealBlur_J_SPLIT_list.txt`, a line "sharp blurred" a pair, with paths below `RealBlur-J_ECC_IMCORR_centroid_itensity_ref/`; the same for R |
| reds | train, val | `[SPLIT/]SPLIT_blur/NUMBER/*`, `[SPLIT/]SPLIT_sharp/NUMBER/*` (the truths of the test split are not public) |
| rsblur | train, val, test | `RSBlur_real_SPLIT.txt`, a line "sharp blurred" a pair, with paths `RSBlur/SCENE/NUMBER/gt/gt_sharp.png` and `.../real_blur/real_blur.png`; the lists come from the authors' repository |
| folders | any | `[SPLIT/]blurred`, `[SPLIT/]sharp`, if there are dual-pixel views also `[SPLIT/]left`, `[SPLIT/]right` |

realdof, gopro, hide and realblur are also read as `[SPLIT/]input`, `target`, as Restormer and its successors pass them
on; without the SPLIT folder, which such copies lack where they hold the test split alone, they are the test split.

Pairs are matched by their path without suffix. Only in `dpdd`, where a sharp picture bears the next photograph's
number, it is the natural order of the names that matches, and equal counts are required.
"""  # noqa: E501

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from swintormer.data.cache import Say, to_stderr
from swintormer.errors import SwintormerError
from swintormer.images.files import is_folder, reason, some_names
from swintormer.images.formats import SUFFIXES, reads

Layout = Literal["dpdd", "realdof", "gopro", "hide", "realblur", "reds", "rsblur", "folders"]
Split = Literal["train", "val", "test"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)


@dataclass(frozen=True)
class PairFiles:
    """The files of one pair.

    Attributes:
        name: of the pair, unique within the split; may contain slashes.
        blurred, sharp: the picture and its truth.
        left, right: the dual-pixel views; both or neither.
        group: what scores are averaged over beside the whole: "indoor", "outdoor" (dpdd's test split, if
            indoor_labels.npy and outdoor_labels.npy of Restormer's copy lie at the root or beside the pictures),
            "test-close-ups" (hide), "J", "R" (realblur), a scene; "" without any.
        scene: what the pair shows, where the dataset has several pairs of it, such as the frames of a video; they must
            not be divided between training and validation. "" where every pair shows something else.
    """

    name: str
    blurred: Path
    sharp: Path
    left: Path | None = None
    right: Path | None = None
    group: str = ""
    scene: str = ""


def read_pairs(layout: str, root: str | Path, split: str = "train") -> list[PairFiles]:
    """The pairs of one split, in natural order of their names; at least one.

    Raises:
        SwintormerError: there is no such layout, split or folder; the folder has another layout; or pictures have no
            partner. One sentence: which folders were looked for, and what was found.
    """
    if layout not in LAYOUTS:
        raise SwintormerError(f"There is no dataset layout {layout!r}: choose one of {', '.join(LAYOUTS)}.")
    reader = _READERS[layout]
    if split not in reader.splits:
        raise SwintormerError(
            f"The layout {layout} has no split {split!r}: choose {' or '.join(reader.splits)}"
            + (", the truths of its test split are not public." if layout == "reds" else ".")
        )
    root = Path(root)
    if not is_folder(root):
        raise SwintormerError(f"There is no folder {root}: give the folder that holds the dataset {layout}.")
    pairs = reader.read(root, split)
    if pairs:
        return pairs
    inner = [place for place in _subfolders(root) if place.name not in get_args(Split)]  # another split is no answer
    found = [(place, pairs) for place in inner if (pairs := reader.read(place, split))]
    if len(found) > 1:
        raise SwintormerError(
            f"Several folders in {root} have the layout {layout}, {found[0][0].name} and {found[1][0].name}: name one."
        )
    if found:
        return found[0][1]
    raise SwintormerError(
        f"{root} does not hold the layout {layout}: looked for {reader.wanted.replace('SPLIT', split)}; "
        f"found {_content(root)}."
    )


def pair_folders(
    blurred: str | Path, sharp: str | Path, right: str | Path | None = None, left: str | Path | None = None
) -> list[PairFiles]:
    """Pairs of two folders of one's own, nested or not, matched by relative path without suffix.

    Args:
        right: the second dual-pixel view of every picture. The first is in `left`, or in `blurred` if that is None.

    Raises:
        SwintormerError: a folder is missing or holds no picture; a picture has no partner, or two share a name.
    """
    folders = {"blurred": Path(blurred), "sharp": Path(sharp)}
    if right is not None:
        folders |= {"left": Path(blurred if left is None else left), "right": Path(right)}
    found = {}
    for kind, folder in folders.items():
        if not is_folder(folder):
            raise SwintormerError(f"There is no folder {folder}: give the folder of the pictures ({kind}).")
        found[kind] = _by_name(folder)
    return _match(found, folders)


# Files and folders
def find_pictures(folder: Path, say: Say = to_stderr) -> list[Path]:
    """All pictures below a folder, told by their names' endings, in natural order; hidden files are left out.

    Links are followed, as collections are often put together from them, but no folder is entered twice.

    Args:
        say: takes the names of pictures in formats that are not read here, which are left out.

    Raises:
        SwintormerError: a folder cannot be read.
    """
    found = sorted(_walk(folder), key=_natural)
    foreign = [str(path) for path in found if not reads(path)]
    if foreign:
        say(f"Left out, in formats that are not read here: {some_names(foreign)}.")
    return [path for path in found if reads(path)]


def _walk(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise SwintormerError(f"Cannot read the folder {error.filename}: {reason(error)}.") from error

    entered = set()
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        if (real := os.path.realpath(place)) in entered:  # also a link to a folder above
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:  # "._name.png" is what other systems leave beside a picture
            if not name.startswith(".") and reads(Path(name)) is not None:
                yield Path(place, name)


def _natural(path: Path) -> tuple[tuple[tuple[int, int | str], ...], ...]:
    """Sort key that puts 2.png before 10.png; numbers come before words."""
    parts = (re.findall(r"\d+|\D+", part) for part in path.parts)
    return tuple(tuple((0, int(bit)) if bit.isdecimal() else (1, bit) for bit in part) for part in parts)


def _subfolders(folder: Path) -> list[Path]:
    return [place for place in _entries(folder) if place.is_dir() and not place.name.startswith(".")]


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir(), key=_natural)
    except OSError as error:
        raise SwintormerError(f"Cannot read the folder {folder}: {reason(error)}.") from error


def _content(folder: Path) -> str:
    """What a folder holds, in a few words."""
    names = [place.name + "/" * place.is_dir() for place in _entries(folder) if not place.name.startswith(".")]
    return some_names(names) if names else "an empty folder"


def _by_name(folder: Path) -> dict[str, Path]:
    """Pictures below a folder by their relative path without suffix. At least one."""
    found: dict[str, Path] = {}
    for path in find_pictures(folder):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise SwintormerError(
                f"{found[name]} and {path} have the same name but for its ending: keep one of them, names match pairs."
            )
        found[name] = path
    if not found:
        raise SwintormerError(f"There is no picture below {folder}: looked for names in {', '.join(SUFFIXES)}.")
    return found


def _match(found: dict[str, dict[str, Path]], folders: dict[str, Path], group: str = "") -> list[PairFiles]:
    """Pairs of what has the same name in every folder; a name that one of them lacks is an error."""
    for first, second in (("blurred", "sharp"), ("sharp", "blurred"), ("blurred", "left"), ("blurred", "right")):
        if second not in found:
            continue
        alone = [name for name in found[first] if name not in found[second]]
        if alone:
            raise SwintormerError(
                f"{len(alone)} of {len(found[first])} pictures in {folders[first]} have no partner in "
                f"{folders[second]}, the first is {alone[0]}: partners have the same path without suffix."
            )
    views = "left" in found
    return [
        PairFiles(
            name,
            found["blurred"][name],
            found["sharp"][name],
            found["left"][name] if views else None,
            found["right"][name] if views else None,
            group,
        )
        for name in found["blurred"]
    ]


def _in_order(folders: Sequence[Path]) -> list[tuple[Path, ...]]:
    """Files of several folders matched by natural order, for names that differ by number."""
    lists = [find_pictures(folder) for folder in folders]
    if len({len(files) for files in lists}) > 1:
        counts = ", ".join(f"{len(files)} in {folder}" for files, folder in zip(lists, folders, strict=True))
        raise SwintormerError(
            f"Pairs are matched by order, but the folders hold unequal numbers of pictures: {counts}."
        )
    return list(zip(*lists, strict=True))


# One reader a layout. Each returns [] if the folder has another layout.
def _dpdd(place: Path, split: str) -> list[PairFiles]:
    original = [place / f"{split}_{side}" / "source" for side in "clr"]
    folders = [original[0], place / f"{split}_c" / "target", *original[1:]]
    if not _all_folders(folders[:2]):
        here = _split_folder(place, split, "inputC", "target")
        if here is None:
            return []
        folders = [here / name for name in ("inputC", "target", "inputL", "inputR")]
    views = _all_folders(folders[2:])
    groups = _dpdd_groups(folders[0].parent, place)
    pairs = []
    for number, files in enumerate(_in_order(folders if views else folders[:2])):
        left, right = files[2:] if views else (None, None)
        group = groups.get(number, "") if split == "test" else ""
        pairs.append(PairFiles(files[0].stem, files[0], files[1], left, right, group))
    return pairs


def _dpdd_groups(*places: Path) -> dict[int, str]:
    """Indoor or outdoor by position in the test split, from the arrays of positions (from 1) in Restormer's copy."""
    groups: dict[int, str] = {}
    for group in ("indoor", "outdoor"):
        for place in places:
            path = place / f"{group}_labels.npy"
            if not path.is_file():
                continue
            try:
                positions = np.load(path, allow_pickle=False)
            except (OSError, ValueError) as error:
                raise SwintormerError(f"{path} is not an array of positions: copy it again or remove it.") from error
            groups |= {int(position) - 1: group for position in positions.reshape(-1)}
            break
    return groups


def _realdof(place: Path, split: str) -> list[PairFiles]:
    if _all_folders([place / "source", place / "target"]):
        return pair_folders(place / "source", place / "target")
    return _input_target(place, split)


def _gopro(place: Path, split: str) -> list[PairFiles]:
    """`blur` is what papers report on. Training takes `blur_gamma`, the same through a camera's curve, as well."""
    pairs: list[PairFiles] = []
    for scene in _subfolders(place / split) if (place / split).is_dir() else []:
        if not (scene / "sharp").is_dir():
            continue
        kinds = [kind for kind in ("blur", "blur_gamma") if (scene / kind).is_dir()]
        for kind in kinds if split == "train" else kinds[:1]:
            files = pair_folders(scene / kind, scene / "sharp")
            pairs += [
                PairFiles(f"{scene.name}/{kind}/{p.name}", p.blurred, p.sharp, group=scene.name, scene=scene.name)
                for p in files
            ]
    return pairs or _input_target(place, split)


def _hide(place: Path, split: str) -> list[PairFiles]:
    if not _all_folders([place / split, place / "GT"]):
        return _input_target(place, split)
    truths = {path.stem: path for path in find_pictures(place / "GT")}
    pairs = []
    for path in find_pictures(place / split):
        if path.stem not in truths:
            raise SwintormerError(f"{path} has no partner of the same name in {place / 'GT'}: copy the dataset again.")
        inner = path.relative_to(place / split).with_suffix("")
        pairs.append(PairFiles(inner.as_posix(), path, truths[path.stem], group=inner.parent.as_posix().strip(".")))
    return pairs


def _realblur(place: Path, split: str) -> list[PairFiles]:
    pairs: list[PairFiles] = []
    for kind in "JR":
        lines = _list_file(place / f"RealBlur_{kind}_{split}_list.txt")
        if lines and (place / lines[0][0]).parent.is_dir():  # often only one of the two was downloaded
            pairs += _listed(lines, place, kind)
    return pairs or _input_target(place, split)


def _reds(place: Path, split: str) -> list[PairFiles]:
    here = _split_folder(place, split, f"{split}_blur", f"{split}_sharp", alone=True)
    if here is None:
        return []
    pairs = pair_folders(here / f"{split}_blur", here / f"{split}_sharp")
    scenes = [p.name.rpartition("/")[0] for p in pairs]
    return [
        PairFiles(p.name, p.blurred, p.sharp, group=scene, scene=scene) for p, scene in zip(pairs, scenes, strict=True)
    ]


def _rsblur(place: Path, split: str) -> list[PairFiles]:
    name = f"RSBlur_real_{split}.txt"
    for path in (place / name, place / "datalist" / "RSBlur" / name):
        lines = _list_file(path)
        bases = [base for base in (place, place.parent) if lines and (base / lines[0][0]).is_file()]
        if bases:
            return _listed(lines, bases[0], "")
    return []


def _folders(place: Path, split: str) -> list[PairFiles]:
    here = _split_folder(place, split, "blurred", "sharp", alone=True)
    if here is None:
        return []
    if not _all_folders([here / "left", here / "right"]):
        return pair_folders(here / "blurred", here / "sharp")
    return pair_folders(here / "blurred", here / "sharp", here / "right", here / "left")


def _input_target(place: Path, split: str) -> list[PairFiles]:
    here = _split_folder(place, split, "input", "target")
    return [] if here is None else pair_folders(here / "input", here / "target")


def _split_folder(place: Path, split: str, *names: str, alone: bool = False) -> Path | None:
    """`place/split`, or `place` itself for the test split or where `alone`, if it holds the folders `names`."""
    candidates = [place / split, *([place] if alone or split == "test" else [])]
    return next((here for here in candidates if _all_folders([here / name for name in names])), None)


def _all_folders(folders: Sequence[Path]) -> bool:
    return all(is_folder(folder) for folder in folders)


def _list_file(path: Path) -> list[tuple[str, str]]:
    """(sharp, blurred) of every line of a list file; [] if there is none."""
    if not path.is_file():
        return []
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise SwintormerError(f"Cannot read the list of pairs {path}: {error}.") from error
    if any(len(line) < 2 for line in lines):
        raise SwintormerError(f"{path} is no list of pairs: every line must name a sharp and a blurred picture.")
    return [(line[0], line[1]) for line in lines]


def _listed(lines: list[tuple[str, str]], base: Path, group: str) -> list[PairFiles]:
    """Pairs of a list file, whose paths begin with FOLDER/SCENE/ in RealBlur, J and R alike, and in RSBlur."""
    pairs = []
    for sharp, blurred in lines:
        for path in (base / sharp, base / blurred):
            if not path.is_file():
                raise SwintormerError(f"The list of pairs names {path}, which is missing: unpack the dataset again.")
        name, places = Path(blurred).with_suffix("").as_posix(), Path(blurred).parts
        scene = places[1] if len(places) > 2 else ""
        pairs.append(PairFiles(name, base / blurred, base / sharp, group=group, scene=scene))
    return pairs


@dataclass(frozen=True)
class _Reader:
    read: Callable[[Path, str], list[PairFiles]]
    splits: tuple[Split, ...]
    wanted: str


_INPUT_TARGET = "or SPLIT/input and SPLIT/target"
_READERS: dict[str, _Reader] = {
    "dpdd": _Reader(
        _dpdd,
        ("train", "val", "test"),
        "SPLIT_c/source and SPLIT_c/target (and SPLIT_l/source, SPLIT_r/source), or SPLIT/inputC and SPLIT/target",
    ),
    "realdof": _Reader(_realdof, ("test",), f"source and target, {_INPUT_TARGET}"),
    "gopro": _Reader(_gopro, ("train", "test"), f"scenes SPLIT/SCENE/blur and SPLIT/SCENE/sharp, {_INPUT_TARGET}"),
    "hide": _Reader(_hide, ("train", "test"), f"the blurred pictures below SPLIT and the sharp in GT, {_INPUT_TARGET}"),
    "realblur": _Reader(
        _realblur, ("train", "test"), f"RealBlur_J_SPLIT_list.txt beside the folder that it names, {_INPUT_TARGET}"
    ),
    "reds": _Reader(_reds, ("train", "val"), "SPLIT_blur and SPLIT_sharp, also below SPLIT"),
    "rsblur": _Reader(
        _rsblur, ("train", "val", "test"), "RSBlur_real_SPLIT.txt beside or in the folder RSBlur that it names"
    ),
    "folders": _Reader(_folders, ("train", "val", "test"), "blurred and sharp, also below SPLIT"),
}
