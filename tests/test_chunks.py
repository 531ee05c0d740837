"""The backlog against a model that is too simple to be wrong, and the cost of taking by counting."""

from __future__ import annotations

from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cio_batch import people
from cio_batch.chunks import Backlog, Chunk
from cio_batch.operations import FINAL_KINDS, Key, Operation
from cio_batch.people import PeopleInPython

ENVELOPE_BYTES = len(b'{"batch":[]}')


def operation(key: Key | tuple[Key, ...], kind: str = "person.event", size: int = 4) -> Operation:
    """A new object each time, so that equal operations are told apart by identity."""
    return Operation(b"x" * size, key, kind)


def keys_of(item: Operation) -> tuple[Key, ...]:
    return item.key if isinstance(item.key, tuple) else (item.key,)


def backlog(
    *, max_operations: int = 10, max_bytes: int = 10_000, apart: frozenset[str] = frozenset(), max_apart: int = 1
) -> Backlog:
    return Backlog(
        max_operations=max_operations,
        max_bytes=max_bytes,
        envelope_bytes=ENVELOPE_BYTES,
        apart=apart,
        max_apart=max_apart,
    )


def add(into: Backlog, *operations: Operation) -> None:
    into.add(operations, sum(len(each) for each in operations))


def same(found: list[Operation], expected: list[Operation]) -> bool:
    return list(map(id, found)) == list(map(id, expected))


def take(from_: Backlog) -> Chunk:
    chunk = from_.take()
    assert chunk is not None
    return chunk


def due(waiting: Backlog, *operations: Operation) -> Chunk:
    add(waiting, *operations)
    waiting.expire()
    return take(waiting)


def people_in(chunk: Chunk) -> set[Key]:
    return {key for each in chunk.operations for key in keys_of(each)}


class BacklogMachine(RuleBasedStateMachine):
    """Random histories of few persons; the model keeps one list of waiting operations for each person."""

    APART: ClassVar[frozenset[str]] = frozenset({"anonymous.event", "anonymous.page"})
    MAX_SIZE: ClassVar[int] = 12

    def __init__(self) -> None:
        super().__init__()
        self.waiting: dict[int, Operation] = {}  # by identity
        self.due: set[int] = set()
        self.queues: dict[Key, list[Operation]] = {}
        self.out: list[Chunk] = []

    @initialize(max_operations=st.integers(1, 5), spare=st.integers(0, 30), max_apart=st.integers(1, 3))
    def begin(self, max_operations: int, spare: int, max_apart: int) -> None:
        self.max_operations = max_operations
        self.max_apart = max_apart
        self.max_bytes = ENVELOPE_BYTES + self.MAX_SIZE + spare
        self.backlog = backlog(
            max_operations=max_operations, max_bytes=self.max_bytes, apart=self.APART, max_apart=max_apart
        )

    # ------------------------------------------------------------------------------------------------- rules

    persons = st.sampled_from(["ann", "ben", b"cem", "dot"])
    kinds = st.sampled_from(
        [
            *["person.event"] * 6,
            "person.identify",
            "person.delete",
            "person.suppress",
            "person.unsuppress",
            *sorted(APART) * 2,
        ]
    )
    one = st.builds(operation, persons, kinds, st.integers(1, MAX_SIZE))
    several = st.builds(
        operation,
        st.lists(persons, min_size=2, max_size=3, unique=True).map(tuple),
        st.sampled_from(["person.merge", "person.add_relationships", "object.identify", "anonymous.event"]),
        st.integers(1, MAX_SIZE),
    )

    @rule(operations=st.lists(st.one_of(one, one, one, several), min_size=1, max_size=8))
    def add(self, operations: list[Operation]) -> None:
        # Anew, because Hypothesis may draw one object twice.
        fresh = [operation(each.key, each.kind, len(each)) for each in operations]
        add(self.backlog, *fresh)
        for each in fresh:
            self.waiting[id(each)] = each
            for key in keys_of(each):
                self.queues.setdefault(key, []).append(each)

    @rule()
    def expire(self) -> None:
        self.backlog.expire()
        self.due.update(self.waiting)

    @rule()
    def take(self) -> None:
        may_go = self.eligible()
        chunk = self.backlog.take()
        if chunk is None:
            assert not self.due.intersection(map(id, may_go)), "something due is stuck"
            assert not self.backlog.ready()
            return
        assert chunk.operations
        assert people_in(chunk).isdisjoint(self.who_is_out()), "a person is out twice"
        body = b'{"batch":[' + b",".join(each.body for each in chunk.operations) + b"]}"
        assert len(body) <= self.max_bytes
        assert chunk.nbytes == sum(len(each) for each in chunk.operations)
        alone = {each.kind in self.APART for each in chunk.operations}
        assert len(alone) == 1, "what is apart was mixed"
        assert len(chunk.operations) <= (self.max_apart if alone == {True} else self.max_operations)
        final: set[Key] = set()
        for each in chunk.operations:
            assert final.isdisjoint(keys_of(each)), "something follows a final operation of its person"
            if each.kind in FINAL_KINDS:
                final.update(keys_of(each))
            self.leave(each)
        self.out.append(chunk)

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.backlog.release(self.out.pop(data.draw(st.integers(0, len(self.out) - 1))))

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        chunk = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        count = len(chunk.operations)
        keep = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
        undecided = [each for each, kept in zip(chunk.operations, keep, strict=True) if kept]
        self.backlog.restore(chunk, iter(undecided))
        for each in reversed(undecided):
            self.waiting[id(each)] = each
            self.due.add(id(each))
            for key in keys_of(each):
                self.queues.setdefault(key, []).insert(0, each)

    @rule()
    def drop_oldest(self) -> None:
        dropped = self.backlog.drop_oldest()
        if dropped is None:
            assert not self.waiting
        else:
            self.leave(dropped)

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        share = data.draw(st.integers(1, 4))
        unwanted = {ident for index, ident in enumerate(self.waiting) if index % share == 0}
        removed = self.backlog.remove(lambda each: id(each) in unwanted)
        assert len(removed) == len(unwanted)
        assert set(map(id, removed)) == unwanted
        for each in removed:
            del self.waiting[id(each)]
            self.due.discard(id(each))
            for key in keys_of(each):
                self.queues[key] = [other for other in self.queues[key] if other is not each]

    def teardown(self) -> None:
        """Whatever happened: once everything is due and each call ends, the backlog empties."""
        if not hasattr(self, "backlog"):
            return
        self.expire()
        for _ in range(len(self.waiting) + len(self.out) + 1):
            while (self.eligible(), self.take())[0]:
                pass
            for chunk in self.out:
                self.backlog.release(chunk)
            self.out.clear()
            self.check()
            if not self.waiting:
                break
        assert not self.waiting, "a lane is stuck"
        assert not self.backlog.ready()

    # ------------------------------------------------------------------------------------------------- model

    def leave(self, item: Operation) -> None:
        """An operation leaves the model, which it may do only as the first of everyone it names."""
        assert self.waiting.pop(id(item), None) is item, "unknown, or gone already"
        self.due.discard(id(item))
        for key in keys_of(item):
            assert self.queues[key].pop(0) is item, "an earlier one of the same person was passed over"

    def eligible(self) -> list[Operation]:
        """What may go now: the first of everyone it names, and nobody of them is out."""
        held = self.who_is_out()
        return [
            each
            for each in self.waiting.values()
            if all(key not in held and self.queues[key][0] is each for key in keys_of(each))
        ]

    def who_is_out(self) -> set[Key]:
        return {key for chunk in self.out for key in people_in(chunk)}

    @invariant()
    def check(self) -> None:
        if not hasattr(self, "backlog"):
            return
        assert len(self.backlog) == len(self.waiting)
        listed = list(self.backlog)
        assert len(listed) == len(self.waiting)
        assert set(map(id, listed)) == set(self.waiting)
        for key, queue in self.queues.items():
            assert same([each for each in listed if key in keys_of(each)], queue)
        if self.due.intersection(map(id, self.eligible())):
            assert self.backlog.ready()
        self.check_inside()

    def check_inside(self) -> None:
        """The invariants that stand written in the class."""
        inside = self.backlog
        out = self.who_is_out()
        assert len(inside._out) == len(out)
        assert all(key in inside._out for key in out)
        assert inside._due_lanes <= inside._lanes.keys()
        assert 0 <= inside._due_fresh <= len(inside._fresh)
        assert inside._fresh_bytes == sum(len(each) for each in inside._fresh)
        assert len(inside._blocked) <= 4
        for run in inside._blocked:
            assert run.nbytes == sum(map(len, run.operations))
            assert 0 <= run.due <= len(run.operations)
            whose = {each.key for each in run.operations}
            assert run.awake or out >= whose, "a run sleeps although somebody of it may go"
        assert len(inside._open) == len(set(inside._open)), "a lane is to be tried twice"
        to_be_tried = inside._open.keys() | inside._rested.keys()
        assert inside._open.keys().isdisjoint(inside._rested), "a lane is to be tried twice"
        assert inside._rested_operations == sum(len(inside._lanes[key]) for key in inside._rested)
        for key, lane in inside._lanes.items():
            assert lane
            waits_for_another = any(
                each != key and (each in out or each in to_be_tried or inside._lanes[each][0] is not lane[0])
                for each in keys_of(lane[0])
            )
            assert key in out or key in to_be_tried or waits_for_another


TestBacklogMachine = BacklogMachine.TestCase
TestBacklogMachine.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)

# ------------------------------------------------------------------------------------------------- by example


def test_nothing_goes_that_is_neither_due_nor_full() -> None:
    """A chunk waits to be filled until it expires."""
    waiting = backlog(max_operations=3)
    add(waiting, operation("a"), operation("b"))
    assert not waiting.ready()
    assert waiting.take() is None
    waiting.expire()
    assert waiting.ready()
    assert len(take(waiting).operations) == 2
    assert not waiting.ready()


def test_a_full_chunk_goes_without_being_due() -> None:
    """The count limit makes a chunk go; what does not fit waits for the next."""
    waiting = backlog(max_operations=3)
    operations = [operation(str(n)) for n in range(4)]
    add(waiting, *operations)
    assert same(take(waiting).operations, operations[:3])
    assert waiting.take() is None
    assert len(waiting) == 1


def test_what_is_due_is_filled_up_with_what_is_not() -> None:
    """At low volume one flush is one call, and later arrivals join it as far as they fit."""
    waiting = backlog(max_operations=10)
    add(waiting, operation("a"))
    waiting.expire()
    add(waiting, *[operation(str(n)) for n in range(5)])
    assert len(take(waiting).operations) == 6


@pytest.mark.parametrize(("max_bytes", "fit"), [(12 + 3 * 10 + 2, 3), (12 + 3 * 10 + 1, 2)])
def test_bytes_count_the_envelope_and_the_commas(max_bytes: int, fit: int) -> None:
    """A body of exactly the limit goes; one byte less, and the last operation stays."""
    waiting = backlog(max_bytes=max_bytes)
    add(waiting, *[operation(str(n), size=10) for n in range(3)])
    waiting.expire()
    assert len(take(waiting).operations) == fit


def test_an_operation_beyond_the_byte_limit_goes_alone() -> None:
    """The backlog never sits on an operation for ever, even on one that is too large for it."""
    waiting = backlog(max_bytes=50)
    add(waiting, operation("a", size=80), operation("b"))
    waiting.expire()
    assert [len(each) for each in take(waiting).operations] == [80]
    assert [len(each) for each in take(waiting).operations] == [4]


def test_what_follows_an_operation_beyond_the_byte_limit_waits_for_the_next_chunk() -> None:
    """However much too large it was, and however small they are."""
    waiting = backlog(max_operations=100, max_bytes=50)
    add(waiting, operation("a", size=900), *[operation(str(n), size=1) for n in range(19)])
    waiting.expire()
    assert [len(each) for each in take(waiting).operations] == [900]
    assert [len(each) for each in take(waiting).operations] == [1] * 19


def test_who_waits_for_the_same_call_goes_together_once_it_is_over() -> None:
    """Whole chunks of the same few persons follow each other, and nobody else goes sooner for it than when full."""
    waiting = backlog(max_operations=10)
    people = [str(n % 5) for n in range(30)]
    operations = [operation(key) for key in people]
    add(waiting, *operations)
    first = take(waiting)
    assert same(first.operations, operations[:10])
    assert waiting.take() is None
    others = [operation(f"other {n}") for n in range(9)]
    add(waiting, *others)
    assert waiting.take() is None
    waiting.release(first)
    second = take(waiting)
    assert same(second.operations, operations[10:20])
    assert waiting.take() is None, "nine others are neither due nor full"
    add(waiting, operation("the tenth"))
    assert same(take(waiting).operations[:9], others)
    waiting.release(second)
    assert same(take(waiting).operations, operations[20:])
    assert not waiting._lanes, "nobody had to be taken apart"


@pytest.mark.parametrize("final", [False, True])
def test_a_run_that_waits_is_taken_apart_where_some_of_it_may_go(final: bool) -> None:
    """Everyone whose call is over goes on, in order, and the others follow when theirs is."""
    waiting = backlog(max_operations=4)
    add(waiting, operation("a"), operation("b"))
    waiting.expire()
    both = take(waiting)
    held = [
        operation("a"),
        operation("b"),
        operation("a"),
        operation("b", "person.delete" if final else "person.event"),
    ]
    add(waiting, *held)
    waiting.expire()
    assert waiting.take() is None
    rest = waiting.divide(both, both.operations[1:], [])
    of_a = take(waiting)
    assert same(of_a.operations, [held[0], held[2]])
    late = operation("b")
    add(waiting, late)
    waiting.expire()
    assert waiting.take() is None
    waiting.release(rest)
    of_b = take(waiting)
    assert same(of_b.operations, [held[1], held[3]] if final else [held[1], held[3], late])
    waiting.release(of_a)
    waiting.release(of_b)
    assert (take(waiting).operations == [late]) if final else (waiting.take() is None)


@pytest.mark.parametrize("way", ["drop_oldest", "remove"])
def test_who_left_a_run_that_waits_is_not_taken_for_one_of_it(way: str) -> None:
    """Only those of whom something is in a chunk are held back by it."""
    waiting = backlog(max_operations=4)
    add(waiting, operation("a"), operation("b"))
    waiting.expire()
    both = take(waiting)
    gone = operation("a")
    add(waiting, gone, operation("b"), operation("b"))
    waiting.expire()
    assert waiting.take() is None
    dropped = [waiting.drop_oldest()] if way == "drop_oldest" else waiting.remove(lambda each: each is gone)
    assert len(dropped) == 1
    assert dropped[0] is gone
    waiting.release(both)
    assert people_in(take(waiting)) == {"b"}
    add(waiting, operation("a"))
    waiting.expire()
    assert people_in(take(waiting)) == {"a"}


def test_a_person_who_is_out_holds_back_nobody_else() -> None:
    """Later operations of a person wait for the verdict; everyone else goes on."""
    waiting = backlog(max_operations=2)
    first, second, third, other, another = (operation(key) for key in ("a", "a", "a", "b", "c"))
    add(waiting, first, second, third, other, another)
    chunk = take(waiting)
    assert same(chunk.operations, [first, second])
    assert same(take(waiting).operations, [other, another])
    waiting.expire()
    assert waiting.take() is None
    waiting.release(chunk)
    assert same(take(waiting).operations, [third])


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([1, 5, 90, 300]), st.integers(0, 40).map(bool)), min_size=1, max_size=200),
    st.sampled_from([3, 40, 1_000]),
    st.sampled_from([100, 350, 5_000]),
)
def test_a_long_lane_is_emptied_in_order_and_in_full_chunks(
    sizes: list[tuple[int, bool]], max_operations: int, max_bytes: int
) -> None:
    """What waits behind one person goes in order; a chunk ends where the next one does not fit, or at a delete."""
    waiting = backlog(max_operations=max_operations, max_bytes=max_bytes)
    add(waiting, operation("hot"))
    waiting.expire()
    first = take(waiting)
    held = [operation("hot", "person.event" if plain else "person.delete", size) for size, plain in sizes]
    add(waiting, *held)
    waiting.expire()
    assert waiting.take() is None
    assert len(waiting) == len(held)
    waiting.release(first)
    gone = 0
    while gone < len(held):
        chunk = take(waiting)
        count, body = len(chunk.operations), ENVELOPE_BYTES - 1 + sum(len(each) + 1 for each in chunk.operations)
        assert same(chunk.operations, held[gone : gone + count])
        assert count <= max_operations
        assert body <= max_bytes or count == 1
        assert all(each.kind == "person.event" for each in chunk.operations[:-1])
        gone += count
        if gone < len(held) and chunk.operations[-1].kind == "person.event":
            assert count == max_operations or body + len(held[gone]) + 1 > max_bytes
        waiting.release(chunk)
    assert waiting.take() is None
    assert len(waiting) == 0


def test_a_chunk_is_filled_past_those_who_are_held_back() -> None:
    """However many operations of a busy person stand between, everyone else still goes in one call."""
    waiting = backlog(max_operations=10)
    add(waiting, operation("busy"))
    waiting.expire()
    take(waiting)
    others = [operation(str(n)) for n in range(10)]
    for other in others:
        add(waiting, *[operation("busy") for _ in range(20)], other)
    waiting.expire()
    assert same(take(waiting).operations, others)
    assert waiting.take() is None
    assert len(waiting) == 200


def test_restored_operations_go_first_and_at_once() -> None:
    """What is left of a chunk returns to the head, in its order, and is due."""
    waiting = backlog(max_operations=3)
    operations = [operation("a") for _ in range(5)]
    add(waiting, *operations)
    chunk = take(waiting)
    waiting.restore(chunk, chunk.operations[1:])
    assert waiting.ready()
    assert same(take(waiting).operations, operations[1:4])


def test_a_merge_keeps_its_place_with_both() -> None:
    """An operation that names two waits until it is the next of both, and holds back what comes after it."""
    waiting = backlog()
    first, second = operation("a"), operation("b")
    merge, after = operation(("a", "b"), "person.merge"), operation("b")
    add(waiting, first)
    waiting.expire()
    out_a = take(waiting)
    add(waiting, merge, after, second)
    waiting.expire()
    assert waiting.take() is None
    waiting.release(out_a)
    merged = take(waiting)
    assert same(merged.operations, [merge])
    assert people_in(merged) == {"a", "b"}
    waiting.release(merged)
    assert same(take(waiting).operations, [after, second])


@pytest.mark.parametrize("kind", sorted(FINAL_KINDS))
def test_nothing_of_a_person_follows_a_final_operation_in_a_chunk(kind: str) -> None:
    """What follows an operation without an id, whose repeat could undo it, waits for its verdict."""
    waiting = backlog()
    final, other, after = operation("a", kind), operation("b"), operation("a")
    add(waiting, final, after, other)
    waiting.expire()
    chunk = take(waiting)
    assert same(chunk.operations, [final, other])
    assert waiting.take() is None
    waiting.release(chunk)
    assert same(take(waiting).operations, [after])


def test_kinds_apart_go_alone_and_in_their_own_number() -> None:
    """Kinds that take another road share no chunk with the others."""
    waiting = backlog(apart=frozenset({"anonymous.event"}), max_apart=2)
    apart = [operation(f"x{n}".encode(), "anonymous.event") for n in range(3)]
    plain = [operation("a"), operation("b")]
    add(waiting, apart[0], plain[0], apart[1], plain[1], apart[2])
    waiting.expire()
    chunks: list[list[Operation]] = []
    while (chunk := waiting.take()) is not None:
        chunks.append(chunk.operations)
    assert all(len({each.kind for each in chunk}) == 1 for chunk in chunks)
    assert sorted(id(each) for chunk in chunks for each in chunk) == sorted(map(id, [*apart, *plain]))
    assert max(len(chunk) for chunk in chunks if chunk[0].kind == "anonymous.event") <= 2
    assert any(same(chunk, plain) for chunk in chunks), "what is apart must not cut the others' chunk short"


def test_what_joins_a_resting_lane_counts_towards_a_full_chunk() -> None:
    """A lane that waits for a full chunk is still measured right when more of its person is held back."""
    waiting = backlog(apart=frozenset({"anonymous.event"}))
    add(waiting, operation("a"))
    waiting.expire()
    out_a = take(waiting)
    add(waiting, operation("b"))
    waiting.expire()
    add(waiting, operation("a", "anonymous.event"))
    out_b = take(waiting)
    waiting.release(out_a)
    waiting.restore(out_b, out_b.operations)
    add(waiting, operation("a"))
    assert same(take(waiting).operations, out_b.operations)
    assert list(waiting._rested) == ["a"]
    assert waiting._rested_operations == len(waiting._lanes["a"]) == 2


def test_iteration_keeps_the_order_of_each_person_of_a_merge() -> None:
    """Listing the backlog shows a merge after everything that came before it, of both persons."""
    waiting = backlog()
    add(waiting, operation("a"), operation("b"))
    waiting.expire()
    take(waiting)
    held = [operation("a"), operation("b"), operation(("a", "b"), "person.merge"), operation("b")]
    add(waiting, *held)
    waiting.expire()
    assert waiting.take() is None
    listed = list(waiting)
    assert same([each for each in listed if "b" in keys_of(each)], held[1:])
    assert same([each for each in listed if "a" in keys_of(each)], [held[0], held[2]])


def test_dropping_never_passes_over_an_earlier_one_of_the_same_person() -> None:
    """The overflow policy drops from the head of everyone whom an operation names."""
    waiting = backlog()
    add(waiting, operation("a"), operation("b"))
    waiting.expire()
    take(waiting)
    held = [operation("a"), operation("b"), operation(("a", "b"), "person.merge")]
    add(waiting, *held)
    waiting.expire()
    assert waiting.take() is None
    dropped = [waiting.drop_oldest() for _ in range(4)]
    assert [None if each is None else id(each) for each in dropped] == [*map(id, held), None]
    assert len(waiting) == 0


def test_dropping_through_an_outage_keeps_memory_flat() -> None:
    """While nothing can be taken, adding and dropping leaves nothing behind."""
    waiting = backlog(max_operations=5)
    add(waiting, *[operation("a") for _ in range(20)])
    waiting.expire()
    take(waiting)
    assert waiting.take() is None
    for _ in range(1_000):
        add(waiting, operation("a"))
        assert waiting.drop_oldest() is not None
    assert len(waiting) == 15
    assert len(waiting._open) <= 1


# --------------------------------------------------------------------------------------------- cost, by counting


class CountedKey(str):
    """A key that counts how often anybody is asked who it is."""

    __slots__ = ()
    looks: ClassVar[int] = 0

    def __hash__(self) -> int:
        CountedKey.looks += 1
        return super().__hash__()


def looks_per_operation(
    keys: list[str], *, concurrency: int, max_operations: int, max_bytes: int = 10**9, size: int = 10
) -> float:
    """Deliver everything with ``concurrency`` chunks out, and return how often it was asked whose an operation is."""
    waiting = backlog(max_operations=max_operations, max_bytes=max_bytes)
    add(waiting, *[operation(CountedKey(key), size=size) for key in keys])
    out: list[Chunk] = []
    delivered = 0
    CountedKey.looks = 0
    while delivered < len(keys):
        while len(out) < concurrency and (chunk := waiting.take()) is not None:
            out.append(chunk)
        if not out:
            waiting.expire()
            continue
        done = out.pop(0)
        waiting.release(done)
        delivered += len(done.operations)
    assert len(waiting) == 0
    return CountedKey.looks / len(keys)


@pytest.mark.parametrize("concurrency", [1, 2, 8])
@pytest.mark.parametrize(
    "keys",
    [
        [str(n) for n in range(8_000)],
        ["hot" if n % 2 else str(n) for n in range(8_000)],
        ["hot"] * 8_000,
        [str(n % 7) for n in range(8_000)],
        [str(n // 90) for n in range(8_000)],
    ],
    ids=["distinct", "half is one person", "one person", "seven persons", "runs"],
)
def test_skew_costs_nothing(keys: list[str], concurrency: int) -> None:
    """Operations are looked into a constant number of times, however unevenly they fall upon persons."""
    assert looks_per_operation(keys, concurrency=concurrency, max_operations=100) < 20


@pytest.mark.parametrize("concurrency", [1, 2, 8])
def test_skew_costs_nothing_where_bytes_are_the_limit(concurrency: int) -> None:
    """A person whose operations wait for many chunks' worth of bytes does not move to and fro with each of them."""
    keys = ["hot" if n % 2 else str(n) for n in range(3_000)]
    looks = looks_per_operation(keys, concurrency=concurrency, max_operations=2_000, max_bytes=500, size=100)
    assert looks < 40


def test_a_small_chunk_that_comes_back_does_not_look_through_all_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """While one busy person is in a slow call, the calls of others cost no more than ever."""
    monkeypatch.setattr(people, "People", PeopleInPython)  # the compiled ones do not look where it could be counted
    waiting = backlog(max_operations=100)
    slow = due(waiting, operation(CountedKey("busy")))
    add(waiting, *[operation(CountedKey("busy")) for _ in range(400)])
    waiting.expire()
    assert waiting.take() is None
    assert len(waiting._blocked) == 4
    looks = 0
    for n in range(50):
        chunk = due(waiting, operation(CountedKey(str(n))))
        CountedKey.looks = 0
        waiting.release(chunk)
        looks += CountedKey.looks
    assert looks < 1_000  # 400 of them once, to know whom the four runs are about
    waiting.release(slow)
    assert len(take(waiting).operations) == 100


def test_who_joins_a_run_that_waits_wakes_it_too() -> None:
    """Whom a run is about is found out at the first release; what is added to it later counts all the same."""
    waiting = backlog()
    ada, ben, other = (due(waiting, operation(person)) for person in ("ada", "ben", "cem"))
    for person in ("ada", "ben"):
        add(waiting, operation(person), operation(person))
        waiting.expire()
        assert waiting.take() is None
        if person == "ada":
            waiting.release(other)
    [run] = waiting._blocked
    assert len(run.operations) == 4
    waiting.release(ben)
    assert people_in(take(waiting)) == {"ben"}
    assert waiting.take() is None
    waiting.release(ada)
    assert people_in(take(waiting)) == {"ada"}
