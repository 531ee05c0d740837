"""What all tests share: settings that point at a simulator, the law of conservation, no silent skips in CI."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from cio_batch import CioBatchTracker, HttpOptions, RetryOptions, Settings, Stats
from cio_batch.simulator import Simulator

SHARED = Path(__file__).resolve().parents[1].parent / "shared"

PATIENT = RetryOptions(max_retries=50, base_delay=0.01, max_delay=0.1)
"""For fault tests: what happens matters, not how long real patience takes."""


FAULTS_FIRED: dict[str, dict[str, int]] = {}
"""The faults that each fault test met, by kind; printed at the end of the run."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the faults that fired."""
    if FAULTS_FIRED:
        terminalreporter.section("faults that fired")
    for test, kinds in FAULTS_FIRED.items():
        terminalreporter.line(f"{test}: " + ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items())))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail a run in CI that skipped a test: a skip there is a promise that nobody checked."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and exitstatus == 0 and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
async def sim() -> AsyncIterator[Simulator]:
    """A simulator without faults."""
    async with Simulator() as simulator:
        yield simulator


def settings_for(simulator: Simulator, **http: Any) -> Settings:
    """Settings that point at a simulator."""
    return Settings(site_id="site", track_api_key="key", track_url=simulator.url, http=HttpOptions(**http))


def assert_conserved(tracker: CioBatchTracker) -> Stats:
    """Check promise 1 at this instant and return the picture it was checked on."""
    stats = tracker.stats()
    assert stats.accepted == (
        stats.delivered + stats.rejected + stats.failed + stats.dropped + stats.pending + stats.in_flight
    ), stats
    assert min(stats.pending, stats.in_flight, stats.pending_bytes, stats.in_flight_bytes) >= 0, stats
    return stats


async def until(condition: Callable[[], bool], *, within: float = 10.0) -> None:
    """Wait until a condition of the outside world holds; fail loudly if it never does."""
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(0.002)


def sent_numbers(simulator: Simulator, kind: str, identifier: str) -> list[int]:
    """The ``n`` of each event of a person, in the order in which the service first saw them."""
    person = simulator.workspace.people.get((kind, identifier))
    if person is None:
        return []
    return [operation["attributes"]["n"] for operation in person.first_arrivals if "n" in operation["attributes"]]
