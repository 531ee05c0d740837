"""The tracker on a spool: what is acknowledged is on disk, and leaves it only with a verdict."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import orjson
import pytest

from cio_batch import (
    CioBatchTracker,
    CioObjectId,
    ConfigurationError,
    DeadLetter,
    DeadLetterFile,
    Email,
    InvalidOperationError,
    Phone,
    QueueFullError,
    Report,
    RetryOptions,
    Settings,
    SpoolError,
    SpoolLockedError,
    TrackerClosedError,
    WrongLoopError,
)
from cio_batch import operations as ops
from cio_batch.operations import Operation
from cio_batch.simulator import Faults, Simulator
from cio_batch.spools import SqliteSpool
from cio_batch.transports import DiscardTransport, TrackV1Transport
from cio_batch.transports.base import Call
from cio_batch.verdicts import Judgement, Next, Rejection

from .conftest import PATIENT, assert_conserved, sent_numbers, settings_for, until

DOWN = RetryOptions(max_retries=2, base_delay=0.01, max_delay=0.05)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.db"


def rows(path: Path, table: str = "operations") -> list[Any]:
    """What stands in the file, read by a connection of our own."""
    with sqlite3.connect(path) as connection:
        found = connection.execute(f"SELECT body FROM {table} ORDER BY number").fetchall()
    connection.close()
    return [orjson.loads(body) for (body,) in found]


def numbers(path: Path, table: str = "operations") -> list[int]:
    return [row["attributes"]["n"] for row in rows(path, table)]


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def size(path: Path) -> int:
    return path.stat().st_size


def content(path: Path) -> bytes:
    return path.read_bytes()


class Told(DiscardTransport):
    """A transport whose answers a test gives; by default it says that nothing gets through."""

    def __init__(self, answer: Callable[[Sequence[Operation]], Judgement] | None = None) -> None:
        super().__init__()
        self.answer = answer if answer is not None else lambda _: Judgement(0, next=Next.RETRY, reason="down")
        self.sent: list[Sequence[Operation]] = []

    async def send(self, operations: Sequence[Operation], call: Call) -> Judgement:
        await call.gate()
        self.sent.append(list(operations))
        return self.answer(operations)


def deliver(operations: Sequence[Operation]) -> Judgement:
    return Judgement(len(operations))


# ------------------------------------------------------------------------------------------------ acknowledgement


async def test_an_acknowledged_event_is_on_disk(path: Path) -> None:
    """When ``enqueue`` returns, another connection reads the event, with mode 0600 on the file."""
    tracker = CioBatchTracker(spool=SqliteSpool(path), transport=Told(), flush_interval=600.0)
    async with tracker:
        for n in range(20):
            await tracker.enqueue("u-1", "seen", {"n": n})
            assert numbers(path) == list(range(n + 1))
        assert (mode(path), tracker.stats().accepted) == (0o600, 20)
        assert_conserved(tracker)
        await tracker.close(timeout=0)


async def test_what_is_delivered_leaves_the_disk(path: Path, sim: Simulator) -> None:
    """After ``close`` the file holds what has no verdict: nothing."""
    async with CioBatchTracker(settings_for(sim), spool=SqliteSpool(path), flush_interval=600.0) as tracker:
        await asyncio.gather(*(tracker.enqueue(f"u-{n % 7}", "seen", {"n": n}) for n in range(500)))
        assert await tracker.flush(timeout=10) == Report(delivered=500)
        await tracker.identify("u-1", {"plan": "pro"})
    assert (rows(path), assert_conserved(tracker).delivered) == ([], 501)
    assert sent_numbers(sim, "id", "u-3") == list(range(3, 500, 7))
    assert sim.workspace.people["id", "u-1"].attributes["plan"] == "pro"


async def test_cancelling_a_caller_during_the_commit_does_not_withdraw(path: Path, sim: Simulator) -> None:
    """What was said to the spool is accepted, whoever still waits for it."""
    async with CioBatchTracker(settings_for(sim), spool=SqliteSpool(path)) as tracker:
        callers = [asyncio.ensure_future(tracker.enqueue("u", "seen", {"n": n})) for n in range(50)]
        await asyncio.sleep(0)  # each has said its operation to the spool now
        for caller in callers:
            caller.cancel()
        results = await asyncio.gather(*callers, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)
    assert assert_conserved(tracker).delivered == 50
    assert sent_numbers(sim, "id", "u") == list(range(50))


async def test_threads_get_their_future_at_the_commit(path: Path) -> None:
    """The future of ``enqueue_threadsafe`` is done once the event is on disk."""
    tracker = CioBatchTracker(spool=SqliteSpool(path), transport=Told(), flush_interval=600.0)
    await tracker.start()
    seen: list[list[int]] = []

    def produce() -> None:
        for n in range(10):
            tracker.enqueue_threadsafe("u", "seen", {"n": n}).result(10)
            seen.append(numbers(path))

    await asyncio.to_thread(produce)
    assert seen == [list(range(n + 1)) for n in range(10)]
    await tracker.close(timeout=0)


async def test_enqueue_nowait_is_refused(path: Path) -> None:
    """It could not wait for the commit, and says what to call instead."""
    async with CioBatchTracker(spool=SqliteSpool(path), transport=DiscardTransport()) as tracker:
        with pytest.raises(ConfigurationError, match="await enqueue"):
            tracker.enqueue_nowait("u", "seen")
        assert tracker.stats().accepted == 0


async def test_bad_input_leaves_nothing_on_disk(path: Path) -> None:
    """An event that cannot be sent is refused before the spool hears of it."""
    async with CioBatchTracker(spool=SqliteSpool(path), transport=DiscardTransport()) as tracker:
        with pytest.raises(InvalidOperationError):
            await tracker.enqueue("", "seen")
        await tracker.enqueue("u", "seen", {"n": 1})
    assert tracker.stats().accepted == 1


async def test_the_way_of_drafts_is_spooled_too(path: Path, sim: Simulator) -> None:
    """With ``before_enqueue``, and on a wire with a check of its own, the spool holds the canonical form."""
    spool = SqliteSpool(path)
    tracker = CioBatchTracker(
        transport=Told(),
        spool=spool,
        before_enqueue=lambda draft: None if draft.subject == "secret" else draft,
        flush_interval=0.01,
    )
    await tracker.enqueue("secret", "seen", {"n": 0})  # dropped before anything was opened
    async with tracker:
        await tracker.enqueue("u", "seen", {"n": 1})
        assert (assert_conserved(tracker).dropped, numbers(path)) == (1, [1])
        await tracker.close(timeout=0)
    async with CioBatchTracker(transport=TrackV1Transport(settings_for(sim)), spool=spool) as other:
        assert (await other.flush(timeout=10)).delivered == 1
    assert sent_numbers(sim, "id", "u") == [1]


# ------------------------------------------------------------------------------------------------- the next start


async def test_what_is_left_is_sent_after_the_next_start(path: Path, sim: Simulator) -> None:
    """In order, with the same bytes and ids; it counts as left, not as failed, and as accepted by the next one."""
    first = CioBatchTracker(spool=SqliteSpool(path), transport=Told(), retry=PATIENT)
    async with first:
        for n in range(100):
            await first.enqueue(f"u-{n % 3}", "seen", {"n": n})
        assert await first.close(timeout=0.2) == Report(left=100)
    stats = assert_conserved(first)
    assert (stats.failed, stats.pending, stats.in_flight, stats.state) == (0, 100, 0, "closed")
    before = rows(path)
    assert [row["attributes"]["n"] for row in before] == list(range(100))
    async with CioBatchTracker(settings_for(sim), spool=SqliteSpool(path)) as second:
        assert (second.stats().accepted, second.stats().recovered) == (100, 100)
        await second.enqueue("u-0", "seen", {"n": 100})
        assert await second.flush(timeout=10) == Report(delivered=101)
    assert_conserved(second)
    for who in range(3):
        arrived = sim.workspace.people["id", f"u-{who}"].first_arrivals
        assert [event["id"] for event in arrived][:33] == [row["id"] for row in before[who::3]][:33]
    assert sent_numbers(sim, "id", "u-0") == [*range(0, 100, 3), 100]


async def test_flush_covers_what_was_recovered_and_nothing_lingers_then(path: Path, sim: Simulator) -> None:
    """``flush`` right after the start waits for what the file holds, although it is not in memory yet."""
    async with CioBatchTracker(spool=SqliteSpool(path), transport=Told(), flush_interval=600.0) as first:
        for n in range(40):
            await first.enqueue("u", "seen", {"n": n})
        await first.close(timeout=0)
    tracker = CioBatchTracker(settings_for(sim), spool=SqliteSpool(path), max_pending=10, flush_interval=600.0)
    async with tracker:
        assert await tracker.flush(timeout=10) == Report(delivered=40)
    assert sent_numbers(sim, "id", "u") == list(range(40))


async def test_close_covers_what_was_recovered(path: Path, sim: Simulator) -> None:
    """A start and a ``close`` alone empty the file."""
    async with CioBatchTracker(spool=SqliteSpool(path), transport=Told(), flush_interval=600.0) as first:
        await asyncio.gather(*(first.enqueue("u", "seen", {"n": n}) for n in range(40)))
        await first.close(timeout=0)
    second = CioBatchTracker(settings_for(sim), spool=SqliteSpool(path), max_pending=10, flush_interval=600.0)
    await second.start()
    assert await second.close() == Report(delivered=40)
    assert rows(path) == []


async def test_a_damaged_row_is_counted_and_the_others_are_sent(path: Path, sim: Simulator) -> None:
    """It is set aside, fails in the counts, and neither the start nor ``flush`` waits for it."""
    async with CioBatchTracker(spool=SqliteSpool(path), transport=Told(), flush_interval=600.0) as first:
        await asyncio.gather(*(first.enqueue("u", "seen", {"n": n}) for n in range(20)))
        await first.close(timeout=0)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE operations SET body = replace(body, 'seen', 'sEEn') WHERE number = 8")
    connection.close()
    async with CioBatchTracker(settings_for(sim), spool=SqliteSpool(path)) as tracker:
        assert await tracker.flush(timeout=10) == Report(delivered=19, failed=1)
        stats = assert_conserved(tracker)
        assert (stats.accepted, stats.failed, stats.quarantined) == (20, 1, 1)
    assert sent_numbers(sim, "id", "u") == [n for n in range(20) if n != 7]
    assert rows(path) == []


async def test_an_old_row_is_not_confused_with_a_new_one(path: Path) -> None:
    """Numbers go on where they were: what is acknowledged now is never an operation of an earlier run."""
    answers = [deliver, lambda _: Judgement(0, next=Next.RETRY, reason="down")]
    for run in range(4):
        transport = Told(answers[run % 2])
        async with CioBatchTracker(spool=SqliteSpool(path), transport=transport, flush_interval=0.01) as tracker:
            for n in range(5):
                await tracker.enqueue("u", "seen", {"n": 10 * run + n})
            await tracker.close(timeout=0.3)
        expected = [] if run % 2 == 0 else [10 * run + n for n in range(5)]
        assert numbers(path) == expected


# --------------------------------------------------------------------------------------------------- memory, size


async def test_what_a_repeat_could_undo_waits_until_the_disk_has_forgotten(path: Path) -> None:
    """After a delete nothing of its person is sent until the delete is off the disk: a kill could bring it back."""
    all_enqueued = asyncio.Event()
    sent: list[Any] = []

    class Locking(DiscardTransport):
        async def send(self, operations: Sequence[Operation], call: Call) -> Judgement:
            await all_enqueued.wait()
            sent.append([orjson.loads(operation.body)["identifiers"]["id"] for operation in operations])
            if len(sent) == 1:
                other.execute("BEGIN IMMEDIATE")  # until it ends, no acknowledgement can be written
            return deliver(operations)

    transport = Locking()
    async with CioBatchTracker(spool=SqliteSpool(path), transport=transport, batch_size=2, concurrency=1) as tracker:
        other = sqlite3.connect(path, isolation_level=None)
        await tracker.delete("u")
        for person in ("v", "u", "w", "w", "x", "x"):
            await tracker.enqueue(person, "seen")
        all_enqueued.set()
        await until(lambda: len(sent) == 3)
        for task in asyncio.all_tasks():
            if task.get_name() == "cio_batch delivery":
                task.cancel()  # not even then
        flush = asyncio.create_task(tracker.flush())
        for _ in range(20):
            await asyncio.sleep(0)
        assert (sent, flush.done()) == ([["u", "v"], ["w", "w"], ["x", "x"]], False)
        other.execute("ROLLBACK")
        assert await flush == Report(delivered=1)
        assert sent[3:] == [["u"]]
        assert_conserved(tracker)
        other.close()
    assert rows(path) == []


async def test_memory_stays_bounded_and_order_holds(path: Path) -> None:
    """Beyond ``max_pending`` operations live on disk only, and are read back in order."""
    transport = Told()
    tracker = CioBatchTracker(
        spool=SqliteSpool(path), transport=transport, max_pending=100, batch_size=20, retry=PATIENT, flush_interval=0.01
    )
    async with tracker:
        for n in range(2_000):
            await tracker.enqueue(f"u-{n % 11}", "seen", {"n": n})
            if n % 100 == 0:
                stats = assert_conserved(tracker)
                assert stats.accepted - stats.spooled <= 100
        stats = assert_conserved(tracker)
        assert (stats.accepted, stats.spooled >= 1_900) == (2_000, True)
        transport.sent.clear()
        transport.answer = deliver
        assert await tracker.flush(timeout=20) == Report(delivered=2_000)
        await tracker.enqueue("u-0", "seen", {"n": 2_000})
    got: dict[str, list[int]] = {}
    for chunk in transport.sent:
        for operation in chunk:
            got.setdefault(str(operation.key), []).append(orjson.loads(operation.body)["attributes"]["n"])
    for who in range(11):
        first_arrivals = list(dict.fromkeys(got[f"u-{who}"]))
        assert first_arrivals == [*range(who, 2_000, 11), *([2_000] if who == 0 else [])]


@pytest.mark.parametrize("overflow", ["block", "raise", "drop_oldest", "drop_newest"])
async def test_a_full_disk_quota_follows_the_overflow_policy(path: Path, overflow: Any) -> None:
    """``max_bytes`` of the spool is a bound like any other: wait, refuse or drop, and count it."""
    transport = Told()
    tracker = CioBatchTracker(
        spool=SqliteSpool(path, max_bytes=1_000_000),
        transport=transport,
        overflow=overflow,
        enqueue_timeout=0.2,
        retry=PATIENT,
        flush_interval=600.0,
    )
    refused = 0
    async with tracker:
        for n in range(80):
            try:
                await tracker.enqueue("u", "seen", {"n": n, "fill": "x" * 20_000})
            except QueueFullError as error:
                refused += "spool is full" in str(error)
                if refused == 3:
                    break
        stats = assert_conserved(tracker)
        assert size(path) < 1_400_000
        kept = numbers(path)
        await tracker.close(timeout=0)
    if overflow in ("block", "raise"):
        assert (refused, stats.dropped) == (3, 0)
        assert kept == list(range(stats.accepted))
    elif overflow == "drop_newest":
        assert (refused, stats.accepted, stats.dropped) == (0, 80, 80 - len(kept))
        assert kept[:20] == list(range(20))
    else:
        assert (refused, stats.accepted, stats.dropped > 20) == (0, 80, True)
        assert kept[-10:] == list(range(70, 80))


async def test_who_waits_for_room_on_disk_gets_it_in_turn(path: Path) -> None:
    """When the service takes operations again, those who waited are accepted first come, first served."""
    transport = Told()
    tracker = CioBatchTracker(
        spool=SqliteSpool(path, max_bytes=1_000_000),
        transport=transport,
        enqueue_timeout=None,
        retry=PATIENT,
        flush_interval=0.01,
    )
    async with tracker:
        waiting = [
            asyncio.ensure_future(tracker.enqueue("u", "seen", {"n": n, "fill": "x" * 20_000})) for n in range(100)
        ]
        await until(lambda: tracker.stats().accepted >= 40)
        waiting[98].cancel()  # one that waits for room: withdrawn
        transport.answer = deliver
        transport.sent.clear()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [n for n, result in enumerate(results) if result is not None] == [98]
    assert assert_conserved(tracker).delivered == 99
    arrived = list(
        dict.fromkeys(orjson.loads(each.body)["attributes"]["n"] for chunk in transport.sent for each in chunk)
    )
    assert arrived == [n for n in range(100) if n != 98]


async def full(path: Path, **arguments: Any) -> CioBatchTracker:
    """A tracker whose spool has no room for 20 KB more, and for a small event."""
    tracker = CioBatchTracker(
        spool=SqliteSpool(path, max_bytes=1_000_000),
        transport=Told(),
        retry=PATIENT,
        flush_interval=600.0,
        **{"enqueue_timeout": 0.1, **arguments},
    )
    await tracker.start()
    with pytest.raises(QueueFullError):
        for n in range(80):
            await tracker.enqueue("u", "seen", {"n": n, "fill": "x" * 20_000})
    return tracker


async def test_a_small_operation_does_not_overtake_who_waits(path: Path) -> None:
    """There is room for it and not for the large one before it: it waits behind."""
    tracker = await full(path, enqueue_timeout=0.3, overflow="block")
    async with tracker:
        large = asyncio.create_task(tracker.enqueue("u", "seen", {"fill": "x" * 20_000}))
        await asyncio.sleep(0)
        small = asyncio.create_task(tracker.enqueue("u", "seen", {"n": -1}))
        first, _ = await asyncio.wait([large, small], return_when=asyncio.FIRST_COMPLETED)
        assert first == {large}
        with pytest.raises(QueueFullError):
            await large
        await small  # as soon as that one has given up
        await tracker.close(0)
    assert numbers(path)[-1] == -1


async def test_who_waits_for_room_on_disk_is_turned_away_by_close(path: Path) -> None:
    """At once, and nothing of theirs is on disk."""
    tracker = await full(path)
    waiting = asyncio.create_task(tracker.enqueue("u", "seen", {"n": -1, "fill": "x" * 20_000}))
    await asyncio.sleep(0)
    await tracker.close(0)
    with pytest.raises(TrackerClosedError):
        await waiting
    assert_conserved(tracker)
    assert -1 not in numbers(path)


async def test_threads_meet_the_bounds_of_the_disk_too(path: Path) -> None:
    """Who waits gives up after the timeout."""
    tracker = await full(path)
    async with tracker:
        future = await asyncio.to_thread(tracker.enqueue_threadsafe, "u", "seen", {"fill": "x" * 20_000})
        with pytest.raises(QueueFullError):
            await asyncio.wrap_future(future)
        assert_conserved(tracker)
        await tracker.close(0)


async def test_what_a_thread_enqueues_is_dropped_where_the_policy_says_so(path: Path) -> None:
    """The future is done; the drop is counted."""
    tracker = CioBatchTracker(
        spool=SqliteSpool(path, max_bytes=1_000_000),
        transport=Told(),
        retry=PATIENT,
        flush_interval=600.0,
        overflow="drop_newest",
    )
    async with tracker:
        for n in range(60):
            await tracker.enqueue("u", "seen", {"n": n, "fill": "x" * 20_000})
        before = tracker.stats().dropped
        assert before > 0
        future = await asyncio.to_thread(tracker.enqueue_threadsafe, "u", "seen", {"fill": "x" * 20_000})
        async with asyncio.timeout(10):
            await asyncio.wrap_future(future)
        assert assert_conserved(tracker).dropped == before + 1
        await tracker.close(0)


# ----------------------------------------------------------------------------------------- outage, circuit, poison


async def test_exhausted_retries_fail_nothing_and_one_call_probes(path: Path) -> None:
    """In an outage everything stays; the circuit opens, shows in the stats, and closes by itself."""
    transport = Told()
    tracker = CioBatchTracker(
        spool=SqliteSpool(path), transport=transport, retry=DOWN, batch_size=1, concurrency=4, flush_interval=0.01
    )
    async with tracker:
        for n in range(50):
            await tracker.enqueue(f"u-{n}", "seen", {"n": n})
        await until(lambda: tracker.stats().paused == "down")
        at_once = 0

        def watch(_operations: Sequence[Operation]) -> Judgement:
            nonlocal at_once
            at_once += 1
            return Judgement(0, next=Next.RETRY, reason="down")

        transport.answer = watch
        await until(lambda: at_once >= 10)
        stats = assert_conserved(tracker)
        assert (stats.failed, stats.delivered, stats.paused) == (0, 0, "down")
        transport.answer = deliver
        assert await tracker.flush(timeout=10) == Report(delivered=50)
        assert tracker.stats().paused is None
    assert rows(path, "dead_letters") == []


async def test_a_culprit_that_alone_keeps_failing_becomes_a_dead_letter(path: Path) -> None:
    """Others get through, so it is the operation: it is isolated, kept with its reason, and dams up nobody."""

    def answer(operations: Sequence[Operation]) -> Judgement:
        if any(b'"poison"' in operation.body for operation in operations):
            return Judgement(0, next=Next.RETRY, reason="status 500", status=500)
        return Judgement(len(operations), status=200)

    letters: list[DeadLetter] = []
    tracker = CioBatchTracker(
        spool=SqliteSpool(path),
        transport=Told(answer),
        retry=DOWN,
        batch_size=16,
        flush_interval=0.01,
        on_dead_letter=letters.append,
    )
    async with tracker:
        for n in range(64):
            await tracker.enqueue(f"u-{n}", "poison" if n == 21 else "seen", {"n": n})
        more = 64
        async with asyncio.timeout(20):
            while not tracker.stats().failed:
                await tracker.enqueue(f"u-{more}", "seen", {"n": more})
                more += 1
        await tracker.flush(timeout=10)
        stats = assert_conserved(tracker)
        assert (stats.failed, stats.delivered, stats.dead_letters) == (1, more - 1, 1)
    assert (rows(path), numbers(path, "dead_letters")) == ([], [21])
    [letter] = letters
    assert (letter.name, letter.last.verdict, letter.last.reason, letter.last.status) == (
        "poison",
        "failed",
        "status 500",
        500,
    )


async def test_after_an_outage_a_single_failure_gives_nothing_up(path: Path) -> None:
    """The attempts that fell into the outage do not count against an operation once others get through."""
    transport = Told()
    tracker = CioBatchTracker(
        spool=SqliteSpool(path), transport=transport, retry=DOWN, batch_size=1, flush_interval=0.01
    )
    failures = {f"u-{n}": 1 for n in range(20)}

    def flaky(operations: Sequence[Operation]) -> Judgement:
        key = str(operations[0].key)
        failures[key] -= 1
        return Judgement(1) if failures[key] < 0 else Judgement(0, next=Next.RETRY, reason="status 503", status=503)

    async with tracker:
        for n in range(20):
            await tracker.enqueue(f"u-{n}", "seen", {"n": n})
        await until(lambda: tracker.stats().paused is not None)
        transport.answer = flaky
        assert await tracker.flush(timeout=20) == Report(delivered=20)
    assert rows(path, "dead_letters") == []


async def test_what_the_service_refuses_is_a_dead_letter_in_the_same_file(path: Path) -> None:
    """With the service's reason, and the operation's bytes."""
    async with Simulator(faults=Faults({"partial": 1.0}, partial_share=0.5)) as sim:
        tracker = CioBatchTracker(settings_for(sim), spool=SqliteSpool(path))
        for n in range(20):
            await tracker.enqueue(f"u-{n}", "seen", {"n": n})
        report = await tracker.close()
        assert (report.rejected > 0, report.rejected + report.delivered) == (True, 20)
        assert (len(rows(path, "dead_letters")), rows(path)) == (report.rejected, [])


async def test_without_a_spool_dead_letters_go_to_a_file(tmp_path: Path) -> None:
    """What was rejected, what was given up, and what the deadline left: on disk when ``close`` returns."""
    file = DeadLetterFile(tmp_path / "dead.ndjson")
    transport = Told(
        lambda operations: Judgement(
            len(operations),
            rejected={n: Rejection("invalid", "name") for n, each in enumerate(operations) if b"bad" in each.body},
        )
    )
    tracker = CioBatchTracker(transport=transport, dead_letters=file, retry=PATIENT, flush_interval=600.0)
    async with tracker:
        for n in range(10):
            await tracker.enqueue(f"u-{n}", "bad" if n % 2 else "good", {"n": n})
        await tracker.flush(timeout=10)
        transport.answer = lambda _: Judgement(0, next=Next.RETRY, reason="down")
        await tracker.enqueue("u", "late", {"n": 10})
        assert await tracker.close(timeout=0.2) == Report(delivered=5, rejected=5, failed=1, left=1)
    letters = [DeadLetter.from_line(line) for line in content(file.path).splitlines()]
    told = [(letter.payload["attributes"]["n"], letter.last.verdict, letter.last.reason) for letter in letters]
    assert told == [*((n, "rejected", "invalid") for n in (1, 3, 5, 7, 9)), (10, "failed", "deadline")]
    assert assert_conserved(tracker).dead_letters == 6


def test_a_spool_and_a_file_of_dead_letters_are_one_too_many(tmp_path: Path) -> None:
    """The spool keeps them; and a path is no file of dead letters."""
    file = DeadLetterFile(tmp_path / "dead.ndjson")
    with pytest.raises(ConfigurationError, match="dead_letters must be left out"):
        CioBatchTracker(transport=DiscardTransport(), spool=SqliteSpool(tmp_path / "events.db"), dead_letters=file)
    with pytest.raises(ConfigurationError, match="must be a DeadLetterFile"):
        CioBatchTracker(transport=DiscardTransport(), dead_letters="dead.ndjson")  # type: ignore[arg-type]


async def test_an_asynchronous_on_dead_letter_is_awaited_before_close_returns(sim: Simulator) -> None:
    """Without a spool too: each letter in turn, and an error of the hook hurts nobody."""
    told: list[str] = []

    async def hook(letter: DeadLetter) -> None:
        await asyncio.sleep(0)
        told.append(letter.id or "")
        if len(told) == 1:
            raise ValueError

    sim.faults.mix({"partial": 1.0}, partial_share=1.0)
    async with CioBatchTracker(settings_for(sim), on_dead_letter=hook) as tracker:
        for n in range(5):
            await tracker.enqueue(f"u-{n}", "seen", {"n": n})
    assert (len(told), tracker.stats().dead_letters) == (5, 5)


async def test_what_is_too_old_becomes_a_dead_letter(path: Path) -> None:
    """``max_age`` gives up what waits, in memory and on disk, and what is in flight when it fails again."""
    transport = Told()
    tracker = CioBatchTracker(
        spool=SqliteSpool(path, max_age=0.5), transport=transport, retry=PATIENT, max_pending=20, flush_interval=0.01
    )
    async with tracker:
        for n in range(60):
            await tracker.enqueue(f"u-{n}", "seen", {"n": n})
        await until(lambda: tracker.stats().failed == 60)
        assert_conserved(tracker)
        transport.answer = deliver
        await tracker.enqueue("u", "seen", {"n": 60})
        assert await tracker.flush(timeout=10) == Report(delivered=1)
    assert (rows(path), sorted(numbers(path, "dead_letters"))) == ([], list(range(60)))


# --------------------------------------------------------------------------------------------------------- purge


async def test_purge_removes_a_person_everywhere(path: Path) -> None:
    """From disk and from memory: what waits of that person is never sent, and everyone else's is."""
    transport = Told()
    spool = SqliteSpool(path)
    tracker = CioBatchTracker(spool=spool, transport=transport, max_pending=40, retry=PATIENT, flush_interval=600.0)
    async with tracker:
        for n in range(100):
            await tracker.enqueue("gone" if n % 2 else f"u-{n}", "seen", {"n": n})
        await tracker.merge("u-0", "gone")
        await tracker.enqueue(Email("gone@example.com"), "seen", {"n": 7})
        assert await spool.purge("gone") == 51
        stats = assert_conserved(tracker)
        assert (stats.dropped, stats.accepted) == (51, 102)
        assert b"gone" not in content(path).replace(b"gone@example.com", b"")
        transport.answer = deliver
        assert (await tracker.flush(timeout=10)).delivered == 51
    assert all(each.key != "gone" for chunk in transport.sent for each in chunk)
    with pytest.raises(SpoolError, match="not open"):
        await spool.purge("u")


async def test_a_second_owner_is_refused_by_name(path: Path) -> None:
    """The error names the process; the first tracker goes on, and the file is free after it closed."""
    async with CioBatchTracker(spool=SqliteSpool(path), transport=DiscardTransport()) as first:
        second = CioBatchTracker(spool=SqliteSpool(path), transport=DiscardTransport())
        with pytest.raises(SpoolLockedError, match="another tracker of this process") as caught:
            await second.start()
        assert caught.value.pid == os.getpid()
        with pytest.raises(SpoolLockedError):
            await second.enqueue("u", "seen")
        assert (second.stats().state, second.stats().accepted) == ("new", 0)
        await first.enqueue("u", "seen", {"n": 1})
    await second.enqueue("u", "seen", {"n": 2})
    assert (await second.close()).delivered == 1


async def test_a_spool_that_cannot_be_opened_says_why(tmp_path: Path) -> None:
    """No directory, a directory in its place, another program's database: one clear error, nothing accepted."""
    (tmp_path / "folder").mkdir()
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE cats (name)")
    other.commit()
    other.close()
    for name in ("none/events.db", "folder", "other.db"):
        tracker = CioBatchTracker(spool=SqliteSpool(tmp_path / name), transport=DiscardTransport())
        with pytest.raises(SpoolError):
            async with tracker:
                pass
        assert (tracker.stats().state, await tracker.close()) == ("new", Report())


def test_one_tracker_in_two_loops(path: Path) -> None:
    """``asyncio.run`` twice, without ``close`` in between: what the first left, the second sends; counts stay exact."""
    transport = Told()
    tracker = CioBatchTracker(
        spool=SqliteSpool(path), transport=transport, retry=PATIENT, drain_timeout=0.2, flush_interval=600.0
    )

    async def produce(first: int) -> None:
        for n in range(first, first + 10):
            await tracker.enqueue("u", "seen", {"n": n})

    with pytest.warns(ResourceWarning, match="10 of them without success .they stay in the spool"):
        asyncio.run(produce(0))
    assert (assert_conserved(tracker).pending, numbers(path)) == (10, list(range(10)))
    transport.answer = deliver
    transport.sent.clear()

    async def finish() -> Report:
        await produce(10)
        return await tracker.close()

    assert asyncio.run(finish()) == Report(delivered=20)
    stats = assert_conserved(tracker)
    assert (stats.accepted, stats.recovered) == (20, 0)
    assert [orjson.loads(each.body)["attributes"]["n"] for chunk in transport.sent for each in chunk] == list(range(20))


def test_a_loop_that_died_without_a_word(path: Path) -> None:
    """The next loop reads everything back from the file; whoever uses the first one's tracker meanwhile is told."""
    transport = Told()
    tracker = CioBatchTracker(spool=SqliteSpool(path), transport=transport, retry=PATIENT, flush_interval=0.01)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(tracker.start())
    for n in range(10):
        loop.run_until_complete(tracker.enqueue("u", "seen", {"n": n}))

    async def elsewhere() -> None:
        with pytest.raises(WrongLoopError):
            await tracker.enqueue("u", "seen", {"n": 99})

    asyncio.run(elsewhere())
    for task in asyncio.all_tasks(loop):
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    transport.answer = deliver
    transport.sent.clear()

    async def finish() -> Report:
        await tracker.enqueue("u", "seen", {"n": 10})
        return await tracker.close()

    assert asyncio.run(finish()) == Report(delivered=11)
    assert (assert_conserved(tracker).accepted, rows(path)) == (11, [])
    assert [orjson.loads(each.body)["attributes"]["n"] for chunk in transport.sent for each in chunk] == list(range(11))


async def test_sixteen_threads_during_close(path: Path) -> None:
    """Each future is resolved, and what was accepted is exactly what was acknowledged."""
    transport = Told(deliver)
    tracker = CioBatchTracker(spool=SqliteSpool(path), transport=transport, flush_interval=0.01)
    await tracker.start()
    outcomes: list[concurrent.futures.Future[None]] = []
    lock, begun = threading.Lock(), threading.Barrier(17)

    def produce(k: int) -> None:
        begun.wait(10)
        for n in range(200):
            try:
                future = tracker.enqueue_threadsafe(f"u-{k}", "seen", {"n": n})
            except TrackerClosedError:
                return
            with lock:
                outcomes.append(future)

    threads = [threading.Thread(target=produce, args=(k,)) for k in range(16)]
    for thread in threads:
        thread.start()
    await asyncio.to_thread(begun.wait, 10)
    await until(lambda: tracker.stats().accepted > 100)
    report = await tracker.close()
    for thread in threads:
        await asyncio.to_thread(thread.join, 10)
    errors = [future.exception(timeout=10) for future in outcomes]
    accepted = sum(error is None for error in errors)
    assert all(isinstance(error, TrackerClosedError) for error in errors if error is not None)
    assert report == Report(delivered=accepted)
    assert (assert_conserved(tracker).accepted, rows(path)) == (accepted, [])
    assert sum(map(len, transport.sent)) == accepted


async def test_close_returns_in_time_when_another_process_holds_the_file(path: Path) -> None:
    """A foreign write lock: close comes back within its timeout and 0.3 s; what waited for the commit is told."""
    tracker = CioBatchTracker(spool=SqliteSpool(path), transport=DiscardTransport(), flush_interval=600.0)
    await tracker.start()
    await tracker.enqueue("u", "seen", {"n": 0})
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    caller = asyncio.ensure_future(tracker.enqueue("u", "seen", {"n": 1}))
    await until(lambda: tracker.stats().accepted == 1)
    begun = time.monotonic()
    await tracker.close(timeout=0.5)
    assert time.monotonic() - begun < 0.8
    with pytest.raises(SpoolError):
        await caller
    other.execute("ROLLBACK")
    other.close()
    assert_conserved(tracker)


def test_a_disabled_tracker_takes_a_spool_too(path: Path) -> None:
    """It checks, counts and forgets."""

    async def run() -> Report:
        tracker = CioBatchTracker(Settings(disabled=True), spool=SqliteSpool(path))
        await tracker.enqueue("u", "seen")
        return await tracker.close()

    assert asyncio.run(run()) == Report(delivered=1)


def test_what_is_no_spool_is_refused() -> None:
    """A path, a class: the error says what was expected."""
    for wrong in ("events.db", SqliteSpool):
        with pytest.raises(ConfigurationError, match="spool must be an object such as SqliteSpool"):
            CioBatchTracker(transport=DiscardTransport(), spool=wrong)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------- the disk, other hands


@pytest.mark.parametrize("burst", [0, 3, 40])
async def test_a_file_that_was_removed_is_written_anew_at_the_latest_by_close(path: Path, burst: int) -> None:
    """What was acknowledged before, and in a burst after it, is there at the next start."""
    tracker = CioBatchTracker(spool=SqliteSpool(path), transport=Told(), retry=PATIENT, flush_interval=600.0)
    await tracker.start()
    await asyncio.gather(*(tracker.enqueue("u", "seen", {"n": n}) for n in range(20)))
    for file in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
        file.unlink()
    await asyncio.gather(*(tracker.enqueue("u", "seen", {"n": n}) for n in range(20, 20 + burst)))
    assert (await tracker.close(0)).left == 20 + burst
    assert numbers(path) == list(range(20 + burst))


async def test_a_burst_into_a_removed_file_is_on_disk_soon(path: Path) -> None:
    """Under load the file is looked for only now and then; nobody need write again, or close, before it is mended."""
    tracker = CioBatchTracker(spool=SqliteSpool(path), transport=Told(), retry=PATIENT, flush_interval=600.0)
    async with tracker:
        await asyncio.gather(*(tracker.enqueue("u", "seen", {"n": n}) for n in range(20)))
        for file in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
            file.unlink()
        await asyncio.gather(*(tracker.enqueue("u", "seen", {"n": n}) for n in range(20, 60)))
        await until(path.exists)
        await until(lambda: numbers(path) == list(range(60)))
        await tracker.close(0)


async def test_what_the_disk_refuses_is_refused_to_the_caller(tmp_path: Path) -> None:
    """No room to write, no acknowledgement: every way in says so, the stats name the fault, and it passes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    tracker = CioBatchTracker(
        spool=SqliteSpool(folder / "events.db"), transport=Told(), retry=PATIENT, flush_interval=600.0
    )
    async with tracker:
        await tracker.enqueue("u", "seen", {"n": 0})
        gone = folder.rename(tmp_path / "elsewhere")
        with pytest.raises(SpoolError):
            await tracker.enqueue("u", "seen", {"n": 1})
        refused = await asyncio.to_thread(tracker.enqueue_threadsafe, "u", "seen", {"n": 2})
        with pytest.raises(SpoolError):
            await asyncio.wrap_future(refused)
        stats = assert_conserved(tracker)
        assert stats.accepted == 1
        assert stats.spool_fault is not None
        gone.rename(folder)
        async with asyncio.timeout(10):
            while True:  # it is tried again once a second
                with contextlib.suppress(SpoolError):
                    await tracker.enqueue("u", "seen", {"n": 3})
                    break
                await asyncio.sleep(0.05)
        stats = assert_conserved(tracker)
        assert (stats.accepted, stats.spool_fault) == (2, None)
        await tracker.close(0)
    assert numbers(folder / "events.db") == [0, 3]


async def test_room_that_others_make_is_noticed(path: Path) -> None:
    """A spool full of dead letters takes operations again once another process has removed them, or a purge has."""
    refuse = Told(lambda operations: Judgement(0, rejected=dict.fromkeys(range(len(operations)), Rejection("invalid"))))
    spool = SqliteSpool(path, max_bytes=1_000_000)
    tracker = CioBatchTracker(spool=spool, transport=refuse, enqueue_timeout=None, flush_interval=0.01, retry=PATIENT)
    large = {"fill": "x" * 20_000}
    async with tracker:

        async def fill() -> asyncio.Task[None]:
            while True:
                caller = asyncio.create_task(tracker.enqueue("gone", "seen", large))
                await asyncio.wait([caller], timeout=1.0)
                await until(lambda: tracker.stats().pending + tracker.stats().in_flight == 0)
                if not caller.done():
                    return caller

        waiting = await fill()
        with sqlite3.connect(path) as other:
            other.execute("DELETE FROM dead_letters")
        other.close()
        async with asyncio.timeout(10):
            await waiting
        waiting = await fill()
        assert await spool.purge("gone") > 20
        async with asyncio.timeout(10):
            await waiting


@pytest.mark.parametrize("overflow", ["raise", "drop_oldest", "drop_newest"])
async def test_a_burst_that_only_waits_for_its_commit_is_no_overflow(path: Path, overflow: Any) -> None:
    """The policy is for a full disk: with room on it, more than ``max_pending`` at a time are all taken."""
    tracker = CioBatchTracker(
        spool=SqliteSpool(path),
        transport=Told(),
        overflow=overflow,
        max_pending=100,
        retry=PATIENT,
        flush_interval=600.0,
    )
    async with tracker:
        await asyncio.gather(*(tracker.enqueue("u", "seen", {"n": n}) for n in range(50)))
        await asyncio.gather(*(tracker.enqueue("u", "seen", {"n": n}) for n in range(50, 300)))
        stats = assert_conserved(tracker)
        assert (stats.accepted, stats.dropped) == (300, 0)
        await tracker.close(0)
    assert numbers(path) == list(range(300))


async def test_purge_takes_what_waits_for_a_repeat(path: Path) -> None:
    """The circuit is open and no call is out: nothing of that person is sent when it closes."""
    transport, spool = Told(), SqliteSpool(path)
    tracker = CioBatchTracker(spool=spool, transport=transport, retry=DOWN, flush_interval=0.01)
    async with tracker:
        for n in range(5):
            await tracker.enqueue("gone", "seen", {"n": n})
        await tracker.enqueue("u", "seen", {"n": 5})
        await until(lambda: tracker.stats().paused is not None and tracker.stats().in_flight > 0)
        assert await spool.purge("gone") == 5
        transport.sent.clear()
        transport.answer = deliver
        assert (await tracker.flush(timeout=10)).delivered == 1
        assert assert_conserved(tracker).dropped == 5
    assert [each.key for chunk in transport.sent for each in chunk] == ["u"]


async def test_purge_takes_what_is_being_read_back(path: Path) -> None:
    """The page was read before the purge, and is heard of in the same turn of the loop as it."""
    tracker = CioBatchTracker(spool=SqliteSpool(path), transport=Told(), retry=PATIENT, flush_interval=600.0)
    await tracker.start()
    await asyncio.gather(*(tracker.enqueue("gone" if n % 2 else "u", "seen", {"n": n}) for n in range(300)))
    await tracker.close(0)
    transport, spool = Told(deliver), SqliteSpool(path)
    async with CioBatchTracker(spool=spool, transport=transport, flush_interval=0.01) as again:
        purging = asyncio.ensure_future(spool.purge("gone"))
        await asyncio.sleep(0)  # both questions are put
        time.sleep(0.3)  # noqa: ASYNC251 - a turn of the loop in which both are answered
        assert await purging == 150
        await again.flush(timeout=10)
        stats = assert_conserved(again)
        assert (stats.delivered, stats.dropped, stats.spooled) == (150, 150, 0)
    assert {each.key for chunk in transport.sent for each in chunk} == {"u"}


async def test_another_transport_refuses_what_it_cannot_say(path: Path, sim: Simulator) -> None:
    """A spool filled for Track v2 may hold what v1 has no words for: a dead letter, and nobody waits behind it."""
    tracker = CioBatchTracker(spool=SqliteSpool(path), transport=Told(), retry=PATIENT, flush_interval=600.0)
    await tracker.start()
    await tracker.enqueue(Phone("+4915112345678"), "seen", {"n": 0})
    await tracker.submit(ops.identify_object(CioObjectId("ob1"), {"name": "Acme"}))
    await tracker.enqueue("u", "seen", {"n": 1})
    await tracker.close(0)
    settings = settings_for(sim)
    async with CioBatchTracker(settings, spool=SqliteSpool(path), transport=TrackV1Transport(settings)) as again:
        report = await again.flush(timeout=10)
        assert (report.delivered, report.rejected) == (1, 2)
        assert assert_conserved(again).dead_letters == 2
    assert set(sim.workspace.people) == {("id", "u")}
    assert len(rows(path, "dead_letters")) == 2


async def test_refused_credentials_keep_everything_on_disk(path: Path, sim: Simulator) -> None:
    """Through a restart; and when the credentials work, all of it is delivered, in order."""
    wrong = attrs.evolve(settings_for(sim), track_api_key="wrong")
    async with CioBatchTracker(wrong, spool=SqliteSpool(path), flush_interval=0.01) as tracker:
        for n in range(5):
            await tracker.enqueue("u", "seen", {"n": n})
        await until(lambda: tracker.stats().paused is not None)
        assert numbers(path) == list(range(5))
        await tracker.close(0)
    assert numbers(path) == list(range(5))
    async with CioBatchTracker(wrong, spool=SqliteSpool(path), flush_interval=0.01, retry=DOWN) as tracker:
        await until(lambda: tracker.stats().paused is not None)
        assert_conserved(tracker)
        right = settings_for(sim)
        tracker.update_credentials(str(right.site_id), "key")
        assert (await tracker.flush(timeout=10)).delivered == 5
    assert sent_numbers(sim, "id", "u") == list(range(5))


async def test_the_log_warns_of_a_spool_that_fills_up(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Once, at 80 %."""
    tracker = CioBatchTracker(
        spool=SqliteSpool(path, max_bytes=1_000_000), transport=Told(), retry=PATIENT, flush_interval=600.0
    )
    async with tracker:
        for n in range(45):
            await tracker.enqueue("u", "seen", {"n": n, "fill": "x" * 20_000})
        await tracker.close(0)
    assert len([record for record in caplog.records if "the spool is 8" in record.getMessage()]) == 1
