"""Every test here may run kernels in Triton's interpreter."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def interpreter(language_patched_once: None) -> None:
    """See `language_patched_once`."""
