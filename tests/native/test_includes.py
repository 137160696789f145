"""Which folder of csrc/ may include which."""

import re
from pathlib import Path

CSRC = Path(__file__).parents[2] / "csrc"
BELOW = {
    "base": set(),
    "block": {"base"},
    "cuda": set(),
    "denoiser": {"base"},
    "dispatch": {"base", "block", "denoiser"},
    "python": {"base", "cuda", "dispatch"},
}


def test_folders_include_only_those_below_them() -> None:
    assert {folder.name for folder in CSRC.iterdir()} == set(BELOW)
    for file in CSRC.glob("*/*.*"):
        for name in re.findall(r'#include "(?:\.\./)+(\w+)/', file.read_text()):
            assert name in BELOW[file.parent.name], f"{file.relative_to(CSRC)} includes from {name}/"
