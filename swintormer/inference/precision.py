"""In which precision a network restores pictures: what `Deblurrer(precision=...)` and `--precision` mean.

bfloat16 is torch's autocast, under which the kernels of a CPU multiply bfloat16 only where the CPU can
(`swintormer_kernels.precision`). "auto" is float32, except on a CPU that multiplies bfloat16 with weights whose results
hardly change by it: their `agreement` is measured once.

Decibels between the results of `strong` in bfloat16 and in float32 (`python -m bench.precision --side 256 kodak`): the
24 sharp photographs of Kodak's set, mean 72.9, worst 69.4; the held-out photographs in each of 20 degradations, mean
71.0, worst 61.8.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Literal, TypeAlias, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from swintormer.errors import InputError
from swintormer.images.reading import read_image
from swintormer.model.network import Swintormer
from swintormer_kernels.packed import forget
from swintormer_kernels.precision import multiplies_bfloat16
from swintormer_kernels.registry import asked_backend

Precision: TypeAlias = Literal["auto", "float32", "bfloat16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)

# Rounding to 8 bits alone leaves 58.9 dB. What this photograph keeps, others keep within a few decibels.
LEAST_AGREEMENT = 60.0
PROBE_SIDE = 128
_PHOTOGRAPH = Path(__file__).parents[1] / "assets" / "demo.png"


def check_precision(precision: str) -> None:
    """Raises InputError for a precision that does not exist."""
    if precision not in PRECISIONS:
        raise InputError(f"The precision must be one of {', '.join(PRECISIONS)}, found {precision!r}.")


class Chosen:
    """The precision of a network.

    Args:
        precision: one of `PRECISIONS`.
        net: in evaluation mode when `scope` is called.
    """

    def __init__(self, precision: str, net: Swintormer) -> None:
        check_precision(precision)
        self.precision, self.net = precision, net

    def scope(self) -> AbstractContextManager[object]:
        """The context in which the network runs, in inference mode."""
        device = next(self.net.parameters()).device.type
        if self.precision == "auto" and not self._auto_takes_bfloat16():
            return nullcontext()
        if not torch.amp.is_autocast_available(device):
            return nullcontext()
        return torch.autocast(device, torch.bfloat16, enabled=self.precision != "float32")

    def _auto_takes_bfloat16(self) -> bool:
        weight = next(self.net.parameters())
        if weight.device.type != "cpu" or weight.dtype != torch.float32 or not multiplies_bfloat16():
            return False
        if asked_backend() not in (None, "cpu") or torch.is_autocast_enabled("cpu"):
            return False
        return _known_agreement(self.net) >= LEAST_AGREEMENT


_known: WeakKeyDictionary[Swintormer, tuple[object, float]] = WeakKeyDictionary()
_measuring = Lock()


def _known_agreement(net: Swintormer) -> float:
    """`agreement` of the network's weights, measured again if they have changed.

    Threads that ask meanwhile wait for the result.
    """
    with _measuring:
        weights = tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in net.parameters())
        found = _known.get(net)
        if found is None or found[0] != weights:
            found = _known[net] = (weights, agreement(net))
        return found[1]


def agreement(net: Swintormer) -> float:
    """Decibels (PSNR for a range of 1) between the results of bfloat16 and of float32 for a part of a photograph.

    -inf where one of them is not finite.

    The packed weights of both are freed afterwards.
    """
    image = _probe().repeat(1, -(-net.config.in_channels // 3), 1, 1)[:, : net.config.in_channels]
    with torch.inference_mode():
        with torch.autocast("cpu", enabled=False):
            exact = net(image)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = net(image)
    forget(net)
    error = (rounded.double() - exact.double()).square().mean().item()
    if not math.isfinite(error):
        return -math.inf
    return -10 * math.log10(error) if error > 0 else math.inf


@cache
def _probe() -> Tensor:
    """(1, 3, side, side) from the middle of the photograph that ships with the package."""
    pixels = read_image(_PHOTOGRAPH).pixels
    top, left = ((side - PROBE_SIDE) // 2 for side in pixels.shape[:2])
    part = pixels[top : top + PROBE_SIDE, left : left + PROBE_SIDE]
    return torch.from_numpy(part.copy()).permute(2, 0, 1)[None].float() / 255
