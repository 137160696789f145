"""What a batch of tiles costs in memory, and how much memory there is."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from swintormer.model.config import NetworkConfig

# Resident memory above the live tensors: allocator slack and the libraries' own scratch. Peak of the process against
# peak of live tensors, measured with the preset `small` at tiles of 256 and 512, then the released size at 256:
#   reference, two threads:                101 MB for 55, 359 for 221, 165 for 141 (and `small` at 1024: 1074 for 883)
#   automatic backend (C++), one thread:    47 MB for 23, 112 for  70, 176 for 117
# The line 1.5 x + 32 MB covers all seven.
_SLACK = 1.5
_SCRATCH = 32 * 2**20

_GROUP = Path("/sys/fs/cgroup")  # version 2

# Where the system does not tell what is free.
_ASSUMED_AVAILABLE = 2 * 2**30


def live_bytes(config: NetworkConfig, pixels: int, itemsize: int = 4) -> int:
    """Bytes of live tensors at the peak of one forward pass without gradients, an upper bound.

    For ten configurations it came to 1.08 to 1.39 times the measured peak of the plain PyTorch reference with two
    threads, and up to 1.65 with one, where the library makes no blocked copies (tests/test_memory.py). The automatic
    backend keeps less alive where it is the C++ one: the estimate is 2.9 and 3.8 times its peak for the preset `small`
    at tiles of 256 and 512, and 1.35 times for the released size at 256. The bound is the reference's all the same, so
    that it holds whichever backend serves an op.

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
    # Per level once, whatever the image: the position MLP's hidden layer and four forms of the position bias.
    fixed = 512 * (2 * config.window_size - 1) ** 2 + 4 * max(config.heads) * tokens**2
    return int(itemsize * ((widest + held) * pixels / 4 + fixed))


def resident_bytes(config: NetworkConfig, pixels: int, itemsize: int = 4) -> int:
    """What the process or the device grows by at the peak of one forward pass: `live_bytes` and measured slack."""
    return int(_SLACK * live_bytes(config, pixels, itemsize)) + _SCRATCH


def available_bytes(device: torch.device) -> int:
    """Memory that is free now on the device; for the CPU the least of what the system and the control group grant."""
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
    """What the control group (a container's limit) leaves; without one, more than any machine has.

    The file cache counts as used there but gives way when memory is asked for.
    """
    try:
        limit = int((_GROUP / "memory.max").read_text())
        used = int((_GROUP / "memory.current").read_text())
        statistics = dict(line.split() for line in (_GROUP / "memory.stat").read_text().splitlines())
        return max(0, limit - used + int(statistics["inactive_file"]))
    except (OSError, ValueError, KeyError):  # no such group, or "max": no limit
        return 2**62
