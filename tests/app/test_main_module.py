"""`python -m swintormer` is the program."""

import subprocess
import sys


def test_python_m_runs_the_program() -> None:
    ran = subprocess.run([sys.executable, "-m", "swintormer", "--help"], capture_output=True, text=True, check=False)
    assert ran.returncode == 0
    assert "deblur" in ran.stdout
