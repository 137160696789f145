"""What test_train_processes.py starts twice: one of the processes of a run.

Arguments: the folder with c.toml, and what happens: "both" (gradients in float64 and the command), or in the second
step of the second process a "signal" or a "fault".
"""

import os
import signal
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from swintormer.cli.app import app
from swintormer.errors import SwintormerError
from swintormer.training.config import read_config
from swintormer.training.processes import Processes, processes
from swintormer.training.run import RestorationRun, Run

STEPS = 3


def double_steps(run: RestorationRun) -> dict[str, torch.Tensor]:
    """The weights after a few steps in float64, where no sign of an L1 gradient hangs on the order of a sum."""
    run.net.double()
    run.average = {name: tensor.double() for name, tensor in run.net.state_dict().items()}
    with torch.no_grad():  # away from the identity, so that every parameter has a gradient
        weight = run.net.output[0].weight
        weight.copy_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)))
    pairs = run.batches(0)
    for _ in range(STEPS):
        run.train_step(*(t.double() for t in next(pairs)))
    return run.net.state_dict()


def main(folder: Path, what: str) -> None:
    second = os.environ["RANK"] == "1"
    torch.set_num_threads(1)
    if what == "both":
        with processes(torch.device("cpu")) as (place, device):
            assert place == Processes(int(second), 2, int(os.environ["LOCAL_RANK"]))
            run = RestorationRun(read_config(folder / "c.toml"), device)
            run.place = place
            save_file(double_steps(run), folder / f"{place.rank}.safetensors")
            app(["train", str(folder / "c.toml")])
    original = Run.train_step

    def train_step(run: Run, blurred: torch.Tensor, sharp: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if what == "fault" and run.step == 1:
            raise SwintormerError("The second process has a fault.")
        if what == "signal" and run.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(run, blurred, sharp)

    if second:
        Run.train_step = train_step
    app(["train", str(folder / "c.toml")])


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
