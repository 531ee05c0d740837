"""Checks and writers that are written for the fields of one class, as attrs writes its ``__init__``.

Rules:

1. The source holds names of attributes, which Python has read as such, their ``repr``, and numbers; all else comes in
   by name.
2. A test that says yes is right; after a no the types themselves (:mod:`cio_batch.values`) have the word, and say why.

A loop over the fields would cost an event 40 % more than these, and an event with nested objects 100 %.

Must not know: events, the clock, asyncio, aiohttp.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import attrs

from cio_batch.values import Anything, Choice, DictOf, Field, Leaf, ListOf, Nullable, RecordOf, ValueType

_FLAT: Final = 16


def compile_test(called: str, fields: Iterable[Field]) -> Callable[[Any], bool]:
    """Make a function that says of an instance that all its fields fit, or that it is not sure."""
    source = _Source()
    lines: list[str] = []
    for field in fields:
        if doubt := source.doubt(field.type, "value"):
            lines += [f"    value = self.{field.attribute}", f"    if {doubt}: return False"]
    return source.compile(called, "fits", ["def fits(self):", *lines, "    return True"])


def compile_check(called: str, fields: Iterable[Field], refuse: Callable[[Any], None]) -> Callable[[Any], None]:
    """Make a function that calls ``refuse`` with an instance unless all its fields surely fit."""
    source = _Source()
    source.names["refuse"] = refuse
    lines: list[str] = []
    for field in fields:
        if doubt := source.doubt(field.type, "value"):
            lines += [f"    value = self.{field.attribute}", f"    if {doubt}: return refuse(self)"]
    return source.compile(called, "check", ["def check(self):", *lines, "    return None"])


def compile_write(called: str, fields: Iterable[Field]) -> Callable[[Any], dict[str, Any]]:
    """Make a function that writes an instance: the fields that are set, by their names on the wire, in their order."""
    source = _Source()
    lines = ["    data = {}"]
    for field in fields:
        kind, value = field.type, f"self.{field.attribute}"
        if isinstance(kind, (Nullable, Anything)):
            inner = kind.item if isinstance(kind, Nullable) else kind
            lines.append(f"    if {value} is not None: data[{field.wire!r}] = {source.written(inner, value)}")
        elif lines[-1].startswith("    data = {"):
            lines[-1] = f"{lines[-1][:-1]}{field.wire!r}: {source.written(kind, value)}, }}"
        else:
            lines.append(f"    data[{field.wire!r}] = {source.written(kind, value)}")
    return source.compile(called, "wire_data", ["def wire_data(self):", *lines, "    return data"])


def _is_flat(record: RecordOf) -> bool:
    """Whether its fields are few, simple and never left out: then they are written in place, without a call."""
    return 0 < len(record.fields) <= _FLAT and all(isinstance(field.type, (Leaf, Choice)) for field in record.fields)


@attrs.define
class _Source:
    """Pieces of source, and the names that stand in them."""

    names: dict[str, Any] = attrs.field(factory=dict[str, Any])
    functions: list[str] = attrs.field(factory=list[str])

    def compile(self, called: str, name: str, lines: list[str]) -> Callable[..., Any]:
        text = "\n".join([*self.functions, *lines])
        exec(compile(text, f"<cio_batch {name} of {called}>", "exec"), self.names)
        made: Callable[..., Any] = self.names[name]
        return made

    def name(self, what: str, value: object) -> str:
        name = f"{what}_{len(self.names)}"
        self.names[name] = value
        return name

    def doubt(self, kind: ValueType, value: str) -> str:
        """Write a test that is true unless ``value`` surely fits; ``""`` where all fits."""
        match kind:
            case Anything():
                return ""
            case Nullable():
                inner = self.doubt(kind.item, value)
                return f"{value} is not None and ({inner})" if inner else ""
            case Leaf():
                tests = [f"type({value}) is not {self.name('type', exact)}" for exact in kind.exact]
                return " and ".join([*tests, f"not {self.name('accepts', kind.accepts)}({value})"])
            case Choice() if kind.by_value and all(type(one) is str for one in kind.allowed):
                return f"type({value}) is not str or {value} not in {self.name('allowed', frozenset(kind.allowed))}"
            case ListOf():
                return f"type({value}) is not list or {self.doubt_of_any(kind.item, value, 'one')}"
            case DictOf():
                pairs = self.doubt_of_any(kind.item, f"{value}.items()", "key, one", "type(key) is not str")
                return f"type({value}) is not dict or {pairs}"
            case RecordOf() if _is_flat(kind):
                tests = [self.doubt(field.type, f"{value}.{field.attribute}") for field in kind.fields]
                return " or ".join(
                    [f"type({value}) is not {self.name('type', kind.cls)}", *(f"({test})" for test in tests)]
                )
            case RecordOf() if kind.fits is not None:
                fits = f"{self.name('fits', kind.fits)}({value})"
                return f"type({value}) is not {self.name('type', kind.cls)} or not {fits}"
            case _:
                return f"{self.name('fault', kind.fault)}('', {value}) is not None"

    def doubt_of_any(self, kind: ValueType, values: str, target: str, also: str = "") -> str:
        """Write a call of a function that says whether one of many is doubtful."""
        tests = " or ".join(test if test == also else f"({test})" for test in (also, self.doubt(kind, "one")) if test)
        if not tests:
            return "False"
        name = self.name("any_doubtful", None)
        self.functions += [
            f"def {name}(values):",
            f"    for {target} in values:",
            f"        if {tests}: return True",
            "    return False",
        ]
        return f"{name}({values})"

    def written(self, kind: ValueType, value: str, depth: int = 0) -> str:
        """Write an expression that gives what goes to the encoder. ``value`` is a name."""
        if not kind.writes:
            return value
        one = f"one_{depth}"
        match kind:
            case ListOf():
                return f"[{self.written(kind.item, one, depth + 1)} for {one} in {value}]"
            case DictOf():
                key = f"key_{depth}"
                return f"{{{key}: {self.written(kind.item, one, depth + 1)} for {key}, {one} in {value}.items()}}"
            case Nullable():
                return f"(None if {value} is None else {self.written(kind.item, value, depth)})"
            case RecordOf() if _is_flat(kind):
                pairs = (
                    f"{field.wire!r}: {self.written(field.type, f'{value}.{field.attribute}')}" for field in kind.fields
                )
                return f"{{{', '.join(pairs)}}}"
            case RecordOf() if kind.written is not None:
                return f"{self.name('write', kind.written)}({value})"
            case _:
                return f"{self.name('write', kind.write)}({value})"
