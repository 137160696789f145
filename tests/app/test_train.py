"""The trainer at tiny size: it learns, resumes exactly, stops when told to, and says what is wrong."""

import json
import math
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_training import NETWORK, log, same_tensors, tiny
from typer.testing import CliRunner

from swintormer.checkpoint.checkpoint import checkpoint_info, load_checkpoint
from swintormer.cli.app import app
from swintormer.data.degrade import Recipe
from swintormer.errors import SwintormerError
from swintormer.model.config import PRESETS
from swintormer.training.config import read_config
from swintormer.training.data import batches, training_sources
from swintormer.training.loop import make_run, train
from swintormer.training.processes import Processes
from swintormer.training.run import RestorationRun, Run
from swintormer.training.state import FREE, check_settings

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def config(tmp_path):
    return tiny(tmp_path / "run")


@dataclass
class After:
    """Makes the trainer do something once, in the middle of a step."""

    step: int
    action: object

    def __call__(self, monkeypatch):
        original = Run.train_step

        def train_step(run, blurred, sharp):
            result = original(run, blurred, sharp)
            return (self.action(run, result) or result) if run.step == self.step else result

        monkeypatch.setattr(Run, "train_step", train_step)


def test_killed_run_resumes_from_its_last_checkpoint(config, monkeypatch):
    """Rows that the log got after the checkpoint are dropped and written again."""

    class PowerCutError(Exception):
        pass

    def cut(run, result):
        raise PowerCutError

    with monkeypatch.context() as patch:
        After(4, cut)(patch)
        with pytest.raises(PowerCutError):
            train(config)
    assert [row["step"] for row in log(config)] == ["1", "2", "3"]
    train(config)
    assert [row["step"] for row in log(config)] == [str(step) for step in range(1, 7)]


def test_finished_run_is_left_as_it_is_and_restarts_on_demand(config):
    first = train(config).rename(config.out / "first.safetensors")
    rows = log(config)
    assert same_tensors(train(config), first)
    assert log(config) == rows
    train(config, resume=False)
    assert [row["loss"] for row in log(config)] == [row["loss"] for row in rows]


def test_weights_hold_the_average_and_the_recipe(config):
    path = train(config.model_copy(update={"training_tile": 64}))
    info = checkpoint_info(path)
    assert info.config == NETWORK
    assert info.training_tile == 64
    assert info.card["steps"] == "6"
    assert json.loads(info.card["recipe"])["seed"] == 1
    state = load_checkpoint(path).state_dict()
    with safe_open(config.out / "state.safetensors", "pt") as file:
        assert all(torch.equal(tensor, file.get_tensor(f"average.{name}")) for name, tensor in state.items())
        assert not all(torch.equal(tensor, file.get_tensor(f"net.{name}")) for name, tensor in state.items())


def test_it_learns_to_invert_the_pictures(config):
    """Negatives are far from the identity that training starts from, so twenty steps must show by a fifth."""
    run = RestorationRun(config.model_copy(update={"lr": 1e-2, "steps": 20}), torch.device("cpu"))
    picture = torch.rand(2, 3, 32, 32)
    losses = [float(run.train_step(picture, 1 - picture)[0]) for _ in range(20)]
    assert losses[0] == pytest.approx(float((2 * picture - 1).abs().mean()), rel=32 * torch.finfo().eps)
    assert losses[-1] < 0.8 * losses[0]


def test_fresh_network_is_the_identity(config):
    run = RestorationRun(config, torch.device("cpu"))
    picture = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert (run.net(picture) - picture).abs().max() <= 2 * torch.finfo().eps  # (2x - 1 + 1) / 2


def test_schedule_follows_whichever_is_further_along(config):
    config = config.model_copy(update={"steps": 100, "minutes": 10.0, "warmup": 4, "min_lr": 1e-5})
    run = RestorationRun(config, torch.device("cpu"))
    assert run.lr == pytest.approx(config.lr / 5)  # the first of four steps below the peak
    run.step = 50
    middle = (config.lr + config.min_lr) / 2
    assert run.lr == pytest.approx(middle)
    run.step, run.seconds = 10, 300.0
    assert run.lr == pytest.approx(middle)
    run.seconds = 6000.0
    assert run.progress == 1
    assert run.lr == pytest.approx(config.min_lr)


def test_minutes_end_a_run(config):
    path = train(config.model_copy(update={"steps": 10**9, "minutes": 1e-9}))
    assert checkpoint_info(path).card["steps"] == "1"


def test_minutes_leave_out_the_time_while_the_process_was_stopped(config, monkeypatch):
    """A clock of one second for each step, and a night in the fourth step."""
    now, original = [0.0], Run.train_step

    def train_step(run, blurred, sharp):
        now[0] += 8 * 3600.0 if run.step == 3 else 1.0
        return original(run, blurred, sharp)

    monkeypatch.setattr(Run, "train_step", train_step)
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    train(config.model_copy(update={"minutes": 60.0}))
    assert [round(60 * float(row["minutes"])) for row in log(config)] == [1, 2, 3, 63, 64, 65]


@pytest.mark.parametrize("row", ["", "nan,1,2", "\0\0\0", "½,", "-1,"])
def test_damaged_rows_of_the_log_are_dropped_on_resuming(config, row):
    train(config.model_copy(update={"steps": 2}))
    path = config.out / "log.csv"
    whole = path.read_text()
    path.write_bytes((whole + row + "\n").encode("latin-1"))
    train(config.model_copy(update={"steps": 3}), accept_changes=True)
    assert path.read_text().startswith(whole)
    assert [entry["step"] for entry in log(config)] == ["1", "2", "3"]


def test_worker_process_makes_the_same_batches(config):
    sources = training_sources(config, Processes())
    here, there = (batches(config, sources, torch.device("cpu"), 2, workers, Processes()) for workers in (0, 1))
    for _ in range(2):
        for a, b in zip(next(here), next(there), strict=True):
            assert torch.equal(a, b)


def test_bfloat16_and_channels_last_train_the_same_network(config):
    """To the precision of bfloat16 (8 bits) times the depth of rounding, one per block and convolution."""
    output, (blurred, sharp), losses = 0.1 * torch.randn(12, 8, 3, 3), torch.rand(2, 2, 3, 32, 32), []
    for changes in ({}, {"dtype": "bfloat16"}, {"channels_last": True}):
        run = RestorationRun(config.model_copy(update=changes), torch.device("cpu"))
        assert {p.dtype for p in run.net.parameters()} == {torch.float32}
        with torch.no_grad():
            run.net.output[0].weight.copy_(output)
        losses.append(float(run.train_step(blurred, sharp)[0]))
    depth = 2 * 8 + 10  # two halves of eight blocks, ten convolutions around them
    assert losses[1] == pytest.approx(losses[0], rel=depth * torch.finfo(torch.bfloat16).eps)
    assert losses[2] == pytest.approx(losses[0], rel=depth * 9 * 32 * torch.finfo().eps)  # sums of up to 9 * 8D terms


def test_gradient_that_is_not_finite_ends_the_run_before_it_is_saved(config, monkeypatch):
    with monkeypatch.context() as patch:
        After(4, lambda run, result: (result[0], torch.tensor(math.nan)))(patch)
        with pytest.raises(SwintormerError, match="not finite at step 4"):
            train(config)
    with safe_open(config.out / "state.safetensors", "pt") as file:
        assert json.loads(file.metadata()["state"])["step"] == 2


@pytest.mark.parametrize("content", [b"", b"not a state", b"\x02\0\0\0\0\0\0\0{}"])
def test_state_that_is_none_is_refused_and_kept(config, content):
    config.out.mkdir(parents=True)
    state = config.out / "state.safetensors"
    state.write_bytes(content)
    with pytest.raises(SwintormerError, match="is not a training state"):
        train(config)
    assert state.read_bytes() == content


def test_state_of_another_network_is_refused(config):
    train(config.model_copy(update={"steps": 1}))
    larger = NETWORK.model_copy(update={"dim": 8})
    with pytest.raises(SwintormerError, match="of other sizes"):
        train(config.model_copy(update={"network": larger}))


def test_state_that_does_not_fit_is_one_sentence_and_changes_nothing(config):
    """A missing, a foreign and a misshapen tensor; a description that is none; counters that cannot be."""
    train(config.model_copy(update={"steps": 1}))
    state = config.out / "state.safetensors"
    with safe_open(state, "pt") as file:
        tensors, head = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()["state"]  # noqa: SIM118
    weight, moment, counter = "net.skip_conv.weight", "optimizer.0.exp_avg", "optimizer.0.step"

    def without(name):
        return {key: tensor for key, tensor in tensors.items() if key != name}

    def told(**changes):
        return json.dumps(json.loads(head) | changes)

    faulty = [
        *[(without(name), head, name) for name in (weight, "average.skip_conv.weight", moment)],
        (tensors | {"x.y": torch.zeros(1)}, head, "x.y"),
        (tensors | {"word": torch.zeros(1)}, head, "word"),
        (tensors | {"optimizer.9999.step": torch.zeros(())}, head, "optimizer.9999.step"),
        (tensors | {weight: torch.zeros(1)}, head, weight),
        (tensors | {weight: tensors[weight].double()}, head, "float64"),
        (tensors | {counter: torch.tensor(5.0)}, head, counter),
        (tensors, "[]", "no table"),
        (tensors, "[" * 100_000, "not a training state"),
        *[(tensors, told(step=step), "step") for step in (-1, 1.5, "1", None, True)],
        *[(tensors, told(seconds=seconds), "seconds") for seconds in (-1, math.nan, "1", None)],
        (tensors, told(settings=[]), "settings"),
        (tensors, told(identity=None), "other sizes"),
    ]
    run = RestorationRun(config, torch.device("cpu"))
    before = {name: tensor.clone() for name, tensor in run.net.state_dict().items()}
    for content, text, named in faulty:
        save_file(content, state, {"state": text})
        with pytest.raises(SwintormerError) as error:
            run.load(state, accept_changes=True)
        assert str(state) in str(error.value)
        assert named in str(error.value)
        assert "\n" not in str(error.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.net.state_dict().items())
    assert run.step == 0


def test_settings_that_older_states_do_not_name(config):
    """They are what their defaults are: the run goes on."""
    now = make_run(config, torch.device("cpu")).settings()
    older = {**now, "data": {name: value for name, value in now["data"].items() if name != "recipe"}}
    check_settings(config.out, older, now)
    changed = {**now, "data": {**now["data"], "recipe": Recipe().model_dump(mode="json")}}
    with pytest.raises(SwintormerError, match=r"other settings, `data.recipe` null -> \{.*\.\.\.: set them back"):
        check_settings(config.out, older, changed)
    changed = {**now, "data": {**now["data"], "photos": ["other"]}}
    with pytest.raises(SwintormerError, match=r'other settings, `data.photos` \[\] -> \["other"\]: set them back'):
        check_settings(config.out, older, changed)


def test_truncated_state_is_refused(config):
    train(config.model_copy(update={"steps": 1}))
    state = config.out / "state.safetensors"
    content = state.read_bytes()
    for size in (4, 100, len(content) // 2, len(content) - 1):
        state.write_bytes(content[:size])
        with pytest.raises(SwintormerError, match="is not a training state"):
            train(config)


def test_resuming_under_other_settings_names_them_and_waits_for_consent(config):
    train(config.model_copy(update={"steps": 1}))
    other = config.model_copy(update={"steps": 2, "seed": 99, "lr": 1.0})
    with pytest.raises(SwintormerError) as error:
        train(other)
    for change in ("`seed` 1 -> 99", "`lr` 0.001 -> 1.0", "`steps` 1 -> 2", "--accept-changes"):
        assert change in str(error.value)
    assert train(other, accept_changes=True) == config.out / "weights.safetensors"
    assert [row["step"] for row in log(config)] == ["1", "2"]
    with pytest.raises(SwintormerError, match="has done 2 steps, and `steps` asks for 1"):
        train(other.model_copy(update={"steps": 1}), accept_changes=True)


@pytest.mark.usefixtures("one_thread")
def test_settings_that_decide_nothing_may_change(config, capsys):
    train(config)
    free = {"out": config.out, "device": "auto", "threads": 1, "workers": 1, "log_every": 5, "checkpoint_every": 7}
    free |= {"accumulate": 2, "graph": True}
    assert set(free) | {"data"} == set(FREE)
    train(config.model_copy(update=free | {"device": "cpu"}))
    assert "complete after 6 steps: nothing is left to train" in capsys.readouterr().err


def test_interrupted_program_tells_the_signal(config, monkeypatch):
    After(2, lambda run, _: os.kill(os.getpid(), signal.SIGINT))(monkeypatch)
    monkeypatch.setattr("swintormer.training.config.read_config", lambda _: config)
    assert CliRunner().invoke(app, ["train", "c.toml"]).exit_code == 128 + signal.SIGINT


def test_a_folder_that_cannot_be_made_or_written(config, monkeypatch):
    config.out.parent.joinpath("file").touch()
    inside = config.model_copy(update={"out": config.out.parent / "file" / "run"})
    with pytest.raises(SwintormerError, match="Cannot create the folder"):
        train(inside)
    monkeypatch.setattr("os.access", lambda *_, **__: False)  # root may write everywhere
    with pytest.raises(SwintormerError, match="Cannot write into the folder"):
        train(config)
    monkeypatch.undo()
    (config.out / "log.csv").mkdir(parents=True)
    with pytest.raises(SwintormerError, match=r"Cannot write .*log.csv"):
        train(config)


def test_a_disk_that_fills_up_while_the_state_is_saved_spares_the_last_one(config, monkeypatch):
    train(config.model_copy(update={"steps": 1}))
    state = config.out / "state.safetensors"
    before = state.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(SwintormerError, match=r"Cannot write .*: No space left on device"):
        RestorationRun(config, torch.device("cpu")).save(state)
    assert state.read_bytes() == before
    assert {path.suffix for path in config.out.iterdir()} == {".safetensors", ".csv", ".svg", ".png"}


def test_the_shipped_recipe_is_valid():
    config = read_config(ROOT / "configs" / "small.toml")
    assert config.network == PRESETS["small"]
    assert config.crop % config.network.stride == 0
    assert config.training_tile % config.network.stride == 0


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("out = 'x'\nstps = 5", "c.toml: stage restoration has no setting `stps`."),
        ("out = 'x'\npool = 5", "c.toml: stage restoration has no setting `pool`, it belongs to denoiser."),
        (
            "out = 'x'\nstage = 'autoencoder'\ninitial = 'y'",
            "c.toml: stage autoencoder has no setting `initial`, it belongs to restoration and joint.",
        ),
        ("out = 'x'\nsteps = 0", "`steps` to 0"),
        ("out = 'x'\ndtype = 'half'", "`dtype` to 'half'"),
        ("out = 'x'\nbackend = 'magic'", "no such backend, choose one of auto, "),
        ("out = 'x'\n[network]\ndim = 3", "dim must be even"),
        ("out = 'x'\ncrop = 32\nscene_side = 77", "scene_side 77 is too small for crops of 32 and their margins"),
        ("out = 'x'\nscene_side = 0", "scene_side 0 is too small"),
        ("out = 'x'\nstage = 'detail'", "`stage` to 'detail': there is no such stage, choose one of restoration, "),
        ("steps = 5", "does not set `out`"),
        ("out = 'x'\nnetwork = 'huge'", "no such preset, choose one of released, small"),
        ("out = ", "not valid TOML"),
        (
            "out = 'x'\nstage = 'denoiser'",
            "c.toml does not set `prior_weights`, which stage denoiser needs.",
        ),
    ],
)
def test_faulty_configuration_is_named(tmp_path, text, complaint):
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(SwintormerError) as error:
        read_config(path)
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("error", [MemoryError("x"), RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")])
def test_memory_that_does_not_suffice_is_one_sentence(config, monkeypatch, error):
    def build(run):
        raise error

    monkeypatch.setattr(RestorationRun, "build", build)
    monkeypatch.setattr("swintormer.training.config.read_config", lambda _: config)
    result = CliRunner().invoke(app, ["train", "c.toml"])
    assert result.exit_code == 1
    assert "memory is not sufficient for this training: lower `batch`" in result.output


@pytest.mark.parametrize("name", ["meta", "vulkan", "none", ""])
def test_a_device_that_cannot_be_used_is_one_sentence(config, name):
    with pytest.raises(SwintormerError, match=f"device '{name}'") as error:
        train(config.model_copy(update={"device": name}))
    assert "use auto, cpu" in str(error.value)
    assert "\n" not in str(error.value)
