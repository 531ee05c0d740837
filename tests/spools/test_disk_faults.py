# ruff: noqa: ASYNC240 - a test may wait for the disk
"""Disk faults while a spool works: full, read-only, removed, replaced, locked; each is real.

In each: what was refused is nowhere, what was accepted is everywhere, and it works again when the disk does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cio_batch.dead_letters import Refusal
from cio_batch.errors import SpoolError
from cio_batch.operations import _IN_PYTHON
from cio_batch.spools import SqliteSpool

from ..conftest import until
from .files import Opened, event, kept_files, opened

MB = 1_000_000


class Disk:
    """A file system of a few MB, where the system lets us have one; else a limit on what this process may write."""

    def __init__(self, path: Path, *, mounted: bool) -> None:
        self.path = path
        self.mounted = mounted
        self._limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(self, spool: Path) -> None:
        """Take all the room that is left."""
        if not self.mounted:
            largest = max(
                Path(f"{spool}{side}").stat().st_size for side in ("", "-wal") if Path(f"{spool}{side}").exists()
            )
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, self._limits[1]))
            return
        with (self.path / "ballast").open("ab", buffering=0) as ballast:
            for size in (65_536, 4_096, 512):
                with contextlib.suppress(OSError):
                    while True:
                        ballast.write(bytes(size))

    def relieve(self) -> None:
        """Give it back."""
        resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)
        (self.path / "ballast").unlink(missing_ok=True)

    def forbid(self) -> None:
        """Make it read-only."""
        if self.mounted:
            subprocess.run(["mount", "-o", "remount,ro", self.path], check=True)
        else:
            for each in self.path.iterdir():
                each.chmod(0o400)
            self.path.chmod(0o500)

    def allow(self) -> None:
        """Make it writable again."""
        if self.mounted:
            subprocess.run(["mount", "-o", "remount,rw", self.path], check=True)
        else:
            self.path.chmod(0o700)
            for each in self.path.iterdir():
                each.chmod(0o600)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(command, check=False, capture_output=True).returncode == 0
    found = Disk(folder, mounted=mounted)
    try:
        yield found
    finally:
        found.allow()
        found.relieve()
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


async def numbers_in(spool: Opened) -> list[int]:
    found, lost = await spool.read_all()
    assert lost == 0
    return [operation.number for operation in found]


async def fails(spool: Opened, *numbers: int) -> SpoolError:
    """Append what must be refused."""
    refused = spool.refused
    await spool.append(*(event(number) for number in numbers))
    assert spool.refused == refused + len(numbers)
    error = spool.reports[-1].error
    assert error is not None
    return error


async def test_a_full_disk_refuses_and_acknowledges_and_recovers(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing of a refused group is kept; acknowledgements still go through, and new ones when there is room."""
    path = disk.path / "events.db"
    async with opened(path) as spool:
        await spool.append(*(event(number, size=2_000) for number in range(1, 201)))
        disk.fill(path)
        number = 201
        while not spool.refused:  # until the log is full too
            await spool.append(*(event(each, size=2_000) for each in range(number, number + 50)))
            number += 50
        accepted = list(range(1, number - 50))
        assert "cannot be used (SQLITE_FULL)" in str(spool.reports[-1].error) or "IOERR" in str(spool.reports[-1].error)
        assert spool.reports[-1].used_bytes > 400_000  # as before, and not 0
        assert await numbers_in(spool) == accepted
        spool.spool.acknowledge(range(1, 101))
        disk.relieve()
        await until(lambda: spool.reports[-1].fault is None)
        await spool.append(event(number))
        assert spool.reports[-1].error is None
        assert await numbers_in(spool) == [*accepted[100:], number]
    records = [record.getMessage() for record in caplog.records if record.name.startswith("cio_batch.spools")]
    assert len([text for text in records if "cannot be written" in text]) == 1  # once, and not per attempt
    assert "is written again" in records[-1]


async def test_acknowledgements_make_room_on_a_full_disk(disk: Disk) -> None:
    """The log cannot grow, but it is used again from its start where the file has room: the spool can be emptied."""
    path = disk.path / "events.db"
    async with opened(path) as spool:
        await spool.append(*(event(number, size=2_000) for number in range(1, 401)))
        await spool.acknowledge(*range(1, 301))
    async with opened(path) as spool:
        await spool.append(*(event(number, size=2_000) for number in range(401, 501)))
        disk.fill(path)
        number = 501
        while not spool.refused:
            await spool.append(event(number, size=2_000))
            number += 1
        await spool.acknowledge(*range(301, number))
        await until(lambda: spool.spool._running()._owed == [])
        await spool.append(event(number, size=2_000))
        assert spool.reports[-1].error is None
        assert await numbers_in(spool) == [number]


async def test_closing_on_a_full_disk_says_so_and_nothing_is_lost(disk: Disk) -> None:
    """What stands in the log comes back at the next start."""
    path = disk.path / "events.db"
    found = Opened(SqliteSpool(path))
    await found.spool.open(found.reports.append, found.purged.extend)
    await found.append(*(event(number, size=2_000) for number in range(1, 201)))
    disk.fill(path)
    found.spool.append(event(1_000, size=30_000))
    await found.spool.close(10)
    disk.relieve()
    async with opened(path) as spool:
        assert (await numbers_in(spool))[:200] == list(range(1, 201))


async def test_a_spool_on_a_full_disk_opens_and_is_read(disk: Disk) -> None:
    """Not even the shared memory of SQLite has room: it is read without, and written once there is some."""
    path = disk.path / "events.db"
    async with opened(path) as spool:
        await spool.append(*(event(number) for number in range(1, 11)))
    disk.fill(path)
    async with opened(path) as spool:
        assert spool.contents.operations == 10
        assert await numbers_in(spool) == list(range(1, 11))
        spool.spool.acknowledge([1])
        disk.relieve()
        await until(lambda: bool(spool.reports) and spool.reports[-1].fault is None)
        assert await numbers_in(spool) == list(range(2, 11))


@pytest.mark.parametrize("crashed", [False, True])
async def test_a_read_only_disk_is_read_and_written_when_it_can_be(
    disk: Disk, crashed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Opened there, with or without a log that a crash left: all is read, nothing accepted, no acknowledgement lost."""
    path = disk.path / "events.db"
    async with opened(path) as spool:
        await spool.append(*(event(number) for number in range(1, 11)))
        if crashed:
            for side in ("", "-wal"):
                shutil.copy(f"{path}{side}", disk.path / f"crashed.db{side}")
            path = disk.path / "crashed.db"
    disk.forbid()
    async with opened(path) as spool:
        assert spool.contents.operations == 10
        assert await numbers_in(spool) == list(range(1, 11))
        assert "SQLITE_READONLY" in str(await fails(spool, 11, 12))
        report = await spool.acknowledge(1, 2)
        assert report.fault is not None
        attempts = len(spool.reports)
        began = time.monotonic()
        await until(lambda: len(spool.reports) >= attempts + 2)
        assert time.monotonic() - began > 1.0  # not in a hot loop
        disk.allow()
        await until(lambda: spool.reports[-1].fault is None)
        await spool.append(event(13))
        assert await numbers_in(spool) == [*range(3, 11), 13]
    assert len([text for text in caplog.messages if "cannot be written" in text]) == 1


async def test_a_disk_that_becomes_read_only_under_a_spool(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    """Closed like that, the operations that were acknowledged in vain are sent again, and the log says so."""
    path = disk.path / "events.db"
    async with opened(path) as spool:
        await spool.append(*(event(number) for number in range(1, 11)))
    disk.forbid()
    async with opened(path) as spool:
        assert (await spool.acknowledge(1, 2)).fault is not None
        assert not await spool.spool.close(10)
    assert len([text for text in caplog.messages if "are sent again after the next start" in text]) == 1
    disk.allow()
    async with opened(path) as spool:
        assert await numbers_in(spool) == list(range(1, 11))


async def test_a_read_only_disk_without_a_spool_is_a_clear_error(disk: Disk) -> None:
    """There is nothing to read and nothing can be written."""
    disk.forbid()
    with pytest.raises(SpoolError, match=r"Read-only file system|Permission denied"):
        async with opened(disk.path / "events.db"):
            pass


@pytest.mark.parametrize("removed", [("",), ("-wal",), ("", "-wal"), ("", "-wal", "-shm", ".lock")])
async def test_what_is_removed_while_it_is_open_is_written_anew(tmp_path: Path, removed: tuple[str, ...]) -> None:
    """The open connection still reads it: all of it, dead letters too, is there after the next write and a restart."""
    path = tmp_path / "events.db"
    async with opened(path) as spool:
        await spool.append(*(event(number) for number in range(1, 101)))
        spool.spool.bury([(1, Refusal("rejected", "test"))])
        await spool.acknowledge(2)
        for _ in range(2):  # and a second time
            for side in removed:
                Path(f"{path}{side}").unlink()
            await asyncio.wait_for(_append_until_accepted(spool), 10)
        assert path.stat().st_mode & 0o777 == 0o600
        expected = await numbers_in(spool)
        assert expected[:98] == list(range(3, 101))
    async with opened(path) as spool:
        assert await numbers_in(spool) == expected
        assert spool.contents.dead_letters == 1


_next = iter(range(1_000, 100_000))


async def _append_until_accepted(spool: Opened) -> None:
    while True:
        await spool.append(event(next(_next)))
        if spool.reports[-1].error is None:
            return


async def test_a_file_that_is_replaced_while_it_is_open_is_kept(tmp_path: Path) -> None:
    """Somebody put another file there: the spool's own comes back, and theirs is not lost."""
    path = tmp_path / "events.db"
    async with opened(path) as spool:
        await spool.append(event(1))
        (tmp_path / "other").write_bytes(b"something of somebody else's")
        (tmp_path / "other").replace(path)
        await _append_until_accepted(spool)
        assert (await numbers_in(spool))[0] == 1
    assert [kept.read_bytes() for kept in kept_files(path) if not kept.name.endswith("-wal")] == [
        b"something of somebody else's"
    ]
    async with opened(path) as spool:
        assert len(await numbers_in(spool)) == 2


async def test_a_directory_that_is_removed_and_comes_back(tmp_path: Path) -> None:
    """Without it, appends are refused and reads go on; with it, the file is written anew."""
    folder = tmp_path / "spool"
    folder.mkdir()
    path = folder / "events.db"
    async with opened(path) as spool:
        await spool.append(*(event(number) for number in range(1, 11)))
        shutil.rmtree(folder)
        await fails(spool, 11)
        assert await numbers_in(spool) == list(range(1, 11))
        spool.spool.acknowledge([1])
        folder.mkdir()
        await until(lambda: spool.reports[-1].fault is None)
        assert await numbers_in(spool) == list(range(2, 11))
    assert sqlite3.connect(path).execute("SELECT count(*) FROM operations").fetchone() == (9,)


async def test_another_process_that_holds_the_lock_for_long(tmp_path: Path) -> None:
    """Appends are refused after a while, reads go on, acknowledgements wait; close keeps its deadline."""
    path = tmp_path / "events.db"
    code = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); c.execute('BEGIN IMMEDIATE');"
        "print('held', flush=True); sys.stdin.read()"
    )
    async with opened(path) as spool:
        await spool.append(event(1), event(2))
        with subprocess.Popen(  # noqa: ASYNC220 - it is to live as long as this block
            [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == b"held\n"
            spool.spool.acknowledge([1])
            assert "SQLITE_BUSY" in str(await fails(spool, 3))
            assert await numbers_in(spool) == [1, 2]
            other.communicate()
        await until(lambda: spool.reports[-1].fault is None)
        assert await numbers_in(spool) == [2]


async def test_close_keeps_its_deadline_while_the_spool_is_locked(tmp_path: Path) -> None:
    """It returns in time, says that it was not done, and what was appended is written afterwards or refused."""
    path = tmp_path / "events.db"
    async with opened(path) as spool:
        await spool.append(event(1))
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        spool.spool.append(event(2))
        began = time.monotonic()
        assert not await spool.spool.close(0.2)
        assert time.monotonic() - began < 0.5
        other.execute("ROLLBACK")
        other.close()
        assert await spool.spool.close(10)
        assert spool.durable == 2


async def test_a_loop_that_is_closed_in_the_midst_costs_nothing_that_was_written(tmp_path: Path) -> None:
    """The thread has nobody to report to; it goes on to write, and does not break."""
    path = tmp_path / "events.db"
    spool = SqliteSpool(path)

    async def work() -> None:
        await spool.open(lambda _: None, lambda _: None)
        for number in range(1, 1_001):
            spool.append(event(number))

    await asyncio.to_thread(asyncio.run, work())
    assert await spool.close(10)
    async with opened(path) as found:
        assert found.contents.operations == 1_000


async def test_a_fault_that_nobody_foresaw_is_reported_and_survived(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A number that SQLite cannot hold: that group is refused, and the next one written."""
    caplog.set_level(logging.CRITICAL)
    async with opened(tmp_path / "events.db") as spool:
        first = event(1)
        await spool.append(_IN_PYTHON[0](first.body, first.key, first.kind, 1 << 70))
        assert spool.refused == 1
        await spool.append(event(2))
        assert await numbers_in(spool) == [2]


async def test_what_is_said_after_the_end_is_refused(tmp_path: Path) -> None:
    """Nobody waits for a thread that has ended."""
    async with opened(tmp_path / "events.db") as spool:
        writer = spool.spool._running()
        assert await spool.spool.close(5)
        writer.say([event(1)])
        await until(lambda: spool.refused == 1)
        with pytest.raises(SpoolError, match="is closed"):
            await writer.ask(lambda database: database.count())
        with pytest.raises(SpoolError, match="is not open"):
            await spool.spool.read(0, 1, 1)
