"""Does an event cost the same however many there are, whoever they are about and whoever enqueues them?

    python benchmarks/scaling.py [--events N] [--rounds N] [--most N] [--json FILE]

CPU per event at 10,000 to ten million events (``--most``); with 1, 100 and 10,000 persons; with one person who has half
of all events; with 1, 10 and 100 producers. Before each run the base is measured, which is ``--events`` events of 5,000
persons by one producer; the ratio is the median of the ratios of these pairs, because a machine that others use is
faster in one minute than in the next.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import attrs
import harness

BASE = "base"


@attrs.frozen
class Case:
    """What is varied."""

    events: int
    people: int = 5_000
    hot: bool = False
    producers: int = 1


def cases(events: int, most: int) -> dict[str, Case]:
    """All cases by name."""
    sizes = [10**power for power in range(4, 8) if 10**power <= most]
    return {
        BASE: Case(events),
        **{f"{size:,} events": Case(size) for size in sizes},
        **{f"{people:,} persons": Case(events, people=people) for people in (1, 100, 10_000)},
        "half of one person": Case(events, hot=True),
        **{f"{count} producers": Case(events, producers=count) for count in (1, 10, 100)},
    }


async def measure(url: str, case: Case) -> float:
    """CPU in microseconds per event."""
    async with harness.tracker(url) as tracker:

        async def produce(events: Iterable[tuple[str, str, dict[str, Any]]]) -> None:
            for person, name, data in events:
                await tracker.enqueue(person, name, data)

        await produce(harness.Workload(20_000, people=case.people, hot=case.hot))  # warm up
        await tracker.flush()
        # A short run is repeated, so that the clock can see it.
        repeats = max(1, 200_000 // case.events)
        used = harness.cpu_seconds()
        for _ in range(repeats):
            events = iter(harness.Workload(case.events, people=case.people, hot=case.hot))
            await asyncio.gather(*[produce(events) for _ in range(case.producers)])
            await tracker.flush()
        return (harness.cpu_seconds() - used) / (case.events * repeats) * 1e6


def main() -> None:
    """Measure all in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000, help="events where their number is not varied")
    parser.add_argument("--most", type=int, default=10_000_000, help="the largest number of events")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="where to write the results")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    every = cases(options.events, options.most)
    if options.child:
        harness.pin()
        print(json.dumps(asyncio.run(measure(options.child[1], every[options.child[0]]))))
        return
    flags = ["--events", options.events, "--most", options.most]
    runs: dict[str, list[float]] = {name: [] for name in every}
    ratios: dict[str, list[float]] = {name: [] for name in every}
    with harness.Sink() as sink:
        for _ in range(options.rounds):
            for name, measured in runs.items():
                base = harness.in_child(__file__, *flags, "--child", BASE, sink.url)
                measured.append(harness.in_child(__file__, *flags, "--child", name, sink.url))
                ratios[name].append(measured[-1] / base)
    medians = {name: statistics.median(measured) for name, measured in runs.items()}
    print(harness.machine())
    harness.show(
        ["", "CPU us/event", "ratio"],
        [[name, median, statistics.median(ratios[name])] for name, median in medians.items()],
    )
    harness.write(options.json, {"medians": medians, "runs": runs, "ratios": ratios})


if __name__ == "__main__":
    main()
