"""A dead letter as a line of JSON, and back."""

from __future__ import annotations

import attrs
import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cio_batch import DeadLetter, Email, Refusal
from cio_batch import operations as ops
from cio_batch.dead_letters import body_of

ULID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
EVENT = ops.encode(ops.event("user-1", "bought", {"n": 1}), now=1_764_000_000.0, new_id=lambda: ULID).body
REFUSAL = Refusal("rejected", "invalid", "identifiers", "no such person", 207, 1, 1_764_000_001.5)
LETTER = DeadLetter(EVENT, (REFUSAL,), 1_764_000_000.25)

texts = st.text(st.characters(exclude_categories=["Cs"]))
counts = st.integers(0, 2**63 - 1)
moments = st.floats(0, 1e11)
refusals = st.builds(Refusal, texts, texts, texts, texts, counts, counts, moments)
ids = texts.filter(lambda text: 0 < len(text.encode()) <= 150 and text.isprintable() and text.strip())
names = texts.filter(lambda text: 0 < len(text.encode()) <= 100)


def operation(person: str, name: str) -> bytes | None:
    """An event's bytes, unless the name or the person is none that can be sent."""
    try:
        return ops.encode(ops.event(person, name), now=0.0, new_id=lambda: ULID).body
    except ops.InvalidOperationError:
        return None


bodies = st.builds(operation, ids, names).filter(lambda body: body is not None)


@given(
    st.builds(
        DeadLetter, bodies, st.lists(refusals, min_size=1, max_size=3).map(tuple), st.none() | moments, st.just(0)
    )
)
@example(DeadLetter(EVENT, (Refusal("x", ',"operation":', ',"operation":{}', ',"operation":"'),), None))
def test_a_letter_comes_back_from_its_line(letter: DeadLetter) -> None:
    """Bytes, history and times are those that were written; the line is JSON, and has one end."""
    line = letter.to_line()

    assert DeadLetter.from_line(line) == letter
    assert body_of(line) == letter.body
    assert line.index(b"\n") == len(line) - 1
    said = orjson.loads(line)
    assert said["reason"] == letter.last.reason
    assert len(said["history"]) == len(letter.refusals) - 1
    assert said["operation"] == letter.payload


def test_what_it_says_of_itself() -> None:
    """Name, id and kind come out of the operation; content stays out of the repr."""
    assert (LETTER.kind, LETTER.name, LETTER.id, LETTER.last) == ("person.event", "bought", ULID, REFUSAL)
    assert "no such person" not in repr(LETTER)
    assert "user-1" not in repr(LETTER)
    identify = DeadLetter(ops.encode(ops.identify("a"), now=0.0, new_id=str).body, (REFUSAL,))
    assert (identify.kind, identify.name, identify.id) == ("person.identify", "", None)


def test_whom_it_is_about() -> None:
    """Everybody whom its operation names, by exactly that identifier."""
    merge = DeadLetter(ops.encode(ops.merge("a", Email("b@c.de")), now=0.0, new_id=str).body, (REFUSAL,))

    assert merge.is_about(frozenset({ops.key_of("a")}))
    assert merge.is_about(frozenset({ops.key_of(Email("b@c.de"))}))
    assert not merge.is_about(frozenset({ops.key_of("b@c.de"), ops.key_of(Email("a@c.de"))}))


LINE = LETTER.to_line()
HEAD = orjson.loads(LINE)
HOSTILE = {
    "empty": b"\n",
    "null": b"null\n",
    "a number": b"17\n",
    "torn": LINE[:-20],
    "torn in the head": LINE[:40],
    "its end torn off": LINE[20:],
    "two in one": LINE.strip() + LINE,
    "binary": b"\x00\xff\xfe\n",
    "an operation alone": EVENT,
    "the head is a list": b'["a"],"operation":' + EVENT + b"}\n",
    "the head is closed": b'{"verdict":"failed"},"operation":' + EVENT + b"}\n",
    "no history": LINE.replace(b'"history"', b'"hystory"'),
    "history is a number": LINE.replace(b'"history":[]', b'"history":1'),
    "history holds text": LINE.replace(b'"history":[]', b'"history":["a"]'),
    "history holds an empty object": LINE.replace(b'"history":[]', b'"history":[{}]'),
    "a reason that is none": LINE.replace(b'"reason":"invalid"', b'"reason":null'),
    "a status that is text": LINE.replace(b'"status":207', b'"status":"207"'),
    "a time that is text": LINE.replace(b'"accepted_at":1764000000.25', b'"accepted_at":"now"'),
    "a time that is true": LINE.replace(b'"accepted_at":1764000000.25', b'"accepted_at":true'),
    "a further field": LINE.replace(b'"status":207', b'"status":207,"extra":1'),
    "spaces": orjson.dumps(HEAD, option=orjson.OPT_INDENT_2).replace(b"\n", b" "),
    "an operation of nobody": LINE.replace(b'"identifiers":{"id":"user-1"}', b'"identifiers":{}'),
    "an operation of a number": LINE.replace(b'{"id":"user-1"}', b'{"id":1}'),
    "an unknown operation": LINE.replace(b'"action":"event"', b'"action":"dance"'),
    "an operation that is too large": LINE.replace(b'"n":1', b'"n":"' + b"x" * 40_000 + b'"'),
    "deep": b'{"a":' * 2_000 + b',"operation":' + b"[" * 2_000,
}


@pytest.mark.parametrize("line", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_line_that_is_none_is_refused(line: bytes) -> None:
    """Each with a ValueError, and nothing else, whose text holds no content."""
    assert line != LINE
    with pytest.raises(ValueError, match=r"^(a dead letter|operation)") as caught:
        DeadLetter.from_line(line)
    assert "user-1" not in str(caught.value)


@given(st.binary(max_size=200), st.integers(0, len(LINE)), st.integers(0, 30))
def test_a_damaged_line_is_read_or_refused(noise: bytes, start: int, cut: int) -> None:
    """Whatever stands there: a letter, or a ValueError."""
    line = LINE[:start] + noise + LINE[start + cut :]
    try:
        letter = DeadLetter.from_line(line)
    except ValueError:
        return
    assert letter.refusals
    assert DeadLetter.from_line(letter.to_line()) == letter


def test_a_number_is_no_part_of_the_line() -> None:
    """It says where a letter is kept, and is given by whoever reads it."""
    assert DeadLetter.from_line(attrs.evolve(LETTER, number=7).to_line(), 9).number == 9
