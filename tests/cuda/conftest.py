"""Where tests of the "cuda" backend run: on a GPU if there is one with kernels, otherwise on the emulated device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from emulator import KERNEL_SOURCES, build

from swintormer_kernels import native
from swintormer_kernels.backends.cuda import device, emulator


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that take the device from `where` are a GPU's."""
    for item in items:
        if "where" in getattr(item, "fixturenames", ()):
            item.add_marker("gpu")


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """(kind of build) -> CPU tensors go to the emulated device from now on, with the checks of that kind."""
    reason = native.why_absent()
    if reason is not None:
        pytest.skip(reason)

    def use(kind: str) -> Path:
        library = build(kind, KERNEL_SOURCES)
        monkeypatch.setattr(device, "EMULATOR", library)
        monkeypatch.setattr(emulator, "options", emulator.Options(check=kind == "race"))
        return library

    return use


@pytest.fixture
def where(emulated: Callable[[str], Path], language_patched_once: None) -> Iterator[torch.device]:
    """The device of the tensors: the GPU, or the CPU with the kernels emulated."""
    if torch.cuda.is_available() and device.why_absent() is None:
        yield torch.device("cuda", torch.cuda.current_device())
        return
    emulated("plain")
    yield torch.device("cpu")
