"""Our files and the released layout through spandrel's loader, which drops metadata: never with a wrong window."""

from __future__ import annotations

import sys

import priors
import pytest
import torch
from cli_files import TINY
from safetensors.torch import load_file, save_file
from torchvision_standin import have_torchvision

from swintormer import Swintormer, read_checkpoint, save_checkpoint
from swintormer.checkpoint.checkpoint import Checkpoint, default_weights
from swintormer.checkpoint.infer import WINDOW
from swintormer.errors import SwintormerError
from swintormer.integrations import spandrel as adapter
from swintormer.model.config import PRESETS, NetworkConfig

pytestmark = pytest.mark.usefixtures("one_thread")


def networks() -> dict[str, NetworkConfig]:
    """Among them the sizes of a preset with another window, which only the tensor tells apart."""
    sizes = {"tiny": TINY, "released window": TINY.model_copy(update={"window_size": 16})}
    return sizes | {f"small, {w}": PRESETS["small"].model_copy(update={"window_size": w}) for w in (4, 8, 16)}


@pytest.mark.parametrize("name", networks())
def test_the_window_is_that_of_the_file(name, tmp_path):
    config = networks()[name]
    save_checkpoint(Swintormer(config), tmp_path / "a.safetensors")
    found, state = adapter.network_of(load_file(tmp_path / "a.safetensors"))
    assert found == config
    Swintormer(found).load_state_dict(state, strict=True)


def test_a_file_that_may_have_another_window_is_refused(tmp_path):
    """As `small` was saved before files named their window in a tensor."""
    state = load_file(default_weights())
    assert adapter.network_of(state)[0] == PRESETS["small"]
    del state[WINDOW]
    with pytest.raises(SwintormerError, match=r"save_checkpoint\(read_checkpoint\(file\), file\) mends it"):
        adapter.network_of(state)


def test_what_is_no_network():
    with pytest.raises(SwintormerError, match="is not a Swintormer checkpoint: it holds no tensors"):
        adapter.network_of({})
    state = Swintormer(TINY).state_dict()
    with pytest.raises(SwintormerError, match="in addition to the network's, the tensor 'more'"):
        adapter.network_of({**state, WINDOW: torch.tensor(4.0), "more": torch.zeros(1)})


def test_without_spandrel(monkeypatch):
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(SwintormerError, match=r"pip install 'swintormer-kernels\[spandrel\]'"):
        adapter.register()


@pytest.fixture(scope="module")
def loader():
    """spandrel's own loader, which knows the architecture."""
    pytest.importorskip("einops", reason="the extra [spandrel] is not installed (make test-ecosystem)")
    with pytest.MonkeyPatch.context() as patch:
        have_torchvision(patch)
        spandrel = pytest.importorskip("spandrel", reason="the extra [spandrel] is not installed (make test-ecosystem)")
        adapter.register()
        adapter.register()
        assert "Swintormer" in spandrel.MAIN_REGISTRY
        yield spandrel.ModelLoader()


@pytest.mark.parametrize("side", [(64, 64), (33, 70), (1, 1)])
def test_the_shipped_weights(loader, side):
    found = loader.load_from_file(default_weights())
    assert (found.architecture.id, found.purpose, found.scale) == ("Swintormer", "Restoration", 1)
    assert (found.input_channels, found.output_channels, found.tags) == (3, 3, ["24dim", "w8"])
    x = torch.rand(1, 3, *side)
    with torch.inference_mode():
        expected = read_checkpoint(default_weights()).net(x).clamp(0, 1)
    assert torch.equal(found(x), expected)
    assert not found.model.training


def test_weights_that_are_loaded_in_inference_mode(loader):
    """As ComfyUI does; kernels keep packed weights only of those that have versions."""
    with torch.inference_mode():
        found = loader.load_from_state_dict(load_file(default_weights()))
    assert not any(parameter.is_inference() for parameter in found.model.parameters())
    x = torch.rand(1, 3, 40, 30)
    with torch.inference_mode():
        assert torch.equal(found(x), read_checkpoint(default_weights()).net(x).clamp(0, 1))


def test_the_released_layout(loader, tmp_path):
    """A dict with `params`, keys with DataParallel's prefix, window 16."""
    net = Swintormer(TINY, window_size=16).eval()
    state = {f"module.{name}": tensor for name, tensor in net.state_dict().items()}
    torch.save({"params": state}, tmp_path / "net_g.pth")
    found = loader.load_from_file(tmp_path / "net_g.pth")
    x = torch.rand(2, 3, 40, 50)
    with torch.inference_mode():
        assert torch.equal(found(x), net(x).clamp(0, 1))
    assert found.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_the_prior_of_a_file_is_left_out(loader, tmp_path):
    net = Swintormer(priors.NETWORK).eval()
    save_checkpoint(Checkpoint(net, priors.tiny()), tmp_path / "a.safetensors")
    found = loader.load_from_file(tmp_path / "a.safetensors")
    x = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(found(x), net(x).clamp(0, 1))


def test_other_architectures_are_left_to_spandrel(loader, tmp_path):
    from spandrel import UnsupportedModelError

    save_file({"patch_embed.proj2.weight": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(UnsupportedModelError):
        loader.load_from_file(tmp_path / "a.safetensors")
