"""The latent denoiser on a GPU: `python bench/gpu_denoiser.py --out DIR [--latent N ...]`.

Times the denoiser's ops on one latent, forward and both passes, then each U-Net: diffusers eager in channels_last, the
same after `sk.optimize`, both for one step, and all steps of a sampler with `ddim_step`, eager and as one CUDA graph.
DIR gets gpu.csv as of bench/gpu.py, a line for each time. Run bench/gpu.py first: it runs the tests on the device.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_parts import Meter, relative, time_op
from gpu_timing import median_ms
from torch import Tensor, nn

import swintormer_kernels as sk
from swintormer.graphs import capture_graph

OPS = ("group_norm_silu", "ddim_step", "norm_silu_conv3x3")
COMPACT = {
    "sizes": {
        "in_channels": 16,
        "out_channels": 8,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "attention_head_dim": 32,
        "norm_num_groups": 8,
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
    },
    "steps": 4,
}
LDM_SR = {
    "sizes": {
        "in_channels": 6,
        "out_channels": 3,
        "block_out_channels": (160, 320, 320, 640),
        "layers_per_block": 2,
        "attention_head_dim": 32,
        "down_block_types": ("DownBlock2D", "DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"),
    },
    "steps": 20,
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.csv")
    parser.add_argument("--latent", type=int, nargs="+", default=[32, 64, 128], help="sides of the latents")
    asked = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.exit("bench/gpu_denoiser.py needs a CUDA device and torch sees none: run it on a machine with a GPU.")
    asked.out.mkdir(parents=True, exist_ok=True)
    meter = Meter("denoiser", asked.out, "cuda")
    for side in asked.latent:
        for name, preset in (("compact", COMPACT), ("ldm-sr", LDM_SR)):
            for dtype in (torch.bfloat16, torch.float32):
                time_unet(meter, name, preset, side, dtype)
    for op in OPS:
        time_op(meter, importlib.import_module(f"swintormer_kernels.ops.{op}"), tiles=1)


def time_unet(meter: Meter, name: str, preset: dict[str, Any], side: int, dtype: torch.dtype) -> None:
    """Rows of one U-Net at one latent: a step, and all steps, each eager and optimized, the latter as a graph, too."""
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    net = UNet2DModel(**preset["sizes"]).to(meter.device, dtype).to(memory_format=torch.channels_last).eval()
    x = torch.randn(1, preset["sizes"]["in_channels"], side, side, device=meter.device).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    times = torch.linspace(951, 1, preset["steps"], device=meter.device)[None].long()
    plain: dict[str, Any] = {}
    for by in ("eager", "optimized"):
        if by == "optimized":
            sk.optimize(net)
        for what, call in (("step", one_step(net)), ("sample", all_steps(net, preset["sizes"]["out_channels"]))):
            names = (f"{name} {what}", f"latent {side}", dtype, "forward")
            with torch.no_grad():
                result = call(x, times)
                ms = median_ms(lambda call=call: call(x, times), meter.device)
                before, eager_ms = plain.setdefault(what, (result, ms))
                meter.row((*names, by), ms, eager_ms=eager_ms, error=relative(result, before.double()))
                if by == "optimized" and meter.device != "cpu":
                    replay = capture_graph(call, x, times)
                    error = relative(replay(x, times), before.double())
                    ms = median_ms(lambda replay=replay: replay(x, times), meter.device)
                    meter.row((*names, "graph"), ms, eager_ms=eager_ms, error=error)


def one_step(net: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, times: net(x, times[:, 0], return_dict=False)[0]


def all_steps(net: nn.Module, channels: int) -> Callable[[Tensor, Tensor], Tensor]:
    """DDIM from x's first channels, with the others as the condition; alpha-bar is even in the steps."""

    def sample(x: Tensor, times: Tensor) -> Tensor:
        z, condition = x[:, :channels], x[:, channels:]
        steps = times.shape[1]
        for step in range(steps):
            predicted = net(torch.cat([z, condition], 1), times[:, step], return_dict=False)[0]
            alphas = {"alpha_bar_t": (step + 0.5) / steps, "alpha_bar_s": min(1.0, (step + 1.5) / steps)}
            z = sk.ddim_step(z, predicted, **alphas)
        return z

    return sample


if __name__ == "__main__":
    main()
