"""What a tracker expects of a spool: a durable queue beneath it.

The tracker gives each operation a number, ever growing, and the spool keeps them in that order. What the tracker says
(``append``, ``acknowledge``, ``bury``) returns at once; the spool writes it down in the order in which it was said, as
many things at a time as came meanwhile, and reports in the tracker's loop. What the tracker asks (``read``,
``last_before``) is answered after all that was said before the question has been written, or reported as a fault.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import attrs

from cio_batch.dead_letters import Refusal
from cio_batch.errors import SpoolError
from cio_batch.operations import Operation, PersonId


@attrs.frozen
class Contents:
    """What a spool held when it was opened.

    Attributes:
        operations: How many operations wait in it.
        last_number: The highest number that stands in it, 0 for none; new ones are higher.
        used_bytes: What it takes on disk.
        quarantined: Rows that are no operation any more and were set aside, by this opening or an earlier one.
        dead_letters: How many it keeps.
    """

    operations: int
    last_number: int
    used_bytes: int
    quarantined: int = 0
    dead_letters: int = 0


@attrs.frozen
class Written:
    """What became of things that were said to a spool.

    Attributes:
        appended: How many of the operations that were appended, oldest first, this is about.
        error: Why they were not written, ``None`` when they are durable.
        used_bytes: What the spool takes on disk now; for an instant, under load, what it takes at most.
        dead_letters: How many it keeps now.
        quarantined: How many rows are set aside now.
        fault: Why acknowledgements cannot be written at the moment; they are tried again.
    """

    appended: int
    error: SpoolError | None
    used_bytes: int
    dead_letters: int
    quarantined: int
    fault: str | None = None


@attrs.frozen
class Page:
    """Operations that were read from a spool.

    Attributes:
        operations: In order.
        lost: How many of those in between were set aside, because they are no operation any more.
    """

    operations: Sequence[Operation]
    lost: int = 0


Receive: TypeAlias = Callable[[Written], None]


class Spool(Protocol):
    """A durable queue for one tracker. It is made anywhere, and opens nothing before :meth:`open`."""

    @property
    def max_bytes(self) -> int:
        """How many bytes it may take; the tracker's overflow policy guards it."""
        ...

    @property
    def max_age(self) -> float | None:
        """Seconds after which an operation that was not delivered becomes a dead letter."""
        ...

    async def open(self, receive: Receive, purged: Callable[[Sequence[int]], None]) -> Contents:
        """Open it for the running loop.

        Args:
            receive: Called in the loop when something was written, or could not be.
            purged: Called in the loop with the numbers of operations that were removed from under the tracker.

        Raises:
            SpoolLockedError: It belongs to somebody else.
            SpoolError: It cannot be read.
        """
        ...

    def append(self, operation: Operation) -> None:
        """Write an operation; its number is higher than every earlier one."""
        ...

    def acknowledge(self, numbers: Sequence[int]) -> None:
        """Remove operations that need not be sent any more."""
        ...

    def bury(self, refusals: Sequence[tuple[int, Refusal]]) -> None:
        """Make dead letters of operations, by their number."""
        ...

    async def read(self, after: int, most: int, most_bytes: int) -> Page:
        """Read operations with a higher number than ``after``, in order: at least one, if there is any."""
        ...

    async def last_before(self, moment: float) -> int:
        """Return the highest number of those accepted before a moment (unix seconds); 0 for none."""
        ...

    async def purge(self, person: PersonId) -> int:
        """Remove all operations and dead letters of a person; return how many."""
        ...

    async def close(self, timeout: float) -> bool:
        """Write all that was said, and let go of it; say whether that was done within ``timeout`` seconds."""
        ...

    def forget_parent(self) -> None:
        """Let go of what belongs to the parent process; called after a fork."""
        ...
