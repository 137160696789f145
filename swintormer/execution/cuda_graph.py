"""A network's forward pass, or a loop of many, as one CUDA graph, so that hundreds of small launches cost one.

    forward = GraphedForward(net)
    y = forward(x)      # without a graph on the CPU and for the first batch of a shape; y is valid until the next call
    forward.reason      # why batches on a GPU run without a graph; None if nothing prevents it

    def denoise(z, part, times, schedule):      # times (B, steps) on the GPU: a graph makes no tensors from numbers
        for step, (a_t, a_s) in enumerate(schedule):
            z = ddim_step(z, net(z, times[:, step], part), alpha_bar_t=a_t, alpha_bar_s=a_s)
        return z

    sample = GraphedForward(net, function=denoise)
    z0 = sample(noise, part, times, settings=(schedule,))   # all steps are one graph, of this schedule

A graph repeats the kernels and addresses of one pass. It is discarded when a parameter, the shape, a setting of torch
or the chosen backend changes. It is used only after it agreed with a pass without graph on other data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from swintormer.errors import first_line
from swintormer_kernels.packed import generation
from swintormer_kernels.registry import asked_backend

Forward: TypeAlias = Callable[..., Tensor]
"""Tensors, each with the batch first -> a tensor with the batch first."""
Capture: TypeAlias = Callable[..., Forward]
"""(function, *examples) -> the function for inputs of the examples' shapes, or of a smaller batch."""


class GraphedForward:
    """`function(x, ...)` without gradients, replayed from the second batch of a shape on.

    Args:
        net: module with all parameters and buffers that the function reads; in evaluation mode when called.
        capture: makes a graph; tests pass a stand-in.
        device: type of the devices that have graphs.
        function: takes the inputs, then the settings. It must not synchronise with the CPU, nor make tensors from
            numbers. None for `net` itself.

    Attributes:
        reason: why the current shape runs without a graph; None if it has one, or occurred only once so far.
    """

    def __init__(
        self,
        net: nn.Module,
        capture: Capture | None = None,
        device: str = "cuda",
        function: Forward | None = None,
    ) -> None:
        self.net, self._capture, self._device = net, capture or capture_graph, device
        self._function: Forward = function or net
        self.reason: str | None = None
        self._key: Any = None
        self._batch = 0
        self._replay: Forward | None = None

    def __call__(
        self, *inputs: Tensor, settings: tuple[Hashable, ...] = (), progress: Callable[[], None] | None = None
    ) -> Tensor:
        """`function(*inputs, *settings)`.

        Args:
            inputs: each with the batch first. The other dimensions, dtype, device and memory format are the shape.
            settings: further arguments; other values need another graph.
            progress: passed to the function under this name if it runs without a graph. A replay does not call it.
        """
        first = inputs[0]
        following = {} if progress is None else {"progress": progress}
        if first.device.type != self._device or torch.is_grad_enabled() or not len(first):
            return self._function(*inputs, *settings, **following)
        key = (self._state(first), [_kind(x) for x in inputs], settings)
        if key != self._key or len(first) > self._batch:
            self._key, self._batch, self._replay, self.reason = key, len(first), None, None
            return self._function(*inputs, *settings, **following)
        if self._replay is None and self.reason is None and len(first) == self._batch:
            self._take(inputs, settings)
        if self._replay is None:
            return self._function(*inputs, *settings, **following)
        return self._replay(*inputs)

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: without the graph, which holds addresses of this object's tensors."""
        return self.__dict__ | {"_key": None, "_batch": 0, "_replay": None, "reason": None}

    def _state(self, x: Tensor) -> Any:
        """Everything besides the inputs that makes the graph invalid when it changes."""
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
        # `sk.optimize` or another denoiser may change a class and keep the parameters.
        classes = tuple(type(module) for module in self.net.modules())
        # `forget` frees packed weights whose addresses a graph holds, without changing a version.
        return versions, classes, settings, generation()

    def _take(self, inputs: tuple[Tensor, ...], settings: tuple[Hashable, ...]) -> None:
        """Capture at the inputs' shapes, and use it if it agrees with a plain run on other data."""
        function = self._function if not settings else partial(_with_settings, self._function, settings)
        if any(t.is_inference() for t in chain(self.net.parameters(), self.net.buffers())):
            self.reason = "the network was made in inference mode, where torch does not count changes of its parameters"
            return
        try:
            replay = self._capture(function, *inputs)
            other = [_other(x) for x in inputs]
            replayed = replay(*other)
            plain = function(*other)
            with _counting(self.net) as passes:  # in a run of its own: modules with hooks may use other kernels
                function(*other)
        except Exception as error:
            self.reason = f"the graph could not be captured ({first_line(error)})"
            return
        if _agree(replayed, plain, self.net, passes):
            self._replay = replay
        else:
            self.reason = "a replay of the graph gave other numbers than a plain pass"


def _with_settings(function: Forward, settings: tuple[Hashable, ...], *inputs: Tensor) -> Tensor:
    return function(*inputs, *settings)


def _other(x: Tensor) -> Tensor:
    """Numbers in [0, 1) for floating point, drawn without touching torch's own generators; else `x` itself."""
    if not x.is_floating_point():
        return x
    return torch.empty_like(x).uniform_(generator=torch.Generator(x.device).manual_seed(0))


def _kind(x: Tensor) -> Any:
    rows = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return x.shape[1:], x.dtype, x.device, rows


@contextmanager
def _counting(net: nn.Module) -> Iterator[Counter[nn.Module]]:
    """How often each module inside `net`, itself included, is called."""
    calls: Counter[nn.Module] = Counter()

    def count(module: nn.Module, _: object) -> None:
        calls[module] += 1

    hooks = [module.register_forward_pre_hook(count) for module in net.modules()]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _agree(value: Tensor, plain: Tensor, net: nn.Module, calls: Counter[nn.Module]) -> bool:
    """Whether they are equal up to the order of sums, which some libraries change from run to run.

    Sums are float32, so each term of the longest sum may change the result by one epsilon. After each layer the result
    is rounded to the coarsest dtype in use; the roundings of as many layers as there are parameters add up like a
    random walk. In a loop, every pass adds that much: as many passes as the most often called module had calls.
    """
    parameters = list(net.parameters())
    longest = max((p[0].numel() for p in parameters if p.ndim), default=1)
    dtypes = {plain.dtype} | {p.dtype for p in parameters if p.is_floating_point()}
    rounding = max(torch.finfo(dtype).eps for dtype in dtypes)
    epsilons = longest * torch.finfo(torch.float32).eps + len(parameters) ** 0.5 * rounding
    epsilons *= max(calls.values(), default=1)
    return bool(((value - plain).abs() <= epsilons * plain.abs().max()).all())  # NaN does not agree


def capture_graph(function: Forward, *examples: Tensor) -> Forward:
    """`function` at the examples' shapes as a CUDA graph. A smaller batch is filled up with rows of an earlier one."""
    device = examples[0].device
    with torch.cuda.device(device):
        inputs = [example.clone(memory_format=torch.preserve_format) for example in examples]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            function(*inputs)  # compiles kernels and packs weights, which happens once
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = function(*inputs)

    def replay(*given: Tensor) -> Tensor:
        with torch.cuda.device(device):
            for kept, x in zip(inputs, given, strict=True):
                kept[: len(x)].copy_(x)
            graph.replay()
        return outputs[: len(given[0])]

    return replay
