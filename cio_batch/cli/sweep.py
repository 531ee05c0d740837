"""What a tuning run measures: the points of its grid, and the numbers that a run of one point comes to.

Rules:

1. At *full load* the producer enqueues as fast as it may. There a batch is always full, and the flush interval says
   nothing: it is swept by itself, at the rate of events that the service really has.
2. Events per second is the slope of the deliveries over time, so that neither the first call's way nor the last,
   half-full one counts.

Must not know: asyncio, the clock, what a measurement is shown as.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Sequence

import attrs


@attrs.frozen(order=True)
class Point:
    """Settings of a tracker.

    Attributes:
        concurrency: Calls in flight at most.
        batch_size: Operations in a call at most.
        flush_interval: Seconds that an event waits for company.
        event_rate: Events per second that are offered; ``None`` for full load.
    """

    concurrency: int
    batch_size: int
    flush_interval: float = 5.0
    event_rate: float | None = None


@attrs.frozen(kw_only=True)
class Measurement:
    """What a run of one point came to.

    Attributes:
        point: Which.
        events_per_second: Delivered in a second.
        p50_age: Seconds from ``enqueue`` to the verdict, of the event in the middle.
        p99_age: The same of the slowest in a hundred.
        cpu_us_per_event: Microseconds of this process's CPU, from encoding to verdict.
        events: How many were delivered.
        undelivered: How many were rejected or given up.
        calls: HTTP calls.
        retried_calls: Those that repeated one.
    """

    point: Point
    events_per_second: float
    p50_age: float
    p99_age: float
    cpu_us_per_event: float
    events: int
    undelivered: int = 0
    calls: int = 0
    retried_calls: int = 0

    @property
    def events_per_call(self) -> float:
        """How full the calls were."""
        return self.events / max(1, self.calls)

    @property
    def cpu_share(self) -> float:
        """How much of one core it took."""
        return self.cpu_us_per_event * self.events_per_second / 1e6


def full_load_points(
    batch_sizes: Iterable[int], concurrencies: Iterable[int], events: int | None
) -> tuple[list[Point], list[Point]]:
    """Make the grid of full load.

    Args:
        batch_sizes: Operations in a call.
        concurrencies: Calls in flight.
        events: The most events of one run, ``None`` for no bound; fewer than two rounds of calls tell nothing.

    Returns:
        The points to measure, and those that so few events leave out.
    """
    points = [Point(*each) for each in itertools.product(sorted(set(concurrencies)), sorted(set(batch_sizes)))]
    fits = [events is None or point.concurrency * point.batch_size * 2 <= events for point in points]
    return list(itertools.compress(points, fits)), [point for point, fit in zip(points, fits, strict=True) if not fit]


def slope(deliveries: Sequence[tuple[float, int]]) -> float:
    """Return the events per second of a run.

    Args:
        deliveries: For each call that got through, in order: seconds since the beginning, and how many events it held.
    """
    if not deliveries:
        return 0.0
    times = [when for when, _ in deliveries]
    totals = list(itertools.accumulate(count for _, count in deliveries))
    # Calls that went out together come back together: less than two rounds of them have no slope.
    if len(times) < 3 or times[-1] < 1.5 * times[0]:
        return totals[-1] / max(times[-1], 1e-6)
    return statistics.linear_regression(times, totals).slope


def quantile(ages: Iterable[tuple[float, float]], share: float) -> float:
    """Return the age below which a share of the events stays.

    Args:
        ages: Seconds, and how many events each stands for.
        share: From 0 to 1.
    """
    ordered = sorted(ages)
    wanted = share * sum(weight for _, weight in ordered)
    for age, weight in ordered:
        wanted -= weight
        if wanted <= 0:
            return age
    return ordered[-1][0] if ordered else 0.0
