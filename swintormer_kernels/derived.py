"""Tensors that follow from parameters (packed weights, position bias), made once for each version of them.

A derived tensor lives as long as its first source and serves until the version counter or address of a source changes:
an in-place update is seen, a dead model leaves nothing behind, and results are the same whether it was there or not.
Tensors made in inference mode have no version counter, so what follows from them is made anew each time.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_kept: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # first source -> {key: (state of all sources, derived)}
_lock = threading.Lock()


def derived(sources: Sequence[Tensor], key: Hashable, make: Callable[[], Tensor]) -> Tensor:
    """`make()`, or what it returned before for the same `sources` in the same state and the same `key`.

    Runs without gradients and without autocast. `key` tells apart what is derived from the same first source.
    """
    if any(source.is_inference() for source in sources):
        with torch.no_grad(), _without_autocast(sources[0]):
            return make()
    state = [(weakref.ref(source), source._version, source.data_ptr()) for source in sources]
    with _lock:
        kept = _kept.setdefault(sources[0], {})
    found = kept.get(key)
    if found is None or found[0] != state:
        # Outside inference mode, so that it serves there too.
        with torch.inference_mode(False), torch.no_grad(), _without_autocast(sources[0]):
            found = kept[key] = (state, make())
    return found[1]


def _without_autocast(source: Tensor) -> AbstractContextManager[object]:
    kind = source.device.type  # "meta", of which ahead-of-time compilation makes its arguments, has no autocast
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
