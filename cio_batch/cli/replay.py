"""``cio-batch replay``: dead letters, sent again after what was wrong has been mended.

Rules:

1. They are sent as they are (the same bytes, ids and timestamps), in order per person.
2. What was delivered is removed, and what was refused again gets the new refusal into its history, as the verdicts
   come: a kill in between repeats little. What has no verdict (it was not tried, or the time was over) stays as it is.
3. It is found out beforehand whether they can be removed; if not, nothing is sent.
4. What could not be recorded is tried again, and said at the end: it would be sent a second time.
5. Nothing is sent, so nothing is removed, with ``--dry-run`` or ``CUSTOMERIO_DISABLED``.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any, Final

import attrs

from cio_batch.cli.complaints import Complaints
from cio_batch.cli.dead_letters import cannot_read, tell_unreadable
from cio_batch.cli.letters import FAULTS, Letters, Wanted, explain, open_letters
from cio_batch.cli.screen import Bar, Row, Screen
from cio_batch.cli.shipping import NO_TIME, REFUSED_FOR, Shipping
from cio_batch.cli.stopping import Stop
from cio_batch.dead_letters import DeadLetter, Refusal
from cio_batch.errors import ConfigurationError, InvalidOperationError, TrackerClosedError
from cio_batch.hooks import SettledChunk, SettledOperation
from cio_batch.settings import QUEUE_RETRY, Settings
from cio_batch.tracker import CioBatchTracker
from cio_batch.verdicts import Verdict

_MAX_PENDING: Final = 20_000
_PAGE: Final = 500  # letters read at a time
_RECORD_INTERVAL: Final = 0.5  # seconds; files are rewritten as a whole, so not for each call
_DEADLINE: Final = "deadline"  # the tracker's reason for what a drain left


@attrs.frozen(kw_only=True)
class Options:
    """What was asked for; the names are those of the arguments."""

    path: str
    wanted: Wanted
    dry_run: bool
    batch_size: int | None
    concurrency: int
    dotenv: bool
    as_json: bool


def run(options: Options) -> int:
    """Send them again; return the exit code."""
    screen = Screen(as_json=options.as_json)
    with contextlib.ExitStack() as stack:
        try:
            letters = stack.enter_context(open_letters(Path(options.path)))
            chosen = letters.choose(options.wanted)
        except FAULTS as error:
            return cannot_read(screen, options.path, error)
        if options.dry_run:
            return _say_what_would_be_sent(options, screen, letters, chosen)
        try:
            letters.check_writable()
        except FAULTS as error:
            screen.note(f"cio-batch: cannot change {options.path}, so nothing was sent: {explain(error)}", "bold red")
            return 2
        stack.enter_context(screen.library_log(muted=False))
        replay = _Replay(options, screen, letters, chosen)
        try:
            asyncio.run(replay.run())  # its end settles what a second signal left
        except ConfigurationError as error:
            screen.note(f"cio-batch: {error}", "bold red")
            return 2
        return replay.conclude()


def _say_what_would_be_sent(options: Options, screen: Screen, letters: Letters, chosen: int) -> int:
    rows: list[Row] = [("dead letters to send", chosen, "")]
    reasons: Counter[str] = Counter()
    while page := letters.take(_PAGE):
        reasons.update(letter.last.reason for letter in page)
    rows += [(f"· {reason}", count, "") for reason, count in reasons.most_common()]
    content = {"chosen": chosen, "reasons": reasons, "unreadable": letters.unreadable}
    screen.result(Path(options.path).name, rows, content, [], [], "Nothing was sent.")
    return tell_unreadable(screen, letters.unreadable)


class _Replay:
    """What became of the letters."""

    def __init__(self, options: Options, screen: Screen, letters: Letters, chosen: int) -> None:
        self._options = options
        self._screen = screen
        self._letters = letters
        self._chosen = chosen
        self._stop = Stop()
        self._waiting: dict[bytes, deque[DeadLetter]] = {}  # sent, without a verdict
        self._verdicts: Counter[Verdict] = Counter()
        self._unsettled = 0  # the time was over
        self._unsendable = 0
        self._read_error = ""
        self._complaints = Complaints("letter")
        # What is to be recorded.
        self._delivered: list[DeadLetter] = []
        self._refused: list[tuple[DeadLetter, Refusal]] = []
        self._record_error = ""
        self._tracker: CioBatchTracker | None = None
        self._shipping: Shipping | None = None
        self._began = time.monotonic()

    async def run(self) -> None:
        """Send until the end, or until it is time to stop.

        Raises:
            ConfigurationError: Credentials are missing, a setting is malformed, or sending is switched off.
        """
        settings = Settings.from_env(dotenv=self._options.dotenv, needs=("track",))
        if settings.disabled:
            msg = "CUSTOMERIO_DISABLED is set, so nothing would be sent; --dry-run says what would be"
            raise ConfigurationError(msg, ("CUSTOMERIO_DISABLED",))
        with self._stop, concurrent.futures.ThreadPoolExecutor(1, "cio-batch letters") as disk:
            tracker = self._tracker = CioBatchTracker(
                settings,
                batch_size=self._options.batch_size,
                flush_interval=1.0,
                concurrency=self._options.concurrency,
                max_pending=_MAX_PENDING,
                enqueue_timeout=None,
                retry=QUEUE_RETRY,
                drain_timeout=NO_TIME,  # when the loop ends before the drain
                handle_sigterm=False,  # the signals are ours
                on_settled=self._note_verdicts,
            )
            with self._screen.bar("sending again", self._chosen) as bar:
                self._shipping = Shipping(
                    tracker,
                    self._screen,
                    self._stop,
                    settled=self._verdicts.total,
                    show=lambda _, hindrance: self._move(bar, hindrance),
                )
                recording = asyncio.create_task(self._record_periodically(disk))
                try:
                    await self._shipping.run(self._feed(tracker, disk))
                finally:
                    recording.cancel()
                    await asyncio.wait([recording])

    async def _feed(self, tracker: CioBatchTracker, disk: concurrent.futures.Executor) -> None:
        loop = asyncio.get_running_loop()
        while not self._stop.came:
            try:
                page = await loop.run_in_executor(disk, self._letters.take, _PAGE)
            except FAULTS as error:
                self._read_error = f"reading broke off: {explain(error)}"
                break
            if not page:
                break
            for letter in page:
                if self._stop.came or not await self._send(tracker, letter):
                    return
        if not self._stop.came:
            await tracker.flush()

    async def _send(self, tracker: CioBatchTracker, letter: DeadLetter) -> bool:
        """Send one letter; return whether more can follow."""
        same = self._waiting.setdefault(letter.body, deque())
        same.append(letter)
        try:
            await tracker.resend(letter.body)
        except InvalidOperationError as error:
            same.pop()
            self._unsendable += 1
            self._complain(letter, str(error))
        except TrackerClosedError:
            same.pop()
            return False
        return True

    def _note_verdicts(self, chunk: SettledChunk) -> None:
        for operation in chunk.operations:
            same = self._waiting[operation.body]
            letter = same.popleft()
            if not same:
                del self._waiting[operation.body]
            if operation.verdict is Verdict.DELIVERED:
                self._verdicts[operation.verdict] += 1
                self._delivered.append(letter)
            elif operation.reason == _DEADLINE:
                self._unsettled += 1
            else:
                self._verdicts[operation.verdict] += 1
                self._refused.append((letter, _refusal(operation)))
                field = f", field {operation.field}" if operation.field else ""
                self._complain(letter, f"{operation.verdict} again: {operation.reason}{field}")

    def _complain(self, letter: DeadLetter, text: str) -> None:
        if note := self._complaints.add(letter.number, text):
            self._screen.note(note, "red")

    # ---------------------------------------------------------------------------------------------- the recording

    async def _record_periodically(self, disk: concurrent.futures.Executor) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_RECORD_INTERVAL)
            # Its end, if this task is cancelled meanwhile, is waited for where the executor is closed.
            await loop.run_in_executor(disk, self._record)

    def _record(self) -> None:
        """Remove and change what has its verdict; what cannot be is kept for the next time."""
        # Only what is in the lists now: the loop adds to their ends meanwhile.
        delivered, refused = self._delivered[:], self._refused[:]
        if not delivered and not refused:
            return
        try:
            self._letters.settle(delivered, refused)
        except FAULTS as error:
            if not self._record_error:
                self._screen.note(f"{self._options.path} cannot be changed: {explain(error)}; trying again", "bold red")
            self._record_error = explain(error)
        else:
            self._record_error = ""
            del self._delivered[: len(delivered)]
            del self._refused[: len(refused)]

    def _move(self, bar: Bar, hindrance: str) -> None:
        settled, delivered = self._verdicts.total(), self._verdicts[Verdict.DELIVERED]
        bar.show(settled, f"{delivered:,} of {self._chosen:,} delivered", hindrance)

    # ------------------------------------------------------------------------------------------------ the summary

    def conclude(self) -> int:
        """Record the rest, print the summary; return the exit code."""
        tracker, shipping = self._tracker, self._shipping
        if tracker is None or shipping is None:  # somebody was quicker than the start
            return self._stop.exit_code
        self._record()
        for text in self._complaints.rest():
            self._screen.note(text, "red")
        stats, seconds = tracker.stats(), time.monotonic() - self._began
        if self._read_error:
            self._screen.note(self._read_error, "bold red")
        if shipping.refusal:  # what to check, the library has said
            self._screen.note(
                f"cio-batch: gave up, because no call got through in {REFUSED_FOR:g} s ({shipping.refusal})", "bold red"
            )
        delivered, rejected = self._verdicts[Verdict.DELIVERED], self._verdicts[Verdict.REJECTED]
        failed = self._verdicts[Verdict.FAILED]
        left = self._chosen - self._verdicts.total() - self._unsendable
        unrecorded = len(self._delivered) + len(self._refused)
        rows: list[Row] = [
            ("dead letters", self._chosen, ""),
            ("delivered", delivered, "and removed"),
            ("rejected again", rejected, "kept, with the new refusal"),
            ("failed again", failed, "likewise"),
        ]
        if self._unsendable:
            rows.append(("cannot be sent", self._unsendable, "kept as they are"))
        rows.append(("left", left, self._remark_on(left)))
        if stats.last_error and delivered != self._chosen:
            rows.append(("last error", "", stats.last_error))
        rows += [("calls", stats.calls, ""), ("retried calls", stats.retries, ""), ("seconds", f"{seconds:.1f}", "")]
        content: dict[str, Any] = {
            "chosen": self._chosen,
            "delivered": delivered,
            "rejected": rejected,
            "failed": failed,
            "cannot_be_sent": self._unsendable,
            "left": left,
            "not_recorded": unrecorded,
            "unreadable": self._letters.unreadable,
            "last_error": stats.last_error,
            "calls": stats.calls,
            "retried_calls": stats.retries,
            "seconds": round(seconds, 2),
        }
        broken: list[str] = []
        if unrecorded:
            broken.append(
                f"{unrecorded:,} verdicts could not be recorded ({self._record_error}): these would be sent once more"
            )
        amiss = self._amiss(shipping, rejected + failed + self._unsendable, left)
        good = "Every dead letter was delivered." if self._chosen else "There was no dead letter to send."
        self._screen.result(Path(self._options.path).name, rows, content, broken, amiss, good)
        unreadable = tell_unreadable(self._screen, self._letters.unreadable)
        if broken or shipping.refusal or self._read_error or unreadable or rejected + failed + self._unsendable:
            return 1
        if self._stop.signum:
            return self._stop.exit_code
        return 1 if left else 0

    def _remark_on(self, left: int) -> str:
        if not left:
            return ""
        if self._unsettled:
            return f"kept as they are; {self._unsettled:,} of them were on their way, some may have arrived"
        return "kept as they are"

    def _amiss(self, shipping: Shipping, refused: int, left: int) -> list[str]:
        sentences: list[str] = []
        if self._stop.signum:
            sentences.append(f"stopped by {self._stop.cause}")
        if self._read_error:
            sentences.append("they were not read to the end")
        if shipping.refusal:
            sentences.append("nothing was delivered: the credentials were refused")
        elif refused:
            sentences.append(f"{refused:,} of {self._chosen:,} dead letters were refused again")
        if left and not sentences:  # another process removed them meanwhile
            sentences.append(f"{left:,} of {self._chosen:,} dead letters were not sent")
        return sentences


def _refusal(operation: SettledOperation) -> Refusal:
    return Refusal(
        operation.verdict.value,
        operation.reason,
        operation.field,
        operation.message,
        operation.status,
        operation.attempts,
        time.time(),
    )
