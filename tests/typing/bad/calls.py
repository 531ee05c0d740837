"""Wrong calls of the tracker's methods, and wrong use of what they return."""

import asyncio

from cio_batch import (
    AnonymousId,
    CioBatchTracker,
    Email,
    Phone,
    QueueFullError,
    Report,
    SettledChunk,
    Stats,
    Verdict,
    with_retry,
)


async def plain() -> int:
    """Return a number."""
    return 1


async def use(tracker: CioBatchTracker) -> None:
    """Every marked line is a mistake."""
    await tracker.enqueue("u", "e", {"n": 1})
    await tracker.enqueue(17, "e")  # error
    await tracker.enqueue(None, "e")  # error
    await tracker.enqueue(AnonymousId("cookie"), "e")  # error
    await tracker.enqueue("u", 5)  # error
    await tracker.enqueue("u")  # error
    await tracker.enqueue("u", "e", timestamp="2024-01-01")  # error
    await tracker.enqueue("u", "e", id=17)  # error
    await tracker.enqueue("u", "e", {}, 1_700_000_000)  # error
    tracker.enqueue("u", "e")  # error
    waiting: int = tracker.enqueue("u", "e")  # error
    accepted: bool = await tracker.flush()  # error
    report: Report = tracker.close()  # error
    await tracker.enqueue_nowait("u", "e")  # error
    await tracker.flush("10")  # error
    await tracker.add_device("u", "token", "windows")  # error
    await tracker.merge("u", 2)  # error
    await tracker.submit({"type": "person"})  # error
    await tracker.identify(Email(5))  # error
    await tracker.identify(Phone("+15551234567"), relationships="acme")  # error
    with tracker:  # error
        pass
    str((waiting, accepted, report))


async def look(tracker: CioBatchTracker, stats: Stats, chunk: SettledChunk, error: QueueFullError) -> None:
    """What is frozen stays as it is, and what is not there is not there."""
    stats.accepted = 0  # error
    chunk.operations[0].verdict = Verdict.DELIVERED  # error
    assert chunk.operations[0].email  # error
    assert Verdict.LOST  # error
    assert await tracker.stats()  # error
    text: str = error.pending  # error
    number: str = await with_retry(plain)  # error
    await with_retry(plain())  # error
    str((text, number))


asyncio.run(use)  # error
