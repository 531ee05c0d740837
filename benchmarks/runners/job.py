"""What every runner shares: it reads its job from standard input and prints what it took.

Runs in the peers' own environments, so it imports nothing but the standard library.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from importlib.metadata import version
from typing import Any


class Job:
    """What to send.

    Attributes:
        url: The origin to send to, by plain HTTP.
        host: Its host.
        port: Its port.
        data: The data of every event.
    """

    def __init__(self, url: str, people: int, data: dict[str, Any]) -> None:
        self.url = url
        self.host, _, port = url.removeprefix("http://").partition(":")
        self.port = int(port)
        self.data = data
        self._people = [f"user-{number}" for number in range(people)]

    def people(self, events: int) -> Iterator[str]:
        """Say whose event each is."""
        return itertools.islice(itertools.cycle(self._people), events)


def measure(package: str, send: Callable[[Job, int], None]) -> None:
    """Send a few events to warm up, then those that count.

    Args:
        package: Whose version is to be told.
        send: Sends so many events, and returns once every one of them was answered.
    """
    asked = json.load(sys.stdin)
    job = Job(asked["url"], asked["people"], asked["data"])
    if asked["warm_up"]:
        send(job, asked["warm_up"])
    cpu, began = time.process_time(), time.perf_counter()
    send(job, asked["events"])
    seconds = time.perf_counter() - began
    json.dump({"version": version(package), "seconds": seconds, "cpu_seconds": time.process_time() - cpu}, sys.stdout)


async def at_a_time(concurrency: int, calls: Iterator[Awaitable[Any]]) -> None:
    """Await all calls, so many at a time; each is made only when its turn comes."""

    async def work() -> None:
        for call in calls:
            await call

    await asyncio.gather(*(work() for _ in range(concurrency)))
