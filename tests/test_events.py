"""Typed events and attributes: what a class may declare, what an instance may hold, what stands on the wire."""

from __future__ import annotations

import copy
import datetime as dt
import enum
import pickle
import types
import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Literal, NewType, Optional

import attrs
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cio_batch import CioEvent, Email, EventSchemaError, InvalidOperationError, UserAttributes, operations
from cio_batch.events import MAX_NAME_BYTES
from cio_batch.operations import encode, encode_event

ULID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
NOW = 1_700_000_000.9
UTC = dt.UTC
SECRET = "s3cr3t-content"


class Channel(enum.Enum):
    WEB = "web"
    STORE = "store"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Tone(enum.StrEnum):
    WARM = "warm"


UserId = NewType("UserId", str)


@attrs.frozen
class Price:
    amount: Decimal
    currency: str | None = None


@attrs.define
class Item:
    sku: str
    price: Price
    class_: str | None = None
    parts: list[Item] = attrs.field(factory=list["Item"])
    _cache: object = None


class PlanChanged(CioEvent, name="plan_changed"):
    from_: str
    to: str
    mrr: float
    coupon: str | None = None


class Everything(CioEvent, name="everything"):
    """One field of each type."""

    text: str
    whole: int
    number: float
    flag: bool
    at: dt.datetime
    day: dt.date
    price: Decimal
    key: uuid.UUID
    channel: Channel
    level: Level
    plan: Literal["free", "pro"]
    tags: list[str]
    scores: dict[str, float]
    item: Item
    items: list[Item]
    by_name: dict[str, Price | None]
    times: list[dt.datetime | None]
    anything: Any
    note: str | None = None


EVERYTHING: dict[str, Any] = {
    "text": "t",
    "whole": 1,
    "number": 1.5,
    "flag": True,
    "at": dt.datetime(2024, 1, 1, tzinfo=UTC),
    "day": dt.date(2024, 12, 31),
    "price": Decimal("9.90"),
    "key": uuid.UUID(int=1),
    "channel": Channel.WEB,
    "level": Level.HIGH,
    "plan": "pro",
    "tags": ["a", "b"],
    "scores": {"a": 1, "b": 0.5},
    "item": Item("a-1", Price(Decimal(1)), class_="c", parts=[Item("a-2", Price(Decimal(2), "EUR"))]),
    "items": [Item("b-1", Price(Decimal(3)))],
    "by_name": {"x": Price(Decimal(4)), "y": None},
    "times": [dt.datetime(2024, 1, 1, tzinfo=UTC), None],
    "anything": {"deep": [1, None]},
}


def on_the_wire(event: CioEvent) -> dict[str, Any]:
    """What the service gets."""
    body = encode_event("u", event.event_name, event.wire_data(), None, None, NOW, lambda: ULID).body
    attributes: dict[str, Any] = orjson.loads(body)["attributes"]
    return attributes


def refused(make: Callable[[], object]) -> EventSchemaError:
    with pytest.raises(EventSchemaError) as caught:
        make()
    assert SECRET not in str(caught.value)
    return caught.value


# ------------------------------------------------------------------------------------------------------ on the wire


def test_an_event_has_its_name_and_its_fields() -> None:
    """One trailing underscore is dropped, and a field that is not set stays off the wire."""
    event = PlanChanged(from_="free", to="pro", mrr=49)
    assert event.event_name == "plan_changed"
    assert event.wire_data() == {"from": "free", "to": "pro", "mrr": 49}
    assert PlanChanged(from_="free", to="pro", mrr=49, coupon="x").wire_data()["coupon"] == "x"
    assert PlanChanged(from_="free", to="pro", mrr=49, coupon=None).wire_data() == event.wire_data()


def test_an_event_is_encoded_like_the_same_dict() -> None:
    """To the byte: the type is the caller's affair, the service sees no difference."""
    event = PlanChanged(from_="free", to="pro", mrr=49.0)
    plain = operations.event("u", "plan_changed", {"from": "free", "to": "pro", "mrr": 49.0})
    for draft in (operations.event("u", event), operations.event(user_id="u", name="plan_changed", data=event)):
        assert encode(draft, now=NOW, new_id=lambda: ULID) == encode(plain, now=NOW, new_id=lambda: ULID)
    short = encode_event("u", event.event_name, event.wire_data(), None, None, NOW, lambda: ULID)
    assert short == encode(plain, now=NOW, new_id=lambda: ULID)


def test_every_type_reaches_the_wire() -> None:
    """Nested classes follow the rules for fields of events, at any depth; private fields stay at home."""
    assert on_the_wire(Everything(**EVERYTHING)) == {
        "text": "t",
        "whole": 1,
        "number": 1.5,
        "flag": True,
        "at": 1_704_067_200,
        "day": "2024-12-31",
        "price": 9.9,
        "key": "00000000-0000-0000-0000-000000000001",
        "channel": "web",
        "level": 2,
        "plan": "pro",
        "tags": ["a", "b"],
        "scores": {"a": 1, "b": 0.5},
        "item": {
            "sku": "a-1",
            "price": {"amount": 1},
            "class": "c",
            "parts": [{"sku": "a-2", "price": {"amount": 2, "currency": "EUR"}, "parts": []}],
        },
        "items": [{"sku": "b-1", "price": {"amount": 3}, "parts": []}],
        "by_name": {"x": {"amount": 4}, "y": None},
        "times": [1_704_067_200, None],
        "anything": {"deep": [1, None]},
    }


def test_fields_stand_in_the_order_of_their_declaration() -> None:
    """Those that may be left out are no exception."""

    class Mixed(CioEvent, name="mixed"):
        a: str | None = None
        b: int
        c: int = 3
        d: list[int] = attrs.field(factory=list)

    assert list(Mixed(b=1, a="x").wire_data()) == ["a", "b", "c", "d"]
    assert Mixed(b=1).wire_data() == {"b": 1, "c": 3, "d": []}


def test_an_event_without_fields_has_no_data() -> None:
    """Its operation is that of a name alone."""

    class Opened(CioEvent, name="opened"):
        pass

    assert Opened().wire_data() == {}
    assert operations.event("u", Opened()) == operations.event("u", "opened")


def test_a_double_underscore_leaves_one() -> None:
    """So every name that ends in an underscore can be said."""

    class Odd(CioEvent, name="odd"):
        x__: int
        event_name_: str

    assert Odd(x__=1, event_name_="n").wire_data() == {"x_": 1, "event_name": "n"}


def test_the_fields_that_override_a_campaign_are_fields_like_others() -> None:
    """Customer.io reads recipient, from_address and reply_to out of the data."""

    class Receipt(CioEvent, name="receipt"):
        recipient: str
        from_address: str | None = None
        reply_to: str | None = None

    data = {"recipient": "a@example.com", "reply_to": "b@example.com"}
    assert Receipt(recipient="a@example.com", reply_to="b@example.com").wire_data() == data


def test_the_callers_objects_are_not_changed() -> None:
    """Writing makes new objects where something changes."""
    given_values = copy.deepcopy(EVERYTHING)
    Everything(**given_values).wire_data().clear()
    assert given_values == EVERYTHING


# ------------------------------------------------------------------------------------------------- values that fit


@pytest.mark.parametrize(
    ("field", "value", "expected", "got"),
    [
        ("text", 1, "str", "int"),
        ("text", None, "str", "None"),
        ("whole", True, "int", "bool"),
        ("whole", 1.0, "int", "float"),
        ("whole", SECRET, "int", "str"),
        ("number", True, "float", "bool"),
        ("number", Decimal(1), "float", "Decimal"),
        ("flag", 1, "bool", "int"),
        ("at", dt.datetime(2024, 1, 1), "datetime with a time zone", "naive datetime"),  # noqa: DTZ001
        ("at", dt.date(2024, 1, 1), "datetime with a time zone", "date"),
        ("at", 1_700_000_000, "datetime with a time zone", "int"),
        ("day", dt.datetime(2024, 1, 1, tzinfo=UTC), "date", "datetime"),
        ("day", "2024-12-31", "date", "str"),
        ("price", 1, "Decimal", "int"),
        ("key", "00000000-0000-0000-0000-000000000001", "UUID", "str"),
        ("channel", "web", "Channel", "str"),
        ("channel", Level.LOW, "Channel", "Level"),
        ("plan", SECRET, "one of 'free', 'pro'", "str"),
        ("plan", [SECRET], "one of 'free', 'pro'", "list"),
        ("tags", ("a",), "list of str", "tuple"),
        ("tags", SECRET, "list of str", "str"),
        ("scores", [("a", 1.0)], "dict of str to float", "list"),
        ("item", {"sku": "a"}, "Item", "dict"),
        ("note", 5, "str or None", "int"),
    ],
)
def test_a_value_of_a_wrong_type_is_refused(field: str, value: object, expected: str, got: str) -> None:
    """The error names event, field, what was expected and the type that came; never the value."""
    error = refused(lambda: Everything(**EVERYTHING | {field: value}))
    assert (error.event, error.field, error.expected, error.got) == ("everything", field, expected, got)
    assert str(error) == f"everything.{field}: expected {expected}, got {got}"
    assert isinstance(error, InvalidOperationError)


@pytest.mark.parametrize(
    ("field", "value", "where", "expected"),
    [
        ("tags", ["a", 5], "tags[1]", "str"),
        ("scores", {"a": "b"}, "scores.a", "float"),
        ("scores", {5: 1.0}, "scores (a key)", "str"),
        ("items", [Item(5, Price(Decimal(1)))], "items[0].sku", "str"),  # type: ignore[arg-type]
        ("items", [Item("a", Price(1.5))], "items[0].price.amount", "Decimal"),  # type: ignore[arg-type]
        ("item", Item("a", Price(Decimal(1)), class_=5), "item.class", "str or None"),  # type: ignore[arg-type]
        ("by_name", {"x": Price(Decimal(1), 5)}, "by_name.x.currency", "str or None"),  # type: ignore[arg-type]
        ("times", [None, 5], "times[1]", "datetime with a time zone or None"),
        ("by_name", {"n" * 60: 5}, "by_name.<long name>", "Price or None"),
    ],
)
def test_a_fault_within_a_value_is_named_by_its_path(field: str, value: object, where: str, expected: str) -> None:
    """Lists by index, dicts by key, nested classes by the names on the wire."""
    error = refused(lambda: Everything(**EVERYTHING | {field: value}))
    assert (error.field, error.expected) == (where, expected)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("text", Tone.WARM),
        ("number", 5),
        ("whole", Level.LOW),
        ("plan", "free"),
        ("scores", {}),
        ("anything", None),
        ("items", [Item("a", Price(Decimal(1)), parts=[Item("b", Price(Decimal(1)))])]),
    ],
)
def test_a_value_that_fits_is_taken(field: str, value: object) -> None:
    """Subclasses too, and a whole number where a float is expected."""
    event = Everything(**EVERYTHING | {field: value})
    assert getattr(event, field) == value


def test_subclasses_of_types_fit() -> None:
    """What the quick check does not know, the type itself accepts."""

    class Text(str):
        __slots__ = ()

    @attrs.frozen
    class Dearer(Price):
        reason: str = "r"

    event = Everything(**EVERYTHING | {"text": Text("t"), "by_name": {"x": Dearer(Decimal(1))}})
    assert on_the_wire(event)["by_name"] == {"x": {"amount": 1}}


def test_an_enum_literal_and_a_literal_with_none() -> None:
    """A Literal may name members of an Enum, numbers and bool, and None."""

    class Choosy(CioEvent, name="choosy"):
        channel: Literal[Channel.WEB]
        size: Literal[1, 2, None] = None
        sure: Literal[True] = True

    assert on_the_wire(Choosy(channel=Channel.WEB, size=2)) == {"channel": "web", "size": 2, "sure": True}
    assert refused(lambda: Choosy(channel=Channel.STORE)).expected == "Channel.WEB"
    assert refused(lambda: Choosy(channel="web")).got == "str"  # type: ignore[arg-type]
    assert refused(lambda: Choosy(channel=Channel.WEB, size=True)).expected == "one of 1, 2 or None"
    assert refused(lambda: Choosy(channel=Channel.WEB, sure=1)).expected == "True"  # type: ignore[arg-type]


def test_other_ways_to_write_a_type() -> None:
    """Optional, Annotated, NewType, text within a type, and ClassVar, which is no field."""

    class Spelled(CioEvent, name="spelled"):
        version: ClassVar[int] = 3
        a: Optional[int]  # noqa: UP045
        b: Annotated[str, "a note"]
        c: UserId
        d: list["Item"]  # noqa: UP037
        e: dict[str, object]
        f: list  # type: ignore[type-arg]

    event = Spelled(a=None, b="b", c=UserId("c"), d=[], e={"x": 1}, f=[1])
    assert event.wire_data() == {"b": "b", "c": "c", "d": [], "e": {"x": 1}, "f": [1]}


@given(st.floats(allow_nan=True) | st.integers() | st.booleans() | st.none() | st.text() | st.binary())
def test_a_field_takes_what_its_type_says(value: object) -> None:
    """Whatever comes, it fits or is refused by type, and the quick check agrees with the slow one."""

    class Two(CioEvent, name="two"):
        whole: int | None = None
        number: float | None = None

    for field, kinds in (("whole", (int,)), ("number", (int, float))):
        fits = value is None or (isinstance(value, kinds) and not isinstance(value, bool))
        try:
            event = Two(**{field: value})  # type: ignore[arg-type]
        except EventSchemaError:
            assert not fits
        else:
            assert fits
            assert getattr(event, field) is value


# --------------------------------------------------------------------------------------------- instances, classes


def test_a_repr_shows_no_value() -> None:
    """Only which fields are set."""
    assert repr(PlanChanged(from_=SECRET, to=SECRET, mrr=1)) == "PlanChanged(from_=..., to=..., mrr=...)"
    assert SECRET not in repr(UserAttributes(email=SECRET, extra={"a": SECRET}))


def test_an_event_is_frozen_and_has_a_value() -> None:
    """Equal by its fields; it can be copied, pickled and changed into another one."""
    event = PlanChanged(from_="free", to="pro", mrr=49)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        event.mrr = 50  # type: ignore[misc]
    assert event == copy.deepcopy(event) == pickle.loads(pickle.dumps(event))
    assert hash(event) == hash(copy.copy(event))
    assert attrs.evolve(event, to="team") != event  # type: ignore[misc]
    assert refused(lambda: attrs.evolve(event, to=5)).field == "to"  # type: ignore[misc]


def test_fields_are_given_by_name() -> None:
    """Two texts in a row would be swapped sooner or later."""
    with pytest.raises(TypeError, match="positional"):
        PlanChanged("free", "pro", 49)  # type: ignore[misc]
    with pytest.raises(TypeError, match="from_"):
        PlanChanged(to="pro", mrr=49)  # type: ignore[call-arg]


def test_bases_and_mix_ins_share_their_fields() -> None:
    """A class without a name is abstract; required fields may come after optional ones."""

    class Sourced(CioEvent):
        source: str | None = None

    class Teamed(CioEvent):
        team: int

    class Invited(Sourced, Teamed, name="invited"):
        email: str

    class Reinvited(Invited, name="reinvited"):
        again: bool = True

    assert Invited(team=1, email="e", source="s").wire_data() == {"team": 1, "source": "s", "email": "e"}
    assert Reinvited(team=1, email="e").wire_data() == {"team": 1, "email": "e", "again": True}
    assert (Invited.event_name, Reinvited.event_name, Sourced.event_name) == ("invited", "reinvited", "")
    assert refused(lambda: Reinvited(team="x", email="e")).event == "reinvited"  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Sourced is abstract"):
        Sourced(source="s")


def test_a_plain_attrs_class_may_be_a_mix_in() -> None:
    """Its fields are read where it stands."""

    @attrs.frozen
    class Sourced:
        source: str | None = None

    class Came(Sourced, CioEvent, name="came"):
        n: int

    assert Came(n=1, source="s").wire_data() == {"source": "s", "n": 1}  # type: ignore[call-arg]
    assert refused(lambda: Came(n=1, source=5)).field == "source"  # type: ignore[call-arg]


def test_a_subclass_may_narrow_a_field() -> None:
    """The last declaration holds."""

    class Base(CioEvent, name="base"):
        plan: str

    class Narrow(Base, name="narrow"):
        plan: Literal["pro"]

    assert refused(lambda: Narrow(plan="free")).expected == "'pro'"  # type: ignore[arg-type]
    assert Base(plan="free").wire_data() == {"plan": "free"}


def test_validators_of_attrs_work() -> None:
    """Beyond the type, a class may check what it likes."""

    class Paid(CioEvent, name="paid"):
        amount: int = attrs.field(validator=attrs.validators.gt(0))  # type: ignore[call-overload]

    assert Paid(amount=1).wire_data() == {"amount": 1}
    with pytest.raises(ValueError, match="amount"):
        Paid(amount=0)


def declare(annotations: dict[str, Any], *, name: Any = "e", base: type = CioEvent, **values: Any) -> type:
    """Declare an event as a class statement would."""
    body = {"__annotations__": annotations, "__module__": __name__, **values}
    return types.new_class("Declared", (base,), {"name": name} if base is CioEvent else {}, lambda ns: ns.update(body))


@pytest.mark.parametrize(
    "annotation",
    [
        bytes,
        "bytes",
        set[str],
        tuple[int, int],
        dict[int, str],
        int | str,
        int | str | None,
        None,
        list[bytes],
        list[set[str]],
        Callable[[], int],
        complex,
        dt.time,
        dt.timedelta,
        Email | int,
        Literal[b"x"],
        Literal["a", Channel.WEB],
        enum.Enum("Ratio", {"HALF": 0.5}),
        enum.Enum("Nothing", {}),
        "Missing",
        list["Missing"],  # type: ignore[name-defined]  # noqa: F821
    ],
    ids=str,
)
def test_a_type_that_cannot_be_declared_is_found_when_the_class_is_made(annotation: Any) -> None:
    """The text names class and field."""
    with pytest.raises(TypeError, match=r"^Declared\.x: "):
        declare({"x": annotation})


def test_a_fault_in_a_nested_class_names_that_class() -> None:
    """It is where the fault is."""

    @attrs.frozen
    class Inner:
        blob: bytes

    with pytest.raises(TypeError, match=r"Inner\.blob: an event cannot carry bytes"):
        declare({"x": list[Inner]})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("", "must not be empty"),
        (" \t", "must not be empty"),
        (" e", "space"),
        ("e\n", "space"),
        ("n" * (MAX_NAME_BYTES + 1), "101 bytes"),
        ("é" * 51, "102 bytes"),
        ("\ud800", "surrogate"),
        (5, "got int"),
    ],
)
def test_a_name_that_cannot_be_is_found_when_the_class_is_made(name: Any, text: str) -> None:
    """Within the limits of the wire, and without the space that the service would remove."""
    with pytest.raises(TypeError, match=rf"^Declared: the event's name .*{text}"):
        declare({}, name=name)
    declare({}, name="n" * MAX_NAME_BYTES)


@pytest.mark.parametrize(
    ("annotations", "values", "text"),
    [
        ({"_x": str}, {}, r"Declared\._x: a field's name must not begin with an underscore"),
        ({"x": str, "x_": str}, {}, r"Declared\.x_: x has the same name on the wire, which is 'x'"),
        ({"x" * 151: str}, {}, "151 bytes"),
        ({"wire_data": str}, {}, r"Declared\.wire_data: the name is taken; write wire_data_"),
        ({"event_name": str}, {}, r"Declared\.event_name: the name is taken"),
        ({"x": str}, {"x": None}, r"Declared\.x: the default must be str, got None; declare it `str | None`"),
        ({"x": int}, {"x": "5"}, r"Declared\.x: the default must be int, got str"),
        ({"x": list[str]}, {"x": []}, r"Declared\.x: all events would share this default"),
        ({"x": float}, {"x": float("nan")}, r"Declared\.x: the default is NaN"),
        ({"x": str}, {"x": attrs.field(init=False)}, r"Declared\.x: .*init=False"),
        ({}, {"__attrs_post_init__": lambda self: None}, "validators of attrs"),
        ({}, {"wire_data": lambda self: {}}, "wire_data is made for each class"),
    ],
)
def test_a_field_that_cannot_be_is_found_when_the_class_is_made(
    annotations: dict[str, Any], values: dict[str, Any], text: str
) -> None:
    """Names, defaults, and what belongs to the base."""
    with pytest.raises(TypeError, match=text):
        declare(annotations, **values)


def test_a_class_argument_that_does_not_exist_is_refused() -> None:
    """A typo in ``name=`` makes no abstract class."""
    with pytest.raises(TypeError, match="nmae"):

        class Typo(CioEvent, nmae="typo"):  # type: ignore[call-arg]
            pass


def test_types_of_the_function_around_are_found() -> None:
    """Annotations are text in this file, and these classes are in no module."""

    class Colour(enum.Enum):
        RED = "red"

    @attrs.frozen
    class Shape:
        colour: Colour

    class Drawn(CioEvent, name="drawn"):
        shape: Shape
        colour: Colour = Colour.RED

    assert on_the_wire(Drawn(shape=Shape(Colour.RED))) == {"shape": {"colour": "red"}, "colour": "red"}


# ----------------------------------------------------------------------------------------------------- attributes


class Customer(UserAttributes):
    seats: int
    since: dt.date | None = None


def test_attributes_are_written_like_events() -> None:
    """What is not set stays off the wire, and further ones stand beside the declared ones."""
    customer = Customer(email="a@example.com", plan="pro", seats=5, extra={"age": 7, "gone": None})
    assert customer.wire_data() == {"email": "a@example.com", "plan": "pro", "seats": 5, "age": 7, "gone": None}
    assert UserAttributes(email="a@example.com").wire_data() == {"email": "a@example.com"}


def test_attributes_are_identified_like_a_dict() -> None:
    """The draft holds a dict, so that a redaction sees it."""
    customer = Customer(email="a@example.com", seats=5, since=dt.date(2024, 1, 2))
    draft = operations.identify("u", customer)
    assert draft == operations.identify("u", {"email": "a@example.com", "seats": 5, "since": dt.date(2024, 1, 2)})
    body = encode(draft, now=NOW, new_id=lambda: ULID).body
    assert orjson.loads(body)["attributes"] == {"email": "a@example.com", "seats": 5, "since": "2024-01-02"}


@pytest.mark.parametrize(
    ("values", "field", "expected"),
    [
        ({"email": None}, "email", "str"),
        ({"plan": SECRET}, "plan", "one of 'free', 'starter', 'pro', 'enterprise' or None"),
        ({"created_at": 1.5}, "created_at", "int or None"),
        ({"seats": "5"}, "seats", "int"),
        ({"extra": {"plan": "pro"}}, "extra.plan", "a name that is not a declared field"),
        ({"extra": {5: SECRET}}, "extra (a key)", "str"),
        ({"extra": SECRET}, "extra", "a mapping"),
        ({"extra": 0}, "extra", "a mapping"),
    ],
)
def test_wrong_attributes_are_refused(values: dict[str, Any], field: str, expected: str) -> None:
    """The error names the class in place of an event."""
    error = refused(lambda: Customer(**{"email": "a@example.com", "seats": 5} | values))
    assert (error.event, error.field, error.expected) == ("Customer", field, expected)


def test_extra_is_no_field_that_could_be_declared() -> None:
    """Not by another class either."""
    with pytest.raises(TypeError, match="extra: the name is taken"):
        declare({"extra": int}, base=UserAttributes)
    assert "extra" not in {field.wire for field in Customer.declared_fields}
