"""Track v1: one call per operation.

The canonical form of an operation is that of v2; it is translated when it is sent, the same way each time. What v1
cannot say (objects, people named by phone) is refused at the door.

Source: Track API, paths under ``/api/v1``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final
from urllib.parse import quote

import orjson

from cio_batch.errors import InvalidOperationError
from cio_batch.operations import Operation
from cio_batch.settings import Settings
from cio_batch.transports.base import Call
from cio_batch.transports.http import HttpClient, basic_credentials
from cio_batch.verdicts import Judgement, Next, Rejection, judge_call

_EVENTS: Final = frozenset({"event", "page", "screen"})


class TrackV1Transport:
    """Sends each operation of a chunk by a call of its own, in order.

    ``max_operations`` is 50: a chunk holds one slot of the semaphore for that many calls.

    Args:
        settings: Credentials, host, HTTP options.

    Raises:
        ConfigurationError: Names the credentials that are missing.
    """

    max_operations: int = 50
    max_bytes: int = 1_600_001  # 50 operations of 32 KB; there is no common body to limit
    envelope_bytes: int = 0
    apart: frozenset[str] = frozenset()
    max_apart: int = 1

    def __init__(self, settings: Settings) -> None:
        self._client = open_track_client(settings)
        self.check: Callable[[Operation], None] | None = refuse_unsayable

    async def send(self, operations: Sequence[Operation], call: Call) -> Judgement:
        """Send the operations in order, until one is undecided."""
        return await send_in_order(self._client, operations, call)

    def update_credentials(self, site_id: str, track_api_key: str) -> None:
        """Use other credentials from now on, instead of those in the settings or of their function."""
        self._client.authorize(basic_credentials(site_id, track_api_key))

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


def open_track_client(settings: Settings) -> HttpClient:
    """Return a client of the Track API; it connects when it is first used."""

    def authorize() -> str:
        return basic_credentials(*settings.require_track())

    renew = None if settings.track_credentials is None else authorize
    return HttpClient(settings.track_origin, authorize(), settings.http, renew=renew)


async def send_in_order(client: HttpClient, operations: Sequence[Operation], call: Call) -> Judgement:
    """Send each operation by its v1 call and stop at the first that is undecided: order comes before speed."""
    rejected: dict[int, Rejection] = {}
    for index, operation in enumerate(operations):
        try:
            refuse_unsayable(operation)  # again: a spool may bring what another transport was to send
        except InvalidOperationError as error:
            rejected[index] = Rejection("unsayable", error.field, error.reason)
            continue
        method, path, body = translate(operation)
        await call.gate()
        # Only the first one can have been sent before: a repeat begins where the last attempt stopped.
        answer = await client.request(method, path, body, attempt=call.attempt if index == 0 else 0)
        judgement = judge_call(answer, time.time())
        if judgement.rejected:
            rejected[index] = judgement.rejected[0]
        elif judgement.next is not Next.NOTHING:
            return Judgement(
                index,
                rejected=rejected,
                next=judgement.next,
                reason=judgement.reason,
                status=judgement.status,
                retry_after=judgement.retry_after,
                blames=judgement.blames,
            )
    return Judgement(len(operations), rejected=rejected)


def refuse_unsayable(operation: Operation) -> None:
    """Raise ``InvalidOperationError`` for what Track v1 cannot say."""
    key, kind = operation.key, operation.kind
    if kind.startswith("object."):
        raise InvalidOperationError("kind", f"{kind} cannot be said on Track v1; use TrackV2Transport")
    if type(key) is bytes and key.startswith(b'{"phone":'):
        raise InvalidOperationError("user_id", "a phone cannot be said in a path of Track v1; use TrackV2Transport")
    if type(key) is tuple and kind != "person.merge" and b'"identifiers":{"phone":' in operation.body[:80]:
        raise InvalidOperationError("user_id", "a phone cannot be said in a path of Track v1; use TrackV2Transport")


def translate(operation: Operation) -> tuple[str, str, bytes | None]:
    """Return method, path (encoded) and body of the v1 call that says what the operation says."""
    user_id, canonical = operation.key, operation.body
    if type(user_id) is str and operation.kind == "person.event" and (body := _cut_event(canonical)) is not None:
        return "POST", f"/api/v1/customers/{quote(user_id, safe='')}/events", body
    wire: dict[str, Any] = orjson.loads(canonical)
    kind, action = wire["type"], wire["action"]
    if kind == "delivery":
        metric = {
            "delivery_id": wire["identifiers"]["id"],
            "metric": wire["name"],
            "recipient": wire["attributes"]["device_token"],
        }
        return "POST", "/api/v1/metrics", orjson.dumps(metric)
    if action in _EVENTS:
        event: dict[str, Any] = {"name": wire["name"], "id": wire["id"], "timestamp": wire["timestamp"]}
        if action != "event":
            event["type"] = action
        if "attributes" in wire:
            event["data"] = wire["attributes"]
        if kind == "anonymous":
            event["anonymous_id"] = wire["identifiers"]["anonymous_id"]
            return "POST", "/api/v1/events", orjson.dumps(event)
        return "POST", f"{_customer(wire)}/events", orjson.dumps(event)
    if action == "merge":
        pair = {"primary": wire["primary"], "secondary": wire["secondary"]}
        return "POST", "/api/v1/merge_customers", orjson.dumps(pair)
    customer = _customer(wire)
    if action == "identify":
        attributes: dict[str, Any] = dict(wire.get("attributes", {}))
        if "timestamp" in wire:
            attributes["_timestamp"] = wire["timestamp"]
        if "cio_relationships" in wire:
            attributes["cio_relationships"] = _relationships("add_relationships", wire)
        return "PUT", customer, orjson.dumps(attributes)
    if action in ("add_relationships", "delete_relationships"):
        return "PUT", customer, orjson.dumps({"cio_relationships": _relationships(action, wire)})
    if action == "add_device":
        device = dict(wire["device"])
        device["id"] = device.pop("token")
        return "PUT", f"{customer}/devices", orjson.dumps({"device": device})
    if action == "delete_device":
        return "DELETE", f"{customer}/devices/{quote(wire['device']['token'], safe='')}", None
    if action == "delete":
        return "DELETE", customer, None
    return "POST", f"{customer}/{action}", None  # suppress, unsuppress


_BEFORE_NAME: Final = b'{"type":"person","action":"event",'
_BEFORE_DATA: Final = b'","attributes":'


def _cut_event(body: bytes) -> bytes | None:
    """The v1 body of an event, cut out of its canonical form without reading it, which would take five times as long.

    ``None`` for what has the parts in another order than ``encode`` gives them. No text can be taken for the names that
    are looked for: its quotes are escaped.
    """
    name, _, rest = body.partition(b',"identifiers":{"id":')
    _, _, rest = rest.partition(b'},"id":')
    ulid, end = rest[:27], rest[27:]
    if not name.startswith(_BEFORE_NAME):
        return None
    if end.startswith(_BEFORE_DATA):
        return b"".join((b"{", name[len(_BEFORE_NAME) :], b',"id":', ulid, b'","data":', end[len(_BEFORE_DATA) :]))
    if end == b'"}':
        return b"".join((b"{", name[len(_BEFORE_NAME) :], b',"id":', ulid, end))
    return None


def _customer(wire: dict[str, Any]) -> str:
    [(name, value)] = wire["identifiers"].items()
    return f"/api/v1/customers/{quote(f'cio_{value}' if name == 'cio_id' else value, safe='')}"


def _relationships(action: str, wire: dict[str, Any]) -> dict[str, Any]:
    return {"action": action, "relationships": wire["cio_relationships"]}
