"""``TypedCioClient``: each call is one documented call, its answer is the caller's, and its connections are its own."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
import warnings
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import attrs
import customerio
import pytest
from yarl import URL

from cio_batch import (
    AccountRegion,
    ApiError,
    CioAppClient,
    CioBatchTracker,
    CioEvent,
    CioId,
    ConfigurationError,
    Email,
    EventSchemaError,
    HttpOptions,
    InvalidOperationError,
    ObjectId,
    Phone,
    RetryOptions,
    Settings,
    TypedCioClient,
    UnreachableError,
    UserAttributes,
    with_retry,
)
from cio_batch.simulator import Simulator
from cio_batch.transports import TrackV1Transport, TrackV2Transport

from .conftest import assert_conserved, settings_for, until
from .scripted import Say, Scripted

QUICK = RetryOptions(max_retries=3, base_delay=0.001, max_delay=0.001, jitter=0.0)
ULID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
CREDENTIALS = "Basic c2l0ZTprZXk="


def settings_at(url: str, **http: Any) -> Settings:
    return Settings(site_id="site", track_api_key="key", track_url=url, http=HttpOptions(**http))


def quick(where: Simulator | Scripted, **options: Any) -> TypedCioClient:
    """A client without stamps, whose repeats cost no time."""
    return TypedCioClient(
        settings_at(where.url), **{"retry": QUICK, "tracked_at": False, "last_seen_at": False} | options
    )


class PlanChanged(CioEvent, name="plan_changed"):
    from_: str
    to: str
    mrr: float
    coupon: str | None = None


class Customer(UserAttributes):
    seats: int


# ---------------------------------------------------------------------------------------------- what arrives


async def test_people_events_and_devices_arrive(sim: Simulator) -> None:
    """Each call changes in the workspace what its name says."""
    async with quick(sim) as client:
        await client.identify("u", {"plan": "pro"}, timestamp=5, relationships=[ObjectId("1", "acme")])
        await client.track("u", "bought", {"n": 1}, timestamp=1_764_000_000, id=ULID)
        await client.page("u", "/pricing", {"n": 2})
        await client.screen("u", "Home")
        await client.track_anonymous("cookie", "looked", {"n": 3})
        await client.add_device("u", "t/1", "ios", last_used=1_764_000_000, attributes={"app": "1"})
        await client.add_device("u", "t/2", "android")
        await client.delete_device("u", "t/2")
    person = sim.workspace.person("id", "u")
    assert person.attributes == {"plan": "pro"}
    assert [(each["action"], each["name"], each["attributes"]) for each in person.events] == [
        ("event", "bought", {"n": 1}),
        ("page", "/pricing", {"n": 2}),
        ("screen", "Home", {}),
    ]
    assert (person.events[0]["id"], person.events[0]["timestamp"]) == (ULID, 1_764_000_000)
    assert list(person.relationships) == [("1", "acme")]
    assert person.devices == {
        "t/1": {"token": "t/1", "platform": "ios", "last_used": 1_764_000_000, "attributes": {"app": "1"}}
    }
    [anonymous] = sim.workspace.person("anonymous", "cookie").events
    assert (anonymous["name"], anonymous["attributes"]) == ("looked", {"n": 3})


async def test_everything_that_has_a_time_or_an_id_says_it(sim: Simulator) -> None:
    """An event, page or screen has both; of two attributes the one with the later time stays."""
    others = [f"{ULID[:-1]}{letter}" for letter in "ABCD"]
    async with quick(sim) as client:
        await client.track("u", "bought", id=others[0], timestamp=1_764_000_000)
        await client.page("u", "/pricing", id=others[1], timestamp=1_764_000_001)
        await client.screen("u", "Home", id=others[2], timestamp=1_764_000_002)
        await client.track_anonymous("cookie", "looked", id=others[3], timestamp=1_764_000_003)
        await client.identify("u", {"plan": "pro"}, timestamp=1_764_000_002)
        await client.identify("u", {"plan": "free"}, timestamp=1_764_000_001)
    found = [*sim.workspace.person("id", "u").events, *sim.workspace.person("anonymous", "cookie").events]
    assert [(each["id"], each["timestamp"]) for each in found] == [
        (other, 1_764_000_000 + n) for n, other in enumerate(others)
    ]
    assert sim.workspace.person("id", "u").attributes == {"plan": "pro"}


async def test_people_go_and_come_back(sim: Simulator) -> None:
    """A destroyed person is gone, a suppressed one stays away, a merged one lives on in another."""
    async with quick(sim) as client:
        for person in ("gone", "away", "back", Email("old@b.c")):
            await client.identify(person, {"plan": "pro"})
        await client.destroy("gone")
        for person in ("away", "back"):
            await client.suppress(person)
            await client.identify(person, {"plan": "again"})
        await client.unsuppress("back")
        await client.track(Email("old@b.c"), "bought")
        await client.merge(CioId("cio_03"), Email("old@b.c"))
    people = sim.workspace.person
    assert (people("id", "gone").exists, people("id", "gone").deleted) == (False, 1)
    assert (people("id", "away").suppressed, people("id", "away").attributes) == (True, {})
    assert people("id", "back").suppressed is False
    assert people("email", "old@b.c").merged_into == ("cio_id", "03")
    assert [each["name"] for each in people("cio_id", "03").events] == ["bought"]


async def test_segments_forms_and_deliveries_arrive(sim: Simulator) -> None:
    """What only v1 can say arrives as it was said."""
    async with quick(sim) as client:
        await client.add_to_segment(3, [str(n) for n in range(1_000)])
        await client.remove_from_segment(3, (str(n) for n in range(2, 1_000)))
        await client.add_to_segment(4, ["a@b.c"], id_type="email")
        await client.add_to_segment(5, ["cio_03", "04"], id_type="cio_id")
        await client.submit_form("contact/us", {"email": "a@b.c", "first_name": "Ada", "topic": "?"})
        await client.report_metric(
            "d/1", "clicked", timestamp=1_764_000_000, recipient="a@b.c", reason="r", href="https://x.example"
        )
        await client.report_metric("d/2", "opened")
        await client.unsubscribe("d/1")
        region = await client.region()
    assert sim.workspace.segments == {
        3: {("id", "0"), ("id", "1")},
        4: {("email", "a@b.c")},
        5: {("cio_id", "03"), ("cio_id", "04")},
    }
    [form] = sim.workspace.forms
    assert (form["form_id"], form["identifiers"]) == ("contact/us", {"email": "a@b.c"})
    assert sim.workspace.person("email", "a@b.c").attributes == {"first_name": "Ada", "topic": "?"}
    assert sim.workspace.metrics == [
        {
            "delivery_id": "d/1",
            "metric": "clicked",
            "timestamp": 1_764_000_000,
            "recipient": "a@b.c",
            "reason": "r",
            "href": "https://x.example",
        },
        {"delivery_id": "d/2", "metric": "opened"},
    ]
    assert sim.workspace.unsubscribes == {"d/1": True}
    assert region == AccountRegion("us", "https://track.customer.io", 1)


async def test_credentials_go_only_where_they_are_asked_for() -> None:
    """Metrics and unsubscribes carry no credentials, everything else does."""
    async with Scripted() as server, quick(server) as client:
        await client.report_metric("d", "opened")
        await client.unsubscribe("d")
        await client.track("u", "e")
    said = [(heard.raw_path, heard.headers.get("Authorization")) for heard in server.heard]
    assert said == [
        ("/api/v1/metrics", None),
        ("/unsubscribe/d", None),
        ("/api/v1/customers/u/events", CREDENTIALS),
    ]
    assert server.heard[1].json == {"unsubscribe": True}
    assert server.heard[1].headers["Content-Type"] == "application/json"


# ------------------------------------------------------------------------------------------- typed, and stamps


async def test_a_typed_event_and_typed_attributes_arrive_by_their_wire_names(sim: Simulator) -> None:
    """What is not set stays off the wire, and one trailing underscore is dropped."""
    async with quick(sim) as client:
        typed: TypedCioClient[PlanChanged, Customer] = client
        await typed.identify("u", Customer(email="a@b.c", seats=5, extra={"vip": True}))
        await typed.track("u", PlanChanged(from_="free", to="pro", mrr=49.0))
        await typed.track_anonymous("cookie", PlanChanged(from_="a", to="b", mrr=1.0, coupon="C"))
    person = sim.workspace.person("id", "u")
    assert person.attributes == {"email": "a@b.c", "seats": 5, "vip": True}
    assert [(each["name"], each["attributes"]) for each in person.events] == [
        ("plan_changed", {"from": "free", "to": "pro", "mrr": 49.0})
    ]
    [other] = sim.workspace.person("anonymous", "cookie").events
    assert other["attributes"] == {"from": "a", "to": "b", "mrr": 1.0, "coupon": "C"}


async def test_a_client_may_be_narrowed_at_run_time(sim: Simulator) -> None:
    """A client with type arguments is the same client."""
    async with TypedCioClient[PlanChanged](settings_for(sim)) as client:
        await client.track("u", PlanChanged(from_="free", to="pro", mrr=49.0))
    async with TypedCioClient[PlanChanged, Customer](settings_for(sim)) as both:
        await both.track("u", PlanChanged(from_="free", to="pro", mrr=49.0))
    assert len(sim.workspace.person("id", "u").events) == 2


async def test_a_wrong_typed_event_never_gets_as_far_as_a_call(sim: Simulator) -> None:
    """A value that does not fit raises when the event is made; data beside a typed event is refused."""
    with pytest.raises(EventSchemaError):
        PlanChanged(from_="free", to="pro", mrr="49")  # type: ignore[arg-type]
    async with quick(sim) as client:
        wrong: Any = client
        with pytest.raises(InvalidOperationError, match="data"):
            await wrong.track("u", PlanChanged(from_="a", to="b", mrr=1.0), {"n": 1})
        with pytest.raises(InvalidOperationError, match=r"attributes: .* got PlanChanged, which is an event"):
            await wrong.identify("u", PlanChanged(from_="a", to="b", mrr=1.0))
    assert sim.traffic.calls == 0


@dataclass
class Purchase:
    total: int
    _hidden: int = 0


@attrs.frozen
class Plan:
    plan: str


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (None, {}),
        ({"n": 1}, {"n": 1}),
        ({"tracked_at": 1, "last_seen_at": 1}, {}),
        (Purchase(5), {"total": 5}),
        (Plan("pro"), {"plan": "pro"}),
    ],
)
async def test_calls_are_stamped(sim: Simulator, data: Any, said: dict[str, Any]) -> None:
    """``track`` adds ``tracked_at`` and ``identify`` sets ``last_seen_at``, in seconds, whatever form the data has."""
    before = {**data} if isinstance(data, dict) else data
    began = int(time.time())
    async with TypedCioClient(settings_for(sim)) as client:
        await client.track("u", "e", data)
        await client.track_anonymous("cookie", "e", data)
        await client.identify("u", data)
        await client.page("u", "e")
    ended = int(time.time())
    person = sim.workspace.person("id", "u")
    for seen, stamp in (
        (person.events[0]["attributes"], "tracked_at"),
        (sim.workspace.person("anonymous", "cookie").events[0]["attributes"], "tracked_at"),
        (dict(person.attributes), "last_seen_at"),
    ):
        assert began <= seen.pop(stamp) <= ended
        assert {name: value for name, value in seen.items() if name not in ("tracked_at", "last_seen_at")} == said
    assert person.events[1]["attributes"] == {}
    assert data == before


async def test_stamps_can_be_switched_off(sim: Simulator) -> None:
    """Without stamps exactly what was said arrives."""
    async with quick(sim) as client:
        await client.track("u", "e", {"tracked_at": 1})
        await client.identify("u", {"last_seen_at": 1})
        await client.track("u", "e")
    person = sim.workspace.person("id", "u")
    assert [each["attributes"] for each in person.events] == [{"tracked_at": 1}, {}]
    assert person.attributes == {"last_seen_at": 1}


# ------------------------------------------------------------------------------------------------ hostile ids

HOSTILE = [
    "a/b",
    "a?b=c",
    "a#b",
    "100%",
    "%2F",
    "%252e",
    "a+b",
    "a b",
    " padded ",
    "../..",
    "...",
    "http://evil.example/",
    "naïve",
    "顧客",
    "🔑",
    "e\u0301",
    "tab\tinside",
    "x" * 150,
    "🔑" * 37,
]


@pytest.mark.parametrize("identifier", HOSTILE)
async def test_a_hostile_id_reaches_exactly_its_person(sim: Simulator, identifier: str) -> None:
    """Whatever an id holds, the person of that id and no other is changed."""
    async with quick(sim) as client:
        await client.identify(identifier, {"n": 1})
        await client.track(identifier, "e")
        await client.add_device(identifier, identifier, "ios")
        await client.track_anonymous(identifier, "e")
        await client.add_to_segment(1, [identifier])
        await client.unsubscribe(identifier)
        await client.submit_form(identifier, {"id": identifier})
        await client.report_metric(identifier, "opened")
        await client.suppress(identifier)
    assert set(sim.workspace.people) == {("id", identifier), ("anonymous", identifier)}
    person = sim.workspace.person("id", identifier)
    assert person.suppressed
    assert [each["action"] for each in person.operations][:3] == ["identify", "event", "add_device"]
    assert sim.workspace.unsubscribes == {identifier: True}
    assert [form["form_id"] for form in sim.workspace.forms] == [identifier]
    assert sim.traffic.statuses == {200: 8, 204: 1}


@pytest.mark.parametrize("identifier", ["a@b.example", "a+b/c?d@b.example", "cio_03/4"])
async def test_a_shape_that_the_service_reads_otherwise_reaches_that_person(sim: Simulator, identifier: str) -> None:
    """On v1 the service infers the kind of an identifier from its shape; the text arrives whole."""
    async with quick(sim) as client:
        await client.identify(identifier, {"n": 1})
    kind = "email" if "@" in identifier else "cio_id"
    assert list(sim.workspace.people) == [(kind, identifier.removeprefix("cio_"))]


IMPOSSIBLE = ["", " ", ".", "..", "x" * 151, "🔑" * 38, "\ud800"]


@pytest.mark.parametrize("identifier", IMPOSSIBLE)
async def test_an_impossible_id_never_leaves(sim: Simulator, identifier: str) -> None:
    """What would climb the path or break a limit is refused in every place, and no call is made."""
    async with quick(sim) as client:
        calls: list[Callable[[], Awaitable[None]]] = [
            lambda: client.identify(identifier),
            lambda: client.track(identifier, "e"),
            lambda: client.page(identifier, "e"),
            lambda: client.screen(identifier, "e"),
            lambda: client.track_anonymous(identifier, "e"),
            lambda: client.suppress(identifier),
            lambda: client.unsuppress(identifier),
            lambda: client.destroy(identifier),
            lambda: client.add_device(identifier, "t", "ios"),
            lambda: client.delete_device(identifier, "t"),
            lambda: client.merge(identifier, "u"),
            lambda: client.merge("u", identifier),
            lambda: client.add_to_segment(1, ["u", identifier]),
            lambda: client.remove_from_segment(1, [identifier]),
            lambda: client.submit_form(identifier, {"id": "u"}),
            lambda: client.submit_form("f", {"id": identifier}),
            lambda: client.report_metric(identifier, "opened"),
            lambda: client.unsubscribe(identifier),
        ]
        if identifier in ("", ".", ".."):
            calls.append(lambda: client.delete_device("u", identifier))
        for call in calls:
            with pytest.raises(InvalidOperationError):
                await call()
    assert sim.traffic.calls == 0


# ------------------------------------------------------------------------------------------ refused at the door


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda client: client.track(Phone("+15551234567"), "e"), "user_id"),
        (lambda client: client.track("u", ""), "name"),
        (lambda client: client.track("u", "e", [1]), "data"),
        (lambda client: client.track("u", "e", {"n": float("nan")}), "data.n"),
        (lambda client: client.identify("u", 7), "attributes"),
        (lambda client: client.add_device("u", "t", "palm"), "device.platform"),
        (lambda client: client.add_to_segment(0, ["u"]), "segment_id"),
        (lambda client: client.add_to_segment(True, ["u"]), "segment_id"),
        (lambda client: client.add_to_segment("3", ["u"]), "segment_id"),
        (lambda client: client.add_to_segment(2**31, ["u"]), "segment_id"),
        (lambda client: client.add_to_segment(3, []), "ids"),
        (lambda client: client.add_to_segment(3, ["u"] * 1_001), "ids"),
        (lambda client: client.add_to_segment(3, "user-1"), "ids"),
        (lambda client: client.add_to_segment(3, None), "ids"),
        (lambda client: client.remove_from_segment(3, 7), "ids"),
        (lambda client: client.identify("u", relationships=ObjectId("1", "acme")), "relationships"),
        (lambda client: client.identify("u", relationships="acme"), "relationships"),
        (lambda client: client.add_to_segment(3, [7]), "ids[0]"),
        (lambda client: client.add_to_segment(3, ["a@b.c", "u"], id_type="email"), "ids[1]"),
        (lambda client: client.add_to_segment(3, ["u"], id_type="phone"), "id_type"),
        (lambda client: client.submit_form("f", {}), "data"),
        (lambda client: client.submit_form("f", {"name": "Ada"}), "data"),
        (lambda client: client.submit_form("f", {"id": "u", "email": "a@b.c"}), "data"),
        (lambda client: client.submit_form("f", {"id": "u", "n": 7}), "data.n"),
        (lambda client: client.submit_form("f", {"id": 7}), "data.id"),
        (lambda client: client.submit_form("f", {"id": "u", 7: "n"}), "data"),
        (lambda client: client.submit_form("f", [("id", "u")]), "data"),
        (lambda client: client.submit_form("f", {"id": "u", "n": "\ud800"}), "data"),
        (lambda client: client.report_metric("d", "read"), "metric"),
        (lambda client: client.report_metric("d", "opened", timestamp=1_764_000_000_000), "timestamp"),
        (lambda client: client.report_metric("d", "opened", recipient=7), "recipient"),
        (lambda client: client.report_metric("d", "opened", href="\ud800"), "metric"),
    ],
)
async def test_what_cannot_be_sent_is_refused_by_name(
    sim: Simulator, call: Callable[[Any], Awaitable[None]], field: str
) -> None:
    """The error names the part at fault, and nothing is sent."""
    async with quick(sim) as client:
        with pytest.raises(InvalidOperationError) as caught:
            await call(client)
    assert caught.value.field == field
    assert sim.traffic.calls == 0


# ----------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("body", "details"),
    [
        (b'{"meta":{"error":"bad SECRET"}}', [("", "", "bad SECRET", 0)]),
        (b'{"meta":{"errors":["one","two SECRET"]}}', [("", "", "one", 0), ("", "", "two SECRET", 0)]),
        (
            b'{"errors":[{"reason":"invalid","field":"data.n","message":"SECRET"},{"reason":"required","field":"name"}]}',
            [("invalid", "data.n", "SECRET", 0), ("required", "name", "", 0)],
        ),
        (
            b'{"errors":[{"detail":"SECRET","status":"422","source":{"pointer":"/data/to"}}]}',
            [("", "/data/to", "SECRET", 422)],
        ),
        (b'{"errors":[{"detail":"SECRET","status":400,"source":"to"}]}', [("", "to", "SECRET", 400)]),
        (b'{"error":"SECRET"}', [("", "", "SECRET", 0)]),
        (b"Unauthorized SECRET\n", [("", "", "Unauthorized SECRET", 0)]),
        (b"<html><head><title> 400 SECRET </title></head></html>", [("", "", "400 SECRET", 0)]),
        (b"<html>", []),
        (b"", []),
        (b"{}", []),
        (b'"SECRET"', [("", "", "SECRET", 0)]),
        (b'{"errors":[{"message":"SECRET', []),
        (b'{"meta":7,"errors":{"a":1}}', [("", "", "", 0)]),
        (b"\xff\xfe", [("", "", "\ufffd\ufffd", 0)]),
        (b"[1,2]", []),
    ],
)
async def test_an_error_says_what_the_service_said(body: bytes, details: list[tuple[str, str, str, int]]) -> None:
    """Every envelope is read, and neither the text nor a repr shows what may be content."""
    async with Scripted(Say(400, body)) as server, quick(server) as client:
        with pytest.raises(ApiError) as caught:
            await client.track("PERSON-SECRET", "e", {"n": "DATA-SECRET"})
    error = caught.value
    assert (error.status, error.retryable, error.retry_after) == (400, False, None)
    assert [(each.reason, each.field, each.message, each.status) for each in error.details] == details
    assert "SECRET" not in f"{error} {error!r} {error.details!r}"
    assert "400" in str(error)
    assert len(server.heard) == 1


async def test_an_error_names_reasons_and_fields_and_no_sentences() -> None:
    """The text holds words of the service that can be no content, and not more than five of them."""
    body = b'{"errors":[' + b",".join([b'{"reason":"invalid","field":"a%d"}' % n for n in range(8)]) + b"]}"
    sentence = Say(400, b'{"errors":[{"reason":"a b","field":"x@y"}]}')
    async with Scripted(Say(400, body), sentence) as server, quick(server) as client:
        with pytest.raises(ApiError, match=r"400: invalid \(a0\), .*invalid \(a4\) and 3 more$"):
            await client.track("u", "e")
        with pytest.raises(ApiError, match=r"^Customer.io answered 400$"):
            await client.track("u", "e")


@pytest.mark.parametrize("status", [401, 403])
async def test_refused_credentials_are_named_as_such(status: int) -> None:
    """The text says where to look, and nothing is tried again."""
    async with Scripted(Say(status, b"Unauthorized")) as server, quick(server) as client:
        with pytest.raises(ApiError, match="credentials") as caught:
            await client.region()
    assert (caught.value.status, caught.value.retryable) == (status, False)
    assert len(server.heard) == 1


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
async def test_what_may_pass_is_tried_again(status: int) -> None:
    """The same bytes go out again, and each repeat says which one it is."""
    async with Scripted(Say(status, b"<html>"), Say(status, b""), Say()) as server, quick(server) as client:
        await client.track("u", "e", {"n": 1})
    assert len({heard.body for heard in server.heard}) == 1
    assert [heard.headers.get("X-Retry-Count") for heard in server.heard] == [None, "1", "2"]


async def test_the_last_error_comes_out(sim: Simulator) -> None:
    """After three repeats the caller gets the service's answer, with its Retry-After."""
    sim.faults.order("unavailable", times=4, retry_after="0.01")
    async with quick(sim) as client:
        with pytest.raises(ApiError) as caught:
            await client.track("u", "e")
    assert (caught.value.status, caught.value.retryable, caught.value.retry_after) == (503, True, 0.01)
    assert sim.traffic.calls == 4


async def test_a_repeat_of_an_event_counts_once(sim: Simulator) -> None:
    """An event whose answer was lost is sent again with the same id, which the service ignores."""
    sim.faults.order("drop_after", times=2)
    async with quick(sim) as client:
        await client.track("u", "e")
    assert len(sim.workspace.person("id", "u").events) == 1
    assert sim.workspace.duplicates_ignored == 2


async def test_what_has_no_id_may_count_twice_unless_it_is_never_repeated(sim: Simulator) -> None:
    """A form whose answer was lost is repeated, as documented; with ``retry=None`` the caller decides."""
    form = {"id": "u"}
    sim.faults.order("drop_after")
    async with quick(sim) as client:
        await client.submit_form("repeated", form)
    sim.faults.order("drop_after")
    async with quick(sim, retry=None) as client:
        with pytest.raises(UnreachableError) as caught:
            await client.submit_form("once", form)
    assert caught.value.sent
    assert [each["form_id"] for each in sim.workspace.forms] == ["repeated", "repeated", "once"]


async def test_a_retry_after_delays_its_own_call_alone(sim: Simulator) -> None:
    """While one call waits, the others go on."""
    sim.faults.order("rate_limit", retry_after="60")
    async with quick(sim) as client:
        waiting = asyncio.create_task(client.track("u", "waits"))
        await until(lambda: sim.traffic.statuses[429] == 1)
        async with asyncio.timeout(10):
            await client.track("u", "goes on")
        assert not waiting.done()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert [each["name"] for each in sim.workspace.person("id", "u").events] == ["goes on"]


async def test_retries_can_be_switched_off(sim: Simulator) -> None:
    """With ``retry=None`` each call is made once, so that ``with_retry`` around it does not multiply attempts."""
    sim.faults.order("server_error", times=2)
    async with quick(sim, retry=None) as client:
        with pytest.raises(ApiError):
            await client.track("u", "e")
        assert sim.traffic.calls == 1
        await with_retry(lambda: client.track("u", "e"), QUICK)
    assert sim.traffic.calls == 3


async def test_nobody_there_is_an_error_of_its_own(free_port: int) -> None:
    """A connection that cannot be made is retried, and then told, as not sent."""
    async with TypedCioClient(settings_at(f"http://127.0.0.1:{free_port}"), retry=QUICK) as client:
        with pytest.raises(UnreachableError) as caught:
            await client.track("u", "e")
    assert (caught.value.sent, caught.value.retryable) == (False, True)


@pytest.fixture
def free_port(unused_tcp_port: int) -> int:
    return unused_tcp_port


@pytest.mark.parametrize("body", [b"<html>login</html>", b"{", b"[]"])
async def test_a_success_that_cannot_be_read_is_none(body: bytes) -> None:
    """A 200 of something that is not the service (a portal, a proxy) is no answer."""
    async with Scripted(Say(200, body)) as server, quick(server, retry=None) as client:
        for call in (client.track("u", "e"), client.region()):
            with pytest.raises(UnreachableError, match="unreadable") as caught:
                await call
            assert caught.value.sent


@pytest.mark.parametrize("body", [b"{}", b'{"region":"us"}', b'{"region":1,"url":"u","environment_id":1}', b""])
async def test_a_region_that_is_none_is_an_error(body: bytes) -> None:
    """An answer without what was asked for is not passed on as one."""
    async with Scripted(Say(200, body)) as server, quick(server, retry=None) as client:
        with pytest.raises(UnreachableError, match="unreadable"):
            await client.region()


async def test_a_silent_service_ends_the_call(sim: Simulator) -> None:
    """A call ends with its timeout, and the error says that it may have arrived."""
    sim.faults.order("black_hole")
    client = TypedCioClient(settings_for(sim, total_timeout=0.1), retry=None)
    async with client:
        with pytest.raises(UnreachableError, match="timed out") as caught:
            await client.track("u", "e")
    assert caught.value.sent


# -------------------------------------------------------------------------------------------------- redirects


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_to_another_host_carries_no_credentials(status: int) -> None:
    """Nothing at all is sent to another host; the caller learns why."""
    async with Scripted() as other:
        away = Say(status, headers={"Location": f"{other.url}/api/v1/customers/u/events"})
        async with Scripted(away) as server, quick(server, retry=None) as client:
            with pytest.raises(UnreachableError, match="another host"):
                await client.track("u", "e")
            with pytest.raises(UnreachableError, match="another host"):
                await client.unsubscribe("d")
    assert len(server.heard) == 2
    assert other.heard == []


# ---------------------------------------------------------------------------------------------------- life


def make_outside_a_loop(url: str) -> TypedCioClient:
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()
    return TypedCioClient(settings_at(url), retry=QUICK)


def test_a_client_is_made_anywhere_and_used_in_one_loop_after_the_other() -> None:
    """Nothing belongs to a loop before the first call, and each loop gets connections of its own."""
    client = make_outside_a_loop("http://127.0.0.1:1")

    async def use(port: int) -> int:
        async with Simulator(port=port) as sim:
            client._http._origin = URL(sim.url)  # type: ignore[union-attr]
            assert not client.is_open
            await client.track("u", "e")
            assert client.is_open
            await client.aclose()
            assert not client.is_open
            await client.aclose()
            await client.track("u", "e")  # connects anew
            await client.aclose()
            return sim.traffic.calls

    assert [asyncio.run(use(0)) for _ in range(3)] == [2, 2, 2]


def test_threads_with_loops_of_their_own_share_a_client() -> None:
    """Several loops at a time use one client, and close their connections each for itself."""

    async def serve(started: threading.Event, stop: threading.Event, box: list[Simulator]) -> None:
        async with Simulator() as sim:
            box.append(sim)
            started.set()
            await asyncio.to_thread(stop.wait)

    started, stop, box = threading.Event(), threading.Event(), list[Simulator]()
    server = threading.Thread(target=lambda: asyncio.run(serve(started, stop, box)))
    server.start()
    started.wait(10)
    client = quick(box[0])
    failed: list[BaseException] = []

    async def use(name: str) -> None:
        await asyncio.gather(*[client.track(name, "e", {"n": n}) for n in range(20)])
        await client.aclose()

    def run(name: str) -> None:
        try:
            asyncio.run(use(name))
        except BaseException as error:  # noqa: BLE001 - told below
            failed.append(error)

    users = [threading.Thread(target=run, args=(f"u-{n}",)) for n in range(4)]
    for thread in users:
        thread.start()
    for thread in users:
        thread.join(30)
    stop.set()
    server.join(10)
    assert failed == []
    assert not client.is_open
    assert [len(box[0].workspace.person("id", f"u-{n}").events) for n in range(4)] == [20] * 4


@pytest.mark.filterwarnings("ignore:Unclosed:ResourceWarning")  # aiohttp's own
async def test_a_client_that_is_forgotten_open_says_so(sim: Simulator) -> None:
    """An open client that is collected gives a warning that names the remedy; a closed or unused one does not."""
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)  # aiohttp tells the loop, too
    clients = [quick(sim)]
    await clients[0].track("u", "e")
    with pytest.warns(ResourceWarning, match=r"TypedCioClient was not closed.*aclose\(\)"):
        clients.clear()
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        client = quick(sim)
        del client
        async with quick(sim) as client:
            await client.track("u", "e")
        del client
        gc.collect()


async def test_no_more_calls_than_allowed_run_at_a_time(sim: Simulator) -> None:
    """The others wait, and their timeouts with them."""
    sim.latency = 0.05
    async with TypedCioClient(settings_for(sim, total_timeout=1.0), concurrency=3, retry=None) as client:
        await asyncio.gather(*[client.track("u", "e", {"n": n}) for n in range(12)])
    assert sim.traffic.calls == 12
    assert sim.traffic.max_overlap <= 3


async def test_a_cancel_ends_a_call(sim: Simulator) -> None:
    """A cancel reaches the call and gives its slot back."""
    sim.faults.order("black_hole")
    async with quick(sim, concurrency=1) as client:
        task = asyncio.create_task(client.track("u", "e"))
        while not sim.faults.injected["black_hole"]:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await client.track("u", "e")
    assert sim.traffic.calls == 2


async def test_a_disabled_client_checks_and_sends_nothing(sim: Simulator) -> None:
    """With ``disabled`` no credentials are needed, faults are found, and no call is made."""
    async with TypedCioClient(Settings(track_url=sim.url, region="eu", disabled=True)) as client:
        await client.track("u", "e")
        await client.add_to_segment(3, ["u"])
        assert await client.region() == AccountRegion("eu", sim.url, 0)
        with pytest.raises(InvalidOperationError):
            await client.track("..", "e")
        assert not client.is_open
        assert repr(client) == "<TypedCioClient disabled>"
    assert sim.traffic.calls == 0


@pytest.mark.parametrize("concurrency", [0, -1, True, 1.5, None])
def test_a_client_needs_what_it_needs(concurrency: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing credentials and a concurrency that is none are named when the client is made."""
    for name in ("CUSTOMERIO_SITE_ID", "CUSTOMERIO_TRACK_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigurationError, match="in your environment") as caught:
        TypedCioClient()
    assert caught.value.variables == ("CUSTOMERIO_SITE_ID", "CUSTOMERIO_TRACK_API_KEY")
    with pytest.raises(ConfigurationError) as caught:
        TypedCioClient(settings_at("http://127.0.0.1:1"), concurrency=concurrency)
    assert caught.value.variables == ("concurrency",)


@pytest.mark.parametrize("kind", [TypedCioClient, CioAppClient])
def test_a_wrong_argument_is_named_when_the_client_is_made(kind: Any) -> None:
    """All of them in one error, and no attempt is needed to find out."""
    with pytest.raises(ConfigurationError, match=r"retry must be RetryOptions\(...\) or None, got int") as caught:
        kind("s3cr3t", retry=3, concurrency=0)
    assert caught.value.variables == ("settings", "retry", "concurrency")
    assert "s3cr3t" not in str(caught.value)
    own = {TypedCioClient: {"strict": "yes"}, CioAppClient: {"rates": 100}}[kind]
    with pytest.raises(ConfigurationError) as caught:
        kind(Settings(site_id="site", track_api_key="key", app_api_key="app-key"), **own)
    assert caught.value.variables == tuple(own)


async def test_no_secret_is_ever_shown(sim: Simulator, caplog: pytest.LogCaptureFixture) -> None:
    """No key, id, name or content stands in a log record, a ``repr`` or an error's text."""
    caplog.set_level(logging.DEBUG)
    settings = Settings(site_id="SITE-s3cr3t", track_api_key="KEY-s3cr3t", track_url=sim.url)
    async with TypedCioClient(settings, retry=QUICK) as client:
        shown = [repr(client)]
        for fault in ("server_error", "html_error", "drop_before", "drop_after", "refuse"):
            sim.faults.order(fault, times=4)
            with pytest.raises((ApiError, UnreachableError)) as caught:
                await client.track("PERSON-s3cr3t", "EVENT-s3cr3t", {"n": "DATA-s3cr3t"})
            shown += [str(caught.value), repr(caught.value)]
            sim.faults.clear()
    shown += [record.getMessage() for record in caplog.records if record.name.startswith("cio_batch")]
    assert any("repeated" in text for text in shown)
    assert "s3cr3t" not in "\n".join(shown)


# ------------------------------------------------------------------------------------------------- rotation


class Vault:
    """Where a program keeps its credentials."""

    def __init__(self, *pairs: Any) -> None:
        self.pairs = list(pairs)
        self.asked_in: list[str] = []

    def __call__(self) -> Any:
        self.asked_in.append(threading.current_thread().name)
        found = self.pairs.pop(0) if len(self.pairs) > 1 else self.pairs[0]
        if isinstance(found, Exception):
            raise found
        return found


def rotating(sim: Simulator, vault: Vault) -> Settings:
    return Settings(track_credentials=vault, track_url=sim.url)


async def test_a_401_asks_for_credentials_once_more(sim: Simulator) -> None:
    """The call is repeated with the fresh ones, off the loop, and the caller notices nothing."""
    vault = Vault(("site", "old"), ("site", "key"))
    async with TypedCioClient(rotating(sim, vault), retry=None) as client:
        assert len(vault.asked_in) == 1
        await client.track("u", "e")
        await client.track("u", "e")
    assert len(vault.asked_in) == 2
    assert vault.asked_in[1] != threading.current_thread().name
    assert sim.traffic.statuses == {401: 1, 200: 2}


async def test_calls_that_are_refused_together_ask_once(sim: Simulator) -> None:
    """A rotation under load costs one question."""
    vault = Vault(("site", "old"), ("site", "key"))
    sim.latency = 0.02
    async with TypedCioClient(rotating(sim, vault), retry=None) as client:
        await asyncio.gather(*[client.track("u", "e", {"n": n}) for n in range(20)])
    assert len(vault.asked_in) == 2
    assert sim.traffic.statuses[200] == 20


@pytest.mark.parametrize("fresh", [("site", "old"), RuntimeError("s3cr3t"), ("site", ""), "key", None])
async def test_a_401_stands_where_nothing_better_is_known(
    sim: Simulator, fresh: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The same credentials, broken ones or an exception leave the 401 as it is, and the next one asks again."""
    vault = Vault(("site", "old"), fresh, ("site", "key"))
    async with TypedCioClient(rotating(sim, vault), retry=None) as client:
        with pytest.raises(ApiError, match="credentials"):
            await client.track("u", "e")
        assert sim.traffic.statuses == {401: 1}
        await client.track("u", "e")
    assert "s3cr3t" not in caplog.text


@pytest.mark.parametrize("pair", [("site", ""), ("site", "ke\ny"), ("site",), "key", None, ("site", 7)])
def test_credentials_that_are_none_are_refused_at_once(pair: Any) -> None:
    """The error names the setting and shows nothing."""
    with pytest.raises(ConfigurationError, match="track_credentials must return") as caught:
        TypedCioClient(Settings(track_credentials=Vault(pair)))
    assert caught.value.variables == ("track_credentials",)


@pytest.mark.parametrize("wire", [TrackV1Transport, TrackV2Transport])
async def test_the_trackers_transports_rotate_too(sim: Simulator, wire: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A tracker goes on over a rotation without an alarm, and nothing is lost or said twice."""
    vault = Vault(("site", "old"), ("site", "key"))
    settings = rotating(sim, vault)
    async with CioBatchTracker(settings, transport=wire(settings), batch_size=5) as tracker:
        for n in range(20):
            await tracker.enqueue(f"u-{n % 3}", "e", {"n": n})
        await tracker.flush(10)
        assert assert_conserved(tracker).delivered == 20
        assert tracker.stats().paused is None
    assert "refuses the credentials" not in caplog.text
    assert len(vault.asked_in) == 2


# --------------------------------------------------------------------------------------------------- parity


class PlainCustomerIO(customerio.CustomerIO):
    """The official client without TLS, which it has no option for: only the scheme is another."""

    def send_request(self, method: str, url: str, data: dict[str, Any]) -> Any:
        """Send the request as the official client does."""
        return super().send_request(method, url.replace("https://", "http://", 1), data)


def state_of(sim: Simulator) -> dict[str, Any]:
    """Everything that calls of both clients can change, comparable."""
    workspace = sim.workspace
    people = {
        key: {
            "attributes": person.attributes,
            "exists": person.exists,
            "suppressed": person.suppressed,
            "deleted": person.deleted,
            "merged_into": person.merged_into,
            "devices": person.devices,
            "events": [
                {name: event[name] for name in ("action", "name", "id", "attributes")} | {"at": event["timestamp"]}
                for event in person.events
            ],
        }
        for key, person in workspace.people.items()
    }
    return {"people": people, "applied": dict(workspace.applied), "repeats": workspace.duplicates_ignored}


def ulid(number: int) -> str:
    return f"01ARZ3NDEKTSV4RRFFQ69G5{number:03d}"


async def test_the_official_client_and_ours_leave_the_same_state() -> None:
    """Given the same calls, both clients leave the same people, attributes, events and devices."""
    at = 1_764_000_000
    ids = ["42", "a/b c?d#e%2F+", "顧客", "a@b.example", "cio_03"]
    async with Simulator() as theirs, Simulator() as ours:

        def official_calls() -> None:
            with PlainCustomerIO("site", "key", host="127.0.0.1", port=theirs.port, retries=0) as client:
                for n, person in enumerate(ids):
                    client.identify(person, plan="pro", n=n, nested={"a": [1, None, True]})
                    client.identify(person, n=n + 1)
                    client.track(person, "bought", {"price": 5.5}, id=ulid(n), timestamp=at + n)
                    client.track(person, "bought", {"price": 5.5}, id=ulid(n), timestamp=at + n)
                    client.add_device(person, f"t/{n}", "ios", last_used=at)
                    client.add_device(person, f"u/{n}", "android")
                    client.delete_device(person, f"u/{n}")
                client.track_anonymous("cookie/1", "looked", {"n": 1}, id=ulid(100), timestamp=at)
                client.pageview("viewer", "/pricing", referrer="/")
                client.backfill("viewer", "signed up", at - 1_000, source="web")
                client.identify("gone", plan="free")
                client.delete("gone")
                client.suppress("away")
                client.identify("away", plan="free")
                client.suppress("back")
                client.unsuppress("back")
                client.identify("back", plan="free")
                client.merge_customers("id", "42", "email", "a@b.example")

        await asyncio.to_thread(official_calls)
        async with quick(ours) as client:
            for n, person in enumerate(ids):
                await client.identify(person, {"plan": "pro", "n": n, "nested": {"a": [1, None, True]}})
                await client.identify(person, {"n": n + 1})
                await client.track(person, "bought", {"price": 5.5}, id=ulid(n), timestamp=at + n)
                await client.track(person, "bought", {"price": 5.5}, id=ulid(n), timestamp=at + n)
                await client.add_device(person, f"t/{n}", "ios", last_used=at)
                await client.add_device(person, f"u/{n}", "android")
                await client.delete_device(person, f"u/{n}")
            await client.track_anonymous("cookie/1", "looked", {"n": 1}, id=ulid(100), timestamp=at)
            await client.page("viewer", "/pricing", {"referrer": "/"})
            await client.track("viewer", "signed up", {"source": "web"}, timestamp=at - 1_000)
            await client.identify("gone", {"plan": "free"})
            await client.destroy("gone")
            await client.suppress("away")
            await client.identify("away", {"plan": "free"})
            await client.suppress("back")
            await client.unsuppress("back")
            await client.identify("back", {"plan": "free"})
            await client.merge("42", Email("a@b.example"))

        states = [state_of(sim) for sim in (theirs, ours)]
        for state in states:  # the official client gives these no id, and the page no time
            page, backfill = state["people"]["id", "viewer"]["events"]
            del page["id"], page["at"], backfill["id"]
        assert states[0] == states[1]
        assert len(theirs.workspace.people) == len(ids) + 5
        assert theirs.traffic.statuses == ours.traffic.statuses
