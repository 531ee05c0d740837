"""The registry of events: plain pairs, JSON Schema, and the way back to source."""

from __future__ import annotations

import ast
import datetime as dt
import enum
import importlib.util
import inspect
import json
import keyword
import sys
import types
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, Union

import attrs
import orjson
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from cio_batch import CioEvent, EventSchemaError, Taxonomy
from cio_batch.generation import generate_source
from cio_batch.operations import encode_event

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "taxonomy.py"
SECRET = "s3cr3t-content"


class Channel(enum.Enum):
    WEB = "web"
    STORE = "store"


@attrs.frozen
class Item:
    """A part of an order."""

    sku: str
    price: Decimal
    class_: str | None = None
    parts: list[Item] = attrs.field(factory=list["Item"])


class PlanChanged(CioEvent, name="plan_changed"):
    """Somebody pays more, or less."""

    from_: str
    to: str
    mrr: float


class Opened(CioEvent, name="opened"):
    pass


class Bought(CioEvent, name="bought"):
    order: uuid.UUID
    at: dt.datetime
    day: dt.date | None
    channel: Channel = Channel.WEB
    plan: Literal["free", "pro"] | None = "free"
    items: list[Item]
    labels: dict[str, str] = attrs.field(factory=dict)
    first: Item | None = None
    scores: list[float | None] = attrs.field(factory=list)
    amount: Decimal = Decimal("0.1")
    since: dt.date = dt.date(2024, 1, 2)
    until: dt.datetime = dt.datetime(2024, 1, 2, tzinfo=dt.UTC)
    key: uuid.UUID = uuid.UUID(int=7)
    gift: bool = False
    anything: Any
    import_: str = "quote \" and ' and \\ and \n"


TAXONOMY = Taxonomy(PlanChanged | Opened | Bought)
BOUGHT: dict[str, Any] = {"order": str(uuid.UUID(int=1)), "at": 1_700_000_000, "items": [], "anything": 1}


def example() -> Any:
    """The module of the example with the five events."""
    spec = importlib.util.spec_from_file_location("example_taxonomy", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["example_taxonomy"] = module
    spec.loader.exec_module(module)
    return module


def executed(source: str) -> dict[str, Any]:
    """Run a generated module."""
    namespace: dict[str, Any] = {"__name__": "generated"}
    exec(compile(source, "generated.py", "exec"), namespace)
    return namespace


def refused(name: Any, data: Any, taxonomy: Taxonomy = TAXONOMY) -> EventSchemaError:
    with pytest.raises(EventSchemaError) as caught:
        taxonomy.validate(name, data)
    assert SECRET not in str(caught.value)
    return caught.value


# -------------------------------------------------------------------------------------------------------- registry


def test_a_taxonomy_is_a_union_a_class_or_several() -> None:
    """Each of the ways gives the same events in the same order."""
    expected = {"plan_changed": PlanChanged, "opened": Opened, "bought": Bought}
    for taxonomy in (
        TAXONOMY,
        Taxonomy(PlanChanged, Opened, Bought),
        Taxonomy(Union[PlanChanged, Opened, Bought]),  # noqa: UP007
        Taxonomy(PlanChanged | Opened, Bought, Opened),
        Taxonomy(types.SimpleNamespace(__value__=PlanChanged | Opened | Bought)),  # type: ignore[arg-type]
    ):
        assert list(taxonomy.events.items()) == list(expected.items())
        assert list(taxonomy) == list(expected.values())
        assert len(taxonomy) == 3
    assert list(Taxonomy(Opened)) == [Opened]
    assert repr(TAXONOMY) == "<Taxonomy plan_changed, opened, bought>"


def test_a_taxonomy_lists_fields() -> None:
    """By the names on the wire, with what must be there."""
    assert [(field.wire, field.required) for field in TAXONOMY.fields("plan_changed")] == [
        ("from", True),
        ("to", True),
        ("mrr", True),
    ]
    required = {field.wire for field in TAXONOMY.fields("bought") if field.required}
    assert required == {"order", "at", "items"}
    with pytest.raises(EventSchemaError):
        TAXONOMY.fields("sold")


def test_what_is_no_taxonomy_is_refused() -> None:
    """Other classes, abstract events, two events of one name, none at all."""

    class Abstract(CioEvent):
        pass

    class Twin(CioEvent, name="opened"):
        pass

    with pytest.raises(TypeError, match="got int"):
        Taxonomy(5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got str"):
        Taxonomy(Opened | str)
    with pytest.raises(TypeError, match="Abstract is abstract"):
        Taxonomy(Opened, Abstract)
    with pytest.raises(TypeError, match="Twin and Opened have the same name, 'opened'"):
        Taxonomy(Opened, Twin)
    with pytest.raises(TypeError, match="at least one"):
        Taxonomy()


# ----------------------------------------------------------------------------------------------------- plain pairs


@dataclass
class PlainPlanChange:
    to: str
    mrr: float


@attrs.define
class PlainOpened:
    _hidden: int = 5


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("plan_changed", {"from": "a", "to": "b", "mrr": 1}),
        ("plan_changed", types.MappingProxyType({"from": "a", "to": "b", "mrr": 1.5})),
        ("opened", None),
        ("opened", {}),
        ("opened", PlainOpened()),
        ("bought", BOUGHT),
        ("bought", BOUGHT | {"order": uuid.UUID(int=1), "at": dt.datetime.now(dt.UTC), "day": dt.date(2024, 1, 1)}),
        ("bought", BOUGHT | {"day": None, "plan": None, "first": None}),
        ("bought", BOUGHT | {"channel": "web"}),
        ("bought", BOUGHT | {"channel": Channel.STORE}),
        ("bought", BOUGHT | {"amount": 1.5, "since": "2024-01-02", "until": 5}),
        ("bought", BOUGHT | {"items": [{"sku": "a", "price": 1, "parts": [{"sku": "b", "price": 2}]}]}),
        ("bought", BOUGHT | {"items": (Item("a", Decimal(1)),)}),
        ("bought", BOUGHT | {"first": Item("a", Decimal(1)), "labels": types.MappingProxyType({"a": "b"})}),
    ],
)
def test_a_plain_pair_that_fits_is_valid(name: str, data: Any) -> None:
    """As the fields declare it, or already in the form of the wire."""
    TAXONOMY.validate(name, data)


@pytest.mark.parametrize(
    ("name", "data", "where", "expected", "got"),
    [
        ("plan_chnged", {}, "", "an event of the taxonomy (did you mean 'plan_changed'?)", "an unknown one"),
        ("sold", {}, "", "an event of the taxonomy", "an unknown one"),
        (5, {}, "", "an event of the taxonomy", "an unknown one"),
        ("opened", {"x": SECRET}, "x", "no fields", "an undeclared field"),
        ("plan_changed", {"from": "a", "to": "b"}, "mrr", "float", "nothing"),
        ("plan_changed", None, "from", "str", "nothing"),
        (
            "plan_changed",
            {"form": SECRET, "to": "b", "mrr": 1},
            "form",
            "one of from, to, mrr (did you mean 'from'?)",
            "an undeclared field",
        ),
        ("plan_changed", {"from": "a", "to": "b", "mrr": "1"}, "mrr", "float", "str"),
        ("plan_changed", {"from": None, "to": "b", "mrr": 1}, "from", "str", "None"),
        ("plan_changed", {5: "a"}, "(a key)", "str", "int"),
        ("plan_changed", [SECRET], "", "PlanChanged or a dict of its fields", "list"),
        ("plan_changed", PlainPlanChange("b", 1.0), "from", "str", "nothing"),
        ("bought", BOUGHT | {"order": SECRET}, "order", "UUID or its JSON form (string/uuid)", "str"),
        ("bought", BOUGHT | {"day": "2024-02-30"}, "day", "date or its JSON form (string/date) or None", "str"),
        ("bought", BOUGHT | {"at": True}, "at", "datetime with a time zone or its JSON form", "bool"),
        ("bought", BOUGHT | {"channel": SECRET}, "channel", "one of 'web', 'store'", "str"),
        ("bought", BOUGHT | {"items": [{"sku": "a"}]}, "items[0].price", "Decimal", "nothing"),
        ("bought", BOUGHT | {"items": [{"sku": "a", "price": 1, "n" * 60: 1}]}, "items[0].<long name>", "one", "an un"),
        ("bought", BOUGHT | {"items": [SECRET]}, "items[0]", "Item or a dict of its fields", "str"),
    ],
)
def test_a_plain_pair_that_does_not_fit_is_refused(name: Any, data: Any, where: str, expected: str, got: str) -> None:
    """The error names event, field, what was expected and what came, and the name that was meant."""
    error = refused(name, data)
    assert error.field == where
    assert error.expected.startswith(expected)
    assert error.got.startswith(got)


def test_a_typed_event_is_valid_as_a_plain_pair() -> None:
    """What the types let pass, the taxonomy lets pass, before and after encoding."""
    event = Bought(
        order=uuid.UUID(int=1),
        at=dt.datetime.now(dt.UTC),
        day=dt.date(2024, 1, 1),
        items=[Item("a", Decimal("9.90"), parts=[Item("b", Decimal(1), class_="c")])],
        anything={"x": [1]},
        first=Item("c", Decimal(2)),
        scores=[1, None, 2.5],
    )
    TAXONOMY.validate(event.event_name, event.wire_data())
    body = encode_event("u", event.event_name, event.wire_data(), None, None, 1.0, lambda: "0" * 26).body
    sent = orjson.loads(body)["attributes"]
    TAXONOMY.validate(event.event_name, sent)
    Draft202012Validator(TAXONOMY.json_schema()).validate({"name": event.event_name, "data": sent})


# ----------------------------------------------------------------------------------------------------- JSON Schema


def test_the_schema_of_an_event() -> None:
    """One of $defs per event, and the name decides which."""
    schema = Taxonomy(PlanChanged | Opened).json_schema()
    Draft202012Validator.check_schema(schema)
    assert schema == {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "oneOf": [
            {
                "type": "object",
                "properties": {"name": {"const": "plan_changed"}, "data": {"$ref": "#/$defs/PlanChanged"}},
                "required": ["name", "data"],
            },
            {
                "type": "object",
                "properties": {"name": {"const": "opened"}, "data": {"$ref": "#/$defs/Opened"}},
                "required": ["name"],
            },
        ],
        "$defs": {
            "PlanChanged": {
                "type": "object",
                "description": "Somebody pays more, or less.",
                "properties": {"from": {"type": "string"}, "to": {"type": "string"}, "mrr": {"type": "number"}},
                "required": ["from", "to", "mrr"],
                "additionalProperties": False,
            },
            "Opened": {"type": "object", "properties": {}, "additionalProperties": False},
        },
    }


def test_the_schema_is_plain_json() -> None:
    """It survives a way through a file, with every type and default."""
    schema = TAXONOMY.json_schema()
    Draft202012Validator.check_schema(schema)
    assert json.loads(json.dumps(schema)) == schema
    properties = schema["$defs"]["Bought"]["properties"]
    assert properties["at"] == {"type": "integer", "format": "unix-seconds"}
    assert properties["plan"] == {"anyOf": [{"enum": ["free", "pro"]}, {"type": "null"}], "default": "free"}
    assert properties["labels"] == {"type": "object", "additionalProperties": {"type": "string"}, "default": {}}
    assert {name: properties[name]["default"] for name in ("amount", "since", "until", "key", "gift")} == {
        "amount": 0.1,
        "since": "2024-01-02",
        "until": 1_704_153_600,
        "key": "00000000-0000-0000-0000-000000000007",
        "gift": False,
    }
    assert schema["$defs"]["Item"]["properties"]["parts"]["items"] == {"$ref": "#/$defs/Item"}


def test_two_classes_of_one_name_have_two_definitions() -> None:
    """The second gets a number."""

    def other() -> type[CioEvent]:
        class PlanChanged(CioEvent, name="plan_changed_again"):
            x: int

        return PlanChanged

    taxonomy = Taxonomy(PlanChanged, other())
    schema = taxonomy.json_schema()
    assert set(schema["$defs"]) == {"PlanChanged", "PlanChanged_2"}
    assert Taxonomy(executed(generate_source(schema))["AppEvent"]).json_schema() == schema


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.just(1.5) | st.sampled_from(["web", "free", "a", "2024-01-02"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["sku", "price", "x"]), inner),
    max_leaves=4,
)
names = st.sampled_from(["from", "to", "mrr", "channel", "plan", "items", "labels", "anything", "scores", "gift", "x"])


@given(st.sampled_from(list(TAXONOMY.events)), st.dictionaries(names, json_values, max_size=4), st.booleans())
def test_validate_and_the_schema_agree(name: str, data: dict[str, Any], complete: bool) -> None:
    """Of what is plain JSON, both say the same."""
    if complete:
        data = {"bought": BOUGHT, "plan_changed": {"from": "a", "to": "b", "mrr": 1.5}, "opened": {}}[name] | data
    by_schema = Draft202012Validator(TAXONOMY.json_schema()).is_valid({"name": name, "data": data})
    try:
        TAXONOMY.validate(name, data)
    except EventSchemaError:
        assert not by_schema
    else:
        assert by_schema


# ---------------------------------------------------------------------------------------------- the way back to source


def test_the_five_events_there_and_back() -> None:
    """The source that is generated from the example's schema declares the example's events, types and texts."""
    taxonomy = Taxonomy(example().AppEvent)
    schema = taxonomy.json_schema()
    source = generate_source(schema)
    made = executed(source)
    assert Taxonomy(made["AppEvent"]).json_schema() == schema
    assert made["PlanChanged"](from_="free", to="pro", mrr=49.0).wire_data() == {"from": "free", "to": "pro", "mrr": 49}
    assert "    from_: str\n    to: str\n    mrr: float\n" in source
    assert "    source: str | None = None\n" in source


def test_every_type_there_and_back() -> None:
    """Also through a file: defaults, nested classes that hold themselves, quotes."""
    schema = TAXONOMY.json_schema()
    source = generate_source(json.loads(json.dumps(schema)))
    made = executed(source)
    assert Taxonomy(made["AppEvent"]).json_schema() == schema
    event = made["Bought"](order=uuid.UUID(int=1), at=dt.datetime.now(dt.UTC), items=[], anything=1)
    assert event.import_ == "quote \" and ' and \\ and \n"
    assert event.amount == Decimal("0.1")
    assert event.until == dt.datetime(2024, 1, 2, tzinfo=dt.UTC)


def optional(kind: Any) -> Any:
    return kind | None if kind is not Any else Any


leaf_types: list[Any] = [str, int, float, bool, dt.datetime, dt.date, Decimal, uuid.UUID, Channel, Literal["a", "b"]]
leaf_types += [Item, Any, Literal[1, True]]
kinds = st.recursive(
    st.sampled_from(leaf_types),
    lambda inner: inner.map(lambda kind: list[kind]) | inner.map(lambda kind: dict[str, kind]) | inner.map(optional),
    max_leaves=3,
)


words = st.sampled_from(["str", "from", "Item", "dt", "None", "AppEvent", "wire_data", "x_", "naïve", "match"])


@given(
    st.lists(
        st.tuples(
            st.dictionaries(
                words | st.text("abcXYZ", min_size=1, max_size=4), st.tuples(kinds, st.booleans()), max_size=4
            ),
            st.text(min_size=1, max_size=20),
            st.text(max_size=30),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_any_taxonomy_there_and_back(declared: list[tuple[dict[str, tuple[Any, bool]], str, str]]) -> None:
    """Whatever the types, names and texts are."""
    events: list[type[CioEvent]] = []
    for number, (fields, name, text) in enumerate(declared):
        annotations: dict[str, Any] = {}
        values: dict[str, Any] = {"__doc__": text}
        for wire, (kind, left_out) in fields.items():
            annotations[f"{wire}_"] = optional(kind) if left_out else kind
            if left_out:
                values[f"{wire}_"] = None
        body = {"__annotations__": annotations, "__module__": __name__, **values}
        assume(name == name.strip() and name.isprintable())
        event = types.new_class(f"Event{number}", (CioEvent,), {"name": name}, lambda ns, body=body: ns.update(body))
        events.append(event)
    assume(len({event.event_name for event in events}) == len(events))
    schema = Taxonomy(*events).json_schema()
    made = executed(generate_source(schema))
    assert Taxonomy(made["AppEvent"]).json_schema() == schema


def schema_of(**properties: Any) -> dict[str, Any]:
    """A schema of one event with these properties."""
    return one_event({"type": "object", "properties": properties})


def one_event(data: Any, name: Any = "e") -> dict[str, Any]:
    return {"oneOf": [{"properties": {"name": {"const": name}, "data": data}}]}


def test_schemas_of_other_origin_are_read() -> None:
    """Inline objects, types as lists, const, definitions that are no objects, true."""
    schema = schema_of(
        a={"type": ["string", "null"], "title": "A", "format": "email"},
        b={"const": "x"},
        c={"type": "object", "properties": {"d": {"type": "integer"}}, "required": ["d"]},
        e={"$ref": "#/$defs/Plan~1Kind"},
        f=True,
        g={"type": "array"},
        h={"type": "object"},
        i={"anyOf": [{"type": "null"}, {"type": "boolean"}], "default": True},
        j={"enum": ["x", None]},
    )
    made = executed(generate_source({**schema, "$defs": {"Plan/Kind": {"enum": ["free", "pro"]}}}))
    event = made["E"](a="a", b="x", c=made["EC"](d=1), e="pro", f={}, g=[1], h={"x": 1})
    assert event.wire_data() == {
        "a": "a",
        "b": "x",
        "c": {"d": 1},
        "e": "pro",
        "f": {},
        "g": [1],
        "h": {"x": 1},
        "i": True,
    }


def test_a_long_union_is_broken_into_lines() -> None:
    """As the formatter would."""
    events = [{"properties": {"name": {"const": f"something_happened_{number}"}}} for number in range(9)]
    source = generate_source({"oneOf": events})
    assert max(map(len, source.splitlines())) <= 120
    assert len(Taxonomy(executed(source)["AppEvent"])) == 9


def test_an_event_without_data_is_read() -> None:
    """A name is enough."""
    made = executed(generate_source({"oneOf": [{"properties": {"name": {"const": "opened"}}}]}))
    assert made["Opened"]().wire_data() == {}


@pytest.mark.parametrize(
    ("schema", "where"),
    [
        ([], "#"),
        ({}, "#/oneOf"),
        ({"oneOf": []}, "#/oneOf"),
        ({"oneOf": [5]}, "#/oneOf/0"),
        ({"oneOf": [{}]}, "#/oneOf/0/properties"),
        (one_event({"type": "object"}, name=5), "#/oneOf/0/properties/name/const"),
        (one_event({"type": "object"}, name="n" * 101), "#/oneOf/0/properties/name/const"),
        ({"oneOf": one_event({"type": "object"})["oneOf"] * 2}, "#/oneOf/1"),
        (one_event({"type": "array"}), "#/oneOf/0/properties/data"),
        (one_event({"type": "object", "additionalProperties": True}), "#/oneOf/0/properties/data"),
        (one_event({"type": "object", "required": ["x"]}), "#/oneOf/0/properties/data/required"),
        (one_event({"type": "object", "minProperties": 1}), "#/oneOf/0/properties/data"),
        (one_event({"$ref": "#/$defs/X"}), "#/$defs"),
        (one_event({"$ref": "https://example.com/schema"}), "#/oneOf/0/properties/data/$ref"),
        (schema_of(x={"type": "integer", "minimum": 0}), "#/oneOf/0/properties/data/properties/x"),
        (schema_of(x={"type": "file"}), "#/oneOf/0/properties/data/properties/x/type"),
        (schema_of(x={"type": ["string", "integer"]}), "#/oneOf/0/properties/data/properties/x/type"),
        (
            schema_of(x={"anyOf": [{"type": "string"}, {"type": "integer"}]}),
            "#/oneOf/0/properties/data/properties/x/anyOf",
        ),
        (schema_of(x={"enum": [1.5]}), "#/oneOf/0/properties/data/properties/x"),
        (schema_of(x={"enum": []}), "#/oneOf/0/properties/data/properties/x"),
        (schema_of(x={"type": "string", "default": {"a": 1}}), "#/oneOf/0/properties/data/properties/x/default"),
        (schema_of(x=False), "#/oneOf/0/properties/data/properties/x"),
    ],
)
def test_a_schema_that_cannot_be_said_is_refused(schema: Any, where: str) -> None:
    """The error says where; nothing is forgotten or guessed."""
    with pytest.raises(EventSchemaError) as caught:
        generate_source(schema)
    assert caught.value.field == where


def test_a_schema_that_holds_itself_is_refused() -> None:
    """A definition that is only a reference to itself has no end."""
    with pytest.raises(EventSchemaError, match="nested too deeply"):
        generate_source({**schema_of(x={"$ref": "#/$defs/A"}), "$defs": {"A": {"$ref": "#/$defs/A"}}})


# ------------------------------------------------------------------------------------------------- hostile schemas

HOSTILE = [
    "x: int = 5\n    import os",
    "x'); import os; ('",
    'x"""\nimport os\n"""',
    "x\rimport os",
    "x = __import__('os')",
    "\u202eimport os",
    "import os\x00",
    "\\",
    "\\'",
    '"',
    "a\u2028b",
    "ﬁ",
    "__class__",
    "",
    "{0.__class__}",
    "\ud800",
]


def calls_of(tree: ast.Module) -> set[str]:
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


def check_harmless(source: str) -> None:
    """The source does nothing but what its generator meant: fixed imports, classes, annotations, known calls."""
    tree = ast.parse(source)
    for node in tree.body:
        assert isinstance(node, (ast.Expr, ast.ImportFrom, ast.Import, ast.ClassDef, ast.AnnAssign)), ast.dump(node)
        if isinstance(node, ast.Expr):
            assert isinstance(node.value, ast.Constant)
        if isinstance(node, ast.ClassDef):
            for part in node.body:
                assert isinstance(part, (ast.AnnAssign, ast.Pass, ast.Expr))
                assert not isinstance(part, ast.Expr) or isinstance(part.value, ast.Constant)
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert imported <= {"attrs", "datetime"}
    assert calls_of(tree) <= {
        "attrs.frozen",
        "attrs.field",
        "Decimal",
        "UUID",
        "dt.date.fromisoformat",
        "dt.datetime.fromtimestamp",
    }


def in_every_place(text: str) -> list[dict[str, Any]]:
    """Schemas that hold a text wherever a schema may hold one."""
    nested = {"type": "object", "properties": {"y": {"type": "integer"}}, "description": text}
    return [
        one_event({"type": "object", "description": text}),
        one_event({"type": "object"}, name=text),
        schema_of(**{text: {"type": "string"}}),
        schema_of(**{text: nested}),
        schema_of(x={"enum": [text]}),
        schema_of(x={"type": "string", "default": text}),
        schema_of(x={"type": "string", "format": "date", "default": text}),
        schema_of(x={"type": "string", "format": text}),
        schema_of(x={"type": text}),
        schema_of(x={"$ref": f"#/$defs/{text}"}),
        {**one_event({"$ref": "#/$defs/" + text.replace("~", "~0").replace("/", "~1")}), "$defs": {text: nested}},
        {**schema_of(x={"$ref": "#/$defs/" + text}), "$defs": {text: nested}},
        {**one_event({"type": "object"}), "$schema": text, "title": text, "$comment": text},
        schema_of(x={"type": "object", "additionalProperties": {"enum": [text]}}),
        schema_of(x={"type": "string", text: text}),
    ]


@pytest.mark.parametrize("text", HOSTILE + [word for word in keyword.kwlist if word != "None"], ids=ascii)
def test_no_part_of_a_schema_becomes_code(text: str) -> None:
    """A hostile text is refused, or stands in the source as text."""
    generated = 0
    errors: list[str] = []
    for schema in in_every_place(text):
        try:
            source = generate_source(schema)
        except EventSchemaError as caught:
            errors.append(str(caught))
            continue
        generated += 1
        check_harmless(source)
    assert generated
    assert not [error for error in errors if "\n" in error]


@given(st.text(max_size=40))
def test_no_text_at_all_becomes_code(text: str) -> None:
    """Likewise for any text."""
    for schema in in_every_place(text):
        try:
            source = generate_source(schema)
        except EventSchemaError:
            continue
        check_harmless(source)


@pytest.mark.parametrize("text", [*HOSTILE, "plain", "it's", "two\nlines"], ids=ascii)
def test_texts_come_back_as_they_were(text: str) -> None:
    """Descriptions, values and defaults are the same after the way through the source."""
    made = executed(generate_source(schema_of(x={"enum": [text]}, y={"type": "string", "default": text})))
    assert made["E"](x=text).wire_data() == {"x": text, "y": text}
    description = one_event({"type": "object", "description": text})
    if text == "\ud800":
        with pytest.raises(EventSchemaError, match="surrogate"):
            generate_source(description)
        return
    described = executed(generate_source(description))["E"].__doc__
    assert inspect.cleandoc(described or "") == inspect.cleandoc(text)  # as a docstring, which has no indentation


def test_a_name_never_hides_what_the_source_needs() -> None:
    """Fields, classes and definitions called like types, imports or each other."""
    properties: Mapping[str, Any] = {
        "str": {"type": "string", "default": "s"},
        "int": {"type": "integer", "default": 5},
        "dt": {"type": "string", "format": "date"},
        "Literal": {"enum": ["a"]},
        "attrs": {"type": "array", "items": {"$ref": "#/$defs/attrs"}, "default": []},
        "CioEvent": {"type": "string"},
        "z": {"type": "string"},
    }
    schema = {
        "oneOf": [
            {"properties": {"name": {"const": name}, "data": {"$ref": f"#/$defs/{key}"}}}
            for name, key in [("one", "AppEvent"), ("two", "CioEvent"), ("three", "class"), ("four", "AppEvent")]
        ],
        "$defs": {
            "AppEvent": {"type": "object", "properties": properties},
            "CioEvent": {"type": "object"},
            "class": {"type": "object"},
            "attrs": {"type": "object", "properties": {}},
        },
    }
    made = executed(generate_source(schema))
    taxonomy = Taxonomy(made["AppEvent_2"])
    assert list(taxonomy.events) == ["one", "two", "three", "four"]
    assert [field.attribute for field in taxonomy.fields("one")] == [
        f"{name}_" for name in properties if name != "z"
    ] + ["z"]
    taxonomy.validate("one", {"str": "a", "int": 5, "dt": "2024-01-02", "Literal": "a", "attrs": [{}], "z": "z"})
