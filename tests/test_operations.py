"""Everything that can be said, as exact bytes; every limit, at it and one beyond."""

from __future__ import annotations

import copy
import dataclasses
import datetime as dt
import decimal
import enum
import functools
import json
import math
import traceback
import types
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from cio_batch import operations as ops
from cio_batch.errors import InvalidOperationError
from cio_batch.operations import (
    AnonymousId,
    CioId,
    CioObjectId,
    Draft,
    Email,
    ObjectId,
    Operation,
    Phone,
    Relationship,
    encode,
)

SHARED = Path(__file__).resolve().parents[1].parent / "shared"
ULID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
OTHER_ULID = "01BX5ZZKBKACTAV9WEVGEMMVRY"
NOW = 1_700_000_000.9
SECRET = "s3cr3t-content"
ACME = ObjectId("1", "acme")
UTC = dt.UTC
PLUS_2 = dt.timezone(dt.timedelta(hours=2))


def said(draft: Draft) -> Operation:
    return encode(draft, now=NOW, new_id=lambda: ULID)


def parts(operation: Operation) -> tuple[bytes, Any, str, int]:
    return operation.body, operation.key, operation.kind, operation.number


def encode_event(
    user_id: Any, name: Any, data: Any, timestamp: Any, id: Any, now: float, new_id: Callable[[], str]
) -> Operation:
    """The short way, in Python and compiled (once the Python one has made the head): they must agree."""
    outcomes: list[Operation | Exception] = []
    for way in (ops._encode_event_in_python, ops.encode_event):
        try:
            outcomes.append(way(user_id, name, data, timestamp, id, now, new_id))
        except Exception as error:  # noqa: BLE001 - whatever it is, both must raise it
            outcomes.append(error)
    first, second = outcomes
    if isinstance(first, Exception):
        assert type(first) is type(second)
        assert str(first) == str(second)
        raise first
    assert first == second
    assert [type(part) for part in parts(first)] == [type(part) for part in parts(second)]
    return first


def refused(draft: Draft) -> InvalidOperationError:
    with pytest.raises(InvalidOperationError) as caught:
        said(draft)
    return caught.value


def event_with(value: Any) -> Draft:
    return ops.event("u", "n", {"value": value})


def value_on_the_wire(value: Any) -> bytes:
    body = said(event_with(value)).body
    return body[body.index(b'"attributes":{"value":') + len(b'"attributes":{"value":') : -2]


# ----------------------------------------------------------------------------------------- every constructor

_HEAD = b'{"type":"person","action":"%s","identifiers":{"id":"42"}'
_EVENT = b'{"type":"%s","action":"%s","name":"%s","timestamp":%d,"identifiers":{"%s":"%s"},"id":"%s"'
_OBJECT = b'{"type":"object","action":"%s","identifiers":{"object_type_id":"1","object_id":"acme"}'
ACME_KEY = b'{"object_type_id":"1","object_id":"acme"}'

SAID: list[tuple[Draft, bytes, object, str]] = [
    (
        ops.event("42", "bought", {"total": 9.5}),
        _EVENT % (b"person", b"event", b"bought", NOW, b"id", b"42", ULID.encode()) + b',"attributes":{"total":9.5}}',
        "42",
        "person.event",
    ),
    (
        ops.event("42", "bought"),
        _EVENT % (b"person", b"event", b"bought", NOW, b"id", b"42", ULID.encode()) + b"}",
        "42",
        "person.event",
    ),
    (
        ops.event("42", "bought", timestamp=7, id=OTHER_ULID.lower()),
        _EVENT % (b"person", b"event", b"bought", 7, b"id", b"42", OTHER_ULID.encode()) + b"}",
        "42",
        "person.event",
    ),
    (
        ops.page("42", "/pricing", {}),
        _EVENT % (b"person", b"page", b"/pricing", NOW, b"id", b"42", ULID.encode()) + b',"attributes":{}}',
        "42",
        "person.page",
    ),
    (
        ops.screen("42", "Home"),
        _EVENT % (b"person", b"screen", b"Home", NOW, b"id", b"42", ULID.encode()) + b"}",
        "42",
        "person.screen",
    ),
    (
        ops.anonymous_event("a-1", "seen", {"x": None}),
        _EVENT % (b"anonymous", b"event", b"seen", NOW, b"anonymous_id", b"a-1", ULID.encode())
        + b',"attributes":{"x":null}}',
        b'{"anonymous_id":"a-1"}',
        "anonymous.event",
    ),
    (
        ops.anonymous_event("a-1", "/", action="page"),
        _EVENT % (b"anonymous", b"page", b"/", NOW, b"anonymous_id", b"a-1", ULID.encode()) + b"}",
        b'{"anonymous_id":"a-1"}',
        "anonymous.page",
    ),
    (
        ops.anonymous_event("a-1", "Home", action="screen"),
        _EVENT % (b"anonymous", b"screen", b"Home", NOW, b"anonymous_id", b"a-1", ULID.encode()) + b"}",
        b'{"anonymous_id":"a-1"}',
        "anonymous.screen",
    ),
    (ops.identify("42"), _HEAD % b"identify" + b"}", "42", "person.identify"),
    (
        ops.identify(
            Email("a@b.c"),
            {"plan": "é"},
            timestamp=7.9,
            relationships=[CioObjectId("ob1"), Relationship(ACME, {"r": 1})],
        ),
        '{"type":"person","action":"identify","identifiers":{"email":"a@b.c"},"timestamp":7,"attributes":{"plan":"é"},'
        '"cio_relationships":[{"identifiers":{"cio_object_id":"ob1"}},{"identifiers":{"object_type_id":"1",'
        '"object_id":"acme"},"relationship_attributes":{"r":1}}]}'.encode(),
        (b'{"email":"a@b.c"}', b'{"cio_object_id":"ob1"}', ACME_KEY),
        "person.identify",
    ),
    (
        ops.delete(CioId("cio_03000001")),
        b'{"type":"person","action":"delete","identifiers":{"cio_id":"03000001"}}',
        b'{"cio_id":"03000001"}',
        "person.delete",
    ),
    (
        ops.suppress(Phone("+15551234567")),
        b'{"type":"person","action":"suppress","identifiers":{"phone":"+15551234567"}}',
        b'{"phone":"+15551234567"}',
        "person.suppress",
    ),
    (ops.unsuppress("42"), _HEAD % b"unsuppress" + b"}", "42", "person.unsuppress"),
    (
        ops.add_device(
            "42", "tok", "ios", last_used=dt.datetime(1970, 1, 1, 2, 0, 9, tzinfo=PLUS_2), attributes={"a": "b"}
        ),
        _HEAD % b"add_device" + b',"device":{"token":"tok","platform":"ios","last_used":9,"attributes":{"a":"b"}}}',
        "42",
        "person.add_device",
    ),
    (
        ops.add_device("42", "tok", "android"),
        _HEAD % b"add_device" + b',"device":{"token":"tok","platform":"android"}}',
        "42",
        "person.add_device",
    ),
    (
        ops.delete_device("42", "tok"),
        _HEAD % b"delete_device" + b',"device":{"token":"tok"}}',
        "42",
        "person.delete_device",
    ),
    (
        ops.merge("42", Email("a@b.c")),
        b'{"type":"person","action":"merge","primary":{"id":"42"},"secondary":{"email":"a@b.c"}}',
        ("42", b'{"email":"a@b.c"}'),
        "person.merge",
    ),
    (
        ops.add_relationships("42", [ACME]),
        _HEAD % b"add_relationships" + b',"cio_relationships":[{"identifiers":' + ACME_KEY + b"}]}",
        ("42", ACME_KEY),
        "person.add_relationships",
    ),
    (
        ops.delete_relationships("42", iter([CioObjectId("ob1")])),
        _HEAD % b"delete_relationships" + b',"cio_relationships":[{"identifiers":{"cio_object_id":"ob1"}}]}',
        ("42", b'{"cio_object_id":"ob1"}'),
        "person.delete_relationships",
    ),
    (
        ops.identify_object(ACME, {"seats": 50}, relationships=["42", Email("a@b.c"), "42"]),
        _OBJECT % b"identify" + b',"attributes":{"seats":50},"cio_relationships":[{"identifiers":{"id":"42"}},'
        b'{"identifiers":{"email":"a@b.c"}},{"identifiers":{"id":"42"}}]}',
        (ACME_KEY, "42", b'{"email":"a@b.c"}'),
        "object.identify",
    ),
    (
        ops.identify_anonymous_object(CioObjectId("ob1"), relationships=[AnonymousId("a-1")]),
        b'{"type":"object","action":"identify_anonymous","identifiers":{"cio_object_id":"ob1"},'
        b'"cio_relationships":[{"identifiers":{"anonymous_id":"a-1"}}]}',
        (b'{"cio_object_id":"ob1"}', b'{"anonymous_id":"a-1"}'),
        "object.identify_anonymous",
    ),
    (ops.delete_object(ACME), _OBJECT % b"delete" + b"}", ACME_KEY, "object.delete"),
    (
        ops.add_object_relationships(ACME, [Relationship(CioId("03"), {"role": "admin"})]),
        _OBJECT % b"add_relationships" + b',"cio_relationships":[{"identifiers":{"cio_id":"03"},'
        b'"relationship_attributes":{"role":"admin"}}]}',
        (ACME_KEY, b'{"cio_id":"03"}'),
        "object.add_relationships",
    ),
    (
        ops.delete_object_relationships(ACME, ["42"]),
        _OBJECT % b"delete_relationships" + b',"cio_relationships":[{"identifiers":{"id":"42"}}]}',
        (ACME_KEY, "42"),
        "object.delete_relationships",
    ),
    (
        ops.delivery_event("d-1", "opened", "tok"),
        b'{"type":"delivery","action":"event","identifiers":{"id":"d-1"},"name":"opened",'
        b'"attributes":{"device_token":"tok"}}',
        b'delivery{"id":"d-1"}',
        "delivery.event",
    ),
]


@pytest.mark.parametrize(("draft", "body", "key", "kind"), SAID, ids=[f"{n}-{case[3]}" for n, case in enumerate(SAID)])
def test_each_constructor_gives_exact_bytes(draft: Draft, body: bytes, key: object, kind: str) -> None:
    """What a constructor says stands on the wire byte by byte, with everyone it names in its key."""
    assert said(draft) == Operation(body, key, kind)  # type: ignore[arg-type]
    json.loads(body)


@pytest.mark.parametrize("draft", [case[0] for case in SAID], ids=[f"{n}-{case[3]}" for n, case in enumerate(SAID)])
def test_an_operation_is_read_back_from_its_bytes(draft: Draft) -> None:
    """Bytes, key and kind: what a spool or a dead letter holds is the whole operation."""
    operation = said(draft)
    assert ops.decode(operation.body) == operation
    assert ops.decode(operation.body, 7) == Operation(operation.body, operation.key, operation.kind, 7)


@given(
    st.one_of(
        st.text(min_size=1, max_size=30),
        st.builds(Email, st.from_regex(r"[a-z]{1,9}@[a-z]{1,9}\.de", fullmatch=True)),
        st.builds(ops.CioId, st.from_regex(r"[0-9a-f]{8}", fullmatch=True)),
    ),
    st.text(min_size=1, max_size=20),
)
def test_whomever_an_event_is_about_is_read_back(person: Any, name: str) -> None:
    """Also from the bytes that the hot path makes."""
    try:
        operation = encode_event(person, name, {"type": "x"}, None, None, now=NOW, new_id=lambda: ULID)
    except InvalidOperationError:
        return
    assert ops.decode(operation.body) == operation


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"7",
        b"{}",
        b'{"type":"person","action":"event"}',
        b'{"type":"person","action":"event","identifiers":{}}',
        b'{"type":"person","action":"event","identifiers":[]}',
        b'{"type":"person","action":"event","identifiers":{"id":7}}',
        b'{"type":"person","action":"fly","identifiers":{"id":"7"}}',
        b'{"type":"person","action":"merge","identifiers":{"id":"7"}}',
        b'{"type":"person","action":"event","identifiers":{"id":"7"},"cio_relationships":7}',
        b'{"type":"person","action":"event","identifiers":{"id":"7"},"cio_relationships":[{}]}',
        b'{"type":"person","action":"event","identifiers":{"id":"' + b"x" * 32_000 + b'"}}',
    ],
)
def test_bytes_that_are_no_operation_are_refused(body: bytes) -> None:
    """By one error, whatever is wrong with them."""
    with pytest.raises(InvalidOperationError, match="operation"):
        ops.decode(body)


def test_every_kind_is_among_the_examples() -> None:
    """No kind can be added without an example of its bytes."""
    assert {case[3] for case in SAID} == ops.KINDS


# ------------------------------------------------------------------------------------------------ the contract


@functools.cache
def track_spec() -> dict[str, Any]:
    path = SHARED / "spec" / "track-openapi.json"
    if not path.is_file():
        pytest.skip("Customer.io's OpenAPI document does not lie beside this checkout")
    spec: dict[str, Any] = json.loads(path.read_text())
    # Repair: in a oneOf of identifiers for an object's relationships no branch requires its field, so that each
    # identifier matches all three and none is valid.
    for branch in spec["components"]["schemas"]["v2_cio_relationships"]["items"]["properties"]["identifiers"]["oneOf"]:
        branch["required"] = list(branch["properties"])
    return spec


def validator_of(pointer: str) -> Draft202012Validator:
    resource = Resource.from_contents(track_spec(), default_specification=DRAFT202012)
    registry: Registry[Any] = Registry().with_resource("urn:track", resource)
    return Draft202012Validator({"$ref": f"urn:track#{pointer}"}, registry=registry)


SCHEMA_NAMES = {
    "person.identify": "identify_person",
    "delivery.event": "delivery_operations",
    **{
        kind: kind.replace(".", "_") for kind in ops.KINDS - ops.ANONYMOUS_KINDS - {"person.identify", "delivery.event"}
    },
}
BATCH = "/paths/~1api~1v2~1batch/post/requestBody/content/application~1json/schema"


def test_every_operation_is_valid_by_the_published_schema() -> None:
    """All that the constructors make for Track v2 is valid as an item of a batch, and by the schema of its own kind."""
    batch = validator_of(BATCH)
    bodies = [(kind, json.loads(body)) for _, body, _, kind in SAID if kind not in ops.ANONYMOUS_KINDS]
    batch.validate({"batch": [body for _, body in bodies]})
    for kind, body in bodies:
        validator_of(f"/components/schemas/{SCHEMA_NAMES[kind]}").validate(body)


@pytest.mark.parametrize("index", range(len(SAID)))
def test_the_schema_would_see_a_wrong_operation(index: int) -> None:
    """The contract test has teeth: an operation without its action or with an unknown one is not valid."""
    _, body, _, kind = SAID[index]
    if kind in ops.ANONYMOUS_KINDS:
        body = body.replace(b'"type":"anonymous"', b'"type":"person"')
    whole = json.loads(body)
    batch = validator_of(BATCH)
    assert not batch.is_valid({"batch": [{**whole, "action": "dance"}]})
    del whole["action"]
    assert not batch.is_valid({"batch": [whole]})


# ---------------------------------------------------------------------------------------- encode_event is encode

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=24).filter(
    lambda text: not text.isspace() and text not in (".", "..")
)
users = st.one_of(
    texts,
    texts.map(lambda text: Email(text + "@")),
    st.from_regex(r"\A\+[1-9][0-9]{1,14}\Z").map(Phone),
    texts.map(lambda text: CioId("x" + text)),
)
timestamps = st.one_of(
    st.none(),
    st.integers(0, 99_999_999_999),
    st.floats(0, 99_999_999_999),
    st.datetimes(dt.datetime(1970, 1, 2), dt.datetime(2100, 1, 1), timezones=st.just(PLUS_2)),  # noqa: DTZ001
)


@settings(max_examples=300, deadline=None)
@given(
    users,
    texts,
    st.none() | st.dictionaries(st.text(max_size=12), json_values, max_size=6),
    timestamps,
    st.sampled_from([None, OTHER_ULID, OTHER_ULID.lower()]),
)
def test_the_short_way_gives_the_bytes_of_the_long_one(
    user: Any, name: str, data: Any, timestamp: Any, id: str | None
) -> None:
    """``encode_event`` is ``encode`` for events, byte by byte, and says in JSON what was said."""
    expected = said(ops.event(user, name, data, timestamp=timestamp, id=id))
    short = encode_event(user, name, data, timestamp, id, now=NOW, new_id=lambda: ULID)
    assert short == expected
    assert type(short.key) is type(expected.key)
    parsed = json.loads(short.body)
    assert parsed["name"] == name
    assert parsed.get("attributes") == data
    assert isinstance(short.key, str) == isinstance(user, str)


HOSTILE = ['"', "\\", "\x00", "a\x1f", "\x7f", "a\u2028", "é", "😀", "</script>", "a" * 37, "😀" * 37, "null", "%s{}"]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_escaped_like_everywhere(text: str) -> None:
    """Quotes, control characters and the like come back as they went in, in id, name, key and value."""
    name = text[:24]
    operation = encode_event(text, name, {text: text}, None, None, now=NOW, new_id=lambda: ULID)
    body, key = operation.body, operation.key
    assert key == text
    assert body == said(ops.event(text, name, {text: text})).body
    parsed = json.loads(body)
    assert parsed["identifiers"] == {"id": text}
    assert parsed["attributes"] == {text: text}
    assert parsed["name"] == name


@settings(max_examples=100, deadline=None)
@given(
    st.one_of(st.text(max_size=200), st.integers(), st.none(), st.binary(max_size=3), st.just("\ud800")),
    st.one_of(st.text(max_size=120), st.integers(), st.none(), st.just("\udfff")),
    st.one_of(json_values, st.floats(), st.sets(st.integers()), st.just({"x": math.nan}), st.just({"\ud800": 1})),
    st.one_of(st.none(), st.floats(), st.integers(), st.booleans(), st.text(max_size=3), st.datetimes()),
    st.one_of(st.none(), st.text(max_size=27), st.integers()),
)
def test_both_ways_refuse_the_same(user: Any, name: Any, data: Any, timestamp: Any, id: Any) -> None:
    """Whatever is passed, both ways give the same bytes or both refuse with an error of ours."""
    outcomes: list[object] = []
    for way in (
        lambda: said(ops.event(user, name, data, timestamp=timestamp, id=id)),
        lambda: encode_event(user, name, data, timestamp, id, now=NOW, new_id=lambda: ULID),
    ):
        try:
            outcomes.append(way())
        except InvalidOperationError as error:
            outcomes.append(error.field)
    assert outcomes[0] == outcomes[1]


def test_now_and_new_id_are_used_only_where_nothing_was_given() -> None:
    """A given id and timestamp stand; the clock and the source of ids are asked only without them."""

    def never() -> str:
        raise AssertionError

    draft = ops.event("u", "n", timestamp=5, id=ULID)
    body = encode(draft, now=math.nan, new_id=never).body
    assert body == encode_event("u", "n", None, 5, ULID, now=math.nan, new_id=never).body
    assert b'"timestamp":5,' in body
    assert b'"id":"' + ULID.encode() in body


def test_seconds_are_not_mixed_up() -> None:
    """The cached digits of a second never stand in for those of another."""
    bodies = [encode_event("u", "n", None, second, ULID, now=0, new_id=lambda: ULID).body for second in (5, 6, 5, 0, 5)]
    assert [json.loads(body)["timestamp"] for body in bodies] == [5, 6, 5, 0, 5]


# ----------------------------------------------------------------------------------------------------- limits


def fits(text_of_bytes: int, character: str) -> str:
    size = len(character.encode())
    assert text_of_bytes % size == 0
    return character * (text_of_bytes // size)


ID_PLACES: dict[str, Callable[[str], Draft]] = {
    "user_id": lambda text: ops.event(text, "n"),
    "identify": ops.identify,
    "cio_id": lambda text: ops.delete(CioId(text)),
    "anonymous_id": lambda text: ops.anonymous_event(text, "n"),
    "object_type_id": lambda text: ops.delete_object(ObjectId(text, "acme")),
    "object_id": lambda text: ops.delete_object(ObjectId("1", text)),
    "cio_object_id": lambda text: ops.delete_object(CioObjectId(text)),
    "delivery_id": lambda text: ops.delivery_event(text, "opened", "tok"),
    "primary": lambda text: ops.merge(text, "other-person"),
    "secondary": lambda text: ops.merge("other-person", text),
    "relationships[0]": lambda text: ops.add_object_relationships(ACME, [text]),
    "anonymous relationships[0]": lambda text: ops.identify_anonymous_object(ACME, relationships=[AnonymousId(text)]),
}


@pytest.mark.parametrize("place", ID_PLACES)
@pytest.mark.parametrize("character", ["x", "é", "界"])
def test_an_id_has_at_most_150_bytes(place: str, character: str) -> None:
    """150 bytes in UTF-8 are the most, in every place where an id stands, and the error has both numbers."""
    make = ID_PLACES[place]
    said(make(fits(150, character)))
    error = refused(make(fits(150, character) + "x"))
    assert (error.limit, error.actual) == (150, 151)
    assert "150" in str(error)
    assert "151" in str(error)


@pytest.mark.parametrize("character", ["x", "é", "界"])
def test_the_short_way_has_the_same_limit_for_ids(character: str) -> None:
    """The fast path for short ids does not let a long one through."""
    encode_event(fits(150, character), "n", None, None, None, now=NOW, new_id=lambda: ULID)
    with pytest.raises(InvalidOperationError, match="151"):
        encode_event(fits(150, character) + "x", "n", None, None, None, now=NOW, new_id=lambda: ULID)
    encode_event("😀" * 37, "n", None, None, None, now=NOW, new_id=lambda: ULID)
    with pytest.raises(InvalidOperationError, match="152"):
        encode_event("😀" * 38, "n", None, None, None, now=NOW, new_id=lambda: ULID)


@pytest.mark.parametrize("place", ID_PLACES)
@pytest.mark.parametrize("text", ["", " ", "\t\n", "\u3000", ".", "..", "\ud800", "x\udfff"])
def test_an_id_that_names_nobody_is_refused(place: str, text: str) -> None:
    """Empty, blank, path-climbing and invalid ids are refused in every place, before anything is sent."""
    error = refused(ID_PLACES[place](text))
    assert error.limit is None
    with pytest.raises(InvalidOperationError):
        encode_event(text, "n", None, None, None, now=NOW, new_id=lambda: ULID)


@pytest.mark.parametrize("place", ID_PLACES)
@pytest.mark.parametrize("value", [None, 42, b"42", 4.2, ["42"], True])
def test_an_id_that_is_no_text_is_refused(place: str, value: Any) -> None:
    """No other type is guessed into an id; the error names the type."""
    assert type(value).__name__ in refused(ID_PLACES[place](value)).reason
    with pytest.raises(InvalidOperationError):
        encode_event(value, "n", None, None, None, now=NOW, new_id=lambda: ULID)


@pytest.mark.parametrize("value", [Email("no-at"), Email(""), Email(None), Email("a" * 149 + "@b")])  # type: ignore[arg-type]
def test_an_email_is_checked(value: Email) -> None:
    """An email needs an @ and the length of an id."""
    assert refused(ops.event(value, "n")).field == "email"


@pytest.mark.parametrize("text", ["15551234567", "+0555", "+1", "+1555123456789012", "+1 555", "", "+١٢٣"])
def test_a_phone_is_checked(text: str) -> None:
    """A phone is E.164 or refused."""
    assert refused(ops.event(Phone(text), "n")).field == "phone"


def test_a_phone_cannot_name_where_the_wire_has_no_place_for_it() -> None:
    """Merge and relationships take no phone, as the schemas say."""
    phone = Phone("+15551234567")
    assert refused(ops.merge(phone, "b")).field == "primary"
    assert refused(ops.merge("a", phone)).field == "secondary"
    assert refused(ops.add_object_relationships(ACME, [phone])).field == "relationships[0]"


def test_a_cio_id_loses_its_prefix_once_and_must_keep_something() -> None:
    """``cio_`` is not part of the id, and an id of nothing but the prefix is none."""
    assert json.loads(said(ops.delete(CioId("cio_cio_1"))).body)["identifiers"] == {"cio_id": "cio_1"}
    assert refused(ops.delete(CioId("cio_"))).field == "cio_id"


@pytest.mark.parametrize("character", ["x", "é", "😀"])
def test_a_name_has_at_most_100_bytes(character: str) -> None:
    """100 bytes in UTF-8 are the most for the name of an event, page or screen."""
    name = fits(100, character)
    for make in (ops.event, ops.page, ops.screen):
        said(make("u", name))
        error = refused(make("u", name + "x"))
        assert (error.field, error.limit, error.actual) == ("name", 100, 101)
    encode_event("u", name, None, None, None, now=NOW, new_id=lambda: ULID)
    with pytest.raises(InvalidOperationError, match="101"):
        encode_event("u", name + "x", None, None, None, now=NOW, new_id=lambda: ULID)


@pytest.mark.parametrize("name", ["", "  ", "\n", None, 7, b"n", ["n"], "\ud800"])
def test_a_name_that_says_nothing_is_refused(name: Any) -> None:
    """Names are text that is not blank, on both ways, and a refused one is not remembered."""
    assert refused(ops.event("u", name)).field == "name"
    for _ in range(2):
        with pytest.raises(InvalidOperationError):
            encode_event("u", name, None, None, None, now=NOW, new_id=lambda: ULID)


def test_an_identify_has_at_most_300_attributes() -> None:
    """The 301st attribute is one too many."""
    said(ops.identify("u", {str(n): n for n in range(300)}))
    error = refused(ops.identify("u", {str(n): n for n in range(301)}))
    assert (error.field, error.limit, error.actual) == ("attributes", 300, 301)


@pytest.mark.parametrize("character", ["x", "é", "界", '"'])
def test_an_attribute_name_has_at_most_150_bytes(character: str) -> None:
    """An attribute's name is measured in bytes of text; the error gives its position, not the name."""
    name = fits(150, character)
    said(ops.identify("u", {"a": 1, name: 1}))
    error = refused(ops.identify("u", {"a": 1, name + "x": 1}))
    assert (error.limit, error.actual) == (150, 151)
    assert error.field == "name of attribute 1"
    assert name not in str(error)


@pytest.mark.parametrize("character", ["x", "é", "😀", '"', "\n"])
def test_an_attribute_value_has_at_most_1000_bytes(character: str) -> None:
    """A text is measured without its quotes and escapes."""
    value = fits(1_000, character)
    said(ops.identify("u", {"bio": value}))
    error = refused(ops.identify("u", {"bio": value + "x"}))
    assert (error.field, error.limit, error.actual) == ("attributes.bio", 1_000, 1_001)


def test_other_attribute_values_are_measured_as_json() -> None:
    """A list or an object is as large as its JSON."""
    said(ops.identify("u", {"tags": ["x" * 996]}))
    assert refused(ops.identify("u", {"tags": ["x" * 997]})).actual == 1_001
    assert refused(ops.identify("u", {"tags": {"a": "é" * 600}})).actual == 1_208


@pytest.mark.parametrize(
    "make",
    [
        lambda data: ops.identify_object(ACME, data),
        lambda data: ops.add_relationships("u", [Relationship(ACME, data)]),
        lambda data: ops.identify_object(ACME, relationships=[Relationship("u", data)]),
    ],
    ids=["object", "relationship of a person", "relationship of an object"],
)
def test_objects_and_relationships_have_the_limits_of_people(make: Callable[[Any], Draft]) -> None:
    """300 attributes, 150 bytes for a name and 1,000 for a value: at the limit accepted, one more refused."""
    said(make({f"a{n}": 1 for n in range(300)}))
    assert refused(make({f"a{n}": 1 for n in range(301)})).limit == 300
    said(make({"n" * 150: "é" * 500}))
    assert refused(make({"n" * 151: 1})).limit == 150
    assert refused(make({"a": "é" * 501})).actual == 1_002


@pytest.mark.parametrize("data", [{"ada@example.com": {1}}, {"a b": {"x": float("nan")}}, {"k" * 60: b""}], ids=str)
def test_a_key_that_may_be_content_is_named_by_its_place(data: dict[str, Any]) -> None:
    """An address as a key does not end in an error's text."""
    error = refused(ops.event("u", "e", data))
    assert error.field.startswith("data.<member 0>")
    assert next(iter(data)) not in str(error)


def test_nobody_is_named_in_a_repr() -> None:
    """Identifiers and attributes are people's data, and a repr ends in logs."""
    shown = repr(
        [
            *(
                ops.Email("s3cr3t@example.com"),
                ops.Phone("+15551234567"),
                ops.CioId("s3cr3t"),
                ops.AnonymousId("s3cr3t"),
            ),
            *(ObjectId("1", "s3cr3t"), ops.CioObjectId("s3cr3t"), ops.DeliveryId("s3cr3t")),
            *(Relationship("s3cr3t", {"a": "s3cr3t"}), ops.event("s3cr3t", "name", {"a": "s3cr3t"})),
        ]
    )
    assert "s3cr3t" not in shown
    assert "555" not in shown


@pytest.mark.parametrize("character", ["x", "é", "\n"])
def test_an_operation_has_at_most_32000_bytes(character: str) -> None:
    """Exactly 32,000 encoded bytes are accepted, one more is refused, on both ways and for every kind that has data."""

    def of_size(make: Callable[[Any], Draft], size: int) -> Draft:
        width = len(orjson.dumps(character)) - 2
        room = size - len(said(make({"d": ""})).body)
        return make({"d": character * (room // width) + "x" * (room % width)})

    makes: list[Callable[[Any], Draft]] = [
        lambda data: ops.event("u", "n", data),
        lambda data: ops.anonymous_event("u", "n", data),
        lambda data: ops.add_device("u", "t", "ios", attributes=data),
    ]
    for make in makes:
        assert len(said(of_size(make, 32_000)).body) == 32_000
        error = refused(of_size(make, 32_001))
        assert (error.field, error.limit, error.actual) == ("operation", 32_000, 32_001)
    data = of_size(makes[0], 32_001).attributes
    with pytest.raises(InvalidOperationError, match="32001"):
        encode_event("u", "n", data, None, None, now=NOW, new_id=lambda: ULID)


def test_a_huge_attribute_is_refused_by_its_size_alone() -> None:
    """10 MB are refused with a short error."""
    error = refused(ops.event("u", "n", {"blob": SECRET * 700_000}))
    assert error.actual is not None
    assert error.actual > 9_000_000
    assert len(str(error)) < 200
    error = refused(ops.identify("u", {"blob": SECRET * 700_000}))
    assert error.field == "attributes.blob"
    assert len(str(error)) < 200


# --------------------------------------------------------------------------------------- ULIDs and timestamps


@pytest.mark.parametrize(
    "id",
    [
        "",
        ULID[:-1],
        ULID + "0",
        "8" + ULID[1:],
        "01ARZ3NDEKTSV4RRFFQ69G5FAI",
        "01ARZ3NDEKTSV4RRFFQ69G5FAL",
        "01ARZ3NDEKTSV4RRFFQ69G5FAO",
        "01ARZ3NDEKTSV4RRFFQ69G5FAU",
        ULID + "\n",
        " " + ULID[1:],
        "01ARZ3NDEK\u017fSV4RRFFQ69G5FA",
        "01ARZ3NDEK\u00dfV4RRFFQ69G5FAV",
        "\uff10" + ULID[1:],
        uuid.UUID(int=0),
        b"01ARZ3NDEKTSV4RRFFQ69G5FAV",
        7,
    ],
)
def test_an_id_that_is_no_ulid_is_refused(id: Any) -> None:
    """Only 26 characters of Crockford's base 32 are a ULID, whatever upper case makes of other letters."""
    assert refused(ops.event("u", "n", id=id)).field == "id"
    with pytest.raises(InvalidOperationError):
        encode_event("u", "n", None, None, id, now=NOW, new_id=lambda: ULID)


@pytest.mark.parametrize("id", [ULID, ULID.lower(), "0" * 26, "7" + "Z" * 25])
def test_a_ulid_is_written_in_upper_case(id: str) -> None:
    """The canonical form goes out, so that one id is one id."""
    assert json.loads(said(ops.event("u", "n", id=id)).body)["id"] == id.upper()


@pytest.mark.parametrize(
    ("timestamp", "seconds"),
    [
        (0, 0),
        (1_700_000_000, 1_700_000_000),
        (1_700_000_000.999, 1_700_000_000),
        (99_999_999_999, 99_999_999_999),
        (dt.datetime(2024, 1, 1, 12, tzinfo=UTC), 1_704_110_400),
        (dt.datetime(2024, 1, 1, 14, tzinfo=PLUS_2), 1_704_110_400),
        (dt.datetime(2024, 1, 1, 12, 0, 0, 999_999, tzinfo=UTC), 1_704_110_400),
    ],
)
def test_a_timestamp_becomes_unix_seconds(timestamp: Any, seconds: int) -> None:
    """Numbers and aware datetimes become whole seconds, rounded down."""
    for draft in (ops.event("u", "n", timestamp=timestamp), ops.identify("u", timestamp=timestamp)):
        assert json.loads(said(draft).body)["timestamp"] == seconds
    device = said(ops.add_device("u", "t", "ios", last_used=timestamp)).body
    assert json.loads(device)["device"]["last_used"] == seconds


@pytest.mark.parametrize(
    "timestamp",
    [
        dt.datetime(2024, 1, 1),  # noqa: DTZ001
        dt.date(2024, 1, 1),
        True,
        False,
        math.nan,
        math.inf,
        -math.inf,
        -1,
        -0.5,
        100_000_000_000,
        1_700_000_000_000,
        10**400,
        "1700000000",
        decimal.Decimal(5),
        [],
    ],
)
def test_a_timestamp_that_must_be_guessed_is_refused(timestamp: Any) -> None:
    """Naive datetimes, booleans, NaN, milliseconds and texts are refused in every place of a timestamp."""
    assert refused(ops.event("u", "n", timestamp=timestamp)).field == "timestamp"
    assert refused(ops.identify("u", timestamp=timestamp)).field == "timestamp"
    assert refused(ops.add_device("u", "t", "ios", last_used=timestamp)).field == "device.last_used"
    with pytest.raises(InvalidOperationError):
        encode_event("u", "n", None, timestamp, None, now=NOW, new_id=lambda: ULID)


# ----------------------------------------------------------------------------------------------------- values


class Colour(enum.Enum):
    RED = "red"
    DEEP = {"r": 1}  # noqa: RUF012


class Level(enum.IntEnum):
    HIGH = 3


class Word(enum.StrEnum):
    HELLO = "hello"


class OldWord(str, enum.Enum):  # noqa: UP042 - an enum of the older kind is what is tested
    HELLO = "hello"


@dataclasses.dataclass
class Point:
    x: float
    y: Any = None
    _hidden: str = SECRET


@dataclasses.dataclass(slots=True)
class SlotPoint:
    x: float


@attrs.define
class Order:
    total: Any
    _hidden: str = SECRET


@attrs.define(slots=False)
class OpenOrder:
    total: Any


class Frozen(Mapping[str, Any]):
    def __init__(self, **items: Any) -> None:
        self._items = items

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


@pytest.mark.parametrize(
    ("value", "wire"),
    [
        (None, "null"),
        (True, "true"),
        (2**64 - 1, "18446744073709551615"),
        (-(2**63), "-9223372036854775808"),
        (1.5, "1.5"),
        ((1, [2]), "[1,[2]]"),
        (dt.datetime(1970, 1, 1, 2, 0, 5, 999, tzinfo=PLUS_2), "5"),
        (dt.datetime(1960, 1, 1, tzinfo=UTC), "-315619200"),
        (dt.date(2024, 2, 29), '"2024-02-29"'),
        (dt.time(1, 2, 3), '"01:02:03"'),
        (decimal.Decimal("0.1"), "0.1"),
        (decimal.Decimal("123456789012345678901234567890.123456789"), "123456789012345678901234567890.123456789"),
        (decimal.Decimal("1E+5"), "1E+5"),
        (decimal.Decimal("-0.00"), "-0.00"),
        (uuid.UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
        (Colour.RED, '"red"'),
        (Colour.DEEP, '{"r":1}'),
        (Level.HIGH, "3"),
        (Word.HELLO, '"hello"'),
        (OldWord.HELLO, '"hello"'),
        (Point(1.5, Colour.RED), '{"x":1.5,"y":"red"}'),
        (SlotPoint(2.0), '{"x":2.0}'),
        (Order(decimal.Decimal("9.90")), '{"total":9.90}'),
        (OpenOrder([dt.date(2024, 1, 1)]), '{"total":["2024-01-01"]}'),
        (Frozen(a=1, b=Frozen(c=2)), '{"a":1,"b":{"c":2}}'),
        (types.MappingProxyType({"a": 1}), '{"a":1}'),
    ],
)
def test_a_value_is_written_as_promised(value: Any, wire: str) -> None:
    """Each kind of Python value has one way to be written, in data and in attributes alike."""
    assert value_on_the_wire(value) == wire.encode()
    json.loads(wire)
    assert said(ops.identify("u", {"value": value})).body.endswith(b'"attributes":{"value":' + wire.encode() + b"}}")


@pytest.mark.parametrize("data", [Point(1.0), SlotPoint(1.0), Order(1), Frozen(a=1), types.MappingProxyType({})])
def test_data_may_be_any_object_that_has_fields(data: Any) -> None:
    """Dataclasses, attrs objects and mappings are data by themselves."""
    assert isinstance(json.loads(said(ops.event("u", "n", data)).body)["attributes"], dict)
    assert SECRET.encode() not in said(ops.event("u", "n", data)).body


@pytest.mark.parametrize("data", [[], [1], "text", 7, 1.5, True, dt.date(2024, 1, 1), uuid.UUID(int=1), Colour.RED])
def test_data_that_is_no_object_is_refused(data: Any) -> None:
    """What is not a JSON object cannot be data or attributes, and nothing is guessed."""
    assert refused(ops.event("u", "n", data)).field == "data"
    assert refused(ops.identify("u", data)).field == "attributes"
    with pytest.raises(InvalidOperationError):
        encode_event("u", "n", data, None, None, now=NOW, new_id=lambda: ULID)


@pytest.mark.parametrize("word", [Word.HELLO, OldWord.HELLO])
def test_an_enum_of_text_is_name_and_id(word: Any) -> None:
    """A taxonomy in an enum works as text, on both ways, and leaves plain text in key and cache."""
    expected = said(ops.event("hello", "hello"))
    ops._heads.clear()  # so that the enum is the first to be remembered
    encode_event("hello", word, None, None, None, now=NOW, new_id=lambda: ULID)
    assert [type(name) for name in ops._heads] == [str]
    for way in (
        said(ops.event(word, word)),
        encode_event(word, word, None, None, None, now=NOW, new_id=lambda: ULID),
        encode_event("hello", word, None, None, None, now=NOW, new_id=lambda: ULID),
    ):
        assert way == expected
        assert type(way.key) is str


BAD_VALUES: dict[str, tuple[Any, str]] = {
    "nan": (math.nan, "data.value"),
    "infinity": (math.inf, "data.value"),
    "nested nan": ({"a": [1, {"b": -math.inf}]}, "data.value.a[1].b"),
    "nan in a tuple": ((1, math.nan), "data.value[1]"),
    "nan beside the text null": ({"text": "null", "bad": math.nan}, "data.value.bad"),
    "nan behind an honest None": ({"none": None, "bad": math.nan}, "data.value.bad"),
    "nan in attrs": (Order(math.nan), "data.value.total"),
    "nan in attrs without slots": (OpenOrder([math.nan]), "data.value.total[0]"),
    "nan in a dataclass": (Point(math.nan), "data.value.x"),
    "nan in a dataclass with slots": (SlotPoint(math.inf), "data.value.x"),
    "nan in a mapping": (Frozen(a=math.nan), "data.value.a"),
    "nan in an enum": (enum.Enum("Bad", {"NAN": math.nan}).NAN, "data.value"),  # type: ignore[attr-defined]
    "decimal nan": (decimal.Decimal("NaN"), "data.value"),
    "decimal signalling nan": (decimal.Decimal("sNaN"), "data.value"),
    "decimal infinity": (decimal.Decimal("-Infinity"), "data.value"),
    "decimal beyond floats": (decimal.Decimal("9E+308"), "data.value"),
    "decimal far beyond floats": (decimal.Decimal("1E+999999"), "data.value"),
    "decimal of too many digits": (decimal.Decimal("0." + "1" * 901), "data.value"),
    "set": ({1, 2}, "data.value"),
    "frozenset": ([frozenset()], "data.value[0]"),
    "bytes": (b"x", "data.value"),
    "bytearray": (bytearray(b"x"), "data.value"),
    "huge int": (2**64, "data.value"),
    "huge negative int": (-(2**63) - 1, "data.value"),
    "complex": (1j, "data.value"),
    "timedelta": (dt.timedelta(1), "data.value"),
    "naive datetime": ({"at": dt.datetime(2024, 1, 1)}, "data.value.at"),  # noqa: DTZ001
    "object": (object(), "data.value"),
    "class": (Order, "data.value"),
    "dataclass class": (Point, "data.value"),
    "function": (len, "data.value"),
    "generator": ((n for n in range(3)), "data.value"),
    "surrogate": ("\ud800", "data.value"),
    "nested surrogate": (["ok", "a\udfff"], "data.value[1]"),
    "surrogate in a key": ({"\ud800": 1}, "a key of data.value"),
    "int key": ({1: 2}, "data.value"),
    "None key": ({None: 2}, "data.value"),
    "enum key": ({Word.HELLO: 2}, "data.value"),
    "int key of a mapping": (types.MappingProxyType({1: 2}), "data.value"),
}


@pytest.mark.parametrize(("value", "field"), BAD_VALUES.values(), ids=BAD_VALUES.keys())
def test_a_value_that_json_cannot_say_is_refused(value: Any, field: str) -> None:
    """Nothing is turned into null, guessed or left out; the error names the path."""
    assert refused(event_with(value)).field == field
    with pytest.raises(InvalidOperationError):
        encode_event("u", "n", {"value": value}, None, None, now=NOW, new_id=lambda: ULID)
    for draft in (
        ops.identify("u", {"value": value}),
        ops.identify_object(ACME, {"value": value}),
        ops.add_device("u", "t", "ios", attributes={"value": value}),
        ops.add_relationships("u", [Relationship(ACME, {"value": value})]),
    ):
        assert field.replace("data.value", "") in refused(draft).field


@settings(max_examples=150, deadline=None)
@given(json_values, st.sampled_from([math.nan, math.inf, -math.inf]), st.data())
def test_nan_is_found_anywhere(value: Any, bad: float, data: st.DataObject) -> None:
    """Wherever a NaN or an infinity stands in a value, the whole is refused."""
    places: list[tuple[Any, Any]] = []
    value = copy.deepcopy([value, "null"])

    def collect(part: Any) -> None:
        if isinstance(part, (list, dict)):
            for place in range(len(part)) if isinstance(part, list) else list(part):
                places.append((part, place))
                collect(part[place])

    collect(value)
    part, place = data.draw(st.sampled_from(places))
    part[place] = bad
    assert "NaN or infinite" in refused(event_with(value)).reason


def test_a_cached_property_is_looked_into_as_well() -> None:
    """What the encoder writes of a dataclass besides its fields is checked like them."""

    @dataclasses.dataclass
    class Ratio:
        over: int = 0

        @functools.cached_property
        def value(self) -> float:
            return math.nan

    ratio = Ratio()
    assert math.isnan(ratio.value)
    assert refused(event_with(ratio)).field == "data.value.value"


def test_what_holds_itself_is_refused() -> None:
    """Recursive dicts, lists, mappings and objects end in an error, which is short."""
    loop: dict[str, Any] = {}
    loop["self"] = [loop]
    ring: list[Any] = []
    ring.append(ring)
    order = Order(None)
    order.total = order
    for value in (loop, ring, order, types.MappingProxyType(loop)):
        error = refused(event_with(value))
        assert error.field == "data"
        assert "holds itself" in error.reason
        assert len(str(error)) < 200


def test_depth_beyond_the_encoder_is_refused() -> None:
    """200 levels are fine and 300 are refused, with and without a null inside."""
    for leaf in (1, None):
        value: Any = leaf
        for _ in range(200):
            value = [value]
        said(event_with(value))
        for _ in range(100):
            value = [value]
        assert "nested deeper" in refused(event_with(value)).reason


# ------------------------------------------------------------------------------------- errors without content


class Spiteful(Mapping[str, Any]):
    def __getitem__(self, key: str) -> Any:
        raise RuntimeError(SECRET)

    def __iter__(self) -> Iterator[str]:
        return iter(["a"])

    def __len__(self) -> int:
        return 1


@pytest.mark.parametrize(
    "draft",
    [
        ops.event("u", "n", {"a": {SECRET}}),
        ops.event("u", "n", {"a": SECRET + "\ud800"}),
        ops.event("u", "n", {"a": SECRET * 4_000}),
        ops.event("u", "n", {"a": Spiteful()}),
        ops.event("u", "n", Spiteful()),
        ops.event("u", "n", SECRET),
        ops.event(SECRET * 20, "n"),
        ops.event("u", SECRET * 20),
        ops.event("u", SECRET + "\ud800"),
        ops.event("u", "n", id=SECRET),
        ops.event("u", "n", timestamp=SECRET),  # type: ignore[arg-type]
        ops.identify("u", {"a": SECRET * 100}),
        ops.identify("u", {SECRET * 20: 1}),
        ops.identify(Email(SECRET)),
        ops.identify(Phone(SECRET)),
        ops.merge(SECRET, SECRET),
        ops.add_device("u", "t", SECRET),  # type: ignore[arg-type]
        ops.delivery_event("d", SECRET, "t"),  # type: ignore[arg-type]
        Draft(kind=SECRET),
    ],
)
def test_an_error_never_shows_content(draft: Draft) -> None:
    """Neither the text nor the chain of a refusal, as a traceback prints it, has what was to be sent."""
    error = refused(draft)
    assert SECRET not in "".join(traceback.format_exception(error))
    assert SECRET not in repr(error)
    assert error.__cause__ is None


def test_a_draft_does_not_show_its_content() -> None:
    """The repr of a draft has no person and no payload."""
    draft = ops.merge(SECRET, Email(SECRET))
    draft.attributes, draft.subject, draft.device = {"a": SECRET}, SECRET, {"token": SECRET}
    assert SECRET not in repr(draft)


# -------------------------------------------------------------------------------------- drafts made by hand


@pytest.mark.parametrize(
    ("draft", "field"),
    [
        (Draft(kind="person.dance", subject="u"), "kind"),
        (Draft(kind=["person.event"], subject="u"), "kind"),  # type: ignore[arg-type]
        (Draft(kind="person.event", name="n"), "user_id"),
        (Draft(kind="person.event", subject="u"), "name"),
        (Draft(kind="person.event", subject=AnonymousId("a"), name="n"), "user_id"),
        (Draft(kind="person.event", subject=ACME, name="n"), "user_id"),
        (Draft(kind="anonymous.event", subject="u", name="n"), "anonymous_id"),
        (Draft(kind="person.merge", primary="a"), "secondary"),
        (Draft(kind="person.merge", primary="a", secondary="a"), "secondary"),
        (Draft(kind="person.merge", primary=CioId("1"), secondary=CioId("cio_1")), "secondary"),
        (Draft(kind="person.add_device", subject="u"), "device"),
        (Draft(kind="person.add_device", subject="u", device="tok"), "device"),  # type: ignore[arg-type]
        (Draft(kind="person.add_device", subject="u", device={"token": "t"}), "device.platform"),
        (Draft(kind="person.add_device", subject="u", device={"platform": "ios"}), "device.token"),
        (Draft(kind="person.delete_device", subject="u", device={"token": " "}), "device.token"),
        (Draft(kind="person.delete_device", subject="u", device={"token": ".."}), "device.token"),
        (Draft(kind="person.delete_device", subject="u", device={"token": "\ud800"}), "operation.device.token"),
        (Draft(kind="person.add_relationships", subject="u"), "relationships"),
        (Draft(kind="person.add_relationships", subject="u", relationships=[]), "relationships"),
        (Draft(kind="person.add_relationships", subject="u", relationships=7), "relationships"),  # type: ignore[arg-type]
        (Draft(kind="person.add_relationships", subject="u", relationships=[ACME]), "relationships[0]"),  # type: ignore[list-item]
        (ops.add_relationships("u", [ACME, "42"]), "relationships[1]"),  # type: ignore[list-item]
        (ops.add_object_relationships(ACME, [ACME]), "relationships[0]"),  # type: ignore[list-item]
        (ops.add_object_relationships(ACME, [AnonymousId("a")]), "relationships[0]"),  # type: ignore[list-item]
        (ops.identify_anonymous_object(ACME, relationships=["u"]), "relationships[0]"),  # type: ignore[list-item]
        (ops.add_object_relationships(ACME, ["u", Relationship("v", [1])]), "relationships[1].attributes"),  # type: ignore[arg-type]
        (ops.delete_object("acme"), "object"),  # type: ignore[arg-type]
        (ops.delivery_event("d", "clicked", "t"), "name"),  # type: ignore[arg-type]
        (ops.delivery_event("d", "opened", ""), "device_token"),
        (Draft(kind="delivery.event", subject="d", name="opened"), "delivery_id"),
    ],
)
def test_a_draft_that_says_no_operation_is_refused(draft: Draft, field: str) -> None:
    """What a hook or a caller put together wrongly ends in an error of ours that names the field."""
    assert refused(draft).field == field


def test_one_text_is_no_list_of_people() -> None:
    """A text where a list belongs is refused, because its letters would become people."""
    with pytest.raises(InvalidOperationError, match="relationships"):
        ops.add_object_relationships(ACME, "user-42")


def test_an_empty_list_of_relationships_says_nothing_and_is_written() -> None:
    """An identify may have an empty list."""
    assert b'"cio_relationships":[]' in said(ops.identify("u", relationships=[])).body


# ------------------------------------------------------------------------------------------ nothing is shared


def test_the_caller_s_objects_are_left_alone() -> None:
    """Encoding changes nothing that the caller passed, and later changes do not reach the operation."""
    data = {"a": [1, {"b": None}], "at": dt.datetime(2024, 1, 1, tzinfo=UTC), "order": Order([1])}
    device = {
        "token": "t",
        "platform": "ios",
        "last_used": dt.datetime(2024, 1, 1, tzinfo=UTC),
        "attributes": {"a": "b"},
    }
    relationships = (Relationship(ACME, {"role": "admin"}),)
    drafts = [
        ops.event("u", "n", data),
        ops.identify("u", data),
        Draft(kind="person.add_device", subject="u", device=device),
        Draft(kind="person.add_relationships", subject="u", relationships=relationships),
    ]
    before = copy.deepcopy((data, device, relationships, drafts))
    encoded = [said(draft) for draft in drafts]
    short = encode_event("u", "n", data, None, None, now=NOW, new_id=lambda: ULID)
    assert (data, device, relationships, drafts) == before
    bodies = [bytes(bytearray(each.body)) for each in [*encoded, short]]
    data["a"].append(SECRET)  # type: ignore[union-attr]
    device["token"] = SECRET
    assert [each.body for each in [*encoded, short]] == bodies
    assert said(drafts[0]).body != bodies[0]


@pytest.mark.parametrize(
    "draft", [event_with({1}), ops.identify("u", {"a": math.nan}), ops.event("u", "n" * 101, {"a": None})]
)
def test_a_refusal_leaves_the_caller_s_objects_alone(draft: Draft) -> None:
    """A refused draft is what it was."""
    before = repr(attrs.asdict(draft, recurse=False))
    refused(draft)
    assert repr(attrs.asdict(draft, recurse=False)) == before


def test_the_cache_of_names_is_bounded_and_right() -> None:
    """Names without end cost time and never memory, and each event keeps its own name."""
    for n in range(2 * ops._MAX_CACHED_HEADS + 10):
        name = f"name {n}"
        body = encode_event("u", name, None, None, None, now=NOW, new_id=lambda: ULID).body
        assert b'"name":"' + name.encode() + b'"' in body
        assert len(ops._heads) <= ops._MAX_CACHED_HEADS
    again = encode_event("u", "name 3", None, None, None, now=NOW, new_id=lambda: ULID).body
    assert again == said(ops.event("u", "name 3")).body


# ------------------------------------------------------------------------------------------------------- keys


def test_no_two_identifiers_share_a_key() -> None:
    """The same text as an id, an email and so on names different persons and objects, and has different keys."""
    text = "x@y"
    drafts = [
        ops.delete(text),
        ops.delete(Email(text)),
        ops.delete(CioId(text)),
        ops.event(Phone("+123"), "n"),
        ops.event("+123", "n"),
        ops.anonymous_event(text, "n"),
        ops.delete_object(ObjectId(text, text)),
        ops.delete_object(CioObjectId(text)),
        ops.delivery_event(text, "opened", "t"),
        ops.delete(said(ops.delete(Email(text))).key.decode()),  # type: ignore[union-attr]
    ]
    keys = [said(draft).key for draft in drafts]
    assert len(set(keys)) == len(keys)


def test_an_object_is_keyed_the_same_wherever_it_is_named() -> None:
    """An object and a relationship to it, and a person and a relationship to them, keep one order."""
    assert said(ops.delete_object(ACME)).key in said(ops.add_relationships("u", [ACME])).key
    for person in ("u", Email("a@b"), CioId("1")):
        assert said(ops.event(person, "n")).key in said(ops.add_object_relationships(ACME, [person])).key
        assert said(ops.event(person, "n")).key in said(ops.merge(person, "other")).key
        short = encode_event(person, "n", None, None, None, now=NOW, new_id=lambda: ULID)
        assert said(ops.delete(person)).key == short.key


def test_final_kinds_are_those_whose_repeat_could_undo_what_follows() -> None:
    """Nothing with an id of its own is among them, and all of them exist."""
    assert ops.FINAL_KINDS <= ops.KINDS
    assert {"person.delete", "person.suppress", "person.unsuppress", "person.merge", "object.delete"} == ops.FINAL_KINDS


@pytest.mark.parametrize("when", [dt.datetime(1969, 12, 31, tzinfo=UTC), dt.datetime(6000, 1, 1, tzinfo=UTC)])
def test_a_datetime_is_bounded_as_a_timestamp_and_not_as_a_value(when: dt.datetime) -> None:
    """An event cannot have happened before 1970; somebody may be born then."""
    with pytest.raises(InvalidOperationError) as caught:
        said(ops.event("u", "e", timestamp=when))
    assert caught.value.field == "timestamp"
    assert json.loads(said(ops.event("u", "e", {"born": when})).body)["attributes"] == {"born": int(when.timestamp())}
