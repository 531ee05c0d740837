"""What a tracker expects of a transport."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import attrs

from cio_batch.operations import Operation
from cio_batch.verdicts import Judgement


@attrs.frozen
class Call:
    """What a transport is told about the sending of a chunk.

    Attributes:
        attempt: How often this chunk was sent before; 0 for the first time.
        gate: To be awaited before each HTTP call: it waits for the rate limit and for a pause to end, and counts
            the call.
    """

    attempt: int
    gate: Callable[[], Awaitable[None]]


class Transport(Protocol):
    """Sends chunks. One object serves one tracker; its limits are plain attributes.

    One with a method ``update_credentials(site_id, track_api_key)`` serves ``tracker.update_credentials``, too.
    """

    @property
    def max_operations(self) -> int:
        """How many operations a chunk should have at most, unless the user says otherwise."""
        ...

    @property
    def max_bytes(self) -> int:
        """How many bytes a body may have, envelope included."""
        ...

    @property
    def envelope_bytes(self) -> int:
        """How many of them the envelope takes."""
        ...

    @property
    def apart(self) -> frozenset[str]:
        """Kinds that must not share a chunk with others."""
        ...

    @property
    def max_apart(self) -> int:
        """How many of those a chunk should have at most."""
        ...

    @property
    def check(self) -> Callable[[Operation], None] | None:
        """Called for each operation at the door; raises ``InvalidOperationError`` for what this wire cannot say.

        ``None`` when it can say everything.
        """
        ...

    async def send(self, operations: Sequence[Operation], call: Call) -> Judgement:
        """Send the operations, in order, and judge the answer. Never raises for a fault of the network or service.

        Cancellation: The calls are abandoned; the operations are undecided.
        """
        ...

    async def close(self) -> None:
        """Close what is open. Idempotent; a later ``send`` opens it again."""
        ...
