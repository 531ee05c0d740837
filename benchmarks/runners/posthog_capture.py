"""PostHog at its default settings, with room for all events: when its queue is full, it drops."""

from job import Job, measure
from posthog import Posthog


def send(job: Job, events: int) -> None:
    """Enqueue and flush."""
    client = Posthog("key", host=job.url, max_queue_size=events)
    for person in job.people(events):
        client.capture("page_viewed", distinct_id=person, properties=job.data)
    client.flush(timeout_seconds=None)
    client.shutdown()


measure("posthog", send)
