"""`swintormer bench`: how fast this machine restores a picture, with a summary in one sentence."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from swintormer.cli.messages import preset_named

if TYPE_CHECKING:
    from torch import Tensor

    from swintormer.model.config import NetworkConfig
    from swintormer.model.network import Swintormer

TILE = 256
PHOTO = (6000, 4000)  # pixels of a 24-megapixel photograph, for the sentence


def bench(
    preset: Annotated[str, typer.Option(help="Network to time: small, small-prior or released.")] = "small",
    rounds: Annotated[int, typer.Option(min=1, help="Number of measurements of each kind.")] = 5,
) -> None:
    """Time one tile on this machine, compared with plain PyTorch."""
    print(run(preset_named(preset), rounds))


@dataclass(frozen=True)
class Bench:
    """Medians of one tile through the network on this machine; the measurements alternate.

    Attributes:
        backends: the backends of the network's blocks, by automatic selection as in `swintormer deblur`.
        threads: number of torch's threads.
        seconds: for one tile in float32.
        reference_seconds: for one tile in plain PyTorch.
        gflops: rate of the former (GFLOP/s).
        torch_gflops: the best rate that torch reaches here in float32.
        peak_gflops: float32 multiply-adds between registers, the most that this machine can do; NaN if not known.
        peak_bfloat16_gflops: the same in bfloat16; NaN if not known, or where the CPU has no such instruction.
        bfloat16_seconds: for one tile in bfloat16, which `swintormer deblur` takes where the weights allow it; NaN if
            the CPU does not multiply bfloat16.
        packed_megabytes: copies of the weights in the kernels' own memory layout.
    """

    backends: tuple[str, ...]
    threads: int
    seconds: float
    reference_seconds: float
    gflops: float
    torch_gflops: float
    peak_gflops: float = math.nan
    peak_bfloat16_gflops: float = math.nan
    bfloat16_seconds: float = math.nan
    packed_megabytes: float = 0.0

    def photo_seconds(self, tile_seconds: float) -> float:
        """The network's time for a 24-megapixel photograph, without reading and writing it."""
        from swintormer.execution.tiling import default_stride, make_grid

        width, height = PHOTO
        return len(make_grid(height, width, TILE, default_stride(TILE))) * tile_seconds

    def __str__(self) -> str:
        return (
            f"One tile of {TILE}x{TILE} pixels, threads: {self.threads}, medians\n{self._times()}"
            f"{self._rates()}  {self.packed_megabytes:.1f} MB of packed weights in addition to the network's own\n\n"
            f"{self.sentence()}"
        )

    def _times(self) -> str:
        """What was measured, one line for each."""
        own, plain = f"backend {'+'.join(self.backends)}", "plain PyTorch"
        measured = {own: self.seconds, "the same in bfloat16": self.bfloat16_seconds, plain: self.reference_seconds}
        told = ""
        for name, seconds in measured.items():
            if not math.isnan(seconds):
                ratio = "" if name == plain else f", {self.reference_seconds / seconds:.2f} times as fast"
                told += f"  {name:<20} {1e3 * seconds:>8.1f} ms{ratio}\n"
        return told

    def _rates(self) -> str:
        """The rate and its share of each limit, one line for each."""
        limits = {
            "of multiply-adds that this machine can do": self.peak_gflops,
            "of torch's best product": self.torch_gflops,
        }
        told = "".join(
            f"  {self.gflops:.0f} of the {limit:.0f} GFLOP/s {what} ({self.gflops / limit:.0%})\n"
            for what, limit in limits.items()
            if not math.isnan(limit)
        )
        if not math.isnan(self.peak_bfloat16_gflops):
            told += f"  in bfloat16 it could do {self.peak_bfloat16_gflops:.0f} GFLOP/s\n"
        return told

    def sentence(self) -> str:
        """The time for a photograph, with these kernels and with plain PyTorch, and how well the machine is used."""
        own, plain = (spoken(self.photo_seconds(s)) for s in (self.seconds, self.reference_seconds))
        photo = f"A {PHOTO[0]}x{PHOTO[1]} photograph takes this machine about {own}"
        if self.backends == ("reference",):
            return f"{photo} in plain PyTorch; `swintormer info` shows why faster kernels are missing."
        if not math.isnan(self.bfloat16_seconds):
            photo += f", or {spoken(self.photo_seconds(self.bfloat16_seconds))} in bfloat16"
        used = ""
        if not math.isnan(self.peak_gflops):
            used = f" In float32 that is {self.gflops / self.peak_gflops:.0%} of what its arithmetic units can do."
        return f"{photo}; in plain PyTorch it would be {plain}.{used}"


def run(config: NetworkConfig, rounds: int = 5) -> Bench:
    """Measure one tile on the CPU.

    Args:
        config: sizes of the network; its weights are random, which does not change the time.
        rounds: number of measurements of each kind, after one that is not counted.
    """
    import torch

    from swintormer.cli.macs import count_macs
    from swintormer.model.network import Swintormer
    from swintormer_kernels import use_backend
    from swintormer_kernels.packed import kept_bytes
    from swintormer_kernels.precision import multiplies_bfloat16
    from swintormer_kernels.testing.timing import TorchRate, in_turn, peak_rate

    net = Swintormer(config).eval()
    tile = torch.rand(1, config.in_channels, TILE, TILE)
    torch_rate = TorchRate()

    def plain() -> None:
        with use_backend("reference"):
            net(tile)

    def rounded() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            net(tile)

    turns = {"own": lambda: net(tile), "plain": plain, **torch_rate.turns}
    if multiplies_bfloat16():
        turns["bfloat16"] = rounded
    with torch.inference_mode():
        backends = blocks_backends(net, tile)
        seconds = in_turn(turns, rounds)
    own, plain_torch = median(seconds["own"]), median(seconds["plain"])
    return Bench(
        backends=backends,
        threads=torch.get_num_threads(),
        seconds=own,
        reference_seconds=plain_torch,
        gflops=2 * count_macs(config, TILE, TILE).total / own / 1e9,
        torch_gflops=torch_rate.rate(seconds) / 1e9,
        peak_gflops=peak_rate() / 1e9,
        peak_bfloat16_gflops=peak_rate("bfloat16") / 1e9,
        bfloat16_seconds=median(seconds.get("bfloat16", [math.nan])),
        packed_megabytes=kept_bytes(net.parameters()) / 1e6,
    )


def blocks_backends(net: Swintormer, image: Tensor) -> tuple[str, ...]:
    """Backends of `net`'s blocks for `image`, each once, in the order of their first use."""
    from swintormer_kernels import explain, swda_block
    from swintormer_kernels.nn import Block

    taken: dict[str, None] = {}

    def note(block: Any, arguments: tuple[Tensor]) -> None:
        weights = block.attn.weights(block.norm1), block.ffn.weights(block.norm2)
        taken[str(explain(swda_block, arguments[0], *weights, block.window, block.shift).backend)] = None

    handles = [part.register_forward_pre_hook(note) for part in net.modules() if isinstance(part, Block)]
    try:
        net(image)
    finally:
        for handle in handles:
            handle.remove()
    return tuple(taken)


def spoken(seconds: float) -> str:
    """A time with two significant digits, in a unit that suits it: "0.4 seconds", "3 minutes", "2 hours"."""
    unit, size = ("hour", 3600) if seconds >= 5400 else ("minute", 60) if seconds >= 90 else ("second", 1)
    text = f"{float(f'{seconds / size:.2g}'):g}"
    return f"{text} {unit}" + ("" if text == "1" else "s")
