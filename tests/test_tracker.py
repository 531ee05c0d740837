"""The tracker through real HTTP: taking operations, batching, order, flushing, hooks, lifecycle."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
import warnings
from typing import Any

import orjson
import pytest

from cio_batch import (
    AnonymousId,
    CioBatchTracker,
    CioId,
    CioObjectId,
    ConfigurationError,
    Draft,
    Email,
    InvalidOperationError,
    ObjectId,
    Phone,
    QueueFullError,
    Relationship,
    Report,
    RetryOptions,
    Settings,
    SettledChunk,
    TrackerClosedError,
    Verdict,
    WrongLoopError,
    operations,
)
from cio_batch.simulator import Simulator
from cio_batch.transports import DiscardTransport, TrackV1Transport

from .conftest import PATIENT, assert_conserved, sent_numbers, settings_for, until

ULID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


# ------------------------------------------------------------------------------------------------ taking operations


async def test_an_event_arrives_as_it_was_said(sim: Simulator) -> None:
    """Name, data, id and timestamp reach the service unchanged."""
    async with CioBatchTracker(settings_for(sim)) as tracker:
        await tracker.enqueue("u-1", "plan_changed", {"to": "pro", "mrr": 12.5}, timestamp=1_700_000_000, id=ULID)
    [event] = sim.workspace.people["id", "u-1"].events
    assert event == {
        "action": "event",
        "name": "plan_changed",
        "id": ULID,
        "timestamp": 1_700_000_000,
        "attributes": {"to": "pro", "mrr": 12.5},
    }


async def test_id_and_timestamp_are_set_at_the_door(sim: Simulator) -> None:
    """An event without id and timestamp gets a ULID and the second of its enqueue."""
    before = int(time.time())
    async with CioBatchTracker(settings_for(sim)) as tracker:
        await tracker.enqueue("u-1", "seen")
    [event] = sim.workspace.people["id", "u-1"].events
    assert len(event["id"]) == 26
    assert before <= event["timestamp"] <= int(time.time())


async def test_every_kind_of_operation_arrives(sim: Simulator) -> None:
    """Each method of the tracker and each constructor of operations is accepted by the service."""
    acme = ObjectId("1", "acme")
    async with CioBatchTracker(settings_for(sim)) as tracker:
        await tracker.identify("u", {"plan": "pro"}, timestamp=1_700_000_000, relationships=[acme])
        await tracker.identify(Email("a@example.com"), {"plan": "free"})
        await tracker.identify(Phone("+15551234567"), {"plan": "free"})
        await tracker.identify(CioId("03000001"), {"plan": "free"})
        await tracker.enqueue("u", "bought", {"n": 1})
        await tracker.page("u", "/pricing", {"url": "https://example.com/pricing"})
        await tracker.screen("u", "Home")
        await tracker.add_device("u", "token-1", "ios", last_used=1_700_000_000, attributes={"app_version": "1.2"})
        await tracker.delete_device("u", "token-1")
        await tracker.add_relationships("u", [Relationship(acme, {"role": "admin"})])
        await tracker.delete_relationships("u", [acme])
        await tracker.identify("gone", {"plan": "x"})
        await tracker.delete("gone")
        await tracker.suppress("silent")
        await tracker.unsuppress("silent")
        await tracker.identify("twin", {"city": "Rome"})
        await tracker.merge("u", "twin")
        await tracker.submit(operations.identify_object(acme, {"seats": 5}, relationships=["u"]))
        await tracker.submit(operations.identify_anonymous_object(acme, relationships=[AnonymousId("cookie")]))
        await tracker.submit(operations.add_object_relationships(acme, [Relationship("u", {"role": "owner"})]))
        await tracker.submit(operations.delete_object_relationships(acme, ["u"]))
        await tracker.submit(operations.identify_object(CioObjectId("ob1"), {"x": 1}))
        await tracker.submit(operations.delete_object(ObjectId("1", "old")))
        await tracker.submit(operations.delivery_event("d-1", "opened", "token-1"))
        await tracker.submit(operations.anonymous_event("cookie", "looked", {"n": 1}))
        await tracker.submit(operations.anonymous_event("cookie", "/", action="page"))
        await tracker.submit(operations.anonymous_event("cookie", "Home", action="screen"))
        await tracker.flush(timeout=10)
        stats = assert_conserved(tracker)
        assert (stats.rejected, stats.failed, stats.pending, stats.in_flight) == (0, 0, 0, 0), stats
    assert set(sim.workspace.applied) >= operations.KINDS - operations.ANONYMOUS_KINDS
    anonymous = sim.workspace.people["anonymous", "cookie"]
    assert [event["action"] for event in anonymous.events] == ["event", "page", "screen"]
    assert sim.traffic.calls_by_path["/api/v1/events"] == 3
    assert sim.workspace.people["id", "u"].attributes["city"] == "Rome"


async def test_the_callers_data_may_change_after_the_call(sim: Simulator) -> None:
    """What is sent is what the data was when it was enqueued."""
    data: dict[str, Any] = {"n": 1}
    async with CioBatchTracker(settings_for(sim)) as tracker:
        await tracker.enqueue("u", "e", data)
        data["n"] = 2
        await tracker.enqueue("u", "e", data)
    assert data == {"n": 2}
    assert sent_numbers(sim, "id", "u") == [1, 2]


@pytest.mark.parametrize(
    ("user_id", "name", "data"),
    [
        ("", "e", None),
        (".", "e", None),
        ("..", "e", None),
        ("x" * 151, "e", None),
        (17, "e", None),
        ("u\ud800", "e", None),
        (Phone("555"), "e", None),
        ("u", "", None),
        ("u", "n" * 101, None),
        ("u", 5, None),
        ("u", "e", {"x": {1, 2}}),
        ("u", "e", {"x": b"bytes"}),
        ("u", "e", {"x": float("nan")}),
        ("u", "e", {"x": "\udfff"}),
        ("u", "e", {1: "x"}),
        ("u", "e", [1, 2]),
        ("u", "e", {"x": 2**70}),
        ("u", "e", {"x": "y" * 10_000_000}),
    ],
)
async def test_bad_input_is_refused_at_the_door_and_leaves_nothing(
    sim: Simulator, user_id: Any, name: Any, data: Any
) -> None:
    """What cannot be sent raises a clear error without content, and the tracker goes on."""
    async with CioBatchTracker(settings_for(sim)) as tracker:
        with pytest.raises(InvalidOperationError) as caught:
            await tracker.enqueue(user_id, name, data)
        assert isinstance(caught.value, ValueError)
        assert len(str(caught.value)) < 200
        assert assert_conserved(tracker).accepted == 0
        await tracker.enqueue("u", "good")
    assert len(sim.workspace.people["id", "u"].events) == 1


async def test_a_recursive_dict_is_refused(sim: Simulator) -> None:
    """Data that holds itself raises instead of overflowing the stack."""
    data: dict[str, Any] = {}
    data["self"] = data
    async with CioBatchTracker(settings_for(sim)) as tracker:
        with pytest.raises(InvalidOperationError):
            await tracker.enqueue("u", "e", data)


# ------------------------------------------------------------------------------------------------------- batching


async def test_a_full_batch_does_not_wait_for_the_interval(sim: Simulator) -> None:
    """With batch_size=50, 50 events go out at once and the 51st lingers."""
    async with CioBatchTracker(settings_for(sim), batch_size=50, flush_interval=600.0) as tracker:
        for n in range(51):
            await tracker.enqueue("u", "e", {"n": n})
        await until(lambda: tracker.stats().delivered == 50)
        assert assert_conserved(tracker).pending == 1
        assert sim.traffic.batch_sizes == [50]


async def test_a_batch_full_by_bytes_does_not_wait_either(sim: Simulator) -> None:
    """At 500 KB a batch goes out, whatever its number of operations."""
    async with CioBatchTracker(settings_for(sim), flush_interval=600.0) as tracker:
        for n in range(20):
            await tracker.enqueue(f"u-{n}", "e", {"n": n, "text": "x" * 30_000})
        await until(lambda: tracker.stats().delivered > 0)
        assert 0 < sim.traffic.largest_body_bytes < 500_000
        assert assert_conserved(tracker).pending == 20 - sim.traffic.batch_sizes[0]


async def test_the_interval_sends_what_is_there(sim: Simulator) -> None:
    """A few events go out in one call once the interval has passed, not before."""
    async with CioBatchTracker(settings_for(sim), flush_interval=0.3) as tracker:
        begun = time.monotonic()
        for n in range(3):
            await tracker.enqueue(f"u-{n}", "e", {"n": n})
        await until(lambda: tracker.stats().delivered == 3)
        assert time.monotonic() - begun >= 0.29
        assert sim.traffic.batch_sizes == [3]


async def test_defaults_send_100_000_events_in_at_most_150_calls(sim: Simulator) -> None:
    """Events of 230 bytes of data fill their bodies at the default settings."""
    data = {"text": "x" * 219}
    assert len(orjson.dumps(data)) == 230
    async with CioBatchTracker(settings_for(sim)) as tracker:
        for n in range(100_000):
            await tracker.enqueue(f"user-{n % 5_000}", "page_viewed", data)
        await tracker.flush(timeout=60)
        assert assert_conserved(tracker).delivered == 100_000
    assert sim.traffic.calls <= 150
    assert sim.workspace.applied["person.event"] == 100_000
    assert sim.workspace.duplicates_ignored == 0


async def test_ten_calls_overlap_and_never_two_with_one_person(sim: Simulator) -> None:
    """At 100 ms of latency the semaphore is used to the full, and no person is in two calls at once."""
    sim.latency = 0.1
    async with CioBatchTracker(settings_for(sim), batch_size=20, concurrency=10) as tracker:
        for n in range(2_000):
            await tracker.enqueue(f"u-{n % 300}", "e", {"n": n})
        await tracker.flush(timeout=30)
        assert_conserved(tracker)
    assert sim.traffic.max_overlap == 10
    assert sim.traffic.person_overlaps == 0
    for person in range(300):
        numbers = sent_numbers(sim, "id", f"u-{person}")
        assert numbers == sorted(numbers)


async def test_the_rate_limit_spaces_the_calls(sim: Simulator) -> None:
    """At 50 calls a second, 20 calls take at least 19 intervals, and do not come in a burst."""
    async with CioBatchTracker(settings_for(sim), batch_size=1, rate_limit=50.0) as tracker:
        begun = time.monotonic()
        for n in range(20):
            await tracker.enqueue(f"u-{n}", "e")
        await tracker.flush(timeout=10)
        assert time.monotonic() - begun >= 19 / 50 - 0.01
    assert sim.traffic.calls == 20


async def test_delivery_stops_when_the_semaphore_is_taken(sim: Simulator) -> None:
    """Every call holds a slot: with all slots taken nothing is sent, and with one given back it is."""
    async with CioBatchTracker(settings_for(sim), concurrency=2) as tracker:
        slots = tracker._delivery._slots
        await slots.acquire()
        await slots.acquire()
        await tracker.enqueue("u", "e")
        report = await tracker.flush(timeout=0.3)
        assert report == Report(left=1)
        assert sim.traffic.calls == 0
        slots.release()
        assert await tracker.flush(timeout=5) == Report(delivered=1)
        slots.release()


async def test_delivery_stops_when_the_queue_is_not_drained(sim: Simulator) -> None:
    """Every operation passes the queue: while the queue gives nothing, nothing is sent."""
    async with CioBatchTracker(settings_for(sim)) as tracker:
        await tracker.start()
        queue = tracker._queue
        take_all, queue.take_all = queue.take_all, lambda: (type(queue._queue)(), 0)  # type: ignore[method-assign]
        await tracker.enqueue("u", "e")
        assert await tracker.flush(timeout=0.3) == Report(left=1)
        assert sim.traffic.calls == 0
        queue.take_all = take_all  # type: ignore[method-assign]
        assert await tracker.flush(timeout=5) == Report(delivered=1)


@pytest.mark.parametrize("producers", [1, 10, 100])
async def test_producers_do_not_run_ahead_of_sending(producers: int) -> None:
    """However many produce in tight loops, no more than a few batches are held while sending keeps up."""
    async with CioBatchTracker(transport=DiscardTransport(), batch_size=100, rate_limit=None) as tracker:
        most = 0

        async def produce() -> None:
            nonlocal most
            for n in range(6_000 // producers):
                await tracker.enqueue(f"user-{n}", "e")
                most = max(most, tracker._queue.held)

        await asyncio.gather(*(produce() for _ in range(producers)))
        assert most <= 1_000
        await tracker.flush()
        assert tracker.stats().delivered == 6_000
        assert_conserved(tracker)


async def test_a_producer_that_is_cancelled_while_its_batch_goes_out_holds_up_nobody() -> None:
    """The turns of a batch end with the producer that took them, and the others go on."""
    async with CioBatchTracker(transport=DiscardTransport(), batch_size=10, rate_limit=None) as tracker:
        done = 0

        async def produce() -> None:
            nonlocal done
            while True:
                await tracker.enqueue("u", "e")
                done += 1

        producers = [asyncio.create_task(produce()) for _ in range(5)]
        for producer in producers:
            await until(lambda: not tracker._calm.is_set())
            producer.cancel()
            before = done
            if producer is not producers[-1]:
                await until(lambda before=before: done > before + 100)  # type: ignore[misc]
        await asyncio.wait(producers)
        await tracker.flush()
        assert_conserved(tracker)
        assert tracker._calm.is_set()


async def test_what_cannot_wait_is_handed_over_all_the_same() -> None:
    """Full batches that enqueue_nowait makes while another batch has its turns are sent without a flush."""
    async with CioBatchTracker(transport=DiscardTransport(), batch_size=10, flush_interval=60) as tracker:
        for _ in range(3):
            waiting = asyncio.gather(*(tracker.enqueue("u", "e") for _ in range(10)))
            await asyncio.sleep(0)
            for _ in range(10):
                tracker.enqueue_nowait("v", "e")
            await waiting
        await until(lambda: tracker.stats().delivered == 60)
        assert_conserved(tracker)


# --------------------------------------------------------------------------------------------------------- flush


async def test_flush_waits_for_what_came_before_it_and_not_for_more(sim: Simulator) -> None:
    """While others go on enqueueing, flush returns once everything before it is settled."""
    sim.latency = 0.05
    stop = asyncio.Event()

    async def produce(tracker: CioBatchTracker) -> None:
        while not stop.is_set():
            await tracker.enqueue("other", "noise", {"n": -1})
            await asyncio.sleep(0)

    async with CioBatchTracker(settings_for(sim), batch_size=100, max_pending=2_000) as tracker:
        for n in range(500):
            await tracker.enqueue(f"u-{n % 7}", "e", {"n": n})
        producer = asyncio.create_task(produce(tracker))
        report = await tracker.flush(timeout=20)
        arrived = sum(len(sent_numbers(sim, "id", f"u-{person}")) for person in range(7))
        stop.set()
        await producer
    assert report.left == 0
    assert report.delivered >= 500
    assert arrived == 500


async def test_flush_says_what_was_rejected(sim: Simulator) -> None:
    """Its report counts each verdict of the operations it waited for."""
    sim.faults.order("partial", indexes=[0, 2])
    async with CioBatchTracker(settings_for(sim)) as tracker:
        for n in range(5):
            await tracker.enqueue(f"u-{n}", "e")
        assert await tracker.flush(timeout=5) == Report(delivered=3, rejected=2)
        assert await tracker.flush(timeout=5) == Report()


async def test_flush_of_a_tracker_that_never_started_returns_at_once() -> None:
    """Nothing was accepted, so nothing is waited for."""
    tracker = CioBatchTracker(Settings(site_id="s", track_api_key="k"))
    assert await tracker.flush() == Report()


# ------------------------------------------------------------------------------------------------ bounds, overflow


async def test_block_waits_for_room_and_keeps_order(sim: Simulator) -> None:
    """With room for ten, a hundred events of one person arrive complete and in order."""
    async with CioBatchTracker(settings_for(sim), max_pending=10, batch_size=5, flush_interval=0.01) as tracker:
        for n in range(100):
            await tracker.enqueue("u", "e", {"n": n})
            assert tracker._queue.held <= 10
            assert_conserved(tracker)
    assert sent_numbers(sim, "id", "u") == list(range(100))


async def test_block_gives_up_after_the_timeout(sim: Simulator) -> None:
    """When no room comes, QueueFullError says how much is held, and nothing was queued."""
    sim.faults.mix({"black_hole": 1.0})
    tracker = CioBatchTracker(settings_for(sim), max_pending=3, enqueue_timeout=0.2, flush_interval=0.01)
    for _ in range(3):
        await tracker.enqueue("u", "e")
    with pytest.raises(QueueFullError) as caught:
        await tracker.enqueue("u", "e")
    assert caught.value.pending == 3
    assert caught.value.pending_bytes > 0
    assert assert_conserved(tracker).accepted == 3
    report = await tracker.close(timeout=0.1)
    assert report.left == 3


async def test_raise_refuses_at_once(sim: Simulator) -> None:
    """The policy "raise" never waits."""
    sim.faults.mix({"black_hole": 1.0})
    tracker = CioBatchTracker(settings_for(sim), max_pending=2, overflow="raise")
    await tracker.enqueue("u", "e")
    tracker.enqueue_nowait("u", "e")
    with pytest.raises(QueueFullError):
        await tracker.enqueue("u", "e")
    with pytest.raises(QueueFullError):
        tracker.enqueue_nowait("u", "e")
    assert assert_conserved(tracker).accepted == 2
    await tracker.close(timeout=0.1)


async def test_drop_oldest_counts_and_names_what_it_dropped(sim: Simulator) -> None:
    """The newest survive; the dropped ones are counted and told to the hook."""
    told: list[SettledChunk] = []
    async with CioBatchTracker(
        settings_for(sim), max_pending=3, overflow="drop_oldest", on_settled=told.append
    ) as tracker:
        for n in range(5):
            await tracker.enqueue("u", "e", {"n": n})
            assert_conserved(tracker)
        assert assert_conserved(tracker).dropped == 2
    assert sent_numbers(sim, "id", "u") == [2, 3, 4]
    dropped = [one for chunk in told for one in chunk.operations if one.verdict is Verdict.DROPPED]
    assert [one.payload["attributes"]["n"] for one in dropped] == [0, 1]
    assert {one.reason for one in dropped} == {"overflow"}


async def test_drop_newest_counts_what_it_dropped(sim: Simulator) -> None:
    """The first ones survive."""
    async with CioBatchTracker(settings_for(sim), max_pending=3, overflow="drop_newest") as tracker:
        for n in range(5):
            await tracker.enqueue("u", "e", {"n": n})
        stats = assert_conserved(tracker)
        assert (stats.accepted, stats.dropped) == (5, 2)
    assert sent_numbers(sim, "id", "u") == [0, 1, 2]


async def test_bytes_are_bounded_too(sim: Simulator) -> None:
    """However few the operations, their bytes never exceed the bound."""
    tracker = CioBatchTracker(settings_for(sim), max_pending_bytes=100_000, overflow="raise", flush_interval=60.0)
    with pytest.raises(QueueFullError):
        for _ in range(10):
            await tracker.enqueue("u", "e", {"text": "x" * 30_000})
    stats = assert_conserved(tracker)
    assert stats.accepted == 3
    assert stats.pending_bytes + stats.in_flight_bytes <= 100_000
    await tracker.close()


async def test_a_queue_that_grows_warns_at_80_percent(sim: Simulator, caplog: pytest.LogCaptureFixture) -> None:
    """README, "queue memory growth": the queue is bounded and says so before the bound is reached."""
    async with CioBatchTracker(settings_for(sim), max_pending=100, flush_interval=60.0) as tracker:
        with caplog.at_level(logging.WARNING, "cio_batch"):
            for _ in range(79):
                await tracker.enqueue("u", "e")
            assert not caplog.records
            for _ in range(10):
                await tracker.enqueue("u", "e")
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "80% full" in caplog.text


async def test_a_producer_in_a_tight_loop_lets_others_run(sim: Simulator) -> None:
    """A full batch yields once, so that a ticker keeps ticking while 50,000 events are enqueued without a pause."""
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    async with CioBatchTracker(settings_for(sim)) as tracker:
        ticker = asyncio.create_task(tick())
        for n in range(50_000):
            await tracker.enqueue(f"u-{n % 100}", "e", {"n": n})
        ticker.cancel()
        assert ticks >= 25
        await tracker.flush(timeout=20)


# --------------------------------------------------------------------------------------------------------- threads


async def test_other_threads_enqueue_safely(sim: Simulator) -> None:
    """Sixteen threads enqueue at once; every future is done, everything arrives, each thread's in its order."""
    async with CioBatchTracker(settings_for(sim)) as tracker:

        def work(thread: int) -> None:
            for n in range(100):
                tracker.enqueue_threadsafe(f"t-{thread}", "e", {"n": n}).result(timeout=10)

        await asyncio.gather(*(asyncio.to_thread(work, thread) for thread in range(16)))
        assert assert_conserved(tracker).accepted == 1_600
    for thread in range(16):
        assert sent_numbers(sim, "id", f"t-{thread}") == list(range(100))


async def test_threadsafe_errors_reach_the_calling_thread(sim: Simulator) -> None:
    """Bad input raises in the thread; a full or closed tracker is an error too, never a hang."""
    tracker = CioBatchTracker(settings_for(sim), max_pending=1, enqueue_timeout=0.1, flush_interval=60.0)
    with pytest.raises(WrongLoopError):
        tracker.enqueue_threadsafe("u", "e")
    await tracker.start()
    with pytest.raises(InvalidOperationError):
        await asyncio.to_thread(tracker.enqueue_threadsafe, "", "e")
    sim.faults.mix({"black_hole": 1.0})
    await asyncio.wrap_future(tracker.enqueue_threadsafe("u", "e"))
    with pytest.raises(QueueFullError):
        await asyncio.wrap_future(tracker.enqueue_threadsafe("u", "e"))
    await tracker.close(timeout=0.1)
    with pytest.raises(TrackerClosedError):
        tracker.enqueue_threadsafe("u", "e")


# ----------------------------------------------------------------------------------------------------------- hooks


async def test_on_settled_gets_each_verdict_and_reason(sim: Simulator) -> None:
    """Every operation is reported once, with its verdict and, when refused, the service's reason and field."""
    told: list[SettledChunk] = []
    sim.faults.order("partial", indexes=[1])
    async with CioBatchTracker(settings_for(sim), on_settled=told.append) as tracker:
        for n in range(3):
            await tracker.enqueue(f"u-{n}", "e", {"n": n})
    settled = [one for chunk in told for one in chunk.operations]
    by_number = {one.payload["attributes"]["n"]: one for one in settled}
    assert len(settled) == 3
    assert [by_number[n].verdict for n in range(3)] == [Verdict.DELIVERED, Verdict.REJECTED, Verdict.DELIVERED]
    assert by_number[1].reason
    assert by_number[1].status == 207
    assert by_number[1].id in sim.faults.rejected_ids


async def test_conservation_holds_inside_the_hook(sim: Simulator) -> None:
    """A hook that looks at the stats sees every operation exactly once."""
    sim.faults.mix({"partial": 0.5, "server_error": 0.2}, seed=3)
    tracker: CioBatchTracker

    def look(_chunk: SettledChunk) -> None:
        assert_conserved(tracker)
        looked.append(1)

    looked: list[int] = []
    tracker = CioBatchTracker(settings_for(sim), on_settled=look, batch_size=10, retry=PATIENT)
    for n in range(300):
        await tracker.enqueue(f"u-{n % 50}", "e")
    await tracker.close()
    assert len(looked) >= 30


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_hook_that_raises_hurts_nobody(
    sim: Simulator, caplog: pytest.LogCaptureFixture, asynchronous: bool
) -> None:
    """Its error is logged by type, without its text, and delivery goes on."""

    def raise_it(_chunk: SettledChunk) -> None:
        msg = "secret@example.com"
        raise KeyError(msg)

    async def raise_later(_chunk: SettledChunk) -> None:
        msg = "secret@example.com"
        raise KeyError(msg)

    hook = raise_later if asynchronous else raise_it
    async with CioBatchTracker(settings_for(sim), on_settled=hook) as tracker:
        await tracker.enqueue("u", "e")
        assert (await tracker.flush(timeout=5)).delivered == 1
    assert "KeyError" in caplog.text
    assert "secret" not in caplog.text


async def test_an_asynchronous_hook_is_finished_by_close(sim: Simulator) -> None:
    """It runs in a task of its own, which close waits for."""
    finished: list[int] = []

    async def slow(chunk: SettledChunk) -> None:
        await asyncio.sleep(0.05)
        finished.append(len(chunk.operations))

    async with CioBatchTracker(settings_for(sim), on_settled=slow) as tracker:
        await tracker.enqueue("u", "e")
    assert finished == [1]


async def test_before_enqueue_redacts_and_drops(sim: Simulator) -> None:
    """It sees each operation before encoding; what it drops is counted, what it breaks is dropped."""

    def redact(draft: Draft) -> Draft | None:
        if draft.name == "secret":
            return None
        if draft.name == "broken":
            raise RuntimeError
        draft.attributes = {**draft.attributes, "email": "***"}
        return draft

    original = {"n": 1, "email": "a@example.com"}
    async with CioBatchTracker(settings_for(sim), before_enqueue=redact) as tracker:
        await tracker.enqueue("u", "seen", original)
        await tracker.enqueue("u", "secret", {"n": 2})
        tracker.enqueue_nowait("u", "broken", {"n": 3})
        await tracker.identify("u", {"email": "a@example.com"})
        stats = assert_conserved(tracker)
        assert (stats.accepted, stats.dropped) == (4, 2)
    person = sim.workspace.people["id", "u"]
    assert person.events[0]["attributes"] == {"n": 1, "email": "***"}
    assert person.attributes["email"] == "***"
    assert original["email"] == "a@example.com"


def test_an_asynchronous_before_enqueue_is_refused() -> None:
    """It could not decide before enqueue returns, so the constructor says so."""

    async def later(draft: Draft) -> Draft:
        return draft

    with pytest.raises(ConfigurationError, match="before_enqueue"):
        CioBatchTracker(Settings(site_id="s", track_api_key="k"), before_enqueue=later)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------- settings, switches


async def test_a_disabled_tracker_validates_and_counts_and_sends_nothing(
    sim: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """enabled=False and CUSTOMERIO_DISABLED=1 need no credentials."""
    async with CioBatchTracker(settings_for(sim), enabled=False) as tracker:
        await tracker.enqueue("u", "e")
        with pytest.raises(InvalidOperationError):
            await tracker.enqueue("", "e")
        assert (await tracker.flush()).delivered == 1
    for name in ("CUSTOMERIO_SITE_ID", "CUSTOMERIO_TRACK_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUSTOMERIO_DISABLED", "1")
    for settings in (None, settings_for(sim)):
        async with CioBatchTracker(settings) as tracker:
            await tracker.enqueue("u", "e")
            assert (await tracker.close()).delivered == 1
    assert sim.traffic.calls == 0


def test_null_credentials_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """README, "singleton null credentials": the constructor names every missing variable and the remedy."""
    for name in ("CUSTOMERIO_SITE_ID", "CUSTOMERIO_TRACK_API_KEY", "CUSTOMERIO_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigurationError) as caught:
        CioBatchTracker()
    assert caught.value.variables == ("CUSTOMERIO_SITE_ID", "CUSTOMERIO_TRACK_API_KEY")
    assert "set these in your environment or .env file" in str(caught.value)


async def test_settings_come_from_the_environment(sim: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tracker without arguments is a working tracker."""
    for name, value in sim.environment.items():
        monkeypatch.setenv(name, value)
    async with CioBatchTracker() as tracker:
        await tracker.enqueue("u", "e")
    assert len(sim.workspace.people["id", "u"].events) == 1


def test_bad_arguments_are_all_named_in_one_error() -> None:
    """The constructor checks every argument and lists every fault."""
    with pytest.raises(ConfigurationError) as caught:
        CioBatchTracker(
            Settings(site_id="s", track_api_key="k"),
            batch_size=0,
            concurrency=True,
            flush_interval=float("inf"),
            overflow="explode",  # type: ignore[arg-type]
            max_pending_bytes=10,
        )
    assert set(caught.value.variables) == {
        "batch_size",
        "concurrency",
        "flush_interval",
        "overflow",
        "max_pending_bytes",
    }


async def test_the_v1_transport_makes_one_call_per_operation(sim: Simulator) -> None:
    """One call per operation, in order per person, through the same queue and semaphore."""
    settings = settings_for(sim)
    async with CioBatchTracker(settings, transport=TrackV1Transport(settings), concurrency=4) as tracker:
        for n in range(200):
            await tracker.enqueue(f"u/{n % 20}?#%", "e", {"n": n})
        with pytest.raises(InvalidOperationError):
            await tracker.enqueue(Phone("+15551234567"), "e")
        with pytest.raises(InvalidOperationError):
            await tracker.submit(operations.delete_object(ObjectId("1", "x")))
        await tracker.flush(timeout=20)
        assert_conserved(tracker)
    assert sim.traffic.calls == 200
    assert sim.traffic.person_overlaps == 0
    for person in range(20):
        assert sent_numbers(sim, "id", f"u/{person}?#%") == list(range(person, 200, 20))


async def test_a_transport_of_ones_own_may_fail_in_any_way() -> None:
    """A transport that raises loses nothing: its chunk is sent again."""

    class Flaky(DiscardTransport):
        calls = 0

        async def send(self, operations: Any, call: Any) -> Any:
            self.calls += 1
            if self.calls == 1:
                msg = "boom"
                raise RuntimeError(msg)
            return await super().send(operations, call)

    transport = Flaky()
    async with CioBatchTracker(Settings(), transport=transport, retry=RetryOptions(base_delay=0.01)) as tracker:
        await tracker.enqueue("u", "e")
        assert (await tracker.flush(timeout=5)).delivered == 1
    assert transport.calls == 2


# -------------------------------------------------------------------------------------------------------- lifecycle


def test_nothing_belongs_to_a_loop_before_the_first_enqueue(sim_settings: Settings) -> None:
    """A tracker can be made at module level, without a running loop."""
    tracker = CioBatchTracker(sim_settings)
    assert tracker.stats().state == "new"
    assert asyncio.run(tracker.close()) == Report()


@pytest.fixture
def sim_settings() -> Settings:
    return Settings(site_id="site", track_api_key="key", track_url="http://127.0.0.1:9")


async def test_close_is_idempotent_and_final(sim: Simulator) -> None:
    """A second close returns the first one's report; a closed tracker refuses everything, clearly."""
    tracker = CioBatchTracker(settings_for(sim))
    await tracker.enqueue("u", "e")
    first, second = await asyncio.gather(tracker.close(), tracker.close())
    assert first == second == await tracker.close() == Report(delivered=1)
    for call in (tracker.enqueue("u", "e"), tracker.identify("u"), tracker.start()):
        with pytest.raises(TrackerClosedError):
            await call
    with pytest.raises(TrackerClosedError):
        tracker.enqueue_nowait("u", "e")
    assert tracker.stats().accepted == 1
    assert await tracker.flush() == Report()


async def test_those_who_wait_for_room_are_refused_by_close(sim: Simulator) -> None:
    """Close tells callers that still wait that it is too late; they were never accepted."""
    sim.faults.mix({"black_hole": 1.0})
    tracker = CioBatchTracker(settings_for(sim), max_pending=1, flush_interval=0.01)
    await tracker.enqueue("u", "e")
    waiting = asyncio.create_task(tracker.enqueue("u", "e"))
    await until(lambda: tracker._queue.waiting == 1)
    report = await tracker.close(timeout=0.2)
    with pytest.raises(TrackerClosedError):
        await waiting
    assert report.left == report.failed == assert_conserved(tracker).accepted == 1


async def test_cancelling_close_does_not_stop_the_drain(sim: Simulator) -> None:
    """The caller's cancel ends the waiting; the drain goes on and a later close gets its report."""
    sim.latency = 0.2
    tracker = CioBatchTracker(settings_for(sim))
    await tracker.enqueue("u", "e")
    closing = asyncio.create_task(tracker.close())
    await until(lambda: sim.traffic.calls == 1)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert (await tracker.close()).delivered == 1


async def test_an_unclosed_tracker_with_pending_operations_warns() -> None:
    """Forgetting to close is a ResourceWarning that says how many operations were never settled."""

    class Silent(DiscardTransport):
        async def send(self, operations: Any, call: Any) -> Any:
            await asyncio.Event().wait()

    def use_and_forget() -> None:
        async def main() -> None:
            tracker = CioBatchTracker(Settings(), transport=Silent(), drain_timeout=0.05)
            await tracker.enqueue("u", "e")

        loop = asyncio.new_event_loop()  # and not asyncio.run, at whose end the tracker drains
        loop.run_until_complete(main())
        for task in asyncio.all_tasks(loop):
            task._log_destroy_pending = False  # type: ignore[attr-defined] - left on purpose
        loop.close()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        await asyncio.to_thread(use_and_forget)
        gc.collect()
    assert [
        str(one.message) for one in caught if one.category is ResourceWarning and "1 operations" in str(one.message)
    ]


async def test_a_program_that_forgets_close_still_delivers(sim: Simulator) -> None:
    """When asyncio.run ends without close, what is pending is drained before the loop is gone."""
    settings = settings_for(sim)

    def run() -> None:
        async def main() -> None:
            tracker = CioBatchTracker(settings, flush_interval=60.0)
            for n in range(10):
                await tracker.enqueue("u", "e", {"n": n})

        asyncio.run(main())

    with pytest.warns(ResourceWarning, match="10 operations were drained at the last moment, 0 of them without"):
        await asyncio.to_thread(run)
    assert sent_numbers(sim, "id", "u") == list(range(10))


async def test_cancelling_a_caller_never_cancels_a_send(sim: Simulator) -> None:
    """An accepted event is delivered although the task that enqueued it was cancelled."""
    async with CioBatchTracker(settings_for(sim)) as tracker:

        async def request() -> None:
            await tracker.enqueue("u", "e", {"n": 1})
            await asyncio.Event().wait()

        task = asyncio.create_task(request())
        await until(lambda: tracker.stats().accepted == 1)
        task.cancel()
        await asyncio.wait([task])
        assert (await tracker.flush(timeout=5)).delivered == 1


async def test_cancelling_tasks_of_the_tracker_loses_nothing(sim: Simulator) -> None:
    """Whoever cancels the flush task, the dispatcher or a sender: everything still arrives, once and in order."""
    sim.latency = 0.01
    async with CioBatchTracker(settings_for(sim), batch_size=10, flush_interval=0.01, retry=PATIENT) as tracker:
        for n in range(500):
            await tracker.enqueue(f"u-{n % 20}", "e", {"n": n})
            if n % 7 == 0:
                for task in asyncio.all_tasks():
                    if task.get_name().startswith("cio_batch") and hash((task.get_name(), n)) % 3 == 0:
                        task.cancel()
                await asyncio.sleep(0)
                assert_conserved(tracker)
        await tracker.flush(timeout=20)
        stats = assert_conserved(tracker)
        assert stats.delivered == 500
    assert sim.traffic.person_overlaps == 0
    for person in range(20):
        assert sent_numbers(sim, "id", f"u-{person}") == list(range(person, 500, 20))


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"settings": "site"}, {"settings"}),
        ({"settings": {"site_id": "x"}}, {"settings"}),
        ({"transport": "v1"}, {"transport"}),
        ({"transport": TrackV1Transport}, {"transport"}),
        ({"retry": 3, "enabled": "no", "handle_sigterm": None}, {"retry", "enabled", "handle_sigterm"}),
        ({"on_settled": 3, "before_enqueue": "x"}, {"on_settled", "before_enqueue"}),
    ],
    ids=str,
)
def test_an_argument_of_a_wrong_kind_is_named(arguments: dict[str, Any], names: set[str]) -> None:
    """What cannot work is refused by the constructor, and not by the first event."""
    with pytest.raises(ConfigurationError) as caught:
        CioBatchTracker(**({"settings": Settings(site_id="s", track_api_key="k")} | arguments))
    assert set(caught.value.variables) == names


async def test_what_is_no_draft_is_refused(sim: Simulator) -> None:
    """Submit says what it takes."""
    async with CioBatchTracker(settings_for(sim)) as tracker:
        with pytest.raises(InvalidOperationError, match=r"must be a Draft, .* got dict"):
            await tracker.submit({"type": "person"})  # type: ignore[arg-type]


async def test_missing_and_malformed_variables_are_named_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """One error names every offending variable, whatever is wrong with it."""
    for name in ("CUSTOMERIO_SITE_ID", "CUSTOMERIO_TRACK_API_KEY", "CUSTOMERIO_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUSTOMERIO_REGION", "mars")
    with pytest.raises(ConfigurationError) as caught:
        CioBatchTracker()
    assert set(caught.value.variables) == {"CUSTOMERIO_REGION", "CUSTOMERIO_SITE_ID", "CUSTOMERIO_TRACK_API_KEY"}


async def test_a_disabled_tracker_says_so_and_refuses_what_its_wire_would(
    sim: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    """Development finds what production would refuse, and a warning tells that nothing is sent."""
    settings = settings_for(sim)
    async with CioBatchTracker(settings, transport=TrackV1Transport(settings), enabled=False) as tracker:
        with pytest.raises(InvalidOperationError):
            await tracker.enqueue(Phone("+15551234567"), "e")
    assert "sends nothing" in caplog.text


async def test_the_loops_own_thread_may_use_the_threads_way(sim: Simulator) -> None:
    """There the future is done at once, so that nobody waits for it while holding up the loop."""
    async with CioBatchTracker(settings_for(sim)) as tracker:
        assert tracker.enqueue_threadsafe("u", "e").result(timeout=0) is None
        with pytest.raises(WrongLoopError, match="enqueue_threadsafe"):
            await asyncio.to_thread(tracker.enqueue_nowait, "u", "e")
        assert assert_conserved(tracker).accepted == 1


async def test_an_outage_is_said_once_and_its_end_once(sim: Simulator, caplog: pytest.LogCaptureFixture) -> None:
    """Many failing calls are one line in the log, with the reason, and one when they get through again."""
    sim.faults.order("server_error", times=12)
    async with CioBatchTracker(settings_for(sim), batch_size=1, retry=PATIENT) as tracker:
        for n in range(4):
            await tracker.enqueue(f"u-{n}", "e")
        await tracker.flush(timeout=10)
    said = [record.getMessage() for record in caplog.records if "call" in record.getMessage()]
    assert [message for message in said if "in a row failed" in message] == [
        "3 calls in a row failed, they are repeated: status 500"
    ]
    assert len([message for message in said if "get through again" in message]) == 1
