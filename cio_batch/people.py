"""Those whom operations are about: a set that takes and gives whole lists of operations.

Rules:

1. Where the extension was built, it holds fingerprints of 64 bits instead of ids: 16 to 32 bytes for a person, and none
   of the ids is made for it. Two persons who share a fingerprint are taken for one: the operations of one of them then
   wait while the other one is out, at most until the next flush. Among 100,000 persons that happens once in four
   billion.
2. The fingerprints depend on a seed that each process draws, so nobody can choose ids that meet. All sets have the same
   one: what one of them returned can be asked of another.

Must not know: chunks, sizes, the wire.
"""

from __future__ import annotations

import itertools
import operator
import os
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from cio_batch import speedups
from cio_batch.operations import Key, Operation, keys_of

Claim: TypeAlias = Any
"""People who were added in one call."""


def all_keys(operations: list[Operation]) -> set[Key]:
    """Everybody whom operations are about."""
    keys: set[Any] = set(keys_of(operations))
    if tuple in set(map(type, keys)):
        return {each for key in keys for each in (cast("tuple[Key, ...]", key) if type(key) is tuple else (key,))}
    return keys


class PeopleInPython:
    """People, to begin with nobody.

    Where the extension was built, ``People`` in ``_speedups.c`` takes its place.

    Args:
        seed: 16 bytes that nobody can foresee.
    """

    def __init__(self, seed: bytes) -> None:
        self._keys: set[Key] = set()

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: Key) -> bool:
        return key in self._keys

    def add(self, operations: list[Operation]) -> Claim:
        """Add everybody whom they are about; return who was not there before, for :meth:`remove`."""
        added = all_keys(operations) - self._keys
        self._keys |= added
        return list(added)  # a set takes six times as much, and in an outage there are many

    def remove(self, claim: Claim) -> None:
        """Remove those whom :meth:`add` returned."""
        self._keys.difference_update(claim)

    def meet(self, claim: Claim) -> bool:
        """Whether one of those whom :meth:`add` of any set returned is among them."""
        return not self._keys.isdisjoint(claim)

    def has_all(self, operations: list[Operation]) -> bool:
        """Whether everybody whom they are about is among them."""
        keys = self._keys
        for operation in operations:  # most often the first one is missing
            key = operation.key
            if not (keys.issuperset(key) if type(key) is tuple else key in keys):
                return False
        return True

    def sift(
        self, operations: list[Operation], due: int, lanes: dict[Key, Any], closed: set[Key]
    ) -> tuple[list[Operation], list[Operation], int, int] | None:
        """Part operations, each about one person, into those that may go and those that must wait.

        Args:
            operations: In order.
            due: How many of the first are due.
            lanes: Who must wait, too, by key.
            closed: Likewise.

        Returns:
            Those that may go, those that must wait, how many of the latter are due, and the sum of their bodies;
            ``None`` where all may go.
        """
        whose: list[Any] = keys_of(operations)
        people = set(whose)
        found = people & self._keys
        for others in (lanes.keys(), closed):
            if others:
                found |= people & others
        if not found:
            return None
        must_wait = list(map(found.__contains__, whose))
        waits = list(itertools.compress(operations, must_wait))
        goes = list(itertools.compress(operations, map(operator.not_, must_wait)))
        return goes, waits, sum(must_wait[:due]), sum(map(len, waits))


People = PeopleInPython
if not TYPE_CHECKING:
    People = speedups.people(PeopleInPython)

_SEED: Final = os.urandom(16)


def nobody() -> People:
    """A set of people, to begin with empty."""
    return People(_SEED)
