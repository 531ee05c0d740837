"""segment-analytics-python at its default settings, with room for all events: when its queue is full, it drops."""

from job import Job, measure
from segment.analytics.client import Client


def send(job: Job, events: int) -> None:
    """Enqueue and flush."""
    client = Client("key", host=job.url, max_queue_size=events)
    for person in job.people(events):
        client.track(person, "page_viewed", job.data)
    client.flush()
    client.join()


measure("segment-analytics-python", send)
