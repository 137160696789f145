"""The exported network in onnxruntime beside the engine and plain torch: `python -m bench.export`.

One tile at a time, in turn, so that the ratios hold on a busy machine; medians. onnxruntime, and OpenVINO if it is
installed, get as many threads as torch.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from swintormer.checkpoint.checkpoint import default_weights, read_checkpoint
from swintormer.export.onnx import export_onnx
from swintormer_kernels import use_backend


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    net = read_checkpoint(default_weights()).net
    image = torch.rand(1, 3, words.tile, words.tile)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "fixed.onnx")
        export_onnx(net, path, words.tile)
        ways = {"engine": lambda: net(image), "plain torch": lambda: _plain(net, image)}
        ways["onnxruntime"] = _onnxruntime(path, image, words.threads)
        export_onnx(net, any_size := Path(folder, "any.onnx"), None)
        ways["onnxruntime, any size"] = _onnxruntime(any_size, image, words.threads)
        if (openvino := _openvino(path, image, words.threads)) is not None:
            ways["OpenVINO, float32"] = openvino
        times: dict[str, list[float]] = {name: [] for name in ways}
        with torch.inference_mode():
            for turn in range(words.rounds + 1):
                for name, way in ways.items():
                    start = time.perf_counter()
                    way()
                    if turn:  # the first packs weights
                        times[name].append(time.perf_counter() - start)
    print(f"one {words.tile}x{words.tile} tile, preset `small`, threads: {words.threads}, rounds: {words.rounds}")
    engine = median(times["engine"])
    for name, taken in times.items():
        print(f"{name:22} {1e3 * median(taken):7.0f} ms  {median(taken) / engine:5.2f} times the engine's")


def _plain(net: torch.nn.Module, image: torch.Tensor) -> Any:
    with use_backend("reference"):
        return net(image)


def _onnxruntime(path: Path, image: torch.Tensor, threads: int) -> Callable[[], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the others take their turns, too
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"image": image.numpy()})


def _openvino(path: Path, image: torch.Tensor, threads: int) -> Callable[[], Any] | None:
    try:
        import openvino
    except ImportError:
        return None
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    model = openvino.Core().compile_model(str(path), "CPU", settings)
    return lambda: model({"image": image.numpy()})


if __name__ == "__main__":
    main()
