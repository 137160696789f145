"""`swintormer info`: versions, processor, backends and why others are missing, the weights and their model card."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from swintormer.errors import SwintormerError

if TYPE_CHECKING:
    from swintormer.checkpoint.checkpoint import CheckpointInfo


# What each extra of the package is for, and the packages that it brings.
EXTRAS = {
    "web": ("the page of `swintormer web`", ["starlette", "uvicorn"]),
    "formats": ("pictures in HEIC, JPEG XL and BMP", ["pillow", "pillow-heif", "pillow-jxl-plugin"]),
    "prior": ("`deblur --prior`", ["diffusers"]),
    "train": ("`train` and `evaluate`", ["scikit-image"]),
    "perceptual": ("a perceptual loss for `train`, ST-LPIPS for `evaluate`", ["stlpips-pytorch"]),
    "export": ("`export --format onnx`", ["onnx"]),
    "hub": ("`--model OWNER/NAME`", ["huggingface_hub"]),
    "ray": ("`deblur --ray`", ["ray"]),
    "spandrel": ("ComfyUI's own nodes for upscalers", ["spandrel"]),
}


def info(
    weights: Annotated[Path | None, typer.Option(help="Describe this network instead of the installed one.")] = None,
    window: Annotated[
        int | None,
        typer.Option(min=1, metavar="PIXELS", help="Attention window size, for weights that do not store it."),
    ] = None,
) -> None:
    """Show what is installed and what this machine can do."""
    print(describe(weights, window))


def describe(weights: Path | None, window: int | None = None) -> str:
    """The text that `swintormer info` prints.

    Args:
        window: size of the attention windows, for weights that do not store it; None for the assumed size.

    Raises:
        SwintormerError: the weights cannot be read, or store another window size.
    """
    sections = {
        "Versions": _versions(),
        "Processor": _processor(),
        "Backends": _backends(),
        "Extras": _extras(),
        "Weights": _weights(weights, window),
    }
    return "\n\n".join(f"{title}\n" + "\n".join(f"  {line}" for line in lines) for title, lines in sections.items())


def _versions() -> list[str]:
    import pyvips

    packages = {"swintormer": "swintormer-kernels"} | {x: x for x in ("torch", "numpy", "pyvips", "diffusers")}
    lines = [f"{name:<11} {version(package)}" for name, package in packages.items()]
    libvips = ".".join(str(pyvips.version(part)) for part in range(3))
    return [*lines, f"{'libvips':<11} {libvips}", f"{'Python':<11} {platform.python_version()}"]


def version(package: str) -> str:
    """Version of an installed package, or "not installed"."""
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


def _extras() -> list[str]:
    lines = []
    for extra, (purpose, packages) in EXTRAS.items():
        if all(version(package) != "not installed" for package in packages):
            lines.append(f"{extra:<11} {purpose}")
        else:
            lines.append(f"{extra:<11} {purpose}: not installed, pip install 'swintormer-kernels[{extra}]'")
    return lines


def _weights(path: Path | None, window: int | None) -> list[str]:
    from swintormer.checkpoint.checkpoint import checkpoint_info
    from swintormer.cli.models import DEFAULT, named

    try:
        if path is None:
            path = named(DEFAULT).path()
    except SwintormerError as error:  # without weights, the rest is still worth showing
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
        lines.append(f"with a prior of {info.prior.latent_channels} channels, steps: {sampling.steps}")
    return lines + [f"{name}: {text}" for name, text in info.card.items()]


def _window(info: CheckpointInfo, asked: int | None) -> str:
    whose = "" if info.describes_itself else " (assumed: the file does not say)" if asked is None else " (as given)"
    return f"window {info.config.window_size}{whose}"
