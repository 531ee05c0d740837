"""The edge of the library: what turns a chunk into HTTP and the answer into a judgement.

base.py       the protocol of a transport
http.py       one HTTP call: session, credentials, redirects, errors
track_v2.py   many operations in one call (the default)
track_v1.py   one call per operation
discard.py    nothing is sent
"""

from cio_batch.transports.base import Call, Transport
from cio_batch.transports.discard import DiscardTransport
from cio_batch.transports.track_v1 import TrackV1Transport
from cio_batch.transports.track_v2 import TrackV2Transport

__all__ = ["Call", "DiscardTransport", "TrackV1Transport", "TrackV2Transport", "Transport"]
