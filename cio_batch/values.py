"""The types that a declared field may have: what fits, how it stands on the wire, and what is wrong with the rest.

========================  ==================================  ===============================================
declared                  fits                                on the wire
========================  ==================================  ===============================================
``str``, ``bool``         the same                            the same
``int``                   the same; no ``bool``               the same
``float``                 ``float`` or ``int``; no ``bool``   a number
``datetime``              an aware one                        unix seconds, an integer
``date``                  one that is no ``datetime``         ``"2024-12-31"``
``Decimal``, ``UUID``     the same                            a number, text
``Enum``                  a member                            its value: text or a whole number
``Literal``               one of its values                   the value
``list[X]``               a list of what fits                 an array
``dict[str, X]``          a dict with text for keys           an object
an attrs class            an instance whose fields fit        an object, by the rules for fields of an event
``X | None``              what fits, or ``None``              a field that is ``None`` stays off the wire
``Any``, ``object``       anything; the encoder decides       as the encoder says
========================  ==================================  ===============================================

Rules:

1. A :class:`Fault` says where, what was expected and of which type the value was; never the value.
2. What fits ``type.plain()`` is what fits the type, or already has the form in which the type stands on the wire: so
   are events checked that were said as a plain dict.

Must not know: events, the clock, asyncio, aiohttp.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import difflib
import enum
import re
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeAlias, cast

import attrs

MAX_ATTRIBUTE_NAME_BYTES: Final = 150
_MAX_SHOWN: Final = 50  # characters of a name that a text repeats: beyond that it is rather content


@attrs.frozen
class Fault:
    """Why a value does not fit.

    Attributes:
        path: Where: ``"items[2].price"``; ``""`` for the value itself.
        expected: What fits there.
        got: The type of what was there, or ``"nothing"``.
    """

    path: str
    expected: str
    got: str


def type_name(value: object) -> str:
    """Name the type of a value, as a text about it may."""
    return "None" if value is None else type(value).__name__


def shown(name: str) -> str:
    """Return a name in a form that fits into a line of text."""
    if len(name) > _MAX_SHOWN:
        return "<long name>"
    return name if name.isprintable() else ascii(name)[1:-1]


def nearest(name: object, names: Iterable[str]) -> str:
    """Name the known name that an unknown one was meant to be, if one is near."""
    close = difflib.get_close_matches(name, list(names), 1) if isinstance(name, str) else []
    return f" (did you mean {close[0]!r}?)" if close else ""


def one_of(allowed: Iterable[str | int]) -> str:
    """Name the values of which one is expected; they are declared, not content."""
    allowed = list(allowed)
    return f"{'one of ' if len(allowed) > 1 else ''}{', '.join(map(repr, allowed))}"


def join(path: str, name: str) -> str:
    """Go one step down from ``path``."""
    return f"{path}.{name}" if path else name


# ------------------------------------------------------------------------------------------------------ the types


@attrs.frozen(eq=False)
class Leaf:
    """A type without parts.

    Attributes:
        expected: What fits, in words.
        exact: Types whose very instances fit without a closer look.
        accepts: Whether any other value fits.
        wire: How it stands on the wire, in JSON Schema.
        on_wire: Whether a value has that form already; ``accepts`` says so where this is ``None``.
        name_got: Names what does not fit.
    """

    expected: str
    exact: tuple[type, ...]
    accepts: Callable[[object], bool]
    wire: Mapping[str, Any]
    on_wire: Callable[[object], bool] | None = None
    name_got: Callable[[object], str] = type_name

    writes = False  # its values go to the encoder as they are

    def fault(self, path: str, value: object) -> Fault | None:
        """Say what is wrong with a value, if anything is."""
        return None if self.accepts(value) else Fault(path, self.expected, self.name_got(value))

    def write(self, value: Any) -> Any:
        """Return what goes to the encoder."""
        return value

    def plain(self) -> Leaf:
        """Return the type that fits the wire's form, too."""
        on_wire = self.on_wire
        if on_wire is None:
            return self
        accepts = self.accepts

        def either(value: object) -> bool:
            return accepts(value) or on_wire(value)

        form = "/".join(str(self.wire[key]) for key in ("type", "format") if key in self.wire)
        return attrs.evolve(
            self,
            expected=f"{self.expected} or its JSON form ({form})",
            accepts=either,
        )


@attrs.frozen(eq=False)
class Choice:
    """One of a few values: a ``Literal``, or the members of an ``Enum``.

    Attributes:
        expected: What fits, in words.
        allowed: The values as they stand on the wire, in their order.
        members: The members that stand for them, where they come from an ``Enum`` or a ``Literal`` of members.
    """

    expected: str
    allowed: tuple[str | int, ...]
    members: frozenset[enum.Enum] = frozenset()
    by_value: bool = True

    writes = False
    exact: tuple[type, ...] = attrs.field(default=(), init=False)

    def fault(self, path: str, value: object) -> Fault | None:
        """Say what is wrong with a value, if anything is."""
        if isinstance(value, enum.Enum) and value in self.members:
            return None
        if self.by_value and isinstance(value, (str, int)):
            for one in self.allowed:  # True equals 1, and so does 1.0
                if one == value and isinstance(one, bool) is isinstance(value, bool):
                    return None
        return Fault(path, self.expected, type_name(value))

    def write(self, value: Any) -> Any:
        """Return what goes to the encoder."""
        return value

    def plain(self) -> Choice:
        """Return the type that fits the wire's form, too."""
        return self if self.by_value else attrs.evolve(self, expected=one_of(self.allowed), by_value=True)


@attrs.frozen(eq=False)
class Anything:
    """What the encoder takes fits."""

    expected = "anything"
    exact: tuple[type, ...] = attrs.field(default=(), init=False)
    writes = False

    def fault(self, _path: str, _value: object) -> Fault | None:
        """Find nothing wrong."""
        return None

    def write(self, value: Any) -> Any:
        """Return what goes to the encoder."""
        return value

    def plain(self) -> Anything:
        """Return itself."""
        return self


@attrs.frozen(eq=False)
class ListOf:
    """A list."""

    item: ValueType

    exact: tuple[type, ...] = attrs.field(default=(), init=False)

    @property
    def expected(self) -> str:
        """What fits, in words."""
        return f"list of {self.item.expected}"

    @property
    def writes(self) -> bool:
        """Whether its values change on their way to the encoder."""
        return self.item.writes

    def fault(self, path: str, value: object) -> Fault | None:
        """Say what is wrong with a value, if anything is."""
        if not isinstance(value, list):
            return Fault(path, self.expected, type_name(value))
        item, exact = self.item, self.item.exact
        for index, one in enumerate(cast("list[object]", value)):
            if type(one) not in exact and (fault := item.fault(f"{path}[{index}]", one)) is not None:
                return fault
        return None

    def write(self, value: Any) -> Any:
        """Return what goes to the encoder."""
        write = self.item.write
        return [write(one) for one in value] if self.writes else value

    def plain(self) -> ValueType:
        """Return the type that fits the wire's form, too."""
        return PlainListOf(self.item.plain())


@attrs.frozen(eq=False)
class PlainListOf(ListOf):
    """A list or a tuple: both are arrays on the wire."""

    def fault(self, path: str, value: object) -> Fault | None:
        """Say what is wrong with a value, if anything is."""
        return ListOf.fault(self, path, list(cast("tuple[object]", value)) if isinstance(value, tuple) else value)


@attrs.frozen(eq=False)
class DictOf:
    """A dict whose keys are text."""

    item: ValueType

    exact: tuple[type, ...] = attrs.field(default=(), init=False)

    @property
    def expected(self) -> str:
        """What fits, in words."""
        return f"dict of str to {self.item.expected}"

    @property
    def writes(self) -> bool:
        """Whether its values change on their way to the encoder."""
        return self.item.writes

    def fault(self, path: str, value: object) -> Fault | None:
        """Say what is wrong with a value, if anything is."""
        if not isinstance(value, dict):
            return Fault(path, self.expected, type_name(value))
        for key, one in cast("dict[object, object]", value).items():
            if type(key) is not str:  # the encoder takes no subclass either
                return Fault(f"{path} (a key)", "str", type_name(key))
            if (fault := self.item.fault(join(path, shown(key)), one)) is not None:
                return fault
        return None

    def write(self, value: Any) -> Any:
        """Return what goes to the encoder."""
        write = self.item.write
        return {key: write(one) for key, one in value.items()} if self.writes else value

    def plain(self) -> ValueType:
        """Return the type that fits the wire's form, too."""
        return PlainDictOf(self.item.plain())


@attrs.frozen(eq=False)
class PlainDictOf(DictOf):
    """Any mapping whose keys are text."""

    def fault(self, path: str, value: object) -> Fault | None:
        """Say what is wrong with a value, if anything is."""
        return DictOf.fault(self, path, dict(cast("Any", value)) if isinstance(value, Mapping) else value)


@attrs.frozen(eq=False)
class Nullable:
    """What fits, or ``None``."""

    item: ValueType

    @property
    def exact(self) -> tuple[type, ...]:
        """Types whose very instances fit without a closer look."""
        return (*self.item.exact, type(None))

    @property
    def expected(self) -> str:
        """What fits, in words."""
        return f"{self.item.expected} or None"

    @property
    def writes(self) -> bool:
        """Whether its values change on their way to the encoder."""
        return self.item.writes

    def fault(self, path: str, value: object) -> Fault | None:
        """Say what is wrong with a value, if anything is."""
        if value is None:
            return None
        fault = self.item.fault(path, value)
        if fault is not None and fault.expected == self.item.expected:
            return attrs.evolve(fault, expected=self.expected)
        return fault

    def write(self, value: Any) -> Any:
        """Return what goes to the encoder."""
        return None if value is None else self.item.write(value)

    def plain(self) -> Nullable:
        """Return the type that fits the wire's form, too."""
        return Nullable(self.item.plain())


@attrs.frozen(eq=False)
class Field:
    """A field of an event, of attributes, or of a nested class.

    Attributes:
        wire: Its name on the wire.
        attribute: Its name in Python; one trailing underscore more where the wire's name is a keyword.
        type: What fits.
        default: What it is when it is not given: :data:`attrs.NOTHING` if it must be given, an ``attrs.Factory``, or
            a value.
    """

    wire: str
    attribute: str
    type: ValueType
    default: Any = attrs.NOTHING

    @property
    def required(self) -> bool:
        """Whether it stands on the wire in any case."""
        return self.default is attrs.NOTHING and not isinstance(self.type, (Nullable, Anything))


@attrs.define(eq=False)
class RecordOf:
    """An instance of an attrs class; its fields are filled in once they are read, because a class may hold itself."""

    cls: type
    fields: tuple[Field, ...] = ()
    fits: Callable[[Any], bool] | None = None
    """A quick test of an instance, once it is written; see :mod:`cio_batch.compiled`."""
    written: Callable[[Any], dict[str, Any]] | None = None
    """A quick ``write``, likewise."""
    _plain: PlainRecord | None = attrs.field(default=None, init=False)

    writes = True
    exact: tuple[type, ...] = attrs.field(default=(), init=False)

    @property
    def expected(self) -> str:
        """What fits, in words."""
        return self.cls.__name__

    def fault(self, path: str, value: object) -> Fault | None:
        """Say what is wrong with a value, if anything is."""
        if not isinstance(value, self.cls):
            return Fault(path, self.expected, type_name(value))
        for field in self.fields:
            fault = field.type.fault(join(path, field.wire), getattr(value, field.attribute))
            if fault is not None:
                return fault
        return None

    def write(self, value: Any) -> Any:
        """Return what goes to the encoder."""
        written: dict[str, Any] = {}
        for field in self.fields:
            one = getattr(value, field.attribute)
            if one is not None:
                written[field.wire] = field.type.write(one)
        return written

    def plain(self) -> PlainRecord:
        """Return the type that fits the wire's form, too; always the same, because a class may hold itself."""
        if self._plain is None:
            self._plain = PlainRecord(self)
        return self._plain


@attrs.define(eq=False)
class PlainRecord:
    """The same as a mapping, a dataclass or an attrs object with the names that stand on the wire."""

    record: RecordOf
    _types: dict[str, tuple[Field, ValueType]] | None = attrs.field(default=None, init=False)

    writes = False
    exact: tuple[type, ...] = attrs.field(default=(), init=False)

    @property
    def expected(self) -> str:
        """What fits, in words."""
        return f"{self.record.expected} or a dict of its fields"

    def _known(self) -> dict[str, tuple[Field, ValueType]]:
        if self._types is None:
            self._types = {field.wire: (field, field.type.plain()) for field in self.record.fields}
        return self._types

    def fault(self, path: str, value: object) -> Fault | None:
        """Say what is wrong with a value, if anything is."""
        if isinstance(value, self.record.cls):
            return self.record.fault(path, value)
        data = _as_mapping(value)
        if data is None:
            return Fault(path, self.expected, type_name(value))
        known = self._known()
        for key, one in data.items():
            if type(key) is not str:
                return Fault(f"{path} (a key)".lstrip(), "str", type_name(key))
            if key not in known:
                fields = f"one of {', '.join(known)}" if known else "no fields"
                return Fault(join(path, shown(key)), f"{fields}{nearest(key, known)}", "an undeclared field")
            kind = known[key][1]
            if type(one) not in kind.exact and (fault := kind.fault(join(path, key), one)) is not None:
                return fault
        if len(data) < len(known):
            for name, (field, kind) in known.items():
                if field.required and name not in data:
                    return Fault(join(path, name), kind.expected, "nothing")
        return None

    def write(self, value: Any) -> Any:
        """Return what goes to the encoder."""
        return value

    def plain(self) -> PlainRecord:
        """Return itself."""
        return self


ValueType: TypeAlias = Leaf | Choice | Anything | ListOf | DictOf | Nullable | RecordOf | PlainRecord
"""How a declared field is checked and written."""


def _as_mapping(value: object) -> Mapping[Any, object] | None:
    """Return what the encoder would make an object of, by its names there."""
    if isinstance(value, Mapping):
        return cast("Mapping[Any, object]", value)
    kind = cast("Any", type(value))
    if attrs.has(kind):
        names = [attribute.name for attribute in attrs.fields(kind)]
    elif dataclasses.is_dataclass(kind):
        names = [field.name for field in dataclasses.fields(kind)]
    else:
        return None
    return {name: getattr(value, name) for name in names if not name.startswith("_")}


# ------------------------------------------------------------------------------------------------------ the leaves


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_aware(value: object) -> bool:
    return isinstance(value, dt.datetime) and value.utcoffset() is not None


def _is_date_text(value: object) -> bool:
    if not isinstance(value, str) or re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", value) is None:
        return False
    try:
        dt.date.fromisoformat(value)
    except ValueError:
        return False
    return True


def _is_uuid_text(value: object) -> bool:
    digits = r"[0-9a-fA-F]"
    return isinstance(value, str) and (
        re.fullmatch(rf"{digits}{{8}}-{digits}{{4}}-{digits}{{4}}-{digits}{{4}}-{digits}{{12}}", value) is not None
    )


def _name_time(value: object) -> str:
    return "naive datetime" if isinstance(value, dt.datetime) else type_name(value)


LEAVES: Final[Mapping[Any, Leaf]] = {
    str: Leaf("str", (str,), lambda value: isinstance(value, str), {"type": "string"}),
    int: Leaf("int", (int,), _is_int, {"type": "integer"}),
    float: Leaf("float", (float, int), _is_number, {"type": "number"}),
    bool: Leaf("bool", (bool,), lambda value: isinstance(value, bool), {"type": "boolean"}),
    dt.datetime: Leaf(
        "datetime with a time zone",
        (),
        _is_aware,
        {"type": "integer", "format": "unix-seconds"},
        on_wire=_is_int,
        name_got=_name_time,
    ),
    dt.date: Leaf(
        "date",
        (dt.date,),
        lambda value: isinstance(value, dt.date) and not isinstance(value, dt.datetime),
        {"type": "string", "format": "date"},
        on_wire=_is_date_text,
    ),
    decimal.Decimal: Leaf(
        "Decimal",
        (decimal.Decimal,),
        lambda value: isinstance(value, decimal.Decimal),
        {"type": "number", "format": "decimal"},
        on_wire=_is_number,
    ),
    uuid.UUID: Leaf(
        "UUID",
        (uuid.UUID,),
        lambda value: isinstance(value, uuid.UUID),
        {"type": "string", "format": "uuid"},
        on_wire=_is_uuid_text,
    ),
}
"""The types without parts, by the class that declares them."""
