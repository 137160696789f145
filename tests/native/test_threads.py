"""Where the kernels' threads come from: the search for the OpenMP runtime that the process has loaded."""

import subprocess
import sys

import pytest
from native_tools import ROOT, compiler


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the package does not search")
def test_the_search_for_openmp_does_not_deadlock_with_a_thread_that_loads_libraries(tmp_path):
    empty, library, program = tmp_path / "empty.cpp", tmp_path / "empty.so", tmp_path / "find_openmp"
    empty.write_text("int nothing;\n")
    source = ROOT / "tests" / "native" / "find_openmp.cpp"
    subprocess.run([compiler(), "-shared", "-fPIC", str(empty), "-o", str(library)], check=True)
    flags = ["-std=c++17", "-O1", "-pthread"]
    subprocess.run([compiler(), *flags, str(source), "-o", str(program), "-ldl"], check=True)
    done = subprocess.run([program, library], capture_output=True, text=True, timeout=60, check=False)
    if done.stdout.startswith(("no libgomp", "libgomp is")):
        pytest.skip(done.stdout.strip())
    assert done.stdout.strip() == "ok"
