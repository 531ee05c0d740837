"""The server itself: credentials, paths, limits, order and its own life."""

import asyncio
import io
import time
from typing import Any
from urllib.parse import quote

import aiohttp
import orjson
import pytest
from yarl import URL

from cio_batch.simulator import Simulator

from .wire import JSON, basic, event, merge, person, ulid, wait_until

BATCH, ENTITY = "/api/v2/batch", "/api/v2/entity"
HOSTILE = [
    "a/b",
    "a?b",
    "a#b",
    "a%b",
    "a%2Fb",
    "a%252Fb",
    "a+b",
    "a b",
    "a&b=c",
    "Zoë",
    "日本",
    "events",
    ".../x",
    "'\"<>;",
]


async def test_success_is_an_empty_object_and_a_newline(sim: Simulator, client: aiohttp.ClientSession) -> None:
    """A batch without fault is answered with ``{}``, a newline, as JSON."""
    async with client.post(BATCH, json={"batch": [event()]}) as response:
        assert (response.status, await response.read()) == (200, b"{}\n")
        assert response.content_type == "application/json"
    assert sim.workspace.person("id", "42").operations == [event()]


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": ""},
        {"Authorization": "Bearer key"},
        {"Authorization": "Basic !!!"},
        basic("site", "wrong"),
        basic("wrong", "key"),
    ],
)
async def test_wrong_credentials_get_a_plain_401(
    sim: Simulator, client: aiohttp.ClientSession, headers: dict[str, str]
) -> None:
    """A call with other credentials changes nothing and is refused in plain text."""
    async with client.post(BATCH, json={"batch": [event()]}, headers=headers) as response:
        assert (response.status, response.content_type) == (401, "text/plain")
    assert not sim.workspace.people


async def test_reporting_needs_no_credentials(sim: Simulator) -> None:
    """Metrics, push events and unsubscribes are accepted from anyone."""
    async with aiohttp.ClientSession(sim.url) as session:
        for path, body in [
            ("/api/v1/metrics", {"delivery_id": "d", "metric": "delivered", "recipient": "t", "timestamp": 5}),
            ("/api/v1/push/events", {"delivery_id": "d", "event": "delivered", "device_id": "t", "timestamp": 5}),
            ("/unsubscribe/d%2Fe", {"unsubscribe": True}),
        ]:
            async with session.post(path, json=body) as response:
                assert response.status == 200, path
    first, second = sim.workspace.metrics
    assert first == second == {"delivery_id": "d", "metric": "delivered", "recipient": "t", "timestamp": 5}
    assert sim.workspace.unsubscribes == {"d/e": True}


@pytest.mark.parametrize("identifier", HOSTILE)
async def test_an_identifier_arrives_as_it_was_meant(
    sim: Simulator, client: aiohttp.ClientSession, identifier: str
) -> None:
    """Each part of a path is decoded exactly once, whatever stands in it."""
    path = f"{sim.url}/api/v1/customers/{quote(identifier, safe='')}"
    async with client.put(URL(path, encoded=True), json={"a": 1}) as response:
        assert response.status == 200
    async with client.post(URL(f"{path}/events", encoded=True), json={"name": "n"}) as response:
        assert response.status == 200
    device = {"device": {"id": identifier, "platform": "ios"}}
    async with client.put(URL(f"{path}/devices", encoded=True), json=device) as response:
        assert response.status == 200
    assert list(sim.workspace.people) == [("id", identifier)]
    assert list(sim.workspace.person("id", identifier).devices) == [identifier]
    gone = URL(f"{path}/devices/{quote(identifier, safe='')}", encoded=True)
    async with client.delete(gone) as response:
        assert response.status == 200
    assert sim.workspace.person("id", identifier).devices == {}


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("a@b.c", ("email", "a@b.c")),
        ("a%40b.c", ("email", "a@b.c")),
        ("cio_03", ("cio_id", "03")),
        ("+14155552671", ("id", "+14155552671")),
    ],
)
async def test_a_path_shows_the_kind_by_its_shape(
    sim: Simulator, client: aiohttp.ClientSession, part: str, key: tuple[str, str]
) -> None:
    """An @ makes an email, the prefix a cio_id, all else is an id."""
    async with client.put(URL(f"{sim.url}/api/v1/customers/{part}", encoded=True), json={}) as response:
        assert response.status == 200
    assert list(sim.workspace.people) == [key]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("PUT", "/api/v1/customers/", 404),
        ("POST", "/api/v1/customers//events", 404),
        ("PUT", "/api/v1/customers/a/b", 404),
        ("POST", "/api/v1/customers/a/%65vents", 404),
        ("PUT", "/api/v1/customers/%FF", 400),
        ("GET", "/api/v2/batch", 405),
    ],
)
async def test_an_unknown_path_or_method_is_refused(
    sim: Simulator, client: aiohttp.ClientSession, method: str, path: str, status: int
) -> None:
    """What is not Customer.io's is answered as such and counted apart."""
    async with client.request(method, URL(sim.url + path, encoded=True), json={}) as response:
        assert response.status == status
    assert (sim.traffic.unknown_calls, sim.workspace.people) == (1, {})


@pytest.mark.parametrize(
    "body", [b"", b"nonsense", b'{"batch":[NaN]}', b"[]", b"{}", b'{"batch":{}}', b'{"batch":null}', b"\xff"]
)
async def test_a_batch_that_is_none_is_refused_whole(client: aiohttp.ClientSession, body: bytes) -> None:
    """What is not JSON, or has no array of operations, gets a 400 for the whole call."""
    async with client.post(BATCH, data=body, headers=JSON) as response:
        assert response.status == 400
        errors = (await response.json())["errors"]
    assert len(errors) == 1
    assert set(errors[0]) == {"reason", "field", "message"}


async def test_a_batch_names_the_invalid_and_applies_the_rest_in_order(
    sim: Simulator, client: aiohttp.ClientSession
) -> None:
    """The 207 has the indexes in the array that was sent; all others are applied in its order."""
    batch: list[Any] = [event(number=1), 7, event(number=2), event(name=""), event(number=3)]
    async with client.post(BATCH, json={"batch": batch}) as response:
        assert response.status == 207
        errors = (await response.json())["errors"]
    assert [(each["batch_index"], each["field"]) for each in errors] == [(1, ""), (3, "name")]
    assert [each["id"] for each in sim.workspace.person("id", "42").events] == [ulid(n) for n in (1, 2, 3)]


async def test_the_index_is_right_in_a_batch_longer_than_one_step(
    sim: Simulator, client: aiohttp.ClientSession
) -> None:
    """A batch that is read in several steps loses and moves nothing."""
    batch = [person("delete", str(n)) for n in range(3_500)]
    wrong = [0, 998, 999, 1_000, 1_999, 3_499]
    for index in wrong:
        batch[index] = {"type": "person"}
    async with client.post(BATCH, data=orjson.dumps({"batch": batch})) as response:
        errors = (await response.json())["errors"]
    assert [each["batch_index"] for each in errors] == wrong
    assert sim.workspace.applied == {"person.delete": 3_500 - len(wrong)}


def body_of(length: int) -> bytes:
    """Return a valid batch of exactly ``length`` bytes."""
    operations = [event(number=n, attributes={"x": "x" * 30_000}) for n in range(16)]
    body = orjson.dumps({"batch": operations})
    operations.append(event(number=99, attributes={"x": ""}))
    short = length - len(orjson.dumps({"batch": operations}))
    assert 0 <= short < 31_000, (short, len(body))
    operations[-1]["attributes"]["x"] = "x" * short
    return orjson.dumps({"batch": operations})


@pytest.mark.parametrize("status", [400, 413])
async def test_a_batch_must_be_smaller_than_500_000_bytes(status: int) -> None:
    """The last byte decides, and the answer is the one that was asked for."""
    async with (
        Simulator(too_large_status=status) as sim,
        aiohttp.ClientSession(sim.url, headers=basic("site", "key")) as client,
    ):
        async with client.post(BATCH, data=body_of(500_000)) as response:
            assert response.status == status
            assert (await response.json())["errors"][0]["reason"] == "too_large"
        assert not sim.workspace.people
        async with client.post(BATCH, data=body_of(499_999)) as response:
            assert response.status == 200
        assert sim.workspace.applied == {"person.event": 17}
        assert sim.traffic.largest_body_bytes == 500_000


def sized(length: int) -> dict[str, Any]:
    """Return an event of exactly ``length`` bytes."""
    short = length - len(orjson.dumps(event(attributes={"x": ""})))
    return event(attributes={"x": "x" * short})


async def test_an_operation_over_32_000_bytes_is_refused(sim: Simulator, client: aiohttp.ClientSession) -> None:
    """In a batch 32,000 bytes are allowed; as an entity the request must be smaller than that."""
    batch = [sized(32_000) | {"id": ulid(1)}, sized(32_001) | {"id": ulid(2)}]
    async with client.post(BATCH, data=orjson.dumps({"batch": batch})) as response:
        assert response.status == 207
        assert [each["batch_index"] for each in (await response.json())["errors"]] == [1]
    for length, status in ((31_999, 200), (32_000, 400)):
        async with client.post(ENTITY, data=orjson.dumps(sized(length) | {"id": ulid(length)})) as response:
            assert response.status == status


async def test_a_body_far_over_the_limit_still_gets_our_answer(client: aiohttp.ClientSession) -> None:
    """Five megabytes are read and refused as Customer.io would, not by the HTTP server."""
    async with client.post(BATCH, data=io.BytesIO(b"x" * 5_000_000)) as response:
        assert response.status == 400
        assert "errors" in await response.json()


async def test_v1_refuses_in_its_own_form(sim: Simulator, client: aiohttp.ClientSession) -> None:
    """v1 lists texts under meta.errors, merge has one under meta.error, and the caller's field names are used."""
    async with client.post("/api/v1/customers/42/events", json={"name": "n", "data": []}) as response:
        assert (response.status, await response.json()) == (400, {"meta": {"errors": ["data must be an object"]}})
    phones = {"primary": {"phone": "+1"}, "secondary": {"id": "2"}}
    async with client.post("/api/v1/merge_customers", json=phones) as response:
        assert response.status == 400
        assert (await response.json())["meta"]["error"].startswith("primary must contain exactly one of")
    assert not sim.workspace.people


V1_AND_V2: list[tuple[str, str, dict[str, Any], list[dict[str, Any]]]] = [
    (
        "PUT",
        "customers/42",
        {"plan": "a", "_timestamp": 5},
        [person("identify", timestamp=5, attributes={"plan": "a"})],
    ),
    (
        "POST",
        "customers/42/events",
        {"name": "purchase", "id": ulid(1), "timestamp": 1_764_000_000, "data": {"n": 1}},
        [event()],
    ),
    (
        "POST",
        "customers/42/events",
        {"name": "/", "type": "page", "data": {}},
        [person("page", name="/", attributes={})],
    ),
    ("POST", "customers/42/events", {"name": "n", "type": "whatever"}, [person("event", name="n")]),
    ("DELETE", "customers/42", {}, [person("delete")]),
    ("POST", "customers/42/suppress", {}, [person("suppress")]),
    ("POST", "customers/42/unsuppress", {}, [person("unsuppress")]),
    (
        "PUT",
        "customers/42/devices",
        {"device": {"id": "t", "platform": "ios", "last_used": 5}},
        [person("add_device", device={"token": "t", "platform": "ios", "last_used": 5})],
    ),
    ("DELETE", "customers/42/devices/t", {}, [person("delete_device", device={"token": "t"})]),
    ("POST", "merge_customers", {"primary": {"id": "1"}, "secondary": {"id": "2"}}, [merge("1", "2")]),
    *(
        (
            "PUT",
            "customers/42",
            {"cio_relationships": {"action": action, "relationships": [{"identifiers": {"cio_object_id": "ob1"}}]}},
            [person(action, cio_relationships=[{"identifiers": {"cio_object_id": "ob1"}}])],
        )
        for action in ("add_relationships", "delete_relationships")
    ),
    (
        "PUT",
        "customers/42",
        {"a": 1, "cio_relationships": {"action": "add_relationships", "relationships": []}},
        [person("identify", attributes={"a": 1}, cio_relationships=[])],
    ),
]


@pytest.mark.parametrize(("method", "path", "body", "operations"), V1_AND_V2)
async def test_v1_and_v2_leave_the_same_log(
    sim: Simulator,
    client: aiohttp.ClientSession,
    method: str,
    path: str,
    body: dict[str, Any],
    operations: list[dict[str, Any]],
) -> None:
    """The same change said on either API is the same operation of the same people."""
    async with client.request(method, f"/api/v1/{path}", json=body) as response:
        assert (response.status, await response.read()) == (200, b"{}\n")
    by_v1 = {key: found.operations for key, found in sim.workspace.people.items()}
    sim.reset()
    async with client.post(BATCH, json={"batch": operations}) as response:
        assert response.status == 200, await response.text()
    assert by_v1 == {key: found.operations for key, found in sim.workspace.people.items()}


async def test_an_anonymous_event_belongs_to_its_anonymous_id(sim: Simulator, client: aiohttp.ClientSession) -> None:
    """With an anonymous_id or without one, the event is kept."""
    for body in ({"name": "n", "anonymous_id": "x"}, {"name": "n"}):
        async with client.post("/api/v1/events", json=body) as response:
            assert response.status == 200
    assert list(sim.workspace.people) == [("anonymous", "x"), ("anonymous", "")]


async def test_segments_take_the_ids_of_one_type(sim: Simulator, client: aiohttp.ClientSession) -> None:
    """People join and leave by the id_type of the query; what is no string is passed over."""
    add, remove = "/api/v1/segments/7/add_customers", "/api/v1/segments/7/remove_customers"
    async with client.post(add, json={"ids": ["a", "b", 3]}) as response:
        assert response.status == 200
    async with client.post(f"{add}?id_type=email", json={"ids": ["a@b.c"]}) as response:
        assert response.status == 200
    async with client.post(remove, json={"ids": ["a"]}) as response:
        assert response.status == 200
    assert sim.workspace.segments == {7: {("id", "b"), ("email", "a@b.c")}}
    for path, body in [
        (add, {"ids": [str(n) for n in range(1_001)]}),
        (add, {"ids": []}),
        (add, {}),
        (f"{add}?id_type=phone", {"ids": ["a"]}),
        ("/api/v1/segments/seven/add_customers", {"ids": ["a"]}),
    ]:
        async with client.post(path, json=body) as response:
            assert response.status == 400, body


async def test_a_form_identifies_its_respondent(sim: Simulator, client: aiohttp.ClientSession) -> None:
    """A form creates the person, keeps its values and answers 204; its values are strings, its person is one."""
    path = "/api/v1/forms/my%20form/submit"
    async with client.post(
        URL(sim.url + path, encoded=True), json={"data": {"email": "a@b.c", "food": "pizza"}}
    ) as response:
        assert (response.status, await response.read()) == (204, b"")
    assert sim.workspace.person("email", "a@b.c").attributes == {"food": "pizza"}
    assert [form["form_id"] for form in sim.workspace.forms] == ["my form"]
    for data in ({"food": "pizza"}, {"email": "a@b.c", "id": "1"}, {"email": "a@b.c", "n": 1}, []):
        async with client.post("/api/v1/forms/f/submit", json={"data": data}) as response:
            assert response.status == 400, data


async def test_event_data_of_v1_is_limited_to_100_000_bytes(client: aiohttp.ClientSession) -> None:
    """v1 takes more than v2's 32,000 bytes, but not more than its own limit."""
    for length, status in ((100_000, 200), (100_001, 400)):
        data = {"x": "x" * (length - len('{"x":""}'))}
        async with client.post("/api/v1/customers/42/events", json={"name": "n", "data": data}) as response:
            assert response.status == status


async def test_unsubscribe_needs_a_json_content_type(client: aiohttp.ClientSession) -> None:
    """The one call that asks for its content type refuses any other."""
    async with client.post(
        "/unsubscribe/d", data=b'{"unsubscribe":true}', headers={"Content-Type": "text/plain"}
    ) as response:
        assert response.status == 400


async def test_stop_is_prompt_with_a_black_hole_a_late_answer_and_an_unread_body() -> None:
    """Whatever calls are open, stop returns within a second and cuts them off."""
    sim = Simulator()
    await sim.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", sim.port)
    writer.write(b"POST /api/v2/batch HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf of it")
    async with aiohttp.ClientSession(sim.url, headers=basic("site", "key")) as client:
        await wait_until(lambda: sim.traffic.calls == 1)
        sim.faults.order("black_hole")
        hole = asyncio.create_task(client.post(BATCH, json={"batch": [event()]}))
        await wait_until(lambda: sim.faults.injected["black_hole"])
        sim.latency = 60
        late = asyncio.create_task(client.post(BATCH, json={"batch": [event()]}))
        await wait_until(lambda: sim.workspace.people)

        begun = time.monotonic()
        await sim.stop()
        assert time.monotonic() - begun < 1
        with pytest.raises(aiohttp.ClientConnectionError):
            await hole
        async with await late as response:
            assert response.status == 200
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
    await sim.stop()


async def test_it_comes_back_at_the_same_address_with_the_same_workspace() -> None:
    """Stop and start are an outage: the port, the people and the counts survive it."""
    sim = Simulator()
    with pytest.raises(RuntimeError, match="no address"):
        _ = sim.url
    async with sim, aiohttp.ClientSession(headers=basic("site", "key")) as client:
        url = sim.url
        with pytest.raises(RuntimeError, match="running already"):
            await sim.start()
        async with client.post(url + BATCH, json={"batch": [event()]}) as response:
            assert response.status == 200
    async with aiohttp.ClientSession(headers=basic("site", "key")) as client:
        with pytest.raises(aiohttp.ClientConnectionError):
            await client.post(url + BATCH, json={"batch": []})
        async with sim, client.post(url + BATCH, json={"batch": [event()]}) as response:
            assert (sim.url, response.status) == (url, 200)
    assert sim.workspace.duplicates_ignored == 1


async def test_an_address_in_use_is_an_error_and_leaves_nothing_open(sim: Simulator) -> None:
    """A second simulator on the same port fails to start, and may be stopped."""
    other = Simulator(port=sim.port)
    with pytest.raises(OSError, match="address already in use"):
        await other.start()
    await other.stop()


async def test_the_environment_points_at_it(sim: Simulator) -> None:
    """Another process gets the address and the credentials."""
    assert sim.environment == {
        "CUSTOMERIO_SITE_ID": "site",
        "CUSTOMERIO_TRACK_API_KEY": "key",
        "CUSTOMERIO_TRACK_URL": sim.url,
        "CUSTOMERIO_APP_API_KEY": "app-key",
        "CUSTOMERIO_APP_URL": sim.url,
    }
    assert "key" not in repr(sim).replace("key=", "")


def test_another_status_for_too_large_is_refused() -> None:
    """Only the two statuses that are seen in the wild can be chosen."""
    with pytest.raises(ValueError, match="400 or 413"):
        Simulator(too_large_status=500)
