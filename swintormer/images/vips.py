"""libvips, which decodes and encodes, and the words of its errors."""

from __future__ import annotations

import os
from types import ModuleType


def libvips() -> ModuleType:
    """pyvips, imported when first needed."""
    os.environ.setdefault("VIPS_WARNING", "0")  # its warnings on unusual tags do not help users
    import pyvips

    pyvips.cache_set_max(0)  # its cache would keep pictures in memory, and the old content of replaced files
    return pyvips


def detail(error: Exception) -> str:
    """The useful line of a libvips error: the operating system's message if there is one, else the decoder's first."""
    lines = [line.strip() for line in str(getattr(error, "detail", "")).splitlines() if line.strip()]
    for line in lines:
        if line.startswith(("system error:", "unix error:")):
            return line.split(":", 1)[1].strip()
    first = lines[0].split(": ", 1)[-1] if lines else ""
    return "" if "known format" in first else first
