"""One line of NDJSON → one operation, or what is wrong with the line.

A line is an object with ``user_id`` and ``type``, and by type:

===================================  ==================================================
``identify``                         ``attributes``, ``timestamp``
``track``, ``page``, ``screen``      ``name``, ``data``, ``timestamp``, ``id`` (a ULID)
``delete``, ``suppress``,            ``timestamp``, which no wire can say of these: it
``unsuppress``                       is allowed, because exports have it in every line
===================================  ==================================================

Rules:

1. A field that is null is missing. A field that a type does not have is an error: what it holds would be lost.
2. An error names the field and what was expected, never what the line holds.

Must not know: files, the clock, the tracker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, cast

import orjson

from cio_batch import operations as ops
from cio_batch.operations import Draft


class LineError(ValueError):
    """A line says no operation; the text names the field."""


_EVENT_FIELDS: Final = frozenset({"name", "data", "timestamp", "id"})
_EVENTS: Final[Mapping[str, Callable[..., Draft]]] = {"track": ops.event, "page": ops.page, "screen": ops.screen}
_ENDINGS: Final[Mapping[str, Callable[[str], Draft]]] = {
    "delete": ops.delete,
    "suppress": ops.suppress,
    "unsuppress": ops.unsuppress,
}
_TYPES: Final = ("identify", *_EVENTS, *_ENDINGS)


def read_line(line: bytes) -> Draft:
    """Read an operation.

    Args:
        line: One JSON object in UTF-8.

    Raises:
        LineError: It is none, or a field is missing or unknown. What the fields hold is checked where the
            operation is encoded.
    """
    try:
        content: Any = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        message = f"is not valid JSON (column {error.colno})"
        raise LineError(message) from None
    if not isinstance(content, dict):
        message = "must be a JSON object"
        raise LineError(message)
    everything = cast("dict[str, Any]", content)
    fields = {name: value for name, value in everything.items() if value is not None}
    user_id, kind = _required(fields, "user_id"), _required(fields, "type")
    if not isinstance(kind, str) or kind not in _TYPES:
        message = f"type: must be one of {', '.join(_TYPES)}"
        raise LineError(message)
    if kind == "identify":
        _check_fields(fields, kind, frozenset({"attributes", "timestamp"}))
        return ops.identify(user_id, fields.get("attributes"), timestamp=fields.get("timestamp"))
    if kind in _EVENTS:
        _check_fields(fields, kind, _EVENT_FIELDS)
        return _EVENTS[kind](
            user_id,
            _required(fields, "name"),
            fields.get("data"),
            timestamp=fields.get("timestamp"),
            id=fields.get("id"),
        )
    _check_fields(fields, kind, frozenset({"timestamp"}))
    return _ENDINGS[kind](user_id)


def _required(fields: Mapping[str, Any], name: str) -> Any:
    if name not in fields:
        message = f"{name}: is missing"
        raise LineError(message)
    return fields[name]


def _check_fields(fields: Mapping[str, Any], kind: str, known: frozenset[str]) -> None:
    for name in fields:
        if name not in known and name not in ("user_id", "type"):
            shown = name if len(name) <= 50 and name.isprintable() else "<a long or odd name>"
            message = f"{shown}: is no field of {kind}; it has {', '.join(sorted(known))}"
            raise LineError(message)
