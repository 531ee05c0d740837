"""The way of a chunk: from the backlog through the semaphore, the rate limit and the retries to its verdicts.

Rules:

1. A chunk is sent by a task that belongs to this module. A caller's cancel never reaches it.
2. From the instant in which an operation leaves the backlog it is in a *flight*; it leaves the flight only with a
   verdict, or back to the head of the backlog. A task that ends in any way lands its flight.
3. Every call holds one slot of the semaphore. A flight that waits to be repeated holds none, so that it keeps back
   nobody but its own persons.
4. A ``Retry-After`` and a refusal of the credentials pause all senders; one flight at a time probes.
5. A chunk that keeps failing while others get through is split until the culprit is alone. The number of attempts is
   bounded by ``RetryOptions``, except while draining: then the deadline is the bound. With a spool beneath, that bound
   gives up nothing but such a culprit: for everything else the circuit opens, and one flight at a time probes.
6. Every call passes ``_gate``.
7. With a spool beneath, what comes after an operation whose repeat could undo it waits until that one is gone from the
   spool: a kill between its verdict and that would send it again after the next start, behind what followed.

Must not know: the queue, signals, HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import math
import random
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence, Set
from typing import Final, Protocol

import attrs
from aiolimiter import AsyncLimiter

from cio_batch.chunks import Backlog, Chunk
from cio_batch.errors import whereabouts
from cio_batch.operations import FINAL_KINDS, Operation
from cio_batch.retries import delay
from cio_batch.settings import RetryOptions
from cio_batch.stats import Counters
from cio_batch.transports.base import Call, Transport
from cio_batch.verdicts import Judgement, Next, Rejection, Verdict

_logger = logging.getLogger(__name__)

# A chunk is suspected after this many failures in a row during which others got through, and a part of a suspected
# chunk after fewer. Two and not one, because at a fault rate of p a part is split further with p**2: below a rate of
# 70 % the parts die out, and a bad hour of the service does not tear every chunk to pieces.
_SUSPECT_AFTER: Final = 3
_SUSPECT_AGAIN_AFTER: Final = 2
# How many culprits a bisection may look for in one chunk before it is taken for a fault of the wire and paused.
_CULPRITS_BEFORE_PAUSE: Final = 8
# How many chunks per slot may be out. The rest stays in the backlog, where an outage lets them grow fuller instead of
# more numerous.
_FLIGHTS_PER_SLOT: Final = 4
_SHORTEST_DRAIN_DELAY: Final = 0.1
_OUTAGE_AFTER: Final = 3  # failed calls in a row are worth a word in the log


class Settle(Protocol):
    """Takes operations that got their verdict."""

    def __call__(
        self,
        operations: Sequence[Operation],
        verdict: Verdict,
        *,
        nbytes: int | None = None,
        rejections: Sequence[Rejection] | None = None,
        reason: str = "",
        status: int = 0,
        attempts: int = 0,
    ) -> None:
        """Take them; ``nbytes`` is the sum of their bodies where known; ``rejections`` has one for each."""
        ...


@attrs.define(eq=False)
class _Segment:
    """A part of a chunk that is sent in one call."""

    operations: list[Operation]
    suspect: bool = False
    sent: int = 0  # calls that held it, or the segment that it was split from
    attempts: int = 0  # the last of them in a row that decided nothing
    failing_since: float = 0.0  # loop time of the first of them
    successes_then: int = 0  # calls that had got through by then
    alone: int = 0  # how many of them failed although another call had got through since the one before
    successes_seen: int = 0  # calls that had got through at the last of them
    is_out: bool = False  # in a call at this moment, past the pause and the rate limit


@attrs.define(eq=False)
class Flight:
    """A chunk that is out.

    Attributes:
        chunk: What was taken from the backlog.
        segments: What is undecided of it, in order; the first is the one being sent.
        holds_slot: Whether it holds a slot of the semaphore.
        task: What sends it; ``None`` for the instant before it is made.
        aside: Whether it keeps failing alone, so that it does not count among those that are out.
        refusals: Calls that the service refused as a whole, since the last pause for that.
        unforgotten: Whether something of it has its verdict and must leave the spool before its persons go on.
    """

    chunk: Chunk
    segments: deque[_Segment]
    holds_slot: bool = True
    aside: bool = False
    refusals: int = 0
    unforgotten: bool = False
    task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return sum(len(segment.operations) for segment in self.segments)

    def __iter__(self) -> Iterator[Operation]:
        for segment in self.segments:
            yield from segment.operations


class Delivery:
    """Sends chunks until told to stop.

    Args:
        transport: What sends a chunk.
        backlog: Where the chunks come from.
        concurrency: Slots of the semaphore.
        rate_limit: Calls per second, ``None`` for no limit.
        retry: Waits and number of repeats.
        counters: Where calls and retries are counted.
        settle: Takes operations with their verdict.
        durable: Whether a spool keeps what is not delivered, so that nothing need be given up for an outage.
        forgotten: Waits until everything that is settled is gone from the spool.
    """

    def __init__(
        self,
        *,
        transport: Transport,
        backlog: Backlog,
        concurrency: int,
        rate_limit: float | None,
        retry: RetryOptions,
        counters: Counters,
        settle: Settle,
        durable: bool = False,
        forgotten: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.backlog = backlog
        self._transport = transport
        self._concurrency = concurrency
        self._rate_limit = rate_limit
        self._retry = retry
        self._counters = counters
        self._settle = settle
        self._durable = durable
        self._forgotten = forgotten
        self._purged: set[int] = set()  # numbers of operations in flight that are not to be sent again
        self.expired_upto = 0  # operations with a number up to this one in the spool are too old to be sent again
        self._flights: dict[Flight, None] = {}  # in the order of their launch
        self._stopping = False
        self._deadline = math.inf
        self._resume_at = 0.0  # loop time
        self._retry_after_until = 0.0  # likewise; set by the service
        self._scout_at = 0.0  # likewise; when one more chunk may go out although too many wait
        self._paused: str | None = None  # why only probes are sent
        self._probes = 0  # in a row that failed
        self._successes = 0
        self._failures = 0  # in a row

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Make what belongs to a loop. Flights of a loop that is gone return to the backlog."""
        for flight in self._flights:
            self.backlog.restore(flight.chunk, flight)
            # Its coroutine may still be collected, and then runs what it has in `finally`.
            flight.segments.clear()
            flight.holds_slot = False
        self._flights.clear()
        self._loop = loop
        self._slots = asyncio.BoundedSemaphore(self._concurrency)
        # max_rate 1 in 1/rate seconds is a strict interval: bursts are smoothed, not allowed once a second.
        self._limiter = None if self._rate_limit is None else AsyncLimiter(1, 1 / self._rate_limit)
        self._work = asyncio.Event()
        self._work.set()
        self._draining = asyncio.Event()
        self._nudge = asyncio.Event()  # set for an instant: who sleeps looks again how long
        self._probe = asyncio.Lock()
        self._stopping = False
        self._resume_at = self._retry_after_until = self._scout_at = 0.0

    @property
    def in_flight(self) -> int:
        """Operations that are out."""
        return sum(map(len, self._flights))

    @property
    def in_flight_bytes(self) -> int:
        """Their encoded bytes."""
        return sum(len(operation) for flight in self._flights for operation in flight)

    @property
    def paused(self) -> str | None:
        """Why nothing but probes is sent, or ``None``."""
        return self._paused

    def undecided(self) -> Iterator[Operation]:
        """Every operation that is out."""
        for flight in self._flights:
            yield from flight

    def add(self, operations: Collection[Operation], nbytes: int, *, due: bool) -> None:
        """Take operations over; with ``due`` everything that waits goes out without waiting for fuller chunks."""
        self.backlog.add(operations, nbytes)
        if due:
            self.backlog.expire()
        self._work.set()

    async def dispatch(self) -> None:
        """Launch chunks as slots become free, for ever.

        Cancellation: Nothing is taken from the backlog without being launched.
        """
        while True:
            await self._work.wait()
            self._work.clear()
            while self.backlog.ready() and self._may_launch():
                await self._slots.acquire()
                chunk = self.backlog.take()
                if chunk is None:
                    self._slots.release()
                    break
                self._launch(chunk)

    def resume(self) -> None:
        """Try again at once whatever is paused, but for a ``Retry-After``: something has changed."""
        self._probes = 0
        self._resume_at = 0.0
        self._nudge.set()
        self._nudge.clear()

    def drain(self, deadline: float) -> None:
        """Stop waiting for anything but a ``Retry-After``; ``deadline`` is in loop time."""
        self._deadline = min(self._deadline, deadline)
        self._draining.set()
        self._nudge.set()
        self._resume_at = 0.0
        self.backlog.expire()
        self._work.set()

    async def stop(self, grace: float) -> None:
        """Abandon what is still out; its operations stay undecided in their flights.

        Args:
            grace: Seconds that the tasks get to end after their cancel.
        """
        self._stopping = True
        tasks = [flight.task for flight in self._flights if flight.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=grace)

    def abandon(self, most: int) -> list[Operation]:
        """Give up about ``most`` operations: remove and return them, those in flight first. Empty when none is left."""
        left: list[Operation] = []
        while self._flights and len(left) < most:
            flight = next(iter(self._flights))
            del self._flights[flight]
            left += flight
            flight.segments.clear()  # a task that ignored its cancel finds nothing to decide
        while len(left) < most and (operation := self.backlog.drop_oldest()) is not None:
            left.append(operation)
        return left

    # ------------------------------------------------------------------------------------------------- inside

    def _may_launch(self) -> bool:
        """Whether another chunk may go out, however many wait for their next attempt.

        Past the bound one more may, now and then: if it gets through, it is those that wait that are at fault.
        """
        waiting = sum(not flight.aside for flight in self._flights)
        if waiting < self._concurrency * _FLIGHTS_PER_SLOT:
            return True
        now = self._loop.time()
        if now < self._scout_at:
            return False
        self._scout_at = now + self._retry.base_delay
        self._loop.call_at(self._scout_at, self._work.set)
        return True

    def _launch(self, chunk: Chunk) -> None:
        flight = Flight(chunk, deque([_Segment(chunk.operations)]))
        self._flights[flight] = None  # before anything of it runs, and an eager task factory runs it at once
        self._start(flight)

    def _start(self, flight: Flight) -> None:
        flight.task = self._loop.create_task(self._deliver(flight), name="cio_batch delivery")
        flight.task.add_done_callback(functools.partial(self._land, flight))

    def _land(self, flight: Flight, task: asyncio.Task[None]) -> None:
        """The task of a flight ended: delivered, broken or cancelled by whomever."""
        if not task.cancelled() and (error := task.exception()) is not None:
            _logger.error("a delivery task broke (%s); its operations will be sent again", whereabouts(error))
            self._hold_all(self._retry.base_delay)
        self._give_slot(flight)
        if flight not in self._flights:
            return  # abandoned
        if self._stopping and flight.segments:
            return  # they are counted as left
        if flight.unforgotten and not self._stopping:
            self._start(flight)  # somebody cancelled it: its persons still wait
            return
        del self._flights[flight]
        if flight.segments:
            self.backlog.restore(flight.chunk, flight)
            self._drop_waiting(self._purged)
        else:
            self.backlog.release(flight.chunk)
        if not self._flights:
            self._purged.clear()
        self._work.set()

    def withdraw(self, numbers: Set[int]) -> None:
        """Operations were purged: those that are not in a call at this moment are not sent any more."""
        self._drop_waiting(numbers)
        for flight in list(self._flights):
            if not numbers.isdisjoint([operation.number for operation in flight]):
                self._purged |= numbers
                for segment in list(flight.segments)[1:]:  # of a call that was split
                    self._drop_purged(flight, segment)
                if flight.task is not None and not flight.segments[0].is_out:
                    flight.task.cancel()  # its operations return to the backlog, and those of them are dropped there

    def _drop_waiting(self, numbers: Set[int]) -> None:
        removed = self.backlog.remove(lambda operation: operation.number in numbers) if numbers else []
        if removed:
            self._settle(removed, Verdict.DROPPED, reason="purged")

    def _drop_purged(self, flight: Flight, segment: _Segment) -> None:
        dropped = [operation for operation in segment.operations if operation.number in self._purged]
        if dropped:
            segment.operations = [operation for operation in segment.operations if operation.number not in self._purged]
            self._note_settled(flight, dropped)
            self._settle(dropped, Verdict.DROPPED, reason="purged")

    def _give_slot(self, flight: Flight) -> None:
        if flight.holds_slot:
            flight.holds_slot = False
            self._slots.release()

    async def _deliver(self, flight: Flight) -> None:
        while True:
            await self._see_forgotten(flight)
            if not flight.segments:
                return
            segment = flight.segments[0]
            if self._purged:
                self._drop_purged(flight, segment)
            if not segment.operations:
                flight.segments.popleft()
                continue
            judgement = await self._attempt(flight, segment)
            if not flight.segments:
                return  # abandoned meanwhile
            sent = segment.operations
            self._apply(flight, segment, judgement)
            if segment.operations is not sent:
                self._note_settled(flight, sent)
                await self._see_forgotten(flight)  # before anything below releases a person
                if not flight.segments:
                    return
            if judgement.refuses_call:
                self._count_refusal(flight, judgement)
            if not segment.operations:
                flight.segments.popleft()
            elif judgement.next is Next.SPLIT and len(segment.operations) > 1:
                self._split(flight, segment)
            elif judgement.next is not Next.PAUSE:
                await self._fail(flight, segment, judgement)
            # After PAUSE the next attempt waits by itself, as a probe.

    def _note_settled(self, flight: Flight, operations: Sequence[Operation]) -> None:
        """Remember whether what got its verdict must leave the spool before anything follows it."""
        if self._forgotten is not None and not FINAL_KINDS.isdisjoint([operation.kind for operation in operations]):
            flight.unforgotten = True

    async def _see_forgotten(self, flight: Flight) -> None:
        if flight.unforgotten and self._forgotten is not None:
            await self._forgotten()
        flight.unforgotten = False

    async def _attempt(self, flight: Flight, segment: _Segment) -> Judgement:
        """Send a segment once. All of it happens within a slot."""
        if not flight.holds_slot:
            await self._slots.acquire()
            flight.holds_slot = True
        try:
            if self._paused is None:
                judgement = await self._send(segment)
            else:
                async with self._probe:
                    judgement = await self._send(segment)
                    self._count_probe(judgement)
        finally:
            self._give_slot(flight)
        return judgement

    def _count_probe(self, judgement: Judgement) -> None:
        """Let the waits between probes grow; the calls that were out when the pause began do not count."""
        if judgement.next is Next.PAUSE:
            self._probes += 1
        elif judgement.next is Next.RETRY and self._paused is not None:
            self._hold_all(self._wait_for(self._probes, judgement))
            self._probes += 1

    async def _send(self, segment: _Segment) -> Judgement:
        if segment.sent:
            self._counters.retries += 1
        call = Call(segment.sent, functools.partial(self._gate, segment))
        segment.sent += 1
        try:
            judgement = await self._transport.send(segment.operations, call)
            judgement = judgement.bounded(len(segment.operations))
            self._take_note(judgement, segment.attempts)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            judgement = self._blame_transport(error)  # a cancel of its own making
        except Exception as error:  # noqa: BLE001 - a fault of a transport must not lose its operations
            judgement = self._blame_transport(error)
        finally:
            segment.is_out = False
        return judgement

    def _blame_transport(self, error: BaseException) -> Judgement:
        _logger.error("the transport raised %s; the chunk will be sent again", whereabouts(error))
        reason = f"the transport raised {type(error).__name__}"
        self._counters.last_error = reason
        return Judgement(0, next=Next.RETRY, reason=reason)

    async def _gate(self, segment: _Segment) -> None:
        """Wait for a pause to end and for the rate limit, and count the call."""
        if self._pause > 0:
            await self._wait_out_pause()
        if self._limiter is not None:
            await self._limiter.acquire()
            await self._wait_out_pause()  # one that began while this call queued for the limit
        self._counters.calls += 1
        segment.is_out = True

    @property
    def _pause(self) -> float:
        """Seconds until anything may be sent."""
        return max(self._resume_at, self._retry_after_until) - self._loop.time()

    async def _wait_out_pause(self) -> None:
        while (seconds := self._pause) > 0:
            await self._sleep(seconds)

    def _take_note(self, judgement: Judgement, attempts: int) -> None:
        """Draw from an answer what concerns all senders."""
        if judgement.reason:
            self._counters.last_error = judgement.reason
        self._watch_outage(judgement)
        if judgement.next is Next.PAUSE:
            if self._paused is None:
                self._paused = judgement.reason
                _logger.error(
                    "Customer.io refuses the credentials (%s): nothing is sent until a probe gets through; "
                    "check CUSTOMERIO_SITE_ID, CUSTOMERIO_TRACK_API_KEY and CUSTOMERIO_REGION",
                    judgement.reason,
                )
            hold = self._hold_all_as_asked if judgement.retry_after else self._hold_all
            hold(self._wait_for(self._probes, judgement))
            return
        decided = judgement.next is not Next.RETRY or judgement.decided or judgement.rejected
        if decided and self._paused is not None:
            _logger.warning("Customer.io takes calls again")
            self._paused, self._probes = None, 0
        if judgement.misplaced:
            _logger.error("%s; they are sent again to find out which ones are refused", judgement.reason)
        if judgement.next is Next.RETRY:
            if judgement.retry_after:
                self._hold_all_as_asked(self._wait_for(attempts, judgement))
        else:
            self._successes += 1

    def _watch_outage(self, judgement: Judgement) -> None:
        """Say once that nothing gets through, and once that it does again."""
        if judgement.next is Next.PAUSE:
            return  # has a word of its own
        if judgement.next is not Next.RETRY:
            if self._failures >= _OUTAGE_AFTER:
                _logger.warning("calls get through again after %d that failed", self._failures)
            self._failures = 0
            return
        self._failures += 1
        if self._failures == _OUTAGE_AFTER:
            _logger.warning("%d calls in a row failed, they are repeated: %s", self._failures, judgement.reason)

    def _hold_all(self, seconds: float) -> None:
        """Pause all senders."""
        self._resume_at = max(self._resume_at, self._loop.time() + self._affordable(seconds))

    def _hold_all_as_asked(self, seconds: float) -> None:
        """Pause all senders for as long as the service asked; a drain does not shorten that."""
        self._retry_after_until = max(self._retry_after_until, self._loop.time() + seconds)

    def _affordable(self, seconds: float) -> float:
        """Shorten a wait in a drain, so that there is always time for one more attempt."""
        if not self._draining.is_set():
            return seconds
        remaining = self._deadline - self._loop.time()
        return min(seconds, max(remaining / 2, _SHORTEST_DRAIN_DELAY))

    def _wait_for(self, attempt: int, judgement: Judgement) -> float:
        return delay(self._retry, attempt, judgement.retry_after, random.random())

    def _apply(self, flight: Flight, segment: _Segment, judgement: Judgement) -> None:
        """Settle what an answer decided."""
        operations, rejected = segment.operations, judgement.rejected
        attempts = segment.attempts + 1
        if judgement.decided == 0 and not rejected:
            return
        segment.attempts = 0  # something was decided, so this is not one and the same failure any more
        if judgement.decided:
            segment.sent = 1  # on a wire of single calls, the one that failed now; those behind it were not sent
        if not rejected and judgement.decided == len(operations):
            segment.operations = []
            nbytes = flight.chunk.nbytes if len(operations) == len(flight.chunk.operations) else None
            self._settle(operations, Verdict.DELIVERED, nbytes=nbytes, status=judgement.status, attempts=attempts)
            return
        decided = operations[: judgement.decided]
        delivered = [operation for index, operation in enumerate(decided) if index not in rejected]
        refused = [index for index in sorted(rejected) if index < len(operations)]
        undecided = [
            operation
            for index, operation in enumerate(operations[judgement.decided :], judgement.decided)
            if index not in rejected
        ]
        # An operation leaves the segment in the very step that counts it: a hook may look at the stats in between.
        if delivered:
            segment.operations = [operations[index] for index in refused] + undecided
            self._settle(delivered, Verdict.DELIVERED, status=judgement.status, attempts=attempts)
        segment.operations = undecided
        if refused:
            self._settle(
                [operations[index] for index in refused],
                Verdict.REJECTED,
                rejections=[rejected[index] for index in refused],
                status=judgement.status,
                attempts=attempts,
            )

    def _count_refusal(self, flight: Flight, judgement: Judgement) -> None:
        """Pause when bisecting a chunk takes more calls than some bad operations in it would explain."""
        flight.refusals += 1
        size = len(flight.chunk.operations)
        if flight.refusals > 2 * _CULPRITS_BEFORE_PAUSE * max(1, math.ceil(math.log2(size))):
            flight.refusals = 0
            _logger.error(
                "the service refuses call after call (%s): pausing, since this looks like more than single bad "
                "operations",
                judgement.reason,
            )
            self._hold_all(self._retry.max_delay)

    def _split(self, flight: Flight, segment: _Segment) -> None:
        flight.segments.popleft()
        middle = (len(segment.operations) + 1) // 2
        halves = segment.operations[:middle], segment.operations[middle:]
        flight.segments.extendleft(
            _Segment(half, segment.suspect, sent=segment.sent) for half in reversed(halves) if half
        )

    def _isolate(self, flight: Flight, segment: _Segment) -> None:
        """Keep half of a failing segment out and give everything else back, so that it dams up nobody else."""
        middle = (len(segment.operations) + 1) // 2
        kept, returned = segment.operations[:middle], segment.operations[middle:]
        rest = itertools.chain(returned, *(other.operations for other in list(flight.segments)[1:]))
        flight.chunk = self.backlog.divide(flight.chunk, kept, rest)
        flight.segments = deque([_Segment(kept, suspect=True, sent=segment.sent)])
        self._work.set()

    async def _fail(self, flight: Flight, segment: _Segment, judgement: Judgement) -> None:
        """Decide what follows an attempt that decided nothing: split, give up, or wait for the next one."""
        now = self._loop.time()
        if segment.attempts == 0:
            segment.failing_since, segment.successes_then = now, self._successes
            segment.alone, segment.successes_seen = 0, self._successes
        segment.attempts += 1
        if judgement.blames and self._successes > segment.successes_seen:
            segment.alone += 1
        segment.successes_seen = self._successes
        others_get_through = judgement.blames and self._successes > segment.successes_then
        threshold = _SUSPECT_AGAIN_AFTER if segment.suspect else _SUSPECT_AFTER
        exhausted = not self._draining.is_set() and (
            segment.attempts > self._retry.max_retries
            or (self._retry.max_elapsed is not None and now - segment.failing_since >= self._retry.max_elapsed)
        )
        if others_get_through and len(segment.operations) > 1 and (exhausted or segment.attempts >= threshold):
            self._isolate(flight, segment)
            return
        # With a spool, the attempts that fell into an outage are no reason to give anything up.
        given_up = exhausted and (not self._durable or segment.alone > self._retry.max_retries)
        if given_up:
            flight.segments.popleft()
            operations, segment.operations = segment.operations, []
            self._note_settled(flight, operations)
            self._settle(
                operations,
                Verdict.FAILED,
                reason=judgement.reason,
                status=judgement.status,
                attempts=segment.attempts,
            )
            return
        if self.expired_upto:
            self._give_up_expired(flight, segment)
        if exhausted and not others_get_through:
            self._open_circuit(segment, judgement)
        flight.aside = others_get_through
        if self._paused is not None:
            return  # the next attempt is a probe, which waits for its turn
        await self._sleep(self._affordable(self._wait_for(segment.attempts - 1, judgement)))

    def _give_up_expired(self, flight: Flight, segment: _Segment) -> None:
        expired = [operation for operation in segment.operations if 0 < operation.number <= self.expired_upto]
        if expired:
            gone = set(map(id, expired))
            segment.operations = [operation for operation in segment.operations if id(operation) not in gone]
            self._note_settled(flight, expired)
            self._settle(expired, Verdict.FAILED, reason="max_age", attempts=segment.attempts)

    def _open_circuit(self, segment: _Segment, judgement: Judgement) -> None:
        """Nothing gets through, and a spool keeps it all: send nothing but probes until one succeeds."""
        if self._paused is None:
            self._paused = judgement.reason
            self._probes = segment.attempts - 1
            _logger.error(
                "Customer.io cannot be reached (%s): everything stays in the spool, and one call at a time probes",
                judgement.reason,
            )
            self._hold_all(self._wait_for(self._probes, judgement))

    async def _sleep(self, seconds: float) -> None:
        """Wait; the beginning of a drain ends the wait, as does :meth:`resume`."""
        if self._draining.is_set():
            await asyncio.sleep(seconds)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._nudge.wait()
