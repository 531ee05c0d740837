"""What a producing process says about its events: written as it happens, so that its end cannot take it along.

Rules:

1. Each line is written by one unbuffered write: what was written before the process died can be read.
2. ``accepted`` lines come from the producers, ``settled`` lines from ``on_settled``; neither asks the tracker's
   counters.
3. A verdict is told with the event's own bytes, and is read back from them: person, sequence number, id.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import attrs
import orjson

from cio_batch.hooks import SettledChunk
from cio_batch.verdicts import Verdict


@attrs.frozen
class Settled:
    """A verdict that a tracker gave.

    Attributes:
        person: Whose event it was.
        sequence: Which one of them.
        id: Its ULID.
        verdict: What became of it.
        status: The HTTP status behind it, 0 for none.
    """

    person: str
    sequence: int
    id: str
    verdict: Verdict
    status: int = 0


@attrs.frozen
class Record:
    """Everything that one process said.

    Attributes:
        positions: How many of its events each producer has got accepted, those of earlier processes included.
        accepted: How many events of each person were accepted in this process.
        settled: Every verdict, in order.
    """

    positions: dict[int, int] = attrs.field(factory=dict[int, int])
    accepted: Counter[str] = attrs.field(factory=Counter[str])
    settled: list[Settled] = attrs.field(factory=list[Settled])


class RecordWriter:
    """Writes a record.

    Args:
        path: Where to; the file is made anew.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def accepted(self, producer: int, position: int, accepted: Mapping[str, int]) -> None:
        """Note what a producer got accepted, at its end."""
        self._file.write(b"accepted\t%d\t%d\t%s\n" % (producer, position, orjson.dumps(dict(accepted))))

    def settled(self, chunk: SettledChunk) -> None:
        """Note verdicts; it is an ``on_settled``."""
        lines = [
            b"settled\t%s\t%d\t%s\n" % (each.verdict.encode(), each.status, each.body) for each in chunk.operations
        ]
        self._file.write(b"".join(lines))


def read_record(path: Path) -> Record:
    """Read a record back.

    Raises:
        ValueError: A line is not as it was written.
    """
    record = Record()
    with path.open("rb") as file:
        for line in file:
            match line.rstrip(b"\n").split(b"\t", 3):
                case [b"accepted", producer, position, accepted]:
                    record.positions[int(producer)] = int(position)
                    record.accepted.update(orjson.loads(accepted))
                case [b"settled", verdict, status, body]:
                    event: dict[str, Any] = orjson.loads(body)
                    settled = Settled(
                        person=event["identifiers"]["id"],
                        sequence=event["attributes"]["sequence"],
                        id=event["id"],
                        verdict=Verdict(verdict.decode()),
                        status=int(status),
                    )
                    record.settled.append(settled)
                case _:
                    message = "a line of the record is neither about acceptance nor about a verdict"
                    raise ValueError(message)
    return record
