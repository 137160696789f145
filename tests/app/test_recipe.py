"""What names the project's targets, versions and extras: the recipe for public runners, and `swintormer info`."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import yaml

from swintormer.cli.info import EXTRAS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
RECIPE = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# The first versions that run on Node 24; runners have no Node 20 since September 2026.
ACTIONS = {"actions/checkout": 5, "actions/setup-python": 6, "actions/upload-artifact": 6}


def commands() -> list[list[str]]:
    return [shlex.split(step["run"]) for job in RECIPE["jobs"].values() for step in job["steps"] if "run" in step]


def test_targets_exist():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    made = [word for line in commands() if line[0] == "make" for word in line[1:] if "=" not in word]
    assert made
    assert set(made) <= set(targets)


def test_actions_run_on_todays_runners():
    used = {step["uses"] for job in RECIPE["jobs"].values() for step in job["steps"] if "uses" in step}
    for action in used:
        name, _, version = action.partition("@v")
        assert int(version) >= ACTIONS[name], action


def test_the_range_of_versions():
    pythons = {
        p for job in RECIPE["jobs"].values() for p in job.get("strategy", {"matrix": {}})["matrix"].get("python", [])
    }
    assert min(pythons, key=lambda v: int(v.split(".")[1])) == PROJECT["requires-python"].removeprefix(">=")
    (torch,) = (line.removeprefix("torch>=") for line in PROJECT["dependencies"] if line.startswith("torch>="))
    words = [word for line in commands() for word in line]
    assert f"torch=={torch}.*" in words, "the oldest of the range"
    assert f"TORCH=torch>={torch}" in words, "the newest"
    assert {
        runner
        for job in RECIPE["jobs"].values()
        for runner in job.get("strategy", {"matrix": {}})["matrix"].get("machine", [])
    } >= {
        "ubuntu-24.04",
        "ubuntu-24.04-arm",
    }


def test_the_oldest_torch_is_tried_with_the_packages_of_the_tests():
    """All of the extra [test] but linters and what asks for a newer torch."""
    (given,) = (set(line) for line in commands() if "torch==2.6.*" in line)
    wanted = {re.split(r"[<>=!; ]", line)[0] for line in PROJECT["optional-dependencies"]["test"]}
    assert wanted - given == {"triton", "ruff", "mypy", "import-linter"}


def test_info_knows_the_extras():
    """All but those for tests and benches, and Triton, which is among the backends."""
    extras = {
        name: [re.split(r"[<>=!; ]", line)[0] for line in lines]
        for name, lines in PROJECT["optional-dependencies"].items()
        if name not in ("test", "plot", "triton")
    }
    assert {name: packages for name, (_, packages) in EXTRAS.items()} == extras
