# ruff: noqa: ASYNC240 - a test may wait for the disk
"""One owner for each file: real processes, real kills, real forks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cio_batch.errors import SpoolError, SpoolLockedError
from cio_batch.spools import SqliteSpool
from cio_batch.spools.ownership import Ownership

from .files import event, opened

OWNER = """
import asyncio, os, sys
from cio_batch.spools import SqliteSpool

async def main():
    spool = SqliteSpool(sys.argv[1])
    await spool.open(lambda written: None, lambda numbers: None)
    if sys.argv[2] == "fork":
        told, tell = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(tell, b"x")  # what it inherited is closed by now
            while True:
                signal.pause()
        os.read(told, 1)
    else:
        child = 0
    print("open", child, flush=True)
    await asyncio.sleep(600)

import signal
asyncio.run(main())
"""


@contextlib.contextmanager
def owner(path: Path, how: str = "plain") -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Another process that has a spool open, and the child that it forked, if any."""
    process = subprocess.Popen([sys.executable, "-c", OWNER, str(path), how], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        word, _, child = process.stdout.readline().partition(" ")
        assert word == "open"
        yield process, int(child)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


async def test_a_second_owner_is_refused_and_told_the_pid_of_the_first(tmp_path: Path) -> None:
    """The error names the process, and the file and the first owner are as they were."""
    path = tmp_path / "events.db"
    with owner(path) as (process, _):
        with pytest.raises(SpoolLockedError, match=f"belongs to the process {process.pid}") as caught:
            async with opened(path):
                pass
        assert caught.value.pid == process.pid
        assert process.poll() is None


async def test_a_killed_owner_is_followed_at_once(tmp_path: Path) -> None:
    """A lock that a SIGKILL left behind is none; the next owner's pid stands in it."""
    path = tmp_path / "events.db"
    with owner(path) as (process, _):
        process.kill()
        process.wait()
        assert Path(f"{path}.lock").read_text() == str(process.pid)
        async with opened(path):
            assert Path(f"{path}.lock").read_text() == str(os.getpid())


async def test_a_forked_child_that_outlives_the_owner_does_not_keep_the_spool(tmp_path: Path) -> None:
    """The child never touched the spool; it lives on, and the spool is free."""
    path = tmp_path / "events.db"
    with owner(path, "fork") as (process, child):
        process.kill()
        process.wait()
        os.kill(child, 0)  # it is there
        try:
            async with opened(path) as spool:
                await spool.append(event(1))
                assert spool.durable == 1
        finally:
            os.kill(child, 9)


async def test_two_names_of_one_file_are_one_spool(tmp_path: Path) -> None:
    """A symbolic link leads to the same lock."""
    (tmp_path / "link.db").symlink_to(tmp_path / "events.db")
    async with opened(tmp_path / "events.db"):
        with pytest.raises(SpoolLockedError, match="another tracker of this process"):
            async with opened(tmp_path / "link.db"):
                pass


async def test_a_spool_is_opened_again_right_after_it_was_refused_or_closed(tmp_path: Path) -> None:
    """An open that failed leaves nothing behind that refuses the next one."""
    path = tmp_path / "events.db"
    spool = SqliteSpool(path)
    for _ in range(20):
        lock = Ownership.take(path)
        with pytest.raises(SpoolLockedError):
            await spool.open(lambda _: None, lambda _: None)
        lock.release()
        await spool.open(lambda _: None, lambda _: None)
        with pytest.raises(SpoolError, match="open already"):
            await spool.open(lambda _: None, lambda _: None)
        assert await spool.close(5)


async def test_a_lock_whose_file_is_removed_is_taken_again(tmp_path: Path) -> None:
    """Removing the file of the lock does not make room for a second owner for longer than one write."""
    path = tmp_path / "events.db"
    async with opened(path) as spool:
        Path(f"{path}.lock").unlink()
        await spool.append(event(1))
        with pytest.raises(SpoolLockedError):
            Ownership.take(path)


def test_a_lock_is_released_and_taken_many_times(tmp_path: Path) -> None:
    """Its file stays; releasing twice is harmless, and closes nothing of somebody else's."""
    path = tmp_path / "events.db"
    for _ in range(5):
        lock = Ownership.take(path)
        assert lock.holds
        lock.release()
        other = os.open(tmp_path, os.O_RDONLY)
        lock.release()
        os.fstat(other)
        os.close(other)
        assert not lock.holds
    with pytest.raises(FileNotFoundError):
        Ownership.take(tmp_path / "nowhere" / "events.db")


def test_a_second_loop_opens_what_the_first_left_open(tmp_path: Path) -> None:
    """A loop that ended without closing its spool does not keep it from the next loop."""
    spool = SqliteSpool(tmp_path / "events.db")
    reports: list[int] = []

    async def work(number: int) -> None:
        contents = await spool.open(lambda written: reports.append(written.appended), lambda _: None)
        assert contents.operations == number - 1
        spool.append(event(number))  # and leave at once: the loop is closed before the report

    for number in (1, 2, 3):
        asyncio.run(work(number))

    async def end() -> None:
        await spool.open(lambda _: None, lambda _: None)
        assert await spool.close(5)

    asyncio.run(end())
