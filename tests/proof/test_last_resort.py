"""Programs that end without ``close()``: what the deadline allows is delivered, and the rest is spooled or named."""

from __future__ import annotations

import re
import time
from pathlib import Path

import attrs
import pytest

from cio_batch.simulator import Simulator

from ..conftest import until
from ..hosts.harness import Host, events_in, numbers_of

PROGRAM = str(Path(__file__).parent / "programs" / "ending.py")
BY_SIGINT = -2  # how Python ends after a KeyboardInterrupt that nobody catches
EVENTS = 200
DRAIN_TIMEOUT = 0.8  # of the program
MARGIN = 3.0  # seconds that a busy machine may need beyond it

endings = pytest.mark.parametrize("how", ["returns", "interrupted"])
keeping = pytest.mark.parametrize("kept", [False, True], ids=["memory", "spool"])


@attrs.frozen
class Ending:
    """What a program said of itself at its end."""

    code: int
    state: str
    accepted: int
    delivered: int
    failed: int
    recovered: int
    pending: int
    in_flight: int
    seconds: float  # from the beginning of the end
    warnings: list[str]


async def end(sim: Simulator, how: str, count: int, spool: Path | None, *, interrupts: int = 1) -> Ending:
    """Run a program to its end."""
    arguments = [PROGRAM, how, str(count), *([] if spool is None else [str(spool)])]
    async with Host(sim, *arguments) as host:
        await host.line("^ready$")
        began = time.monotonic()
        if how.endswith("interrupted"):
            host.interrupt()
            for _ in range(interrupts - 1):
                await until(lambda: sim.traffic.calls > 0)  # the drain has begun
                host.interrupt()
        code = await host.exit_code()
        seconds = time.monotonic() - began
        said = await host.line(
            r"^(\w+): accepted (\d+), delivered (\d+), failed (\d+), recovered (\d+), pending (\d+), in flight (\d+)$"
        )
        counts = list(map(int, said.groups()[1:]))
        return Ending(code, said[1], *counts, seconds, [line for line in host.lines if "ResourceWarning" in line])


def assert_in_order(sim: Simulator, count: int) -> None:
    """Check that each of the events arrived, in the order of its person, and was applied once."""
    for person in range(5):
        assert numbers_of(sim, f"person-{person}") == list(range(person, count, 5))


def spool_in(tmp_path: Path, kept: bool) -> Path | None:
    return tmp_path / "events.db" if kept else None


@keeping
@endings
async def test_everything_is_delivered_at_the_last_moment(sim: Simulator, tmp_path: Path, how: str, kept: bool) -> None:
    """The program returns, or is interrupted: a service that answers gets it all, and the warning says so."""
    ending = await end(sim, how, EVENTS, spool_in(tmp_path, kept))
    assert ending.code == (0 if how == "returns" else BY_SIGINT)
    assert (ending.accepted, ending.delivered, ending.pending, ending.in_flight) == (EVENTS, EVENTS, 0, 0)
    assert len(ending.warnings) == 1
    assert f"{EVENTS} operations were drained at the last moment, 0 of them without success" in ending.warnings[0]
    assert_in_order(sim, EVENTS)
    assert sim.workspace.duplicates_ignored == 0


@keeping
@endings
async def test_what_the_deadline_does_not_allow_is_spooled_or_named(
    sim: Simulator, tmp_path: Path, how: str, kept: bool
) -> None:
    """A slow service gets what it can take; the rest is counted in the warning, and a spool delivers it later."""
    sim.latency = 0.2
    spool = spool_in(tmp_path, kept)
    ending = await end(sim, f"slowly {how}", EVENTS, spool)
    assert ending.code == (0 if how == "returns" else BY_SIGINT)
    assert DRAIN_TIMEOUT * 0.9 <= ending.seconds <= DRAIN_TIMEOUT + MARGIN
    assert (ending.accepted, ending.in_flight) == (EVENTS, 0)
    assert 0 < ending.delivered < EVENTS
    left = EVENTS - ending.delivered
    assert (ending.failed, ending.pending) == ((0, left) if kept else (left, 0))
    assert len(ending.warnings) == 1
    assert f"{EVENTS} operations were drained at the last moment, {left} of them without success" in ending.warnings[0]
    # A call that was in flight at the deadline may have been applied; nothing else was.
    assert events_in(sim) - ending.delivered in (0, 1)
    if not kept:
        return
    assert "they stay in the spool" in ending.warnings[0]
    sim.latency = 0.0
    again = await end(sim, "returns", 0, spool)
    assert (again.recovered, again.delivered, again.pending) == (left, left, 0)
    assert_in_order(sim, EVENTS)


@keeping
async def test_a_dead_service_keeps_no_program_beyond_the_deadline(sim: Simulator, tmp_path: Path, kept: bool) -> None:
    """Nothing can be delivered: the program ends in time, all of it is named, and with a spool none of it is lost."""
    sim.faults.mix({"black_hole": 1.0})
    spool = spool_in(tmp_path, kept)
    ending = await end(sim, "returns", EVENTS, spool)
    assert DRAIN_TIMEOUT * 0.9 <= ending.seconds <= DRAIN_TIMEOUT + MARGIN
    assert (ending.delivered, ending.failed, ending.pending) == ((0, 0, EVENTS) if kept else (0, EVENTS, 0))
    [warning] = ending.warnings
    assert f"{EVENTS} of them without success" in warning
    if kept:
        sim.faults.clear()
        again = await end(sim, "returns", 0, spool)
        assert (again.recovered, again.delivered) == (EVENTS, EVENTS)
        assert_in_order(sim, EVENTS)


@keeping
async def test_a_second_interrupt_ends_the_drain_and_the_rest_is_named(
    sim: Simulator, tmp_path: Path, kept: bool
) -> None:
    """Whoever presses Ctrl-C twice does not wait for the deadline; what was not settled is named, or in the spool."""
    sim.faults.mix({"black_hole": 1.0})
    spool = spool_in(tmp_path, kept)
    ending = await end(sim, "interrupted", EVENTS, spool, interrupts=2)
    assert ending.code == BY_SIGINT
    assert ending.accepted == ending.pending + ending.in_flight == EVENTS
    named = [warning for warning in ending.warnings if re.search(rf"\b{EVENTS} operations\b", warning)]
    assert len(named) == 1
    assert ("stay in the spool" in named[0]) is kept
    if kept:
        sim.faults.clear()
        again = await end(sim, "returns", 0, spool)
        assert (again.recovered, again.delivered) == (EVENTS, EVENTS)
        assert_in_order(sim, EVENTS)
