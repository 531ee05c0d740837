"""``CioBatchTracker``: the queue, the flush task, the lifecycle.

Rules:

1. ``accepted == delivered + rejected + failed + dropped + pending + in_flight``, at every instant.
2. The state changes in one method, along the arrows of one table.
3. Nothing that belongs to a loop, a socket or a signal is made in the constructor.
4. An operation is accepted at the instant in which it enters the queue; from then on it is settled exactly once.
5. Every container that an operation can be in (queue, backlog, flights) is read directly when its length is asked for.
6. With a spool, everything passes it first (see ``spooling.py``), and what is not settled at the end stays in it.

States: ``new`` (nothing runs) → ``running`` → ``hastening`` (SIGTERM came and a host owns the exit: no more
lingering, operations are still taken) → ``draining`` (``close``: no more are taken) → ``closed``.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import datetime as dt
import enum
import functools
import inspect
import itertools
import logging
import os
import re
import sys
import time
import warnings
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from threading import get_ident
from types import TracebackType
from typing import Any, Final, Generic, Literal, Self, TypeAlias, overload

import attrs

from cio_batch import ids, signals
from cio_batch import operations as ops
from cio_batch.chunks import Backlog
from cio_batch.dead_letter_file import DeadLetterFile
from cio_batch.dead_letters import DeadLetter, OnDeadLetter, Refusal
from cio_batch.delivery import Delivery
from cio_batch.errors import (
    ConfigurationError,
    QueueFullError,
    TrackerClosedError,
    WrongLoopError,
    whereabouts,
)
from cio_batch.events import CioEvent
from cio_batch.hooks import BeforeEnqueue, DeadLetterHook, OnSettled, SettledHook, redact
from cio_batch.operations import Draft, ObjectRef, Operation, PersonId, Platform, Relationship
from cio_batch.queues import OperationQueue
from cio_batch.settings import QUEUE_RETRY, RetryOptions, Settings
from cio_batch.spooling import Losses, Spooling
from cio_batch.spools import Spool
from cio_batch.stats import Counters, Report, Stats
from cio_batch.taxonomy import EventValidator, Taxonomy
from cio_batch.transports import DiscardTransport, TrackV2Transport, Transport
from cio_batch.verdicts import Rejection, Verdict

if sys.version_info >= (3, 13):
    from typing import TypeVar
else:
    from typing_extensions import TypeVar

_logger = logging.getLogger(__name__)

Overflow: TypeAlias = Literal["block", "raise", "drop_oldest", "drop_newest"]
_OVERFLOWS: Final = ("block", "raise", "drop_oldest", "drop_newest")
_TURNS_PER_BATCH: Final = 5
_SPOOL_GRACE: Final = 5.0  # seconds that a spool gets to end its thread when a loop that is gone had opened it
_MAX_TURNS_PER_BATCH: Final = 40  # where sending is slower than production; 10 microseconds each
_LARGE_BATCH: Final = 400_000  # bytes; a smaller one gets its share of these turns, or they would cost more than it
_FEW_BATCHES: Final = 4  # with a service that answers at once no more are held
_GRACE: Final = 0.2  # seconds that close() may take beyond its timeout to end its tasks and connections
_SLICE: Final = 2_000  # operations that are given up in one step of the loop
_WARY_INTERVAL: Final = 0.1  # seconds
_WORDS: Final = re.compile(r"[A-Za-z_][A-Za-z_0-9.\[\] ]{0,39}")


class _State(enum.StrEnum):
    NEW = "new"
    RUNNING = "running"
    HASTENING = "hastening"
    DRAINING = "draining"
    CLOSED = "closed"


_MOVES: Final[Mapping[_State, frozenset[_State]]] = {
    _State.NEW: frozenset({_State.RUNNING, _State.CLOSED}),
    # Back to running: a second loop after the first was closed.
    _State.RUNNING: frozenset({_State.RUNNING, _State.HASTENING, _State.DRAINING}),
    _State.HASTENING: frozenset({_State.RUNNING, _State.DRAINING}),
    # Back to new: the loop ended without close(), so a second loop may begin.
    _State.DRAINING: frozenset({_State.NEW, _State.CLOSED}),
    _State.CLOSED: frozenset(),
}


@attrs.define(eq=False)
class _FlushWatch:
    """Follows the operations that a ``flush`` waits for.

    Without a spool it knows each of them by its ``id()``: the tuples live at least until they are settled. With one it
    knows the number of the last, and how many up to that one are left.
    """

    accepted: int  # by then; those who flush with nothing accepted in between share one
    waiting: set[int]
    last_number: int = 0
    numbered: int = 0
    done: asyncio.Event = attrs.field(factory=asyncio.Event)
    callers: int = 0
    verdicts: Counter[Verdict] = attrs.field(factory=Counter[Verdict])

    @property
    def left(self) -> int:
        return len(self.waiting) + self.numbered

    def note(self, operations: Sequence[Operation], verdict: Verdict) -> None:
        before = self.left
        if self.numbered:
            self.numbered -= sum([operation.number <= self.last_number for operation in operations])
        else:
            self.waiting.difference_update(map(id, operations))
        self.count(verdict, before - self.left)

    def count(self, verdict: Verdict, settled: int) -> None:
        self.verdicts[verdict] += settled
        if not self.left:
            self.done.set()

    def note_unread(self, verdict: Verdict, count: int) -> None:
        """Operations that were on disk only are gone; the oldest first."""
        settled = min(count, self.numbered)
        self.numbered -= settled
        self.count(verdict, settled)

    def report(self) -> Report:
        return Report(
            delivered=self.verdicts[Verdict.DELIVERED],
            rejected=self.verdicts[Verdict.REJECTED],
            failed=self.verdicts[Verdict.FAILED],
            dropped=self.verdicts[Verdict.DROPPED],
            left=self.left,
        )


E = TypeVar("E", bound=CioEvent, default=CioEvent, contravariant=True)
"""The typed events that a tracker takes: a union. One that takes all events may stand for one that takes some."""


class CioBatchTracker(Generic[E]):
    """Takes events from an async service in microseconds and gets them to Customer.io in few requests.

    Order is kept per person, and no event is lost without being counted and named. Everything goes through an
    ``asyncio.Queue``, which a periodic task drains; each chunk passes a bounded semaphore and is repeated with
    jittered exponential backoff until the service has decided on each of its operations.

    Make it anywhere, also at module level; it starts with the first ``enqueue``. End it with ``await close()``, or use
    ``async with``.

    ``CioBatchTracker[AppEvent]`` takes, for a type checker, only the typed events of the union ``AppEvent``; without
    an argument it takes every :class:`~cio_batch.events.CioEvent`.

    Args:
        settings: Credentials and host; :meth:`Settings.from_env` when ``None``.
        batch_size: Operations in a call at most. ``None`` means what the wire is best at: 2,000 on Track v2, where the
            500 KB of a body are usually full before (a call costs about 115 microseconds of CPU whatever is in it, so
            full bodies are what makes an event cheap); 50 on Track v1.
        flush_interval: Seconds that an operation waits at most for its batch to become full. A full batch never waits.
        concurrency: Calls in flight at most.
        max_pending: Operations that may be held (queued and in flight). 100,000 is five times what ten full calls
            hold: room for a burst while the calls are out.
        max_pending_bytes: Their encoded bytes. 64 MB go with that number: operations have 250 to 500 bytes as a rule.
        overflow: What ``enqueue`` does when a bound is reached. ``"block"`` waits for room (backpressure is what an
            async service can act on); ``"raise"`` raises ``QueueFullError``; ``"drop_oldest"`` and ``"drop_newest"``
            drop and count.
        enqueue_timeout: Seconds that ``"block"`` waits before it raises ``QueueFullError``; ``None`` for ever.
        retry: Waits and number of repeats. By default about three minutes (:data:`cio_batch.settings.QUEUE_RETRY`).
        rate_limit: Calls per second, bursts smoothed; ``None`` for no limit. 1,000 is the published limit.
        drain_timeout: Seconds that ``close`` and SIGTERM give to what is left.
        transport: Another wire: an object of :mod:`cio_batch.transports`, or your own.
        handle_sigterm: Whether SIGTERM starts the drain; see :mod:`cio_batch.signals`.
        enabled: ``False`` to validate and count everything and send nothing.
        on_settled: Called with a :class:`~cio_batch.hooks.SettledChunk` whenever operations got their verdict, in the
            loop; an ``async def`` runs in a task of its own.
        before_enqueue: Called with each :class:`~cio_batch.operations.Draft` before it is encoded; returns it, changed
            or not, or ``None`` to drop it. It makes ``enqueue`` about three times slower.
        taxonomy: The events that there are: those that are said as a name and data are checked against it, too, before
            ``before_enqueue`` sees them. It makes ``enqueue`` three to five times slower.
        strict: ``True`` to refuse an event that contradicts the taxonomy; ``False`` to take it, with one warning for
            each name.
        spool: Keeps every operation on disk until the service has decided on it, for example
            ``SqliteSpool("events.db")``. ``enqueue`` then returns once the operation is committed; ``max_pending`` is
            what may be in memory, and the overflow policy guards the size on disk.
        dead_letters: Where operations go that were rejected or failed: a :class:`DeadLetterFile`. With a spool they
            are kept in it.
        on_dead_letter: Called with a :class:`~cio_batch.dead_letters.DeadLetter` for each of them, in the loop; an
            ``async def`` is awaited in a task, one letter after the other.

    Raises:
        ConfigurationError: An argument or a setting is missing or out of range.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        batch_size: int | None = None,
        flush_interval: float = 5.0,
        concurrency: int = 10,
        max_pending: int = 100_000,
        max_pending_bytes: int = 64_000_000,
        overflow: Overflow = "block",
        enqueue_timeout: float | None = 10.0,
        retry: RetryOptions = QUEUE_RETRY,
        rate_limit: float | None = 1_000.0,
        drain_timeout: float = 10.0,
        transport: Transport | None = None,
        handle_sigterm: bool = True,
        enabled: bool = True,
        on_settled: OnSettled | None = None,
        before_enqueue: BeforeEnqueue | None = None,
        taxonomy: Taxonomy | None = None,
        strict: bool = True,
        spool: Spool | None = None,
        dead_letters: DeadLetterFile | None = None,
        on_dead_letter: OnDeadLetter | None = None,
    ) -> None:
        _check_arguments(
            kinds={
                "settings": (
                    settings,
                    (Settings, type(None)),
                    "a Settings, such as Settings(site_id=…, track_api_key=…)",
                ),
                "retry": (retry, RetryOptions, "RetryOptions(…)"),
                "enabled": (enabled, bool, "True or False"),
                "handle_sigterm": (handle_sigterm, bool, "True or False"),
            },
            hooks={"on_settled": on_settled, "before_enqueue": before_enqueue, "on_dead_letter": on_dead_letter},
            transport=transport,
            spool=spool,
            dead_letters=dead_letters,
            whole={"batch_size": (batch_size, 1), "concurrency": (concurrency, 1), "max_pending": (max_pending, 1)},
            seconds={"flush_interval": flush_interval, "drain_timeout": drain_timeout},
            optional={"enqueue_timeout": enqueue_timeout, "rate_limit": rate_limit},
            max_pending_bytes=max_pending_bytes,
            overflow=overflow,
            taxonomy=taxonomy,
        )
        if settings is not None:
            chosen = settings
        elif transport is None and enabled:
            chosen = Settings.from_env(needs=("track",))
        else:
            chosen = Settings.from_env()
        if not enabled or chosen.disabled:
            _logger.warning("a CioBatchTracker is disabled: it checks and counts, and sends nothing")
            transport = DiscardTransport(None if transport is None else transport.check)
        elif transport is None:
            transport = TrackV2Transport(chosen)
        self._transport = transport
        self._batch_size = batch_size if batch_size is not None else transport.max_operations
        self._flush_interval = flush_interval
        self._concurrency = concurrency
        self._max_pending = max_pending
        self._max_pending_bytes = max_pending_bytes
        self._overflow: Overflow = overflow
        self._enqueue_timeout = enqueue_timeout
        self._retry = retry
        self._rate_limit = rate_limit
        self._drain_timeout = drain_timeout
        self._handle_sigterm = handle_sigterm
        self._before_enqueue = before_enqueue
        self._validator = None if taxonomy is None else EventValidator(taxonomy, strict=strict)
        self._check = transport.check
        # Whether enqueue must take the way of drafts; one look on the hot path instead of three.
        self._guarded = (
            before_enqueue is not None or taxonomy is not None or self._check is not None or spool is not None
        )
        self._spool = spool
        self._dead_letters = dead_letters
        self._on_settled = on_settled
        self._on_dead_letter = on_dead_letter
        self._begin_empty()
        _trackers.add(self)

    def _begin_empty(self) -> None:
        """Set everything that is not an argument; after a fork the child begins here again."""
        self._state = _State.NEW
        self._open_loop: asyncio.AbstractEventLoop | None = None  # in which operations are taken, while they are
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0  # in which it runs
        self._counters = Counters()
        self._left = 0  # how many failed because the time for a drain was over
        self._hook = None if self._on_settled is None else SettledHook(self._on_settled)
        self._mourner = None if self._on_dead_letter is None else DeadLetterHook(self._on_dead_letter)
        self._delivery = self._new_delivery()
        me = weakref.ref(self)  # the queue outlives the tracker in its finalizer
        self._queue = OperationQueue(
            max_operations=self._max_pending,
            max_bytes=self._max_pending_bytes,
            batch_operations=self._batch_size,
            batch_bytes=self._delivery.backlog.full_bytes,
            on_first=lambda: _call(me, CioBatchTracker._begin_to_linger),
            on_batch=lambda: _call(me, CioBatchTracker._wake_up),
        )
        self._spooling = None if self._spool is None else self._new_spooling(self._spool)
        self._opening: asyncio.Task[None] | None = None
        self._watches: list[_FlushWatch] = []
        self._timer: asyncio.TimerHandle | None = None
        self._due = False
        self._stopping = False
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._closing: asyncio.Future[Report] | None = None
        self._close_asked = False
        self._closers: set[asyncio.Task[Any]] = set()  # who waits in close()
        self._drain_deadline: float | None = None  # loop time; of the drain that goes on
        self._closing_on_signal: asyncio.Task[Report] | None = None
        self._drained: Callable[[], None] | None = None
        self._signal_watch: signals.Watch | None = None
        self._foreign: set[concurrent.futures.Future[None]] = set()
        self._finalizer = weakref.finalize(self, _warn_of_unclosed, self._queue, self._spooling)

    def _new_spooling(self, spool: Spool) -> Spooling:
        me = weakref.ref(self)  # the thread of the spool outlives the tracker
        return Spooling(
            spool,
            self._queue,
            max_operations=self._max_pending,
            max_bytes=self._max_pending_bytes,
            losses=Losses(
                damaged=lambda count: _call(me, CioBatchTracker._count_unread, Verdict.FAILED, count, "damaged"),
                gone=lambda count: _call(me, CioBatchTracker._count_unread, Verdict.DROPPED, count, "removed"),
                purged=lambda numbers: _call(me, CioBatchTracker._withdraw, numbers),
                expired=lambda upto: _call(me, CioBatchTracker._expire, upto),
            ),
            quiet=lambda: _call(me, CioBatchTracker._check_quiet),
        )

    def _new_delivery(self) -> Delivery:
        return Delivery(
            transport=self._transport,
            backlog=Backlog(
                max_operations=self._batch_size,
                max_bytes=self._transport.max_bytes,
                envelope_bytes=self._transport.envelope_bytes,
                apart=self._transport.apart,
                max_apart=self._transport.max_apart,
            ),
            concurrency=self._concurrency,
            rate_limit=self._rate_limit,
            retry=self._retry,
            counters=self._counters,
            settle=self._settle,
            durable=self._spool is not None,
            forgotten=None if self._spool is None else self._see_forgotten,
        )

    def __repr__(self) -> str:
        return f"<CioBatchTracker {self._state} held={self._held}>"

    @property
    def _held(self) -> int:
        """Operations that are accepted and not settled, wherever they are."""
        return self._queue.held + (0 if self._spooling is None else self._spooling.unread)

    @property
    def _accepted(self) -> int:
        return self._queue.accepted if self._spooling is None else self._spooling.accepted

    # ---------------------------------------------------------------------------------------- taking operations

    @overload
    async def enqueue(
        self,
        user_id: PersonId,
        event: E,
        /,
        *,
        timestamp: float | dt.datetime | None = None,
        id: str | None = None,
    ) -> None: ...

    @overload
    async def enqueue(
        self,
        user_id: PersonId,
        name: str,
        data: Any = None,
        *,
        timestamp: float | dt.datetime | None = None,
        id: str | None = None,
    ) -> None: ...

    async def enqueue(
        self,
        user_id: PersonId,
        name: Any,
        data: Any = None,
        *,
        timestamp: float | dt.datetime | None = None,
        id: str | None = None,
    ) -> None:
        """Queue an event of a person; it returns once the event is accepted, long before it is sent.

        Args:
            user_id: The person's id, or :class:`Email`, :class:`Phone`, :class:`CioId`.
            name: A typed event, which brings its data with it; or the name of an event, at most 100 bytes.
            data: What a message may refer to: a dict, dataclass or attrs object; see :mod:`cio_batch.operations`.
            timestamp: When it happened: unix seconds or an aware datetime; now by default.
            id: A ULID by which the service ignores repeats; a fresh one by default.

        Raises:
            InvalidOperationError: The event cannot be sent; as :class:`EventSchemaError`, because it contradicts the
                taxonomy. Nothing was queued.
            QueueFullError: The tracker is full, and the overflow policy refuses. Nothing was queued.
            TrackerClosedError: The tracker is closed or closing. Nothing was queued.
            WrongLoopError: The tracker runs in another loop. Nothing was queued.

        With a spool it returns once the event is on disk, and also raises ``SpoolError``: it could not be written, and
        was not accepted.

        Cancellation: An event that waits for room is not queued; one that is queued stays so, and one that is being
        written to a spool is not withdrawn.

        Source: Track API v2, schema ``person_event``.
        """
        if self._guarded:
            await self._enqueue_guarded(user_id, name, data, timestamp, id)
            return
        # An event with data, the commonest, pays two nanoseconds for the typed ones.
        if data is None and type(name) is not str and isinstance(name, CioEvent):
            name, data = name.event_name, name.wire_data() or None
        operation = ops.encode_event(user_id, name, data, timestamp, id, time.time(), ids.new_id)
        if not self._queue.accept(operation):
            await self._admit(operation)

    def _enqueue_guarded(
        self, user_id: PersonId, name: Any, data: Any, timestamp: float | dt.datetime | None, id: str | None
    ) -> Awaitable[None]:
        if self._before_enqueue is not None or self._validator is not None:
            return self.submit(ops.event(user_id, name, data, timestamp=timestamp, id=id))
        # With a spool, or a wire that cannot say everything: the short way to the bytes.
        if data is None and isinstance(name, CioEvent):
            name, data = name.event_name, name.wire_data() or None
        operation = ops.encode_event(user_id, name, data, timestamp, id, time.time(), ids.new_id)
        if self._check is not None:
            self._check(operation)
        if self._spooling is not None and self._queue.is_open():
            written = self._spooling.append(operation)
            if written is not None:
                return written
        return self._admit(operation)

    @overload
    def enqueue_nowait(
        self,
        user_id: PersonId,
        event: E,
        /,
        *,
        timestamp: float | dt.datetime | None = None,
        id: str | None = None,
    ) -> None: ...

    @overload
    def enqueue_nowait(
        self,
        user_id: PersonId,
        name: str,
        data: Any = None,
        *,
        timestamp: float | dt.datetime | None = None,
        id: str | None = None,
    ) -> None: ...

    def enqueue_nowait(
        self,
        user_id: PersonId,
        name: Any,
        data: Any = None,
        *,
        timestamp: float | dt.datetime | None = None,
        id: str | None = None,
    ) -> None:
        """Queue an event without waiting; for code that runs in the loop and cannot await.

        A producer that never awaits starves the loop; then nothing is sent until the queue is full.

        Raises:
            QueueFullError: The tracker is full and does not drop. Nothing was queued.
            InvalidOperationError, TrackerClosedError, WrongLoopError: As for :meth:`enqueue`.
            ConfigurationError: The tracker has a spool, whose commit this call cannot wait for.
        """
        if self._spooling is not None:
            raise ConfigurationError(_NO_NOWAIT)
        operation = self._encode(ops.event(user_id, name, data, timestamp=timestamp, id=id))
        self._enter()
        if operation is not None and not self._queue.offer(operation):
            self._make_room(operation)

    @overload
    def enqueue_threadsafe(
        self,
        user_id: PersonId,
        event: E,
        /,
        *,
        timestamp: float | dt.datetime | None = None,
        id: str | None = None,
    ) -> concurrent.futures.Future[None]: ...

    @overload
    def enqueue_threadsafe(
        self,
        user_id: PersonId,
        name: str,
        data: Any = None,
        *,
        timestamp: float | dt.datetime | None = None,
        id: str | None = None,
    ) -> concurrent.futures.Future[None]: ...

    def enqueue_threadsafe(
        self,
        user_id: PersonId,
        name: Any,
        data: Any = None,
        *,
        timestamp: float | dt.datetime | None = None,
        id: str | None = None,
    ) -> concurrent.futures.Future[None]:
        """Queue an event from another thread than the loop's. The tracker must have been started in its loop.

        Never wait for the future with ``result()`` in the loop's own thread: nothing would go on meanwhile.

        The event is checked and encoded in the calling thread; ``before_enqueue`` runs there too.

        Returns:
            A future that is done once the event is accepted (with a spool: once it is on disk), or holds
            ``QueueFullError``, ``TrackerClosedError`` or ``SpoolError``.

        Raises:
            InvalidOperationError: As for :meth:`enqueue`.
            TrackerClosedError: The tracker, or its loop, is closed.
            WrongLoopError: The tracker was not started.
        """
        loop, state = self._loop, self._state
        if state is _State.CLOSED or (loop is not None and loop.is_closed()):
            raise TrackerClosedError(_CLOSED)
        if loop is None:
            msg = (
                "the tracker has no loop yet: start it there first, by `async with tracker` or `await tracker.start()`"
            )
            raise WrongLoopError(msg)
        operation = self._encode(ops.event(user_id, name, data, timestamp=timestamp, id=id), foreign=loop)
        future: concurrent.futures.Future[None] = concurrent.futures.Future()
        if operation is None:
            future.set_result(None)
            return future
        self._foreign.add(future)
        future.add_done_callback(self._foreign.discard)
        if get_ident() == self._thread:
            # In the loop itself: who waits for the future there would wait for ever.
            self._admit_foreign(operation, future)
        else:
            self._call_in_loop(loop, self._admit_foreign, operation, future)
        # From here on close() resolves it, unless it was over in between.
        if self._state is _State.CLOSED:
            _refuse(future)
        return future

    async def submit(self, operation: Draft) -> None:
        """Queue any operation; the constructors are in :mod:`cio_batch.operations`.

        Raises:
            InvalidOperationError, QueueFullError, TrackerClosedError, WrongLoopError: As for :meth:`enqueue`.
        """
        encoded = self._encode(operation)
        if encoded is not None:
            await self._admit(encoded)

    async def resend(self, body: bytes) -> None:
        """Queue an operation that was encoded before, as a dead letter holds it: the same bytes, id and timestamp.

        Raises:
            InvalidOperationError, QueueFullError, TrackerClosedError, WrongLoopError: As for :meth:`enqueue`.
        """
        operation = ops.decode(body)
        if self._check is not None:
            self._check(operation)
        await self._admit(operation)

    async def page(
        self,
        user_id: PersonId,
        name: str,
        data: Any = None,
        *,
        timestamp: float | dt.datetime | None = None,
        id: str | None = None,
    ) -> None:
        """Queue a page view. Source: schema ``person_page``."""
        await self.submit(ops.page(user_id, name, data, timestamp=timestamp, id=id))

    async def screen(
        self,
        user_id: PersonId,
        name: str,
        data: Any = None,
        *,
        timestamp: float | dt.datetime | None = None,
        id: str | None = None,
    ) -> None:
        """Queue a screen view. Source: schema ``person_screen``."""
        await self.submit(ops.screen(user_id, name, data, timestamp=timestamp, id=id))

    async def identify(
        self,
        user_id: PersonId,
        attributes: Any = None,
        *,
        timestamp: float | dt.datetime | None = None,
        relationships: Iterable[ObjectRef | Relationship] | None = None,
    ) -> None:
        """Queue making or changing a person. Source: schema ``identify_person``.

        Args:
            user_id: Who it is.
            attributes: A dict, a :class:`~cio_batch.events.UserAttributes`, or another object.
            timestamp: Orders changes of attributes.
            relationships: Objects that the person is related to.
        """
        await self.submit(ops.identify(user_id, attributes, timestamp=timestamp, relationships=relationships))

    async def delete(self, user_id: PersonId) -> None:
        """Queue deleting a person. Source: schema ``person_delete``."""
        await self.submit(ops.delete(user_id))

    async def suppress(self, user_id: PersonId) -> None:
        """Queue deleting a person and refusing the identifier. Source: schema ``person_suppress``."""
        await self.submit(ops.suppress(user_id))

    async def unsuppress(self, user_id: PersonId) -> None:
        """Queue letting a suppressed identifier be used again. Source: schema ``person_unsuppress``."""
        await self.submit(ops.unsuppress(user_id))

    async def add_device(
        self,
        user_id: PersonId,
        token: str,
        platform: Platform,
        *,
        last_used: float | dt.datetime | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        """Queue giving a person a device. Source: schema ``person_add_device``."""
        await self.submit(ops.add_device(user_id, token, platform, last_used=last_used, attributes=attributes))

    async def delete_device(self, user_id: PersonId, token: str) -> None:
        """Queue taking a device from a person. Source: schema ``person_delete_device``."""
        await self.submit(ops.delete_device(user_id, token))

    async def merge(self, primary: PersonId, secondary: PersonId) -> None:
        """Queue merging ``secondary`` into ``primary``. Source: schema ``person_merge``."""
        await self.submit(ops.merge(primary, secondary))

    async def add_relationships(self, user_id: PersonId, objects: Iterable[ObjectRef | Relationship]) -> None:
        """Queue relating a person to objects. Source: schema ``person_add_relationships``."""
        await self.submit(ops.add_relationships(user_id, objects))

    async def delete_relationships(self, user_id: PersonId, objects: Iterable[ObjectRef | Relationship]) -> None:
        """Queue ending relationships of a person. Source: schema ``person_delete_relationships``."""
        await self.submit(ops.delete_relationships(user_id, objects))

    # -------------------------------------------------------------------------------------------------- lifecycle

    async def start(self) -> None:
        """Start in the running loop; the first ``enqueue`` does it by itself. Idempotent.

        With a spool it opens the file, and what that holds is sent first.

        Raises:
            TrackerClosedError, WrongLoopError: As for :meth:`enqueue`.
            SpoolError: The spool cannot be opened; as ``SpoolLockedError``, because it belongs to another process.
        """
        if self._spooling is not None:
            await self._open_spool(self._spooling)
        else:
            self._enter()

    async def flush(self, timeout: float | None = None) -> Report:
        """Send everything accepted so far without waiting for fuller batches, and wait until it is settled.

        Operations that are accepted after the call are not waited for.

        Args:
            timeout: Seconds to wait at most; ``None`` as long as it takes.

        Returns:
            What became of the operations that were not settled when the call came; ``left`` of them still are not.

        Raises:
            WrongLoopError: The tracker runs in another loop.

        Cancellation: Only the waiting ends.
        """
        if self._state in (_State.NEW, _State.CLOSED):
            return Report()
        if self._loop is not asyncio.get_running_loop():
            await self.start()
        if not self._held:
            return Report()
        watch = self._watches[-1] if self._watches else None
        if watch is None or watch.accepted != self._accepted or watch.verdicts:
            watch = self._new_watch()
            self._watches.append(watch)
        watch.callers += 1
        self._due = True
        self._hand_over()
        try:
            async with asyncio.timeout(timeout):
                await watch.done.wait()
        except TimeoutError:
            pass
        finally:
            watch.callers -= 1
            if not watch.callers and watch in self._watches:
                self._watches.remove(watch)
        return watch.report()

    def _new_watch(self) -> _FlushWatch:
        if self._spooling is not None:
            return _FlushWatch(self._accepted, set(), self._spooling.last_number, self._held)
        held = (self._delivery.undecided(), self._delivery.backlog, self._queue.queued())
        return _FlushWatch(self._accepted, set(map(id, itertools.chain.from_iterable(held))))

    async def close(self, timeout: float | None = None) -> Report:
        """Drain: take nothing more, send all that there is until the deadline, and say what became of it.

        Returns within ``timeout`` and 0.3 s in every state. Idempotent: a later call awaits the first one, whose
        timeout holds.

        Args:
            timeout: Seconds; ``drain_timeout`` when ``None``.

        Returns:
            The totals of this tracker; ``left`` counts what had no verdict when the time was over. It is part of
            ``failed`` (reason ``deadline``); with a spool it is not, but stays there and is sent after the next start.

        Raises:
            WrongLoopError: The tracker runs in another loop.

        Cancellation: The drain goes on.
        """
        seconds = self._drain_timeout if timeout is None else max(0.0, timeout)
        loop, caller = asyncio.get_running_loop(), asyncio.current_task()
        self._close_asked = True
        if caller is not None:
            self._closers.add(caller)
        try:
            while True:
                closing = self._closing
                if closing is None or closing.cancelled() or closing.get_loop() is not loop:
                    self._check_loop(loop)
                    closing = loop.create_task(self._drain(seconds, _State.CLOSED), name="cio_batch close")
                    self._closing = closing
                try:
                    return await asyncio.shield(closing)
                except asyncio.CancelledError:
                    if not closing.cancelled() or (caller is not None and caller.cancelling()):
                        raise
                    # Somebody cancelled our task and not the caller: the drain begins again where it was.
        finally:
            if caller is not None:
                self._closers.discard(caller)

    def _check_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Make sure that this loop may drain: it is the tracker's own, or that one is gone."""
        if self._state in (_State.RUNNING, _State.HASTENING):
            if self._loop is not loop and self._spooling is None:
                self._enter()  # rebinds, or raises
            elif self._loop is not loop and self._loop is not None and not self._loop.is_closed():
                raise WrongLoopError(_OTHER_LOOP)
        elif self._state is _State.DRAINING and self._loop not in (None, loop) and not self._loop.is_closed():
            raise WrongLoopError(_OTHER_LOOP)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def forget_parent(self) -> None:
        """Begin empty in a child process; called by itself after a fork.

        What the parent holds, it sends. Its loop, tasks and sockets are not touched: they are the parent's.
        """
        self._finalizer.detach()
        if self._state is not _State.CLOSED:
            _inherited.append(vars(self).copy())
            if self._spool is not None:
                self._spool.forget_parent()
            self._begin_empty()

    def update_credentials(self, site_id: str, track_api_key: str) -> None:
        """Use other credentials from now on, and end a pause because of the old ones; what is held is sent with these.

        They take the place of ``Settings.track_credentials``, too. Call it in the tracker's loop.

        Raises:
            ConfigurationError: They are malformed, or the transport has none. The old ones stay.
        """
        Settings(site_id=site_id, track_api_key=track_api_key).require_track()
        update: Callable[[str, str], None] | None = getattr(self._transport, "update_credentials", None)
        if update is None:
            msg = f"{type(self._transport).__name__} has no update_credentials(): change its credentials there"
            raise ConfigurationError(msg, ("transport",))
        update(site_id, track_api_key)
        if self._loop is not None and not self._loop.is_closed():
            self._delivery.resume()

    @property
    def is_open(self) -> bool:
        """Whether it has begun, so that ``close()`` is due."""
        return self._state not in (_State.NEW, _State.CLOSED)

    @property
    def is_closed(self) -> bool:
        """Whether it was closed, and takes nothing any more."""
        return self._state is _State.CLOSED

    def stats(self) -> Stats:
        """Return a picture of this instant. It walks what is held, so call it now and then, not per event."""
        in_flight_bytes = self._delivery.in_flight_bytes
        spooling = self._spooling
        spooled = 0 if spooling is None else spooling.unread
        return Stats(
            state=str(self._state),
            accepted=self._accepted,
            delivered=self._counters.delivered,
            rejected=self._counters.rejected,
            failed=self._counters.failed,
            dropped=self._counters.dropped,
            pending=self._queue.qsize() + len(self._delivery.backlog) + spooled,
            in_flight=self._delivery.in_flight,
            pending_bytes=self._queue.held_bytes - in_flight_bytes,
            in_flight_bytes=in_flight_bytes,
            calls=self._counters.calls,
            retries=self._counters.retries,
            last_error=self._counters.last_error,
            paused=self._delivery.paused,
            spooled=spooled,
            recovered=0 if spooling is None else spooling.recovered,
            spool_bytes=0 if spooling is None else spooling.used_bytes,
            spool_fault=None if spooling is None else spooling.fault,
            quarantined=0 if spooling is None else spooling.quarantined,
            dead_letters=self._counters.dead_letters,
        )

    # ------------------------------------------------------------------------------------------- inside: the door

    def _encode(self, draft: Draft, foreign: asyncio.AbstractEventLoop | None = None) -> Operation | None:
        """Check a draft against the taxonomy, let the hook see it, and encode it; ``None`` when it was dropped."""
        if self._validator is not None and getattr(draft, "kind", None) in _TAXONOMIC:
            told = self._validator.check(draft.name, draft.attributes)
            if told is not None:
                _logger.warning("an event contradicts the taxonomy and is taken all the same: %s", told)
        if self._before_enqueue is not None:
            redacted = redact(self._before_enqueue, draft)
            if redacted is None:
                if foreign is None:
                    if self._spooling is None:
                        self._enter()
                    elif self._state in (_State.DRAINING, _State.CLOSED):
                        raise TrackerClosedError(_CLOSED)
                    self._drop_at_door((), "before_enqueue")
                else:
                    self._call_in_loop(foreign, self._drop_at_door, (), "before_enqueue")
                return None
            draft = redacted
        operation = ops.encode(draft, now=time.time(), new_id=ids.new_id)
        if self._check is not None:
            self._check(operation)
        return operation

    async def _admit(self, operation: Operation) -> None:
        if self._spooling is not None:
            await self._admit_durably(self._spooling, operation)
            return
        if self._open_loop is not asyncio.get_running_loop():
            self._enter()
        queue = self._queue
        if not queue.offer(operation):
            await self._wait_for_room(operation)
        elif queue.batch_ready:
            await self._yield()

    async def _admit_durably(self, spooling: Spooling, operation: Operation) -> None:
        """Say an operation to the spool, and wait until it is written."""
        if self._open_loop is not asyncio.get_running_loop():
            await self._open_spool(spooling)
        said = spooling.append(operation)
        if said is None and self._overflow != "block" and spooling.is_full(len(operation)):
            if not self._make_room_on_disk(spooling, operation):
                return
            said = spooling.append(operation)
        if said is not None:
            await said
        else:
            written = spooling.wait_for_room(operation)
            self._push()
            try:
                await asyncio.wait([written], timeout=self._enqueue_timeout)
            except asyncio.CancelledError:
                spooling.give_up(written)
                raise
            if not written.done() and spooling.give_up(written):
                raise self._full(self._no_room())
            await written

    def _make_room_on_disk(self, spooling: Spooling, operation: Operation) -> bool:
        """Apply the overflow policy to a full spool; say whether the operation may be written."""
        self._push()
        if self._overflow == "drop_oldest":
            self._hand_over()
            while spooling.is_full(len(operation)):
                oldest = self._delivery.backlog.drop_oldest()
                if oldest is None:  # all that is in memory is in flight
                    break
                self._settle([oldest], Verdict.DROPPED, reason="overflow")
            else:
                return True
        if self._overflow == "raise":
            why = "and the caller does not wait for room"
            raise self._full(why)
        self._drop_at_door([operation], "overflow")
        return False

    async def _yield(self) -> None:
        """Send a full batch, and let the loop turn while it goes out.

        Without it, a producer in a tight loop would keep every other task from running until the queue is full. One
        turn launches the batch and the others let its body go out: with fewer, production runs ahead of sending,
        100,000 events pile up cold in memory, and each costs twice as much CPU. The same happens where several
        producers take these turns at the same time; so one batch after the other has its turns, and whoever adds to
        the next one when that is full waits for them.
        """
        calm = self._calm
        while self._queue.batch_ready:
            if calm.is_set():
                calm.clear()
                try:
                    share = min(1.0, self._queue.queued_bytes / _LARGE_BATCH)
                    self._hand_over()
                    for turn in range(max(1, int(_MAX_TURNS_PER_BATCH * share))):
                        if turn >= _TURNS_PER_BATCH * share and self._queue.batches_held < _FEW_BATCHES:
                            break
                        await asyncio.sleep(0)
                finally:
                    calm.set()
                    if self._queue.batch_ready:  # of those who cannot wait
                        self._wake.set()
                return
            await calm.wait()

    async def _wait_for_room(self, operation: Operation) -> None:
        if self._overflow != "block":
            self._make_room(operation)
            return
        room = self._queue.wait_for_room(operation)
        self._push()
        try:
            async with asyncio.timeout(self._enqueue_timeout):
                await room
        except TimeoutError:
            if room.done() and not room.cancelled():
                room.result()  # room came in the same instant, or close() turned us away
                return
            raise self._full(self._no_room()) from None
        finally:
            self._queue.release(0, 0)  # whoever stood behind may fit

    def _make_room(self, operation: Operation) -> None:
        """Apply the overflow policy without waiting."""
        self._push()
        match self._overflow:
            case "drop_newest":
                self._drop_at_door([operation], "overflow")
            case "drop_oldest":
                while not self._queue.offer(operation):
                    oldest = self._delivery.backlog.drop_oldest()
                    if oldest is None and not self._queue.empty():
                        oldest = self._queue.get_nowait()
                    if oldest is None:  # all of it is in flight
                        self._drop_at_door([operation], "overflow")
                        break
                    self._settle([oldest], Verdict.DROPPED, reason="overflow")
            case _:
                why = "and the caller does not wait for room"
                raise self._full(why)

    def _push(self) -> None:
        """Nobody gets room while a queue that is full, and less than a batch, lingers: send what there is."""
        if not self._due:
            self._due = True
            self._wake.set()

    def _full(self, why: str) -> QueueFullError:
        queue, spooling = self._queue, self._spooling
        if spooling is not None and self._spool is not None:
            msg = (
                f"the spool is full ({spooling.used_bytes} of {self._spool.max_bytes} bytes are used; {self._held} "
                f"operations and {spooling.dead_letters} dead letters are in it, {spooling.unwritten} are being "
                f"written): {why}; slow down, raise max_bytes, or replay the dead letters"
            )
            return QueueFullError(msg, pending=self._held, pending_bytes=spooling.used_bytes)
        msg = (
            f"the tracker is full ({queue.held} of {self._max_pending} operations, {queue.held_bytes} of "
            f"{self._max_pending_bytes} bytes are held): {why}; slow down, or raise max_pending"
        )
        return QueueFullError(msg, pending=queue.held, pending_bytes=queue.held_bytes)

    def _no_room(self) -> str:
        return f"no room came within {self._enqueue_timeout} s"

    def _drop_at_door(self, operations: Sequence[Operation], reason: str) -> None:
        """Count an operation that was let go before it entered the queue, encoded or not."""
        if self._spooling is not None:
            self._spooling.count_dropped()
        else:
            self._queue.count_dropped()
        self._counters.settle(Verdict.DROPPED, 1)
        if self._hook is not None and operations:
            self._hook.call(operations, Verdict.DROPPED, None, reason, 0, 0)

    def _admit_foreign(self, operation: Operation, future: concurrent.futures.Future[None]) -> None:
        """Take what another thread sent; runs in the loop."""
        if future.done() or not future.set_running_or_notify_cancel():
            return
        try:
            if self._loop is not asyncio.get_running_loop() or self._open_loop is None:
                raise TrackerClosedError(_CLOSED)
            if self._spooling is not None:
                self._admit_foreign_durably(self._spooling, operation, future)
            elif self._queue.offer(operation):
                future.set_result(None)
            elif self._overflow != "block":
                self._make_room(operation)
                future.set_result(None)
            else:
                room = self._queue.wait_for_room(operation)
                self._push()
                timer = None
                if self._enqueue_timeout is not None and self._loop is not None:
                    timer = self._loop.call_later(self._enqueue_timeout, self._give_up_waiting, room)
                room.add_done_callback(lambda room: self._tell_foreign(room, timer, future))
        except Exception as error:  # noqa: BLE001 - it belongs to the other thread
            _refuse(future, error)

    def _admit_foreign_durably(
        self, spooling: Spooling, operation: Operation, future: concurrent.futures.Future[None]
    ) -> None:
        timer = None
        written = spooling.append(operation)
        if written is None and self._overflow != "block" and spooling.is_full(len(operation)):
            if not self._make_room_on_disk(spooling, operation):
                future.set_result(None)
                return
            written = spooling.append(operation)
        if written is None:
            written = spooling.wait_for_room(operation)
            self._push()
            if self._enqueue_timeout is not None and self._loop is not None:
                timer = self._loop.call_later(self._enqueue_timeout, self._give_up_waiting_durably, spooling, written)
        written.add_done_callback(lambda written: self._tell_foreign(written, timer, future))

    def _give_up_waiting_durably(self, spooling: Spooling, written: asyncio.Future[None]) -> None:
        if spooling.give_up(written):
            written.set_exception(self._full(self._no_room()))

    def _call_in_loop(self, loop: asyncio.AbstractEventLoop, call: Callable[..., None], *arguments: Any) -> None:
        try:
            loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:  # it is closed
            raise TrackerClosedError(_CLOSED) from None

    def _give_up_waiting(self, room: asyncio.Future[None]) -> None:
        if not room.done():
            room.set_exception(self._full(self._no_room()))
            self._queue.release(0, 0)

    def _tell_foreign(
        self,
        room: asyncio.Future[None],
        timer: asyncio.TimerHandle | None,
        future: concurrent.futures.Future[None],
    ) -> None:
        if timer is not None:
            timer.cancel()
        error = TrackerClosedError(_CLOSED) if room.cancelled() else room.exception()
        if error is not None:
            _refuse(future, error)
        else:
            future.set_result(None)

    # -------------------------------------------------------------------------------------- inside: the lifecycle

    def _move(self, state: _State) -> None:
        if state not in _MOVES[self._state]:
            msg = f"no way from {self._state} to {state}"
            raise AssertionError(msg)
        self._state = state
        self._open_loop = self._loop if state in (_State.RUNNING, _State.HASTENING) else None
        if self._open_loop is None:
            self._queue.open_to(0, bool)
        else:
            self._queue.open_to(self._thread, self._open_loop.is_running)

    def _enter(self) -> None:
        """Make sure that operations are taken in the running loop: start, rebind, or say why not."""
        if self._state in (_State.DRAINING, _State.CLOSED):
            raise TrackerClosedError(_CLOSED)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise WrongLoopError(_NO_LOOP) from None
        if self._loop is loop:
            return
        if self._loop is not None and not self._loop.is_closed():
            raise WrongLoopError(_OTHER_LOOP)
        self._bind(loop)

    async def _open_spool(self, spooling: Spooling) -> None:
        """Make sure that the spool is open in the running loop, and the tracker with it.

        Cancellation: The opening goes on.
        """
        loop, caller = asyncio.get_running_loop(), asyncio.current_task()
        while self._loop is not loop or self._state in (_State.DRAINING, _State.CLOSED):
            if self._state in (_State.DRAINING, _State.CLOSED):
                raise TrackerClosedError(_CLOSED)
            if self._loop is not None and not self._loop.is_closed():
                raise WrongLoopError(_OTHER_LOOP)
            opening = self._opening
            if opening is not None and not opening.done() and opening.get_loop() is not loop:
                if not opening.get_loop().is_closed():
                    raise WrongLoopError(_OTHER_LOOP)
                opening = None
            if opening is None or opening.done():
                opening = self._opening = loop.create_task(self._open_now(spooling), name="cio_batch open")
                opening.add_done_callback(_note_opening)
            try:
                await asyncio.shield(opening)
            except asyncio.CancelledError:
                if not opening.cancelled() or (caller is not None and caller.cancelling()):
                    raise
                # Somebody cancelled our task and not the caller: it begins again.

    async def _open_now(self, spooling: Spooling) -> None:
        await self._load_anew(spooling)
        if self._state is _State.CLOSED:  # meanwhile
            await spooling.close(_SPOOL_GRACE)
            raise TrackerClosedError(_CLOSED)
        self._enter()
        spooling.begin()

    async def _load_anew(self, spooling: Spooling) -> None:
        self._watches.clear()  # who waited did so in a loop that is gone
        if spooling.is_open:  # its loop ended without close(), and what it reported since was not heard
            await spooling.close(_SPOOL_GRACE)
            # What is in memory stands in the spool as well, and is read back from there.
            self._delivery = self._new_delivery()
            self._queue.take_all()
            self._queue.release(self._queue.held, self._queue.held_bytes)
        await spooling.open(self._accepted - self._counters.settled)

    def _bind(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is not None:
            _logger.warning(
                "the tracker's event loop ended without close(); it goes on in the new one with %d operations",
                self._queue.held,
            )
            self._unwatch_signal()
        self._adopt(loop)
        self._move(_State.RUNNING)
        if self._handle_sigterm:
            watch = signals.Watch(loop, hasten=self._hasten, drain=self._drain_on_signal)
            if signals.watch(watch):
                self._signal_watch = watch
        self._run_engine()
        if self._queue.held:
            self._due = True
            self._wake.set()

    def _adopt(self, loop: asyncio.AbstractEventLoop) -> None:
        """Make what belongs to a loop."""
        self._loop = loop
        self._thread = get_ident()
        self._timer = None
        self._tasks.clear()
        self._watches.clear()  # who waited did so in a loop that is gone, and cannot be woken
        self._queue.forget_waiters()
        self._wake = asyncio.Event()
        self._calm = asyncio.Event()  # no batch has its turns to go out
        self._calm.set()
        self._quiet = asyncio.Event()
        self._delivery.bind(loop)

    def _unwatch_signal(self) -> None:
        if self._signal_watch is not None:
            signals.unwatch(self._signal_watch)
            self._signal_watch = None

    def _run_engine(self) -> None:
        """Start the two tasks that are not running: the flush task and the dispatcher."""
        engine: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
            "flush": self._flush_periodically,
            "dispatch": self._delivery.dispatch,
        }
        for name, run in engine.items():
            if name not in self._tasks and self._loop is not None:
                task = self._loop.create_task(run(), name=f"cio_batch {name}")
                self._tasks[name] = task
                task.add_done_callback(functools.partial(self._engine_ended, name))

    def _engine_ended(self, name: str, task: asyncio.Task[None]) -> None:
        """Somebody cancelled a task of ours, or it broke: begin again, because nothing may be lost by that."""
        if self._tasks.get(name) is not task:
            return
        del self._tasks[name]
        if not task.cancelled() and (error := task.exception()) is not None:
            _logger.error("the %s task broke (%s) and is started again", name, whereabouts(error))
        if self._stopping or self._state is _State.CLOSED:
            return
        if self._state is not _State.DRAINING and not self._loop_goes_on():
            return  # a drain ends by itself; anything else would be begun for a loop that is ending
        self._run_engine()

    def _loop_goes_on(self) -> bool:
        """Whether the loop has any other task that is not being cancelled; none has when ``asyncio.run`` ends."""
        return any(
            task.cancelling() == 0
            for task in asyncio.all_tasks(self._loop)
            if not task.get_name().startswith("cio_batch ")
        )

    async def _flush_periodically(self) -> None:
        """Hand the queue over whenever a batch is ready or the interval has passed."""
        # Wary after somebody cancelled this task. If that is the end of asyncio.run, what is left is drained before
        # this task ends, for which asyncio.run waits. It cannot be told at once: whoever cleans up may start new tasks.
        wary = False
        while True:
            try:
                if wary:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_WARY_INTERVAL):
                            await self._wake.wait()
                else:
                    await self._wake.wait()
            except asyncio.CancelledError:
                if self._stopping or self._state is _State.CLOSED:
                    raise
                wary = True
                if (this := asyncio.current_task()) is not None:
                    this.uncancel()
            if wary and not self._loop_goes_on():
                try:
                    await self._last_resort()
                finally:
                    if self._drained is not None:
                        self._drained()
                return
            if self._calm.is_set() or self._due or self._state is not _State.RUNNING:
                self._hand_over()
            else:
                self._wake.clear()  # a batch has its turns; the next one is handed over after it

    def _hand_over(self) -> None:
        self._wake.clear()
        operations, nbytes = self._queue.take_all()
        due, self._due = self._due or self._hurries, False
        if due and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if operations or due:
            self._delivery.add(operations, nbytes, due=due)

    @property
    def _hurries(self) -> bool:
        """Whether nothing lingers: at the end, and while a flush waits for what is read back from a spool."""
        return self._state is not _State.RUNNING or (self._spooling is not None and bool(self._watches))

    def _begin_to_linger(self) -> None:
        """An operation entered the empty queue: it waits for company until the interval is over."""
        if self._loop is None or self._timer is not None:
            return
        if not self._hurries:
            self._timer = self._loop.call_later(self._flush_interval, self._interval_over)
        else:
            self._wake.set()

    def _interval_over(self) -> None:
        self._timer = None
        self._due = True
        self._wake.set()

    def _wake_up(self) -> None:
        if self._loop is not None and self._calm.is_set():  # else its turn comes
            self._wake.set()

    # ------------------------------------------------------------------------------------------ inside: the end

    async def _drain(self, timeout: float, then: _State) -> Report:
        if self._state is _State.CLOSED:  # by the last resort of a loop that ended
            return self._totals()
        if self._state is _State.NEW:
            self._move(_State.CLOSED)
            self._finalizer.detach()
            if self._spooling is not None and (self._opening is None or self._opening.done()):
                await self._spooling.close(_GRACE)  # an opening that was cancelled leaves it open
            await self._close_transport(_GRACE)
            return self._totals()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        if self._drain_deadline is not None:  # a drain that somebody cancelled goes on; its deadline holds
            deadline = min(deadline, self._drain_deadline)
        self._drain_deadline = deadline
        spooling = self._spooling
        if spooling is not None and self._loop is not loop:
            if self._state is _State.DRAINING:  # the first drain ended with its loop
                await self._load_anew(spooling)
                spooling.begin()
            else:
                await self._open_spool(spooling)
        if self._state is not _State.DRAINING:
            self._move(_State.DRAINING)
        elif self._loop is not loop:
            self._adopt(loop)  # the first drain ended with its loop
        self._queue.turn_away(TrackerClosedError(_CLOSED))
        if spooling is not None:
            spooling.turn_away(TrackerClosedError(_CLOSED))
        self._due = True
        self._hand_over()
        self._delivery.drain(deadline)
        self._run_engine()
        self._quiet.clear()
        self._check_quiet()
        try:
            async with asyncio.timeout_at(deadline):
                await self._quiet.wait()
        except TimeoutError:
            _logger.warning("the deadline of the drain passed with %d operations undelivered", self._held)
        self._stopping = True
        if spooling is not None:
            spooling.wind_up()
        await self._stop_engine(_GRACE / 4)
        await self._delivery.stop(_GRACE / 4)
        self._hand_over()
        while left := self._delivery.abandon(_SLICE):
            if spooling is None:
                self._left += len(left)
                self._settle(left, Verdict.FAILED, reason="deadline")
            else:
                self._queue.release(len(left), sum(map(len, left)))
                spooling.leave(len(left))
            await asyncio.sleep(0)  # so many of them that the loop should not wait for all
        for hook in (self._hook, self._mourner):
            if hook is not None:
                await hook.wait(deadline - loop.time(), besides=self._closers)
        if self._dead_letters is not None:
            await self._dead_letters.close(max(_GRACE / 4, deadline - loop.time()))
        if spooling is not None:
            await spooling.close(max(_GRACE / 2, deadline - loop.time()))
            self._left = spooling.unread
            for watch in self._watches:
                watch.done.set()
        await self._close_transport(max(_GRACE / 2, deadline - loop.time()))
        self._unwatch_signal()
        if self._close_asked:
            then = _State.CLOSED
        self._move(then)
        if then is _State.CLOSED:
            self._finalizer.detach()
        else:
            self._loop = self._drain_deadline = None
            self._stopping = False
            self._delivery = self._new_delivery()
        for future in list(self._foreign):
            _refuse(future)
        return self._totals()

    async def _close_transport(self, seconds: float) -> None:
        """Close the transport, and let nothing that it does hold up or break the drain."""

        async def close() -> None:
            await self._transport.close()

        closing = asyncio.get_running_loop().create_task(close(), name="cio_batch transport")
        closing.add_done_callback(_note_outcome)
        _, running = await asyncio.wait([closing], timeout=seconds)
        if running:
            closing.cancel()
            _logger.warning("the transport did not close within %.2f s", seconds)

    async def _stop_engine(self, grace: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        tasks = [task for task in self._tasks.values() if task is not asyncio.current_task()]
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=grace)

    def _totals(self) -> Report:
        return Report(
            delivered=self._counters.delivered,
            rejected=self._counters.rejected,
            failed=self._counters.failed,
            dropped=self._counters.dropped,
            left=self._left,
        )

    async def _last_resort(self) -> None:
        """The program ends without ``close()``: deliver what the deadline allows, and name the rest."""
        closing = self._closing
        if closing is not None and not closing.done():
            if not isinstance(closing, asyncio.Task) or not closing.cancelling():
                return  # close() is at work
            await asyncio.wait([closing])  # its task was cancelled with all others; this one goes on where it was
        # Nobody closed it, so another loop may use it: a script that calls asyncio.run more than once. Also with
        # nothing to drain, because the transport's connections belong to the loop that ends.
        then = _State.CLOSED if self._state is _State.DRAINING else _State.NEW
        held, left_before = self._held, 0 if self._spooling is not None else self._left
        # This is the flush task, and it drains from here on: another one hands over what is read back from a spool.
        self._tasks.pop("flush", None)
        drain: asyncio.Future[Report] = asyncio.get_running_loop().create_future()
        self._closing = drain  # whoever calls close() now waits for this one
        try:
            drain.set_result(await self._drain(self._drain_timeout, then))
        finally:
            drain.cancel()  # unless it is done
        if self._state is _State.NEW:
            self._closing = None
        if held and not self._close_asked:
            left = self._left - left_before
            warnings.warn(
                f"a CioBatchTracker was not closed before its loop ended: {held} operations were drained at the last "
                f"moment, {left} of them without success{_kept(self._spool)}; use `async with tracker` or `await "
                "tracker.close()`",
                ResourceWarning,
                stacklevel=1,
            )

    def _hasten(self) -> None:
        """SIGTERM, and a host owns the exit: nothing lingers any more, and operations are still taken."""
        if self._state is _State.RUNNING:
            self._move(_State.HASTENING)
            self._due = True
            self._wake.set()

    def _drain_on_signal(self, drained: Callable[[], None]) -> None:
        """SIGTERM, and nobody else acts on it: drain, then say so."""
        task = asyncio.get_running_loop().create_task(self.close(), name="cio_batch close on SIGTERM")
        self._closing_on_signal = task
        task.add_done_callback(functools.partial(self._closed_on_signal, drained))

    def _closed_on_signal(self, drained: Callable[[], None], task: asyncio.Task[Report]) -> None:
        """The drain is over, or somebody cancelled this waiting for it, which is no reason to end the process."""
        if not task.cancelled() or self._state is _State.CLOSED or self._queue.held == 0:
            drained()
        elif self._loop_goes_on():
            self._drain_on_signal(drained)
        else:
            self._drained = drained  # the program ends by itself; its last resort goes on with the drain

    # ---------------------------------------------------------------------------------------- inside: settlement

    def _settle(
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
        """The one place in which operations end."""
        count = len(operations)
        self._counters.settle(verdict, count)
        if nbytes is None:
            nbytes = sum(map(len, operations))
        self._queue.release(count, nbytes)
        for watch in self._watches:
            watch.note(operations, verdict)
        refused = verdict in (Verdict.REJECTED, Verdict.FAILED)
        if refused:
            self._bury(operations, verdict, rejections or [Rejection(reason, status=status)] * count, attempts)
        elif self._spooling is not None:
            self._spooling.settle(operations, None)
        if verdict is Verdict.FAILED:
            _logger.error("%d operations failed: %s (last error: %s)", count, reason, self._counters.last_error)
        elif verdict is Verdict.REJECTED and rejections:
            first = rejections[0]
            _logger.error(
                "%d operations were rejected; the first: status %d, reason %s, field %s",
                count,
                first.status,
                _word(first.reason),
                _word(first.field),
            )
        if self._hook is not None:
            self._hook.call(operations, verdict, rejections, reason, status, attempts)
        self._check_quiet()

    def _check_quiet(self) -> None:
        if self._queue.held == 0 and (
            self._spooling is None or (self._spooling.unread == 0 and self._spooling.unwritten == 0)
        ):
            self._quiet.set()

    def _bury(
        self, operations: Sequence[Operation], verdict: Verdict, rejections: Sequence[Rejection], attempts: int
    ) -> None:
        """Make dead letters of operations."""
        now = time.time()
        refusals = [
            Refusal(str(verdict), why.reason, why.field, why.message, why.status, attempts, now) for why in rejections
        ]
        self._counters.dead_letters += len(refusals)
        if self._spooling is not None:
            self._spooling.settle(operations, refusals)
        if self._mourner is None and self._dead_letters is None:
            return
        letters = [
            DeadLetter(operation.body, (refusal,)) for operation, refusal in zip(operations, refusals, strict=True)
        ]
        if self._dead_letters is not None:
            self._dead_letters.put(letters)
        if self._mourner is not None:
            self._mourner.call(letters)

    # ------------------------------------------------------------------------------- inside: what a spool takes away

    async def _see_forgotten(self) -> None:
        """Wait until everything that is settled is gone from the spool."""
        if self._spooling is not None:
            await self._spooling.see_forgotten()

    def _count_unread(self, verdict: Verdict, count: int, reason: str) -> None:
        """Operations that were in the spool only have ended there."""
        self._counters.settle(verdict, count)
        for watch in self._watches:
            watch.note_unread(verdict, count)
        _logger.error("%d operations left the spool without being sent: %s", count, reason)
        self._check_quiet()

    def _withdraw(self, numbers: frozenset[int]) -> None:
        """Operations were purged: those that wait are not sent."""
        self._hand_over()
        self._delivery.withdraw(numbers)

    def _expire(self, upto: int) -> None:
        """Operations up to a number are too old: those that wait are given up, those in flight if they fail again."""
        self._delivery.expired_upto = upto
        self._hand_over()
        removed = self._delivery.backlog.remove(lambda operation: 0 < operation.number <= upto)
        if removed:
            self._settle(removed, Verdict.FAILED, reason="max_age")


_TAXONOMIC: Final = frozenset({"person.event", "anonymous.event"})
_OTHER_LOOP: Final = (
    "the tracker runs in another event loop that is still open; from another thread use enqueue_threadsafe, else close "
    "it there or use one tracker per loop"
)
_NO_LOOP: Final = "no event loop runs in this thread; from another thread than the tracker's use enqueue_threadsafe"
_CLOSED: Final = "the tracker is closed or closing and takes no more operations; it cannot be reopened, make a new one"
_NO_NOWAIT: Final = (
    "enqueue_nowait cannot wait for the commit, and without it a spool promises nothing; use `await enqueue`, or "
    "enqueue_threadsafe, whose future tells when it is on disk"
)
_trackers: weakref.WeakSet[CioBatchTracker[Any]] = weakref.WeakSet()
# What trackers of a parent process held. It is kept: a pending task that is collected complains, and one in the midst
# of a call would close its connection and so take the parent's socket out of the poll object that both share.
_inherited: Final[list[dict[str, Any]]] = []


def _begin_empty_after_fork() -> None:
    for tracker in list(_trackers):
        tracker.forget_parent()


os.register_at_fork(after_in_child=_begin_empty_after_fork)


def _call(tracker: Callable[[], CioBatchTracker[Any] | None], method: Callable[..., None], *arguments: Any) -> None:
    target = tracker()
    if target is not None:
        method(target, *arguments)


def _refuse(future: concurrent.futures.Future[None], error: BaseException | None = None) -> None:
    with contextlib.suppress(concurrent.futures.InvalidStateError):  # it was resolved in this very moment
        future.set_exception(error if error is not None else TrackerClosedError(_CLOSED))


def _note_outcome(closing: asyncio.Task[None]) -> None:
    if closing.cancelled():
        return
    if (error := closing.exception()) is not None:
        _logger.warning("closing the transport failed: %s", whereabouts(error))


def _word(text: str) -> str:
    """What a service says, if it is a word or two: a longer text may quote content, which stays out of logs."""
    return text if _WORDS.fullmatch(text) else "<withheld>" if text else "-"


def _note_opening(opening: asyncio.Task[None]) -> None:
    if not opening.cancelled():
        opening.exception()  # those who wait raise it; there may be none any more


def _kept(spool: Spool | None) -> str:
    return "" if spool is None else " (they stay in the spool, and are sent after the next start)"


def _warn_of_unclosed(queue: OperationQueue, spooling: Spooling | None) -> None:
    if spooling is not None:
        if not spooling.is_open:  # it never started, or a last resort closed the file
            return
        warnings.warn(
            f"a CioBatchTracker was not closed; the {queue.held} operations that it had in memory stay in the spool: "
            "use `async with tracker` or `await tracker.close()`",
            ResourceWarning,
            stacklevel=2,
        )
    elif queue.held:
        # Python hides a ResourceWarning by default, and these operations are lost.
        _logger.error("a tracker was not closed: %d operations were never settled", queue.held)
        warnings.warn(
            f"a CioBatchTracker was not closed and {queue.held} operations were never settled: use "
            "`async with tracker` or `await tracker.close()`",
            ResourceWarning,
            stacklevel=2,
        )


def _check_arguments(
    *,
    kinds: Mapping[str, tuple[object, type | tuple[type, ...], str]],
    hooks: Mapping[str, object],
    transport: object,
    spool: object,
    dead_letters: object,
    whole: Mapping[str, tuple[object, int]],
    seconds: Mapping[str, object],
    optional: Mapping[str, object],
    max_pending_bytes: object,
    overflow: object,
    taxonomy: object,
) -> None:
    """Name every argument of the tracker that is out of range, in one error."""
    faults: list[tuple[str, str]] = []
    for name, (value, kind, wanted) in kinds.items():
        if not isinstance(value, kind):
            faults.append((name, f"must be {wanted}, got {type(value).__name__}"))
    if transport is not None and (isinstance(transport, type) or not hasattr(transport, "send")):
        faults.append(("transport", "must be an object such as TrackV1Transport(settings)"))
    if spool is not None and (isinstance(spool, type) or not hasattr(spool, "acknowledge")):
        faults.append(("spool", 'must be an object such as SqliteSpool("events.db")'))
    if dead_letters is not None and not isinstance(dead_letters, DeadLetterFile):
        faults.append(("dead_letters", 'must be a DeadLetterFile, such as DeadLetterFile("dead.ndjson")'))
    elif dead_letters is not None and spool is not None:
        faults.append(("dead_letters", "must be left out: the spool keeps them (see on_dead_letter for one's own)"))
    for name, value in hooks.items():
        if value is not None and not callable(value):
            faults.append((name, f"must be a function, got {type(value).__name__}"))
    for name, (value, least) in whole.items():
        if value is None and name == "batch_size":
            continue
        if type(value) is not int or value < least:
            faults.append((name, f"must be a whole number of at least {least}"))
    if type(max_pending_bytes) is not int or max_pending_bytes < ops.MAX_OPERATION_BYTES:
        faults.append(("max_pending_bytes", f"must be a whole number of at least {ops.MAX_OPERATION_BYTES}"))
    for name, value in (*seconds.items(), *((name, value) for name, value in optional.items() if value is not None)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
            faults.append((name, "must be a finite number above 0"))
    if overflow not in _OVERFLOWS:
        faults.append(("overflow", f"must be one of {', '.join(_OVERFLOWS)}"))
    if inspect.iscoroutinefunction(hooks["before_enqueue"]):
        faults.append(("before_enqueue", "must be a plain function: it decides before enqueue returns"))
    if taxonomy is not None and not isinstance(taxonomy, Taxonomy):
        faults.append(("taxonomy", f"must be a Taxonomy, got {type(taxonomy).__name__}"))
    if faults:
        text = "; ".join(f"{name} {fault}" for name, fault in faults)
        raise ConfigurationError(text, tuple(name for name, _ in faults))
