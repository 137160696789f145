"""The CUDA kernels on a GPU beside float64 and the reference in the same precision: a line of checks.csv for each."""

from __future__ import annotations

import csv
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import swintormer_kernels as sk
from bench.gpu.calls import on, on_device, relative, wide
from bench.gpu.rows import append_line
from swintormer.execution.cuda_graph import capture_graph
from swintormer_kernels.testing.cases import cases_of

OPS = ("swda_attention", "gated_ffn", "swda_block", "group_norm_silu", "norm_silu_conv3x3", "ddim_step")
HALVES = (torch.bfloat16, torch.float16)
MOST = 8_000_000  # elements of x


@dataclass(frozen=True, kw_only=True)
class Check:
    """One comparison. Errors are ||y - exact|| / ||exact||, exact in float64 of the same rounded inputs."""

    what: str
    case: str
    dtype: str
    verdict: str  # "ok", or what is wrong
    cuda: float = float("nan")
    reference: float = float("nan")


def append(out: Path, check: Check) -> None:
    """A line more in checks.csv, at once."""
    append_line(out / "checks.csv", asdict(check), 3)
    print(*asdict(check).values(), sep=", ", flush=True)


def check_op(name: str, out: Path, device: str) -> bool:
    """Every served case of an op; whether all are right. A case that raises is a line and does not stop the others."""
    op, right = getattr(sk, name), True
    for dtype in HALVES:
        for case in cases_of(name):
            arguments, keywords = on_device(case.make(0), device, dtype)
            if arguments[0].numel() > MOST or op.op.why_not("cuda", *arguments, **keywords) is not None:
                continue
            told = {"what": name, "case": case.name, "dtype": str(dtype).removeprefix("torch.")}
            try:
                errors = _errors(op, arguments, keywords)
                verdict = _verdict(errors, dtype)
                if verdict == "ok" and dtype == HALVES[0]:
                    verdict = _repeated(lambda: on("cuda", op, arguments, keywords), device)  # noqa: B023
            except Exception as error:
                traceback.print_exc()
                errors, verdict = {}, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            append(out, Check(**told, verdict=verdict, **errors))
            right = right and verdict == "ok"
    return right


def verdicts(out: Path) -> dict[tuple[str, str, str], str]:
    """(op, case, dtype) -> its last verdict in checks.csv, which may hold visits of kernels that were mended since."""
    file = out / "checks.csv"
    if not file.exists():
        return {}
    with file.open(newline="", encoding="utf-8") as lines:
        return {(line["what"], line["case"], line["dtype"]): line["verdict"] for line in csv.DictReader(lines)}


def raised(name: str, out: Path) -> str | None:
    """What a check of this op raised, if one did: its kernels would spoil the process that times others."""
    told = (verdict for (op, _, _), verdict in verdicts(out).items() if op == name)
    return next((verdict for verdict in told if "Error" in verdict.split(":")[0]), None)


def _errors(op: Callable[..., Tensor], arguments: Any, keywords: Any) -> dict[str, float]:
    exact = on("reference", op, *wide((arguments, keywords)))
    found = {backend: on(backend, op, arguments, keywords) for backend in ("cuda", "reference")}
    return {backend: relative(y, exact) for backend, y in found.items()}


def _verdict(errors: dict[str, float], dtype: torch.dtype) -> str:
    bound = 2 * errors["reference"] + torch.finfo(dtype).eps / 2
    return "ok" if errors["cuda"] <= bound else f"error {errors['cuda']:.2g}, at most {bound:.2g} was expected"


def _repeated(call: Callable[[], Tensor], device: str) -> str:
    """Whether the same bits come again: in a second call, on another stream, in a graph."""
    first = call()
    if first.numel() == 0:
        return "ok"
    again = {"a second call": call()}
    if device != "cpu":
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            again["another stream"] = call()
        torch.cuda.current_stream().wait_stream(stream)
        unused = torch.zeros(1, device=device)
        again["a graph"] = capture_graph(lambda _: call().clone().unsqueeze(0), unused)(unused)[0]
    for how, value in again.items():
        if not torch.equal(value, first):
            return f"{how} gives other bits"
    return "ok"
