"""The official synchronous client, pointed at the simulator, leaves the workspace that its calls mean."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import customerio
import pytest

from cio_batch.simulator import Simulator

from .wire import event, person, ulid


class PlainCustomerIO(customerio.CustomerIO):
    """The official client without TLS, which it has no option for: only the scheme is another."""

    def send_request(self, method: str, url: str, data: dict[str, Any]) -> Any:
        """Send the request as the official client does."""
        return super().send_request(method, url.replace("https://", "http://", 1), data)


@pytest.fixture
async def official(sim: Simulator) -> AsyncIterator[PlainCustomerIO]:
    """Yield the official client, with the simulator as its host."""
    with PlainCustomerIO("site", "key", host="127.0.0.1", port=sim.port, retries=0) as client:
        yield client


async def test_people_and_their_events(sim: Simulator, official: PlainCustomerIO) -> None:
    """Identify, track, pageview and backfill arrive with their attributes, ids and times."""

    def calls() -> None:
        official.identify("a/b c", email="a@b.c", plan="pro")
        official.track("a/b c", "purchase", {"price": 5}, id=ulid(1), timestamp=1_764_000_000)
        official.track("a/b c", "purchase", {"price": 5}, id=ulid(1), timestamp=1_764_000_000)
        official.pageview("a/b c", "/pricing", referrer="/")
        official.backfill("a/b c", "signup", 1_763_000_000, source="web")

    await asyncio.to_thread(calls)
    found = sim.workspace.person("id", "a/b c")
    assert found.attributes == {"email": "a@b.c", "plan": "pro"}
    assert [(each["action"], each["name"], each["timestamp"], each["attributes"]) for each in found.events] == [
        ("event", "purchase", 1_764_000_000, {"price": 5}),
        ("page", "/pricing", None, {"referrer": "/"}),
        ("event", "signup", 1_763_000_000, {"source": "web"}),
    ]
    assert sim.workspace.duplicates_ignored == 1
    assert sim.traffic.statuses == {200: 5}


async def test_anonymous_events(sim: Simulator, official: PlainCustomerIO) -> None:
    """track_anonymous is kept under its anonymous_id."""
    await asyncio.to_thread(official.track_anonymous, "cookie", "viewed", {"n": 1})
    (stored,) = sim.workspace.person("anonymous", "cookie").events
    assert (stored["name"], stored["attributes"]) == ("viewed", {"n": 1})


async def test_delete_suppress_and_unsuppress(sim: Simulator, official: PlainCustomerIO) -> None:
    """A deleted person is gone, a suppressed one stays away until unsuppressed."""

    def calls() -> None:
        for identifier in ("deleted", "suppressed", "back"):
            official.identify(identifier, plan="pro")
        official.delete("deleted")
        official.suppress("suppressed")
        official.identify("suppressed", plan="again")
        official.suppress("back")
        official.unsuppress("back")
        official.identify("back", plan="new")

    await asyncio.to_thread(calls)
    deleted, suppressed, back = (sim.workspace.person("id", name) for name in ("deleted", "suppressed", "back"))
    assert (deleted.exists, deleted.deleted) == (False, 1)
    assert (suppressed.exists, suppressed.suppressed, suppressed.attributes) == (False, True, {})
    assert (back.exists, back.attributes) == (True, {"plan": "new"})


async def test_devices(sim: Simulator, official: PlainCustomerIO) -> None:
    """A device is added by its token and deleted by it."""

    def calls() -> None:
        official.add_device("42", "token/1", "ios", last_used=1_764_000_000)
        official.add_device("42", "token/2", "android")
        official.delete_device("42", "token/2")

    await asyncio.to_thread(calls)
    assert sim.workspace.person("id", "42").devices == {
        "token/1": {"token": "token/1", "platform": "ios", "last_used": 1_764_000_000}
    }


async def test_merge(sim: Simulator, official: PlainCustomerIO) -> None:
    """The secondary's history is the primary's afterwards."""

    def calls() -> None:
        official.identify("a@b.c", plan="pro")
        official.track("cio_03", "purchase")
        official.merge_customers("email", "a@b.c", "cio_id", "03")

    await asyncio.to_thread(calls)
    assert [each["name"] for each in sim.workspace.person("email", "a@b.c").events] == ["purchase"]
    assert sim.workspace.person("cio_id", "03").merged_into == ("email", "a@b.c")


async def test_batch(sim: Simulator, official: PlainCustomerIO) -> None:
    """Its v2 batch is accepted, and a 207 comes back to it with the index."""
    batch = [event(), {"type": "person", "action": "event"}, person("delete", "7")]
    response = await asyncio.to_thread(official.batch, batch)
    assert (response.status_code, response.json()["errors"][0]["batch_index"]) == (207, 1)
    assert sim.workspace.applied == {"person.event": 1, "person.delete": 1}


async def test_its_errors_are_its_own(sim: Simulator) -> None:
    """Wrong credentials reach the caller of the official client as its exception."""
    with (
        PlainCustomerIO("site", "wrong", host="127.0.0.1", port=sim.port, retries=0) as client,
        pytest.raises(customerio.CustomerIOException, match="401"),
    ):
        await asyncio.to_thread(client.identify, "42")
    assert not sim.workspace.people
