"""A script that must know that its events arrived before it goes on.

Run it like ``quickstart.py``: ``python examples/script_with_flush.py``.
"""

import asyncio

from cio_batch import CioBatchTracker, Settings


async def main(settings: Settings) -> None:
    """Import two files; after each of them wait until all of its rows are settled."""
    async with CioBatchTracker(settings) as tracker:
        for name, rows in (("monday.csv", 300), ("tuesday.csv", 200)):
            for row in range(rows):
                await tracker.enqueue(f"user-{row % 50}", "row_imported", {"file": name, "row": row})
            report = await tracker.flush(timeout=30)  # about what was unsettled at the call; stats() has the totals
            stats = tracker.stats()
            print(f"{name}: by now {stats.delivered} delivered, {stats.rejected} rejected, {report.left} undecided")
            if report.left:
                break  # Customer.io cannot be reached; keep tuesday.csv for later


if __name__ == "__main__":
    asyncio.run(main(Settings.from_env()))
