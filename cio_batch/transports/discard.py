"""A transport that sends nothing, for development: everything is checked, counted and forgotten."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cio_batch.operations import Operation
from cio_batch.transports.base import Call
from cio_batch.verdicts import Judgement


class DiscardTransport:
    """Counts every operation as delivered without sending it. A disabled tracker uses it.

    Args:
        check: What another wire would refuse at the door, so that development finds it too.
    """

    max_operations: int = 2_000
    max_bytes: int = 499_999
    envelope_bytes: int = 0
    apart: frozenset[str] = frozenset()
    max_apart: int = 1

    def __init__(self, check: Callable[[Operation], None] | None = None) -> None:
        self.check = check

    async def send(self, operations: Sequence[Operation], call: Call) -> Judgement:
        """Send nothing."""
        await call.gate()
        return Judgement(len(operations))

    def update_credentials(self, site_id: str, track_api_key: str) -> None:
        """Use none."""

    async def close(self) -> None:
        """Close nothing."""
