"""One chunk's way: waits, pauses, probes, isolation, and transports that do not keep their promises."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from cio_batch import (
    CioBatchTracker,
    QueueFullError,
    Report,
    RetryOptions,
    Settings,
    SettledChunk,
    TrackerClosedError,
    Verdict,
    operations,
)
from cio_batch.operations import Operation
from cio_batch.settings import QUEUE_RETRY
from cio_batch.simulator import Faults, Simulator
from cio_batch.transports import Call, DiscardTransport, TrackV1Transport
from cio_batch.verdicts import Judgement, Next, Rejection

from .conftest import PATIENT, assert_conserved, sent_numbers, settings_for, until


class Scripted(DiscardTransport):
    """A transport whose answers are given by a function of the operations; it notes when it was called."""

    def __init__(self, answer: Callable[[Sequence[Operation]], Any]) -> None:
        super().__init__()
        self.answer = answer
        self.times: list[float] = []
        self.chunks: list[int] = []

    async def send(self, operations: Sequence[Operation], call: Call) -> Judgement:
        await call.gate()
        self.times.append(time.monotonic())
        self.chunks.append(len(operations))
        result = self.answer(operations)
        if inspect.isawaitable(result):
            result = await result
        return result  # type: ignore[no-any-return]


def retry(_operations: Sequence[Operation]) -> Judgement:
    return Judgement(0, next=Next.RETRY, reason="no")


def test_the_defaults_are_the_documented_ones() -> None:
    """The defaults that the docstring gives reasons for are those of the signature."""
    defaults = {
        name: parameter.default for name, parameter in inspect.signature(CioBatchTracker.__init__).parameters.items()
    }
    assert defaults | {"self": None} == defaults | {
        "self": None,
        "settings": None,
        "batch_size": None,
        "flush_interval": 5.0,
        "concurrency": 10,
        "max_pending": 100_000,
        "max_pending_bytes": 64_000_000,
        "overflow": "block",
        "enqueue_timeout": 10.0,
        "retry": QUEUE_RETRY,
        "rate_limit": 1_000.0,
        "drain_timeout": 10.0,
        "transport": None,
        "handle_sigterm": True,
        "enabled": True,
        "on_settled": None,
        "before_enqueue": None,
        "spool": None,
        "dead_letters": None,
        "on_dead_letter": None,
    }
    assert QUEUE_RETRY.max_retries == 9
    assert RetryOptions() == RetryOptions(max_retries=3, base_delay=1.0, max_delay=30.0, jitter=0.3)


# --------------------------------------------------------------------------------------------------- waits, pauses


async def test_waits_grow_exponentially() -> None:
    """Between attempts pass at least base, 2 base, 4 base … seconds, up to the cap."""
    transport = Scripted(retry)
    options = RetryOptions(max_retries=4, base_delay=0.04, max_delay=0.16, jitter=0.0)
    async with CioBatchTracker(Settings(), transport=transport, retry=options) as tracker:
        await tracker.enqueue("u", "e")
        assert await tracker.flush(timeout=10) == Report(failed=1)
    gaps = [later - earlier for earlier, later in zip(transport.times, transport.times[1:], strict=False)]
    assert len(gaps) == 4
    for gap, least in zip(gaps, (0.04, 0.08, 0.16, 0.16), strict=True):
        assert gap >= least - 0.002


async def test_waits_are_jittered() -> None:
    """Twenty chunks that fail together do not come back together."""
    transport = Scripted(retry)
    options = RetryOptions(max_retries=1, base_delay=0.2, jitter=1.0)
    async with CioBatchTracker(
        Settings(), transport=transport, retry=options, batch_size=1, concurrency=20, rate_limit=None
    ) as tracker:
        for n in range(20):
            await tracker.enqueue(f"u-{n}", "e")
        await tracker.flush(timeout=10)
    second = sorted(transport.times)[20:]
    assert len(second) == 20
    assert second[-1] - second[0] > 0.05


async def test_max_elapsed_ends_the_patience() -> None:
    """However many retries are left, none is begun after that time."""
    transport = Scripted(retry)
    options = RetryOptions(max_retries=100_000, base_delay=0.01, max_delay=0.01, max_elapsed=0.2)
    async with CioBatchTracker(Settings(), transport=transport, retry=options) as tracker:
        await tracker.enqueue("u", "e")
        assert await tracker.flush(timeout=10) == Report(failed=1)
    assert transport.times[-1] - transport.times[0] < 5


async def test_a_retry_after_also_holds_those_who_queue_for_the_rate_limit() -> None:
    """A call that waits for the rate limit when a pause begins waits for the pause too."""
    first = asyncio.Event()

    def answer(operations: Sequence[Operation]) -> Judgement:
        if not first.is_set():
            first.set()
            return Judgement(0, next=Next.RETRY, reason="status 429", status=429, retry_after=0.6, blames=False)
        return Judgement(len(operations))

    transport = Scripted(answer)
    options = RetryOptions(base_delay=0.01, jitter=0.0)
    async with CioBatchTracker(
        Settings(), transport=transport, retry=options, batch_size=1, rate_limit=20.0
    ) as tracker:
        for n in range(5):
            await tracker.enqueue(f"u-{n}", "e")
        assert (await tracker.flush(timeout=10)).delivered == 5
    assert transport.times[1] - transport.times[0] >= 0.59


async def test_v1_counts_each_call_against_the_rate_limit(sim: Simulator) -> None:
    """Twenty operations of one chunk are twenty calls, spaced like any others, and counted."""
    settings = settings_for(sim)
    async with CioBatchTracker(settings, transport=TrackV1Transport(settings), rate_limit=50.0) as tracker:
        begun = time.monotonic()
        for n in range(20):
            await tracker.enqueue("u", "e", {"n": n})
        await tracker.flush(timeout=10)
        assert time.monotonic() - begun >= 19 / 50 - 0.01
        assert tracker.stats().calls == 20


async def test_v1_counts_the_repeats_of_each_call(sim: Simulator) -> None:
    """X-Retry-Count says how often this very operation was sent before."""
    sim.faults.order("server_error", times=2)  # the first operation, twice
    settings = settings_for(sim)
    counts: list[int] = []

    class Watching(TrackV1Transport):
        async def send(self, operations: Sequence[Operation], call: Call) -> Judgement:
            counts.append(call.attempt)
            if len(counts) == 3:
                sim.faults.order("latency", latency=0.0)  # the first operation gets through
                sim.faults.order("server_error")  # the second fails once
            return await super().send(operations, call)

    async with CioBatchTracker(settings, transport=Watching(settings), retry=PATIENT) as tracker:
        for n in range(3):
            await tracker.enqueue("u", "e", {"n": n})
        assert (await tracker.flush(timeout=10)).delivered == 3
    assert counts == [0, 1, 2, 1]


@pytest.mark.parametrize("wire", ["v2", "v1"])
async def test_refused_credentials_are_probed_one_call_at_a_time(wire: str) -> None:
    """During the pause no two calls overlap; after it, all senders are back, on both wires."""
    async with Simulator(faults=Faults({"unauthorized": 1.0}), latency=0.02) as sim:
        settings = settings_for(sim)
        options = RetryOptions(base_delay=0.01, max_delay=0.02)
        tracker = CioBatchTracker(
            settings,
            transport=TrackV1Transport(settings) if wire == "v1" else None,
            retry=options,
            batch_size=1,
            concurrency=5,
        )
        for n in range(30):
            await tracker.enqueue(f"u-{n}", "e")
        await until(lambda: tracker.stats().paused is not None)
        await until(lambda: tracker._delivery._slots.locked())
        sim.traffic.max_overlap = 0
        calls = sim.traffic.calls
        await until(lambda: sim.traffic.calls >= calls + 5)
        assert sim.traffic.max_overlap == 1
        sim.faults.mix({"server_error": 1.0})
        calls = sim.traffic.calls
        await until(lambda: sim.traffic.calls >= calls + 3)
        assert tracker.stats().paused is not None  # a 500 says nothing about the credentials
        sim.faults.clear()
        assert (await tracker.flush(timeout=20)).delivered == 30
        assert tracker.stats().paused is None
        for n in range(30):
            await tracker.enqueue(f"v-{n}", "e")
        await tracker.flush(timeout=20)
        assert sim.traffic.max_overlap > 1
        await tracker.close()


# ------------------------------------------------------------------------------------------------------- isolation


async def test_those_who_share_a_chunk_with_a_culprit_go_before_it_fails() -> None:
    """A poisoned operation holds back its own person; all others of its chunk are delivered while it is retried."""

    def answer(operations: Sequence[Operation]) -> Judgement:
        poisoned = any(b'"poison"' in operation.body for operation in operations)
        return retry(operations) if poisoned else Judgement(len(operations))

    told: list[tuple[Verdict, str]] = []

    def note(chunk: SettledChunk) -> None:
        told.extend((one.verdict, one.payload["name"]) for one in chunk.operations)

    options = RetryOptions(max_retries=40, base_delay=0.01, max_delay=0.05)
    async with CioBatchTracker(
        Settings(), transport=Scripted(answer), retry=options, on_settled=note, batch_size=100, flush_interval=0.01
    ) as tracker:
        await tracker.enqueue("culprit", "poison")
        for n in range(99):
            await tracker.enqueue(f"u-{n}" if n % 9 else "culprit", f"fine-{n}")
        others = asyncio.create_task(_trickle(tracker))
        await until(lambda: (Verdict.FAILED, "poison") in told, within=20)
        before = {name for _, name in told[: told.index((Verdict.FAILED, "poison"))]}
        assert {f"fine-{n}" for n in range(99) if n % 9} <= before
        assert not {f"fine-{n}" for n in range(99) if not n % 9} & before
        others.cancel()
        await tracker.flush(timeout=10)
        assert assert_conserved(tracker).failed == 1


async def _trickle(tracker: CioBatchTracker) -> None:
    """Others get through meanwhile: that is what tells a culprit from an outage."""
    while True:
        await tracker.enqueue("busy", "other")
        await asyncio.sleep(0.01)


async def test_many_culprits_dam_up_nobody_else() -> None:
    """More chunks that only fail than may be out do not stop the rest from being tried."""

    def answer(operations: Sequence[Operation]) -> Judgement:
        return retry(operations) if b'"poison"' in operations[0].body else Judgement(len(operations))

    options = RetryOptions(max_retries=1_000, base_delay=0.05, max_delay=0.1)
    tracker = CioBatchTracker(
        Settings(), transport=Scripted(answer), retry=options, batch_size=1, concurrency=2, flush_interval=0.01
    )
    for n in range(30):
        await tracker.enqueue(f"bad-{n}", "poison")
    for n in range(50):
        await tracker.enqueue(f"good-{n}", "fine")
    await until(lambda: tracker.stats().delivered == 50)
    report = await tracker.close(timeout=0.2)
    assert (report.delivered, report.left) == (50, 30)


# ---------------------------------------------------------------------------- transports that break their promises


async def _cancels_itself() -> Judgement:
    raise asyncio.CancelledError


NONSENSE: dict[str, Callable[[Sequence[Operation]], Any]] = {
    "none": lambda _: None,
    "negative": lambda _: Judgement(-1),
    "too many": lambda operations: Judgement(len(operations) + 5),
    "rejects before the first": lambda _: Judgement(0, rejected={-1: Rejection("x")}),
    "rejects behind the last": lambda operations: Judgement(len(operations), rejected={99: Rejection("x")}),
    "a wait that is text": lambda _: Judgement(0, next=Next.RETRY, retry_after="5"),  # type: ignore[arg-type]
    "splits one": lambda _: Judgement(0, next=Next.SPLIT),
    "cancels itself": lambda _: _cancels_itself(),
}


@pytest.mark.parametrize("answer", NONSENSE.values(), ids=NONSENSE.keys())
async def test_nonsense_from_a_transport_ends_and_is_counted_once(answer: Callable[..., Any]) -> None:
    """Whatever a transport returns: every operation ends once, after a bounded number of calls."""
    told: list[Verdict] = []
    transport = Scripted(answer)
    options = RetryOptions(max_retries=3, base_delay=0.01, max_delay=0.02)
    async with CioBatchTracker(
        Settings(),
        transport=transport,
        retry=options,
        on_settled=lambda chunk: told.extend(one.verdict for one in chunk.operations),
    ) as tracker:
        for n in range(4):
            await tracker.enqueue(f"u-{n}", "e")
        report = await tracker.flush(timeout=10)
        assert report.left == 0
        assert_conserved(tracker)
    assert len(told) == 4
    assert len(transport.times) <= 2 * 4 * 4


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("fault", ["raises", "cancels", "hangs"])
async def test_a_transport_that_does_not_close_holds_up_nobody(fault: str, started: bool) -> None:
    """close() is back in time, and says nothing else than it would have said."""

    class Broken(DiscardTransport):
        closes = 0

        async def close(self) -> None:
            self.closes += 1
            if fault == "raises":
                raise OSError
            if fault == "cancels":
                raise asyncio.CancelledError
            await asyncio.Event().wait()

    transport = Broken()
    tracker = CioBatchTracker(Settings(), transport=transport)
    if started:
        await tracker.enqueue("u", "e")
    begun = time.monotonic()
    assert await tracker.close(timeout=0.3) == Report(delivered=int(started))
    assert time.monotonic() - begun < 0.3 + 0.3
    assert transport.closes == 1


# ------------------------------------------------------------------------------- races at the door and at the end


async def test_a_caller_turned_away_in_the_instant_of_its_timeout_is_told() -> None:
    """When close and the timeout fall together, the caller gets an error: nothing was accepted."""
    transport = Scripted(lambda _: asyncio.Event().wait())
    tracker = CioBatchTracker(Settings(), transport=transport, max_pending=1, enqueue_timeout=0.1)
    await tracker.enqueue("u", "e")
    waiting = [asyncio.create_task(tracker.enqueue("u", "e")) for _ in range(5)]
    await until(lambda: tracker._queue.waiting == 5)
    closing = asyncio.create_task(tracker.close(timeout=0.1))
    await asyncio.sleep(0)
    time.sleep(0.15)  # noqa: ASYNC251 - a loop that stands still is the case
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    await closing
    assert all(isinstance(outcome, (TrackerClosedError, QueueFullError)) for outcome in outcomes)
    assert assert_conserved(tracker).accepted == 1


@pytest.mark.parametrize("bound", [{"max_pending": 100}, {"max_pending_bytes": 32_000}], ids=str)
async def test_a_full_queue_that_is_less_than_a_batch_is_sent(sim: Simulator, bound: dict[str, int]) -> None:
    """Nobody waits for the interval when the bound is reached before a batch is."""
    async with CioBatchTracker(settings_for(sim), flush_interval=600.0, enqueue_timeout=5.0, **bound) as tracker:  # type: ignore[arg-type]
        for n in range(1_000):
            await tracker.enqueue("u", "e", {"n": n})
    assert sent_numbers(sim, "id", "u") == list(range(1_000))


async def test_a_refusing_queue_makes_room_too(sim: Simulator) -> None:
    """With overflow "raise" the first refusal sends what there is."""
    async with CioBatchTracker(settings_for(sim), flush_interval=600.0, max_pending=10, overflow="raise") as tracker:
        for _ in range(10):
            await tracker.enqueue("u", "e")
        with pytest.raises(QueueFullError):
            await tracker.enqueue("u", "e")
        await until(lambda: tracker.stats().delivered == 10)


async def test_thousands_who_share_an_object_are_given_up_in_time() -> None:
    """What is left when many operations name the same object is named without delay."""
    transport = Scripted(retry)
    tracker = CioBatchTracker(
        Settings(), transport=transport, retry=RetryOptions(base_delay=60.0, max_delay=60.0), batch_size=50
    )
    shared = operations.ObjectId("1", "acme")
    for n in range(6_000):
        await tracker.enqueue(f"u-{n}", "e")
    for n in reversed(range(6_000)):
        await tracker.add_relationships(f"u-{n}", [shared])
    begun = time.monotonic()
    report = await tracker.close(timeout=0.5)
    assert time.monotonic() - begun < 0.5 + 0.3
    assert report.left == 12_000
    assert_conserved(tracker)


async def test_flushes_that_wait_for_the_same_share_their_watch(sim: Simulator) -> None:
    """A hundred callers who flush the same backlog cost as much as one, and all get their answer."""
    sim.latency = 0.1
    async with CioBatchTracker(settings_for(sim)) as tracker:
        for n in range(100):
            await tracker.enqueue(f"u-{n}", "e")
        flushes = [asyncio.create_task(tracker.flush(timeout=10)) for _ in range(100)]
        await until(lambda: bool(tracker._watches))
        await asyncio.sleep(0)
        assert len(tracker._watches) == 1
        assert await asyncio.gather(*flushes) == [Report(delivered=100)] * 100
        assert not tracker._watches


async def test_a_hook_may_await_close(sim: Simulator) -> None:
    """A hook that closes the tracker is not waited for by the very close it waits for."""
    closed: list[Report] = []

    async def close_it(_chunk: SettledChunk) -> None:
        closed.append(await tracker.close())

    tracker = CioBatchTracker(settings_for(sim), on_settled=close_it, flush_interval=0.01, drain_timeout=5.0)
    begun = time.monotonic()
    await tracker.enqueue("u", "e")
    await until(lambda: bool(closed))
    assert time.monotonic() - begun < 3
    assert closed == [Report(delivered=1)]


@pytest.mark.parametrize("cleanup", ["helpers", "closes"])
async def test_the_end_of_a_program_is_recognized_whatever_others_do_meanwhile(sim: Simulator, cleanup: str) -> None:
    """Tasks that start others, or close the tracker, while asyncio.run ends do not cost an event."""
    settings = settings_for(sim)

    def run() -> None:
        async def main() -> None:
            tracker = CioBatchTracker(settings, flush_interval=60.0)

            async def work() -> None:
                try:
                    await asyncio.Event().wait()
                finally:
                    if cleanup == "helpers":
                        await asyncio.wait_for(asyncio.create_task(asyncio.sleep(0.05)), 1)
                    else:
                        await tracker.close()

            background.extend(asyncio.create_task(work()) for _ in range(5))
            for n in range(200):
                await tracker.enqueue("u", "e", {"n": n})
            await asyncio.sleep(0)

        background: list[asyncio.Task[None]] = []
        asyncio.run(main())

    with pytest.warns(ResourceWarning, match="200 operations") if cleanup == "helpers" else _nothing():
        await asyncio.to_thread(run)
    assert sent_numbers(sim, "id", "u") == list(range(200))


class _nothing:  # noqa: N801 - stands where a function of pytest stands
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


def test_a_loop_that_ends_without_a_word_and_a_second_one() -> None:
    """After run_until_complete and close() in mid-air, a second loop goes on: nothing twice, nothing lost."""
    released = False

    async def answer(operations: Sequence[Operation]) -> Judgement:
        if not released:
            await asyncio.Event().wait()
        return Judgement(len(operations))

    told: list[SettledChunk] = []
    transport = Scripted(answer)
    tracker = CioBatchTracker(
        Settings(), transport=transport, batch_size=2, concurrency=2, max_pending=10, on_settled=told.append
    )

    async def first() -> None:
        for n in range(10):
            await tracker.enqueue(f"u-{n}", "e", {"n": n})
        waiting.append(asyncio.create_task(tracker.enqueue("late", "e", {"n": 99})))
        await until(lambda: tracker.stats().in_flight == 4)

    waiting: list[asyncio.Task[None]] = []
    loop = asyncio.new_event_loop()
    loop.run_until_complete(first())
    tasks = asyncio.all_tasks(loop)
    loop.close()
    for task in tasks:
        task._log_destroy_pending = False  # type: ignore[attr-defined] - the test leaves them on purpose
    released = True

    async def second() -> None:
        await tracker.enqueue("v", "e", {"n": 10})
        assert (await tracker.flush(timeout=5)).left == 0
        assert_conserved(tracker)
        await tracker.close()

    asyncio.run(second())
    numbers = [one.payload["attributes"]["n"] for chunk in told for one in chunk.operations]
    assert sorted(numbers) == list(range(11))
    waiting.clear()


async def test_a_thread_cannot_wake_a_tracker_in_a_loop_that_is_not_its_own(sim: Simulator) -> None:
    """An event that a thread hands over when the tracker is closed is refused, not taken for good."""
    tracker = CioBatchTracker(settings_for(sim))
    await tracker.start()
    loop = asyncio.get_running_loop()
    future = tracker.enqueue_threadsafe("u", "e")
    await tracker.close()
    assert future.done()
    assert assert_conserved(tracker).accepted == (0 if future.exception() else 1)
    assert loop.is_running()


async def test_what_a_hook_drops_for_another_thread_is_counted(sim: Simulator) -> None:
    """before_enqueue runs in the thread, and what it drops is accepted and dropped."""
    async with CioBatchTracker(settings_for(sim), before_enqueue=lambda _draft: None) as tracker:
        await asyncio.to_thread(lambda: tracker.enqueue_threadsafe("u", "e").result(timeout=5))
        await until(lambda: tracker.stats().dropped == 1)
        assert assert_conserved(tracker).accepted == 1


def test_handle_sigterm_false_leaves_the_signal_alone() -> None:
    """Without it no handler is set; with it one is set, and put back by close."""
    import signal

    async def main(handle: bool) -> None:
        before = signal.getsignal(signal.SIGTERM)
        tracker = CioBatchTracker(Settings(), transport=DiscardTransport(), handle_sigterm=handle)
        await tracker.start()
        assert (signal.getsignal(signal.SIGTERM) != before) is handle
        await tracker.close()
        assert signal.getsignal(signal.SIGTERM) == before

    asyncio.run(main(False))
    asyncio.run(main(True))


async def test_a_refusal_of_the_credentials_is_not_the_end_of_an_outage(caplog: pytest.LogCaptureFixture) -> None:
    """After failing calls a 401 is said in its own words, and not as calls that get through."""
    async with Simulator() as sim:
        sim.faults.order("server_error", times=4)
        sim.faults.order("unauthorized")
        retry_soon = RetryOptions(max_retries=50, base_delay=0.01, max_delay=0.02)
        async with CioBatchTracker(settings_for(sim), retry=retry_soon) as tracker:
            await tracker.enqueue("u", "e")
            assert (await tracker.flush(timeout=10)).delivered == 1
    said = [record.getMessage() for record in caplog.records if record.name == "cio_batch.delivery"]
    kinds = ["in a row", "refuses the credentials", "get through again", "takes calls again"]
    assert [kind for message in said for kind in kinds if kind in message] == kinds
