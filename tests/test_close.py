"""The drain: back in time in every state, and everything that was left is named."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from cio_batch import CioBatchTracker, Report, RetryOptions, Settings, SettledChunk, Verdict
from cio_batch.simulator import Faults, Simulator
from cio_batch.transports import DiscardTransport

from .conftest import PATIENT, assert_conserved, sent_numbers, settings_for, until


async def close_within(tracker: CioBatchTracker, timeout: float, least: float, most: float) -> Report:
    """Close, and check how long it took."""
    begun = time.monotonic()
    report = await tracker.close(timeout=timeout)
    took = time.monotonic() - begun
    assert least <= took <= most, took
    return report


async def test_close_delivers_what_is_pending(sim: Simulator) -> None:
    """Nothing lingers once close was called, and it returns as soon as everything is delivered."""
    tracker = CioBatchTracker(settings_for(sim), flush_interval=600.0)
    for n in range(1_000):
        await tracker.enqueue(f"u-{n % 9}", "e", {"n": n})
    report = await close_within(tracker, timeout=30, least=0, most=5)
    assert report == Report(delivered=1_000)
    assert_conserved(tracker)


async def test_close_against_a_black_hole_uses_its_time_and_no_more() -> None:
    """close(timeout=2) comes back between 1.9 and 2.3 s, and names everything that was left."""
    async with Simulator(faults=Faults({"black_hole": 1.0})) as sim:
        told: list[SettledChunk] = []
        tracker = CioBatchTracker(
            settings_for(sim), batch_size=10, concurrency=3, flush_interval=0.01, on_settled=told.append
        )
        for n in range(100):
            await tracker.enqueue(f"u-{n}", "e", {"n": n})
        await until(lambda: sim.traffic.calls == 3)
        report = await close_within(tracker, timeout=2, least=1.9, most=2.3)
        assert report == Report(failed=100, left=100)
        stats = assert_conserved(tracker)
        assert (stats.failed, stats.pending, stats.in_flight, stats.state) == (100, 0, 0, "closed")
        settled = [one for chunk in told for one in chunk.operations]
        assert sorted(one.payload["attributes"]["n"] for one in settled) == list(range(100))
        assert {(one.verdict, one.reason) for one in settled} == {(Verdict.FAILED, "deadline")}


async def test_close_in_the_middle_of_a_retry_after_uses_its_time_and_no_more() -> None:
    """With Retry-After: 60 there is hope until the deadline, and the service is not called before."""
    async with Simulator() as sim:
        sim.faults.order("rate_limit", retry_after="60")
        tracker = CioBatchTracker(settings_for(sim), batch_size=10, flush_interval=0.01)
        for n in range(30):
            await tracker.enqueue("u", "e", {"n": n})
        await until(lambda: tracker.stats().last_error == "status 429")
        calls = sim.traffic.calls
        report = await close_within(tracker, timeout=2, least=1.9, most=2.3)
        assert report == Report(failed=30, left=30)
        assert sim.traffic.calls == calls
        assert_conserved(tracker)


async def test_close_wakes_a_backoff(sim: Simulator) -> None:
    """A chunk that waits for its next attempt is sent at once when the tracker closes."""
    sim.faults.order("server_error")
    retry = RetryOptions(base_delay=60.0, max_delay=60.0)
    tracker = CioBatchTracker(settings_for(sim), flush_interval=0.01, retry=retry)
    await tracker.enqueue("u", "e")
    await until(lambda: tracker.stats().last_error == "status 500")
    assert await close_within(tracker, timeout=10, least=0, most=1) == Report(delivered=1)


async def test_close_with_refused_credentials_probes_until_the_deadline(sim: Simulator) -> None:
    """A pause for credentials is shortened by the drain: if they work again, everything is delivered."""
    sim.faults.order("unauthorized", times=2)
    retry = RetryOptions(base_delay=60.0, max_delay=60.0)
    tracker = CioBatchTracker(settings_for(sim), flush_interval=0.01, retry=retry)
    await tracker.enqueue("u", "e")
    await until(lambda: tracker.stats().paused is not None)
    assert await close_within(tracker, timeout=3, least=0, most=2.5) == Report(delivered=1)


async def test_close_with_a_full_queue_and_callers_waiting(sim: Simulator) -> None:
    """Callers that wait for room do not hold up the drain."""
    sim.faults.mix({"black_hole": 1.0})
    tracker = CioBatchTracker(settings_for(sim), max_pending=5, flush_interval=0.01)
    callers = [asyncio.create_task(tracker.enqueue("u", "e", {"n": n})) for n in range(20)]
    await until(lambda: tracker._queue.waiting == 15)
    report = await close_within(tracker, timeout=0.5, least=0.4, most=0.8)
    outcomes = await asyncio.gather(*callers, return_exceptions=True)
    assert report.left == 5
    assert sum(outcome is None for outcome in outcomes) == 5


async def test_close_with_nobody_listening() -> None:
    """Connections are refused until the deadline; everything is named."""
    tracker = CioBatchTracker(
        Settings(site_id="s", track_api_key="k", track_url="http://127.0.0.1:9"), flush_interval=0.01
    )
    for _ in range(5):
        await tracker.enqueue("u", "e")
    report = await close_within(tracker, timeout=1, least=0.9, most=1.3)
    assert report == Report(failed=5, left=5)


async def test_a_transport_that_ignores_its_cancel_does_not_hold_up_close() -> None:
    """Even then close is back in time, and the operations are counted."""

    class Stubborn(DiscardTransport):
        freed = asyncio.Event()

        async def send(self, operations: Any, call: Any) -> Any:
            while not self.freed.is_set():
                try:
                    await self.freed.wait()
                except asyncio.CancelledError:
                    continue
            return await super().send(operations, call)

        async def close(self) -> None:
            await self.freed.wait()

    transport = Stubborn()
    tracker = CioBatchTracker(Settings(), transport=transport, flush_interval=0.01)
    await tracker.enqueue("u", "e")
    await until(lambda: tracker.stats().in_flight == 1)
    report = await close_within(tracker, timeout=0.5, least=0.4, most=0.8)
    assert report == Report(failed=1, left=1)
    assert_conserved(tracker)
    transport.freed.set()
    await until(lambda: not [task for task in asyncio.all_tasks() if task.get_name() == "cio_batch delivery"])
    assert assert_conserved(tracker).delivered == 0


@pytest.mark.parametrize("timeout", [0, -1])
async def test_close_without_time_names_everything_at_once(sim: Simulator, timeout: float) -> None:
    """A timeout of zero is a valid way to give up."""
    tracker = CioBatchTracker(settings_for(sim), flush_interval=60.0)
    await tracker.enqueue("u", "e")
    assert await close_within(tracker, timeout=timeout, least=0, most=0.3) == Report(failed=1, left=1)


async def test_close_of_a_tracker_whose_service_is_slow_but_alive(sim: Simulator) -> None:
    """Everything that fits into the time is delivered, the rest is named, nothing is counted twice."""
    sim.latency = 0.2
    tracker = CioBatchTracker(settings_for(sim), batch_size=1, concurrency=1, retry=PATIENT, flush_interval=0.01)
    for n in range(20):
        await tracker.enqueue("u", "e", {"n": n})
    report = await close_within(tracker, timeout=1, least=0.9, most=1.3)
    assert report.delivered + report.left == 20
    assert report.delivered >= 3
    arrived = sent_numbers(sim, "id", "u")
    assert arrived[: report.delivered] == list(range(report.delivered))
    assert len(arrived) - report.delivered in (0, 1)  # the one that was in flight may have been applied
