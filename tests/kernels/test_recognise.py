"""Which modules optimize takes for released blocks: near relatives, other structures, windows and shifts."""

from __future__ import annotations

import importlib
import math
import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from released_standin import FeedForward, TokenNorm, TransformerBlock, WindowAttention
from small_blocks import SIZES, Negative, small_block, small_model, swapped_names
from torch import nn
from torch.nn.utils import parametrize

import swintormer_kernels as sk
from swintormer import Swintormer
from swintormer_kernels.patch import recognise

optimizer = importlib.import_module("swintormer_kernels.patch.released")  # `sk.optimize` is the function

# ---- near relatives stay as they are: same names and shapes, other numbers -------------------------------------------


class OtherEps(TransformerBlock):
    def __init__(self, *sizes):
        super().__init__(*sizes)

        class Body(TokenNorm):
            def forward(self, tokens):
                centred = tokens - tokens.mean(-1, keepdim=True)
                return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * self.weight + self.bias

        self.norm1.body = Body(sizes[0])


def with_attention(name: str, **members) -> type[TransformerBlock]:
    """A block whose attention differs in some members."""

    class Block(TransformerBlock):
        def __init__(self, *sizes):
            super().__init__(*sizes)
            self.attn = type(name, (WindowAttention,), members)(*sizes)

    return Block


def softmax_without_one(self, logits):
    return logits.softmax(-1)


def softmax_plus_one(self, logits):
    exp = logits.exp()
    return exp / (1 + exp.sum(-1, keepdim=True))


def column_first(self, apart):
    return apart[..., 1] * (2 * self.window_size - 1) + apart[..., 0]


def queries_and_keys_change_places(self, qkv, mask):
    return WindowAttention.between_tokens(self, qkv[:, [1, 0, 2]], mask)


def halves_change_places(self, x):
    swap = torch.arange(3 * x.shape[1]).roll(3 * x.shape[1] // 2)
    original = self.qkv_dwconv.forward
    self.qkv_dwconv.forward = lambda qkv: original(qkv)[:, swap]
    y = WindowAttention.forward(self, x)
    del self.qkv_dwconv.forward
    return y


def convolution_crosses_windows(self, x):
    cut = self.cut
    s, b, c, h, w = self.shift_size, *x.shape
    x = torch.roll(x, (-s, -s), (2, 3))
    halves = cut(self.qkv_dwconv(self.qkv(x))).flatten(0, 2).reshape(-1, 2, 3, self.num_heads, c // 4, 16)
    both = torch.stack(
        (self.between_tokens(halves[:, 0], self.region_mask(h, w, x)), self.between_channels(halves[:, 1])), 1
    )
    out = self.project_out(both.reshape(-1, c, 4, 4)).reshape(b, h // 4, w // 4, c, 4, 4)
    return torch.roll(out.permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w), (s, s), (2, 3))


def soft_norms(self, qkv):
    q, k, v = qkv.unbind(1)
    q, k = (part / (part.norm(dim=-1, keepdim=True) + 1e-8) for part in (q, k))
    return self.softmax(q @ k.mT) @ v


def other_shift(self, x):
    self.shift_size = 1
    y = WindowAttention.forward(self, x)
    self.shift_size = 2
    return y


class Gelu(TransformerBlock):
    def __init__(self, *sizes):
        super().__init__(*sizes)

        class Ffn(FeedForward):
            def forward(self, x):
                gate, value = self.project_in(x).chunk(2, 1)
                return self.project_out(F.gelu(gate) * value)

        self.ffn = Ffn(sizes[0])


class NoResidual(TransformerBlock):
    def forward(self, x):
        return super().forward(x) - x


class Detached(TransformerBlock):
    def forward(self, x):
        return super().forward(x).detach() + x - x.detach()


class Frozen(TransformerBlock):
    def forward(self, x):
        y = super().forward(x)
        return y if not self.training else y.detach() + (y - y.detach()) / 2


class RandomWhileTraining(TransformerBlock):
    def forward(self, x):
        return F.dropout(super().forward(x), 1e-9, self.training)


class SmallInputsUnshifted(TransformerBlock):
    """As in implementations that shift only where more than one window fits."""

    def forward(self, x):
        if min(x.shape[2:]) > self.attn.window_size:
            return super().forward(x)
        shift, self.attn.shift_size = self.attn.shift_size, 0
        y = super().forward(x)
        self.attn.shift_size = shift
        return y


class TwoOutputs(TransformerBlock):
    def forward(self, x):
        return super().forward(x), x


RELATIVES = {
    "other eps": OtherEps,
    "plain softmax": with_attention("Softmax", softmax=softmax_without_one),
    "one not shifted by the maximum": with_attention("PlusOne", softmax=softmax_plus_one),
    "mask is minus infinity": with_attention("Inf", masked=-math.inf),
    "mask is -99": with_attention("Other", masked=-99.0),
    "no clamp": with_attention("Unclamped", max_scale=1e9),
    "clamp at 99": with_attention("Clamped", max_scale=99.0),
    "bias up to 8": with_attention("Bias", bias_range=8.0),
    "column difference first": with_attention("Index", pair_index=column_first),
    "queries and keys swapped": with_attention("Keys", between_tokens=queries_and_keys_change_places),
    "channel attention first": with_attention("Halves", forward=halves_change_places),
    "convolution crosses windows": with_attention("Crossing", forward=convolution_crosses_windows),
    "norms plus 1e-8": with_attention("Norms", between_channels=soft_norms),
    "another shift than it says": with_attention("Shift", forward=other_shift),
    "GELU": Gelu,
    "no residual": NoResidual,
    "no gradient inside": Detached,
    "half the gradient": Frozen,
    "random while training": RandomWhileTraining,
    "small inputs unshifted": SmallInputsUnshifted,
    "two outputs": TwoOutputs,
}


@pytest.mark.parametrize("name", RELATIVES)
def test_near_relatives_are_kept(name):
    block = small_block(cls=RELATIVES[name]).eval()
    before = [(type(part), dict(vars(part))) for part in block.modules()]
    report = sk.optimize(block)
    assert not report.swapped
    assert list(report.kept) == [""]
    assert [(type(part), dict(vars(part))) for part in block.modules()] == before


@given(
    heads=st.integers(1, 3),
    head_size=st.integers(1, 5),
    window=st.integers(2, 5),
    shift=st.floats(0, 1),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_blocks_of_any_size_pass_the_check(heads, head_size, window, shift, seed):
    torch.manual_seed(seed)
    block = TransformerBlock(2 * heads * head_size, heads, window, int(shift * (window - 1)), bias=bool(seed % 2))
    report = sk.optimize(block)
    assert swapped_names(report) == [""], report


def test_a_block_that_insists_on_float32_is_checked_in_float32():
    class Single(TransformerBlock):
        def forward(self, x):
            if x.dtype == torch.float64:
                raise RuntimeError("expected Float but found Double")
            return super().forward(x)

    assert swapped_names(sk.optimize(small_block(cls=Single))) == [""]


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
    weight_norm: "has no attn.qkv.weight",
}


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("change", STRUCTURES, ids=lambda change: change.__name__)
def test_other_structures_are_kept_with_the_reason(change, verify):
    block = small_block()
    change(block)
    report = sk.optimize(block, verify=verify)
    assert not report.swapped
    assert re.search(STRUCTURES[change], report.kept[""])
    assert report.kept[""] in str(report)


def test_scripted_and_meta_blocks_are_kept():
    with torch.device("meta"):
        assert "meta device" in sk.optimize(small_block()).kept[""]
    assert swapped_names(sk.optimize(small_block().to("meta"), verify=False)) == [""]


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
        ({"window_size": 4, "shift_size": 2}, (4, (2,))),
        ({"window_size": (4, 4), "shift_size": [1, 1]}, (4, (1,))),
        ({"window": torch.tensor(4), "shift": True}, (4, (2,))),
        ({"ws": 4, "shift": False}, (4, (0,))),
        ({"win_size": 4, "shift": 3, "shift_size": 3}, (4, (3,))),
        ({"window_size": 4}, (4, (0, 2))),
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
    assert recognise.window_and_shifts(block) == expected


@pytest.mark.parametrize("buffer", ["relative_coords_table", "relative_position_index"])
def test_one_buffer_is_enough_to_tell_the_window(buffer):
    block = small_block()
    del block.attn.window_size
    delattr(block.attn, ({"relative_coords_table", "relative_position_index"} - {buffer}).pop())
    assert recognise.window_and_shifts(block) == (4, (2,))


@pytest.mark.parametrize("shift", [0, 2])
def test_a_shift_that_nothing_tells_is_found_by_the_check(shift):
    class Silent(WindowAttention):
        window_size = 4

        def __init__(self, *sizes):
            super().__init__(*sizes)
            del self.shift_size

        def __getattr__(self, name):
            return (lambda: shift) if name == "hidden" else super().__getattr__(name)

        def forward(self, x):
            vars(self)["shift_size"] = self.hidden()
            y = super().forward(x)
            del self.shift_size
            return y

    block = small_block()
    block.attn = Silent(*SIZES, shift)
    assert "only the check" in sk.optimize(block, verify=False).kept[""]
    report = sk.optimize(block)
    assert report.swapped[""].shift == shift


def test_without_the_check_unknown_parts_are_not_trusted():
    block = small_block()
    block.attn.unused = nn.Softmax(-1)
    assert "attn.unused (Softmax) has no place" in sk.optimize(block, verify=False).kept[""]
    assert swapped_names(sk.optimize(block)) == [""]


def test_blocks_that_run_the_same_code_are_checked_once(monkeypatch):
    compare, checked = optimizer.probe.compare, []
    monkeypatch.setattr(optimizer.probe, "compare", lambda *args: checked.append(args) or compare(*args))
    model = small_model(6)
    model[5].attn.bias_range = 8.0  # an attribute of its own: must be looked at, and is found out
    report = sk.optimize(model)
    assert len(checked) == 3
    assert swapped_names(report) == ["1", "2", "3", "4", "6"]
    assert "computes something else" in report.kept["5"]
