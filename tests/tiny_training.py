"""A training configuration that takes a tenth of a second a step, and what its run folder holds."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from swintormer.model.config import NetworkConfig
from swintormer.training.config import RestorationConfig

TIMES = {"minutes": "", "data_wait": ""}  # of log.csv
NETWORK = NetworkConfig(
    in_channels=3, dim=4, num_blocks=(1, 1, 1, 1), num_refinement_blocks=1, heads=(1, 1, 1, 1), window_size=2
)


def tiny(out: Path, **changes: Any) -> RestorationConfig:
    values: dict[str, Any] = {"network": NETWORK, "out": out, "seed": 1, "steps": 6, "batch": 2, "crop": 32}
    values |= {"scene_side": 96, "lr": 1e-3, "clip": 1.0, "validation": 1, "log_every": 1, "checkpoint_every": 2}
    return RestorationConfig(**values | {"device": "cpu"} | changes)


def log(config: RestorationConfig) -> list[dict[str, str]]:
    with (config.out / "log.csv").open() as file:
        return list(csv.DictReader(file))


def same_tensors(a: Path, b: Path) -> bool:
    with safe_open(a, "pt") as first, safe_open(b, "pt") as second:
        assert sorted(first.keys()) == sorted(second.keys())
        return all(torch.equal(first.get_tensor(key), second.get_tensor(key)) for key in first.keys())  # noqa: SIM118
