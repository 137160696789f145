"""What a network costs: multiply-accumulates per tile and per image, by stage."""

from __future__ import annotations

from dataclasses import dataclass

from swintormer.config import NetworkConfig


@dataclass(frozen=True)
class Cost:
    """Multiply-accumulates of one pass over a tile of height x width pixels.

    Attributes:
        stages: stage -> MACs, in the network's order. What the network computes outside its stages is additions.
    """

    height: int
    width: int
    stages: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.stages.values())


def count_macs(config: NetworkConfig, height: int, width: int) -> Cost:
    """Count with torch's FlopCounterMode on the meta device: no memory, no arithmetic, any size.

    It counts convolutions and matrix products (attention's too, which ptflops leaves out) at two flops for each
    multiply-accumulate, and nothing element-wise. Sides are padded to multiples of `config.stride`, as in a real pass;
    the position tables, made once a pass, are included.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from swintormer.network import Swintormer
    from swintormer_kernels import use_backend

    with torch.device("meta"):
        net = Swintormer(config)
        tile = torch.empty(1, config.in_channels, height, width)
    counter = FlopCounterMode(display=False)
    with use_backend("reference"), counter, torch.no_grad():
        net(tile)
    flops = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    prefix = type(net).__name__
    stages = {name: flops.get(f"{prefix}.{name}", 0) // 2 for name, _ in net.named_children()}
    return Cost(height, width, stages)


def describe(config: NetworkConfig, tile: int, stride: int | None, sizes: list[tuple[int, int]]) -> str:
    """The table that `swintormer macs` prints.

    Args:
        stride: None for the default of that tile.
        sizes: (width, height) of images.
    """
    from swintormer.tiling import default_stride, make_grid

    stride = default_stride(tile) if stride is None else stride
    cost = count_macs(config, tile, tile)
    columns, notes = {f"tile {tile}x{tile}": cost.stages}, []
    for width, height in sizes:
        grid = make_grid(height, width, tile, stride)
        whole = cost if min(width, height) >= tile else count_macs(config, min(tile, height), min(tile, width))
        columns[f"{width}x{height}"] = {stage: len(grid) * macs for stage, macs in whole.stages.items()}
        notes.append(
            f"{width}x{height} pixels: {len(grid)} tiles of {whole.width}x{whole.height}, stride {stride}: "
            f"{len(grid) * whole.total / 1e9:,.1f} GMAC"
        )
    return "\n".join(["GMAC by stage (torch FlopCounterMode)", "", *_table(columns), "", *notes])


def _table(columns: dict[str, dict[str, int]]) -> list[str]:
    """Rows of a table: GMAC of each stage and its share of the column."""
    rows = [f"{'':<20}" + "".join(f" {name:>20}" for name in columns)]
    sums = [sum(stages.values()) for stages in columns.values()]
    for stage in next(iter(columns.values())):
        cells = zip((stages[stage] for stages in columns.values()), sums, strict=True)
        rows.append(f"{stage:<20}" + "".join(f" {macs / 1e9:>12,.3f} {macs / total:>7.1%}" for macs, total in cells))
    return [*rows, f"{'together':<20}" + "".join(f" {total / 1e9:>12,.3f} {1:>7.1%}" for total in sums)]
