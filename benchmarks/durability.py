"""What does a spool cost? Durable events per second, beside SQLite alone and beside a tracker in memory.

    python benchmarks/durability.py [--events N] [--rounds N] [--producers N] [--folder DIR] [--json FILE]

``bare`` is the floor of durability: one thread that writes the same rows into the same tables with ``executemany`` and
commits groups as large as there are producers, and deletes them again in the same transactions, with nothing else
around it. ``spool`` is a tracker with ``SqliteSpool``: each producer awaits its commit before the next event, and
everything is delivered to a sink. ``memory`` is the same tracker without a spool. All run in processes of their own,
in turn, on the disk of ``--folder``; what counts are the ratios of the medians.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sqlite3
import statistics
import tempfile
import time
from pathlib import Path

import harness

from cio_batch import CioBatchTracker, ids
from cio_batch.operations import encode_event
from cio_batch.spools import SqliteSpool
from cio_batch.spools.database import TABLES, checksum

_DELIVERED_BEHIND = 2_000  # rows; a chunk is settled about that much later


def bare(folder: Path, _url: str, events: int, producers: int) -> float:
    """Write, commit and delete rows, and nothing else; return the seconds."""
    bodies = [
        encode_event(person, name, data, None, None, time.time(), ids.new_id)[0]
        for person, name, data in harness.Workload(events)
    ]
    connection = sqlite3.connect(folder / "bare.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    for name, columns in TABLES.items():
        connection.execute(f"CREATE TABLE {name} ({columns})")
    insert = "INSERT INTO operations (number, accepted_at, checksum, body) VALUES (?, ?, ?, ?)"
    begun = time.perf_counter()
    deleted = 0
    for start in range(0, events, producers):
        now = time.time()
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(
            insert,
            [(n + 1, now, checksum(n + 1, bodies[n]), bodies[n]) for n in range(start, min(start + producers, events))],
        )
        if start - deleted >= 2 * _DELIVERED_BEHIND:
            connection.execute(
                "DELETE FROM operations WHERE number BETWEEN ? AND ?", (deleted + 1, deleted + _DELIVERED_BEHIND)
            )
            deleted += _DELIVERED_BEHIND
        connection.execute("COMMIT")
    connection.execute("DELETE FROM operations")
    return time.perf_counter() - begun


async def track(tracker: CioBatchTracker, events: int, producers: int) -> float:
    """Enqueue from many tasks and deliver; return the seconds."""
    workload = iter(harness.Workload(events))

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


RUNNERS = {"bare": bare, "spool": spool, "memory": memory}


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
    ratios = {"of_bare": rates["spool"] / rates["bare"], "of_memory": rates["spool"] / rates["memory"]}
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
    print(f"the spool reaches {ratios['of_bare']:.2f} of bare SQLite (at least 0.70 is the aim)")
    print(f"              and {ratios['of_memory']:.2f} of the tracker in memory (at least 0.10, better 0.20)")
    harness.write(options.json, {"medians": medians, "ratios": ratios, "runs": runs})


if __name__ == "__main__":
    main()
