"""cio_batch: an asyncio batching tracker for Customer.io.

    async with CioBatchTracker() as tracker:                   # CUSTOMERIO_SITE_ID, CUSTOMERIO_TRACK_API_KEY
        await tracker.enqueue("user-1", "page_viewed", {"url": "/pricing"})

The rooms of this house; each imports only what stands above it.

    errors.py        the exception tree, by what the caller can do
    settings.py      credentials, hosts, HTTP options, retries; from_env()
    values.py        the types that a declared field may have: what fits, how it is written        (pure)
    compiled.py      checks and writers that are written for the fields of one class               (pure)
    annotations.py   from an annotation to the type that it declares                               (pure)
    events.py        typed events and attributes of people                                         (pure)
    speedups.py      the usual event's way, compiled from _speedups.c where there is a compiler     (pure)
    operations.py    everything that can be said to Customer.io, checked and encoded once          (pure)
    taxonomy.py      all events that there are: plain pairs checked, JSON Schema written           (pure)
    generation.py    JSON Schema → Python source of typed events                                   (pure)
    people.py        whom operations are about, as a set: who is in a call that is out
    chunks.py        a backlog that forms chunks: size, order per person                           (pure)
    verdicts.py      what an answer means for each operation, and what to do next                  (pure)
    stats.py         counters, frozen pictures                                                     (pure)
    dead_letters.py  what was refused or given up, as it is kept                                   (pure)
    letter_files.py  dead letters in files: appended by some processes while another one rewrites them
    retries.py       waits between attempts; with_retry(); the only place that knows backoff
    ids.py           the ids of events, different ones in every process
    hooks.py         on_settled, before_enqueue
    transports/      the only aiohttp: http.py, track_v2.py, track_v1.py
    clients/         TypedCioClient, CioAppClient: direct calls, awaited one by one
    spools/          durable queues beneath a tracker: SqliteSpool
    dead_letter_file.py  DeadLetterFile, written by a thread of its own
    delivery.py      one chunk's way: semaphore, rate limit, retries, splits
    queues.py        the bounded asyncio.Queue, made for bulk
    spooling.py      the way through a spool: from the door to the disk, and from there into the queue
    signals.py       SIGTERM, chained
    tracker.py       CioBatchTracker: the queue, the flush task, the lifecycle
    factory.py       CioClientFactory: one client of each kind per process
    simulator/       a local Customer.io for demos, tests and development; knows nothing of the rest
    cli/             cio-batch demo | send | dead-letters | replay | purge | simulate | taxonomy | tune
"""

from typing import TYPE_CHECKING, Final

from cio_batch._version import __version__

# Everything else is imported when it is first asked for: who sends events does not pay for the clients and the factory.
# Type checkers read the imports, Python the table; a test holds them together.
if TYPE_CHECKING:
    from cio_batch import operations
    from cio_batch.clients import (
        AccountRegion,
        BroadcastReceipt,
        CioAppClient,
        EmailRequest,
        InAppRequest,
        InboxMessageRequest,
        MessageReceipt,
        PushRequest,
        SmsRequest,
        TypedCioClient,
        WhatsAppRequest,
    )
    from cio_batch.dead_letter_file import DeadLetterFile
    from cio_batch.dead_letters import DeadLetter, Refusal
    from cio_batch.errors import (
        ApiError,
        CioBatchError,
        ConfigurationError,
        DeliveryError,
        ErrorDetail,
        EventSchemaError,
        InvalidOperationError,
        QueueFullError,
        SendOutcomeUnknownError,
        SpoolError,
        SpoolLockedError,
        TrackerClosedError,
        UnreachableError,
        WrongLoopError,
    )
    from cio_batch.events import CioEvent, UserAttributes
    from cio_batch.factory import CioClientFactory
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
    from cio_batch.retries import RetryAttempt, with_retry
    from cio_batch.settings import AppRateLimits, HttpOptions, RetryOptions, Settings
    from cio_batch.stats import Report, Stats
    from cio_batch.taxonomy import Taxonomy
    from cio_batch.tracker import CioBatchTracker
    from cio_batch.verdicts import Verdict

__all__ = [
    "AccountRegion",
    "AnonymousId",
    "ApiError",
    "AppRateLimits",
    "BroadcastReceipt",
    "CioAppClient",
    "CioBatchError",
    "CioBatchTracker",
    "CioClientFactory",
    "CioEvent",
    "CioId",
    "CioObjectId",
    "ConfigurationError",
    "DeadLetter",
    "DeadLetterFile",
    "DeliveryError",
    "DeliveryId",
    "Draft",
    "Email",
    "EmailRequest",
    "ErrorDetail",
    "EventSchemaError",
    "HttpOptions",
    "InAppRequest",
    "InboxMessageRequest",
    "InvalidOperationError",
    "MessageReceipt",
    "ObjectId",
    "Phone",
    "PushRequest",
    "QueueFullError",
    "Refusal",
    "Relationship",
    "Report",
    "RetryAttempt",
    "RetryOptions",
    "SendOutcomeUnknownError",
    "Settings",
    "SettledChunk",
    "SettledOperation",
    "SmsRequest",
    "SpoolError",
    "SpoolLockedError",
    "Stats",
    "Taxonomy",
    "TrackerClosedError",
    "TypedCioClient",
    "UnreachableError",
    "UserAttributes",
    "Verdict",
    "WhatsAppRequest",
    "WrongLoopError",
    "__version__",
    "operations",
    "with_retry",
]

_ROOMS: Final[dict[str, tuple[str, ...]]] = {
    "clients": (
        "AccountRegion",
        "BroadcastReceipt",
        "CioAppClient",
        "EmailRequest",
        "InAppRequest",
        "InboxMessageRequest",
        "MessageReceipt",
        "PushRequest",
        "SmsRequest",
        "TypedCioClient",
        "WhatsAppRequest",
    ),
    "dead_letter_file": ("DeadLetterFile",),
    "dead_letters": (
        "DeadLetter",
        "Refusal",
    ),
    "errors": (
        "ApiError",
        "CioBatchError",
        "ConfigurationError",
        "DeliveryError",
        "ErrorDetail",
        "EventSchemaError",
        "InvalidOperationError",
        "QueueFullError",
        "SendOutcomeUnknownError",
        "SpoolError",
        "SpoolLockedError",
        "TrackerClosedError",
        "UnreachableError",
        "WrongLoopError",
    ),
    "events": (
        "CioEvent",
        "UserAttributes",
    ),
    "factory": ("CioClientFactory",),
    "hooks": (
        "SettledChunk",
        "SettledOperation",
    ),
    "operations": (
        "AnonymousId",
        "CioId",
        "CioObjectId",
        "DeliveryId",
        "Draft",
        "Email",
        "ObjectId",
        "Phone",
        "Relationship",
    ),
    "retries": (
        "RetryAttempt",
        "with_retry",
    ),
    "settings": (
        "AppRateLimits",
        "HttpOptions",
        "RetryOptions",
        "Settings",
    ),
    "stats": (
        "Report",
        "Stats",
    ),
    "taxonomy": ("Taxonomy",),
    "tracker": ("CioBatchTracker",),
    "verdicts": ("Verdict",),
}
_HOMES: Final = {name: room for room, names in _ROOMS.items() for name in names}


if not TYPE_CHECKING:  # to a type checker it would say that every name exists

    def __getattr__(name: str) -> object:
        import importlib

        room = _HOMES.get(name, name)  # a room may be asked for itself: cio_batch.operations
        absent = AttributeError(f"module {__name__!r} has no attribute {name!r}")
        if room.startswith("_"):
            raise absent
        try:
            module = importlib.import_module(f"cio_batch.{room}")
        except ModuleNotFoundError as error:
            if error.name == f"cio_batch.{room}":
                raise absent from None
            raise
        value = globals()[name] = getattr(module, name) if name in _HOMES else module
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
