"""cio_batch: an asyncio batching tracker for Customer.io.

    async with CioBatchTracker() as tracker:                   # CUSTOMERIO_SITE_ID, CUSTOMERIO_TRACK_API_KEY
        await tracker.enqueue("user-1", "page_viewed", {"url": "/pricing"})

The rooms of this house; each imports only what stands above it.

    errors.py        the exception tree, by what the caller can do
    settings.py      credentials, hosts, HTTP options, retries; from_env()
    operations.py    everything that can be said to Customer.io, checked and encoded once          (pure)
    chunks.py        a backlog that forms chunks: size, order per person                           (pure)
    verdicts.py      what an answer means for each operation, and what to do next                  (pure)
    stats.py         counters, frozen pictures                                                     (pure)
    retries.py       waits between attempts; with_retry(); the only place that knows backoff
    hooks.py         on_settled, before_enqueue
    transports/      the only aiohttp: http.py, track_v2.py, track_v1.py
    delivery.py      one chunk's way: semaphore, rate limit, retries, splits
    queues.py        the bounded asyncio.Queue, made for bulk
    signals.py       SIGTERM, chained
    tracker.py       CioBatchTracker: the queue, the flush task, the lifecycle
    simulator/       a local Customer.io for demos, tests and development; knows nothing of the rest
    cli/             cio-batch demo | send | simulate
"""

from cio_batch import operations
from cio_batch._version import __version__
from cio_batch.errors import (
    ApiError,
    CioBatchError,
    ConfigurationError,
    DeliveryError,
    InvalidOperationError,
    QueueFullError,
    TrackerClosedError,
    UnreachableError,
    WrongLoopError,
)
from cio_batch.hooks import SettledChunk, SettledOperation
from cio_batch.operations import (
    AnonymousId,
    CioId,
    CioObjectId,
    DeliveryId,
    Draft,
    Email,
    ObjectId,
    Phone,
    Relationship,
)
from cio_batch.retries import with_retry
from cio_batch.settings import HttpOptions, RetryOptions, Settings
from cio_batch.stats import Report, Stats
from cio_batch.tracker import CioBatchTracker
from cio_batch.verdicts import Verdict

__all__ = [
    "AnonymousId",
    "ApiError",
    "CioBatchError",
    "CioBatchTracker",
    "CioId",
    "CioObjectId",
    "ConfigurationError",
    "DeliveryError",
    "DeliveryId",
    "Draft",
    "Email",
    "HttpOptions",
    "InvalidOperationError",
    "ObjectId",
    "Phone",
    "QueueFullError",
    "Relationship",
    "Report",
    "RetryOptions",
    "Settings",
    "SettledChunk",
    "SettledOperation",
    "Stats",
    "TrackerClosedError",
    "UnreachableError",
    "Verdict",
    "WrongLoopError",
    "__version__",
    "operations",
    "with_retry",
]
