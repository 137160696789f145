"""Installing never dies for want of a compiler, and one instruction set's code never leaks into another's."""

import importlib.machinery
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def source_copy(tmp_path):
    """What the build reads, in a folder of its own, with an extension left over from an earlier build."""
    pytest.importorskip("setuptools")
    for name in ("setup.py", "CMakeLists.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    (tmp_path / "README.md").touch()
    package = tmp_path / "swintormer_kernels"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / f"_native{importlib.machinery.EXTENSION_SUFFIXES[0]}").touch()
    return tmp_path


def build(folder, **environment):
    """`setup.py build_ext --inplace`, which an editable install runs, with a compiler that always fails."""
    return subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=folder,
        env={**os.environ, "CXX": shutil.which("false") or "/bin/false", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_a_compiler_the_install_goes_on_and_leaves_the_reason(source_copy):
    done = build(source_copy)
    assert done.returncode == 0, done.stderr
    assert "the native extension was NOT built" in done.stderr
    note = source_copy / "swintormer_kernels" / "_native_absent.txt"
    reason = note.read_text().strip()
    assert reason.startswith("the build needs") or "is not able to compile" in reason
    assert reason in done.stderr
    assert not list(note.parent.glob("_native*.so")), "an extension of an earlier build must not pass for this one's"


def test_packagers_can_make_that_an_error(source_copy):
    done = build(source_copy, SWINTORMER_REQUIRE_NATIVE="1")
    assert done.returncode != 0
    assert "SWINTORMER_REQUIRE_NATIVE is set and the build failed" in done.stderr
    assert not (source_copy / "swintormer_kernels" / "_native_absent.txt").exists()


def test_the_note_is_the_one_that_the_package_reads():
    from swintormer_kernels import native

    assert f'ABSENCE_NOTE = "{native.ABSENCE_NOTE.name}"' in (ROOT / "setup.py").read_text()


OP_SOURCES = re.search(r"set\(ops ([^)]+)\)", (ROOT / "CMakeLists.txt").read_text())[1].split()


@pytest.mark.parametrize("source", OP_SOURCES)
def test_op_sources_emit_no_code_that_instruction_sets_would_share(source, tmp_path):
    compiler, nm = shutil.which("c++"), shutil.which("nm")
    if compiler is None or nm is None:
        pytest.skip("needs c++ and nm on PATH")
    compiled = tmp_path / "op.o"
    # -O0: nothing is inlined, so every template that the source instantiates shows.
    command = [compiler, "-std=c++17", "-O0", "-fPIC", "-DSWK_ISA=probe", "-c", str(ROOT / source), "-o", str(compiled)]
    subprocess.run(command, check=True)
    symbols = subprocess.run([nm, "-C", str(compiled)], check=True, capture_output=True, text=True).stdout.splitlines()
    assert any("swk::probe::" in symbol for symbol in symbols)
    shared = [line for line in symbols if re.search(r"\b[WVu] ", line) and "swk::probe::" not in line]
    assert not shared


@pytest.mark.parametrize("source", OP_SOURCES)
def test_op_sources_compile_for_arm(source, tmp_path):
    compiler = shutil.which("aarch64-linux-gnu-g++")
    if compiler is None:
        pytest.skip("there is no aarch64-linux-gnu-g++ (Debian's package g++-aarch64-linux-gnu)")
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-DSWK_ISA=neon"]
    subprocess.run([compiler, *flags, "-c", str(ROOT / source), "-o", str(tmp_path / "op.o")], check=True)


NATIVE_ALONE = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("_native", sys.argv[1])
native = importlib.util.module_from_spec(spec)
spec.loader.exec_module(native)
print(native.isa(), native.thread_source())
"""


def run_alone(extension, script, **environment):
    """Runs `script` in a Python that has the extension and no torch."""
    return subprocess.run(
        [sys.executable, "-S", "-c", script, extension.__file__],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_environment_variable_forces_an_instruction_set(extension):
    for isa in extension.supported_isas():
        done = run_alone(extension, NATIVE_ALONE, SWINTORMER_ISA=isa)
        assert done.stdout.split() == [isa, "own"], "without torch there is no OpenMP runtime to share"


@pytest.mark.parametrize("isa", ["sse9", "AVX2"])
def test_unsupported_instruction_set_is_a_clear_error(extension, isa):
    done = run_alone(extension, NATIVE_ALONE, SWINTORMER_ISA=isa)
    assert done.returncode != 0
    message = f"ValueError: SWINTORMER_ISA names the instruction set '{isa}'; this machine runs "
    assert message + ", ".join(extension.supported_isas()) in done.stderr
    with pytest.raises(ValueError, match="use_isa names"):
        extension.use_isa(isa)


def test_unsupported_instruction_set_leaves_automatic_choice_the_reference(extension):
    script = "import swintormer_kernels as sk; print(sk.backends()['cpu'])"
    environment = {**os.environ, "SWINTORMER_ISA": "sse9"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("the native extension cannot run: SWINTORMER_ISA names")


FORK = """
import array, os, signal
def step():
    count = 200000
    z, out = array.array("f", [1.0]) * count, array.array("f", [0.0]) * count
    views = [(x.buffer_info()[0], (count,), (1,), x) for x in (out, z, z)]
    names = ("x0_from_z", "x0_from_pred", "out_from_x0", "out_from_z", "out_from_pred", "guidance")
    numbers = {**{name: 1.0 for name in names}, "out_from_fresh": 0.0, "clip": 2.0}
    images = dict(zip(("out", "z", "pred"), views))
    native.ddim_step(**images, fresh=None, unconditional=None, **numbers, threads=3)
    assert out == array.array("f", [3.0]) * count
step()
child = os.fork()
if child == 0:
    signal.alarm(20)
    step()
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_gets_threads_of_its_own(extension):
    done = run_alone(extension, NATIVE_ALONE + FORK)
    assert done.stdout.split()[-1:] == ["0"], done.stderr
