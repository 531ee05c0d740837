"""Everything that can be said to Customer.io, checked and encoded once into its final bytes.

What the caller says is a :class:`Draft`; the constructors of this module make one. At the door it becomes an
:data:`Operation`: the bytes of Track v2, which no later step changes.

Rules:

1. What comes out of :func:`encode` is within every limit of the wire, and is valid JSON in UTF-8.
2. A refused operation leaves nothing behind, and the caller's objects are never changed.
3. Id (ULID) and timestamp are fixed here, or checked here where the caller gave them.
4. :func:`encode_event` is the short way for the commonest operation and gives the very bytes of :func:`encode`. Where
   the extension was built, the usual event goes an even shorter one (``_speedups.c``), to the same bytes.

How Python values are written: ``str``, ``int`` (64 bits), finite ``float``, ``bool``, ``None``, ``list``, ``tuple``
and ``dict`` as in JSON; an aware ``datetime`` as unix seconds (an integer; a naive one is refused, its zone would be
a guess); ``date`` and ``time`` in ISO 8601; ``Decimal`` as a JSON number with all its digits; ``UUID`` as text;
``Enum`` as its value; dataclasses, attrs objects and other mappings as objects; typed events and attributes
(:mod:`cio_batch.events`) as they say. Everything else is refused.

Must not know: the clock, randomness, asyncio, aiohttp. ``now`` and ``new_id`` come as arguments.

Source: Track API v2, ``POST /api/v2/batch``, schemas ``person_operations``, ``object_operations``,
``delivery_operations``; for anonymous events v1, ``POST /api/v1/events``.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import itertools
import math
import re
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, cast, overload

import attrs
import orjson

from cio_batch import speedups
from cio_batch.errors import InvalidOperationError
from cio_batch.events import MAX_NAME_BYTES as MAX_NAME_BYTES  # one of the limits of this module, too
from cio_batch.events import CioEvent, Declared, UserAttributes
from cio_batch.values import MAX_ATTRIBUTE_NAME_BYTES as MAX_ATTRIBUTE_NAME_BYTES

MAX_OPERATION_BYTES: Final = 32_000
MAX_ID_BYTES: Final = 150
MAX_ATTRIBUTES: Final = 300
MAX_ATTRIBUTE_VALUE_BYTES: Final = 1_000
MAX_DECIMAL_DIGITS: Final = 900
"""Ours: with sign, point, zeros and exponent a Decimal then stays within the bytes of an attribute's value."""

Key: TypeAlias = str | bytes
"""What order is kept by: a person's id as given (``str``), or the JSON of any other identifier (``bytes``); the two
types keep an id from being taken for an email."""


def _hidden(value: object) -> str:
    """Stands for whom or what is meant, in a ``repr`` that may end in a log."""
    return "None" if value is None else "<hidden>"


def _size_alone(body: bytes) -> str:
    return f"<{len(body)} bytes>"


@attrs.define(weakref_slot=False)
class Operation:
    """One change to a person, an object or a delivery: ``len()`` of it is the size of its body.

    One exists for every pending event, so where the extension was built it is a single piece of memory of about 60
    bytes and the body, and ``body`` and ``key`` are made each time they are asked for (``Operation`` in
    ``_speedups.c``).

    Attributes:
        body: The final JSON bytes.
        key: Whom it is about; a tuple where it names several.
        kind: ``"type.action"``, for example ``"person.event"``.
        number: Its number in a spool, which gives it once; 0 where there is none.
    """

    body: bytes = attrs.field(repr=_size_alone)
    key: Key | tuple[Key, ...] = attrs.field(repr=_hidden)
    kind: str
    number: int = 0

    def __len__(self) -> int:
        return len(self.body)

    def __reduce__(self) -> tuple[type[Operation], tuple[object, ...]]:
        return Operation, (self.body, self.key, self.kind, self.number)


def join(operations: list[Operation]) -> bytes:
    """The bodies with commas between them, as they stand in a batch."""
    return b",".join([operation.body for operation in operations])


def keys_of(operations: list[Operation]) -> list[Key | tuple[Key, ...]]:
    """The key of each."""
    return [operation.key for operation in operations]


def kinds_of(operations: list[Operation]) -> set[str]:
    """All kinds among them."""
    return {operation.kind for operation in operations}


def running_bytes(operations: list[Operation]) -> list[int]:
    """For each the bytes of it and all before it, with a comma behind every one."""
    return list(itertools.accumulate([len(operation.body) + 1 for operation in operations]))


_IN_PYTHON: Final = (Operation, join, keys_of, kinds_of, running_bytes)
if not TYPE_CHECKING:
    Operation, join, keys_of, kinds_of, running_bytes = speedups.operation_and_bulk(*_IN_PYTHON)

DeliveryMetric = Literal["opened", "converted", "delivered"]
Platform = Literal["ios", "android"]

FINAL_KINDS: Final = frozenset(
    {"person.delete", "person.suppress", "person.unsuppress", "person.merge", "object.delete"}
)
"""Kinds without an id whose repeat could undo what follows: in a chunk nothing of the same person comes after one."""

ANONYMOUS_KINDS: Final = frozenset({"anonymous.event", "anonymous.page", "anonymous.screen"})
"""Kinds that Track v2 cannot say."""

_EVENT_ACTIONS: Final = frozenset({"event", "page", "screen"})
_ULID: Final = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")
_PLAIN_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z_0-9]{0,39}")
_E164: Final = re.compile(r"\+[1-9][0-9]{1,14}")
_MAX_DEPTH: Final = 250  # orjson's own limit is 254
_MAX_TIMESTAMP: Final = 99_999_999_999  # year 5138; beyond it somebody passed milliseconds
_OPTIONS: Final = orjson.OPT_PASSTHROUGH_DATETIME

# ----------------------------------------------------------------------------------------------- identifiers


@attrs.frozen
class Email:
    """A person named by email address."""

    value: str = attrs.field(repr=_hidden)

    def identifiers(self) -> dict[str, str]:
        """Return the wire form, or raise :class:`InvalidOperationError`."""
        check_id("email", self.value)
        if "@" not in self.value:
            raise InvalidOperationError("email", "must hold an @")
        return {"email": self.value}


@attrs.frozen
class Phone:
    """A person named by phone number, in E.164 form: ``+15551234567``."""

    value: str = attrs.field(repr=_hidden)

    def identifiers(self) -> dict[str, str]:
        """Return the wire form, or raise :class:`InvalidOperationError`."""
        check_id("phone", self.value)
        if _E164.fullmatch(self.value) is None:
            raise InvalidOperationError("phone", "must be E.164: a plus sign and 2 to 15 digits")
        return {"phone": self.value}


@attrs.frozen
class CioId:
    """A person named by the id that Customer.io gave, without the prefix ``cio_``."""

    value: str = attrs.field(repr=_hidden)

    def identifiers(self) -> dict[str, str]:
        """Return the wire form, or raise :class:`InvalidOperationError`."""
        check_id("cio_id", self.value)
        bare = self.value.removeprefix("cio_")
        check_id("cio_id", bare)
        return {"cio_id": bare}


@attrs.frozen
class AnonymousId:
    """Somebody who is not identified yet, for example by a cookie."""

    value: str = attrs.field(repr=_hidden)

    def identifiers(self) -> dict[str, str]:
        """Return the wire form, or raise :class:`InvalidOperationError`."""
        check_id("anonymous_id", self.value)
        return {"anonymous_id": self.value}


@attrs.frozen
class ObjectId:
    """An object (a company, a course) named by the caller's ids; both are strings on the wire."""

    object_type_id: str
    object_id: str = attrs.field(repr=_hidden)

    def identifiers(self) -> dict[str, str]:
        """Return the wire form, or raise :class:`InvalidOperationError`."""
        check_id("object_type_id", self.object_type_id)
        check_id("object_id", self.object_id)
        return {"object_type_id": self.object_type_id, "object_id": self.object_id}


@attrs.frozen
class CioObjectId:
    """An object named by the id that Customer.io gave."""

    value: str = attrs.field(repr=_hidden)

    def identifiers(self) -> dict[str, str]:
        """Return the wire form, or raise :class:`InvalidOperationError`."""
        check_id("cio_object_id", self.value)
        return {"cio_object_id": self.value}


@attrs.frozen
class DeliveryId:
    """A message that was sent."""

    value: str = attrs.field(repr=_hidden)

    def identifiers(self) -> dict[str, str]:
        """Return the wire form, or raise :class:`InvalidOperationError`."""
        check_id("delivery_id", self.value)
        return {"id": self.value}


PersonId: TypeAlias = str | Email | Phone | CioId
ObjectRef: TypeAlias = ObjectId | CioObjectId
Subject: TypeAlias = PersonId | AnonymousId | ObjectRef | DeliveryId


@attrs.frozen
class Relationship:
    """A relationship that has attributes: ``Relationship(ObjectId("1", "acme"), {"role": "admin"})``."""

    to: PersonId | AnonymousId | ObjectRef = attrs.field(repr=_hidden)
    attributes: Mapping[str, Any] | None = attrs.field(default=None, repr=_hidden)


# ---------------------------------------------------------------------------------------------------- drafts


@attrs.define(kw_only=True)
class Draft:
    """An operation as it was said, before the door: what ``submit`` takes and ``before_enqueue`` may change.

    Nothing is checked yet. Use the constructors of this module; they fill the fields that a kind has.

    Attributes:
        kind: ``"type.action"``, for example ``"person.event"``.
        subject: Whom or what it is about; ``None`` for a merge.
        name: Of an event, page, screen or delivery metric.
        timestamp: Unix seconds or an aware datetime; of an event it is set at the door when ``None``.
        id: The ULID of an event, page or screen; set at the door when ``None``.
        attributes: Attributes of a person or object, or the data of an event.
        device: ``{"token", "platform", "last_used"?, "attributes"?}``.
        relationships: What it is to be related to, or no longer.
        primary: Of a merge: the person who stays.
        secondary: Of a merge: the person who is deleted.
    """

    kind: str
    subject: Subject | None = attrs.field(default=None, repr=False)
    name: str | None = None
    timestamp: float | dt.datetime | None = None
    id: str | None = None
    attributes: Any = attrs.field(default=None, repr=False)
    device: Mapping[str, Any] | None = attrs.field(default=None, repr=False)
    relationships: Sequence[Relationship] | None = attrs.field(default=None, repr=False)
    primary: PersonId | None = attrs.field(default=None, repr=False)
    secondary: PersonId | None = attrs.field(default=None, repr=False)


@overload
def event(
    user_id: PersonId,
    event: CioEvent,
    /,
    *,
    timestamp: float | dt.datetime | None = None,
    id: str | None = None,
) -> Draft: ...


@overload
def event(
    user_id: PersonId,
    name: str,
    data: Any = None,
    *,
    timestamp: float | dt.datetime | None = None,
    id: str | None = None,
) -> Draft: ...


def event(
    user_id: PersonId,
    name: Any,
    data: Any = None,
    *,
    timestamp: float | dt.datetime | None = None,
    id: str | None = None,
) -> Draft:
    """Something that a person did: a typed event, or its name and data. Source: schema ``person_event``."""
    if data is None and isinstance(name, CioEvent):
        name, data = name.event_name, name.wire_data() or None
    return Draft(kind="person.event", subject=user_id, name=name, attributes=data, timestamp=timestamp, id=id)


def page(
    user_id: PersonId,
    name: str,
    data: Any = None,
    *,
    timestamp: float | dt.datetime | None = None,
    id: str | None = None,
) -> Draft:
    """A page that a person viewed. Source: schema ``person_page``."""
    return Draft(kind="person.page", subject=user_id, name=name, attributes=data, timestamp=timestamp, id=id)


def screen(
    user_id: PersonId,
    name: str,
    data: Any = None,
    *,
    timestamp: float | dt.datetime | None = None,
    id: str | None = None,
) -> Draft:
    """A screen that a person viewed. Source: schema ``person_screen``."""
    return Draft(kind="person.screen", subject=user_id, name=name, attributes=data, timestamp=timestamp, id=id)


def anonymous_event(
    anonymous_id: str,
    name: str,
    data: Any = None,
    *,
    timestamp: float | dt.datetime | None = None,
    id: str | None = None,
    action: Literal["event", "page", "screen"] = "event",
) -> Draft:
    """Something that somebody unknown did. It goes by its v1 call. Source: ``POST /api/v1/events``."""
    return Draft(
        kind=f"anonymous.{action}",
        subject=AnonymousId(anonymous_id),
        name=name,
        attributes=data,
        timestamp=timestamp,
        id=id,
    )


def identify(
    user_id: PersonId,
    attributes: Any = None,
    *,
    timestamp: float | dt.datetime | None = None,
    relationships: Iterable[ObjectRef | Relationship] | None = None,
) -> Draft:
    """Make or change a person. Source: schema ``identify_person``."""
    if isinstance(attributes, CioEvent):
        reason = f"must be a dict, UserAttributes or another object, got {type(attributes).__name__}, which is an event"
        raise InvalidOperationError("attributes", reason)
    return Draft(
        kind="person.identify",
        subject=user_id,
        attributes=attributes.wire_data() if isinstance(attributes, UserAttributes) else attributes,
        timestamp=timestamp,
        relationships=None if relationships is None else _related(relationships),
    )


def delete(user_id: PersonId) -> Draft:
    """Delete a person. Source: schema ``person_delete``."""
    return Draft(kind="person.delete", subject=user_id)


def suppress(user_id: PersonId) -> Draft:
    """Delete a person and refuse the identifier from now on. Source: schema ``person_suppress``."""
    return Draft(kind="person.suppress", subject=user_id)


def unsuppress(user_id: PersonId) -> Draft:
    """Let a suppressed identifier be used again. Source: schema ``person_unsuppress``."""
    return Draft(kind="person.unsuppress", subject=user_id)


def add_device(
    user_id: PersonId,
    token: str,
    platform: Platform,
    *,
    last_used: float | dt.datetime | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> Draft:
    """Give a person a device. Source: schema ``person_add_device``."""
    device: dict[str, Any] = {"token": token, "platform": platform}
    if last_used is not None:
        device["last_used"] = last_used
    if attributes is not None:
        device["attributes"] = attributes
    return Draft(kind="person.add_device", subject=user_id, device=device)


def delete_device(user_id: PersonId, token: str) -> Draft:
    """Take a device from a person. Source: schema ``person_delete_device``."""
    return Draft(kind="person.delete_device", subject=user_id, device={"token": token})


def merge(primary: PersonId, secondary: PersonId) -> Draft:
    """Merge ``secondary`` into ``primary``; a phone cannot name either. Source: schema ``person_merge``."""
    return Draft(kind="person.merge", primary=primary, secondary=secondary)


def add_relationships(user_id: PersonId, objects: Iterable[ObjectRef | Relationship]) -> Draft:
    """Relate a person to objects. Source: schema ``person_add_relationships``."""
    return Draft(kind="person.add_relationships", subject=user_id, relationships=_related(objects))


def delete_relationships(user_id: PersonId, objects: Iterable[ObjectRef | Relationship]) -> Draft:
    """End relationships of a person. Source: schema ``person_delete_relationships``."""
    return Draft(kind="person.delete_relationships", subject=user_id, relationships=_related(objects))


def identify_object(
    object_ref: ObjectRef,
    attributes: Any = None,
    *,
    relationships: Iterable[PersonId | Relationship] | None = None,
) -> Draft:
    """Make or change an object, and relate people to it. Source: schema ``object_identify``."""
    return Draft(
        kind="object.identify",
        subject=object_ref,
        attributes=attributes,
        relationships=None if relationships is None else _related(relationships),
    )


def identify_anonymous_object(
    object_ref: ObjectRef,
    attributes: Any = None,
    *,
    relationships: Iterable[AnonymousId | Relationship] | None = None,
) -> Draft:
    """The same, related to people not identified yet. Source: schema ``object_identify_anonymous``."""
    return Draft(
        kind="object.identify_anonymous",
        subject=object_ref,
        attributes=attributes,
        relationships=None if relationships is None else _related(relationships),
    )


def delete_object(object_ref: ObjectRef) -> Draft:
    """Delete an object and its relationships. Source: schema ``object_delete``."""
    return Draft(kind="object.delete", subject=object_ref)


def add_object_relationships(object_ref: ObjectRef, people: Iterable[PersonId | Relationship]) -> Draft:
    """Relate an object to people. Source: schema ``object_add_relationships``."""
    return Draft(kind="object.add_relationships", subject=object_ref, relationships=_related(people))


def delete_object_relationships(object_ref: ObjectRef, people: Iterable[PersonId | Relationship]) -> Draft:
    """End relationships of an object. Source: schema ``object_delete_relationships``."""
    return Draft(kind="object.delete_relationships", subject=object_ref, relationships=_related(people))


def delivery_event(delivery_id: str, metric: DeliveryMetric, device_token: str) -> Draft:
    """What became of a push that does not report itself. Source: schema ``delivery_operations``."""
    return Draft(
        kind="delivery.event",
        subject=DeliveryId(delivery_id),
        name=metric,
        attributes={"device_token": device_token},
    )


def _related(
    targets: Iterable[PersonId | AnonymousId | ObjectRef | Relationship],
) -> tuple[Relationship, ...]:
    # Text is iterable, too: each letter would become a person.
    if isinstance(targets, (str, bytes)) or not isinstance(cast("object", targets), Iterable):
        reason = f"must be a list or another iterable, got {type(targets).__name__}"
        raise InvalidOperationError("relationships", reason)
    return tuple(target if isinstance(target, Relationship) else Relationship(target) for target in targets)


# -------------------------------------------------------------------------------------------------- encoding

# The head of an event, from its first byte to the person, by name: a taxonomy has tens or hundreds of them, and
# the time changes once a second. (since, until, head, name): one object, replaced as a whole, so that threads never
# see halves of two. Emptied when it has grown past its bound, so that a program that puts ids into names costs time,
# never memory.
_heads: dict[str, tuple[float, float, bytes, bytes]] = {}
_MAX_CACHED_HEADS: Final = 4_096


def _encode_event_in_python(
    user_id: PersonId,
    name: str,
    data: Any,
    timestamp: float | dt.datetime | None,
    id: str | None,
    now: float,
    new_id: Callable[[], str],
) -> Operation:
    """Check and encode an event of a person: the hot path. Call it as ``encode_event``.

    Args:
        user_id: The person.
        name: At most 100 bytes.
        data: An object, or ``None``.
        timestamp: Unix seconds or an aware datetime; ``now`` when ``None``.
        id: A ULID; ``new_id()`` when ``None``.
        now: Unix seconds.
        new_id: Gives a fresh ULID.

    Raises:
        InvalidOperationError: The operation breaks a limit or cannot be encoded.
    """
    key: Key
    if type(user_id) is str:
        # 37 characters are at most 148 bytes, and "." and ".." are shorter than 3: the common id needs no measuring.
        if not 2 < len(user_id) <= 37 or user_id.isspace():
            check_id("user_id", user_id)
        try:
            person = orjson.dumps(user_id)
        except TypeError:
            raise InvalidOperationError("user_id", _SURROGATES) from None
        opening, key = b'{"id":', user_id
    else:
        identifiers = _person_identifiers("user_id", user_id)
        encoded = _dumps("user_id", identifiers)
        opening, person, key = b"", encoded[:-1], _key(identifiers, encoded)

    unix = now if timestamp is None else _time_given(name, timestamp)
    try:
        since, until, head, _ = _heads[name]
    except (KeyError, TypeError):
        head = _make_head(name, unix)
    else:
        if not since <= unix < until:
            head = _make_head(name, unix)

    ulid = (new_id() if id is None else _check_ulid(id)).encode()
    if data is None:
        body = b"".join((head, opening, person, b'},"id":"', ulid, b'"}'))
    else:
        try:
            attributes = orjson.dumps(data, _plain, _OPTIONS)
        except (TypeError, RecursionError):
            attributes = _encode_object("data", data)  # raises, and says where the fault is
        # See _dumps for the null. rpartition, because it is twice as fast as `in` on bytes of this size.
        if attributes.rpartition(b"null")[1] or type(data) is not dict:
            attributes = _encode_object("data", data)
        body = b"".join((head, opening, person, b'},"id":"', ulid, b'","attributes":', attributes, b"}"))
    if len(body) > MAX_OPERATION_BYTES:
        raise _too_large(body)
    return Operation(body, key, "person.event")


def _time_given(name: object, timestamp: float | dt.datetime) -> float:
    try:
        return float(unix_seconds("timestamp", timestamp))
    except InvalidOperationError:
        _encode_name(name)  # where both are wrong, the name is told, as `encode` does
        raise


def _make_head(name: object, unix: float) -> bytes:
    """Everything before the person, which is the same for all events of one name in one second."""
    try:
        _, _, _, encoded = _heads[cast("str", name)]
    except (KeyError, TypeError):
        encoded = _encode_name(name)
    second = b"%d" % unix
    head = b'{"type":"person","action":"event","name":%b,"timestamp":%b,"identifiers":' % (encoded, second)
    if len(_heads) >= _MAX_CACHED_HEADS:
        _heads.clear()
    since = float(second)
    _heads[str.__str__(cast("str", name))] = (since, since + 1.0, head, encoded)  # str() of an Enum gives its own name
    return head


def encode(draft: Draft, *, now: float, new_id: Callable[[], str]) -> Operation:
    """Check and encode any operation.

    Args:
        draft: What was said; it is not changed.
        now: Unix seconds, for an event without a timestamp.
        new_id: Gives a fresh ULID, for an event without one.

    Raises:
        InvalidOperationError: The operation breaks a limit or cannot be encoded.
    """
    try:
        write = _WRITERS[draft.kind]
    except AttributeError:
        reason = f"must be a Draft, made by a function of cio_batch.operations, got {type(draft).__name__}"
        raise InvalidOperationError("operation", reason) from None
    except (KeyError, TypeError):
        raise InvalidOperationError("kind", f"must be one of {', '.join(sorted(_WRITERS))}") from None
    wire, keys = write(draft, now, new_id)
    body = _dumps("operation", wire)
    if len(body) > MAX_OPERATION_BYTES:
        raise _too_large(body)
    unique = tuple(dict.fromkeys(keys))
    return Operation(body, unique[0] if len(unique) == 1 else unique, draft.kind)


def key_of(person: PersonId) -> Key:
    """The key by which a person's operations are kept in order.

    Raises:
        InvalidOperationError: That is no identifier.
    """
    return _key(_person_identifiers("person", person))


def decode(body: bytes, number: int = 0) -> Operation:
    """Read an operation back from its final bytes: what :func:`encode` gave is given again.

    Args:
        body: The bytes, as they stand in a spool or a dead letter.
        number: Its number in the spool.

    Raises:
        InvalidOperationError: They are not an operation. Limits are not checked a second time.
    """
    if len(body) > MAX_OPERATION_BYTES:
        raise _too_large(body)
    try:
        wire = orjson.loads(body)
        kind = f"{wire['type']}.{wire['action']}"
        if kind == "person.merge":
            named = [wire["primary"], wire["secondary"]]
        else:
            named = [wire["identifiers"], *(each["identifiers"] for each in wire.get("cio_relationships", ()))]
        keys = tuple(dict.fromkeys(_key_read(identifiers) for identifiers in named))
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        raise InvalidOperationError("operation", "must be the JSON of an operation of Track v2") from None
    if kind not in _WRITERS:
        raise InvalidOperationError("operation", "is of a kind that this version does not know")
    if kind == "delivery.event":
        return Operation(body, b"delivery" + _dumps("delivery_id", named[0]), kind, number)
    return Operation(body, keys[0] if len(keys) == 1 else keys, kind, number)


_Wire: TypeAlias = dict[str, Any]
_Writer: TypeAlias = Callable[[Draft, float, Callable[[], str]], tuple[_Wire, list[Key]]]


def _write_event(draft: Draft, now: float, new_id: Callable[[], str]) -> tuple[_Wire, list[Key]]:
    kind, _, action = draft.kind.partition(".")
    if kind == "anonymous":
        identifiers = _identifiers_of("anonymous_id", draft.subject, AnonymousId)
    else:
        identifiers = _person_identifiers("user_id", draft.subject)
    _encode_name(draft.name)
    wire: _Wire = {
        "type": kind,
        "action": action,
        "name": draft.name,
        "timestamp": int(now) if draft.timestamp is None else unix_seconds("timestamp", draft.timestamp),
        "identifiers": identifiers,
        "id": new_id() if draft.id is None else _check_ulid(draft.id),
    }
    if draft.attributes is not None:
        wire["attributes"] = orjson.Fragment(_encode_object("data", draft.attributes))
    return wire, [_key(identifiers)]


def _write_identify(draft: Draft, _now: float, _new_id: Callable[[], str]) -> tuple[_Wire, list[Key]]:
    identifiers = _person_identifiers("user_id", draft.subject)
    wire: _Wire = {"type": "person", "action": "identify", "identifiers": identifiers}
    if draft.timestamp is not None:
        wire["timestamp"] = unix_seconds("timestamp", draft.timestamp)
    if draft.attributes is not None:
        wire["attributes"] = _encode_attributes("attributes", draft.attributes)
    keys = [_key(identifiers)]
    if draft.relationships is not None:
        wire["cio_relationships"] = _write_relationships(draft.relationships, keys, _object_identifiers)
    return wire, keys


def _write_person(draft: Draft, _now: float, _new_id: Callable[[], str]) -> tuple[_Wire, list[Key]]:
    identifiers = _person_identifiers("user_id", draft.subject)
    action = draft.kind.partition(".")[2]
    return {"type": "person", "action": action, "identifiers": identifiers}, [_key(identifiers)]


def _write_device(draft: Draft, now: float, new_id: Callable[[], str]) -> tuple[_Wire, list[Key]]:
    wire, keys = _write_person(draft, now, new_id)
    device = _mapping("device", draft.device)
    token = device.get("token")
    if not isinstance(token, str) or not token.strip() or token in _CLIMBING:
        raise InvalidOperationError("device.token", "must be text that is not empty, '.' or '..'")
    if wire["action"] == "delete_device":
        wire["device"] = {"token": token}
        return wire, keys
    if device.get("platform") not in ("ios", "android"):
        raise InvalidOperationError("device.platform", "must be 'ios' or 'android'")
    if device.get("last_used") is not None:
        device["last_used"] = unix_seconds("device.last_used", device["last_used"])
    if device.get("attributes") is not None:
        device["attributes"] = orjson.Fragment(_encode_object("device.attributes", device["attributes"]))
    wire["device"] = {field: value for field, value in device.items() if value is not None}
    return wire, keys


def _write_person_relationships(draft: Draft, now: float, new_id: Callable[[], str]) -> tuple[_Wire, list[Key]]:
    wire, keys = _write_person(draft, now, new_id)
    wire["cio_relationships"] = _write_relationships(_required(draft), keys, _object_identifiers)
    return wire, keys


def _write_merge(draft: Draft, _now: float, _new_id: Callable[[], str]) -> tuple[_Wire, list[Key]]:
    primary = _person_identifiers("primary", draft.primary, phone=False)
    secondary = _person_identifiers("secondary", draft.secondary, phone=False)
    if primary == secondary:
        raise InvalidOperationError("secondary", "must be another person than primary")
    wire = {"type": "person", "action": "merge", "primary": primary, "secondary": secondary}
    return wire, [_key(primary), _key(secondary)]


def _write_object(draft: Draft, _now: float, _new_id: Callable[[], str]) -> tuple[_Wire, list[Key]]:
    identifiers = _object_identifiers("object", draft.subject)
    action = draft.kind.partition(".")[2]
    wire: _Wire = {"type": "object", "action": action, "identifiers": identifiers}
    keys = [_key(identifiers)]
    if action == "delete":
        return wire, keys
    if draft.attributes is not None:
        wire["attributes"] = _encode_attributes("attributes", draft.attributes)
    related = _anonymous_identifiers if action == "identify_anonymous" else _related_person_identifiers
    if action.endswith("relationships"):
        wire["cio_relationships"] = _write_relationships(_required(draft), keys, related)
    elif draft.relationships is not None:
        wire["cio_relationships"] = _write_relationships(draft.relationships, keys, related)
    return wire, keys


def _write_delivery(draft: Draft, _now: float, _new_id: Callable[[], str]) -> tuple[_Wire, list[Key]]:
    identifiers = _identifiers_of("delivery_id", draft.subject, DeliveryId)
    if draft.name not in ("opened", "converted", "delivered"):
        raise InvalidOperationError("name", "of a delivery must be 'opened', 'converted' or 'delivered'")
    attributes = draft.attributes
    token = cast("Mapping[str, Any]", attributes).get("device_token") if isinstance(attributes, Mapping) else None
    if not isinstance(token, str) or not token.strip():
        raise InvalidOperationError("device_token", "must be text that is not empty")
    wire = {
        "type": "delivery",
        "action": "event",
        "identifiers": identifiers,
        "name": draft.name,
        "attributes": orjson.Fragment(_encode_object("attributes", attributes)),
    }
    return wire, [b"delivery" + _dumps("delivery_id", identifiers)]


_WRITERS: Final[Mapping[str, _Writer]] = {
    **{f"{who}.{action}": _write_event for who in ("person", "anonymous") for action in _EVENT_ACTIONS},
    "person.identify": _write_identify,
    "person.delete": _write_person,
    "person.suppress": _write_person,
    "person.unsuppress": _write_person,
    "person.add_device": _write_device,
    "person.delete_device": _write_device,
    "person.add_relationships": _write_person_relationships,
    "person.delete_relationships": _write_person_relationships,
    "person.merge": _write_merge,
    "object.identify": _write_object,
    "object.identify_anonymous": _write_object,
    "object.delete": _write_object,
    "object.add_relationships": _write_object,
    "object.delete_relationships": _write_object,
    "delivery.event": _write_delivery,
}

KINDS: Final = frozenset(_WRITERS)
"""Every kind that can be said."""


def _mapping(field: str, value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidOperationError(field, f"must be a mapping, got {type(value).__name__}")
    return dict(cast("Mapping[str, Any]", value))


def _required(draft: Draft) -> Sequence[Relationship]:
    if not draft.relationships:
        raise InvalidOperationError("relationships", "must name at least one")
    return draft.relationships


def _write_relationships(
    relationships: object,
    keys: list[Key],
    identifiers_of: Callable[[str, Subject], dict[str, str]],
) -> list[_Wire]:
    """Write them in order, and add the key of each end to ``keys``."""
    if not isinstance(relationships, (list, tuple)):
        reason = f"must be a list or tuple of Relationship, got {type(relationships).__name__}"
        raise InvalidOperationError("relationships", reason)
    written: list[_Wire] = []
    for index, relationship in enumerate(cast("Sequence[object]", relationships)):
        field = f"relationships[{index}]"
        if not isinstance(relationship, Relationship):
            raise InvalidOperationError(field, f"must be a Relationship, got {type(relationship).__name__}")
        identifiers = identifiers_of(field, relationship.to)
        keys.append(_key(identifiers))
        entry: _Wire = {"identifiers": identifiers}
        if relationship.attributes is not None:
            entry["relationship_attributes"] = _encode_attributes(f"{field}.attributes", relationship.attributes)
        written.append(entry)
    return written


# ------------------------------------------------------------------------------------ identifiers, names, times

_CLIMBING: Final = frozenset({".", ".."})  # as a part of a v1 path they would climb it
_SURROGATES: Final = "holds a lone surrogate, which is not valid text"


def check_id(field: str, value: object) -> None:
    """Raise :class:`InvalidOperationError` for what cannot be an identifier, or a part of a v1 path."""
    if not isinstance(value, str):
        raise InvalidOperationError(field, f"must be text, got {type(value).__name__}")
    if not value or value.isspace():
        raise InvalidOperationError(field, "must not be empty")
    if value in _CLIMBING:
        raise InvalidOperationError(field, "must not be '.' or '..'")
    size = _utf8_size(field, value)
    if size > MAX_ID_BYTES:
        reason = f"is {size} bytes, at most {MAX_ID_BYTES} are allowed"
        raise InvalidOperationError(field, reason, limit=MAX_ID_BYTES, actual=size)


def _utf8_size(field: str, value: str) -> int:
    try:
        return len(value.encode())
    except UnicodeEncodeError:
        raise InvalidOperationError(field, _SURROGATES) from None


def _person_identifiers(field: str, person: object, *, phone: bool = True) -> dict[str, str]:
    if isinstance(person, str):
        check_id(field, person)
        return {"id": str.__str__(person)}
    if isinstance(person, (Email, CioId)) or (phone and isinstance(person, Phone)):
        return person.identifiers()
    kinds = "text, Email, Phone or CioId" if phone else "text, Email or CioId"
    advice = "; write str(...) around it" if isinstance(person, int) else ""
    raise InvalidOperationError(field, f"must be {kinds}, got {type(person).__name__}{advice}")


def _related_person_identifiers(field: str, person: object) -> dict[str, str]:
    return _person_identifiers(field, person, phone=False)


def _object_identifiers(field: str, ref: object) -> dict[str, str]:
    if not isinstance(ref, (ObjectId, CioObjectId)):
        raise InvalidOperationError(field, f"must be ObjectId or CioObjectId, got {type(ref).__name__}")
    return ref.identifiers()


def _anonymous_identifiers(field: str, ref: object) -> dict[str, str]:
    return _identifiers_of(field, ref, AnonymousId)


def _identifiers_of(field: str, ref: object, kind: type[AnonymousId | DeliveryId]) -> dict[str, str]:
    if not isinstance(ref, kind):
        raise InvalidOperationError(field, f"must be {kind.__name__}, got {type(ref).__name__}")
    return ref.identifiers()


def _key(identifiers: dict[str, str], encoded: bytes | None = None) -> Key:
    if "id" in identifiers:
        return identifiers["id"]
    return encoded if encoded is not None else _dumps("identifiers", identifiers)


def _key_read(identifiers: object) -> Key:
    """The key of identifiers that were read, each of which must be text."""
    if not isinstance(identifiers, dict) or not identifiers:
        raise TypeError
    read = cast("dict[str, Any]", identifiers)
    if not all(isinstance(value, str) for value in read.values()):
        raise TypeError
    return _key(read)


def _encode_name(name: object) -> bytes:
    """Check a name and return it as JSON."""
    if not isinstance(name, str):
        raise InvalidOperationError("name", f"must be text, got {type(name).__name__}")
    if not name or name.isspace():
        raise InvalidOperationError("name", "must not be empty")
    size = _utf8_size("name", name)
    if size > MAX_NAME_BYTES:
        reason = f"is {size} bytes, at most {MAX_NAME_BYTES} are allowed"
        raise InvalidOperationError("name", reason, limit=MAX_NAME_BYTES, actual=size)
    return orjson.dumps(name)


def _seconds_of(field: str, value: dt.datetime) -> int:
    """A datetime as a value: of any century."""
    if value.tzinfo is None or value.utcoffset() is None:
        raise InvalidOperationError(field, _NAIVE)
    return math.floor(value.timestamp())


def unix_seconds(field: str, value: object) -> int:
    """Return a timestamp as unix seconds: between 1970 and the point from which on it must be milliseconds.

    Raises:
        InvalidOperationError: It is a naive datetime, out of range, or no time at all.
    """
    if isinstance(value, dt.datetime):
        value = _seconds_of(field, value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        reason = f"must be unix seconds or an aware datetime, got {type(value).__name__}"
        raise InvalidOperationError(field, reason)
    if not 0 <= value <= _MAX_TIMESTAMP:  # NaN is not between any two numbers
        raise InvalidOperationError(field, "must be unix seconds between 0 and 99999999999 (not milliseconds)")
    return int(value)


def _check_ulid(value: object) -> str:
    """Return the ULID in upper case, its canonical form."""
    if isinstance(value, str) and value.isascii():  # the upper case of some other letters is ASCII
        upper = value.upper()
        if _ULID.fullmatch(upper) is not None:
            return upper
    raise InvalidOperationError("id", "must be a ULID (26 characters of Crockford's base 32), or left out")


def _too_large(body: bytes) -> InvalidOperationError:
    reason = f"is {len(body)} bytes when encoded, at most {MAX_OPERATION_BYTES} are allowed"
    return InvalidOperationError("operation", reason, limit=MAX_OPERATION_BYTES, actual=len(body))


# --------------------------------------------------------------------------------------------------- JSON values

_NAIVE: Final = "is a datetime without a time zone; pass an aware one, such as datetime.now(timezone.utc)"


def encode_json(field: str, value: Any) -> bytes:
    """Encode any value by the rules of this module.

    Raises:
        InvalidOperationError: Names the part that cannot be sent, by its path from ``field`` on.
    """
    return _dumps(field, value)


def fields_of(field: str, value: Any) -> dict[str, Any]:
    """Return what the encoder would write of a value that stands for an object, as a dict of its own.

    Raises:
        InvalidOperationError: It is no mapping, dataclass or attrs object.
    """
    if isinstance(value, Mapping):
        return dict(cast("Mapping[str, Any]", value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = vars(value) if hasattr(value, "__dict__") else [part.name for part in dataclasses.fields(value)]
        return {name: getattr(value, name) for name in names if not name.startswith("_")}
    try:
        plain = _plain(value)
    except TypeError:
        plain = None
    if not isinstance(plain, dict):
        reason = f"must be a dict, dataclass or attrs object, got {type(value).__name__}"
        raise InvalidOperationError(field, reason)
    return cast("dict[str, Any]", plain)


def _encode_object(field: str, value: Any) -> bytes:
    encoded = _dumps(field, value)
    if encoded[:1] != b"{":
        reason = f"must be a dict, dataclass or attrs object, got {type(value).__name__}"
        raise InvalidOperationError(field, reason)
    return encoded


def _dumps(field: str, value: Any) -> bytes:
    try:
        encoded = orjson.dumps(value, _plain, _OPTIONS)
    except (TypeError, RecursionError):
        encoded = b""
    if not encoded:  # out of the except clause, so that no foreign error, whose text may hold content, is chained
        _find_fault(field, value, 0)
        raise InvalidOperationError(field, "cannot be encoded as JSON")
    # orjson writes NaN and infinities as null without a word, so look closer only where one stands.
    if encoded.rfind(b"null") >= 0:
        _find_fault(field, value, 0)
    return encoded


def _plain(value: Any) -> Any:
    """Turn what orjson does not know into what it knows; raise ``TypeError`` for what nobody knows."""
    if isinstance(value, dt.datetime):
        return _seconds_of("datetime", value)
    if isinstance(value, (dt.date, dt.time)):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        if _decimal_fault(value) is not None:
            raise TypeError
        return orjson.Fragment(str(value))
    if isinstance(value, Declared):
        return value.wire_data()
    kind = cast("Any", type(value))
    if attrs.has(kind):
        return {
            attribute.name: getattr(value, attribute.name)
            for attribute in attrs.fields(kind)
            if not attribute.name.startswith("_")
        }
    if isinstance(value, Mapping):
        return dict(cast("Any", value))
    raise TypeError


def _decimal_fault(value: decimal.Decimal) -> str | None:
    if not value.is_finite() or math.isinf(float(value)):
        return "is a Decimal that is not finite or exceeds 1.8e308, which JSON parsers refuse"
    if len(value.as_tuple().digits) > MAX_DECIMAL_DIGITS:
        return f"is a Decimal of more than {MAX_DECIMAL_DIGITS} digits"
    return None


_ADVICE: Final[Mapping[type, str]] = {
    set: "; pass a list",
    frozenset: "; pass a list",
    bytes: "; pass text, for example by base64",
    dt.timedelta: "; pass a number of seconds",
    complex: "; pass text",
}


def _member(path: str, position: int, name: str) -> str:
    """The path of a member: by its name if that is one a program would choose, else by its place.

    Keys may be content: ``{"ada@example.com": …}``.
    """
    return f"{path}.{name}" if _PLAIN_NAME.fullmatch(name) else f"{path}.<member {position}>"


def _find_fault(path: str, value: Any, depth: int) -> None:
    """Walk a value in the way of the encoder and raise for the first part that cannot be sent, by its path."""
    if depth > _MAX_DEPTH:
        root = re.split(r"[.\[]", path, maxsplit=1)[0]
        raise InvalidOperationError(root, f"is nested deeper than {_MAX_DEPTH} levels or holds itself")
    if value is None or isinstance(value, (bool, uuid.UUID, orjson.Fragment)):
        return
    if isinstance(value, enum.Enum):
        _find_fault(path, value.value, depth + 1)
    elif isinstance(value, str):
        _utf8_size(path, value)
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise InvalidOperationError(path, "is an integer of more than 64 bits")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidOperationError(path, "is NaN or infinite, which JSON cannot say")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(cast("Sequence[Any]", value)):
            _find_fault(f"{path}[{index}]", item, depth + 1)
    elif isinstance(value, dict):
        for position, (name, item) in enumerate(cast("Any", value).items()):
            if type(name) is not str:
                reason = f"has a key of type {type(name).__name__}, keys must be str"
                raise InvalidOperationError(path, reason)
            _utf8_size(f"a key of {path}", name)
            _find_fault(_member(path, position, name), item, depth + 1)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        # The encoder writes all that stands in the __dict__, a cached property too.
        parts = vars(value) if hasattr(value, "__dict__") else [part.name for part in dataclasses.fields(value)]
        for name in parts:
            if not name.startswith("_"):
                _find_fault(f"{path}.{name}", getattr(value, name), depth + 1)
    elif isinstance(value, dt.datetime):
        _seconds_of(path, value)
    elif isinstance(value, decimal.Decimal):
        fault = _decimal_fault(value)
        if fault is not None:
            raise InvalidOperationError(path, fault)
    else:
        try:
            plain = _plain(value)
        except Exception:  # noqa: BLE001 - a mapping of the user's may raise what it likes, with content in the text
            plain = None
        if plain is None:
            advice = _ADVICE.get(cast("type", type(value)), "")
            raise InvalidOperationError(path, f"is of type {type(value).__name__}, which cannot be encoded{advice}")
        _find_fault(path, plain, depth + 1)


def _encode_attributes(field: str, value: Any) -> orjson.Fragment:
    """Encode the attributes of a person, an object or a relationship, whose number, names and values are limited."""
    encoded = _encode_object(field, value)
    _check_attributes(field, encoded)
    return orjson.Fragment(encoded)


def _check_attributes(field: str, encoded: bytes) -> None:
    attributes: dict[str, Any] = orjson.loads(encoded)
    if len(attributes) > MAX_ATTRIBUTES:
        reason = f"has {len(attributes)} attributes, at most {MAX_ATTRIBUTES} are allowed"
        raise InvalidOperationError(field, reason, limit=MAX_ATTRIBUTES, actual=len(attributes))
    if len(encoded) <= MAX_ATTRIBUTE_NAME_BYTES:
        return  # no part of it can be too long
    for position, (name, value) in enumerate(attributes.items()):
        size = len(name.encode())
        if size > MAX_ATTRIBUTE_NAME_BYTES:
            reason = f"is {size} bytes, at most {MAX_ATTRIBUTE_NAME_BYTES} are allowed"
            where = f"name of attribute {position}"
            raise InvalidOperationError(where, reason, limit=MAX_ATTRIBUTE_NAME_BYTES, actual=size)
        size = len(value.encode() if isinstance(value, str) else orjson.dumps(value))
        if size > MAX_ATTRIBUTE_VALUE_BYTES:
            reason = f"is {size} bytes, at most {MAX_ATTRIBUTE_VALUE_BYTES} are allowed"
            where = _member(field, position, name)
            raise InvalidOperationError(where, reason, limit=MAX_ATTRIBUTE_VALUE_BYTES, actual=size)


# ---------------------------------------------------------------------------------------------- the hot path, compiled

encode_event = speedups.event_encoder(
    _encode_event_in_python,
    heads=_heads,
    dumps=orjson.dumps,
    default=_plain,
    options=_OPTIONS,
    max_bytes=MAX_OPERATION_BYTES,
    kind="person.event",
)
