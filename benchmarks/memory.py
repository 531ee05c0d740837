"""What does a pending event take, and does memory stay flat?

    python benchmarks/memory.py [--events N] [--json FILE]

pending   90,000 events wait in a tracker; bytes of memory for each beyond its encoded bytes, as Python counts them and
          as the operating system does. Once with 5,000 persons whose ids are the program's anyway; once each is of a
          person of its own, with a UUID that nobody else keeps, and half of them are in flight, again and again.
outage    nobody listens; a million events come, and the oldest are dropped: growth after the queue was full.
through   ten million events (or ``--events``) are delivered: growth after the first tenth.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import tracemalloc
import uuid
from pathlib import Path
from typing import Any

import harness

PENDING = 90_000
NOBODY = "http://127.0.0.1:9"  # the discard port, at which nobody listens


async def fill(tracker: Any, *, own_ids: bool) -> None:
    """Enqueue what is to be pending."""
    for n, (person, name, data) in enumerate(harness.Workload(PENDING)):
        await tracker.enqueue(str(uuid.UUID(int=n << 64)) if own_ids else person, name, data)


async def pending(options: argparse.Namespace, *, own_ids: bool, traced: bool) -> dict[str, float]:
    """Bytes of a pending event."""
    tracker = harness.tracker(NOBODY, drain_timeout=0.1)
    async with tracker:
        await tracker.enqueue("user-0", "page_viewed_0", {})
        gc.collect()
        if traced:
            tracemalloc.start()
        before = harness.rss()
        await fill(tracker, own_ids=own_ids)
        gc.collect()
        used = tracemalloc.get_traced_memory()[0] if traced else harness.rss() - before
        stats = tracker.stats()
        encoded = (stats.pending_bytes + stats.in_flight_bytes) / (stats.pending + stats.in_flight)
    return {"encoded bytes": encoded, "bytes beyond": used / PENDING - encoded}


async def outage(options: argparse.Namespace) -> dict[str, float]:
    """Growth while nothing can be sent."""
    async with harness.tracker(NOBODY, overflow="drop_oldest", drain_timeout=0.1) as tracker:
        full = 0
        for n, (person, name, data) in enumerate(harness.Workload(1_000_000)):
            await tracker.enqueue(person, name, data)
            if n == 200_000:
                full = harness.rss()
        stats = tracker.stats()
        return {"growth, MB": (harness.rss() - full) / 1e6, "dropped": stats.dropped}


async def through(url: str, options: argparse.Namespace) -> dict[str, float]:
    """Growth while events are delivered."""
    async with harness.tracker(url) as tracker:
        early = 0
        for n, (person, name, data) in enumerate(harness.Workload(options.events)):
            await tracker.enqueue(person, name, data)
            if n == options.events // 10:
                early = harness.rss()
        await tracker.flush()
        assert tracker.stats().delivered == options.events
        return {"growth, MB": (harness.rss() - early) / 1e6, "delivered": options.events}


def main() -> None:
    """Measure one after the other and print what was found."""
    parts = {
        "pending": lambda url, options: pending(options, own_ids=False, traced=True),
        "pending, RSS": lambda url, options: pending(options, own_ids=False, traced=False),
        "pending, own ids": lambda url, options: pending(options, own_ids=True, traced=True),
        "own ids, RSS": lambda url, options: pending(options, own_ids=True, traced=False),
        "outage": lambda url, options: outage(options),
        "through": through,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=10_000_000, help="events to deliver")
    parser.add_argument("--json", type=Path, help="where to write the results")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        harness.pin()
        logging.disable(logging.CRITICAL)  # an outage is what is wanted
        print(json.dumps(asyncio.run(parts[options.child[0]](options.child[1], options))))
        return
    found: dict[str, dict[str, float]] = {}
    with harness.Sink() as sink:
        for part in parts:
            found[part] = harness.in_child(__file__, "--events", options.events, "--child", part, sink.url)
    print(harness.machine())
    for part, values in found.items():
        print(f"{part:18}" + ", ".join(f"{what}: {value:,.1f}" for what, value in values.items()))
    harness.write(options.json, {"results": found})


if __name__ == "__main__":
    main()
