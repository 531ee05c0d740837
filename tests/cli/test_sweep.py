"""The points of a tuning run, and its numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cio_batch.cli.sweep import Measurement, Point, full_load_points, quantile, slope


def test_the_grid_is_every_combination_once() -> None:
    """The smallest first, whatever order and repeats were asked for."""
    points, left_out = full_load_points([200, 50, 50], [2, 1], events=None)

    assert points == [Point(1, 50), Point(1, 200), Point(2, 50), Point(2, 200)]
    assert left_out == []


def test_what_cannot_be_filled_is_left_out() -> None:
    """A run needs events for two rounds of calls."""
    points, left_out = full_load_points([50, 200], [2], events=200)

    assert points == [Point(2, 50)]
    assert left_out == [Point(2, 200)]


@given(latency=st.floats(0.01, 1), calls=st.integers(1, 20), count=st.integers(1, 2_000), rounds=st.integers(2, 20))
def test_calls_that_return_in_rounds_have_the_slope_of_the_rounds(
    latency: float, calls: int, count: int, rounds: int
) -> None:
    """``calls`` full calls in every latency are so many events per second, however few rounds there were."""
    deliveries = [(latency * (number + 1), count) for number in range(rounds) for _ in range(calls)]

    assert slope(deliveries) == pytest.approx(calls * count / latency)


@given(latency=st.floats(0, 10), step=st.floats(0.001, 1), number=st.integers(3, 50))
def test_the_way_of_the_first_call_does_not_count(latency: float, step: float, number: int) -> None:
    """A steady stream has its own rate, once it has lasted half as long as the first call took."""
    deliveries = [(latency + step * (each + 1), 10) for each in range(number)]

    if deliveries[-1][0] >= 1.5 * deliveries[0][0]:
        assert slope(deliveries) == pytest.approx(10 / step)


def test_one_round_of_calls_counts_from_the_beginning() -> None:
    """Where everything came back at once, the time is that since the beginning."""
    assert slope([(0.5, 10), (0.501, 10)]) == pytest.approx(20 / 0.501)
    assert slope([]) == 0


@pytest.mark.parametrize(("share", "age"), [(0.0, 1.0), (0.5, 1.0), (0.89, 1.0), (0.95, 2.0), (0.99, 3.0), (1.0, 3.0)])
def test_quantiles_weigh(share: float, age: float) -> None:
    """Each age stands for as many events as it was sampled for."""
    assert quantile([(3.0, 2), (1.0, 90), (2.0, 8)], share) == age


def test_without_ages_there_is_no_age() -> None:
    """A run in which nothing arrived has the age 0."""
    assert quantile([], 0.5) == 0


def test_a_measurement_says_how_full_and_how_busy() -> None:
    """Events in a call, and the share of one core."""
    measurement = Measurement(
        point=Point(1, 100),
        events_per_second=100_000,
        p50_age=0,
        p99_age=0,
        cpu_us_per_event=2.5,
        events=1_000,
        calls=20,
    )

    assert (measurement.events_per_call, measurement.cpu_share) == (50, 0.25)
