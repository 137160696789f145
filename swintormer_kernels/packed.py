"""Packed weights: tensors computed from parameters, for example in a kernel's memory layout, cached until one changes.

A packed tensor is freed with its first source. It is computed again when the version counter or the storage of a source
has changed, so in-place updates are seen and results do not depend on the cache. Tensors made in inference mode have no
version counter; nothing is cached for them, nor while a CUDA graph is captured. On a GPU a packed tensor is made on the
stream of the call that needs it first; calls on other streams wait for that.
Writing through `parameter.data` (`p.data.mul_(0.99)`) does not raise the counter: write under `torch.no_grad()` instead
(`p.mul_(0.99)`), or call `forget` afterwards.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.weak import WeakTensorKeyDictionary

from swintormer_kernels.transforms import transform_at_work


class _State(NamedTuple):
    """State of a source when a packed tensor was computed from it."""

    tensor: weakref.ref[Tensor]
    version: int
    storage: StorageWeakRef  # while this exists, no other storage can have its identity
    offset: object  # an int, or symbolic

    @classmethod
    def of(cls, source: Tensor) -> _State:
        storage = StorageWeakRef(source.untyped_storage())
        return cls(weakref.ref(source), source._version, storage, source.storage_offset())

    def still(self, source: Tensor) -> bool:
        same = self.tensor() is source and self.version == source._version  # == of tensors would compare elements
        return same and self.offset == source.storage_offset() and self.storage.cdata == source.untyped_storage()._cdata


class _Made(NamedTuple):
    """The stream on which a tensor of a GPU was made, as a number, and the event behind its kernels."""

    stream: int
    event: torch.cuda.Event


class _Packed(NamedTuple):
    states: list[_State]
    tensor: Tensor
    made: _Made | None  # None on other devices

    def on_this_stream(self) -> Tensor:
        """The tensor, for kernels of the current stream."""
        if self.made is not None and self.made.stream != _raw_stream(self.tensor) and not capturing(self.tensor):
            # A capture begins with a synchronisation, and may not wait for what is outside of it.
            stream = torch.cuda.current_stream(self.tensor.device)
            stream.wait_event(self.made.event)
            self.tensor.record_stream(stream)  # its memory is not given away before this stream has read it
        return self.tensor


_kept: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # first source -> {key: _Packed}
_lock = threading.Lock()
_generation = [0]  # calls of `forget`; a list because it is written from a function


def packed_weight(sources: Sequence[Tensor], key: Hashable, make: Callable[[], Tensor]) -> Tensor:
    """The packed tensor `make()`, or the cached result for the same `sources` in the same state and the same `key`.

    `make` runs without gradients and without autocast.

    Args:
        sources: the parameters that `make` reads, at least one; the cache entry belongs to the first.
        key: identifies the kind of packing among those of the same first source.
        make: computes the packed tensor.
    """
    if transform_at_work() is not None:  # the sources may be wrappers, or hold tangents that the result must carry on
        return make()
    if any(source.is_inference() for source in sources):
        with torch.no_grad(), _without_autocast(sources[0]):
            return make()
    with _lock:
        kept = _kept.setdefault(sources[0], {})
    found = kept.get(key)
    if found is None or not _still(found.states, sources):
        if capturing(sources[0]):
            # The values exist only once the graph is replayed, so nobody else may find them; each replay makes them.
            with torch.no_grad(), _without_autocast(sources[0]):
                return make()
        states = [_State.of(source) for source in sources]
        # Outside inference mode, so that it serves there too.
        with torch.inference_mode(False), torch.no_grad(), _without_autocast(sources[0]):
            made = make()
            found = kept[key] = _Packed(states, made, _made_now(made))
    return found.on_this_stream()


def _still(states: Sequence[_State], sources: Sequence[Tensor]) -> bool:
    # Of two calls with the same first source one may have an optional source more.
    return len(states) == len(sources) and all(state.still(s) for state, s in zip(states, sources, strict=True))


def capturing(source: Tensor) -> bool:
    """Whether the work on the source's device is being captured in a CUDA graph."""
    return source.is_cuda and torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _made_now(tensor: Tensor) -> _Made | None:
    if not tensor.is_cuda or not torch.cuda.is_available():
        return None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(tensor.device))
    return _Made(_raw_stream(tensor), event)


def _raw_stream(tensor: Tensor) -> int:
    return _raw_stream_of(tensor.device.index)


def _stream_of(ordinal: int) -> int:
    return torch.cuda.current_stream(ordinal).cuda_stream


# torch's own function for generated code makes no Stream object and takes a tenth of the time.
_raw_stream_of: Callable[[int], int] = getattr(torch._C, "_cuda_getCurrentRawStream", _stream_of)


def kept_bytes(sources: Iterable[Tensor]) -> int:
    """Bytes of the packed weights cached for `sources`, for example a model's parameters; shared memory counts once."""
    with _lock:
        kept = [packed.tensor for source in sources for packed in _kept.get(source, {}).values()]
    return sum({s.data_ptr(): s.nbytes() for s in (tensor.untyped_storage() for tensor in kept)}.values())


def forget(model: nn.Module) -> None:
    """Clear the packed weights of `model`'s parameters and buffers; the next call computes them again.

    Needed after writes that torch's version counter does not record, such as those through `parameter.data`.
    Increments `generation()`.
    """
    with _lock:
        _generation[0] += 1
        for source in (*model.parameters(), *model.buffers()):
            _kept.pop(source, None)


def generation() -> int:
    """Number of calls of `forget` in this process, part of the key of a captured graph.

    A graph contains addresses of packed weights. `forget` may have freed them, so the graph must be captured again.
    """
    return _generation[0]


def _without_autocast(source: Tensor) -> AbstractContextManager[object]:
    kind = source.device.type  # ahead-of-time compilation calls this with "meta" tensors, which have no autocast
    active = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if active else nullcontext()
