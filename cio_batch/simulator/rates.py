"""How many calls the App API takes in what time, for a simulator that is asked to enforce it.

Rules:

1. A call that is refused for its rate does not count against it, and nothing else is asked of it.
2. The time is given; the same times give the same answers.

This module must not know HTTP, the calls or the clock.
"""

from collections import deque

import attrs


@attrs.frozen(kw_only=True)
class AppRates:
    """The App API's rates; the published ones unless given.

    Attributes:
        sends_per_second: Messages of every kind together within any second (100).
        broadcast_interval: Seconds from the trigger of one broadcast to that of the next (10).

    Source: docs.customer.io/integrations/api/app.
    """

    sends_per_second: int = attrs.field(default=100, validator=attrs.validators.ge(1))
    broadcast_interval: float = attrs.field(default=10.0, validator=attrs.validators.ge(0))


class Turnstile:
    """Lets calls through at the rates given.

    Args:
        rates: Which; None lets everything through.
    """

    def __init__(self, rates: AppRates | None) -> None:
        self.rates = rates
        self._sends: deque[float] = deque()
        self._next_broadcast = float("-inf")

    def admit_message(self, now: float) -> float:
        """Let a message through and return 0; or return how many seconds it comes too early."""
        if self.rates is None:
            return 0.0
        while self._sends and self._sends[0] <= now - 1:
            self._sends.popleft()
        if len(self._sends) >= self.rates.sends_per_second:
            return self._sends[0] + 1 - now
        self._sends.append(now)
        return 0.0

    def admit_broadcast(self, now: float) -> float:
        """Let the trigger of a broadcast through and return 0; or return how many seconds it comes too early."""
        if self.rates is None:
            return 0.0
        if now < self._next_broadcast:
            return self._next_broadcast - now
        self._next_broadcast = now + self.rates.broadcast_interval
        return 0.0
