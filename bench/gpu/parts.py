"""The timed parts of bench/gpu/main.py. They run on a CPU as well, small, which is how the tests reach them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import swintormer_kernels as sk
from bench.gpu.rows import Row, append
from bench.gpu.timing import clock_mhz, copy_rate, driver_version, matrix_rate, median_ms, peak_mb, rotated, rotating_ms
from bench.measure import op_modules
from swintormer import PRESETS, NetworkConfig, Swintormer
from swintormer.cli.macs import count_macs
from swintormer.execution.cuda_graph import capture_graph
from swintormer_kernels.testing.cases import cases_of

TILES, TRAINED, TILE = 40, 8, 256  # 40 tiles are a photograph of 1680x1120
OP_TILES = 8  # tiles whose blocks an op gets at once
OF_TILES = ("gated_ffn", "swda_attention", "swda_block")  # denoiser.py times the others, on one latent
DTYPES = (torch.bfloat16, torch.float32)
NAN = float("nan")


class Meter:
    """Times calls on one device and writes rows with their shares of what that device can do."""

    def __init__(self, part: str, out: Path, device: str, n: int = 8192) -> None:
        self.part, self.out, self.device = part, out, device
        self.rates = {dtype: matrix_rate(dtype, device, n) for dtype in DTYPES}
        self.copy = copy_rate(device, 2**28 if device != "cpu" else 2**16)
        for dtype, rate in self.rates.items():
            print(f"matrix product in {dtype}: {rate / 1e12:.1f} TFLOP/s")
        print(f"copy: {self.copy / 1e9:.0f} GB/s", flush=True)
        self.card = "CPU" if device == "cpu" else torch.cuda.get_device_name(device)
        self.driver = driver_version()

    def row(
        self,
        *,
        what: str,
        case: str,
        dtype: torch.dtype,
        by: str,
        ms: float,
        passes: str = "forward",
        macs: float = NAN,
        moved: float = NAN,
        eager_ms: float = NAN,
        peak_mb: float = NAN,
        error: float = NAN,
    ) -> Row:
        """Write a line, with the rates and shares that follow; `macs` and `moved` (bytes) are those of the forward."""
        seconds, flops = 1e-3 * ms, 2 * macs * (3 if passes == "both" else 1)
        row = Row(
            part=self.part,
            what=what,
            case=case,
            dtype=str(dtype).removeprefix("torch."),
            passes=passes,
            by=by,
            ms=ms,
            ratio=eager_ms / ms,
            gmac=flops / 2e9,
            tflops=flops / seconds / 1e12,
            matmul_share=flops / seconds / self.rates[dtype],
            gb_s=moved / seconds / 1e9,
            copy_share=moved / seconds / self.copy,
            peak_mb=peak_mb,
            error=error,
            card=self.card,
            driver=self.driver,
            clock_mhz=clock_mhz() if self.device != "cpu" else NAN,
        )
        append(self.out, row)
        return row


def run(part: str, out: Path, device: str) -> None:
    """One part of main.py."""
    meter = Meter(part, out, device)
    if part == "ops":
        for module in op_modules("triton"):
            if module.OP.name in OF_TILES:
                time_op(meter, module)
    elif part == "network":
        for preset in ("released", "small"):
            time_network(meter, preset, PRESETS[preset])
    else:
        time_compiled(meter, PRESETS["released"])


# ---- op by op --------------------------------------------------------------------------------------------------------


def time_op(meter: Meter, module: ModuleType, tiles: int = OP_TILES) -> None:
    """Every timed case, forward and both, eager, Triton and CUDA."""
    op = getattr(module, module.OP.name)
    for case in cases_of(module.OP.name):
        if not case.timed:
            continue
        for dtype in DTYPES:
            arguments, keywords = on_device(case.make(0), meter.device, dtype, tiles)
            time_case(meter, op, case.name, (arguments, keywords), module.cost(*arguments, **keywords))


def on_device(made: tuple[Any, Any], device: str, dtype: torch.dtype, tiles: int) -> tuple[Any, Any]:
    """A case's arguments on the device in `dtype`; x, the first, for so many tiles."""
    (x, *rest), keywords = tree_map(lambda t: t.to(device, dtype) if isinstance(t, Tensor) else t, made)
    layout = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    return (x.repeat(tiles, 1, 1, 1).contiguous(memory_format=layout), *rest), keywords


def time_case(meter: Meter, op: Callable[..., Tensor], name: str, given: tuple[Any, Any], work: Any) -> None:
    """Rows of one case: forward and both, of each backend that serves it."""
    arguments, keywords = given
    dtype = arguments[0].dtype
    exact = on("reference", op, *tree_map(lambda t: t[:1].double() if t is arguments[0] else wide(t), given))
    copies = rotated(arguments, meter.device)
    eager: dict[str, float] = {}
    for by, backend in (("eager", "reference"), ("triton", "triton"), ("cuda", "cuda")):
        reason = op.op.why_not(backend, *arguments, **keywords)  # type: ignore[attr-defined]
        if reason is not None:
            print(f"{op.op.name}, {name}, {dtype}, {by}: {reason}", flush=True)  # type: ignore[attr-defined]
            continue
        first = on(backend, op, (arguments[0][:1], *arguments[1:]), keywords)
        error = relative(first, exact)
        for passes, call in (("forward", on), ("both", both)):
            turns = [lambda copy=copy, call=call: call(backend, op, copy, keywords) for copy in copies]  # noqa: B023
            peak = peak_mb(turns[0], meter.device)
            ms = rotating_ms(turns, meter.device)
            eager.setdefault(passes, ms)
            meter.row(
                what=op.op.name,  # type: ignore[attr-defined]
                case=name,
                dtype=dtype,
                passes=passes,
                by=by,
                ms=ms,
                macs=work.macs,
                moved=work.bytes,
                eager_ms=eager[passes],
                peak_mb=peak,
                error=error,
            )


def on(backend: str, op: Callable[..., Tensor], arguments: Any, keywords: Any) -> Tensor:
    with torch.no_grad(), sk.use_backend(backend):
        return op(*arguments, **keywords)


def both(backend: str, op: Callable[..., Tensor], arguments: Any, keywords: Any) -> list[Tensor]:
    leaves: list[Tensor] = []
    wanted = tree_map(
        lambda t: leaves.append(t.detach().requires_grad_()) or leaves[-1] if isinstance(t, Tensor) else t, arguments
    )
    with sk.use_backend(backend):
        y = op(*wanted, **keywords)
    return list(torch.autograd.grad(y, leaves, torch.ones_like(y)))


def wide(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) else value


def relative(value: Tensor, exact: Tensor) -> float:
    return ((value.double() - exact).norm() / exact.norm()).item()


# ---- the whole network -----------------------------------------------------------------------------------------------


def make_network(config: NetworkConfig, device: str, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return Swintormer(config).to(device, dtype).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]


def images(config: NetworkConfig, count: int, tile: int, device: str, dtype: torch.dtype) -> Tensor:
    x = torch.rand(count, config.in_channels, tile, tile, device=device).to(dtype)
    return x.contiguous(memory_format=torch.channels_last)


def time_network(
    meter: Meter, preset: str, config: NetworkConfig, tile: int = TILE, counts: tuple[int, int] = (TILES, TRAINED)
) -> None:
    """Forward of a photograph's tiles, plainly and as a graph, and a training step."""
    tiles, trained = counts
    for dtype in DTYPES:
        net, x = make_network(config, meter.device, dtype), images(config, tiles, tile, meter.device, dtype)
        exact = forward("reference", make_network(config, meter.device, torch.float64), x[:1].double())
        macs = count_macs(config, tile, tile).total * tiles
        case, eager_ms = f"{tiles} tiles of {tile}", NAN
        for by, backend in networks(meter.device, dtype):
            error = relative(forward(backend, net, x[:1]), exact)
            peak = peak_mb(lambda backend=backend: forward(backend, net, x), meter.device)  # noqa: B023
            ms = median_ms(lambda backend=backend: forward(backend, net, x), meter.device)  # noqa: B023
            eager_ms = ms if by == "eager" else eager_ms
            common: Any = {"what": preset, "case": case, "dtype": dtype, "macs": macs, "error": error}
            meter.row(**common, by=by, ms=ms, eager_ms=eager_ms, peak_mb=peak)
            if by != "eager" and meter.device != "cpu":
                replay = capture_graph(lambda t, backend=backend: forward(backend, net, t), x)  # noqa: B023
                ms = median_ms(lambda: replay(x), meter.device)  # noqa: B023
                meter.row(**common, by="graph" if by == "triton" else f"{by} graph", ms=ms, eager_ms=eager_ms)
        time_training(meter, preset, net, images(config, trained, tile, meter.device, dtype))


def networks(device: str, dtype: torch.dtype) -> Iterator[tuple[str, str]]:
    """(name of the row, backend) of what a network is timed with."""
    yield "eager", "reference"
    if device != "cpu":
        yield "triton", "triton"
        if sk.backends()["cuda"] is None and dtype != torch.float32:
            yield "cuda", "cuda"


def forward(backend: str, net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad(), sk.use_backend(backend):
        return net(x)


def time_training(meter: Meter, preset: str, net: nn.Module, x: Tensor) -> None:
    """Forward and backward of a batch, with gradients of all parameters."""

    def step(backend: str) -> None:
        with sk.use_backend(backend):
            net(x).abs().mean().backward()
        net.zero_grad(set_to_none=True)

    eager_ms = NAN
    for by, backend in networks(meter.device, x.dtype):
        peak = peak_mb(lambda backend=backend: step(backend), meter.device)
        ms = median_ms(lambda backend=backend: step(backend), meter.device)
        eager_ms = ms if by == "eager" else eager_ms
        case = f"batch {len(x)} of {x.shape[-1]}"
        meter.row(what=preset, case=case, dtype=x.dtype, passes="both", by=by, ms=ms, eager_ms=eager_ms, peak_mb=peak)


def time_compiled(meter: Meter, config: NetworkConfig, tile: int = TILE, tiles: int = TILES) -> None:
    """The reference network through torch.compile(mode="max-autotune"), bfloat16, the photograph's tiles."""
    dtype = torch.bfloat16
    net, x = make_network(config, meter.device, dtype), images(config, tiles, tile, meter.device, dtype)
    compiled = torch.compile(net, mode=compile_mode(meter.device))
    ms = median_ms(lambda: forward("reference", compiled, x), meter.device)
    macs = count_macs(config, tile, tile).total * tiles
    meter.row(what="released", case=f"{tiles} tiles of {tile}", dtype=dtype, by="compile", ms=ms, macs=macs)


def compile_mode(device: str) -> str | None:
    """max-autotune times Triton kernels; for a CPU there are none."""
    return None if device == "cpu" else "max-autotune"
