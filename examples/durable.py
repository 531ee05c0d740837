"""Events that survive a crash: they are on disk before ``enqueue`` returns, and are sent after the next start.

CUSTOMERIO_SITE_ID=... CUSTOMERIO_TRACK_API_KEY=... python examples/durable.py events.db
"""

from __future__ import annotations

import asyncio
import sys

from cio_batch import CioBatchTracker, DeadLetter
from cio_batch.spools import SqliteSpool


def report(letter: DeadLetter) -> None:
    """Say what was refused; it stays in the file for `cio-batch replay`."""
    print(f"refused: {letter.kind} {letter.name}, {letter.last.reason} {letter.last.field}")


async def main() -> None:
    """Send what an earlier run left, and three more."""
    async with CioBatchTracker(spool=SqliteSpool(sys.argv[1]), on_dead_letter=report) as tracker:
        print(tracker.stats().recovered, "events of an earlier run")
        for page in ("/", "/pricing", "/docs"):
            await tracker.enqueue("user-1", "page_viewed", {"url": page})
        report_of_run = await tracker.flush()
    print(report_of_run.delivered, "delivered", report_of_run.left, "left")


if __name__ == "__main__":
    asyncio.run(main())
