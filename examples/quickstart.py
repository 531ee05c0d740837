"""Send a few events; leaving ``async with`` delivers what is still queued.

Run it against a local Customer.io: ``cio-batch simulate`` prints ``export`` lines and serves until Ctrl-C. In
another shell, paste the lines and run ``python examples/quickstart.py``. With real credentials it sends real events.
"""

import asyncio

from cio_batch import CioBatchTracker, Settings


async def main(settings: Settings) -> None:
    """Say who a person is and what she did; all of it goes out in one call."""
    async with CioBatchTracker(settings) as tracker:
        await tracker.identify("user-1", {"email": "ada@example.com", "plan": "pro"})
        for url in ("/", "/pricing", "/signup"):
            await tracker.enqueue("user-1", "page_viewed", {"url": url})
    print(tracker.stats())


if __name__ == "__main__":
    asyncio.run(main(Settings.from_env()))
