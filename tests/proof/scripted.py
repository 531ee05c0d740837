"""What stands on either side of a tracker in these proofs: a service that keeps account, and a disk in memory.

Both implement the public protocols of a transport and a spool.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence

import attrs
import orjson

from cio_batch import SettledChunk, Verdict
from cio_batch.dead_letters import Refusal
from cio_batch.errors import SpoolError, SpoolLockedError
from cio_batch.operations import Operation, PersonId, decode
from cio_batch.spools import Contents, Page, Written
from cio_batch.spools.base import Receive
from cio_batch.transports import Call
from cio_batch.verdicts import Judgement

Event = tuple[str, int]
"""A person and the number of one of their events; the numbers of a person grow."""


def event_of(body: bytes) -> Event:
    """Which event these bytes are."""
    said = orjson.loads(body)
    return said["identifiers"]["id"], said["attributes"]["n"]


Decide = Callable[[Sequence[Operation]], Awaitable[Judgement]]


class Service:
    """A transport whose service accepts what ``decide`` says, and that checks what it may rely on.

    Attributes:
        calls: How many were made.
        delivered: What was answered as delivered. The answer reached the tracker: it must never be sent again.
        rejected: Likewise.
        seen: The bytes of everything that ever arrived.
        arrivals: First arrivals, by person.
        out: Who is in a call at this moment.
        violations: What must not happen and did.
    """

    max_bytes: int = 499_999
    envelope_bytes: int = 0
    apart: frozenset[str] = frozenset()
    max_apart: int = 1
    check: Callable[[Operation], None] | None = None

    def __init__(self, decide: Decide, *, max_operations: int = 2_000) -> None:
        self.decide = decide
        self.max_operations = max_operations
        self.calls = 0
        self.delivered: set[Event] = set()
        self.rejected: set[Event] = set()
        self.seen: dict[Event, bytes] = {}
        self.arrivals: defaultdict[str, list[int]] = defaultdict(list)
        self.out: set[str] = set()
        self.violations: list[str] = []

    async def send(self, operations: Sequence[Operation], call: Call) -> Judgement:
        """Take note, wait for the decision, and take note of it in the very step in which the tracker hears of it."""
        await call.gate()
        self.calls += 1
        events = [event_of(operation.body) for operation in operations]
        people = {person for person, _ in events}
        self._check(operations, events, people)
        self.out |= people
        try:
            judgement = (await self.decide(operations)).bounded(len(events))
        finally:
            self.out -= people
        for index, event in enumerate(events):
            if index in judgement.rejected:
                self.rejected.add(event)
            elif index < judgement.decided:
                self.delivered.add(event)
        return judgement

    def _check(self, operations: Sequence[Operation], events: list[Event], people: set[str]) -> None:
        if len(operations) > self.max_operations:
            self.violations.append(f"a call of {len(operations)} operations")
        if self.out & people:
            self.violations.append(f"two calls at a time with {self.out & people}")
        if again := [event for event in events if event in self.delivered or event in self.rejected]:
            self.violations.append(f"sent again after the answer: {again}")
        for operation, (person, n) in zip(operations, events, strict=True):
            body = self.seen.setdefault((person, n), operation.body)
            if body is not operation.body and body != operation.body:
                self.violations.append(f"other bytes of {person, n}")
            known = self.arrivals[person]
            if not known or n > known[-1]:
                known.append(n)
            elif n not in known:
                self.violations.append(f"{person, n} came after {known[-1]}")

    def forget_answers(self, events: set[Event]) -> None:
        """The tracker died before it could note these answers: they may come again."""
        self.delivered -= events
        self.rejected -= events

    async def close(self) -> None:
        """Close nothing."""
        await asyncio.sleep(0)


class Ledger:
    """What ``on_settled`` was told: the verdict and the reason of each event."""

    def __init__(self) -> None:
        self.verdicts: dict[Event, Verdict] = {}
        self.reasons: dict[Event, str] = {}
        self.twice: list[Event] = []

    def __call__(self, chunk: SettledChunk) -> None:
        for one in chunk.operations:
            event = event_of(one.body)
            if event in self.verdicts:
                self.twice.append(event)
            self.verdicts[event] = one.verdict
            self.reasons[event] = one.reason

    def having(self, verdict: Verdict) -> set[Event]:
        """All that got this verdict."""
        return {event for event, known in self.verdicts.items() if known is verdict}


@attrs.define(eq=False)
class Disk:
    """What survives a program.

    Attributes:
        rows: Operations by their number.
        dead: Dead letters likewise.
        last_number: The highest that was ever used.
        owner: Who has it open.
    """

    rows: dict[int, bytes] = attrs.field(factory=dict[int, bytes])
    dead: dict[int, bytes] = attrs.field(factory=dict[int, bytes])
    last_number: int = 0
    owner: object = None

    def events(self) -> list[Event]:
        """The operations, in order."""
        return [event_of(body) for _, body in sorted(self.rows.items())]


class MemorySpool:
    """A spool on a ``Disk``: it commits in groups, after a while, and loses what was not committed when it dies.

    Args:
        disk: Where it writes.
        seconds: What a commit takes, or a reading.
        max_bytes: What it may hold.
    """

    max_age: float | None = None

    def __init__(self, disk: Disk, seconds: float = 0.003, max_bytes: int = 1_000_000_000) -> None:
        self.max_bytes = max_bytes
        self._disk = disk
        self._seconds = seconds
        self._appended: list[Operation] = []
        self._acknowledged: list[int] = []
        self._refused: list[tuple[int, Refusal]] = []
        self._taken: set[int] = set()  # numbers that were purged
        self._committing: asyncio.Handle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def unwritten(self) -> set[int]:
        """Numbers of rows whose end was said and is not written."""
        return {*self._acknowledged, *(number for number, _ in self._refused)}

    async def open(self, receive: Receive, purged: Callable[[Sequence[int]], None]) -> Contents:
        """Open it; like a file, it belongs to one owner at a time."""
        if self._disk.owner is self:
            raise SpoolError("open already")
        if self._disk.owner is not None:
            raise SpoolLockedError("belongs to somebody else", pid=None)
        self._disk.owner = self
        self._loop = asyncio.get_running_loop()
        self._receive, self._purged = receive, purged
        await asyncio.sleep(self._seconds)
        return Contents(len(self._disk.rows), self._disk.last_number, self._used())

    def append(self, operation: Operation) -> None:
        """Write an operation with the next group."""
        self._appended.append(operation)
        self._schedule()

    def acknowledge(self, numbers: Sequence[int]) -> None:
        """Likewise."""
        self._acknowledged += numbers
        self._schedule()

    def bury(self, refusals: Sequence[tuple[int, Refusal]]) -> None:
        """Likewise."""
        self._refused += refusals
        self._schedule()

    async def read(self, after: int, most: int, most_bytes: int) -> Page:
        """Read what is committed."""
        await asyncio.sleep(self._seconds)
        found: list[Operation] = []
        for number, body in sorted(self._disk.rows.items()):
            if number > after and len(found) < most and (most_bytes > 0 or not found):
                found.append(decode(body, number))
                most_bytes -= len(body)
        return Page(found)

    async def last_before(self, moment: float) -> int:
        """Nothing is ever too old."""
        return 0

    async def purge(self, person: PersonId) -> int:
        """Remove all operations of a person, after what was said before is written."""
        await asyncio.sleep(self._seconds)
        self._write()
        numbers = [number for number, body in self._disk.rows.items() if event_of(body)[0] == person]
        for number in numbers:
            del self._disk.rows[number]
        self._taken.update(numbers)
        if numbers:
            self._purged(numbers)
        return len(numbers)

    async def close(self, timeout: float) -> bool:
        """Write all that was said; a cancel does not keep a thread from doing so either."""
        if self._disk.owner is self:
            if self._committing is not None:
                self._committing.cancel()
            self._write()
            self._disk.owner = None
        await asyncio.sleep(self._seconds)
        return True

    def die(self) -> None:
        """The process is killed."""
        if self._committing is not None:
            self._committing.cancel()
        self._disk.owner = None

    def forget_parent(self) -> None:
        """Nothing belongs to the parent."""

    def _used(self) -> int:
        return sum(map(len, self._disk.rows.values())) + sum(map(len, self._disk.dead.values()))

    def _schedule(self) -> None:
        if self._committing is None and self._loop is not None:
            self._committing = self._loop.call_later(self._seconds, self._write)

    def _write(self) -> None:
        self._committing = None
        if not (self._appended or self._acknowledged or self._refused):
            return
        disk = self._disk
        for operation in self._appended:
            assert operation.number > disk.last_number
            disk.rows[operation.number], disk.last_number = operation.body, operation.number
        for number in set(self._acknowledged) - self._taken:
            del disk.rows[number]
        for number in {number for number, _ in self._refused} - self._taken:
            disk.dead[number] = disk.rows.pop(number)
        count = len(self._appended)
        self._appended, self._acknowledged, self._refused = [], [], []
        self._receive(Written(count, None, self._used(), len(disk.dead), 0))
