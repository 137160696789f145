"""Comparison of every op and backend of this machine with the reference, on the backend's device.

    print(sk.selfcheck())        # a table: op, backend, dtype, forward, backward

The cases are small and the same on every machine. The error of a result is ||y - exact|| / ||exact||, where `exact` is
the reference in float64 on the same rounded inputs. It is compared with the reference's own error in that dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from swintormer_kernels import trust
from swintormer_kernels.backends.cuda import device as cuda_device
from swintormer_kernels.backends.triton.layout import INTERPRETED
from swintormer_kernels.ops.conv3x3_shuffle import conv3x3_shuffle
from swintormer_kernels.ops.ddim_step import ddim_step
from swintormer_kernels.ops.gated_ffn import gated_ffn
from swintormer_kernels.ops.group_norm_silu import group_norm_silu
from swintormer_kernels.ops.norm_projection import norm_projection
from swintormer_kernels.ops.norm_silu_conv3x3 import norm_silu_conv3x3
from swintormer_kernels.ops.res_block import res_block
from swintormer_kernels.ops.swda_attention import swda_attention
from swintormer_kernels.ops.swda_block import swda_block
from swintormer_kernels.ops.upsample_conv3x3 import upsample_conv3x3
from swintormer_kernels.records import (
    AttentionWeights,
    ConvWeights,
    FFNWeights,
    GroupNormWeights,
    LinearWeights,
    Prediction,
    ResBlockWeights,
    ShuffleWeights,
    UpsampleWeights,
)
from swintormer_kernels.registry import BACKENDS, Op, machine_lacks, use_backend

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MARGIN = 4
"""A result may have this many times the reference's error, plus two roundings and `Case.terms` roundings in float32."""


@dataclass(frozen=True)
class Case:
    """A call to check.

    Attributes:
        function: the public function.
        make: (a maker of random tensors of a shape) -> (args, kwargs); x is args[0].
        terms: length of the longest sum in one element of the result or of a gradient.
    """

    function: Callable[..., Tensor]
    make: Callable[[Callable[..., Tensor]], tuple[tuple[Any, ...], dict[str, Any]]]
    terms: int

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """float64 tensors on the CPU, the same at every call."""
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int, scale: float = 1.0, mean: float = 0.0) -> Tensor:
            return scale * torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu") + mean

        return self.make(random)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        op, backend, dtype: the checked combination; dtype is None if the backend is absent.
        forward, backward: "ok", "failed: ..." or "-".
        not_served: why the combination cannot be checked, or None.
        out_of_memory: whether the check failed because memory ran out.
    """

    op: str
    backend: str
    dtype: torch.dtype | None
    forward: str = "-"
    backward: str = "-"
    not_served: str | None = None
    out_of_memory: bool = False

    @property
    def failure(self) -> str | None:
        """Description of the failures, or None."""
        failed = [
            f"{name} {told}"
            for name, told in (("forward", self.forward), ("backward", self.backward))
            if told.startswith("failed")
        ]
        return "; ".join(failed) or None


@dataclass(frozen=True)
class Report:
    """Result of `selfcheck`; `str()` is a table."""

    rows: tuple[Row, ...]

    @property
    def failures(self) -> tuple[Row, ...]:
        """The rows that failed; empty if none did."""
        return tuple(row for row in self.rows if row.failure is not None)

    def __str__(self) -> str:
        table = [("op", "backend", "dtype", "forward", "backward")]
        for row in self.rows:
            dtype = "" if row.dtype is None else str(row.dtype).removeprefix("torch.")
            told = (row.forward, row.backward) if row.not_served is None else (f"not served: {row.not_served}", "")
            table.append((row.op, row.backend, dtype, *told))
        widths = [max(len(line[column]) for line in table) for column in range(3)]
        forward = max(len(row.forward) for row in self.rows) if self.rows else 0
        widths.append(max(len("forward"), forward))
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(line, (*widths, 0), strict=True)).rstrip() for line in table
        ]
        count = len(self.failures)
        return "\n".join([*lines, "", f"{count} failed" if count else "nothing failed"])


def selfcheck(
    device: torch.device | str | None = None,
    *,
    ops: Iterable[str] | None = None,
    dtypes: Iterable[torch.dtype] = DTYPES,
) -> Report:
    """Compare every op and backend of this machine with the reference.

    Verdicts on GPU kernels are stored; automatic selection uses the kernels that passed. The first run on a GPU
    compiles the kernels, which takes minutes.

    Args:
        device: device of the tensors; by default the device that each backend is made for.
        ops: names of the ops to check, by default all.
        dtypes: dtypes of the tensors.

    Returns:
        The report; `report.failures` is empty if no check failed.

    Raises:
        ValueError: there is no op of that name.
    """
    names = tuple(CASES) if ops is None else tuple(ops)
    unknown = [name for name in names if name not in CASES]
    if unknown:
        raise ValueError(f"there is no op {unknown[0]!r}; choose among {', '.join(CASES)}")
    rows: list[Row] = []
    for name in names:
        for backend in BACKENDS:
            if backend != "reference":
                rows += _rows(name, backend, _device(backend, device), tuple(dtypes))
    return Report(tuple(rows))


@trust.checked_by
def check(op: str, backend: str, dtype: torch.dtype, device: torch.device) -> Row:
    """Check one op and backend in one dtype on one device. An exception of the kernels is a failure."""
    if op not in CASES:
        return Row(op, backend, dtype, not_served="the self-check has no case for this op")
    rows = [_checked(case, backend, dtype, device) for case in (CASES[op], *OTHER_INSTANCES.get((op, backend), ()))]
    return next((row for row in rows if row.not_served or row.failure), rows[0])


def _checked(case: Case, backend: str, dtype: torch.dtype, device: torch.device) -> Row:
    exact = case.arguments()
    given = _mapped(lambda t: t.to(device, dtype), exact)
    record: Op = case.function.op  # type: ignore[attr-defined]
    op = record.name
    reason = record.why_not(backend, *given[0], **given[1])
    if reason is not None:
        return Row(op, backend, dtype, not_served=reason)
    told: list[str] = []
    out_of_memory = False
    for run in (_forward, _backward):
        try:
            # The float64 reference is computed on the CPU for every device.
            truth = run("reference", case.function, _mapped(lambda t: t.cpu().double(), given))
            plain = run("reference", case.function, given)
            found = run(backend, case.function, given)
            told.append(_judged(found, plain, truth, case.terms))
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0]
            out_of_memory = out_of_memory or isinstance(error, torch.OutOfMemoryError)
            told.append(f"failed: {type(error).__name__}: {first}")
    forward, backward = told
    return Row(op, backend, dtype, forward, backward, out_of_memory=out_of_memory)


def _rows(op: str, backend: str, device: torch.device, dtypes: tuple[torch.dtype, ...]) -> Iterator[Row]:
    record: Op = CASES[op].function.op  # type: ignore[attr-defined]
    absent = record.absent.get(backend) or machine_lacks(backend)
    if absent is not None:
        yield Row(op, backend, None, not_served=absent)
        return
    for dtype in dtypes:
        row = check(op, backend, dtype, device)
        if row.not_served is None and not row.out_of_memory:
            trust.record(op, backend, device, dtype, row.failure)
        yield row


def _device(backend: str, device: torch.device | str | None) -> torch.device:
    emulated = cuda_device.EMULATOR is not None if backend == "cuda" else INTERPRETED
    on_gpu = backend != "cpu" and not emulated and torch.cuda.is_available()
    found = torch.device(("cuda" if on_gpu else "cpu") if device is None else device)
    if found.type == "cuda" and found.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return found


# ---- one run and its error -------------------------------------------------------------------------------------------


def _forward(backend: str, function: Callable[..., Tensor], arguments: Any) -> list[Tensor]:
    args, kwargs = arguments
    with torch.no_grad(), use_backend(backend):
        return [function(*args, **kwargs)]


def _backward(backend: str, function: Callable[..., Tensor], arguments: Any) -> list[Tensor]:
    leaves: list[Tensor] = []

    def leaf(tensor: Tensor) -> Tensor:
        leaves.append(tensor.detach().clone().requires_grad_())
        return leaves[-1]

    args, kwargs = _mapped(leaf, arguments)
    with torch.enable_grad(), use_backend(backend):
        y = function(*args, **kwargs)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(y.shape, generator=generator, dtype=torch.float64, device="cpu").to(y.device, y.dtype)
    # Round the gradient to the dtype under test first, so that float64 differentiates the same values.
    return list(torch.autograd.grad(y, leaves, grad.to(leaves[0].dtype)))


def _judged(found: list[Tensor], plain: list[Tensor], truth: list[Tensor], terms: int) -> str:
    for value, reference, exact in zip(found, plain, truth, strict=True):
        own = _error(reference, exact)
        bound = MARGIN * own + 2 * torch.finfo(value.dtype).eps + terms * torch.finfo(torch.float32).eps
        error = _error(value, exact)
        if not error <= bound:  # NaN fails
            return f"failed: error {error:.1e}, the reference's own is {own:.1e}"
    return "ok"


def _error(value: Tensor, exact: Tensor) -> float:
    return float((value.detach().cpu().double() - exact).norm() / exact.norm())


def _mapped(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Applies `function` to every tensor in nested tuples, named tuples and dictionaries."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: _mapped(function, each) for key, each in value.items()}
    if isinstance(value, tuple):
        mapped = [_mapped(function, each) for each in value]
        return type(value)(*mapped) if hasattr(value, "_fields") else tuple(mapped)
    return value


# ---- the cases -------------------------------------------------------------------------------------------------------


def _image(random: Callable[..., Tensor], *shape: int) -> Tensor:
    return random(*shape).contiguous(memory_format=torch.channels_last)


def _norm(random: Callable[..., Tensor], batch: int, channels: int) -> GroupNormWeights:
    pair = (random(channels, scale=0.3, mean=1), random(channels))
    return GroupNormWeights(*pair, random(batch, channels, scale=0.3), random(batch, channels))


def _conv(random: Callable[..., Tensor], out: int, channels: int) -> Tensor:
    return random(out, channels, 3, 3, scale=(9 * channels) ** -0.5)


def _ffn(random: Callable[..., Tensor], channels: int) -> FFNWeights:
    hidden = int(channels * 2.66)
    return FFNWeights(
        random(channels, scale=0.3, mean=1),
        random(channels),
        random(2 * hidden, channels, 1, 1, scale=channels**-0.5),
        random(channels, hidden, 1, 1, scale=hidden**-0.5),
        random(2 * hidden, scale=0.3),
        random(channels, scale=0.3),
    )


def _attention(random: Callable[..., Tensor], channels: int, heads: int, window: int) -> AttentionWeights:
    return AttentionWeights(
        random(channels, scale=0.3, mean=1),
        random(channels),
        random(3 * channels, channels, 1, 1, scale=channels**-0.5),
        random(3 * channels, 1, 3, 3, scale=1 / 3),
        random(channels, channels, 1, 1, scale=channels**-0.5),
        random(heads, 1, 1, scale=0.3, mean=1.5),
        random((2 * window - 1) ** 2, heads),
        random(3 * channels, scale=0.3),
        random(3 * channels, scale=0.3),
        random(channels, scale=0.3),
    )


_WINDOW, _SHIFT, _CHANNELS, _HEADS = 8, 3, 48, 2


def _attention_case(heads: int, window: int, shift: int) -> Case:
    def make(random: Callable[..., Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        x = _image(random, 1, _CHANNELS, window, 2 * window)
        return (x, _attention(random, _CHANNELS, heads, window), window, shift), {}

    return Case(swda_attention, make, 2 * window**4)  # logit_scale's gradient: every pair of tokens of two windows


def _block_case(heads: int, window: int, shift: int) -> Case:
    def make(random: Callable[..., Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        x = _image(random, 1, _CHANNELS, window, 2 * window)
        return (x, _attention(random, _CHANNELS, heads, window), _ffn(random, _CHANNELS), window, shift), {}

    return Case(swda_block, make, 2 * window**4)


CASES: dict[str, Case] = {
    "ddim_step": Case(
        ddim_step,
        lambda random: (
            (random(2, 4, 9, 10), random(2, 4, 9, 10)),
            {
                **{"alpha_bar_t": 0.25, "alpha_bar_s": 0.4, "eta": 0.5, "clip": 1.5, "noise": random(2, 4, 9, 10)},
                "prediction": Prediction("epsilon", random(2, 4, 9, 10), 2.0),
            },
        ),
        8,
    ),
    "gated_ffn": Case(gated_ffn, lambda random: ((_image(random, 2, 48, 7, 9), _ffn(random, 48)), {}), 127),
    "group_norm_silu": Case(
        group_norm_silu, lambda random: ((_image(random, 2, 24, 7, 9), _norm(random, 2, 24), 4), {}), 6 * 63
    ),
    "norm_projection": Case(
        norm_projection,
        lambda random: (
            *((_image(random, 2, 32, 5, 9), _norm(random, 2, 32)),),
            {"linear": LinearWeights(random(40, 32, scale=32**-0.5), random(40)), "groups": 4},
        ),
        8 * 45,
    ),
    "norm_silu_conv3x3": Case(
        norm_silu_conv3x3,
        lambda random: (
            (
                _image(random, 2, 32, 7, 9),
                _norm(random, 2, 32),
                ConvWeights(_conv(random, 24, 32), random(24), random(2, 24), _image(random, 2, 24, 7, 9)),
                4,
            ),
            {},
        ),
        9 * 63,
    ),
    "res_block": Case(
        res_block,
        lambda random: (
            (
                _image(random, 2, 32, 8, 9),
                ResBlockWeights(
                    *(_conv(random, 24, 32), _conv(random, 16, 24), random(24), random(16)),
                    *(random(32, scale=0.3, mean=1), random(32), random(24, scale=0.3, mean=1), random(24)),
                    *(random(2, 24), random(2, 24, scale=0.3), random(2, 24)),
                    *(random(16, 32, 1, 1, scale=32**-0.5), random(16)),
                ),
                *(4, 3),
            ),
            {},
        ),
        9 * 72,
    ),
    "swda_attention": _attention_case(_HEADS, _WINDOW, _SHIFT),
    "swda_block": _block_case(_HEADS, _WINDOW, _SHIFT),
    "conv3x3_shuffle": Case(
        conv3x3_shuffle,
        lambda random: (
            (_image(random, 2, 16, 8, 9), ShuffleWeights(_conv(random, 24, 16), random(24)), 2),
            {},
        ),
        4 * 72,
    ),
    "upsample_conv3x3": Case(
        upsample_conv3x3,
        lambda random: (
            (_image(random, 2, 16, 8, 9), UpsampleWeights(_conv(random, 24, 16), random(24))),
            {},
        ),
        4 * 72,
    ),
}

# A size is an instance of its own, compiled apart: here are those that automatic selection takes (`cuda_device.TIMED`).
OTHER_INSTANCES: dict[tuple[str, str], tuple[Case, ...]] = {
    ("swda_attention", "cuda"): (_attention_case(1, 16, 5),),
    ("swda_block", "cuda"): (_block_case(1, 16, 5),),
}
