"""One HTTP call as it is meant to be made, and those calls of Track v1 that are no operation of v2.

Rules:

1. Every part of a path is checked and encoded completely, so that an identifier cannot become another path.
2. What the document limits is checked here; what only the service can know is not asked.

Must not know: asyncio, aiohttp, the clock.

Source: Track API, paths under ``/api/v1/segments``, ``/api/v1/forms``, ``/api/v1/metrics``, ``/unsubscribe``.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, TypeAlias, cast, get_args
from urllib.parse import quote

import attrs
import orjson

from cio_batch.errors import InvalidOperationError
from cio_batch.operations import Operation, check_id, unix_seconds
from cio_batch.transports.track_v1 import refuse_unsayable, translate

IdType: TypeAlias = Literal["id", "email", "cio_id"]
Metric: TypeAlias = Literal["bounced", "clicked", "converted", "deferred", "delivered", "dropped", "opened", "spammed"]

MAX_SEGMENT_IDS: Final = 1_000
_PLAIN_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z_0-9]{0,39}")  # other names may be content
_MAX_INT32: Final = 2**31 - 1
_SegmentAction: TypeAlias = Literal["add_customers", "remove_customers"]


@attrs.frozen
class Request:
    """One HTTP call.

    Attributes:
        method: The HTTP method.
        path: Path and query, encoded, from the slash on. It may hold identifiers.
        body: JSON, or ``None``.
        authorized: Whether the call carries the credentials.
    """

    method: str
    path: str = attrs.field(repr=False)
    body: bytes | None = attrs.field(default=None, repr=False)
    authorized: bool = True


REGION: Final = Request("GET", "/api/v1/accounts/region")


def request_of(operation: Operation) -> Request:
    """Return the v1 call that says an operation.

    Raises:
        InvalidOperationError: Track v1 cannot say it.
    """
    refuse_unsayable(operation)
    method, path, body = translate(operation)
    return Request(method, path, body)


def change_segment(action: _SegmentAction, segment_id: int, ids: Iterable[str], id_type: IdType) -> Request:
    """Add people to a manual segment, or remove them.

    Raises:
        InvalidOperationError: An id cannot be sent, or there are none, or more than 1,000.
    """
    number = _whole("segment_id", segment_id)
    if id_type not in get_args(IdType):
        raise InvalidOperationError("id_type", "must be 'id', 'email' or 'cio_id'")
    # Text is iterable, too: each letter would become a person.
    if isinstance(ids, (str, bytes)) or not isinstance(cast("object", ids), Iterable):
        raise InvalidOperationError("ids", f"must be a list or another iterable, got {type(ids).__name__}")
    people = list(ids)
    if not 1 <= len(people) <= MAX_SEGMENT_IDS:
        reason = f"has {len(people)} entries, between 1 and {MAX_SEGMENT_IDS} are allowed"
        raise InvalidOperationError("ids", reason, limit=MAX_SEGMENT_IDS, actual=len(people))
    for index, person in enumerate(people):
        where = f"ids[{index}]"
        check_id(where, person)
        # The service ignores an entry that is not of this type, without a word.
        if id_type == "email" and "@" not in person:
            raise InvalidOperationError(where, "must hold an @")
    if id_type == "cio_id":
        people = [person.removeprefix("cio_") for person in people]
    query = "" if id_type == "id" else f"?id_type={id_type}"
    return Request("POST", f"/api/v1/segments/{number}/{action}{query}", orjson.dumps({"ids": people}))


def submit_form(form_id: str, data: Mapping[str, str]) -> Request:
    """Submit a form for the person whom its ``id`` or ``email`` names.

    Raises:
        InvalidOperationError: A value is no text, or there is not exactly one of ``id`` and ``email``.
    """
    check_id("form_id", form_id)
    if not isinstance(cast("object", data), Mapping):
        raise InvalidOperationError("data", f"must be a mapping, got {type(data).__name__}")
    fields: dict[str, Any] = dict(data)
    named = [name for name in ("id", "email") if name in fields]
    if len(named) != 1:
        raise InvalidOperationError("data", "must have exactly one of id and email")
    check_id(f"data.{named[0]}", fields[named[0]])
    for position, (name, value) in enumerate(cast("dict[object, object]", fields).items()):
        if not isinstance(name, str):
            raise InvalidOperationError("data", f"has a key of type {type(name).__name__}, keys must be str")
        if not isinstance(value, str):
            where = f"data.{name}" if _PLAIN_NAME.fullmatch(name) else f"field {position} of data"
            raise InvalidOperationError(where, f"must be text, as every value of a form, got {type(value).__name__}")
    return Request("POST", f"/api/v1/forms/{quote(form_id, safe='')}/submit", _dumps("data", {"data": fields}))


def report_metric(
    delivery_id: str,
    metric: Metric,
    *,
    timestamp: float | dt.datetime | None = None,
    recipient: str | None = None,
    reason: str | None = None,
    href: str | None = None,
) -> Request:
    """Report what became of a message.

    Raises:
        InvalidOperationError: The metric is none that the service knows, or another part cannot be sent.
    """
    check_id("delivery_id", delivery_id)
    if metric not in get_args(Metric):
        raise InvalidOperationError("metric", f"must be one of {', '.join(get_args(Metric))}")
    body: dict[str, Any] = {"delivery_id": delivery_id, "metric": metric}
    if timestamp is not None:
        body["timestamp"] = unix_seconds("timestamp", timestamp)
    for name, text in (("recipient", recipient), ("reason", reason), ("href", href)):
        if text is None:
            continue
        if not isinstance(cast("object", text), str):
            raise InvalidOperationError(name, f"must be text, got {type(text).__name__}")
        body[name] = text
    return Request("POST", "/api/v1/metrics", _dumps("metric", body), authorized=False)


def unsubscribe(delivery_id: str) -> Request:
    """Unsubscribe the person to whom a message went, and attribute that to the message.

    Raises:
        InvalidOperationError: The id cannot be one.
    """
    check_id("delivery_id", delivery_id)
    path = f"/unsubscribe/{quote(delivery_id, safe='')}"
    return Request("POST", path, b'{"unsubscribe":true}', authorized=False)


def _whole(field: str, value: object) -> int:
    if type(value) is not int or not 0 < value <= _MAX_INT32:
        raise InvalidOperationError(field, f"must be a whole number above 0, got {type(value).__name__}")
    return value


def _dumps(field: str, body: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(body)
    except TypeError:  # all is text by now
        fault = InvalidOperationError(field, "holds a lone surrogate, which is not valid text")
    raise fault
