"""Training steps as CUDA graphs: one launch in place of thousands.

A step of a small network takes as long for four pairs as for sixteen where the processor launches one kernel after
another (bench/results/h200.md). A graph repeats the kernels and addresses of one step, so everything that changes from
step to step is a tensor on the device: the pairs, the learning rate, the optimiser's counters.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from swintormer.errors import first_line

Step: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(blurred, sharp) -> loss and gradient norm; changes the weights."""

PLAIN = 3  # steps before a capture: they make the optimiser's state, compile kernels and choose cuDNN's algorithms


class StepGraphs:
    """`step`, from its fourth call with a shape on as a graph, for as many shapes as come.

    Where a capture fails all further steps are plain ones, and a line on stderr says why.

    Args:
        step: must not synchronise with the CPU, make tensors from numbers or draw random numbers, and sets all
            gradients to None before it computes them.
        capture: makes a graph of a step; tests pass a stand-in.
    """

    def __init__(self, step: Step, capture: Callable[[Step, Tensor, Tensor], Step] | None = None) -> None:
        self._step, self._capture = step, capture or capture_step
        self._graphs: dict[tuple[torch.Size, torch.Size], Step] = {}
        self._seen: Counter[tuple[torch.Size, torch.Size]] = Counter()
        self._failed = False

    @property
    def taken(self) -> bool:
        """Whether there is a graph of a step."""
        return bool(self._graphs)

    def __call__(self, blurred: Tensor, sharp: Tensor) -> tuple[Tensor, Tensor]:
        shapes = (blurred.shape, sharp.shape)
        if shapes in self._graphs:
            return self._graphs[shapes](blurred, sharp)
        self._seen[shapes] += 1
        if self._failed or self._seen[shapes] <= PLAIN:
            return self._step(blurred, sharp)
        try:
            self._graphs[shapes] = self._capture(self._step, blurred, sharp)
        except RuntimeError as error:
            self._failed = True
            cause = error.__context__ or error  # the end of a capture raises another error, which tells nothing
            print(f"Steps are not taken as CUDA graphs: {first_line(cause)}", file=sys.stderr, flush=True)
            return self._step(blurred, sharp)
        return self._graphs[shapes](blurred, sharp)


def capture_step(step: Step, blurred: Tensor, sharp: Tensor) -> Step:
    """The step at these shapes as a graph. Nothing is computed here; the weights stay as they are."""
    with torch.cuda.device(blurred.device):
        inputs = blurred.clone(), sharp.clone()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # "global", the default, fails when another thread allocates meanwhile, such as the one that pins pairs.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            outputs = step(*inputs)

    def replay(*pairs: Tensor) -> tuple[Tensor, Tensor]:
        for kept, given in zip(inputs, pairs, strict=True):
            kept.copy_(given, non_blocking=True)
        graph.replay()
        loss, norm = outputs
        return loss.clone(), norm.clone()  # the next replay writes over them

    return replay
