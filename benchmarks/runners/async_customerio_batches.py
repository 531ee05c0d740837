"""async-customerio: its raw v2 batches, 500 events in each, ten at a time; there is no queue in front of them."""

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any

from async_customerio_calls import PlainCustomerIO
from job import Job, at_a_time, measure


def batches(job: Job, events: int) -> Iterator[list[Any]]:
    """Make the entities of each batch."""
    people = job.people(events)
    while batch := [
        {
            "type": "person",
            "action": "event",
            "identifiers": {"id": person},
            "name": "page_viewed",
            "attributes": job.data,
        }
        for person in itertools.islice(people, 500)
    ]:
        yield batch


async def send(job: Job, events: int) -> None:
    """Call ten at a time."""
    async with PlainCustomerIO("site", "key", host=job.host, port=job.port) as client:
        await at_a_time(10, (client.v2.send_batch(batch) for batch in batches(job, events)))


measure("async-customerio", lambda job, events: asyncio.run(send(job, events)))
