"""How long does ``enqueue`` take, how late does the loop come to other tasks, how old is an event when it is delivered?

    python benchmarks/latency.py [--events N] [--seconds N] [--json FILE]

enqueue idle    one event every two milliseconds: what a core that slept takes
orjson idle     the same data through orjson in between, by which the machine can be judged
gap idle        likewise: the longest gap between two looks at the clock within 20 microseconds of doing nothing else
enqueue steady  50,000 per second, in groups of 50; the queue has room
enqueue load    one after the other in a tight loop; the queue has room
lag             how much later than asked for a task wakes that sleeps for a millisecond: with nothing to do, while
                50,000 events per second are shipped, and at full speed
age             from enqueue to the verdict at 20 events per second, with the flush interval of 5 s
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import harness
import orjson

from cio_batch import SettledChunk


@asynccontextmanager
async def lag() -> AsyncIterator[list[float]]:
    """Note how late a task wakes, in milliseconds, as long as the context is open."""
    late: list[float] = []

    async def probe() -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            late.append((time.perf_counter() - before - 0.001) * 1e3)

    task = asyncio.create_task(probe())
    try:
        yield late
    finally:
        task.cancel()


async def idle(url: str, options: argparse.Namespace) -> dict[str, list[float]]:
    """One event every two milliseconds, and in between what says how much of its time is the machine's."""
    took: list[float] = []
    encoding: list[float] = []
    gaps: list[float] = []
    async with harness.tracker(url) as tracker:
        # As in a service that has been busy before: the first touch of a page of memory takes 20 microseconds in some
        # virtual machines, and one event in fifteen is the first to touch one.
        for person, name, data in harness.Workload(20_000):
            await tracker.enqueue(person, name, data)
        await tracker.flush()
        for person, name, data in harness.Workload(5_000):
            before = time.perf_counter()
            await tracker.enqueue(person, name, data)
            took.append((time.perf_counter() - before) * 1e6)
            await asyncio.sleep(0.001)
            before = time.perf_counter()
            orjson.dumps({"name": name, "identifiers": {"id": person}, "attributes": data})
            encoding.append((time.perf_counter() - before) * 1e6)
            gaps.append(longest_gap(20e-6) * 1e6)
            await asyncio.sleep(0.001)
    return {"enqueue idle, us": took, "orjson idle, us": encoding, "gap idle, us": gaps}


def longest_gap(seconds: float) -> float:
    """Look at the clock again and again for so long: a gap is what the machine does besides."""
    begun = before = time.perf_counter()
    longest = 0.0
    while before - begun < seconds:
        now = time.perf_counter()
        longest = max(longest, now - before)
        before = now
    return longest


async def load(url: str, options: argparse.Namespace) -> dict[str, list[float]]:
    """A tight loop."""
    took: list[float] = []
    async with harness.tracker(url) as tracker, lag() as late:
        for person, name, data in harness.Workload(options.events):
            before = time.perf_counter()
            await tracker.enqueue(person, name, data)
            took.append((time.perf_counter() - before) * 1e6)
    return {"enqueue load, us": took, "lag at full speed, ms": late}


async def steady(url: str, options: argparse.Namespace) -> dict[str, list[float]]:
    """50,000 events per second."""
    took: list[float] = []
    async with harness.tracker(url) as tracker, lag() as late:
        begun = time.perf_counter()
        for sent, (person, name, data) in enumerate(harness.Workload(50_000 * options.seconds), 1):
            before = time.perf_counter()
            await tracker.enqueue(person, name, data)
            took.append((time.perf_counter() - before) * 1e6)
            if sent % 50 == 0:
                await asyncio.sleep(max(0.0, begun + sent / 50_000 - time.perf_counter()))
    return {"enqueue steady, us": took, "lag at 50,000/s, ms": late}


async def nothing(url: str, options: argparse.Namespace) -> dict[str, list[float]]:
    """The loop alone."""
    async with lag() as late:
        await asyncio.sleep(options.seconds)
    return {"lag of an idle loop, ms": late}


async def age(url: str, options: argparse.Namespace) -> dict[str, list[float]]:
    """20 events per second."""
    begun: dict[str, float] = {}
    ages: list[float] = []

    def settled(chunk: SettledChunk) -> None:
        ages.extend(time.perf_counter() - begun.pop(operation.payload["name"]) for operation in chunk.operations)

    async with harness.tracker(url, on_settled=settled) as tracker:
        for n in range(20 * 2 * options.seconds):
            begun[f"event {n}"] = time.perf_counter()
            await tracker.enqueue(f"user-{n}", f"event {n}")
            await asyncio.sleep(0.05)
    return {"age at delivery, s": ages}


PARTS = {"idle": idle, "load": load, "nothing": nothing, "steady": steady, "age": age}


def main() -> None:
    """Measure one after the other and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=300_000, help="events at full speed")
    parser.add_argument("--seconds", type=int, default=5, help="how long the slower parts last")
    parser.add_argument("--json", type=Path, help="where to write the results")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        harness.pin()
        values = asyncio.run(PARTS[options.child[0]](options.child[1], options))
        shares = {"p50": 0.5, "p99": 0.99, "max": 1.0}
        print(
            json.dumps(
                {
                    what: {word: harness.percentile(each, share) for word, share in shares.items()}
                    for what, each in values.items()
                }
            )
        )
        return
    flags = ["--events", options.events, "--seconds", options.seconds]
    found: dict[str, dict[str, float]] = {}
    with harness.Sink() as sink:
        for part in PARTS:
            found |= harness.in_child(__file__, *flags, "--child", part, sink.url)
    print(harness.machine())
    harness.show(["", "p50", "p99", "max"], [[what, row["p50"], row["p99"], row["max"]] for what, row in found.items()])
    harness.write(options.json, {"results": found})


if __name__ == "__main__":
    main()
