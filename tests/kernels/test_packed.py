"""Packed weights: when they are made anew, and what `forget` means for those who hold them by address."""

from types import SimpleNamespace

import torch

import swintormer_kernels as sk
from swintormer_kernels import packed


def test_forget_is_seen_by_the_generation():
    before, layer = packed.generation(), torch.nn.Linear(2, 2)
    packed.packed_weight([layer.weight], "twice", lambda: 2 * layer.weight)
    assert packed.generation() == before, "new versions are made beside a graph's; only forget takes some away"
    sk.forget(layer)
    sk.forget(layer)
    assert packed.generation() == before + 2


def test_an_optional_source_at_the_end_comes_and_goes():
    first, second = torch.ones(2), torch.ones(2)
    for sources in ([first], [first, second], [first]):
        made = packed.packed_weight(sources, "sum", lambda sources=sources: torch.stack(sources).sum(0))
        assert torch.equal(made, torch.full((2,), float(len(sources))))


def test_what_is_made_while_a_graph_is_captured_is_nobody_elses(monkeypatch):
    source = torch.ones(2)
    monkeypatch.setattr(packed, "capturing", lambda source: True)
    packed.packed_weight([source], "twice", lambda: torch.full((2,), torch.nan))  # values come with the replay
    monkeypatch.setattr(packed, "capturing", lambda source: False)
    kept = packed.packed_weight([source], "twice", lambda: 2 * source)
    assert torch.equal(kept, torch.full((2,), 2.0))
    monkeypatch.setattr(packed, "capturing", lambda source: True)
    assert packed.packed_weight([source], "twice", lambda: 3 * source) is kept, "a graph takes what there was before"


def test_another_stream_than_that_of_the_packing_waits(monkeypatch):
    told, source = [], torch.ones(2)
    monkeypatch.setattr(packed, "_made_now", lambda tensor: packed._Made(7, "event"))
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, on: told.append(on), raising=False)
    other = SimpleNamespace(wait_event=told.append)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: other)
    for stream, expected in ((7, []), (8, ["event", other])):
        monkeypatch.setattr(packed, "_raw_stream", lambda tensor, stream=stream: stream)
        packed.packed_weight([source], "twice", lambda: 2 * source)
        assert told == expected
