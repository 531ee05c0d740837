"""``cio-batch send``: operations from an NDJSON file to Customer.io, or to a simulator of its own.

Rules:

1. The file is streamed: what is held at a time is bounded by ``_MAX_PENDING``. (With ``--simulate`` the simulator
   keeps everything, and so does the ledger: they are there to be compared.)
2. Whatever goes wrong with a line or with its operation is told by the number of the line, at most ``_MAX_PRINTED``
   times, and counted always.
3. A signal stops the reading; what was accepted is drained, and the summary says where the reading stopped.
4. With ``--simulate``, faults are of the kinds after which an operation still arrives: one that is refused is refused.
5. Credentials that are refused from the first call on are taken for wrong ones: nobody wants a command that waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import time
from collections import Counter
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, Final

import attrs
from ulid_transform import ulid_now

from cio_batch import operations as ops
from cio_batch.cli.ledger import Comparison, Ledger
from cio_batch.cli.lines import LineError, read_line
from cio_batch.cli.reading import MAX_LINE_BYTES, Lines, read_blocks
from cio_batch.cli.screen import Bar, Row, Screen
from cio_batch.cli.stopping import Stop
from cio_batch.cli.weather import BRIEF, IMPATIENT_HTTP, PATIENT, REFUSING, chance, order_one
from cio_batch.errors import ConfigurationError, InvalidOperationError, TrackerClosedError
from cio_batch.hooks import SettledChunk, SettledOperation
from cio_batch.operations import Draft
from cio_batch.settings import QUEUE_RETRY, Settings
from cio_batch.simulator import KINDS, Faults, Kind, Simulator
from cio_batch.stats import Stats
from cio_batch.tracker import CioBatchTracker
from cio_batch.verdicts import Verdict

_MAX_PRINTED: Final = 20
_MAX_PENDING: Final = 20_000
_LOOK: Final = 0.1  # seconds between two looks at the tracker
_REFUSED_FOR: Final = 3.0  # seconds after which refused credentials are believed to be wrong
_NO_TIME: Final = 0.1
_SIMULATED_BATCH: Final = 200  # so that a small file makes enough calls for the faults to meet
_LATE: Final = "{:,} without a verdict at the deadline; some of them may have arrived"
_WITH_ID: Final = frozenset({"person.event", "person.page", "person.screen"})
_FAULTS: Final[tuple[Kind, ...]] = tuple(kind for kind in KINDS if kind not in REFUSING)


@attrs.frozen(kw_only=True)
class Options:
    """What was asked for; the names are those of the arguments."""

    file: str
    simulate: bool
    fault_rate: float
    seed: int
    batch_size: int | None
    concurrency: int
    dotenv: bool
    as_json: bool


async def run(options: Options) -> int:
    """Send the file; return the exit code."""
    screen = Screen(as_json=options.as_json)
    async with contextlib.AsyncExitStack() as stack:
        try:
            file, size = _open(options.file, stack)
        except OSError as error:
            screen.note(f"cio-batch: cannot read {options.file}: {error.strerror}", "bold red")
            return 2
        stop = stack.enter_context(Stop())
        simulator = None
        if options.simulate:
            simulator = await stack.enter_async_context(_simulator(options))
        shipment = _Shipment(options, screen, stop, simulator)
        try:
            tracker = shipment.open_tracker()
        except ConfigurationError as error:
            screen.note(f"cio-batch: {error}", "bold red")
            return 2
        stack.enter_context(screen.library_log(muted=simulator is not None))
        began = time.monotonic()
        with screen.bar("sending", size) as bar:
            await shipment.ship(tracker, file, bar)
        return shipment.conclude(tracker.stats(), time.monotonic() - began)


def _open(name: str, stack: contextlib.ExitStack | contextlib.AsyncExitStack) -> tuple[int, int | None]:
    """Open the file; return its descriptor, and its size in bytes where that is known."""
    if name == "-":
        return 0, None
    file = os.open(Path(name), os.O_RDONLY)
    stack.callback(os.close, file)
    if Path(name).is_dir():
        raise IsADirectoryError(errno.EISDIR, "it is a directory")
    return file, os.fstat(file).st_size or None


@contextlib.asynccontextmanager
async def _simulator(options: Options) -> AsyncGenerator[Simulator]:
    faults = Faults(chance(options.fault_rate, _FAULTS), options.seed, **BRIEF)
    async with Simulator(faults=faults) as simulator:
        if options.fault_rate:
            for kind in _FAULTS:
                order_one(faults, kind, simulator.url)
        yield simulator


class _Shipment:
    """What became of one file."""

    def __init__(self, options: Options, screen: Screen, stop: Stop, simulator: Simulator | None) -> None:
        self._options = options
        self._screen = screen
        self._stop = stop
        self._simulator = simulator
        self._ledger = Ledger() if simulator is not None else None
        self._lines = Lines()
        self._waiting: dict[bytes, list[int]] = {}  # the lines of operations without a verdict, by their bytes
        self._verdicts: Counter[Verdict] = Counter()
        self._bad_lines = 0
        self._too_late = 0  # operations that had no verdict at the deadline
        self._printed = 0
        self._unread_from: int | None = None
        self._read_error = ""
        self._refusal = ""

    def open_tracker(self) -> CioBatchTracker:
        """Make the tracker.

        Raises:
            ConfigurationError: Credentials are missing, or a setting is malformed.
        """
        options = self._options
        if self._simulator is None:
            settings, retry, drain_timeout = Settings.from_env(dotenv=options.dotenv), QUEUE_RETRY, 10.0
            batch_size = options.batch_size
        else:
            settings = Settings.from_env(environ=self._simulator.environment, http=IMPATIENT_HTTP)
            retry, drain_timeout = PATIENT, 30.0
            batch_size = options.batch_size or _SIMULATED_BATCH
        if settings.disabled:
            self._screen.note("CUSTOMERIO_DISABLED is set: everything is checked and counted, nothing is sent")
        return CioBatchTracker(
            settings,
            batch_size=batch_size,
            flush_interval=1.0,
            concurrency=options.concurrency,
            max_pending=_MAX_PENDING,
            enqueue_timeout=None,
            retry=retry,
            drain_timeout=drain_timeout,
            on_settled=self._note_verdicts,
        )

    async def ship(self, tracker: CioBatchTracker, file: int, bar: Bar) -> None:
        """Read and send until the end, or until it is time to stop."""
        async with tracker:
            feeding = asyncio.create_task(self._feed(tracker, file))
            stopping = asyncio.create_task(self._stop.wait())
            watching = asyncio.create_task(self._watch(tracker, bar))
            try:
                await asyncio.wait([feeding, stopping], return_when=asyncio.FIRST_COMPLETED)
                if self._stop.signum:
                    self._screen.note("stopping: what was accepted is sent first; once more to quit at once", "yellow")
                # It also turns away the feeder, should it be waiting for room.
                await tracker.close(_NO_TIME if self._refusal else None)
                await feeding
            finally:
                for task in (feeding, stopping, watching):
                    task.cancel()
                await asyncio.wait([feeding, stopping, watching])

    async def _feed(self, tracker: CioBatchTracker, file: int) -> None:
        try:
            async with contextlib.aclosing(read_blocks(file, self._stop)) as blocks:
                async for block in blocks:
                    for number, line in self._lines.split(block):
                        if not await self._take(tracker, number, line):
                            return
        except OSError as error:
            self._read_error = f"reading broke off after line {self._lines.number:,}: {error.strerror}"
        if self._stop.came:
            self._unread_from = self._lines.number + 1
            return
        for number, line in self._lines.end():
            if not await self._take(tracker, number, line):
                return
        await tracker.flush()

    async def _take(self, tracker: CioBatchTracker, number: int, line: bytes | None) -> bool:
        """Send one line; return whether more can follow."""
        if self._stop.came:
            self._unread_from = number
            return False
        try:
            draft = _read(line)
            # Its id and timestamp stand, so these are the very bytes that the tracker will make of it.
            body = ops.encode(draft, now=0.0, new_id=ulid_now)[0]
        except (LineError, InvalidOperationError) as error:
            self._bad_lines += 1
            self._complain(number, str(error))
            return True
        self._waiting.setdefault(body, []).append(number)
        if self._ledger is not None:
            self._ledger.add(draft)
        try:
            await tracker.submit(draft)
        except TrackerClosedError:
            self._unread_from = number
            if self._ledger is not None:
                self._ledger.excuse(draft)
            return False
        return True

    def _note_verdicts(self, chunk: SettledChunk) -> None:
        for operation in chunk.operations:
            numbers = self._waiting[operation.body]
            number = numbers.pop(0)
            if not numbers:
                del self._waiting[operation.body]
            self._verdicts[operation.verdict] += 1
            if operation.verdict is not Verdict.DELIVERED:
                self._too_late += operation.reason == "deadline"
                if not self._refusal:  # then it is the same for all of them
                    self._complain(number, _say(operation))
                if self._ledger is not None:
                    self._ledger.excuse(operation.payload)

    def _complain(self, number: int, text: str) -> None:
        self._printed += 1
        if self._printed <= _MAX_PRINTED:
            self._screen.note(f"line {number}: {text}", "red")

    async def _watch(self, tracker: CioBatchTracker, bar: Bar) -> None:
        """Move the progress bar, and notice credentials that are refused from the beginning."""
        paused_since = None
        while True:
            stats = tracker.stats()
            bar.show(
                self._lines.read_bytes,
                f"{stats.delivered:,} of {stats.accepted:,} delivered",
                f"paused: {stats.paused}" if stats.paused else "",
            )
            now = time.monotonic()
            if stats.paused is None or self._verdicts:
                paused_since = None
            elif paused_since is None:
                paused_since = now
            elif now - paused_since >= _REFUSED_FOR and not self._stop.came:
                self._refusal = stats.paused
                self._stop.now()
            await asyncio.sleep(_LOOK)

    # ------------------------------------------------------------------------------------------------ the summary

    def conclude(self, stats: Stats, seconds: float) -> int:
        """Print the summary; return the exit code."""
        comparison = self._compare()
        broken = [] if comparison is None else comparison.broken
        if self._simulator is not None and (overlaps := self._simulator.traffic.person_overlaps):
            broken.append(f"{overlaps:,} calls carried a person whom another call still held")
        settled = self._verdicts.total()
        if settled != stats.accepted:
            broken.append(f"{stats.accepted - settled:,} operations were accepted and got no verdict")
        hidden = self._printed - _MAX_PRINTED
        if hidden > 0:
            self._screen.note(f"… and {hidden:,} more", "red")
        if self._read_error:
            self._screen.note(self._read_error, "bold red")
        if self._refusal:
            self._screen.note(
                f"cio-batch: Customer.io refuses these credentials ({self._refusal}): check CUSTOMERIO_SITE_ID, "
                "CUSTOMERIO_TRACK_API_KEY and CUSTOMERIO_REGION",
                "bold red",
            )
        self._show(stats, seconds, comparison, broken)
        unwell = self._bad_lines or self._read_error or settled != self._verdicts[Verdict.DELIVERED]
        if broken:
            return 1
        if self._refusal:
            return 2
        if self._stop.signum:
            return self._stop.exit_code
        return 1 if unwell else 0

    def _compare(self) -> Comparison | None:
        if self._ledger is None or self._simulator is None:
            return None
        people = self._simulator.workspace.people
        return self._ledger.compare({key[1]: person.first_arrivals for key, person in people.items()})

    def _show(self, stats: Stats, seconds: float, comparison: Comparison | None, broken: list[str]) -> None:
        delivered, rejected = self._verdicts[Verdict.DELIVERED], self._verdicts[Verdict.REJECTED]
        failed = self._verdicts[Verdict.FAILED]
        rows: list[Row] = [
            ("lines", self._lines.number, ""),
            ("bad lines", self._bad_lines, ""),
            ("accepted", stats.accepted, ""),
            ("delivered", delivered, ""),
            ("rejected", rejected, ""),
            ("failed", failed, _LATE.format(self._too_late) if self._too_late else ""),
        ]
        if self._unread_from is not None:
            rows.append(("not sent", f"from line {self._unread_from:,}", "on: it was stopped before"))
        content: dict[str, Any] = {
            "lines": self._lines.number,
            "bad_lines": self._bad_lines,
            "accepted": stats.accepted,
            "delivered": delivered,
            "rejected": rejected,
            "failed": failed,
            "left": self._too_late,
            "not_sent_from_line": self._unread_from,
            "calls": stats.calls,
            "retried_calls": stats.retries,
            "seconds": round(seconds, 2),
            "broken": broken,
        }
        good = ""
        if comparison is not None and self._simulator is not None:
            if delivered == stats.accepted:
                good = "Every accepted operation arrived exactly once, and each person's in the order of the file."
            wanted_faults = _FAULTS if self._options.fault_rate else ()
            traffic, faults = self._simulator.traffic, self._simulator.faults.injected
            duplicates = self._simulator.workspace.duplicates_ignored
            rows += [
                ("people", comparison.people, ""),
                ("missing", comparison.missing, f"of {comparison.expected:,} that were to arrive"),
                ("unexpected", comparison.unexpected, "arrived, and nobody sent them"),
                ("out of order", comparison.out_of_order, "after a later one of the same person"),
                ("person overlaps", traffic.person_overlaps, "two calls with one person at a time"),
                ("duplicates", duplicates, "repeats that the service knew by their id"),
                *((f"fault {kind}", faults[kind], "") for kind in wanted_faults),
            ]
            content |= attrs.asdict(comparison) | {
                "person_overlaps": traffic.person_overlaps,
                "duplicates_ignored": duplicates,
                "faults": {kind: faults[kind] for kind in wanted_faults},
            }
        rows += [
            ("calls", stats.calls, ""),
            ("retried calls", stats.retries, ""),
            ("seconds", f"{seconds:.1f}", ""),
            ("operations/s", round(delivered / max(seconds, 0.001)), ""),
        ]
        source = "standard input" if self._options.file == "-" else Path(self._options.file).name
        self._screen.result(source, rows, content, broken, good)


def _read(line: bytes | None) -> Draft:
    if line is None:
        message = f"is longer than {MAX_LINE_BYTES:,} bytes"
        raise LineError(message)
    draft = read_line(line)
    if draft.kind in _WITH_ID:
        if draft.id is None:
            draft.id = ulid_now()
        if draft.timestamp is None:
            draft.timestamp = int(time.time())
    return draft


def _say(operation: SettledOperation) -> str:
    field = f", field {operation.field}" if operation.field else ""
    status = f" (status {operation.status})" if operation.status and "status" not in operation.reason else ""
    return f"{operation.verdict}: {operation.reason}{field}{status}"
