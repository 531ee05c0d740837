"""The simulator's own calls, for whoever runs in another process.

==========================================  =========================================================
``GET /simulator/state``                    counts: people, operations, messages, calls, faults, overlaps
``GET /simulator/people``                   every person: kind, identifier, number of operations
``GET /simulator/people/{kind}/{id}``       one person's state, ``operations`` and ``first_arrivals``
``POST /simulator/faults``                  ``{"rates", "seed", "options", "order": [{"kind", "times", …}]}``
``POST /simulator/reset``                   an empty workspace, no counts, no faults
==========================================  =========================================================

Rules:

1. No credentials are asked, and no call here changes what ``Traffic`` counts.
2. A request to ``faults`` is carried out whole or, where something in it is wrong, not at all.

This module must not know aiohttp: it turns a request line and a body into a status and a body.
"""

from collections.abc import Callable
from typing import Any, Protocol, cast

import orjson

from cio_batch.simulator.faults import Faults
from cio_batch.simulator.keys import is_array, is_object
from cio_batch.simulator.routes import split_path
from cio_batch.simulator.traffic import Traffic
from cio_batch.simulator.workspace import Workspace

Answer = tuple[int, bytes]
"""A status and a JSON body."""


class Controlled(Protocol):
    """What these calls look at and change."""

    workspace: Workspace
    traffic: Traffic
    faults: Faults

    def reset(self) -> None:
        """Begin anew."""


def answer_control(simulator: Controlled, method: str, raw_path: str, body: bytes) -> Answer:
    """Answer a call below ``/simulator/``."""
    try:
        parts = split_path(raw_path)[2:]
    except UnicodeDecodeError:
        return _error(400, "the path is not UTF-8")
    match method, parts:
        case "GET", ["state"]:
            return _ok(state_of(simulator))
        case "GET", ["people"]:
            return _ok([_line_of(simulator.workspace, key) for key in simulator.workspace.people])
        case "GET", ["people", kind, identifier]:
            return _person(simulator.workspace, kind, identifier)
        case "POST", ["faults"]:
            return _set_faults(simulator.faults, body)
        case "POST", ["reset"]:
            simulator.reset()
            return _ok({})
        case _:
            return _error(404, "no such call")


def state_of(simulator: Controlled) -> dict[str, Any]:
    """Return the counts as ``GET /simulator/state`` answers them."""
    workspace, traffic, faults = simulator.workspace, simulator.traffic, simulator.faults
    return {
        "people": len(workspace.people),
        "objects": len(workspace.objects),
        "operations": dict(workspace.applied),
        "ignored": dict(workspace.ignored),
        "duplicates_ignored": workspace.duplicates_ignored,
        "messages": workspace.message_count,
        "broadcasts": workspace.broadcast_count,
        "calls": traffic.calls,
        "calls_by_path": dict(traffic.calls_by_path),
        "unknown_calls": traffic.unknown_calls,
        "batches": len(traffic.batch_sizes),
        "batched_operations": sum(traffic.batch_sizes),
        "largest_body_bytes": traffic.largest_body_bytes,
        "statuses": {str(status): count for status, count in traffic.statuses.items()},
        "retried_calls": traffic.retried_calls,
        "user_agents": sorted(traffic.user_agents),
        "max_overlap": traffic.max_overlap,
        "person_overlaps": traffic.person_overlaps,
        "object_overlaps": traffic.object_overlaps,
        "faults": dict(faults.injected),
        "faults_waiting": faults.waiting,
        "refused_operations": len(faults.refused_operations),
    }


def _line_of(workspace: Workspace, key: tuple[str, str]) -> dict[str, Any]:
    return {"kind": key[0], "identifier": key[1], "operations": workspace.people[key].operation_count}


def _person(workspace: Workspace, kind: str, identifier: str) -> Answer:
    person = workspace.people.get((kind, identifier))
    if person is None:
        return _error(404, "no such person")
    return _ok(
        {
            "kind": kind,
            "identifier": identifier,
            "exists": person.exists,
            "suppressed": person.suppressed,
            "deleted": person.deleted,
            "merged_into": person.merged_into,
            "attributes": person.attributes,
            "devices": person.devices,
            "relationships": [
                {"object": key, "attributes": attributes} for key, attributes in person.relationships.items()
            ],
            "events": person.events,
            "operation_count": person.operation_count,
            "operations": person.operations,
            "first_arrivals": person.first_arrivals,
        }
    )


def _set_faults(faults: Faults, body: bytes) -> Answer:
    try:
        wanted = orjson.loads(body)
    except orjson.JSONDecodeError:
        return _error(400, "the body is not valid JSON")
    if not is_object(wanted):
        return _error(400, "the body must be an object")
    unknown = wanted.keys() - {"rates", "seed", "options", "order"}
    if unknown:
        return _error(400, f"unknown: {', '.join(sorted(unknown))}")
    try:
        # Once on a copy: what fails there has changed nothing here.
        for target in (Faults(), faults):
            _carry_out(target, wanted)
    except (ValueError, TypeError) as error:
        return _error(400, str(error))
    return _ok({"rates": dict(faults.rates), "faults_waiting": faults.waiting})


def _carry_out(faults: Faults, wanted: dict[str, Any]) -> None:
    if wanted.keys() & {"rates", "seed", "options"}:
        if not is_object(wanted.get("rates", {})):
            message = "rates must be an object"
            raise TypeError(message)
        # From here on the values are checked where they arrive: the fault checks itself.
        mix = cast("Callable[..., None]", faults.mix)
        mix(wanted.get("rates", {}), wanted.get("seed", 0), **_options_of(wanted.get("options", {})))
    orders = wanted.get("order", [])
    for each in orders if is_array(orders) else [orders]:
        order = cast("Callable[..., None]", faults.order)
        order(**_options_of(each))


def _options_of(content: object) -> dict[str, Any]:
    if not is_object(content):
        message = "options and orders must be objects"
        raise TypeError(message)
    return {
        name: value.encode() if name == "body" and isinstance(value, str) else value for name, value in content.items()
    }


def _ok(content: Any) -> Answer:
    return 200, orjson.dumps(content) + b"\n"


def _error(status: int, message: str) -> Answer:
    return status, orjson.dumps({"error": message}) + b"\n"
