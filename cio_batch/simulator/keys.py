"""Whom an operation names: the keys of its people and objects, as the caller wrote them.

Rules:

1. A person is the identifier as given: ``("id", "42")`` and ``("email", "a@b.c")`` are two people here,
   even where the real service would know them to be one. Order per person is promised for the same notion.
2. A merge names two people, a relationship a person and an object, a segment call everyone on its list. A message and
   a broadcast name no one here: they are no change, and nothing promises an order between them and what changes.
3. Only operations that passed their checks are asked; nothing here guards against a missing field.

This module must not know HTTP, the workspace or the checks.
"""

from collections.abc import Mapping
from typing import Any, TypeGuard

Operation = dict[str, Any]
"""One change in Track v2's form, as parsed JSON; calls of v1 are translated into it."""

PersonKey = tuple[str, str]
"""(kind, identifier); the kind is ``id``, ``email``, ``phone``, ``cio_id`` or ``anonymous``."""

ObjectKey = tuple[str, str]
"""(object_type_id, object_id), or ``("cio_object_id", value)``."""


def is_object(value: object) -> TypeGuard[dict[str, Any]]:
    """Say whether a parsed JSON value is an object."""
    return isinstance(value, dict)


def is_array(value: object) -> TypeGuard[list[Any]]:
    """Say whether a parsed JSON value is an array."""
    return isinstance(value, list)


def person_key(identifiers: Mapping[str, Any]) -> PersonKey:
    """Return the key of the person that checked ``identifiers`` name."""
    ((kind, value),) = identifiers.items()
    return ("anonymous" if kind == "anonymous_id" else kind, value)


def object_key(identifiers: Mapping[str, Any]) -> ObjectKey:
    """Return the key of the object that checked ``identifiers`` name."""
    if "cio_object_id" in identifiers:
        return ("cio_object_id", identifiers["cio_object_id"])
    return (identifiers["object_type_id"], identifiers["object_id"])


def people_of(operation: Operation) -> list[PersonKey]:
    """Return every person that the operation names, in the order in which it names them."""
    match operation["type"]:
        case "person" if operation["action"] == "merge":
            return [person_key(operation["primary"]), person_key(operation["secondary"])]
        case "person" | "form":
            return [person_key(operation["identifiers"])]
        case "object":
            people = [person_key(other["identifiers"]) for other in operation.get("cio_relationships", ())]
            if "anonymous_id" in operation:
                people.append(("anonymous", operation["anonymous_id"]))
            return people
        case "segment":
            return [person_key(identifiers) for identifiers in operation["people"]]
        case _:
            return []


def objects_of(operation: Operation) -> list[ObjectKey]:
    """Return every object that the operation names, in the order in which it names them."""
    match operation["type"]:
        case "object":
            return [object_key(operation["identifiers"])]
        case "person":
            return [object_key(other["identifiers"]) for other in operation.get("cio_relationships", ())]
        case _:
            return []
