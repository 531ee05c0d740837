"""How many events per second, and how much CPU per event, compared with the floor?

    python benchmarks/throughput.py [--events N] [--rounds N] [--json FILE]

The floor is what Python and aiohttp take to encode each event (dict and orjson), to fill bodies of 500 KB and to POST
them, with no queue, no order, no validation, no ids of their own and no counting. Both run in processes of their own on
one core, in turn, against the same sink on the other core; what counts is the ratio of the medians.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from cio_batch import CioBatchTracker, Settings

DATA = {
    "url": "https://example.com/pricing?plan=pro&period=yearly",
    "referrer": "https://example.com/blog/2024/launch",
    "title": "Pricing \u2013 choose a plan",
    "experiment": "pricing-headline-b",
    "scroll": 0.75,
    "logged_in": True,
    "seats": 12,
}
PEOPLE = [f"user-{n}" for n in range(5_000)]


async def floor(url: str, events: int) -> None:
    """Encode and POST, and nothing else."""
    slots = asyncio.Semaphore(10)
    tasks: list[asyncio.Task[None]] = []

    async with aiohttp.ClientSession() as session:

        async def post(body: bytes) -> None:
            async with session.post(f"{url}/api/v2/batch", data=body) as response:
                await response.read()
            slots.release()

        pending: list[bytes] = []
        size = 12
        now = int(time.time())
        for n in range(events):
            encoded = orjson.dumps(
                {
                    "type": "person",
                    "action": "event",
                    "identifiers": {"id": PEOPLE[n % len(PEOPLE)]},
                    "name": "page_viewed",
                    "timestamp": now,
                    "id": "01ARZ3NDEKTSV4RRFFQ69G5FAV",
                    "attributes": DATA,
                }
            )
            if size + len(encoded) + 1 > 499_999:
                await slots.acquire()
                tasks.append(asyncio.create_task(post(b'{"batch":[' + b",".join(pending) + b"]}")))
                await asyncio.sleep(0)
                pending, size = [], 12
            pending.append(encoded)
            size += len(encoded) + 1
        await slots.acquire()
        tasks.append(asyncio.create_task(post(b'{"batch":[' + b",".join(pending) + b"]}")))
        await asyncio.gather(*tasks)


async def ours(url: str, events: int) -> None:
    """A tracker at its default settings: validation, ids, order per person, bounds and counts are on."""
    settings = Settings(site_id="site", track_api_key="key", track_url=url)
    async with CioBatchTracker(settings) as tracker:
        enqueue = tracker.enqueue
        for n in range(events):
            await enqueue(PEOPLE[n % len(PEOPLE)], "page_viewed", DATA)
        report = await tracker.flush()
        assert report.left == report.failed == report.rejected == 0
        assert tracker.stats().delivered == events


RUNNERS = {"floor": floor, "ours": ours}


def child(name: str, url: str, events: int) -> None:
    """Run one measurement on core 0 and print it."""
    if len(os.sched_getaffinity(0)) > 1:
        os.sched_setaffinity(0, {0})
    asyncio.run(RUNNERS[name](url, 20_000))  # warm up
    used, begun = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    asyncio.run(RUNNERS[name](url, events))
    wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    print(json.dumps({"events_per_second": events / wall, "cpu_us_per_event": cpu / events * 1e6}))


def main() -> None:
    """Measure both in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=300_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="where to write the results")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child[0], options.child[1], options.events)
        return
    sink = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("sink.py")), "--cpu", str((os.cpu_count() or 1) - 1)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert sink.stdout is not None
    url = f"http://127.0.0.1:{sink.stdout.readline().strip()}"
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in RUNNERS}
    for _ in range(options.rounds):
        for name, measured in runs.items():
            command = [sys.executable, __file__, "--events", str(options.events), "--child", name, url]
            measured.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    sink.communicate()
    result: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "events": options.events,
        "rounds": options.rounds,
        "medians": {
            name: {key: statistics.median(run[key] for run in measured) for key in measured[0]}
            for name, measured in runs.items()
        },
    }
    print(result["machine"])
    print(f"{'':8}{'events/s':>12}{'CPU us/event':>14}{'of the floor':>14}")
    base = result["medians"]["floor"]
    for name, row in result["medians"].items():
        share = row["events_per_second"] / base["events_per_second"]
        print(f"{name:8}{row['events_per_second']:12,.0f}{row['cpu_us_per_event']:14.2f}{share:14.2f}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
