"""Which events the demo makes: the same ones each time, so that a second producer can go on where the first ended.

Rules:

1. An event is a person and a sequence number. A person's numbers begin at 0 and have no gaps, and a person belongs
   to one producer; so the number of events that were accepted says which ones they were.
2. Some people do more than others, as in life.

Must not know: the clock, asyncio, the tracker.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import attrs


@attrs.frozen(kw_only=True)
class Plan:
    """What one producing process is to do.

    Attributes:
        events: Events in all.
        people: People in all.
        seed: Of the draw.
        starts: How many events of each producer were accepted before; its length is the number of producers, at
            most that of people.
        ease_from: From this share of its events on, a producer slows down to a trickle, so that it still runs when
            the signal comes; 1 for never.
        batch_size: Operations in a call.
        max_pending: Operations that the tracker may hold.
    """

    events: int
    people: int
    seed: int
    starts: tuple[int, ...]
    ease_from: float = 1.0
    batch_size: int
    max_pending: int

    @classmethod
    def from_content(cls, content: dict[str, Any]) -> Plan:
        """Make a plan from parsed JSON of :func:`attrs.asdict`."""
        values: dict[str, Any] = content | {"starts": tuple(content["starts"])}
        return cls(**values)

    def quota(self, producer: int) -> int:
        """How many events are a producer's."""
        each, rest = divmod(self.events, len(self.starts))
        return each + (producer < rest)

    def events_of(self, producer: int) -> Iterator[tuple[str, int]]:
        """Every event of a producer, in order, as person and sequence number."""
        mine = range(producer, self.people, len(self.starts))
        # Text as a seed is hashed by a method that does not differ between processes.
        draw = random.Random(f"{self.seed}/{producer}").random
        count: Counter[str] = Counter()
        for _ in range(self.quota(producer)):
            person = f"person-{mine[int(len(mine) * draw() ** 2)]:05}"
            yield person, count[person]
            count[person] += 1

    def totals(self) -> Counter[str]:
        """How many events each person has."""
        return Counter(person for producer in range(len(self.starts)) for person, _ in self.events_of(producer))
