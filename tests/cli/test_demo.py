"""``cio-batch demo``, as it is run by somebody who has just installed it."""

import os
import signal
import subprocess
from pathlib import Path

import orjson
import pytest

from cio_batch.cli.screen import Screen
from cio_batch.simulator import KINDS

from .commands import COMMAND, faults, numbers, run, surroundings, wait_until

needs_proc = pytest.mark.skipif(
    not Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").exists(),
    reason="finding the demo's child process needs Linux's /proc/<pid>/task/<tid>/children",
)


def child_of(process: subprocess.Popen[str]) -> int:
    """Wait for the demo's child process and return its id."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait_until(children.read_text)
    return int(children.read_text().split()[0])


def start(*arguments: str) -> subprocess.Popen[str]:
    """Start a demo."""
    return subprocess.Popen(
        [*COMMAND, "demo", *arguments],
        env=surroundings(),
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_every_promise_holds() -> None:
    """8,000 events, every kind of fault, SIGTERM half-way: nothing is lost, everything is in order."""
    finished = run("demo", "--events", "8000", "--people", "700", "--seed", "5")

    assert finished.returncode == 0, finished.stdout + finished.stderr
    table = numbers(finished.stdout)
    assert table["accepted"] == "8,000"
    assert int(table["delivered"].replace(",", "")) + int(table["rejected"]) == 8_000
    assert int(table["rejected"]) > 0
    assert [table[name] for name in ("failed", "lost", "out of order", "person overlaps")] == ["0"] * 4
    assert set(faults(finished.stdout)) == set(KINDS)
    assert min(faults(finished.stdout).values()) > 0
    assert int(table["retried calls"]) > 0
    assert int(table["duplicates"]) > 0
    assert "Every promise held." in finished.stdout
    assert "SIGTERM after" in finished.stderr
    assert "\x1b" not in finished.stdout + finished.stderr  # no terminal, no escapes


def test_json_and_nothing_else_on_standard_output() -> None:
    """--json is for programs; a single person is the hardest for the order."""
    finished = run("demo", "--events", "1000", "--people", "1", "--faults", "0.1", "--json", "-v")

    assert finished.returncode == 0, finished.stdout + finished.stderr
    content = orjson.loads(finished.stdout)
    assert content["accepted"] == content["events"] == 1_000
    assert content["broken"] == []
    assert content["lost"] == content["out_of_order"] == content["person_overlaps"] == 0
    assert content["rejected"] == content["refused"] > 0
    assert min(content["faults"].values()) > 0


@needs_proc
def test_a_broken_promise_is_an_exit_code_of_1() -> None:
    """A producer that is killed cannot keep its word, and the demo says so."""
    process = start("--events", "20000")
    os.kill(child_of(process), signal.SIGKILL)
    out, err = process.communicate(timeout=60)

    assert process.returncode == 1, out + err
    assert "the first producer did not end by SIGTERM but with exit code -9" in out
    assert "Every promise held." not in out


@needs_proc
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_it_can_be_stopped_and_leaves_no_process(signum: signal.Signals) -> None:
    """Ctrl-C in a terminal, which all its processes get, and SIGTERM end it at once, and its child with it."""
    process = start()
    child = child_of(process)
    os.killpg(process.pid, signum)
    out, err = process.communicate(timeout=10)

    assert process.returncode == 128 + signum, out + err
    assert "Traceback" not in err
    assert not Path(f"/proc/{child}").exists()
    assert f"stopped by {'Ctrl-C' if signum == signal.SIGINT else 'SIGTERM'}: " in err
    assert "of 100,000 events had arrived; no process is left" in err


def test_a_bar_does_not_exceed_its_total() -> None:
    """What is counted twice, refused and then arrived, does not make more than all."""
    with Screen().bar("shipping", 100) as bar:
        bar.show(103, "")
        assert bar.completed == 100
