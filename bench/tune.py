"""Chooses block sizes, warps and stages of the Triton kernels: `python bench/tune.py [OP ...]`.

On a machine with a CUDA device it times every candidate there and replaces the entries of that architecture. Without
one it compiles for the architectures of the files and takes, of the candidates in their order, the first that spills
nothing, fits the shared memory and leaves a multiprocessor eight warps; where none does, the one that spills least. The
files are swintormer_kernels/backends/triton/choices/<name>.json, each replaced as a whole once its entries are there.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import re
import sys
from collections.abc import Callable
from typing import Any

import torch

from swintormer.images.files import replacing
from swintormer_kernels.registry import machine_lacks

TIMED_SIDE = 256  # two images: 131072 pixels, 1024 programs of 128, seven or more for each multiprocessor
ENOUGH_WARPS = 8  # two for each of a multiprocessor's four schedulers
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ALIKE = {"float32": ["float32"], "bfloat16": ["bfloat16", "float16"]}  # float16 takes the registers of bfloat16
COMPILED_FOR = {"default": "gfx942", "sm_80": "sm_80", "sm_90": "sm_90"}  # default: its 64 KB are the least
BY_RESOURCES = "Without a GPU: compiled ahead of time, chosen by registers, spills, shared memory and resident warps."


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ops", nargs="*", metavar="OP")
    parser.add_argument("--architectures", nargs="+", choices=COMPILED_FOR, default=list(COMPILED_FOR))
    asked = parser.parse_args(arguments)
    if importlib.util.find_spec("triton") is None:
        sys.exit(f"bench/tune.py needs triton: {machine_lacks('triton')}.")
    from swintormer_kernels.backends.triton import aot, runtime

    aot.refuse_interpreter()
    timed = torch.cuda.is_available()
    architectures = [runtime.architecture(torch.device("cuda"))] if timed else asked.architectures
    about = f"Timed on {torch.cuda.get_device_name()}." if timed else BY_RESOURCES
    for op in asked.ops or aot.OPS:
        module = importlib.import_module(f"swintormer_kernels.backends.triton.{op}")
        for name, tuning in module.TUNED.items():
            entries = [e for e in known(name) if not set(e["architectures"]) & set(architectures)]
            for architecture in architectures:
                entries += tune(module, name, tuning, architecture, timed)
            write(name, about, entries)


def known(name: str) -> list[dict[str, Any]]:
    """The entries of the file so far; none where there is no file."""
    from swintormer_kernels.backends.triton import runtime

    file = runtime.CHOICES / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8"))["choices"] if file.exists() else []


def write(name: str, about: str, entries: list[dict[str, Any]]) -> None:
    """Replaces choices/<name>.json, an entry a line."""
    from swintormer_kernels.backends.triton import runtime

    target = runtime.CHOICES / f"{name}.json"
    lines = ",\n".join("  " + json.dumps(entry) for entry in entries)
    with replacing(target) as file:
        file.write(f'{{\n "about": {json.dumps(about)},\n "choices": [\n{lines}\n ]\n}}\n'.encode())
    runtime.forget_choices()  # what is chosen for one kernel may bound the next one's blocks
    print(f"wrote {target}")


def tune(module: Any, name: str, tuning: Any, architecture: str, timed: bool) -> list[dict[str, Any]]:
    """Entries of one file for one architecture: for each dtype and number of channels the best candidate."""
    entries = []
    for short, dtype in DTYPES.items():
        where = {"device": "cuda", "side": TIMED_SIDE} if timed else {}
        for configuration, call in module.ahead_of_time(dtype, **where):
            sizes = sizes_of(configuration)
            if sizes is None:
                continue
            candidates = [c for c in tuning.candidates if not tuning.hopeless(c, sizes, dtype.itemsize)]
            offered = tuning._replace(candidates=candidates)
            pick = fastest(name, offered, call) if timed else first_that_fits(name, offered, call, architecture)
            print(f"{name}, {configuration}, {short}, {architecture}: {pick}", flush=True)
            entries.append({"architectures": [architecture], "dtypes": ALIKE[short], "sizes": sizes, "choice": pick})
    return entries


def sizes_of(configuration: str) -> dict[str, int] | None:
    """{"C": 48} of "C 48"; None for a variant of another configuration, "C 48, NCHW"."""
    pairs = [re.fullmatch(r"(\w+) (\d+)", part) for part in configuration.split(", ")]
    return None if None in pairs else {pair[1]: int(pair[2]) for pair in pairs if pair}


def first_that_fits(name: str, tuning: Any, call: Callable[[], object], architecture: str) -> dict[str, int]:
    """See the module's docstring."""
    from swintormer_kernels.backends.triton import aot, runtime

    target = COMPILED_FOR[architecture]
    best: tuple[tuple[int, int], dict[str, int]] | None = None
    for candidate in tuning.candidates:
        with runtime.trying(name, candidate), runtime.recording(architecture) as launches:
            call()
        launch = next(launch for launch in launches if launch.kernel.__name__ == tuning.kernel)
        row = aot.row((name, "", "", "", target), launch)
        if row.shared_bytes > aot.TARGETS[target].shared_bytes:
            continue
        warps = row.programs * candidate["num_warps"] * aot.TARGETS[target].gpu.warp_size // 32
        if row.spill_bytes == 0 and warps >= ENOUGH_WARPS:
            return candidate
        score = (row.spill_bytes, -warps)
        if best is None or score < best[0]:
            best = score, candidate
    if best is None:
        sys.exit(f"{name} on {architecture}: no candidate fits the shared memory; add a smaller one.")
    return best[1]


def fastest(name: str, tuning: Any, call: Callable[[], object]) -> dict[str, int]:
    """The candidate with the least median time of `call`, by CUDA events; one that cannot run is passed over."""
    from gpu_timing import median_ms

    from swintormer_kernels.backends.triton import runtime

    times = []
    for candidate in tuning.candidates:
        with runtime.trying(name, candidate):
            try:
                times.append((median_ms(call), candidate))
            except Exception as error:
                print(f"{name}, {candidate}: {str(error).splitlines()[0]}")
    if not times:
        sys.exit(f"{name}: no candidate runs on this device.")
    return min(times, key=lambda pair: pair[0])[1]


if __name__ == "__main__":
    main()
