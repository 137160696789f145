"""`swintormer models`: the networks that ship with the program, by name."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from swintormer.errors import PriorError, SwintormerError

SIDE = 512  # pixels of the picture that is restored to measure the speed


@dataclass(frozen=True)
class Model:
    """A network by name.

    Attributes:
        file: name of its weights.
        purpose: what it is for, in two or three words, and after a semicolon in some more.
        alone: a picture that the network changes by less than this (`images.compare.change`, dB; more is less change)
            needs nothing; None where it was not measured. `python -m bench.leave_alone` measures it: MODEL_CARD.md.
        scales: at how many resolutions a picture is restored, see `Deblurrer`.
    """

    name: str
    file: Literal["small", "strong", "small-prior"]
    purpose: str
    licence: str
    alone: float | None = None
    scales: int | Literal["auto"] = 1

    def path(self) -> Path:
        """The file. Raises SwintormerError if this installation does not have it."""
        from swintormer.checkpoint.checkpoint import default_weights

        return default_weights(self.file)


MODELS: dict[str, Model] = {
    model.name: model
    for model in (
        Model(
            "strong",
            "strong",
            "mild blur; the default: for pictures a little out of focus or moved",
            "Apache-2.0",
            alone=47.0,
        ),
        Model(
            "small",
            "small",
            "comparison; earlier weights, which restore less",
            "Apache-2.0",
            alone=48.0,
        ),
        Model(
            "wide",
            "strong",
            "wide blur; of ten pixels and more, and with it backgrounds that are meant to be out of focus",
            "Apache-2.0",
            scales="auto",
        ),
        Model(
            "small-prior",
            "small-prior",
            "research; an earlier network with the diffusion prior (--prior): slower, restores less than small",
            "Apache-2.0",
            alone=50.0,
        ),
    )
}
DEFAULT, WITH_PRIOR = "strong", "small-prior"


def named(name: str) -> Model:
    """Raises SwintormerError for a name that no model has."""
    if name not in MODELS:
        raise SwintormerError(f"There is no model {name!r}: choose one of {', '.join(MODELS)} (`swintormer models`).")
    return MODELS[name]


def models() -> None:
    """List the networks that ship with the program: what for, size, speed on this machine, licence."""
    for model in MODELS.values():
        path = model.path()
        print(model.name)
        print(f"  for      {model.purpose}")
        print(f"  size     {path.stat().st_size / 1e6:.1f} MB")
        print(f"  speed    {_speed(model)}")
        print(f"  licence  {model.licence}")


def _speed(model: Model) -> str:
    """Megapixels a second, of two restorations the faster one: the first packs weights."""
    import numpy as np
    import torch

    from swintormer.checkpoint.checkpoint import read_checkpoint
    from swintormer.inference.deblurrer import Deblurrer

    try:
        deblurrer = Deblurrer(read_checkpoint(model.path()), device="auto", scales=model.scales)
    except PriorError as error:
        return str(error)
    picture = np.zeros((SIDE, SIDE, 3), np.uint8)
    best = math.inf
    for _ in range(2):
        start = time.monotonic()
        deblurrer.restore_array(picture)
        best = min(best, time.monotonic() - start)
    threads = torch.get_num_threads()
    where = f"{threads} thread{'s' * (threads != 1)}" if deblurrer.device.type == "cpu" else str(deblurrer.device)
    return f"{SIDE**2 / 1e6 / best:.2f} megapixels/s, measured now with {SIDE}x{SIDE} pixels on {where}"
