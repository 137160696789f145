"""The rules of the house: which way imports run, one file per op and backend, and sizes that stay readable."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT / "swintormer_kernels"
PYTHON = sorted(f for folder in ("swintormer", "swintormer_kernels", "bench") for f in (ROOT / folder).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
NATIVE = sorted(f for pattern in ("*.h", "*.cpp", "*.cu") for f in (ROOT / "csrc").rglob(pattern))
OPS = sorted(f.stem for f in (KERNELS / "ops").glob("*.py") if f.stem not in ("__init__", "case"))
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_PARAMETERS = 500, 60, 8


def imported_modules(file: Path, source: str | None = None) -> set[str]:
    """Absolute names of everything that a file (or an edited `source` of it) imports, at the top or in functions."""
    package = ".".join(file.relative_to(ROOT).with_suffix("").parts[:-1])
    names = set()
    for node in ast.walk(ast.parse(source or file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


def relative(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("file", [f for f in PYTHON if KERNELS in f.parents], ids=relative)
def test_kernels_know_nothing_of_the_application(file):
    assert not {name for name in imported_modules(file) if name.split(".")[0] == "swintormer"}


@pytest.mark.parametrize("file", sorted((KERNELS / "backends" / "reference").rglob("*.py")), ids=relative)
def test_the_reference_imports_torch_only(file):
    """Beside torch: the standard library, its own helpers, and (for the type checker only) the ops' weight records."""
    run_time = re.sub(r"\nif TYPE_CHECKING:\n((    .*)?\n)+", "\n", file.read_text())
    own = "swintormer_kernels.backends.reference"
    for name in imported_modules(file, run_time):
        assert name.split(".")[0] in ("torch", "math", "typing", "collections", "__future__") or name.startswith(own)


@pytest.mark.parametrize("file", PYTHON, ids=relative)
def test_only_the_triton_backend_imports_triton(file):
    if KERNELS / "backends" / "triton" not in file.parents:
        assert not {name for name in imported_modules(file) if name.split(".")[0] == "triton"}


@pytest.mark.parametrize("file", PYTHON, ids=relative)
def test_one_door_to_the_extension(file):
    if file != KERNELS / "native.py":
        assert not {name for name in imported_modules(file) if name.endswith("._native")}


@pytest.mark.parametrize("file", NATIVE, ids=relative)
def test_native_arrows(file):
    includes = set(re.findall(r'#include [<"]([^>"]+)[>"]', file.read_text()))
    assert not {name for name in includes if name.startswith(("torch", "ATen", "c10"))}, "the engine is torch-free"
    if file.name != "native.cpp":
        assert not {name for name in includes if name.startswith(("pybind11", "Python.h"))}
    for room, others in {"ops": ("cpu/", "cuda/"), "cpu": ("cuda/",), "cuda": ("cpu/",)}.items():
        if file.parent.name == room:
            assert not {name for name in includes if any(other in name for other in others)}
    if file.name != "simd.h":
        assert "vector_size" not in file.read_text(), "vector types live in cpu/simd.h"
    if not file.name.startswith("parallel"):
        assert not includes & {"thread", "omp.h", "pthread.h"}, "threads live in cpu/parallel"


@pytest.mark.parametrize("op", OPS)
def test_every_op_stands_in_every_backend_or_says_why_not(op):
    record = importlib.import_module(f"swintormer_kernels.ops.{op}").OP
    assert record.name == op
    for backend in record.serves:
        file = KERNELS / "backends" / backend / f"{op}.py"
        assert file.exists()
        functions = {node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)}
        assert op in functions
    for backend, reason in record.absent.items():
        assert reason
        assert not (KERNELS / "backends" / backend / f"{op}.py").exists()


@pytest.mark.parametrize("file", PYTHON + NATIVE + TESTS, ids=relative)
def test_files_stay_short(file):
    assert len(file.read_text().splitlines()) <= MAX_FILE_LINES


@pytest.mark.parametrize("file", PYTHON, ids=relative)
def test_functions_stay_short(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            # Command-line functions and op signatures are declarations; their bodies still count.
            body_lines = node.end_lineno - node.body[0].lineno + 1
            docstring = ast.get_docstring(node, clean=False)
            assert body_lines - len((docstring or "").splitlines()) <= MAX_FUNCTION_LINES, node.name
            decorators = {ast.unparse(d).split("(")[0] for d in node.decorator_list}
            if not decorators & {"app.command", "app.callback"}:
                arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
                if "triton.jit" in decorators:  # sizes known when a kernel is compiled are no arguments of a launch
                    arguments = [a for a in arguments if a.annotation is None]
                count = len(arguments)
                assert count - (node.args.args[:1] != [] and node.args.args[0].arg == "self") <= MAX_PARAMETERS, (
                    node.name
                )


@pytest.mark.parametrize("file", PYTHON, ids=relative)
def test_diffusers_is_imported_only_where_a_prior_is_made(file):
    """Its import takes seconds: it stands in functions, or for the type checker."""
    run_time = re.sub(r"\nif TYPE_CHECKING:\n((    .*)?\n)+", "\n", file.read_text())
    top = [node for node in ast.parse(run_time).body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in top for alias in node.names} | {getattr(node, "module", "") for node in top}
    assert not {name for name in names if str(name).split(".")[0] == "diffusers"}
    if "diffusers" in {name.split(".")[0] for name in imported_modules(file, run_time)}:
        assert relative(file) == "swintormer/prior_weights.py" or relative(file).startswith("bench/")
