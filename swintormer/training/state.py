"""The state file of a training run: read and checked as a whole before a run takes anything from it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from swintormer.data.config import DataConfig
from swintormer.errors import SwintormerError

STATE_VERSION = 4  # 3 added the settings, 4 left out torch's random state: the step number decides what is drawn
# Settings that may differ on resuming, because they do not decide what is learned. `steps` and `minutes` are not among
# them, because the learning rate's schedule follows both.
FREE: dict[str, Any] = dict.fromkeys(
    ("out", "device", "threads", "workers", "log_every", "checkpoint_every", "accumulate", "graph"), True
) | {"data": {"cache"}}
RANDOM = frozenset({"rng.cpu", "rng.cuda"})  # in files of version 3
# Settings that came later, with what they are for runs from before.
ADDED: dict[str, Any] = {
    "crops": [],
    "reuse": 1,
    "loss": "l1",
    "data": DataConfig.model_validate({}).model_dump(mode="json", exclude={"cache"}),
}
SLOTS = ("step", "exp_avg", "exp_avg_sq")  # what AdamW keeps for a parameter


@dataclass
class State:
    """The content of a state file, checked.

    Attributes:
        step, seconds: done so far.
        parts: tensors by part ("net", "average") and name.
        slots: AdamW's state by the parameter's index.
        identity: sizes of what is trained. settings: the configuration without `FREE`; None in older files.
    """

    step: int
    seconds: float
    parts: dict[str, dict[str, Tensor]]
    slots: dict[int, dict[str, Tensor]]
    identity: object
    settings: dict[str, Any] | None


def read_state(path: Path) -> tuple[State, dict[str, Tensor]]:
    """Counters and settings of a state file, and its tensors, not yet checked against a run.

    Raises:
        SwintormerError: no state file, or one without valid counters.
    """
    try:
        with safe_open(path, "pt") as file:
            head = json.loads((file.metadata() or {})["state"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, ValueError, RecursionError) as error:
        raise fault(path, str(error)) from error
    if not isinstance(head, dict):
        raise fault(path, "its description is no table")
    step, seconds, settings = head.get("step"), head.get("seconds"), head.get("settings")
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        raise fault(path, f"its step is {step!r}")
    if not isinstance(seconds, float) or not math.isfinite(seconds) or seconds < 0:
        raise fault(path, f"its seconds are {seconds!r}")
    if settings is not None and not isinstance(settings, dict):
        raise fault(path, "its settings are no table")
    return State(step, seconds, {}, {}, head.get("identity"), settings), tensors


def sort_tensors(
    path: Path, state: State, tensors: Mapping[str, Tensor], net: Mapping[str, Tensor], learning: list[nn.Parameter]
) -> None:
    """Fill `parts` and `slots` of `state`, after checking every tensor's name, shape and dtype.

    Args:
        net: state dict of the network that is to take the tensors. learning: the optimiser's parameters, in order.

    Raises:
        SwintormerError: a tensor is missing, foreign or of another kind.
    """
    expected = {f"{part}.{name}": tensor for part in ("net", "average") for name, tensor in net.items()}
    scalar = torch.tensor(0.0, dtype=torch.float32)
    for index, parameter in enumerate(learning):
        names = [f"optimizer.{index}.{slot}" for slot in SLOTS]
        if any(name in tensors for name in names):  # a parameter without a gradient so far has none
            expected |= dict(zip(names, (scalar, parameter, parameter), strict=True))
    missing, foreign = expected.keys() - tensors.keys(), tensors.keys() - expected.keys() - RANDOM
    if missing:
        raise fault(path, f"the tensor {min(missing)!r} is missing")
    if foreign:
        raise fault(path, f"this run has no tensor {min(foreign)!r}")
    for name, tensor in expected.items():
        found = tensors[name]
        if found.shape != tensor.shape or found.dtype != tensor.dtype:
            kinds = [f"{tuple(t.shape)} of {str(t.dtype).removeprefix('torch.')}" for t in (found, tensor)]
            raise fault(path, f"the tensor {name!r} is {kinds[0]}, expected {kinds[1]}")
    for key, tensor in tensors.items():
        if key in RANDOM:
            continue
        part, name = key.split(".", 1)
        if part != "optimizer":
            state.parts.setdefault(part, {})[name] = tensor
            continue
        number, slot = name.split(".", 1)
        if slot == "step" and not 0 <= float(tensor) <= state.step:
            raise fault(path, f"the counter {key!r} is {float(tensor):g} after {state.step} steps")
        state.slots.setdefault(int(number), {})[slot] = tensor


def check_settings(path: Path, before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> None:
    """Raises SwintormerError, with their names, if settings that decide the result differ."""
    advice = "set them back, accept the changes (--accept-changes), or start over (--restart)"
    if before is None:
        raise SwintormerError(
            f"{path} does not say under which settings it was written, like older state files: {advice}."
        )
    if changes := changed(before, now):
        raise SwintormerError(f"{path} was written under other settings, {', '.join(changes)}: {advice}.")


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The settings of `now` that differ from those of a run before, as "`name` before -> now", by name.

    Settings that came later had the values of `ADDED`.
    """
    before = {**ADDED, **before}
    if isinstance(before["data"], dict):
        before["data"] = {**ADDED["data"], **before["data"]}
    before, now = _flat(before), _flat(now)
    names = sorted(name for name in now if before.get(name) != now.get(name))
    return [f"`{name}` {_brief(before.get(name))} -> {_brief(now.get(name))}" for name in names]


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Tables by their entries, as `data.photos`."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        inner = {f"{name}.{key}": entry for key, entry in value.items()} if isinstance(value, dict) else {name: value}
        flat |= inner
    return flat


def _brief(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def fault(path: Path, what: str) -> SwintormerError:
    """The error for a file that is not a usable state."""
    return SwintormerError(
        f"{path} is not a training state of this run ({what}): move it away, start over or choose another `out` folder."
    )
