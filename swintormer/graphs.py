"""A network's forward pass as one CUDA graph, so that hundreds of small launches cost one.

    forward = GraphedForward(net)
    y = forward(x)      # plain where there is no CUDA, and for the first batch of a shape; y serves until the next call
    forward.reason      # why batches run plainly although they lie on a GPU; None where they need not

A graph repeats the kernels and addresses of one pass. It is thrown away when a parameter, the shape, a setting of torch
or the chosen backend changes, and taken into use only after it gave what a plain pass gives on other data.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from swintormer_kernels.registry import asked_backend

Forward: TypeAlias = Callable[[Tensor], Tensor]
Capture: TypeAlias = Callable[[Forward, Tensor], Forward]
"""(function, example) -> what computes the function for inputs of the example's shape, or fewer of them."""


class GraphedForward:
    """`net(x)` without gradients, replayed from the second batch of a shape on.

    Args:
        net: in evaluation mode when called.
        capture: makes a graph; the tests give another.
        device: type of the devices that have graphs.

    Attributes:
        reason: why the current shape runs plainly; None where it is replayed or was not seen twice yet.
    """

    def __init__(self, net: nn.Module, capture: Capture | None = None, device: str = "cuda") -> None:
        self.net, self._capture, self._device = net, capture or capture_graph, device
        self.reason: str | None = None
        self._key: Any = None
        self._batch = 0
        self._replay: Forward | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if x.device.type != self._device or torch.is_grad_enabled() or not len(x):
            return self.net(x)
        key = self._state(x)
        if key != self._key or len(x) > self._batch:
            self._key, self._batch, self._replay, self.reason = key, len(x), None, None
            return self.net(x)
        if self._replay is None and self.reason is None and len(x) == self._batch:
            self._take(x)
        return self.net(x) if self._replay is None else self._replay(x)

    def _state(self, x: Tensor) -> Any:
        """All that a graph would go on ignoring after it changed."""
        tensors = chain(self.net.parameters(), self.net.buffers())
        versions = tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)
        settings = (
            asked_backend(),
            torch.is_inference_mode_enabled(),
            torch.get_float32_matmul_precision(),
            torch.backends.cudnn.allow_tf32,
            torch.are_deterministic_algorithms_enabled(),
            torch.is_autocast_enabled(x.device.type) and torch.get_autocast_dtype(x.device.type),
        )
        rows = x.is_contiguous(memory_format=torch.channels_last)
        return x.shape[1:], x.dtype, x.device, rows, versions, settings

    def _take(self, x: Tensor) -> None:
        """Capture at x's shape, and use it if it agrees with a plain pass on other data."""
        if any(t.is_inference() for t in chain(self.net.parameters(), self.net.buffers())):
            self.reason = "the network was made in inference mode, where torch does not count changes of its parameters"
            return
        try:
            replay = self._capture(self.net, x)
            other = torch.rand_like(x)
            replayed, plain = replay(other), self.net(other)
        except Exception as error:
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            self.reason = f"the graph could not be captured ({said})"
            return
        if _agree(replayed, plain, self.net):
            self._replay = replay
        else:
            self.reason = "a replay of the graph gave other numbers than a plain pass"


def _agree(value: Tensor, plain: Tensor, net: nn.Module) -> bool:
    """Equal but for the order of sums, which some libraries do not keep.

    Sums are float32, so a term of the longest may move the result by an epsilon of that; after each layer it is rounded
    to the dtype, and as many layers as there are parameters add up like a random walk.
    """
    parameters = list(net.parameters())
    longest = max((p[0].numel() for p in parameters if p.ndim), default=1)
    epsilons = longest * torch.finfo(torch.float32).eps + len(parameters) ** 0.5 * torch.finfo(plain.dtype).eps
    return bool(((value - plain).abs() <= epsilons * plain.abs().max()).all())  # NaN does not agree


def capture_graph(function: Forward, example: Tensor) -> Forward:
    """`function` at the example's shape as a CUDA graph. Fewer inputs are filled up with earlier ones."""
    with torch.cuda.device(example.device):
        inputs = example.clone(memory_format=torch.preserve_format)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            function(inputs)  # compiles, and makes what is made once, such as packed weights
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = function(inputs)

    def replay(x: Tensor) -> Tensor:
        with torch.cuda.device(inputs.device):
            inputs[: len(x)].copy_(x)
            graph.replay()
        return outputs[: len(x)]

    return replay
