"""What was sent from a file against what the service has.

Rules:

1. An operation is compared as a whole: its canonical JSON, made from the line and not by the tracker's encoder.
2. What is compared is the order of first arrival: a repeat of a call that had arrived is no second operation. Of
   byte-identical operations without an id (an identify that stands in the file twice) only the first can be told.

Must not know: asyncio, files, the tracker.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attrs
import orjson

from cio_batch.operations import Draft


@attrs.frozen(kw_only=True)
class Comparison:
    """How the file and the service differ.

    Attributes:
        people: How many people the file names.
        expected: Operations that were to arrive, each counted once.
        missing: Those that did not.
        unexpected: Those that arrived, and stand nowhere in the file.
        out_of_order: Those that arrived after a later one of the same person.
    """

    people: int
    expected: int
    missing: int
    unexpected: int
    out_of_order: int

    @property
    def broken(self) -> list[str]:
        """What is not as it should be, a sentence each."""
        counts = [
            (self.missing, "never arrived"),
            (self.unexpected, "arrived that nobody sent"),
            (self.out_of_order, "arrived after a later one of the same person"),
        ]
        return [f"{number:,} operations {what}" for number, what in counts if number]


class Ledger:
    """Every operation that was given to a tracker, person by person, in order."""

    def __init__(self) -> None:
        self._people: dict[str, dict[bytes, None]] = {}
        self._excused: set[bytes] = set()

    def add(self, draft: Draft) -> None:
        """Note an operation; it is valid, and an event has its id and timestamp already."""
        person = self._people.setdefault(str(draft.subject), {})
        person.setdefault(_canonical(_wire(draft)))

    def excuse(self, operation: Mapping[str, Any] | Draft) -> None:
        """Expect an operation no longer: it was not accepted, or rejected, or failed. It may be there all the same."""
        self._excused.add(_canonical(_wire(operation) if isinstance(operation, Draft) else operation))

    def compare(self, arrived: Mapping[str, Iterable[Mapping[str, Any]]]) -> Comparison:
        """Compare with the first arrivals of every person, by id."""
        expected = missing = unexpected = out_of_order = 0
        for person in self._people.keys() | arrived.keys():
            wanted = [operation for operation in self._people.get(person, ()) if operation not in self._excused]
            places = {operation: place for place, operation in enumerate(wanted)}
            there = [raw for raw in map(_canonical, arrived.get(person, ())) if raw not in self._excused]
            expected += len(places)
            missing += len(places.keys() - set(there))
            latest = -1
            for operation in there:
                place = places.get(operation)
                if place is None:
                    unexpected += 1
                    continue
                out_of_order += place < latest
                latest = max(latest, place)
        return Comparison(
            people=len(self._people),
            expected=expected,
            missing=missing,
            unexpected=unexpected,
            out_of_order=out_of_order,
        )


def _canonical(operation: Mapping[str, Any]) -> bytes:
    return orjson.dumps(operation, option=orjson.OPT_SORT_KEYS)


def _wire(draft: Draft) -> dict[str, Any]:
    wire: dict[str, Any] = {
        "type": "person",
        "action": draft.kind.partition(".")[2],
        "identifiers": {"id": draft.subject},
        "name": draft.name,
        "id": None if draft.id is None else draft.id.upper(),
        "timestamp": int(draft.timestamp) if isinstance(draft.timestamp, (int, float)) else None,
        "attributes": draft.attributes,
    }
    return {name: value for name, value in wire.items() if value is not None}
