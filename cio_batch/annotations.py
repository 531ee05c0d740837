"""From an annotation to the type that it declares: the reading of a class's fields while the class is being made.

Rules:

1. What cannot be declared is found when the class is made, not when the first event comes: a ``TypeError`` that names
   class and field.
2. Annotations may be text (``from __future__ import annotations``), and may name classes of the function in which the
   class is being made.

Must not know: events, the clock, asyncio, aiohttp.
"""

from __future__ import annotations

import enum
import inspect
import math
import sys
import types
import typing
from collections.abc import Container, Mapping
from typing import Any, Final, Literal, cast

import attrs

from cio_batch.compiled import compile_test, compile_write
from cio_batch.values import (
    LEAVES,
    MAX_ATTRIBUTE_NAME_BYTES,
    Anything,
    Choice,
    DictOf,
    Field,
    ListOf,
    Nullable,
    RecordOf,
    ValueType,
    one_of,
)

_CANNOT: Final = (
    "an event cannot carry {}; use str, int, float, bool, datetime, date, Decimal, UUID, Enum, Literal, list[...], "
    "dict[str, ...], an attrs class, or any of them with None"
)


class NotDeclarableError(Exception):
    """An annotation that cannot be declared. It becomes a ``TypeError`` that names class and field."""


@attrs.define(eq=False)
class Scope:
    """Where the names of annotations are looked up.

    The names of the module of a class come first, then those of the place in which the event class is being made:
    a function, or a namespace that is no module.
    """

    place: Mapping[str, Any]
    records: dict[type, RecordOf] = attrs.field(factory=dict[type, RecordOf])

    def evaluate(self, text: str, owner: type) -> object:
        """Evaluate an annotation that is text, as ``typing.get_type_hints`` does."""
        module = sys.modules.get(owner.__module__)
        try:
            return eval(text, {} if module is None else vars(module))
        except NameError:
            pass
        try:
            return eval(text, {}, self.place)
        except NameError:
            msg = "the name of its type cannot be found when the class is made; import it outside of TYPE_CHECKING"
            raise NotDeclarableError(msg) from None


def definer_namespace() -> Mapping[str, Any]:
    """Return the names that are visible where a class is being made: to be called in its ``__init_subclass__``."""
    frame = inspect.currentframe()
    here = __name__.partition(".")[0] + "."
    while frame is not None and str(frame.f_globals.get("__name__", "")).startswith(here):
        frame = frame.f_back
    return {} if frame is None else {**frame.f_globals, **frame.f_locals}


def read_fields(cls: type, scope: Scope, *, beyond: Container[str] = ()) -> tuple[Field, ...]:
    """Read the fields of an attrs class.

    Args:
        cls: The class.
        scope: Where its names are looked up.
        beyond: Names of attributes that are no fields.

    Raises:
        TypeError: A field cannot be declared; the text names it and the class.
    """
    fields: dict[str, Field] = {}
    for attribute in attrs.fields(cast("Any", cls)):
        name = attribute.name
        if name in beyond:
            continue
        where = f"{cls.__qualname__}.{name}"
        wire = _wire_name(where, name)
        if wire in fields:
            msg = f"{where}: {fields[wire].attribute} has the same name on the wire, which is {wire!r}"
            raise TypeError(msg)
        try:
            kind = read(attribute.type, _owner(cls, name), scope)
        except NotDeclarableError as error:
            msg = f"{where}: {error}"
            raise TypeError(msg) from None
        fields[wire] = Field(wire, name, kind, _default(where, kind, attribute.default))
    return tuple(fields.values())


def _wire_name(where: str, name: str) -> str:
    if name.startswith("_"):
        msg = f"{where}: a field's name must not begin with an underscore"
        raise TypeError(msg)
    wire = name[:-1] if name.endswith("_") else name
    size = len(wire.encode())
    if size > MAX_ATTRIBUTE_NAME_BYTES:
        msg = f"{where}: its name is {size} bytes, at most {MAX_ATTRIBUTE_NAME_BYTES} are allowed"
        raise TypeError(msg)
    return wire


def _default(where: str, kind: ValueType, default: Any) -> Any:
    if default is attrs.NOTHING or isinstance(default, cast("Any", attrs.Factory)):
        return default
    if isinstance(default, (list, dict)):
        msg = f"{where}: all events would share this default; use attrs.field(factory=...)"
        raise TypeError(msg)
    fault = kind.fault("", default)
    if fault is not None:
        msg = f"{where}: the default must be {fault.expected}, got {fault.got}"
        if default is None:
            msg = f"{msg}; declare it `{kind.expected} | None` if it may be left out"
        raise TypeError(msg)
    if isinstance(default, float) and not math.isfinite(default):
        msg = f"{where}: the default is NaN or infinite, which JSON cannot say"
        raise TypeError(msg)
    return default


def _owner(cls: type, name: str) -> type:
    """Find the class that declares a field: its annotation means what it means in that class's module."""
    for base in cls.__mro__:
        for attribute in vars(base).get("__attrs_attrs__", ()):
            if attribute.name == name and not attribute.inherited:
                return base
    return cls


def read(annotation: Any, owner: type, scope: Scope) -> ValueType:
    """Turn an annotation into the type that it declares.

    Raises:
        NotDeclarableError: It declares nothing that an event can carry.
    """
    if isinstance(annotation, typing.ForwardRef):
        annotation = annotation.__forward_arg__
    if isinstance(annotation, str):
        return read(scope.evaluate(annotation, owner), owner, scope)
    if annotation in (Any, object):
        return Anything()
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return read(arguments[0], owner, scope)
    if origin is Literal:
        return _read_literal(arguments)
    if origin in (typing.Union, types.UnionType):
        return _read_union(arguments, owner, scope)
    if annotation is list or annotation is dict:
        return (ListOf if annotation is list else DictOf)(Anything())
    if origin is list:
        return ListOf(read(arguments[0], owner, scope))
    if origin is dict:
        if arguments[0] not in (str, "str"):
            msg = _CANNOT.format("a dict whose keys are not str")
            raise NotDeclarableError(msg)
        return DictOf(read(arguments[1], owner, scope))
    for alias in ("__supertype__", "__value__"):  # a NewType; `type X = ...`
        if hasattr(annotation, alias) and not isinstance(annotation, type):
            return read(getattr(annotation, alias), owner, scope)
    if isinstance(annotation, type):
        return _read_class(annotation, scope)
    raise NotDeclarableError(_CANNOT.format(_described(annotation)))


def _described(annotation: object) -> str:
    if isinstance(annotation, type):
        return annotation.__name__
    return str(annotation).removeprefix("typing.")


def _read_class(annotation: type[Any], scope: Scope) -> ValueType:
    if annotation in LEAVES:
        return LEAVES[annotation]
    if issubclass(annotation, enum.Enum):
        return _read_enum(annotation)
    if attrs.has(annotation):
        if annotation not in scope.records:
            record = scope.records[annotation] = RecordOf(annotation)
            private = {one.name for one in attrs.fields(cast("Any", annotation)) if one.name.startswith("_")}
            record.fields = read_fields(annotation, scope, beyond=private)  # private ones are its own affair
            record.fits = compile_test(annotation.__qualname__, record.fields)
            record.written = compile_write(annotation.__qualname__, record.fields)
        return scope.records[annotation]
    raise NotDeclarableError(_CANNOT.format(_described(annotation)))


def _read_union(arguments: tuple[Any, ...], owner: type, scope: Scope) -> ValueType:
    others = [one for one in arguments if one is not type(None)]
    if len(others) != 1 or len(others) == len(arguments):
        msg = _CANNOT.format("a choice between two types")
        raise NotDeclarableError(msg)
    kind = read(others[0], owner, scope)
    return kind if isinstance(kind, (Nullable, Anything)) else Nullable(kind)


def _read_literal(arguments: tuple[Any, ...]) -> ValueType:
    values = [one for one in arguments if one is not None]
    members = frozenset(one for one in values if isinstance(one, enum.Enum))
    if members and len(members) < len(values):
        msg = _CANNOT.format("a Literal of values and of members of an Enum")
        raise NotDeclarableError(msg)
    allowed = tuple(one.value if isinstance(one, enum.Enum) else one for one in values)
    if not allowed or not all(isinstance(one, (str, int)) for one in allowed):
        msg = _CANNOT.format("a Literal of anything but text, whole numbers and bool")
        raise NotDeclarableError(msg)
    expected = " or ".join(map(str, sorted(members, key=str))) if members else one_of(allowed)
    choice = Choice(expected, allowed, members, by_value=not members)
    return Nullable(choice) if len(values) < len(arguments) else choice


def _read_enum(cls: type[enum.Enum]) -> ValueType:
    allowed: tuple[Any, ...] = tuple(member.value for member in cls)
    if not allowed or not all(isinstance(one, (str, int)) for one in allowed):
        msg = _CANNOT.format(f"{cls.__name__}, an Enum whose values are not text or whole numbers")
        raise NotDeclarableError(msg)
    return Choice(cls.__name__, allowed, frozenset(cls), by_value=False)
