"""The workspace: what it holds, and how one operation changes it.

Rules:

1. Only operations that passed their checks arrive here; one that is refused changes nothing and is not logged.
2. An event, page or screen whose ULID was seen before, anywhere in the workspace, is ignored and counted in
   ``duplicates_ignored``. Every other operation is applied again when it comes again; ``applied`` counts
   what was applied, ``ignored`` what was valid and had no effect, and why.
3. Each person and object keeps two logs. ``operations`` has what was applied, in order. ``first_arrivals``
   has what arrived, in order of first arrival, and lists a byte-identical repeat once: two operations are the
   same when their canonical JSON (compact, fields sorted) is. It shows the order that a client kept, even
   where a retry sent an identify again after a later one. An operation that names several stands in the log of each.
4. The logs outlive delete, suppress and merge; the state (attributes, events, devices, relationships) does not.
5. A message or a broadcast that the App API accepted changes no one (but for the device that a push may bring) and
   stands in no one's log: it is kept apart, in order, and is not among ``applied``.
6. A suppressed person ignores everything but ``unsuppress``, which does not bring back what there was.

Where the service knows more than the wire says, this one is lenient: two identifiers are never joined into one
person, a merge may name a primary that no one created, a segment exists as soon as it is named.

This module must not know HTTP, asyncio, the checks or the faults.

Source: track-openapi.json, the descriptions of the operations.
"""

import base64
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

import attrs
import orjson

from cio_batch.simulator.calls import canonical
from cio_batch.simulator.keys import (
    ObjectKey,
    Operation,
    PersonKey,
    object_key,
    objects_of,
    people_of,
    person_key,
)

_EVENT_ACTIONS: Final = frozenset({"event", "page", "screen"})

RECENT_IDS: Final = 200_000
"""How many event ids one of the two generations holds in a workspace that keeps no logs."""


@attrs.define(eq=False)
class Entity:
    """What a person and an object have in common: attributes and two logs.

    Attributes:
        attributes: The attributes as they are now.
        exists: Whether the workspace has it now; a deleted one, or one that was only named, does not exist.
        operation_count: How many operations were applied to it, whether logged or not.
    """

    attributes: dict[str, Any] = attrs.field(factory=dict, init=False)
    exists: bool = attrs.field(default=False, init=False)
    operation_count: int = attrs.field(default=0, init=False)
    # Bytes, not dicts: a quarter of the memory, and the garbage collector does not walk them.
    _applied: list[bytes] = attrs.field(factory=list, init=False)
    _arrived: dict[bytes, None] = attrs.field(factory=dict, init=False)

    @property
    def operations(self) -> list[Operation]:
        """The operations that were applied, in order, parsed anew; empty with ``keep=False``."""
        return [orjson.loads(raw) for raw in self._applied]

    @property
    def first_arrivals(self) -> list[Operation]:
        """The operations that arrived, in order of first arrival, without byte-identical repeats, parsed anew."""
        return [orjson.loads(raw) for raw in self._arrived]

    def log_arrival(self, raw: bytes) -> None:
        """Note that an operation arrived, whether or not it will be applied."""
        self._arrived.setdefault(raw)

    def log_applied(self, raw: bytes) -> None:
        """Note that an operation was applied."""
        self._applied.append(raw)


@attrs.define(eq=False)
class Person(Entity):
    """One person, by one identifier.

    Attributes:
        key: The kind and the identifier.
        devices: Devices by their token; each with its platform and what else was said of it.
        relationships: The attributes of the relationship, by the object's key.
        suppressed: Whether operations that name this person are ignored.
        deleted: How often the person was deleted.
        merged_into: The person who last took over this one's state.
    """

    key: PersonKey
    devices: dict[str, dict[str, Any]] = attrs.field(factory=dict, init=False)
    relationships: dict[ObjectKey, dict[str, Any]] = attrs.field(factory=dict, init=False)
    suppressed: bool = attrs.field(default=False, init=False)
    deleted: int = attrs.field(default=0, init=False)
    merged_into: PersonKey | None = attrs.field(default=None, init=False)
    _events: list[bytes] = attrs.field(factory=list, init=False)
    _times: dict[str, int] = attrs.field(factory=dict, init=False)

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events, pages and screens, in the order in which they were first applied, parsed anew.

        Each has ``action``, ``name`` (trimmed), ``id``, ``timestamp`` (both None where not given) and
        ``attributes``. Empty with ``keep=False``.
        """
        return [_event_of(orjson.loads(raw)) for raw in self._events]

    def add_event(self, raw: bytes) -> None:
        """Add an event by the canonical bytes of its operation."""
        self._events.append(raw)

    def take_events(self) -> list[bytes]:
        """Give away the events, as the canonical bytes of their operations."""
        events, self._events = self._events, []
        return events

    def update(self, attributes: Operation, timestamp: int | None) -> None:
        """Set attributes; one that has a later timestamp already keeps its value."""
        if timestamp is None:
            self.attributes |= attributes
            return
        for name, value in attributes.items():
            if self._times.get(name, timestamp) <= timestamp:
                self.attributes[name] = value
                self._times[name] = timestamp

    def absorb(self, other: "Person") -> None:
        """Take over another person's events and state; what this one has already, it keeps."""
        for name, value in other.attributes.items():
            if self.attributes.get(name) in (None, ""):
                self.attributes[name] = value
        self._events += other.take_events()
        self.devices = other.devices | self.devices
        self.relationships = other.relationships | self.relationships

    def clear(self) -> None:
        """Drop the state; the logs stay."""
        self.exists = False
        self.attributes = {}
        self.devices = {}
        self.relationships = {}
        self._events = []
        self._times = {}


@attrs.define(eq=False)
class Object(Entity):
    """One object, such as a company or a course.

    Attributes:
        key: (object_type_id, object_id), or ``("cio_object_id", value)``.
        relationships: The attributes of the relationship, by the person's key.
    """

    key: ObjectKey
    relationships: dict[PersonKey, dict[str, Any]] = attrs.field(factory=dict, init=False)

    def clear(self) -> None:
        """Drop the state; the logs stay."""
        self.exists = False
        self.attributes = {}
        self.relationships = {}


@attrs.frozen(kw_only=True)
class Message:
    """One message that the App API took, to be sent once.

    Attributes:
        kind: ``email``, ``push``, ``sms``, ``whatsapp``, ``inbox_message`` or ``in_app``.
        delivery_id: What the answer called it.
        queued_at: Unix seconds.
        request: The request's body, parsed.
    """

    kind: str
    delivery_id: str
    queued_at: int
    request: dict[str, Any]


@attrs.frozen(kw_only=True)
class Broadcast:
    """One trigger of a broadcast that the App API took.

    Attributes:
        broadcast_id: Which broadcast.
        trigger_id: What the answer called it.
        triggered_at: Unix seconds.
        request: The request's body, parsed: the data, and at most one audience.
    """

    broadcast_id: int
    trigger_id: int
    triggered_at: int
    request: dict[str, Any]


class SeenIds:
    """Event ids seen before: all of them, or, given a limit, at least the latest ``limit``."""

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._young: set[str] = set()
        self._old: set[str] = set()

    def add(self, event_id: str) -> bool:
        """Note an id; say whether it is new. The case of a ULID does not matter."""
        event_id = event_id.upper()
        if event_id in self._young or event_id in self._old:
            return False
        self._young.add(event_id)
        if self._limit is not None and len(self._young) >= self._limit:
            # Two generations: memory stays bounded, and a retry comes long before both are gone.
            self._old, self._young = self._young, set()
        return True


class Workspace:
    """Everything that a Customer.io workspace knows, and how one operation changes it.

    Args:
        keep: Keep every person's and object's logs and events. Without it their state and counts are kept,
            and repeats are noticed among the latest few hundred thousand event ids, so that millions of
            events fit into memory (about 1 KB for each person, none for an event).

    Attributes:
        people: Every person ever named, by key; see ``Person.exists``.
        objects: Every object ever named, by key.
        applied: Operations applied, by ``"type.action"``.
        ignored: Valid operations without effect, by reason: ``suppressed``, ``update_only``.
        duplicates_ignored: Events, pages and screens whose id had been seen.
        segments: The members of each manual segment.
        forms: Form submissions, as ``{"form_id", "identifiers", "attributes"}``.
        metrics: Reported metrics, as ``{"delivery_id", "metric", …}``, whatever call reported them.
        unsubscribes: The last value of ``unsubscribe`` by delivery id.
        messages: Every message sent, in order; empty with ``keep=False``.
        message_count: How many there were.
        broadcasts: Every broadcast triggered, in order; empty with ``keep=False``.
        broadcast_count: How many there were.
    """

    def __init__(self, *, keep: bool = True) -> None:
        self.keep = keep
        self.people: dict[PersonKey, Person] = {}
        self.objects: dict[ObjectKey, Object] = {}
        self.applied: Counter[str] = Counter()
        self.ignored: Counter[str] = Counter()
        self.duplicates_ignored = 0
        self.segments: dict[int, set[PersonKey]] = {}
        self.forms: list[dict[str, Any]] = []
        self.metrics: list[dict[str, Any]] = []
        self.unsubscribes: dict[str, bool] = {}
        self.messages: list[Message] = []
        self.message_count = 0
        self.broadcasts: list[Broadcast] = []
        self.broadcast_count = 0
        self._seen = SeenIds(None if keep else RECENT_IDS)

    def person(self, kind: str, identifier: str) -> Person:
        """Return a person; one who was never named does not exist and has empty logs."""
        key = (kind, identifier)
        return self.people.get(key) or Person(key)

    def object(self, object_type_id: str, object_id: str) -> Object:
        """Return an object; one that was never named does not exist and has empty logs."""
        key = (object_type_id, object_id)
        return self.objects.get(key) or Object(key)

    def apply(self, operation: Operation, raw: bytes | None = None) -> None:
        """Apply one checked operation.

        Args:
            operation: The operation in Track v2's form.
            raw: Its canonical bytes, where the caller has them.
        """
        raw = canonical(operation) if raw is None else raw
        if operation["type"] == "person" and operation["action"] in _EVENT_ACTIONS:
            self._apply_event(operation, raw)
        else:
            self._apply_change(operation, raw)

    def send(self, operation: Operation, now: int) -> Message:
        """Take a checked message; ``now`` is Unix seconds."""
        self.message_count += 1
        request = operation["request"]
        message = Message(
            kind=operation["action"],
            # Opaque, as the real ones are, and the same in each run.
            delivery_id=base64.urlsafe_b64encode(b"delivery" + self.message_count.to_bytes(8)).decode(),
            queued_at=now,
            request=request,
        )
        if self.keep:
            self.messages.append(message)
        if "custom_device" in request:
            ((kind, identifier),) = request["identifiers"].items()
            self._add_device(self._person((kind, str(identifier))), request["custom_device"])
        return message

    def trigger(self, operation: Operation, now: int) -> Broadcast:
        """Take the checked trigger of a broadcast; ``now`` is Unix seconds."""
        self.broadcast_count += 1
        broadcast = Broadcast(
            broadcast_id=operation["broadcast_id"],
            trigger_id=self.broadcast_count,
            triggered_at=now,
            request=operation["request"],
        )
        if self.keep:
            self.broadcasts.append(broadcast)
        return broadcast

    def _apply_event(self, operation: Operation, raw: bytes) -> None:
        person = self._person(person_key(operation["identifiers"]))
        if self.keep:
            person.log_arrival(raw)
        if person.suppressed:
            self.ignored["suppressed"] += 1
            return
        event_id = operation.get("id")
        if event_id is not None and not self._seen.add(event_id):
            self.duplicates_ignored += 1
            return
        self.applied[f"person.{operation['action']}"] += 1
        person.exists = True
        person.operation_count += 1
        if self.keep:
            person.log_applied(raw)
            person.add_event(raw)

    def _apply_change(self, operation: Operation, raw: bytes) -> None:
        people = [self._person(key) for key in people_of(operation)]
        named: list[Entity] = [*people, *(self._object(key) for key in objects_of(operation))]
        if self.keep:
            for entity in named:
                entity.log_arrival(raw)
        reason = self._reason_to_ignore(operation, people)
        if reason is not None:
            self.ignored[reason] += 1
            return
        self._change(operation)
        self.applied[f"{operation['type']}.{operation['action']}"] += 1
        for entity in named:
            entity.operation_count += 1
            if self.keep:
                entity.log_applied(raw)

    @staticmethod
    def _reason_to_ignore(operation: Operation, people: Iterable[Person]) -> str | None:
        if operation["type"] not in ("person", "form") or operation["action"] == "unsuppress":
            return None
        people = tuple(people)
        if any(person.suppressed for person in people):
            return "suppressed"
        wants_existing = operation["action"] == "identify" and _is_update_only(operation)
        return "update_only" if wants_existing and not people[0].exists else None

    def _change(self, operation: Operation) -> None:
        match operation["type"], operation["action"]:
            case "person", action:
                self._change_person(operation, action)
            case "object", action:
                self._change_object(operation, action)
            case "form", _:
                self._identify(operation)
                fields = ("form_id", "identifiers", "attributes")
                self.forms.append({field: operation[field] for field in fields})
            case "segment", action:
                self._change_segment(operation, action)
            case "delivery", "unsubscribe":
                self.unsubscribes[operation["identifiers"]["id"]] = operation["unsubscribe"]
            case _:
                self.metrics.append(_metric_of(operation))

    def _change_person(self, operation: Operation, action: str) -> None:
        if action == "merge":
            self._merge(person_key(operation["primary"]), person_key(operation["secondary"]))
            return
        person = self._person(person_key(operation["identifiers"]))
        match action:
            case "identify":
                self._identify(operation)
            case "delete":
                person.deleted += 1
                self._forget(person)
            case "suppress":
                self._forget(person)
                person.suppressed = True
            case "unsuppress":
                person.suppressed = False
            case "add_device":
                self._add_device(person, operation["device"])
            case "delete_device":
                person.devices.pop(operation["device"]["token"], None)
            case "delete_relationships":
                for other in operation["cio_relationships"]:
                    self._unrelate(person, self._object(object_key(other["identifiers"])))
            case _:
                self._relate_to_objects(person, operation)

    def _identify(self, operation: Operation) -> None:
        person = self._person(person_key(operation["identifiers"]))
        attributes = operation.get("attributes", {})
        if "_update" in attributes:
            attributes = {name: value for name, value in attributes.items() if name != "_update"}
        person.exists = True
        person.update(attributes, operation.get("timestamp"))
        self._relate_to_objects(person, operation)

    def _merge(self, primary_key: PersonKey, secondary_key: PersonKey) -> None:
        primary, secondary = self._person(primary_key), self._person(secondary_key)
        primary.exists = True
        primary.absorb(secondary)
        for key, attributes in secondary.relationships.items():
            self._object(key).relationships.setdefault(primary_key, attributes)
        for members in self.segments.values():
            if secondary_key in members:
                members.add(primary_key)
        self._forget(secondary)
        secondary.merged_into = primary_key

    def _forget(self, person: Person) -> None:
        for key in person.relationships:
            self._object(key).relationships.pop(person.key, None)
        for members in self.segments.values():
            members.discard(person.key)
        person.clear()

    def _change_object(self, operation: Operation, action: str) -> None:
        thing = self._object(object_key(operation["identifiers"]))
        people = [
            (self._person(person_key(other["identifiers"])), other.get("relationship_attributes", {}))
            for other in operation.get("cio_relationships", ())
        ]
        match action:
            case "delete":
                for key in tuple(thing.relationships):
                    self._unrelate(self._person(key), thing)
                thing.clear()
            case "delete_relationships":
                for person, _ in people:
                    self._unrelate(person, thing)
            case _:
                if "anonymous_id" in operation:
                    people.append((self._person(("anonymous", operation["anonymous_id"])), {}))
                thing.exists = True
                _set_or_remove(thing.attributes, operation.get("attributes", {}))
                for person, attributes in people:
                    self._relate(person, thing, attributes)

    def _change_segment(self, operation: Operation, action: str) -> None:
        members = self.segments.setdefault(operation["identifiers"]["id"], set())
        people = [self._person(person_key(identifiers)) for identifiers in operation["people"]]
        keys = {person.key for person in people if not person.suppressed}
        if action == "add_customers":
            members |= keys
        else:
            members -= keys

    def _relate_to_objects(self, person: Person, operation: Operation) -> None:
        for other in operation.get("cio_relationships", ()):
            thing = self._object(object_key(other["identifiers"]))
            self._relate(person, thing, other.get("relationship_attributes", {}))

    @staticmethod
    def _add_device(person: Person, device: Operation) -> None:
        if person.suppressed:
            return
        person.devices[device["token"]] = dict(device)
        person.exists = True

    @staticmethod
    def _relate(person: Person, thing: Object, attributes: Operation) -> None:
        if person.suppressed:
            return
        person.exists = thing.exists = True
        # Both sides hold the same dict: a relationship is one thing.
        shared = person.relationships.setdefault(thing.key, {})
        thing.relationships[person.key] = shared
        _set_or_remove(shared, attributes)

    @staticmethod
    def _unrelate(person: Person, thing: Object) -> None:
        person.relationships.pop(thing.key, None)
        thing.relationships.pop(person.key, None)

    def _person(self, key: PersonKey) -> Person:
        person = self.people.get(key)
        if person is None:
            person = self.people[key] = Person(key)
        return person

    def _object(self, key: ObjectKey) -> Object:
        thing = self.objects.get(key)
        if thing is None:
            thing = self.objects[key] = Object(key)
        return thing


def _event_of(operation: Operation) -> dict[str, Any]:
    return {
        "action": operation["action"],
        "name": operation["name"].strip(),
        "id": operation.get("id"),
        "timestamp": operation.get("timestamp"),
        "attributes": operation.get("attributes", {}),
    }


def _metric_of(operation: Operation) -> dict[str, Any]:
    attributes = dict(operation["attributes"])
    # v2 and the push call name the device, the metrics call names a recipient: the same for a push.
    if "device_token" in attributes:
        attributes["recipient"] = attributes.pop("device_token")
    if "timestamp" in operation:
        attributes["timestamp"] = operation["timestamp"]
    return {
        "delivery_id": operation["identifiers"]["id"],
        "metric": operation["name"],
        **attributes,
    }


def _set_or_remove(attributes: dict[str, Any], changes: Operation) -> None:
    # "Pass null or an empty string to remove an attribute": of objects and of relationships.
    for name, value in changes.items():
        if value is None or value == "":
            attributes.pop(name, None)
        else:
            attributes[name] = value


def _is_update_only(operation: Operation) -> bool:
    return operation.get("attributes", {}).get("_update") is True
