"""optimize and restore: what they swap, what they leave and why, and that a swapped model stays the same model."""

from __future__ import annotations

import copy
import importlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from released_standin import FeedForward, TransformerBlock
from safetensors.torch import load_file
from small_blocks import EPS, Negative, assert_close, one_block_model, small_block, small_model, swapped_names
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrize

import swintormer_kernels as sk
from swintormer_kernels import patch

optimizer = importlib.import_module("swintormer_kernels.patch.released")  # `sk.optimize` is the function
HERE = Path(__file__).resolve().parents[1] / "golden"
ORACLE = Path(__file__).resolve().parents[3] / "shared" / "oracle"
BLOCKS = sorted({f.name: f for folder in (ORACLE, HERE) for f in folder.glob("block_*.safetensors")}.values())

# ---- the stand-in is the released network ----------------------------------------------------------------------------


def parameters_of(golden: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k.removeprefix("param."): v.double() for k, v in golden.items() if k.startswith("param.")}


@pytest.mark.parametrize("file", BLOCKS, ids=lambda f: f.stem)
def test_standin_block_is_the_released_one_before_and_after_optimize(file):
    golden = load_file(file)
    block = TransformerBlock(*map(int, re.search(r"d(\d+)_h(\d+)_w(\d+)_s(\d+)", file.name).groups())).double()
    block.load_state_dict(parameters_of(golden), strict=True)
    for _ in range(2):
        with torch.no_grad():
            error = block(golden["in.x"].double()) - golden["out.y"]
        assert error.norm() <= EPS / 2 * golden["out.y"].norm()  # stored as float32
        sk.optimize(block)
    assert isinstance(block, optimizer.SwappedBlock)


# ---- a swapped model is the same model -------------------------------------------------------------------------------


def test_hooks_run_as_before_and_their_handles_still_work():
    model = small_model(1)
    block, seen = model[1], []
    block.register_forward_pre_hook(lambda *_: seen.append("pre"))
    handle = block.register_forward_hook(lambda *_: seen.append("post"))
    block.register_full_backward_hook(lambda *_: seen.append("backward"))
    block.attn.qkv.weight.register_hook(lambda grad: seen.append("weight"))
    sk.optimize(model)
    assert seen == []
    model(torch.randn(1, 16, 4, 4)).sum().backward()
    assert sorted(seen) == ["backward", "post", "pre", "weight"]
    handle.remove()
    sk.restore(model)
    seen.clear()
    model(torch.randn(1, 16, 4, 4))
    assert seen == ["pre"]


def test_the_same_block_used_twice():
    block = small_block()
    model = nn.Sequential(block, small_block(0), block)
    x = torch.randn(1, 16, 8, 8)
    before = model(x)
    assert swapped_names(sk.optimize(model)) == ["0", "1"]
    assert model[0] is model[2]
    assert_close(model(x), before, blocks=3)


def test_the_model_itself_may_be_a_block():
    block = small_block()
    report = sk.optimize(block)
    assert swapped_names(report) == [""]
    assert "the model itself" in str(report)
    assert sk.restore(block) == [""]


def test_moving_to_another_dtype_afterwards():
    model = small_model()
    x = torch.randn(1, 16, 8, 8)
    expected = copy.deepcopy(model).double()(x.double())
    sk.optimize(model)
    y = model.double()(x.double())
    assert y.dtype == torch.float64
    # Position tables were made in float32 on both sides, and may have been rounded once more on the way.
    assert (y - expected).norm() <= EPS * expected.norm()
    sk.restore(model)
    assert torch.equal(model(x.double()), expected)


def test_parameters_assigned_afterwards():
    model, other = small_model(), small_model()
    x = torch.randn(1, 16, 8, 8)
    sk.optimize(model)
    model.load_state_dict(other.state_dict(), assign=True)
    assert_close(model(x), other(x), blocks=3)
    sk.restore(model)
    assert torch.equal(model(x), other(x))


def test_moved_or_emptied_afterwards():
    """The coordinates of the swap stand in no file: they are made anew. conftest.py poisons empty memory."""
    model, other = small_model(1), small_model(1)
    sk.optimize(model)
    sk.optimize(other)
    model.to("meta").to_empty(device="cpu")
    model.load_state_dict(other.state_dict())
    x = torch.randn(1, 16, 4, 4)
    with torch.no_grad():
        assert torch.equal(model(x), other(x))
    with torch.inference_mode():
        model.double().float()
        sk.restore(other)
        sk.optimize(other)
    assert not model[1]._swda_coordinates.is_inference()
    other(x).sum().backward()  # swapped in inference mode, it can still be trained
    assert all(parameter.grad is not None for parameter in other.parameters())


# ---- wrapped models --------------------------------------------------------------------------------------------------


def compiled(module: nn.Module) -> nn.Module:
    return torch.compile(module, backend="eager")


def with_block(wrap, part: str = "") -> Callable[[nn.Module], nn.Module]:
    """Wraps the block of a model, or a part of the block."""

    def change(model: nn.Module) -> nn.Module:
        owner, name = (model[1], part) if part else (model, "1")
        setattr(owner, name, wrap(getattr(owner, name)))
        return model

    return change


WRAPPED = {
    "DataParallel": nn.DataParallel,
    "compiled": compiled,
    "compiled DataParallel": lambda model: nn.DataParallel(compiled(model)),
    "checkpointed block": with_block(checkpoint_wrapper),
    "compiled block": with_block(compiled),
    "compiled attention": with_block(compiled, "attn"),
    "checkpointed attention": with_block(checkpoint_wrapper, "attn"),
    "compiled in place": lambda model: model[1].compile(backend="eager") or model,
}


@pytest.mark.parametrize("how", WRAPPED)
def test_wrapped_models(how, monkeypatch):
    torch._dynamo.reset()
    where = "cuda" if "DataParallel" in how and torch.cuda.is_available() else "cpu"  # it moves inputs to its devices
    model = one_block_model().to(where)
    x = torch.randn(1, 16, 8, 8, device=where)
    expected = model(x)
    net = WRAPPED[how](model)
    assert_close(net(x), expected)  # compiled code exists before the swap
    keys = list(net.state_dict())
    report = sk.optimize(net)
    assert len(report.swapped) == 1, report
    assert list(net.state_dict()) == keys
    assert_close(net(x), expected)
    net(x).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    torch._dynamo.reset()
    monkeypatch.setattr(optimizer, "swda_block", lambda x, *_: 2 * x)
    assert torch.equal(net(x), 2 * model[0](x)), "the wrapper must run the swapped forward"
    sk.restore(net)
    assert_close(net(x), expected)


def test_code_compiled_before_the_swap_is_not_reused():
    torch._dynamo.reset()
    model = one_block_model()
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph

    compiled = torch.compile(model, backend=count, fullgraph=True)
    x = torch.randn(1, 16, 8, 8)
    expected = compiled(x)
    for change, known in ((sk.optimize, 2), (sk.restore, 2), (sk.optimize, 2)):
        change(compiled)
        assert_close(compiled(x), expected)
        assert len(graphs) == known


def test_a_replica_of_data_parallel_computes_with_its_own_parameters():
    block = small_block()
    sk.optimize(block)
    replica = block._replicate_for_data_parallel()
    x = torch.randn(1, 16, 4, 4)
    assert torch.equal(replica(x), block(x))
    replica._modules["ffn"] = FeedForward(16)
    nn.init.zeros_(replica.ffn.project_out.weight)
    assert not torch.equal(replica(x), block(x))


@pytest.mark.parametrize("shape", [(1, 16, 8, 8), (2, 16, 12, 4)])
def test_compiled_and_exported_after_the_swap(shape):
    torch._dynamo.reset()
    model = one_block_model().eval()
    x = torch.randn(shape)
    sk.optimize(model)
    with torch.no_grad():
        expected = model(x)
        assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), expected)
        assert_close(torch.export.export(model, (x,)).module()(x), expected)


# ---- calls that are not the op's -------------------------------------------------------------------------------------


class PaddedAndScaled(TransformerBlock):
    def forward(self, x, scale=1.0):
        h, w = x.shape[2:]
        return scale * super().forward(F.pad(x, (0, -w % 4, 0, -h % 4)))[..., :h, :w]


@pytest.mark.parametrize(("side", "more"), [((7, 9), {}), ((4, 4), {"scale": 3.0})])
def test_sides_and_arguments_that_the_op_does_not_take_go_to_the_blocks_own_forward(side, more):
    block, x = small_block(cls=PaddedAndScaled), torch.randn(1, 16, *side)
    expected = block(x, **more)
    assert swapped_names(sk.optimize(block)) == [""]
    assert torch.equal(block(x, **more), expected)
    assert torch.equal(block(x, *more.values()), expected)


def add_hook(block):
    block.attn.register_forward_hook(lambda module, args, y: 2 * y)


def add_adapter(block):
    block.attn.qkv = nn.Sequential(block.attn.qkv, nn.Conv2d(48, 48, 1))


def add_parametrization(block):
    parametrize.register_parametrization(block.ffn.project_in, "weight", Negative())


@pytest.mark.parametrize("change", [add_hook, add_adapter, add_parametrization])
def test_inner_parts_changed_after_the_swap_are_honoured(change):
    block = small_block()
    sk.optimize(block)
    change(block)
    x = torch.randn(1, 16, 4, 4)
    y = block(x)
    sk.restore(block)
    assert torch.equal(block(x), y)


# ---- report ----------------------------------------------------------------------------------------------------------


def test_the_report_names_the_backend_and_why():
    model = small_model(4)
    model[4].norm1.body.eps = 1e-3
    report = sk.optimize(model)
    entry = report.swapped["1"]
    assert (entry.channels, entry.heads, entry.hidden, entry.window, entry.shift) == (16, 2, 42, 4, 0)
    text = str(report)
    assert f"{{1,3}}  C 16, heads 2, hidden 42, window 4, shift 0 -> {entry.explanation.backend}" in text
    assert "1 kept" in text
    assert str(entry.explanation) in text
    with sk.use_backend("reference"):
        assert sk.optimize(model).swapped_before["1"].explanation.backend == "reference"


def test_verify_says_the_difference_and_leaves_the_random_state():
    model, x = small_model(), torch.randn(1, 16, 8, 8)
    random_state = torch.get_rng_state()
    report = sk.optimize(model, verify=x)
    assert 0 <= report.difference <= 2 * EPS * 42 * 3
    assert "relative difference on the example" in str(report)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert patch.verify(model, (x,)) == report.difference
    assert len(sk.restore(model)) == 3


def test_verify_takes_an_example_and_no_flag():
    model = small_model()
    with pytest.raises(TypeError, match="an example input"):
        sk.optimize(model, verify=True)
    assert sk.restore(model) == []


def test_verify_refuses_a_block_that_computes_something_else():
    """Its names and shapes are those of a released block: only numbers tell."""

    class NoResidual(TransformerBlock):
        def forward(self, x):
            return super().forward(x) - x

    model = nn.Sequential(small_block(cls=NoResidual))
    with pytest.raises(RuntimeError, match="computes something else"):
        sk.optimize(model, verify=torch.randn(1, 16, 8, 8))
    assert type(model[0]) is NoResidual, "the model is restored"


def test_restore_refuses_what_something_else_changed_since():
    block = small_block()
    sk.optimize(block)
    block.__class__ = type("Sharded", (type(block),), {})
    with pytest.raises(RuntimeError, match="became a Sharded"):
        sk.restore(block)
