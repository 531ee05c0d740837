"""Measurements → what is recommended, and why."""

from typing import Any

import attrs
import pytest

from cio_batch.cli.advice import Advice, HeatMap, better, heat_map, knee, recommend, worth_repeating
from cio_batch.cli.sweep import Measurement, Point


def measured(concurrency: int, batch_size: int, speed: float, **changes: Any) -> Measurement:
    """Return a measurement of full load."""
    measurement = Measurement(
        point=Point(concurrency, batch_size),
        events_per_second=speed,
        p50_age=0.1,
        p99_age=0.2,
        cpu_us_per_event=2.0,
        events=batch_size * 10,
        calls=10,
    )
    return attrs.evolve(measurement, **changes)


def waited(interval: float, p99_age: float, **changes: Any) -> Measurement:
    """Return a measurement of a flush interval."""
    point = Point(2, 100, flush_interval=interval, event_rate=500)
    return measured(2, 100, 500, point=point, p99_age=p99_age, **changes)


def advise(*measurements: Measurement, **changes: Any) -> Advice:
    """Recommend something."""
    advice = recommend(measurements, **({"max_age": 1.0, "event_rate": 500.0, "rate_limit": 1_000.0} | changes))
    assert advice is not None
    return advice


def test_the_knee_is_the_smallest_within_five_percent() -> None:
    """Fewer calls at a time first, then the smaller batch; the maximum is not the point."""
    grid = [
        measured(1, 100, 50),
        measured(2, 100, 96),
        measured(2, 200, 97),
        measured(4, 50, 100),
        measured(4, 100, 99),
    ]

    assert knee(grid) is grid[1]


def test_what_lost_events_is_no_candidate() -> None:
    """Not even as the best that the others are compared with."""
    grid = [measured(1, 100, 50), measured(2, 100, 100, undelivered=1), measured(4, 100, 0, events=0)]

    assert knee(grid) is grid[0]
    assert knee(grid[1:]) is None
    assert recommend(grid[1:], max_age=1, event_rate=1, rate_limit=None) is None


def test_what_is_near_the_best_is_worth_a_second_run() -> None:
    """Half of the best may have been a disturbed run of it; what lost events is not repeated."""
    grid = [measured(1, 100, 49), measured(2, 100, 50), measured(2, 200, 100), measured(4, 50, 200, undelivered=1)]

    assert worth_repeating(grid) == grid[1:3]
    assert worth_repeating(grid[:1]) == worth_repeating([]) == []


def test_the_better_run_counts() -> None:
    """The faster one, unless it lost events."""
    first = measured(1, 100, 100)

    assert better(first, measured(1, 100, 99)) is first
    assert better(first, second := measured(1, 100, 101)) is second
    assert better(first, measured(1, 100, 101, undelivered=1)) is first


def test_the_longest_flush_interval_that_is_young_enough() -> None:
    """Longer means fewer calls."""
    advice = advise(measured(2, 100, 100), waited(2, 2.1), waited(0.1, 0.2), waited(0.5, 0.6))

    assert advice.flush_interval == 0.5
    assert advice.code == "CioBatchTracker(batch_size=100, concurrency=2, flush_interval=0.5)"
    assert "within 1 s (0.60 s), with 100 events in a call" in advice.reasons[-1]


def test_a_wish_that_no_interval_fulfils() -> None:
    """The shortest is taken, and said to be too long."""
    advice = advise(measured(2, 100, 100), waited(2, 2.1), waited(0.1, 1.2))

    assert advice.flush_interval == 0.1
    assert "1.20 s instead of the 1 s that were wanted" in advice.reasons[-1]


def test_without_intervals_there_is_none() -> None:
    """Stopped before they were measured."""
    advice = advise(measured(2, 100, 100))

    assert advice.flush_interval is None
    assert advice.code == "CioBatchTracker(batch_size=100, concurrency=2)"


def test_it_says_what_the_best_was() -> None:
    """And that the chosen one is that."""
    assert "the best measured" in advise(measured(1, 100, 50), measured(2, 100, 100)).reasons[0]
    reason = advise(measured(1, 100, 99), measured(2, 200, 100)).reasons[0]
    assert reason.startswith("Batch size 100 and concurrency 1: 99 events/s, with the fewest calls at a time")
    assert reason.endswith("(100 at batch size 200 and concurrency 2).")


@pytest.mark.parametrize(
    ("grid", "rate_limit", "said"),
    [
        ([measured(2, 100, 950)], 10.0, "rate limit of 10 calls/s"),
        ([measured(2, 100, 950)], None, "latency"),
        ([measured(2, 100, 450_000)], 10_000.0, "The CPU is what limits it (90% of a core)"),
        ([measured(1, 100, 50_000), measured(2, 100, 100_000)], 10_000.0, "try more by --concurrencies"),
        (
            [measured(1, 100, 98_000), measured(2, 100, 100_000)],
            10_000.0,
            "although this process takes 20% of a core: the service, the network",
        ),
    ],
)
def test_it_says_what_limits(grid: list[Measurement], rate_limit: float | None, said: str) -> None:
    """The rate limit, the CPU or the latency: what would help differs."""
    assert said in advise(*grid, rate_limit=rate_limit).reasons[1]


@pytest.mark.parametrize(
    ("event_rate", "said"),
    [
        (20.0, ["Your 20 events/s need less: batch size 100 and concurrency 1 carry 50, too"]),
        (40.0, []),
        (80.0, ["less than 2 times your 80 events/s"]),
    ],
)
def test_it_says_what_the_real_rate_needs(event_rate: float, said: list[str]) -> None:
    """Most services have far fewer events than fit."""
    reasons = advise(measured(1, 100, 50), measured(2, 100, 100), event_rate=event_rate).reasons[2:]

    assert len(reasons) == len(said)
    assert all(part in reason for part, reason in zip(said, reasons, strict=True))


def test_the_heat_map_has_holes_where_nothing_was_measured() -> None:
    """Rows are concurrencies, columns batch sizes; flush intervals are not in it."""
    grid = [measured(4, 100, 3), measured(1, 50, 1), measured(1, 100, 2), waited(1, 1)]

    assert heat_map(grid) == HeatMap((1, 4), (50, 100), ((1, 2), (None, 3)))
