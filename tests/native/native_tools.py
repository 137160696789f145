"""What the tests that build native code share."""

import os
import shutil
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def tool(name: str) -> str:
    """The path of a program, from PATH or beside this Python; a skip where there is none."""
    found = shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))
    if found is None:
        pytest.skip(f"needs {name} on PATH")
    return found


def compiler() -> str:
    """The C++ compiler that the build takes, or a skip."""
    return os.environ.get("CXX") or tool("c++")
