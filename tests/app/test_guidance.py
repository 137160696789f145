"""The prior in tiled inference and on the command line: once for a picture, cut for each tile, the same every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cli_files import photo
from priors import NETWORK, tiny
from typer.testing import CliRunner

from swintormer import Checkpoint, Deblurrer, Swintormer, save_checkpoint
from swintormer.cli.app import app
from swintormer.errors import SwintormerError
from swintormer.images.reading import read_image
from swintormer.inference.memory import packed_convolution_bytes
from swintormer.prior.latent import ImageLatent
from swintormer.prior.model import Sampler

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def net() -> Checkpoint:
    """A network that the prior moves, with its prior."""
    torch.manual_seed(0)
    made = Swintormer(NETWORK).eval()
    for parameter in made.prior_fusion.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return Checkpoint(made, tiny(piece=64, stride=48), training_tile=32)


@pytest.fixture
def weights(net, tmp_path) -> Path:
    path = tmp_path / "both.safetensors"
    save_checkpoint(net, path)
    return path


def picture(height: int = 48, width: int = 96, count: int = 1) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(3))


def test_one_tile_is_the_network_with_its_prior(net) -> None:
    x = picture(45, 61)
    with torch.inference_mode():
        expected = net.net(x, prior=net.prior.sample(x, seed=5, steps=3), prior_factor=8)
    deblur = Deblurrer(net, tile=64, prior=Sampler(net.prior, seed=5, steps=3))
    assert torch.equal(deblur(x), expected)
    assert not torch.equal(Deblurrer(net, tile=64)(x), expected)  # another seed


def test_without_prior(net) -> None:
    x = picture(45, 61)
    with torch.inference_mode():
        assert torch.equal(Deblurrer(net, tile=64, prior=False)(x), net.net(x))
    plain = Swintormer(NETWORK, prior_channels=0).eval()
    assert Deblurrer(plain, tile=64)(x).shape == x.shape
    three = Swintormer(NETWORK, prior_channels=3)
    with pytest.raises(SwintormerError, match="the network takes 3"):
        Deblurrer(three, prior=Sampler(net.prior))


def test_every_tile_gets_its_crop_of_one_sample(net, monkeypatch) -> None:
    x = picture(40, 96, count=2)
    sampled = []
    original = Sampler.sample
    monkeypatch.setattr(Sampler, "sample", lambda *a: sampled.append(1) or original(*a))
    given = []
    hook = net.net.register_forward_pre_hook(lambda _, args: given.append(args[1]))
    Deblurrer(net, tile=32, stride=16, batch=3)(x)
    hook.remove()
    assert len(sampled) == 2  # once for each image
    latents = net.prior.sample(x)
    crops = torch.cat(given)
    rows, columns = (0, 8), (0, 16, 32, 48, 64)
    # The band lies across the shorter side: tiles come column by column.
    places = [(image, row, column) for image in range(2) for column in columns for row in rows]
    for crop, (image, row, column) in zip(crops, places, strict=True):
        assert torch.equal(crop, latents[image, :, row // 8 : row // 8 + 4, column // 8 : column // 8 + 4])


def test_a_tile_between_two_positions_gets_their_mean() -> None:
    latent = torch.arange(24.0).reshape(1, 4, 6)  # a plane: linear in both directions
    image = ImageLatent(latent, factor=8)
    crop = image.crop(slice(4, 20), slice(10, 34))
    expected = 6 * (0.5 + torch.arange(2.0))[:, None] + 1.25 + torch.arange(3.0)
    assert torch.equal(crop, expected[None])
    beyond = image.crop(slice(24, 40), slice(44, 60))
    assert torch.equal(beyond, torch.full((1, 2, 2), 23.0))  # row 3 and, 5.5 clamped, column 5


def test_pictures_from_files_are_the_same_each_time(net) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 90, 3), np.uint8)
    first = Deblurrer(net, tile=32).restore_array(pixels)
    torch.rand(7)  # the state of torch's own generator takes no part
    for batch, threads in ((1, 1), (5, 2)):
        torch.set_num_threads(threads)
        again = Deblurrer(net, tile=32, batch=batch).restore_array(pixels)
        assert np.abs(again.astype(int) - first).max() <= 1  # tiles in another batch round differently
    torch.set_num_threads(1)
    assert np.array_equal(Deblurrer(net, tile=32).restore_array(pixels), first)
    other = Deblurrer(net, tile=32, prior=Sampler(net.prior, seed=1)).restore_array(pixels)
    assert np.abs(other.astype(int) - first).max() > 1


def test_a_dual_pixel_pair_is_seen_by_the_view_that_is_restored(net) -> None:
    dual = Swintormer(NETWORK, in_channels=6).eval()
    dual.load_state_dict(net.net.state_dict() | {"patch_embed.proj2.weight": torch.randn(4, 24, 3, 3)})
    x = torch.rand(1, 6, 32, 32)
    with torch.inference_mode():
        expected = dual(x, prior=net.prior.sample(x[:, :3]))
    assert torch.equal(Deblurrer(dual, tile=32, prior=Sampler(net.prior))(x), expected)


def test_budget_counts_the_prior(net) -> None:
    with_it = Deblurrer(net, tile=32, memory=2**40)
    without = Deblurrer(net, tile=32, memory=2**40, prior=False)
    latent = 4 * 4 * 50 * 25  # bytes of four channels at 1/8
    packed = packed_convolution_bytes(net.prior.denoiser.parameters())
    assert with_it._cost(32, 1, 400, 200) - without._cost(32, 1, 400, 200) == latent + packed
    with pytest.raises(SwintormerError, match=r"prior needs about .* for 20000x10000 pixels, .* without the prior"):
        Deblurrer(net, tile=32, memory=60 * 2**20).plan(10_000, 20_000)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*words: object, code: int = 0) -> str:
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert result.exit_code == code, result.output
        return result.output + result.stderr

    return call


def test_command_line(run, weights, net, tmp_path) -> None:
    photo(tmp_path / "a.png", side=(40, 56))
    pixels = read_image(tmp_path / "a.png").pixels
    common = ("deblur", "a.png", "--weights", weights, "--quiet", "-o")

    def restored(name: str, *words: object) -> np.ndarray:
        run(*common, name, *words)
        return read_image(tmp_path / name).pixels

    default = restored("1.png")
    assert np.array_equal(default, Deblurrer(net, tile=32).restore_array(pixels))
    assert np.array_equal(default, restored("2.png", "--prior", "--seed", "0"))
    assert (tmp_path / "1.png").read_bytes() == (tmp_path / "2.png").read_bytes()
    without = Deblurrer(net, tile=32, prior=False).restore_array(pixels)
    assert np.array_equal(restored("3.png", "--no-prior"), without)
    drawn = Deblurrer(net, tile=32, prior=Sampler(net.prior, seed=4, steps=3)).restore_array(pixels)
    assert np.array_equal(restored("4.png", "--seed", "4", "--steps", "3"), drawn)
    assert not np.array_equal(drawn, default)


def test_command_line_asks_for_the_same_bits(run, weights, tmp_path, monkeypatch) -> None:
    photo(tmp_path / "a.png", side=(40, 56))
    asked = []
    original = Sampler.sample
    monkeypatch.setattr(Sampler, "sample", lambda self, *a: asked.append(self.deterministic) or original(self, *a))
    for words in ((), ("--deterministic",)):
        run("deblur", "a.png", "-o", "b.png", "--weights", weights, "--quiet", *words)
    assert asked == [False, True]


def test_command_line_refuses_settings_without_a_prior(run, weights, tmp_path) -> None:
    photo(tmp_path / "a.png", side=(40, 56))
    plain = tmp_path / "plain.safetensors"
    save_checkpoint(Swintormer(NETWORK, prior_channels=0), plain)
    out = run("deblur", "a.png", "-o", "b.png", "--weights", plain, "--prior", code=1)
    assert "hold no prior" in out
    out = run("deblur", "a.png", "-o", "b.png", "--weights", weights, "--no-prior", "--steps", 3, code=1)
    assert "leave them out" in out
    out = run("deblur", "a.png", "-o", "b.png", "--weights", weights, "--no-prior", "--deterministic", code=1)
    assert "leave them out" in out
    out = run("deblur", "a.png", "-o", "b.png", "--weights", weights, "--steps", 5000, code=1)
    assert "1 to 1000 steps" in out
    assert not (tmp_path / "b.png").exists()


def test_an_interrupt_ends_the_sampling(net) -> None:
    """Ctrl-C is noticed after every piece, not only between tiles; threads are put back."""
    deblur, calls = Deblurrer(net, tile=32, prior=Sampler(tiny(piece=8, stride=6))), []

    def stop(done: int, total: int) -> None:
        calls.append((done, total))
        if len(calls) == 3:
            raise KeyboardInterrupt

    torch.set_num_threads(2)
    with pytest.raises(KeyboardInterrupt):
        deblur.restore_array(np.zeros((100, 131, 3), np.uint8), progress=stop)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    assert calls == [(0, calls[0][1])] * 3
