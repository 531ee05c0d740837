"""Track v1 calls, said in Track v2's form.

Rules:

1. The same change said on v1 and on v2 becomes the same operation, so that it leaves the same state and the
   same line in the log of its person.
2. What only v1 can say gets a type of its own (``segment``, ``form``) or an action of its own
   (``delivery`` ``metric`` and ``unsubscribe``).
3. The kind of an identifier in a path is inferred from its shape, as the service does; a phone number there is
   an ``id``.

This module must not know HTTP statuses, the workspace or the faults.

Source: track-openapi.json, paths./api/v1/* and /unsubscribe/{delivery_id}.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from cio_batch.simulator.checks import (
    ANONYMOUS_KINDS,
    MERGE_KINDS,
    PERSON_KINDS,
    Problem,
    check_operation,
    check_text,
    check_timestamp,
    invalid,
    required,
)
from cio_batch.simulator.keys import Operation, is_array, is_object

MAX_EVENT_DATA_BYTES: Final = 100_000
MAX_SEGMENT_IDS: Final = 1_000

METRICS: Final = frozenset({"bounced", "clicked", "converted", "deferred", "delivered", "dropped", "opened", "spammed"})
PUSH_EVENTS: Final = frozenset({"opened", "converted", "delivered"})
RESERVED_FORM_FIELDS: Final = frozenset({"form_id", "form_name", "form_type", "form_url", "form_url_param"})

Translation = tuple[list[Operation], Sequence[Problem]]
"""The operations that a call says, and what is wrong with them; with a problem, none may be applied."""


def identifiers_of(identifier: str) -> dict[str, str]:
    """Return the identifiers that a part of a v1 path stands for, inferred from its shape."""
    if "@" in identifier:
        return {"email": identifier}
    if identifier.startswith("cio_"):
        return {"cio_id": identifier.removeprefix("cio_")}
    return {"id": identifier}


def translate(name: str, parts: Mapping[str, str], query: Mapping[str, str], body: object) -> Translation:
    """Say a v1 call in Track v2's form.

    Args:
        name: The route's name.
        parts: The decoded parts of the path.
        query: The query's parameters.
        body: The parsed JSON; an empty object where the request had no body.

    Returns:
        The operations in their order, and the problems found in them.
    """
    if not is_object(body):
        return [], [Problem("invalid", "", "request body must be a JSON object")]
    match name:
        case "track" | "track_anonymous":
            return _event(parts, body)
        case "identify":
            return _identify(identifiers_of(parts["identifier"]), body)
        case "add_device":
            return _add_device(parts, body)
        case "delete_device":
            device = {"token": parts["device_id"]}
            return _checked(_person(parts, "delete_device") | {"device": device})
        case "delete" | "suppress" | "unsuppress":
            return _checked(_person(parts, name))
        case "merge":
            people = {role: body[role] for role in ("primary", "secondary") if role in body}
            return _checked({"type": "person", "action": "merge"} | people)
        case "add_customers" | "remove_customers":
            return _segment(name, parts["segment_id"], query.get("id_type", "id"), body)
        case "submit_form":
            return _form(parts["form_id"], body.get("data"))
        case "report_push":
            return _push(body)
        case "report_metric":
            return _metric(body)
        case _:
            return _unsubscribe(parts["delivery_id"], body)


def _person(parts: Mapping[str, str], action: str) -> Operation:
    return {"type": "person", "action": action, "identifiers": identifiers_of(parts["identifier"])}


def _checked(
    *operations: Operation, kinds: frozenset[str] = PERSON_KINDS, names: Mapping[str, str] | None = None
) -> Translation:
    problems = [problem for operation in operations for problem in check_operation(operation, kinds)]
    if names:
        problems = [_renamed(problem, names) for problem in problems]
    return list(operations), problems


def _renamed(problem: Problem, names: Mapping[str, str]) -> Problem:
    # The caller must read the name that it wrote, not the one of v2.
    field = names.get(problem.field, problem.field)
    return Problem(problem.reason, field, field + problem.message.removeprefix(problem.field))


def _event(parts: Mapping[str, str], body: Operation) -> Translation:
    kinds = PERSON_KINDS if "identifier" in parts else ANONYMOUS_KINDS
    identifiers: dict[str, Any] = (
        identifiers_of(parts["identifier"]) if "identifier" in parts else {"anonymous_id": body.get("anonymous_id", "")}
    )
    # "Any other event is given the event type."
    action = body["type"] if body.get("type") in ("page", "screen") else "event"
    operation: Operation = {"type": "person", "action": action, "identifiers": identifiers}
    for field in ("name", "id", "timestamp"):
        if field in body:
            operation[field] = body[field]
    if "data" in body:
        operation["attributes"] = body["data"]
    operations, problems = _checked(operation, kinds=kinds, names={"attributes": "data"})
    if not problems and len(orjson.dumps(body.get("data"))) > MAX_EVENT_DATA_BYTES:
        problems = [invalid("data", f"must be {MAX_EVENT_DATA_BYTES} bytes or fewer")]
    return operations, problems


def _identify(identifiers: dict[str, str], body: Operation) -> Translation:
    attributes = dict(body)
    relationships = attributes.pop("cio_relationships", None)
    identify: Operation = {"type": "person", "action": "identify", "identifiers": identifiers}
    if "_timestamp" in attributes:
        identify["timestamp"] = attributes.pop("_timestamp")
    names = {"timestamp": "_timestamp", "cio_relationships": "cio_relationships.relationships"}
    if relationships is None:
        return _checked(identify | {"attributes": attributes}, names=names)

    if not is_object(relationships):
        return [], [invalid("cio_relationships", "must be an object")]
    action = relationships.get("action")
    if action not in ("add_relationships", "delete_relationships"):
        message = "must be one of add_relationships, delete_relationships"
        return [], [invalid("cio_relationships.action", message)]
    others = {"cio_relationships": relationships.get("relationships")}
    if not attributes:
        # v1 has no other way to say v2's two relationship actions.
        relate: Operation = {"type": "person", "action": action, "identifiers": identifiers}
        return _checked(relate | others, names=names)
    identify["attributes"] = attributes
    if action == "add_relationships":
        return _checked(identify | others, names=names)
    unrelate: Operation = {"type": "person", "action": action, "identifiers": identifiers}
    return _checked(identify, unrelate | others, names=names)


def _add_device(parts: Mapping[str, str], body: Operation) -> Translation:
    device = body.get("device")
    if is_object(device) and "id" in device:
        device = {("token" if name == "id" else name): value for name, value in device.items()}
    elif is_object(device):
        device = {name: value for name, value in device.items() if name != "token"}
    return _checked(_person(parts, "add_device") | {"device": device}, names={"device.token": "device.id"})


def _segment(action: str, segment: str, id_type: str, body: Operation) -> Translation:
    if not (segment.isascii() and segment.isdigit()):
        return [], [invalid("segment_id", "must be an integer")]
    if id_type not in MERGE_KINDS:
        return [], [invalid("id_type", "must be one of id, email, cio_id")]
    ids = body.get("ids")
    if ids is None:
        return [], [required("ids")]
    if not is_array(ids):
        return [], [invalid("ids", "must be an array")]
    if not 1 <= len(ids) <= MAX_SEGMENT_IDS:
        return [], [invalid("ids", f"must have between 1 and {MAX_SEGMENT_IDS} entries")]
    # Entries that do not match the id_type are ignored, not refused.
    people = [{id_type: each} for each in ids if isinstance(each, str) and each]
    operation: Operation = {
        "type": "segment",
        "action": action,
        "identifiers": {"id": int(segment)},
        "people": people,
    }
    return [operation], []


def _form(form_id: str, data: object) -> Translation:
    if data is None:
        return [], [required("data")]
    if not is_object(data):
        return [], [invalid("data", "must be an object")]
    named = [kind for kind in ("id", "email") if data.get(kind)]
    if len(named) != 1:
        return [], [invalid("data", "must contain exactly one of id, email")]
    kind = named[0]
    # The schema calls every value a string, yet its own example has the id 12345.
    identifier = str(data[kind]) if isinstance(data[kind], int) else data[kind]
    fields = {
        name: value for name, value in data.items() if name not in RESERVED_FORM_FIELDS and name not in ("id", "email")
    }
    problems = [
        invalid(f"data.{name}", "must be a string")
        for name, value in {**fields, kind: identifier}.items()
        if not isinstance(value, str)
    ]
    operation: Operation = {
        "type": "form",
        "action": "submit",
        "form_id": form_id,
        "identifiers": {kind: identifier},
        "attributes": fields,
    }
    return [operation], problems


def _push(body: Operation) -> Translation:
    problems = _check_report(body, "event", PUSH_EVENTS)
    operation: Operation = {
        "type": "delivery",
        "action": "event",
        "identifiers": {"id": body.get("delivery_id")},
        "name": body.get("event"),
        "attributes": {"device_token": body["device_id"]} if "device_id" in body else {},
    }
    if "timestamp" in body:
        operation["timestamp"] = body["timestamp"]
    return [operation], problems


def _metric(body: Operation) -> Translation:
    problems = _check_report(body, "metric", METRICS)
    rest = {name: value for name, value in body.items() if name not in ("delivery_id", "metric")}
    operation: Operation = {
        "type": "delivery",
        "action": "metric",
        "identifiers": {"id": body.get("delivery_id")},
        "name": body.get("metric"),
        "attributes": rest,
    }
    return [operation], problems


def _check_report(body: Operation, field: str, names: frozenset[str]) -> list[Problem]:
    problems = check_text(body.get("delivery_id"), "delivery_id")
    name = body.get(field)
    if name is None:
        problems.append(required(field))
    elif not isinstance(name, str) or name not in names:
        problems.append(invalid(field, f"must be one of {', '.join(sorted(names))}"))
    if "timestamp" in body:
        problems += check_timestamp(body["timestamp"])
    return problems


def _unsubscribe(delivery_id: str, body: Operation) -> Translation:
    wanted = body.get("unsubscribe")
    problems = [] if isinstance(wanted, bool) else [invalid("unsubscribe", "must be a boolean")]
    operation: Operation = {
        "type": "delivery",
        "action": "unsubscribe",
        "identifiers": {"id": delivery_id},
        "unsubscribe": wanted,
    }
    return [operation], problems
