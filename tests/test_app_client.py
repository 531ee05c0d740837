"""``CioAppClient``: what is sent, that it is sent once, and what the caller learns where nobody knows."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime as dt
import gc
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import attrs
import customerio
import orjson
import pytest
from yarl import URL

from cio_batch import (
    ApiError,
    AppRateLimits,
    BroadcastReceipt,
    CioAppClient,
    CioId,
    ConfigurationError,
    Email,
    EmailRequest,
    HttpOptions,
    InAppRequest,
    InboxMessageRequest,
    InvalidOperationError,
    MessageReceipt,
    Phone,
    PushRequest,
    RetryOptions,
    SendOutcomeUnknownError,
    Settings,
    SmsRequest,
    UnreachableError,
    WhatsAppRequest,
    with_retry,
)
from cio_batch.clients.messages import MessageRequest
from cio_batch.simulator import Simulator

from .conftest import until
from .scripted import Say, Scripted

QUICK = RetryOptions(max_retries=3, base_delay=0.001, max_delay=0.001, jitter=0.0)
UNLIMITED = AppRateLimits(sends=None, broadcasts=None, calls=None)
RECEIPT = Say(200, b'{"delivery_id":"d-1","queued_at":1764000000}')


def client_at(url: str, http: HttpOptions | None = None, **options: Any) -> CioAppClient:
    """A client without rate limits, whose repeats cost no time."""
    settings = Settings(app_api_key="app-key", app_url=url, http=http or HttpOptions())
    return CioAppClient(settings, **{"retry": QUICK, "rates": UNLIMITED} | options)


def email(**more: Any) -> EmailRequest:
    return EmailRequest(to="a@b.c", transactional_message_id="welcome", identifiers="u", **more)


def sms() -> SmsRequest:
    return SmsRequest(to="+15551234567", transactional_message_id=3, identifiers="u")


SENDS: dict[str, tuple[str, Callable[..., MessageRequest], dict[str, Any]]] = {
    "email": ("send_email", EmailRequest, {"to": "a@b.c"}),
    "push": ("send_push", PushRequest, {}),
    "sms": ("send_sms", SmsRequest, {"to": "+15551234567"}),
    "whatsapp": ("send_whatsapp", WhatsAppRequest, {"to": "+15551234567"}),
    "inbox_message": ("send_inbox_message", InboxMessageRequest, {}),
    "in_app": ("send_in_app", InAppRequest, {}),
}

# ------------------------------------------------------------------------------------------------ what is sent

LATER = int(time.time()) + 3_600
COMMON: dict[str, Any] = {
    "transactional_message_id": 7,
    "identifiers": {"email": "a@b.c"},
    "message_data": {"name": "Ada", "total": 12.5, "items": [1, None]},
    "send_at": LATER,
    "language": "de",
    "queue_draft": False,
    "disable_message_retention": True,
    "auto_create": False,
}
PHONE_FIELDS: dict[str, Any] = {
    "to": "+15551234567",
    "from_": "+15557654321",
    "tracked": False,
    "send_to_unsubscribed": False,
}
EVERYTHING: dict[str, dict[str, Any]] = {
    "email": {
        "to": "a@b.c",
        "from_": "shop@b.c",
        "reply_to": "r@b.c",
        "cc": "c@b.c",
        "bcc": "d@b.c",
        "fake_bcc": False,
        "subject": "s",
        "preheader": "p",
        "body": "<p>",
        "body_plain": "t",
        "body_amp": "<amp>",
        "headers": {"X-Tag": "t"},
        "attachments": {"a.txt": b"hello"},
        "tracked": False,
        "send_to_unsubscribed": False,
        "disable_css_preprocessing": True,
    },
    "push": {
        "to": "last_used",
        "title": "t",
        "message": "m",
        "image_url": "https://x.example/i.png",
        "link": "app://x",
        "sound": "none",
        "custom_data": {"a": "b"},
        "custom_payload": {"ios": {"aps": {}}},
        "custom_device": {"token": "t", "platform": "ios"},
        "send_to_unsubscribed": False,
    },
    "sms": PHONE_FIELDS,
    "whatsapp": PHONE_FIELDS,
    "inbox_message": {"to": "x"},
    "in_app": {},
}


@pytest.mark.parametrize("kind", SENDS)
async def test_every_field_arrives(sim: Simulator, kind: str) -> None:
    """Each channel has every field that the service knows, and an explicit False is said."""
    method, make, _ = SENDS[kind]
    given = {**COMMON, **EVERYTHING[kind]}
    request = make(**given)
    assert set(given) == {field.name for field in attrs.fields(type(request))}, "a field is not tried here"
    async with client_at(sim.url) as client:
        receipt = await getattr(client, method)(request)
    [message] = sim.workspace.messages
    assert (message.kind, message.delivery_id, message.queued_at) == (kind, receipt.delivery_id, receipt.queued_at)
    said = {name.removesuffix("_"): value for name, value in given.items()}
    if kind == "email":
        said["attachments"] = {"a.txt": base64.b64encode(b"hello").decode()}
        said["headers"] = '[{"name":"X-Tag","value":"t"}]'
    assert message.request == said


@pytest.mark.parametrize("kind", SENDS)
async def test_what_is_not_set_is_left_out(sim: Simulator, kind: str) -> None:
    """Nothing stands in a request that was not said: it would override the template's own settings."""
    method, make, needed = SENDS[kind]
    async with client_at(sim.url) as client:
        await getattr(client, method)(make(transactional_message_id="t", identifiers="u", **needed))
    [message] = sim.workspace.messages
    assert message.request == {"transactional_message_id": "t", "identifiers": {"id": "u"}, **needed}


@pytest.mark.parametrize(
    ("identifiers", "said"),
    [
        ("u", {"id": "u"}),
        ("顧客", {"id": "顧客"}),
        (Email("a@b.c"), {"email": "a@b.c"}),
        (CioId("cio_03"), {"cio_id": "03"}),
        ({"cio_id": "03"}, {"cio_id": "03"}),
    ],
)
async def test_a_person_may_be_named_in_each_way(sim: Simulator, identifiers: Any, said: dict[str, str]) -> None:
    """Text is an id, as everywhere; the mapping of the wire is taken too."""
    async with client_at(sim.url) as client:
        await client.send_in_app(InAppRequest(transactional_message_id="t", identifiers=identifiers))
    assert sim.workspace.messages[0].request["identifiers"] == said


async def test_an_email_needs_no_template(sim: Simulator) -> None:
    """With a body, a subject and a sender of its own an email goes to any address."""
    async with client_at(sim.url) as client:
        await client.send_email(EmailRequest(to="a@b.c", from_="s@b.c", subject="s", body="<p>"))
    assert sim.workspace.messages[0].request == {"to": "a@b.c", "from": "s@b.c", "subject": "s", "body": "<p>"}


async def test_attachments_are_read_from_the_disk(sim: Simulator, tmp_path: Path) -> None:
    """Paths and bytes become base64; a path alone keeps its name."""
    (tmp_path / "report.pdf").write_bytes(b"\x00\xff%PDF")
    encoded = base64.b64encode(b"\x00\xff%PDF").decode()
    async with client_at(sim.url) as client:
        await client.send_email(email(attachments=[tmp_path / "report.pdf"]))
        await client.send_email(email(attachments={"r.pdf": tmp_path / "report.pdf", "b.csv": b"1,2"}))
        with pytest.raises(InvalidOperationError, match="cannot be read") as caught:
            await client.send_email(email(attachments=[tmp_path / "s3cr3t.pdf"]))
    assert caught.value.field == "attachments[0]"
    assert "s3cr3t" not in str(caught.value)
    first, second = (message.request["attachments"] for message in sim.workspace.messages)
    assert first == {"report.pdf": encoded}
    assert second == {"r.pdf": encoded, "b.csv": "MSwy"}
    with pytest.raises(InvalidOperationError):
        email(attachments=[tmp_path / "report.pdf", tmp_path / "other" / "report.pdf"])


@pytest.mark.skipif(sys.platform == "win32", reason="there are no named pipes")
async def test_a_slow_disk_does_not_hold_the_loop(sim: Simulator, tmp_path: Path) -> None:
    """A file is read in a thread: this loop writes into the pipe that the client has begun to read from."""
    pipe = tmp_path / "slow.txt"
    os.mkfifo(pipe)
    ends: list[int] = []

    def is_read() -> bool:
        with contextlib.suppress(OSError):  # nobody reads from it yet
            ends.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
        return bool(ends)

    async with client_at(sim.url) as client:
        sending = asyncio.create_task(client.send_email(email(attachments=[pipe])))
        await until(is_read)
        os.write(ends[0], b"slow")
        os.close(ends[0])
        await sending
    assert sim.workspace.messages[0].request["attachments"] == {"slow.txt": base64.b64encode(b"slow").decode()}


async def test_times_and_data_follow_the_rules_of_all_operations(sim: Simulator) -> None:
    """Aware datetimes become seconds; what JSON cannot say is named by its path."""
    when = dt.datetime.fromtimestamp(LATER, dt.UTC)
    async with client_at(sim.url) as client:
        await client.send_email(email(send_at=when, message_data={"at": when}))
        assert sim.workspace.messages[0].request["send_at"] == LATER
        assert sim.workspace.messages[0].request["message_data"] == {"at": LATER}
        with pytest.raises(InvalidOperationError) as caught:
            await client.send_email(email(message_data={"n": [float("nan")]}))
        assert caught.value.field == "email.message_data.n[0]"
    assert sim.workspace.message_count == 1


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: EmailRequest(to="a@b.c"), "body"),
        (lambda: EmailRequest(to=None, transactional_message_id=1), "to"),  # type: ignore[arg-type]
        (lambda: SmsRequest(to=None, transactional_message_id=1, identifiers="u"), "to"),  # type: ignore[arg-type]
        (lambda: WhatsAppRequest(to=None, transactional_message_id=1, identifiers="u"), "to"),  # type: ignore[arg-type]
        (lambda: SmsRequest(to="+1", transactional_message_id=1), "identifiers"),
        (lambda: WhatsAppRequest(to="+1", identifiers="u"), "transactional_message_id"),
        (lambda: EmailRequest(to="a@b.c", body="b", subject="s"), "from_"),
        (lambda: PushRequest(transactional_message_id=1), "identifiers"),
        (lambda: InAppRequest(identifiers="u"), "transactional_message_id"),
        (lambda: email(attachments="report.pdf"), "attachments"),
        (lambda: email(attachments=Path("report.pdf")), "attachments"),
        (lambda: email(attachments={"a.txt": "text"}), "attachments[0]"),
        (lambda: email(attachments={"": b"text"}), "attachments[0]"),
        (lambda: email(attachments=["a.txt"]), "attachments[0]"),
        (lambda: email(attachments=[b"text"]), "attachments[0]"),
        (lambda: email(send_at=dt.datetime(2030, 1, 1)), "send_at"),  # noqa: DTZ001 - the fault
        (lambda: email(send_at=1_764_000_000_000), "send_at"),
        (lambda: InAppRequest(transactional_message_id=1, identifiers=7), "identifiers"),  # type: ignore[arg-type]
        (lambda: InAppRequest(transactional_message_id=1, identifiers=""), "identifiers"),
        (lambda: InAppRequest(transactional_message_id=1, identifiers=Phone("+15551234567")), "identifiers"),  # type: ignore[arg-type]
        (lambda: InAppRequest(transactional_message_id=1, identifiers={}), "identifiers"),
        (lambda: InAppRequest(transactional_message_id=1, identifiers={"id": "u", "email": "a@b.c"}), "identifiers"),
        (lambda: InAppRequest(transactional_message_id=1, identifiers={"phone": "+1"}), "identifiers"),
        (lambda: InAppRequest(transactional_message_id=1, identifiers={"id": ""}), "identifiers.id"),
    ],
)
def test_a_request_that_cannot_be_sent_is_never_made(make: Callable[[], object], field: str) -> None:
    """The error names the part at fault as soon as the request is made."""
    with pytest.raises(InvalidOperationError) as caught:
        make()
    assert caught.value.field == field


def test_a_path_that_is_text_is_told_from_a_file_without_a_name() -> None:
    """The error says how a path is written."""
    with pytest.raises(InvalidOperationError, match=r"bytes or a path, such as Path\('report.pdf'\), got str"):
        email(attachments=["a.txt"])
    with pytest.raises(InvalidOperationError, match="must have a name"):
        email(attachments=[b"text"])


async def test_each_method_takes_its_own_request(sim: Simulator) -> None:
    """An SMS is no email, and a dict is none either."""
    async with client_at(sim.url) as client:
        wrong: Any = client
        for request in (sms(), {"to": "a@b.c"}, None):
            with pytest.raises(InvalidOperationError, match="must be EmailRequest"):
                await wrong.send_email(request)
    assert sim.traffic.calls == 0


def test_no_request_shows_its_content() -> None:
    """A ``repr`` names the template alone, and requests are frozen."""
    request = email(message_data={"k": "s3cr3t"}, subject="s3cr3t", attachments={"s3cr3t.txt": b"s3cr3t"})
    assert repr(request) == "<EmailRequest transactional_message_id='welcome'>"
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        request.to = "x"  # type: ignore[misc]
    assert attrs.evolve(request, to="x@b.c").to == "x@b.c"


async def test_the_key_goes_as_a_bearer_token() -> None:
    """That is how the App API asks for it."""
    async with Scripted(RECEIPT) as server, client_at(server.url) as client:
        assert await client.send_email(email()) == MessageReceipt("d-1", 1764000000)
    [heard] = server.heard
    assert (heard.method, heard.raw_path) == ("POST", "/v1/send/email")
    assert heard.headers["Authorization"] == "Bearer app-key"
    assert heard.headers["Content-Type"] == "application/json"


# -------------------------------------------------------------------------------------------------- broadcasts

AUDIENCES: dict[str, Any] = {
    "recipients": {"and": [{"segment": {"id": 3}}, {"attribute": {"field": "plan", "operator": "eq", "value": "pro"}}]},
    "ids": ["1", "2"],
    "emails": ["a@b.c"],
    "per_user_data": [{"id": "1", "data": {"n": 1}}, {"email": "a@b.c", "data": {"n": 2}}],
    "data_file_url": "https://x.example/people.jsonl",
}


@pytest.mark.parametrize("audience", AUDIENCES)
async def test_a_broadcast_goes_to_its_audience(sim: Simulator, audience: str) -> None:
    """Data and audience arrive as they were said."""
    async with client_at(sim.url) as client:
        receipt = await client.trigger_broadcast(12, {"headline": "h"}, **{audience: AUDIENCES[audience]})
        assert isinstance(receipt, BroadcastReceipt)
        await client.trigger_broadcast(12, **{audience: AUDIENCES[audience]})
    first, second = sim.workspace.broadcasts
    assert (first.broadcast_id, first.trigger_id) == (12, receipt.id)
    assert first.request == {"data": {"headline": "h"}, audience: AUDIENCES[audience]}
    assert second.request == {audience: AUDIENCES[audience]}


async def test_a_broadcast_takes_its_switches(sim: Simulator) -> None:
    """Each switch of the service is said where it was set."""
    async with client_at(sim.url) as client:
        await client.trigger_broadcast(
            1,
            emails=(address for address in ["a@b.c"]),
            email_add_duplicates=True,
            email_ignore_missing=False,
            id_ignore_missing=True,
        )
    assert sim.workspace.broadcasts[0].request == {
        "emails": ["a@b.c"],
        "email_add_duplicates": True,
        "email_ignore_missing": False,
        "id_ignore_missing": True,
    }


@pytest.mark.parametrize(
    ("broadcast", "given", "field"),
    [
        (1, {}, "audience"),
        (1, {"ids": ["1"], "emails": ["a@b.c"]}, "audience"),
        (1, AUDIENCES, "audience"),
        (1, {"ids": []}, "ids"),
        (1, {"ids": "user-1"}, "ids"),
        (1, {"ids": [1]}, "ids[0]"),
        (1, {"emails": ["a@b.c", ""]}, "emails[1]"),
        (1, {"per_user_data": [{"data": {}}]}, "per_user_data[0]"),
        (1, {"per_user_data": [{"id": "1", "email": "a@b.c"}]}, "per_user_data[0]"),
        (1, {"per_user_data": ["1"]}, "per_user_data[0]"),
        (1, {"ids": ["1"], "data": {"n": float("inf")}}, "broadcast.data.n"),
        (0, {"ids": ["1"]}, "id"),
        ("1", {"ids": ["1"]}, "id"),
        (True, {"ids": ["1"]}, "id"),
    ],
)
async def test_a_broadcast_that_cannot_be_triggered_never_leaves(
    sim: Simulator, broadcast: Any, given: dict[str, Any], field: str
) -> None:
    """Exactly one audience, and a usable one: a list that is empty or forgotten must not mean everybody."""
    async with client_at(sim.url) as client:
        with pytest.raises(InvalidOperationError) as caught:
            await client.trigger_broadcast(broadcast, **given)
    assert caught.value.field == field
    assert sim.traffic.calls == 0


# ------------------------------------------------------------------------------------------------ sent once


def calls_of(client: CioAppClient) -> list[Callable[[], Awaitable[object]]]:
    """Every call that must not be made twice."""
    sends = [
        lambda method=method, make=make, needed=needed: getattr(client, method)(
            make(transactional_message_id="t", identifiers="u", **needed)
        )
        for method, make, needed in SENDS.values()
    ]
    return [*sends, lambda: client.trigger_broadcast(1, ids=["1"])]


async def test_a_send_whose_answer_was_lost_is_sent_once(sim: Simulator) -> None:
    """The service took each message, the answer was cut off, and nothing is repeated, by ``with_retry`` neither."""
    async with client_at(sim.url) as client:
        for call in calls_of(client):
            sim.faults.order("drop_after")
            with pytest.raises(SendOutcomeUnknownError, match="may have been sent") as caught:
                await with_retry(call, QUICK)
            assert (caught.value.retryable, caught.value.status) == (False, 0)
    assert sim.workspace.message_count == len(SENDS)
    assert sim.workspace.broadcast_count == 1
    assert sim.traffic.calls == len(SENDS) + 1


@pytest.mark.parametrize(
    ("fault", "options", "status"),
    [
        ("drop_before", {}, 0),
        ("server_error", {}, 500),
        ("html_error", {}, 502),
        ("unavailable", {"retry_after": "0"}, 503),
        ("redirect", {"location": "http://127.0.0.1:1/"}, 0),
        ("raw", {"status": 408, "body": b"{}"}, 408),
        ("raw", {"status": 200, "body": b'{"delivery_id":"d'}, 200),
        ("raw", {"status": 200, "body": b"{}"}, 200),
        ("raw", {"status": 200, "body": b"<html>"}, 200),
        ("raw", {"status": 200, "body": b'{"delivery_id":7,"id":"7"}'}, 200),
        ("raw", {"status": 304, "body": b""}, 304),
    ],
)
async def test_where_nobody_knows_the_error_says_so(
    sim: Simulator, fault: Any, options: dict[str, Any], status: int
) -> None:
    """Without a readable answer that decides, no call is repeated, and the error has a name of its own."""
    async with client_at(sim.url) as client:
        for number, call in enumerate(calls_of(client), 1):
            sim.faults.order(fault, **options)
            with pytest.raises(SendOutcomeUnknownError) as caught:
                await call()
            assert (caught.value.status, caught.value.retryable) == (status, False)
            assert sim.traffic.calls == number


async def test_a_silent_service_leaves_it_open(sim: Simulator) -> None:
    """A timeout after the request went out is a doubtful case too."""
    sim.faults.order("black_hole")
    async with client_at(sim.url, HttpOptions(total_timeout=0.1)) as client:
        with pytest.raises(SendOutcomeUnknownError, match="timed out"):
            await client.send_email(email())
    assert sim.traffic.calls == 1


async def test_a_429_is_tried_again(sim: Simulator) -> None:
    """The service says that it did not take the call, so a repeat is none."""
    async with client_at(sim.url) as client:
        for number, call in enumerate(calls_of(client), 1):
            sim.faults.order("rate_limit", times=2, retry_after="0")
            await call()
            assert sim.traffic.calls == 3 * number
    assert sim.workspace.message_count == len(SENDS)


async def test_a_429_for_ever_comes_out(sim: Simulator) -> None:
    """After the last retry the caller gets the answer."""
    sim.faults.order("rate_limit", times=4, retry_after="0.001")
    async with client_at(sim.url) as client:
        with pytest.raises(ApiError) as caught:
            await client.send_email(email())
    assert (caught.value.status, caught.value.retryable, caught.value.retry_after) == (429, True, 0.001)
    assert (sim.traffic.calls, sim.workspace.message_count) == (4, 0)


async def test_a_connection_that_was_never_made_is_tried_again(unused_tcp_port: int) -> None:
    """Nothing can have arrived; once the service is there, the message goes out, once."""
    simulator = Simulator(port=unused_tcp_port)
    patient = RetryOptions(max_retries=50, base_delay=0.02, max_delay=0.02, jitter=0.0)
    refused = asyncio.Event()

    async def note(*_: object) -> None:
        refused.set()

    trace = aiohttp.TraceConfig()
    trace.on_request_exception.append(note)
    async with (
        aiohttp.ClientSession(trace_configs=[trace]) as session,
        client_at(f"http://127.0.0.1:{unused_tcp_port}", HttpOptions(session=session), retry=patient) as client,
    ):
        sending = asyncio.create_task(client.send_email(email()))
        await refused.wait()
        async with simulator:
            await sending
            assert simulator.workspace.message_count == 1
    async with client_at(f"http://127.0.0.1:{unused_tcp_port}") as client:
        with pytest.raises(UnreachableError) as caught:
            await client.send_email(email())
    assert (caught.value.sent, caught.value.retryable) == (False, True)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_to_another_host_carries_neither_key_nor_message(status: int) -> None:
    """Nothing at all is sent to another host, and nothing is repeated."""
    async with Scripted(RECEIPT) as other:
        away = Say(status, headers={"Location": f"{other.url}/v1/send/email"})
        async with Scripted(away) as server, client_at(server.url) as client:
            with pytest.raises(SendOutcomeUnknownError, match="another host"):
                await client.send_email(email())
    assert len(server.heard) == 1
    assert other.heard == []


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
async def test_a_no_is_final(status: int) -> None:
    """The service refused: nothing was sent, and nothing is tried again."""
    body = b'{"errors":[{"detail":"SECRET is unknown","status":"400","source":{"pointer":"/data/to"}}]}'
    async with Scripted(Say(status, body)) as server, client_at(server.url) as client:
        with pytest.raises(ApiError) as caught:
            await client.send_email(email())
    error = caught.value
    assert (error.status, error.retryable) == (status, False)
    assert [(each.message, each.field, each.status) for each in error.details] == [
        ("SECRET is unknown", "/data/to", 400)
    ]
    assert "SECRET" not in f"{error} {error!r}"
    assert len(server.heard) == 1


async def test_what_the_simulator_refuses_is_readable(sim: Simulator) -> None:
    """A message that only the service can refuse comes back as its error."""
    async with client_at(sim.url) as client:
        with pytest.raises(ApiError) as caught:
            await client.send_sms(SmsRequest(to="no number", transactional_message_id=1, identifiers="u"))
    assert caught.value.status == 400
    assert any("E.164" in detail.message for detail in caught.value.details)


# --------------------------------------------------------------------------------------------------- the rest


SELDOM = 0.001  # calls in a second: the second one would come after a quarter of an hour


@pytest.mark.parametrize(
    ("rates", "limited"),
    [
        (AppRateLimits(sends=25.0, broadcasts=SELDOM, calls=SELDOM), "sends"),
        (AppRateLimits(sends=SELDOM, broadcasts=25.0, calls=None), "broadcasts"),
        (AppRateLimits(sends=SELDOM, broadcasts=None, calls=25.0), "broadcasts"),
    ],
    ids=["sends", "broadcasts", "calls"],
)
async def test_sends_and_broadcasts_have_rates_of_their_own(sim: Simulator, rates: AppRateLimits, limited: str) -> None:
    """Each kind keeps its interval, broadcasts that of all other calls too, and neither waits for the other's."""
    loop = asyncio.get_running_loop()
    async with client_at(sim.url, rates=rates) as client, asyncio.timeout(20):
        began = loop.time()
        if limited == "sends":
            await asyncio.gather(*[client.send_email(email()) for _ in range(4)])
        else:
            await asyncio.gather(*[client.trigger_broadcast(1, ids=["1"]) for _ in range(4)])
        assert loop.time() - began >= 3 / 25 * 0.95
    assert sim.traffic.calls == 4


async def test_a_rate_holds_after_a_jam(sim: Simulator) -> None:
    """Calls that waited for a slow one do not go out all at once."""
    loop = asyncio.get_running_loop()
    rates = AppRateLimits(sends=10.0, broadcasts=None, calls=None)
    sim.faults.order("latency", latency=0.5)
    async with client_at(sim.url, rates=rates, concurrency=1) as client:
        began = loop.time()
        await asyncio.gather(*[client.send_email(email()) for _ in range(5)])
        # One turn may have come while the first call was under way.
        assert loop.time() - began >= 0.5 + 3 / 10 * 0.95
    assert sim.workspace.message_count == 5


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf"), "1", True])
def test_a_rate_is_a_number_above_0(rate: Any) -> None:
    """What is no rate is refused by name, and the defaults are the published ones."""
    for name in ("sends", "broadcasts", "calls"):
        with pytest.raises(ConfigurationError) as caught:
            AppRateLimits(**{name: rate})
        assert caught.value.variables == (name,)
    assert AppRateLimits() == AppRateLimits(sends=100.0, broadcasts=0.1, calls=10.0)


async def test_the_key_is_renewed_on_a_401(sim: Simulator) -> None:
    """A send that was refused for its key was not taken, so it goes out again with a fresh one."""
    keys, asked_in = ["old", "app-key"], list[str]()

    def ask() -> str:
        asked_in.append(threading.current_thread().name)
        return keys.pop(0)

    client = CioAppClient(Settings(app_credentials=ask, app_url=sim.url), rates=UNLIMITED, retry=None)
    async with client:
        await client.send_email(email())
    assert (sim.workspace.message_count, sim.traffic.calls) == (1, 2)
    assert asked_in[1] != threading.current_thread().name


def test_the_key_is_demanded_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the App key is missed, and a callable that returns none is named."""
    for name in ("CUSTOMERIO_SITE_ID", "CUSTOMERIO_TRACK_API_KEY", "CUSTOMERIO_APP_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigurationError, match="in your environment") as caught:
        CioAppClient()
    assert caught.value.variables == ("CUSTOMERIO_APP_API_KEY",)
    wrong: Any = lambda: ("site", "key")  # noqa: E731
    with pytest.raises(ConfigurationError, match="app_credentials must return") as caught:
        CioAppClient(Settings(app_credentials=wrong))
    assert caught.value.variables == ("app_credentials",)
    monkeypatch.setenv("CUSTOMERIO_APP_API_KEY", "k")
    assert repr(CioAppClient()) == "<CioAppClient not connected>"


async def test_a_disabled_client_sends_nothing(sim: Simulator, tmp_path: Path) -> None:
    """Everything is checked, and every call succeeds without being made."""
    async with CioAppClient(Settings(app_url=sim.url, disabled=True)) as client:
        receipt = await client.send_email(email())
        assert receipt.delivery_id == ""
        assert abs(receipt.queued_at - time.time()) < 5
        assert await client.trigger_broadcast(1, ids=["1"]) == BroadcastReceipt(0)
        with pytest.raises(InvalidOperationError):
            await client.send_email(email(attachments=[tmp_path / "none"]))
    assert sim.traffic.calls == 0


def test_a_client_serves_one_loop_after_the_other() -> None:
    """Rate limits and connections belong to the loop that uses them."""
    settings = Settings(app_api_key="app-key", app_url="http://127.0.0.1:1")
    client = CioAppClient(settings, rates=AppRateLimits(sends=1_000.0))

    async def use() -> int:
        async with Simulator() as sim:
            client._http._origin = URL(sim.url)  # type: ignore[union-attr]
            async with client:
                await asyncio.gather(*[client.send_email(email()) for _ in range(5)])
            return sim.workspace.message_count

    assert [asyncio.run(use()) for _ in range(2)] == [5, 5]
    gc.collect()


async def test_the_callers_objects_may_change_afterwards(sim: Simulator) -> None:
    """What was said when the call began is what is sent."""
    data: dict[str, Any] = {"n": 1}
    async with client_at(sim.url) as client:
        sending = asyncio.create_task(client.send_email(email(message_data=data, attachments={"a.txt": b"x"})))
        await asyncio.sleep(0)
        data["n"] = 2
        await sending
    assert sim.workspace.messages[0].request["message_data"] == {"n": 1}
    assert orjson.dumps(data) == b'{"n":2}'


async def test_the_official_client_and_ours_send_the_same_messages() -> None:
    """Given the same messages, both clients leave the same requests and the same device in the simulator."""
    shared: dict[str, Any] = {name: value for name, value in COMMON.items() if name != "auto_create"}
    headers = '[{"name":"X-Tag","value":"t"}]'
    phone = {"to": "+15551234567", "send_to_unsubscribed": False}
    device = {"token": "t", "platform": "ios"}
    mail = {
        name: value for name, value in EVERYTHING["email"].items() if name not in ("from_", "headers", "attachments")
    }
    push = {name: value for name, value in EVERYTHING["push"].items() if name != "custom_device"}
    async with Simulator() as theirs, Simulator() as ours:

        def official_calls() -> None:
            with customerio.APIClient("app-key", url=theirs.url, retries=0) as client:
                request = customerio.SendEmailRequest(**shared, **mail, _from="shop@b.c", headers=headers)
                request.attach("a.txt", "hello")
                client.send_email(request)
                client.send_push(customerio.SendPushRequest(**shared, **push, device=device))
                client.send_sms(customerio.SendSMSRequest(**shared, **phone))
                client.send_whatsapp(customerio.SendWhatsAppRequest(**shared, **phone, tracked=False))
                client.send_inbox_message(customerio.SendInboxMessageRequest(**shared))
                client.send_in_app(customerio.SendInAppRequest(**shared))

        await asyncio.to_thread(official_calls)
        async with client_at(ours.url) as client:
            files = {"a.txt": b"hello"}
            request = EmailRequest(**shared, **mail, from_="shop@b.c", headers={"X-Tag": "t"}, attachments=files)
            await client.send_email(request)
            await client.send_push(PushRequest(**shared, **push, custom_device=device))
            await client.send_sms(SmsRequest(**shared, **phone))
            await client.send_whatsapp(WhatsAppRequest(**shared, **phone, tracked=False))
            await client.send_inbox_message(InboxMessageRequest(**shared))
            await client.send_in_app(InAppRequest(**shared))

        sent = [[(each.kind, each.request) for each in sim.workspace.messages] for sim in (theirs, ours)]
        assert sent[0] == sent[1]
        assert len(sent[0]) == len(SENDS)
        devices = [sim.workspace.person("email", "a@b.c").devices for sim in (theirs, ours)]
        assert devices[0] == devices[1] == {"t": device}
