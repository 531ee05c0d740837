"""The way of a command's operations through a tracker: fed, watched, drained, and cut short where somebody insists.

Rules:

1. A signal ends the feeding; what was accepted is drained. A second signal leaves the loop at once: what is left then
   is given up by the tracker, as at the end of any program, within its ``drain_timeout`` (``NO_TIME``). So whatever
   sums up comes after the loop.
2. Credentials that are refused from the first call on are taken for wrong ones: nobody wants a command that waits.
3. What is shown is what has its verdict, not what was fed.

Must not know: where the operations come from, and what becomes of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

from cio_batch.cli.screen import Screen
from cio_batch.cli.stopping import Stop
from cio_batch.stats import Stats
from cio_batch.tracker import CioBatchTracker

NO_TIME: Final = 0.1
DRAIN: Final = 10.0
REFUSED_FOR: Final = 3.0
"""Seconds after which refused credentials are believed to be wrong."""

_LOOK: Final = 0.1  # seconds between two looks at the tracker
_STUCK_FOR: Final = 1.0  # seconds without a verdict after which the bar names the last error


class Shipping:
    """Sees operations through a tracker.

    Args:
        tracker: It; made with ``drain_timeout=NO_TIME`` and ``handle_sigterm=False``.
        screen: Where to say that it stops.
        stop: Ends it.
        settled: How many operations have their verdict.
        show: Gets the tracker's figures and what hinders it, in words, a few times a second.
        drain: Seconds for what is left.

    Attributes:
        refusal: Why the credentials were believed to be wrong, or ``""``.
        cut: Whether a second signal came before the end.
    """

    def __init__(
        self,
        tracker: CioBatchTracker,
        screen: Screen,
        stop: Stop,
        *,
        settled: Callable[[], int],
        show: Callable[[Stats, str], None],
        drain: float = DRAIN,
    ) -> None:
        self.refusal = ""
        self.cut = False
        self._tracker = tracker
        self._screen = screen
        self._stop = stop
        self._settled = settled
        self._show = show
        self._drain = drain

    async def run(self, feed: Coroutine[Any, Any, None]) -> None:
        """Feed, and drain.

        Args:
            feed: Gives the tracker its operations, and returns when there is no more or it is time to stop.
        """
        feeding = asyncio.create_task(feed)
        stopping = asyncio.create_task(self._stop.wait())
        watching = asyncio.create_task(self._watch())
        try:
            await asyncio.wait([feeding, stopping], return_when=asyncio.FIRST_COMPLETED)
            if self._stop.signum:
                self._screen.note("stopping: what was accepted is sent first; once more to quit at once", "yellow")
            await self._end(feeding)
        finally:
            for task in (feeding, stopping, watching):
                task.cancel()
            await asyncio.wait([feeding, stopping, watching])
            self._show(self._tracker.stats(), "")

    async def _end(self, feeding: asyncio.Task[None]) -> None:
        """Drain, unless somebody insists on the end."""
        # It also turns away the feeder, should it be waiting for room.
        closing = asyncio.create_task(self._tracker.close(NO_TIME if self.refusal else self._drain))
        insisting = asyncio.create_task(self._stop.wait_again())
        await asyncio.wait([closing, insisting], return_when=asyncio.FIRST_COMPLETED)
        insisting.cancel()
        if closing.done():
            await closing
            await feeding
        else:
            self.cut = True
            await asyncio.wait([feeding], timeout=NO_TIME)  # whether its last one was taken must not stay open
            closing.cancel()

    async def _watch(self) -> None:
        """Move the progress bar, say what hinders, and notice credentials that are refused from the beginning."""
        paused_since = None
        settled, settled_at = 0, time.monotonic()
        while True:
            stats, now = self._tracker.stats(), time.monotonic()
            if self._settled() != settled or not stats.accepted:
                settled, settled_at = self._settled(), now
            hindrance = ""
            if stats.paused:
                hindrance = f"paused: {stats.paused}"
            elif stats.last_error and now - settled_at >= _STUCK_FOR:
                hindrance = f"nothing gets through: {stats.last_error}"
            self._show(stats, hindrance)
            if stats.paused is None or settled:
                paused_since = None
            elif paused_since is None:
                paused_since = now
            elif now - paused_since >= REFUSED_FOR and not self._stop.came:
                self.refusal = stats.paused
                self._stop.now()
            await asyncio.sleep(_LOOK)
