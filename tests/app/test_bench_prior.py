"""bench/prior.py: its table says what was run and what was computed."""

from __future__ import annotations

import re

import pytest
import torch
from priors import tiny

import swintormer_kernels as sk
from bench import prior

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.setattr(prior, "ROUNDS", 1)
    return prior


def table(bench, capsys) -> dict[str, str]:
    bench.main(["compact", "4"])
    header, _, row = capsys.readouterr().out.splitlines()
    names, cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in (header, row))
    return dict(zip(names, cells, strict=True))


def test_samples_are_run_and_their_memory_measured(bench, capsys):
    cells = table(bench, capsys)
    assert cells["latent"] == "compact 4x4"
    for by in ("diffusers", "ours"):
        assert float(cells[f"sample, {by}, MB"]) >= float(cells[f"step, {by}, MB"]) > 0
        assert float(cells[f"sample, {by}, ms"]) > 0


@pytest.mark.parametrize(("words", "code", "told"), [(["--help"], 0, "NAME|SIDE"), (["huge"], 2, "no prior 'huge'")])
def test_its_arguments_are_told(bench, capsys, words, code, told):
    with pytest.raises(SystemExit) as end:
        bench.main(words)
    assert end.value.code == code
    assert told in "".join(capsys.readouterr())


def test_samples_that_are_too_large_are_computed_and_say_so(bench, capsys, monkeypatch):
    monkeypatch.setattr(bench, "LARGEST_SAMPLE", 0)
    cells = table(bench, capsys)
    for by in ("diffusers", "ours"):
        computed = re.fullmatch(r"(\d+) \(computed\)", cells[f"sample, {by}, ms"])
        # Rounded to 1 ms here, and four steps to 0.1 ms each.
        assert int(computed[1]) == pytest.approx(4 * float(cells[f"step, {by}, ms"]), abs=0.5 + 4 * 0.05)
        assert cells[f"sample, {by}, MB"] == "not run"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_diffusers_own_steps_keep_the_dtype_of_z(dtype, bench):
    """As the prior does, and come as near to float64 as it: twice its error, and a rounding of z at each step."""
    own, theirs, exact = tiny().to(dtype), tiny().to(dtype), tiny().to(dtype).double()
    sk.restore(theirs.denoiser)
    z, condition, steps = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8).to(dtype), own.sampling.steps
    with torch.no_grad():
        truth = exact.denoise(condition.double(), z.double(), steps, 0.0)
        ours, found = own.denoise(condition, z, steps, 0.0), bench.by_diffusers(theirs, z, condition, 0.0)
    assert found.dtype == ours.dtype == torch.float32
    budget = 2 * (ours - truth).abs().max() + steps * torch.finfo().eps * truth.abs().max()
    assert (found - truth).abs().max() <= budget
