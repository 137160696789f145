"""What a tile is said to cost in memory, against what it was measured to take."""

from __future__ import annotations

import pytest
import torch

from swintormer.inference import memory
from swintormer.inference.memory import available_bytes, live_bytes, resident_bytes
from swintormer.model.config import NetworkConfig
from swintormer.model.network import Swintormer
from swintormer_kernels import use_backend
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


def test_control_group_limits_what_is_available(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 400000\ninactive_file 200000\n")
    monkeypatch.setattr(memory, "_GROUP", tmp_path)
    assert available_bytes(torch.device("cpu")) == 500_000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes(torch.device("cpu")) > 2**20
