"""What is counted on the wire, and whether two calls held one person at a time."""

import asyncio
import socket
from typing import Any

import aiohttp
import orjson
import pytest

from cio_batch.simulator import Simulator, Traffic

from .wire import basic, event, merge, person, thing, wait_until

BATCH = "/api/v2/batch"
ACME = [{"identifiers": {"object_type_id": "1", "object_id": "acme"}}]


async def post(client: aiohttp.ClientSession, *batch: dict[str, Any]) -> int:
    """Send a batch and return the status."""
    async with client.post(BATCH, json={"batch": batch}) as response:
        return response.status


@pytest.mark.parametrize(
    ("held", "arriving", "people", "objects"),
    [
        (event("a"), event("b"), 0, 0),
        (event("a"), event("a", 2), 1, 0),
        (merge("a", "b"), event("b"), 1, 0),
        (event("a"), {**event("a"), "identifiers": {"email": "a"}}, 0, 0),
        (event("b"), thing("add_relationships", cio_relationships=[{"identifiers": {"id": "b"}}]), 1, 0),
        (person("add_relationships", "a", cio_relationships=ACME), thing("delete"), 0, 1),
    ],
)
async def test_an_overlap_is_a_name_that_another_call_still_holds(
    sim: Simulator, client: aiohttp.ClientSession, held: Any, arriving: Any, people: int, objects: int
) -> None:
    """A call that arrives with a held person or object is counted, by every name that either call gives."""
    sim.faults.order("black_hole")
    hole = asyncio.create_task(post(client, event("x"), held))
    await wait_until(lambda: sim.faults.injected)
    # Two operations of the same person: an overlap counts the call, not its operations.
    assert await post(client, arriving, event("y"), arriving) == 200
    assert (sim.traffic.person_overlaps, sim.traffic.object_overlaps) == (people, objects)
    assert sim.traffic.max_overlap == 2
    hole.cancel()
    await asyncio.gather(hole, return_exceptions=True)


async def test_calls_one_after_another_never_overlap(sim: Simulator, client: aiohttp.ClientSession) -> None:
    """A person is free again as soon as the answer is there, also in the middle of latency and errors."""
    sim.latency = 0.005
    for number in range(10):
        if number % 3 == 0:
            sim.faults.order("server_error")
        await post(client, event(number=number), event("b", number=100 + number))
    assert (sim.traffic.person_overlaps, sim.traffic.max_overlap) == (0, 1)


async def test_a_call_whose_client_has_gone_holds_no_one(sim: Simulator, client: aiohttp.ClientSession) -> None:
    """A client that gave up may repeat at once without being counted as two calls for one person."""
    for number in range(1, 6):
        sim.faults.order("black_hole")
        hole = asyncio.create_task(post(client, event()))
        await wait_until(lambda number=number: sim.faults.injected["black_hole"] == number)
        hole.cancel()
        await asyncio.gather(hole, return_exceptions=True)
        assert await post(client, event()) == 200
    assert sim.traffic.person_overlaps == 0


def request_of(*batch: dict[str, Any]) -> bytes:
    """Return the bytes of a batch call."""
    body = orjson.dumps({"batch": batch})
    lines = [f"{name}: {value}" for name, value in basic("site", "key").items()]
    head = "\r\n".join([f"POST {BATCH} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *lines, "", ""])
    return head.encode() + body


async def test_a_call_that_its_server_has_not_yet_missed_holds_no_one_either(sim: Simulator) -> None:
    """A client that went in the very turn of the loop in which the next call came is gone already."""
    address = ("127.0.0.1", sim.port)
    with socket.create_connection(address) as gone, socket.create_connection(address) as staying:
        sim.faults.order("black_hole")
        gone.sendall(request_of(event("a")))
        await wait_until(lambda: sim.faults.injected)
        staying.sendall(request_of(event("b")))
        await wait_until(lambda: sim.traffic.statuses[200] == 1)
        # The loop sees both at once, the new call first.
        staying.sendall(request_of(event("a")))
        gone.close()
        await wait_until(lambda: sim.traffic.statuses[200] == 2)
    assert sim.traffic.person_overlaps == 0


async def test_the_names_of_a_v1_path_are_held_as_well(sim: Simulator, client: aiohttp.ClientSession) -> None:
    """A person in a v1 path is the same person as in a batch."""
    sim.faults.order("black_hole")
    hole = asyncio.create_task(client.put("/api/v1/customers/42", json={}))
    await wait_until(lambda: sim.faults.injected)
    assert await post(client, event()) == 200
    assert sim.traffic.person_overlaps == 1
    hole.cancel()
    await asyncio.gather(hole, return_exceptions=True)


async def test_each_call_is_counted_by_what_it_was(sim: Simulator, client: aiohttp.ClientSession) -> None:
    """Paths, statuses, sizes, retries and user agents are all counted."""
    for retry in ("0", "1", "2", "soon"):
        headers = {"X-Retry-Count": retry, "User-Agent": f"agent/{retry}"}
        async with client.post(BATCH, json={"batch": [event(number=n) for n in range(3)]}, headers=headers):
            pass
    async with client.delete("/api/v1/customers/a%2Fb"):
        pass
    traffic = sim.traffic
    assert traffic.calls == 5
    assert traffic.calls_by_path == {BATCH: 4, "/api/v1/customers/{identifier}": 1}
    assert traffic.statuses == {200: 5}
    assert traffic.batch_sizes == [3, 3, 3, 3]
    assert traffic.retried_calls == 2
    assert {"agent/0", "agent/soon"} < traffic.user_agents
    assert traffic.largest_body_bytes > 300


def test_a_hold_survives_the_release_of_another() -> None:
    """Of three calls with one person, the third overlaps even when the second has ended."""
    traffic, here = Traffic(), frozenset({("id", "1")})
    first = traffic.hold_people(here, lambda: False)
    traffic.release(traffic.hold_people(here, lambda: False))
    third = traffic.hold_people(here, lambda: False)
    assert traffic.person_overlaps == 2
    traffic.release(first, third)
    traffic.hold_people(here, lambda: False)
    assert traffic.person_overlaps == 2
