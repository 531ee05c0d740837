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

import itertools
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Final, TypeAlias, cast

import attrs

from cio_batch.operations import FINAL_KINDS, Key, Operation, keys_of, kinds_of, running_bytes
from cio_batch.people import Claim, People, all_keys, nobody

SEPARATOR_BYTES: Final = 1
# How many operations may be held back while one chunk is formed: 250 ns each, and the loop waits for it.
_MAX_HELD: Final = 10_000
# Kinds that name one person, take no road of their own and have no rule: of them a chunk is formed in bulk.
_PLAIN_KINDS: Final = frozenset({"person.event", "person.page", "person.screen"})
# What waits behind one person who is out. Most lanes are short, and there may be as many as there are operations: a
# deque takes 620 bytes with a single one in it, a list 64. A list that grows long becomes a deque, whose head goes
# without moving the rest.
_Lane: TypeAlias = list[Operation] | deque[Operation]
_SHORT: Final = 64
_BULK: Final = 8  # a lane of so many is taken from in bulk
_RUN: Final = 64  # at a time, because the next ones may be too large to fit
_FEW: Final = 4  # operations of a person among those held back, from which on they are held back in bulk
_MANY: Final = 4  # operations for each lane there is, from which on it is cheaper to look at every lane
_MAX_BLOCKED: Final = 4  # each is asked whenever a chunk comes back


@attrs.frozen(eq=False)
class Chunk:
    """The operations of one call.

    Attributes:
        operations: In the order in which they go out; the list must not change before :meth:`Backlog.release`.
        nbytes: The sum of the bodies.
        claim: Everybody whom they are about; these are held back elsewhere until then.
    """

    operations: list[Operation]
    nbytes: int
    claim: Claim


@attrs.define(eq=False)
class _Forming:
    """A chunk while it is formed.

    Attributes:
        room: Bytes that are left, commas included.
        full: Whether nothing more may be added.
        operations: As in the chunk.
        closed: Of whom nothing more goes into it.
    """

    room: int
    full: bool = False
    operations: list[Operation] = attrs.field(factory=list)
    closed: set[Key] = attrs.field(factory=set)


@attrs.define(eq=False)
class _Run:
    """Operations that arrived one after the other, each about one person, and that have no rule of their own.

    Attributes:
        operations: In order.
        nbytes: The sum of the bodies.
        due: How many of the first are due.
        awake: Whether one of its persons was released since all of them were out.
        people: Whom its operations are about, those that have gone included; ``None`` until that is asked.
    """

    operations: list[Operation]
    nbytes: int
    due: int
    awake: bool = False
    people: People | None = None

    def meets(self, claim: Claim) -> bool:
        """Whether it is about somebody of a claim; that takes as long as the claim is, however long the run is."""
        if self.people is None:
            self.people = nobody()
            self.people.add(self.operations)
        return self.people.meet(claim)


class Backlog:
    """Operations that wait for a call, and the rules by which they are taken.

    An operation is in exactly one of three places: in ``_fresh``, in order of arrival; in a run of ``_blocked``, since
    all persons of that run are out; or in the lane of each person it names, because an earlier one of that person is
    out or in that lane. It is *due* when it must not wait for a fuller chunk.

    Where few persons have all the traffic, whole runs of it wait for the same call. They stay together, so that an
    operation costs no more than one of somebody else; only a run of which some can go and some cannot is taken apart.

    Args:
        max_operations: Operations in a chunk.
        max_bytes: Bytes of a body, envelope and commas included.
        envelope_bytes: Bytes of the envelope alone.
        apart: Kinds that never share a chunk with other kinds.
        max_apart: Operations in a chunk of such kinds.

    Attributes:
        full_bytes: From this sum of bodies on a chunk counts as full. A hundredth less than fits, so that what is
            handed over when a batch is full goes out whole, and no rest of it waits for the next.
    """

    # Invariants, between any two calls:
    #   the operations of a person are in order: first those in _lanes, then _blocked, then _fresh
    #   of a run in _blocked that is not awake, every person is out
    #   every lane is the lane of a person who is out, or stands in _open or _rested (in one of them), or begins with an
    #   operation that another person whom it names will bring up: one who is out, stands there, or has an earlier one
    #   _rested_operations is the sum of the lengths of the lanes in _rested
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
        self._spare = self._room // 100
        self.full_bytes = self._room - self._spare
        self._apart = frozenset(apart)
        self._special = self._apart | FINAL_KINDS  # one look tells the common operation from those with rules
        self._max_apart = min(max_apart, max_operations)
        self._fresh: deque[Operation] = deque()
        self._fresh_bytes = 0
        self._due_fresh = 0  # how many at the head of _fresh are due
        self._blocked: deque[_Run] = deque()  # in order of arrival
        # In the order of their making. An OrderedDict, because a dict whose head was deleted again and again is slow
        # to find its first entry: 100,000 calls of drop_oldest() took 1.4 s.
        self._lanes: OrderedDict[Key, _Lane] = OrderedDict()
        self._repeats = 0  # how many times operations stand in lanes besides their first
        self._due_lanes: set[Key] = set()
        # Whose lanes are to be tried by the next take(); those in _rested wait for a full chunk, like the fresh.
        self._open: OrderedDict[Key, None] = OrderedDict()
        self._rested: OrderedDict[Key, None] = OrderedDict()
        self._rested_operations = 0
        self._out = nobody()
        # All that was ever added: the mean tells when the lanes in _rested fill a chunk, without measuring them.
        self._added = 1
        self._added_bytes = 0

    def __len__(self) -> int:
        blocked = sum([len(run.operations) for run in self._blocked])
        return len(self._fresh) + blocked + sum(map(len, self._lanes.values())) - self._repeats

    def __iter__(self) -> Iterator[Operation]:
        """Every operation once; those of one person in order."""
        if self._repeats:
            return self._merged()
        return itertools.chain(itertools.chain.from_iterable(self._lanes.values()), self._in_no_lane())

    def _in_no_lane(self) -> Iterator[Operation]:
        """What stands in no lane, in order of arrival."""
        blocked = [run.operations for run in self._blocked]
        return itertools.chain(itertools.chain.from_iterable(blocked), self._fresh)

    def _merged(self) -> Iterator[Operation]:
        """The same where operations stand in several lanes."""
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
        yield from self._in_no_lane()

    def add(self, operations: Collection[Operation], nbytes: int) -> None:
        """Take operations over, in order of arrival; ``nbytes`` is the sum of their bodies.

        A deque belongs to the backlog from then on.
        """
        if isinstance(operations, deque) and not self._fresh:
            self._fresh = operations
        else:
            self._fresh.extend(operations)
        self._fresh_bytes += nbytes
        self._added += len(operations)
        self._added_bytes += nbytes

    def expire(self) -> None:
        """Make everything that waits now due, wherever it is."""
        self._due_fresh = len(self._fresh)
        for run in self._blocked:
            run.due = len(run.operations)
        self._due_lanes.update(self._lanes)
        self._rested.clear()
        self._rested_operations = 0
        self._open = OrderedDict.fromkeys(key for key in self._lanes if key not in self._out)

    def ready(self) -> bool:
        """Whether :meth:`take` may find a chunk that is full or due."""
        if self._open or self._due_fresh:
            return True
        operations = len(self._fresh) + self._rested_operations
        nbytes = self._fresh_bytes + self._rested_operations * self._added_bytes // self._added
        for run in self._blocked:
            if run.awake:
                if run.due:
                    return True
                operations += len(run.operations)
                nbytes += run.nbytes
        return operations >= self._max_operations or nbytes >= self.full_bytes

    def take(self) -> Chunk | None:
        """Form the next chunk, or return ``None`` when nothing is due and nothing is full.

        What goes is filled up with what is not due yet, as far as it fits.
        """
        while self.ready():
            chunk = _Forming(self._room)
            self._take_lanes(chunk)
            self._take_blocked(chunk)
            if chunk.operations or self.ready():  # what seemed to make it so may have to wait after all
                self._take_fresh(chunk)
            if chunk.operations:
                nbytes = self._room - chunk.room - len(chunk.operations) * SEPARATOR_BYTES
                return Chunk(chunk.operations, nbytes, self._out.add(chunk.operations))
        return None

    def release(self, chunk: Chunk) -> None:
        """The chunk is settled: let the next operations of its persons go."""
        self._out.remove(chunk.claim)
        self._wake(chunk)

    def _wake(self, chunk: Chunk) -> None:
        """Let the next operations go of those whom a chunk is about, as far as they are not out any more."""
        for run in self._blocked:
            if not run.awake:
                run.awake = run.meets(chunk.claim)
        few_lanes = len(self._lanes) * _MANY < len(chunk.operations)
        for key in self._lanes if few_lanes else self._lanes.keys() & all_keys(chunk.operations):
            self._try_lane(key)

    def restore(self, chunk: Chunk, undecided: Iterable[Operation]) -> None:
        """Put what is left of a chunk back to the head, in its order and due, and release its persons."""
        self._put_back(undecided)
        self.release(chunk)

    def divide(self, chunk: Chunk, kept: list[Operation], undecided: Iterable[Operation]) -> Chunk:
        """Put a part of a chunk back to the head and keep the other one out.

        Args:
            chunk: The chunk that is out.
            kept: Its operations that stay out; they come before the others.
            undecided: The others that are not settled.

        Returns:
            The chunk that is out now. Persons who are not in it are released.
        """
        self._put_back(undecided)
        self._out.remove(chunk.claim)
        claim = self._out.add(kept)
        self._wake(chunk)
        return Chunk(kept, sum(map(len, kept)), claim)

    def _put_back(self, operations: Iterable[Operation]) -> None:
        for operation in reversed(list(operations)):
            keys = _keys(operation)
            self._repeats += len(keys) - 1
            for key in keys:
                lane = self._lane_of(key)
                lane.insert(0, operation)
                self._due_lanes.add(key)

    def drop_oldest(self) -> Operation | None:
        """Remove and return an operation that has waited longest of everyone it names; ``None`` when none waits.

        Those of persons in lanes go before the others. Among these persons it is not known whose waits longest.
        """
        self._unblock()
        if self._lanes:
            operation = next(iter(self._lanes.values()))[0]
            # One that names several may stand behind others of theirs; each step leads to one that arrived before.
            while (other := self._before(operation)) is not None:
                operation = other
            self._remove_heads(_keys(operation))
            return operation
        if self._fresh:
            operation = self._fresh.popleft()
            self._fresh_bytes -= len(operation)
            self._due_fresh = max(0, self._due_fresh - 1)
            return operation
        return None

    def remove(self, unwanted: Callable[[Operation], bool]) -> list[Operation]:
        """Remove and return the operations that wait and that a function names; those that are out stay out."""
        self._unblock()
        removed = [operation for operation in self._fresh if unwanted(operation)]
        if removed:
            due = sum(not unwanted(operation) for operation in itertools.islice(self._fresh, self._due_fresh))
            self._fresh = deque(operation for operation in self._fresh if not unwanted(operation))
            self._fresh_bytes -= sum(map(len, removed))
            self._due_fresh = due
        held: dict[int, Operation] = {}
        for key, lane in list(self._lanes.items()):
            gone = [operation for operation in lane if unwanted(operation)]
            if not gone:
                continue
            for operation in gone:
                held[id(operation)] = operation
            kept = deque(operation for operation in lane if not unwanted(operation))
            self._lanes[key] = kept
            if key in self._rested:
                self._rested_operations -= len(gone)
            elif kept and key not in self._out:
                self._open[key] = None  # what stands first now may be the next one of all
            if not kept:
                self._rested.pop(key, None)
                self._forget_lane(key)
        self._repeats -= sum(len(_keys(operation)) - 1 for operation in held.values())
        return [*held.values(), *removed]

    # ------------------------------------------------------------------------------------------------- inside

    def _take_lanes(self, chunk: _Forming) -> None:
        """Take from the lanes that may be tried, the due ones first."""
        operations, closed = chunk.operations, chunk.closed
        keys: set[Key] = set()
        room, special = chunk.room, self._special
        left = self._max_operations
        back: list[Key] = []  # whose turn is in another chunk
        alone = full = False
        while not full and (self._open or self._rested):
            key = self._next_lane()
            lane = self._lanes.get(key)
            if lane is None or key in self._out or key in closed:
                continue
            while lane:
                if len(lane) >= _BULK and not alone:
                    run, size = self._fitting_run(lane, room, left, first=not operations)
                    if run:
                        _remove_heads(lane, len(run))
                        operations += run
                        keys.add(key)
                        room -= size
                        left -= len(run)
                        continue
                operation = lane[0]
                kind = operation.kind
                size = len(operation) + SEPARATOR_BYTES
                if kind in special or alone or isinstance(operation.key, tuple):
                    among = _keys(operation)
                    if len(among) > 1 and not self._is_next_of_all(operation, among, closed):
                        break  # the lane of the other one brings it up again
                    apart = kind in self._apart
                    if apart and not operations:
                        left, alone = self._max_apart, True
                    if apart is not alone:
                        back.append(key)
                        break
                    if operations and (size > room or left <= 0):
                        back.append(key)
                        full = True
                        break
                    self._remove_heads(among, besides=key)
                    keys.update(among)
                    if kind in FINAL_KINDS:
                        closed.update(among)
                elif operations and (size > room or left <= 0):
                    back.append(key)
                    full = True
                    break
                else:
                    _remove_head(lane)
                    keys.add(key)
                operations.append(operation)
                room -= size
                left -= 1
                if key in closed:
                    break
            if not lane:
                self._forget_lane(key)
        for key in reversed(back):
            if key not in keys:  # else release() brings it up again
                self._await_turn(key)
        # What is apart is not mixed with what is fresh; it finds its own kind in the lanes.
        chunk.room, chunk.full = room, full or alone

    def _fitting_run(self, lane: _Lane, room: int, left: int, *, first: bool) -> tuple[list[Operation], int]:
        """The plain operations at the head of a long lane that fit, with their bytes, commas included.

        None, where others are among them: these are taken one by one, which costs four times as much.
        """
        if left <= 0 or room <= 0:  # the one before had a body of its own
            return [], 0
        likely = room // (len(lane[0]) + SEPARATOR_BYTES) + 1  # fit, if they are all alike; the caller comes again
        run = list(itertools.islice(lane, min(left, likely, _RUN)))
        if not kinds_of(run) <= _PLAIN_KINDS:
            return [], 0
        sums = running_bytes(run)
        fitting = bisect_right(sums, room) or int(first)  # the first one of all has a body of its own
        return run[:fitting], sums[fitting - 1] if fitting else 0

    def _await_turn(self, key: Key) -> None:
        """Let a lane be tried by the next chunk: at once if it is due, else by the next full one."""
        waiting = self._open if key in self._due_lanes else self._rested
        waiting[key] = None
        waiting.move_to_end(key, last=False)
        if waiting is self._rested:
            self._rested_operations += len(self._lanes[key])

    def _next_lane(self) -> Key:
        if self._open:
            return self._open.popitem(last=False)[0]
        key = self._rested.popitem(last=False)[0]
        self._rested_operations -= len(self._lanes[key])
        return key

    def _take_blocked(self, chunk: _Forming) -> None:
        """Take from the runs of which some can go again."""
        if not self._blocked:
            return
        runs, self._blocked = self._blocked, deque()
        for run in runs:
            if run.awake and not self._is_full(chunk):
                if self._out.has_all(run.operations):
                    run.awake = False
                else:
                    self._take_run(run, chunk)
                    if not run.operations:
                        continue
            self._blocked.append(run)

    def _take_fresh(self, chunk: _Forming) -> None:
        """Take from what is fresh, and let wait what must.

        In bulk, where all operations that come into question are plain ones: a step for each costs four times as much.
        """
        fresh = self._fresh
        held = scattered = 0
        while fresh and not self._is_full(chunk) and (held + scattered < _MAX_HELD or not chunk.operations):
            left = self._max_operations - len(chunk.operations)
            likely = chunk.room * len(fresh) // (self._fresh_bytes + len(fresh)) + 16  # fit, by the mean
            arrived = list(itertools.islice(fresh, min(left, likely)))
            kinds = kinds_of(arrived)
            plain = kinds <= _PLAIN_KINDS or (
                kinds.isdisjoint(self._special) and tuple not in set(map(type, keys_of(arrived)))
            )
            # Where a few places are left and much must be held back, these runs would be short and many.
            if not plain or (scattered and left < self._max_operations // 16):
                self._take_singly(chunk)
                return
            everything = len(arrived) == len(fresh)
            nbytes = self._fresh_bytes if everything else sum(map(len, arrived))
            due = min(self._due_fresh, len(arrived))
            run = _Run(arrived, nbytes, due)
            self._fresh_bytes -= nbytes
            self._due_fresh -= due
            if everything:
                fresh.clear()
            else:
                for _ in arrived:
                    fresh.popleft()
            if self._out.has_all(arrived):
                self._block(run)
                held += len(arrived)
                continue
            scattered += self._take_run(run, chunk)
            if run.operations:
                # Those behind them who must wait do so by now, so they are the first of all that is fresh.
                fresh.extendleft(reversed(run.operations))
                self._fresh_bytes += run.nbytes
                self._due_fresh += run.due

    def _is_full(self, chunk: _Forming) -> bool:
        """Whether a chunk counts as full: to divide a run for the last places costs more than they bring."""
        count = len(chunk.operations)
        return chunk.full or (count > 0 and (chunk.room <= self._spare or count >= self._max_operations))

    def _block(self, run: _Run) -> None:
        """Let a run wait as it is, behind the others."""
        last = self._blocked[-1] if self._blocked else None
        if last is not None and len(last.operations) + len(run.operations) <= self._max_operations:
            last.operations += run.operations
            if last.people is not None:
                last.people.add(run.operations)
            last.nbytes += run.nbytes
            last.due += run.due  # what stands behind something that is not due is not due either
            return
        if len(self._blocked) == _MAX_BLOCKED:
            oldest = self._blocked.popleft()
            self._hold_back(oldest.operations, due=oldest.due)
        self._blocked.append(run)

    def _unblock(self) -> None:
        """Take the blocked runs apart, because of something that is done to one operation of them or in front of it."""
        while self._blocked:
            run = self._blocked.popleft()
            self._hold_back(run.operations, due=run.due)
            if run.awake:
                for key in all_keys(run.operations):
                    self._try_lane(key)

    def _try_lane(self, key: Key) -> None:
        """Let a lane be tried again, if its person is not out."""
        if key in self._out:
            return
        if key in self._due_lanes:
            self._open[key] = None
        elif key not in self._open and key not in self._rested:
            self._rested[key] = None
            self._rested_operations += len(self._lanes[key])

    def _take_run(self, run: _Run, chunk: _Forming) -> int:
        """Take what fits, hold back who must wait, and leave the others in the run; return how many are held back.

        Where some are left, the chunk is full.
        """
        held: list[Operation] = []
        lanes: dict[Key, _Lane] = self._lanes
        if len(lanes) * _MANY < len(run.operations) and all(map(self._out.__contains__, lanes)):
            lanes = {}  # who has a lane is out, so no id need be made to look for lanes
        sifted = self._out.sift(run.operations, run.due, lanes, chunk.closed)
        if sifted is not None:
            self._unblock()  # those who come before these
            run.operations, held, due, nbytes = sifted
            run.due -= due
            run.nbytes -= nbytes
            self._hold_back(held, due=due)
        count, left = len(run.operations), self._max_operations - len(chunk.operations)
        size = run.nbytes + count * SEPARATOR_BYTES
        if count <= left and size <= chunk.room:
            if chunk.operations:
                chunk.operations += run.operations
            else:
                chunk.operations = run.operations
            chunk.room -= size
            run.operations = []
            return len(held)
        sums = running_bytes(run.operations)
        fitting = min(bisect_right(sums, chunk.room), left)
        if fitting == 0 and not chunk.operations:
            fitting = 1  # it has a body of its own
        if fitting:
            chunk.operations += run.operations[:fitting]
            chunk.room -= sums[fitting - 1]
            run.nbytes -= sums[fitting - 1] - fitting * SEPARATOR_BYTES
        del run.operations[:fitting]
        run.due = max(0, run.due - fitting)
        chunk.full = bool(run.operations)
        return len(held)

    def _hold_back(self, held: list[Operation], *, due: int) -> None:
        """Put the operations of a run into the lanes of their persons; the first few are due."""
        lanes, rested = self._lanes, self._rested
        whose = cast("list[Key]", keys_of(held))  # nothing that names several is in a run
        people = set(whose)
        if len(people) * _FEW < len(held):
            groups: dict[Key, list[Operation]] = {}
            if len(people) == 1:
                groups[whose[0]] = held
            else:
                groups = {key: [] for key in people}
                for key, operation in zip(whose, held, strict=True):
                    groups[key].append(operation)
            for key, group in groups.items():
                lane = lanes.get(key)
                if lane is None:
                    lanes[key] = group if len(group) <= _SHORT else deque(group)
                    continue
                if isinstance(lane, list) and len(lane) + len(group) > _SHORT:
                    lane = lanes[key] = deque(lane)
                lane.extend(group)
        else:
            for key, operation in zip(whose, held, strict=True):
                lane = lanes.get(key)
                if lane is None:
                    lanes[key] = [operation]
                elif len(lane) != _SHORT:
                    lane.append(operation)
                else:
                    self._lane_of(key).append(operation)
        if rested:
            self._rested_operations += sum(map(rested.__contains__, whose))
        self._due_lanes.update(whose[:due])

    def _take_singly(self, chunk: _Forming) -> None:
        """The same, one by one, with the rules for all kinds."""
        self._unblock()
        operations, closed, room = chunk.operations, chunk.closed, chunk.room
        fresh, out, special = self._fresh, self._out, self._special
        lanes, due = self._lanes, self._due_fresh
        taken_before, room_before = len(operations), room
        left, alone = self._max_operations - taken_before, False
        gone = held = held_bytes = 0
        while fresh and (held < _MAX_HELD or not operations):
            operation = fresh.popleft()
            gone += 1
            key, kind = operation.key, operation.kind
            size = len(operation) + SEPARATOR_BYTES
            if kind in special or alone or isinstance(key, tuple):
                among = _keys(operation)
                apart = kind in self._apart
                waits = any(each in out or each in lanes or each in closed for each in among)
                if apart and not waits and not operations:
                    left, alone = self._max_apart, True
                if waits or (apart and not alone):
                    self._hold(operation, due=gone <= due)
                    if not waits:
                        self._open.update(dict.fromkeys(among))  # nobody else would bring it up
                    held += len(among)
                    held_bytes += len(operation)
                    continue
                if apart is not alone or (operations and (size > room or left <= 0)):
                    fresh.appendleft(operation)
                    gone -= 1
                    break
                if kind in FINAL_KINDS:
                    closed.update(among)  # nothing more of them; the chunk holds them from here on
            elif key in out or key in lanes or key in closed:
                self._hold(operation, due=gone <= due)
                held += 1
                held_bytes += len(operation)
                continue
            elif operations and (size > room or left <= 0):
                fresh.appendleft(operation)
                gone -= 1
                break
            operations.append(operation)
            room -= size
            left -= 1
        self._due_fresh = max(0, due - gone)
        taken_bytes = room_before - room - (len(operations) - taken_before) * SEPARATOR_BYTES
        self._fresh_bytes -= held_bytes + taken_bytes
        chunk.room, chunk.full = room, True  # there is nothing else to take from

    def _before(self, operation: Operation) -> Operation | None:
        """What stands before an operation in the lane of somebody it names, ``None`` if it is the next of all."""
        for key in _keys(operation):
            head = self._lanes[key][0]
            if head is not operation:
                return head
        return None

    def _hold(self, operation: Operation, *, due: bool) -> None:
        keys = _keys(operation)
        self._repeats += len(keys) - 1
        for key in keys:
            self._lane_of(key).append(operation)
            if key in self._rested:
                self._rested_operations += 1
            if due:
                self._due_lanes.add(key)

    def _lane_of(self, key: Key) -> _Lane:
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = []
        elif len(lane) == _SHORT and isinstance(lane, list):
            lane = self._lanes[key] = deque(lane)
        return lane

    def _remove_heads(self, keys: tuple[Key, ...], besides: Key | None = None) -> None:
        """Take the operation at the head of these lanes out of them; ``besides`` is being taken from."""
        self._repeats -= len(keys) - 1
        for key in keys:
            lane = self._lanes[key]
            if key in self._rested:
                del self._rested[key]
                self._rested_operations -= len(lane)
            _remove_head(lane)
            if key == besides:
                continue
            if not lane:
                self._forget_lane(key)
            elif key not in self._out:
                self._open[key] = None

    def _forget_lane(self, key: Key) -> None:
        del self._lanes[key]
        self._due_lanes.discard(key)
        self._open.pop(key, None)

    def _is_next_of_all(self, operation: Operation, among: tuple[Key, ...], closed: set[Key]) -> bool:
        return all(each not in self._out and each not in closed and self._lanes[each][0] is operation for each in among)


def _keys(operation: Operation) -> tuple[Key, ...]:
    key = operation.key
    return key if isinstance(key, tuple) else (key,)


def _remove_heads(lane: _Lane, count: int) -> None:
    if isinstance(lane, list):
        del lane[:count]
    else:
        for _ in range(count):
            lane.popleft()


def _remove_head(lane: _Lane) -> None:
    if isinstance(lane, list):
        del lane[0]
    else:
        lane.popleft()
