"""Tensors that follow from parameters (packed weights, position bias), made once for each version of them.

A derived tensor lives as long as its first source and serves until the version counter or storage of a source changes:
an in-place update is seen, a dead model leaves nothing behind, and results are the same whether it was there or not.
Tensors made in inference mode have no version counter, so what follows from them is made anew each time. Writing
through `parameter.data` (`p.data.mul_(0.99)`) leaves no trace in the counter: write under `torch.no_grad()` instead
(`p.mul_(0.99)`), or call `forget` afterwards.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.weak import WeakTensorKeyDictionary


class _State(NamedTuple):
    """Of a source when something was derived from it."""

    tensor: weakref.ref[Tensor]
    version: int
    storage: StorageWeakRef  # as long as this is there, no other storage gets its identity
    offset: object  # an int, or symbolic

    @classmethod
    def of(cls, source: Tensor) -> _State:
        storage = StorageWeakRef(source.untyped_storage())
        return cls(weakref.ref(source), source._version, storage, source.storage_offset())

    def still(self, source: Tensor) -> bool:
        same = self.tensor() is source and self.version == source._version  # == of tensors would compare elements
        return same and self.offset == source.storage_offset() and self.storage.cdata == source.untyped_storage()._cdata


_kept: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # first source -> {key: (state of all sources, derived)}
_lock = threading.Lock()
_generation = 0


def generation() -> int:
    """How often `forget` was called: what holds addresses of derived tensors, such as a CUDA graph, compares it."""
    return _generation


def derived(sources: Sequence[Tensor], key: Hashable, make: Callable[[], Tensor]) -> Tensor:
    """`make()`, or what it returned before for the same `sources` in the same state and the same `key`.

    Runs without gradients and without autocast. `key` tells apart what is derived from the same first source.
    """
    if any(source.is_inference() for source in sources):
        with torch.no_grad(), _without_autocast(sources[0]):
            return make()
    with _lock:
        kept = _kept.setdefault(sources[0], {})
    found = kept.get(key)
    if found is None or not all(state.still(source) for state, source in zip(found[0], sources, strict=True)):
        states = [_State.of(source) for source in sources]
        # Outside inference mode, so that it serves there too.
        with torch.inference_mode(False), torch.no_grad(), _without_autocast(sources[0]):
            found = kept[key] = (states, make())
    return found[1]


def forget(model: nn.Module) -> None:
    """Let go of everything derived from the parameters and buffers of `model`; the next call makes it anew.

    Needed after writes that torch's version counter does not see, those through `parameter.data`.
    """
    global _generation  # noqa: PLW0603 - a counter of the process
    with _lock:
        _generation += 1
        for source in (*model.parameters(), *model.buffers()):
            _kept.pop(source, None)


def _without_autocast(source: Tensor) -> AbstractContextManager[object]:
    kind = source.device.type  # "meta", of which ahead-of-time compilation makes its arguments, has no autocast
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
