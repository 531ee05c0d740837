"""The bounded queue between ``enqueue`` and the flush task: an ``asyncio.Queue`` made for bulk.

Rules:

1. The bounds hold for everything that is accepted and not settled: queued, waiting for a call, and in flight; by
   count and by bytes.
2. Who waits for room gets it first come, first served, and nobody overtakes those who wait.
3. An operation enters the queue at the moment in which it is accepted, so the queue's order is the order of
   acceptance, also among those who waited.
4. One call hands over everything (``take_all``), because ``get`` for each event would cost more than all the rest.

Must not know: what an operation says, HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from threading import get_ident
from typing import TYPE_CHECKING

import attrs

from cio_batch import speedups
from cio_batch.operations import Operation

_logger = logging.getLogger(__name__)

_WARN_SHARE = 0.8
_CALM_SHARE = 0.6  # the warning comes again only after the queue has been below this


@attrs.frozen(eq=False)
class _Waiter:
    operation: Operation
    size: int
    room: asyncio.Future[None]


class DoorInPython:
    """What every operation passes on its way into the queue: the questions that need an answer each time, in one call.

    Where the extension was built, ``Door`` in ``_speedups.c`` takes its place.

    Attributes:
        accepted: How many operations were ever accepted.
        accepted_bytes: Their encoded bytes.
        calm_operations: See ``calm_bytes``.
        calm_bytes: While ``accepted`` and ``accepted_bytes`` stay below these marks, there is nothing to think about
            when an operation enters: no bound, no waiter, no batch.
        append: Puts an operation at the end, in that case.
    """

    # A slot is found a third faster than one of forty entries of a __dict__.
    __slots__ = ("_is_running", "_thread", "accepted", "accepted_bytes", "append", "calm_bytes", "calm_operations")

    _thread: int
    _is_running: Callable[[], bool]
    accepted: int
    accepted_bytes: int
    calm_operations: int
    calm_bytes: int
    append: Callable[[Operation], None]

    def __init__(self) -> None:
        self.open_to(0, bool)
        self.accepted = self.accepted_bytes = self.calm_operations = self.calm_bytes = 0

    def open_to(self, thread: int, is_running: Callable[[], bool]) -> None:
        """Take operations in this thread while ``is_running()``, a loop's, says yes; in thread 0 never.

        The loop runs, and in this thread: that answers "started?", "closed?" and "the right loop?" for each event. On
        Python 3.11 it costs 70 ns; ``get_running_loop()`` costs 180, because it asks the kernel for the process id.
        """
        self._thread, self._is_running = thread, is_running

    def is_open(self) -> bool:
        """Whether operations are taken here and now."""
        return get_ident() == self._thread and self._is_running()

    def accept(self, operation: Operation) -> bool:
        """Queue an operation if that needs no thought, and say whether it did."""
        if get_ident() != self._thread or not self._is_running():
            return False
        accepted_bytes = self.accepted_bytes + len(operation.body)
        if self.accepted >= self.calm_operations or accepted_bytes >= self.calm_bytes:
            return False
        self.append(operation)
        self.accepted += 1
        self.accepted_bytes = accepted_bytes
        return True


Door = DoorInPython
if not TYPE_CHECKING:
    Door = speedups.door(DoorInPython)


class OperationQueue(Door, asyncio.Queue[Operation]):
    """Accepted operations, in order.

    Args:
        max_operations: Bound for operations that are accepted and not settled.
        max_bytes: Bound for their encoded bytes.
        batch_operations: From this many on, a batch is ready.
        batch_bytes: From this many encoded bytes on, likewise.
        on_first: Called when an operation enters the empty queue.
        on_batch: Called when a batch is ready, at most once until ``take_all``.

    Attributes:
        batch_ready: Whether the flush task has a batch to fetch.
    """

    _queue: deque[Operation]

    def __init__(
        self,
        *,
        max_operations: int,
        max_bytes: int,
        batch_operations: int,
        batch_bytes: int,
        on_first: Callable[[], None],
        on_batch: Callable[[], None],
    ) -> None:
        Door.__init__(self)
        super(Door, self).__init__(max_operations)
        self._max_operations = max_operations
        self._max_bytes = max_bytes
        self._batch_operations = batch_operations
        self._batch_bytes = batch_bytes
        self._on_first = on_first
        self._on_batch = on_batch
        self._waiting: deque[_Waiter] = deque()
        # As `accepted` only ever growing, so that an operation that enters costs two additions: what is queued and what
        # is held are differences.
        self._taken = 0  # out of the queue itself
        self._taken_bytes = 0
        self._settled = 0
        self._settled_bytes = 0
        self.batch_ready = False
        # Below the bounds until the warning was given.
        self._soft_operations = self._warn_operations = math.ceil(max_operations * _WARN_SHARE)
        self._soft_bytes = self._warn_bytes = math.ceil(max_bytes * _WARN_SHARE)
        self._watch()

    @property
    def held(self) -> int:
        """How many operations are accepted and not settled."""
        return self.accepted - self._settled

    @property
    def held_bytes(self) -> int:
        """Their encoded bytes."""
        return self.accepted_bytes - self._settled_bytes

    @property
    def batches_held(self) -> float:
        """How many full batches that would be."""
        return max(self.held / self._batch_operations, self.held_bytes / self._batch_bytes)

    @property
    def queued_bytes(self) -> int:
        """Encoded bytes of what is in the queue itself."""
        return self.accepted_bytes - self._taken_bytes

    def queued(self) -> Iterator[Operation]:
        """What is in the queue itself, in order."""
        return iter(self._queue)

    @property
    def waiting(self) -> int:
        """How many callers wait for room."""
        return sum(not waiter.room.done() for waiter in self._waiting)

    def full(self) -> bool:
        """Whether the next operation would have to wait."""
        return self.waiting > 0 or self.held >= self._max_operations or self.held_bytes >= self._max_bytes

    def offer(self, operation: Operation) -> bool:
        """Accept an operation if there is room and nobody waits; say whether it was accepted."""
        accepted_bytes = self.accepted_bytes + len(operation)
        if self.accepted < self._watch_operations and accepted_bytes < self._watch_bytes:
            self.append(operation)
            self.accepted += 1
            self.accepted_bytes = accepted_bytes
            return True
        size = len(operation)
        if not self._has_room(size):
            return False
        self._enter(operation, size)
        return True

    def extend(self, operations: Sequence[Operation], nbytes: int) -> bool:
        """Accept operations of so many bytes if that needs no further look at any of them; say whether it did."""
        accepted, accepted_bytes = self.accepted + len(operations), self.accepted_bytes + nbytes
        if accepted > self._watch_operations or accepted_bytes >= self._watch_bytes:
            return False
        self._queue.extend(operations)
        self.accepted, self.accepted_bytes = accepted, accepted_bytes
        return True

    def count_dropped(self) -> None:
        """Count an operation that was accepted and dropped in one step, without ever being queued."""
        self.accepted += 1
        self._taken += 1
        self._settled += 1
        self._watch()

    def put_nowait(self, item: Operation) -> None:
        """Accept an operation, or raise ``asyncio.QueueFull``."""
        if not self.offer(item):
            raise asyncio.QueueFull

    async def put(self, item: Operation) -> None:
        """Accept an operation, after waiting for room if need be.

        Cancellation: While it waits, the operation is not accepted. If room came in the same instant, it is.
        """
        if not self.offer(item):
            try:
                await self.wait_for_room(item)
            finally:
                self.release(0, 0)  # after a cancel, whoever stood behind may fit

    def wait_for_room(self, operation: Operation) -> asyncio.Future[None]:
        """Take a place among those who wait; the future is done once the operation is accepted.

        A cancelled future gives its place up.
        """
        room = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiter(operation, len(operation), room))
        self._watch()
        return room

    def forget_waiters(self) -> None:
        """Those who wait belong to a loop that is gone."""
        self._waiting.clear()
        self._watch()

    def turn_away(self, error: Exception) -> None:
        """Refuse everyone who waits for room."""
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.room.done():
                waiter.room.set_exception(error)
        self._watch()

    async def get(self) -> Operation:
        """Refuse: nobody would wake the caller, because only whole batches are announced (see Rule 4)."""
        msg = "take_all() is the way out of this queue; get() would never be woken"
        raise NotImplementedError(msg)

    def take_all(self) -> tuple[deque[Operation], int]:
        """Hand over everything in the queue, in order, with its encoded bytes."""
        taken, nbytes = self._queue, self.queued_bytes
        self._init(0)
        self._taken, self._taken_bytes = self.accepted, self.accepted_bytes
        self.batch_ready = False
        self._watch()
        return taken, nbytes

    def release(self, count: int, nbytes: int) -> None:
        """Operations were settled: give their room to those who wait for it."""
        self._settled += count
        self._settled_bytes += nbytes
        if self.held < self._max_operations * _CALM_SHARE and self.held_bytes < self._max_bytes * _CALM_SHARE:
            self._soft_operations, self._soft_bytes = self._warn_operations, self._warn_bytes
        while self._waiting:
            waiter = self._waiting[0]
            if not waiter.room.done():
                if not self._fits(waiter.size):
                    break
                self._enter(waiter.operation, waiter.size)
                waiter.room.set_result(None)
            self._waiting.popleft()
        self._watch()

    def _init(self, maxsize: int) -> None:
        self._queue = deque()
        self.append = self._queue.append

    def _put(self, item: Operation) -> None:
        self._queue.append(item)

    def _get(self) -> Operation:
        operation = self._queue.popleft()
        self._taken += 1
        self._taken_bytes += len(operation)
        self._watch()
        return operation

    def _watch(self) -> None:
        """Set the marks below which ``offer`` has nothing to think about.

        They are where the queue is not empty any more, a batch is ready, the warning is due, or a bound is reached.
        """
        self.calm_operations = self.calm_bytes = 0
        if self._waiting or not self._queue:
            self._watch_operations = self._watch_bytes = 0
            return
        operations = self._settled + self._soft_operations
        nbytes = self._settled_bytes + self._soft_bytes
        if not self.batch_ready:
            operations = min(operations, self._taken + self._batch_operations - 1)
            nbytes = min(nbytes, self._taken_bytes + self._batch_bytes)
            # Not while a batch is ready: who then enqueues has to let the loop turn.
            self.calm_operations, self.calm_bytes = operations, nbytes
        self._watch_operations, self._watch_bytes = operations, nbytes

    def _fits(self, size: int) -> bool:
        return self.held < self._max_operations and self.held_bytes + size <= self._max_bytes

    def _has_room(self, size: int) -> bool:
        """The slow half of ``offer``: decide for good, and warn when the queue is nearly full."""
        while self._waiting and self._waiting[0].room.done():
            self._waiting.popleft()
        if self._waiting or not self._fits(size):
            return False
        warned = (self._soft_operations, self._soft_bytes) == (self._max_operations, self._max_bytes)
        if not warned and (self.held >= self._soft_operations or self.held_bytes + size > self._soft_bytes):
            self._soft_operations, self._soft_bytes = self._max_operations, self._max_bytes
            _logger.warning(
                "the queue is %d%% full: %d of %d operations, %d of %d bytes wait or are in flight; "
                "events come faster than they are delivered",
                100 * max(self.held / self._max_operations, self.held_bytes / self._max_bytes),
                self.held,
                self._max_operations,
                self.held_bytes,
                self._max_bytes,
            )
        return True

    def _enter(self, operation: Operation, size: int) -> None:
        queue = self._queue
        first = not queue
        queue.append(operation)
        self.accepted += 1
        self.accepted_bytes += size
        if first:  # only now, so that whoever is called sees numbers that agree
            self._on_first()
        if not self.batch_ready and (len(queue) >= self._batch_operations or self.queued_bytes >= self._batch_bytes):
            self.batch_ready = True
            self._on_batch()
        self._watch()
