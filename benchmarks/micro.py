"""What does each step of an event's way cost by itself?

    python benchmarks/micro.py [--json FILE] [any option of pytest, such as -k encode]

Every benchmark takes a thousand events, so that microseconds in the table are nanoseconds an event. ``dict_and_orjson``
is what the floor of ``throughput.py`` does to one. All of it runs in warm loops; on the whole way, where one step
follows the other, each is colder and dearer.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import threading
import time
from pathlib import Path
from typing import Any

import harness
import orjson
import pytest

from cio_batch import CioEvent, ids
from cio_batch import operations as ops
from cio_batch.chunks import Backlog
from cio_batch.operations import Operation, encode_event, join
from cio_batch.queues import OperationQueue
from cio_batch.spools.database import checksum
from cio_batch.verdicts import Answer, judge_batch

EVENTS = 1_000
ENVELOPE = len(b'{"batch":[]}')
WORKLOAD = list(harness.Workload(EVENTS))


class PageViewed(CioEvent, name="page_viewed"):
    """The data of the workload as a typed event."""

    url: str
    referrer: str
    title: str
    experiment: str
    scroll: float
    logged_in: bool
    seats: int


def encoded() -> list[Operation]:
    """The workload as operations."""
    return [encode_event(person, name, data, None, None, time.time(), ids.new_id) for person, name, data in WORKLOAD]


# ------------------------------------------------------------------------------------------------- at the door


def test_dict_and_orjson(benchmark: Any) -> None:
    """The floor: a dict of the whole event, and its bytes."""

    def run() -> None:
        for person, name, data in WORKLOAD:
            orjson.dumps(
                {
                    "type": "person",
                    "action": "event",
                    "identifiers": {"id": person},
                    "name": name,
                    "timestamp": 1_700_000_000,
                    "id": "01ARZ3NDEKTSV4RRFFQ69G5FAV",
                    "attributes": data,
                }
            )

    benchmark(run)


def test_encode_event(benchmark: Any) -> None:
    """Check and encode, with time and id: what ``enqueue`` does."""
    benchmark(encoded)


def test_encode_event_without_data(benchmark: Any) -> None:
    """The same without orjson's share for the data."""

    def run() -> None:
        for person, name, _ in WORKLOAD:
            encode_event(person, name, None, None, None, time.time(), ids.new_id)

    benchmark(run)


def test_encode_any_operation(benchmark: Any) -> None:
    """The general way, which every other operation goes."""
    drafts = [ops.event(person, name, data) for person, name, data in WORKLOAD]

    def run() -> None:
        for draft in drafts:
            ops.encode(draft, now=time.time(), new_id=ids.new_id)

    benchmark(run)


def test_encode_typed_event(benchmark: Any) -> None:
    """Bytes of an event class; the objects are made before."""
    typed = [PageViewed(**data) for _, _, data in WORKLOAD]

    def run() -> None:
        now = time.time()
        for event in typed:
            encode_event("user-1", event.event_name, event.wire_data(), None, None, now, ids.new_id)

    benchmark(run)


def test_decode(benchmark: Any) -> None:
    """Read operations back, as from a spool."""
    bodies = [operation.body for operation in encoded()]

    def run() -> None:
        for body in bodies:
            ops.decode(body)

    benchmark(run)


def test_new_id(benchmark: Any) -> None:
    """Fresh ULIDs."""

    def run() -> None:
        for _ in range(EVENTS):
            ids.new_id()

    benchmark(run)


# ------------------------------------------------------------------------------------- queue, chunks, verdicts


def test_queue(benchmark: Any) -> None:
    """Take operations one by one, in the way of ``enqueue``, and hand them over all at once."""
    operations = encoded()

    async def measure() -> None:
        queue = OperationQueue(
            max_operations=100_000,
            max_bytes=100_000_000,
            batch_operations=2 * EVENTS,
            batch_bytes=10_000_000,
            on_first=lambda: None,
            on_batch=lambda: None,
        )

        queue.open_to(threading.get_ident(), asyncio.get_running_loop().is_running)

        def run() -> None:
            accept = queue.accept
            for operation in operations:
                if not accept(operation):
                    queue.offer(operation)
            _, nbytes = queue.take_all()
            queue.release(EVENTS, nbytes)

        benchmark(run)

    asyncio.run(measure())


@pytest.mark.parametrize("held", [0, 100], ids=["nobody held back", "a tenth held back"])
def test_chunk(benchmark: Any, held: int) -> None:
    """Form a chunk in order per person; with others in flight, whose later operations wait."""
    operations = encoded()
    nbytes = sum(len(operation) for operation in operations)

    def run() -> None:
        backlog = Backlog(
            max_operations=2 * EVENTS, max_bytes=1_000_000, envelope_bytes=ENVELOPE, apart=frozenset(), max_apart=1
        )
        if held:
            backlog.add(operations[:held], sum(len(operation) for operation in operations[:held]))
            backlog.expire()
            backlog.take()
        backlog.add(operations, nbytes)
        backlog.expire()
        chunk = backlog.take()
        assert chunk is not None
        assert len(chunk.operations) == EVENTS - held

    benchmark(run)


def test_body(benchmark: Any) -> None:
    """Join a chunk into one body."""
    operations = encoded()
    benchmark(lambda: join(operations))


def test_judge_success(benchmark: Any) -> None:
    """The verdict on a chunk that got through."""
    answer = Answer(200, b'{"errors":[]}')
    assert benchmark(judge_batch, answer, EVENTS, 0.0).decided == EVENTS


def test_judge_rejections(benchmark: Any) -> None:
    """The verdict on a chunk of which every tenth operation was refused."""
    errors = [{"batch_index": n, "reason": "invalid", "field": "id", "message": "no"} for n in range(0, EVENTS, 10)]
    answer = Answer(207, orjson.dumps({"errors": errors}))
    assert len(benchmark(judge_batch, answer, EVENTS, 0.0).rejected) == EVENTS // 10


def test_checksums(benchmark: Any) -> None:
    """What a spool adds to each row."""
    bodies = [operation.body for operation in encoded()]

    def run() -> None:
        for number, body in enumerate(bodies):
            checksum(number, body)

    benchmark(run)


def main(arguments: list[str]) -> int:
    """Run them all and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to write the results")
    options, rest = parser.parse_known_args(arguments)
    rest += [f"--benchmark-json={options.json}"] if options.json else []
    columns = "--benchmark-columns=min,median,iqr,rounds"
    return pytest.main([__file__, "-q", "--benchmark-only", columns, "--benchmark-sort=fullname", *rest])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
