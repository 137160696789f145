"""Two processes train what one trains: the same gradients, one set of files, and one end for both."""

from __future__ import annotations

import csv
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from one_of_two import STEPS, double_steps
from safetensors.torch import load_file

from swintormer.errors import SwintormerError
from swintormer.training.config import RestorationConfig, read_config
from swintormer.training.loop import _check_shares, train
from swintormer.training.processes import Processes, _own_gpu, processes
from swintormer.training.run import RestorationRun

pytestmark = pytest.mark.usefixtures("one_thread")
SCRIPT = Path(__file__).with_name("one_of_two.py")
CPU = torch.device("cpu")
RECIPE = """
out = "{out}"
seed = 1
steps = 4
batch = 3
crop = 32
scene_side = 96
lr = 1e-3
validation = 1
log_every = 1
checkpoint_every = 2
device = "cpu"
[network]
in_channels = 3
dim = 4
num_blocks = [1, 1, 1, 1]
num_refinement_blocks = 1
heads = [1, 1, 1, 1]
window_size = 2
"""
# Adam divides by the gradient's size plus 1e-8, so where that is near 0 a difference d becomes lr * d / 1e-8 a step.
# d: of sums over the pixels of the batch, of terms below 1, each of them the end of a chain of sums 50 long.
BOUND = STEPS * 1e-3 / 1e-8 * 3 * 32 * 32 * 50 * torch.finfo(torch.float64).eps


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "c.toml").write_text(RECIPE.format(out=tmp_path / "run"))
    return tmp_path


def environment(**more: str) -> dict[str, str]:
    root = SCRIPT.parents[2]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **more}


def pair(folder: Path, what: str) -> list[tuple[int, str]]:
    """Exit codes and error output of two processes, started as torchrun would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in "01":
        place = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        command = [sys.executable, str(SCRIPT), str(folder), what]
        started.append(subprocess.Popen(command, env=environment(**place), stderr=subprocess.PIPE, text=True))
    try:
        errors = [process.communicate(timeout=120)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, error) for process, error in zip(started, errors, strict=True)]


def log(folder: Path) -> list[dict[str, str]]:
    with (folder / "run" / "log.csv").open() as file:
        return list(csv.DictReader(file))


def apart(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def test_two_processes_under_torchrun_are_one_run(folder) -> None:
    """Weights after steps in float64 as in one process, and bit for bit alike in both; then the whole command."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, str(SCRIPT), str(folder), "both"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second = (load_file(folder / f"{rank}.safetensors") for rank in (0, 1))
    alone = double_steps(RestorationRun(read_config(folder / "c.toml"), CPU))
    assert apart(first, second) == 0
    start = RestorationRun(read_config(folder / "c.toml"), CPU).net.state_dict()
    assert apart(first, {name: tensor.double() for name, tensor in start.items()}) > BOUND
    assert apart(first, dict(alone)) <= BOUND
    assert done.stdout.strip() == str(folder / "run" / "weights.safetensors")
    assert done.stderr.count("step 4, loss") == 1
    assert [row["samples"] for row in log(folder)] == ["3", "6", "9", "12"]
    assert (folder / "run" / "weights.safetensors").exists()


def test_a_signal_to_one_ends_both_after_the_same_step_and_one_goes_on(folder) -> None:
    (first, told), (second, _) = pair(folder, "signal")
    assert (first, second) == (128 + signal.SIGTERM, 0)
    assert "Interrupted after step 2; the same command continues" in told
    assert train(read_config(folder / "c.toml")) == folder / "run" / "weights.safetensors"
    assert [row["samples"] for row in log(folder)] == ["3", "6", "9", "12"]


def test_a_fault_in_one_ends_both_with_a_sentence(folder) -> None:
    (first, told), (second, fault) = pair(folder, "fault")
    assert (first, second) == (1, 1)
    assert fault == "Error: The second process has a fault.\n"
    assert told.splitlines()[-1].startswith("Error: Another process of this run ended")
    assert "Traceback" not in told
    assert not (folder / "run" / "weights.safetensors").exists()


@pytest.mark.parametrize("accumulate", [2, 3])
def test_parts_of_a_step_give_the_gradients_of_the_whole(accumulate: int, folder) -> None:
    config = read_config(folder / "c.toml")
    whole, parts = (
        double_steps(RestorationRun(config.model_copy(update={"accumulate": count}), CPU)) for count in (1, accumulate)
    )
    assert apart(dict(whole), dict(parts)) <= BOUND


def test_shares_of_a_step() -> None:
    for count, size in ((7, 3), (4, 4), (9, 2)):
        shares = [Processes(rank, size, rank).share(count) for rank in range(size)]
        assert [row for share in shares for row in range(count)[share]] == list(range(count))
        assert all(count // size <= share.stop - share.start <= count // size + 1 for share in shares)


def test_more_parts_than_pairs_are_refused(folder) -> None:
    config = read_config(folder / "c.toml")
    with pytest.raises(ValueError, match="accumulate 4 parts need as many pairs a step, and batch is 3"):
        RestorationConfig(**config.model_dump() | {"accumulate": 4})
    with pytest.raises(SwintormerError, match="A step of 3 pairs cannot be shared by 2 processes"):
        _check_shares(config.model_copy(update={"accumulate": 2}), Processes(1, 2, 1))


def test_an_environment_that_torchrun_did_not_make(monkeypatch) -> None:
    for values, sentence in (
        ({"RANK": "x", "WORLD_SIZE": "2"}, "must be numbers"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, "does not find the others .* start them with `torchrun`"),
    ):
        with monkeypatch.context() as patch:
            for name, value in values.items():
                patch.setenv(name, value)
            patch.delenv("MASTER_ADDR", raising=False)
            with pytest.raises(SwintormerError, match=sentence), processes(CPU):
                pass
    monkeypatch.setenv("WORLD_SIZE", "1")
    with processes(CPU) as (place, device):
        assert (place, device) == (Processes(), CPU)


def test_each_process_takes_a_gpu_of_its_own(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert _own_gpu(Processes(3, 4, 1), torch.device("cuda")) == torch.device("cuda", 1)
    with pytest.raises(SwintormerError, match=r"more processes on this machine than GPUs \(2\)"):
        _own_gpu(Processes(2, 3, 2), torch.device("cuda"))
    with pytest.raises(SwintormerError, match="set `device` to cuda"):
        _own_gpu(Processes(0, 2, 0), torch.device("cuda", 0))
