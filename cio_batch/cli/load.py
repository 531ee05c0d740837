"""One run of one point: a tracker, a producer, and what came of both.

Rules:

1. A run ends: production by its duration, whatever the service does, and the drain by ``DRAIN`` and the time that the
   rate limit makes of what may wait.
2. The wire is watched, not the tracker's hook: a hook that sees every event would cost as much as the event. Ages are
   those of a few events of each call, by the time in their ids (milliseconds), and stand for the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Sequence
from typing import Any, Final

import orjson
from ulid_transform import ulid_to_timestamp

from cio_batch.cli.sweep import Measurement, Point, quantile, slope
from cio_batch.operations import Operation
from cio_batch.settings import RetryOptions, Settings
from cio_batch.tracker import CioBatchTracker
from cio_batch.transports import TrackV2Transport
from cio_batch.transports.base import Call
from cio_batch.verdicts import Judgement, Next

EVENT: Final = "cio_batch_tune"
PERSON: Final = "cio-batch-tune-{}"
DRAIN: Final = 5.0

_NO_TIME: Final = 0.1
_RETRY: Final = RetryOptions(max_retries=3, base_delay=0.2)
_MAX_PENDING: Final = 100_000  # the tracker's default: more than that nobody has waiting
_TICK: Final = 0.02  # seconds' worth of events that come together: a wake-up for each would cost more than the event
_SAMPLES: Final = 5  # events of a call whose age is looked at


class Load:
    """Sends the same events through one tracker after another.

    Args:
        settings: Where to.
        people: How many people the events have, in turn.
        event_bytes: How long the text in each event's data is.
        rate_limit: Calls per second.
        duration: Seconds that a run produces.
        events: The most events that it produces; ``None`` for no bound but the duration.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        people: int,
        event_bytes: int,
        rate_limit: float | None,
        duration: float,
        events: int | None,
    ) -> None:
        self._settings = settings
        self._people = [PERSON.format(number) for number in range(1, people + 1)]
        self._data = {"text": "x" * event_bytes}
        self._rate_limit = rate_limit
        self._duration = duration
        self._events = events

    async def probe(self) -> str | None:
        """Send one event; return what went wrong, ``None`` when it arrived."""
        tracker, wire = self._open(Point(1, 1))
        await tracker.enqueue(self._people[0], EVENT, self._data)
        flushing = asyncio.create_task(tracker.flush(DRAIN))
        refusing = asyncio.create_task(wire.refused.wait())  # the tracker itself would wait for better credentials
        try:
            await asyncio.wait([flushing, refusing], return_when=asyncio.FIRST_COMPLETED)
        finally:
            await tracker.close(_NO_TIME)
            for task in (flushing, refusing):
                task.cancel()
            await asyncio.wait([flushing, refusing])
        stats = tracker.stats()
        return None if stats.delivered else stats.last_error or "the event was rejected"

    def duration_of(self, point: Point) -> float:
        """How many seconds a run produces; a flush interval shows in two of it."""
        return self._duration if point.event_rate is None else max(self._duration, 2 * point.flush_interval)

    async def measure(self, point: Point) -> Measurement:
        """Run one point.

        Cancellation: The tracker is closed at once; what it still held is given up.
        """
        tracker, wire = self._open(point)
        used, began = time.thread_time(), time.monotonic()
        drain = _NO_TIME
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.duration_of(point)):
                    await self._produce(tracker, point.event_rate)
            if point.event_rate is not None:  # the last events, too, wait for their flush: it is what is measured
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(point.flush_interval + DRAIN):
                        await wire.wait_for(tracker.stats().accepted)
            drain = DRAIN
            if self._rate_limit is not None:
                drain += _max_pending(point) / point.batch_size / self._rate_limit
        finally:
            await tracker.close(drain)
        stats = tracker.stats()
        if point.event_rate is None:
            events_per_second = slope([(when - began, count) for when, count in wire.deliveries])
        else:  # a few flushes have no slope to speak of
            events_per_second = stats.delivered / self.duration_of(point)
        return Measurement(
            point=point,
            events_per_second=events_per_second,
            p50_age=quantile(wire.ages, 0.5),
            p99_age=quantile(wire.ages, 0.99),
            cpu_us_per_event=(time.thread_time() - used) / max(1, stats.delivered) * 1e6,
            events=stats.delivered,
            undelivered=stats.accepted - stats.delivered,
            calls=stats.calls,
            retried_calls=stats.retries,
        )

    def _open(self, point: Point) -> tuple[CioBatchTracker[Any], _WatchedWire]:
        wire = _WatchedWire(self._settings)
        tracker = CioBatchTracker[Any](
            self._settings,
            batch_size=point.batch_size,
            concurrency=point.concurrency,
            flush_interval=point.flush_interval,
            max_pending=_max_pending(point),
            enqueue_timeout=None,
            retry=_RETRY,
            rate_limit=self._rate_limit,
            drain_timeout=_NO_TIME,
            transport=wire,
            handle_sigterm=False,  # the signals are the command's
        )
        return tracker, wire

    async def _produce(self, tracker: CioBatchTracker[Any], event_rate: float | None) -> None:
        people = itertools.islice(itertools.cycle(self._people), self._events)
        if event_rate is None:
            for person in people:
                await tracker.enqueue(person, EVENT, self._data)
            return
        began = time.monotonic()
        for number, person in enumerate(people):
            ahead = number / event_rate - (time.monotonic() - began)
            if ahead > _TICK:
                await asyncio.sleep(ahead)
            await tracker.enqueue(person, EVENT, self._data)


class _WatchedWire(TrackV2Transport):
    """Track v2, and a note of what got through, and when."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.deliveries: list[tuple[float, int]] = []
        self.ages: list[tuple[float, float]] = []
        self.refused = asyncio.Event()
        self._decided = 0
        self._news = asyncio.Event()

    async def send(self, operations: Sequence[Operation], call: Call) -> Judgement:
        """Send a batch, and note when its verdict came."""
        judgement = await super().send(operations, call)
        if judgement.next is Next.PAUSE:
            self.refused.set()
        delivered = judgement.decided - len(judgement.rejected)
        if delivered > 0:
            self.deliveries.append((time.monotonic(), delivered))
            now = time.time()
            step = max(1, len(operations) // _SAMPLES)
            sampled = operations[step // 2 :: step]
            self.ages += [(_age(each, now), delivered / len(sampled)) for each in sampled]
        self._decided += judgement.decided
        self._news.set()
        return judgement

    async def wait_for(self, count: int) -> None:
        """Wait until so many operations have their verdict."""
        while self._decided < count:
            self._news.clear()
            await self._news.wait()


def _max_pending(point: Point) -> int:
    """As much again as is out: enough for the next calls to be full, and an age that is not the queue's."""
    in_flight = point.concurrency * point.batch_size
    return max(in_flight, min(2 * in_flight, _MAX_PENDING))


def _age(operation: Operation, now: float) -> float:
    return max(0.0, now - ulid_to_timestamp(orjson.loads(operation.body)["id"]) / 1e3)
