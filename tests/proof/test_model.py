"""A tracker against a model of it: whatever is enqueued, answered, cancelled, closed and restarted, in any order.

The model is three sets: what was accepted, what was answered as delivered, what as rejected. From them follows where
each operation must be: in the counters, in the tracker, on the disk.
"""

from __future__ import annotations

import asyncio
import logging
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from cio_batch import CioBatchTracker, RetryOptions, Settings, Verdict
from cio_batch.operations import Operation
from cio_batch.tracker import Overflow
from cio_batch.verdicts import Judgement, Next, Rejection

from ..conftest import assert_conserved
from .clock import VirtualLoop, run
from .scripted import Disk, Event, Ledger, MemorySpool, Service, event_of

RETRY = RetryOptions(max_retries=4, base_delay=1.0, max_delay=4.0, max_retry_after=10.0)
DRAIN_TIMEOUT = 20.0
COMMIT = 0.003
SETTLED = 0.02  # seconds after which everything that needs no timer of the tracker has happened
PEOPLE = ["ann", "bob", "cid"]

_dead: list[Any] = []
"""What died with its loop; a pending task that is collected would complain."""


@attrs.frozen(eq=False)
class OpenCall:
    """A call that waits for its answer."""

    events: list[Event]
    answer: asyncio.Future[Judgement]


class Model(RuleBasedStateMachine):
    """The machine; ``kept`` says whether there is a spool, ``overflow`` what a full queue or spool does."""

    kept: bool
    overflow: Overflow = "block"
    max_bytes = 1_000_000_000  # of the spool

    def __init__(self) -> None:
        super().__init__()
        self.disk = Disk()
        self.service = Service(self.decide, max_operations=4)
        self.healthy = False
        self.numbers: Counter[str] = Counter()
        self.failures: Counter[Event] = Counter()  # answers in a row that decided nothing
        self.loop = VirtualLoop()
        self.begin()

    # ------------------------------------------------------------------------------------------------ both sides

    def begin(self) -> None:
        """A new tracker, on what the disk holds."""
        self.ledger = Ledger()
        self.accepted: set[Event] = set(self.disk.events())
        self.calls: list[OpenCall] = []
        self.callers: dict[Event, asyncio.Task[None]] = {}
        self.flushes: list[asyncio.Task[Any]] = []
        self.gone: set[Event] = set()  # purged while they were on disk only: counted as dropped, and that is all
        self.loose: set[Event] = set()  # purged while they were in flight: off the disk, and without a verdict
        self.spool = MemorySpool(self.disk, COMMIT, self.max_bytes)
        self.tracker = CioBatchTracker(
            Settings(),
            transport=self.service,
            concurrency=2,
            flush_interval=0.5,
            max_pending=8,
            overflow=self.overflow,
            enqueue_timeout=None,
            retry=RETRY,
            rate_limit=None,
            drain_timeout=DRAIN_TIMEOUT,
            spool=self.spool if self.kept else None,
            on_settled=self.ledger,
            handle_sigterm=False,
        )
        self.run(self.tracker.start())

    async def decide(self, operations: Sequence[Operation]) -> Judgement:
        events = [event_of(operation.body) for operation in operations]
        if self.healthy:
            self.note(events, Judgement(len(events)))
            return Judgement(len(events), status=200)
        call = OpenCall(events, asyncio.get_running_loop().create_future())
        self.calls.append(call)
        try:
            judgement = await call.answer
        finally:
            if call in self.calls:
                self.calls.remove(call)
        self.note(events, judgement)
        return judgement

    def note(self, events: list[Event], judgement: Judgement) -> None:
        for index, event in enumerate(events):
            decided = index < judgement.decided or index in judgement.rejected
            self.failures[event] = 0 if decided else self.failures[event] + 1

    def run(self, program: Any) -> Any:
        return self.loop.run_until_complete(program)

    def settle(self, seconds: float = SETTLED) -> None:
        self.run(asyncio.sleep(seconds))

    def enqueue(self, person: str) -> Event:
        event = person, self.numbers[person]
        self.numbers[person] += 1
        self.callers[event] = self.loop.create_task(self.tracker.enqueue(person, "e", {"n": event[1]}))
        return event

    def hear_callers(self) -> None:
        """Who returned without an error was accepted."""
        for event, caller in list(self.callers.items()):
            if caller.done():
                del self.callers[event]
                if not caller.cancelled() and caller.exception() is None:
                    self.accepted.add(event)

    @property
    def undecided(self) -> set[Event]:
        return self.accepted - self.ledger.verdicts.keys() - self.gone

    # ----------------------------------------------------------------------------------------------------- rules

    @rule(people=st.lists(st.sampled_from(PEOPLE), min_size=1, max_size=4))
    def say(self, people: list[str]) -> None:
        """Some callers enqueue; they return at once, after the commit, or when there is room."""
        for person in people:
            self.enqueue(person)
        self.settle()

    @rule(person=st.sampled_from(PEOPLE), steps=st.integers(0, 4))
    def say_and_cancel(self, person: str, steps: int) -> None:
        """A caller is cancelled at some step; what was said to a spool, or is in the queue, is accepted anyway.

        The caller cannot know. That it is one more, and which one, shows where everything is.
        """
        event = self.enqueue(person)

        async def some_steps() -> None:
            for _ in range(steps):
                await asyncio.sleep(0)

        self.run(some_steps())
        caller = self.callers[event]
        caller.cancel()
        self.settle()
        self.hear_callers()
        if caller.cancelled() and self.tracker.stats().accepted == len(self.accepted) + 1:
            self.accepted.add(event)

    @precondition(lambda self: any(not caller.done() for caller in self.callers.values()))
    @rule(data=st.data())
    def cancel_a_caller_that_waits(self, data: st.DataObject) -> None:
        """Whoever waits for room and is cancelled has said nothing."""
        waiting = [caller for caller in self.callers.values() if not caller.done()]
        data.draw(st.sampled_from(waiting)).cancel()
        self.settle()

    @precondition(lambda self: self.calls)
    @rule(
        data=st.data(), kind=st.sampled_from(["all", "all", "some", "refuse", "split", "busy", "later", "key", "head"])
    )
    def answer(self, data: st.DataObject, kind: str) -> None:
        """The service answers one of the calls."""
        call = data.draw(st.sampled_from(self.calls))
        count = len(call.events)
        match kind:
            case "all":
                judgement = Judgement(count, status=200)
            case "some":
                indexes = data.draw(st.sets(st.integers(0, count - 1), min_size=1))
                judgement = Judgement(count, rejected=dict.fromkeys(indexes, Rejection("invalid")), status=207)
            case "refuse" if count == 1:
                judgement = Judgement(0, rejected={0: Rejection("invalid")}, status=400, refuses_call=True)
            case "refuse" | "split" if count > 1:
                judgement = Judgement(0, next=Next.SPLIT, reason="status 400", refuses_call=kind == "refuse")
            case "later":
                wait = data.draw(st.sampled_from([0.0, 3.0, 1e9]))
                judgement = Judgement(0, next=Next.RETRY, reason="status 429", retry_after=wait, blames=False)
            case "key":
                judgement = Judgement(0, next=Next.PAUSE, reason="status 401", status=401, blames=False)
            case "head":
                judgement = Judgement(data.draw(st.integers(0, count - 1)), next=Next.RETRY, reason="timed out")
            case _:
                judgement = Judgement(0, next=Next.RETRY, reason="status 503", status=503)
        call.answer.set_result(judgement)
        self.settle()

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def break_a_call(self, data: st.DataObject) -> None:
        """The transport raises."""
        call = data.draw(st.sampled_from(self.calls))
        self.note(call.events, Judgement(0))
        call.answer.set_exception(ConnectionError())
        self.settle()

    @rule(seconds=st.sampled_from([0.1, 0.6, 2.0, 6.0, 15.0]))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.settle(seconds)

    @rule(data=st.data())
    def cancel_a_task_of_ours(self, data: st.DataObject) -> None:
        """Somebody cancels tasks of the tracker."""
        tasks = [task for task in self.loop.tasks() if task.get_name().startswith("cio_batch ")]
        if tasks:
            name = data.draw(st.sampled_from(sorted({task.get_name() for task in tasks})))
            for task in tasks:
                if task.get_name() == name:
                    task.cancel()
            self.settle()

    @rule(timeout=st.sampled_from([None, 0.3]))
    def flush(self, timeout: float | None) -> None:
        """A caller flushes, and waits for as long as it takes or gives up."""
        self.flushes.append(self.loop.create_task(self.tracker.flush(timeout)))
        self.settle()

    @precondition(lambda self: self.kept)
    @rule(person=st.sampled_from(PEOPLE), unwritten=st.booleans())
    def purge(self, person: str, unwritten: bool) -> None:
        """A person asks to be forgotten: what waits, in memory or on disk, is not sent any more."""
        if unwritten:
            self.enqueue(person)
        self.run(asyncio.sleep(0))
        count = self.run(self.spool.purge(person))
        self.settle()
        self.hear_callers()
        off = {event for event in self.undecided - set(self.disk.events()) if event[0] == person} - self.loose
        self.take_away(off)
        assert off - self.gone <= {event for call in self.calls for event in call.events}
        assert len(off) <= count

    def take_away(self, off: set[Event]) -> None:
        """What is off the disk and has no verdict was on disk only, which the tracker counts, or is in flight."""
        dropped = self.tracker.stats().dropped - len(self.ledger.having(Verdict.DROPPED)) - len(self.gone)
        on_disk_only = sorted(off, key=lambda event: event[1])[len(off) - dropped :]
        self.gone.update(on_disk_only)
        self.loose |= off - self.gone

    @rule(healthy=st.booleans(), timeout=st.sampled_from([0.0, 5.0]))
    def close_and_begin_anew(self, healthy: bool, timeout: float) -> None:
        """Close; the next tracker finds on the disk what had no verdict."""
        self.healthy = healthy
        self.answer_open_calls()
        report = self.run(self.tracker.close(timeout))
        self.hear_callers()
        assert self.tracker.is_closed
        left = self.left()
        assert report.left == len(left)
        if self.kept:
            assert set(self.disk.events()) == left - self.loose
        else:
            assert not self.undecided
        self.where_everything_is()
        self.healthy = False
        self.begin()

    @rule(healthy=st.booleans(), politely=st.booleans())
    def go_on_in_another_loop(self, healthy: bool, politely: bool) -> None:
        """The loop ends without ``close``, by the last resort of ``asyncio.run`` or without a word."""
        self.healthy = healthy
        self.answer_open_calls()
        tasks = self.loop.tasks()
        if politely and tasks:
            for task in tasks:
                task.cancel()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                self.run(asyncio.gather(*tasks, return_exceptions=True))
        self.bury_the_loop()
        if self.kept:
            self.accepted |= set(self.disk.events())  # also those whose callers never heard of it
        if self.tracker.stats().state in ("draining", "closed"):
            # A last resort had begun in the very step in which the loop stopped: only close() goes on with it, or the
            # next last resort ends it.
            self.run(self.tracker.close())
            self.where_everything_is()
            self.begin()
        self.healthy = False
        self.run(self.tracker.start())
        self.settle()
        if self.loose:  # what was in flight is read back from the disk, and these are not there
            self.take_away(self.undecided - set(self.disk.events()))
            self.loose -= self.gone

    @precondition(lambda self: self.kept)
    @rule(said=st.lists(st.sampled_from(PEOPLE), max_size=2), answered=st.booleans())
    def die(self, said: list[str], answered: bool) -> None:
        """The process is killed: what was not committed is gone, an answer that was not noted comes again."""
        if answered and self.calls:
            self.calls[0].answer.set_result(Judgement(len(self.calls[0].events)))
        for person in said:
            self.enqueue(person)
        self.run(asyncio.sleep(0))
        self.spool.die()
        self.tracker.forget_parent()
        self.bury_the_loop()
        self.service.forget_answers(set(self.disk.events()))
        self.begin()

    def left(self) -> set[Event]:
        """What had no verdict when the time for a drain was over: in memory it failed, with a spool it stays."""
        if self.kept:
            return self.undecided
        return {event for event, reason in self.ledger.reasons.items() if reason == "deadline"}

    def answer_open_calls(self) -> None:
        if self.healthy:
            for call in self.calls:
                if not call.answer.done():
                    call.answer.set_result(Judgement(len(call.events)))

    def bury_the_loop(self) -> None:
        self.hear_callers()
        for task in self.loop.tasks():
            task._log_destroy_pending = False  # type: ignore[attr-defined] - it died with its loop
            _dead.append(task)
        _dead.append((list(self.calls), dict(self.callers)))
        self.loop.close()
        self.service.out.clear()
        self.calls, self.callers, self.flushes = [], {}, []
        self.loop = VirtualLoop(self.loop.now)

    # ----------------------------------------------------------------------------------------------- what must hold

    @invariant()
    def where_everything_is(self) -> None:
        """Each operation is where the model says, and nowhere else."""
        self.hear_callers()
        stats, ledger, service = assert_conserved(self.tracker), self.ledger, self.service
        assert not service.violations
        assert not ledger.twice
        assert stats.accepted == len(self.accepted)
        assert ledger.verdicts.keys() <= self.accepted
        assert ledger.having(Verdict.DELIVERED) == service.delivered & self.accepted
        assert not service.delivered & self.gone
        assert ledger.having(Verdict.REJECTED) == service.rejected & self.accepted
        failed = ledger.having(Verdict.FAILED)
        for event in failed:
            assert ledger.reasons[event] == "deadline" or self.failures[event] > RETRY.max_retries, event
        dropped = ledger.having(Verdict.DROPPED)
        allowed = {"overflow"} if self.overflow.startswith("drop_") else set[str]()
        allowed |= {"purged"} if self.kept else set[str]()
        assert {ledger.reasons[event] for event in dropped} <= allowed
        assert (stats.delivered, stats.rejected, stats.failed, stats.dropped) == (
            len(ledger.having(Verdict.DELIVERED)),
            len(ledger.having(Verdict.REJECTED)),
            len(failed),
            len(dropped) + len(self.gone),
        )
        undecided = self.undecided
        assert stats.pending + stats.in_flight == len(undecided)
        out = {event for call in self.calls for event in call.events}
        assert out <= undecided
        assert len(out) <= stats.in_flight
        for flush in [flush for flush in self.flushes if flush.done()]:
            self.flushes.remove(flush)
            if not flush.cancelled():
                flush.result()
        if self.kept:
            self.loose &= undecided
            assert set(self.disk.events()) == undecided - self.loose
            assert len(self.disk.rows) == len(undecided - self.loose)
            assert not self.spool.unwritten
        else:
            assert stats.pending + stats.in_flight <= 8

    def teardown(self) -> None:
        """The service is well again: all that is undecided arrives."""
        self.healthy = True
        self.answer_open_calls()
        self.hear_callers()
        waiting = list(self.callers.values())
        self.run(asyncio.sleep(40.0))
        assert all(caller.done() for caller in waiting)
        report = self.run(self.tracker.close(1_000.0))
        self.hear_callers()
        assert not self.undecided
        assert report.left == len(self.left())
        self.where_everything_is()
        self.loop.close()


class InMemory(Model):
    kept = False


class InMemoryDroppingOldest(InMemory):
    overflow = "drop_oldest"


class InMemoryDroppingNew(InMemory):
    overflow = "drop_newest"


class InMemoryRaising(InMemory):
    overflow = "raise"


class WithSpool(Model):
    kept = True


class WithFullSpool(WithSpool):
    max_bytes = 2_000


class WithSpoolDroppingOldest(WithFullSpool):
    overflow = "drop_oldest"


class WithSpoolDroppingNew(WithFullSpool):
    overflow = "drop_newest"


class WithSpoolRaising(WithFullSpool):
    overflow = "raise"


@pytest.fixture(autouse=True)
def _silence(caplog: pytest.LogCaptureFixture) -> None:
    """A thousand outages would be logged."""
    caplog.set_level(logging.CRITICAL, "cio_batch")


MACHINES = [
    InMemory,
    InMemoryDroppingOldest,
    InMemoryDroppingNew,
    InMemoryRaising,
    WithSpool,
    WithFullSpool,
    WithSpoolDroppingOldest,
    WithSpoolDroppingNew,
    WithSpoolRaising,
]
LIMITS = settings(max_examples=50, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.usefixtures("_silence")
@pytest.mark.parametrize("machine", MACHINES)
def test_the_tracker_does_what_the_model_does(machine: type[Model]) -> None:
    """In memory and with a spool (which lives in memory and survives restarts), at each overflow policy."""
    run_state_machine_as_test(machine, settings=LIMITS)


def test_what_is_written_while_a_drain_ends_is_left_and_not_missed() -> None:
    """A commit that is reported after the deadline: nothing is read back for it, and nothing is taken for gone."""

    async def never(_: Sequence[Operation]) -> Judgement:
        await asyncio.Event().wait()
        raise AssertionError

    async def program() -> None:
        disk = Disk()
        tracker = CioBatchTracker(
            Settings(), transport=Service(never), flush_interval=0.01, spool=MemorySpool(disk), handle_sigterm=False
        )
        await asyncio.gather(*(tracker.enqueue("ann", "e", {"n": n}) for n in range(3)))
        await asyncio.sleep(0.1)
        late = asyncio.create_task(tracker.enqueue("ann", "e", {"n": 3}))
        await asyncio.sleep(0.003 - 1e-4)
        report = await tracker.close(0.0)
        await late
        await asyncio.sleep(1.0)
        stats = assert_conserved(tracker)
        assert (report.left, stats.pending, stats.dropped) == (4, 4, 0)
        assert disk.events() == [("ann", n) for n in range(4)]

    run(program())
