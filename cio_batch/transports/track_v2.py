"""Track v2: many operations in one ``POST /api/v2/batch``. The default, because every call costs the same.

An operation is kept in the form of this wire, so a body is its operations joined. What v2 cannot say, anonymous
events, goes by its v1 call, in chunks of its own.

Source: Track API, ``POST /api/v2/batch`` ("must be smaller than 500kb ... each ... 32kb or smaller"; kb read as
1,000 bytes, the stricter way).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from cio_batch.operations import ANONYMOUS_KINDS, Operation, join
from cio_batch.settings import Settings
from cio_batch.transports.base import Call
from cio_batch.transports.http import PiecewiseBody, basic_credentials
from cio_batch.transports.track_v1 import open_track_client, send_in_order
from cio_batch.verdicts import Judgement, judge_batch

_HEAD: Final = b'{"batch":['
_TAIL: Final = b"]}"
_PIECE_BYTES: Final = 64_000  # well below what malloc takes from the operating system each time


class TrackV2Transport:
    """Sends chunks to ``/api/v2/batch``.

    ``max_operations`` is 2,000: a call costs about 115 microseconds of CPU, so beyond that an event gets no cheaper,
    while a refused body takes longer to bisect. With the usual 250 to 500 bytes, 500 KB are full before.

    Args:
        settings: Credentials, host, HTTP options.

    Raises:
        ConfigurationError: Names the credentials that are missing.
    """

    max_operations: int = 2_000
    max_bytes: int = 499_999
    envelope_bytes: int = len(_HEAD) + len(_TAIL)
    apart: frozenset[str] = ANONYMOUS_KINDS
    max_apart: int = 50
    check: Callable[[Operation], None] | None = None

    def __init__(self, settings: Settings) -> None:
        self._client = open_track_client(settings)

    async def send(self, operations: Sequence[Operation], call: Call) -> Judgement:
        """Send one batch (or, for anonymous events, their calls in order) and judge the answer."""
        if operations[0].kind in ANONYMOUS_KINDS:
            return await send_in_order(self._client, operations, call)
        size = self.envelope_bytes + sum(map(len, operations)) + len(operations) - 1
        body = PiecewiseBody(functools.partial(_pieces, operations, size), size)
        await call.gate()
        answer = await self._client.request("POST", "/api/v2/batch", body, attempt=call.attempt)
        return judge_batch(answer, len(operations), time.time())

    def update_credentials(self, site_id: str, track_api_key: str) -> None:
        """Use other credentials from now on, instead of those in the settings or of their function."""
        self._client.authorize(basic_credentials(site_id, track_api_key))

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


def _pieces(operations: Sequence[Operation], size: int) -> Iterator[bytes]:
    """The body of a batch, in pieces of about ``_PIECE_BYTES``."""
    step = max(1, len(operations) * _PIECE_BYTES // size)
    before = _HEAD
    for start in range(0, len(operations), step):
        yield before + join(list(operations[start : start + step]))
        before = b","
    yield _TAIL
