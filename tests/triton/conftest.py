"""Triton's interpreter, made fit for a test run."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import pytest

from swintormer_kernels.backends.triton.tensors import INTERPRETED


@pytest.fixture(autouse=True, scope="session")
def language_patched_once() -> Iterator[None]:
    """At each call of a device function the interpreter replaces the members of triton.language once more.

    That took 2 ms a call, more than all arithmetic; here it happens once for each launch and module.
    """
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
    yield
    interpreter._patch_lang = original
