"""How tests start the program as a process of its own."""

from __future__ import annotations

import sys

PROGRAM = [sys.executable, "-m", "swintormer.cli.app"]
PATIENCE = 200  # seconds until a program that hangs fails its test
