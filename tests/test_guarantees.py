"""What the README guarantees: each cell of its table names tests; those that stand nowhere else are here."""

from __future__ import annotations

import ast
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from cio_batch import CioBatchTracker, Report
from cio_batch.simulator import Simulator
from cio_batch.spools import SqliteSpool
from cio_batch.spools.database import Database

from .conftest import settings_for
from .hosts.harness import Host, numbers_of

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = str(Path(__file__).parent / "proof" / "programs" / "ending.py")
EVENTS = 200
HEADING = "## What is guaranteed, and when events are lost"


def cells() -> dict[tuple[str, str], str]:
    """The cells of the table, by fault and mode."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition(HEADING)[2].partition("\n## ")[0]
    lines = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    modes = [mode.strip() for mode in lines[0][1:]]
    return {
        (line[0].strip(), mode): text.strip() for line in lines[2:] for mode, text in zip(modes, line[1:], strict=True)
    }


def test_the_table_speaks_of_every_mode_and_fault() -> None:
    """Memory and a spool; an exception, signals, kills, power, an outage, a refusal, and what else may come."""
    found = cells()
    assert {mode for _, mode in found} == {"memory", "`SqliteSpool`"}
    faults = " ".join(fault for fault, _ in found).lower()
    for fault in ("exception", "sigterm", "sigkill", "power", "outage", "refus", "disk", "full", "fork"):
        assert fault in faults


@pytest.mark.parametrize("cell", cells(), ids=" / ".join)
def test_every_cell_is_backed_by_a_test(cell: tuple[str, str]) -> None:
    """Each names at least one, by its file and its name, and that one is there."""
    links = re.findall(r'\[[^\]]+\]\((tests/[\w/]+\.py) "(test_\w+)"\)', cells()[cell])
    assert links
    for file, name in links:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}


async def run_until(sim: Simulator, end: Callable[[Host], object], spool: Path | None) -> int:
    """Run a program that enqueues and then waits, end it, and return its exit code."""
    arguments = [PROGRAM, "interrupted", str(EVENTS), *([] if spool is None else [str(spool)])]
    async with Host(sim, *arguments) as host:
        await host.line("^ready$")
        end(host)
        return await host.exit_code()


async def deliver(sim: Simulator, spool: Path) -> Report:
    """Start once more, and send what the spool holds."""
    async with CioBatchTracker(settings_for(sim), spool=SqliteSpool(spool)) as tracker:
        return await tracker.flush(timeout=20)


def arrived(sim: Simulator) -> list[list[int]]:
    return [numbers_of(sim, f"person-{person}") for person in range(5)]


ALL = [list(range(person, EVENTS, 5)) for person in range(5)]


async def test_after_sigterm_the_spool_keeps_what_the_deadline_left(sim: Simulator, tmp_path: Path) -> None:
    """A program that nobody else stops: it drains, ends by the signal, and the next start sends the rest."""
    sim.faults.mix({"black_hole": 1.0})
    assert await run_until(sim, Host.terminate, tmp_path / "events.db") == -signal.SIGTERM
    sim.faults.clear()
    assert await deliver(sim, tmp_path / "events.db") == Report(delivered=EVENTS)
    assert arrived(sim) == ALL


async def test_a_kill_loses_what_memory_held(sim: Simulator) -> None:
    """Without a spool an event lives in the process: what was not delivered is gone with it."""
    assert await run_until(sim, Host.kill, None) == -signal.SIGKILL
    assert arrived(sim) == [[]] * 5


async def test_a_kill_loses_nothing_that_a_spool_acknowledged(sim: Simulator, tmp_path: Path) -> None:
    """The same with a spool: the next start sends all of it, in order."""
    assert await run_until(sim, Host.kill, tmp_path / "events.db") == -signal.SIGKILL
    assert await deliver(sim, tmp_path / "events.db") == Report(delivered=EVENTS)
    assert arrived(sim) == ALL


@pytest.mark.parametrize(("mode", "number"), [("FULL", 2), ("NORMAL", 1)])
def test_full_waits_for_the_disk_at_each_commit(tmp_path: Path, mode: Literal["FULL", "NORMAL"], number: int) -> None:
    """With ``synchronous=FULL`` SQLite syncs its log at every commit, with ``NORMAL`` at checkpoints."""
    database = Database(tmp_path / "events.db", synchronous=mode)
    run = database._connection.execute
    assert (run("PRAGMA synchronous").fetchone(), run("PRAGMA journal_mode").fetchone()) == ((number,), ("wal",))
    database.close()
