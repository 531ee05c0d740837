"""A ``CioBatchTracker`` at its default settings: validation, ids, order per person, bounds and counts are on."""

import asyncio

from job import Job, measure

from cio_batch import CioBatchTracker, Settings


async def send(job: Job, events: int) -> None:
    """Enqueue and flush."""
    settings = Settings(site_id="site", track_api_key="key", track_url=job.url)
    async with CioBatchTracker(settings) as tracker:
        for person in job.people(events):
            await tracker.enqueue(person, "page_viewed", job.data)
        await tracker.flush()
        assert tracker.stats().delivered == events


measure("cio-batch", lambda job, events: asyncio.run(send(job, events)))
