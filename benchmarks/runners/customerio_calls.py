"""The official client: one synchronous call per event."""

from customerio import CustomerIO
from job import Job, measure


def send(job: Job, events: int) -> None:
    """Call one after another."""
    client = CustomerIO("site", "key")
    client.base_url = f"{job.url}/api/v1"  # its options know https alone, which would only slow it down
    for person in job.people(events):
        client.track(person, "page_viewed", job.data)
    client.close()


measure("customerio", send)
