"""Faults of the service and the network: nothing lost, order kept, every count exact, whatever happens.

*Lost* means accepted and neither delivered nor reported. Each test prints the faults that fired, by kind, and fails
if one that it ordered never did.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cio_batch import (
    CioBatchTracker,
    ConfigurationError,
    Report,
    RetryOptions,
    Settings,
    SettledChunk,
    Verdict,
    operations,
)
from cio_batch.simulator import Faults, Kind, Simulator
from cio_batch.transports import DiscardTransport, TrackV1Transport, TrackV2Transport, Transport

from .conftest import FAULTS_FIRED, PATIENT, assert_conserved, sent_numbers, settings_for, until

SHORT = {"total_timeout": 0.25, "connect_timeout": 0.25, "read_timeout": 0.25}
PEOPLE = 40

UNDECIDED: tuple[Kind, ...] = (
    "latency",
    "rate_limit",
    "server_error",
    "html_error",
    "unavailable",
    "drop_before",
    "drop_after",
    "black_hole",
)
"""Faults after which everything arrives in the end."""


class Ledger:
    """What the hook was told: each operation's verdict, by person and number."""

    def __init__(self) -> None:
        self.verdicts: dict[tuple[str, int], Verdict] = {}
        self.twice: list[tuple[str, int]] = []

    def note(self, chunk: SettledChunk) -> None:
        for one in chunk.operations:
            payload = one.payload
            key = payload["identifiers"]["id"], payload["attributes"]["n"]
            if key in self.verdicts:
                self.twice.append(key)
            self.verdicts[key] = one.verdict


async def ship(
    sim: Simulator, count: int, *, transport: Transport | None = None, batch_size: int = 10, concurrency: int = 5
) -> tuple[Ledger, Report, CioBatchTracker]:
    """Ship numbered events of ``PEOPLE`` people through a tracker, and check what must hold whatever happens."""
    ledger = Ledger()
    tracker = CioBatchTracker(
        settings_for(sim, **SHORT),
        transport=transport,
        batch_size=batch_size,
        concurrency=concurrency,
        flush_interval=0.02,
        retry=PATIENT,
        on_settled=ledger.note,
    )
    for n in range(count):
        await tracker.enqueue(f"u-{n % PEOPLE}", "e", {"n": n})
        if n % 50 == 0:
            await asyncio.sleep(0)
            assert_conserved(tracker)
    report = await tracker.flush(timeout=60)
    stats = assert_conserved(tracker)
    assert report.left == stats.pending == stats.in_flight == 0
    await tracker.close()
    assert not ledger.twice
    assert set(ledger.verdicts) == {(f"u-{n % PEOPLE}", n) for n in range(count)}
    told = Counter(ledger.verdicts.values())
    assert (told[Verdict.DELIVERED], told[Verdict.REJECTED], told[Verdict.FAILED]) == (
        stats.delivered,
        stats.rejected,
        stats.failed,
    )
    assert sim.traffic.person_overlaps == 0
    for person in range(PEOPLE):
        arrived = sent_numbers(sim, "id", f"u-{person}")
        assert arrived == sorted(arrived), "out of order"
        delivered = [
            n for (user, n), verdict in ledger.verdicts.items() if user == f"u-{person}" and verdict == "delivered"
        ]
        assert set(delivered) <= set(arrived), "a false delivered"
    return ledger, report, tracker


def require(faults: Faults, kinds: Mapping[Kind, float] | tuple[Kind, ...]) -> None:
    """Note the faults that fired for the summary of the run, and fail if one of the kinds never did."""
    test = os.environ["PYTEST_CURRENT_TEST"].partition("::")[2].removesuffix(" (call)")
    FAULTS_FIRED[test] = dict(faults.injected)
    assert not [kind for kind in kinds if not faults.injected[kind]]


@pytest.mark.parametrize("kind", UNDECIDED)
async def test_each_fault_alone_loses_nothing(kind: Kind) -> None:
    """At a rate of 30 %, every event arrives once and in order, and the counts are exact."""
    async with Simulator(faults=Faults({kind: 0.3}, seed=7, latency=0.05, retry_after="0.02")) as sim:
        _, _, tracker = await ship(sim, 600)
        require(sim.faults, (kind,))
        stats = tracker.stats()
        assert (stats.delivered, stats.rejected, stats.failed) == (600, 0, 0)
        assert sum(len(person.events) for person in sim.workspace.people.values()) == 600
        if kind == "drop_after":
            assert sim.workspace.duplicates_ignored > 0


async def test_a_partial_refusal_rejects_the_named_ones_and_only_those() -> None:
    """A 207 rejects what it names; all others are delivered and never sent again."""
    async with Simulator(faults=Faults({"partial": 0.3}, seed=5)) as sim:
        ledger, _, tracker = await ship(sim, 600)
        require(sim.faults, ("partial",))
        refused = {
            (operation["identifiers"]["id"], operation["attributes"]["n"])
            for operation in sim.faults.refused_operations
        }
        assert {key for key, verdict in ledger.verdicts.items() if verdict is Verdict.REJECTED} == refused
        assert tracker.stats().delivered == 600 - len(refused)
        assert sim.workspace.duplicates_ignored == 0
        assert tracker.stats().retries == 0


@pytest.mark.parametrize("wire", ["v2", "v1"])
async def test_all_faults_mixed_at_30_percent_lose_nothing(wire: str) -> None:
    """Every fault of the list at once: conservation exact, order kept, nothing lost, on both wires."""
    rates: dict[Kind, float] = dict.fromkeys((*UNDECIDED, "partial"), 0.3 / (len(UNDECIDED) + 1))
    async with Simulator(faults=Faults(rates, seed=11, latency=0.05, retry_after="0.02")) as sim:
        for kind in rates:  # chance may leave one out; an order does not
            sim.faults.order(kind)
        transport = TrackV1Transport(settings_for(sim, **SHORT)) if wire == "v1" else None
        _, _, tracker = await ship(sim, 400 if wire == "v1" else 1_500, transport=transport)
        require(sim.faults, rates)
        stats = tracker.stats()
        assert stats.failed == 0
        assert stats.rejected == len(sim.faults.refused_operations)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    rates=st.dictionaries(st.sampled_from([*UNDECIDED, "partial", "refuse"]), st.floats(0, 0.08), max_size=6),
    seed=st.integers(0, 2**16),
    batch_size=st.integers(1, 60),
    concurrency=st.integers(1, 12),
    count=st.integers(1, 250),
)
def test_conservation_and_order_under_any_mix(
    rates: dict[Kind, float], seed: int, batch_size: int, concurrency: int, count: int
) -> None:
    """Whatever the mix of faults and the sizes: each operation is settled once, in order, with a true verdict."""

    async def run() -> None:
        faults = Faults(rates, seed=seed, latency=0.01, retry_after="0.01")
        async with Simulator(faults=faults) as sim:
            await ship(sim, count, batch_size=batch_size, concurrency=concurrency)
            sizes = sim.traffic.batch_sizes
            assert max(sizes, default=0) <= batch_size

    asyncio.run(run())


# ------------------------------------------------------------------------------------------------- single verdicts


async def test_400_for_a_whole_batch_is_bisected(sim: Simulator) -> None:
    """Three culprits among 500 are found with few calls; everything else is delivered, in order."""
    culprits = {7, 250, 251}
    sim.faults.poison = lambda operation: operation["attributes"]["n"] in culprits
    sim.faults.poison_status = 400
    ledger = Ledger()
    async with CioBatchTracker(
        settings_for(sim), batch_size=500, concurrency=1, retry=PATIENT, on_settled=ledger.note
    ) as tracker:
        for n in range(500):
            await tracker.enqueue(f"u-{n % PEOPLE}", "e", {"n": n})
        await tracker.flush(timeout=20)
        stats = assert_conserved(tracker)
    assert {n for (_, n), verdict in ledger.verdicts.items() if verdict is Verdict.REJECTED} == culprits
    assert (stats.delivered, stats.rejected, stats.failed) == (497, 3, 0)
    assert stats.calls <= 2 * len(culprits) * 9 + 1
    for person in range(PEOPLE):
        arrived = sent_numbers(sim, "id", f"u-{person}")
        assert arrived == sorted(arrived)


async def test_a_service_that_refuses_everything_is_paused_for(caplog: pytest.LogCaptureFixture) -> None:
    """When bisecting finds nothing but culprits, the tracker pauses and alarms instead of hammering on."""
    async with Simulator(faults=Faults({"refuse": 1.0})) as sim:
        retry = RetryOptions(max_retries=50, base_delay=0.01, max_delay=60.0)
        tracker = CioBatchTracker(settings_for(sim), batch_size=256, concurrency=1, retry=retry)
        for n in range(256):
            await tracker.enqueue("u", "e", {"n": n})
        with caplog.at_level(logging.ERROR, "cio_batch"):
            await until(lambda: "pausing" in caplog.text)
        calls = sim.traffic.calls
        assert calls <= 2 * 8 * 8 + 2
        report = await tracker.flush(timeout=0.3)
        assert report.left > 0
        assert sim.traffic.calls == calls
        await tracker.close(timeout=0.2)
        assert_conserved(tracker)


async def test_413_is_halved() -> None:
    """A body that is too large for somebody on the way is sent in parts."""
    async with Simulator() as sim:
        sim.faults.order("raw", times=3, status=413, body=b"<html>too large</html>")
        async with CioBatchTracker(settings_for(sim), batch_size=64) as tracker:
            for n in range(64):
                await tracker.enqueue("u", "e", {"n": n})
            assert await tracker.flush(timeout=5) == Report(delivered=64)
        assert sent_numbers(sim, "id", "u") == list(range(64))


async def test_one_poisoned_operation_does_not_dam_up_the_rest(sim: Simulator) -> None:
    """A chunk that keeps failing with 500 while others get through is bisected; only the culprit fails."""
    sim.faults.poison = lambda operation: operation["attributes"]["n"] == 13
    told = Ledger()
    retry = RetryOptions(max_retries=6, base_delay=0.01, max_delay=0.05)
    async with CioBatchTracker(
        settings_for(sim), batch_size=50, concurrency=4, retry=retry, on_settled=told.note, flush_interval=0.02
    ) as tracker:
        for n in range(1_000):
            await tracker.enqueue(f"u-{n}", "e", {"n": n})
        deadline = time.monotonic() + 20
        others = itertools.count(10_000)
        while tracker.stats().failed == 0 and time.monotonic() < deadline:
            # Others must get through meanwhile: that is what tells a poisoned chunk from an outage. Each is somebody
            # new: who once shared a chunk with the culprit is held back with it.
            number = next(others)
            await tracker.enqueue(f"other-{number}", "e", {"n": number})
            await asyncio.sleep(0.01)
        await tracker.flush(timeout=20)
        assert_conserved(tracker)
    assert [key for key, verdict in told.verdicts.items() if verdict is not Verdict.DELIVERED] == [("u-13", 13)]
    assert told.verdicts["u-13", 13] is Verdict.FAILED


async def test_retries_run_out_after_three(caplog: pytest.LogCaptureFixture) -> None:
    """README, "retry exhausted (3x)": four calls, then the operations fail, with the reason, and are counted."""
    async with Simulator(faults=Faults({"server_error": 1.0})) as sim:
        told: list[SettledChunk] = []
        retry = RetryOptions(max_retries=3, base_delay=0.01)
        async with CioBatchTracker(settings_for(sim), retry=retry, on_settled=told.append) as tracker:
            await tracker.enqueue("u", "e")
            assert await tracker.flush(timeout=5) == Report(failed=1)
            stats = assert_conserved(tracker)
        assert (stats.calls, stats.retries, stats.failed) == (4, 3, 1)
        [one] = told[0].operations
        assert (one.verdict, one.reason, one.status, one.attempts) == (Verdict.FAILED, "status 500", 500, 4)
        assert "1 operations failed: status 500" in caplog.text
        assert sim.traffic.retried_calls == 3


async def test_retry_after_pauses_all_senders(sim: Simulator) -> None:
    """After a 429 with Retry-After, no call of anybody comes before that time is over."""
    sim.faults.order("rate_limit", retry_after="0.5")
    async with CioBatchTracker(settings_for(sim), batch_size=1, flush_interval=0.01, retry=PATIENT) as tracker:
        await tracker.enqueue("first", "e")
        await until(lambda: tracker.stats().last_error == "status 429")
        begun = time.monotonic()
        calls = sim.traffic.calls
        for n in range(5):
            await tracker.enqueue(f"other-{n}", "e")
        await until(lambda: sim.traffic.calls > calls)
        assert time.monotonic() - begun >= 0.45
        assert (await tracker.flush(timeout=5)).failed == 0


async def test_refused_credentials_pause_and_never_fail_the_backlog(
    sim: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    """401 keeps everything, says so once, probes one call at a time, and resumes by itself."""
    sim.faults.order("unauthorized", times=6)
    retry = RetryOptions(max_retries=2, base_delay=0.02, max_delay=0.05)
    async with CioBatchTracker(
        settings_for(sim), batch_size=5, concurrency=3, retry=retry, flush_interval=0.01
    ) as tracker:
        with caplog.at_level(logging.WARNING, "cio_batch"):
            for n in range(100):
                await tracker.enqueue(f"u-{n}", "e", {"n": n})
            await until(lambda: tracker.stats().paused == "status 401")
            assert_conserved(tracker)
            assert (await tracker.flush(timeout=20)).delivered > 0
        stats = assert_conserved(tracker)
        assert (stats.delivered, stats.failed, stats.paused) == (100, 0, None)
    assert len([record for record in caplog.records if "refuses the credentials" in record.message]) == 1
    assert "key" not in [word for record in caplog.records for word in record.getMessage().split()]


@pytest.mark.parametrize(
    "body",
    [
        b'{"errors":[{"batch_index":99,"reason":"x"}]}',
        b'{"errors":[{"batch_index":-1,"reason":"x"}]}',
        b'{"errors":[{"reason":"x"}]}',
        b'{"errors":[{"batch_index":"0"}]}',
        b'{"errors":[]}',
        b"{}",
        b"",
        b'{"errors":[{"batch_ind',
        b"<html>ok</html>",
    ],
)
async def test_an_unreadable_207_is_never_a_success(sim: Simulator, body: bytes) -> None:
    """A 207 that does not say which operations failed decides nothing; what follows does."""
    sim.faults.order("raw", status=207, body=body)
    async with CioBatchTracker(settings_for(sim), retry=PATIENT) as tracker:
        for n in range(8):
            await tracker.enqueue("u", "e", {"n": n})
        assert await tracker.flush(timeout=5) == Report(delivered=8)
        assert tracker.stats().retries >= 1
    assert sent_numbers(sim, "id", "u") == list(range(8))


@pytest.mark.parametrize("body", [b"<html>captive portal</html>", b'{"truncat', b"[]", b'"ok"', b"x" * 2_000_000])
async def test_a_success_that_cannot_be_read_is_no_delivery(sim: Simulator, body: bytes) -> None:
    """A 200 from something that is not Customer.io is tried again, not believed."""
    sim.faults.order("raw", status=200, body=body)
    async with CioBatchTracker(settings_for(sim), retry=PATIENT) as tracker:
        await tracker.enqueue("u", "e", {"n": 1})
        assert await tracker.flush(timeout=5) == Report(delivered=1)
    assert sent_numbers(sim, "id", "u") == [1]


async def test_a_deletion_keeps_its_place_under_retries() -> None:
    """What follows a delete waits for its verdict, so that a repeat of the delete cannot undo it."""
    async with Simulator(faults=Faults({"drop_after": 0.5}, seed=2)) as sim:
        async with CioBatchTracker(settings_for(sim), retry=PATIENT, flush_interval=0.01) as tracker:
            for n in range(20):
                await tracker.identify("u", {"round": n})
                await tracker.delete("u")
            await tracker.identify("u", {"alive": True})
            await tracker.identify("other", {"x": 1})
            await tracker.merge("u", "other")
            await tracker.identify("u", {"last": "word"})
            assert (await tracker.flush(timeout=20)).failed == 0
        person = sim.workspace.people["id", "u"]
        assert person.exists
        assert person.attributes == {"alive": True, "last": "word", "x": 1}
        assert sim.faults.injected["drop_after"] > 5


async def test_an_operation_that_names_two_keeps_its_place_with_both(sim: Simulator) -> None:
    """Events of both people before a merge arrive before it, and those after it after it."""
    sim.faults.mix({"server_error": 0.3}, seed=4)
    async with CioBatchTracker(
        settings_for(sim), retry=PATIENT, flush_interval=0.01, batch_size=3, concurrency=6
    ) as tracker:
        for n in range(60):
            await tracker.enqueue("a", "e", {"n": n})
            await tracker.enqueue("b", "e", {"n": n})
            if n % 10 == 9:
                await tracker.submit(operations.merge("a", "b"))
        assert (await tracker.flush(timeout=30)).failed == 0
    for user in ("a", "b"):
        log: list[Any] = [
            operation["attributes"]["n"] if operation["action"] == "event" else "merge"
            for operation in sim.workspace.people["id", user].operations
        ]
        numbers = [entry for entry in log if entry != "merge"]
        assert numbers == list(range(60))
        for position, entry in enumerate(log):
            if entry == "merge":
                assert log[position - 1] == "merge" or log[position - 1] % 10 == 9
    assert sim.traffic.person_overlaps == 0


async def test_an_outage_is_survived_in_order(sim: Simulator) -> None:
    """While nobody listens everything is kept; when the service is back everything arrives in order."""
    tracker = CioBatchTracker(settings_for(sim), batch_size=50, flush_interval=0.01, retry=PATIENT)
    await tracker.enqueue("u", "e", {"n": 0})
    await tracker.flush(timeout=5)
    await sim.stop()
    for n in range(1, 500):
        await tracker.enqueue("u" if n % 2 else "v", "e", {"n": n})
    await until(lambda: tracker.stats().retries >= 5)
    assert assert_conserved(tracker).failed == 0
    await sim.start()
    assert (await tracker.flush(timeout=20)).delivered == 499
    await tracker.close()
    assert sent_numbers(sim, "id", "u") == [0, *range(1, 500, 2)]
    assert sent_numbers(sim, "id", "v") == list(range(2, 500, 2))


@pytest.mark.parametrize("wire", [TrackV2Transport, TrackV1Transport])
async def test_new_credentials_end_the_pause_at_once(wire: Any, caplog: pytest.LogCaptureFixture) -> None:
    """401 keeps the backlog; ``update_credentials`` sends it without waiting for the next probe; one alarm in all."""
    async with Simulator(track_api_key="fresh") as sim:
        slow = RetryOptions(base_delay=60.0, max_delay=60.0)
        tracker = CioBatchTracker(transport=wire(settings_for(sim)), retry=slow, flush_interval=0.01)
        async with tracker:
            for n in range(50):
                await tracker.enqueue("u", "e", {"n": n})
            await until(lambda: tracker.stats().paused == "status 401")
            with pytest.raises(ConfigurationError, match="track_api_key") as caught:
                tracker.update_credentials("site", "two\nlines")
            assert "lines" not in str(caught.value)
            tracker.update_credentials("site", "fresh")
            assert await tracker.flush(timeout=5) == Report(delivered=50)
            assert tracker.stats().paused is None
        assert sent_numbers(sim, "id", "u") == list(range(50))
    assert [record.levelname for record in caplog.records].count("ERROR") == 1
    assert "fresh" not in caplog.text


async def test_new_credentials_take_the_place_of_a_function(sim: Simulator) -> None:
    """Also before the start; the function of the settings is not asked any more."""
    asked: list[int] = []

    def credentials() -> tuple[str, str]:
        asked.append(1)
        return "site", "stale"

    settings = Settings(track_credentials=credentials, track_url=sim.url)
    tracker = CioBatchTracker(settings, flush_interval=0.01)
    tracker.update_credentials("site", "key")
    async with tracker:
        await tracker.enqueue("u", "e", {"n": 1})
    assert (sent_numbers(sim, "id", "u"), len(asked)) == ([1], 1)


def test_a_transport_without_credentials_says_so() -> None:
    """One of the user's own need not have the method; the error names the class."""

    class Own(DiscardTransport):
        update_credentials: Any = None

    tracker = CioBatchTracker(transport=Own())
    with pytest.raises(ConfigurationError, match="Own has no update_credentials"):
        tracker.update_credentials("site", "key")
