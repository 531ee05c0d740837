"""A user's taxonomy: its types are known to the checker in strict mode, and the program runs against the simulator."""

from __future__ import annotations

import asyncio
import datetime as dt
import enum
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Literal, assert_type
from uuid import UUID

import attrs

from cio_batch import (
    CioBatchTracker,
    CioEvent,
    Draft,
    Email,
    EventSchemaError,
    Settings,
    Taxonomy,
    UserAttributes,
    operations,
)
from cio_batch.simulator import Simulator


class Channel(enum.Enum):
    """How somebody came."""

    WEB = "web"
    STORE = "store"


@attrs.frozen
class Item:
    """A part of an order."""

    sku: str
    price: Decimal


class Sourced(CioEvent):
    """A mix-in: where it happened."""

    channel: Channel = Channel.WEB
    source: str | None = None


class Priced(CioEvent):
    """Another one."""

    mrr: float


class SignedUp(Sourced, name="signed_up"):
    """A field with a fixed choice."""

    method: Literal["email", "sso"]


class PlanChanged(Sourced, Priced, name="plan_changed"):
    """Two mix-ins, and a name that is a keyword."""

    from_: str
    to: str


class Bought(CioEvent, name="bought"):
    """Every other type, and the fields that override a campaign."""

    order: UUID
    items: list[Item]
    at: dt.datetime
    delivery: dt.date | None = None
    labels: dict[str, str] = attrs.field(factory=dict[str, str])
    recipient: str | None = None
    from_address: str | None = None
    reply_to: str | None = None


class Customer(UserAttributes):
    """Attributes of this program's own."""

    seats: int


AppEvent = SignedUp | PlanChanged | Bought


async def track(tracker: CioBatchTracker[AppEvent]) -> None:
    """Track typed events, and plain ones beside them."""
    changed = PlanChanged(from_="free", to="pro", mrr=49)
    assert_type(changed.from_, str)
    assert_type(changed.source, str | None)
    assert_type(changed.wire_data(), dict[str, Any])
    assert_type(changed.event_name, str)
    assert_type(await tracker.enqueue("u", changed), None)
    await tracker.enqueue(Email("a@example.com"), SignedUp(method="sso"), timestamp=1_700_000_000)
    tracker.enqueue_nowait("u", changed)
    future = await asyncio.to_thread(tracker.enqueue_threadsafe, "u", changed)
    future.result()
    items = [Item("a-1", Decimal("9.90"))]
    await tracker.enqueue("u", Bought(order=UUID(int=1), items=items, at=dt.datetime.now(dt.UTC)))
    await tracker.enqueue("u", "plan_changed", {"from": "pro", "to": "free", "mrr": 0})
    await tracker.identify("u", Customer(email="a@example.com", plan="pro", seats=5, extra={"age": 7}))
    draft: Draft = operations.event("u", changed)
    await tracker.submit(draft)


async def track_one_kind(tracker: CioBatchTracker[SignedUp]) -> None:
    """A tracker of all events may stand for a tracker of some."""
    await tracker.enqueue("u", SignedUp(method="email"))


async def track_anything(tracker: CioBatchTracker, event: CioEvent) -> None:
    """A tracker without a type argument takes every event."""
    await tracker.enqueue("u", event)


def look(taxonomy: Taxonomy) -> Mapping[str, type[CioEvent]]:
    """Look at all events that there are."""
    try:
        taxonomy.validate("plan_changed", {"from": 1})
    except EventSchemaError as error:
        print(f"{error.event}: {error.field} must be {error.expected}, got {error.got}")  # noqa: T201
    for event in taxonomy:
        assert event.event_name in taxonomy.events
    assert_type(taxonomy.json_schema(), dict[str, Any])
    return taxonomy.events


async def main() -> None:
    """Run all of it."""
    taxonomy = Taxonomy(AppEvent)
    assert list(look(taxonomy)) == list(look(Taxonomy(SignedUp, PlanChanged, Bought)))
    async with Simulator() as sim:
        settings = Settings(site_id="site", track_api_key="key", track_url=sim.url)
        async with CioBatchTracker[AppEvent](settings, taxonomy=taxonomy, strict=True) as tracker:
            await track(tracker)
            await track_one_kind(tracker)
        async with CioBatchTracker(settings) as plain:
            await track(plain)
            await track_anything(plain, SignedUp(method="sso"))
        assert len(sim.workspace.person("id", "u").events) == 14
        assert sim.workspace.person("id", "u").attributes["seats"] == 5


if __name__ == "__main__":
    asyncio.run(main())
