"""Which modules optimize takes for released blocks: near relatives, other structures, windows and shifts."""

from __future__ import annotations

import re

import pytest
import torch
from released_standin import FeedForward, WindowAttention
from small_blocks import SIZES, Negative, small_block, swapped_names
from torch import nn
from torch.nn.utils import parametrize

import swintormer_kernels as sk
from swintormer import Swintormer
from swintormer_kernels.patch import released

# ---- structure -------------------------------------------------------------------------------------------------------


GONE = object()
STRUCTURES = {  # attribute of a block -> what it becomes, and the reason told
    "no parameter": ({"norm2.body.bias": GONE}, "it has no norm2.body.bias"),
    "extra parameter": ({"gamma": nn.Parameter(torch.ones(16))}, "parameter gamma has no place"),
    "depthwise ffn": ({"ffn.dwconv": nn.Conv2d(84, 84, 3, padding=1, groups=84)}, "parameter ffn.dwconv.weight has no"),
    "Restormer": (
        {"attn.logit_scale": GONE, "attn.temperature": nn.Parameter(torch.ones(2, 1, 1))},
        "it has no attn.logit_scale",
    ),
    "stride": ({"attn.qkv_dwconv.stride": (2, 2)}, r"attn.qkv_dwconv has stride \(2, 2\)"),
    "padding": ({"attn.qkv_dwconv.padding": "valid"}, r"attn.qkv_dwconv has padding \(0, 0\)"),
    "kernel": (
        {"attn.qkv_dwconv": nn.Conv2d(48, 48, 5, padding=2, groups=48, bias=False)},
        r"attn.qkv_dwconv.weight has shape \(48, 1, 5, 5\)",
    ),
    "groups": (
        {"attn.qkv": nn.Conv2d(16, 48, 1, groups=2, bias=False)}, r"attn.qkv.weight has shape \(48, 8, 1, 1\)"
    ),
    "reflecting": ({"attn.qkv_dwconv.padding_mode": "reflect"}, "padding_mode reflect"),
    "heads": ({"attn.logit_scale": nn.Parameter(torch.ones(3, 1, 1))}, "attn.logit_scale has 3 heads"),
    "own convolution": ({"ffn.project_in.__class__": type("MyConv", (nn.Conv2d,), {})}, "ffn.project_in is a MyConv"),
    "eps": ({"norm1.body.eps": 1e-6}, "norm1.body has eps 1e-06"),
    "dropout": ({"ffn.drop": nn.Dropout(0.1)}, r"ffn.drop drops values while training \(p = 0.1\)"),
    "own forward": ({"forward": lambda x: x}, "its forward was replaced"),
    "mixed dtypes": (
        {"ffn.project_in.weight": nn.Parameter(torch.ones(84, 16, 1, 1).half())},
        "must share one device and one floating point dtype",
    ),
    "no window": (
        dict.fromkeys(("attn.window_size", "attn.relative_coords_table", "attn.relative_position_index"), GONE),
        "its window stands in no attribute",
    ),
    "two windows": ({"window_size": 8}, "its window is unclear: window_size says 8, attn.window_size says 4"),
    "oblong window": ({"attn.window_size": (4, 8)}, r"attn.window_size is \(4, 8\)"),
    "wild shift": ({"attn.shift_size": 4}, "its shift is unclear for a window of 4: attn.shift_size says 4"),
    "no shift": ({"attn.shift_size": GONE}, "its shift stands in no attribute"),
    "unknown part": ({"attn.unused": nn.Softmax(-1)}, r"attn.unused \(Softmax\) has no place"),
    "other activation": ({"attn.cpb_mlp.1": nn.GELU()}, "attn.cpb_mlp.1 is a GELU, not a ReLU"),
}  # fmt: skip


def kept_reason(block: nn.Module) -> str:
    report = sk.optimize(block)
    assert not report.swapped
    assert report.kept[""] in str(report)
    return report.kept[""]


@pytest.mark.parametrize("name", STRUCTURES)
def test_other_structures_are_kept_with_the_reason(name):
    block = small_block()
    changes, reason = STRUCTURES[name]
    for path, value in changes.items():
        owner = block.get_submodule(path.rpartition(".")[0])
        if value is GONE:
            delattr(owner, path.rpartition(".")[2])
        else:
            setattr(owner, path.rpartition(".")[2], value)
    assert re.search(reason, kept_reason(block))


def test_hooked_and_parametrized_blocks_are_kept():
    hooked, parametrized = small_block(), small_block()
    hooked.attn.qkv.register_forward_hook(lambda *_: None)
    assert "a hook hangs on attn.qkv" in kept_reason(hooked)
    parametrize.register_parametrization(parametrized.attn.qkv, "weight", Negative())
    assert "has no attn.qkv.weight" in kept_reason(parametrized)


def test_a_block_on_the_meta_device_is_swapped():
    assert swapped_names(sk.optimize(small_block().to("meta"))) == [""]


def test_parts_alone_are_kept():
    model = nn.ModuleDict({"a": WindowAttention(*SIZES, 0), "f": FeedForward(16)})
    report = sk.optimize(model)
    assert report.kept.keys() == {"a", "f"}
    assert report.kept["a"].startswith("attention of this kind alone")
    assert report.kept["f"].startswith("feed-forward of this kind alone")


@pytest.mark.parametrize("model", [nn.Identity(), nn.Sequential(nn.Conv2d(3, 3, 1)), nn.TransformerEncoderLayer(8, 2)])
def test_a_model_with_nothing_to_swap_is_said_to_have_nothing(model):
    inside = [(type(part), dict(vars(part))) for part in model.modules()]
    report = sk.optimize(model)
    assert str(report).startswith("nothing to swap")
    assert [(type(part), dict(vars(part))) for part in model.modules()] == inside
    assert sk.restore(model) == []


def test_our_own_network_needs_no_swap():
    net = Swintormer(
        in_channels=3, dim=8, num_blocks=(1, 1, 1, 1), num_refinement_blocks=1, heads=(1, 1, 1, 1), window_size=4
    )
    report = sk.optimize(net)
    assert len(report.ours) == 8
    assert not report.swapped
    assert not report.kept
    assert "needs no swap" in str(report)


# ---- window and shift ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"window_size": 4, "shift_size": 2}, (4, 2)),
        ({"window_size": (4, 4), "shift_size": [1, 1]}, (4, 1)),
        ({"window": torch.tensor(4), "shift": True}, (4, 2)),
        ({"ws": 4, "shift": False}, (4, 0)),
        ({"win_size": 4, "shift": 3, "shift_size": 3}, (4, 3)),
    ],
)
@pytest.mark.parametrize("buffers", [True, False])
def test_where_window_and_shift_are_found(attributes, expected, buffers):
    block = small_block()
    del block.attn.window_size, block.attn.shift_size
    if not buffers:
        del block.attn.relative_coords_table, block.attn.relative_position_index
    for name, value in attributes.items():
        setattr(block if name.startswith("w") else block.attn, name, value)
    assert released.window_and_shift(block) == expected


@pytest.mark.parametrize("buffer", ["relative_coords_table", "relative_position_index"])
def test_one_buffer_is_enough_to_tell_the_window(buffer):
    block = small_block()
    del block.attn.window_size
    delattr(block.attn, ({"relative_coords_table", "relative_position_index"} - {buffer}).pop())
    assert released.window_and_shift(block) == (4, 2)
