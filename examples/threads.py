"""Events from other threads: the tracker lives in its loop, ``enqueue_threadsafe`` may be called anywhere.

Run it like ``quickstart.py``: ``python examples/threads.py``.
"""

import asyncio

from cio_batch import CioBatchTracker, Settings


def resize_images(tracker: CioBatchTracker, worker: int) -> None:
    """Do blocking work in a thread and report on it."""
    for image in range(10):
        accepted = tracker.enqueue_threadsafe(f"worker-{worker}", "image_resized", {"image": image})
        accepted.result(timeout=5)  # done once the event is accepted; raises what enqueue would raise


async def main(settings: Settings) -> None:
    """Start the tracker here, in its loop, before the threads use it."""
    async with CioBatchTracker(settings) as tracker:
        await asyncio.gather(*(asyncio.to_thread(resize_images, tracker, worker) for worker in range(4)))
    print(tracker.stats().delivered, "events delivered from 4 threads")


if __name__ == "__main__":
    asyncio.run(main(Settings.from_env()))
