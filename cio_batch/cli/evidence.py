"""What the producers said about their events against what the service has: the demo's verdict.

Rules:

1. Everything is judged by single events, named by person and sequence number, and by their ids; no counter of the
   tracker is asked.
2. An event is *lost* when it was accepted, the service does not have it, and no verdict said so.
3. A verdict must be true: what was reported as delivered is at the service; what was reported as rejected was refused
   there. An event whose first call arrived without an answer may be at the service although its end was another one.

Must not know: asyncio, the simulator, the tracker.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

import attrs

from cio_batch.cli.record import Settled
from cio_batch.verdicts import Verdict

Event = tuple[str, int]
"""Person and sequence number."""

_WHOLE_CALL: Final = 400


@attrs.frozen(kw_only=True)
class Evidence:
    """What is known after a run.

    Attributes:
        planned: How many events each person was to have.
        accepted: How many of them a tracker accepted.
        settled: Every verdict that a tracker gave.
        arrived: What the service has of each person: sequence number and id, in the order in which it applied them.
        refused: The ids of valid events that the service refused by themselves: in a 207, or alone in their call.
        refused_calls: How many whole calls it refused (400). Such a call rejects an event where it held only one.
        person_overlaps: Calls that arrived while another one held one of their people.
        faults: How often each kind of fault took effect.
        wanted_faults: The kinds that were to.
        complaints: What went wrong with the processes themselves, a sentence each.
    """

    planned: Mapping[str, int]
    accepted: Mapping[str, int]
    settled: Sequence[Settled]
    arrived: Mapping[str, Sequence[tuple[int, str]]]
    refused: Collection[str]
    refused_calls: int = 0
    person_overlaps: int = 0
    faults: Mapping[str, int] = attrs.field(factory=dict[str, int])
    wanted_faults: Collection[str] = ()
    complaints: Sequence[str] = ()


@attrs.frozen(kw_only=True)
class Findings:
    """The numbers, and what they mean.

    Attributes:
        accepted: Events that a tracker accepted.
        delivered: Events reported as delivered.
        rejected: Events reported as rejected.
        refused: Events that the service refused.
        given_up: Events reported as failed or dropped.
        lost: Events accepted that neither arrived nor were reported as anything else than delivered.
        out_of_order: Events that the service applied after a later one of the same person.
        broken: The promises that did not hold, a sentence each.
    """

    accepted: int
    delivered: int
    rejected: int
    refused: int
    given_up: int
    lost: int
    out_of_order: int
    broken: tuple[str, ...]


def judge(evidence: Evidence) -> Findings:
    """Compare what was said with what there is."""
    accepted = _named(evidence.accepted)
    verdicts: dict[Verdict, dict[Event, str]] = {verdict: {} for verdict in Verdict}
    times: Counter[Event] = Counter()
    for each in evidence.settled:
        event = (each.person, each.sequence)
        verdicts[each.verdict][event] = each.id
        times[event] += 1
    delivered, rejected = verdicts[Verdict.DELIVERED], verdicts[Verdict.REJECTED]
    given_up = verdicts[Verdict.FAILED] | verdicts[Verdict.DROPPED]
    arrived = [((person, sequence), ulid) for person, events in evidence.arrived.items() for sequence, ulid in events]
    present = {event for event, _ in arrived}
    present_ids = {ulid for _, ulid in arrived}
    refused = set(evidence.refused)
    alone = {each.id for each in evidence.settled if each.verdict is Verdict.REJECTED and each.status == _WHOLE_CALL}
    if len(alone - refused) <= evidence.refused_calls:
        refused |= alone
    rejected_ids, otherwise_ids = set(rejected.values()), set(rejected.values()) | set(given_up.values())

    lost = accepted - present - rejected.keys() - given_up.keys()
    out_of_order = sum(map(_inversions, evidence.arrived.values()))
    counts: list[tuple[int, str]] = [
        (len(lost), "were lost: accepted, and neither delivered nor reported"),
        (out_of_order, "were applied after a later one of the same person"),
        (evidence.person_overlaps, "calls carried a person whom another call still held"),
        (len(accepted - times.keys()), "were accepted and never got a verdict"),
        (sum(number > 1 for number in times.values()), "got more than one verdict"),
        (len(times.keys() - accepted), "got a verdict and were never accepted"),
        (len(set(delivered.values()) - present_ids), "were reported as delivered, and the service does not have them"),
        (
            len(present_ids - set(delivered.values()) - otherwise_ids),
            "are at the service, and were never reported",
        ),
        (len(arrived) - len(present), "are at the service twice, under two ids"),
        (len(rejected_ids - refused), "were reported as rejected, and the service did not refuse them"),
        (len(refused - rejected_ids - present_ids), "were refused by the service, and not reported as rejected"),
        (len(given_up), "were given up, although the service came back"),
        (len(_named(evidence.planned) - accepted), "were never accepted"),
        (len(accepted - _named(evidence.planned)), "were accepted and never planned"),
    ]
    broken = [
        f"{number:,} {text}" if "calls" in text else f"{number:,} events {text}" for number, text in counts if number
    ]
    broken += [f"no call met the fault {kind!r}" for kind in evidence.wanted_faults if not evidence.faults.get(kind)]
    return Findings(
        accepted=len(accepted),
        delivered=len(delivered),
        rejected=len(rejected),
        refused=len(refused),
        given_up=len(given_up),
        lost=len(lost),
        out_of_order=out_of_order,
        broken=(*broken, *evidence.complaints),
    )


def _named(counts: Mapping[str, int]) -> set[Event]:
    return {(person, sequence) for person, count in counts.items() for sequence in range(count)}


def _inversions(events: Iterable[tuple[int, str]]) -> int:
    latest, count = -1, 0
    for sequence, _ in events:
        count += sequence < latest
        latest = max(latest, sequence)
    return count
