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


def no_parameter(block):
    del block.norm2.body.bias
    block.norm2.body.bias = 0.0


def extra_parameter(block):
    block.gamma = nn.Parameter(torch.ones(16))


def extra_ffn_parameter(block):
    block.ffn.dwconv = nn.Conv2d(84, 84, 3, padding=1, groups=84)


def restormer_attention(block):
    del block.attn.logit_scale
    block.attn.temperature = nn.Parameter(torch.ones(2, 1, 1))


def stride(block):
    block.attn.qkv_dwconv.stride = (2, 2)


def kernel(block):
    block.attn.qkv_dwconv = nn.Conv2d(48, 48, 5, padding=2, groups=48, bias=False)


def groups(block):
    block.attn.qkv = nn.Conv2d(16, 48, 1, groups=2, bias=False)


def reflecting(block):
    block.attn.qkv_dwconv = nn.Conv2d(48, 48, 3, padding=1, groups=48, bias=False, padding_mode="reflect")


def heads(block):
    block.attn.logit_scale = nn.Parameter(torch.ones(3, 1, 1))


def own_convolution(block):
    block.ffn.project_in.__class__ = type("MyConv", (nn.Conv2d,), {})


def eps(block):
    block.norm1.body.eps = 1e-6


def dropout(block):
    block.ffn.drop = nn.Dropout(0.1)


def inner_hook(block):
    block.attn.qkv.register_forward_hook(lambda *_: None)


def own_forward(block):
    block.forward = lambda x: x


def mixed_dtypes(block):
    block.ffn.half()


def no_window(block):
    del block.attn.window_size, block.attn.relative_coords_table, block.attn.relative_position_index


def two_windows(block):
    block.window_size = 8


def oblong_window(block):
    block.attn.window_size = (4, 8)


def wild_shift(block):
    block.attn.shift_size = 4


def no_shift(block):
    del block.attn.shift_size


def unknown_part(block):
    block.attn.unused = nn.Softmax(-1)


def other_activation(block):
    block.attn.cpb_mlp[1] = nn.GELU()


def weight_norm(block):
    parametrize.register_parametrization(block.attn.qkv, "weight", Negative())


STRUCTURES = {
    no_parameter: "only its attention half is of the released kind: it has no norm2.body.bias",
    extra_parameter: "parameter gamma has no place",
    extra_ffn_parameter: "only its attention half .* parameter ffn.dwconv.bias has no place",
    restormer_attention: "only its feed-forward half .* it has no attn.logit_scale",
    stride: r"attn.qkv_dwconv has stride \(2, 2\)",
    kernel: r"attn.qkv_dwconv has weight \(48, 1, 5, 5\)",
    groups: r"attn.qkv has weight \(48, 8, 1, 1\)",
    reflecting: "padding_mode reflect",
    heads: "attn.logit_scale must be",
    own_convolution: "ffn.project_in is a MyConv",
    eps: "norm1 has eps 1e-06",
    dropout: r"ffn.drop drops values while training \(p = 0.1\)",
    inner_hook: "a hook hangs on attn.qkv",
    own_forward: "its forward was replaced",
    mixed_dtypes: "must share one device and one floating point dtype",
    no_window: "its window stands in no attribute",
    two_windows: "its window is unclear: window_size says 8, attn.window_size says 4",
    oblong_window: r"attn.window_size is \(4, 8\)",
    wild_shift: "its shift is unclear for a window of 4: attn.shift_size says 4",
    no_shift: "its shift stands in no attribute",
    unknown_part: r"attn.unused \(Softmax\) has no place",
    other_activation: "attn.cpb_mlp.1 is a GELU, not a ReLU",
    weight_norm: "has no attn.qkv.weight",
}


@pytest.mark.parametrize("change", STRUCTURES, ids=lambda change: change.__name__)
def test_other_structures_are_kept_with_the_reason(change):
    block = small_block()
    change(block)
    report = sk.optimize(block)
    assert not report.swapped
    assert re.search(STRUCTURES[change], report.kept[""])
    assert report.kept[""] in str(report)


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
