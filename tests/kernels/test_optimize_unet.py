"""optimize and restore on diffusers' networks and on the released one: outputs, copies, what is kept and why."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from ops import EPS, error
from small_blocks import small_model
from torch import nn

import swintormer_kernels as sk
from swintormer_kernels.patch import diffusers as swapped_unet

diffusers = pytest.importorskip("diffusers")
resnet_module = pytest.importorskip("diffusers.models.resnet")
upsampling_module = pytest.importorskip("diffusers.models.upsampling")
attention_module = pytest.importorskip("diffusers.models.attention_processor")

UNET = {
    "sample_size": 16,
    "in_channels": 6,
    "out_channels": 3,
    "block_out_channels": (16, 32),
    "norm_num_groups": 8,
    "layers_per_block": 1,
    "attention_head_dim": 8,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
CROSS = {
    **UNET,
    "in_channels": 4,
    "out_channels": 4,
    "cross_attention_dim": 12,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
AUTOENCODER = {
    "block_out_channels": (16, 32),
    "norm_num_groups": 8,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}


def randomised(model: nn.Module) -> nn.Module:
    """Weights under which no layer is the identity and nothing dies out."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3 if parameter.ndim == 1 else parameter[0].numel() ** -0.5)
    for module in model.modules():
        if isinstance(module, nn.GroupNorm | nn.LayerNorm):
            nn.init.normal_(module.weight, mean=1.0, std=0.2)
    return model.eval()


def unet(**options) -> nn.Module:
    return randomised(diffusers.UNet2DModel(**{**UNET, **options}))


def unet_inputs(model: nn.Module):
    return torch.randn(2, model.config.in_channels, 16, 16), torch.tensor([7, 400])


def image(model: nn.Module):
    return (torch.randn(2, 3, 16, 16),)


MODELS = {
    "plain": (unet, unet_inputs),
    "scale and shift": (lambda: unet(resnet_time_scale_shift="scale_shift"), unet_inputs),
    "resnets that resample": (lambda: unet(downsample_type="resnet", upsample_type="resnet"), unet_inputs),
    "other eps, two layers": (lambda: unet(norm_eps=1e-3, layers_per_block=2, dropout=0.1), unet_inputs),
    "condition": (
        lambda: randomised(diffusers.UNet2DConditionModel(**CROSS)),
        lambda _: (torch.randn(2, 4, 16, 16), torch.tensor(7), torch.randn(2, 5, 12)),
    ),
    "AutoencoderKL": (lambda: randomised(diffusers.AutoencoderKL(**AUTOENCODER)), image),
    "VQModel": (lambda: randomised(diffusers.VQModel(**AUTOENCODER, norm_type="group")), image),
    "VQModel, spatial": (
        lambda: randomised(diffusers.VQModel(**{**AUTOENCODER, "block_out_channels": (32, 64)}, norm_type="spatial")),
        image,
    ),
    "released": (small_model, lambda _: (torch.randn(2, 16, 8, 12),)),
}


@pytest.fixture(params=MODELS)
def model_and_inputs(request):
    make, inputs = MODELS[request.param]
    model = make()
    return model, inputs(model)


@pytest.fixture
def model():
    return unet()


def output(model, inputs):
    y = model(*inputs)
    return y if isinstance(y, torch.Tensor) else y.sample


def run(model, inputs):
    """Output, and the gradients of the first input and of every parameter that has one."""
    x = inputs[0].clone().requires_grad_()
    y = output(model, (x, *inputs[1:]))
    parameters = [p for p in model.parameters() if p.requires_grad]
    grads = torch.autograd.grad(y.square().sum(), [x, *parameters], allow_unused=True)
    return [y.detach(), *(grad for grad in grads if grad is not None)]


def double(inputs):
    return tuple(x.double() if x.is_floating_point() else x for x in inputs)


# ---- a swapped model is the same model -------------------------------------------------------------------------------


def test_outputs_and_gradients(model_and_inputs):
    """Each as close to float64 as the untouched model's, within a factor 2 and the rounding of the largest.

    The gradient of a bias of keys is 0 in exact arithmetic (softmax ignores it), and its rounding errors have no
    relation to each other: they are small beside the largest gradient, which they are sums of the terms of.
    """
    model, inputs = model_and_inputs
    truth = run(copy.deepcopy(model).double(), double(inputs))
    before = run(model, inputs)
    report = sk.optimize(model)
    assert report.swapped
    after = run(model, inputs)
    largest = max(t.norm() for t in truth[1:])
    zero = [t.norm() <= EPS**2 * largest for t in truth]
    worst = max(error(b, t) for b, t, none in zip(before, truth, zero, strict=True) if not none)
    for value, true, none in zip(after, truth, zero, strict=True):
        if none:
            assert value.norm() <= EPS * largest
        else:
            assert error(value, true) <= 2 * worst
    sk.restore(model)
    for value, plain in zip(run(model, inputs), before, strict=True):
        assert torch.equal(value, plain)


def test_nothing_else_changes_and_restore_is_exact(model_and_inputs):
    model, _ = model_and_inputs
    inside = [(type(part), dict(vars(part))) for part in model.modules()]
    parts, parameters, keys = list(model.modules()), list(model.named_parameters()), list(model.state_dict())
    buffers = [name for name, _ in model.named_buffers()]
    modes, random_state = [part.training for part in parts], torch.get_rng_state()
    first = sk.optimize(model)
    classes = [type(part) for part in parts]
    again = sk.optimize(model)
    assert [type(part) for part in parts] == classes, "twice is once"
    assert not again.swapped
    assert again.swapped_before.keys() == first.swapped.keys()
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(a is b for a, b in zip(model.modules(), parts, strict=True))
    assert all(a[0] == b[0] and a[1] is b[1] for a, b in zip(model.named_parameters(), parameters, strict=True))
    assert list(model.state_dict()) == keys
    assert [part.training for part in parts] == modes
    assert sk.restore(model)
    assert sk.restore(model) == []
    assert [(type(part), dict(vars(part))) for part in model.modules()] == inside
    assert [name for name, _ in model.named_buffers()] == buffers


def test_the_ops_really_compute_it(model, monkeypatch):
    calls = []
    sk.optimize(model)
    for name in ("norm_silu_conv3x3", "group_norm_silu", "upsample_conv3x3"):
        op = getattr(swapped_unet, name)
        monkeypatch.setattr(swapped_unet, name, lambda *args, op=op, name=name: calls.append(name) or op(*args))
    model(*unet_inputs(model))
    blocks = sum(isinstance(part, swapped_unet.SwappedResnetBlock) for part in model.modules())
    assert blocks == 8
    assert calls.count("norm_silu_conv3x3") + calls.count("group_norm_silu") == 2 * blocks + 1
    assert calls.count("upsample_conv3x3") == 1


def test_without_gradients_a_res_block_is_one_op(monkeypatch, extension):
    model = unet(block_out_channels=(32, 64), sample_size=32)
    inputs = torch.randn(1, 6, 32, 32), torch.tensor(7)
    with torch.no_grad():
        truth, plain = copy.deepcopy(model).double()(*double(inputs)).sample, model(*inputs).sample
        sk.optimize(model)
        outs, op = [], swapped_unet.fused_res_block
        monkeypatch.setattr(swapped_unet, "fused_res_block", lambda *args: outs.append(op(*args)) or outs[-1])
        assert error(model(*inputs).sample, truth) <= 2 * error(plain, truth)
        assert len(outs) == 8
        assert all(out is not None for out in outs)
        with sk.use_backend("reference"):
            model(*inputs)
        assert len(outs) == 8, "on another backend the halves choose for themselves"
    model(*inputs)
    assert outs[8:] == [None] * 8, "with gradients they do, too"


@pytest.mark.parametrize("norm", ["default", "scale_shift"])
def test_the_report_names_the_op_that_serves_a_resnet_block(norm, extension):
    model = unet(block_out_channels=(32, 64), sample_size=32, resnet_time_scale_shift=norm)
    name = "down_blocks.0.resnets.0"
    with torch.no_grad():
        assert sk.optimize(model).swapped[name].explanation.op == "res_block"
        with sk.use_backend("reference"):
            assert sk.optimize(model).swapped_before[name].explanation.op == "norm_silu_conv3x3"
    assert sk.optimize(model).swapped_before[name].explanation.op == "norm_silu_conv3x3", "with gradients"


def test_verify_takes_all_arguments_of_a_network(model):
    assert sk.optimize(model, verify=unet_inputs(model)).difference <= 2 * EPS * (9 * 64) ** 0.5 * 16


ATTENTIONS = {
    "plain": {},
    "bias": {"bias": True, "dim_head": 16},
    "tokens": {"residual_connection": True},
    "no norm": {"norm_num_groups": None},
    "scaled": {"rescale_output_factor": 2.0, "residual_connection": True},
}


@pytest.mark.parametrize("name", ATTENTIONS)
@pytest.mark.parametrize("channels", [32, 512])
def test_attention_with_and_without_the_fused_norm(name, channels, monkeypatch, extension):
    """From 512 channels on norm and projection are one op, if no gradient is wanted."""
    options = {"heads": 2, "dim_head": 8, "norm_num_groups": 4, **ATTENTIONS[name]}
    part = randomised(attention_module.Attention(channels, **options))
    x = torch.randn(2, 30, channels) if name == "tokens" else torch.randn(2, channels, 6, 5)
    calls, op = [], swapped_unet.norm_projection
    monkeypatch.setattr(swapped_unet, "norm_projection", lambda *args: calls.append(args) or op(*args))
    with torch.no_grad():
        truth, plain = copy.deepcopy(part).double()(x.double()), part(x)
        assert sk.optimize(part).swapped
        assert error(part(x), truth) <= 2 * error(plain, truth) + EPS
    fused = channels == 512 and name != "no norm"
    assert len(calls) == fused
    assert error(part(x), truth) <= 2 * error(plain, truth) + EPS
    assert len(calls) == fused


def test_a_swapped_network_saves_under_its_own_name(model, tmp_path):
    sk.optimize(model)
    model.save_pretrained(tmp_path)
    again = diffusers.UNet2DModel.from_pretrained(tmp_path).eval()
    inputs = unet_inputs(model)
    with torch.no_grad():
        sk.restore(model)
        assert torch.equal(again(*inputs).sample, model(*inputs).sample)


def test_an_end_without_a_3x3_convolution(model, monkeypatch):
    inputs = unet_inputs(model)
    model.conv_out = randomised(nn.Conv2d(16, 3, 1))
    with torch.no_grad():
        truth, plain = copy.deepcopy(model).double()(*double(inputs)).sample, model(*inputs).sample
        sk.optimize(model)
        calls = []
        op = swapped_unet.group_norm_silu
        monkeypatch.setattr(swapped_unet, "group_norm_silu", lambda *args: calls.append(args) or op(*args))
        assert error(model(*inputs).sample, truth) <= 2 * error(plain, truth)
    assert len(calls) == 1


def test_report_names_sizes_and_backends(model):
    text = str(sk.optimize(model))
    assert "ResNet block, 16 to 32 channels -> " in text
    assert "attention, 32 channels, 4 heads -> scaled_dot_product_attention" in text
    assert "conv_norm_out  norm, SiLU and convolution, 16 channels -> " in text


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda model: pickle.loads(pickle.dumps(model)), "torch.save": saved}


@pytest.mark.parametrize("kind", ["plain", "released"])
@pytest.mark.parametrize("how", COPIES)
def test_copies(how, kind):
    make, inputs = MODELS[kind]
    model = make()
    inputs, classes = inputs(model), [type(part) for part in model.modules()]
    sk.optimize(model)
    copied = COPIES[how](model)
    with torch.no_grad():
        expected = output(model, inputs)
        assert torch.equal(output(copied, inputs), expected)
        for parameter in copied.parameters():
            parameter.zero_()
        assert torch.equal(output(model, inputs), expected), "the copy must own its parameters"
    assert sk.restore(copied)
    assert [type(part) for part in copied.modules()] == classes


def test_weights_changed_afterwards_are_seen(model):
    inputs = unet_inputs(model)
    sk.optimize(model)
    with torch.no_grad():
        model(*inputs)
        for parameter in model.parameters():
            parameter.mul_(1.1)
        changed = model(*inputs).sample
        sk.restore(model)
        plain = model(*inputs).sample
    # Two float32 orders of the same sums, through 8 blocks of two convolutions over at most 9 * 64 terms.
    assert (changed - plain).norm() <= 2 * EPS * (9 * 64) ** 0.5 * 16 * plain.norm()


def test_compiled_after_the_swap(model):
    torch._dynamo.reset()
    inputs = unet_inputs(model)
    sk.optimize(model)
    with torch.no_grad():
        expected = model(*inputs).sample
        compiled = torch.compile(model, backend="aot_eager")(*inputs).sample
    assert (compiled - expected).norm() <= 2 * EPS * (9 * 64) ** 0.5 * 16 * expected.norm()


# ---- calls that are not the op's -------------------------------------------------------------------------------------


def test_dropout_while_training_goes_to_the_blocks_own_forward():
    model = unet(dropout=0.5)
    inputs = unet_inputs(model)
    sk.optimize(model)
    model.train()
    torch.manual_seed(1)
    dropped = model(*inputs).sample
    sk.restore(model)
    torch.manual_seed(1)
    # The norm at the end has no dropout and stays swapped.
    assert error(dropped, model(*inputs).sample.double()) <= 64 * EPS


def test_a_block_that_drops_while_training_is_kept():
    report = sk.optimize(unet(dropout=0.5).train())
    assert "it drops values while training (p = 0.5)" in report.kept["down_blocks.0.resnets.0"]


def test_an_embedding_without_a_projection_is_added():
    part = resnet(temb_channels=None)
    x, temb = torch.randn(2, 16, 6, 5), torch.randn(2, 16, 1, 1)
    expected = part(x, temb)
    assert sk.optimize(part).swapped
    assert torch.equal(part(x, temb), expected)
    assert error(part(x, None), part(x, 0 * temb).double()) <= 64 * EPS


class Double(nn.Module):
    def forward(self, *args):
        return 2 * args[0]


def put_hook(model):
    model.down_blocks[0].resnets[0].conv1.register_forward_hook(lambda module, args, y: 2 * y)
    model.mid_block.attentions[0].to_v.register_forward_hook(lambda module, args, y: 2 * y)
    model.conv_norm_out.register_forward_hook(lambda module, args, y: 2 * y)


def put_adapter(model):
    model.down_blocks[0].resnets[0].conv1 = nn.Sequential(model.down_blocks[0].resnets[0].conv1, Double())
    model.mid_block.attentions[0].to_q = nn.Sequential(model.mid_block.attentions[0].to_q, Double())


class Twice:
    def __call__(self, attn, hidden_states, **_):
        return 2 * hidden_states


class AttnProcessor(Twice):
    """Of diffusers by its name only."""


def put_processor(model):
    model.mid_block.attentions[0].set_processor(Twice())


@pytest.mark.parametrize("change", [put_hook, put_adapter, put_processor])
def test_inner_parts_changed_after_the_swap_are_honoured(model, change):
    inputs = unet_inputs(model)
    plain = copy.deepcopy(model)
    change(plain)
    sk.optimize(model)
    change(model)
    with torch.no_grad():
        truth = plain(*inputs).sample
        assert error(model(*inputs).sample, truth.double()) <= 2 * EPS * (9 * 64) ** 0.5 * 16


# ---- near relatives stay as they are ---------------------------------------------------------------------------------


def resnet(**options):
    options = {"in_channels": 16, "temb_channels": 8, "groups": 4, **options}
    return randomised(resnet_module.ResnetBlock2D(**options))


def upsampling(**options):
    return randomised(upsampling_module.Upsample2D(16, use_conv=True, **options))


def attention(**options):
    return randomised(attention_module.Attention(32, heads=2, dim_head=8, **{"norm_num_groups": 4, **options}))


class OtherOrder(resnet_module.ResnetBlock2D):
    def forward(self, input_tensor, temb):
        return super().forward(torch.relu(input_tensor), temb)


def other_order():
    return randomised(OtherOrder(in_channels=16, temb_channels=8, groups=4))


def with_part(block, name, part):
    setattr(block, name, part)
    return block


RELATIVES = {
    "up": (lambda: resnet(up=True), "changes the resolution between norm and convolution (upsample)"),
    "down": (lambda: resnet(down=True), "(downsample)"),
    "mish": (lambda: resnet(non_linearity="mish"), "nonlinearity is a Mish, not a plain SiLU"),
    "another norm": (lambda: with_part(resnet(), "norm1", nn.BatchNorm2d(16)), "norm1 is a BatchNorm2d"),
    "stride": (lambda: with_part(resnet(), "conv1", nn.Conv2d(16, 16, 3, 2, 1)), "conv1 has stride (2, 2)"),
    "reflected": (
        lambda: with_part(resnet(), "conv2", nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect")),
        "conv2 has padding_mode reflect",
    ),
    "more": (lambda: with_part(resnet(), "adapter", nn.Linear(2, 2)), "its part adapter (Linear) has no place in it"),
    "another class": (
        lambda: resnet_module.ResnetBlockCondNorm2D(in_channels=16, temb_channels=8, groups=4),
        ".ResnetBlockCondNorm2D, which may compute anything",
    ),
    "another order": (other_order, ".OtherOrder, which may compute anything"),
    "cross": (lambda: attention(cross_attention_dim=12), "it is cross-attention"),
    "query norm": (lambda: attention(qk_norm="layer_norm"), "its part norm_q (LayerNorm) has no place in it"),
    "spatial norm": (lambda: attention(spatial_norm_dim=3), "its part spatial_norm (SpatialNorm) has no place in it"),
    "transposed": (lambda: upsampling(use_conv_transpose=True), "conv is a ConvTranspose2d"),
    "norm before": (lambda: upsampling(norm_type="rms_norm"), "its part norm (RMSNorm) has no place in it"),
    "same size": (lambda: upsampling(interpolate=False), "it does not change the resolution"),
    "processor": (lambda: attention(processor=Twice()), ".Twice, which may compute anything"),
    "named alike": (lambda: attention(processor=AttnProcessor()), ".AttnProcessor, which may"),
    "half the keys": (lambda: attention(kv_heads=1), "to_q, to_k and to_v must be alike"),
}


@pytest.mark.parametrize("name", RELATIVES)
def test_near_relatives_are_kept_with_the_reason(name):
    make, reason = RELATIVES[name]
    model = nn.Sequential(make())
    state = [(type(part), dict(vars(part))) for part in model.modules()]
    report = sk.optimize(model)
    assert not report.swapped
    assert reason in report.kept["0"], report.kept
    assert [(type(part), dict(vars(part))) for part in model.modules()] == state


def test_the_scale_factor_of_a_block():
    part, inputs = resnet(output_scale_factor=2.0**0.5, out_channels=24), (torch.randn(2, 16, 6, 5), torch.randn(2, 8))
    with torch.no_grad():
        truth, plain = copy.deepcopy(part).double()(*double(inputs)), part(*inputs)
        assert sk.optimize(part).swapped
        assert error(part(*inputs), truth) <= 2 * error(plain, truth) + EPS


def test_an_upsampling_to_a_size_goes_to_its_own_forward():
    part, x = upsampling(), torch.randn(1, 16, 3, 5)
    expected = part(x, (7, 11))
    assert sk.optimize(part).swapped
    assert torch.equal(part(x, (7, 11)), expected)
    assert part(x).shape == (1, 16, 6, 10)


def test_hooks_at_the_time_of_the_swap(model):
    put_hook(model)
    model.up_blocks[0].upsamplers[0].conv.register_forward_pre_hook(lambda module, args: None)
    report = sk.optimize(model)
    assert "a hook hangs on conv1" in report.kept["down_blocks.0.resnets.0"]
    assert "a hook hangs on to_v" in report.kept["mid_block.attentions.0"]
    assert "a hook hangs on conv" in report.kept["up_blocks.0.upsamplers.0"]
    assert "a hook hangs on conv_norm_out" in report.kept[""]


def test_the_kernels_need_no_diffusers():
    import subprocess
    import sys

    script = "import sys, swintormer_kernels; sys.exit('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
