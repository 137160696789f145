"""Fusion: it starts as nothing, adds the prior where it belongs, and is found in files."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from priors import NETWORK

from swintormer import NetworkConfig, Swintormer, load_checkpoint
from swintormer.checkpoint.checkpoint import default_weights
from swintormer.model.fusion import STAGES, over_image, resample

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def net() -> Swintormer:
    """Random fusion."""
    torch.manual_seed(0)
    made = Swintormer(NETWORK).eval()
    for parameter in made.prior_fusion.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


@pytest.mark.parametrize("size", [(13, 17), (7, 50), (1, 1), (100, 131)])
def test_a_new_fusion_changes_no_bit_of_a_trained_network(size: tuple[int, int]) -> None:
    trained = load_checkpoint(default_weights())
    config = trained.config.model_copy(update={"prior_channels": 8})
    fused = Swintormer(config).eval()
    own = {name: t for name, t in trained.state_dict().items() if not name.startswith("prior_fusion.")}
    missing, unexpected = fused.load_state_dict(own, strict=False)
    assert set(missing) == {f"prior_fusion.{stage}.weight" for stage in STAGES}
    assert not unexpected
    picture = torch.rand(1, 3, 100, 131)
    with torch.inference_mode():
        assert torch.equal(fused(picture, prior=torch.randn(1, 8, *size)), trained(picture))


def test_without_prior_the_released_names() -> None:
    assert Swintormer().config.prior_channels == 0
    assert not any("prior" in name for name in Swintormer(NetworkConfig(), dim=8).state_dict())
    with_it, without = Swintormer(NETWORK), Swintormer(NETWORK, prior_channels=0)
    added = with_it.state_dict().keys() - without.state_dict().keys()
    assert all(name.startswith("prior_fusion.") for name in added)
    assert with_it.state_dict().keys() - added == without.state_dict().keys()


def test_no_prior_is_a_prior_of_zeros(net) -> None:
    picture = torch.rand(2, 3, 40, 56)
    with torch.inference_mode():
        zeros, none = net(picture, prior=torch.zeros(2, 4, 5, 7)), net(picture)
        assert torch.equal(zeros, none)
        assert not torch.equal(net(picture, prior=torch.ones(2, 4, 5, 7)), none)


def test_every_level_adds_its_projection(net) -> None:
    """What enters each stage, less what would enter it without: the projection of z_0, resampled, there alone."""
    picture, z = torch.rand(1, 3, 32, 64), torch.randn(1, 4, 4, 8)
    for stage, channels in STAGES.items():
        single = Swintormer(NETWORK).eval()
        single.load_state_dict(net.state_dict())
        for other in STAGES.keys() - {stage}:
            torch.nn.init.zeros_(single.prior_fusion.get_submodule(other).weight)
        entered = []
        hook = single.get_submodule(stage).register_forward_pre_hook(lambda _, x, to=entered: to.append(x[0]))
        with torch.inference_mode():
            single(picture, prior=z)
            single(picture)
        hook.remove()
        weight = net.prior_fusion.get_submodule(stage).weight.detach()
        height = {1: 16, 2: 8, 4: 4, 8: 2}[channels if stage != "decoder_level1" else 1]
        size = (height, 2 * height)
        mode = {"mode": "bilinear", "align_corners": False} if height > 4 else {"mode": "area"}
        expected = F.conv2d(F.interpolate(z, size, **mode), weight)
        added = entered[0] - entered[1]
        # Sums and differences of terms below `top` round four channels, two resamplings and the two additions.
        top = float(max(entered[0].abs().max(), expected.abs().max()))
        assert float((added - expected).abs().max()) <= 10 * torch.finfo().eps * top


def test_gradients_flow_to_the_prior_and_the_fusion(net) -> None:
    z = torch.randn(1, 4, 4, 5, requires_grad=True)
    net(torch.rand(1, 3, 30, 37), prior=z).sum().backward()
    assert (z.grad.abs().amax((0, 1)) > 0).all()  # every place takes part
    assert all(p.grad.abs().sum() > 0 for p in net.prior_fusion.parameters())


def test_a_latent_keeps_its_place_in_an_image_that_is_padded() -> None:
    """Positions lie at multiples of 8 pixels; what the padding adds repeats the last."""
    z = torch.arange(12.0).reshape(1, 1, 3, 4)
    placed = over_image(z, (20, 31), (32, 64), factor=8)
    assert torch.equal(
        placed[0, 0], torch.tensor([[*row, *[row[-1]] * 4] for row in [*z[0, 0].tolist(), [8, 9, 10, 11]]])
    )
    assert over_image(z, (24, 32), (24, 32), factor=8) is z


def test_a_latent_of_any_other_size_is_stretched_over_the_image() -> None:
    ramp = torch.linspace(0, 1, 6)[None, None, None].expand(1, 1, 3, 6)
    placed = over_image(ramp, (20, 40), (32, 64))
    assert placed.shape == (1, 1, 16, 32)
    expected = F.interpolate(ramp, (10, 20), mode="bilinear", align_corners=False)
    assert torch.equal(placed[:, :, :10, :20], expected)
    assert torch.equal(placed[0, 0, 0, 20:], expected[0, 0, 0, -1].expand(12))
    assert over_image(ramp, (32, 64), (32, 64)) is ramp


def test_what_a_position_covers_is_said_and_not_guessed(net) -> None:
    """4x4 positions over 25x27 pixels: of 8 pixels each, or, unsaid, stretched over the image."""
    picture, z = torch.rand(1, 3, 25, 27), torch.randn(1, 4, 4, 4)
    with torch.inference_mode():
        placed, stretched = net(picture, prior=z, prior_factor=8), net(picture, prior=z)
    assert not torch.equal(placed, stretched)
    with pytest.raises(ValueError, match=r"a prior of \(7, 7\) positions of 4 pixels, found \(4, 4\)"):
        net(picture, prior=z, prior_factor=4)


def test_resampling_keeps_constants_and_means() -> None:
    x = torch.rand(1, 2, 8, 12)
    assert torch.equal(resample(torch.ones(1, 2, 8, 12), (3, 30)), torch.ones(1, 2, 3, 30))
    small = resample(x, (4, 6))
    assert float((small.mean() - x.mean()).abs()) <= x.numel() * torch.finfo().eps
    assert torch.equal(resample(x, (8, 12)), x)


@pytest.mark.parametrize("shape", [(2, 4, 5, 7), (1, 3, 5, 7), (1, 4, 0, 7), (4, 5, 7)])
def test_a_prior_that_does_not_fit(net, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"Expected a prior of shape \(1, 4, h, w\)"):
        net(torch.rand(1, 3, 40, 56), prior=torch.zeros(shape))


def test_a_network_without_fusion_takes_no_prior() -> None:
    with pytest.raises(ValueError, match="takes no prior"):
        Swintormer(NETWORK, prior_channels=0)(torch.rand(1, 3, 32, 32), prior=torch.zeros(1, 4, 4, 4))


def test_empty_batch(net) -> None:
    assert net(torch.rand(0, 3, 32, 32), prior=torch.zeros(0, 4, 4, 4)).shape == (0, 3, 32, 32)
