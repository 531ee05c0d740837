"""What the tests of the spool share: operations whose bytes are found again on disk, and a spool that reports."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson

from cio_batch import operations as ops
from cio_batch.operations import Operation
from cio_batch.spools import Contents, SqliteSpool, Written

from ..conftest import until

_ULID = "01J0000000000000000{:07d}"


def token(number: int) -> bytes:
    """Text that stands in every part of an operation, and nowhere else."""
    return b"<%d>" % (number * 7_919 + 1_000_000_007)


def event(number: int, person: str = "", size: int = 200) -> Operation:
    """An event whose bytes, wherever they are cut, hold its token."""
    mark = token(number).decode()
    wire: dict[str, Any] = {
        "type": "person",
        "action": "event",
        "identifiers": {"id": person or f"user-{mark}"},
        "name": "e",
        "timestamp": 1,
        "id": _ULID.format(number),
        "attributes": {"t": mark * (size // len(mark) + 1)},
    }
    return ops.decode(orjson.dumps(wire), number)


def deletion(number: int) -> Operation:
    """An operation whose repeat could undo what follows."""
    wire = {"type": "person", "action": "delete", "identifiers": {"id": token(number).decode()}}
    return ops.decode(orjson.dumps(wire), number)


def mixed(numbers: Sequence[int], seed: int = 0) -> list[Operation]:
    """Events of all sizes, some of several pages, and a few deletions."""
    dice = random.Random(seed)
    sizes = (60, 200, 200, 700, 5_000, 20_000)
    weights = (20, 30, 30, 15, 4, 1)
    return [
        deletion(number) if number % 9 == 0 else event(number, size=dice.choices(sizes, weights)[0])
        for number in numbers
    ]


class Opened:
    """An open spool and what it reported."""

    def __init__(self, spool: SqliteSpool) -> None:
        self.spool = spool
        self.reports: list[Written] = []
        self.purged: list[int] = []
        self.contents = Contents(0, 0, 0)

    @property
    def durable(self) -> int:
        return sum(each.appended for each in self.reports if each.error is None)

    @property
    def refused(self) -> int:
        return sum(each.appended for each in self.reports if each.error is not None)

    async def append(self, *operations: Operation) -> None:
        """Append, and wait for the verdict on each."""
        before = self.durable + self.refused
        for operation in operations:
            self.spool.append(operation)
        await until(lambda: self.durable + self.refused >= before + len(operations), within=30)

    async def acknowledge(self, *numbers: int) -> Written:
        """Acknowledge, and wait for the next report."""
        before = len(self.reports)
        self.spool.acknowledge(numbers)
        await until(lambda: len(self.reports) > before, within=30)
        return self.reports[-1]

    async def read_all(self, most: int = 100) -> tuple[list[Operation], int]:
        """All operations, and how many were lost in between."""
        operations: list[Operation] = []
        lost = after = 0
        while True:
            page = await self.spool.read(after, most, 100_000)
            lost += page.lost
            if not page.operations:
                return operations, lost
            operations += page.operations
            after = operations[-1].number


@asynccontextmanager
async def opened(path: Path, **options: Any) -> AsyncIterator[Opened]:
    """Open a spool and close it again."""
    async with asyncio.timeout(60):
        found = Opened(SqliteSpool(path, **options))
        try:
            found.contents = await found.spool.open(found.reports.append, found.purged.extend)
            yield found
        finally:
            await found.spool.close(10)


def kept_files(path: Path) -> list[Path]:
    """The damaged files that were kept beside a spool."""
    return sorted(path.parent.glob(f"{path.name}.damaged-*"))
