"""The kernels with a fault planted, end to end on the emulated device: each must be caught (mutations.py).

A third of them each day; all with -m "slow or not slow".
"""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from emulator import CUDA, build
from mutations import KERNELS, MUTATIONS, Mutation
from ops import assert_forward, mapped, on
from test_host_layer import skip_without_sanitizer, with_sanitizer

import swintormer_kernels as sk
from swintormer_kernels import native
from swintormer_kernels.backends.cuda import device, emulator
from swintormer_kernels.testing.block_cases import Shape, attention_weights, ffn_weights
from swintormer_kernels.testing.denoiser_cases import conv_weights, norm_weights

pytestmark = pytest.mark.usefixtures("one_thread")
TODAY = datetime.date.today().toordinal()


def image(*shape: int) -> torch.Tensor:
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


def block(shape: Shape) -> tuple:
    """The first head takes the bounded way of softmax_one, the last one the other; the mean of a pixel is not 0."""
    weights = attention_weights(shape.channels, shape.heads, shape.window, bias=True)
    weights.logit_scale.copy_(torch.linspace(0.7, 4.4, shape.heads).view_as(weights.logit_scale))
    ffn = ffn_weights(shape.channels, min(shape.hidden, 200), bias=True)
    return sk.swda_block, 1 + shape.image(), weights, ffn, shape.window, shape.shift


# Function and arguments, and the instances that they take.
CASES: dict[str, tuple[Callable[[], tuple], list[str]]] = {
    "block": (lambda: block(Shape(96, 2, 32, 32, shift=5)), ["attention_bf16_d24_w16", "tail_bf16_c96"]),
    "block8": (lambda: block(Shape(48, 2, 16, 24, shift=3, window=8)), ["attention_bf16_d16_w8", "tail_bf16_c48"]),
    "wide": (lambda: block(Shape(384, 8, 16, 16)), ["attention_bf16_d24_w16", "tail_bf16_c384_r32"]),
    "conv": (
        lambda: (sk.norm_silu_conv3x3, image(1, 72, 8, 16), norm_weights(1, 72), conv_weights(1, 72, 64, (8, 16)), 8),
        ["norm_silu_conv3x3_n32_bf16", *(f"group_norm_{part}_bf16" for part in ("statistics", "table"))],
    ),
    "norm": (
        lambda: (sk.group_norm_silu, image(1, 24, 9, 8), norm_weights(1, 24), 3),
        [f"group_norm_{part}_bf16" for part in ("statistics", "table", "apply")],
    ),
    "step": (lambda: (step, torch.randn(3, 5, 7), torch.randn(3, 5, 7)), ["ddim_step_bf16"]),
}
FILES = {"block": ("attention", "tail"), "block8": ("attention", "tail"), "wide": ("attention", "tail")}
FILES |= {"conv": ("norm_silu_conv3x3", "group_norm"), "norm": ("group_norm",), "step": ("ddim_step",)}


def step(z: torch.Tensor, pred: torch.Tensor) -> torch.Tensor:
    return sk.ddim_step(z, pred, alpha_bar_t=0.25, alpha_bar_s=0.5)


@pytest.fixture(autouse=True)
def extension_or_skip() -> None:
    reason = native.why_absent()
    if reason is not None:
        pytest.skip(reason)


def library_of(kind: str, kernels: Path, case: str, folder: Path | None = None) -> Path:
    return build(kind, [kernels / f"{name}.cu" for name in FILES[case]], CASES[case][1], folder)


def verdict(library: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the tests of the kernels of a library say: sentences of the layer, "numbers", or nothing."""
    monkeypatch.setattr(device, "EMULATOR", library)
    monkeypatch.setattr(emulator, "options", emulator.Options(late_copies=True))
    function, *arguments = mapped(lambda t: t.to(torch.bfloat16), CASES[case][0]())
    try:
        if case == "step":
            assert on("cuda", function, arguments).isfinite().all()
        else:
            assert_forward("cuda", function, arguments)
    except emulator.Fault as fault:
        return str(fault)
    except AssertionError:
        return "numbers"
    return ""


def planted(mutation: Mutation, folder: Path) -> Path:
    """A copy of the kernels with the fault."""
    kernels = folder / "kernels"
    shutil.copytree(KERNELS, kernels)
    (folder / "gpu.h").symlink_to(CUDA / "gpu.h")
    (folder / "host").symlink_to(CUDA / "host")
    file = kernels / mutation.file
    file.write_text(mutation.planted(file.read_text()))
    return kernels


def test_every_barrier_has_a_case_that_shows_its_absence() -> None:
    assert all(mutation.cases for mutation in MUTATIONS), "a file of kernels is not in CASES_OF"
    for mutation in MUTATIONS:
        text = (KERNELS / mutation.file).read_text()
        assert mutation.planted(text) != text
    assert {case for mutation in MUTATIONS for case in mutation.cases.split()} == set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_kernels_as_they_are(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert verdict(library_of("race", KERNELS, case), case, monkeypatch) == ""


@pytest.mark.parametrize(
    "names", [["block8", "conv", "norm", "step"], pytest.param(["block", "wide"], marks=pytest.mark.slow)]
)
def test_sanitizers_find_nothing_in_the_kernels(names: list[str], tmp_path: Path) -> None:
    """In a process that has the address sanitizer, with undefined behaviour looked for as well."""
    skip_without_sanitizer(tmp_path)
    cases = [f"{case}={library_of('asan', KERNELS, case)}" for case in names]
    program = "import sys; from pathlib import Path; import pytest, torch; from test_mutations import verdict\n"
    program += "for words in sys.argv[1:]:\n"
    program += "    case, library = words.split('=', 1)\n"
    program += "    torch.manual_seed(0)\n"
    program += (
        "    with pytest.MonkeyPatch.context() as patch: assert verdict(Path(library), case, patch) == '', case\n"
    )
    done = with_sanitizer(program, *cases)
    assert done.returncode == 0, done.stdout + done.stderr


def today(i: int) -> bool:
    return i % 3 == TODAY % 3


@pytest.mark.parametrize(
    "mutation",
    [
        pytest.param(m, id=f"{m.file}, {m.name}", marks=[] if today(i) else [pytest.mark.slow])
        for i, m in enumerate(MUTATIONS)
    ],
)
def test_planted_fault_is_caught(mutation: Mutation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels, said = planted(mutation, tmp_path), []
    for case in mutation.cases.split():
        said.append(verdict(library_of("race", kernels, case, tmp_path), case, monkeypatch))
        if any(how in said[-1] for how in mutation.caught.split("|")):
            return
    pytest.fail(f"not caught: {said}")
