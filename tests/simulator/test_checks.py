"""What is refused in an operation, without HTTP."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cio_batch.simulator.checks import _check_slowly, _is_plain_event, check_operation

from .wire import event, merge, person, thing, ulid

DEVICE = {"token": "t", "platform": "ios"}
RELATED = [{"identifiers": {"object_type_id": "1", "object_id": "acme"}}]
PEOPLE = [{"identifiers": {"id": "42"}, "relationship_attributes": {"role": "admin"}}]
DELIVERY = {"type": "delivery", "action": "event", "identifiers": {"id": "d"}, "name": "opened"}

VALID: list[dict[str, Any]] = [
    event(),
    event(id=ulid(1).lower()),
    event(name="n" * 100),
    event(name=" " * 50 + "n" * 100 + " " * 50),
    event(identifier="i" * 150),
    event(identifier="é" * 75),
    event(attributes={"long": "x" * 5_000}),
    person("page", name="/pricing"),
    person("screen", name="Home", attributes={}),
    person("identify"),
    person("identify", timestamp=1, attributes={"a": "x" * 1_000}, cio_relationships=RELATED),
    person("identify", attributes={str(n): n for n in range(300)}),
    person("identify", attributes={"n" * 150: True}),
    person("delete"),
    person("suppress"),
    person("unsuppress"),
    person("add_relationships", cio_relationships=RELATED),
    person("delete_relationships", cio_relationships=[{"identifiers": {"cio_object_id": "ob1"}}]),
    person("add_device", device={**DEVICE, "last_used": 1, "attributes": {"app": "1"}}),
    person("delete_device", device={"token": "t"}),
    {**person("delete"), "identifiers": {"email": "a@b.c"}},
    {**person("delete"), "identifiers": {"phone": "+14155552671"}},
    {**person("delete"), "identifiers": {"cio_id": "03000001"}},
    merge("1", "2"),
    thing("identify", attributes={"seats": 50}, cio_relationships=PEOPLE),
    thing("identify_anonymous", cio_relationships=[{"identifiers": {"anonymous_id": "x"}}]),
    thing("identify_anonymous", anonymous_id="x"),
    thing("delete"),
    thing("add_relationships", cio_relationships=PEOPLE),
    thing("delete_relationships", cio_relationships=PEOPLE),
    {**DELIVERY, "attributes": {"device_token": "t"}},
]

# operation, and the fields named by its problems
INVALID: list[tuple[object, list[str]]] = [
    (7, [""]),
    ({}, ["type"]),
    ({"type": "robot", "action": "event"}, ["type"]),
    ({"type": ["person"], "action": "event"}, ["type"]),
    ({"type": "person"}, ["action"]),
    (person("dance"), ["action"]),
    (thing("merge"), ["action"]),
    ({"type": "person", "action": "delete"}, ["identifiers"]),
    ({**person("delete"), "identifiers": "42"}, ["identifiers"]),
    ({**person("delete"), "identifiers": {}}, ["identifiers"]),
    ({**person("delete"), "identifiers": {"id": "1", "email": "a@b.c"}}, ["identifiers"]),
    ({**event(), "identifiers": {"id": "1", "email": "a@b.c"}}, ["identifiers"]),
    ({**event(), "identifiers": {"anonymous_id": "x"}}, ["identifiers"]),
    ({**event(), "identifiers": {"id": 42}}, ["identifiers.id"]),
    ({**event(), "identifiers": {"phone": "0151"}}, ["identifiers.phone"]),
    (event(identifier=""), ["identifiers.id"]),
    (event(identifier="i" * 151), ["identifiers.id"]),
    (event(identifier="é" * 76), ["identifiers.id"]),
    (person("event"), ["name"]),
    (event(name="  "), ["name"]),
    (event(name=None), ["name"]),
    (event(name=7), ["name"]),
    (event(name="n" * 101), ["name"]),
    (event(name="é" * 51), ["name"]),
    (event() | {"id": "not-a-ulid"}, ["id"]),
    (event() | {"id": "8" + "0" * 25}, ["id"]),
    (event() | {"id": "0" * 25 + "U"}, ["id"]),
    (event() | {"id": "0" * 27}, ["id"]),
    (event() | {"id": None}, ["id"]),
    (event(timestamp=1.5), ["timestamp"]),
    (event(timestamp="2026-01-01"), ["timestamp"]),
    (event(timestamp=True), ["timestamp"]),
    (event(attributes=[]), ["attributes"]),
    (event(attributes=None), ["attributes"]),
    (event(data={}), ["data"]),
    (person("identify", attributes={"a": "x" * 1_001}), ["attributes.a"]),
    (person("identify", attributes={"a": ["x" * 1_000]}), ["attributes.a"]),
    (person("identify", attributes={"é" * 76: 1}), ["attributes"]),
    (person("identify", attributes={str(n): n for n in range(301)}), ["attributes"]),
    (person("identify", timestamp="1"), ["timestamp"]),
    (person("identify", id=ulid(1)), ["id"]),
    (person("add_relationships"), ["cio_relationships"]),
    (person("add_relationships", cio_relationships={}), ["cio_relationships"]),
    (person("add_relationships", cio_relationships=["acme"]), ["cio_relationships[0]"]),
    (
        person("add_relationships", cio_relationships=[{"identifiers": {"object_type_id": 1, "object_id": "a"}}]),
        ["cio_relationships[0].identifiers.object_type_id"],
    ),
    (
        person("add_relationships", cio_relationships=[*RELATED, {"identifiers": {"object_id": "a"}}]),
        ["cio_relationships[1].identifiers"],
    ),
    (
        person("add_relationships", cio_relationships=[{**RELATED[0], "relationship_attributes": "admin"}]),
        ["cio_relationships[0].relationship_attributes"],
    ),
    (person("add_device"), ["device"]),
    (person("add_device", device={"id": "t", "platform": "ios"}), ["device.token"]),
    (person("add_device", device={"token": "t"}), ["device.platform"]),
    (person("add_device", device={"token": "t", "platform": "symbian"}), ["device.platform"]),
    (person("add_device", device={**DEVICE, "last_used": "now"}), ["device.last_used"]),
    (person("delete_device", device={}), ["device.token"]),
    ({**merge("1", "2"), "identifiers": {"id": "1"}}, ["identifiers"]),
    ({"type": "person", "action": "merge"}, ["primary", "secondary"]),
    ({**merge("1", "2"), "secondary": {"phone": "+14155552671"}}, ["secondary"]),
    (merge("1", "1"), ["secondary"]),
    ({**thing("delete"), "identifiers": {"object_type_id": 1, "object_id": "acme"}}, ["identifiers.object_type_id"]),
    ({**thing("delete"), "identifiers": {"object_id": "acme"}}, ["identifiers"]),
    (thing("add_relationships"), ["cio_relationships"]),
    (
        thing("add_relationships", cio_relationships=[{"identifiers": {"phone": "+1"}}]),
        ["cio_relationships[0].identifiers"],
    ),
    (thing("identify", attributes={f"a{n}": "x" * 1_000 for n in range(101)}), ["attributes"]),
    (thing("identify", attributes={"a": "x" * 1_001}), ["attributes.a"]),
    (thing("identify", attributes={f"a{n}": 1 for n in range(301)}), ["attributes"]),
    (DELIVERY, ["attributes"]),
    ({**DELIVERY, "attributes": {}}, ["attributes.device_token"]),
    ({**DELIVERY, "name": "clicked", "attributes": {"device_token": "t"}}, ["name"]),
    ({**DELIVERY, "id": ulid(1), "attributes": {"device_token": "t"}}, ["id"]),
    ({**DELIVERY, "timestamp": 1, "attributes": {"device_token": "t"}}, ["timestamp"]),
    ({**DELIVERY, "identifiers": {}, "attributes": {"device_token": "t"}}, ["identifiers.id"]),
]


@pytest.mark.parametrize("operation", VALID)
def test_a_valid_operation_has_no_problems(operation: dict[str, Any]) -> None:
    """Each kind of operation passes, also when it is exactly at a limit."""
    assert list(check_operation(operation)) == []


@pytest.mark.parametrize(("operation", "fields"), INVALID)
def test_each_problem_names_its_field(operation: object, fields: list[str]) -> None:
    """An invalid operation is refused for its one fault, named with a reason and a message."""
    problems = check_operation(operation)
    assert [problem.field for problem in problems] == fields
    assert all(problem.reason and problem.message for problem in problems)


STRANGE = st.none() | st.booleans() | st.integers() | st.text(max_size=160) | st.dictionaries(st.text(), st.none())


@given(
    field=st.sampled_from(["type", "action", "identifiers", "name", "id", "timestamp", "attributes", "data"]),
    value=STRANGE,
)
def test_the_short_way_accepts_nothing_that_the_slow_way_refuses(field: str, value: object) -> None:
    """Whatever stands in a field of an event, a yes of the short way is a yes of the slow way."""
    operation = event() | {field: value}
    if _is_plain_event(operation, frozenset({"id", "email", "phone", "cio_id"})):
        assert _check_slowly(operation, frozenset({"id", "email", "phone", "cio_id"})) == []


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ["identifiers", "attributes", "cio_relationships", "device", "primary", "secondary", "name", "id"]


@given(
    kind=st.sampled_from(["person", "object", "delivery"]),
    action=st.sampled_from([operation["action"] for operation in VALID]),
    fields=st.dictionaries(st.sampled_from(FIELDS), JSON_VALUES),
)
def test_no_content_makes_the_checks_fail(kind: str, action: str, fields: dict[str, Any]) -> None:
    """Any JSON at all is answered with problems, never with an exception."""
    problems = check_operation({"type": kind, "action": action, **fields})
    assert all(isinstance(problem.message, str) for problem in problems)
