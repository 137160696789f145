"""The kernels under sanitizers: drive_ops.cpp by default, on one instruction set, and everything with -m slow.

Then it is every instruction set, and the address sanitizer also watches the ops as Python calls them, with packed
weights of their exact size.
"""

import os
import subprocess
import sys

import pytest
from native_tools import ROOT, compiler, tool

# The kernels allocate nothing but a pool of threads that is meant to stay, so looking for leaks would find nothing; and
# it fails in containers that forbid ptrace.
SETTINGS = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1", "PYTHONPATH": str(ROOT)}


def run(command, **environment):
    return subprocess.run(
        [str(word) for word in command],
        env={**os.environ, **SETTINGS, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def skip_without(sanitizers, folder):
    source, program = folder / "empty.cpp", folder / "empty"
    source.write_text("int main() {}\n")
    links = run([compiler(), f"-fsanitize={sanitizers}", source, "-o", program]).returncode == 0
    if not links or run([program]).returncode != 0:
        pytest.skip(f"the compiler has no -fsanitize={sanitizers}, or its programs do not run here")


def build(target, sanitizers, isas, folder):
    cmake, ninja = tool("cmake"), tool("ninja")
    skip_without(sanitizers, folder)
    pybind11 = pytest.importorskip("pybind11")
    settings = {
        "SWINTORMER_SANITIZERS": sanitizers,
        "SWINTORMER_ISAS": ";".join(isas),
        "CMAKE_BUILD_TYPE": "None",
        "CMAKE_MAKE_PROGRAM": ninja,
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
    }
    defines = [f"-D{name}={value}" for name, value in settings.items()]
    for command in (
        [cmake, "-S", ROOT, "-B", folder, "-G", "Ninja", *defines],
        [cmake, "--build", folder, "--target", target],
    ):
        done = run(command)
        assert done.returncode == 0, done.stdout + done.stderr


def drive_ops(sanitizers, isas, folder):
    build("drive_ops", sanitizers, isas, folder)
    done = run([folder / "drive_ops"])
    assert done.stdout.split() == [word for isa in isas for word in (isa, "ok")], done.stdout + done.stderr
    assert done.returncode == 0, done.stderr


# 19 s of one core; every op's tails are those of the preferred instruction set.
def test_no_op_does_what_a_sanitizer_forbids(tmp_path, extension):
    drive_ops("address,undefined", extension.supported_isas()[:1], tmp_path)


# 7 s of one core; all instruction sets share what has to do with threads.
def test_threads_do_not_race(tmp_path):
    drive_ops("thread", ["portable"], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_no_instruction_set_does_what_a_sanitizer_forbids(sanitizers, tmp_path, extension):
    drive_ops(sanitizers, extension.supported_isas(), tmp_path)


@pytest.mark.slow
def test_no_call_from_python_does_what_a_sanitizer_forbids(tmp_path, extension):
    build("_native", "address,undefined", extension.supported_isas(), tmp_path)
    (library,) = tmp_path.glob("_native*")
    preloaded = run([compiler(), "-print-file-name=libasan.so"]).stdout.strip()
    program = ROOT / "tests" / "native" / "run_checked.py"
    done = run([sys.executable, program, library], LD_PRELOAD=preloaded, OMP_NUM_THREADS="1")
    checked = [line.split()[0] for line in done.stdout.splitlines() if line.endswith("ok")]
    assert checked == extension.supported_isas(), done.stdout + done.stderr
    assert done.returncode != 0
    assert "AddressSanitizer" in done.stderr, "what is past the end of a tensor is not watched"
