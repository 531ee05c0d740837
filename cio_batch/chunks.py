"""Which operations go into the next call: a backlog that forms chunks.

Rules:

1. A chunk holds at most ``max_operations`` operations, and at most ``max_bytes`` bytes once they are joined with
   commas and wrapped in the envelope. This is checked before an operation is added.
2. At most one chunk that is out (taken and not released) holds a given person. Later operations of that person
   wait, in their order; everyone else goes on.
3. Operations of one person are taken in the order in which they were added. One that names several keeps its
   place with each of them: it waits until it is the next one of all.
4. Nothing of a person follows, in the same chunk, an operation whose repeat could undo it (``FINAL_KINDS``).
5. Kinds that take another road (``apart``) never share a chunk with the others.
6. No operation is moved more than a constant number of times, whatever the skew: a person who has half of all
   events costs no more than anyone else.

Must not know: the clock, asyncio, the wire.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection, Iterable, Iterator
from typing import Final

import attrs

from cio_batch.operations import FINAL_KINDS, Key, Operation

SEPARATOR_BYTES: Final = 1


@attrs.frozen(eq=False)
class Chunk:
    """The operations of one call, and whom they are about.

    Attributes:
        operations: In the order in which they go out.
        keys: Every person or object in it; they are held back elsewhere until :meth:`Backlog.release`.
    """

    operations: list[Operation]
    keys: set[Key]


class Backlog:
    """Operations that wait for a call, and the rules by which they are taken.

    An operation is in exactly one of two places: in ``_fresh``, in order of arrival, or in the lane of each person
    it names, because an earlier one of that person is out or in that lane. It is *due* when it must not wait for a
    fuller chunk.

    Args:
        max_operations: Operations in a chunk.
        max_bytes: Bytes of a body, envelope and commas included.
        envelope_bytes: Bytes of the envelope alone.
        apart: Kinds that never share a chunk with other kinds.
        max_apart: Operations in a chunk of such kinds.
    """

    # Invariants, between any two calls:
    #   _blocked == _out | _lanes.keys()
    #   every lane is the lane of a person who is out, or stands in _open, or begins with an operation that another
    #   person whom it names will bring up: one who is out, stands in _open, or has an earlier one to send
    def __init__(
        self,
        *,
        max_operations: int,
        max_bytes: int,
        envelope_bytes: int,
        apart: Collection[str] = frozenset(),
        max_apart: int = 1,
    ) -> None:
        self._max_operations = max_operations
        # Each operation brings its separator; the last one has none.
        self._room = max_bytes - envelope_bytes + SEPARATOR_BYTES
        self._apart = frozenset(apart)
        self._max_apart = max_apart
        self._fresh: deque[Operation] = deque()
        self._fresh_bytes = 0
        self._due_fresh = 0  # how many at the head of _fresh are due
        # In the order of their making. An OrderedDict, because a dict whose head was deleted again and again is slow to
        # find its first entry: 100,000 calls of drop_oldest() took 1.4 s.
        self._lanes: OrderedDict[Key, deque[Operation]] = OrderedDict()
        self._repeats = 0  # how many times operations stand in lanes besides their first
        self._due_lanes: set[Key] = set()
        # Whose lanes are to be tried by the next take(), each once: who cannot be taken from for long would otherwise
        # be noted again with every drop_oldest().
        self._open: OrderedDict[Key, None] = OrderedDict()
        self._out: set[Key] = set()
        self._blocked: set[Key] = set()

    def __len__(self) -> int:
        return len(self._fresh) + sum(map(len, self._lanes.values())) - self._repeats

    def __iter__(self) -> Iterator[Operation]:
        """Every operation once; those of one person in order."""
        lanes = {key: deque(lane) for key, lane in self._lanes.items()}
        to_try = deque(lanes)
        while to_try:
            key = to_try.popleft()
            while (lane := lanes[key]) and all(lanes[each][0] is lane[0] for each in _keys(lane[0])):
                operation = lane[0]
                for each in _keys(operation):
                    lanes[each].popleft()
                    if each != key:
                        to_try.append(each)
                yield operation
        yield from self._fresh

    def add(self, operations: Iterable[Operation], nbytes: int) -> None:
        """Take operations over, in order of arrival; ``nbytes`` is the sum of their bodies."""
        self._fresh.extend(operations)
        self._fresh_bytes += nbytes

    def expire(self) -> None:
        """Make everything that waits now due, wherever it is."""
        self._due_fresh = len(self._fresh)
        self._due_lanes.update(self._lanes)
        self._open = OrderedDict.fromkeys(key for key in self._lanes if key not in self._out)

    def ready(self) -> bool:
        """Whether :meth:`take` may find a chunk that is full or due."""
        return bool(
            self._open or self._due_fresh or len(self._fresh) >= self._max_operations or self._fresh_bytes >= self._room
        )

    def take(self) -> Chunk | None:
        """Form the next chunk, or return ``None`` when nothing is due and nothing is full.

        What goes is filled up with what is not due yet, as far as it fits.
        """
        while self.ready():
            operations: list[Operation] = []
            keys: set[Key] = set()
            closed: set[Key] = set()  # of whom nothing more goes into this chunk
            room = self._take_lanes(operations, keys, closed)
            if room:
                self._take_fresh(operations, keys, closed, room)
            if operations:
                self._out |= keys
                self._blocked |= keys
                return Chunk(operations, keys)
        return None

    def release(self, chunk: Chunk) -> None:
        """The chunk is settled: let the next operations of its persons go."""
        self._out -= chunk.keys
        self._blocked -= chunk.keys
        if not self._lanes:
            return
        for key in chunk.keys & self._lanes.keys():
            lane = self._lanes[key]
            if key in self._due_lanes or self._must_stay(lane):
                self._blocked.add(key)
                self._open[key] = None
                continue
            # Neither due nor a chunk of its own: it waits on like everything fresh, at the head.
            del self._lanes[key]
            self._fresh.extendleft(reversed(lane))
            self._fresh_bytes += sum(len(operation[0]) for operation in lane)
            if self._due_fresh:
                self._due_fresh += len(lane)

    def restore(self, chunk: Chunk, undecided: Iterable[Operation]) -> None:
        """Put what is left of a chunk back to the head, in its order and due, and release its persons."""
        for operation in reversed(list(undecided)):
            keys = _keys(operation)
            self._repeats += len(keys) - 1
            for key in keys:
                self._lanes.setdefault(key, deque()).appendleft(operation)
                self._due_lanes.add(key)
        self.release(chunk)

    def drop_oldest(self) -> Operation | None:
        """Remove and return an operation that has waited longest of everyone it names; ``None`` when none waits.

        Held-back operations go before fresh ones. Among the persons held back it is not known whose waits longest.
        """
        for lane in self._lanes.values():
            operation = lane[0]
            keys = _keys(operation)
            if all(self._lanes[each][0] is operation for each in keys):
                for each in keys:
                    self._lanes[each].popleft()
                self._repeats -= len(keys) - 1
                for each in keys:
                    self._head_changed(each)
                return operation
        if self._fresh:
            operation = self._fresh.popleft()
            self._fresh_bytes -= len(operation[0])
            self._due_fresh = max(0, self._due_fresh - 1)
            return operation
        return None

    # ------------------------------------------------------------------------------------------------- inside

    def _take_lanes(self, operations: list[Operation], keys: set[Key], closed: set[Key]) -> int:
        """Take from the lanes that are open. Return the room that is left, 0 when the chunk must stay as it is."""
        room = self._room
        for _ in range(len(self._open)):
            key, _ = self._open.popitem(last=False)
            while key in self._lanes and key not in self._out and key not in closed:
                operation = self._lanes[key][0]
                among = _keys(operation)
                if len(among) > 1 and not self._is_next_of_all(operation, among, closed):
                    break  # the lane of the other one brings it up again
                if operations and self._is_apart(operation) != self._is_apart(operations[0]):
                    self._open[key] = None
                    break
                size = len(operation[0]) + SEPARATOR_BYTES
                if operations and (size > room or len(operations) >= self._limit(operations[0])):
                    self._open[key] = None
                    self._open.move_to_end(key, last=False)
                    return 0
                room -= size
                operations.append(operation)
                keys.update(among)
                if operation[2] in FINAL_KINDS:
                    closed.update(among)
                self._repeats -= len(among) - 1
                for each in among:
                    self._lanes[each].popleft()
                for each in among:
                    self._head_changed(each, besides=key)
        # What is apart is not mixed with what is fresh; it finds its own kind in the lanes.
        return 0 if operations and self._is_apart(operations[0]) else room

    def _take_fresh(self, operations: list[Operation], keys: set[Key], closed: set[Key], room: int) -> None:
        fresh, blocked, apart, final = self._fresh, self._blocked, self._apart, FINAL_KINDS
        limit, alone = self._max_operations, False
        gone, gone_bytes = 0, 0
        while fresh:
            operation = fresh[0]
            body, key, kind = operation
            size = len(body)
            if kind in apart and not operations:
                limit, alone = self._max_apart, True
            if isinstance(key, tuple):
                waits = not blocked.isdisjoint(key) or not closed.isdisjoint(key)
            else:
                waits = key in blocked or key in closed
            if waits:
                self._hold(operation, due=gone < self._due_fresh)
            elif (kind in apart) is not alone:
                if alone:
                    break
                self._hold(operation, due=gone < self._due_fresh)
                self._open.update(dict.fromkeys(_keys(operation)))
            elif operations and (len(operations) >= limit or size + SEPARATOR_BYTES > room):
                break
            else:
                operations.append(operation)
                room -= size + SEPARATOR_BYTES
                if isinstance(key, tuple):
                    keys.update(key)
                else:
                    keys.add(key)
                if kind in final:
                    closed.update(_keys(operation))
            fresh.popleft()
            gone += 1
            gone_bytes += size
        self._due_fresh = max(0, self._due_fresh - gone)
        self._fresh_bytes -= gone_bytes

    def _hold(self, operation: Operation, *, due: bool) -> None:
        keys = _keys(operation)
        self._repeats += len(keys) - 1
        for key in keys:
            self._blocked.add(key)
            self._lanes.setdefault(key, deque()).append(operation)
            if due:
                self._due_lanes.add(key)

    def _head_changed(self, key: Key, besides: Key | None = None) -> None:
        """Forget a lane that has become empty; let one whose head has become another be tried."""
        if not self._lanes[key]:
            del self._lanes[key]
            self._due_lanes.discard(key)
            if key not in self._out:
                self._blocked.discard(key)
        elif key != besides:
            self._open[key] = None

    def _is_next_of_all(self, operation: Operation, among: tuple[Key, ...], closed: set[Key]) -> bool:
        return all(each not in self._out and each not in closed and self._lanes[each][0] is operation for each in among)

    def _is_apart(self, operation: Operation) -> bool:
        return operation[2] in self._apart

    def _limit(self, first: Operation) -> int:
        return self._max_apart if self._is_apart(first) else self._max_operations

    def _must_stay(self, lane: deque[Operation]) -> bool:
        """Whether a lane fills a chunk of its own, or holds what cannot go back among the fresh.

        It looks at no more than a chunk's worth, so that a long lane is not read again with each of its chunks.
        """
        room = self._room
        for count, (body, key, kind) in enumerate(lane, 1):
            room -= len(body) + SEPARATOR_BYTES
            if room <= 0 or count >= self._max_operations or isinstance(key, tuple) or kind in self._apart:
                return True
        return False


def _keys(operation: Operation) -> tuple[Key, ...]:
    key = operation[1]
    return key if isinstance(key, tuple) else (key,)
