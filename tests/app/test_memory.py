"""What a tile is said to cost in memory, against what it was measured to take."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from swintormer.errors import SwintormerError
from swintormer.inference import memory
from swintormer.inference.deblurrer import Deblurrer
from swintormer.inference.memory import (
    available_bytes,
    binary,
    live_bytes,
    packed_bytes,
    packed_convolution_bytes,
    resident_bytes,
)
from swintormer.model.config import PRESETS, NetworkConfig
from swintormer.model.network import Swintormer
from swintormer.prior.checkpoint import make_prior
from swintormer.prior.config import PRIORS
from swintormer_kernels import use_backend
from swintormer_kernels.packed import kept_bytes
from swintormer_kernels.testing.timing import peak_memory

# Two blocks where tokens are most, so that one of them is shifted and has a mask.
SHALLOW = {"in_channels": 3, "num_blocks": (1, 2, 1, 1), "num_refinement_blocks": 2}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    "sizes",
    [
        {"dim": 8, "window_size": 2},
        {"dim": 16, "window_size": 4},
        {"dim": 16, "window_size": 8},
        {"dim": 24, "window_size": 8},  # the preset `small`
        {"dim": 16, "window_size": 8, "heads": (4, 4, 4, 8)},  # logits decide
        {"dim": 16, "window_size": 8, "heads": (1, 8, 8, 8)},  # at the second level
        {"dim": 16, "window_size": 4, "ffn_expansion": 8.0},  # the gated product decides
        {"dim": 16, "window_size": 4, "in_channels": 6},
    ],
    ids=str,
)
def test_estimate_covers_the_measured_peak(sizes: dict) -> None:
    config = NetworkConfig(**(SHALLOW | sizes))
    net, side = Swintormer(config).eval(), 128
    image = torch.rand(1, config.in_channels, side, side)
    with torch.inference_mode(), use_backend("reference"):
        measured = peak_memory(lambda: net(image))
    estimate = live_bytes(config, side * side)
    print(f"{sizes}: measured {measured / side**2:.0f} bytes a pixel, estimated {estimate / side**2:.0f}")
    assert measured <= estimate <= 2 * measured  # with one thread the library makes no blocked copies


def test_estimate_covers_the_automatic_backend() -> None:
    config = NetworkConfig(**(SHALLOW | {"dim": 24, "window_size": 8}))
    net, image = Swintormer(config).eval(), torch.rand(1, 3, 128, 128)
    with torch.inference_mode():
        measured = peak_memory(lambda: net(image))
    assert 0 < measured <= live_bytes(config, 128 * 128)


def test_estimate_scales_with_pixels_and_element_size() -> None:
    config = NetworkConfig()
    per_pixel = live_bytes(config, 2 * 512**2) - live_bytes(config, 512**2)
    assert per_pixel > 0.9 * live_bytes(config, 512**2)
    assert live_bytes(config, 512**2, itemsize=2) == live_bytes(config, 512**2) // 2
    assert resident_bytes(config, 512**2) > live_bytes(config, 512**2)


def test_available_memory_of_this_machine() -> None:
    assert 2**20 < available_bytes(torch.device("cpu")) < 2**62


@pytest.fixture
def groups(tmp_path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where control groups are mounted, with none in it; `groups / "own"` tells the process its own."""
    monkeypatch.setattr(memory, "_GROUPS", tmp_path)
    monkeypatch.setattr(memory, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(memory, "_system_available", lambda: 10**9)
    return tmp_path


def write_group(folder: Path, limit: object, used: int, cache: int, version: int = 2) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for name, value in zip(names, (limit, used), strict=True):
        (folder / name).write_text(f"{value}\n")
    key = "inactive_file" if version == 2 else "total_inactive_file"
    (folder / "memory.stat").write_text(f"anon 400000\n{key} {cache}\n")


def available() -> int:
    return available_bytes(torch.device("cpu"))


def test_the_process_s_own_control_group_limits_what_is_available(groups: Path) -> None:
    (groups / "own").write_text("0::/user/job\n")
    write_group(groups / "user" / "job", 1_000_000, 700_000, 200_000)
    assert available() == 500_000
    write_group(groups / "user", 900_000, 800_000, 0)  # a parent's limit holds too
    assert available() == 100_000
    write_group(groups / "user", "max", 800_000, 0)
    write_group(groups / "user" / "job", "max", 700_000, 0)
    assert available() == 10**9


def test_control_groups_of_version_1(groups: Path) -> None:
    (groups / "own").write_text("5:cpu,cpuacct:/\n4:memory:/docker/abc\n0::/\n")
    write_group(groups / "memory" / "docker" / "abc", 1_000_000, 700_000, 200_000, version=1)
    write_group(groups / "memory", 2**63 - 4096, 900_000, 0, version=1)  # no limit
    assert available() == 500_000


def test_a_container_sees_its_own_control_group_as_the_root(groups: Path) -> None:
    (groups / "own").write_text("4:memory:/docker/abc\n0::/docker/abc\n")
    write_group(groups / "memory", 1_000_000, 900_000, 0, version=1)
    assert available() == 100_000
    write_group(groups, 1_000_000, 950_000, 0)
    assert available() == 50_000


def test_without_control_groups(groups: Path) -> None:
    assert available() == 10**9
    (groups / "own").write_text("0::/gone\n")
    assert available() == 10**9


@pytest.mark.parametrize(
    "sizes",
    [
        PRESETS["small"].model_dump(),
        {"in_channels": 3, "num_blocks": (1, 1, 1, 1), "num_refinement_blocks": 1},  # the released channels
        SHALLOW | {"dim": 48, "window_size": 4},
    ],
    ids=["small", "released channels", "window 4"],
)
def test_estimate_covers_packed_weights(sizes: dict, extension: object) -> None:
    config = NetworkConfig(**sizes)
    net = Swintormer(config).eval()
    with torch.inference_mode(), use_backend("cpu"):
        net(torch.rand(1, 3, 32, 32))
    assert 0 < kept_bytes(net.parameters()) <= packed_bytes(config) <= 1.25 * kept_bytes(net.parameters())


def test_estimate_covers_a_denoisers_packed_weights(extension: object) -> None:
    prior = make_prior(PRIORS["compact"]).eval()
    prior.sample(torch.rand(1, 3, 128, 128), steps=1)
    estimate = packed_convolution_bytes(prior.denoiser.parameters())
    assert 0 < kept_bytes(prior.parameters()) <= estimate <= 1.7 * kept_bytes(prior.parameters())


def test_a_budget_holds_the_packed_weights() -> None:
    net = Swintormer(**(SHALLOW | {"dim": 16, "window_size": 4}))
    cost = Deblurrer(net)._cost(64, 1, 64, 64)
    assert cost >= resident_bytes(net.config, 64 * 64) + packed_bytes(net.config)
    assert len(Deblurrer(net, tile=64, memory=cost).plan(64, 64).grid) == 1
    with pytest.raises(SwintormerError, match="but the memory limit is"):
        Deblurrer(net, tile=64, memory=cost - 1).plan(64, 64)


@pytest.mark.parametrize(
    ("size", "text"),
    [(1024, "1 KiB"), (50 * 2**20, "50 MiB"), (50 * 2**20 + 1, "50.1 MiB"), (2**30, "1 GiB"), (2**41, "2048 GiB")],
)
def test_sizes_are_told_as_they_are_asked_for(size, text):
    assert binary(size) == text
