"""What spandrel imports of torchvision, by name alone: for tests where torchvision is not installed.

It is not installed with the package, and its wheels for the CPU are on no index that the tests may count on. None of
its functions is called: the architectures that use them are not loaded.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
import types

import pytest

NAMES = ("InterpolationMode", "rotate", "normalize")


def have_torchvision(patch: pytest.MonkeyPatch) -> None:
    """Put the stand-in into sys.modules unless there is a torchvision that can be imported."""
    try:
        importlib.import_module("torchvision.transforms.functional")
    except (ImportError, RuntimeError):  # RuntimeError: it was built for another torch
        made: dict[str, types.ModuleType] = {}
        for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
            made[name] = types.ModuleType(name)
            made[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
            patch.setitem(sys.modules, name, made[name])
        for name in NAMES:
            setattr(made["torchvision.transforms.functional"], name, object)
