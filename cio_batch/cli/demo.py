"""``cio-batch demo``: watch a tracker keep its promises through every fault and a SIGTERM.

What happens: a simulator starts in this process. A child process sends events through a ``CioBatchTracker``; half-way
it gets SIGTERM while its producers run, drains, and dies of the signal. A second child sends what the first one was
not able to accept. Then what both said is compared with what the simulator has.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, Final

import attrs
import orjson

from cio_batch.cli.evidence import Evidence, Findings, judge
from cio_batch.cli.plan import Plan
from cio_batch.cli.record import Record, read_record
from cio_batch.cli.screen import Bar, Row, Screen, fault_rows
from cio_batch.cli.stopping import Stop
from cio_batch.cli.weather import BRIEF, chance, order_one
from cio_batch.simulator import KINDS, Faults, Simulator

_PRODUCERS: Final = 8
_EASE_FROM: Final = 0.85  # a first child that is faster than its parent looks slows down here
_LOOK: Final = 0.02  # seconds between two looks at the simulator
_PATIENCE: Final = 90.0  # more than a drain may take
_ORDERS_UNTIL: Final = 0.4  # share of the events by which every kind of fault has been ordered


@attrs.frozen(kw_only=True)
class Options:
    """What was asked for; the names are those of the arguments."""

    events: int
    people: int
    seed: int
    fault_rate: float
    as_json: bool
    verbose: bool


async def run(options: Options) -> int:
    """Run the demo; return the exit code."""
    screen = Screen(as_json=options.as_json)
    faults = Faults(chance(options.fault_rate), options.seed, **BRIEF)
    simulator = Simulator(faults=faults)
    with Stop() as stop, tempfile.TemporaryDirectory(prefix="cio-batch-") as directory:
        async with simulator:
            with screen.bar("shipping", options.events) as bar:
                demo = _Demo(options, simulator, Path(directory), screen, bar)
                running = asyncio.create_task(demo.run())
                stopping = asyncio.create_task(stop.wait())
                await asyncio.wait([running, stopping], return_when=asyncio.FIRST_COMPLETED)
                for task in (running, stopping):
                    task.cancel()
                await asyncio.wait([running, stopping])
            if running.cancelled():
                screen.note(f"stopped by {stop.cause}: {demo.progress}; no process is left", "yellow")
                return stop.exit_code
            evidence, seconds = running.result()
        findings = await asyncio.to_thread(judge, evidence)
    _show(screen, options, simulator, evidence, findings, seconds)
    return 1 if findings.broken else 0


class _Demo:
    """One run."""

    def __init__(self, options: Options, simulator: Simulator, directory: Path, screen: Screen, bar: Bar) -> None:
        self._options = options
        self._simulator = simulator
        self._directory = directory
        self._screen = screen
        self._bar = bar
        self._orders = list(KINDS)
        producers = min(_PRODUCERS, options.people)
        self._plan = Plan(
            events=options.events,
            people=options.people,
            seed=options.seed,
            starts=(0,) * producers,
            # Enough calls for every kind of fault, and a queue that fills: the producers feel the service.
            batch_size=max(1, min(250, options.events // 100)),
            max_pending=max(producers, min(10_000, options.events // 8)),
        )

    @property
    def progress(self) -> str:
        """How far it is, in words."""
        arrived = min(self._arrived(), self._options.events)
        return f"{arrived:,} of {self._options.events:,} events had arrived"

    async def run(self) -> tuple[Evidence, float]:
        """Run both children; return what is known then, and the seconds that it took."""
        options, plan = self._options, self._plan
        began = time.monotonic()
        complaints: list[str] = []

        self._screen.note(f"{options.events:,} events of {options.people:,} people, {options.fault_rate:.0%} faults")
        first = await self._stop_half_way(attrs.evolve(plan, ease_from=_EASE_FROM), complaints)
        starts = tuple(first.positions.get(producer, 0) for producer in range(len(plan.starts)))
        self._screen.note(
            f"the first producer is gone; it took {sum(starts):,} events and settled {len(first.settled):,}"
        )
        if sum(starts) >= options.events:
            complaints.append("the first producer had ended before SIGTERM came")

        while self._orders:  # those that the first half left no time for
            self._order_next()
        second = await self._finish(attrs.evolve(plan, starts=starts), complaints)
        seconds = time.monotonic() - began
        return self._evidence([first, second], complaints), seconds

    async def _stop_half_way(self, plan: Plan, complaints: list[str]) -> Record:
        half = self._options.events // 2
        path = self._directory / "first"
        async with self._producer(plan, path) as process:
            while process.returncode is None and self._arrived() < half:
                self._order_as_due()
                await self._look()
            arrived = self._arrived()
            if process.returncode is None:
                self._screen.note(f"SIGTERM after {arrived:,} events, in the middle of everything", "bold yellow")
                process.send_signal(signal.SIGTERM)
            await self._wait(process, complaints)
        if process.returncode != -signal.SIGTERM:
            complaints.append(f"the first producer did not end by SIGTERM but with exit code {process.returncode}")
        return _read(path, len(plan.starts), "first", complaints)

    async def _finish(self, plan: Plan, complaints: list[str]) -> Record:
        path = self._directory / "second"
        async with self._producer(plan, path) as process:
            await self._wait(process, complaints)
        if process.returncode != 0:
            complaints.append(f"the second producer ended with exit code {process.returncode}")
        return _read(path, len(plan.starts), "second", complaints)

    async def _wait(self, process: asyncio.subprocess.Process, complaints: list[str]) -> None:
        arrived, since = self._arrived(), time.monotonic()
        while process.returncode is None:
            await self._look()
            if self._arrived() != arrived:
                arrived, since = self._arrived(), time.monotonic()
            elif time.monotonic() - since > _PATIENCE:
                complaints.append(f"a producer did not end, and nothing arrived for {_PATIENCE:g} seconds")
                process.kill()
                await process.wait()
        await self._look()

    @contextlib.asynccontextmanager
    async def _producer(self, plan: Plan, path: Path) -> AsyncGenerator[asyncio.subprocess.Process]:
        environment = {name: text for name, text in os.environ.items() if not name.startswith("CUSTOMERIO_")}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "cio_batch.cli._producer",
            orjson.dumps(attrs.asdict(plan)).decode(),
            str(path),
            env=environment | self._simulator.environment,
            process_group=0,  # Ctrl-C is for this process, which ends that one
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def _look(self) -> None:
        # An event that was refused may have arrived by a repeat, and then it is in both counts.
        arrived, faults = min(self._arrived(), self._options.events), self._simulator.faults.injected.total()
        self._bar.show(arrived, f"{arrived:,}/{self._options.events:,}", f"{faults:,} faults")
        await asyncio.sleep(_LOOK)

    def _arrived(self) -> int:
        return self._simulator.workspace.applied.total() + len(self._simulator.faults.rejected_ids)

    def _order_as_due(self) -> None:
        """Spread the orders over the first part of the run."""
        ordered = len(KINDS) - len(self._orders)
        due = self._arrived() / (self._options.events * _ORDERS_UNTIL) * len(KINDS)
        for _ in range(min(len(self._orders), int(due) + 1 - ordered)):
            self._order_next()

    def _order_next(self) -> None:
        order_one(self._simulator.faults, self._orders.pop(0), self._simulator.url)

    def _evidence(self, records: list[Record], complaints: list[str]) -> Evidence:
        simulator = self._simulator
        accepted: Counter[str] = Counter()
        for record in records:
            accepted.update(record.accepted)
        return Evidence(
            planned=self._plan.totals(),
            accepted=accepted,
            settled=[settled for record in records for settled in record.settled],
            arrived={
                identifier: [(event["attributes"]["sequence"], event["id"]) for event in person.events]
                for (_, identifier), person in simulator.workspace.people.items()
            },
            refused=simulator.faults.rejected_ids,
            refused_calls=simulator.faults.injected["refuse"],
            person_overlaps=simulator.traffic.person_overlaps,
            faults=simulator.faults.injected,
            wanted_faults=KINDS,
            complaints=complaints,
        )


def _read(path: Path, producers: int, which: str, complaints: list[str]) -> Record:
    try:
        record = read_record(path) if path.exists() else Record()
    except ValueError as error:
        complaints.append(f"the record of the {which} process cannot be read: {error}")
        return Record()
    if len(record.positions) != producers:
        complaints.append(f"the {which} process has the word of {len(record.positions)} of its {producers} producers")
    return record


def _show(
    screen: Screen,
    options: Options,
    simulator: Simulator,
    evidence: Evidence,
    findings: Findings,
    seconds: float,
) -> None:
    traffic, duplicates = simulator.traffic, simulator.workspace.duplicates_ignored
    faults = {kind: evidence.faults.get(kind, 0) for kind in KINDS}
    rows: list[Row] = [
        ("accepted", findings.accepted, f"of {options.events:,}"),
        ("delivered", findings.delivered, "reported, and found at the service"),
        ("rejected", findings.rejected, f"reported; the service refused {findings.refused:,}"),
        ("failed", findings.given_up, "given up"),
        ("lost", findings.lost, "accepted, and neither delivered nor reported"),
        ("out of order", findings.out_of_order, "after a later one of the same person"),
        ("person overlaps", traffic.person_overlaps, "two calls with one person at a time"),
        ("duplicates", duplicates, "repeats that the service knew by their id"),
        ("calls", traffic.calls, ""),
        ("retried calls", traffic.retried_calls, ""),
        *fault_rows(faults.items(), verbose=options.verbose),
        ("seconds", f"{seconds:.1f}", "with both processes"),
        ("events/s", round(findings.accepted / seconds), ""),
    ]
    content: dict[str, Any] = {
        **attrs.asdict(findings, filter=lambda attribute, _: attribute.name != "broken"),
        "events": options.events,
        "people": options.people,
        "person_overlaps": traffic.person_overlaps,
        "duplicates_ignored": duplicates,
        "calls": traffic.calls,
        "retried_calls": traffic.retried_calls,
        "faults": faults,
        "seconds": round(seconds, 2),
        "broken": list(findings.broken),
    }
    title = f"{options.events:,} events of {options.people:,} people, SIGTERM half-way"
    screen.result(title, rows, content, findings.broken, (), "Every promise held.")
