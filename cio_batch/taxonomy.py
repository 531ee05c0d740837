"""A taxonomy: all events that there are, to check plain pairs against and to write as JSON Schema.

    AppEvent = SignedUp | PlanChanged | FeatureUsed
    taxonomy = Taxonomy(AppEvent)
    taxonomy.validate("plan_changed", {"from": "free", "to": "pro", "mrr": 49.0})

Rules:

1. What a typed event puts on the wire is valid by :meth:`Taxonomy.validate` and by :meth:`Taxonomy.json_schema`.
2. :func:`cio_batch.generation.generate_source` turns the schema back into source of a taxonomy with the same schema.

Must not know: the clock, asyncio, aiohttp, files.

Source: JSON Schema, draft 2020-12.
"""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import inspect
import math
import types
import typing
import urllib.parse
import uuid
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias, cast

import attrs

from cio_batch.errors import ConfigurationError, EventSchemaError
from cio_batch.events import CioEvent
from cio_batch.values import (
    Choice,
    DictOf,
    Field,
    Leaf,
    ListOf,
    Nullable,
    PlainRecord,
    RecordOf,
    ValueType,
    nearest,
    shown,
    type_name,
)

Schema: TypeAlias = dict[str, Any]

DRAFT: Final = "https://json-schema.org/draft/2020-12/schema"
_MAX_TOLD: Final = 1_000  # a program that puts ids into names costs a thousand warnings and no more


class Taxonomy:
    """All events that there are.

    Args:
        events: Subclasses of :class:`CioEvent` that have a name, one by one or as a union.

    Raises:
        TypeError: One of them is no such class, or two have the same name.
    """

    def __init__(self, *events: type[CioEvent] | types.UnionType) -> None:
        named: dict[str, type[CioEvent]] = {}
        for cls in _classes(events):
            if named.setdefault(cls.event_name, cls) is not cls:
                other = named[cls.event_name].__qualname__
                msg = f"{cls.__qualname__} and {other} have the same name, {cls.event_name!r}"
                raise TypeError(msg)
        if not named:
            msg = "a taxonomy needs at least one event"
            raise TypeError(msg)
        self._events: Final = types.MappingProxyType(named)
        self._records = {name: RecordOf(cls, cls.declared_fields).plain() for name, cls in named.items()}

    @property
    def events(self) -> Mapping[str, type[CioEvent]]:
        """The classes by the names of their events, in the order in which they were given."""
        return self._events

    def fields(self, name: str) -> tuple[Field, ...]:
        """Return the fields of an event.

        Raises:
            EventSchemaError: There is no event of this name.
        """
        return self._record(name).record.fields

    def __iter__(self) -> Iterator[type[CioEvent]]:
        return iter(self._events.values())

    def __len__(self) -> int:
        return len(self._events)

    def __repr__(self) -> str:
        return f"<Taxonomy {', '.join(self._events)}>"

    def validate(self, name: str, data: Any = None) -> None:
        """Check an event that is said as a name and data.

        A value may be what the field declares, or have the form in which that stands on the wire already: unix
        seconds for a ``datetime``, text for a ``UUID``, the value of an ``Enum``.

        Args:
            name: Its name.
            data: A mapping, dataclass or attrs object; ``None`` is none.

        Raises:
            EventSchemaError: The name is unknown, a field is unknown, is missing, or has a wrong type.
        """
        fault = self._record(name).fault("", {} if data is None else data)
        if fault is not None:
            raise EventSchemaError(name, fault.path, fault.expected, fault.got)

    def _record(self, name: str) -> PlainRecord:
        record = self._records.get(name)
        if record is None:
            where = shown(name) if isinstance(cast("object", name), str) else type_name(name)
            raise EventSchemaError(
                where, "", f"an event of the taxonomy{nearest(name, self._events)}", "an unknown one"
            )
        return record

    def json_schema(self) -> Schema:
        """Return the taxonomy as JSON Schema: of ``{"name": ..., "data": ...}``, with one of ``$defs`` per event.

        A default that is no text, number, ``bool``, ``None``, date or member of an ``Enum``, nor made by ``list`` or
        ``dict``, is left out.
        """
        return _SchemaWriter().write(self._events)


class EventValidator:
    """A taxonomy at the door of a client: it refuses what contradicts it, or tells of it once for each name.

    Args:
        taxonomy: The events that there are.
        strict: Whether to refuse.

    Raises:
        ConfigurationError: ``taxonomy`` is none.
    """

    def __init__(self, taxonomy: Taxonomy, *, strict: bool) -> None:
        if not isinstance(cast("object", taxonomy), Taxonomy):
            msg = f"taxonomy must be a Taxonomy, got {type(taxonomy).__name__}"
            raise ConfigurationError(msg, ("taxonomy",))
        self._taxonomy = taxonomy
        self._strict = strict
        self.told: set[str] = set()
        """The names that were told of."""

    def check(self, name: object, data: Any) -> EventSchemaError | None:
        """Check an event that is about to be encoded.

        Returns:
            What is to be told, where it is not refused: the first contradiction of its name, of the first 1,000 names.

        Raises:
            EventSchemaError: It contradicts the taxonomy.
        """
        if not isinstance(name, str):  # the encoder says what is wrong with such a name
            return None
        try:
            self._taxonomy.validate(name, data)
        except EventSchemaError as error:
            if self._strict:
                raise
            if name not in self.told and len(self.told) < _MAX_TOLD:
                self.told.add(name)
                return error
        return None


def _classes(events: Sequence[object]) -> Iterator[type[CioEvent]]:
    for event in events:
        if hasattr(event, "__value__"):  # `type AppEvent = ...`
            yield from _classes([cast("Any", event).__value__])
        elif typing.get_origin(event) in (typing.Union, types.UnionType):
            yield from _classes(typing.get_args(event))
        elif not isinstance(event, type) or not issubclass(event, CioEvent):
            got = event.__qualname__ if isinstance(event, type) else type_name(event)
            msg = f"a taxonomy is made of subclasses of CioEvent, got {got}"
            raise TypeError(msg)
        elif not event.event_name:
            msg = f"{event.__qualname__} is abstract: it has no name on the wire"
            raise TypeError(msg)
        else:
            yield event


# --------------------------------------------------------------------------------------------- to JSON Schema


@attrs.define
class _SchemaWriter:
    """Writes ``$defs`` for the classes that it meets, each under a name of its own."""

    keys: dict[type, str] = attrs.field(factory=dict[type, str])
    definitions: dict[str, Schema] = attrs.field(factory=dict[str, Schema])

    def write(self, events: Mapping[str, type[CioEvent]]) -> Schema:
        for cls in events.values():
            self._key(cls)
        choices: list[Schema] = []
        for name, cls in events.items():
            self._define(RecordOf(cls, cls.declared_fields))
            needed = ["name", "data"] if any(field.required for field in cls.declared_fields) else ["name"]
            properties = {"name": {"const": name}, "data": {"$ref": self._reference(cls)}}
            choices.append({"type": "object", "properties": properties, "required": needed})
        return {"$schema": DRAFT, "oneOf": choices, "$defs": self.definitions}

    def _key(self, cls: type) -> str:
        if cls not in self.keys:
            self.keys[cls] = unique(cls.__name__, set(self.keys.values()))
        return self.keys[cls]

    def _reference(self, cls: type) -> str:
        return "#/$defs/" + urllib.parse.quote(self._key(cls))

    def _define(self, record: RecordOf) -> None:
        key = self._key(record.cls)
        if key in self.definitions:
            return
        definition = self.definitions[key] = {"type": "object"}  # first, because a class may hold itself
        if text := inspect.cleandoc(vars(record.cls).get("__doc__") or ""):
            definition["description"] = text
        definition["properties"] = {field.wire: self._property(field) for field in record.fields}
        if needed := [field.wire for field in record.fields if field.required]:
            definition["required"] = needed
        definition["additionalProperties"] = False

    def _property(self, field: Field) -> Schema:
        schema = self._schema(field.type)
        default = _default_on_wire(field.default)
        return schema if default is None else {**schema, "default": default}

    def _schema(self, kind: ValueType) -> Schema:
        match kind:
            case Leaf():
                return dict(kind.wire)
            case Choice():
                return {"enum": list(kind.allowed)}
            case ListOf():
                return {"type": "array", "items": self._schema(kind.item)}
            case DictOf():
                return {"type": "object", "additionalProperties": self._schema(kind.item)}
            case Nullable():
                return {"anyOf": [self._schema(kind.item), {"type": "null"}]}
            case RecordOf():
                self._define(kind)
                return {"$ref": self._reference(kind.cls)}
            case _:
                return {}


def _default_on_wire(default: Any) -> object:
    """Return a default in its JSON form, or ``None`` for one that has none."""
    if default is attrs.NOTHING:  # first, because it is a member of an Enum
        return None
    if isinstance(default, cast("Any", attrs.Factory)):
        made: object = typing.get_origin(default.factory) or default.factory
        return [] if made is list else {} if made is dict else None
    if isinstance(default, enum.Enum):
        return default.value
    if isinstance(default, (str, int, float)):
        return default
    if isinstance(default, dt.datetime):
        return math.floor(default.timestamp())
    if isinstance(default, dt.date):
        return default.isoformat()
    if isinstance(default, uuid.UUID):
        return str(default)
    if isinstance(default, decimal.Decimal):
        return int(default) if default == default.to_integral_value() else float(default)
    return None


def unique(name: str, taken: Container[str]) -> str:
    """Return a name that is not taken: the given one, or with a number behind it."""
    candidate, number = name, 1
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    return candidate
