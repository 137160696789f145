"""Pictures over a Ray cluster: of two machines that are processes here, one worker is killed on the way."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from cli_files import default_signals, files, make_bad, photo
from cli_program import PATIENCE, PROGRAM

from swintormer.cli.deblur import Elsewhere, Extras, Settings, restore_on_cluster
from swintormer.cli.plan import Job
from swintormer.cli.progress import Reporter
from swintormer.errors import SwintormerError
from swintormer.integrations.ray import Place, Team, cluster, places

HERE = Path(__file__).resolve().parent


def node(name: str, cores: float, gpus: float = 0, alive: bool = True) -> dict[str, object]:
    """As `ray.nodes()` describes a machine; what it does not have, it does not name."""
    resources = {key: value for key, value in (("CPU", cores), ("GPU", gpus)) if value}
    return {"NodeID": name, "Alive": alive, "Resources": resources}


def test_a_core_of_every_machine_stays_free():
    nodes = [node("a", 16), node("b", 3), node("c", 2), node("d", 1), node("e", 8, alive=False), node("f", 0)]
    assert places(nodes) == [
        *[Place("a", 4)] * 3, Place("b", 2), Place("c", 1), Place("d", 0),
    ]  # fmt: skip
    assert places([node("a", 16, 2), node("b", 2, 1), node("c", 4, 8)]) == [
        *[Place("a", 4, 1)] * 2, Place("b", 1, 1), *[Place("c", 0, 1)] * 8,
    ]  # fmt: skip
    assert places([node("a", 5, 2)], use_gpus=False) == [Place("a", 4)]


def test_without_ray(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    photo("in/a.png", side=(8, 8))
    result = run("deblur", "in", "-o", "out", "--ray", "local", code=1)
    assert result.stderr == (
        "Error: Ray is not installed: pip install 'swintormer-kernels[ray]', or share the pictures out with --shard.\n"
    )


def test_what_a_cluster_cannot_do(run):
    photo("in/a.png", side=(8, 8))
    words = "Pictures on a cluster come from files and go to files: leave out --report and -."
    for out in (["out", "--report", "page.html"], ["-", "--format", "png"]):
        assert words in run("deblur", "in/a.png", "-o", *out, "--ray", "local", code=1).stderr


def test_a_worker_tells_what_one_process_tells(run, weights):
    """Its part that knows nothing of Ray: same file, same line but for the time, same sentence for a failure."""
    good, bad = photo("in/a.png"), make_bad("truncated")
    restore = pickle.loads(pickle.dumps(partial(Elsewhere, Settings(weights=weights), Extras(), False)))()
    line, failure = restore(Job(good, Path("out/a.png")))
    assert (line.partition(" tiles,")[0], failure) == ("in/a.png -> out/a.png: 50x40, RGB, 8 bits, 4", "")
    line_of_bad, failure = restore(Job(bad, Path("out/b.png")))
    result = run("deblur", "in", "-o", "one", code=1)
    assert line.replace("out/", "one/").partition(" tiles,")[0] in result.stdout
    assert (line_of_bad, failure in result.stderr) == ("", True)
    assert Path("out/a.png").read_bytes() == Path("one/a.png").read_bytes()
    restore.stop()
    assert restore(Job(good, Path("again/a.png"))) == ("", "")
    assert not Path("again/a.png").exists()


@pytest.fixture(scope="module")
def machines():
    """The address of a cluster of two machines with two cores each, which are processes of this one."""
    pytest.importorskip("ray", reason="the extra [ray] is not installed (make test-ecosystem)")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv(
            "PYTHONPATH", os.pathsep.join(str(folder) for folder in (HERE, *HERE.parents[:2]))
        )  # inherited by the workers
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        made.add_node(num_cpus=2)
        yield made.address
        made.shutdown()


def workers_of_this_process() -> list[int]:
    """Process numbers of the cluster's workers that work on something."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title, parent = (folder / "cmdline").read_text(), _parent(folder)
            if title.startswith("ray::Worker.do") and _parent(Path("/proc", parent)) == str(os.getpid()):
                found.append(int(folder.name))
        except OSError:  # it has ended meanwhile
            continue
    return found


def _parent(folder: Path) -> str:
    return (folder / "stat").read_text().rpartition(")")[2].split()[1]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")
def test_a_worker_is_killed_on_the_way(machines, tmp_path, monkeypatch, weights):
    monkeypatch.chdir(tmp_path)
    for name in "abcdef":
        photo(f"in/{name}.png", side=(150, 150))
    bad = make_bad("truncated")
    words = ["deblur", "in", "-o", "out", "--tile", "32", "--stride", "5", "--ray", machines, "--weights", str(weights)]
    with subprocess.Popen([*PROGRAM, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        try:
            first = program.stdout.readline()
            while not (busy := workers_of_this_process()):
                time.sleep(0.05)
            os.kill(busy[0], signal.SIGKILL)
            told, errors = program.communicate(timeout=PATIENCE)
        finally:
            program.kill()
    assert program.returncode == 1
    assert errors.startswith(f"6 restored, 1 failed:\n  {bad} is damaged, cut short"), errors
    assert {line.partition(" ->")[0] for line in (first + told).splitlines() if " -> " in line} == {
        f"in/{name}.png" for name in "abcdef"
    }
    assert files("out") == {f"{name}.png" for name in "abcdef"}, "no file is lost, none is half-written"
    subprocess.run([*PROGRAM, "deblur", "in/a.png", "-o", "one", *words[4:8], "--weights", str(weights)], check=True)
    assert Path("out/a.png").read_bytes() == Path("one/a.png").read_bytes()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")
def test_an_interrupt_ends_the_pictures_at_hand(machines, tmp_path, monkeypatch, weights):
    monkeypatch.chdir(tmp_path)
    for name in "abc":
        photo(f"in/{name}.png", side=(222, 222))  # 36481 tiles each
    words = ["deblur", "in", "-o", "out", "--tile", "32", "--stride", "1", "--ray", machines, "--weights", str(weights)]
    with default_signals():
        started = subprocess.Popen([*PROGRAM, *words], stderr=subprocess.PIPE, text=True)
    with started as program:
        try:
            while not workers_of_this_process():
                assert program.poll() is None
                time.sleep(0.05)
            program.send_signal(signal.SIGINT)
            _, errors = program.communicate(timeout=PATIENCE)
        finally:
            program.kill()
    assert program.returncode == 128 + signal.SIGINT
    assert errors.startswith("Interrupted: 0 restored, no incomplete file is left"), errors
    assert not Path("out").exists() or files("out") == set()


def deadly(path: Path) -> str:
    """Ends its process over "always", over "once" only the first time."""
    if path.name == "always" or (path.name == "once" and not path.exists()):
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return path.name


def make_deadly() -> object:
    return deadly


def make_nothing() -> object:
    raise SwintormerError("The weights are missing.")


def make_dead() -> object:
    os.kill(os.getpid(), signal.SIGKILL)


def test_workers_that_die_as_they_begin(machines):
    with cluster(machines) as ray:
        team = Team(ray, make_dead)
        with pytest.raises(SwintormerError, match="The workers of the Ray cluster die as they begin: "):
            list(team.each([1, 2, 3]))
    assert team.deaths == 3


def test_a_piece_that_kills_its_workers_is_given_up(machines, tmp_path):
    pieces = [tmp_path / name for name in ("a", "once", "b", "always", "c")]
    with cluster(machines) as ray:
        team = Team(ray, make_deadly)
        ended = {path.name: result for path, result in team.each(pieces)}
        with pytest.raises(SwintormerError, match="The weights are missing"):
            list(Team(ray, make_nothing).each(pieces))
        assert list(Team(ray, make_deadly).each(pieces, stopped=lambda: True)) == []
    assert team.deaths == 3
    assert str(ended.pop("always")) == "2 workers died over it, perhaps for lack of memory"
    assert ended == {name: name for name in ("a", "once", "b", "c")}


def test_there_is_no_cluster(machines, tmp_path, monkeypatch, weights):
    monkeypatch.chdir(tmp_path)
    jobs = [Job(photo("in/a.png", side=(8, 8)), Path("out/a.png"))]
    settings = Settings(weights=weights)
    with pytest.raises(SwintormerError, match=r"There is no Ray cluster at '127\.0\.0\.1:1'"):
        restore_on_cluster(jobs, settings, Reporter(jobs), Extras(), "127.0.0.1:1")
