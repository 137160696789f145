"""Training steps as CUDA graphs: when one is captured, and where none can be; on a GPU, the same weights."""

from __future__ import annotations

import pytest
import torch

from swintormer.training.config import RestorationConfig
from swintormer.training.graph import PLAIN, StepGraphs
from swintormer.training.run import RestorationRun

PAIRS = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
LARGER = torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8)


class Steps:
    """A step and a capture that note what they were called with."""

    def __init__(self, fails: bool = False) -> None:
        self.fails, self.did = fails, []

    def step(self, blurred, sharp):
        self.did.append("step")
        return blurred.mean(), sharp.mean()

    def capture(self, step, blurred, sharp):
        self.did.append("capture")
        if self.fails:
            try:
                raise RuntimeError("operation not permitted when stream is capturing\nmore")
            finally:
                raise RuntimeError("operation failed due to a previous error during capture")
        return lambda *pairs: self.did.append("replay") or step(*pairs)


def test_each_shape_is_captured_after_its_plain_steps():
    steps = Steps()
    graphs = StepGraphs(steps.step, steps.capture)
    for pairs in (*[PAIRS] * (PLAIN + 2), LARGER, PAIRS):
        graphs(*pairs)
    once = ["replay", "step"]
    assert steps.did == ["step"] * PLAIN + ["capture", *once, *once, "step", *once]


def test_where_no_graph_can_be_captured_every_step_is_plain(capsys):
    steps = Steps(fails=True)
    graphs = StepGraphs(steps.step, steps.capture)
    for pairs in (*[PAIRS] * (PLAIN + 2), *[LARGER] * (PLAIN + 1)):
        graphs(*pairs)
    assert steps.did.count("capture") == 1
    assert steps.did.count("step") == 2 * PLAIN + 3
    told = capsys.readouterr().err
    assert told == "Steps are not taken as CUDA graphs: operation not permitted when stream is capturing\n"


def make_run(out, device: str, graph: bool) -> RestorationRun:
    network = {"dim": 8, "num_blocks": (1, 1, 1, 1), "num_refinement_blocks": 1, "heads": (1, 1, 1, 1)}
    network |= {"in_channels": 3, "window_size": 2}
    settings = {"network": network, "out": out, "lr": 1e-3, "min_lr": 1e-4, "steps": 100, "backend": "reference"}
    config = RestorationConfig.model_validate(settings | {"graph": graph, "fourier": 0.1})
    return RestorationRun(config, torch.device(device))


def test_on_the_cpu_there_are_none(tmp_path):
    run = make_run(tmp_path, "cpu", graph=True)
    assert run.graphs is None
    loss, norm = run.train_step(*torch.rand(2, 1, 3, 32, 32))
    assert loss.isfinite()
    assert norm > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_graphs_train_as_plain_steps_do_and_go_on_from_a_file(tmp_path):
    pairs = torch.rand(12, 2, 2, 3, 32, 32)
    runs = [make_run(tmp_path, "cuda", graph) for graph in (False, True)]
    state = tmp_path / "state.safetensors"
    losses = []
    for step, (blurred, sharp) in enumerate(pairs):
        if step == 8:  # the file is read by a run that has captured nothing yet
            runs[1].save(state)
            runs[1] = make_run(tmp_path, "cuda", True)
            runs[1].load(state)
        losses.append([float(run.train_step(blurred, sharp)[0]) for run in runs])
    assert runs[1].graphs is not None
    assert len(runs[1].graphs._graphs) == 1
    plain, graphed = torch.tensor(losses).T
    torch.testing.assert_close(graphed, plain, rtol=1e-3, atol=1e-4)
    assert (plain[1:] != plain[:-1]).all()
    for name, tensor in runs[0].net.state_dict().items():
        torch.testing.assert_close(runs[1].net.state_dict()[name], tensor, rtol=0, atol=2e-3)
