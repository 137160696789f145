"""Trust in GPU kernels: the self-check, its verdicts and their file. The kernels run in Triton's interpreter here."""

from __future__ import annotations

import json
import sys
import threading
import warnings

import pytest
import torch

import swintormer_kernels as sk
from swintormer_kernels import trust
from swintormer_kernels.backends.triton import layout as triton_tensors
from swintormer_kernels.ops.ddim_step import OP as DDIM

pytest.importorskip("triton")
module = sys.modules["swintormer_kernels.selfcheck"]  # the package's attribute of that name is the function
DEVICE = torch.device("cpu") if triton_tensors.INTERPRETED else torch.device("cuda", 0)
CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("language_patched_once", "one_thread")


@pytest.fixture(autouse=True)
def no_verdicts(tmp_path, monkeypatch):
    """A file of its own, nothing known, and triton chosen wherever it is trusted, in the interpreter too."""
    monkeypatch.setenv("SWINTORMER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sk.registry.triton_tensors, "only_for_tests", lambda: None)
    trust.forget_verdicts()
    yield
    trust.forget_verdicts()


@pytest.fixture
def checks(monkeypatch):
    """(op, dtype) of every check that runs."""
    ran, original = [], module.check

    def check(*arguments):
        ran.append((arguments[0], arguments[2]))
        return original(*arguments)

    monkeypatch.setattr(module, "check", check)
    monkeypatch.setattr(trust, "_checks", [check])
    return ran


@pytest.fixture
def wrong_kernel(monkeypatch):
    """A triton ddim_step that is off by a hundredth."""
    right = DDIM.implementation("triton")
    monkeypatch.setitem(DDIM._implementations, "triton", lambda *a: right(*a) * 1.01)


def latent(dtype=torch.float32):
    z, pred = torch.randn(2, 1, 4, 8, 8, device=DEVICE).to(dtype)
    return z, pred


def explained(dtype=torch.float32):
    return sk.explain(sk.ddim_step, *latent(dtype), alpha_bar_t=0.25, alpha_bar_s=0.4)


def step(dtype=torch.float32):
    return sk.ddim_step(*latent(dtype), alpha_bar_t=0.25, alpha_bar_s=0.4)


def test_a_kernel_that_passed_is_taken_and_checked_once(checks):
    assert explained().backend == "triton"
    step()
    assert checks == [("ddim_step", torch.float32)]
    trust.forget_verdicts()  # as a new process: the file knows
    assert explained().backend == "triton"
    assert len(checks) == 1
    assert explained(torch.bfloat16).backend == "triton", "each dtype is checked for itself"
    assert checks[1:] == [("ddim_step", torch.bfloat16)]


def test_a_wrong_kernel_is_told_once_and_the_next_backend_serves(checks, wrong_kernel):
    with pytest.warns(RuntimeWarning, match=r"triton kernels of ddim_step in torch.float32 .* error .* report this"):
        assert explained().backend != "triton"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = step()
        trust.forget_verdicts()
        told = explained()
        assert told.backend != "triton"
        assert "failed: error" in told.reasons["triton"]
    assert len(checks) == 1
    torch.manual_seed(5)
    y = step()
    torch.manual_seed(5)
    with sk.use_backend("reference"):
        torch.testing.assert_close(y, step())


@pytest.mark.parametrize("fault", [lambda y: y.fill_(float("nan")), lambda y: 1 / 0], ids=["nan", "exception"])
def test_nan_and_exceptions_are_failures(monkeypatch, fault):
    right = DDIM.implementation("triton")
    monkeypatch.setitem(DDIM._implementations, "triton", lambda *a: fault(right(*a)))
    with pytest.warns(RuntimeWarning, match="not used"):
        assert explained().backend != "triton"


def test_a_wrong_gradient_is_a_failure(monkeypatch):
    from swintormer_kernels.ops.group_norm_silu import OP

    backend = OP._module("triton")
    right = backend.group_norm_silu_backward
    monkeypatch.setattr(backend, "group_norm_silu_backward", lambda *a: [1.01 * g for g in right(*a)])
    row = module.check("group_norm_silu", "triton", torch.float32, DEVICE)
    assert row.forward == "ok"
    assert row.backward.startswith("failed: error")


def test_out_of_memory_is_not_kept(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patched:
        patched.setitem(DDIM._implementations, "triton", full)
        with pytest.warns(RuntimeWarning, match="out of memory"):
            assert explained().backend != "triton"
    assert explained().backend != "triton"
    trust.forget_verdicts()
    assert explained().backend == "triton"


def test_other_versions_are_checked_anew(checks, monkeypatch):
    explained()
    trust.forget_verdicts()
    monkeypatch.setattr(trust, "versions", lambda: ("torch 99",))
    assert explained().backend == "triton"
    assert len(checks) == 2
    assert len(json.loads(trust.cache_file().read_text())) == 2, "the verdict for the other versions stays"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}', "\x00"])
def test_a_damaged_file_is_replaced(content):
    trust.cache_file().parent.mkdir()
    trust.cache_file().write_text(content)
    assert explained().backend == "triton"
    assert list(json.loads(trust.cache_file().read_text()).values())[-1:] == [""]
    assert [file.name for file in trust.cache_file().parent.iterdir()] == ["selfcheck.json"]


def test_a_file_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SWINTORMER_CACHE", str(tmp_path / "file"))
    assert explained().backend == "triton"


def test_where_the_file_is(monkeypatch, tmp_path):
    monkeypatch.delenv("SWINTORMER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert trust.cache_file() == tmp_path / "swintormer_kernels" / "selfcheck.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert str(trust.cache_file()) == "/home/somebody/.cache/swintormer_kernels/selfcheck.json"


def test_a_backend_asked_for_by_name_is_not_checked(checks, wrong_kernel):
    with sk.use_backend("triton"):
        wrong = step()
        assert explained().backend == "triton"
    assert wrong.isfinite().all()
    assert not checks


def test_many_threads_check_once(checks):
    taken = []
    threads = [threading.Thread(target=lambda: taken.append(explained().backend)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert taken == ["triton"] * 8
    assert len(checks) == 1


def test_the_callers_random_numbers_modes_and_autocast_are_left_alone(checks):
    torch.manual_seed(3)
    z, pred = latent()
    before = torch.get_rng_state()
    with torch.inference_mode(), torch.autocast(DEVICE.type, dtype=torch.bfloat16), torch.device("meta"):
        sk.explain(sk.ddim_step, z, pred, alpha_bar_t=0.25, alpha_bar_s=0.4)
    assert torch.equal(torch.get_rng_state(), before)
    assert sorted(map(str, checks)) == sorted(str(("ddim_step", d)) for d in (torch.float32, torch.bfloat16))
    assert explained().backend == "triton"


def test_compiled_code_runs_no_check_and_takes_what_is_known(checks):
    def compiled():
        torch._dynamo.reset()
        function = torch.compile(sk.ddim_step, fullgraph=True, backend="aot_eager")
        return function(*latent(), alpha_bar_t=0.25, alpha_bar_s=0.4)

    with pytest.warns(RuntimeWarning, match=r"torch.compile does not use the triton kernels of ddim_step.*selfcheck"):
        compiled()
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        compiled()  # said once
    assert not checks
    with torch.utils.flop_counter.FlopCounterMode(display=False):
        assert "not been checked" in explained().reasons["triton"]
    explained()
    calls, right = [], DDIM.implementation("triton")
    DDIM._implementations["triton"] = lambda *a: calls.append(1) or right(*a)
    try:
        compiled()
    finally:
        DDIM._implementations["triton"] = right
    assert calls
    assert len(checks) == 1


def test_autocast_of_float32_needs_the_verdict_of_its_dtype_alone_for_a_backend_without_float32(monkeypatch):
    asked = []
    monkeypatch.setattr(
        trust, "_checks", [lambda op, backend, dtype, device: asked.append(dtype) or module.Row(op, backend, dtype)]
    )
    x = torch.zeros(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert trust.why_not_trusted("gated_ffn", "cuda", x) is None
        assert asked == [torch.bfloat16]
        assert trust.why_not_trusted("gated_ffn", "triton", x) is None
    assert asked == [torch.bfloat16, torch.float32, torch.bfloat16]


def test_the_table_lists_every_op_and_backend():
    report = sk.selfcheck(ops=["ddim_step", "res_block"], dtypes=[torch.float32])
    rows = {(row.op, row.backend): row for row in report.rows}
    assert rows.keys() == {(op, b) for op in ("ddim_step", "res_block") for b in sk.BACKENDS if b != "reference"}
    assert rows["ddim_step", "triton"].forward == rows["ddim_step", "triton"].backward == "ok"
    assert "no Triton kernel for the whole ResNet block" in rows["res_block", "triton"].not_served
    assert not report.failures
    assert str(report).endswith("nothing failed")
    assert explained().backend == "triton"


def test_the_table_tells_failures_and_automatic_selection_believes_it(wrong_kernel):
    report = sk.selfcheck(ops=["ddim_step"], dtypes=[torch.float32])
    assert [row.backend for row in report.failures] == ["triton"]
    assert "failed: error" in str(report)
    assert str(report).endswith("1 failed")
    assert explained().backend != "triton"


def test_an_op_that_is_none():
    with pytest.raises(ValueError, match="no op 'toy'"):
        sk.selfcheck(ops=["toy"])


@pytest.mark.parametrize("op", module.CASES)
def test_the_cpu_backend_passes(op, extension):
    row = module.check(op, "cpu", torch.float32, CPU)
    assert (row.forward, row.backward, row.not_served) == ("ok", "ok", None)


@pytest.mark.parametrize("op", module.CASES)
def test_every_op_has_a_case_that_the_reference_takes_in_each_dtype(op):
    for dtype in module.DTYPES:
        row = module.check(op, "reference", dtype, CPU)
        assert (row.forward, row.backward) == ("ok", "ok")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", module.DTYPES, ids=str)
@pytest.mark.parametrize("op", ["gated_ffn", "group_norm_silu", "norm_silu_conv3x3", "swda_attention", "swda_block"])
def test_the_triton_kernels_pass(op, dtype):
    row = module.check(op, "triton", dtype, DEVICE)
    assert (row.forward, row.backward, row.not_served) == ("ok", "ok", None)


def test_the_command_fails_where_a_kernel_does(monkeypatch):
    from typer.testing import CliRunner

    from swintormer.cli.app import app

    rows = [module.Row("ddim_step", "cpu", torch.float32, "ok", "ok")]
    monkeypatch.setattr(sk, "selfcheck", lambda: module.Report(tuple(rows)))
    assert CliRunner().invoke(app, ["selfcheck"]).exit_code == 0
    rows.append(module.Row("ddim_step", "triton", torch.float32, "failed: error 1.0e+00", "ok"))
    told = CliRunner().invoke(app, ["selfcheck"])
    assert told.exit_code == 1
    assert "failed: error" in told.stdout
