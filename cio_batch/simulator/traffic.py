"""What the clients did on the wire: counts, and whether two calls ever held one person at a time.

Rules:

1. A call is being handled from its headers to its answer. A call whose client has gone is not handled any
   more, even if its handler has not noticed yet: a client may repeat what it gave up.
2. ``hold`` and ``release`` come in pairs. An overlap is counted once per arriving call, however many people
   it shares and with however many calls.

This module must not know aiohttp or the workspace.
"""

from collections import Counter
from collections.abc import Callable, Hashable

import attrs


@attrs.frozen(eq=False)
class Hold:
    """The people and objects of one call that is being handled."""

    keys: frozenset[Hashable]
    is_gone: Callable[[], bool]


@attrs.define
class Traffic:
    """Counts of the calls since the start or the last reset; calls to ``/simulator/`` are not in it.

    Attributes:
        calls: All HTTP calls, answered or not, known path or not.
        calls_by_path: The same by the path's template in the published document.
        unknown_calls: Calls whose path or method is not Customer.io's.
        statuses: Answers by status; a dropped or black-holed call has none.
        max_overlap: Most calls that were being handled at one instant.
        person_overlaps: Calls that arrived with a person whom another call still held; 0 for a client that
            keeps the order per person.
        object_overlaps: The same for objects.
        retried_calls: Calls whose header ``X-Retry-Count`` was above 0.
        user_agents: Every ``User-Agent`` seen.
        largest_body_bytes: The longest request body.
        batch_sizes: The number of operations of each batch call, in order of arrival.
    """

    calls: int = 0
    calls_by_path: Counter[str] = attrs.field(factory=Counter[str])
    unknown_calls: int = 0
    statuses: Counter[int] = attrs.field(factory=Counter[int])
    max_overlap: int = 0
    person_overlaps: int = 0
    object_overlaps: int = 0
    retried_calls: int = 0
    user_agents: set[str] = attrs.field(factory=set[str])
    largest_body_bytes: int = 0
    batch_sizes: list[int] = attrs.field(factory=list[int])
    _handled: int = attrs.field(default=0, init=False)
    _people: dict[Hashable, tuple[Hold, ...]] = attrs.field(factory=dict, init=False)
    _objects: dict[Hashable, tuple[Hold, ...]] = attrs.field(factory=dict, init=False)

    def begin(self, user_agent: str, retry_count: str) -> None:
        """Count a call whose headers have arrived; ``end`` must follow."""
        self.calls += 1
        self._handled += 1
        self.max_overlap = max(self.max_overlap, self._handled)
        self.user_agents.add(user_agent)
        if retry_count.isdigit() and int(retry_count) > 0:
            self.retried_calls += 1

    def end(self) -> None:
        """Count a call as handled, however it ended."""
        self._handled -= 1

    def hold_people(self, keys: frozenset[Hashable], is_gone: Callable[[], bool]) -> Hold:
        """Note that a call holds these people until ``release``.

        Args:
            keys: The people whom its operations name.
            is_gone: Says whether the call's client has closed its connection.
        """
        hold = Hold(keys, is_gone)
        self.person_overlaps += _take(self._people, hold)
        return hold

    def hold_objects(self, keys: frozenset[Hashable], is_gone: Callable[[], bool]) -> Hold:
        """Note that a call holds these objects until ``release``."""
        hold = Hold(keys, is_gone)
        self.object_overlaps += _take(self._objects, hold)
        return hold

    def release(self, *holds: Hold) -> None:
        """Let go of what ``hold_people`` and ``hold_objects`` returned."""
        for hold in holds:
            for held in (self._people, self._objects):
                _leave(held, hold)


def _take(held: dict[Hashable, tuple[Hold, ...]], hold: Hold) -> bool:
    alone = (hold,)
    if held.keys().isdisjoint(hold.keys):
        held.update(dict.fromkeys(hold.keys, alone))
        return False
    overlaps = False
    for key in hold.keys:
        others = held.get(key, ())
        overlaps = overlaps or any(not other.is_gone() for other in others)
        held[key] = others + alone
    return overlaps


def _leave(held: dict[Hashable, tuple[Hold, ...]], hold: Hold) -> None:
    for key in hold.keys:
        others = held.get(key)
        if others is None:
            continue
        if len(others) == 1 and others[0] is hold:
            del held[key]
        else:
            held[key] = tuple(other for other in others if other is not hold)
