"""What the oracle knows against what it was promised; pure, so that the judge itself can be tried.

Rules:

1. Everything is judged by the exact bytes of single operations; no counter of the library is asked.
2. An operation is *lost* when its caller was told that it is durable, and it neither arrived nor is a dead letter that
   the service refused.
3. The order of a person's operations is that in which they were said to the spool, across all processes. What the
   service refused by itself is out of that order: if its verdict died with the process, it comes again, later.
4. A delete *undoes* when it arrives, for the first time or again, after something that was enqueued after it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import attrs
import orjson


@attrs.frozen(kw_only=True)
class Evidence:
    """What is known at the end; every operation as the bytes of its body.

    Attributes:
        said: What was given to the spool, in order.
        acknowledged: Whose ``enqueue`` returned, in the order in which the callers wrote that down.
        arrived: What the service applied, in order, repeats included.
        refused: What the service refused, alone or with the rest of its call.
        refused_alone: Those of them that it refused by themselves.
        dead_letters: What the spool keeps as dead letters.
    """

    said: Sequence[bytes]
    acknowledged: Sequence[bytes]
    arrived: Sequence[bytes]
    refused: Collection[bytes] = frozenset()
    refused_alone: Collection[bytes] = frozenset()
    dead_letters: Sequence[bytes] = ()


@attrs.frozen(kw_only=True)
class Findings:
    """What the evidence says. All but the first five must be 0.

    Attributes:
        acknowledged: Operations whose ``enqueue`` returned.
        arrived: Different operations that arrived.
        unacknowledged: Those of them whose caller was never told.
        repeated: Arrivals of what had arrived before.
        repeated_by_id: Those of them that have an id, by which the service ignores them.
        lost: See Rule 2.
        out_of_order: First arrivals after that of a later operation of the same person.
        foreign: Arrivals that are not, byte by byte, what was said to the spool.
        undone: See Rule 4.
        misreported: Acknowledgements of what was never said, or not in the order of the person.
        repeated_ids: Ids that two different operations have.
        wrongly_buried: Dead letters that the service never refused, or that were never said.
    """

    acknowledged: int
    arrived: int
    unacknowledged: int
    repeated: int
    repeated_by_id: int
    lost: int
    out_of_order: int
    foreign: int
    undone: int
    misreported: int
    repeated_ids: int
    wrongly_buried: int

    @property
    def broken(self) -> dict[str, int]:
        """What must be 0 and is not."""
        harmless = ("acknowledged", "arrived", "unacknowledged", "repeated", "repeated_by_id")
        return {name: count for name, count in attrs.asdict(self).items() if count and name not in harmless}


def judge(evidence: Evidence) -> Findings:
    """Compare."""
    places = {body: place for place, body in enumerate(evidence.said)}
    people: dict[bytes, str] = {}
    deletes: set[bytes] = set()
    ids: dict[bytes, str] = {}
    for body in places:
        operation = orjson.loads(body)
        people[body] = operation["identifiers"]["id"]
        if operation["action"] == "delete":
            deletes.add(body)
        if "id" in operation:
            ids[body] = operation["id"]

    known = [body for body in evidence.arrived if body in places]
    out_of_order, undone = _judge_order(known, places, people, deletes, evidence.refused_alone)
    arrived, acknowledged = set(known), set(evidence.acknowledged)
    buried = set(evidence.dead_letters)
    return Findings(
        acknowledged=len(acknowledged),
        arrived=len(arrived),
        unacknowledged=len(arrived - acknowledged),
        repeated=len(known) - len(arrived),
        repeated_by_id=sum(body in ids for body in known) - sum(body in ids for body in arrived),
        lost=sum(not (body in buried and body in evidence.refused) for body in acknowledged - arrived),
        out_of_order=out_of_order,
        foreign=len(evidence.arrived) - len(known),
        undone=undone,
        misreported=_count_misreported(evidence.acknowledged, places, people),
        repeated_ids=len(ids) - len(set(ids.values())) + len(evidence.said) - len(places),
        wrongly_buried=sum(body not in evidence.refused or body not in places for body in buried),
    )


def _judge_order(
    known: Sequence[bytes],
    places: dict[bytes, int],
    people: dict[bytes, str],
    deletes: Collection[bytes],
    exempt: Collection[bytes],
) -> tuple[int, int]:
    """Count first arrivals that came too late, and deletes that undid something."""
    out_of_order = undone = 0
    seen: set[bytes] = set()
    highest: dict[str, int] = {}
    for body in known:
        if body in exempt:
            continue
        person, place = people[body], places[body]
        late = place < highest.get(person, -1)
        undone += late and body in deletes
        out_of_order += late and body not in seen
        seen.add(body)
        highest[person] = max(place, highest.get(person, -1))
    return out_of_order, undone


def _count_misreported(acknowledged: Sequence[bytes], places: dict[bytes, int], people: dict[bytes, str]) -> int:
    wrong = 0
    last: dict[str, int] = {}
    for body in acknowledged:
        place = places.get(body, -1)
        person = people.get(body, "")
        wrong += place <= last.get(person, -1)
        last[person] = place
    return wrong
