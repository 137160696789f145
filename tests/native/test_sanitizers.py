"""The kernels under sanitizers: drive_ops.cpp runs every op on every instruction set of this machine."""

import os
import subprocess

import pytest
from native_tools import ROOT, compiler, tool

# The kernels allocate nothing but a pool of threads that is meant to stay, so looking for leaks would find nothing; and
# it fails in containers that forbid ptrace.
SETTINGS = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}


def run(command):
    done = subprocess.run(
        command,
        env={**os.environ, **SETTINGS},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def skip_without(sanitizers, folder):
    source = folder / "empty.cpp"
    source.write_text("int main() {}\n")
    command = [
        compiler(),
        f"-fsanitize={sanitizers}",
        str(source),
        "-o",
        str(folder / "empty"),
    ]
    links = subprocess.run(command, capture_output=True, check=False).returncode == 0
    if not links or subprocess.run([folder / "empty"], capture_output=True, check=False).returncode != 0:
        pytest.skip(f"the compiler has no -fsanitize={sanitizers}, or its programs do not run here")


# Address and undefined behaviour: 14 s of one core to build, 8 s to run; threads: 10 s and 12 s.
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_no_op_does_what_a_sanitizer_forbids(sanitizers, tmp_path, extension):
    cmake, ninja = tool("cmake"), tool("ninja")
    skip_without(sanitizers, tmp_path)
    settings = [f"-DSWINTORMER_SANITIZERS={sanitizers}", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    run([cmake, "-S", str(ROOT), "-B", str(tmp_path), "-G", "Ninja", *settings])
    run([cmake, "--build", str(tmp_path)])
    assert run([tmp_path / "drive_ops"]).split() == [word for isa in extension.supported_isas() for word in (isa, "ok")]
