"""When a forward pass is replayed and when it runs plainly. Captures are imitated but where there is a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from swintormer import Deblurrer, NetworkConfig, Swintormer
from swintormer.execution.cuda_graph import Forward, GraphedForward, capture_graph
from swintormer_kernels import forget, use_backend

TINY = NetworkConfig(
    in_channels=3, dim=8, num_blocks=(1, 1, 0, 0), num_refinement_blocks=0, heads=(1, 1, 1, 1), window_size=2
)


class Net(nn.Module):
    """Doubles, and counts its own passes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((1, 1), 2.0))
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return self.weight * x


class Imitation:
    """Stands for a CUDA graph: the weights of the capture, at the batch of the capture."""

    def __init__(self, spoil: Callable[[Tensor], Tensor] = lambda y: y) -> None:
        self.captures, self.replays, self.spoil = 0, 0, spoil

    def __call__(self, function: Forward, example: Tensor) -> Forward:
        self.captures += 1
        weight, inputs = function.weight.detach().clone(), example.clone()

        def replay(x: Tensor) -> Tensor:
            self.replays += 1
            inputs[: len(x)] = x
            return self.spoil(weight * inputs)[: len(x)]

        return replay


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def graphed(spoil: Callable[[Tensor], Tensor] = lambda y: y) -> tuple[GraphedForward, Net, Imitation]:
    net, capture = Net(), Imitation(spoil)
    return GraphedForward(net, capture, device="cpu"), net, capture


def test_the_second_batch_of_a_shape_is_captured_and_smaller_ones_are_filled_up():
    forward, net, capture = graphed()
    for size, captures in ((4, 0), (4, 1), (4, 1), (3, 1), (1, 1)):
        x, random_state = torch.rand(size, 3), torch.get_rng_state()
        assert torch.equal(forward(x), 2 * x)
        assert torch.equal(random_state, torch.get_rng_state())
        assert capture.captures == captures
    assert net.passes == 3, "one plain batch, one to compare with, and one to count calls"
    assert capture.replays == 1 + 4
    assert forward.reason is None


def test_a_larger_batch_or_another_shape_or_dtype_starts_anew():
    forward, _, capture = graphed()
    for shape, dtype in (((2, 3), None), ((4, 3), None), ((4, 5), None), ((4, 5), torch.float64)):
        for _ in range(2):
            x = torch.rand(shape, dtype=dtype)
            assert torch.equal(forward(x), 2 * x)
    assert capture.captures == 4


def write_past_the_version_counter(net: Net) -> None:
    net.weight.data.fill_(3)
    forget(net)  # a graph holds addresses of packed weights, which this frees


@pytest.mark.parametrize(
    "change",
    [
        lambda net: net.weight.fill_(3),
        lambda net: setattr(net.weight, "data", torch.full((1, 1), 3.0)),
        write_past_the_version_counter,
    ],
    ids=["in place", "another tensor", "forget"],
)
def test_changed_weights_are_seen(change):
    forward, net, capture = graphed()
    x = torch.rand(2, 3)
    forward(x), forward(x)
    change(net)
    assert torch.equal(forward(x), 3 * x)
    assert torch.equal(forward(x), 3 * x)
    assert capture.captures == 2


def test_changed_settings_are_seen():
    forward, _, capture = graphed()
    x = torch.rand(2, 3)
    forward(x), forward(x)
    before = capture.replays
    with use_backend("reference"):
        forward(x)
    torch.set_float32_matmul_precision("high")
    forward(x)
    torch.set_float32_matmul_precision("highest")
    assert capture.replays == before


def test_a_capture_that_fails_is_told_and_not_tried_again():
    def failing(function: Forward, example: Tensor) -> Forward:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    net = Net()
    forward = GraphedForward(net, failing, device="cpu")
    x = torch.rand(2, 3)
    assert all(torch.equal(forward(x), 2 * x) for _ in range(4))
    assert forward.reason == "the graph could not be captured (operation not permitted when stream is capturing)"
    assert net.passes == 4


@pytest.mark.parametrize(("dtype", "kept"), [(torch.float32, False), (torch.bfloat16, True)])
def test_layers_round_to_their_own_dtype_whatever_the_result_has(dtype: torch.dtype, kept: bool) -> None:
    """A result in float32 of layers in bfloat16 may differ by an epsilon of bfloat16."""
    net = Net().to(dtype)
    capture = Imitation(lambda y: y * (1 + torch.finfo(torch.bfloat16).eps / 2))
    forward = GraphedForward(net, capture, device="cpu")
    for _ in range(3):
        forward(torch.rand(2, 3))
    assert (forward.reason is None) is kept


@pytest.mark.parametrize("spoil", [lambda y: y * 1.001, lambda y: y * float("nan"), lambda y: y.roll(1, 0)])
def test_a_replay_that_gives_other_numbers_is_not_used(spoil):
    forward, _, capture = graphed(spoil)
    x = torch.rand(2, 3)
    assert all(torch.equal(forward(x), 2 * x) for _ in range(4))
    assert capture.captures == 1
    assert "other numbers" in forward.reason


def test_what_has_no_graph_runs_plainly():
    forward, net, capture = graphed()
    x = torch.rand(2, 3)
    elsewhere = GraphedForward(net, capture)  # CUDA graphs; x lies on the CPU
    for _ in range(3):
        assert torch.equal(elsewhere(x), 2 * x)
        forward(x[:0])
        with torch.enable_grad():
            assert forward(x).requires_grad
    with torch.inference_mode():
        frozen = GraphedForward(Net(), capture, device="cpu")
        frozen(x), frozen(x)
    assert "inference mode" in frozen.reason
    assert capture.captures == 0


def test_the_tiles_of_a_deblurrer_go_through_it():
    deblur = Deblurrer(Swintormer(TINY), tile=16, batch=2)
    seen = []
    deblur.forward = lambda x: seen.append(len(x)) or x
    deblur(torch.rand(1, 3, 16, 40))
    assert seen == [2, 1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_a_graph_on_the_gpu_gives_the_plain_image_and_follows_the_weights():
    torch.manual_seed(0)
    net, x = Swintormer(TINY).cuda().eval(), torch.rand(1, 3, 48, 100)
    deblur, plain = Deblurrer(net, tile=16, batch=3), Deblurrer(net, tile=16, batch=3)
    plain.forward = net
    # A capture may choose other kernels for convolutions, which add in another order; 1e-3 of TF32 on both sides.
    torch.testing.assert_close(deblur(x), plain(x), rtol=0, atol=2e-3)
    assert deblur.forward.reason is None
    assert deblur.forward._replay is not None
    before = plain(x)
    for parameter in net.parameters():
        parameter.add_(0.01)
    assert (plain(x) - before).abs().max() > 1e-2
    torch.testing.assert_close(deblur(x), plain(x), rtol=0, atol=2e-3)
    replay = capture_graph(net, torch.rand(2, 3, 16, 16, device="cuda"))
    one = torch.rand(1, 3, 16, 16, device="cuda")
    assert replay(one).shape == one.shape
