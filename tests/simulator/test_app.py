"""The App API: messages and broadcasts, what is refused in them and how, rates and faults."""

import asyncio
import io
import time
from typing import Any

import aiohttp
import orjson
import pytest
from yarl import URL

from cio_batch.simulator import AppRates, Broadcast, Kind, Simulator
from cio_batch.simulator.app import check_broadcast, check_message

from .wire import basic, bearer, event, wait_until

NOW = 1_764_000_000
EMAIL = {"transactional_message_id": 1, "to": "a@b.c", "identifiers": {"id": "42"}}
PUSH = {"transactional_message_id": "t", "identifiers": {"id": "42"}}
SMS = {**PUSH, "to": "+15551234567"}
TRIGGERS = "/v1/campaigns/3/triggers"
SEGMENT = {"segment": {"id": 3}}

MESSAGES: list[tuple[str, dict[str, Any]]] = [
    ("email", EMAIL),
    ("email", {"transactional_message_id": "pwdreset", "to": "a@b.c"}),
    ("email", {"to": "a@b.c", "body": "b", "subject": "s", "from": "u@b.c"}),
    ("email", {**EMAIL, "attachments": {"a.txt": "YQ==", "b.tar.gz": ""}, "message_data": {"a": [1]}}),
    ("email", {**EMAIL, "headers": '[{"name":"X-A","value":"b"}]', "tracked": False, "send_at": NOW + 90 * 86_400}),
    ("email", {**EMAIL, "to": ",".join(["a@b.c"] * 13), "cc": '"Doe, John" <a@b.c>', "bcc": "c@b.c"}),
    ("push", PUSH),
    (
        "push",
        {**PUSH, "to": "all", "sound": "none", "custom_device": {"token": "t", "platform": "ios", "last_used": 1}},
    ),
    ("push", {**PUSH, "custom_data": {"a": "b"}, "custom_payload": {"android": {"message": {}}}, "auto_create": True}),
    ("sms", SMS),
    ("sms", {**SMS, "to": "{{customer.phone}}", "from": "+15551234567", "tracked": True}),
    ("whatsapp", {**SMS, "from": "us", "send_to_unsubscribed": False}),
    ("inbox_message", {**PUSH, "identifiers": {"cio_id": "0300"}, "language": "fr", "to": "x"}),
    ("in_app", {**PUSH, "identifiers": {"email": "a@b.c"}, "queue_draft": True, "disable_message_retention": True}),
]
BROADCASTS: list[dict[str, Any]] = [
    {},
    {"data": {"a": 1}},
    {"recipients": SEGMENT},
    {"recipients": {"and": [SEGMENT, {"not": {"attribute": {"field": "a", "operator": "exists"}}}]}},
    {"recipients": {"or": [{"attribute": {"field": "a", "operator": "eq", "value": "b"}}]}, "data": {}},
    {"ids": ["1", "2"], "id_ignore_missing": True},
    {"emails": ["a@b.c"], "email_ignore_missing": True, "email_add_duplicates": False},
    {"per_user_data": [{"id": "1", "data": {"a": 1}}, {"email": "a@b.c"}]},
    {"data_file_url": "https://b.c/people.jsonl"},
]

# kind, a body, the field that is wrong in it
WRONG_MESSAGES: list[tuple[str, Any, str]] = [
    ("email", [], ""),
    ("email", {"transactional_message_id": 1}, "to"),
    ("email", {"to": "a@b.c", "subject": "s", "from": "u@b.c"}, "body"),
    ("email", {"to": "a@b.c", "body": "b", "from": "u@b.c"}, "subject"),
    ("email", {"to": "a@b.c", "body": "b", "subject": "s"}, "from"),
    ("email", {**EMAIL, "to": ""}, "to"),
    ("email", {**EMAIL, "to": ["a@b.c"]}, "to"),
    ("email", {**EMAIL, "to": ",".join(["a@b.c"] * 14), "cc": "a@b.c", "bcc": "a@b.c"}, "to"),
    ("email", {**EMAIL, "subject": None}, "subject"),
    ("email", {**EMAIL, "transactional_message_id": ""}, "transactional_message_id"),
    ("email", {**EMAIL, "transactional_message_id": 1.5}, "transactional_message_id"),
    ("email", {**EMAIL, "identifiers": {"email": 7}}, "identifiers.email"),
    ("email", {**EMAIL, "identifiers": {"id": True}}, "identifiers.id"),
    ("email", {**EMAIL, "identifiers": {}}, "identifiers"),
    ("email", {**EMAIL, "identifiers": "42"}, "identifiers"),
    ("email", {**EMAIL, "attachments": {"a.txt": "no base64"}}, "attachments"),
    ("email", {**EMAIL, "attachments": {"a.txt": "YQ=\n="}}, "attachments"),
    ("email", {**EMAIL, "attachments": {"a.txt": 1}}, "attachments"),
    ("email", {**EMAIL, "attachments": {"a": "YQ=="}}, "attachments"),
    ("email", {**EMAIL, "attachments": ["YQ=="]}, "attachments"),
    ("email", {**EMAIL, "headers": "X-A: b"}, "headers"),
    ("email", {**EMAIL, "headers": {"X-A": "é"}}, "headers"),
    ("email", {**EMAIL, "headers": {"X-A": 1}}, "headers"),
    ("email", {**EMAIL, "headers": '[{"name":"X-A"}]'}, "headers"),
    ("email", {**EMAIL, "message_data": []}, "message_data"),
    ("email", {**EMAIL, "send_at": NOW + 90 * 86_400 + 1}, "send_at"),
    ("email", {**EMAIL, "send_at": 1.5}, "send_at"),
    ("email", {**EMAIL, "title": "t"}, "title"),
    ("push", {"identifiers": {"id": "1"}}, "transactional_message_id"),
    ("push", {**PUSH, "sound": "loud"}, "sound"),
    ("push", {**PUSH, "custom_data": "x"}, "custom_data"),
    ("push", {**PUSH, "custom_device": []}, "custom_device"),
    ("push", {**PUSH, "custom_device": {"platform": "ios"}}, "custom_device.token"),
    ("push", {**PUSH, "custom_device": {"token": "t"}}, "custom_device.platform"),
    ("push", {**PUSH, "custom_device": {"token": "t", "platform": "symbian"}}, "custom_device.platform"),
    ("push", {**PUSH, "custom_device": {"token": "t", "platform": "ios", "attributes": 1}}, "custom_device.attributes"),
    ("push", {**PUSH, "custom_device": {"token": "t", "platform": "ios", "last_used": ""}}, "custom_device.last_used"),
    ("push", {**PUSH, "subject": "s"}, "subject"),
    ("sms", PUSH, "to"),
    ("sms", {**SMS, "to": "5551234"}, "to"),
    ("whatsapp", {**SMS, "to": "+1 555 1234"}, "to"),
    ("whatsapp", {"to": "+15551234567", "transactional_message_id": 1}, "identifiers"),
    ("inbox_message", {"transactional_message_id": 1}, "identifiers"),
    ("in_app", {**PUSH, "queue_draft": "no"}, "queue_draft"),
]
WRONG_BROADCASTS: list[tuple[Any, str]] = [
    ([], ""),
    ({"ids": ["1"], "emails": ["a@b.c"]}, "emails"),
    ({"recipients": SEGMENT, "data_file_url": "https://b.c"}, "data_file_url"),
    ({"data": "x"}, "data"),
    ({"id_ignore_missing": "yes"}, "id_ignore_missing"),
    ({"colour": "red"}, "colour"),
    ({"recipients": []}, "recipients"),
    ({"recipients": {}}, "recipients"),
    ({"recipients": {**SEGMENT, "and": []}}, "recipients"),
    ({"recipients": {"and": SEGMENT}}, "recipients"),
    ({"recipients": {"xor": [SEGMENT]}}, "recipients"),
    ({"recipients": {"segment": 3}}, "recipients"),
    ({"recipients": {"segment": {"id": "3"}}}, "recipients"),
    ({"recipients": {"not": {"attribute": {"field": "a", "operator": "eq"}}}}, "recipients"),
    ({"recipients": {"attribute": {"field": "a", "operator": "like", "value": "b"}}}, "recipients"),
    ({"recipients": {"attribute": {"operator": "exists"}}}, "recipients"),
    ({"ids": "1"}, "ids"),
    ({"ids": ["1", ""]}, "ids[1].id"),
    ({"ids": ["1"] * 10_001}, "ids"),
    ({"emails": ["a"]}, "emails[0]"),
    ({"emails": [1]}, "emails[0].email"),
    ({"per_user_data": [{"id": "1"}, "2"]}, "per_user_data[1]"),
    ({"per_user_data": [{"id": "1", "email": "a@b.c"}]}, "per_user_data[0]"),
    ({"per_user_data": [{"cio_id": "1"}]}, "per_user_data[0]"),
    ({"per_user_data": [{"id": "1", "data": []}]}, "per_user_data[0].data"),
    ({"per_user_data": [{"id": str(n)} for n in range(10_001)]}, "per_user_data"),
    ({"data_file_url": "people.jsonl"}, "data_file_url"),
    ({"data_file_url": "https://[b.c"}, "data_file_url"),
]


async def post(app: aiohttp.ClientSession, path: str, body: Any) -> tuple[int, Any]:
    """Send a call and return the answer's status and its JSON."""
    async with app.post(path, json=body) as response:
        return response.status, await response.json()


@pytest.mark.parametrize(("kind", "body"), MESSAGES)
async def test_a_message_is_taken_and_kept(
    sim: Simulator, app: aiohttp.ClientSession, kind: str, body: dict[str, Any]
) -> None:
    """The answer names the delivery and the time, and the workspace has the message as it was sent."""
    begun = int(time.time())
    assert check_message(kind, body, NOW) == []
    status, answer = await post(app, f"/v1/send/{kind}", {**body, **({"send_at": NOW} if "send_at" in body else {})})
    assert status == 200, answer
    assert begun <= answer["queued_at"] <= time.time()
    (message,) = sim.workspace.messages
    assert (message.kind, message.delivery_id, message.queued_at) == (kind, answer["delivery_id"], answer["queued_at"])
    assert message.request == {**body, **({"send_at": NOW} if "send_at" in body else {})}
    assert sim.traffic.calls_by_path == {f"/v1/send/{kind}": 1}
    assert (sim.workspace.applied, sim.workspace.message_count) == ({}, 1)


async def test_messages_are_listed_in_order_under_ids_of_their_own(sim: Simulator, app: aiohttp.ClientSession) -> None:
    """Two equal requests are two messages: nothing makes a repeat harmless."""
    kinds = ["email", "in_app", "email", "email"]
    answers = [await post(app, f"/v1/send/{kind}", EMAIL if kind == "email" else PUSH) for kind in kinds]
    assert [each.kind for each in sim.workspace.messages] == kinds
    assert len({answer["delivery_id"] for _, answer in answers}) == 4


async def test_a_message_for_later_is_answered_with_its_time(app: aiohttp.ClientSession) -> None:
    """send_at stands in the answer where it lies in the future, and only there."""
    later = int(time.time()) + 3_600
    _, answer = await post(app, "/v1/send/email", {**EMAIL, "send_at": later})
    assert answer["send_at"] == later
    _, answer = await post(app, "/v1/send/email", {**EMAIL, "send_at": NOW})
    assert "send_at" not in answer


async def test_an_id_may_be_a_number_as_in_the_documents_example(sim: Simulator, app: aiohttp.ClientSession) -> None:
    """The device that a push brings belongs to the person whom a string would name."""
    device = {"token": "t", "platform": "ios"}
    status, _ = await post(app, "/v1/send/push", {**PUSH, "identifiers": {"id": 42}, "custom_device": device})
    assert status == 200
    assert sim.workspace.person("id", "42").devices == {"t": device}


async def test_a_suppressed_person_gets_no_device(sim: Simulator, app: aiohttp.ClientSession) -> None:
    """A push for someone suppressed is taken, and brings no device to them."""
    sim.workspace.apply({"type": "person", "action": "suppress", "identifiers": {"id": "42"}})
    status, _ = await post(app, "/v1/send/push", {**PUSH, "custom_device": {"token": "t", "platform": "ios"}})
    assert (status, sim.workspace.person("id", "42").devices) == (200, {})


@pytest.mark.parametrize(("kind", "body", "field"), WRONG_MESSAGES)
async def test_a_wrong_message_is_refused(
    sim: Simulator, app: aiohttp.ClientSession, kind: str, body: Any, field: str
) -> None:
    """One wrong field refuses the message with a 400 that has one text."""
    assert [problem.field for problem in check_message(kind, body, NOW)] == [field]
    if "send_at" in body and isinstance(body["send_at"], int):
        body = {**body, "send_at": int(time.time()) + 91 * 86_400}
    status, answer = await post(app, f"/v1/send/{kind}", body)
    assert status == 400
    assert list(answer) == ["meta"]
    assert list(answer["meta"]) == ["error"]
    assert isinstance(answer["meta"]["error"], str)
    assert not sim.workspace.messages


@pytest.mark.parametrize(
    ("kind", "body", "error"),
    [
        ("email", {**EMAIL, "attachments": {"a.xyz": "?"}}, 'Attachment must be base64 encoded: "a.xyz"'),
        ("sms", {**SMS, "to": "1"}, "Invalid phone number format. Phone numbers must be in E.164 format."),
    ],
)
async def test_errors_have_the_documented_text(app: aiohttp.ClientSession, kind: str, body: Any, error: str) -> None:
    """Where the documentation gives a text, the answer has it."""
    assert await post(app, f"/v1/send/{kind}", body) == (400, {"meta": {"error": error}})


async def test_attachments_together_must_be_smaller_than_2_mb(sim: Simulator, app: aiohttp.ClientSession) -> None:
    """The last byte decides, over all attachments, and too many are answered with a 413."""
    half = "A" * 1_000_000
    for other, status in ((half, 413), (half[4:], 200)):
        body = io.BytesIO(orjson.dumps({**EMAIL, "attachments": {"a.txt": half, "b.txt": other}}))
        async with app.post("/v1/send/email", data=body) as response:
            assert response.status == status
            if status == 413:
                assert await response.json() == {"meta": {"error": "Total attachment size exceeds the limit"}}
    assert sim.workspace.message_count == 1


@pytest.mark.parametrize("body", [b"nonsense", b"", b'{"to":"' + b"x" * 2_048_000 + b'"}'])
async def test_a_message_is_json_of_2048_kb_at_most(app: aiohttp.ClientSession, body: bytes) -> None:
    """What is no JSON, or too long, is refused with the documented text."""
    async with app.post("/v1/send/email", data=io.BytesIO(body)) as response:
        assert response.status == 400
        error = (await response.json())["meta"]["error"]
    assert error == "Request entity must be JSON encoded and not exceed 2048 KB."


@pytest.mark.parametrize("body", BROADCASTS)
async def test_a_broadcast_is_triggered(sim: Simulator, app: aiohttp.ClientSession, body: dict[str, Any]) -> None:
    """The answer has the id of the trigger, and the workspace what was asked for."""
    assert check_broadcast(body) == []
    assert await post(app, TRIGGERS, body) == (200, {"id": 1})
    assert await post(app, "/v1/campaigns/12/triggers", body) == (200, {"id": 2})
    first, second = sim.workspace.broadcasts
    assert first == Broadcast(broadcast_id=3, trigger_id=1, triggered_at=first.triggered_at, request=body)
    assert (second.broadcast_id, second.trigger_id) == (12, 2)
    assert abs(first.triggered_at - time.time()) < 60
    assert sim.traffic.calls_by_path == {"/v1/campaigns/{broadcast_id}/triggers": 2}


@pytest.mark.parametrize(("body", "field"), WRONG_BROADCASTS)
async def test_a_wrong_broadcast_is_refused(sim: Simulator, app: aiohttp.ClientSession, body: Any, field: str) -> None:
    """A 422 lists each error with its status, as a string, and points to the key."""
    assert [problem.field for problem in check_broadcast(body)] == [field]
    status, answer = await post(app, TRIGGERS, body)
    (error,) = answer["errors"]
    assert (status, error["status"]) == (422, "422")
    assert isinstance(error["detail"], str)
    key = field.partition("[")[0]
    assert error.get("source") == ({"pointer": f"/data/attributes/{key}"} if key else None)
    assert not sim.workspace.broadcasts


async def test_a_filter_may_be_nested_as_deeply_as_json(app: aiohttp.ClientSession) -> None:
    """Depth alone breaks nothing."""
    body = b'{"recipients":' + b'{"not":' * 500 + b'{"segment":{"id":3}}' + b"}" * 501
    async with app.post(TRIGGERS, data=body) as response:
        assert response.status == 200


async def test_a_broadcast_of_broken_json_is_a_bad_request(app: aiohttp.ClientSession) -> None:
    """Mismatched brackets are a 400 in the form of the other errors."""
    async with app.post(TRIGGERS, data=b'{"data":{') as response:
        assert response.status == 400
        assert await response.json() == {"errors": [{"detail": "bad request", "status": "400"}]}


@pytest.mark.parametrize("broadcast_id", ["x", "-1", "1.5", "%C2%B2", "9" * 5_000])
async def test_a_broadcast_has_a_number(sim: Simulator, app: aiohttp.ClientSession, broadcast_id: str) -> None:
    """What can be no broadcast is not found."""
    async with app.post(URL(f"{sim.url}/v1/campaigns/{broadcast_id}/triggers", encoded=True), json={}) as response:
        assert response.status == 404
        assert await response.json() == {"errors": [{"detail": "not found", "status": "404"}]}


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer é"},
        {"Authorization": "Basic app-key"},
        bearer("key"),
        basic("site", "key"),
    ],
)
async def test_the_app_api_takes_its_own_token_only(
    sim: Simulator, app: aiohttp.ClientSession, headers: dict[str, str]
) -> None:
    """Any other credentials, those of the Track API too, are refused in the App API's form."""
    for path, body in [("/v1/send/email", EMAIL), (TRIGGERS, {})]:
        async with app.post(path, json=body, headers=headers) as response:
            assert response.status == 401
            assert await response.json() == {"errors": [{"detail": "unauthorized", "status": "401"}]}
    async with app.post("/api/v2/batch", json={"batch": [event()]}) as response:
        assert response.status == 401
    assert (sim.workspace.messages, sim.workspace.broadcasts, sim.workspace.people) == ([], [], {})


async def test_the_token_can_be_chosen() -> None:
    """A simulator of one's own may have a token of one's own."""
    async with Simulator(app_api_key="s3cret") as sim, aiohttp.ClientSession(sim.url, headers=bearer("s3cret")) as app:
        assert (await post(app, "/v1/send/email", EMAIL))[0] == 200
        assert sim.environment["CUSTOMERIO_APP_API_KEY"] == "s3cret"
        assert "s3cret" not in repr(sim)


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/send/email"), ("POST", "/v1/send/letter"), ("POST", "/v1/send/"), ("GET", TRIGGERS)],
)
async def test_a_misspelt_path_is_a_wrong_method(
    sim: Simulator, app: aiohttp.ClientSession, method: str, path: str
) -> None:
    """The App API answers 405 to what it does not know, and it is counted apart."""
    async with app.request(method, path, json={}) as response:
        assert response.status == 405
    assert sim.traffic.unknown_calls == 1


async def test_rates_are_enforced_where_they_are_given() -> None:
    """Calls above the rate get a 429 with whole seconds to wait, change nothing, and a reset lets all through again."""
    rates = AppRates(sends_per_second=2, broadcast_interval=3_600)
    async with (
        Simulator(app_rates=rates) as sim,
        aiohttp.ClientSession(sim.url, headers=bearer("app-key")) as app,
    ):
        async with app.post(TRIGGERS, json={}) as response:
            assert response.status == 200
        for _ in range(2):
            async with app.post(TRIGGERS, json={}) as response:
                assert response.status == 429
                assert 3_500 < int(response.headers["Retry-After"]) <= 3_600
                assert await response.json() == {"errors": [{"detail": "rate limit exceeded", "status": "429"}]}
        async with asyncio.timeout(5):
            while (status := (await post(app, "/v1/send/email", EMAIL))[0]) == 200:
                pass
        assert status == 429
        assert sim.workspace.message_count == sim.traffic.statuses[200] - 1
        assert sim.workspace.broadcast_count == 1
        assert not sim.faults.injected
        sim.reset()
        assert await post(app, TRIGGERS, {}) == (200, {"id": 1})


async def test_rates_are_not_enforced_unless_asked_for(sim: Simulator, app: aiohttp.ClientSession) -> None:
    """By default, broadcasts may follow one another at once."""
    assert [(await post(app, TRIGGERS, {}))[0] for _ in range(3)] == [200, 200, 200]
    assert sim.workspace.broadcast_count == 3


@pytest.mark.parametrize("path", ["/v1/send/email", TRIGGERS])
@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("rate_limit", 429),
        ("server_error", 500),
        ("html_error", 502),
        ("unavailable", 503),
        ("refuse", 400),
        ("unauthorized", 401),
        ("redirect", 307),
        ("raw", 200),
    ],
)
async def test_a_fault_refuses_the_call(
    sim: Simulator, app: aiohttp.ClientSession, kind: Kind, status: int, path: str
) -> None:
    """The ordered answer comes once, nothing is sent, and the next call is right."""
    sim.faults.order(kind, location="/elsewhere")
    body = EMAIL if path.endswith("email") else {"ids": ["1"]}
    async with app.post(path, json=body, allow_redirects=False) as response:
        assert response.status == status
        if kind == "rate_limit":
            assert response.headers["Retry-After"] == "1"
        if response.content_type == "application/json":
            answer = await response.json()
            assert list(answer) == ["meta" if path.endswith("email") and status in (400, 500) else "errors"]
    assert (sim.workspace.message_count, sim.workspace.broadcast_count) == (0, 0)
    assert sim.faults.injected == {kind: 1}
    assert (await post(app, path, body))[0] == 200
    assert sim.traffic.calls == 2


@pytest.mark.parametrize("kind", ["partial", "refuse"])
async def test_a_refused_message_and_broadcast_are_noted(
    sim: Simulator, app: aiohttp.ClientSession, kind: Kind
) -> None:
    """What was valid and refused on order can be compared with what a client reports."""
    sim.faults.order(kind, times=2)
    assert (await post(app, "/v1/send/email", EMAIL))[0] == 400
    assert (await post(app, TRIGGERS, {"ids": ["1"]}))[0] == (422 if kind == "partial" else 400)
    assert sim.faults.refused_operations == [
        {"type": "message", "action": "email", "request": EMAIL},
        {"type": "broadcast", "action": "trigger", "broadcast_id": 3, "request": {"ids": ["1"]}},
    ]
    assert (sim.faults.rejected_ids, sim.faults.injected) == ([], {kind: 2})


@pytest.mark.parametrize(("kind", "sent"), [("drop_before", 0), ("drop_after", 1)])
async def test_a_dropped_connection_gives_no_answer(
    sim: Simulator, app: aiohttp.ClientSession, kind: Kind, sent: int
) -> None:
    """Only drop_after has sent the message: a client cannot know, and must not repeat it."""
    sim.faults.order(kind, times=2)
    for path, body in (("/v1/send/email", EMAIL), (TRIGGERS, {})):
        with pytest.raises(aiohttp.ClientConnectionError):
            await post(app, path, body)
    assert (len(sim.workspace.messages), len(sim.workspace.broadcasts)) == (sent, sent)
    assert sim.faults.injected == {kind: 2}
    assert sim.traffic.calls_by_path.total() == 2


async def test_a_black_hole_sends_nothing(sim: Simulator, app: aiohttp.ClientSession) -> None:
    """The client runs into its own timeout, and the message was not sent."""
    sim.faults.order("black_hole")
    with pytest.raises(TimeoutError):
        await app.post("/v1/send/email", json=EMAIL, timeout=aiohttp.ClientTimeout(total=0.2))
    assert (sim.workspace.messages, sim.faults.injected) == ([], {"black_hole": 1})


async def test_latency_sends_at_once_and_answers_late(sim: Simulator, app: aiohttp.ClientSession) -> None:
    """The message is there before the answer is."""
    sim.faults.order("latency", latency=0.15)
    begun = time.monotonic()
    call = asyncio.create_task(post(app, "/v1/send/email", EMAIL))
    await wait_until(lambda: sim.workspace.messages)
    assert not call.done()
    assert (await call)[0] == 200
    assert time.monotonic() - begun >= 0.15


async def test_poison_knows_messages_too(sim: Simulator, app: aiohttp.ClientSession) -> None:
    """A message that is poisoned fails each time."""
    sim.faults.poison = lambda operation: operation["type"] == "message" and operation["action"] == "sms"
    assert [(await post(app, "/v1/send/sms", SMS))[0] for _ in range(2)] == [500, 500]
    assert (await post(app, "/v1/send/push", PUSH))[0] == 200


async def test_a_message_holds_no_one(
    sim: Simulator, client: aiohttp.ClientSession, app: aiohttp.ClientSession
) -> None:
    """A message to a person whose events are on their way is no overlap: no order is promised between them."""
    sim.faults.order("black_hole", times=2)
    calls = [
        asyncio.create_task(client.post("/api/v2/batch", json={"batch": [event("42")]})),
        asyncio.create_task(app.post("/v1/send/push", json=PUSH)),
    ]
    await wait_until(lambda: sim.faults.injected["black_hole"] == 2)
    assert (await post(app, "/v1/send/push", PUSH))[0] == 200
    assert (sim.traffic.person_overlaps, sim.traffic.max_overlap) == (0, 3)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
