"""The compiled half of the hot path does what the Python half does, and only what it is sure of.

That its bytes are the same is tested with every event of ``test_operations.py``, which is encoded both ways.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import enum
import gc
import inspect
import os
import pickle
import subprocess
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

import cio_batch
from cio_batch import speedups
from cio_batch.operations import (
    _IN_PYTHON,
    MAX_OPERATION_BYTES,
    Email,
    Operation,
    join,
    keys_of,
    kinds_of,
    running_bytes,
)
from cio_batch.queues import DoorInPython
from cio_batch.speedups import event_encoder

ULID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
NOW = 1_700_000_000.5
HEAD = b'{"type":"person","action":"event","name":"n","timestamp":1700000000,"identifiers":'
LEFT_ALONE = ("left to Python",)

built = pytest.mark.skipif(speedups.compiled is None, reason="the extension was not built")


def test_the_extension_was_built() -> None:
    """Where the library is developed it is built: else half of the tests below would say nothing."""
    if os.environ.get("CIO_BATCH_NO_EXTENSIONS"):
        pytest.skip("not wanted: CIO_BATCH_NO_EXTENSIONS")
    assert speedups.compiled is not None, "no C compiler, or no headers of Python, when cio_batch was installed"


class Encoder:
    """An encoder whose Python side only notes what it is asked."""

    def __init__(self, **changes: Any) -> None:
        self.asked: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.heads = {"n": (1_700_000_000.0, 1_700_000_001.0, HEAD, b'"n"')}
        arguments: dict[str, Any] = {
            "heads": self.heads,
            "dumps": orjson.dumps,
            "default": self.default,
            "options": 0,
            "max_bytes": MAX_OPERATION_BYTES,
            "kind": "person.event",
        }
        self.encode: Callable[..., Any] = event_encoder(self.in_python, **{**arguments, **changes})

    def in_python(self, *arguments: Any, **named: Any) -> Any:
        self.asked.append((arguments, named))
        return LEFT_ALONE

    def default(self, value: Any) -> Any:
        raise TypeError


def arguments(
    *,
    user_id: Any = "ada",
    name: Any = "n",
    data: Any = None,
    timestamp: Any = None,
    id: Any = None,
    now: Any = NOW,
    new_id: Any = lambda: ULID,
) -> tuple[Any, ...]:
    return user_id, name, data, timestamp, id, now, new_id


class Text(str):
    __slots__ = ()


class Letters(str, enum.Enum):  # noqa: UP042 - StrEnum writes itself otherwise
    ADA = "ada"


# ---------------------------------------------------------------------------------------------------- Operation

OPERATIONS = [_IN_PYTHON[0]] if speedups.compiled is None else [_IN_PYTHON[0], speedups.compiled.Operation]
KEYS = ["ada", b'{"email":"ada@example.com"}', ("ada", b"x"), ""]


@pytest.mark.parametrize("kind", OPERATIONS)
def test_an_operation_holds_what_it_was_given(kind: type[Operation]) -> None:
    """Each part comes out as it went in; the number alone can be set, by the spool that gives it."""
    for key in KEYS:
        operation = kind(b"{}", key, "person.identify", 7)
        assert (operation.body, operation.key, operation.kind, operation.number) == (b"{}", key, "person.identify", 7)
        assert type(operation.key) is type(key)
        assert len(operation) == 2
    operation = kind(key="ada", kind="person.event", body=b"")
    assert (operation.body, len(operation), operation.number) == (b"", 0, 0)
    operation.number = 2**62
    assert operation.number == 2**62


@pytest.mark.parametrize("kind", OPERATIONS)
def test_operations_are_equal_where_all_parts_are(kind: type[Operation]) -> None:
    """And never equal to anything else; what can be changed has no hash."""
    one = kind(b"{}", "ada", "person.event", 7)
    assert one == kind(bytes(bytearray(b"{}")), "".join(["a", "da"]), "person.event", 7)
    others: list[object] = [
        kind(b"[]", "ada", "person.event", 7),
        kind(b"{} ", "ada", "person.event", 7),
        kind(b"{}", "bob", "person.event", 7),
        kind(b"{}", b"ada", "person.event", 7),
        kind(b"{}", "ada", "person.page", 7),
        kind(b"{}", "ada", "person.event"),
        (b"{}", "ada", "person.event", 7),
        None,
    ]
    for other in others:
        assert one != other
        assert not one == other  # noqa: SIM201 - the other operator
    with pytest.raises(TypeError):
        hash(one)
    with pytest.raises(TypeError):
        assert one < one  # type: ignore[operator]


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_an_operation_can_be_copied_and_pickled(protocol: int) -> None:
    """As a spool or a transport of one's own may do."""
    for key in KEYS:
        operation = Operation(b"{}", key, "person.event", 7)
        for again in (copy.copy(operation), copy.deepcopy(operation), pickle.loads(pickle.dumps(operation, protocol))):
            assert again == operation
            assert again is not operation


@built
@pytest.mark.parametrize("here", ["1", ""])
def test_what_one_process_pickles_another_reads(here: str) -> None:
    """With the extension what was pickled without it, and the other way round."""
    code = (
        "import pickle, sys; from cio_batch.operations import Operation; "
        "said = Operation(b'{}', ('u', b'v'), 'person.event', 7); "
    )
    writing = subprocess.run(
        [sys.executable, "-c", code + "sys.stdout.buffer.write(pickle.dumps(said))"],
        env={**os.environ, "CIO_BATCH_NO_EXTENSIONS": here},
        stdout=subprocess.PIPE,
        check=True,
    )
    reading = subprocess.run(
        [sys.executable, "-c", code + "raise SystemExit(pickle.load(sys.stdin.buffer) != said)"],
        env={**os.environ, "CIO_BATCH_NO_EXTENSIONS": "" if here else "1"},
        input=writing.stdout,
        check=False,
    )
    assert reading.returncode == 0


@pytest.mark.parametrize("kind", OPERATIONS)
def test_an_operation_shows_sizes_only(kind: type[Operation]) -> None:
    """Whoever logs one logs neither a person nor a payload."""
    shown = repr(kind(b'{"a":"secret"}', "secret", "person.event", 7))
    assert shown == "Operation(body=<14 bytes>, key=<hidden>, kind='person.event', number=7)"


@built
@pytest.mark.parametrize(
    "wrong",
    [
        ("text", "u", "k"),
        (b"", "u", 5),
        (b"", "u", Text("k")),
        (b"", ["u"], "k"),
        (b"", ("u", ("v",)), "k"),
        (b"", "u", "k", "7"),
        (b"", "u", "k", 2**63),
        (b"",),
        (b"", "u", "k", 0, 0),
    ],
)
def test_an_operation_of_wrong_parts_is_refused(wrong: tuple[Any, ...]) -> None:
    """The extension looks at a part before it reads it, and keeps nothing that could lead back to the operation."""
    with pytest.raises((TypeError, OverflowError)):
        OPERATIONS[-1](*wrong)


@built
@pytest.mark.parametrize("wrong", [2**63, "7", None, 1.5])
def test_a_wrong_number_changes_nothing(wrong: Any) -> None:
    """A number that is refused is not set."""
    operation = OPERATIONS[-1](b"", "u", "k", 7)
    with pytest.raises((TypeError, OverflowError)):
        operation.number = wrong
    with pytest.raises(AttributeError):
        del operation.number
    assert operation.number == 7


@built
def test_what_is_read_in_bulk_may_change_meanwhile() -> None:
    """The garbage collector may run in the midst of it, and what it calls may empty the list."""

    class Circle:
        def __del__(self) -> None:
            operations.clear()

    thresholds = gc.get_threshold()
    outcomes: list[object] = []
    try:
        gc.set_threshold(1, 1, 1)
        for read in (keys_of, kinds_of, running_bytes):
            for _ in range(20):
                gc.disable()
                operations = [Operation(b"x", "u", "k") for _ in range(100)]
                circle: Any = Circle()
                circle.itself = circle
                del circle
                spare: list[object] = [[] for _ in range(500)]  # Python keeps some lists to use again, without a look
                gc.enable()
                try:  # the next thing that the collector counts is made in there
                    outcomes.append(len(read(operations)))  # type: ignore[operator]
                except RuntimeError as error:
                    outcomes.append(str(error))
                del spare
    finally:
        gc.enable()
        gc.set_threshold(*thresholds)
    assert "operations were changed meanwhile" in outcomes, "the collector never ran in the midst of it"
    assert 0 in outcomes


@built
def test_an_operation_costs_little_more_than_its_bytes() -> None:
    """The person's id is cut out of the body; an id of the longest kind costs no more than a short one."""
    for person in ("ada", "x" * 150):
        operation = Encoder().encode(*arguments(user_id="".join(person)))
        assert operation.key == person
        assert not gc.is_tracked(operation)
        assert sys.getsizeof(operation) <= len(operation) + 56


@built
def test_an_operation_gives_back_what_it_took() -> None:
    """Neither making nor reading nor dropping one keeps or loses a reference."""
    parts = (b"x" * 100, "ada and others", "person.identify")
    before = [sys.getrefcount(part) for part in parts]
    for _ in range(1_000):
        operation = OPERATIONS[-1](*parts)
        assert (operation.body, operation.key, operation.kind) == parts
        assert operation == OPERATIONS[-1](*parts)
        repr(operation)
        for read in (join, keys_of, kinds_of, running_bytes):
            assert len(read([operation])) > 0  # type: ignore[operator]
    del operation
    assert [sys.getrefcount(part) for part in parts] == before


@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_what_is_done_in_bulk_is_done_to_each(count: int) -> None:
    """Bodies, keys and running sizes, compiled as in Python, of operations of every kind."""
    operations = [Operation(b"x" * n, KEYS[n % 4], "person.identify", n) for n in range(count)]
    operations += [
        cio_batch.operations.encode_event(f"user-{n}", "n", {"n": n}, None, None, NOW, lambda: ULID)
        for n in range(count)
    ]
    _, join_in_python, keys_in_python, kinds_in_python, running_in_python = _IN_PYTHON
    assert join(operations) == join_in_python(operations) == b",".join([each.body for each in operations])
    assert keys_of(operations) == keys_in_python(operations) == [each.key for each in operations]
    assert kinds_of(operations) == kinds_in_python(operations) == {each.kind for each in operations}
    assert running_bytes(operations) == running_in_python(operations)
    assert running_bytes(operations)[-1:] == ([len(join(operations)) + 1] if operations else [])


@built
@pytest.mark.parametrize("nonsense", [None, (), [None], [(b"x", "u", "k", 0)], ["text"]], ids=repr)
def test_a_list_of_something_else_is_refused(nonsense: Any) -> None:
    """What reads the memory of operations makes sure that these are some."""
    for read in (join, keys_of, kinds_of, running_bytes):
        with pytest.raises(TypeError, match="must be a list of operations"):
            read(nonsense)
        with pytest.raises(TypeError, match="must be a list of operations"):
            read([Operation(b"", "u", "k"), nonsense])


# ------------------------------------------------------------------------------------------------- encode_event


@built
@pytest.mark.parametrize(
    ("said", "body"),
    [
        ({}, HEAD + b'{"id":"ada"},"id":"%b"}' % ULID.encode()),
        ({"data": {}}, HEAD + b'{"id":"ada"},"id":"%b","attributes":{}}' % ULID.encode()),
        (
            {"data": {"a": "\u00fc", "b": [1.5, {"nul": "l"}]}, "user_id": "a~!" * 50},
            HEAD
            + b'{"id":"%b"},"id":"%b","attributes":' % (b"a~!" * 50, ULID.encode())
            + '{"a":"\u00fc","b":[1.5,{"nul":"l"}]}}'.encode(),
        ),
        ({"now": 1_700_000_000.0}, HEAD + b'{"id":"ada"},"id":"%b"}' % ULID.encode()),
    ],
)
def test_the_usual_event_never_asks_python(said: dict[str, Any], body: bytes) -> None:
    """An event with a plain id, now, with a new id and data that is a dict or nothing."""
    encoder = Encoder()
    words = arguments(**said)
    operation = encoder.encode(*words)
    assert operation == Operation(body, words[0], "person.event")
    assert encoder.asked == []


@built
@pytest.mark.parametrize(
    "said",
    [
        {"user_id": "ab"},
        {"user_id": "a" * 151},
        {"user_id": "a b"},
        {"user_id": 'a"b'},
        {"user_id": "a\\b"},
        {"user_id": "ab\x7f"},
        {"user_id": "ab\n"},
        {"user_id": "ab\u00fc"},
        {"user_id": "ab\ud800"},
        {"user_id": "\u2003\u2003\u2003"},
        {"user_id": Text("ada")},
        {"user_id": Letters.ADA},
        {"user_id": Email("ada@example.com")},
        {"user_id": b"ada"},
        {"user_id": None},
        {"name": "other"},
        {"name": Text("n")},
        {"name": b"n"},
        {"name": ["n"]},
        {"timestamp": 1_700_000_000},
        {"id": ULID},
        {"now": 1_699_999_999.9},
        {"now": 1_700_000_001.0},
        {"now": float("nan")},
        {"data": OrderedDict(a=1)},
        {"data": [1]},
        {"data": "text"},
        {"data": {"a": None}},
        {"data": {"a": float("nan")}},
        {"data": {"a": "null"}},
        {"data": {"null": 1}},
        {"data": {"a": {1, 2}}},
        {"data": {1: 2}},
        {"data": {"a": "\ud800"}},
        {"data": {"a": 2**64}},
        {"data": {"a": "x" * MAX_OPERATION_BYTES}},
    ],
    ids=repr,
)
def test_all_others_are_left_to_python(said: dict[str, Any]) -> None:
    """Whatever might break a rule, or is rare, goes to the Python side as it was said, and no error is left behind."""
    encoder = Encoder()
    words = arguments(**said)
    assert encoder.encode(*words) is LEFT_ALONE
    assert encoder.asked == [(words, {})]
    assert encoder.asked[0][0][2] is words[2]


@built
@pytest.mark.parametrize("place", range(9))
def test_a_null_is_seen_wherever_it_stands(place: int) -> None:
    """A NaN is written as null, by itself; none goes unseen for where it stands."""
    encoder = Encoder(dumps=lambda *_: b"." * place + b"null" + b"." * (8 - place))
    assert encoder.encode(*arguments(data={})) is LEFT_ALONE
    encoder = Encoder(dumps=lambda *_: b"nulnulnnull"[:10])
    assert encoder.encode(*arguments(data={})) is not LEFT_ALONE


@built
def test_the_limit_is_met_to_the_byte() -> None:
    """A body of ``max_bytes`` is usual, one of a byte more is not."""
    size = len(Encoder().encode(*arguments()))
    assert Encoder(max_bytes=size).encode(*arguments()) is not LEFT_ALONE
    assert Encoder(max_bytes=size - 1).encode(*arguments()) is LEFT_ALONE


@built
@pytest.mark.parametrize(("changes", "error"), [({"max_bytes": 65_536}, ValueError), ({"max_bytes": -1}, ValueError)])
def test_an_encoder_is_bound_to_what_it_can_do(changes: dict[str, Any], error: type[Exception]) -> None:
    """An operation knows places in its body by numbers of 16 bits."""
    with pytest.raises(error, match="between 0 and 65535"):
        Encoder(**changes)
    assert Encoder(max_bytes=65_535).encode(*arguments()).key == "ada"


@built
def test_keywords_and_wrong_counts_go_to_python_as_they_are() -> None:
    """The Python function's own signature says what is right."""
    encoder = Encoder()
    encoder.encode(*arguments()[:5], now=NOW, new_id=None)
    encoder.encode("ada")
    encoder.encode()
    assert encoder.asked == [(arguments()[:5], {"now": NOW, "new_id": None}), (("ada",), {}), ((), {})]
    assert [*inspect.signature(cio_batch.operations.encode_event).parameters] == [
        "user_id",
        "name",
        "data",
        "timestamp",
        "id",
        "now",
        "new_id",
    ]


class Unforeseen(Exception):  # noqa: N818
    pass


def unforeseen(*_: object) -> Any:
    raise Unforeseen


@built
@pytest.mark.parametrize(
    ("changes", "said", "error"),
    [
        ({}, {"new_id": unforeseen}, Unforeseen),
        ({}, {"new_id": lambda: 5}, TypeError),
        ({"dumps": unforeseen}, {"data": {}}, Unforeseen),
        ({"dumps": lambda *_: "text"}, {"data": {}}, TypeError),
        ({}, {"now": "soon"}, TypeError),
    ],
)
def test_what_others_raise_comes_out(changes: dict[str, Any], said: dict[str, Any], error: type[Exception]) -> None:
    """An error that is no verdict on the event is nobody's to swallow."""
    encoder = Encoder(**changes)
    with pytest.raises(error):
        encoder.encode(*arguments(**said))
    assert encoder.asked == []


@built
def test_a_head_that_is_replaced_meanwhile_stays_alive() -> None:
    """What encodes a value of the user's may encode another event, which makes a new head."""

    def replacing(*_: object) -> bytes:
        encoder.heads.clear()
        gc.collect()
        return b"{}"

    encoder = Encoder(dumps=replacing)
    encoder.heads["n"] = (1_700_000_000.0, 1_700_000_001.0, bytes(bytearray(HEAD)), b'"n"')
    assert encoder.encode(*arguments(data={})).body.startswith(HEAD)


@built
@pytest.mark.parametrize(
    "said",
    [
        {},
        {"data": {"a": 1}},
        {"data": {"a": None}},
        {"data": {"a": {1}}},
        {"data": {"a": "x" * MAX_OPERATION_BYTES}},
        {"user_id": "ab\ud800"},
        {"new_id": unforeseen},
        {"now": "soon"},
    ],
)
def test_no_way_out_keeps_or_loses_a_reference(said: dict[str, Any]) -> None:
    """After a thousand events every object is referred to as often as before."""
    encoder = Encoder()
    words = arguments(**said)
    entry = encoder.heads["n"]
    watched = [*words, entry, *entry, encoder.encode, "person.event", LEFT_ALONE]
    before = [sys.getrefcount(each) for each in watched]
    for _ in range(1_000):
        with contextlib.suppress(Unforeseen, TypeError):
            encoder.encode(*words)
        encoder.asked.clear()
    after = [sys.getrefcount(each) for each in watched]
    assert [end - begin for begin, end in zip(before, after, strict=True) if abs(end - begin) > 5] == []


# --------------------------------------------------------------------------------------------------------- Door

DOORS = [DoorInPython] if speedups.compiled is None else [DoorInPython, speedups.compiled.Door]


def operation(size: int = 10) -> Operation:
    return Operation(b"x" * size, "ada", "person.event")


def opened(kind: type[DoorInPython], *, calm_operations: int = 3, calm_bytes: int = 100) -> tuple[DoorInPython, Any]:
    door = kind()
    queued: list[Operation] = []
    door.append = queued.append
    door.calm_operations, door.calm_bytes = calm_operations, calm_bytes
    door.open_to(threading.get_ident(), lambda: True)
    return door, queued


@pytest.mark.parametrize("kind", DOORS)
def test_a_new_door_is_shut(kind: type[DoorInPython]) -> None:
    """Nothing enters before somebody says where it belongs."""
    door = kind()
    assert (door.accepted, door.accepted_bytes, door.calm_operations, door.calm_bytes) == (0, 0, 0, 0)
    assert not door.is_open()
    assert not door.accept(operation())


@pytest.mark.parametrize("kind", DOORS)
def test_operations_enter_below_both_marks(kind: type[DoorInPython]) -> None:
    """Up to the mark of operations, and below the one of bytes; what does not enter is not counted."""
    door, queued = opened(kind)
    assert [door.accept(operation()) for _ in range(4)] == [True, True, True, False]
    assert (len(queued), door.accepted, door.accepted_bytes) == (3, 3, 30)
    door.calm_operations = 10
    assert not door.accept(operation(70))  # 100 bytes are not below the mark
    assert door.accept(operation(69))
    assert (len(queued), door.accepted, door.accepted_bytes) == (4, 4, 99)
    assert queued[-1] == operation(69)


@pytest.mark.parametrize("kind", DOORS)
def test_a_door_is_open_in_its_thread_while_its_loop_runs(kind: type[DoorInPython]) -> None:
    """Not in another thread, not when the loop has stopped, and not once it was shut."""
    door, queued = opened(kind)
    elsewhere: list[bool] = []
    thread = threading.Thread(target=lambda: elsewhere.extend([door.is_open(), door.accept(operation())]))
    thread.start()
    thread.join()
    assert elsewhere == [False, False]

    loop = asyncio.new_event_loop()
    door.open_to(threading.get_ident(), loop.is_running)
    assert (door.is_open(), door.accept(operation())) == (False, False)

    async def inside() -> tuple[bool, bool]:
        return door.is_open(), door.accept(operation())

    assert loop.run_until_complete(inside()) == (True, True)
    loop.close()
    door.open_to(0, lambda: True)
    assert (door.is_open(), door.accept(operation())) == (False, False)
    assert len(queued) == 1


@pytest.mark.parametrize("kind", DOORS)
def test_what_could_not_be_queued_is_not_counted(kind: type[DoorInPython]) -> None:
    """If the end of the queue, or the question about the loop, raises, nothing was accepted."""
    door, queued = opened(kind)
    door.append = unforeseen
    with pytest.raises(Unforeseen):
        door.accept(operation())
    door.open_to(threading.get_ident(), unforeseen)
    for question in (door.is_open, lambda: door.accept(operation())):
        with pytest.raises(Unforeseen):
            question()
    assert (queued, door.accepted, door.accepted_bytes) == ([], 0, 0)


@built
@pytest.mark.parametrize("nonsense", [None, (), (None,), ("text",), [b"x"]], ids=repr)
def test_what_is_no_operation_is_an_error_not_a_crash(nonsense: Any) -> None:
    """The extension looks before it reads."""
    door, queued = opened(DOORS[-1])
    with pytest.raises(TypeError, match="must be an Operation"):
        door.accept(nonsense)
    assert (queued, door.accepted) == ([], 0)


@pytest.mark.parametrize("kind", DOORS)
def test_a_door_in_a_circle_is_collected(kind: type[DoorInPython]) -> None:
    """Its queue's end and its loop may lead back to it."""

    class Queue(kind):  # type: ignore[valid-type, misc]
        def at_the_end(self, each: Operation) -> None: ...

        def runs(self) -> bool:
            return True

    door = Queue()
    door.append = door.at_the_end
    door.open_to(threading.get_ident(), door.runs)
    assert door.accept(operation()) is False
    gone = weakref.ref(door)
    del door
    gc.collect()
    assert gone() is None


# ---------------------------------------------------------------------------------------------------- without it


def test_everything_works_without_the_extension() -> None:
    """The tests of encoding, queue, backlog and tracker pass in a process that is told to do without."""
    tests = Path(__file__).parent
    without = {**os.environ, "CIO_BATCH_NO_EXTENSIONS": "1", "CI": ""}
    code = "from cio_batch import speedups; raise SystemExit(speedups.compiled is not None)"
    assert subprocess.run([sys.executable, "-c", code], env=without, check=False).returncode == 0
    names = ["test_operations.py", "test_queues.py", "test_chunks.py", "test_tracker.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *[str(tests / name) for name in names]],
        env=without,
        cwd=tests.parent,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout[-3_000:]
