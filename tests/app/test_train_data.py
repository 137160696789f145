"""What a run trains on: growing crops, photographs, pairs, two views; and that data ends cleanly."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_training import NETWORK, TIMES, log, same_tensors, tiny

from swintormer.checkpoint.checkpoint import checkpoint_info
from swintormer.data.config import DataConfig
from swintormer.data.synthetic import MARGIN
from swintormer.errors import SwintormerError
from swintormer.images.picture import wrap
from swintormer.images.writing import save_vips
from swintormer.training import config as training_config
from swintormer.training import data
from swintormer.training.config import RestorationConfig, read_config
from swintormer.training.loop import _check_shares, make_run, train
from swintormer.training.processes import Processes
from swintormer.training.run import Run

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
CROPS = [{"steps": 2, "crop": 16, "batch": 5}, {"steps": 2, "crop": 24, "batch": 3}]


def test_crops_grow_and_every_pair_is_used_once(tmp_path) -> None:
    config = tiny(tmp_path / "run", crops=CROPS)
    assert [tuple(config.phase(step)) for step in range(6)] == [
        *((16, 5, 0), (16, 5, 5), (24, 3, 10), (24, 3, 13), (32, 2, 16), (32, 2, 18))
    ]
    run = make_run(config, CPU)
    shapes = [blurred.shape for blurred, _ in run.batches(0)]
    assert shapes == [(b, 3, s, s) for s, b in ((16, 5), (16, 5), (24, 3), (24, 3), (32, 2), (32, 2))]
    expected = run.sources[24].batch(13, 3)
    assert all(torch.equal(a, b) for a, b in zip(next(run.batches(3)), expected, strict=True))


def test_pairs_are_used_again_and_never_the_same_way(tmp_path, monkeypatch) -> None:
    """Each in `reuse` steps, and every step has new and earlier ones."""
    monkeypatch.setattr(data, "APART", 2)
    monkeypatch.setattr(training_config, "APART", 2)
    config = tiny(tmp_path / "run", steps=8, batch=6, reuse=3, workers=1)
    run = make_run(config, CPU)
    steps = list(run.batches(0))
    assert [blurred.shape for blurred, _ in steps] == 8 * [(6, 3, 32, 32)]
    assert (config.pairs(0), config.pairs(8)) == (8, 24)
    pairs = run.sources[32].batch(0, 24)
    ways = {}
    for number, (blurred, sharp) in enumerate(steps):
        for row in range(6):
            index = next(i for i in range(24) if blurred[row].sum().isclose(pairs[0][i].sum(), rtol=1e-6))
            turn = next(t for t in range(8) if torch.equal(data.turned(pairs[0][index], t), blurred[row]))
            assert torch.equal(data.turned(pairs[1][index], turn), sharp[row])
            ways.setdefault(index // 2, {}).setdefault(turn, []).append(number)
    # Group 5 is new in step 1 and used again in steps 3 and 5; each group's two pairs are turned alike.
    assert sorted(number for numbers in ways[5].values() for number in numbers) == [1, 1, 3, 3, 5, 5]
    assert all(len(turns) == 3 for group, turns in ways.items() if 4 <= group < 8)
    assert all(torch.equal(a, b) for a, b in zip(next(run.batches(5)), steps[5], strict=True))


@pytest.mark.parametrize(("size", "accumulate"), [(1, 1), (3, 1), (2, 3), (4, 3)])
def test_processes_share_pairs_that_are_used_again(size, accumulate, tmp_path, monkeypatch) -> None:
    """All together take those of a single process; with the least batch that is allowed each has a pair a part."""
    monkeypatch.setattr(data, "APART", 2)
    monkeypatch.setattr(training_config, "APART", 2)
    least = 2 * size * -(-accumulate // 2)
    config = tiny(tmp_path / "run", batch=least, reuse=2, accumulate=accumulate)
    places = [Processes(rank, size) for rank in range(size)]
    _check_shares(config, places[0])
    sources = data.training_sources(config, places[0])
    whole, *shares = (next(data.batches(config, sources, CPU, 3, 0, place))[0] for place in (Processes(), *places))
    assert all(len(share) >= accumulate for share in shares)
    sums = [sorted(torch.cat(part).sum((1, 2, 3)).tolist()) for part in ([whole], shares)]
    assert sums[0] == sums[1]
    if least > 2:
        with pytest.raises(SwintormerError, match=f"set `batch` to {least} or more"):
            _check_shares(config.model_copy(update={"batch": least - 2}), places[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 3}, "batch 3 is no multiple of reuse 2"),
        ({"crops": CROPS}, "leave out `crops` or `reuse`"),
        (
            {
                "data": {"views": True, "degradation": "camera"},
                "network": NETWORK.model_copy(update={"in_channels": 6}),
            },
            "cannot be turned",
        ),
    ],
)
def test_what_reuse_does_not_go_with(changes: dict[str, object], message: str, tmp_path) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(tmp_path / "run", **{"batch": 4, "reuse": 2} | changes)


@pytest.mark.parametrize("step", [1, 3])
def test_a_run_resumes_in_the_middle_of_a_phase(step: int, tmp_path, monkeypatch) -> None:
    whole, cut = (tiny(tmp_path / name, crops=CROPS, accumulate=2) for name in ("whole", "cut"))
    train(whole)
    original = Run.train_step

    def interrupted(run, blurred, sharp):
        if run.step == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(run, blurred, sharp)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "train_step", interrupted)
        assert train(cut) == cut.out / "state.safetensors"
    train(cut)
    assert [row | TIMES for row in log(whole)] == [row | TIMES for row in log(cut)]
    assert [row["samples"] for row in log(cut)] == ["5", "10", "13", "16", "18", "20"]
    assert same_tensors(whole.out / "state.safetensors", cut.out / "state.safetensors")
    info = checkpoint_info(cut.out / "weights.safetensors")
    assert (info.card["pairs"], info.training_tile) == ("20", 32)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("crops = [{steps = 5, crop = 16, batch = 1}]\nsteps = 5", "the phases of crops last 5 steps and the run 5"),
        ("crops = [{steps = 0, crop = 16, batch = 1}]", "`crops.0.steps` to 0"),
        (
            "crops = [{steps = 1, crop = 300, batch = 1}]\nscene_side = 300",
            "300 is too small for crops of 300",
        ),
        ("crops = [{steps = 1, crop = 16}]", "does not set `crops.0.batch`"),
        ("crop = 16\nperceptual = 0.1", "the perceptual loss takes crops of 18 pixels or more, found 16"),
        ("seed = 9223372036854775808", "`seed` to 9223372036854775808"),
        ("lr = 1e10", "`lr` to 10000000000.0"),
        ("lr = inf", "`lr` to inf"),
        ("betas = [0.9, 1.0]", "`betas.1` to 1.0"),
        ("training_tile = 0", "`training_tile` to 0"),
        ("[data]\nviews = true\ndegradation = 'camera'", "network.in_channels is 6 for data.views = true"),
        ("network = 'released'", "takes pictures of 6 channels here and the data has no views"),
        ("[data]\nphoto = 'x'", "`data.photo` to 'x'"),
    ],
)
def test_faulty_settings_are_named(text: str, complaint: str, tmp_path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("out = 'x'\n" + text)
    with pytest.raises(SwintormerError) as error:
        read_config(path)
    assert complaint in str(error.value)


def test_extreme_settings_train(tmp_path) -> None:
    """The smallest and largest that pass validation, in one step."""
    largest = {
        "seed": 2**63 - 1,
        "steps": 2**63 - 1,
        "lr": 1e9,
        "clip": 1e9,
        "weight_decay": 1e9,
        "fourier": 1e9,
        "minutes": 1e-9,
    }
    smallest = {"crop": 16, "batch": 1, "min_lr": 0.0, "training_tile": 1, "warmup": 10**9}
    needed = smallest["crop"] + MARGIN
    config = tiny(tmp_path / "run", **largest | smallest | {"scene_side": needed, "ema": 0.0, "betas": (0.0, 0.0)})
    assert train(config) == config.out / "weights.safetensors"


@pytest.fixture
def photographs(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number in range(2):
        pixels = np.kron(rng.integers(0, 256, (20, 24, 3)), np.ones((8, 8, 1))).astype(np.uint8)
        save_vips(folder / f"{number}.png", wrap(pixels))
    return folder


@pytest.mark.parametrize("views", [False, True])
def test_photographs_and_scenes_and_views(views: bool, tmp_path, photographs) -> None:
    mixture = {"photos": str(photographs), "scenes": 1, "cache": str(tmp_path / "cache"), "degradation": "camera"}
    network = NETWORK.model_copy(update={"in_channels": 6 if views else 3})
    config = tiny(tmp_path / "run", network=network, data=mixture | {"views": views}, steps=2, crop=16)
    info = checkpoint_info(train(config))
    assert "2 photographs of photographs (camera degradation)" in info.card["data"]
    run = make_run(config, CPU)
    blurred, sharp = run.validation.batch(0, 1)
    with torch.no_grad():
        restored, right = run.shown(blurred, sharp)
    # A fresh network is the identity: of the right view, which the sources give second.
    assert torch.equal(right, blurred[:, 3:] if views else blurred)
    assert float((restored - right).abs().max()) <= 2 * torch.finfo().eps
    assert torch.equal(run.validate().pictures[0][0], right[0])


def test_where_the_cache_lies_decides_nothing_and_what_it_holds_does(tmp_path, photographs) -> None:
    config = tiny(tmp_path / "run", data={"photos": str(photographs), "cache": str(tmp_path / "one")}, steps=1, crop=16)
    train(config)
    moved = config.data.model_copy(update={"cache": tmp_path / "two"})
    train(config.model_copy(update={"data": moved}))
    more = config.data.model_copy(update={"photos_share": 2.0})
    with pytest.raises(SwintormerError, match=r"`data\.photos_share` 1\.0 -> 2\.0"):
        train(config.model_copy(update={"data": more}))


def test_another_crop_or_phases_on_resuming_are_named(tmp_path) -> None:
    config = tiny(tmp_path / "run", steps=3)
    train(config.model_copy(update={"minutes": 1e-9}))
    for change, named in (
        ({"crop": 48}, "`crop` 32 -> 48"),
        ({"crops": CROPS[:1]}, "`crops`"),
        ({"steps": 2}, "`steps` 3 -> 2"),
    ):
        with pytest.raises(SwintormerError) as error:
            train(RestorationConfig(**config.model_dump() | {"minutes": 1e-9} | change))
        assert named in str(error.value)


def test_an_older_state_goes_on(tmp_path, monkeypatch) -> None:
    """From before the settings that came last, and with the random state that files held then."""
    config = tiny(tmp_path / "run", steps=2)
    with monkeypatch.context() as patch:
        before = Run.settings
        left_out = ("crops", "loss", "data")
        patch.setattr(Run, "settings", lambda run: {k: v for k, v in before(run).items() if k not in left_out})
        patch.setattr(Run, "progress", property(lambda run: float(run.step > 0)))
        train(config)
    state = config.out / "state.safetensors"
    with safe_open(state, "pt") as file:
        tensors, head = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    save_file(tensors | {"rng.cpu": torch.get_rng_state()}, state, head)
    train(config)
    assert [row["step"] for row in log(config)] == ["1", "2"]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_of_the_data_is_one_sentence_from_any_process(workers: int, tmp_path, photographs) -> None:
    """A picture that the cache has lost since."""
    cache = tmp_path / "cache"
    config = tiny(tmp_path / "run", data={"photos": str(photographs), "cache": str(cache)}, crop=16)
    sources = data.training_sources(config, Processes())
    for file in cache.rglob("*.npy"):
        file.unlink()
    with pytest.raises(SwintormerError) as error:
        next(data.batches(config, sources, CPU, 0, workers, Processes()))
    assert "Traceback" not in str(error.value)


def test_a_worker_that_is_killed_is_one_sentence(tmp_path) -> None:
    config = tiny(tmp_path / "run", steps=1000)
    pairs = data.batches(config, data.training_sources(config, Processes()), CPU, 0, 1, Processes())
    next(pairs)
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(SwintormerError, match="was ended from outside"):
        for _ in pairs:
            pass


def test_a_worker_that_died_raises_no_second_error() -> None:
    """Torch raises one wherever the program is, at every end of a process, until the worker has been waited for."""
    worker = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))

    def like_torch(_number, _frame):
        raise RuntimeError("DataLoader worker is killed")

    worker.start()
    before = signal.signal(signal.SIGCHLD, like_torch)
    try:
        with suppress(RuntimeError):
            os.kill(worker.pid, signal.SIGKILL)
            time.sleep(5)
        data._reap()
    finally:
        signal.signal(signal.SIGCHLD, before)
    with pytest.raises(ChildProcessError):
        os.waitpid(worker.pid, os.WNOHANG)


@pytest.mark.parametrize(
    "error", [EOFError(), ConnectionResetError(104, "reset"), RuntimeError("DataLoader worker died")]
)
def test_a_worker_that_dies_while_it_hands_over_is_one_sentence(tmp_path, monkeypatch, error) -> None:
    class Loader:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def __iter__(self):
            raise error
            yield

    config = tiny(tmp_path / "run", steps=1)
    sources = data.training_sources(config, Processes())
    monkeypatch.setattr(torch.utils.data, "DataLoader", Loader)
    with pytest.raises(SwintormerError, match="was ended from outside"):
        next(data.batches(config, sources, CPU, 0, 0, Processes()))


@pytest.mark.parametrize("at_start", [signal.default_int_handler, signal.SIG_IGN])
def test_signals_while_data_is_made_leave_and_are_put_back(tmp_path, monkeypatch, request, at_start) -> None:
    """Also in a program that a shell started in the background, with SIGINT ignored."""
    request.addfinalizer(partial(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, at_start)))
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    for number, kind in ((signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)):
        monkeypatch.setattr(Run, "prepare", lambda run, number=number: (os.kill(os.getpid(), number), time.sleep(5)))
        with pytest.raises(kind) as caught:
            train(tiny(tmp_path / "run"))
        if kind is SystemExit:
            assert caught.value.code == 128 + number
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_interrupt_of_the_program_while_its_worker_starts(tmp_path) -> None:
    """The signal comes as from a terminal: to all processes of the group, one of them not yet set up."""
    (tmp_path / "c.toml").write_text(f"""
        out = "{tmp_path / "run"}"
        steps = 100000
        batch = 1
        crop = 32
        scene_side = 96
        workers = 1
        device = "cpu"
        {"network = " + inline(NETWORK.model_dump())}
    """)
    code = (
        "import os, signal, sys, threading\n"
        "from multiprocessing import popen_spawn_posix as popen\n"
        "launch = popen.Popen._launch\n"
        "def interrupted(self, process):\n"
        "    launch(self, process)\n"
        "    threading.Timer(0.3, os.killpg, (os.getpgrp(), signal.SIGINT)).start()\n"
        "popen.Popen._launch = interrupted\n"
        "from swintormer.cli.app import app\n"
        "if __name__ == '__main__': app(['train', sys.argv[1]])\n"
    )
    script = tmp_path / "interrupted.py"
    script.write_text(code)
    root = Path(__file__).resolve().parents[2]
    process = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "c.toml")],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
        start_new_session=True,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert process.returncode == 128 + signal.SIGINT, process.stderr
    assert "Traceback" not in process.stderr
    assert "the same command continues" in process.stderr


def inline(table: dict[str, object]) -> str:
    """A TOML table in one line."""
    return (
        "{" + ", ".join(f"{k} = {str(list(v) if isinstance(v, tuple) else v).lower()}" for k, v in table.items()) + "}"
    )


def test_default_data_is_what_it_was() -> None:
    assert DataConfig.model_validate({}).scenes_share == 1
