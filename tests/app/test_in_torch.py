"""What an engineer does with a network: copies, pickles, compiles and exports it, and calls it from several threads."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from cli_files import TINY, files, photo

from swintormer import Deblurrer, InputError, Swintormer, load_checkpoint, read_checkpoint, save_checkpoint
from swintormer_kernels import forget, use_backend

pytestmark = pytest.mark.usefixtures("one_thread")
EPS = torch.finfo(torch.float32).eps
PIXELS = np.random.default_rng(0).integers(0, 255, (40, 56, 3), np.uint8, endpoint=True)


@pytest.fixture(scope="module")
def net() -> Swintormer:
    torch.manual_seed(0)
    return Swintormer(TINY).eval()


def assert_near(found: torch.Tensor, net: Swintormer, image: torch.Tensor) -> None:
    """As near to float64 as the network itself, to a factor of two: another order of the same sums."""
    with torch.no_grad(), use_backend("reference"):
        truth, own = copy.deepcopy(net).double()(image.double()), net(image)
    error = (own - truth).abs().max()
    assert (found - truth).abs().max() <= 2 * max(error, EPS)


def saved_by_torch(net: Swintormer) -> Swintormer:
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net)), saved_by_torch])
def test_copies_are_the_same_network_and_independent(net, again):
    image = torch.rand(1, 3, 20, 24)
    with torch.no_grad():
        expected = net(image)
        other = again(net)
        assert other.config == net.config
        assert torch.equal(other(image), expected)
        next(other.parameters()).mul_(2)
        assert torch.equal(net(image), expected)
        assert not torch.equal(other(image), expected)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda deblur: pickle.loads(pickle.dumps(deblur))])
def test_copies_of_a_deblurrer_restore_the_same(net, again):
    deblur = Deblurrer(net, tile=32, stride=24)
    expected = deblur.restore_array(PIXELS)
    assert np.array_equal(again(deblur).restore_array(PIXELS), expected)


def test_compiled_whole_and_exported(net, extension):
    image = torch.rand(1, 3, 20, 24)
    with torch.no_grad(), use_backend("cpu"):
        assert_near(torch.compile(net, fullgraph=True, backend="aot_eager")(image), net, image)
        assert_near(torch.export.export(net, (image,)).module()(image), net, image)


def test_threads_get_what_one_gets(net):
    """The first calls of a network at once, with packed weights and all: each thread gets the same bits as alone."""
    expected = Deblurrer(net, tile=32, stride=24).restore_array(PIXELS)
    forget(net)
    deblur, begun = Deblurrer(net, tile=32, stride=24), threading.Barrier(4)

    def restore(_: int) -> bool:
        torch.set_num_threads(1)
        begun.wait()
        return np.array_equal(deblur.restore_array(PIXELS), expected)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(restore, range(4)))


@pytest.mark.parametrize("path", [None, 3, b"w.safetensors"])
def test_what_is_no_path_is_said_in_one_sentence(net, path):
    for call in (read_checkpoint, load_checkpoint, lambda path: save_checkpoint(net, path)):
        with pytest.raises(InputError, match="Expected the path of a checkpoint, found"):
            call(path)


def test_only_networks_are_saved(tmp_path):
    for thing in (None, {}, torch.nn.Identity()):
        with pytest.raises(InputError, match="Expected a Swintormer or a Checkpoint, found"):
            save_checkpoint(thing, tmp_path / "w.safetensors")
    assert files(tmp_path) == set()


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_finite_weights_of_a_result_that_is_not_finite_write_nothing(run, net, suffix):
    """Any one weight may be large; their products overflow."""
    large = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in large.parameters():
            parameter.mul_(1e30)
    save_checkpoint(large, "large.safetensors")
    photo(f"in{suffix}")
    result = run("deblur", f"in{suffix}", "-o", f"out{suffix}", "--weights", "large.safetensors", code=1)
    assert "not finite" in result.stderr
    assert "Traceback" not in result.output
    assert files() == {"large.safetensors", f"in{suffix}"}


def test_a_compiled_network_restores_the_same(net):
    torch._dynamo.reset()
    image, compiled = torch.rand(1, 3, 24, 24), torch.compile(net, backend="eager")
    assert torch.equal(Deblurrer(compiled, tile=32)(image), Deblurrer(net, tile=32)(image))
