"""A diffusers U-Net whose res blocks run through the Triton kernels, against the untouched one."""

from __future__ import annotations

import copy

import pytest
import torch
from ops import error
from torch import Tensor, nn

import swintormer_kernels as sk
from swintormer_kernels.backends.triton import layout as triton_tensors

pytest.importorskip("triton")
diffusers = pytest.importorskip("diffusers")
runtime = pytest.importorskip("swintormer_kernels.backends.triton.runtime")

pytestmark = pytest.mark.usefixtures("one_thread")
DEVICE = torch.device("cpu" if triton_tensors.INTERPRETED else "cuda")
BLOCKS = {"BLOCK_P": 64, "BLOCK_N": 32, "BLOCK_C": 16, "num_warps": 4, "num_stages": 1}


@pytest.fixture
def chosen(monkeypatch, fixed_blocks):
    """Triton is chosen where it serves, in the interpreter, too, with small blocks."""
    monkeypatch.setattr(sk.registry.triton_tensors, "only_for_tests", lambda: None)
    fixed_blocks("norm_silu_conv3x3", BLOCKS)


def unet(**options: object) -> nn.Module:
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(
        in_channels=3,
        out_channels=2,
        block_out_channels=(8, 12),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        **options,
    )
    return net.to(DEVICE).eval()


@pytest.mark.parametrize("options", [{}, {"resnet_time_scale_shift": "scale_shift"}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_optimized_unet_gives_what_the_untouched_one_gives(dtype, options, chosen):
    """At most twice the untouched one's own error, and half a unit in the last place."""
    net = unet(**options)
    z, time = torch.randn(2, 3, 8, 8, device=DEVICE), torch.tensor([3, 700], device=DEVICE)
    with torch.no_grad():
        truth = copy.deepcopy(net).double()(z.to(dtype).double(), time).sample
        net = net.to(dtype)
        plain = net(z.to(dtype), time).sample
        report = str(sk.optimize(net))
        with runtime.recording() as launches:
            net(z.to(dtype), time)
        out = net(z.to(dtype), time).sample
    assert "-> triton" in report
    kernels = [launch.kernel.__name__ for launch in launches]
    assert kernels.count("forward") == 2 * 8 + 1, "two kernels for each of the eight res blocks, and the last one"
    assert error(out, truth) <= 2 * error(plain, truth) + torch.finfo(dtype).eps / 2


def test_it_trains(chosen):
    net = unet()
    z, time = torch.randn(1, 3, 8, 8, device=DEVICE), torch.tensor([500], device=DEVICE)

    def gradients(net: nn.Module, z: Tensor) -> Tensor:
        # All in one vector: those of the keys' biases are nothing but rounding.
        found = torch.autograd.grad(net(z, time).sample.square().sum(), list(net.parameters()))
        return torch.cat([gradient.flatten() for gradient in found])

    truth, plain = gradients(copy.deepcopy(net).double(), z.double()), gradients(net, z)
    sk.optimize(net)
    assert error(gradients(net, z), truth) <= 2 * error(plain, truth) + torch.finfo(torch.float32).eps / 2
