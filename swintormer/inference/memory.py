"""The memory that a batch of tiles needs, and the memory that is free."""

from __future__ import annotations

import os
from collections.abc import Iterable
from math import ceil
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from swintormer.model.config import NetworkConfig

# Resident memory above the live tensors: allocator slack and the libraries' own scratch. Peak of the process against
# peak of live tensors, measured with the preset `small` at tiles of 256 and 512, then the released size at 256:
#   reference, two threads:                101 MB for 55, 359 for 221, 165 for 141 (and `small` at 1024: 1074 for 883)
#   automatic backend (C++), one thread:    47 MB for 23, 112 for  70, 176 for 117
# The line 1.5 x + 32 MB covers all seven.
_SLACK = 1.5
_SCRATCH = 32 * 2**20

# Packed weights are padded to multiples of these rows: a register tile's, and at most a convolution panel's.
_TILE = 12
_PANEL = 32

# Control groups: the file with this process's groups, and the folder where they are mounted.
_OWN_GROUPS = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")

# Assumed where the system does not report its free memory.
_ASSUMED_AVAILABLE = 2 * 2**30
_UNLIMITED = 2**62


def live_bytes(config: NetworkConfig, pixels: int, itemsize: int = 4) -> int:
    """Bytes of live tensors at the peak of one forward pass without gradients, an upper bound.

    For ten configurations it came to 1.08 to 1.39 times the measured peak of the plain PyTorch reference with two
    threads, and up to 1.65 with one, where the library makes no blocked copies (test_memory.py). The C++ backend needs
    less: the estimate is 2.9 and 3.8 times its peak for the preset `small` at tiles of 256 and 512, and 1.35 times for
    the released size at 256. The estimate is made for the reference, so that it holds whichever backend serves an op.

    Each block is counted per token with what the reference keeps alive at its three widest moments: the logits of the
    window half (four copies, and the mask), the depth-wise convolution with the library's blocked copies, and the gated
    product. The widest level decides; skip connections and the image come on top.

    Args:
        pixels: B * H * W of the batch, sides padded to multiples of `config.stride`.
        itemsize: bytes of an element.
    """
    tokens = config.window_size**2
    widest = 0.0
    for level, heads in enumerate(config.heads):
        # The decoder's first level and the refinement work on 2D channels at 1/2 of the resolution.
        channels = config.dim * max(2, 2**level)
        hidden = int(channels * config.ffn_expansion)
        window_half = 7 * channels + 4 * heads * tokens + tokens
        channel_half = 7 * channels + 3 * (channels // 2) ** 2 / heads / tokens
        depthwise = 16 * channels
        gated = 6 * channels + 4 * (hidden + 15)  # blocked copies round up to 16 channels
        widest = max(widest, max(window_half, channel_half, depthwise, gated) / 4**level)
    # The embedding, three skip connections and the latent (D, D, D/2, D/4, D/8), the decoder's input, and the image
    # three times: as it came, scaled and padded, and restored.
    held = 5 * config.dim + 4 * (2 * config.in_channels + config.out_channels)
    # Once per level, independent of the image: the position MLP's hidden layer and four forms of the position bias.
    fixed = 512 * (2 * config.window_size - 1) ** 2 + 4 * max(config.heads) * tokens**2
    return int(itemsize * ((widest + held) * pixels / 4 + fixed))


def resident_bytes(config: NetworkConfig, pixels: int, itemsize: int = 4) -> int:
    """Additional memory of the process or device at the peak of one forward pass: `live_bytes` and measured slack."""
    return int(_SLACK * live_bytes(config, pixels, itemsize)) + _SCRATCH


def packed_bytes(config: NetworkConfig) -> int:
    """Bytes of the network's weights in the memory layout of the C++ kernels, kept besides the weights: an upper bound.

    Rows are padded to the height of a register tile, those of q, k and v head by head.
    """
    levels = [*zip(config.num_blocks, config.heads, range(4), strict=True)]
    window = config.window_size
    # (blocks, heads, channels): the encoder with the deepest level, the decoder's two lower levels, and what works on
    # 2D channels at 1/2 of the resolution.
    stages = [(blocks, heads, config.dim * 2**level) for blocks, heads, level in levels]
    stages += [(blocks, heads, config.dim * 2**level) for blocks, heads, level in levels[1:3]]
    stages.append((config.num_blocks[0] + config.num_refinement_blocks, config.heads[0], 2 * config.dim))
    numbers = 0
    for blocks, heads, channels in stages:
        hidden = int(channels * config.ffn_expansion)
        rows = 2 * heads * _padded(3 * (channels // 2 // heads))
        attention = rows * (channels + 9) + _padded(channels) * channels
        feed_forward = 2 * _padded(hidden) * channels + _padded(channels) * hidden
        table = heads * (2 * window - 1) ** 2
        # Windows narrower than a vector keep the bias of every pair of places.
        places = heads * (window**2 * max(window**2, 32) if window < 16 else (2 * window - 1) ** 2)
        numbers += blocks * (attention + feed_forward + table + places)
    d = config.dim
    convolutions = [(4 * config.in_channels, d), (2 * d, 4 * config.out_channels)]
    for level in (1, 2, 4):  # down from this level's channels and up to them
        convolutions += [(level * d, level * d // 2), (2 * level * d, 4 * level * d)]
    # Winograd's 16 numbers in place of 9, for channels in panels.
    numbers += sum(16 * inputs * -(-outputs // _PANEL) * _PANEL for inputs, outputs in convolutions)
    return 4 * numbers


def _padded(rows: int) -> int:
    return -(-rows // _TILE) * _TILE


def packed_convolution_bytes(weights: Iterable[Tensor]) -> int:
    """The same for a denoiser's weights: 3x3 convolutions take 16 numbers for every 9, other layers the same number."""
    numbers = 0
    for weight in weights:
        if weight.ndim < 2:
            continue
        winograd = tuple(weight.shape[2:]) == (3, 3)
        numbers += -(-weight.shape[0] // _PANEL) * _PANEL * weight[0].numel() * 16 // (9 if winograd else 16)
    return 4 * numbers


def binary(size: int) -> str:
    """Bytes in the units of `--memory`, powers of 1024, rounded up: 52428800 are 50 MiB."""
    scaled, units = size / 1024, iter(("KiB", "MiB", "GiB"))
    unit = next(units)
    while scaled >= 1024 and unit != "GiB":
        scaled, unit = scaled / 1024, next(units)
    return f"{ceil(scaled * 10) / 10:.1f}".removesuffix(".0") + f" {unit}"


def available_bytes(device: torch.device) -> int:
    """Free memory of the device now; for the CPU, the smaller of the system's and what the control groups allow."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(_system_available(), _group_available())


def _system_available() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):  # not a POSIX system
        return _ASSUMED_AVAILABLE


def _group_available() -> int:
    """Memory left by the control groups (a container's limit); without a limit, more than any machine has.

    A group's parents limit it, too. Where a container sees its own group as the root, the path given to the process may
    not exist below the mount, so every part of the path that exists is checked.
    """
    try:
        lines = _OWN_GROUPS.read_text().splitlines()
    except OSError:  # not Linux
        return _UNLIMITED
    left = _UNLIMITED
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mounts, read = [_GROUPS, _GROUPS / "unified"], _left_in_version_2
        elif "memory" in controllers.split(","):
            mounts, read = [_GROUPS / "memory"], _left_in_version_1
        else:
            continue
        own = PurePosixPath(path.lstrip("/"))
        left = min(left, *(read(mount / part) for mount in mounts for part in (own, *own.parents)))
    return left


def _left_in_version_2(group: Path) -> int:
    return _left(group / "memory.max", group / "memory.current", group / "memory.stat", "inactive_file")


def _left_in_version_1(group: Path) -> int:
    return _left(
        group / "memory.limit_in_bytes",
        group / "memory.usage_in_bytes",
        group / "memory.stat",
        "total_inactive_file",
    )


def _left(limit: Path, used: Path, statistics: Path, cache: str) -> int:
    """The limit minus the used memory. The file cache counts as used there but is freed when memory is requested."""
    try:
        found = dict(line.split() for line in statistics.read_text().splitlines())
        return max(0, int(limit.read_text()) - int(used.read_text()) + int(found[cache]))
    except (OSError, ValueError, KeyError):  # no such group, or "max": no limit
        return _UNLIMITED
