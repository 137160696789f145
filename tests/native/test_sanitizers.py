"""The kernels under sanitizers, as Python calls them, with scratch and packed weights of their exact size.

By default one instruction set under the address sanitizer; with -m slow every one, and the threads as well.
"""

import os
import subprocess
import sys

import pytest
from native_tools import ROOT, compiler, tool

SETTINGS = {
    # The kernels allocate nothing but a pool of threads that is meant to stay, so looking for leaks would find nothing;
    # and it fails in containers that forbid ptrace.
    "ASAN_OPTIONS": "detect_leaks=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    # Python and torch are not built with the sanitizer, which therefore does not know how they synchronise.
    "TSAN_OPTIONS": "ignore_noninstrumented_modules=1 halt_on_error=1",
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
}


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


def build(sanitizers, isas, folder):
    """The extension."""
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
    for command in ([cmake, "-S", ROOT, "-B", folder, "-G", "Ninja", *defines], [cmake, "--build", folder]):
        done = run(command)
        assert done.returncode == 0, done.stdout + done.stderr
    (library,) = folder.glob("_native*")
    return library


def check(kind, sanitizers, isas, folder):
    library = build(sanitizers, isas, folder)
    preloaded = run([compiler(), f"-print-file-name=lib{kind[0]}san.so"]).stdout.strip()
    done = run([sys.executable, ROOT / "tests" / "native" / "run_checked.py", library, kind], LD_PRELOAD=preloaded)
    checked = [line.split()[0] for line in done.stdout.splitlines() if line.endswith("ok")]
    assert checked == isas, done.stdout + done.stderr
    assert done.returncode != 0
    return done.stderr


# 40 s of one core, most of them the compiler's. Every op's tails are those of the preferred instruction set.
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["one", "every"])
def test_no_op_does_what_a_sanitizer_forbids(every, tmp_path, extension):
    isas = extension.supported_isas()
    preferred = isas[:2] if isas[0] == "avx512bf16" else isas[:1]  # which takes most ops from avx512
    said = check("address", "address,undefined", isas if every else preferred, tmp_path)
    assert "AddressSanitizer" in said, "what is past the end of a tensor is not watched"


@pytest.mark.slow
def test_threads_do_not_race(tmp_path, extension):
    said = check("thread", "thread", extension.supported_isas(), tmp_path)
    assert "ThreadSanitizer: data race" in said, "threads are not watched"
