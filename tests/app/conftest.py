"""What the tests of the command line share: weights of a tiny network, and the program in a temporary folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from cli_files import TINY
from typer.testing import CliRunner

from swintormer import Swintormer, save_checkpoint
from swintormer.cli.app import app
from swintormer.inference import precision


@pytest.fixture(autouse=True, scope="session")
def float32_unless_asked():
    """`Deblurrer` multiplies float32 on every CPU, also on those where it would choose bfloat16 (test_precision.py)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "multiplies_bfloat16", lambda: False)
        yield


@pytest.fixture
def one_program(monkeypatch):
    """Threads gain nothing on these sizes and cost much on a busy machine. Processes import this tree's packages."""
    root = str(Path(__file__).resolve().parents[2])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])))


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_checkpoint(Swintormer(TINY), path, training_tile=32, card={"summary": "random numbers", "limits": "all"})
    return path


@pytest.fixture(scope="module")
def dual_weights(tmp_path_factory) -> Path:
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "dual.safetensors"
    save_checkpoint(Swintormer(TINY, in_channels=6), path, training_tile=32)
    return path


@pytest.fixture
def run(tmp_path, monkeypatch, weights):
    """Run the program in the temporary folder; `deblur` and `evaluate` get the tiny network by default."""
    monkeypatch.chdir(tmp_path)

    def call(*words: object, code: int = 0, data: bytes = b""):
        arguments = [str(word) for word in words]
        if arguments[0] in ("deblur", "evaluate") and not {"--weights", "--model"} & set(arguments):
            arguments += ["--weights", str(weights)]
        result = CliRunner().invoke(app, arguments, input=data, prog_name="swintormer")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result

    return call
