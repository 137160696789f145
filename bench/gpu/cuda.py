"""The CUDA C++ kernels on a GPU, within a time that is given: `python -m bench.gpu.cuda --out DIR [--seconds 100]`.

First, at once and each in a process of its own: every op beside the reference and float64 (checks.csv), and the
compilation of what is timed beside them (Triton, torch.compile). Then, alone on the GPU, the times (gpu.csv): the
blocks of the released network for 40 tiles op by op, the whole network, candidates.py, the denoiser's ops; and
compute-sanitizer on small cases where it is installed. A part that fails or takes too long is noted (log.txt, notes.md)
and the next goes on. `--warm` does the compilation alone, which can run while the extension is built.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

import swintormer_kernels as sk
from bench.gpu import checks
from bench.gpu.main import NO_GPU, machine, run_together
from bench.gpu.parts import TILE, TILES, Meter, forward, images, make_network, on, on_device, relative, wide
from bench.gpu.rows import read_rows
from bench.gpu.timing import graph_ms, median_ms, rotated, rotating_ms
from swintormer import PRESETS
from swintormer.cli.macs import count_macs
from swintormer.execution.cuda_graph import capture_graph
from swintormer.images.files import replacing
from swintormer_kernels.testing.cases import case_of

BLOCKS = ("swda_block", "swda_attention", "gated_ffn")
SHAPES = {  # the released network's blocks -> how many of each it has
    "level1, C 48, shifted": 2,
    "decoder_level1, C 96, shifted": 6,
    "level2, C 96, shifted": 8,
    "level3, C 192, shifted": 12,
    "latent, C 384, shifted": 8,
}
DENOISER = {
    "norm_silu_conv3x3": ("160 to 160, 128x128", "320 to 320, 64x64", "640 to 640, 16x16"),
    "group_norm_silu": ("160x128x128, channels_last", "320x64x64, channels_last"),
    "ddim_step": ("tile 4x32x32, eta 1, clip", "100 MP image 4x1024x1536, eta 1, clip"),
}
CHECKED = 0.4  # share of the time
AFTER = {  # shares of the time that is left
    "blocks": 0.55,
    "network": 0.55,
    "candidates": 0.4,
    "denoiser": 0.5,
    "compile": 0.6,
    "small": 1.0,
}
COMPILED = tuple(SHAPES)[:3]
MOST_COPIES = 64
SMALL = "one window, odd shift"  # of compute-sanitizer
BFLOAT16 = torch.bfloat16


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for checks.csv, gpu.csv, log.txt and notes.md")
    parser.add_argument("--seconds", type=float, default=100, help="what all parts may take together")
    parser.add_argument(
        "--warm", action="store_true", help="compile what is timed beside the kernels, and nothing else"
    )
    parser.add_argument("--part", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.exit(NO_GPU)
    asked.out = asked.out.resolve()
    asked.out.mkdir(parents=True, exist_ok=True)
    if asked.part:
        run(asked.part, asked.out, "cuda")
        return
    until = time.monotonic() + asked.seconds
    outcomes: dict[str, str] = {}
    with (asked.out / "log.txt").open("a", encoding="utf-8") as log:
        print(machine(), file=log, flush=True)
        warm = [f"warm:{name}" for name in (*SHAPES, "denoiser", *(f"compile {shape}" for shape in COMPILED))]
        if asked.warm:
            run_together([command(asked.out, part) for part in warm], asked.seconds, log)
            return
        first = [command(asked.out, f"check:{name}") for name in checks.OPS]
        together = [*first, *(command(asked.out, part) for part in warm)]
        outcomes["checks"] = run_together(together, CHECKED * asked.seconds, log)
        for part, share in AFTER.items():
            limit, asks = share * (until - time.monotonic()), command(asked.out, part)
            if part == "small":
                asks = [*sanitizer(), *asks]
            elif part == "candidates":
                asks = [sys.executable, "-m", "bench.gpu.candidates", "--out", str(asked.out)]
            outcomes[part] = run_together([asks], limit, log) if limit > 3 else "no time was left"
    write_notes(asked.out, outcomes)


def command(out: Path, part: str) -> list[str]:
    return [sys.executable, "-m", "bench.gpu.cuda", "--out", str(out), "--part", part]


def sanitizer() -> list[str]:
    """The start of a command that compute-sanitizer watches, if it is there."""
    tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    return [] if tool is None else [tool, "--error-exitcode", "9"]


def run(part: str, out: Path, device: str) -> None:
    """One part, in this process."""
    part, _, rest = part.partition(":")
    if part == "check":
        if not checks.check_op(rest, out, device):
            sys.exit(1)
    elif part == "small":
        run_small(device)
    elif part == "warm":
        run_warm(rest, device)
    elif part == "blocks":
        time_blocks(Meter(part, out, device, n=4096), TILES)
    elif part == "denoiser":
        time_denoiser(Meter(part, out, device, n=4096))
    elif part == "network":
        time_network(Meter(part, out, device, n=4096))
    else:
        time_compiled(Meter(part, out, device, n=4096), TILES)


def given(name: str, case: str, device: str, tiles: int = 1) -> tuple[Any, Any]:
    """Arguments of a case; gated_ffn knows no shifts."""
    case = case.removesuffix(", shifted") if name == "gated_ffn" else case
    return on_device(case_of(name, case).make(0), device, BFLOAT16, tiles)


# ---- at once ---------------------------------------------------------------------------------------------------------


def run_small(device: str) -> None:
    for name, case in [*((name, SMALL) for name in BLOCKS), ("ddim_step", "odd sizes, sliced")]:
        arguments, keywords = given(name, case, device)
        op = getattr(sk, name)
        if op.op.why_not("cuda", *arguments, **keywords) is None:
            on("cuda", op, arguments, keywords)
    for name, case in (("norm_silu_conv3x3", "32 to 32, 32x32"), ("group_norm_silu", "32x32x32, channels_last")):
        on("cuda", getattr(sk, name), *given(name, case, device))


def run_warm(which: str, device: str) -> None:
    """Triton's kernels of a shape, or of the denoiser, or what torch.compile makes of a block ("compile SHAPE")."""
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "2")  # many processes do this at once
    if which.startswith("compile "):
        compiled_block(given("swda_block", which.removeprefix("compile "), device, 2)[0])
        return
    pairs = [(name, which) for name in BLOCKS]
    if which == "denoiser":
        pairs = [(name, case) for name, cases in DENOISER.items() for case in cases]
    for name, case in pairs:
        on("triton", getattr(sk, name), *given(name, case, device))


def compiled_block(arguments: Any) -> Callable[[Any], Tensor]:
    """swda_block of the reference through torch.compile, for arguments of these shapes."""
    compiled = torch.compile(sk.swda_block)

    def call(copy: Any) -> Tensor:
        with torch.no_grad(), sk.use_backend("reference"):
            return compiled(*copy)

    call(arguments)
    return call


# ---- alone -----------------------------------------------------------------------------------------------------------


def time_blocks(meter: Meter, tiles: int) -> None:
    """Forward of the blocks' ops."""
    for shape in SHAPES:
        for name in BLOCKS:
            _time(meter, name, shape, tiles)


def time_denoiser(meter: Meter) -> None:
    for name, cases in DENOISER.items():
        for case in cases:
            _time(meter, name, case, 1)


def _time(meter: Meter, name: str, case: str, tiles: int) -> None:
    try:
        time_op(meter, name, case, tiles)
    except Exception:  # the others are worth timing all the same
        traceback.print_exc()


def time_op(meter: Meter, name: str, case: str, tiles: int) -> None:
    """Rows of eager, CUDA and Triton, the latter two as graphs; one that fails is told, and the others follow."""
    op = getattr(sk, name)
    arguments, keywords = given(name, case, meter.device, tiles)
    work = sys.modules[f"swintormer_kernels.ops.{name}"].cost(*arguments, **keywords)
    exact = on("reference", op, (wide(arguments[0][:1]), *_wide(arguments[1:])), keywords) if tiles > 1 else None
    copies, eager_ms = rotated(arguments, meter.device, MOST_COPIES), float("nan")
    for by, backend in (("eager", "reference"), ("cuda", "cuda"), ("triton", "triton")):
        spoilt = checks.raised(name, meter.out) if by == "cuda" else None
        if spoilt:
            print(f"{name}, {case}: not timed, because a check raised {spoilt}", flush=True)
            continue
        try:
            turns = [partial(on, backend, op, copy, keywords) for copy in copies]
            error = float("nan") if exact is None else relative(turns[0]()[:1], exact)
            ms = (rotating_ms if by == "eager" else graph_ms)(turns, meter.device, 0.1)
        except Exception as failure:
            print(f"{name}, {case}, {by}: {type(failure).__name__}: {failure}", flush=True)
            continue
        eager_ms = ms if by == "eager" else eager_ms
        common: Any = {"what": name, "case": case, "dtype": BFLOAT16, "by": by, "ms": ms, "eager_ms": eager_ms}
        meter.row(**common, macs=work.macs or float("nan"), moved=work.bytes, error=error)


def _wide(values: Any) -> Any:
    return tree_map(wide, values)


def time_network(meter: Meter, tile: int = TILE, tiles: int = TILES) -> None:
    """The released network on a photograph's tiles: CUDA and Triton as graphs, and eager; their kernels in the log."""
    config = PRESETS["released"]
    net, x = make_network(config, meter.device, BFLOAT16), images(config, tiles, tile, meter.device, BFLOAT16)
    plain = forward("reference", net, x[:1]).double()
    macs = count_macs(config, tile, tile).total * tiles
    common: Any = {"what": "released", "case": f"{tiles} tiles of {tile}", "dtype": BFLOAT16, "macs": macs}
    eager_ms, measured = float("nan"), []
    for by, backend in _backends(meter.device):
        if by == "cuda" and checks.raised("swda_block", meter.out):
            continue
        try:
            error = relative(forward(backend, net, x[:1]), plain)  # from eager, in bfloat16 as well
            if by == "eager":
                ms = eager_ms = median_ms(lambda: forward("reference", net, x), meter.device)
            else:
                replay = capture_graph(partial(forward, backend, net), x)
                ms = median_ms(partial(replay, x), meter.device)
        except Exception as failure:
            print(f"network, {by}: {type(failure).__name__}: {failure}", flush=True)
            continue
        meter.row(**common, by=by, ms=ms, eager_ms=eager_ms, error=error)
        measured.append((by, backend))
    for by, backend in measured[1:]:
        profile(partial(forward, backend, net, x), by, meter.device)


def _backends(device: str) -> Iterator[tuple[str, str]]:
    yield "eager", "reference"
    if device != "cpu":
        yield "cuda", "cuda"
        yield "triton", "triton"


def profile(call: Callable[[], object], by: str, device: str) -> None:
    """The kernels of a call that take longest, to the log."""
    if device == "cpu":
        return
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiled:
            call()
            torch.cuda.synchronize()
        times = [(event.self_device_time_total, event.count, event.key) for event in profiled.key_averages()]
        for microseconds, count, name in sorted(times, reverse=True)[:25]:
            print(f"  {by}: {microseconds / 1e3:9.3f} ms, {count:5d} x {name[:100]}", flush=True)
    except Exception as failure:  # some machines allow no profiler
        print(f"no profile of {by}: {failure}", flush=True)


def time_compiled(meter: Meter, tiles: int) -> None:
    """swda_block of the reference through torch.compile."""
    for shape in COMPILED:
        arguments, _ = given("swda_block", shape, meter.device, tiles)
        call = compiled_block(arguments)
        ms = rotating_ms([partial(call, copy) for copy in rotated(arguments, meter.device)], meter.device, 0.1)
        meter.row(what="swda_block", case=shape, dtype=BFLOAT16, by="compile", ms=ms)


# ---- notes -----------------------------------------------------------------------------------------------------------


def write_notes(out: Path, outcomes: dict[str, str]) -> None:
    """notes.md: what ran, the checks that failed, and CUDA beside Triton and eager."""
    rows = read_rows(out)
    found = {(r.what, r.case, r.by): r for r in rows}
    lines = [
        "| op | case | cuda ms | triton ms | compile ms | eager ms | cuda / matmul rate |",
        "|---|---|---|---|---|---|---|",
    ]
    for what, case in dict.fromkeys((r.what, r.case) for r in rows):
        cells = [found.get((what, case, by)) for by in ("cuda", "triton", "compile", "eager")]
        shares = f"{cells[0].matmul_share:.2f}" if cells[0] else "-"
        lines.append(
            f"| {what} | {case} | " + " | ".join(f"{c.ms:.3f}" if c else "-" for c in cells) + f" | {shares} |"
        )
    file = out / "checks.csv"
    told = file.read_text(encoding="utf-8").splitlines()[1:] if file.exists() else []
    wrong = [line for line in told if ",ok," not in line]
    parts = "\n".join(f"- {part}: {outcome}" for part, outcome in outcomes.items())
    summary = f"{len(told) - len(wrong)} of {len(told)} checks passed" + "".join(f"\n- {line}" for line in wrong)
    text = f"# CUDA kernels on a GPU\n\n```\n{machine()}\n```\n\n{parts}\n\n{summary}\n\n" + "\n".join(lines) + "\n"
    with replacing(out / "notes.md") as notes:
        notes.write(text.encode())
    print(text)


if __name__ == "__main__":
    main()
