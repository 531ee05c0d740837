# ruff: noqa: ASYNC240 - a test may wait for the disk
"""``SqliteSpool`` and its thread: group commit, order of what is said, reading, purging, the end."""

from __future__ import annotations

import asyncio
import gc
import os
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cio_batch.dead_letters import Refusal
from cio_batch.errors import ConfigurationError, SpoolError
from cio_batch.spools import Spool, SqliteSpool

from ..conftest import until
from .files import Opened, event, opened


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({"path": ""}, ("path",)),
        ({"path": 7}, ("path",)),
        ({"synchronous": "OFF"}, ("synchronous",)),
        ({"max_bytes": 999_999, "max_age": 0}, ("max_bytes", "max_age")),
        ({"max_age": float("inf")}, ("max_age",)),
        ({"max_age": True}, ("max_age",)),
    ],
)
def test_what_cannot_be_meant_is_refused(options: dict[str, Any], fields: tuple[str, ...]) -> None:
    """All faults at once, by the names of the arguments."""
    with pytest.raises(ConfigurationError) as caught:
        SqliteSpool(**{"path": "x", **options})
    assert caught.value.variables == fields


def test_nothing_is_made_before_it_is_opened(tmp_path: Path) -> None:
    """No file, no thread; and its representation shows no folder."""
    threads = threading.active_count()
    spool: Spool = SqliteSpool(tmp_path / "events.db", max_age=60)
    assert list(tmp_path.iterdir()) == []
    assert threading.active_count() == threads
    assert (repr(spool), spool.max_age, spool.max_bytes) == ("<SqliteSpool events.db>", 60, 1_000_000_000)
    with pytest.raises(SpoolError, match="is not open"):
        spool.append(event(1))


async def test_what_is_said_together_is_written_together(tmp_path: Path) -> None:
    """While the disk is written, the next group gathers; each operation is reported once, in order."""
    async with opened(tmp_path / "events.db") as spool:
        await spool.append(*(event(number) for number in range(1, 20_001)))
        assert spool.refused == 0
        assert spool.durable == 20_000
        assert len(spool.reports) <= 100
        assert max(report.appended for report in spool.reports) < 5_000 + 1_000
        assert await asyncio.to_thread(rows_in, tmp_path / "events.db") == 20_000


def rows_in(path: Path) -> int:
    connection = sqlite3.connect(path)
    (count,) = connection.execute("SELECT count(*) FROM operations").fetchone()
    connection.close()
    return int(count)


async def test_what_is_reported_survives_a_kill(tmp_path: Path) -> None:
    """A process prints each number once it was reported; after its SIGKILL at least those are there, in order."""
    path = tmp_path / "events.db"
    code = """
import asyncio, sys
from tests.spools.files import event, opened
async def main():
    async with opened(sys.argv[1]) as spool:
        number = 0
        while True:
            await spool.append(*(event(number + each) for each in range(1, 51)))
            number += 50
            print(number, flush=True)
asyncio.run(main())
"""
    root = Path(__file__).resolve().parents[2]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, str(path), stdout=subprocess.PIPE, cwd=root, env={**os.environ, "PYTHONPATH": "."}
    )
    assert process.stdout is not None
    for _ in range(20):
        await process.stdout.readline()
    process.kill()
    rest = await process.stdout.read()
    await process.wait()
    reported = int(rest.split()[-1]) if rest.split() else 1_000
    async with opened(path) as spool:
        found, lost = await spool.read_all()
        numbers = [operation.number for operation in found]
        assert lost == 0
        assert numbers == list(range(1, len(numbers) + 1))
        assert len(numbers) >= reported


async def test_things_are_written_in_the_order_in_which_they_are_said(tmp_path: Path) -> None:
    """What is appended, refused and acknowledged in one breath is gone, and a dead letter of it is there."""
    async with opened(tmp_path / "events.db") as spool:
        for number in range(1, 4):
            spool.spool.append(event(number))
        spool.spool.bury([(1, Refusal("rejected", "test"))])
        spool.spool.acknowledge([2])
        page = await spool.spool.read(0, 10, 10**6)
        assert [operation.number for operation in page.operations] == [3]
        await until(lambda: bool(spool.reports) and spool.reports[-1].dead_letters == 1)


async def test_purging_tells_the_tracker_and_rewrites_the_file(tmp_path: Path) -> None:
    """The numbers that are gone are reported; a letter to a number that was purged is none."""
    path = tmp_path / "events.db"
    async with opened(path) as spool:
        await spool.append(*(event(number, person="ada" if number % 2 else "bob") for number in range(1, 11)))
        spool.spool.bury([(1, Refusal("rejected", "test"))])
        assert await spool.spool.purge("ada") == 5
        assert spool.purged == [3, 5, 7, 9]
        spool.spool.bury([(3, Refusal("rejected", "test"))])
        assert await spool.spool.purge("ada") == 0
        assert b'"ada"' not in path.read_bytes() + Path(f"{path}-wal").read_bytes()
        report = await spool.acknowledge(2)
        assert report.dead_letters == 0
        assert report.error is None
    assert await spool.spool.close()  # a second time
    with pytest.raises(SpoolError, match="is not open"):
        await spool.spool.purge("ada")


async def test_used_bytes_are_reported_with_every_write(tmp_path: Path) -> None:
    """The overflow policy of the tracker has a true figure to go by."""
    async with opened(tmp_path / "events.db") as spool:
        await spool.append(*(event(number, size=1_000) for number in range(1, 2_001)))
        full = spool.reports[-1].used_bytes
        assert 2_000_000 < full < 4_000_000
        report = await spool.acknowledge(*range(1, 2_001))
        assert report.used_bytes < 100_000
    async with opened(tmp_path / "events.db") as spool:
        assert spool.contents.used_bytes == report.used_bytes


async def test_close_writes_what_was_said_before_it(tmp_path: Path) -> None:
    """All of it, and then the file is whole without a log."""
    path = tmp_path / "events.db"
    found = Opened(SqliteSpool(path, synchronous="NORMAL"))
    await found.spool.open(found.reports.append, found.purged.extend)
    for number in range(1, 12_001):
        found.spool.append(event(number))
    assert await found.spool.close(20)
    assert found.durable == 12_000
    assert not Path(f"{path}-wal").exists()
    assert rows_in(path) == 12_000


async def test_close_needs_no_thread_of_the_executor(tmp_path: Path) -> None:
    """A service may have filled it with work that blocks."""
    async with opened(tmp_path / "events.db") as spool:
        free = threading.Event()
        busy = [asyncio.get_running_loop().run_in_executor(None, free.wait) for _ in range(64)]
        began = time.monotonic()
        assert await spool.spool.close(5)
        assert time.monotonic() - began < 2
        free.set()
        await asyncio.gather(*busy)


async def test_a_cancelled_open_is_closed(tmp_path: Path) -> None:
    """The file may stay open, and ``close`` closes it."""
    spool = SqliteSpool(tmp_path / "events.db")
    for _ in range(10):
        opening = asyncio.ensure_future(spool.open(lambda _: None, lambda _: None))
        await asyncio.sleep(0)
        opening.cancel()
        await asyncio.wait([opening])
        assert await spool.close(5)


async def test_many_ask_and_all_are_answered(tmp_path: Path) -> None:
    """Reads between writes see what was written before them."""
    async with opened(tmp_path / "events.db") as spool:
        asked = []
        for number in range(1, 501):
            spool.spool.append(event(number))
            asked.append(asyncio.ensure_future(spool.spool.read(number - 1, 1, 1)))
        pages = await asyncio.gather(*asked)
        assert [page.operations[0].number for page in pages] == list(range(1, 501))


async def test_the_loop_never_waits_for_the_disk(tmp_path: Path) -> None:
    """Saying things to the spool takes microseconds, whatever the disk does."""
    async with opened(tmp_path / "events.db") as spool:
        operations = [event(number) for number in range(1, 10_001)]
        gc.collect()
        longest = 0.0
        for operation in operations:
            began = time.thread_time()
            spool.spool.append(operation)
            longest = max(longest, time.thread_time() - began)
        assert longest < 0.01
        await until(lambda: spool.durable == 10_000)


async def test_a_child_that_is_forked_while_the_disk_works_can_open_a_spool_of_its_own(tmp_path: Path) -> None:
    """SQLite's locks are the process's: forked in the midst of a transaction, a child would wait for them for ever."""
    program = f"""
        import asyncio, os, signal, sys, warnings
        from cio_batch.spools import SqliteSpool
        from cio_batch.operations import encode, event

        warnings.filterwarnings("ignore", message=".*multi-threaded", category=DeprecationWarning)
        folder = {str(tmp_path)!r}

        async def begin(name):
            done = asyncio.Event()
            spool = SqliteSpool(os.path.join(folder, name))
            await spool.open(lambda written: written.appended and done.set(), print)
            return spool, done

        def made(number):
            operation = encode(event("u", "seen"), now=0.0, new_id=lambda: "01ARZ3NDEKTSV4RRFFQ69G5FAV")
            operation.number = number
            return operation

        async def child(name):
            spool, done = await begin(name)
            spool.append(made(1))
            await done.wait()
            await spool.close(5)

        async def main():
            spool, _ = await begin("parent.db")
            children = []
            for fork in range(20):
                for n in range(2_000):
                    spool.append(made(fork * 2_000 + n + 1))
                await asyncio.sleep(0)
                pid = os.fork()
                if pid == 0:
                    asyncio._set_running_loop(None)
                    signal.alarm(20)
                    asyncio.run(child(f"child-{{fork}}.db"))
                    os._exit(0)
                children.append(pid)
            print([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children])
            assert await spool.close(20)

        asyncio.run(main())
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", textwrap.dedent(program), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, output.decode()) == (0, f"{[0] * 20}\n")
