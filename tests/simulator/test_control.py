"""The calls under /simulator/, by which another process looks and steers."""

from typing import Any

import aiohttp
import pytest
from yarl import URL

from cio_batch.simulator import Simulator

from .wire import basic, bearer, event, person, ulid

BATCH = "/api/v2/batch"


async def test_state_has_the_counts(sim: Simulator, client: aiohttp.ClientSession) -> None:
    """One call tells what was applied, ignored, answered and injected, and is itself not counted."""
    sim.faults.order("rate_limit")
    for _ in range(3):
        async with client.post(BATCH, json={"batch": [event(), person("identify")]}):
            pass
    async with aiohttp.ClientSession(sim.url) as anyone, anyone.get("/simulator/state") as response:
        state = await response.json()
    expected = {
        "people": 1,
        "operations": {"person.event": 1, "person.identify": 2},
        "duplicates_ignored": 1,
        "calls": 3,
        "batches": 3,
        "batched_operations": 6,
        "statuses": {"429": 1, "200": 2},
        "retried_calls": 0,
        "faults": {"rate_limit": 1},
        "max_overlap": 1,
        "person_overlaps": 0,
    }
    assert {name: state[name] for name in expected} == expected
    assert sim.traffic.calls == 3


async def test_state_counts_messages_and_broadcasts_until_a_reset(sim: Simulator, app: aiohttp.ClientSession) -> None:
    """What the App API took is counted apart from the operations, and gone after a reset."""
    message = {"transactional_message_id": 1, "identifiers": {"id": "1"}}
    for path, body in [("send/push", message), ("send/in_app", message), ("campaigns/3/triggers", {})]:
        async with app.post(f"/v1/{path}", json=body) as response:
            assert response.status == 200, path
    async with app.get("/simulator/state") as response:
        state = await response.json()
    assert (state["messages"], state["broadcasts"], state["operations"]) == (2, 1, {})
    assert state["calls_by_path"]["/v1/send/push"] == 1
    async with app.post("/simulator/reset") as response:
        assert response.status == 200
    assert (sim.workspace.messages, sim.workspace.broadcasts) == ([], [])
    async with app.get("/simulator/state") as response:
        state = await response.json()
    assert (state["messages"], state["broadcasts"]) == (0, 0)


async def test_without_keep_messages_are_only_counted() -> None:
    """With keep=False the counts go on, and no message stays in memory."""
    async with Simulator(keep=False) as sim, aiohttp.ClientSession(sim.url, headers=bearer("app-key")) as own:
        for _ in range(3):
            async with own.post("/v1/send/email", json={"transactional_message_id": 1, "to": "a@b.c"}) as response:
                assert response.status == 200
        async with own.post("/v1/campaigns/3/triggers") as response:
            assert response.status == 200
        workspace = sim.workspace
        assert (workspace.message_count, workspace.messages) == (3, [])
        assert (workspace.broadcast_count, workspace.broadcasts) == (1, [])


async def test_people_are_listed_and_shown(sim: Simulator, client: aiohttp.ClientSession) -> None:
    """The list has every person, and each can be asked for by kind and identifier, decoded once."""
    sim.workspace.apply(event("a/b%2F"))
    sim.workspace.apply({**person("identify", attributes={"a": 1}), "identifiers": {"email": "a@b.c"}})
    async with client.get("/simulator/people") as response:
        assert await response.json() == [
            {"kind": "id", "identifier": "a/b%2F", "operations": 1},
            {"kind": "email", "identifier": "a@b.c", "operations": 1},
        ]
    async with client.get("/simulator/people/email/a%40b.c") as response:
        assert (await response.json())["attributes"] == {"a": 1}
    shown: Any = None
    raw = "/simulator/people/id/a%2Fb%252F"
    async with client.get(URL(sim.url + raw, encoded=True)) as response:
        shown = await response.json()
    assert [each["id"] for each in shown["first_arrivals"]] == [ulid(1)]
    async with client.get("/simulator/people/id/nobody") as response:
        assert response.status == 404


async def test_faults_are_set_and_ordered(sim: Simulator, client: aiohttp.ClientSession) -> None:
    """Rates, seed, options and orders arrive as if they had been given in Python."""
    wanted = {
        "rates": {"rate_limit": 1.0},
        "seed": 5,
        "options": {"retry_after": "0"},
        "order": [{"kind": "raw", "status": 201, "body": "hello", "times": 2}],
    }
    async with client.post("/simulator/faults", json=wanted) as response:
        assert (response.status, (await response.json())["faults_waiting"]) == (200, 2)
    seen = []
    for _ in range(3):
        async with client.post(BATCH, json={"batch": []}) as response:
            seen.append((response.status, response.headers.get("Retry-After")))
    assert seen == [(201, None), (201, None), (429, "0")]
    async with client.post("/simulator/faults", json={"order": {"kind": "refuse"}}) as response:
        assert response.status == 200
    assert sim.faults.rates == {"rate_limit": 1.0}


@pytest.mark.parametrize(
    "body",
    [
        b"nonsense",
        b"[]",
        b'{"rate":{}}',
        b'{"rates":[]}',
        b'{"rates":{"earthquake":1}}',
        b'{"rates":{"latency":"often"}}',
        b'{"order":["refuse"]}',
        b'{"order":[{"times":1}]}',
        b'{"order":[{"kind":"refuse"},{"kind":"refuse","colour":"red"}]}',
        b'{"order":[{"kind":"latency","latency":"long"}]}',
    ],
)
async def test_a_wrong_request_is_refused_and_changes_nothing(
    sim: Simulator, client: aiohttp.ClientSession, body: bytes
) -> None:
    """One mistake anywhere refuses the whole request with a 400 that says why."""
    async with client.post("/simulator/faults", data=body) as response:
        assert response.status == 400
        assert (await response.json())["error"]
    assert (sim.faults.rates, sim.faults.waiting) == ({}, 0)


async def test_reset_begins_anew(client: aiohttp.ClientSession) -> None:
    """After a reset there are no people, no counts and no faults; keep=False stays what it was."""
    async with Simulator(keep=False) as sim, aiohttp.ClientSession(sim.url, headers=basic("site", "key")) as own:
        sim.faults.order("refuse", times=5)
        async with own.post(BATCH, json={"batch": [event()]}):
            pass
        async with own.post("/simulator/reset") as response:
            assert response.status == 200
        assert (sim.traffic.calls, sim.faults.waiting, sim.workspace.people) == (0, 0, {})
        assert not sim.workspace.keep


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/simulator/"), ("POST", "/simulator/state"), ("GET", "/simulator/%FF")]
)
async def test_an_unknown_control_call_is_an_error(
    sim: Simulator, client: aiohttp.ClientSession, method: str, path: str
) -> None:
    """What is none of the five calls is answered as an error, and not as a Track call."""
    async with client.request(method, URL(sim.url + path, encoded=True)) as response:
        assert response.status in (400, 404)
    assert sim.traffic.calls == 0
