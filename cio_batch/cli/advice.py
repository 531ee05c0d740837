"""Measurements → which settings to take, and why, in words; and the map that a chart draws.

Rules:

1. The knee, not the maximum: the fewest calls at a time, and with these the smallest batch, within 5 % of the best.
   More costs connections, memory and time to bisect, and brings nothing that a second run could show again.
2. The longest flush interval with which an event is as young at delivery as was wanted: longer means fewer calls.
3. A measurement with events that did not arrive is shown and never recommended.

Must not know: asyncio, the clock, rich, matplotlib.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import attrs

from cio_batch.cli.sweep import Measurement, Point

TOLERANCE: Final = 0.05
"""Share of the best below which a setting is worse, and not just unlucky."""

_CANDIDATES: Final = 0.5  # of the best: further down not even a disturbed run can have been the knee
_BUSY: Final = 0.85  # of one core, from which on more calls at a time cannot help
_NEAR_LIMIT: Final = 0.9
_HEADROOM: Final = 2.0  # times the usual rate that a setting should carry: a backlog has to shrink again


@attrs.frozen(kw_only=True)
class Advice:
    """What to set.

    Attributes:
        batch_size: As the tracker's argument.
        concurrency: Likewise.
        flush_interval: Likewise; ``None`` when none was measured.
        reasons: Why, a sentence each.
    """

    batch_size: int
    concurrency: int
    flush_interval: float | None
    reasons: tuple[str, ...]

    @property
    def code(self) -> str:
        """The same as Python."""
        interval = "" if self.flush_interval is None else f", flush_interval={self.flush_interval:g}"
        return f"CioBatchTracker(batch_size={self.batch_size}, concurrency={self.concurrency}{interval})"


@attrs.frozen
class HeatMap:
    """Events per second by concurrency (rows) and batch size (columns); ``None`` where nothing was measured."""

    concurrencies: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    cells: tuple[tuple[float | None, ...], ...]


def at_full_load(measurements: Sequence[Measurement]) -> list[Measurement]:
    """Those of the grid."""
    return [each for each in measurements if each.point.event_rate is None]


def by_flush_interval(measurements: Sequence[Measurement]) -> list[Measurement]:
    """Those at the service's own rate, the shortest interval first."""
    return sorted(
        (each for each in measurements if each.point.event_rate is not None), key=lambda each: each.point.flush_interval
    )


def knee(measurements: Sequence[Measurement]) -> Measurement | None:
    """Return the cheapest measurement of full load that is as good as the best; ``None`` when no run went well."""
    usable = [each for each in at_full_load(measurements) if each.events and not each.undelivered]
    if not usable:
        return None
    enough = (1 - TOLERANCE) * max(each.events_per_second for each in usable)
    return min((each for each in usable if each.events_per_second >= enough), key=lambda each: each.point)


def worth_repeating(measurements: Sequence[Measurement]) -> list[Measurement]:
    """Return those of full load that might turn out to be the knee in a second run; a single one has no rival."""
    usable = [each for each in at_full_load(measurements) if each.events and not each.undelivered]
    enough = _CANDIDATES * max((each.events_per_second for each in usable), default=0.0)
    near = [each for each in usable if each.events_per_second >= enough]
    return near if len(near) > 1 else []


def better(first: Measurement, second: Measurement) -> Measurement:
    """Return the run of a point that counts: whatever disturbs a run makes it slower."""
    return second if second.events_per_second > first.events_per_second and not second.undelivered else first


def recommend(
    measurements: Sequence[Measurement], max_age: float, event_rate: float, rate_limit: float | None
) -> Advice | None:
    """Choose the settings.

    Args:
        measurements: What was measured, of whatever points.
        max_age: Seconds that an event may have at delivery (99 of 100).
        event_rate: Events per second that the service really has.
        rate_limit: Calls per second that the run was held to.

    Returns:
        The advice, or ``None`` when nothing went well.
    """
    chosen = knee(measurements)
    if chosen is None:
        return None
    best = max(
        (each for each in at_full_load(measurements) if not each.undelivered), key=lambda each: each.events_per_second
    )
    interval, why = _choose_interval(by_flush_interval(measurements), max_age)
    reasons = [
        _why_knee(chosen, best),
        _what_limits(chosen, measurements, rate_limit),
        *_what_suffices(chosen, measurements, event_rate),
        *why,
    ]
    return Advice(
        batch_size=chosen.point.batch_size,
        concurrency=chosen.point.concurrency,
        flush_interval=interval,
        reasons=tuple(reasons),
    )


def heat_map(measurements: Sequence[Measurement]) -> HeatMap:
    """Lay the measurements of full load out as a map."""
    found = {(each.point.concurrency, each.point.batch_size): each for each in at_full_load(measurements)}
    concurrencies = tuple(sorted({concurrency for concurrency, _ in found}))
    batch_sizes = tuple(sorted({batch_size for _, batch_size in found}))
    cells = tuple(
        tuple(
            None if (each := found.get((concurrency, batch_size))) is None else each.events_per_second
            for batch_size in batch_sizes
        )
        for concurrency in concurrencies
    )
    return HeatMap(concurrencies, batch_sizes, cells)


def _say(point: Point) -> str:
    return f"batch size {point.batch_size:,} and concurrency {point.concurrency}"


def _why_knee(chosen: Measurement, best: Measurement) -> str:
    said = f"{_say(chosen.point).capitalize()}: {chosen.events_per_second:,.0f} events/s"
    if chosen is best:
        return f"{said}, the best measured, and nothing smaller comes within {TOLERANCE:.0%} of it."
    return (
        f"{said}, with the fewest calls at a time, and then the smallest batch, within {TOLERANCE:.0%} of the best "
        f"({best.events_per_second:,.0f} at {_say(best.point)})."
    )


def _what_limits(chosen: Measurement, measurements: Sequence[Measurement], rate_limit: float | None) -> str:
    calls_per_second = chosen.events_per_second / max(1.0, chosen.events_per_call)
    if rate_limit is not None and calls_per_second >= _NEAR_LIMIT * rate_limit:
        return f"The rate limit of {rate_limit:g} calls/s is what limits it: only fuller calls bring more."
    if chosen.cpu_share >= _BUSY:
        return (
            f"The CPU is what limits it ({chosen.cpu_share:.0%} of a core): more calls at a time bring nothing, "
            "a second process does."
        )
    if chosen.point.concurrency == max(each.point.concurrency for each in at_full_load(measurements)):
        return (
            f"The service's latency is what limits it (this process takes {chosen.cpu_share:.0%} of a core), and this "
            "is the highest concurrency that was measured: try more by --concurrencies."
        )
    return (
        f"More calls at a time brought nothing, although this process takes {chosen.cpu_share:.0%} of a core: the "
        "service, the network or another program on this machine is what limits it."
    )


def _what_suffices(chosen: Measurement, measurements: Sequence[Measurement], event_rate: float) -> list[str]:
    enough = [
        each
        for each in at_full_load(measurements)
        if each.events and not each.undelivered and each.events_per_second >= _HEADROOM * event_rate
    ]
    if not enough:
        return [f"That is less than {_HEADROOM:g} times your {event_rate:,g} events/s: a backlog would hardly shrink."]
    least = min(enough, key=lambda each: each.point)
    if least.point >= chosen.point:
        return []
    return [
        f"Your {event_rate:,g} events/s need less: {_say(least.point)} carry {least.events_per_second:,.0f}, too, and "
        "have room for a backlog to shrink."
    ]


def _choose_interval(measurements: Sequence[Measurement], max_age: float) -> tuple[float | None, list[str]]:
    usable = [each for each in measurements if each.events and not each.undelivered]
    if not usable:
        return None, []
    in_time = [each for each in usable if each.p99_age <= max_age]
    chosen = in_time[-1] if in_time else usable[0]
    said = f"Flush interval {chosen.point.flush_interval:g} s: at {chosen.point.event_rate:,.0f} events/s"
    if not in_time:
        return chosen.point.flush_interval, [
            f"{said} the shortest measured, and still 99 of 100 events take {chosen.p99_age:.2f} s instead of the "
            f"{max_age:g} s that were wanted: try less by --flush-intervals, or allow more by --max-age."
        ]
    return chosen.point.flush_interval, [
        f"{said} the longest measured with which 99 of 100 events are delivered within {max_age:g} s "
        f"({chosen.p99_age:.2f} s), with {chosen.events_per_call:,.0f} events in a call."
    ]
