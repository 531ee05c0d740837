"""The process that is killed: producer tasks over a tracker with a spool, and the traces that it leaves.

    python -m tests.oracle.producer          (then one life after the other, as lines on standard input)

It imports everything once and forks for each life, so that one begins in milliseconds; each life is a process of its
own that opens the spool, takes up what it finds there, and enqueues until it is killed.

Rules:

1. The library is watched through its public protocols alone: a spool around ``SqliteSpool``, a transport around
   ``TrackV2Transport``. Neither changes anything.
2. A trace is one ``write`` to a file opened for appending, made before the step that it announces, and after the one
   that it reports. A kill leaves the file as it is; at most its last line is torn.
3. ``said`` has what was given to the spool, ``acknowledged`` what ``enqueue`` returned for: each line a number of the
   spool and the operation's bytes. ``steps`` has what became of numbers: ``send``, ``answer``, ``verdict``, ``settle``
   (said to the spool, and soon off the disk), and ``give_up`` (the caller was cancelled).
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import orjson

from cio_batch import CioBatchTracker, HttpOptions, RetryOptions, Settings
from cio_batch.dead_letters import Refusal
from cio_batch.operations import Operation, PersonId
from cio_batch.spools import Contents, SqliteSpool
from cio_batch.spools.base import Page, Receive, Written
from cio_batch.transports import TrackV2Transport
from cio_batch.transports.base import Call
from cio_batch.verdicts import Judgement

BROKEN: Final = 70  # the exit code of a life that ended by an error
PERIOD: Final = 3  # lives that share their people; in the middle one of them each person is deleted once
_TASKS: Final = 12
_PEOPLE: Final = 5
_DELETED_AT: Final = 12  # the sequence number of the operation that is a delete
_HTTP: Final = HttpOptions(total_timeout=1.5, connect_timeout=1.0, read_timeout=1.5)
_RETRY: Final = RetryOptions(max_retries=30, base_delay=0.01, max_delay=0.1)


@attrs.frozen(kw_only=True)
class Life:
    """One life of the process.

    Attributes:
        number: Which one it is.
        directory: Of the spool and of the traces.
        url: Of the service.
        seed: Of what its tasks say.
        max_pending: As of the tracker; small ones make it read back from disk.
        batch_size: Likewise.
        synchronous: As of the spool.
        dies_at: The step at which it kills itself: ``say``, ``commit`` or ``settle``; empty for none.
        times: At which of those steps.
        drains: Whether it says nothing, sends all that there is, and ends.
        lies: Whether its spool says that it wrote what it has not written yet: the oracle must notice.
    """

    number: int
    directory: str
    url: str
    seed: int
    max_pending: int = 100_000
    batch_size: int = 500
    synchronous: Any = "FULL"
    dies_at: str = ""
    times: int = 1
    drains: bool = False
    lies: bool = False


class Traces:
    """Writes down what happens, and kills the process where that was asked for."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._steps_left = life.times
        self._said, self._acknowledged, self._steps = (
            os.open(path_of(life.directory, life.number, name), os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
            for name in ("said", "acknowledged", "steps")
        )

    def say(self, operation: Operation) -> None:
        os.write(self._said, b"%d %s\n" % (operation.number, operation.body))

    def acknowledge(self, operation: Operation) -> None:
        os.write(self._acknowledged, b"%d %s\n" % (operation.number, operation.body))

    def step(self, name: str, numbers: Iterable[int]) -> None:
        os.write(self._steps, f"{name} {','.join(map(str, numbers))}\n".encode())

    def die_at(self, step: str) -> None:
        if step == self._life.dies_at:
            self._steps_left -= 1
            if self._steps_left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


class WatchedSpool:
    """A spool that leaves traces."""

    def __init__(self, inner: SqliteSpool, traces: Traces) -> None:
        self._inner = inner
        self._traces = traces
        self.said_by: dict[asyncio.Task[Any] | None, Operation] = {}

    @property
    def max_bytes(self) -> int:
        return self._inner.max_bytes

    @property
    def max_age(self) -> float | None:
        return self._inner.max_age

    async def open(self, receive: Receive, purged: Callable[[Sequence[int]], None]) -> Contents:
        def receive_and_trace(written: Written) -> None:
            if written.appended:
                self._traces.die_at("commit")
            receive(written)

        return await self._inner.open(receive_and_trace, purged)

    def append(self, operation: Operation) -> None:
        self._traces.say(operation)
        self.said_by[asyncio.current_task()] = operation
        self._inner.append(operation)
        self._traces.die_at("say")

    def acknowledge(self, numbers: Sequence[int]) -> None:
        self._traces.step("settle", numbers)
        self._inner.acknowledge(numbers)
        self._traces.die_at("settle")

    def bury(self, refusals: Sequence[tuple[int, Refusal]]) -> None:
        self._traces.step("settle", [number for number, _ in refusals])
        self._inner.bury(refusals)
        self._traces.die_at("settle")

    async def read(self, after: int, most: int, most_bytes: int) -> Page:
        return await self._inner.read(after, most, most_bytes)

    async def last_before(self, moment: float) -> int:
        return await self._inner.last_before(moment)

    async def purge(self, person: PersonId) -> int:
        return await self._inner.purge(person)

    async def close(self, timeout: float) -> bool:
        return await self._inner.close(timeout)

    def forget_parent(self) -> None:
        self._inner.forget_parent()


class LyingSpool(WatchedSpool):
    """A spool that promises first and writes later; what it promises is true unless the process is killed meanwhile."""

    async def open(self, receive: Receive, purged: Callable[[Sequence[int]], None]) -> Contents:
        self._receive = receive
        return await super().open(lambda written: receive(attrs.evolve(written, appended=0)), purged)

    def append(self, operation: Operation) -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(self._receive, Written(1, None, 0, 0, 0))
        loop.call_later(0.05, self._inner.append, operation)
        self._traces.say(operation)
        self.said_by[asyncio.current_task()] = operation


class WatchedTransport:
    """A transport that leaves traces."""

    def __init__(self, inner: TrackV2Transport, traces: Traces) -> None:
        self._inner = inner
        self._traces = traces
        self.max_operations = inner.max_operations
        self.max_bytes = inner.max_bytes
        self.envelope_bytes = inner.envelope_bytes
        self.apart = inner.apart
        self.max_apart = inner.max_apart
        self.check = inner.check

    async def send(self, operations: Sequence[Operation], call: Call) -> Judgement:
        numbers = [operation.number for operation in operations]

        async def gate() -> None:
            await call.gate()
            self._traces.step("send", numbers)

        judgement = await self._inner.send(operations, attrs.evolve(call, gate=gate))
        self._traces.step("answer", numbers)
        decided = [number for at, number in enumerate(numbers) if at < judgement.decided or at in judgement.rejected]
        self._traces.step("verdict", decided)
        return judgement

    async def close(self) -> None:
        await self._inner.close()


def path_of(directory: str | Path, life: int, name: str) -> Path:
    """The file of a life's traces."""
    return Path(directory) / f"{life}.{name}"


async def _live(life: Life) -> None:
    traces = Traces(life)
    kind = LyingSpool if life.lies else WatchedSpool
    spool = kind(SqliteSpool(Path(life.directory) / "events.db", synchronous=life.synchronous), traces)
    settings = Settings(site_id="site", track_api_key="key", track_url=life.url, http=_HTTP)
    tracker = CioBatchTracker(
        settings,
        transport=WatchedTransport(TrackV2Transport(settings), traces),
        spool=spool,
        batch_size=life.batch_size,
        max_pending=life.max_pending,
        flush_interval=0.01,
        concurrency=4,
        retry=_RETRY,
        drain_timeout=60.0,
    )
    async with tracker:
        if life.drains:
            await tracker.flush()
            return
        chance = random.Random(life.seed)
        sequences = [itertools.count() for _ in range(_PEOPLE)]
        async with asyncio.TaskGroup() as tasks:
            for _ in range(_TASKS):
                tasks.create_task(_produce(tracker, spool, traces, life, chance, sequences))


async def _produce(
    tracker: CioBatchTracker,
    spool: WatchedSpool,
    traces: Traces,
    life: Life,
    chance: random.Random,
    sequences: Sequence[Iterator[int]],
) -> None:
    this = asyncio.current_task()
    while True:
        which = chance.randrange(_PEOPLE)
        person, sequence = f"{life.number // PERIOD}-{which}", next(sequences[which])
        data = {"life": life.number, "sequence": sequence, "filling": "\u00e9x" * chance.randrange(30)}
        try:
            # Now and then a caller gives up: what it said may arrive, and nobody may count on it.
            async with asyncio.timeout(0.001 if chance.random() < 0.02 else None):
                if sequence == _DELETED_AT and life.number % PERIOD == PERIOD // 2:
                    await tracker.delete(person)
                elif chance.random() < 0.1:
                    await tracker.identify(person, data)
                else:
                    await tracker.enqueue(person, "ticked", data)
        except TimeoutError:
            traces.step("give_up", [spool.said_by[this].number])
            continue
        traces.acknowledge(spool.said_by[this])


def _end(life: Life) -> int:
    """Live; return the exit code."""
    handler = logging.FileHandler(path_of(life.directory, life.number, "log"), delay=True)
    logging.getLogger("cio_batch").addHandler(handler)
    try:
        asyncio.run(_live(life))
    except BaseException:  # noqa: BLE001 - whatever it is, the parent is to read it
        path_of(life.directory, life.number, "error").write_text(traceback.format_exc())
        return BROKEN
    return 0


def main() -> None:
    """Fork a process for each line; say its pid, then how it ended; forget it at the line after that."""
    gc.freeze()
    while line := sys.stdin.readline():
        pid = os.fork()
        if pid == 0:
            os._exit(_end(Life(**orjson.loads(line))))
        print(pid, flush=True)  # noqa: T201 - the answer to the line
        end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert end is not None
        print(end.si_status if end.si_code == os.CLD_EXITED else -end.si_status, flush=True)  # noqa: T201
        sys.stdin.readline()  # a zombie until then, so that its pid is nobody else's while the parent may kill it
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
