"""Fixtures for every test: poisoned memory, a fixed seed, and where the golden tensors are."""

from __future__ import annotations

import inspect
import os
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():  # before anything imports triton: its kernels then run on CPU tensors
    os.environ.setdefault("TRITON_INTERPRET", "1")

ROOT = Path(__file__).resolve().parent.parent

# The keys of torch's cache of compiled graphs contain neither the instruction set nor the version of a custom op: a
# graph compiled under ATEN_CPU_CAPABILITY=avx2, or with another checkout's ops, is loaded by a run without it, and
# gives wrong values or a crash (torch 2.13). So each checkout and instruction set has a cache of its own.
KEY = zlib.crc32(f"{ROOT} {os.environ.get('ATEN_CPU_CAPABILITY')}".encode())
CACHE = os.path.join(tempfile.gettempdir(), f"torchinductor_{os.getuid()}_{KEY:08x}")
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", CACHE)


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Whatever torch.empty and its kin return is full of NaN, so that an element that nobody wrote is seen.

    torch does it below the dispatcher (patching torch.empty would miss empty_like, resize_ and compiled code), but only
    while deterministic algorithms are on; warn_only, because some ops have none.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    torch.utils.deterministic.fill_uninitialized_memory = filled


@pytest.fixture(autouse=True, scope="session")
def verdicts_of_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Verdicts of the kernels' self-check go to a folder of this run and not to the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SWINTORMER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Random numbers of a test do not depend on which tests ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def oracle() -> Path:
    """Folder of the golden tensors, which lies beside the repository and not in it."""
    folder = ROOT.parent / "shared" / "oracle"
    if not folder.is_dir():
        pytest.skip(f"the golden tensors are not at {folder}")
    return folder


@pytest.fixture(scope="session")
def extension():  # type: ignore[no-untyped-def]  # a module
    """The native extension, or a skip with the reason of its absence."""
    from swintormer_kernels import native

    reason = native.why_absent()
    if reason is not None:
        pytest.skip(reason)
    return native.extension()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For small tensors: a second thread only waits, and on a busy machine it waits a hundred times longer."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def one_thread_everywhere(one_thread: None) -> Iterator[None]:
    """`one_thread`, and the same for processes that a test starts, which inherit the variable."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture
def engine(extension):  # type: ignore[no-untyped-def]  # a module
    """The extension; instruction set, thread source and thread count are put back after the test."""
    isa, threads = extension.isa(), torch.get_num_threads()
    yield extension
    extension.use_isa(isa)
    extension.use_own_threads(False)
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def language_patched_once() -> Iterator[None]:
    """For tests of Triton kernels: the interpreter replaces the members of triton.language at each call of a device
    function, which took 2 ms, more than all arithmetic; here it does so once for each launch and module.
    """
    from swintormer_kernels.backends.triton.layout import INTERPRETED

    if not INTERPRETED:
        yield
        return
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    language = pytest.importorskip("triton.language")
    original = interpreter._patch_lang
    patched: set[int] = set()

    def once(function):  # type: ignore[no-untyped-def]
        modules = (v for v in function.__globals__.values() if inspect.ismodule(v) and v in (language, language.core))
        needed, nested = set(map(id, modules)), bool(patched)
        if nested and needed <= patched:
            return interpreter._LangPatchScope()
        scope = original(function)
        patched.update(needed)
        if not nested:
            restore = scope.restore
            scope.restore = lambda: (restore(), patched.clear())
        return scope

    interpreter._patch_lang = once
    # Every sum of 32-bit integers is else done in 64 bits a second time: a third of the time of a convolution.
    object.__setattr__(interpreter.interpreter_builder.options, "sanitize_overflow", False)
    yield
    object.__setattr__(interpreter.interpreter_builder.options, "sanitize_overflow", True)
    interpreter._patch_lang = original
