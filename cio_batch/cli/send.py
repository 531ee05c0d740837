"""``cio-batch send``: operations from an NDJSON file to Customer.io, or to a simulator of its own.

Rules:

1. The file is streamed: what is held at a time is bounded by ``_MAX_PENDING``. (With ``--simulate`` the simulator
   keeps everything, and so does the ledger: they are there to be compared.)
2. Whatever goes wrong with a line or with its operation is told by the number of the line, the same words once they
   have been said a few times at the end, and counted always. Every line that was read is in one row of the summary.
3. A signal stops the reading, and the summary says where; for the rest see :mod:`cio_batch.cli.shipping`.
4. With ``--simulate``, faults are of the kinds after which an operation still arrives: one that is refused is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any, Final

import attrs
import orjson

from cio_batch import ids
from cio_batch import operations as ops
from cio_batch.cli.complaints import Complaints
from cio_batch.cli.ledger import Comparison, Ledger
from cio_batch.cli.lines import LineError, read_line
from cio_batch.cli.reading import MAX_LINE_BYTES, Lines, read_blocks
from cio_batch.cli.screen import Bar, Row, Screen, fault_rows
from cio_batch.cli.shipping import DRAIN, NO_TIME, REFUSED_FOR, Shipping
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

_MAX_PENDING: Final = 20_000
_SIMULATED_DRAIN: Final = 30.0
_SIMULATED_BATCH: Final = 200  # so that a small file makes enough calls for the faults to meet
_LATE: Final = "{:,} without a verdict at the {}; some of them may have arrived"
_DEADLINE: Final = "deadline"  # the tracker's reason for what a drain left
_CHECKED: Final = "checked (not sent)"
_WITH_ID: Final = frozenset({"person.event", "person.page", "person.screen"})
_FAULTS: Final[tuple[Kind, ...]] = tuple(kind for kind in KINDS if kind not in REFUSING)


@attrs.frozen(kw_only=True)
class Options:
    """What was asked for; the names are those of the arguments."""

    file: str
    check: bool
    simulate: bool
    fault_rate: float
    seed: int
    batch_size: int | None
    concurrency: int
    dotenv: bool
    as_json: bool
    verbose: bool


def run(options: Options) -> int:
    """Send the file; return the exit code."""
    screen = Screen(as_json=options.as_json)
    with contextlib.ExitStack() as stack:
        try:
            file, size = _open(options.file, stack)
        except OSError as error:
            screen.note(f"cio-batch: cannot read {options.file}: {error.strerror}", "bold red")
            return 2
        stack.enter_context(screen.library_log(muted=options.simulate))
        shipment = _Shipment(options, screen)
        try:
            asyncio.run(shipment.run(file, size))  # its end settles what a second signal left
        except ConfigurationError as error:
            screen.note(f"cio-batch: {error}", "bold red")
            return 2
        return shipment.conclude()


def _open(name: str, stack: contextlib.ExitStack) -> tuple[int, int | None]:
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

    def __init__(self, options: Options, screen: Screen) -> None:
        self._options = options
        self._screen = screen
        self._stop = Stop()
        self._simulator: Simulator | None = None
        self._ledger = Ledger() if options.simulate else None
        self._lines = Lines()
        self._waiting: dict[bytes, list[int]] = {}  # the lines of operations without a verdict, by their bytes
        self._verdicts: Counter[Verdict] = Counter()
        self._bad_lines = 0
        self._too_late: list[int] = []  # lines whose operation had no verdict when the time was over
        self._complaints = Complaints()
        self._unread_from: int | None = None
        self._read_error = ""
        self._shipping: Shipping | None = None
        self._sends_nothing = False
        self._tracker: CioBatchTracker | None = None
        self._began = time.monotonic()

    async def run(self, file: int, size: int | None) -> None:
        """Read and send until the end, or until it is time to stop.

        Raises:
            ConfigurationError: Credentials are missing, or a setting is malformed.
        """
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(self._stop)
            if self._options.simulate:
                self._simulator = await stack.enter_async_context(_simulator(self._options))
            tracker = self._tracker = self._open_tracker()
            self._began = time.monotonic()
            bar = stack.enter_context(self._screen.bar("checking" if self._options.check else "sending", size))
            await self._ship(tracker, file, bar)

    def _open_tracker(self) -> CioBatchTracker:
        options = self._options
        retry, batch_size = QUEUE_RETRY, options.batch_size
        if options.check:
            settings = Settings(disabled=True)
        elif self._simulator is None:
            settings = Settings.from_env(dotenv=options.dotenv, needs=("track",))
            if settings.disabled:
                self._screen.note("CUSTOMERIO_DISABLED is set: everything is checked and counted, nothing is sent")
        else:
            settings = Settings.from_env(environ=self._simulator.environment, http=IMPATIENT_HTTP)
            retry, batch_size = PATIENT, options.batch_size or _SIMULATED_BATCH
        self._sends_nothing = settings.disabled
        return CioBatchTracker(
            settings,
            batch_size=batch_size,
            flush_interval=1.0,
            concurrency=options.concurrency,
            max_pending=_MAX_PENDING,
            enqueue_timeout=None,
            retry=retry,
            drain_timeout=NO_TIME,  # when the loop ends before the drain
            handle_sigterm=False,  # the signals are ours
            on_settled=self._note_verdicts,
        )

    async def _ship(self, tracker: CioBatchTracker, file: int, bar: Bar) -> None:
        self._shipping = Shipping(
            tracker,
            self._screen,
            self._stop,
            settled=self._verdicts.total,
            show=lambda stats, hindrance: self._move(bar, stats, hindrance),
            drain=_SIMULATED_DRAIN if self._options.simulate else DRAIN,
        )
        await self._shipping.run(self._feed(tracker, file))

    @property
    def _refusal(self) -> str:
        """Why the credentials were believed to be wrong."""
        return "" if self._shipping is None else self._shipping.refusal

    @property
    def _cut(self) -> bool:
        """Whether a second signal came before the end."""
        return self._shipping is not None and self._shipping.cut

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
            body = ops.encode(draft, now=0.0, new_id=ids.new_id).body
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
            self._waiting[body].remove(number)
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
                if operation.reason == _DEADLINE:
                    self._too_late.append(number)
                elif not self._refusal:  # then it is the same for all of them
                    self._complain(number, _say(operation))
                if self._ledger is not None:
                    self._ledger.excuse(operation.payload)

    def _complain(self, number: int, text: str) -> None:
        if note := self._complaints.add(number, text):
            self._screen.note(note, "red")

    def _move(self, bar: Bar, stats: Stats, hindrance: str) -> None:
        settled, accepted = self._verdicts.total(), stats.accepted
        done = self._verdicts[Verdict.DELIVERED]
        what = "checked" if self._sends_nothing else "delivered"
        share = settled / accepted if accepted else 1.0
        bar.show(int(self._lines.ended_bytes * share), f"{done:,} of {accepted:,} {what}", hindrance)

    # ------------------------------------------------------------------------------------------------ the summary

    def conclude(self) -> int:
        """Print the summary; return the exit code."""
        if self._tracker is None:  # somebody was quicker than the start
            return self._stop.exit_code
        stats, seconds = self._tracker.stats(), time.monotonic() - self._began
        self._give_up_rest()
        comparison = self._compare()
        broken = [] if comparison is None else comparison.broken
        if self._simulator is not None and (overlaps := self._simulator.traffic.person_overlaps):
            broken.append(f"{overlaps:,} calls carried a person whom another call still held")
        settled = self._verdicts.total()
        if settled != stats.accepted:
            broken.append(f"{stats.accepted - settled:,} operations were accepted and got no verdict")
        self._say_rest(stats)
        self._show(stats, seconds, comparison, broken)
        if broken or self._refusal or self._bad_lines or self._read_error:
            return 1
        if settled != self._verdicts[Verdict.DELIVERED]:
            return 1
        return self._stop.exit_code if self._stop.signum else 0

    def _give_up_rest(self) -> None:
        """Count what a second signal left without even the verdict that it is too late."""
        if not self._cut:
            return
        for body, numbers in self._waiting.items():
            self._too_late += numbers
            self._verdicts[Verdict.FAILED] += len(numbers)
            if self._ledger is not None:
                self._ledger.excuse(orjson.loads(body))
        self._waiting.clear()

    def _say_rest(self, stats: Stats) -> None:
        if self._too_late and not self._refusal:
            self._complaints.keep(self._too_late, f"failed: {'quit at once' if self._cut else _DEADLINE}")
        for text in self._complaints.rest():
            self._screen.note(text, "red")
        if self._too_late and stats.last_error and not self._refusal:  # what failed before said its own
            self._screen.note(f"the last error: {stats.last_error}", "red")
        if self._read_error:
            self._screen.note(self._read_error, "bold red")
        if self._refusal:  # what to check, the library has said
            self._screen.note(
                f"cio-batch: gave up, because no call got through in {REFUSED_FOR:g} s ({self._refusal})", "bold red"
            )

    def _compare(self) -> Comparison | None:
        if self._ledger is None or self._simulator is None:
            return None
        people = self._simulator.workspace.people
        return self._ledger.compare({key[1]: person.first_arrivals for key, person in people.items()})

    @property
    def _read_lines(self) -> int:
        return self._lines.number if self._unread_from is None else self._unread_from - 1

    def _show(self, stats: Stats, seconds: float, comparison: Comparison | None, broken: list[str]) -> None:
        delivered, rejected = self._verdicts[Verdict.DELIVERED], self._verdicts[Verdict.REJECTED]
        failed, lines, calls = self._verdicts[Verdict.FAILED], self._read_lines, stats.calls
        checked = 0
        if self._sends_nothing:
            delivered, checked, calls = 0, delivered, 0
        rows: list[Row] = [("lines", lines, "")]
        if self._lines.blank:
            rows.append(("blank lines", self._lines.blank, ""))
        rows += [
            ("bad lines", self._bad_lines, ""),
            ("accepted", stats.accepted, ""),
            (_CHECKED, checked, "") if self._sends_nothing else ("delivered", delivered, ""),
            ("rejected", rejected, ""),
            ("failed", failed, self._failed_remark()),
        ]
        if failed and stats.last_error:
            rows.append(("last error", "", stats.last_error))
        if self._unread_from is not None:
            rows.append(("not sent", f"from line {self._unread_from:,}", "on: it was stopped before"))
        content: dict[str, Any] = {
            "lines": lines,
            "blank_lines": self._lines.blank,
            "bad_lines": self._bad_lines,
            "accepted": stats.accepted,
            "checked": checked,
            "delivered": delivered,
            "rejected": rejected,
            "failed": failed,
            "left": len(self._too_late),
            "last_error": stats.last_error,
            "not_sent_from_line": self._unread_from,
            "calls": calls,
            "retried_calls": stats.retries,
            "seconds": round(seconds, 2),
            "broken": broken,
        }
        if comparison is not None and self._simulator is not None:
            wanted_faults = _FAULTS if self._options.fault_rate else ()
            traffic, injected = self._simulator.traffic, self._simulator.faults.injected
            duplicates = self._simulator.workspace.duplicates_ignored
            faults = {kind: injected[kind] for kind in wanted_faults}
            rows += [
                ("people", comparison.people, ""),
                ("missing", comparison.missing, f"of {comparison.expected:,} that were to arrive"),
                ("unexpected", comparison.unexpected, "arrived, and nobody sent them"),
                ("out of order", comparison.out_of_order, "after a later one of the same person"),
                ("person overlaps", traffic.person_overlaps, "two calls with one person at a time"),
                ("duplicates", duplicates, "repeats that the service knew by their id"),
                *fault_rows(faults.items(), verbose=self._options.verbose),
            ]
            content |= attrs.asdict(comparison) | {
                "person_overlaps": traffic.person_overlaps,
                "duplicates_ignored": duplicates,
                "faults": faults,
            }
        if not self._sends_nothing:
            rows += [("calls", calls, ""), ("retried calls", stats.retries, "")]
        rows.append(("seconds", f"{seconds:.1f}", ""))
        if not self._sends_nothing:
            rows.append(("operations/s", round(delivered / max(seconds, 0.001)), ""))
        source = "standard input" if self._options.file == "-" else Path(self._options.file).name
        self._screen.result(source, rows, content, broken, list(self._amiss()), self._good())

    def _failed_remark(self) -> str:
        if self._refusal:
            return "not accepted: the credentials were refused"
        if self._too_late:
            return _LATE.format(len(self._too_late), "end" if self._cut else "deadline")
        return ""

    def _amiss(self) -> Iterator[str]:
        """What did not go well although no promise broke, a sentence each."""
        verdicts, lines, bad = self._verdicts, self._read_lines, self._bad_lines
        others = verdicts.total() - verdicts[Verdict.DELIVERED]
        if self._stop.signum:
            after = "" if self._unread_from is None else f"; it was not read from line {self._unread_from:,} on"
            yield f"stopped by {self._stop.cause}{after}"
        if self._read_error:
            yield "the file was not read to its end"
        if self._refusal:
            yield f"{bad + others:,} of {lines:,} lines were not sent: the credentials were refused"
        elif others:
            counts = {"bad": bad, "rejected": verdicts[Verdict.REJECTED], "failed": verdicts[Verdict.FAILED]}
            parts = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
            yield f"{bad + others:,} of {lines:,} lines were not delivered: {parts}"
        elif bad:
            yield f"{bad:,} of {lines:,} lines {'cannot be' if self._options.check else 'were not'} sent"
        elif not verdicts:
            yield "nothing was sent: there was no operation to send"

    def _good(self) -> str:
        if self._options.check:
            return "Every line can be sent; nothing was."
        if self._sends_nothing:
            return "Every line was checked; nothing was sent."
        if self._simulator is None:
            return "Every line was delivered."
        return "Every accepted operation arrived exactly once, and each person's in the order of the file."


def _read(line: bytes | None) -> Draft:
    if line is None:
        message = f"is longer than {MAX_LINE_BYTES:,} bytes"
        raise LineError(message)
    draft = read_line(line)
    if draft.kind in _WITH_ID:
        if draft.id is None:
            draft.id = ids.new_id()
        if draft.timestamp is None:
            draft.timestamp = int(time.time())
    return draft


def _say(operation: SettledOperation) -> str:
    field = f", field {operation.field}" if operation.field else ""
    status = f" (status {operation.status})" if operation.status and "status" not in operation.reason else ""
    return f"{operation.verdict}: {operation.reason}{field}{status}"
