"""Builds the native extension with CMake and Ninja; everything else about the package stands in pyproject.toml.

Installing must always give a working package. If the extension cannot be built, the install goes on without it, says
so, and leaves the reason in swintormer_kernels/_native_absent.txt, where `swintormer_kernels.backends()` finds it.
SWINTORMER_REQUIRE_NATIVE=1 makes that an error, for packagers.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
ABSENCE_NOTE = "_native_absent.txt"  # swintormer_kernels/native.py reads it
CUDA_FOLDER, CUDA_NOTE = "cuda", "built.txt"  # swintormer_kernels/backends/cuda/built.py reads them


class BuildFailed(Exception):
    """The extension cannot be built here; the message is one sentence without full stop."""


class CMakeBuild(build_ext):
    """Builds every extension with CMake, or notes why it could not."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()  # in build_lib; setuptools copies it if in place
        packages = [target.parent]
        if self.editable_mode or self._in_place_wanted:
            packages.append(ROOT / "swintormer_kernels")
        for package in packages:
            package.mkdir(parents=True, exist_ok=True)
            for stale in [package / ABSENCE_NOTE, package / target.name]:
                stale.unlink(missing_ok=True)
            shutil.rmtree(package / CUDA_FOLDER, ignore_errors=True)
        try:
            _build(target.parent, Path(self.build_temp).resolve() / "native", debug=bool(self.debug))
        except BuildFailed as failure:
            if os.environ.get("SWINTORMER_REQUIRE_NATIVE", "0") not in ("", "0"):
                raise SystemExit(f"SWINTORMER_REQUIRE_NATIVE is set and the build failed: {failure}") from None
            for package in packages:
                (package / ABSENCE_NOTE).write_text(f"{failure}\n", encoding="utf-8")
            print(_notice(failure), file=sys.stderr, flush=True)
        made = target.parent / CUDA_FOLDER
        for package in packages:
            if package != target.parent and made.is_dir():
                shutil.copytree(made, package / CUDA_FOLDER, dirs_exist_ok=True)

    def run(self) -> None:
        self._in_place_wanted = bool(self.inplace)  # setuptools' run() clears it while it builds
        super().run()


def _build(output: Path, work: Path, *, debug: bool) -> None:
    try:
        import pybind11
    except ImportError:
        raise BuildFailed("the build needs the package pybind11") from None
    cmake, ninja = _program("cmake"), _program("ninja")
    work.mkdir(parents=True, exist_ok=True)
    # An isolated build sees other paths to CMake and pybind11 each time: configure afresh, keep the object files.
    (work / "CMakeCache.txt").unlink(missing_ok=True)
    settings = {
        "CMAKE_MAKE_PROGRAM": ninja,
        "CMAKE_BUILD_TYPE": "Debug" if debug else "Release",
        "CMAKE_LIBRARY_OUTPUT_DIRECTORY": output,
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
    }
    defines = [f"-D{name}={value}" for name, value in settings.items()]
    _run([cmake, "-S", str(ROOT), "-B", str(work), "-G", "Ninja", *defines])
    _run([cmake, "--build", str(work)])
    _build_cuda(cmake, work, output / CUDA_FOLDER / CUDA_NOTE)


def _build_cuda(cmake: str, work: Path, note: Path) -> None:
    """Builds the fatbins that nvcc takes. The package works without the others, and the note tells the first error."""
    try:
        _run([cmake, "--build", str(work), "--target", "cuda_kernels", "--", "-k", "0"])
    except BuildFailed as failure:
        with note.open("a", encoding="utf-8") as lines:
            lines.write(f"error {failure}\n")
        print(f"Some of the CUDA kernels were not built: {failure}", file=sys.stderr, flush=True)


def _program(name: str) -> str:
    # The scripts folder is not on PATH in `pip install --no-build-isolation` from an environment that is not activated.
    found = shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))
    if found is None:
        raise BuildFailed(f"the build needs {name}, which is not on PATH")
    return found


def _run(command: list[str]) -> None:
    print(" ".join(command), flush=True)
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False
        )
    except OSError as error:
        raise BuildFailed(f"{command[0]} could not be started ({error.strerror})") from error
    print(done.stdout, flush=True)
    if done.returncode:
        raise BuildFailed(f"`{Path(command[0]).name}` failed: {_first_error(done.stdout)}")


def _first_error(output: str) -> str:
    """The first line of `output` that speaks of an error; of CMake's, which only tells where, the three after it."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for i, line in enumerate(lines):
        if line.startswith("CMake Error"):
            return " ".join(lines[i + 1 : i + 4]).rstrip(".")
        if "error" in line.lower():
            return line.rstrip(".")
    return lines[-1].rstrip(".") if lines else "no output"


def _notice(failure: BuildFailed) -> str:
    return "\n".join(
        [
            "=" * 80,
            "swintormer_kernels: the native extension was NOT built. Everything works, on the slower",
            "reference backend. To have it, install a C++17 compiler (GCC or Clang) and install again.",
            f"Reason: {failure}",
            "=" * 80,
        ]
    )


setup(
    ext_modules=[Extension("swintormer_kernels._native", sources=[], optional=True)],
    cmdclass={"build_ext": CMakeBuild},
)
