"""Priors in files: alone and beside a network, and what is said of files that are damaged or do not fit."""

from __future__ import annotations

import json
import subprocess
import sys

import diffusers
import pytest
import torch
from priors import NETWORK, TINY, tiny
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from swintormer import Deblurrer, Swintormer, load_checkpoint, read_checkpoint, save_checkpoint
from swintormer.checkpoint.checkpoint import checkpoint_info
from swintormer.errors import SwintormerError
from swintormer.prior.checkpoint import config_of, load_prior, make_prior, save_prior
from swintormer.prior.config import PRIORS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def prior():
    return tiny()


@pytest.fixture
def together(tmp_path, prior):
    torch.manual_seed(1)
    path = tmp_path / "both.safetensors"
    save_checkpoint(Swintormer(NETWORK), path, training_tile=32, prior=prior)
    return path


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", PRIORS)
def test_a_prior_tells_its_configuration(name: str) -> None:
    with torch.device("meta"):
        prior = make_prior(PRIORS[name])
        again = make_prior(config_of(prior))
    assert config_of(again) == config_of(prior)
    assert again.sampling == PRIORS[name].sampling
    shapes = [{n: t.shape for n, t in p.state_dict().items()} for p in (prior, again)]
    assert shapes[0] == shapes[1]


def test_alone(tmp_path, prior) -> None:
    save_prior(prior, tmp_path / "p.safetensors", {"minutes": "9"})
    loaded = load_prior(tmp_path / "p.safetensors")
    assert same(loaded.state_dict(), prior.state_dict())
    assert not loaded.training
    assert loaded.sampling == TINY.sampling
    with safe_open(tmp_path / "p.safetensors", "pt") as file:
        assert json.loads(file.metadata()["swintormer.card"]) == {"minutes": "9"}


def test_beside_a_network(together, prior, tmp_path) -> None:
    found = read_checkpoint(together)
    net = found.net
    assert same(found.prior.state_dict(), prior.state_dict())
    assert found.training_tile == 32
    assert same(load_prior(together).state_dict(), prior.state_dict())
    info = checkpoint_info(together)
    assert info.prior.sampling == TINY.sampling
    assert info.config == NETWORK
    both = [sum(p.numel() for p in part.parameters()) for part in (net, prior)]
    assert info.parameters == sum(both)
    # The network's own state dict and parameters are the network's alone, and what is saved again is whole.
    assert net.state_dict().keys() == Swintormer(NETWORK).state_dict().keys()
    save_checkpoint(found, tmp_path / "again.safetensors")
    assert same(load_file(tmp_path / "again.safetensors"), load_file(together))
    picture = torch.rand(1, 3, 32, 48)
    restored = Deblurrer(found)(picture)
    assert torch.equal(restored, Deblurrer(read_checkpoint(tmp_path / "again.safetensors"))(picture))


def test_without_the_prior_diffusers_is_not_imported(together) -> None:
    """Importing it takes seconds: neither importing this package nor loading a network does it."""
    code = (
        "import sys, swintormer, swintormer.cli.app, swintormer.inference.deblurrer, swintormer.training.loop\n"
        f"swintormer.Deblurrer(swintormer.load_checkpoint({str(together)!r}))\n"
        f"checkpoint = swintormer.read_checkpoint({str(together)!r}, prior=False)\n"
        "assert checkpoint.prior is None and swintormer.Deblurrer(checkpoint).sampler is None\n"
        "assert 'diffusers' not in sys.modules\n"
        f"assert swintormer.read_checkpoint({str(together)!r}).prior is not None\n"
        "assert 'diffusers' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("error", [AttributeError, KeyError, OSError, ZeroDivisionError, ImportError])
def test_a_prior_that_cannot_be_made_is_an_error(together, monkeypatch, error: type[Exception]) -> None:
    """Another version of diffusers may raise anything: the prior is never left out in silence."""

    def renamed(*_: object, **__: object) -> None:
        raise error("renamed in this version")

    monkeypatch.setattr(diffusers, "UNet2DModel", renamed)
    with pytest.raises(SwintormerError, match="renamed in this version") as found:
        read_checkpoint(together)
    assert "\n" not in str(found.value)
    assert read_checkpoint(together, prior=False).prior is None


def test_without_diffusers_the_command_is_named(together, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "diffusers")
    monkeypatch.setattr(sys, "meta_path", [_NoDiffusers(), *sys.meta_path])
    with pytest.raises(SwintormerError, match=r'pip install "swintormer-kernels\[prior\]"') as found:
        read_checkpoint(together)
    assert "\n" not in str(found.value)
    assert load_checkpoint(together).config == NETWORK


class _NoDiffusers:
    """Finds nothing under that name."""

    def find_spec(self, name: str, *_: object) -> None:
        if name == "diffusers":
            raise ModuleNotFoundError("No module named 'diffusers'", name="diffusers")


def test_a_network_without_prior_has_none(tmp_path) -> None:
    plain = NETWORK.model_copy(update={"prior_channels": 0})
    save_checkpoint(Swintormer(plain), tmp_path / "plain.safetensors")
    assert read_checkpoint(tmp_path / "plain.safetensors").prior is None
    with pytest.raises(SwintormerError, match="holds no prior"):
        load_prior(tmp_path / "plain.safetensors")


def test_channels_must_fit(tmp_path, prior) -> None:
    other = Swintormer(NETWORK.model_copy(update={"prior_channels": 3}))
    with pytest.raises(SwintormerError, match="latent has 4 channels, and the network takes 3"):
        save_checkpoint(other, tmp_path / "x.safetensors", prior=prior)
    assert not list(tmp_path.iterdir())


def changed(path, **metadata: str) -> None:
    with safe_open(path, "pt") as file:
        before = file.metadata()
    save_file(load_file(path), path, before | metadata)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "its prior cannot be built"),
        ('{"autoencoder_kind": "Pickle"}', "its prior cannot be built: autoencoder_kind"),
        (TINY.model_dump_json().replace('"steps":2', '"steps":0'), "sampling.steps"),
    ],
)
def test_damaged_metadata(together, text: str, complaint: str) -> None:
    changed(together, **{"swintormer.prior": text})
    for load in (load_checkpoint, load_prior):
        with pytest.raises(SwintormerError, match=complaint) as error:
            load(together)
        assert "\n" not in str(error.value)


def test_tensors_of_another_prior(together) -> None:
    wider = TINY.model_copy(update={"denoiser": {**TINY.denoiser, "block_out_channels": [8, 32]}})
    changed(together, **{"swintormer.prior": wider.model_dump_json()})
    with pytest.raises(SwintormerError, match=r"has the shape .* expected"):
        read_checkpoint(together)
    assert load_checkpoint(together).config == NETWORK  # needs no prior


def test_tensors_without_a_description(together) -> None:
    tensors = load_file(together)
    save_file(tensors, together, {"swintormer.config": NETWORK.model_dump_json()})
    with pytest.raises(SwintormerError, match="of a prior, but not the prior's configuration"):
        load_checkpoint(together)
