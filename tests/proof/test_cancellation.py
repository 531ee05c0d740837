"""A storm of cancels: any task, at any await, in a thousand seeds; nothing lost, nothing twice without need."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import Counter
from collections.abc import Sequence

import pytest

from cio_batch import CioBatchTracker, RetryOptions, Settings, Verdict
from cio_batch.operations import Operation
from cio_batch.verdicts import Judgement, Next, Rejection

from ..conftest import assert_conserved
from .clock import VirtualLoop
from .scripted import Disk, Event, Ledger, MemorySpool, Service

SEEDS = 1_000
PATIENT = RetryOptions(max_retries=500, base_delay=0.05, max_delay=0.5)


class Storm:
    """One scenario: some producers, some flushes, a close, a service with moods, and somebody who cancels."""

    def __init__(self, seed: int, kept: bool) -> None:
        self.rng = rng = random.Random(seed)
        self.disk = Disk()
        self.service = Service(self.decide, max_operations=rng.randint(1, 6))
        self.ledger = Ledger()
        self.tracker = CioBatchTracker(
            Settings(),
            transport=self.service,
            concurrency=rng.randint(1, 4),
            flush_interval=rng.choice([0.01, 0.2]),
            max_pending=rng.choice([4, 100]),
            enqueue_timeout=None,
            retry=PATIENT,
            rate_limit=rng.choice([None, 100.0]),
            spool=MemorySpool(self.disk, rng.choice([0.0, 0.003])) if kept else None,
            on_settled=self.ledger,
            handle_sigterm=False,
        )
        self.kills: Counter[str] = Counter()
        self.accepted: set[Event] = set()
        self.unsure: set[Event] = set()  # whoever was cancelled does not know

    async def decide(self, operations: Sequence[Operation]) -> Judgement:
        rng, count = self.rng, len(operations)
        await asyncio.sleep(rng.choice([0.0, 0.001, 0.05, 0.3]))
        match rng.randrange(12):
            case 0:
                return Judgement(0, next=Next.RETRY, reason="status 503", status=503)
            case 1:
                return Judgement(0, next=Next.RETRY, reason="status 429", status=429, retry_after=0.2, blames=False)
            case 2:
                return Judgement(0, next=Next.PAUSE, reason="status 401", status=401, blames=False)
            case 3:
                return Judgement(count, rejected={rng.randrange(count): Rejection("invalid")}, status=207)
            case 4 if count > 1:
                return Judgement(0, next=Next.SPLIT, reason="status 413", status=413)
            case 5:
                return Judgement(rng.randrange(count), next=Next.RETRY, reason="timed out")
            case 6:
                raise ConnectionError
            case _:
                return Judgement(count, status=200)

    def cancel_someone(self) -> None:
        """Between two steps of the loop: conservation, and now and then a cancel of any task but the test's own."""
        if self.rng.random() < 0.15:
            assert_conserved(self.tracker)
        if self.kills.total() < self.most_kills and self.rng.random() < 0.12:
            victims = sorted(asyncio.all_tasks(self.loop) - {self.main}, key=lambda task: task.get_name())
            if victims:
                victim = self.rng.choice(victims)
                self.kills[victim.get_name()] += victim.cancel()

    async def produce(self, person: str, count: int) -> None:
        for n in range(count):
            try:
                await self.tracker.enqueue(person, "e", {"n": n})
                self.accepted.add((person, n))
            except asyncio.CancelledError:
                self.unsure.add((person, n))
            if self.rng.random() < 0.3:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(self.rng.choice([0.0, 0.02]))

    async def flush(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(self.rng.random() * 0.2)
            await self.tracker.flush(self.rng.choice([None, 0.1]))

    async def run(self) -> None:
        main = asyncio.current_task()
        assert main is not None
        self.main = main
        self.loop = loop = asyncio.get_running_loop()
        self.most_kills = self.rng.choice([1, 3, 10, 40])
        assert isinstance(loop, VirtualLoop)
        loop.between = self.cancel_someone
        count = self.rng.randint(1, 8)
        tasks = [loop.create_task(self.produce(f"u{p}", count), name=f"caller {p}") for p in range(4)]
        tasks += [loop.create_task(self.flush(), name=f"caller flush {f}") for f in range(2)]
        await asyncio.wait(tasks)
        for task in tasks:
            assert task.cancelled() or task.result() is None
        while not self.tracker.is_closed:
            closing = loop.create_task(self.tracker.close(timeout=1_000.0), name="caller close")
            await asyncio.wait([closing])
            if closing.cancelled():
                continue
            assert closing.result().left == 0
        loop.between = None

    def check(self) -> None:
        stats = assert_conserved(self.tracker)
        ledger, service = self.ledger, self.service
        assert (stats.pending, stats.in_flight, stats.failed, stats.dropped) == (0, 0, 0, 0)
        assert not service.violations
        assert not ledger.twice
        assert ledger.verdicts.keys() >= self.accepted, "an accepted event was lost"
        assert ledger.verdicts.keys() <= self.accepted | self.unsure
        assert stats.accepted == len(ledger.verdicts)
        assert ledger.having(Verdict.DELIVERED) == service.delivered
        assert ledger.having(Verdict.REJECTED) == service.rejected
        assert not self.disk.rows
        assert len(self.disk.dead) in (0, len(service.rejected))


@pytest.fixture(autouse=True)
def _silence(caplog: pytest.LogCaptureFixture) -> None:
    """A thousand outages would be logged."""
    caplog.set_level(logging.CRITICAL, "cio_batch")


@pytest.mark.parametrize("kept", [False, True], ids=["memory", "spool"])
def test_any_task_may_be_cancelled_at_any_await(kept: bool) -> None:
    """A thousand seeds: conservation at every instant; accepted means settled, once, by what the service answered."""
    kills: Counter[str] = Counter()
    for seed in range(SEEDS):
        storm = Storm(seed, kept)
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            try:
                runner.run(storm.run())
                storm.check()
            except BaseException as error:
                error.add_note(f"seed {seed}: {dict(storm.kills)}")
                raise
        kills.update(storm.kills)
    for name in ("flush", "dispatch", "delivery", "close", *(("open", "read-back") if kept else ())):
        assert kills[f"cio_batch {name}"] > 0, f"no {name} task was ever cancelled"
    print("cancels:", dict(kills.most_common()))  # noqa: T201 - the figures of the proof
