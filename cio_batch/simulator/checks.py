"""What Customer.io would refuse in one operation: a list of problems, empty when it is fine.

Rules:

1. The published schemas decide; the documented limits are counted in bytes of UTF-8, with KB as 1,000.
2. A problem names its field and its reason as the 207 answer does: ``{reason, field, message}``.
3. Where the schemas are silent about an unknown top-level field, it is refused: the service would let its
   content fall without a word (``data`` instead of ``attributes`` is the commonest), and a test must hear of it.
4. A valid event, page or screen takes a short way of its own: it is nearly all of what arrives.

This module must not know HTTP, the workspace or the faults.

Source: track-openapi.json, components.schemas.person_operations, object_operations, delivery_operations.
"""

import re
from collections.abc import Sequence
from typing import Final, NamedTuple, TypeGuard

import orjson

from cio_batch.simulator.keys import Operation, is_array, is_object

MAX_BATCH_BYTES: Final = 500_000
"""A batch request must be *smaller* than this."""
MAX_OPERATION_BYTES: Final = 32_000
MAX_IDENTIFIER_BYTES: Final = 150
MAX_EVENT_NAME_BYTES: Final = 100
MAX_ATTRIBUTE_NAME_BYTES: Final = 150
MAX_ATTRIBUTE_VALUE_BYTES: Final = 1_000
MAX_ATTRIBUTES: Final = 300
MAX_OBJECT_ATTRIBUTES_BYTES: Final = 100_000

EVENT_ACTIONS: Final = frozenset({"event", "page", "screen"})
PERSON_KINDS: Final = frozenset({"id", "email", "phone", "cio_id"})
MERGE_KINDS: Final = PERSON_KINDS - {"phone"}
ANONYMOUS_KINDS: Final = frozenset({"anonymous_id"})
DELIVERY_METRICS: Final = frozenset({"opened", "converted", "delivered"})
PLATFORMS: Final = frozenset({"ios", "android"})

ULID: Final = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}", re.IGNORECASE)
PHONE: Final = re.compile(r"\+[0-9]{1,15}")

_COMMON: Final = frozenset({"type", "action", "identifiers"})
_EVENT_FIELDS: Final = _COMMON | {"name", "id", "timestamp", "attributes"}
_RELATIONSHIP_FIELDS: Final = _COMMON | {"cio_relationships"}
_FIELDS: Final[dict[str, dict[str, frozenset[str]]]] = {
    "person": {
        "identify": _COMMON | {"timestamp", "attributes", "cio_relationships"},
        "delete": _COMMON,
        "event": _EVENT_FIELDS,
        "page": _EVENT_FIELDS,
        "screen": _EVENT_FIELDS,
        "add_relationships": _RELATIONSHIP_FIELDS,
        "delete_relationships": _RELATIONSHIP_FIELDS,
        "add_device": _COMMON | {"device"},
        "delete_device": _COMMON | {"device"},
        "merge": frozenset({"type", "action", "primary", "secondary"}),
        "suppress": _COMMON,
        "unsuppress": _COMMON,
    },
    "object": {
        "identify": _COMMON | {"attributes", "cio_relationships"},
        # `anonymous_id` stands in the schema's own example, though not among its properties.
        "identify_anonymous": _COMMON | {"attributes", "cio_relationships", "anonymous_id"},
        "delete": _COMMON,
        "add_relationships": _RELATIONSHIP_FIELDS,
        "delete_relationships": _RELATIONSHIP_FIELDS,
    },
    "delivery": {"event": _COMMON | {"name", "attributes"}},
}


class Problem(NamedTuple):
    """One reason to refuse an operation, as the answer names it."""

    reason: str
    field: str
    message: str


def required(field: str) -> Problem:
    """Return the problem of a field that is missing."""
    return Problem("required", field, f"{field} is required")


def invalid(field: str, message: str) -> Problem:
    """Return the problem of a field whose content is wrong; the message goes on where the field's name ends."""
    return Problem("invalid", field, f"{field} {message}")


def check_operation(operation: object, kinds: frozenset[str] = PERSON_KINDS) -> Sequence[Problem]:
    """Check one operation in Track v2's form against the published schemas and limits.

    The size of the whole operation is not looked at: only the caller knows the bytes.

    Args:
        operation: The parsed JSON of one operation, whatever it is.
        kinds: The identifiers by which it may name a person.

    Returns:
        Every problem found, in the order of the fields; empty when the operation is valid.
    """
    if not is_object(operation):
        return [Problem("invalid", "", "operation must be an object")]
    if _is_plain_event(operation, kinds):
        return ()
    return _check_slowly(operation, kinds)


def check_name(value: object, field: str = "name") -> list[Problem]:
    """Check an event's name; the service trims the space around it before it looks at it."""
    if value is None:
        return [required(field)]
    if not isinstance(value, str):
        return [invalid(field, "must be a string")]
    name = value.strip()
    if not name:
        return [invalid(field, "cannot be blank")]
    if _utf8_bytes(name) > MAX_EVENT_NAME_BYTES:
        return [invalid(field, f"must be {MAX_EVENT_NAME_BYTES} bytes or fewer")]
    return []


def check_person(value: object, field: str, kinds: frozenset[str]) -> list[Problem]:
    """Check that ``value`` names exactly one person by one of ``kinds``."""
    if value is None:
        return [required(field)]
    if not is_object(value):
        return [invalid(field, "must be an object")]
    if len(value) != 1 or not kinds.issuperset(value):
        return [invalid(field, f"must contain exactly one of {', '.join(sorted(kinds))}")]
    ((kind, identifier),) = value.items()
    return _check_identifier(identifier, f"{field}.{kind}", kind)


def check_text(value: object, field: str) -> list[Problem]:
    """Check a required string that must not be empty."""
    if value is None:
        return [required(field)]
    if not isinstance(value, str):
        return [invalid(field, "must be a string")]
    if not value:
        return [invalid(field, "cannot be blank")]
    return []


def check_timestamp(value: object, field: str = "timestamp") -> list[Problem]:
    """Check that a time is a whole number of Unix seconds (``true`` is no number)."""
    if isinstance(value, int) and not isinstance(value, bool):
        return []
    return [invalid(field, "must be an integer Unix timestamp in seconds")]


def _is_plain_event(operation: Operation, kinds: frozenset[str]) -> bool:
    # Says yes only to what the slow way would accept too; "no" decides nothing. A tuple, since what stands in
    # "action" may be unhashable.
    if operation.get("action") not in ("event", "page", "screen") or operation.get("type") != "person":
        return False
    identifiers = operation.get("identifiers")
    if not is_object(identifiers) or len(identifiers) != 1 or not _EVENT_FIELDS.issuperset(operation):
        return False
    ((kind, identifier),) = identifiers.items()
    name = operation.get("name")
    if kind == "phone" or kind not in kinds or not _is_short(identifier, MAX_IDENTIFIER_BYTES):
        return False
    if not _is_short(name, MAX_EVENT_NAME_BYTES) or not name.strip():
        return False
    if "id" in operation:
        event_id = operation["id"]
        if not isinstance(event_id, str) or ULID.fullmatch(event_id) is None:
            return False
    if "timestamp" in operation and type(operation["timestamp"]) is not int:
        return False
    return "attributes" not in operation or is_object(operation["attributes"])


def _is_short(value: object, max_bytes: int) -> TypeGuard[str]:
    # An ASCII string has as many bytes as characters: no need to encode it to know.
    return isinstance(value, str) and 0 < len(value) <= max_bytes and value.isascii()


def _check_slowly(operation: Operation, kinds: frozenset[str]) -> list[Problem]:
    kind, action = operation.get("type"), operation.get("action")
    if kind is None:
        return [required("type")]
    actions = _FIELDS.get(kind) if isinstance(kind, str) else None
    if actions is None:
        return [invalid("type", f"must be one of {', '.join(_FIELDS)}")]
    if action is None:
        return [required("action")]
    fields = actions.get(action) if isinstance(action, str) else None
    if fields is None:
        return [invalid("action", f"must be one of {', '.join(actions)} for type {kind}")]

    problems = [
        Problem("unknown", field, f"{field} is not a field of {kind} {action}")
        for field in operation
        if field not in fields
    ]
    match kind:
        case "person":
            problems += _check_person_operation(operation, str(action), kinds)
        case "object":
            problems += _check_object_operation(operation, str(action))
        case _:
            problems += _check_delivery_operation(operation)
    return problems


def _check_person_operation(operation: Operation, action: str, kinds: frozenset[str]) -> list[Problem]:
    if action == "merge":
        problems = [
            *check_person(operation.get("primary"), "primary", MERGE_KINDS),
            *check_person(operation.get("secondary"), "secondary", MERGE_KINDS),
        ]
        if not problems and operation["primary"] == operation["secondary"]:
            problems.append(invalid("secondary", "must not be the same person as primary"))
        return problems

    problems = check_person(operation.get("identifiers"), "identifiers", kinds)
    if action in EVENT_ACTIONS:
        problems += check_name(operation.get("name"))
        if "id" in operation and not _is_ulid(operation["id"]):
            problems.append(invalid("id", "must be a valid ULID"))
    if "timestamp" in operation:
        problems += check_timestamp(operation["timestamp"])
    if "attributes" in operation:
        problems += (
            _check_attributes(operation["attributes"], "attributes")
            if action == "identify"
            else _check_is_object(operation["attributes"], "attributes")
        )
    if action in ("add_device", "delete_device"):
        problems += _check_device(operation.get("device"), adding=action == "add_device")
    problems += _check_relationships(operation, action, to_objects=True)
    return problems


def _check_object_operation(operation: Operation, action: str) -> list[Problem]:
    problems = _check_object_identifiers(operation.get("identifiers"), "identifiers")
    if "attributes" in operation:
        attributes = operation["attributes"]
        found = _check_attributes(attributes, "attributes")
        if not found and len(orjson.dumps(attributes)) > MAX_OBJECT_ATTRIBUTES_BYTES:
            found.append(invalid("attributes", f"must be {MAX_OBJECT_ATTRIBUTES_BYTES} bytes or fewer"))
        problems += found
    if "anonymous_id" in operation:
        problems += _check_identifier(operation["anonymous_id"], "anonymous_id", "anonymous_id")
    problems += _check_relationships(operation, action, to_objects=False)
    return problems


def _check_delivery_operation(operation: Operation) -> list[Problem]:
    identifiers = operation.get("identifiers")
    if identifiers is None:
        problems = [required("identifiers")]
    elif not is_object(identifiers):
        problems = [invalid("identifiers", "must be an object")]
    else:
        problems = check_text(identifiers.get("id"), "identifiers.id")

    name = operation.get("name")
    if name is None:
        problems.append(required("name"))
    elif not isinstance(name, str) or name not in DELIVERY_METRICS:
        problems.append(invalid("name", "must be one of converted, delivered, opened"))

    attributes = operation.get("attributes")
    if attributes is None:
        problems.append(required("attributes"))
    elif not is_object(attributes):
        problems.append(invalid("attributes", "must be an object"))
    else:
        problems += check_text(attributes.get("device_token"), "attributes.device_token")
    return problems


def _check_relationships(operation: Operation, action: str, *, to_objects: bool) -> list[Problem]:
    field = "cio_relationships"
    others = operation.get(field)
    if others is None:
        is_required = action in ("add_relationships", "delete_relationships") or field in operation
        return [required(field)] if is_required else []
    if not is_array(others):
        return [invalid(field, "must be an array")]
    kinds = ANONYMOUS_KINDS if action == "identify_anonymous" else MERGE_KINDS
    problems: list[Problem] = []
    for index, other in enumerate(others):
        where = f"{field}[{index}]"
        if not is_object(other):
            problems.append(invalid(where, "must be an object"))
            continue
        identifiers = other.get("identifiers")
        problems += (
            _check_object_identifiers(identifiers, f"{where}.identifiers")
            if to_objects
            else check_person(identifiers, f"{where}.identifiers", kinds)
        )
        if "relationship_attributes" in other:
            problems += _check_attributes(other["relationship_attributes"], f"{where}.relationship_attributes")
    return problems


def _check_object_identifiers(value: object, field: str) -> list[Problem]:
    if value is None:
        return [required(field)]
    if not is_object(value):
        return [invalid(field, "must be an object")]
    if value.keys() not in ({"object_type_id", "object_id"}, {"cio_object_id"}):
        return [invalid(field, "must contain object_type_id and object_id, or cio_object_id")]
    problems: list[Problem] = []
    for part, text in value.items():
        problems += _check_identifier(text, f"{field}.{part}", part)
    return problems


def _check_identifier(value: object, field: str, kind: str) -> list[Problem]:
    if not isinstance(value, str):
        return [invalid(field, "must be a string")]
    # An anonymous event of v1 may come without any anonymous_id at all.
    if not value and kind != "anonymous_id":
        return [invalid(field, "cannot be blank")]
    if _utf8_bytes(value) > MAX_IDENTIFIER_BYTES:
        return [invalid(field, f"must be {MAX_IDENTIFIER_BYTES} bytes or fewer")]
    if kind == "phone" and PHONE.fullmatch(value) is None:
        return [invalid(field, "must be in E.164 format")]
    return []


def _check_attributes(attributes: object, field: str) -> list[Problem]:
    if not is_object(attributes):
        return [invalid(field, "must be an object")]
    problems = _check_attribute_names(attributes, field)
    if len(attributes) > MAX_ATTRIBUTES:
        problems.append(invalid(field, f"must have {MAX_ATTRIBUTES} attributes or fewer"))
    problems += [
        invalid(f"{field}.{name}", f"must be {MAX_ATTRIBUTE_VALUE_BYTES} bytes or fewer")
        for name, value in attributes.items()
        if _value_bytes(value) > MAX_ATTRIBUTE_VALUE_BYTES
    ]
    return problems


def _check_attribute_names(attributes: Operation, field: str) -> list[Problem]:
    return [
        invalid(field, f"must have names of {MAX_ATTRIBUTE_NAME_BYTES} bytes or fewer")
        for name in attributes
        if len(name) > MAX_ATTRIBUTE_NAME_BYTES // 4 and _utf8_bytes(name) > MAX_ATTRIBUTE_NAME_BYTES
    ]


def _check_device(device: object, *, adding: bool) -> list[Problem]:
    if device is None:
        return [required("device")]
    if not is_object(device):
        return [invalid("device", "must be an object")]
    problems = check_text(device.get("token"), "device.token")
    if not adding:
        return problems
    platform = device.get("platform")
    if platform is None:
        problems.append(required("device.platform"))
    elif not isinstance(platform, str) or platform not in PLATFORMS:
        problems.append(invalid("device.platform", "must be one of ios, android"))
    if "last_used" in device:
        problems += check_timestamp(device["last_used"], "device.last_used")
    if "attributes" in device:
        problems += _check_is_object(device["attributes"], "device.attributes")
    return problems


def _check_is_object(value: object, field: str) -> list[Problem]:
    return [] if is_object(value) else [invalid(field, "must be an object")]


def _is_ulid(value: object) -> bool:
    return isinstance(value, str) and ULID.fullmatch(value) is not None


def _value_bytes(value: object) -> int:
    if isinstance(value, str):
        return len(value) if value.isascii() else _utf8_bytes(value)
    if isinstance(value, (bool, int, float)) or value is None:
        return 0
    return len(orjson.dumps(value))


def _utf8_bytes(text: str) -> int:
    return len(text.encode())
