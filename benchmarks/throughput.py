"""How many events per second, and how much CPU per event, compared with the floor?

    python benchmarks/throughput.py [--only NAME …] [--names N] [--people N] [--escapes] [--ready] [--json FILE]

The floor is what Python and aiohttp take to make the data of an event, to encode it (dict and orjson), to fill bodies
of 500 KB and to POST them, with no queue, no order, no validation, no ids and no clock. The floor of v1 is one call of
aiohttp per event at the same concurrency. All run in processes of their own on one core, in turn, against the same sink
on another core. What counts is the ratio to the floor of the same round, because a machine that others use is faster in
one minute than in the next; the median of these is shown.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

import aiohttp
import attrs
import harness
import orjson

from cio_batch import Settings
from cio_batch.spools import SqliteSpool
from cio_batch.transports import TrackV1Transport

CONCURRENCY = 10

Run: TypeAlias = Callable[[str, harness.Workload], Awaitable[None]]


@attrs.frozen
class Runner:
    """Something that is measured.

    Attributes:
        run: Sends a workload to a URL.
        floor: The name of what it is compared with.
        share: How much of the events it gets; v1 is 70 times slower.
        uvloop: Whether it runs in uvloop.
        extension: Whether the tracker may use its compiled half.
    """

    run: Run
    floor: str = "floor"
    share: float = 1.0
    uvloop: bool = False
    extension: bool = True


async def floor(url: str, workload: harness.Workload) -> None:
    """Encode and POST, and nothing else."""
    slots = asyncio.Semaphore(CONCURRENCY)
    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:

        async def post(body: bytes) -> None:
            async with session.post(f"{url}/api/v2/batch", data=body) as response:
                await response.read()
            slots.release()

        pending: list[bytes] = []
        size = 12
        now = int(time.time())
        for person, name, data in workload:
            encoded = orjson.dumps(
                {
                    "type": "person",
                    "action": "event",
                    "identifiers": {"id": person},
                    "name": name,
                    "timestamp": now,
                    "id": "01ARZ3NDEKTSV4RRFFQ69G5FAV",
                    "attributes": data,
                }
            )
            if size + len(encoded) + 1 > 499_999:
                await slots.acquire()
                group.create_task(post(b'{"batch":[' + b",".join(pending) + b"]}"))
                await asyncio.sleep(0)
                pending, size = [], 12
            pending.append(encoded)
            size += len(encoded) + 1
        await slots.acquire()
        group.create_task(post(b'{"batch":[' + b",".join(pending) + b"]}"))


async def ours(url: str, workload: harness.Workload) -> None:
    """A tracker at its default settings: validation, ids, order per person, bounds and counts are on."""
    async with harness.tracker(url) as tracker:
        enqueue = tracker.enqueue
        for person, name, data in workload:
            await enqueue(person, name, data)
        await tracker.flush()
        assert tracker.stats().delivered == workload.events


async def spool(url: str, workload: harness.Workload) -> None:
    """A tracker with ``SqliteSpool``, whose commits a hundred producers share."""
    events = iter(workload)
    with tempfile.TemporaryDirectory() as folder:
        async with harness.tracker(url, spool=SqliteSpool(Path(folder) / "spool.db")) as tracker:

            async def produce() -> None:
                for person, name, data in events:
                    await tracker.enqueue(person, name, data)

            async with asyncio.TaskGroup() as tasks:
                for _ in range(100):
                    tasks.create_task(produce())
            await tracker.flush()
            assert tracker.stats().delivered == workload.events


async def v1_floor(url: str, workload: harness.Workload) -> None:
    """One call per event, and nothing else."""
    events = iter(workload)
    now = int(time.time())
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def post_one_by_one() -> None:
            for person, name, data in events:
                body = orjson.dumps({"name": name, "timestamp": now, "id": "01ARZ3NDEKTSV4RRFFQ69G5FAV", "data": data})
                async with session.post(f"{url}/api/v1/customers/{person}/events", data=body) as response:
                    await response.read()

        await asyncio.gather(*[post_one_by_one() for _ in range(CONCURRENCY)])


async def v1(url: str, workload: harness.Workload) -> None:
    """A tracker on Track v1, without the rate limit, which the floor does not keep either."""
    settings = Settings(site_id="site", track_api_key="key", track_url=url)
    async with harness.tracker(url, transport=TrackV1Transport(settings), rate_limit=None) as tracker:
        for person, name, data in workload:
            await tracker.enqueue(person, name, data)
        await tracker.flush()
        assert tracker.stats().delivered == workload.events


# To measure something else, write a function like `ours` and give it a line here.
RUNNERS = {
    "floor": Runner(floor),
    "ours": Runner(ours),
    "ours, no extension": Runner(ours, extension=False),
    "ours, spool": Runner(spool, share=1 / 4),
    "floor, uvloop": Runner(floor, uvloop=True),
    "ours, uvloop": Runner(ours, floor="floor, uvloop", uvloop=True),
    "v1 floor": Runner(v1_floor, floor="v1 floor", share=1 / 50),
    "v1": Runner(v1, floor="v1 floor", share=1 / 50),
}


def child(runner: Runner, url: str, options: argparse.Namespace) -> None:
    """Run one measurement and print it."""
    harness.pin()
    factory = None
    if runner.uvloop:
        import uvloop

        factory = uvloop.new_event_loop

    def run(workload: harness.Workload) -> None:
        with asyncio.Runner(loop_factory=factory) as loop:
            loop.run(runner.run(url, workload))

    run(harness.workload_of(options, int(20_000 * runner.share)))  # warm up
    events = int(options.events * runner.share)
    baseline = harness.rss()
    used, begun = harness.cpu_seconds(), time.perf_counter()
    run(harness.workload_of(options, events))
    wall, cpu = time.perf_counter() - begun, harness.cpu_seconds() - used
    over = max(0, harness.peak_rss() - baseline) / 1e6
    print(json.dumps({"events_per_second": events / wall, "cpu_us_per_event": cpu / events * 1e6, "rss_mb": over}))


def median_ratio(runs: list[dict[str, float]], base: list[dict[str, float]], key: str) -> float:
    """Each run beside the one of the base in the same round; NaN where the base was not measured."""
    return statistics.median([run[key] / beside[key] for run, beside in zip(runs, base, strict=False)] or [math.nan])


def main() -> None:
    """Measure all in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    harness.add_workload_options(parser, 300_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=RUNNERS, default=list(RUNNERS), help="what to measure")
    parser.add_argument("--latency", type=float, default=0.0, help="milliseconds until the sink answers")
    parser.add_argument("--json", type=Path, help="where to write the results")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(RUNNERS[options.child[0]], options.child[1], options)
        return
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in options.only}
    flags = ["--events", options.events, "--names", options.names, "--people", options.people]
    flags += ["--escapes"] * options.escapes + ["--ready"] * options.ready
    with harness.Sink(options.latency) as sink:
        for _ in range(options.rounds):
            for name, measured in runs.items():
                without = {} if RUNNERS[name].extension else {"CIO_BATCH_NO_EXTENSIONS": "1"}
                measured.append(harness.in_child(__file__, *flags, "--child", name, sink.url, **without))
        counts = sink.counts()
    medians = {
        name: {key: statistics.median(run[key] for run in measured) for key in measured[0]}
        for name, measured in runs.items()
    }
    rows: list[list[object]] = []
    for name, row in medians.items():
        base = runs.get(RUNNERS[name].floor, [])
        speed, cpu = row["events_per_second"], row["cpu_us_per_event"]
        row["speed_ratio"] = median_ratio(runs[name], base, "events_per_second")
        row["cpu_ratio"] = median_ratio(runs[name], base, "cpu_us_per_event")
        rows.append([name, f"{speed:,.0f}", cpu, row["rss_mb"], row["speed_ratio"], row["cpu_ratio"]])
    print(harness.machine())
    harness.show(["", "events/s", "CPU us/event", "MB over baseline", "speed : floor", "CPU : floor"], rows)
    print(f"the sink took {counts['events']:,} events and used {counts['cpu_seconds']:.1f} s of CPU")
    harness.write(
        options.json, {"options": [str(flag) for flag in flags], "medians": medians, "runs": runs, "sink": counts}
    )


if __name__ == "__main__":
    main()
