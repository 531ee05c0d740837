"""The official synchronous clients, pointed at the simulator, leave the workspace that their calls mean."""

import asyncio
import base64
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


@pytest.fixture
async def official_app(sim: Simulator) -> AsyncIterator[customerio.APIClient]:
    """Yield the official client of the App API, with the simulator as its host."""
    with customerio.APIClient("app-key", url=sim.url, retries=0) as client:
        yield client


async def test_every_kind_of_message(sim: Simulator, official_app: customerio.APIClient) -> None:
    """All kinds of messages are taken with the fields that the client has for them, and answered one by one."""
    shared: dict[str, Any] = {
        "transactional_message_id": "receipt",
        "identifiers": {"id": "42"},
        "message_data": {"total": 5},
        "queue_draft": False,
        "disable_message_retention": True,
        "send_at": 1_764_000_000,
        "language": "fr",
    }
    email = customerio.SendEmailRequest(
        **shared,
        to="a@b.c",
        _from="us@b.c",
        headers={"X-Tag": "one"},
        reply_to="r@b.c",
        cc="c@b.c",
        bcc="d@b.c",
        subject="s",
        preheader="p",
        body="<b>",
        body_plain="b",
        body_amp="<a>",
        fake_bcc=False,
        send_to_unsubscribed=True,
        tracked=True,
        disable_css_preprocessing=True,
    )
    email.attach("file.txt", "content")
    push = customerio.SendPushRequest(
        **shared,
        to="last_used",
        title="t",
        message="m",
        image_url="https://b.c/i.png",
        link="app://x",
        custom_data={"a": "b"},
        custom_payload={"ios": {"aps": {}}},
        device={"token": "new", "platform": "ios"},
        sound="none",
        send_to_unsubscribed=False,
    )
    phone = {"to": "+15551234567", "send_to_unsubscribed": True}

    def calls() -> list[Any]:
        return [
            official_app.send_email(email),
            official_app.send_push(push),
            official_app.send_sms(customerio.SendSMSRequest(**shared, **phone)),
            official_app.send_whatsapp(customerio.SendWhatsAppRequest(**shared, **phone, tracked=True)),
            official_app.send_inbox_message(customerio.SendInboxMessageRequest(**shared)),
            official_app.send_in_app(customerio.SendInAppRequest(**shared)),
        ]

    answers = await asyncio.to_thread(calls)
    messages = sim.workspace.messages
    assert [each.kind for each in messages] == ["email", "push", "sms", "whatsapp", "inbox_message", "in_app"]
    assert answers == [{"delivery_id": each.delivery_id, "queued_at": each.queued_at} for each in messages]
    assert len({each.delivery_id for each in messages}) == 6
    assert all(each.request["message_data"] == {"total": 5} for each in messages)
    assert base64.b64decode(messages[0].request["attachments"]["file.txt"]) == b"content"
    assert messages[0].request["from"] == "us@b.c"
    assert sim.workspace.person("id", "42").devices == {"new": {"token": "new", "platform": "ios"}}


async def test_an_email_without_a_template(sim: Simulator, official_app: customerio.APIClient) -> None:
    """Body, subject and sender stand in for the template."""
    email = customerio.SendEmailRequest(
        to="a@b.c", identifiers={"email": "a@b.c"}, body="b", subject="s", _from="u@b.c"
    )
    await asyncio.to_thread(official_app.send_email, email)
    (message,) = sim.workspace.messages
    assert message.request == {
        "to": "a@b.c",
        "identifiers": {"email": "a@b.c"},
        "body": "b",
        "subject": "s",
        "from": "u@b.c",
    }


async def test_the_errors_of_the_app_api_are_its_own_too(sim: Simulator, official_app: customerio.APIClient) -> None:
    """A wrong message and a wrong token reach the caller as the client's exception, with the text of the answer."""
    with pytest.raises(customerio.CustomerIOException, match=r"400.*to is required"):
        await asyncio.to_thread(
            official_app.send_email, customerio.SendEmailRequest(transactional_message_id=1, identifiers={"id": "1"})
        )
    message = {"transactional_message_id": 1, "identifiers": {"id": "1"}}
    with (
        customerio.APIClient("wrong", url=sim.url, retries=0) as client,
        pytest.raises(customerio.CustomerIOException, match="401"),
    ):
        await asyncio.to_thread(client.send_push, message)
    assert not sim.workspace.messages
