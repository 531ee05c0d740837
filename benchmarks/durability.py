"""What does a spool cost? Durable events per second, beside SQLite alone and beside a tracker in memory.

    python benchmarks/durability.py [--events N] [--rounds N] [--producers N] [--folder DIR] [--json FILE]

``group commit`` is the floor of durability: as many tasks append the same rows to the same tables, and each waits for
the commit of its row; one thread writes what gathered during the commit before, and deletes what is old in the same
transactions. It encodes nothing, checks nothing, counts nothing and delivers nothing. ``bare`` is the same without
anybody who waits: one thread writes groups that lie ready. ``spool`` is a tracker with ``SqliteSpool``: each producer
awaits its commit before the next event, and everything is delivered to a sink. ``memory`` is the same tracker without
a spool. All run in processes of their own, in turn, on the disk of ``--folder``; what counts are the ratios of the
medians.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import queue
import sqlite3
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import harness

from cio_batch import CioBatchTracker, ids
from cio_batch.operations import encode_event
from cio_batch.spools import SqliteSpool
from cio_batch.spools.database import TABLES, checksum

_DELIVERED_BEHIND = 2_000  # rows; a chunk is settled about that much later


def encoded(events: int) -> list[bytes]:
    """The rows: what a tracker writes."""
    return [
        encode_event(person, name, data, None, None, time.time(), ids.new_id).body
        for person, name, data in harness.Workload(events, ready=True)
    ]


def connect(folder: Path) -> sqlite3.Connection:
    """Make the file with the tables of a spool."""
    connection = sqlite3.connect(folder / "bare.db", isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    for name, columns in TABLES.items():
        connection.execute(f"CREATE TABLE {name} ({columns})")
    return connection


class Writer:
    """Writes rows in transactions, and deletes them later, as if they had been delivered."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._execute, self._executemany = connection.execute, connection.executemany
        self._written = self._deleted = 0

    def write(self, bodies: Sequence[bytes]) -> None:
        """Write rows in one transaction."""
        now, first = time.time(), self._written + 1
        self._execute("BEGIN IMMEDIATE")
        self._executemany(
            "INSERT INTO operations (number, accepted_at, checksum, body) VALUES (?, ?, ?, ?)",
            [(number, now, checksum(number, body), body) for number, body in enumerate(bodies, first)],
        )
        self._written += len(bodies)
        if self._written - self._deleted >= 2 * _DELIVERED_BEHIND:
            upto = self._deleted + _DELIVERED_BEHIND
            self._execute("DELETE FROM operations WHERE number BETWEEN ? AND ?", (self._deleted + 1, upto))
            self._deleted = upto
        self._execute("COMMIT")


def bare(folder: Path, _url: str, events: int, producers: int) -> float:
    """Write, commit and delete rows, and nothing else; return the seconds."""
    bodies, writer = encoded(events), Writer(connect(folder))
    begun = time.perf_counter()
    for start in range(0, events, producers):
        writer.write(bodies[start : start + producers])
    return time.perf_counter() - begun


class GroupCommit:
    """All that group commit needs, and nothing else: who appends waits; a thread writes what gathered meanwhile."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._inbox: queue.SimpleQueue[list[tuple[bytes, asyncio.Future[None]]]] = queue.SimpleQueue()
        self._gathered: list[tuple[bytes, asyncio.Future[None]]] = []
        threading.Thread(target=self._work, daemon=True).start()

    def append(self, body: bytes) -> asyncio.Future[None]:
        """Write a row; the future is done once it is committed."""
        written = self._loop.create_future()
        self._gathered.append((body, written))
        if len(self._gathered) == 1:
            self._loop.call_soon(self._hand_over)
        return written

    def _hand_over(self) -> None:
        gathered, self._gathered = self._gathered, []
        self._inbox.put(gathered)

    def _work(self) -> None:
        writer = Writer(self._connection)
        while True:
            group = self._inbox.get()
            with contextlib.suppress(queue.Empty):
                while True:
                    group += self._inbox.get_nowait()
            writer.write([body for body, _ in group])
            self._loop.call_soon_threadsafe(self._release, group)

    def _release(self, group: list[tuple[bytes, asyncio.Future[None]]]) -> None:
        for _, written in group:
            written.set_result(None)


def group_commit(folder: Path, _url: str, events: int, producers: int) -> float:
    """Tasks that append the same rows, and await their commit; return the seconds."""

    async def run() -> float:
        bodies = encoded(events)
        group_commit = GroupCommit(connect(folder))
        unwritten = iter(bodies)

        async def produce() -> None:
            for body in unwritten:
                await group_commit.append(body)

        begun = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(producers):
                tasks.create_task(produce())
        return time.perf_counter() - begun

    return asyncio.run(run())


async def track(tracker: CioBatchTracker, events: int, producers: int) -> float:
    """Enqueue from many tasks and deliver; return the seconds."""
    workload = iter(harness.Workload(events, ready=True))

    async def produce() -> None:
        for person, name, data in workload:
            await tracker.enqueue(person, name, data)

    async with tracker:
        begun = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(producers):
                tasks.create_task(produce())
        report = await tracker.flush()
        took = time.perf_counter() - begun
        assert report.left == report.failed == report.rejected == 0
        assert tracker.stats().delivered == events
    return took


def spool(folder: Path, url: str, events: int, producers: int) -> float:
    """A tracker on a spool."""
    tracker = harness.tracker(url, spool=SqliteSpool(folder / "spool.db"))
    return asyncio.run(track(tracker, events, producers))


def memory(_folder: Path, url: str, events: int, producers: int) -> float:
    """The same in memory."""
    return asyncio.run(track(harness.tracker(url), events, producers))


RUNNERS = {"bare": bare, "group commit": group_commit, "spool": spool, "memory": memory}


def main() -> None:
    """Measure all in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--producers", type=int, default=100)
    parser.add_argument("--folder", type=Path, help="where the files are made; a temporary folder by default")
    parser.add_argument("--json", type=Path, help="where to write the results")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        name, url = options.child
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            used = harness.cpu_seconds()
            took = RUNNERS[name](Path(folder), url, options.events, options.producers)
            used = harness.cpu_seconds() - used
        print(json.dumps({"events_per_second": options.events / took, "cpu_us_per_event": used / options.events * 1e6}))
        return
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in RUNNERS}
    flags = ["--events", options.events, "--producers", options.producers]
    flags += ["--folder", options.folder] if options.folder else []
    with harness.Sink() as sink:
        for _ in range(options.rounds):
            for name, measured in runs.items():
                measured.append(harness.in_child(__file__, *flags, "--child", name, sink.url))
    medians = {
        name: {key: statistics.median(run[key] for run in measured) for key in measured[0]}
        for name, measured in runs.items()
    }
    rates = {name: row["events_per_second"] for name, row in medians.items()}
    ratios = {
        "of_bare": rates["spool"] / rates["bare"],
        "of_group_commit": rates["spool"] / rates["group commit"],
        "of_memory": rates["spool"] / rates["memory"],
    }
    rows: list[list[object]] = []
    for name, row in medians.items():
        each = [run["events_per_second"] for run in runs[name]]
        rows.append(
            [
                name,
                f"{row['events_per_second']:,.0f}",
                row["cpu_us_per_event"],
                f"{min(each):,.0f}",
                f"{max(each):,.0f}",
            ]
        )
    print(f"{harness.machine()}, SQLite {sqlite3.sqlite_version}")
    harness.show(["", "events/s", "CPU us/event", "least", "most"], rows)
    print(f"the spool reaches {ratios['of_group_commit']:.2f} of a bare group-commit loop (at least 0.70 is the aim)")
    print(f"                  {ratios['of_bare']:.2f} of SQLite without anybody who waits")
    print(f"              and {ratios['of_memory']:.2f} of the tracker in memory (at least 0.10, better 0.20)")
    harness.write(options.json, {"medians": medians, "ratios": ratios, "runs": runs})


if __name__ == "__main__":
    main()
