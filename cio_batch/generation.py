"""Python source of typed events from JSON Schema: the way back from :meth:`cio_batch.taxonomy.Taxonomy.json_schema`.

Rules:

1. The source of ``generate_source(taxonomy.json_schema())`` is that of a taxonomy with the same schema.
2. The source holds names that are identifiers, and texts and numbers that ``repr`` wrote: no part of a schema becomes
   code. What cannot be written so is refused.
3. What a schema says of values is written, or the schema is refused; nothing is forgotten.

Must not know: the clock, asyncio, aiohttp, files.

Source: JSON Schema, draft 2020-12.
"""

from __future__ import annotations

import keyword
import math
import re
import unicodedata
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NoReturn, cast

import attrs

from cio_batch.errors import EventSchemaError
from cio_batch.events import Declared, check_name
from cio_batch.taxonomy import unique
from cio_batch.values import MAX_ATTRIBUTE_NAME_BYTES, nearest, shown, type_name

_IMPORTS: Final = {
    "dt": "import datetime as dt",
    "Decimal": "from decimal import Decimal",
    "UUID": "from uuid import UUID",
    "attrs": "import attrs",
}
_TYPING: Final = ("Any", "Literal", "TypeAlias")
_RESERVED: Final = frozenset({"str", "int", "float", "bool", "list", "dict", "CioEvent", *_IMPORTS, *_TYPING})
"""Names that the source needs for itself."""

_ANNOTATIONS: Final = frozenset({"title", "description", "default", "examples", "deprecated", "$comment", "$anchor"})
"""Keywords that say nothing of which values fit."""

_SCALARS: Final[Mapping[tuple[str, object], str]] = {
    ("string", None): "str",
    ("string", "date"): "dt.date",
    ("string", "uuid"): "UUID",
    ("integer", None): "int",
    ("integer", "unix-seconds"): "dt.datetime",
    ("number", None): "float",
    ("number", "decimal"): "Decimal",
    ("boolean", None): "bool",
}


def generate_source(schema: Mapping[str, Any]) -> str:
    """Write Python source of typed events from their JSON Schema, such as :meth:`Taxonomy.json_schema` returns.

    Understood are ``oneOf`` objects with ``name`` (a ``const``) and ``data``; in these the types of
    :mod:`cio_batch.values`. A keyword that restricts values in another way (``minimum``, ``pattern``) cannot be said by
    a Python type and is refused, rather than forgotten.

    Args:
        schema: The schema, as parsed JSON.

    Returns:
        The source of a module: nested classes, events, and the union ``AppEvent``.

    Raises:
        EventSchemaError: It is no such schema, or has a name that is no name in Python; ``field`` says where.
    """
    try:
        return _SourceWriter(schema).write()
    except RecursionError:
        _refuse("#", "a schema", "one that is nested too deeply")


def _refuse(where: str, expected: str, got: str) -> NoReturn:
    raise EventSchemaError("", where, expected, got) from None


@attrs.define
class _Class:
    """A class to be written."""

    name: str
    where: str
    schema: Mapping[str, Any]
    event: str | None  # its name on the wire; None of a nested class


@attrs.define
class _SourceWriter:
    schema: Mapping[str, Any]
    classes: list[_Class] = attrs.field(factory=list[_Class])
    by_key: dict[str, str] = attrs.field(factory=dict[str, str])  # of the definitions that are classes by now
    used: set[str] = attrs.field(factory=set[str])

    def write(self) -> str:
        choices = _list(_mapping(self.schema, "#").get("oneOf"), "#/oneOf")
        seen: set[str] = set()
        for index, choice in enumerate(choices):
            event = self._add_event(_mapping(choice, f"#/oneOf/{index}"), f"#/oneOf/{index}")
            if event in seen:
                _refuse(f"#/oneOf/{index}", "another name in each event", "one that came before")
            seen.add(event)
        if not seen:
            _refuse("#/oneOf", "at least one event", "none")
        events = list(self.classes)
        bodies = {one.name: self._fields(one) for one in events}
        for one in self._rest(len(events)):  # it grows while the fields of nested classes are read
            bodies[one.name] = self._fields(one)
        nested = self.classes[len(events) :]
        blocks = [self._block(one, bodies[one.name]) for one in (*nested, *events)]
        union = unique("AppEvent", {one.name for one in self.classes})
        self.used.add("TypeAlias")
        members = " | ".join(one.name for one in events)
        alias = f"{union}: TypeAlias = {members}"
        if len(alias) > 120:
            alias = f"{union}: TypeAlias = (\n    " + "\n    | ".join(one.name for one in events) + "\n)"
        return "\n\n\n".join([self._head(), *blocks, alias]) + "\n"

    def _rest(self, start: int) -> Iterator[_Class]:
        while start < len(self.classes):
            yield self.classes[start]
            start += 1

    def _head(self) -> str:
        plain = sorted(_IMPORTS[name] for name in self.used & {"dt"})
        names = ", ".join(name for name in _TYPING if name in self.used)
        plain += sorted(_IMPORTS[name] for name in self.used & {"Decimal", "UUID"})
        plain.append(f"from typing import {names}")
        plain.sort(key=lambda line: (line.startswith("from"), line))
        foreign = [_IMPORTS["attrs"], ""] if "attrs" in self.used else []
        head = ['"""Typed events, made from a JSON Schema."""', "", "from __future__ import annotations", ""]
        return "\n".join([*head, *plain, "", *foreign, "from cio_batch import CioEvent"])

    # -------------------------------------------------------------------------------------------------- classes

    def _add_event(self, choice: Mapping[str, Any], where: str) -> str:
        properties = _mapping(choice.get("properties"), f"{where}/properties")
        name = _mapping(properties.get("name"), f"{where}/properties/name").get("const")
        try:
            check_name("name", name)
        except TypeError as error:
            _refuse(f"{where}/properties/name/const", "the name of an event", f"one that cannot be: {error}")
        event = cast("str", name)
        data = _mapping(properties.get("data", {"type": "object"}), f"{where}/properties/data")
        where = f"{where}/properties/data"
        key = None
        if "$ref" in data:
            key, where, data = self._resolve(data, where)
        title = key if key is not None and key not in self.by_key else _camel_case(event)
        one = self._add_class(title, where, data, event)
        if key is not None:
            self.by_key.setdefault(key, one.name)
        return event

    def _add_class(self, title: str, where: str, schema: Mapping[str, Any], event: str | None) -> _Class:
        name = title if _is_class_name(title) else _camel_case(title)
        one = _Class(unique(name, _RESERVED | {other.name for other in self.classes}), where, schema, event)
        self.classes.append(one)
        return one

    def _resolve(self, schema: Mapping[str, Any], where: str) -> tuple[str, str, Mapping[str, Any]]:
        """Follow a ``$ref``: the key, and where and what the definition is."""
        _known_keywords(schema, {"$ref"}, where)
        reference: object = schema["$ref"]
        found = re.fullmatch(r"#/\$defs/([^/]+)", reference) if isinstance(reference, str) else None
        if found is None:
            _refuse(f"{where}/$ref", "a reference to one of #/$defs", "another one")
        key = urllib.parse.unquote(found[1]).replace("~1", "/").replace("~0", "~")
        definitions = _mapping(self.schema.get("$defs"), "#/$defs")
        if key not in definitions:
            _refuse(f"{where}/$ref", f"one of #/$defs{nearest(key, definitions)}", "a name that is not there")
        place = f"#/$defs/{shown(key)}"
        return key, place, _mapping(definitions[key], place)

    def _block(self, one: _Class, fields: Mapping[str, tuple[str, str]]) -> str:
        """Write a class; only now are all names known that a field must not hide."""
        hidden = _RESERVED | {other.name for other in self.classes} | set(dir(Declared)) | {"event_name"}
        description: object = one.schema.get("description")
        lines: list[str] = []
        if isinstance(description, str) and description:
            if any("\ud800" <= letter <= "\udfff" for letter in description):
                _refuse(f"{one.where}/description", "valid text", "a lone surrogate")
            lines.append(f"    {_docstring(description)}")
        if lines and fields:
            lines.append("")
        for wire, (annotation, default) in fields.items():
            name = f"{wire}_" if wire in hidden or wire.endswith("_") or keyword.iskeyword(wire) else wire
            lines.append(f"    {name}: {annotation}{f' = {default}' if default else ''}")
        head = f"class {one.name}(CioEvent, name={_text(one.event)}):"
        if one.event is None:
            self.used.add("attrs")
            head = f"@attrs.frozen(kw_only=True)\nclass {one.name}:"
        return "\n".join([head, *(lines or ["    pass"])])

    def _fields(self, one: _Class) -> dict[str, tuple[str, str]]:
        """Annotation and default of each property, by its name on the wire."""
        where, schema = one.where, one.schema
        _known_keywords(schema, {"type", "properties", "required", "additionalProperties"}, where)
        if schema.get("type") != "object" or schema.get("additionalProperties", False) is not False:
            _refuse(where, "an object whose properties are all declared", "another type")
        properties = _mapping(schema.get("properties", {}), f"{where}/properties")
        required = _list(schema.get("required", []), f"{where}/required")
        for name in required:
            if name not in properties:
                _refuse(f"{where}/required", "names of properties", "another one")
        fields: dict[str, tuple[str, str]] = {}
        for wire, entry in properties.items():
            place = f"{where}/properties/{shown(wire)}"
            if not _is_field_name(wire):
                _refuse(place, "a name that a field can have in Python", "another one")
            declared = _schema_of(entry, place)
            annotation = self._annotation(declared, place, _camel_case(f"{one.name} {wire}"))
            default = ""
            if declared.get("default") is not None:
                default = self._default(declared["default"], annotation, f"{place}/default")
            elif wire not in required:
                default = "None"
                if annotation != "Any" and not annotation.endswith(" | None"):
                    annotation = f"{annotation} | None"
            fields[wire] = annotation, default
        return fields

    # ----------------------------------------------------------------------------------------------------- types

    def _annotation(self, schema: Mapping[str, Any], where: str, title: str) -> str:
        if "$ref" in schema:
            key, where, definition = self._resolve(schema, where)
            if definition.get("type") != "object":
                return self._annotation(definition, where, title)
            if key not in self.by_key:
                self.by_key[key] = self._add_class(key, where, definition, None).name
            return self.by_key[key]
        if "enum" in schema or "const" in schema:
            return self._literal(schema, where)
        if "anyOf" in schema:
            return self._nullable(schema, where, title)
        if isinstance(schema.get("type"), list):
            return self._nullable_by_type(schema, where, title)
        match schema.get("type"):
            case None:
                _known_keywords(schema, set(), where)
                return self._use("Any")
            case "array":
                _known_keywords(schema, {"type", "items"}, where)
                return f"list[{self._item(schema.get('items', {}), f'{where}/items', title)}]"
            case "object" if "properties" in schema or schema.get("additionalProperties") is False:
                return self._add_class(title, where, schema, None).name
            case "object":
                _known_keywords(schema, {"type", "additionalProperties"}, where)
                place = f"{where}/additionalProperties"
                return f"dict[str, {self._item(schema.get('additionalProperties', {}), place, title)}]"
            case kind:
                return self._scalar(kind, schema, where)

    def _item(self, schema: object, where: str, title: str) -> str:
        return self._annotation(_schema_of(schema, where), where, title)

    def _scalar(self, kind: object, schema: Mapping[str, Any], where: str) -> str:
        _known_keywords(schema, {"type", "format"}, where)
        form: object = schema.get("format")
        if not isinstance(kind, str) or (kind, None) not in _SCALARS:
            _refuse(f"{where}/type", "a type of JSON Schema", "another one")
        known = form if isinstance(form, str) and (kind, form) in _SCALARS else None  # a format is a hint
        written = _SCALARS[kind, known]
        self._use(written.partition(".")[0])
        return written

    def _literal(self, schema: Mapping[str, Any], where: str) -> str:
        _known_keywords(schema, {"type", "enum", "const"}, where)
        values = [schema["const"]] if "const" in schema else _list(schema["enum"], f"{where}/enum")
        texts = [_text(one) if isinstance(one, str) else repr(one) for one in values if isinstance(one, (str, int))]
        nulls = sum(one is None for one in values)
        if not texts or len(texts) + nulls < len(values):
            _refuse(where, "text, whole numbers, true, false or null", "other values, or none")
        self._use("Literal")
        return f"Literal[{', '.join(texts)}]{' | None' if nulls else ''}"

    def _nullable(self, schema: Mapping[str, Any], where: str, title: str) -> str:
        _known_keywords(schema, {"anyOf"}, where)
        options = [_mapping(one, f"{where}/anyOf") for one in _list(schema["anyOf"], f"{where}/anyOf")]
        others = [one for one in options if one.get("type") != "null"]
        if len(others) != 1:
            _refuse(f"{where}/anyOf", "a type and null", "another choice")
        inner = self._annotation(others[0], f"{where}/anyOf", title)
        bare = len(options) == 1 or inner == "Any" or inner.endswith(" | None")
        return inner if bare else f"{inner} | None"

    def _nullable_by_type(self, schema: Mapping[str, Any], where: str, title: str) -> str:
        kinds = cast("list[object]", schema["type"])
        others = [kind for kind in kinds if kind != "null"]
        if len(others) != 1:
            _refuse(f"{where}/type", "a type and null", "another choice")
        inner = self._annotation({**schema, "type": others[0]}, where, title)
        return inner if len(kinds) == 1 else f"{inner} | None"

    def _use(self, name: str) -> str:
        self.used.add(name)
        return name

    def _default(self, default: object, annotation: str, where: str) -> str:
        """Write a default; the class that is made by the source checks that it fits."""
        kind = annotation.removesuffix(" | None")
        match kind, default:
            case _, []:
                self._use("attrs")
                return "attrs.field(factory=list)"
            case _, {} if not default:
                self._use("attrs")
                return "attrs.field(factory=dict)"
            case "dt.date", str():
                return f"dt.date.fromisoformat({_text(default)})"
            case "dt.datetime", int():
                return f"dt.datetime.fromtimestamp({default!r}, dt.UTC)"
            case "UUID", str():
                return f"UUID({_text(default)})"
            case "Decimal", int() | float():
                return f"Decimal({_text(repr(default))})"
            case _, str():
                return _text(default)
            case _, int() | float() if math.isfinite(default):
                return repr(default)
            case _:
                _refuse(where, "text, a number, true, false, null, [] or {}", "another value")


def _text(text: str | None) -> str:
    """Write text as Python source: what ``repr`` wrote, with the quotes of the house where that is as safe."""
    written = repr(text)
    if written.startswith("'") and '"' not in written:  # then neither kind of quote stands in the text
        return f'"{written[1:-1]}"'
    return written


def _docstring(text: str) -> str:
    written = _text(text)
    return f'""{written}""' if written.startswith('"') else written


def _is_name(name: str) -> bool:
    """Whether Python reads it as this very name."""
    return name.isidentifier() and not name.startswith("_") and unicodedata.normalize("NFKC", name) == name


def _is_field_name(name: object) -> bool:
    return isinstance(name, str) and _is_name(name) and len(name.encode()) <= MAX_ATTRIBUTE_NAME_BYTES


def _is_class_name(name: str) -> bool:
    return _is_name(name) and not keyword.iskeyword(name)


def _camel_case(text: str) -> str:
    """``"plan_changed"`` → ``"PlanChanged"``, and a class's name of anything else."""
    name = "".join(word[0].upper() + word[1:] for word in re.findall(r"[A-Za-z0-9]+", text))
    return name if _is_class_name(name) else f"Event{name}"


def _mapping(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        _refuse(where, "an object", type_name(value))
    return cast("Mapping[str, Any]", value)


def _schema_of(value: object, where: str) -> Mapping[str, Any]:
    return {} if value is True else _mapping(value, where)


def _list(value: object, where: str) -> list[Any]:
    if not isinstance(value, list):
        _refuse(where, "an array", type_name(value))
    return list(cast("Sequence[Any]", value))


def _known_keywords(schema: Mapping[str, Any], known: set[str], where: str) -> None:
    for word in schema:
        if word not in known and word not in _ANNOTATIONS:
            _refuse(where, "types alone", f"the keyword {shown(word)!r}")
