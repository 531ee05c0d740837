"""People, compiled as in Python: who is there, whom a call added, and whose turn it is not."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections import OrderedDict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cio_batch import operations as ops
from cio_batch import people as people_module
from cio_batch import speedups
from cio_batch.operations import Key, Operation
from cio_batch.people import PeopleInPython, all_keys, nobody

KINDS: list[Any] = [PeopleInPython] if speedups.compiled is None else [PeopleInPython, speedups.compiled.People]
SEED = b"0123456789abcdef"
ULID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"

built = pytest.mark.skipif(speedups.compiled is None, reason="the extension was not built")


def about(key: Any) -> Operation:
    return Operation(b"{}", key, "person.event")


def event(person: str) -> Operation:
    """As an event comes from the door: with the extension its key stands in its body."""
    return ops.encode_event(person, "n", None, None, None, 1_700_000_000.0, lambda: ULID)


persons = st.one_of(
    st.integers(0, 12).map("user-{}".format),
    st.text("aé😀", min_size=1, max_size=20),
    st.sampled_from([b'{"email":"a@b"}', b"user-1", "user-1" * 20]),
)
said = st.one_of(
    persons.map(about),
    st.integers(0, 12).map(lambda n: event(f"user-{n}")),
    st.lists(persons, min_size=2, max_size=4).map(lambda keys: about(tuple(keys))),
)
Step = tuple[str, Any]
steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.lists(said, max_size=30)),
        st.tuples(st.just("remove"), st.integers(0, 5)),
        st.tuples(st.just("ask"), st.lists(said, max_size=5)),
    ),
    max_size=40,
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(history=steps, seed=st.binary(min_size=16, max_size=16))
def test_it_is_a_set_of_those_whom_operations_are_about(kind: Any, history: list[Step], seed: bytes) -> None:
    """Whatever is added and removed, in whatever order: as a set of keys has it."""
    people, expected = kind(seed), set[Key]()
    claims: list[tuple[Any, set[Key]]] = []
    for deed, argument in history:
        if deed == "add":
            claims.append((people.add(argument), all_keys(argument) - expected))
            expected |= all_keys(argument)
        elif deed == "remove":
            if argument < len(claims):
                claim, keys = claims.pop(argument)
                people.remove(claim)
                expected -= keys
        else:
            assert people.has_all(argument) == (all_keys(argument) <= expected)
            assert people.meet(kind(seed).add(argument)) == (not all_keys(argument).isdisjoint(expected))
            alone = [each for each in argument if not isinstance(each.key, tuple)]
            waits = [each for each in alone if each.key in expected]
            goes = [each for each in alone if each.key not in expected]
            due = len(alone) // 2
            answer = goes, waits, sum(each.key in expected for each in alone[:due]), sum(map(len, waits))
            assert people.sift(alone, due, OrderedDict(), set()) == (answer if waits else None)
        assert len(people) == len(expected)
        assert all(key in people for key in expected)
    assert "nobody" not in people
    assert b"user-2" not in people


@pytest.mark.parametrize("kind", KINDS)
def test_many_come_and_go(kind: Any) -> None:
    """The table grows and shrinks, and nobody is lost or left behind on the way."""
    people, crowds = kind(SEED), [[event(f"person {crowd} {n}") for n in range(3_000)] for crowd in range(7)]
    claims = [people.add(crowd) for crowd in crowds]
    assert len(people) == 21_000
    for gone in (3, 0, 6, 5, 1):
        people.remove(claims[gone])
        crowds[gone] = []
        assert len(people) == sum(map(len, crowds))
        assert all(people.has_all([each]) for crowd in crowds for each in crowd)
        assert f"person {gone} 7" not in people
    people.remove(claims[2])
    people.remove(claims[4])
    assert len(people) == 0
    assert not people.has_all([event("person 2 0")])


@pytest.mark.parametrize("kind", KINDS)
def test_who_was_there_before_stays_when_the_later_ones_go(kind: Any) -> None:
    """A claim holds whom its call added, nobody else."""
    people = kind(SEED)
    first = people.add([event("ada"), event("ada")])
    second = people.add([event("ada"), event("ben")])
    assert len(people) == 2
    people.remove(second)
    assert ("ada" in people, "ben" in people) == (True, False)
    people.remove(first)
    people.remove(first)
    assert len(people) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_an_operation_waits_for_people_and_for_two_other_containers(kind: Any) -> None:
    """Each of the three is asked; where none holds anybody, there is no list."""
    people = kind(SEED)
    people.add([event("ada")])
    crowd = [event("ada"), event("ben"), about("cem"), about(b"dot"), event("eve")]
    lanes: OrderedDict[Key, Any] = OrderedDict({"ben": [], b"dot": []})
    ada, ben, cem, dot, eve = crowd
    nobody_else: OrderedDict[Key, Any] = OrderedDict()
    assert people.sift(crowd, 5, nobody_else, set()) == ([ben, cem, dot, eve], [ada], 1, len(ada))
    assert people.sift(crowd, 3, lanes, set()) == ([cem, eve], [ada, ben, dot], 2, len(ada) + len(ben) + len(dot))
    assert people.sift(crowd, 0, lanes, {"cem"}) == ([eve], [ada, ben, cem, dot], 0, sum(map(len, crowd)) - len(eve))
    assert people.sift(crowd[1:], 9, nobody_else, {"eve"}) == ([ben, cem, dot], [eve], 1, len(eve))
    assert people.sift([ada, ada], 1, nobody_else, set()) == ([], [ada, ada], 1, 2 * len(ada))
    assert people.sift(crowd[4:], 1, lanes, {"cem"}) is None
    assert people.sift([], 0, lanes, set()) is None
    assert crowd == [ada, ben, cem, dot, eve]


@pytest.mark.parametrize("kind", KINDS)
def test_an_id_in_a_body_is_the_same_person_as_one_by_itself(kind: Any) -> None:
    """Events cut it out of the body; text and bytes are different persons, and so are a person and a part of one."""
    people = kind(SEED)
    people.add([event(person) for person in ("user-1", "x" * 8, "y" * 16, "z" * 150)])
    for person in ("user-1", "x" * 8, "y" * 16, "z" * 150):
        assert person in people
        assert people.has_all([about(person)])
        for other in (person.encode(), person[:-1], person + "1", person + "\0"):
            assert other not in people


def test_keys_of_several_are_taken_apart() -> None:
    """``all_keys`` knows only persons."""
    assert all_keys([about(("ada", "ben")), about("cem"), about(("ben", b"dot"))]) == {"ada", "ben", "cem", b"dot"}
    assert all_keys([]) == set()


@built
def test_ids_that_meet_in_one_process_do_not_meet_in_another() -> None:
    """The fingerprints depend on the seed; within a process all sets have the same one."""
    crowd = [event(f"user-{n}") for n in range(8)]
    people = nobody()
    people.add(crowd)
    assert people.meet(nobody().add(crowd[7:]))
    assert not people.meet(KINDS[-1](SEED).add(crowd))
    done = subprocess.run(
        [sys.executable, "-c", "from cio_batch import people; print(people._SEED.hex())"],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    assert done.stdout.strip() != people_module._SEED.hex()


@built
def test_a_person_who_is_out_takes_few_bytes() -> None:
    """A claim is 8 bytes for each, once."""
    people, crowd = KINDS[-1](SEED), [event(f"user-{n}") for n in range(1_000)]
    assert sys.getsizeof(people.add(crowd + crowd)) < 8 * 1_000 + 100


@built
@pytest.mark.parametrize("seed", [b"", b"x" * 15, b"x" * 17])
def test_a_seed_has_sixteen_bytes(seed: bytes) -> None:
    """Anything else is refused."""
    with pytest.raises(ValueError, match="seed must be 16 bytes, got"):
        KINDS[-1](seed)


@built
def test_what_cannot_be_asked_is_an_error_not_a_crash() -> None:
    """And leaves everything as it was: of a list of which one is wrong, nobody was added."""
    people = KINDS[-1](SEED)
    for call in (people.add, people.has_all, lambda wrong: people.sift(wrong, 0, OrderedDict(), set())):
        for nonsense in (None, (), [None], [event("ada"), "text"]):
            with pytest.raises(TypeError, match="must be a list of operations"):
                call(nonsense)
        with pytest.raises(UnicodeEncodeError):
            call([about("\ud800"), event("ada")])
    with pytest.raises(UnicodeEncodeError):
        people.add([event("ada"), about(("ben", "\ud800"))])
    with pytest.raises(TypeError, match="must be str or bytes"):
        5 in people  # noqa: B015
    with pytest.raises(UnicodeEncodeError):
        "\ud800" in people  # noqa: B015
    for nonsense in (None, b"1234567", [1]):
        for call in (people.remove, people.meet):
            with pytest.raises(TypeError, match="must be what add"):
                call(nonsense)
    for containers in (({}, []), ([], set()), (None, None)):
        with pytest.raises(TypeError):
            people.sift([event("ada")], 0, *containers)
    assert len(people) == 0
    people.remove(b"\0" * 16)  # no fingerprint is 0
    assert len(people) == 0


@built
@pytest.mark.parametrize("change", ["clear", "grow"])
def test_a_list_that_changes_while_it_is_read_is_an_error_not_a_crash(change: str) -> None:
    """To compare an id may run anything."""

    class Id(str):
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            if change == "clear":
                crowd.clear()
            else:
                crowd.append(crowd[0])
            return False

        __hash__ = str.__hash__

    lanes: OrderedDict[Key, Any] = OrderedDict({Id("ada"): []})
    crowd = [event("ben"), event("ada")]  # the last one is compared when no other one is left
    with pytest.raises(RuntimeError, match="operations were changed meanwhile"):
        KINDS[-1](SEED).sift(crowd, 0, lanes, set())


@built
def test_people_give_back_what_they_took() -> None:
    """Neither asking nor adding keeps or loses a reference."""
    key, lanes, closed = "ada and others", OrderedDict[Key, Any]({"ben": []}), {"cem"}
    crowd = [about(key), about((key, b"dot")), event("eve")]
    watched = [key, lanes, closed, crowd, *crowd, KINDS[-1]]
    gc.collect()
    before = [sys.getrefcount(each) for each in watched]
    for _ in range(500):
        people = KINDS[-1](SEED)
        claim = people.add(crowd)
        assert key in people
        assert people.has_all(crowd)
        people.sift(crowd, 1, lanes, closed)
        people.remove(claim)
        people.sift(crowd, 1, lanes, closed)
    del people
    assert [sys.getrefcount(each) for each in watched] == before
