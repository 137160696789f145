"""Exported networks against the network in float64: no further from it than a few times the reference in float32."""

from __future__ import annotations

import copy
import json
import sys

import numpy as np
import pytest
import torch

from swintormer import Swintormer, save_checkpoint
from swintormer.checkpoint.checkpoint import Checkpoint, default_weights, read_checkpoint
from swintormer.errors import InputError, SwintormerError
from swintormer.export.onnx import export_onnx, onnx_model
from swintormer.export.torch import export_torch
from swintormer.model.config import NetworkConfig
from swintormer_kernels import use_backend

pytestmark = pytest.mark.usefixtures("one_thread")
MISSING = "the extra [export] or onnxruntime is not installed"
SIZES = {
    "in_channels": 3, "dim": 8, "num_blocks": (1, 2, 1, 1), "num_refinement_blocks": 1, "heads": (1, 2, 2, 4),
    "window_size": 2,
}  # fmt: skip
NETWORKS = {
    "plain": NetworkConfig(**SIZES),
    "dual-pixel, biases": NetworkConfig(**SIZES | {"in_channels": 6, "bias": True, "num_refinement_blocks": 2}),
    "odd window, prior": NetworkConfig(**SIZES | {"window_size": 3, "prior_channels": 4}),
}


def made(config: NetworkConfig) -> Swintormer:
    """Away from the identity, biases and all."""
    net = Swintormer(config).eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("bias") or name.startswith("output"):
                parameter.normal_(std=0.1)
    return net


def bounds(net: Swintormer, image: torch.Tensor) -> tuple[np.ndarray, float]:
    """The result in float64, and four times the error of the reference in float32."""
    with use_backend("reference"), torch.no_grad():
        exact = copy.deepcopy(net).double()(image.double())
        own = (net(image) - exact).abs().max().item()
    assert own > 0
    return exact.numpy(), 4 * own


@pytest.fixture
def session():
    """Runs a file in onnxruntime, after ONNX's own checker has read it."""
    onnx = pytest.importorskip("onnx", reason=MISSING)
    runtime = pytest.importorskip("onnxruntime", reason=MISSING)

    def run(path, image):
        onnx.checker.check_model(onnx.load(path), full_check=True)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = 1
        found = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return found.run(["restored"], {"image": image.numpy()})[0]

    return run


@pytest.mark.parametrize("name", NETWORKS)
def test_onnx(name, session, tmp_path):
    net = made(NETWORKS[name])
    tile = 2 * net.config.stride
    export_onnx(net, tmp_path / "a.onnx", tile)
    for batch in (1, 3):
        image = torch.rand(batch, net.config.in_channels, tile, tile)
        exact, bound = bounds(net, image)
        assert abs(session(tmp_path / "a.onnx", image) - exact).max() <= bound


@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_of_any_size(name, session, tmp_path):
    net = made(NETWORKS[name])
    export_onnx(net, tmp_path / "a.onnx", None)
    for batch, rows, columns in ((1, 1, 1), (2, 1, 3), (1, 3, 2)):
        image = torch.rand(batch, net.config.in_channels, rows * net.config.stride, columns * net.config.stride)
        exact, bound = bounds(net, image)
        assert abs(session(tmp_path / "a.onnx", image) - exact).max() <= bound


def test_the_shipped_weights_in_onnx(session, tmp_path):
    net = read_checkpoint(default_weights()).net
    export_onnx(net, tmp_path / "a.onnx", 128)
    image = torch.rand(1, 3, 128, 128)
    exact, bound = bounds(net, image)
    assert abs(session(tmp_path / "a.onnx", image) - exact).max() <= bound


def test_nothing_is_stored_twice(tmp_path):
    """Of a large tile the file is hardly larger: masks are made of the regions of their tokens."""
    pytest.importorskip("onnx", reason=MISSING)
    checkpoint = Checkpoint(made(NETWORKS["plain"]), card={"summary": "For a test."})
    small, large = (onnx_model(checkpoint, tile) for tile in (32, 256))
    stored = [(tensor.data_type, tuple(tensor.dims), tensor.raw_data) for tensor in large.graph.initializer]
    assert len(set(stored)) == len(stored)
    assert large.ByteSize() - small.ByteSize() <= 1000
    found = {entry.key: entry.value for entry in large.metadata_props}
    assert json.loads(found["swintormer.config"])["window_size"] == 2
    assert (found["swintormer.tile"], found["swintormer.summary"]) == ("256", "For a test.")


def test_torch(tmp_path):
    """A network of few blocks: torch needs seconds for each."""
    net = made(NETWORKS["plain"].model_copy(update={"num_blocks": (0, 0, 0, 0), "num_refinement_blocks": 2}))
    export_torch(net.train(), tmp_path / "a.pt2", net.config.stride)
    assert net.training
    about = {"swintormer.json": ""}
    program = torch.export.load(tmp_path / "a.pt2", extra_files=about)
    assert json.loads(about["swintormer.json"])["tile"] == net.config.stride
    assert "swintormer" not in {
        node.target.namespace for node in program.graph.nodes if hasattr(node.target, "namespace")
    }
    for batch in (1, 3):
        image = torch.rand(batch, 3, net.config.stride, net.config.stride)
        exact, bound = bounds(net, image)
        with torch.no_grad():
            assert abs(program.module()(image).numpy() - exact).max() <= bound


def test_the_program(run, tmp_path, session):
    net = made(NETWORKS["plain"])
    save_checkpoint(net, "w.safetensors")
    result = run("export", "-o", "a.onnx", "--weights", "w.safetensors", "--tile", 64)
    assert result.stdout.startswith("a.onnx: image (batch, 3, 64, 64), ")
    result = run("export", "-o", "any.onnx", "--weights", "w.safetensors", "--any-size")
    assert result.stdout.startswith("any.onnx: image (batch, 3, height, width), ")
    image = torch.rand(1, 3, 64, 64)
    exact, bound = bounds(net, image)
    assert abs(session(tmp_path / "any.onnx", image) - exact).max() <= bound
    assert abs(session(tmp_path / "a.onnx", image) - exact).max() <= bound
    for words, sentence in (
        (["a.onnx", "--tile", 100], "The tile must be a multiple of 32 pixels for this network, found 100."),
        (["a.pt2", "--any-size"], "--any-size is for ONNX: torch.export takes one size of tile."),
        (["a.bin"], "Give --format onnx or torch, or a name that ends in .onnx or .pt2; found a.bin."),
        (["a.onnx", "--format", "tflite"], "Give --format onnx or torch"),
        (["a.onnx", "--model", "small"], "--model and --weights both name a network"),
    ):
        assert sentence in run("export", "-o", *words, "--weights", "w.safetensors", code=1).stderr


def test_without_onnx(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(SwintormerError, match=r"pip install 'swintormer-kernels\[export\]'"):
        export_onnx(made(NETWORKS["plain"]), tmp_path / "a.onnx", 32)
    with pytest.raises(InputError, match="multiple of 32"):
        export_torch(made(NETWORKS["plain"]), tmp_path / "a.pt2", 31)
    assert list(tmp_path.iterdir()) == []
