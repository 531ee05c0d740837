"""The bounds of the queue, who gets room first, and what is handed over."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from cio_batch.operations import Operation
from cio_batch.queues import OperationQueue

MANY = 10**9


def operation(size: int = 10, key: str = "u") -> Operation:
    return Operation(b"x" * size, key, "person.event")


class Queue(OperationQueue):
    """A queue that notes what it announces, and with which numbers."""

    def __init__(self, **bounds: int) -> None:
        self.firsts: list[tuple[int, int, int]] = []
        self.batches: list[tuple[int, int, int]] = []
        super().__init__(
            **{  # type: ignore[arg-type]
                "max_operations": MANY,
                "max_bytes": MANY,
                "batch_operations": MANY,
                "batch_bytes": MANY,
                **bounds,
                "on_first": lambda: self.firsts.append(self.numbers()),
                "on_batch": lambda: self.batches.append(self.numbers()),
            }
        )

    def numbers(self) -> tuple[int, int, int]:
        return self.qsize(), self.accepted, self.held


def settle(queue: OperationQueue, *operations: Operation) -> None:
    queue.release(len(operations), sum(len(each) for each in operations))


async def turn() -> None:
    """Let what was made ready run."""
    await asyncio.sleep(0)


# ------------------------------------------------------------------------------------------------------- bounds


def test_the_count_is_bounded_over_queued_and_in_flight() -> None:
    """What was taken and is not settled counts like what is queued."""
    queue = Queue(max_operations=2)
    assert queue.offer(operation())
    assert queue.offer(operation())
    assert queue.full()
    assert not queue.offer(operation())
    queue.take_all()
    assert not queue.offer(operation())
    settle(queue, operation())
    assert not queue.full()
    assert queue.offer(operation())
    assert (queue.accepted, queue.held) == (3, 2)


def test_the_bytes_are_bounded_exactly() -> None:
    """The last byte of room is used, and not one more."""
    queue = Queue(max_bytes=30)
    assert queue.offer(operation(20))
    assert not queue.offer(operation(11))
    assert not queue.full()
    assert queue.offer(operation(10))
    assert queue.full()
    assert not queue.offer(operation(1))
    settle(queue, operation(20))
    assert queue.held_bytes == 10
    assert queue.offer(operation(20))


def test_put_nowait_says_that_it_is_full() -> None:
    """The queue keeps the contract of ``asyncio.Queue``."""
    queue = Queue(max_operations=1)
    queue.put_nowait(operation())
    with pytest.raises(asyncio.QueueFull):
        queue.put_nowait(operation())
    assert (queue.qsize(), queue.accepted) == (1, 1)


def test_take_all_hands_everything_over_with_its_bytes() -> None:
    """One call empties the queue, in order; what is taken stays held until it is settled."""
    queue = Queue()
    operations = [operation(n) for n in (3, 1, 2)]
    for each in operations:
        queue.offer(each)
    assert queue.queued_bytes == 6
    assert list(queue.queued()) == operations
    taken, nbytes = queue.take_all()
    assert (list(taken), nbytes) == (operations, 6)
    assert (queue.qsize(), queue.queued_bytes, queue.held, queue.held_bytes) == (0, 0, 3, 6)
    assert queue.take_all()[1] == 0
    queue.offer(operation())
    assert list(taken) == operations, "what was handed over is the taker's"


async def test_get_refuses() -> None:
    """There is one way out."""
    queue = Queue()
    queue.offer(operation())
    with pytest.raises(NotImplementedError, match="take_all"):
        await queue.get()
    assert queue.qsize() == 1


# ------------------------------------------------------------------------------------------------ announcements


def test_the_first_operation_is_announced_with_numbers_that_agree() -> None:
    """``on_first`` is called once for each time the queue was empty, when the operation is already counted."""
    queue = Queue()
    queue.offer(operation())
    queue.offer(operation())
    assert queue.firsts == [(1, 1, 1)]
    queue.take_all()
    queue.offer(operation())
    assert queue.firsts == [(1, 1, 1), (1, 3, 3)]


@pytest.mark.parametrize("bounds", [{"batch_operations": 3}, {"batch_bytes": 30}, {"batch_bytes": 21}])
def test_a_batch_is_announced_once_until_it_is_taken(bounds: dict[str, int]) -> None:
    """``on_batch`` is called when enough is there by count or by bytes, and again only after ``take_all``."""
    queue = Queue(**bounds)
    for _ in range(2):
        assert not queue.batch_ready
        for _ in range(2):
            queue.offer(operation(10))
        assert not queue.batch_ready
        for _ in range(4):
            queue.offer(operation(10))
            assert queue.batch_ready
        queue.take_all()
    assert [numbers[0] for numbers in queue.batches] == [3, 3]


async def test_those_who_waited_are_announced_like_others() -> None:
    """An operation that enters after waiting makes a first and a batch like any other."""
    queue = Queue(max_operations=1, batch_operations=1)
    queue.offer(operation())
    room = queue.wait_for_room(operation())
    queue.take_all()
    settle(queue, operation())
    assert room.done()
    assert (len(queue.firsts), len(queue.batches)) == (2, 2)


# ------------------------------------------------------------------------------------------------------ waiting


async def test_room_is_given_in_the_order_of_asking() -> None:
    """First come, first served, and the queue's order is the order of acceptance."""
    queue = Queue(max_operations=2)
    first = [operation(key=f"first-{n}") for n in range(2)]
    later = [operation(key=f"later-{n}") for n in range(4)]
    for each in first:
        queue.offer(each)
    rooms = [queue.wait_for_room(each) for each in later]
    assert (queue.waiting, queue.accepted) == (4, 2)
    settle(queue, *first[:1])
    assert [room.done() for room in rooms] == [True, False, False, False]
    settle(queue, *first[1:], later[0])
    assert [room.done() for room in rooms] == [True, True, True, False]
    assert list(queue.queued()) == [*first, *later[:3]]
    assert (queue.waiting, queue.accepted, queue.held) == (1, 5, 2)
    queue.turn_away(RuntimeError())
    assert rooms[3].exception() is not None


async def test_nobody_overtakes_those_who_wait() -> None:
    """A small operation does not slip past a large one that waits, though it would fit."""
    queue = Queue(max_bytes=100)
    queue.offer(operation(60))
    large = queue.wait_for_room(operation(80))
    assert not queue.offer(operation(1))
    small = queue.wait_for_room(operation(1))
    assert queue.full()
    queue.release(0, 0)
    assert not small.done()
    settle(queue, operation(60))
    assert large.done()
    assert small.done()
    assert [len(each) for each in queue.queued()] == [60, 80, 1]


async def test_a_cancelled_waiter_gives_up_its_place() -> None:
    """It gets no room, and whoever stood behind does."""
    queue = Queue(max_bytes=100)
    queue.offer(operation(60))
    gone, behind = queue.wait_for_room(operation(80, "gone")), queue.wait_for_room(operation(30, "behind"))
    gone.cancel()
    queue.release(0, 0)
    assert behind.done()
    assert queue.waiting == 0
    assert [each.key for each in queue.queued()] == ["u", "behind"]
    assert (queue.accepted, queue.held_bytes) == (2, 90)


async def test_cancelled_waiters_alone_do_not_make_it_full() -> None:
    """Where only those are left who gave up, the next one does not wait."""
    queue = Queue(max_bytes=100)
    queue.offer(operation(60))
    for _ in range(3):
        queue.wait_for_room(operation(80)).cancel()
    assert not queue.full()
    assert queue.offer(operation(40))


async def test_put_waits_and_is_counted_when_it_enters() -> None:
    """``put`` accepts at once where there is room and else waits its turn."""
    queue = Queue(max_operations=1)
    await queue.put(operation())
    waiting = asyncio.create_task(queue.put(operation(key="later")))
    await turn()
    assert not waiting.done()
    assert queue.accepted == 1
    settle(queue, operation())
    await waiting
    assert queue.accepted == 2


async def test_a_cancelled_put_is_not_accepted_and_lets_the_next_one_in() -> None:
    """A cancel while waiting leaves nothing in the queue and blocks nobody."""
    queue = Queue(max_bytes=100)
    queue.offer(operation(60))
    gone = asyncio.create_task(queue.put(operation(80, "gone")))
    behind = asyncio.create_task(queue.put(operation(30, "behind")))
    await turn()
    assert queue.waiting == 2
    gone.cancel()
    await asyncio.wait([gone, behind], timeout=5)
    assert gone.cancelled()
    assert behind.done()
    assert [each.key for each in queue.queued()] == ["u", "behind"]


async def test_a_put_cancelled_in_the_instant_of_its_room_is_accepted_and_counted() -> None:
    """The operation is in the queue and in the numbers, whatever the caller saw."""
    queue = Queue(max_operations=1)
    queue.offer(operation())
    late = asyncio.create_task(queue.put(operation(key="late")))
    await turn()
    settle(queue, operation())
    late.cancel()
    await asyncio.wait([late], timeout=5)
    assert [each.key for each in queue.queued()] == ["u", "late"]
    assert (queue.accepted, queue.held) == (2, 1)


async def test_turn_away_refuses_everyone_who_waits() -> None:
    """All waiters get the error, those who gave up are left alone, and nothing was accepted."""
    queue = Queue(max_operations=1)
    queue.offer(operation())
    puts = [asyncio.create_task(queue.put(operation())) for _ in range(3)]
    await turn()
    gone = queue.wait_for_room(operation())
    gone.cancel()
    queue.turn_away(ValueError("closed"))
    results = await asyncio.gather(*puts, return_exceptions=True)
    assert [str(result) for result in results] == ["closed"] * 3
    assert gone.cancelled()
    assert (queue.waiting, queue.accepted) == (0, 1)


async def test_a_large_history_ends_with_numbers_that_agree() -> None:
    """Whatever comes and goes, what is held is what was accepted and not settled, and waiters come in order."""
    queue = Queue(max_operations=5, max_bytes=60)
    rooms: list[tuple[int, asyncio.Future[None]]] = []
    out: list[Operation] = []
    entered: list[str] = []
    settled = 0
    for n in range(500):
        item = operation(1 + n * 7 % 23, str(n))
        if not queue.offer(item):
            rooms.append((n, queue.wait_for_room(item)))
        if n % 3 == 0:
            taken = list(queue.take_all()[0])
            entered += [each.key for each in taken]  # type: ignore[misc]
            out += taken
        if n % 11 == 0 and rooms:
            rooms.pop(len(rooms) // 2)[1].cancel()
        if n % 4 == 0:
            gone = out[: n % 4 + 2]
            del out[: len(gone)]
            settle(queue, *gone)
            settled += len(gone)
        held = [*out, *queue.queued()]
        assert queue.accepted == settled + len(held)
        assert (queue.held, queue.held_bytes) == (len(held), sum(len(each) for each in held))
        assert queue.held <= 5
        assert queue.held_bytes <= 60
        assert queue.queued_bytes == sum(len(each) for each in queue.queued())
        states = [room.done() for _, room in rooms if not room.cancelled()]
        assert states == sorted(states, reverse=True), "somebody was overtaken"
        assert queue.waiting == states.count(False)
    queue.turn_away(RuntimeError())
    for _, room in rooms:
        if not room.cancelled():
            room.exception()
    numbers = list(map(int, entered))
    assert numbers == sorted(numbers)
    assert len(numbers) > 100


# ------------------------------------------------------------------------------------------------------ warning


@pytest.mark.parametrize(
    "bounds", [{"max_operations": 10}, {"max_bytes": 100}, {"max_operations": 10, "max_bytes": 100}], ids=str
)
def test_a_warning_comes_once_at_80_percent_until_it_is_calm(
    bounds: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    """It comes with the operation beyond 80 %, again only after the queue was below 60 %, and has no content."""
    queue = Queue(**bounds)

    def warnings() -> int:
        return sum(record.levelno == logging.WARNING for record in caplog.records)

    for _ in range(8):
        assert queue.offer(operation(10, "s3cr3t"))
    assert warnings() == 0
    queue.offer(operation(10))
    assert warnings() == 1
    assert "80%" in caplog.text
    assert "s3cr3t" not in caplog.text
    queue.offer(operation(10))
    assert not queue.offer(operation(10))
    assert warnings() == 1

    settle(queue, *[operation(10)] * 4)  # 6 of 10 are left: not calm yet
    for _ in range(4):
        queue.offer(operation(10))
    assert warnings() == 1

    settle(queue, *[operation(10)] * 5)  # 5 of 10: calm
    for _ in range(5):
        queue.offer(operation(10))
    assert warnings() == 2


def test_a_full_queue_does_not_warn_for_what_it_refuses(caplog: pytest.LogCaptureFixture) -> None:
    """Only what is accepted can come near the bound; refusing is the policy's affair."""
    queue = Queue(max_bytes=10)
    for _ in range(3):
        assert not queue.offer(operation(11))
    assert caplog.records == []


def test_the_queue_is_an_asyncio_queue() -> None:
    """It can be passed where one is expected, and tells its length as one."""
    queue: asyncio.Queue[Any] = Queue(max_operations=7)
    assert isinstance(queue, asyncio.Queue)
    assert queue.empty()
    queue.put_nowait(operation())
    assert (queue.qsize(), queue.empty(), queue.maxsize) == (1, False, 7)
