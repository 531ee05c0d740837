"""Every fault does what its name says, is seen by a client as such, and is counted."""

import asyncio
import time
from collections import Counter
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cio_batch.simulator import KINDS, Faults, Kind, Simulator

from .wire import basic, event, ulid, wait_until

BATCH = "/api/v2/batch"
BODY = {"batch": [event()]}


async def status_of(client: aiohttp.ClientSession, path: str = BATCH, body: Any = BODY) -> int:
    """Send a call and return the answer's status."""
    async with client.post(path, json=body, allow_redirects=False) as response:
        await response.read()
        return response.status


@pytest.mark.parametrize(
    ("kind", "options", "status", "headers", "content_type"),
    [
        ("rate_limit", {}, 429, {"Retry-After": "1"}, "application/json"),
        ("rate_limit", {"retry_after": "0.2"}, 429, {"Retry-After": "0.2"}, "application/json"),
        ("rate_limit", {"retry_after": None}, 429, {"Retry-After": None}, "application/json"),
        ("server_error", {}, 500, {}, "application/json"),
        ("server_error", {"status": 504}, 504, {}, "application/json"),
        ("html_error", {}, 502, {}, "text/html"),
        ("unavailable", {}, 503, {"Retry-After": None}, "text/plain"),
        ("unavailable", {"retry_after": "3"}, 503, {"Retry-After": "3"}, "text/plain"),
        ("refuse", {}, 400, {}, "application/json"),
        ("unauthorized", {}, 401, {}, "text/plain"),
        ("redirect", {"location": "http://127.0.0.1:9/x"}, 307, {"Location": "http://127.0.0.1:9/x"}, None),
        ("redirect", {"location": "/x", "status": 301}, 301, {"Location": "/x"}, None),
        ("raw", {"status": 299, "body": b"what", "headers": {"X-A": "b"}}, 299, {"X-A": "b"}, None),
    ],
)
async def test_a_refusal_applies_nothing_and_passes(
    sim: Simulator,
    client: aiohttp.ClientSession,
    kind: Kind,
    options: Any,
    status: int,
    headers: dict[str, str | None],
    content_type: str | None,
) -> None:
    """The ordered answer comes once, with its headers, changes nothing, and the next call is right."""
    sim.faults.order(kind, **options)
    async with client.post(BATCH, json=BODY, allow_redirects=False) as response:
        assert response.status == status
        assert {name: response.headers.get(name) for name in headers} == headers
        assert content_type is None or response.content_type == content_type
    assert not sim.workspace.people
    assert sim.faults.injected == {kind: 1}
    assert await status_of(client) == 200
    assert sim.traffic.statuses == {status: 1, 200: 1}


async def test_latency_answers_right_but_late(sim: Simulator, client: aiohttp.ClientSession) -> None:
    """The operations are applied at once, and the answer comes after the seconds that were asked for."""
    sim.faults.order("latency", latency=0.15)
    begun = time.monotonic()
    call = asyncio.create_task(status_of(client))
    await wait_until(lambda: sim.workspace.people)
    assert not call.done()
    assert await call == 200
    assert time.monotonic() - begun >= 0.15
    assert sim.faults.injected == {"latency": 1}


async def test_the_simulators_own_latency_is_no_fault(client: aiohttp.ClientSession, sim: Simulator) -> None:
    """Every answer takes that long, and none of them is counted as injected."""
    sim.latency = 0.1
    begun = time.monotonic()
    assert await status_of(client) == 200
    assert time.monotonic() - begun >= 0.1
    assert not sim.faults.injected


async def test_partial_refuses_valid_operations_by_index(sim: Simulator, client: aiohttp.ClientSession) -> None:
    """The 207 names the chosen beside the invalid; the others are applied, and the refused can be compared."""
    sim.faults.order("partial", indexes=[0, 2, 9])
    batch = [event(number=0), {"type": "person"}, event(number=2), event(number=3)]
    async with client.post(BATCH, json={"batch": batch}) as response:
        assert response.status == 207
        errors = (await response.json())["errors"]
    assert [each["batch_index"] for each in errors] == [0, 1, 2]
    assert [each["id"] for each in sim.workspace.person("id", "42").events] == [ulid(3)]
    assert sim.faults.rejected_ids == [ulid(0), ulid(2)]
    assert sim.faults.refused_operations == [batch[0], batch[2]]
    assert sim.faults.injected == {"partial": 1}


async def test_partial_by_chance_loses_no_operation(client: aiohttp.ClientSession, sim: Simulator) -> None:
    """Whatever chance chooses, each operation is either applied or named, and at least one is named."""
    for number in range(20):
        sim.faults.order("partial", partial_share=0.3)
        assert await status_of(client, body={"batch": [event(number=10 * number + n) for n in range(10)]}) == 207
    refused = sim.faults.rejected_ids
    applied = [each["id"] for each in sim.workspace.person("id", "42").events]
    assert sorted(refused + applied) == [ulid(number) for number in range(200)]
    assert 20 <= len(refused) < 120


@pytest.mark.parametrize(
    ("path", "body"), [("/api/v2/entity", event()), ("/api/v1/customers/42/events", {"name": "n", "id": ulid(1)})]
)
async def test_partial_refuses_a_single_call_with_a_400(
    sim: Simulator, client: aiohttp.ClientSession, path: str, body: Any
) -> None:
    """Where a call holds one operation, the whole call is refused."""
    sim.faults.order("partial")
    assert await status_of(client, path, body) == 400
    assert not sim.workspace.people
    assert sim.faults.rejected_ids == [ulid(1)]


async def test_refuse_notes_what_it_refused(sim: Simulator, client: aiohttp.ClientSession) -> None:
    """The valid operations of each refused call are noted; only one that was alone in its call was refused for good."""
    sim.faults.order("refuse", times=3)
    batch = [event(number=0), {"type": "person"}, event(number=2)]
    assert await status_of(client, body={"batch": batch}) == 400
    assert await status_of(client, body={"batch": batch[:1]}) == 400
    assert await status_of(client, "/api/v2/entity", event(number=7)) == 400
    assert sim.faults.refused_operations == [batch[0], batch[2], batch[0], event(number=7)]
    assert sim.faults.rejected_ids == [ulid(0), ulid(7)]
    assert await status_of(client, body={"batch": batch}) == 207
    assert sim.faults.injected == {"refuse": 3}


async def test_a_valid_operation_refused_beside_an_invalid_one_was_not_alone(
    sim: Simulator, client: aiohttp.ClientSession
) -> None:
    """A client that splits the call finds it valid; so it is noted, and not among the rejected ids."""
    sim.faults.order("refuse")
    assert await status_of(client, body={"batch": [event(), {}]}) == 400
    assert (sim.faults.refused_operations, sim.faults.rejected_ids) == ([event()], [])


async def test_partial_does_not_count_where_it_had_nothing_to_refuse(
    sim: Simulator, client: aiohttp.ClientSession
) -> None:
    """An ordered partial is used up by a batch without a valid operation, and injected stays 0."""
    sim.faults.order("partial")
    assert await status_of(client, body={"batch": [{}]}) == 207
    assert (sim.faults.injected, sim.faults.waiting) == ({}, 0)


@pytest.mark.parametrize(("kind", "people"), [("drop_before", 0), ("drop_after", 1)])
async def test_a_dropped_connection_gives_no_answer(
    sim: Simulator, client: aiohttp.ClientSession, kind: Kind, people: int
) -> None:
    """The client sees a broken connection; only drop_after has applied what it read."""
    sim.faults.order(kind)
    with pytest.raises(aiohttp.ClientConnectionError):
        await status_of(client)
    assert len(sim.workspace.people) == people
    assert sim.faults.injected == {kind: 1}
    assert not sim.traffic.statuses
    assert await status_of(client) == 200
    assert sim.workspace.duplicates_ignored == people


async def test_a_black_hole_holds_the_call_until_the_client_goes(sim: Simulator, client: aiohttp.ClientSession) -> None:
    """Nothing is applied, the client runs into its own timeout, and its call is then handled no more."""
    sim.faults.order("black_hole")
    with pytest.raises(TimeoutError):
        await client.post(BATCH, json=BODY, timeout=aiohttp.ClientTimeout(total=0.3))
    await wait_until(lambda: sim.traffic._handled == 0)
    assert sim.faults.injected == {"black_hole": 1}
    assert not sim.workspace.people
    assert await status_of(client) == 200


async def test_raw_can_cut_off_its_own_body(sim: Simulator, client: aiohttp.ClientSession) -> None:
    """A Content-Length longer than the body makes an answer that breaks off."""
    sim.faults.order("raw", status=207, headers={"Content-Length": "99"}, body=b'{"errors":[')
    with pytest.raises(aiohttp.ClientPayloadError):
        await status_of(client)


async def test_poison_refuses_each_call_that_contains_it(sim: Simulator, client: aiohttp.ClientSession) -> None:
    """A call with a poisoned operation fails whole, every time; others pass, on v2 and v1."""
    sim.faults.poison = lambda operation: operation.get("name") == "bad"
    poisoned = {"batch": [event(number=1), event(number=2, name="bad")]}
    assert [await status_of(client, body=poisoned) for _ in range(2)] == [500, 500]
    assert await status_of(client, "/api/v1/customers/42/events", {"name": "bad"}) == 500
    assert not sim.workspace.people
    assert await status_of(client) == 200
    sim.faults.poison_status = 400
    assert await status_of(client, body=poisoned) == 400
    assert sim.faults.injected == {"poison": 4}


async def test_orders_come_before_chance_and_in_their_order(client: aiohttp.ClientSession, sim: Simulator) -> None:
    """What was ordered is used up first; then the rates decide."""
    sim.faults.mix({"server_error": 1.0})
    sim.faults.order("unavailable", times=2)
    sim.faults.order("rate_limit")
    assert [await status_of(client) for _ in range(5)] == [503, 503, 429, 500, 500]
    sim.faults.clear()
    assert await status_of(client) == 200


async def test_the_whole_mix_is_counted_exactly() -> None:
    """Under every random fault at once, what the client saw is what was injected."""
    kinds: list[Kind] = ["rate_limit", "server_error", "html_error", "unavailable", "drop_before", "drop_after"]
    faults = Faults(dict.fromkeys(kinds, 0.1), seed=7)
    seen: Counter[int | str] = Counter()
    async with (
        Simulator(faults=faults) as sim,
        aiohttp.ClientSession(sim.url, headers=basic("site", "key")) as client,
    ):
        for number in range(200):
            try:
                seen[await status_of(client, body={"batch": [event(number=number)]})] += 1
            except aiohttp.ClientConnectionError:
                seen["dropped"] += 1
        injected = faults.injected
        assert set(injected) == set(kinds)
        assert (seen[429], seen[500], seen[502], seen[503]) == tuple(injected[kind] for kind in kinds[:4])
        assert seen["dropped"] == injected["drop_before"] + injected["drop_after"]
        assert sim.workspace.applied["person.event"] == seen[200] + injected["drop_after"]


@given(st.dictionaries(st.sampled_from([kind for kind in KINDS if kind not in ("redirect", "raw")]), st.just(0.05)))
def test_the_same_seed_draws_the_same_faults(rates: dict[Kind, float]) -> None:
    """Faults depend on the seed and the rates alone."""
    first, second = Faults(rates, seed=3), Faults(rates, seed=3)
    drawn = [first.draw() for _ in range(50)]
    assert drawn == [second.draw() for _ in range(50)]
    assert {fault.kind for fault in drawn if fault is not None} <= set(rates)


def test_rates_are_kept_over_many_calls() -> None:
    """A rate of a fifth is a fifth of ten thousand calls, give or take."""
    faults = Faults({"latency": 0.2, "partial": 0.1}, seed=1)
    counts = Counter(fault.kind for fault in (faults.draw() for _ in range(10_000)) if fault is not None)
    assert 1_850 < counts["latency"] < 2_150
    assert 880 < counts["partial"] < 1_120


@pytest.mark.parametrize(
    ("rates", "options"),
    [
        ({"earthquake": 0.1}, {}),
        ({"raw": 0.1}, {}),
        ({"latency": -0.1}, {}),
        ({"latency": 0.6, "partial": 0.6}, {}),
        ({}, {"partial_share": 2}),
        ({}, {"latency": -1}),
        ({}, {"retry_after": 3}),
        ({}, {"colour": "red"}),
    ],
)
def test_a_senseless_mix_is_refused_and_changes_nothing(rates: Any, options: Any) -> None:
    """Wrong kinds, rates and options are errors at once, not at the first call."""
    faults = Faults({"refuse": 1.0})
    with pytest.raises((ValueError, TypeError)):
        faults.mix(rates, **options)
    assert faults.rates == {"refuse": 1.0}


def test_a_redirect_needs_a_location() -> None:
    """Without one, the order is refused: there is no safe place to send a client to."""
    with pytest.raises(ValueError, match="location"):
        Faults().order("redirect")
