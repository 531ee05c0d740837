"""Two hundred trackers and an outage: when the service is back, they do not come all at once."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from bisect import bisect_left
from collections.abc import Sequence

import attrs
import pytest

from cio_batch import CioBatchTracker, RetryOptions, Settings
from cio_batch.operations import Operation
from cio_batch.settings import QUEUE_RETRY
from cio_batch.verdicts import Judgement, Next

from ..conftest import assert_conserved
from .clock import run
from .scripted import Disk, MemorySpool, Service

TRACKERS = 200
PEOPLE = 8  # of each; whoever waits for a repeat is one call of their own
WARM = 20.0  # seconds in which everybody starts, each at their own time
DOWN = 60.0  # seconds
WATCHED = 5.0  # seconds after that
WINDOW = 0.1
SHARE = 0.10  # of the trackers, in a window at most

_CIRCUIT = RetryOptions(max_retries=3, max_delay=QUEUE_RETRY.max_delay)  # opens long before the service is back


class Fleet:
    """The trackers, each with events that come at random, one in two seconds; and when each of them called."""

    def __init__(self, kept: bool, seed: int, jitter: float = 0.3) -> None:
        self.rng = random.Random(seed)
        self.up = True
        self.calls: list[tuple[float, int]] = []
        self.disks = [Disk() for _ in range(TRACKERS)]
        self.services = [Service(lambda operations, of=index: self.answer(operations, of)) for index in range(TRACKERS)]
        self.trackers = [
            CioBatchTracker(
                Settings(),
                transport=service,
                retry=attrs.evolve(_CIRCUIT if kept else QUEUE_RETRY, jitter=jitter),
                spool=MemorySpool(disk) if kept else None,
                handle_sigterm=False,
            )
            for service, disk in zip(self.services, self.disks, strict=True)
        ]

    async def answer(self, operations: Sequence[Operation], of: int) -> Judgement:
        self.calls.append((asyncio.get_running_loop().time(), of))
        await asyncio.sleep(0.05)
        if self.up:
            return Judgement(len(operations), status=200)
        return Judgement(0, next=Next.RETRY, reason="status 503", status=503)

    async def produce(self, tracker: CioBatchTracker) -> None:
        await asyncio.sleep(self.rng.random() * WARM / 2)
        for n in itertools.count():
            await tracker.enqueue(f"u{self.rng.randrange(PEOPLE)}", "e", {"n": n})
            await asyncio.sleep(self.rng.expovariate(0.5))

    async def go_through_an_outage(self) -> float:
        """Return the time at which the service was back."""
        producers = [asyncio.create_task(self.produce(tracker)) for tracker in self.trackers]
        await asyncio.sleep(WARM)
        self.up = False
        # Something happens to everybody at once, in the worst moment.
        await asyncio.gather(*(tracker.enqueue("all", "e", {"n": 0}) for tracker in self.trackers))
        flushes = [asyncio.create_task(tracker.flush()) for tracker in self.trackers]
        await asyncio.sleep(1.0)
        delivered = sum(tracker.stats().delivered for tracker in self.trackers)
        await asyncio.sleep(DOWN - 1.0)
        assert sum(tracker.stats().delivered for tracker in self.trackers) == delivered > 0
        assert all(tracker.stats().retries for tracker in self.trackers)
        self.up = True
        back = asyncio.get_running_loop().time()
        await asyncio.sleep(WATCHED + 60)
        for producer in producers:
            producer.cancel()
        await asyncio.wait([*producers, *flushes])
        reports = await asyncio.gather(*(tracker.close(60) for tracker in self.trackers))
        assert not any(report.left or report.failed or report.dropped for report in reports)
        for tracker, service in zip(self.trackers, self.services, strict=True):
            stats = assert_conserved(tracker)
            assert stats.delivered == stats.accepted == len(service.delivered) > 10
            assert not service.violations
        return back

    def busiest(self, start: float, seconds: float) -> int:
        """How many trackers called in the busiest window of that time."""
        calls = sorted(call for call in self.calls if start <= call[0] < start + seconds)
        times = [when for when, _ in calls]
        return max(
            (
                len({who for _, who in calls[index : bisect_left(times, when + WINDOW)]})
                for index, when in enumerate(times)
            ),
            default=0,
        )


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kept", [False, True], ids=["memory", "spool"])
def test_nobody_storms_a_service_that_is_back(kept: bool, seed: int, caplog: pytest.LogCaptureFixture) -> None:
    """In no 100 ms of the first 5 s do more than 10 % of the trackers call, and everything is delivered in order."""
    caplog.set_level(logging.CRITICAL, "cio_batch")
    fleet = Fleet(kept, seed)
    back = run(fleet.go_through_an_outage())
    first, minute = fleet.busiest(back, WATCHED), fleet.busiest(back, 60.0)
    print(f"the busiest 100 ms: {first} of {TRACKERS} trackers, {minute} in the first minute")  # noqa: T201 - the figure
    assert first <= SHARE * TRACKERS
    # The probes of a circuit come later than that. Who got through sends what waited one call after the other, which
    # takes longer than a window: more of them overlap, and still nothing like all.
    assert 0 < minute <= 2 * SHARE * TRACKERS


def test_without_jitter_there_is_a_storm(caplog: pytest.LogCaptureFixture) -> None:
    """The measure measures: the same trackers without jitter come all at once."""
    caplog.set_level(logging.CRITICAL, "cio_batch")
    fleet = Fleet(kept=False, seed=0, jitter=0.0)
    back = run(fleet.go_through_an_outage())
    assert fleet.busiest(back, 60.0) > 0.9 * TRACKERS
