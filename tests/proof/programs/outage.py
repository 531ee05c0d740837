"""Virtual minutes without the service at 1,000 events a second: ``outage.py <minutes> <file of a spool, or policy>``.

Prints one line of JSON: what it measured.
"""

# ruff: noqa: T201 - what it prints is how the test hears of it

import asyncio
import gc
import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cio_batch import CioBatchTracker, QueueFullError, Settings
from cio_batch.dead_letters import Refusal
from cio_batch.operations import Operation, PersonId
from cio_batch.spools import Contents, Page, SqliteSpool, Written
from cio_batch.spools.base import Receive
from cio_batch.transports import Call
from cio_batch.verdicts import Judgement, Next
from tests.proof.clock import VirtualLoop, run

RATE = 1_000
WARM = 60  # seconds until memory holds what it may hold
PEOPLE = 1_000


class OnTheClock:
    """A SqliteSpool whose thread the virtual clock waits for."""

    def __init__(self, spool: SqliteSpool) -> None:
        self._spool = spool
        self.max_bytes, self.max_age = spool.max_bytes, spool.max_age

    async def open(self, receive: Receive, purged: Callable[[Sequence[int]], None]) -> Contents:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self._loop = loop

        def receive_and_count(written: Written) -> None:
            loop.owed -= written.appended
            receive(written)

        return await loop.owing(self._spool.open(receive_and_count, purged))

    def append(self, operation: Operation) -> None:
        self._loop.owed += 1
        self._spool.append(operation)

    def acknowledge(self, numbers: Sequence[int]) -> None:
        self._spool.acknowledge(numbers)

    def bury(self, refusals: Sequence[tuple[int, Refusal]]) -> None:
        self._spool.bury(refusals)

    async def read(self, after: int, most: int, most_bytes: int) -> Page:
        return await self._loop.owing(self._spool.read(after, most, most_bytes))

    async def last_before(self, moment: float) -> int:
        return await self._loop.owing(self._spool.last_before(moment))

    async def purge(self, person: PersonId) -> int:
        return await self._loop.owing(self._spool.purge(person))

    async def close(self, timeout: float) -> bool:
        return await self._loop.owing(self._spool.close(timeout))

    def forget_parent(self) -> None:
        self._spool.forget_parent()


class Service:
    """Down until it is up; then it looks whether everything comes once, and in the order of its person."""

    max_operations: int = 2_000
    max_bytes: int = 499_999
    envelope_bytes: int = 12
    apart: frozenset[str] = frozenset()
    max_apart: int = 1
    check: Callable[[Operation], None] | None = None

    def __init__(self) -> None:
        self.up = False
        self.calls: Counter[bool] = Counter()
        self.last: dict[object, int] = {}
        self.wrong = 0
        self.count = 0

    async def send(self, operations: Sequence[Operation], call: Call) -> Judgement:
        await call.gate()
        self.calls[self.up] += 1
        await asyncio.sleep(0.02)
        if not self.up:
            return Judgement(0, next=Next.RETRY, reason="status 503", status=503)
        for operation in operations:
            body, key = operation.body, operation.key
            n = int(body[body.rindex(b":") + 1 : body.index(b"}", body.rindex(b":"))])
            self.wrong += n <= self.last.get(key, -1)
            self.last[key] = n
        self.count += len(operations)
        return Judgement(len(operations), status=200)

    async def close(self) -> None:
        pass


def rss_kb() -> int:
    """Resident memory now, without the pages of files that it reads."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(fields["RssAnon"].split()[0])


async def main(minutes: int, where: str) -> dict[str, Any]:
    service = Service()
    options: dict[str, Any] = {"max_pending": 20_000, "handle_sigterm": False, "transport": service}
    kept = where.endswith(".db")
    if kept:
        options["spool"] = OnTheClock(SqliteSpool(where))
    else:
        options |= {"overflow": where, "enqueue_timeout": 2.0}
    tracker = CioBatchTracker(Settings(), **options)
    refused = produced = 0
    most_held = 0
    sizes: list[int] = []

    async def enqueue(n: int) -> None:
        nonlocal refused
        try:
            await tracker.enqueue(f"person-{n % PEOPLE}", "ticked", {"n": n})
        except QueueFullError:
            refused += 1

    waiting: set[asyncio.Task[None]] = set()
    for second in range(60 * minutes):
        tasks = [asyncio.create_task(enqueue(produced + n)) for n in range(RATE)]
        produced += RATE
        if kept:
            await asyncio.gather(*tasks)
        else:
            waiting |= set(tasks)
            for task in tasks:
                task.add_done_callback(waiting.discard)
        await asyncio.sleep(1.0)
        if second % 10 == 9:
            stats = tracker.stats()
            assert stats.accepted == stats.pending + stats.in_flight + stats.dropped + stats.failed, stats
            most_held = max(most_held, stats.pending + stats.in_flight - stats.spooled)
            if second >= WARM:
                gc.collect()
                sizes.append(rss_kb())
    before = tracker.stats()
    service.up = True
    report = await tracker.flush()
    after_kb = rss_kb()
    if waiting:  # for room, and it came
        await asyncio.wait(waiting)
    final = await tracker.close()
    stats = tracker.stats()
    return {
        "produced": produced,
        "accepted": stats.accepted,
        "refused": refused,
        "dropped": stats.dropped,
        "failed": stats.failed,
        "delivered": stats.delivered,
        "arrived": service.count,
        "out_of_order_or_twice": service.wrong,
        "left": report.left + final.left,
        "calls_while_down": service.calls[False],
        "paused": before.paused,
        "most_held": most_held,
        "spooled": before.spooled,
        "rss_first_kb": sizes[0],
        "rss_most_kb": max(sizes),
        "rss_growth_kb": max(sizes) - min(sizes),
        "rss_after_kb": after_kb,
    }


logging.disable(logging.CRITICAL)
began = time.monotonic()
result = run(main(int(sys.argv[1]), sys.argv[2]))
print(json.dumps({**result, "seconds": round(time.monotonic() - began, 1)}))
