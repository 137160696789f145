"""The registry: selection, the error of a backend asked for by name, and explain() tell the same story."""

import threading

import pytest
import torch

import swintormer_kernels
from swintormer_kernels import native, registry
from swintormer_kernels.registry import BACKENDS, BackendError, Op, backends, explain, use_backend

ABSENT = {"cuda": "not written: no use", "triton": "not written: no use"}


def _takes_float32(x):
    return None if x.dtype == torch.float32 else f"takes float32, found {x.dtype}"


def _loses_when_small(x):
    return "loses against the reference below 4 elements" if x.numel() < 4 else None


TOY = Op("toy", serves={"cpu": _takes_float32}, absent=ABSENT, slower={"cpu": _loses_when_small})


@TOY.public
def toy(x):
    """Adds 1 on the reference and 2 on the cpu backend."""
    return x + 1 if TOY.select(x) == "reference" else x + 2


@pytest.fixture(autouse=True)
def cpu_backend_is_there(monkeypatch):
    monkeypatch.setattr(registry.native, "why_absent", lambda: None)


def test_automatic_choice_takes_the_best_that_serves():
    assert TOY.select(torch.ones(8)) == "cpu"
    assert TOY.select(torch.ones(8, dtype=torch.float64)) == "reference"


def test_automatic_choice_passes_over_a_backend_that_loses_but_its_name_still_works():
    small = torch.ones(2)
    assert TOY.select(small) == "reference"
    assert "loses against" in explain(toy, small).reasons["cpu"]
    with use_backend("cpu"):
        assert TOY.select(small) == "cpu"
        assert explain(toy, small).backend == "cpu"


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_error_and_explain_give_the_predicates_own_reason(name, dtype):
    x = torch.ones(8, dtype=dtype)
    reason = TOY.why_not(name, x)
    with use_backend(name):
        explanation = explain(toy, x)
        if reason is None:
            assert TOY.select(x) == explanation.backend == name
            return
        assert explanation.backend is None
        assert explanation.reasons[name] == reason
        with pytest.raises(BackendError) as error:
            toy(x)
    assert reason in str(error.value)
    assert repr(name) in str(error.value)


def test_explain_prints_one_line_for_each_backend():
    lines = str(explain(toy, torch.ones(8))).splitlines()
    assert lines[0] == "toy: cpu (chosen automatically)"
    assert [line.split()[0] for line in lines[1:]] == list(BACKENDS)
    assert "not written: no use" in lines[1]


@pytest.mark.parametrize(
    ("arguments", "named"), [((), "missing a required argument: 'x'"), ((1, 2), "too many positional arguments")]
)
def test_explain_takes_the_arguments_of_a_call(arguments, named):
    with pytest.raises(TypeError, match=r"^explain\(toy, \.\.\.\) takes the arguments of a call of toy: " + named):
        explain(toy, *arguments)


def test_explain_refuses_what_is_no_op():
    with pytest.raises(TypeError, match="is not an op"):
        explain(torch.add, 1, 2)


def test_use_backend_nests_and_is_restored_by_an_exception():
    x = torch.ones(8)
    with use_backend("reference"):
        with use_backend("cpu"):
            assert TOY.select(x) == "cpu"
        assert TOY.select(x) == "reference"
        with pytest.raises(KeyError), use_backend("cpu"):
            raise KeyError
        assert TOY.select(x) == "reference"
    assert TOY.select(x) == "cpu"


def test_use_backend_holds_in_its_own_thread_only():
    seen = []
    with use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(TOY.select(torch.ones(8))))
        thread.start()
        thread.join()
    assert seen == ["cpu"]


def test_unknown_backend_is_named_with_the_known_ones():
    with (
        pytest.raises(ValueError, match=r"no backend 'gpu'; choose one of cuda, triton, cpu, reference"),
        use_backend("gpu"),
    ):
        pass


def test_an_op_must_account_for_every_backend():
    with pytest.raises(ValueError, match="every backend"):
        Op("toy", serves={"cpu": _takes_float32})
    with pytest.raises(ValueError, match="every backend"):
        Op("toy", serves={"cpu": _takes_float32}, absent={**ABSENT, "cpu": "both"})
    with pytest.raises(ValueError, match="slower"):
        Op("toy", serves={}, absent={**ABSENT, "cpu": "not written"}, slower={"cpu": _loses_when_small})


def test_backends_tells_what_this_machine_lacks(monkeypatch):
    assert list(backends()) == list(BACKENDS)
    assert backends()["reference"] is None
    assert "reference  available" in str(backends())
    if not torch.cuda.is_available():
        monkeypatch.setattr(registry.triton_tensors, "INTERPRETED", False)
        assert "CUDA device" in backends()["triton"]
    monkeypatch.setattr(registry.native, "why_absent", lambda: "it is not here")
    assert backends()["cpu"] == "it is not here"


def test_without_the_extension_the_reference_serves_and_the_name_tells_how_to_build_it(monkeypatch, tmp_path):
    monkeypatch.undo()
    note = tmp_path / "note.txt"
    note.write_text("`cmake` failed: no compiler\n")
    monkeypatch.setattr(native, "_extension", None)
    monkeypatch.setattr(native, "ABSENCE_NOTE", note)
    x = torch.ones(8)
    assert torch.equal(toy(x), x + 1)
    with pytest.raises(BackendError) as error, use_backend("cpu"):
        toy(x)
    assert "no compiler" in str(error.value)
    assert "pip install -e ." in str(error.value)
    with pytest.raises(ImportError, match="no compiler"):
        native.extension()
    note.unlink()
    monkeypatch.setattr(native, "_import_error", "undefined symbol: x")
    assert "undefined symbol: x" in native.why_absent()


def test_compiled_code_follows_use_backend_and_reuses_no_wrong_graph():
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(toy, fullgraph=True, backend=count)
    x = torch.zeros(8)
    seen = {}

    def elsewhere():
        seen["thread"] = compiled(x)[0].item()

    for _ in range(2):
        assert compiled(x)[0] == 2
        with use_backend("reference"):
            assert compiled(x)[0] == 1
            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()
            assert seen.pop("thread") == 2
        with use_backend("cpu"):
            assert compiled(x)[0] == 2
    assert compiled(x.double())[0] == 1
    assert len(graphs) == 4, "one graph for each of: automatic float32, reference, cpu, automatic float64"
    with pytest.raises(Exception, match="not written: no use"), use_backend("triton"):
        compiled(x)


def test_explain_and_friends_are_public():
    assert swintormer_kernels.explain is explain
    assert swintormer_kernels.backends is backends
