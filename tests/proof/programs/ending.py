"""A program that never closes its tracker: ``ending.py <how it ends> <how many events> [<file of a spool>]``."""

# ruff: noqa: T201 - what it prints is how the tests hear of it

import asyncio
import sys

from cio_batch import CioBatchTracker
from cio_batch.spools import SqliteSpool

_, how, count, *spool = sys.argv
tracker = CioBatchTracker(
    batch_size=1 if how.startswith("slowly") else None,
    concurrency=1 if how.startswith("slowly") else 10,
    flush_interval=60,
    drain_timeout=0.8,
    spool=SqliteSpool(*spool) if spool else None,
)


async def main() -> None:
    await tracker.start()
    await asyncio.gather(*(tracker.enqueue(f"person-{n % 5}", "ticked", {"n": n}) for n in range(int(count))))
    print("ready", flush=True)
    if how.endswith("interrupted"):
        await asyncio.Event().wait()


try:
    asyncio.run(main())
finally:
    stats = tracker.stats()
    print(
        f"{stats.state}: accepted {stats.accepted}, delivered {stats.delivered}, failed {stats.failed}, "
        f"recovered {stats.recovered}, pending {stats.pending}, in flight {stats.in_flight}",
        flush=True,
    )
