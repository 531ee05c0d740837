"""A program that keeps its events on disk, and looks after what was refused."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import assert_type

from cio_batch import CioBatchTracker, DeadLetter, Refusal, Settings, SpoolError, SpoolLockedError
from cio_batch.operations import Operation, PersonId
from cio_batch.simulator import Simulator
from cio_batch.spools import Contents, Page, Spool, SqliteSpool, Written

log = logging.getLogger("shop")
refused: list[str] = []


def keep(letter: DeadLetter) -> None:
    """Write down what was not delivered."""
    why: Refusal = letter.last
    refused.append(f"{letter.kind} {letter.name} {letter.id}: {why.verdict}, {why.reason} {why.field} {why.status}")
    log.info("%s %d %f %s %d", why.message, why.attempts, why.at, letter.accepted_at, letter.number)
    assert DeadLetter.from_line(letter.to_line()) == letter


class Mirrored:
    """A spool of the user's own: another one, whose losses are counted."""

    def __init__(self, inner: Spool) -> None:
        self._inner = inner
        self.max_bytes = inner.max_bytes
        self.max_age = inner.max_age
        self.errors = 0

    async def open(self, receive: Callable[[Written], None], purged: Callable[[Sequence[int]], None]) -> Contents:
        """Open the other one."""

        def count(written: Written) -> None:
            self.errors += written.error is not None
            log.debug("%d %d %d %s", written.used_bytes, written.dead_letters, written.quarantined, written.fault)
            receive(written)

        contents = await self._inner.open(count, purged)
        log.info("%d operations, last %d", contents.operations, contents.last_number)
        return contents

    def append(self, operation: Operation) -> None:
        """Write an operation."""
        self._inner.append(operation)

    def acknowledge(self, numbers: Sequence[int]) -> None:
        """Remove operations."""
        self._inner.acknowledge(numbers)

    def bury(self, refusals: Sequence[tuple[int, Refusal]]) -> None:
        """Make dead letters."""
        self._inner.bury(refusals)

    async def read(self, after: int, most: int, most_bytes: int) -> Page:
        """Read operations."""
        return await self._inner.read(after, most, most_bytes)

    async def last_before(self, moment: float) -> int:
        """Say which are older."""
        return await self._inner.last_before(moment)

    async def purge(self, person: PersonId) -> int:
        """Remove a person."""
        return await self._inner.purge(person)

    async def close(self, timeout: float) -> bool:
        """Close the other one."""
        return await self._inner.close(timeout)

    def forget_parent(self) -> None:
        """Begin empty after a fork."""
        self._inner.forget_parent()


async def main() -> None:
    """Track, refuse a second owner, purge, and change the credentials."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.db"
        async with Simulator() as service:
            service.faults.order("partial", indexes=[0])
            settings = Settings(site_id="site", track_api_key="key", track_url=service.url)
            spool = SqliteSpool(path, synchronous="NORMAL", max_bytes=10_000_000, max_age=86_400.0)
            async with CioBatchTracker(settings, spool=Mirrored(spool), on_dead_letter=keep) as tracker:
                await tracker.enqueue("user-1", "bought", {"total": 9.5})
                await tracker.enqueue("user-2", "bought", {"total": 19.0})
                await tracker.flush()
                assert_type(await spool.purge("user-1"), int)
                tracker.update_credentials("site", "key")
                await tracker.resend(b'{"type":"person","action":"delete","identifiers":{"id":"user-3"}}')
                stats = tracker.stats()
                log.info("%d %d %d %s", stats.spooled, stats.recovered, stats.spool_bytes, stats.spool_fault)
                assert stats.dead_letters == 1
                try:
                    await CioBatchTracker(settings, spool=SqliteSpool(path)).start()
                except SpoolLockedError as error:
                    assert_type(error.pid, int | None)
                except SpoolError:
                    raise
    assert len(refused) == 1


if __name__ == "__main__":
    asyncio.run(main())
