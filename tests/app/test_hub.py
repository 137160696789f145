"""Folders of the hub's layout, and the hub itself as far as it can be tried without a network."""

from __future__ import annotations

import http.server
import json
import re
import socket
import sys
import threading
import time
from pathlib import Path

import huggingface_hub
import numpy as np
import priors
import pytest
import torch
from cli_files import TINY, photo
from safetensors.torch import save_file

from swintormer import Swintormer, read_checkpoint, save_checkpoint
from swintormer.checkpoint import hub
from swintormer.checkpoint.checkpoint import Checkpoint
from swintormer.errors import InputError, SwintormerError
from swintormer.images.reading import read_image


@pytest.fixture
def net() -> Swintormer:
    return Swintormer(TINY).eval()


def same(found: torch.nn.Module, expected: torch.nn.Module) -> bool:
    state = expected.state_dict()
    return found.state_dict().keys() == state.keys() and all(
        torch.equal(tensor, state[name]) for name, tensor in found.state_dict().items()
    )


def test_a_folder_there_and_back(net, tmp_path, monkeypatch, capsys):
    net.save_pretrained(tmp_path / "mine")
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    sizes = json.loads((tmp_path / "mine/config.json").read_text())
    assert (sizes["model_type"], sizes["window_size"]) == ("swintormer", TINY.window_size)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # a folder is read without it
    found = Swintormer.from_pretrained(tmp_path / "mine")
    assert found.config == TINY
    assert same(found, net)
    assert not found.training
    assert same(read_checkpoint(tmp_path / "mine/model.safetensors").net, net), "the program reads the same file"
    assert capsys.readouterr().out == ""


def test_the_card_has_the_metadata_of_the_hub(net, tmp_path):
    card = {"summary": "For a test.", "data": "random numbers", "licence": "CC0-1.0"}
    hub.save_pretrained(Checkpoint(net, training_tile=64, card=card), tmp_path / "mine")
    made = huggingface_hub.ModelCard.load(tmp_path / "mine/README.md")
    assert (made.data.library_name, made.data.pipeline_tag, made.data.license) == (
        "swintormer",
        "image-to-image",
        "cc0-1.0",
    )
    assert {"image-restoration", "image-deblurring", "model_hub_mixin"} <= set(made.data.tags)
    for words in ("For a test.", "- data: random numbers\n", "arxiv.org/abs/2401.05907", '"window_size":'):
        assert words in made.content
    found = hub.read_pretrained(tmp_path / "mine")
    assert (found.training_tile, found.card) == (64, card)
    (tmp_path / "mine/README.md").write_text("By hand.")
    net.save_pretrained(tmp_path / "mine")
    assert (tmp_path / "mine/README.md").read_text() == "By hand."
    net.save_pretrained(tmp_path / "other")
    assert huggingface_hub.ModelCard.load(tmp_path / "other/README.md").data.license is None, "nobody said it"


def test_the_licence_of_own_weights(net, tmp_path):
    net.save_pretrained(tmp_path / "mine", license="CC-BY-4.0")
    made = huggingface_hub.ModelCard.load(tmp_path / "mine/README.md")
    assert made.data.license == "cc-by-4.0"
    assert "- licence: CC-BY-4.0\n" in made.content
    assert hub.read_pretrained(tmp_path / "mine").card == {"licence": "CC-BY-4.0"}, "the file of weights tells it, too"
    given = Checkpoint(net, card={"licence": "MIT", "data": "mine"})
    hub.save_pretrained(given, tmp_path / "other", license="apache-2.0")
    assert huggingface_hub.ModelCard.load(tmp_path / "other/README.md").data.license == "apache-2.0"
    assert given.card["licence"] == "MIT"
    for wrong in ("", "Apache 2.0", 3):
        with pytest.raises(InputError, match=r"Expected a licence as the hub names it, such as apache-2\.0, found"):
            net.save_pretrained(tmp_path / "wrong", license=wrong)
    assert not (tmp_path / "wrong").exists()


def test_what_is_pushed(net, tmp_path, monkeypatch):
    """The last step before the network is an imitation: it gets the folder, and no file is there afterwards."""
    pushed = {}

    class Api:
        def __init__(self, token=None):
            pushed["token"] = token

        def create_repo(self, repo_id, private, exist_ok):
            return type("Made", (), {"repo_id": repo_id})

        def upload_folder(self, repo_id, folder_path, **_):
            pushed["files"] = sorted(path.name for path in Path(folder_path).iterdir())
            pushed["licence"] = huggingface_hub.ModelCard.load(Path(folder_path) / "README.md").data.license
            pushed["net"] = read_checkpoint(Path(folder_path) / "model.safetensors").net
            return f"https://hub/{repo_id}/commit/1"

    monkeypatch.setattr(huggingface_hub.hub_mixin, "HfApi", Api)
    assert net.push_to_hub("me/mine", token="secret", license="mit") == "https://hub/me/mine/commit/1"
    assert pushed["files"] == ["README.md", "config.json", "model.safetensors"]
    assert (pushed["token"], pushed["licence"]) == ("secret", "mit")
    assert same(pushed["net"], net)

    def refuse(*_: object, **__: object) -> None:
        raise OSError("401 Client Error.\nRepository Not Found")

    monkeypatch.setattr(Api, "create_repo", refuse)
    with pytest.raises(SwintormerError, match=r"^Cannot write me/mine on the hub: 401 Client Error\.$"):
        net.push_to_hub("me/mine")


def test_from_the_hub(net, tmp_path, monkeypatch, run):
    """The download is an imitation; the program asks for it when the user names a repository, and never else."""
    save_checkpoint(net, tmp_path / "cached.safetensors", training_tile=32)
    asked = []

    def download(repository, name, **options):
        asked.append((repository, name, options))
        return str(tmp_path / "cached.safetensors")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *_, **__: None)  # the hub answers
    assert same(Swintormer.from_pretrained("me/mine", revision="v1"), net)
    assert asked == [("me/mine", "model.safetensors", {"library_name": "swintormer", "revision": "v1"})]
    photo("in.png")
    run("deblur", "in.png", "-o", "file.png", "--weights", tmp_path / "cached.safetensors")
    assert len(asked) == 1
    run("deblur", "in.png", "-o", "hub.png", "--model", "me/mine")
    assert len(asked) == 2
    np.testing.assert_array_equal(read_image("hub.png").pixels, read_image("file.png").pixels)
    net.save_pretrained("folder")
    run("deblur", "in.png", "-o", "folder.png", "--model", "./folder", "--tile", 32)
    run("deblur", "in.png", "-o", "bare.png", "--model", "folder", "--tile", 32)
    assert Path("bare.png").read_bytes() == Path("folder.png").read_bytes()
    gone = run("deblur", "in.png", "-o", "x.png", "--model", "./gone", code=1)
    assert gone.stderr.startswith("Error: There is no folder ./gone: name one of save_pretrained")
    assert len(asked) == 2
    save_file(Swintormer(TINY, window_size=16).state_dict(), "folder/model.safetensors")  # without metadata
    noted = run("deblur", "in.png", "-o", "noted.png", "--model", "./folder", "--tile", 256)
    assert "folder does not store its window size: 16 pixels are assumed" in noted.stdout
    both = run("deblur", "in.png", "-o", "x.png", "--model", "me/mine", "--weights", "w", code=1)
    assert "--model and --weights both name a network" in both.stderr


def test_what_is_not_there(tmp_path, monkeypatch, net):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SwintormerError, match=r"^me/mine is no folder here, .*, and the hub cannot be reached"):
        Swintormer.from_pretrained("me/mine", cache_dir=tmp_path)
    with pytest.raises(SwintormerError, match=r"a b is no folder here, and the hub gives no model\.safetensors: "):
        Swintormer.from_pretrained("a b")
    with pytest.raises(SwintormerError, match=r"holds no model\.safetensors: save_pretrained writes such folders"):
        Swintormer.from_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"Expected a folder or the name of a repository, owner/name, found None"):
        Swintormer.from_pretrained(None)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    hub._Pretrained.cache_clear()
    for call in (lambda: Swintormer.from_pretrained("me/mine"), lambda: net.save_pretrained(tmp_path / "x")):
        with pytest.raises(SwintormerError, match=r"pip install 'swintormer-kernels\[hub\]'"):
            call()


def test_a_hub_that_cannot_be_reached(net, tmp_path, monkeypatch):
    """One request that nobody answers: no repetitions, which huggingface_hub waits between, and the cache is used."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen: connections are refused
        endpoint = f"http://127.0.0.1:{nobody.getsockname()[1]}"

        def sleep(seconds: float) -> None:
            raise AssertionError(f"waits for {seconds} seconds")

        monkeypatch.setattr(time, "sleep", sleep)
        with pytest.raises(SwintormerError) as told:
            Swintormer.from_pretrained("me/mine", cache_dir=tmp_path, endpoint=endpoint)
        words = "me/mine is no folder here, was not downloaded before, and the hub cannot be reached "
        assert re.fullmatch(re.escape(words) + r"\([^()]*refused.*\)\.", str(told.value))
        snapshot = tmp_path / "models--me--mine/snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        save_checkpoint(net, snapshot / "model.safetensors")
        (tmp_path / "models--me--mine/refs").mkdir()
        (tmp_path / "models--me--mine/refs/main").write_text("0" * 40)
        assert same(Swintormer.from_pretrained("me/mine", cache_dir=tmp_path, endpoint=endpoint), net)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
        with pytest.raises(SwintormerError, match=r"^Cannot write me/mine on the hub: .*refused.*\.$"):
            net.push_to_hub("me/mine", token="secret")


def test_a_hub_out_of_order(tmp_path, monkeypatch):
    """503 is told at once, too, and 404 is what the hub says of the name."""
    status = [503]

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(status[0])
            self.send_header("X-Error-Code", "RepoNotFound" if status[0] == 404 else "Busy")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"waits for {seconds} seconds"))
        with pytest.raises(SwintormerError, match=r"and the hub cannot be reached \(.*503"):
            Swintormer.from_pretrained("me/mine", cache_dir=tmp_path, endpoint=endpoint)
        status[0] = 404
        with pytest.raises(
            SwintormerError, match=r"^me/mine is no folder here, and the hub gives no model\.safetensors: "
        ):
            Swintormer.from_pretrained("me/mine", cache_dir=tmp_path, endpoint=endpoint)
        server.shutdown()


def test_the_prior_goes_along(tmp_path):
    prior = priors.tiny()
    hub.save_pretrained(Checkpoint(Swintormer(priors.NETWORK).eval(), prior), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["prior"] is True
    assert same(hub.read_pretrained(tmp_path).prior, prior)
    assert hub.read_pretrained(tmp_path, prior=False).prior is None
