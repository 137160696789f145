"""Checkpoints: what goes in comes out, foreign files are understood by their shapes, and everything else is refused."""

from __future__ import annotations

import errno
import os
import pickle
import random
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from swintormer.checkpoint import checkpoint as weights
from swintormer.checkpoint.checkpoint import (
    checkpoint_info,
    default_weights,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from swintormer.checkpoint.infer import DEFAULT_WINDOW, WINDOW, check_shapes, config_from_shapes
from swintormer.errors import SwintormerError
from swintormer.images import files
from swintormer.model.config import PRESETS, NetworkConfig
from swintormer.model.network import Swintormer

TINY = NetworkConfig(
    in_channels=3, dim=8, num_blocks=(1, 2, 1, 1), num_refinement_blocks=1, heads=(1, 2, 2, 4), window_size=4
)


@pytest.fixture(scope="module")
def net() -> Swintormer:
    torch.manual_seed(1)
    return Swintormer(TINY).eval()


def shapes_of(config: NetworkConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in Swintormer(config).state_dict().items()}


def assert_same(found: Swintormer, expected: Swintormer) -> None:
    assert found.config == expected.config
    state = expected.state_dict()
    assert found.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in found.state_dict().items())


# --- our own files -------------------------------------------------------------------------------------------------


def test_round_trip(net: Swintormer, tmp_path: Path) -> None:
    path = tmp_path / "made" / "here.safetensors"
    save_checkpoint(net, path, training_tile=128, card={"data": "dead leaves", "steps": "3"})
    found = read_checkpoint(path)
    assert_same(found.net, net)
    assert_same(load_checkpoint(path), net)
    assert (found.training_tile, found.prior, found.describes_itself) == (128, None, True)
    assert found.card == {"data": "dead leaves", "steps": "3"}
    assert not found.net.training
    info = checkpoint_info(path)
    assert (info.config, info.training_tile, info.describes_itself) == (TINY, 128, True)
    assert info.card == {"data": "dead leaves", "steps": "3"}
    assert info.parameters == sum(p.numel() for p in net.parameters())
    assert os.listdir(path.parent) == ["here.safetensors"]


def test_what_a_file_says_of_itself_survives_loading_and_saving_again(net: Swintormer, tmp_path: Path) -> None:
    save_checkpoint(net, tmp_path / "a", training_tile=96, card="Trained for a test.")
    found = read_checkpoint(tmp_path / "a")
    save_checkpoint(found, tmp_path / "b")
    save_checkpoint(found, tmp_path / "c", card={"summary": "Another."}, training_tile=64)
    save_checkpoint(found, tmp_path / "d", card="")
    save_checkpoint(found.net, tmp_path / "e")
    tiles = [checkpoint_info(tmp_path / name).training_tile for name in "abcde"]
    assert tiles == [96, 96, 64, 96, None]
    cards = [checkpoint_info(tmp_path / name).card.get("summary") for name in "abcde"]
    assert cards == ["Trained for a test.", "Trained for a test.", "Another.", None, None]


def test_a_compiled_network_saves_as_the_network(net: Swintormer, tmp_path: Path) -> None:
    save_checkpoint(torch.compile(net), tmp_path / "a")  # type: ignore[arg-type]
    assert_same(load_checkpoint(tmp_path / "a"), net)


def test_what_stood_there_stays_when_writing_fails(
    net: Swintormer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(b"before")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(SwintormerError, match="No space left"):
        save_checkpoint(net, path)
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["net.safetensors"]


def test_training_tile_must_be_positive(net: Swintormer, tmp_path: Path) -> None:
    with pytest.raises(SwintormerError, match="training tile"):
        save_checkpoint(net, tmp_path / "a", training_tile=0)
    assert not list(tmp_path.iterdir())


def test_a_program_that_drops_the_metadata_still_finds_the_window(net: Swintormer, tmp_path: Path) -> None:
    save_checkpoint(net, tmp_path / "a")
    bare = load_file(tmp_path / "a")
    save_file(bare, tmp_path / "bare")
    found = read_checkpoint(tmp_path / "bare")
    assert_same(found.net, net)
    assert found.describes_itself
    with pytest.raises(SwintormerError, match=r"says that its window is 4.*not 16"):
        load_checkpoint(tmp_path / "bare", window_size=16)
    for wrong, sentence in ((4.5, "not one whole number"), (1.0, "window_size must be at least 2")):
        save_file({**bare, WINDOW: torch.tensor([wrong])}, tmp_path / "wrong")
        with pytest.raises(SwintormerError, match=sentence):
            load_checkpoint(tmp_path / "wrong")
    with safe_open(tmp_path / "a", "pt") as file:
        save_file(
            {**bare, WINDOW: torch.tensor([8.0])},
            tmp_path / "wrong",
            {"swintormer.config": file.metadata()["swintormer.config"]},
        )
    with pytest.raises(SwintormerError, match="metadata names the window 4 and its tensors 8"):
        load_checkpoint(tmp_path / "wrong")


def test_a_network_of_the_released_window_has_the_released_keys(tmp_path: Path) -> None:
    net = Swintormer(TINY, window_size=DEFAULT_WINDOW)
    save_checkpoint(net, tmp_path / "a")
    net.load_state_dict(load_file(tmp_path / "a"), strict=True)


@pytest.mark.parametrize(("name", "preset"), [("small", "small"), ("strong", "small"), ("small-prior", "small-prior")])
def test_the_shipped_weights_name_their_window(name: str, preset: str) -> None:
    with safe_open(default_weights(name), "pt") as file:
        assert file.get_tensor(WINDOW).item() == PRESETS[preset].window_size
    assert checkpoint_info(default_weights(name)).config == PRESETS[preset]


# --- foreign files -------------------------------------------------------------------------------------------------


def with_averages(state: dict[str, Tensor]) -> dict[str, object]:
    return {"params": {name: tensor / 2 for name, tensor in state.items()}, "params_ema": state}


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"params": s}, with_averages])
@pytest.mark.parametrize("legacy", [False, True])
def test_released_layout(net: Swintormer, tmp_path: Path, wrap, legacy: bool) -> None:
    path = tmp_path / "net_g.pth"
    torch.save(wrap(net.state_dict()), path, _use_new_zipfile_serialization=not legacy)
    found = read_checkpoint(path, window_size=4)
    assert_same(found.net, net)
    assert found.training_tile is None
    assert not found.describes_itself
    assert checkpoint_info(path, window_size=4).config == TINY
    info = checkpoint_info(path)  # where neither the file nor the caller says, the window is the released one
    assert info.config == read_checkpoint(path).net.config == TINY.model_copy(update={"window_size": 16})
    assert not info.describes_itself


def test_window_that_contradicts_the_file_is_refused(net: Swintormer, tmp_path: Path) -> None:
    save_checkpoint(net, tmp_path / "a")
    assert read_checkpoint(tmp_path / "a").describes_itself is True
    assert_same(load_checkpoint(tmp_path / "a", window_size=4), net)
    for read in (load_checkpoint, checkpoint_info):
        with pytest.raises(SwintormerError, match=r"says that its window is 4.*not 8") as error:
            read(tmp_path / "a", window_size=8)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("window_size", [0, 1, 257])
def test_window_out_of_range_is_refused(net: Swintormer, tmp_path: Path, window_size: int) -> None:
    torch.save(net.state_dict(), tmp_path / "a.pth")
    with pytest.raises(SwintormerError, match="window_size"):
        load_checkpoint(tmp_path / "a.pth", window_size=window_size)


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: "module." + name,
        lambda name: "_orig_mod.module." + name,
        lambda name: name.replace(".attn.", "._checkpoint_wrapped_module.attn."),
        lambda name: "module." + name.replace("encoder_level1.0.", "encoder_level1.0._orig_mod."),
    ],
)
def test_prefixes_of_wrappers_are_stripped_wherever_they_stand(net: Swintormer, tmp_path: Path, rename) -> None:
    torch.save({rename(name): tensor for name, tensor in net.state_dict().items()}, tmp_path / "a.pth")
    assert_same(load_checkpoint(tmp_path / "a.pth", window_size=4), net)


def test_safetensors_without_metadata(net: Swintormer, tmp_path: Path) -> None:
    save_file({f"module.{name}": tensor for name, tensor in net.state_dict().items()}, tmp_path / "a")
    assert_same(load_checkpoint(tmp_path / "a", window_size=4), net)
    assert checkpoint_info(tmp_path / "a").config == TINY.model_copy(update={"window_size": 16})


def test_half_precision_is_loaded_as_float32(net: Swintormer, tmp_path: Path) -> None:
    save_file({name: tensor.bfloat16() for name, tensor in net.state_dict().items()}, tmp_path / "a")
    loaded = load_checkpoint(tmp_path / "a")
    assert all(tensor.dtype == torch.float32 for tensor in loaded.state_dict().values())


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_read_off_their_shapes(name: str) -> None:
    """The released 127, 255, 510, 1021 hidden channels give 2.66 back."""
    config = PRESETS[name]
    assert config_from_shapes(shapes_of(config), config.window_size) == config


@settings(max_examples=25, deadline=None)
@given(
    in_channels=st.sampled_from([3, 4, 6]),
    half=st.integers(1, 24),
    heads=st.tuples(*[st.integers(1, 4)] * 4),
    num_blocks=st.tuples(*[st.integers(1, 2)] * 4),
    refinement=st.integers(1, 2),
    expansion=st.floats(0.51, 5),
    bias=st.booleans(),
)
def test_every_size_is_read_off_the_shapes(in_channels, half, heads, num_blocks, refinement, expansion, bias) -> None:
    dim = 2 * half
    config = NetworkConfig(
        in_channels=in_channels,
        dim=dim,
        heads=tuple(h if half * 2**level % h == 0 else 1 for level, h in enumerate(heads)),
        num_blocks=num_blocks,
        num_refinement_blocks=refinement,
        ffn_expansion=expansion,
        bias=bias,
        window_size=2,
    )
    shapes = shapes_of(config)
    found = config_from_shapes(shapes, window_size=2)
    check_shapes(shapes, found)
    for multiple in (1, 2, 4, 8):
        assert int(dim * multiple * found.ffn_expansion) == int(dim * multiple * expansion)
    assert found.model_copy(update={"ffn_expansion": expansion}) == config


# --- everything else -----------------------------------------------------------------------------------------------


class Evil:
    """Unpickled by the ordinary unpickler it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def _without(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state.items() if key != name}


def refused(path: Path, *named: str) -> None:
    """Both readers refuse it with the same single sentence, which names the file and `named`."""
    messages = []
    for read in (load_checkpoint, checkpoint_info):
        with pytest.raises(SwintormerError) as error:
            read(path)
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    assert "\n" not in messages[0]
    assert messages[0].endswith(".")
    for text in (str(path), *named):
        assert text in messages[0]


@pytest.mark.parametrize("wrap", [lambda e: e, lambda e: {"params": {"a": e}}, lambda e: {"params": {}, "opt": e}])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_wants_code_is_refused_and_runs_none(tmp_path: Path, wrap, legacy: bool) -> None:
    made = tmp_path / "made"
    torch.save(wrap(Evil(made)), tmp_path / "evil.pth", _use_new_zipfile_serialization=not legacy)
    refused(tmp_path / "evil.pth", "code")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Evil(made)))
    refused(tmp_path / "bare.pth")
    assert not made.exists()


def test_no_file(tmp_path: Path) -> None:
    refused(tmp_path / "absent.safetensors", "no checkpoint")
    refused(tmp_path, "irectory")


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "empty"),
        (b"weights\n", "expected safetensors"),
        (b"<html>not found</html>", "expected safetensors"),
        (b"<!------{ any brace at the ninth byte", "expected safetensors"),
        (b"\x89PNG\r\n\x1a\n", "expected safetensors"),
        (b"\x80\x02nonsense", "expected safetensors"),
        (b"PK\x03\x04 an archive of something else", "PyTorch file"),
        (struct.pack("<Q", 10_000) + b'{"a": 1}', "cut off"),
        (struct.pack("<Q", 8) + b'{"a": 1}', "damaged"),
    ],
)
def test_no_checkpoint(tmp_path: Path, name: str, content: bytes, named: str) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, named)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98, 0.9999])
@pytest.mark.parametrize("kind", ["ours", "zip", "legacy"])
def test_truncated(net: Swintormer, tmp_path: Path, kind: str, share: float) -> None:
    path = tmp_path / "net"
    if kind == "ours":
        save_checkpoint(net, path)
    else:
        torch.save(net.state_dict(), path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refused(path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda s: _without(s, "output.0.weight"), "'output.0.weight'"),
        (lambda s: _without(s, "patch_embed.proj2.weight"), "'patch_embed.proj2.weight'"),
        (lambda s: _without(s, "latent.0.attn.qkv.weight"), "'latent.0.attn.qkv.weight'"),
        (lambda s: {name: t for name, t in s.items() if "latent" not in name}, "'latent.0"),
        (lambda s: s | {"extra.weight": torch.zeros(1)}, "'extra.weight'"),
        (lambda s: s | {"skip_conv.weight": torch.zeros(3, 3, 1, 1)}, "(3, 3, 1, 1)"),
        (lambda s: s | {"output.0.weight": torch.zeros(12)}, "(12,)"),
        (lambda s: s | {"latent.0.attn.logit_scale": torch.zeros(7, 1, 1)}, "heads"),
        (lambda s: s | {"latent.0.ffn.project_out.weight": torch.zeros(64, 9, 1, 1)}, "feed-forward"),
        (lambda s: s | {"latent.999999999.norm1.body.weight": torch.zeros(1)}, "blocks"),
        (lambda s: s | {"step": torch.tensor(3)}, "int64"),
        (lambda s: s | {"module.output.0.weight": s["output.0.weight"].clone()}, "twice"),
        (lambda s: {"conv.weight": torch.zeros(2, 2)}, "'conv.weight'"),
        (lambda s: {}, "no tensor"),
    ],
)
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_tensors_of_no_network(net: Swintormer, tmp_path: Path, change, named: str, kind: str) -> None:
    state = change(dict(net.state_dict()))
    path = tmp_path / f"a.{kind}"
    save_file(state, path) if kind == "safetensors" else torch.save(state, path)
    refused(path, named)


@pytest.mark.parametrize(
    ("found", "named"),
    [([1, 2], "list"), (torch.zeros(3), "Tensor"), ({"params": {"a": "text"}}, "str"), ({"epoch": 3}, "int")],
)
def test_pickles_of_something_else(tmp_path: Path, found: object, named: str) -> None:
    torch.save(found, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", named)


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ({"swintormer.config": "{}"}, "encoder_level1"),  # the released size, which these tensors are not
        ({"swintormer.config": "no json"}, "cannot be built"),
        ({"swintormer.config": '{"dim": 8, "flux": 2}'}, "flux"),
        ({"swintormer.config": '{"num_blocks": [1000000000, 1, 1, 1]}'}, "blocks"),
        ({"swintormer.config": TINY.model_dump_json(), "swintormer.training_tile": "large"}, "large"),
        ({"swintormer.config": TINY.model_dump_json(), "swintormer.training_tile": "-1"}, "-1"),
        ({"swintormer.config": TINY.model_dump_json(), "swintormer.card": "[]"}, "card"),
        ({"swintormer.config": TINY.model_dump_json(), "swintormer.card": "{"}, "not a Swintormer"),
        ({"swintormer.config": TINY.model_dump_json(), "swintormer.card": "[" * 200_000}, "nested too deeply"),
        ({"swintormer.config": "[" * 200_000}, "cannot be built"),
        *(
            ({"swintormer.config": TINY.model_dump_json()[:-1] + f', "{name}": {value}}}'}, name)
            for name, value in [
                ("window_size", "1000000"),
                ("window_size", "3000000000"),
                ("window_size", "257"),
                ("ffn_expansion", "1e400"),
                ("ffn_expansion", "1e300"),
                ("ffn_expansion", "NaN"),
                ("dim", "1e30"),
                ("dim", str(2**40)),
                ("in_channels", str(2**40)),
                ("out_channels", str(2**62)),
                ("heads", f"[1, 2, 2, {2**40}]"),
                ("num_refinement_blocks", str(2**40)),
            ]
        ),
    ],
    ids=lambda value: str(value)[:80],
)
def test_metadata_that_does_not_fit(net: Swintormer, tmp_path: Path, metadata: dict, named: str) -> None:
    save_file(net.state_dict(), tmp_path / "a", metadata)
    refused(tmp_path / "a", named)


def test_weights_that_are_not_finite(net: Swintormer, tmp_path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state["skip_conv.weight"][0] = torch.nan
    torch.save(state, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", "not finite in 'skip_conv.weight'")


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda t: t.to_sparse(), "sparse"),
        (lambda t: torch.nested.nested_tensor([t, t]), "nested"),
        (lambda t: t.to("meta"), "meta"),
        (lambda t: t.to(torch.float8_e4m3fn), "float8_e4m3fn"),
        (lambda t: t.to(torch.complex64), "complex64"),
        (lambda t: torch.zeros(1).as_strided((2**40, 2**20), (0, 0)), "more elements than it stores"),
    ],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_tensors_that_are_no_plain_weights(net: Swintormer, tmp_path: Path, spoil, named: str) -> None:
    name = "skip_conv.weight"
    torch.save(net.state_dict() | {name: spoil(net.state_dict()[name])}, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", repr(name), named)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_safetensors_of_eight_bits(net: Swintormer, tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({name: tensor.to(dtype) for name, tensor in net.state_dict().items()}, tmp_path / "a")
    refused(tmp_path / "a", str(dtype))


def test_shipped_weights_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "__file__", str(tmp_path / "checkpoint" / "checkpoint.py"))
    with pytest.raises(SwintormerError, match="--weights"):
        default_weights()
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "strong.safetensors").write_bytes(b"x")
    assert default_weights() == tmp_path / "assets" / "strong.safetensors"
    with pytest.raises(SwintormerError, match=r"small-prior\.safetensors.*--weights"):
        default_weights("small-prior")


@pytest.mark.parametrize("seed", range(4))
def test_a_changed_value_is_noticed(net: Swintormer, tmp_path: Path, seed: int) -> None:
    """safetensors has no checksum of its own: a flipped bit would give other pictures in silence."""
    path = tmp_path / "net.safetensors"
    save_checkpoint(net, path)
    content = bytearray(path.read_bytes())
    values = 8 + int.from_bytes(content[:8], "little")
    place = values + random.Random(seed).randrange(len(content) - values)
    content[place] ^= 1  # the lowest bit of a byte leaves the number finite
    path.write_bytes(content)
    with pytest.raises(SwintormerError, match="damaged, its values are not those that were written"):
        load_checkpoint(path)
