"""Public weights of the release's prior, on random numbers."""

from __future__ import annotations

import json

import pytest
import torch
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


@pytest.fixture(scope="module")
def prior():
    torch.manual_seed(0)
    made = make_prior(SMALL).eval()
    with torch.no_grad():
        for parameter in made.parameters():  # norms too: two that are swapped must show
            parameter.normal_(std=0.2)
    return made


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
    def fails(complaint: str, path=tmp_path / "model", config: PriorConfig = SMALL) -> None:
        with pytest.raises(SwintormerError, match=complaint) as error:
            load_public_prior(path, config)
        assert "\n" not in str(error.value)

    fails("There is no folder")
    for part, folder in (("autoencoder", "vqvae"), ("denoiser", "unet")):
        state = {n.removeprefix(f"{part}."): t for n, t in prior.state_dict().items() if n.startswith(part)}
        (tmp_path / "model" / folder).mkdir(parents=True)
        save_file(state, tmp_path / "model" / folder / "diffusion_pytorch_model.safetensors")
    wider = SMALL.model_copy(update={"autoencoder": {**SMALL.autoencoder, "num_vq_embeddings": 17}})
    fails("has the shape .* expected", config=wider)
    unet = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    save_file(dict(list(state.items())[:-1]), unet)
    fails("The prior lacks the tensor")
    fails("holds no vqvae/diffusion_pytorch_model", tmp_path)
    (tmp_path / "model" / "vqvae" / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    fails("is of a AutoencoderKL")


def test_a_folder_that_would_run_code_is_refused(tmp_path) -> None:
    class Bad:
        def __reduce__(self):
            return (print, ("ran",))

    (tmp_path / "vqvae").mkdir()
    torch.save({"quant_conv.weight": Bad()}, tmp_path / "vqvae" / "diffusion_pytorch_model.bin")
    with pytest.raises(SwintormerError, match="would run the code"):
        load_public_prior(tmp_path, SMALL)
