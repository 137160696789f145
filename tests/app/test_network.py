"""The network: the released state dict and golden result, any size of picture, channels and batch."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_files import NETWORK, golden_network, pack, unpack
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import swintormer_kernels as sk
from swintormer import InputError, NetworkConfig, Swintormer
from swintormer.model.network import in_rows
from swintormer.model.padding import pad_to_multiple
from swintormer_kernels.backends.triton.layout import INTERPRETED

GOLDEN_CONFIG = NetworkConfig(dim=16, num_blocks=(1, 2, 2, 2), num_refinement_blocks=2, window_size=8)
TINY = {"in_channels": 3, "dim": 8, "num_blocks": (2, 1, 1, 1), "num_refinement_blocks": 1, "heads": (1, 1, 2, 2)}


@pytest.fixture(scope="module")
def tiny() -> Swintormer:
    torch.manual_seed(0)
    return Swintormer(**TINY, window_size=4).eval()


def test_released_state_dict():
    """479 tensors and 25,177,224 parameters, under the released keys (network.md, "Checkpoints in the wild")."""
    state = Swintormer().state_dict()
    assert len(state) == 479
    assert sum(value.numel() for value in state.values()) == 25_177_224
    block = {
        "norm1.body.weight": (48,),
        "norm1.body.bias": (48,),
        "attn.logit_scale": (1, 1, 1),
        "attn.cpb_mlp.0.weight": (512, 2),
        "attn.cpb_mlp.0.bias": (512,),
        "attn.cpb_mlp.2.weight": (1, 512),
        "attn.qkv.weight": (144, 48, 1, 1),
        "attn.qkv_dwconv.weight": (144, 1, 3, 3),
        "attn.project_out.weight": (48, 48, 1, 1),
        "norm2.body.weight": (48,),
        "norm2.body.bias": (48,),
        "ffn.project_in.weight": (254, 48, 1, 1),
        "ffn.project_out.weight": (48, 127, 1, 1),
    }
    stages = {"encoder_level1": 2, "encoder_level2": 4, "encoder_level3": 6, "latent": 8}
    stages |= {"decoder_level3": 6, "decoder_level2": 4, "decoder_level1": 2, "refinement": 4}
    keys = {f"{stage}.{i}.{key}" for stage, count in stages.items() for i in range(count) for key in block}
    keys |= {f"{name}.body.0.weight" for name in ("down1_2", "down2_3", "down3_4", "up4_3", "up3_2", "up2_1")}
    keys |= {"patch_embed.proj2.weight", "reduce_chan_level3.weight", "reduce_chan_level2.weight"}
    keys |= {"skip_conv.weight", "output.0.weight"}
    assert set(state) == keys
    for key, shape in block.items():
        assert tuple(state[f"encoder_level1.0.{key}"].shape) == shape, key
    assert tuple(state["latent.7.ffn.project_in.weight"].shape) == (2042, 384, 1, 1)
    assert tuple(state["patch_embed.proj2.weight"].shape) == (48, 24, 3, 3)
    assert tuple(state["output.0.weight"].shape) == (12, 96, 3, 3)


@pytest.fixture(scope="module")
def golden_image() -> tuple[torch.Tensor, torch.Tensor]:
    """Input and the released network's output of tests/golden."""
    golden = golden_network()
    return golden["in.x"], golden["out.y"].double()


def golden_net(device: str = "cpu") -> Swintormer:
    golden = golden_network()
    net = Swintormer(GOLDEN_CONFIG).eval()
    net.load_state_dict({k.removeprefix("param."): v for k, v in golden.items() if k.startswith("param.")}, strict=True)
    return net.to(device)


def golden_error(net: Swintormer, x: torch.Tensor, y: torch.Tensor, backend: str) -> float:
    """||net(x) - y|| / ||y|| with the blocks on `backend`."""
    with torch.inference_mode(), sk.use_backend(backend):
        return float((net(x).double().cpu() - y).norm() / y.norm())


@pytest.fixture(scope="module")
def reference_error(golden_image) -> float:
    """Of the reference in float32."""
    return golden_error(golden_net(), *golden_image, "reference")


def test_the_golden_file_is_stored_without_loss():
    file = NETWORK.with_name("block_d16_h1_w8_s4_b1_24x32.safetensors").read_bytes()
    assert unpack(pack(file)) == file


def test_the_reference_in_float64_is_the_released_network(golden_image):
    x, y = golden_image
    stored = torch.finfo(torch.float32).eps / 2  # the golden values are rounded to float32
    assert golden_error(golden_net().double(), x.double(), y, "reference") <= stored


def test_the_reference_in_float32(reference_error):
    assert reference_error <= 5e-5  # what the golden file's README grants float32 code of good quality


@pytest.mark.parametrize(
    "backend",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name == "triton" and INTERPRETED))
        for name in sk.BACKENDS
        if name not in ("reference", "cuda", *sk.swda_block.op.absent)  # cuda takes no float32
    ],
)
def test_every_backend_in_float32(golden_image, reference_error, backend):
    lacks = sk.backends()[backend]
    if lacks is not None:
        pytest.skip(lacks)
    x, y = golden_image
    device = "cpu" if backend == "cpu" or INTERPRETED else "cuda"
    assert golden_error(golden_net(device), x.to(device), y, backend) <= 2 * reference_error


@given(h=st.integers(1, 70), w=st.integers(1, 70), b=st.integers(0, 2))
@settings(max_examples=15, deadline=None)
def test_padding_is_reflection_then_replication(tiny, h, w, b):
    """What the network does to an odd size is what it does to that picture padded by hand."""
    x = torch.rand(b, 3, h, w)
    padded = pad_to_multiple(x, 16)
    assert padded.shape[2] % 16 == 0
    assert padded.shape[3] % 16 == 0
    assert torch.equal(padded[..., :h, :w], x)
    for index in range(h, min(padded.shape[2], 2 * h - 1)):
        assert torch.equal(padded[:, :, index, :w], x[:, :, 2 * (h - 1) - index])
    for index in range(2 * h - 1, padded.shape[2]):
        assert torch.equal(padded[:, :, index, :w], padded[:, :, 2 * h - 2, :w])
    with torch.inference_mode():
        whole = tiny(pad_to_multiple(x, tiny.config.stride))
        assert torch.equal(tiny(x), whole[..., :h, :w])


def test_batch_items_do_not_mix(tiny):
    x = torch.rand(3, 3, 40, 50)
    with torch.inference_mode():
        together = tiny(x)
        alone = torch.cat([tiny(item[None]) for item in x])
    # Same sums in another blocking of the convolutions: eps times the longest sum, relative to the largest value.
    assert (together - alone).abs().max() <= torch.finfo(torch.float32).eps * 9 * 64 * together.abs().max()


def test_strides_do_not_matter(tiny):
    x = torch.rand(2, 3, 33, 47)
    views = [
        x.contiguous(memory_format=torch.channels_last),
        x.transpose(2, 3).contiguous().transpose(2, 3),
        F.pad(x, (3, 4, 5, 6))[..., 5:-6, 3:-4],
    ]
    with torch.inference_mode():
        expected = tiny(x)
        for view in views:
            error = (tiny(view) - expected).abs().max()
            assert error <= torch.finfo(torch.float32).eps * 9 * 64 * expected.abs().max()


def test_the_residual_base_is_the_first_view():
    """With a zero output convolution a dual-pixel network returns its first three channels, the right view."""
    net = Swintormer(**(TINY | {"in_channels": 6}), window_size=4)
    torch.nn.init.zeros_(net.output[0].weight)
    x = torch.rand(1, 6, 20, 30)
    with torch.inference_mode():
        # 2x - 1 and back: two roundings, each within eps of values up to 1.
        assert (net(x) - x[:, :3]).abs().max() <= 2 * torch.finfo(torch.float32).eps


def test_a_network_built_on_the_meta_device(tiny):
    """What stands in no file is made where the network comes to hold numbers; conftest.py poisons empty memory."""
    with torch.device("meta"):
        net = Swintormer(tiny.config)
    net.to_empty(device="cpu").eval()
    net.load_state_dict(tiny.state_dict())
    x = torch.rand(1, 3, 40, 50)
    with torch.inference_mode():
        assert torch.equal(net(x), tiny(x))
    net.to_empty(device="cpu").load_state_dict(tiny.state_dict())
    assert torch.equal(net.latent[0].attn.coordinates, tiny.latent[0].attn.coordinates)
    assert net.double().latent[0].attn.coordinates.dtype == torch.float64


def test_moved_in_inference_mode_it_can_still_be_trained(tiny):
    """The coordinates are no inference tensors; those that no move changes stay the same tensor, memory and all."""
    net = Swintormer(tiny.config)
    coordinates = net.latent[0].attn.coordinates
    with torch.inference_mode():
        net.to("cpu")
    assert net.latent[0].attn.coordinates is coordinates
    net(torch.rand(1, 3, 64, 64)).square().sum().backward()
    assert net.latent[0].attn.cpb_mlp[0].weight.grad.any()
    with torch.inference_mode():
        net.double().float()
    assert not net.latent[0].attn.coordinates.is_inference()
    assert torch.equal(net.latent[0].attn.coordinates, coordinates)


def test_hooks_on_the_convolutions_are_called(tiny):
    called = []
    for conv in (tiny.output[0], tiny.down1_2.body[0]):
        conv.register_forward_hook(lambda *_: called.append(1))
    tiny(torch.rand(1, 3, 32, 32))
    assert len(called) == 2
    torch.nn.utils.weight_norm(tiny.output[0])
    x = torch.rand(1, 3, 32, 32)
    before = tiny(x)
    with torch.no_grad():
        tiny.output[0].weight_g.mul_(3)
    assert not torch.equal(tiny(x), before)


def test_a_backend_without_convolutions_serves_the_blocks_alone():
    body, x = Swintormer(NetworkConfig(dim=4, heads=(1, 1, 1, 1), window_size=2)).output, torch.rand(1, 8, 6, 6)
    with sk.use_backend("triton"):
        assert torch.equal(body(x), F.pixel_shuffle(F.conv2d(x, body[0].weight, body[0].bias, padding=1), 2))


def test_gradients_reach_every_parameter(tiny):
    net = Swintormer(tiny.config)
    net(torch.rand(1, 3, 64, 64)).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_convolution_biases():
    net = Swintormer(**TINY, window_size=4, bias=True)
    assert "latent.0.attn.qkv_dwconv.bias" in net.state_dict()
    assert net(torch.rand(1, 3, 20, 20)).shape == (1, 3, 20, 20)


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (np.zeros((1, 3, 20, 20), np.float32), "an object of numpy.ndarray: make one with torch.from_numpy."),
        (None, "found None."),
        ("photo.jpg", "found 'photo.jpg' (str)."),
        ([torch.zeros(3, 20, 20)], "found an object of list."),
    ],
)
def test_what_is_no_tensor_is_said_in_one_sentence(tiny, image, found):
    with pytest.raises(InputError, match=re.escape(found)) as error:
        tiny(image)
    assert isinstance(error.value, ValueError)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(3, 20, 20), (1, 6, 20, 20), (1, 3, 0, 20)])
def test_wrong_input_is_said_in_one_sentence(tiny, shape):
    with pytest.raises(ValueError, match=r"Expected an image of shape \(B, 3, H, W\)"):
        tiny(torch.rand(shape))


@pytest.mark.parametrize(
    ("dtype", "sentence"),
    [
        (
            torch.uint8,
            "Expected an image of torch.float32 in [0, 1], the network's dtype, found torch.uint8: divide it by "
            "its largest value, 255",
        ),
        (torch.uint16, "found torch.uint16: divide it by its largest value, 65535"),
        (torch.bool, "found torch.bool"),
        (torch.float64, "found torch.float64: convert the one or the other with .to()"),
        (torch.bfloat16, "found torch.bfloat16: convert the one or the other with .to()"),
    ],
)
def test_another_dtype_is_said_in_one_sentence(tiny, dtype, sentence):
    for batch in (0, 1):
        with pytest.raises(ValueError, match=re.escape(sentence)) as error:
            tiny(torch.ones(batch, 3, 20, 20).to(dtype))
        assert "\n" not in str(error.value)


def test_autocast_takes_what_it_converts(tiny):
    x = torch.rand(1, 3, 20, 20)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert tiny(x.bfloat16()).shape == tiny(x).shape
        with pytest.raises(ValueError, match=r"found torch\.float64"):
            tiny(x.double())


@pytest.mark.parametrize(
    ("arguments", "sizes", "sentence"),
    [
        ((), {"in_channel": 3}, "no size named in_channel: did you mean in_channels?"),
        ((), {"colour": 3}, "no size named colour: choose from in_channels, out_channels, dim,"),
        ((), {"dim": 7}, "dim must be even"),
        ((), {"dim": "wide"}, "dim: Input should be a valid integer"),
        ((), {"heads": (1, 2)}, "heads.2: Field required"),
        (("small",), {}, "found 'small' (str)"),
        ((3,), {}, "found 3 (int)"),
    ],
)
def test_a_network_that_cannot_be_made_is_said_in_one_sentence(arguments, sizes, sentence):
    with pytest.raises(InputError, match=re.escape(sentence)) as error:
        Swintormer(*arguments, **sizes)
    assert isinstance(error.value, ValueError)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "sizes", [{"dim": 7}, {"heads": (5, 2, 4, 8)}, {"window_size": 1}, {"in_channels": 2}, {"colour": 3}]
)
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(ValidationError):
        NetworkConfig(**sizes)


@pytest.mark.parametrize("shuffle", [2, -2])
@pytest.mark.parametrize("shape", [(3, 12, 6, 8), (1, 4, 2, 2)])
def test_a_shuffle_in_channels_last_is_torchs(shuffle, shape):
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last).requires_grad_()
    expected = F.pixel_shuffle(x, 2) if shuffle > 0 else F.pixel_unshuffle(x, 2)
    y = in_rows(x, shuffle)
    assert torch.equal(y, expected)
    assert y.is_contiguous(memory_format=torch.channels_last)
    grad = torch.randn_like(y)
    assert torch.equal(*(torch.autograd.grad(value, x, grad)[0] for value in (y, expected)))
