"""Which CUDA kernels the build makes, and the note of it, with an nvcc that only writes down how it is called."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from swintormer_kernels.backends.cuda.built import Built, built

ROOT = Path(__file__).resolve().parents[2]
KERNELS = sorted({file.stem for file in (ROOT / "csrc" / "cuda" / "kernels").glob("*.cu")} - {"candidates"})
NVCC = """#!/bin/sh
case "$1" in
  --version) echo "Cuda compilation tools, release {version}, V{version}.0" ;;
  --list-gpu-code) printf '{codes}' ;;
  *) echo "$@" >> {folder}/calls
     case "$*" in *{fails}.cu*) echo "{fails}.cu(1): error: the test wants it"; exit 1 ;; esac
     while [ "$1" != -o ]; do shift; done; touch "$2" ;;
esac
"""


@pytest.fixture(scope="module")
def cmake(tmp_path_factory):
    """(settings of CMake) -> folder of the fatbins; calls of the same test share a build folder."""
    pytest.importorskip("pybind11")
    scripts = sysconfig.get_path("scripts")  # not on PATH where the environment is not activated
    program, ninja = (shutil.which(name) or shutil.which(name, path=scripts) for name in ("cmake", "ninja"))
    if program is None or ninja is None or shutil.which("c++") is None:
        pytest.skip("needs cmake, ninja and c++")
    import pybind11

    work = tmp_path_factory.mktemp("work")

    def configure(output, **settings):
        common = {"CMAKE_MAKE_PROGRAM": ninja, "Python_EXECUTABLE": sys.executable, "SWINTORMER_ISAS": "portable"}
        common |= {"pybind11_DIR": pybind11.get_cmake_dir(), "CMAKE_LIBRARY_OUTPUT_DIRECTORY": output}
        defines = [f"-D{name}={value}" for name, value in {**common, **settings}.items()]
        command = [program, "-S", str(ROOT), "-B", str(work), "-G", "Ninja", *defines]
        subprocess.run(command, check=True, capture_output=True)
        return output / "cuda"

    configure.program, configure.work = program, work
    return configure


def fake_nvcc(folder, version="13.0", codes="sm_75 sm_80 sm_90 sm_100 sm_120", fails="nothing"):
    nvcc = folder / "nvcc"
    lines = "".join(f"{code}\\n" for code in codes.split())
    nvcc.write_text(NVCC.format(version=version, codes=lines, folder=folder, fails=fails))
    nvcc.chmod(0o755)
    return nvcc


def build_cuda(cmake, folder):
    """setup.py's own function."""
    import setuptools

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", lambda **_: None)
        functions = runpy.run_path(str(ROOT / "setup.py"))
    functions["_build_cuda"](cmake.program, cmake.work, folder / "built.txt")


def read(folder):
    return built.__wrapped__(folder)


def test_every_kernel_for_every_architecture_that_nvcc_knows(cmake, tmp_path, capfd):
    folder = cmake(tmp_path, SWINTORMER_NVCC=fake_nvcc(tmp_path), SWINTORMER_CUDA="", SWINTORMER_CUDA_ARCHS="")
    build_cuda(cmake, folder)
    assert read(folder) == Built(frozenset(KERNELS), (13, 0), (80, 90, 100, 120), 90, None)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == len(KERNELS)
    for arch, code in (("80", "sm_80"), ("90", "sm_90"), ("100", "sm_100"), ("120", "sm_120"), ("90", "compute_90")):
        assert all(f"-gencode arch=compute_{arch},code={code}" in call for call in calls)


def test_an_older_nvcc_and_a_narrower_list(cmake, tmp_path):
    nvcc = fake_nvcc(tmp_path, "12.4", "sm_80 sm_89 sm_90")
    for archs, expected in (("", ((80, 90), 90)), ("80", ((80,), None)), ("80, 90", ((80, 90), None))):
        folder = cmake(tmp_path, SWINTORMER_NVCC=nvcc, SWINTORMER_CUDA="", SWINTORMER_CUDA_ARCHS=archs)
        found = read(folder)
        assert (found.nvcc, (found.architectures, found.ptx)) == ((12, 4), expected)
    told = "nvcc 12.4 knows none of the architectures of the kernels, 80, 90, 100, 120, "
    for archs, wanted in (("120", "(120)"), ("86 89", "(86, 89)")):
        folder = cmake(tmp_path, SWINTORMER_NVCC=nvcc, SWINTORMER_CUDA="", SWINTORMER_CUDA_ARCHS=archs)
        assert read(folder).why_absent == f"{told}that SWINTORMER_CUDA_ARCHS asks for {wanted}"


def test_a_kernel_that_does_not_compile_is_noted_and_the_others_are_built(cmake, tmp_path, capfd):
    nvcc = fake_nvcc(tmp_path, fails="ddim_step")
    folder = cmake(tmp_path, SWINTORMER_NVCC=nvcc, SWINTORMER_CUDA="", SWINTORMER_CUDA_ARCHS="")
    build_cuda(cmake, folder)
    found = read(folder)
    assert found.images == frozenset(KERNELS) - {"ddim_step"}
    assert found.why_absent == "`cmake` failed: ddim_step.cu(1): error: the test wants it"
    assert "Some of the CUDA kernels were not built" in capfd.readouterr().err


def test_without_nvcc_and_left_out(cmake, tmp_path):
    folder = cmake(tmp_path, SWINTORMER_NVCC="", SWINTORMER_CUDA="", SWINTORMER_CUDA_ARCHS="")
    reason = "nvcc is not on PATH; install CUDA 12.8 or newer and `pip install -e .` again"
    assert read(folder) == Built(frozenset(), None, (), None, reason)
    folder = cmake(tmp_path, SWINTORMER_NVCC=fake_nvcc(tmp_path), SWINTORMER_CUDA="0", SWINTORMER_CUDA_ARCHS="")
    assert read(folder).why_absent == "SWINTORMER_CUDA=0 left them out"
