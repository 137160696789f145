"""What `swintormer info` prints: versions, processor, backends and why not the rest, the weights and their card."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from swintormer.errors import SwintormerError, counted

if TYPE_CHECKING:
    from swintormer.checkpoint.checkpoint import CheckpointInfo


def describe(weights: Path | None, window: int | None = None) -> str:
    """The whole text.

    Args:
        window: side of the attention windows, for weights that do not say; None for the assumption.

    Raises:
        SwintormerError: weights are named that cannot be read, or a window for weights that say another.
    """
    sections = {
        "Versions": _versions(),
        "Processor": _processor(),
        "Backends": _backends(),
        "Weights": _weights(weights, window),
    }
    return "\n\n".join(f"{title}\n" + "\n".join(f"  {line}" for line in lines) for title, lines in sections.items())


def _versions() -> list[str]:
    import pyvips

    packages = {"swintormer": "swintormer-kernels", "torch": "torch", "numpy": "numpy", "pyvips": "pyvips"}
    lines = [f"{name:<11} {version(package)}" for name, package in packages.items()]
    libvips = ".".join(str(pyvips.version(part)) for part in range(3))
    return [*lines, f"{'libvips':<11} {libvips}", f"{'Python':<11} {platform.python_version()}"]


def version(package: str) -> str:
    """Of an installed package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> list[str]:
    import torch

    from swintormer_kernels import native

    absent = native.why_absent()
    lines = [
        f"{'model':<11} {_model_name()}",
        f"{'torch':<11} {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads",
    ]
    if absent is None:
        extension = native.extension()
        runs = ", ".join(extension.supported_isas())
        lines.append(f"{'kernels':<11} {extension.isa()} (of {runs}), threads: {extension.thread_source()}")
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        lines.append(f"{f'cuda:{index}':<11} {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB")
    return lines


def _model_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _backends() -> list[str]:
    from swintormer_kernels import backends

    return str(backends()).splitlines()


def _weights(path: Path | None, window: int | None) -> list[str]:
    from swintormer.checkpoint.checkpoint import checkpoint_info, default_weights

    try:
        path = path or default_weights()
    except SwintormerError as error:  # an installation without weights is worth a line here, not a failure
        return [str(error)]
    info = checkpoint_info(path, window_size=window)
    config = info.config
    blocks = f"{'-'.join(str(n) for n in config.num_blocks)} blocks and {config.num_refinement_blocks} of refinement"
    tile = (
        f"tiles of {info.training_tile}x{info.training_tile} pixels" if info.training_tile else "training tile unknown"
    )
    lines = [
        str(path),
        f"{info.parameters:,} parameters, {path.stat().st_size / 1e6:.1f} MB, {tile}",
        f"{config.in_channels} input channels, dim {config.dim}, {blocks}, {_window(info, window)}",
    ]
    if info.prior is not None:
        sampling = info.prior.sampling
        lines.append(f"with a prior of {info.prior.latent_channels} channels, {counted(sampling.steps, 'step')}")
    return lines + [f"{name}: {text}" for name, text in info.card.items()]


def _window(info: CheckpointInfo, asked: int | None) -> str:
    whose = "" if info.describes_itself else " (assumed: the file does not say)" if asked is None else " (your word)"
    return f"window {info.config.window_size}{whose}"
