"""The way through a spool: from the door to the disk, and from there into the tracker's queue.

Rules:

1. An operation is accepted in the instant in which the spool reports it as written. Cancelling the caller meanwhile
   does not withdraw it.
2. What is written enters the queue at once while memory has room and nothing older is still on disk only. Otherwise it
   stays on disk, and is read back in order: nothing enters past what is unread.
3. An operation leaves the spool only with its verdict: acknowledged, or made a dead letter. What has none when the
   tracker closes stays there.
4. The bounds of memory never make anybody wait; the size on disk does, and what was said to the spool and is not
   written yet.

Must not know: chunks, transports, signals.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import attrs

from cio_batch.dead_letters import Refusal
from cio_batch.errors import SpoolError, whereabouts
from cio_batch.operations import Operation
from cio_batch.queues import OperationQueue
from cio_batch.spools import Contents, Spool, Written

_logger = logging.getLogger(__name__)

_PAGE_OPERATIONS: Final = 1_000
_PAGE_BYTES: Final = 1_000_000
# The share of the queue's bounds that a spool fills: below the mark at which a full queue is worth a warning, since
# here it is no fault.
_MEMORY_SHARE: Final = 0.75
_REFILL_SHARE: Final = 0.5  # read back when what is in memory has fallen to this share of that
_ROW_BYTES: Final = 40  # what a row takes besides its body, about
_REOPEN_GRACE: Final = 5.0  # seconds that a spool gets to end an opening that was cancelled
_RETRY_INTERVAL: Final = 1.0  # seconds until a failed reading is tried again
_WARN_SHARE: Final = 0.8
_CALM_SHARE: Final = 0.6
_AGE_CHECKS: Final = 10  # in the time of max_age


_Waiter: TypeAlias = tuple[Operation, asyncio.Future[None]]


@attrs.frozen
class Losses:
    """What the tracker is told of operations that left the spool without a verdict of a call.

    Attributes:
        damaged: Takes how many were set aside because they are no operation any more.
        gone: Takes how many were removed by somebody else: purged, or sent by another process.
        purged: Takes the numbers of those among them that are in memory.
        expired: Takes the highest number of those that are too old.
    """

    damaged: Callable[[int], None]
    gone: Callable[[int], None]
    purged: Callable[[frozenset[int]], None]
    expired: Callable[[int], None]


class Spooling:
    """Says operations to a spool, and brings what it holds into a queue.

    Args:
        spool: The spool.
        queue: Where operations go that are to be sent.
        max_operations: The queue's bound.
        max_bytes: Likewise.
        losses: Told of what left the spool by another way than a verdict.
        quiet: Called when something may have been the last.

    Attributes:
        accepted: Operations that were written, or found when the spool was opened.
        recovered: Those of them that were found.
        unread: Operations that are on disk and not in memory.
        last_number: The number of the last one that was accepted.
        used_bytes: What the spool takes on disk, as it said last.
        dead_letters: How many it keeps, likewise.
        quarantined: How many rows it set aside, likewise.
        fault: Why it cannot be written at the moment, or ``None``.
    """

    def __init__(
        self,
        spool: Spool,
        queue: OperationQueue,
        *,
        max_operations: int,
        max_bytes: int,
        losses: Losses,
        quiet: Callable[[], None],
    ) -> None:
        self._spool = spool
        self._queue = queue
        self._most_said = max_operations
        self._most_said_bytes = max_bytes
        self._most_held = max(1, int(max_operations * _MEMORY_SHARE))
        self._most_held_bytes = max(1, int(max_bytes * _MEMORY_SHARE))
        self._losses = losses
        self._quiet = quiet
        self.accepted = 0
        self.recovered = 0
        self.unread = 0
        self.last_number = 0
        self.used_bytes = 0
        self.dead_letters = 0
        self.quarantined = 0
        self.fault: str | None = None
        self.is_open = False
        self._begun = False  # to open, and not closed since
        self._winding_up = False
        self._next_number = 1
        self._said: deque[_Waiter] = deque()  # to the spool, in order
        self._said_bytes = 0
        self._freed_bytes = 0  # settled, and not in what the spool said last
        self._room_bytes = 0  # that may still be said until then
        self._waiting: deque[_Waiter] = deque()  # for room
        self._last_read: int = 0
        self._reading: asyncio.Task[None] | None = None
        self._looking: asyncio.TimerHandle | None = None
        self._taken_meanwhile: set[int] = set()  # purged while a page was read
        self._age_timer: asyncio.TimerHandle | None = None
        self._checking: asyncio.Task[None] | None = None
        self._expired_upto = 0
        self._warned = False

    # -------------------------------------------------------------------------------------------------- opening

    async def open(self, outstanding: int) -> None:
        """Open the spool in the running loop; its operations are read back from the oldest.

        Args:
            outstanding: How many operations were accepted before and are not settled: none, unless this is not the
                first time.

        Raises:
            SpoolError: It cannot be opened.
        """
        self._winding_up = False
        self._waiting.clear()  # who waited for room did so in a loop that is gone
        if self._begun:  # an opening that was cancelled
            await self._spool.close(_REOPEN_GRACE)
        self._begun = True
        self._loop = asyncio.get_running_loop()
        try:
            contents = await self._spool.open(self._receive, self._purged)
        except SpoolError:
            self._begun = False
            raise
        self.is_open = True
        self._take_stock(contents, outstanding)

    def _take_stock(self, contents: Contents, outstanding: int) -> None:
        self.used_bytes, self._freed_bytes = contents.used_bytes, 0
        self._measure()
        self.dead_letters, self.quarantined = contents.dead_letters, contents.quarantined
        self.fault = None
        self.unread = contents.operations
        self._last_read = 0
        self._next_number = max(self._next_number, contents.last_number + 1)
        self.last_number = self._next_number - 1
        found = contents.operations - outstanding
        if found > 0:
            self.accepted += found
            self.recovered += found
            _logger.warning("the spool holds %d operations of an earlier run: they are sent first", found)
        elif found < 0:
            self._losses.gone(-found)
        if contents.quarantined:
            _logger.error("the spool keeps %d damaged rows in its table quarantine", contents.quarantined)

    def begin(self) -> None:
        """Start to read back, and to look for what is too old."""
        self.refill()
        self._watch_age()

    async def close(self, timeout: float) -> bool:
        """Write what was said and close the spool; say whether that was done within ``timeout`` seconds."""
        for timer in (self._age_timer, self._looking):
            if timer is not None:
                timer.cancel()
        self._age_timer = self._looking = None
        for task in (self._reading, self._checking):
            if task is not None and not task.get_loop().is_closed():  # else it ended with its loop
                task.cancel()
        self._reading = self._checking = None
        if not self._begun:
            return True
        done = await self._spool.close(timeout)
        self._begun = not done
        if not done:
            _logger.error("the spool did not close within %.1f s: what was said to it last may not be on disk", timeout)
        self.is_open = False
        error = SpoolError("the spool was closed before it said whether the operation was written; it may be")
        while self._said:
            _fail(self._said.popleft()[1], error)
        self._said_bytes = 0
        return done

    # ------------------------------------------------------------------------------------------------- the door

    @property
    def unwritten(self) -> int:
        """How many operations were said to the spool and are not accepted yet."""
        return len(self._said)

    def is_full(self, size: int) -> bool:
        """Whether the disk has no room for an operation of that many bytes: what the overflow policy is for."""
        return size > self._room_on_disk()

    def _fits(self, size: int) -> bool:
        return size <= self._room_bytes and len(self._said) < self._most_said

    def _measure(self) -> None:
        self._room_bytes = min(self._room_on_disk(), self._most_said_bytes - self._said_bytes)

    def _room_on_disk(self) -> int:
        used = self.used_bytes + self._said_bytes + len(self._said) * _ROW_BYTES - self._freed_bytes
        return self._spool.max_bytes - used

    def _look_for_room(self) -> None:
        """Let the spool tell its size: somebody else may have made room, as who replays dead letters does."""
        if self._looking is None and self.is_open:
            self._spool.acknowledge(())
            self._looking = self._loop.call_later(_RETRY_INTERVAL, self._looked)

    def _looked(self) -> None:
        self._looking = None
        if self._waiting:
            self._look_for_room()

    def append(self, operation: Operation) -> asyncio.Future[None] | None:
        """Say an operation to the spool, if there is room; runs in the spool's loop.

        Returns:
            A future that is done once the operation is written, or holds why it was not; ``None`` if it was not said.
        """
        if self._waiting or len(operation) > self._room_bytes or len(self._said) >= self._most_said:
            self._look_for_room()
            return None
        written: asyncio.Future[None] = self._loop.create_future()
        self._say(operation, written)
        return written

    def wait_for_room(self, operation: Operation) -> asyncio.Future[None]:
        """Take a place among those who wait for room; after that as :meth:`append`."""
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((operation, written))
        return written

    def give_up(self, written: asyncio.Future[None]) -> bool:
        """Give up a place among those who wait for room; say whether it was not too late."""
        for waiter in self._waiting:
            if waiter[1] is written:
                self._waiting.remove(waiter)
                self._let_in()
                return True
        return False

    def turn_away(self, error: Exception) -> None:
        """Refuse everyone who waits for room."""
        while self._waiting:
            _fail(self._waiting.popleft()[1], error)

    def count_dropped(self) -> None:
        """Count an operation that was accepted and dropped in one step."""
        self.accepted += 1

    def _say(self, operation: Operation, written: asyncio.Future[None]) -> None:
        operation.number = self._next_number
        self._next_number += 1
        self._said.append((operation, written))
        size = len(operation)
        self._said_bytes += size
        self._room_bytes -= size + _ROW_BYTES
        self._spool.append(operation)

    def _let_in(self) -> None:
        while self._waiting and self._fits(len(self._waiting[0][0])):
            operation, written = self._waiting.popleft()
            if not written.done():  # else its caller was cancelled
                self._say(operation, written)

    # ----------------------------------------------------------------------------------------- reports of the spool

    def _receive(self, written: Written) -> None:
        """Something was written, or could not be; runs in the loop, in the order of what was said."""
        if written.error is None:
            self.used_bytes, self._freed_bytes = written.used_bytes, 0
        self.dead_letters, self.quarantined = written.dead_letters, written.quarantined
        self.fault = written.fault
        if written.error is None:
            self._accept(min(written.appended, len(self._said)))
        else:
            for _ in range(min(written.appended, len(self._said))):
                operation, future = self._said.popleft()
                self._said_bytes -= len(operation)
                _fail(future, written.error)
        self._measure()
        self._warn_of_size()
        self._let_in()
        self.refill()
        self._quiet()

    def _accept(self, count: int) -> None:
        """The oldest of what was said is on disk now."""
        if not count:
            return
        written = [self._said.popleft() for _ in range(count)]
        operations = [operation for operation, _ in written]
        nbytes = sum(map(len, operations))
        self.accepted += count
        self._said_bytes -= nbytes
        self.last_number = operations[-1].number
        self._bring_in(operations, nbytes)
        for _, future in written:
            if not future.done():
                future.set_result(None)

    def _bring_in(self, operations: list[Operation], nbytes: int) -> None:
        """What was written just now enters the queue, or stays on disk only; see Rule 2."""
        direct = self.unread == 0 and not self._winding_up
        room, room_bytes = self._memory()
        if direct and len(operations) <= room and nbytes <= room_bytes and self._queue.extend(operations, nbytes):
            self._last_read = self.last_number
            return
        for operation in operations:
            if direct and room > 0 and room_bytes > 0 and self._queue.offer(operation):
                room -= 1
                room_bytes -= len(operation)
                self._last_read = operation.number
            else:
                direct = False
                self.unread += 1

    def _warn_of_size(self) -> None:
        share = self.used_bytes / self._spool.max_bytes
        if share >= _WARN_SHARE and not self._warned:
            self._warned = True
            _logger.warning(
                "the spool is %d%% full: %d of %d bytes are used, %d operations and %d dead letters",
                100 * share,
                self.used_bytes,
                self._spool.max_bytes,
                self.unread + self._queue.held,
                self.dead_letters,
            )
        elif share < _CALM_SHARE:
            self._warned = False

    def _purged(self, numbers: Sequence[int]) -> None:
        """Operations were removed from under us."""
        removed = frozenset(numbers)
        if self._reading is not None:
            self._taken_meanwhile |= removed
        unread = sum(number > self._last_read for number in removed)
        self.unread -= unread
        if unread:
            self._losses.gone(unread)
        self._losses.purged(removed)
        self._quiet()

    # ------------------------------------------------------------------------------------------------ reading back

    def _memory(self) -> tuple[int, int]:
        """How many operations, and how many bytes, may come into memory."""
        return self._most_held - self._queue.held, self._most_held_bytes - self._queue.held_bytes

    def _has_memory(self) -> bool:
        return min(self._memory()) > 0

    def refill(self) -> None:
        """Read back from disk when memory has room for it."""
        if not self.unread or self._reading is not None or not self.is_open or self._winding_up:
            return
        if (
            self._queue.held > self._most_held * _REFILL_SHARE
            or self._queue.held_bytes > self._most_held_bytes * _REFILL_SHARE
        ):
            return
        self._reading = asyncio.get_running_loop().create_task(self._read(), name="cio_batch read-back")
        self._reading.add_done_callback(self._reading_ended)

    def _reading_ended(self, task: asyncio.Task[None]) -> None:
        if self._reading is not task:
            return
        self._reading = None
        if task.cancelled():
            self.refill()  # by somebody else, as at the end of asyncio.run: a drain has no second to spare
            return
        if (error := task.exception()) is not None:
            _logger.error("reading the spool failed (%s) and is tried again", whereabouts(error))
        if self.unread and self._has_memory() and self.is_open:  # the disk is at fault
            task.get_loop().call_later(_RETRY_INTERVAL, self.refill)

    async def _read(self) -> None:
        while self.unread and self._has_memory():
            room, room_bytes = self._memory()
            self._taken_meanwhile.clear()
            page = await self._spool.read(self._last_read, min(_PAGE_OPERATIONS, room), min(_PAGE_BYTES, room_bytes))
            if page.lost:
                self.unread -= page.lost
                self.quarantined += page.lost
                self._losses.damaged(page.lost)
            if not page.operations and not page.lost and self.unread:
                gone, self.unread = self.unread, 0
                self._losses.gone(gone)
            for operation in page.operations:
                if operation.number in self._taken_meanwhile:  # and counted
                    self._last_read = operation.number
                    continue
                if not self._queue.offer(operation):
                    return  # a large one; it is read again when there is room
                self._last_read = operation.number
                self.unread -= 1
            if page.operations and page.operations[0].number <= self._expired_upto:
                self._losses.expired(self._expired_upto)
            self._quiet()

    # ---------------------------------------------------------------------------------------------------- the end

    def settle(self, operations: Sequence[Operation], refusals: Sequence[Refusal] | None) -> None:
        """Operations got their verdict: remove them from the spool, or make dead letters of them.

        Args:
            operations: In memory until now.
            refusals: Why each of them was not delivered, or ``None`` when they are done with.
        """
        numbers = [operation.number for operation in operations]
        self._freed_bytes += sum(map(len, operations))
        self._measure()
        if not self.is_open:  # its time was over; they are sent again after the next start
            return
        if refusals is None:
            self._spool.acknowledge(numbers)
        else:
            self._spool.bury(list(zip(numbers, refusals, strict=True)))
        self.refill()

    async def see_forgotten(self) -> None:
        """Wait until everything that was settled by now is gone from the disk.

        Cancellation: Only the waiting ends.
        """
        while self.is_open:
            with contextlib.suppress(SpoolError):
                await self._spool.last_before(0.0)  # an answer comes after what was said before the question
                if self.fault is None:
                    return
            await asyncio.sleep(_RETRY_INTERVAL)

    def wind_up(self) -> None:
        """Bring nothing more into the queue: what is in memory, and what is written from here on, stays."""
        self._winding_up = True
        if self._reading is not None:
            self._reading.cancel()

    def leave(self, count: int) -> None:
        """Operations in memory stay in the spool, without a verdict; after :meth:`wind_up`, or they would be missed."""
        self.unread += count

    # ----------------------------------------------------------------------------------------------------- the age

    def _watch_age(self) -> None:
        if self._spool.max_age is not None and self.is_open:
            interval = min(60.0, self._spool.max_age / _AGE_CHECKS)
            self._age_timer = asyncio.get_running_loop().call_later(interval, self._check_age, self._spool.max_age)

    def _check_age(self, max_age: float) -> None:
        self._checking = asyncio.get_running_loop().create_task(self._find_old(max_age), name="cio_batch age")
        self._checking.add_done_callback(self._age_checked)

    async def _find_old(self, max_age: float) -> None:
        self._expired_upto = await self._spool.last_before(time.time() - max_age)
        if self._expired_upto:
            self._losses.expired(self._expired_upto)

    def _age_checked(self, task: asyncio.Task[None]) -> None:
        if self._checking is not task:
            return
        if not task.cancelled() and (error := task.exception()) is not None:
            _logger.error("looking for operations that are too old failed: %s", whereabouts(error))
        self._watch_age()


def _fail(future: asyncio.Future[None], error: Exception) -> None:
    if not future.done() and not future.get_loop().is_closed():
        future.set_exception(error)
        future.exception()  # retrieved: whoever waited may have been cancelled in this very moment
