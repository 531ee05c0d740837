"""``SqliteSpool``: a spool in a file of this machine, written by one thread of its own.

Rules:

1. One thread owns the connection. It takes all that was said meanwhile and writes it in one transaction (group
   commit): while it waits for the disk, the next group gathers.
2. An operation is reported as written only after its transaction was committed.
3. What must not be forgotten (acknowledgements, dead letters) and could not be written is written with the next
   transaction, or by itself after a second. It is never tried in a loop without a wait. If it never can be, those
   operations are sent again after the next start.
4. A damaged file is rebuilt from what can be read, at most once a minute, and kept under another name. A file that was
   removed or replaced while it was open is written anew from the connection, which still reads the old one.
5. A fault does not end the thread: it is reported, what was to be appended is refused, and the next attempt opens the
   file again if it must. Once the thread has ended, everything that is still said to it is refused.

Must not know: transports, verdicts, the tracker's queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Generic, TypeAlias, TypeVar, cast, get_args

import attrs

from cio_batch import operations as ops
from cio_batch.dead_letters import Refusal
from cio_batch.errors import ConfigurationError, SpoolError, whereabouts
from cio_batch.operations import Key, Operation, PersonId
from cio_batch.spools.base import Contents, Page, Receive, Written
from cio_batch.spools.database import (
    SQLITE_FAULTS,
    Database,
    Row,
    Synchronous,
    describe,
    is_busy,
    is_corrupt,
    is_full,
    is_passing,
)
from cio_batch.spools.ownership import Ownership
from cio_batch.spools.recovery import finish, is_log_damaged, rebuild

_logger = logging.getLogger(__name__)

T = TypeVar("T")
Purged: TypeAlias = Callable[[Sequence[int]], None]

_MAX_GROUP: Final = 5_000  # operations in one transaction
_MAX_MESSAGE: Final = 1_000  # operations in one message to the thread
_PIECE: Final = 50  # acknowledgements in one transaction when the disk is full
_BUSY: Final = 16  # operations in one transaction, from which on the file is looked for less often
_LOOK_INTERVAL: Final = 0.02  # seconds between two such looks
_RETRY_INTERVAL: Final = 1.0  # seconds until what could not be written is tried again
_REBUILD_INTERVAL: Final = 60.0  # seconds from one rebuild of a damaged file to the next
_FORK_PATIENCE: Final = 2.0  # seconds that a fork waits for a transaction to end
_OPEN_TIMEOUT: Final = 300.0  # seconds; a file of 1 GB is checked in two, and rebuilt in about sixty
_FAULTS: Final = (*SQLITE_FAULTS, OSError)


@attrs.frozen
class _Acknowledge:
    numbers: Sequence[int]


@attrs.frozen
class _Bury:
    refusals: Sequence[tuple[int, Refusal]]


@attrs.frozen(eq=False)
class _Ask(Generic[T]):
    """Something to do with the database between two transactions, and who waits for what comes of it."""

    do: Callable[[Database], T]
    answer: asyncio.Future[T]


@attrs.frozen(eq=False)
class _Stop:
    """Write what was said before, and end; who waits learns whether all of it was written."""

    answer: asyncio.Future[bool]


_Said: TypeAlias = list[Operation] | _Acknowledge | _Bury | _Ask[Any] | _Stop


class SqliteSpool:
    """Keeps accepted operations in a SQLite file until the service has decided on them.

    With it, ``await tracker.enqueue(...)`` returns once the operation is on disk, and an outage, a crash or a kill
    costs none that was acknowledged. Operations, and those that were refused (dead letters), stand in the file in
    plain JSON; it is made with mode 0600.

    One tracker owns the file, by a lock on ``<path>.lock``; the workers of a server need a file each.

    Args:
        path: The file; its directory must exist.
        synchronous: ``"FULL"`` waits for the disk at each commit, so that a loss of power costs nothing either.
            ``"NORMAL"`` survives the death of the process only, and is about twice as fast.
        max_bytes: What operations and dead letters may take on disk; then the tracker's overflow policy applies. The
            write-ahead log comes on top, a few MB as a rule.
        max_age: Seconds after which an operation that could not be delivered becomes a dead letter (reason
            ``max_age``); ``None`` for never.

    Raises:
        ConfigurationError: An argument is out of range.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        synchronous: Synchronous = "FULL",
        max_bytes: int = 1_000_000_000,
        max_age: float | None = None,
    ) -> None:
        faults: list[tuple[str, str]] = []
        if not isinstance(cast("object", path), (str, os.PathLike)) or not os.fspath(path):
            faults.append(("path", "must be the name of a file"))
        if synchronous not in get_args(Synchronous):
            faults.append(("synchronous", f"must be one of {', '.join(get_args(Synchronous))}"))
        if type(max_bytes) is not int or max_bytes < 1_000_000:
            faults.append(("max_bytes", "must be a whole number of at least 1000000"))
        if max_age is not None and (type(max_age) not in (int, float) or not 0 < max_age < float("inf")):
            faults.append(("max_age", "must be None or a finite number above 0"))
        if faults:
            text = "; ".join(f"{name} {fault}" for name, fault in faults)
            raise ConfigurationError(text, tuple(name for name, _ in faults))
        # Absolute, because a service may change its directory after this.
        self._path = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would look at the disk
        self._synchronous: Synchronous = synchronous
        self._max_bytes = max_bytes
        self._max_age = max_age
        self._writer: _Writer | None = None

    def __repr__(self) -> str:
        return f"<SqliteSpool {self._path.name}>"

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    @property
    def max_bytes(self) -> int:
        """What it may take on disk."""
        return self._max_bytes

    @property
    def max_age(self) -> float | None:
        """Seconds after which an operation becomes a dead letter."""
        return self._max_age

    async def open(self, receive: Receive, purged: Purged) -> Contents:
        """Open the file and start the thread; see :class:`~cio_batch.spools.Spool`.

        Cancellation: The file may stay open; ``close`` closes it.
        """
        writer = self._writer
        if writer is not None and not writer.has_ended:
            msg = f"the spool {self._path.name} is open already: one tracker uses a spool at a time"
            if not writer.is_abandoned or not await self.close() or self._writer is not None:
                raise SpoolError(msg)
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[Contents] = loop.create_future()
        self._writer = writer = _Writer(self._path, self._synchronous, loop, opened, receive, purged)
        writer.start()
        try:
            return await asyncio.wait_for(opened, _OPEN_TIMEOUT)
        except TimeoutError:
            writer.say(_Stop(loop.create_future()))
            msg = f"the spool {self._path.name} could not be opened within {_OPEN_TIMEOUT:g} s"
            raise SpoolError(msg) from None

    def append(self, operation: Operation) -> None:
        """Write an operation; see :class:`~cio_batch.spools.Spool`."""
        writer = self._writer or self._running()
        writer.gathered.append(operation)
        if not writer.hears:
            writer.hear_soon()

    def acknowledge(self, numbers: Sequence[int]) -> None:
        """Remove operations; see :class:`~cio_batch.spools.Spool`."""
        self._running().say(_Acknowledge(numbers))

    def bury(self, refusals: Sequence[tuple[int, Refusal]]) -> None:
        """Make dead letters; see :class:`~cio_batch.spools.Spool`."""
        self._running().say(_Bury(refusals))

    async def read(self, after: int, most: int, most_bytes: int) -> Page:
        """Read operations; see :class:`~cio_batch.spools.Spool`."""
        writer = self._running()
        return await writer.ask(lambda database: writer.read(database, after, most, most_bytes))

    async def last_before(self, moment: float) -> int:
        """Say which operations are older; see :class:`~cio_batch.spools.Spool`."""
        return await self._running().ask(lambda database: database.last_before(moment))

    async def purge(self, person: PersonId) -> int:
        """Remove a person's operations and dead letters, as a request for deletion demands.

        What is in a call at this moment is not held back. Someone who was tracked under an id and under an email is
        two persons here: purge both. The file is rewritten, so that no byte of them stays in it; a damaged file that
        was kept beside it (``<name>.damaged-…``) is not touched: delete it when you need it no more.

        Args:
            person: The identifier as it was given to the tracker.

        Returns:
            How many operations and dead letters were removed.

        Raises:
            InvalidOperationError: That is no identifier.
            SpoolError: The spool is not open (start its tracker, or use ``cio-batch purge``), or cannot be written.
                What was removed stays removed; call it again, so that the file is rewritten.
        """
        keys = frozenset({ops.key_of(person)})
        writer = self._running()
        count = await writer.ask(lambda database: writer.purge(database, keys))
        await writer.ask(lambda database: database.scrub())
        writer.say(_Acknowledge(()))  # the next report tells how much room that made
        return count

    async def close(self, timeout: float = 5.0) -> bool:
        """Write all that was said and close the file; see :class:`~cio_batch.spools.Spool`."""
        writer = self._writer
        if writer is None:
            return True
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        writer.say(_Stop(answer))
        await asyncio.wait([answer], timeout=max(0.0, timeout))  # no thread of the executor's: they may all be busy
        if not answer.done():
            return False
        if self._writer is writer:
            self._writer = None
        return answer.result()

    def forget_parent(self) -> None:
        """Let go of the parent's file; called after a fork."""
        if self._writer is not None:
            _inherited.append(self._writer)  # to collect its connection would touch the parent's file
            self._writer.let_go()
            self._writer = None

    def _running(self) -> _Writer:
        if self._writer is None:
            msg = f"the spool {self._path.name} is not open: it opens when its tracker starts"
            raise SpoolError(msg)
        return self._writer


_inherited: Final[list[_Writer]] = []
_writers: Final[weakref.WeakSet[_Writer]] = weakref.WeakSet()
_paused: Final[list[_Writer]] = []


def _pause_writers() -> None:
    """No fork in the midst of SQLite: the child would inherit its locks, taken, and could open no database any more."""
    for writer in list(_writers):
        if writer.at_work.acquire(timeout=_FORK_PATIENCE):
            _paused.append(writer)


def _resume_writers() -> None:
    while _paused:
        _paused.pop().at_work.release()


os.register_at_fork(before=_pause_writers, after_in_parent=_resume_writers, after_in_child=_paused.clear)


class _Writer:
    """The thread, and what is said to it."""

    def __init__(
        self,
        path: Path,
        synchronous: Synchronous,
        loop: asyncio.AbstractEventLoop,
        opened: asyncio.Future[Contents],
        receive: Receive,
        purged: Purged,
    ) -> None:
        self._path = path
        self._synchronous: Synchronous = synchronous
        self._loop = loop
        self._opened = opened
        self._receive = receive
        self._purged = purged
        self._inbox: queue.SimpleQueue[_Said] = queue.SimpleQueue()
        self._reports: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self.gathered: list[Operation] = []  # to be appended: what came in this turn of the loop
        self.hears = False  # at the end of this turn
        self._has_skipped_look = False  # at the files
        self._looked_at_files = self._looked_at_size = -math.inf
        self._owed: list[_Acknowledge | _Bury] = []
        self._stops: list[_Stop] = []
        self._ownership: Ownership | None = None
        self._database: Database | None = None
        self._files: dict[Path, tuple[int, int] | None] = {}
        self._fault: str | None = None
        self._is_stale = False  # the connection is to be opened again before the next transaction
        self._is_damaged = False
        self._mend_after = self._rebuild_after = -math.inf
        self._last_error: SpoolError | None = None
        self._known_bad: set[int] = set()  # damaged rows that could not be moved: each is reported as lost once
        self._picture = Written(0, None, 0, 0, 0)
        self.has_ended = False
        self.at_work = threading.Lock()  # held while the thread is in SQLite or the disk
        # A daemon: what is written is safe, and a thread that is stuck in the disk must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name="cio_batch spool", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        _writers.add(self)
        self._thread.start()

    @property
    def is_abandoned(self) -> bool:
        """Whether the loop that it reports to was closed without closing the spool."""
        return self._loop.is_closed()

    def hear_soon(self) -> None:
        """At the end of this turn, tell the thread what was gathered, and hear what it reports.

        A message wakes a thread that waits, and it would stand in the loop's way to get the GIL. And for the thread, to
        wake the loop is a system call, after which it would wait for the GIL as long as the turn takes.
        """
        self.hears = True
        self._loop.call_soon(self._hear)

    def say(self, said: _Said) -> None:
        """Tell the thread something; what is said after its end is refused."""
        self._hand_over()  # what was said before comes before
        self._put(said)

    def _hand_over(self) -> None:
        if self.gathered:
            gathered, self.gathered = self.gathered, []
            for start in range(0, len(gathered), _MAX_MESSAGE):
                self._put(gathered[start : start + _MAX_MESSAGE])

    def _put(self, said: _Said) -> None:
        self._inbox.put(said)
        if self.has_ended:  # in this order, so that one of the two sees what the other did
            self._refuse_rest()

    def let_go(self) -> None:
        """Close what a child process inherited of the lock, which is the parent's."""
        if self._ownership is not None:
            self._ownership.release()

    async def ask(self, do: Callable[[Database], T]) -> T:
        """Let the thread do something, and return what comes of it."""
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.say(_Ask(do, answer))
        return await answer

    def _hear(self) -> None:
        self.hears = False  # first, so that one of the two sees what the other did
        self._hand_over()
        try:
            while self._reports:
                call, arguments = self._reports.popleft()
                call(*arguments)
        finally:
            if self._reports:
                self.hear_soon()

    # ------------------------------------------------------------------------------------------ inside the thread

    def read(self, database: Database, after: int, most: int, most_bytes: int) -> Page:
        """Read operations, and set aside what is none any more."""
        lost = 0
        while True:
            operations, bad = database.page(after, most, most_bytes)
            new = [row for row in bad if row.number not in self._known_bad]
            lost += len(new)
            if new:
                self._set_aside(database, new)
            if operations or not bad:
                return Page(operations, lost)
            after = max(int(row.number) for row in bad)

    def _set_aside(self, database: Database, rows: Sequence[Row]) -> None:
        where = "they were moved into its table quarantine"
        try:
            database.set_aside(rows, "damaged", time.time())
        except _FAULTS as error:
            if is_corrupt(error):
                raise
            self._known_bad.update(int(row.number) for row in rows)
            where = "they stay where they are, because it cannot be written"
        self._picture = attrs.evolve(self._picture, quarantined=database.quarantined)
        _logger.error("%d rows of the spool %s are damaged and are not sent: %s", len(rows), self._path.name, where)

    def purge(self, database: Database, keys: frozenset[Key]) -> int:
        """Remove what is about some persons, and tell the tracker."""
        numbers, dead = database.purge(keys)
        if numbers:
            self._post(self._loop, self._purged, numbers)
        return len(numbers) + dead

    def _run(self) -> None:
        with self.at_work:
            self._work()

    def _work(self) -> None:
        failure: SpoolError | None = None
        try:
            # Two names that lead to one file are one spool.
            self._path = Path(os.path.realpath(self._path))
            self._ownership = Ownership.take(self._path)
            self._database = self._open(check=True)
            contents = self._look(self._database)
            self._post(self._loop, _succeed, self._opened, contents)
            self._serve()
            self._look_at_last()
        except (SpoolError, *_FAULTS) as error:
            failure = self._as_spool_error(error)
        except BaseException as error:  # noqa: BLE001 - nobody above: it would end in the hook for broken threads
            _logger.error("the thread of the spool %s broke: %s", self._path.name, whereabouts(error))
            failure = SpoolError(f"the spool {self._path.name} broke ({type(error).__name__})")
        self._close_database()
        if self._owed:
            _logger.error(
                "the spool %s was closed before all that was decided could be written (%s): those operations are sent "
                "again after the next start",
                self._path.name,
                self._fault,
            )
        if self._ownership is not None:
            self._ownership.release()
        self.has_ended = True
        if failure is not None:
            self._post(self._loop, _fail, self._opened, failure)
        self._refuse_rest()

    # ----------------------------------------------------------------------------------------------- the file

    def _open(self, *, check: bool) -> Database:
        """Open the file, and rebuild it if it is damaged or of an earlier version."""
        finish(self._path)
        if not self._is_damaged and not (check and is_log_damaged(self._path)):
            try:
                database = Database(self._path, synchronous=self._synchronous)
                try:
                    if not check or (database.is_current and database.is_sound()):
                        self._remember_files()
                        return database
                except BaseException:
                    database.close()
                    raise
                database.close()
            except SQLITE_FAULTS as error:
                if not is_corrupt(error):
                    raise
        now = time.monotonic()
        if now < self._rebuild_after:
            msg = f"the spool {self._path.name} is damaged again: it is rebuilt once in {_REBUILD_INTERVAL:g} s"
            raise SpoolError(msg)
        self._rebuild_after = now + _REBUILD_INTERVAL
        self._is_damaged = True
        rebuild(self._path, None, time.time())
        finish(self._path)
        self._is_damaged = False
        database = Database(self._path, synchronous=self._synchronous)
        self._remember_files()
        return database

    def _close_database(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            with contextlib.suppress(*_FAULTS):
                database.close()

    def _mend(self, *, to_write: bool, busy: bool = False) -> Database:
        """Return the database; open it again, or write it anew, if something is in the way: once a second at most."""
        usable, gone, stale = self._database is not None and not self._is_damaged, False, False
        if usable and to_write:
            stale = self._is_stale
            # Each look gives the GIL away five times, which costs a third of the throughput. What is committed until
            # the next one stands in the file that the connection has open, and is written anew from there.
            if stale or not busy or time.monotonic() - self._looked_at_files >= _LOOK_INTERVAL:
                gone = self._files != self._look_at_files()
                stale = stale or self._ownership is None or not self._ownership.holds
                self._looked_at_files = time.monotonic()
                self._has_skipped_look = False
            else:
                self._has_skipped_look = True
        if self._database is not None and usable and not gone and not stale:
            return self._database
        now = time.monotonic()
        if now < self._mend_after:
            if self._database is not None and usable and not gone:
                return self._database
            raise self._last_error or SpoolError(f"the file of the spool {self._path.name} was removed again")
        self._mend_after = now + _RETRY_INTERVAL
        try:
            if gone and self._database is not None:
                _logger.error(
                    "the file of the spool %s was removed or replaced while it was open: it is written anew",
                    self._path.name,
                )
                rebuild(self._path, self._database, time.time())
            self._close_database()
            if self._ownership is not None and not self._ownership.holds:
                self._ownership.release()
                self._ownership = Ownership.take(self._path)
            self._database = self._open(check=False)
        except (SpoolError, *_FAULTS) as error:
            self._last_error = self._as_spool_error(error)
            raise
        self._is_stale = False
        return self._database

    def _look(self, database: Database) -> Contents:
        impossible = database.impossible()
        if impossible:
            self._set_aside(database, impossible)
        contents = Contents(
            operations=database.count(),
            last_number=database.last_number(),
            used_bytes=database.used_bytes(),
            quarantined=database.quarantined,
            dead_letters=database.dead_letters,
        )
        self._picture = Written(0, None, contents.used_bytes, contents.dead_letters, contents.quarantined)
        return contents

    def _serve(self) -> None:
        stopping = False
        while not stopping:
            appended: list[Operation] = []
            asked: list[_Ask[Any]] = []
            try:
                said = self._wait()
                while True:
                    if isinstance(said, list):
                        appended += said
                    elif isinstance(said, (_Acknowledge, _Bury)):
                        self._owed.append(said)
                    elif isinstance(said, _Ask):
                        asked.append(said)
                    else:
                        self._stops.append(said)
                        stopping = True
                        break
                    if len(appended) >= _MAX_GROUP:
                        break
                    said = self._inbox.get_nowait()
            except queue.Empty:
                pass
            self._write(appended)
            for question in asked:
                self._answer(question)

    def _wait(self) -> _Said:
        self.at_work.release()
        try:
            timeout = _LOOK_INTERVAL if self._has_skipped_look else _RETRY_INTERVAL if self._owed else None
            return self._inbox.get(timeout=timeout)
        finally:
            self.at_work.acquire()

    def _write(self, appended: list[Operation]) -> None:
        if not appended and not self._owed:
            if self._has_skipped_look:
                self._look_at_last()
            return
        error: SpoolError | None = None
        try:
            self._commit(appended)
        except Exception as fault:  # noqa: BLE001 - Rule 5
            error = self._as_spool_error(fault)
            self._name_fault(fault)
            if is_busy(fault) and self._database is not None:
                self._database.wait_for_others(False)  # it holds on: do not keep those waiting who only read
            if self._owed and is_full(fault):  # these are smaller, and make room
                with contextlib.suppress(Exception):
                    self._commit_in_pieces(self._mend(to_write=True))
        else:
            if self._fault is not None:
                _logger.warning("the spool %s is written again", self._path.name)
                self._fault = None
                if self._database is not None:
                    self._database.wait_for_others(True)
        self._look_at_size(appended, busy=error is None and len(appended) >= _BUSY)
        written = attrs.evolve(self._picture, appended=len(appended), error=error, fault=self._fault)
        self._post(self._loop, self._receive, written)

    def _look_at_size(self, appended: list[Operation], *, busy: bool) -> None:
        if self._database is None:
            return
        now = time.monotonic()
        used = self._picture.used_bytes
        if not busy or now - self._looked_at_size >= _LOOK_INTERVAL:
            self._looked_at_size = now
            with contextlib.suppress(*_FAULTS):
                used = self._database.used_bytes()
        else:  # at most; what was deleted counts at the next look
            used += sum(map(len, appended))
        self._picture = Written(0, None, used, self._database.dead_letters, self._database.quarantined)

    def _look_at_last(self) -> None:
        """See whether the file is still there, and write it anew if it is not: nothing else may come after this."""
        self._has_skipped_look = False
        if self._database is not None:
            try:
                self._mend(to_write=True)
            except (SpoolError, *_FAULTS) as error:
                self._name_fault(error)

    def _commit(self, appended: list[Operation]) -> None:
        """Write everything in one transaction."""
        try:
            self._commit_to(self._mend(to_write=True, busy=len(appended) >= _BUSY), appended)
        except SQLITE_FAULTS as error:
            if not is_corrupt(error):
                self._is_stale = not is_passing(error)
                raise
            self._is_damaged = True
            self._commit_to(self._mend(to_write=True), appended)

    def _commit_to(self, database: Database, appended: list[Operation]) -> None:
        acknowledged: list[int] = []
        refused: list[tuple[int, Refusal]] = []
        for owed in self._owed:
            if isinstance(owed, _Acknowledge):
                acknowledged += owed.numbers
            else:
                refused += owed.refusals
        database.write(appended, acknowledged, refused, time.time())
        self._owed.clear()

    def _commit_in_pieces(self, database: Database) -> None:
        """Write down what is owed where the log cannot grow: as little at a time as may fit into it."""
        while self._owed:
            database.reuse_log()
            first = self._owed[0]
            if isinstance(first, _Bury):
                database.write((), (), first.refusals, time.time())
                del self._owed[0]
            else:
                database.write((), first.numbers[:_PIECE], (), time.time())
                self._owed[0] = _Acknowledge(first.numbers[_PIECE:])
                if len(first.numbers) <= _PIECE:
                    del self._owed[0]

    def _answer(self, question: _Ask[Any]) -> None:
        try:
            try:
                result = question.do(self._mend(to_write=False))
            except SQLITE_FAULTS as error:
                if not is_corrupt(error):
                    raise
                self._is_damaged = True
                result = question.do(self._mend(to_write=False))
        except Exception as error:  # noqa: BLE001 - Rule 5
            self._post(question.answer.get_loop(), _fail, question.answer, self._as_spool_error(error))
        else:
            self._post(question.answer.get_loop(), _succeed, question.answer, result)

    def _refuse_rest(self) -> None:
        """Nothing reads the inbox any more: say so to who waits."""
        error = SpoolError(f"the spool {self._path.name} is closed")
        appended = 0
        stops, self._stops = self._stops, []
        with contextlib.suppress(queue.Empty):
            while True:
                said = self._inbox.get_nowait()
                if isinstance(said, list):
                    appended += len(said)
                elif isinstance(said, _Ask):
                    self._post(said.answer.get_loop(), _fail, said.answer, error)
                elif isinstance(said, _Stop):
                    stops.append(said)
        if appended:
            self._post(self._loop, self._receive, attrs.evolve(self._picture, appended=appended, error=error))
        for stop in stops:
            self._post(stop.answer.get_loop(), _succeed, stop.answer, not self._owed)

    def _post(self, loop: asyncio.AbstractEventLoop, call: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: whoever waited there is gone
            if loop is not self._loop:
                loop.call_soon_threadsafe(call, *arguments)
                return
            self._reports.append((call, arguments))
            if not self.hears:
                loop.call_soon_threadsafe(self._hear)

    def _name_fault(self, error: BaseException) -> None:
        fault = str(error) if isinstance(error, SpoolError) else describe(error)
        if self._fault is None:
            _logger.error(
                "the spool %s cannot be written (%s): new operations are refused until it can; those that it holds "
                "are delivered, and sent again after the next start if that cannot be written down until then",
                self._path.name,
                fault,
            )
        self._fault = fault

    def _as_spool_error(self, error: BaseException) -> SpoolError:
        if isinstance(error, SpoolError):
            return error
        msg = (
            f"the spool {self._path.name} cannot be used ({describe(error)}): check the disk, the directory and its "
            "permissions"
        )
        return SpoolError(msg)

    # --------------------------------------------------------------------------------------- which file it is

    def _remember_files(self) -> None:
        self._files = {name: _identity(name) for name in (self._path, Path(f"{self._path}-wal"))}

    def _look_at_files(self) -> dict[Path, tuple[int, int] | None]:
        """The files that the names lead to now: SQLite goes on writing to a removed one."""
        found = {name: _identity(name) for name in self._files}
        for name, known in self._files.items():
            if known is None:
                self._files[name] = found[name]  # the log is made by the first transaction
        return found


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _succeed(future: asyncio.Future[Any], result: Any) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
