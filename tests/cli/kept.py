"""Dead letters for the tests: kept in a file, in full ones beside it, or in a spool's database."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from cio_batch import DeadLetter, Refusal
from cio_batch import operations as ops
from cio_batch.letter_files import Appender, Snapshot
from cio_batch.operations import Draft, Operation
from cio_batch.spools.database import Database

from .commands import surroundings

Place = Literal["file", "files", "spool"]
PLACES: tuple[Place, ...] = ("file", "files", "spool")
STARTED = 1_764_000_000.0


def ulid(number: int) -> str:
    """The id of the event with that number."""
    return f"01ARZ3NDEKTSV4RRFFQ6{number:06d}"


def encoded(draft: Draft, number: int) -> Operation:
    """The operation as a tracker would have made it."""
    operation = ops.encode(draft, now=STARTED + number, new_id=lambda: ulid(number))
    operation.number = number
    return operation


def letter(
    number: int, person: str = "a", *, name: str = "bought", reason: str = "invalid", at: float = 0.0
) -> DeadLetter:
    """A dead letter of an event that says its number."""
    body = encoded(ops.event(person, name, {"n": number}), number).body
    said = Refusal("rejected", reason, "name", "a secret explanation", 400, 1, at or STARTED + 100 + number)
    return DeadLetter(body, (said,), STARTED + number, number)


def keep(folder: Path, place: Place, letters: Sequence[DeadLetter], waiting: Sequence[Draft] = ()) -> Path:
    """Write letters, and operations that wait; return the path that commands take."""
    if place != "spool":
        path = folder / "dead.ndjson"
        appender = Appender(path, max_bytes=1_200 if place == "files" else 10_000_000, backups=1_000)
        lines = [each.to_line() for each in letters]
        while lines:
            del lines[: appender.append(lines)]
        return path
    database = Database(folder / "spool.db")
    database.write(
        [ops.decode(each.body, each.number) for each in letters]
        + [encoded(draft, 1_000_000 + index) for index, draft in enumerate(waiting)],
        (),
        [(each.number, each.refusals[0]) for each in letters],
        STARTED,
    )
    for each in letters:
        for refusal in each.refusals[1:]:
            database.refuse_again([(each.number, refusal)])
    database.close()
    return database.path


def kept(path: Path) -> list[DeadLetter]:
    """What is there now."""
    if path.suffix == ".db":
        database = Database(path)
        try:
            return list(database.letters())
        finally:
            database.close()
    with Snapshot(path) as snapshot:
        return [DeadLetter.from_line(line) for _, line in snapshot.lines()]


def told(letters: Sequence[DeadLetter]) -> list[int]:
    """The numbers that the events say."""
    return [each.payload["attributes"]["n"] for each in letters]


@contextlib.contextmanager
def owned(path: Path) -> Iterator[int]:
    """Let a service own the spool meanwhile; yield its pid."""
    program = (
        "import asyncio, sys\n"
        "from cio_batch.spools import SqliteSpool\n"
        "async def main():\n"
        "    spool = SqliteSpool(sys.argv[1])\n"
        "    await spool.open(lambda written: None, lambda numbers: None)\n"
        "    print('open', flush=True)\n"
        "    await asyncio.to_thread(sys.stdin.read)\n"
        "    assert await spool.close()\n"
        "asyncio.run(main())\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(path)],
        env=surroundings(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "open\n"
        yield process.pid
        _, _ = process.communicate("", timeout=20)
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()
