"""Direct calls, for where the caller must know the answer: unqueued, awaited, one HTTP call each.

calls.py      what only Track v1 can say: segments, forms, metrics, unsubscribes                          (pure)
messages.py   what a transactional message may say                                                       (pure)
base.py       what both clients share: a call, its retries, its errors, the life of the connections
track.py      ``TypedCioClient``: the Track API, v1
app.py        ``CioAppClient``: transactional messages and broadcasts
"""

from cio_batch.clients.app import BroadcastReceipt, CioAppClient
from cio_batch.clients.messages import (
    EmailRequest,
    InAppRequest,
    InboxMessageRequest,
    MessageReceipt,
    PushRequest,
    SmsRequest,
    WhatsAppRequest,
)
from cio_batch.clients.track import AccountRegion, TypedCioClient

__all__ = [
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
]
