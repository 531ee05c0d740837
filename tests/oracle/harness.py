"""Kills a producer again and again under faults of the service, restarts it, and looks what became of each promise.

Rules:

1. Most kills come at a random moment, from outside. The rest is aimed, so that no stage is left to luck: the process
   kills itself at a chosen step, or the service kills it while it applies what was sent.
2. The stage of a kill is found by an inquest, not by its aim: the traces of the process against a copy of the spool's
   file as it was left. One kill may catch several operations in several stages, and counts in each.
3. The end is quiet: no faults, nothing new, everything that the spool holds is sent. Then everything is judged.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import shutil
import signal
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import orjson

from cio_batch.simulator import KINDS, Faults, Kind, Simulator
from cio_batch.simulator.faults import ORDERED_ONLY
from cio_batch.simulator.keys import Operation
from cio_batch.simulator.workspace import Workspace
from tests.oracle.judge import Evidence, Findings, judge
from tests.oracle.producer import Life, path_of

STAGES: Final = ("before the commit", "between commit and acknowledgement", "mid-send", "between verdict and delete")
"""Where an operation can be when its process is killed."""

_ROOT: Final = Path(__file__).resolve().parents[2]
# The step at which a kill hits a stage for sure.
_AIMS: Final = dict(zip(STAGES, ("say", "commit", "arrive", "settle"), strict=True))
_AIMED_SHARE: Final = 0.4
_DRAINING_SHARE: Final = 0.1  # of the random kills; they hit a process that only sends what it found, and ends
_SURE_FROM: Final = 0.8  # share of the kills from which on they are aimed at a stage that is missing
_LONGEST_LIFE: Final = 0.25  # seconds until a random kill
_LONGEST_DRAIN: Final = 2.0  # likewise, of a process that empties a spool that grew too large
_PATIENCE: Final = 1.0  # seconds until an aimed kill becomes a random one
_DRAIN_PATIENCE: Final = 90.0
_PATIENCE_WITH_PROCESSES: Final = 20.0  # seconds that a process may take to begin, or to die of SIGKILL
_ENOUGH: Final = 10_000  # operations in the spool, from which on it is emptied first
_WEIGHTS: Final[dict[Kind, float]] = {
    **dict.fromkeys((kind for kind in KINDS if kind not in ORDERED_ONLY), 1.0),
    "partial": 0.3,
    "refuse": 0.3,
    "unauthorized": 0.3,
    "black_hole": 0.3,
}


class Ledger(Workspace):
    """A workspace that keeps the exact bytes of all that arrives, in order, and kills on request."""

    def __init__(self) -> None:
        super().__init__(keep=False)
        self.arrived: list[bytes] = []
        self.on_arrival: Callable[[], None] | None = None
        self._interned: dict[bytes, bytes] = {}  # a repeat costs a reference

    def apply(self, operation: Operation, raw: bytes | None = None) -> None:
        body = orjson.dumps(operation)  # compact, in the order in which it came: what the client sent
        self.arrived.append(self._interned.setdefault(body, body))
        super().apply(operation, raw)
        if self.on_arrival is not None:
            self.on_arrival()


@attrs.define
class Inquest:
    """In which stages the operations of a killed process were.

    Attributes:
        stages: How many operations by stage.
        vanished: Acknowledged, not settled, and not in the file: lost already.
        kept: Operations in the file.
        quarantined: Rows that were set aside as damaged.
    """

    stages: Counter[str]
    vanished: int
    kept: int
    quarantined: int


@attrs.define
class Result:
    """What a run of the oracle found.

    Attributes:
        kills: How many.
        aims: Them, by what they were aimed at; ``random`` for the others.
        stages: Them, by the stages of :data:`STAGES` in which they caught an operation; ``idle`` for none.
        caught: Operations by the stage in which they were caught.
        vanished: See :class:`Inquest`; summed up.
        quarantined: Likewise; the most.
        largest_spool: The most operations that a killed process left in its spool.
        duplicates_ignored: Repeats that the service knew by their id.
        person_overlaps: Calls that came while another one with the same person was being handled.
        faults: Faults by kind.
        findings: The verdict.
        left: Operations in the spool at the end.
        seconds: How long it took.
        complaints: What else went wrong.
    """

    kills: int = 0
    aims: Counter[str] = attrs.field(factory=Counter[str])
    stages: Counter[str] = attrs.field(factory=Counter[str])
    caught: Counter[str] = attrs.field(factory=Counter[str])
    vanished: int = 0
    quarantined: int = 0
    largest_spool: int = 0
    duplicates_ignored: int = 0
    person_overlaps: int = 0
    faults: dict[str, int] = attrs.field(factory=dict[str, int])
    findings: Findings | None = None
    left: int = 0
    seconds: float = 0.0
    complaints: list[str] = attrs.field(factory=list[str])

    @property
    def broken(self) -> list[str]:
        """Every promise that was not kept, in words; empty when all were."""
        broken = list(self.complaints)
        broken += [f"no kill was {stage}" for stage in STAGES if not self.stages[stage]]
        counts = {
            "vanished": self.vanished,
            "quarantined": self.quarantined,
            "left": self.left,
            "person_overlaps": self.person_overlaps,
        }
        if self.findings is not None:
            counts["duplicates_not_ignored"] = self.findings.repeated_by_id - self.duplicates_ignored
        counts |= {"lost": -1} if self.findings is None else self.findings.broken
        return broken + [f"{name}: {count}" for name, count in counts.items() if count]

    def rows(self) -> list[tuple[str, str]]:
        """The figures, for a table."""
        findings = {} if self.findings is None else attrs.asdict(self.findings)
        return [
            ("kills", f"{self.kills:,}"),
            *((f"  aimed at: {aim}", f"{count:,}") for aim, count in sorted(self.aims.items())),
            *(
                (f"  {stage}", f"{self.stages[stage]:,}   ({self.caught[stage]:,} operations)")
                for stage in (*STAGES, "idle")
            ),
            *((name.replace("_", " "), f"{count:,}") for name, count in findings.items()),
            ("vanished at a kill", f"{self.vanished:,}"),
            ("quarantined", f"{self.quarantined:,}"),
            ("left in the spool", f"{self.left:,}"),
            ("duplicates ignored by id", f"{self.duplicates_ignored:,}"),
            ("person overlaps", f"{self.person_overlaps:,}"),
            ("most operations in the spool", f"{self.largest_spool:,}"),
            ("faults of the service", f"{sum(self.faults.values()):,}"),
            ("seconds", f"{self.seconds:.1f}"),
        ]

    def content(self) -> dict[str, Any]:
        """The figures, for JSON."""
        return {**attrs.asdict(self), "broken": self.broken}


async def run(
    kills: int,
    seed: int,
    directory: Path,
    *,
    progress: Callable[[Result], None] = lambda _: None,
    lies: bool = False,
) -> Result:
    """Kill a producer ``kills`` times, and judge.

    Args:
        kills: How many.
        seed: Of everything that is left to chance, but for the timing of the machine.
        directory: An empty one, for the spool and the traces.
        progress: Called after each life.
        lies: Whether the spool breaks its promise, to see that the oracle notices.
    """
    oracle = _Oracle(seed, directory, lies=lies)
    began = time.monotonic()
    async with oracle.service, _nursery() as nursery:
        lives = itertools.count()
        while oracle.result.kills < kills:
            await oracle.kill_one(nursery, next(lives), kills)
            progress(oracle.result)
        last = next(lives)
        await oracle.drain(nursery, last)
    oracle.judge(last)
    oracle.result.seconds = time.monotonic() - began
    return oracle.result


class Nursery:
    """The process that forks those that are killed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def bear(self, life: Life) -> int:
        """Begin a life; return its pid, which is its own until :meth:`bury` has returned."""
        self._write(orjson.dumps(attrs.asdict(life)))
        return await self._read(_PATIENCE_WITH_PROCESSES)

    async def bury(self, pid: int, patience: float) -> int:
        """Wait for the end of a process, or kill it; return its exit code, negative for a signal."""
        reading = asyncio.ensure_future(self._read(patience + _PATIENCE_WITH_PROCESSES))
        if not (await asyncio.wait([reading], timeout=patience))[0]:
            os.kill(pid, signal.SIGKILL)
        code = await reading
        self._write(b"")
        return code

    async def _read(self, within: float) -> int:
        assert self._process.stdout is not None
        async with asyncio.timeout(within):
            return int(await self._process.stdout.readline())

    def _write(self, line: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + b"\n")


@contextlib.asynccontextmanager
async def _nursery() -> AsyncGenerator[Nursery]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.oracle.producer",
        cwd=_ROOT,
        env={name: text for name, text in os.environ.items() if not name.startswith("CUSTOMERIO_")},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield Nursery(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the group that this process leads, and nothing else
        await process.wait()
        if process.stdin is not None:
            process.stdin.close()


class _Oracle:
    """One run."""

    def __init__(self, seed: int, directory: Path, *, lies: bool) -> None:
        self._lies = lies
        self._kept = 0  # operations in the spool, after the last inquest
        self._chance = random.Random(seed)
        self._directory = directory
        self._ledger = Ledger()
        self.service = Simulator(faults=Faults())
        self.service.workspace = self._ledger
        self.result = Result()

    async def kill_one(self, nursery: Nursery, number: int, wanted: int) -> None:
        """One life, from its beginning to the inquest; it may end before it is killed, if it only drains."""
        chance = self._chance
        aim, times = self._choose_aim(wanted)
        is_full = self._kept > _ENOUGH
        if is_full:
            aim, times = "random", 0
        self._brew_weather((0.0,) if is_full else (0.0, 0.1, 0.3, 0.7))
        life = Life(
            number=number,
            directory=str(self._directory),
            url=self.service.url,
            seed=chance.getrandbits(32),
            max_pending=100_000 if is_full else chance.choice((40, 400, 100_000)),
            batch_size=500 if is_full else chance.choice((5, 50, 500)),
            synchronous=chance.choice(("FULL", "NORMAL")),
            dies_at=aim,
            times=times,
            drains=is_full or (aim == "random" and chance.random() < _DRAINING_SHARE),
            lies=self._lies,
        )
        pid = await nursery.bear(life)
        if aim == "random":
            longest = _LONGEST_DRAIN if is_full else _LONGEST_LIFE
            await asyncio.sleep(chance.uniform(0, longest))  # the random moment; nothing is waited for
            os.kill(pid, signal.SIGKILL)
        elif aim == "arrive":
            self._ledger.on_arrival = _Assassin(pid, times).see_arrival
        code = await nursery.bury(pid, _PATIENCE)
        self._ledger.on_arrival = None
        if life.drains and code == 0:
            self._kept = 0
            return
        self._note_end(number, code, -signal.SIGKILL)
        self.result.kills += 1
        self.result.aims["drain" if life.drains else aim] += 1
        self._hold_inquest(number)

    def _choose_aim(self, wanted: int) -> tuple[str, int]:
        """Choose at which step, and at which of them, the next process dies."""
        chance, result = self._chance, self.result
        if self._lies:
            return "arrive", chance.randrange(1, 200)  # while more is promised than sent
        missing = [stage for stage in STAGES if not result.stages[stage]]
        if missing and result.kills >= wanted * _SURE_FROM:
            return _AIMS[missing[0]], 1
        if chance.random() >= _AIMED_SHARE:
            return "random", 0
        aim = chance.choice(list(_AIMS.values()))
        return aim, chance.randrange(1, 200 if aim in ("say", "arrive") else 40)

    async def drain(self, nursery: Nursery, number: int) -> None:
        """The quiet end."""
        self.service.faults.clear()
        life = Life(number=number, directory=str(self._directory), url=self.service.url, seed=0, drains=True)
        self._note_end(number, await nursery.bury(await nursery.bear(life), _DRAIN_PATIENCE), 0)

    def judge(self, lives: int) -> None:
        """Look at everything."""
        faults, result = self.service.faults, self.result
        rejected_ids = set(faults.rejected_ids)
        refused = {orjson.dumps(operation): operation for operation in faults.refused_operations}
        with contextlib.closing(sqlite3.connect(self._directory / "events.db")) as database:
            letters = [body for (body,) in database.execute("SELECT body FROM dead_letters ORDER BY number")]
            result.left = database.execute("SELECT count(*) FROM operations").fetchone()[0]
        traces = {
            name: [body for life in range(lives) for _, body in _read(path_of(self._directory, life, name))]
            for name in ("said", "acknowledged")
        }
        result.findings = judge(
            Evidence(
                said=traces["said"],
                acknowledged=traces["acknowledged"],
                arrived=self._ledger.arrived,
                refused=refused.keys(),
                # Only of those with an id it is known whether they were refused alone.
                refused_alone={
                    body for body, each in refused.items() if "id" not in each or each["id"] in rejected_ids
                },
                dead_letters=letters,
            )
        )
        result.duplicates_ignored = self._ledger.duplicates_ignored
        result.person_overlaps = self.service.traffic.person_overlaps
        result.faults = dict(faults.injected)
        for kept in self._directory.glob("events.db.damaged*"):
            result.complaints.append(f"the spool was taken for damaged: {kept.name}")

    def _brew_weather(self, rates_of_faults: Sequence[float]) -> None:
        """Choose how the service is during the next life."""
        chance, faults = self._chance, self.service.faults
        faults.clear()
        rate = chance.choice(rates_of_faults)
        total = sum(_WEIGHTS.values())
        rates: dict[Kind, float] = {kind: rate * weight / total for kind, weight in _WEIGHTS.items()}
        faults.mix(rates, chance.getrandbits(32), latency=0.05, retry_after="0.05", partial_share=0.02)
        if chance.random() < 0.1:
            faults.order("redirect", location=f"{self.service.url}/api/v2/batch")
        if chance.random() < 0.1:
            # A success whose body breaks off: nobody may take it for one.
            faults.order("raw", headers={"Content-Type": "application/json", "Content-Length": "50"}, body=b'{"err')

    def _note_end(self, life: int, code: int, wanted: int) -> None:
        if code == wanted:
            return
        error = path_of(self._directory, life, "error")
        text = error.read_text() if error.exists() else ""
        self.result.complaints.append(f"life {life} ended with {code}, not {wanted}: {text}")

    def _hold_inquest(self, life: int) -> None:
        inquest = hold_inquest(self._directory, life)
        result = self.result
        result.stages.update({stage: 1 for stage, count in inquest.stages.items() if count} or {"idle": 1})
        result.caught.update(inquest.stages)
        self._kept = inquest.kept
        result.largest_spool = max(result.largest_spool, inquest.kept)
        result.quarantined = max(result.quarantined, inquest.quarantined)
        if inquest.vanished:
            result.vanished += inquest.vanished
            result.complaints.append(f"after life {life}, {inquest.vanished} acknowledged operations are nowhere")


class _Assassin:
    """Kills while the service applies what was sent."""

    def __init__(self, pid: int, times: int) -> None:
        self._pid = pid
        self._left = times

    def see_arrival(self) -> None:
        self._left -= 1
        if self._left == 0:
            # It may have ended by itself, which is found out soon.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)


def hold_inquest(directory: Path, life: int) -> Inquest:
    """Find out in which stages the operations of a killed process were."""
    kept, quarantined = _look_into(directory)
    said = {number for number, _ in _read(path_of(directory, life, "said"))}
    acknowledged = {number for number, _ in _read(path_of(directory, life, "acknowledged"))}
    sent: Counter[int] = Counter()
    steps: dict[str, set[int]] = {"verdict": set(), "settle": set(), "give_up": set()}
    for name, numbers in _read_steps(path_of(directory, life, "steps")):
        match name:
            case "send":
                sent.update(numbers)
            case "answer":
                sent.subtract(numbers)
            case _:
                steps[name].update(numbers)
    unsettled = said - steps["settle"]
    stages = {
        "before the commit": unsettled - kept - acknowledged,
        "between commit and acknowledgement": said - (unsettled - kept) - acknowledged - steps["give_up"],
        "mid-send": {number for number, times in sent.items() if times > 0},
        "between verdict and delete": steps["verdict"] & kept,
    }
    return Inquest(
        stages=Counter({stage: len(numbers) for stage, numbers in stages.items() if numbers}),
        vanished=len(acknowledged - steps["settle"] - kept),
        kept=len(kept),
        quarantined=quarantined,
    )


def _look_into(directory: Path) -> tuple[set[int], int]:
    """The numbers in the spool's file, and its damaged rows; by a copy, so that the next owner finds it as it is."""
    copy = directory / "copy.db"
    for side in ("", "-wal", "-shm"):
        Path(f"{copy}{side}").unlink(missing_ok=True)
    for side in ("", "-wal"):
        with contextlib.suppress(FileNotFoundError):
            shutil.copy(directory / f"events.db{side}", f"{copy}{side}")
    with contextlib.closing(sqlite3.connect(copy)) as database:
        if database.execute("PRAGMA user_version").fetchone()[0] == 0:
            return set(), 0  # killed before its tables were made
        numbers = {number for (number,) in database.execute("SELECT number FROM operations")}
        return numbers, database.execute("SELECT count(*) FROM quarantine").fetchone()[0]


def _whole_lines(path: Path) -> list[bytes]:
    if not path.exists():
        return []
    return path.read_bytes().split(b"\n")[:-1]  # what follows the last end of a line is torn, or nothing


def _read(path: Path) -> list[tuple[int, bytes]]:
    pairs = (line.split(b" ", 1) for line in _whole_lines(path))
    return [(int(number), body) for number, body in pairs]


def _read_steps(path: Path) -> list[tuple[str, list[int]]]:
    pairs = (line.decode().split(" ") for line in _whole_lines(path))
    return [(name, [int(number) for number in numbers.split(",") if number]) for name, numbers in pairs]
