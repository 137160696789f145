"""Public weights of the release's prior, in both layouts, on random numbers."""

from __future__ import annotations

import json
import re
import sys
import types

import pytest
import torch
from priors import tiny
from safetensors.torch import save_file

from swintormer.errors import SwintormerError
from swintormer.prior.checkpoint import make_prior
from swintormer.prior.config import PRIORS, PriorConfig
from swintormer.prior.public import load_public_prior

pytestmark = pytest.mark.usefixtures("one_thread")
RELEASED = PRIORS["ldm-sr"]
# The same topology with few channels: four levels, attention at the deepest; three levels of the autoencoder.
SMALL = RELEASED.model_copy(
    update={
        "autoencoder": RELEASED.autoencoder
        | {"block_out_channels": [4, 8, 8], "norm_num_groups": 4, "num_vq_embeddings": 16, "layers_per_block": 1},
        "denoiser": RELEASED.denoiser
        | {"block_out_channels": [8, 8, 16, 16], "norm_num_groups": 4, "attention_head_dim": 4, "layers_per_block": 2},
        "sampling": RELEASED.sampling.model_copy(update={"piece": 16, "stride": 8, "steps": 2}),
    }
)
LEVELS, LAYERS = 4, 2  # of the U-Net


@pytest.fixture(scope="module")
def prior():
    torch.manual_seed(0)
    made = make_prior(SMALL).eval()
    with torch.no_grad():
        for parameter in made.parameters():  # norms too: two that are swapped must show
            parameter.normal_(std=0.2)
    return made


# ---- the names of CompVis, written down from their modules (openaimodel.py, model.py) and not from our table ---------


def foreign_denoiser(name: str) -> str:
    """`input_blocks` counts the first convolution, then each level's blocks and its way down; and so on back."""
    fixed = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
    fixed |= {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}
    resnet = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1"}
    resnet |= {"norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
    attention = {"group_norm": "norm", "to_out.0": "proj_out", "to_q": "qkv", "to_k": "qkv", "to_v": "qkv"}
    if name in fixed:
        return fixed[name]
    if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
        kind, index, rest = match.groups()
        return f"middle_block.{1 if kind == 'attentions' else 2 * int(index)}." + (resnet | attention)[rest]
    side, level, kind, index, rest = re.fullmatch(
        r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.*)", name
    ).groups()
    level, index = int(level), int(index)
    if kind == "downsamplers":
        return f"input_blocks.{(1 + LAYERS) * (1 + level)}.0.op"
    if kind == "upsamplers":  # after the attention, if the level has one: only the first does
        return f"output_blocks.{(1 + LAYERS) * (1 + level) - 1}.{2 if level == 0 else 1}.conv"
    block = 1 + level * (1 + LAYERS) + index if side == "down" else level * (1 + LAYERS) + index
    where = f"{'input' if side == 'down' else 'output'}_blocks.{block}"
    return f"{where}.0.{resnet[rest]}" if kind == "resnets" else f"{where}.1.{attention[rest]}"


def foreign_autoencoder(name: str) -> str:
    attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    half, _, rest = name.partition(".")
    if half not in ("encoder", "decoder"):
        return name
    rest = rest.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    if match := re.fullmatch(r"mid_block\.resnets\.(\d)\.(.*)", rest):
        return f"{half}.mid.block_{int(match[1]) + 1}.{match[2]}"
    if match := re.fullmatch(r"mid_block\.attentions\.0\.(.*)", rest):
        return f"{half}.mid.attn_1.{attention[match[1]]}"
    if match := re.fullmatch(r"(down|up)_blocks\.(\d)\.(.*)", rest):
        level = int(match[2]) if match[1] == "down" else 2 - int(match[2])
        inner = re.sub(r"resnets\.(\d)", r"block.\1", match[3])
        return f"{half}.{match[1]}.{level}." + re.sub(r"(down|up)samplers\.0", r"\1sample", inner)
    return f"{half}.{rest}"


def compvis(state: dict[str, torch.Tensor], head: int) -> dict[str, torch.Tensor]:
    """The state dict of a prior as CompVis would have saved it."""
    result, thirds = {}, {}
    for key, tensor in state.items():
        name, _, leaf = key.rpartition(".")
        part, _, inner = name.partition(".")
        if part == "autoencoder":
            foreign = f"first_stage_model.{foreign_autoencoder(inner)}.{leaf}"
            attention = ".attn_1." in foreign and "norm" not in foreign and leaf == "weight"
            result[foreign] = tensor[:, :, None, None] if attention else tensor  # 1x1 convolutions
            continue
        foreign = f"model.diffusion_model.{foreign_denoiser(inner)}.{leaf}"
        if ".qkv." in foreign:
            thirds.setdefault(foreign, {})[inner[-1]] = tensor
        elif foreign.endswith("proj_out.weight"):
            result[foreign] = tensor[:, :, None]  # a convolution over the positions, in a row
        else:
            assert foreign not in result
            result[foreign] = tensor
    for foreign, parts in thirds.items():
        heads = [x for h in range(len(parts["q"]) // head) for x in (parts[n][h * head :][:head] for n in "qkv")]
        whole = torch.cat(heads)
        result[foreign] = whole[:, :, None] if foreign.endswith("weight") else whole
    return result


def same(a, b) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# ---- the layouts -----------------------------------------------------------------------------------------------------


def test_the_released_sizes() -> None:
    with torch.device("meta"):
        prior = make_prior(RELEASED)
    assert sum(p.numel() for p in prior.denoiser.parameters()) == 113_622_563
    assert sum(p.numel() for p in prior.autoencoder.parameters()) == 55_322_782  # 55.3 M (diffusion.md)
    assert prior.autoencoder.quantize.embedding.weight.shape == (8192, 3)
    assert (prior.factor, prior.encoder_factor, prior.align) == (1, 4, 8)
    sampling = prior.sampling
    assert (sampling.steps, sampling.eta, sampling.piece, sampling.stride) == (20, 1.0, 128, 64)
    assert len(prior.grid(512, 512)) == 49


def test_released_sizes_in_the_layout_of_compvis() -> None:
    """On the meta device: every key has one place, and a few shapes are those of their model."""
    with torch.device("meta"):
        state = make_prior(RELEASED).state_dict()
    foreign = {name: tuple(tensor.shape) for name, tensor in compvis(state, head=32).items()}
    attentions = sum(name.endswith("to_q.weight") for name in state if name.startswith("denoiser"))
    assert attentions == 2 + 1 + 3
    assert len(foreign) == len(state) - 4 * attentions  # three weights in one, and three biases
    assert len(set(foreign)) == len(foreign)
    unet = "model.diffusion_model."
    assert foreign[f"{unet}input_blocks.0.0.weight"] == (160, 6, 3, 3)
    assert foreign[f"{unet}input_blocks.10.1.qkv.weight"] == (1920, 640, 1)
    assert foreign[f"{unet}middle_block.1.proj_out.weight"] == (640, 640, 1)
    assert foreign[f"{unet}output_blocks.2.2.conv.weight"] == (640, 640, 3, 3)
    assert foreign[f"{unet}output_blocks.11.0.skip_connection.weight"] == (160, 320, 1, 1)
    assert foreign[f"{unet}out.2.weight"] == (3, 160, 3, 3)
    assert foreign["first_stage_model.decoder.up.2.upsample.conv.weight"] == (512, 512, 3, 3)
    assert foreign["first_stage_model.encoder.down.1.block.0.nin_shortcut.weight"] == (256, 128, 1, 1)
    assert foreign["first_stage_model.encoder.mid.attn_1.q.weight"] == (512, 512, 1, 1)


def average_name(name: str) -> str:
    return "model_ema." + name.removeprefix("model.").replace(".", "")


def test_compvis_checkpoint_and_its_average(prior, tmp_path) -> None:
    """The average is what counts; what else a training program leaves behind does not disturb."""
    state = compvis(prior.state_dict(), head=4)
    raw = {name: torch.full_like(t, 9.0) if name.startswith("model.") else t for name, t in state.items()}
    averages = {average_name(name): t for name, t in state.items() if name.startswith("model.")}
    beside = {"betas": torch.rand(1000), "model_ema.decay": torch.tensor(0.9999)}
    beside |= {"model_ema.num_updates": torch.tensor(7, dtype=torch.int32), "first_stage_model.loss.w": torch.ones(2)}
    torch.save({"state_dict": raw | averages | beside, "global_step": 5}, tmp_path / "averaged.ckpt")
    assert same(load_public_prior(tmp_path / "averaged.ckpt", SMALL), prior)
    torch.save({"state_dict": state}, tmp_path / "plain.ckpt")
    loaded = load_public_prior(tmp_path / "plain.ckpt", SMALL)
    assert same(loaded, prior)
    picture = torch.rand(1, 3, 20, 28)
    assert torch.equal(loaded.sample(picture, seed=1), prior.sample(picture, seed=1))
    save_file({name: t.contiguous() for name, t in state.items()}, tmp_path / "plain.safetensors")
    assert same(load_public_prior(tmp_path / "plain.safetensors", SMALL), prior)


def test_lightning_leaves_a_class_behind(prior, tmp_path, monkeypatch) -> None:
    """Checkpoints of that time name a callback's class; it is neither imported nor run."""
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    contents = {"state_dict": compvis(prior.state_dict(), head=4), "callbacks": {module.ModelCheckpoint: {"best": 1.0}}}
    torch.save(contents, tmp_path / "last.ckpt")
    monkeypatch.undo()
    assert same(load_public_prior(tmp_path / "last.ckpt", SMALL), prior)


@pytest.mark.parametrize("old", [False, True], ids=["to_q", "query"])
def test_folder_of_diffusers(prior, tmp_path, old: bool) -> None:
    """The public folder was written when attention's layers had other names, and as a pickle."""
    for part, folder in (("autoencoder", "vqvae"), ("denoiser", "unet")):
        state = {n.removeprefix(f"{part}."): t for n, t in prior.state_dict().items() if n.startswith(part)}
        (tmp_path / folder).mkdir()
        kind = "VQModel" if part == "autoencoder" else "UNet2DModel"
        (tmp_path / folder / "config.json").write_text(json.dumps({"_class_name": kind}))
        if old:
            names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
            for new, before in names.items():
                state = {n.replace(f".{new}.", f".{before}."): t for n, t in state.items()}
            torch.save(state, tmp_path / folder / "diffusion_pytorch_model.bin")
        else:
            save_file(state, tmp_path / folder / "diffusion_pytorch_model.safetensors")
    assert same(load_public_prior(tmp_path, SMALL), prior)


def test_faults_are_named(prior, tmp_path) -> None:
    def fails(complaint: str, path=tmp_path / "x.ckpt", config: PriorConfig = SMALL) -> None:
        with pytest.raises(SwintormerError, match=complaint) as error:
            load_public_prior(path, config)
        assert "\n" not in str(error.value)

    fails("There is no checkpoint")
    state = compvis(prior.state_dict(), head=4)
    torch.save({"state_dict": {"a": torch.ones(2)}}, tmp_path / "x.ckpt")
    fails("holds neither first_stage_model")
    torch.save({"state_dict": dict(list(state.items())[:-1])}, tmp_path / "x.ckpt")
    fails("The prior misses the tensor")
    torch.save({"state_dict": state}, tmp_path / "x.ckpt")
    fails(
        "has the shape .* expected",
        config=SMALL.model_copy(update={"autoencoder": {**SMALL.autoencoder, "num_vq_embeddings": 17}}),
    )
    fails(
        "no multiple of 3 times 5",
        config=SMALL.model_copy(update={"denoiser": {**SMALL.denoiser, "attention_head_dim": 5}}),
    )
    fails("holds no vqvae/diffusion_pytorch_model", tmp_path)
    (tmp_path / "vqvae").mkdir()
    save_file({"a": torch.ones(2)}, tmp_path / "vqvae" / "diffusion_pytorch_model.safetensors")
    (tmp_path / "vqvae" / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    fails("is of a AutoencoderKL", tmp_path)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path) -> None:
    class Bad:
        def __reduce__(self):
            return (print, ("ran",))

    torch.save({"state_dict": {"first_stage_model.quant_conv.weight": Bad()}}, tmp_path / "bad.ckpt")
    with pytest.raises(SwintormerError, match="would run the code"):
        load_public_prior(tmp_path / "bad.ckpt", SMALL)


def test_a_prior_of_another_kind_is_no_ldm(tmp_path) -> None:
    state = {f"denoiser.{name}": t for name, t in tiny().denoiser.state_dict().items()}
    torch.save(state, tmp_path / "own.pth")
    with pytest.raises(SwintormerError, match="holds neither"):
        load_public_prior(tmp_path / "own.pth", SMALL)
