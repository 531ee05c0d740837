"""The benchmarks can be run by anyone: each script says what it does, and the short ones do it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py") if path.name != "harness.py")


def run(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(FOLDER / script), *arguments], check=True, capture_output=True, text=True, timeout=120
    )
    return done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_says_what_it_measures(script: str) -> None:
    """--help works with what the extra `dev` installs, and its README has a line for it."""
    assert "usage: " in run(script, "--help")
    assert f"`{script}`" in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_the_cost_of_a_spool_can_be_measured(tmp_path: Path) -> None:
    """A small run of one that needs sink, harness, SQLite and tracker."""
    result = tmp_path / "result.json"
    said = run("durability.py", "--events", "2000", "--rounds", "1", "--json", str(result))
    assert "of a bare group-commit loop" in said
    ratios = json.loads(result.read_text(encoding="utf-8"))["ratios"]
    assert ratios.keys() == {"of_bare", "of_group_commit", "of_memory"}


def test_steps_can_be_measured(tmp_path: Path) -> None:
    """pytest-benchmark takes its options beside ours."""
    result = tmp_path / "result.json"
    run("micro.py", "--json", str(result), "-k", "judge", "--benchmark-max-time=0.01")
    names = {each["name"] for each in json.loads(result.read_text(encoding="utf-8"))["benchmarks"]}
    assert names == {"test_judge_success", "test_judge_rejections"}


def test_throughput_can_be_measured() -> None:
    """Floor and tracker with a spool, a few thousand events."""
    assert "speed : floor" in run(
        "throughput.py", "--events", "4000", "--rounds", "1", "--only", "floor", "ours, spool"
    )
