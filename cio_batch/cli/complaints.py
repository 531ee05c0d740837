"""What is wrong with the lines of a file (or with its letters), said by their numbers and never a thousand times over.

Rules:

1. What is said of a line is said at once, at most ``MAX_SAME`` times in the same words and ``MAX_TOLD`` times in all.
2. The rest is counted, and said at the end in one line for each text, with the numbers of the lines as ranges.
3. Memory is bounded: by ``MAX_TEXTS`` texts, and by ``MAX_RANGES`` ranges for each.

Must not know: the screen, the tracker.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import attrs

MAX_SAME: Final = 5
MAX_TOLD: Final = 20
MAX_TEXTS: Final = 50
MAX_RANGES: Final = 10
_OTHERS: Final = "other faults"


@attrs.define
class _Held:
    """Lines of which the same is to be said.

    Attributes:
        count: How many they are.
        told: How many there were before, each with its own note.
        ranges: First and last number of the first ranges.
        complete: Whether these are all.
    """

    count: int = 0
    told: int = 0
    ranges: list[list[int]] = attrs.field(factory=list[list[int]])
    complete: bool = True

    def add(self, number: int) -> None:
        self.count += 1
        if self.ranges and number == self.ranges[-1][1] + 1:
            self.ranges[-1][1] = number
        elif len(self.ranges) < MAX_RANGES:
            self.ranges.append([number, number])
        else:
            self.complete = False


class Complaints:
    """Decides which complaint is said when.

    Args:
        noun: What the numbers count.
    """

    def __init__(self, noun: str = "line") -> None:
        self._noun = noun
        self._held: dict[str, _Held] = {}
        self._told = 0

    def add(self, number: int, text: str) -> str | None:
        """Note a fault of a line; return what is to be said at once, if anything."""
        held = self._entry(text)
        if held.told < MAX_SAME and self._told < MAX_TOLD and not held.count:
            held.told += 1
            self._told += 1
            return f"{self._noun} {number}: {text}"
        held.add(number)
        return None

    def keep(self, numbers: Iterable[int], text: str) -> None:
        """Note a fault of many lines, to be said at the end only."""
        held = self._entry(text)
        for number in sorted(numbers):
            held.add(number)

    def rest(self) -> Iterator[str]:
        """What is left to say, a line for each text."""
        for text, held in self._held.items():
            if not held.count:
                continue
            ranges = ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in held.ranges)
            more = "more " if held.told else ""
            noun = self._noun if held.count == 1 else f"{self._noun}s"
            yield f"{text}: {held.count:,} {more}{noun} ({ranges}{'' if held.complete else ', …'})"

    def _entry(self, text: str) -> _Held:
        if text not in self._held and len(self._held) >= MAX_TEXTS:
            text = _OTHERS
        return self._held.setdefault(text, _Held())
