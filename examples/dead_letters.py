"""What the service refuses is kept in a file, with the reason; mend the cause, then send it again.

CUSTOMERIO_SITE_ID=... CUSTOMERIO_TRACK_API_KEY=... python examples/dead_letters.py dead.ndjson
cio-batch dead-letters list dead.ndjson && cio-batch replay dead.ndjson
"""

from __future__ import annotations

import asyncio
import sys

from cio_batch import CioBatchTracker, DeadLetterFile


async def main() -> None:
    """Send two events, and say how many were refused."""
    file = DeadLetterFile(sys.argv[1])
    async with CioBatchTracker(dead_letters=file) as tracker:
        await tracker.enqueue("user-1", "checkout_completed", {"order_id": "A-7", "total": 12.5})
        await tracker.enqueue("user-2", "checkout_completed", {"order_id": "A-8", "total": 7.0})
    print(tracker.stats().dead_letters, "refused; they are kept in", file.path.name)


if __name__ == "__main__":
    asyncio.run(main())
