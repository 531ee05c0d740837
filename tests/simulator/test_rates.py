"""The App API's rates: which call goes through, and how long the others have to wait."""

import pytest

from cio_batch.simulator.rates import AppRates, Turnstile


def test_messages_are_counted_over_the_last_second() -> None:
    """A message goes through when fewer than the rate went through within the second before it."""
    turnstile = Turnstile(AppRates(sends_per_second=2))
    assert [turnstile.admit_message(now) for now in (10.0, 10.5, 10.75, 10.9)] == [0, 0, 0.25, pytest.approx(0.1)]
    assert [turnstile.admit_message(now) for now in (11.0, 11.25, 11.5)] == [0, 0.25, 0]


def test_a_broadcast_waits_for_its_interval() -> None:
    """A refused trigger does not put the next one off; messages have a rate of their own."""
    turnstile = Turnstile(AppRates())
    assert [turnstile.admit_broadcast(now) for now in (0.0, 4.0, 9.5, 10.0, 10.0)] == [0, 6, 0.5, 0, 10]
    assert turnstile.admit_message(10.0) == 0


def test_without_rates_everything_goes_through() -> None:
    """None lets all calls through at once."""
    turnstile = Turnstile(None)
    assert {turnstile.admit_message(0.0) for _ in range(1_000)} == {0.0}
    assert {turnstile.admit_broadcast(0.0) for _ in range(1_000)} == {0.0}


def test_senseless_rates_are_refused() -> None:
    """At least one message a second, and no negative interval."""
    with pytest.raises(ValueError, match="sends_per_second"):
        AppRates(sends_per_second=0)
    with pytest.raises(ValueError, match="broadcast_interval"):
        AppRates(broadcast_interval=-1)
