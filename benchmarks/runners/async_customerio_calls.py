"""async-customerio: one call per event, ten at a time."""

import asyncio

from async_customerio import AsyncCustomerIO
from job import Job, at_a_time, measure


class PlainCustomerIO(AsyncCustomerIO):
    """By HTTP: its options know https alone, which would only slow it down."""

    @staticmethod
    def setup_base_url(host: str, port: int, prefix: str) -> str:
        """Return the origin and the prefix."""
        return f"http://{host}:{port}/{prefix.strip('/')}"


async def send(job: Job, events: int) -> None:
    """Call ten at a time."""
    async with PlainCustomerIO("site", "key", host=job.host, port=job.port) as client:
        await at_a_time(10, (client.track(person, "page_viewed", **job.data) for person in job.people(events)))


if __name__ == "__main__":
    measure("async-customerio", lambda job, events: asyncio.run(send(job, events)))
