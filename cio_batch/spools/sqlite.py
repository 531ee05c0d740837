"""``SqliteSpool``: a spool in a file of this machine, written by one thread of its own.

Rules:

1. One thread owns the connection. It takes all that was said meanwhile and writes it in one transaction (group
   commit): while it waits for the disk, the next group gathers.
2. An operation is reported as written only after its transaction was committed.
3. What must not be forgotten (acknowledgements, dead letters) and could not be written is written with the next
   transaction, or by itself after a second. It is never tried in a loop without a wait.
4. A damaged file is rebuilt once from what can be read, and kept under another name. A file that was removed or
   replaced while it was open is written anew from the connection, which still reads the old one.
5. The thread never raises into the tracker: everything that it finds out is reported.

Must not know: transports, verdicts, the tracker's queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Generic, TypeAlias, TypeVar, get_args

import attrs

from cio_batch import operations as ops
from cio_batch.dead_letters import Refusal
from cio_batch.errors import ConfigurationError, SpoolError, whereabouts
from cio_batch.operations import Key, Operation, PersonId
from cio_batch.spools.base import Contents, Page, Receive, Written
from cio_batch.spools.database import Database, Row, Synchronous, describe, is_corrupt
from cio_batch.spools.ownership import Ownership
from cio_batch.spools.recovery import rebuild, restore_interrupted

_logger = logging.getLogger(__name__)

T = TypeVar("T")
Purged: TypeAlias = Callable[[Sequence[int]], None]

_MAX_GROUP: Final = 5_000  # operations in one transaction
_RETRY_INTERVAL: Final = 1.0  # seconds until what could not be written is tried again
_OPEN_TIMEOUT: Final = 60.0  # seconds; a file of 1 GB is checked in two
_FAULTS: Final = (sqlite3.Error, OSError)


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


class _Stop:
    """Write what was said before, and end."""


_Said: TypeAlias = Operation | _Acknowledge | _Bury | _Ask[Any] | _Stop


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
        if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
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
        if self._writer is not None and self._writer.is_alive:
            msg = f"the spool {self._path.name} is open already: one tracker uses a spool at a time"
            raise SpoolError(msg)
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[Contents] = loop.create_future()
        self._writer = _Writer(self._path, self._synchronous, loop, opened, receive, purged)
        self._writer.start()
        try:
            return await asyncio.wait_for(opened, _OPEN_TIMEOUT)
        except SpoolError:
            self._writer = None  # its thread ends by itself
            raise

    def append(self, operation: Operation) -> None:
        """Write an operation; see :class:`~cio_batch.spools.Spool`."""
        self._running().say(operation)

    def acknowledge(self, numbers: Sequence[int]) -> None:
        """Remove operations; see :class:`~cio_batch.spools.Spool`."""
        self._running().say(_Acknowledge(numbers))

    def bury(self, refusals: Sequence[tuple[int, Refusal]]) -> None:
        """Make dead letters; see :class:`~cio_batch.spools.Spool`."""
        self._running().say(_Bury(refusals))

    async def read(self, after: int, most: int, most_bytes: int) -> Page:
        """Read operations; see :class:`~cio_batch.spools.Spool`."""
        return await self._running().ask(lambda database: _read_page(database, after, most, most_bytes))

    async def last_before(self, moment: float) -> int:
        """Say which operations are older; see :class:`~cio_batch.spools.Spool`."""
        return await self._running().ask(lambda database: database.last_before(moment))

    async def purge(self, person: PersonId) -> int:
        """Remove a person's operations and dead letters, as a request for deletion demands.

        What is in a call at this moment is not held back. Someone who was tracked under an id and under an email is
        two persons here: purge both. The file is rewritten, so that no byte of them stays in it.

        Args:
            person: The identifier as it was given to the tracker.

        Returns:
            How many operations and dead letters were removed.

        Raises:
            InvalidOperationError: That is no identifier.
            SpoolError: The spool is not open (start its tracker, or use ``cio-batch purge``), or cannot be written.
        """
        keys = frozenset({ops.key_of(person)})
        writer = self._running()
        return await writer.ask(lambda database: writer.purge(database, keys))

    async def close(self, timeout: float = 5.0) -> bool:
        """Write all that was said and close the file; see :class:`~cio_batch.spools.Spool`."""
        writer = self._writer
        if writer is None:
            return True
        writer.say(_Stop())
        done = await asyncio.get_running_loop().run_in_executor(None, writer.join, timeout)
        if done:
            self._writer = None
        return done

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


def _read_page(database: Database, after: int, most: int, most_bytes: int) -> Page:
    operations, bad = database.page(after, most, most_bytes)
    if bad:
        _set_aside(database, bad)
    return Page(operations, len(bad))


def _set_aside(database: Database, rows: Sequence[Row]) -> None:
    database.set_aside(rows, "damaged", time.time())
    _logger.error(
        "%d rows of the spool %s are damaged: they were moved into its table quarantine and are not sent",
        len(rows),
        database.path.name,
    )


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
        self.say = self._inbox.put
        self._owed: list[_Acknowledge | _Bury] = []
        self._rebuilt = False
        self._fault: str | None = None
        self._ownership: Ownership | None = None
        # A daemon: what is written is safe, and a thread that is stuck in the disk must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name="cio_batch spool", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def join(self, timeout: float) -> bool:
        """Wait for its end; say whether it came."""
        self._thread.join(max(0.0, timeout))
        return not self._thread.is_alive()

    def let_go(self) -> None:
        """Close what a child process inherited of the lock, which is the parent's."""
        if self._ownership is not None:
            self._ownership.release()

    async def ask(self, do: Callable[[Database], T]) -> T:
        """Let the thread do something, and return what comes of it."""
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.say(_Ask(do, answer))
        return await answer

    def purge(self, database: Database, keys: frozenset[Key]) -> int:
        """Remove what is about some persons, and tell the tracker; runs in the thread."""
        numbers, dead = database.purge(keys)
        if numbers:
            self._post(self._purged, numbers)
        return len(numbers) + dead

    # ------------------------------------------------------------------------------------------ inside the thread

    def _run(self) -> None:
        try:
            self._ownership = Ownership.take(self._path)
        except (SpoolError, OSError) as error:
            self._post(_fail, self._opened, self._as_spool_error(error))
            return
        try:
            try:
                self._database = self._open()
                contents = self._look()
            except (SpoolError, *_FAULTS) as error:
                self._post(_fail, self._opened, self._as_spool_error(error))
                return
            self._post(_succeed, self._opened, contents)
            self._serve()
            self._database.close()
        except BaseException as error:
            _logger.error("the thread of the spool %s broke: %s", self._path.name, whereabouts(error))
            raise
        finally:
            self._ownership.release()
            self._refuse_rest()

    def _open(self) -> Database:
        restore_interrupted(self._path)
        try:
            database = Database(self._path, synchronous=self._synchronous)
            if database.is_current and database.is_sound():
                self._remember_file()
                return database
            database.close()
        except sqlite3.Error as error:
            if not is_corrupt(error):
                raise
        return self._rebuild(None)

    def _rebuild(self, readable: Database | None) -> Database:
        """Write the file anew from what can be read: of the file, or of a connection to one that was removed."""
        self._rebuilt = True
        rebuild(self._path, readable, time.time())
        database = Database(self._path, synchronous=self._synchronous)
        self._remember_file()
        return database

    def _look(self) -> Contents:
        return Contents(
            operations=self._database.count(),
            last_number=self._database.last_number(),
            used_bytes=self._database.used_bytes(),
            quarantined=self._database.quarantined,
            dead_letters=self._database.dead_letters,
        )

    def _serve(self) -> None:
        stopping = False
        while not stopping:
            appended: list[Operation] = []
            asked: list[_Ask[Any]] = []
            try:
                said = self._inbox.get(timeout=_RETRY_INTERVAL if self._owed else None)
                while True:
                    if type(said) is tuple:
                        appended.append(said)
                    elif isinstance(said, (_Acknowledge, _Bury)):
                        self._owed.append(said)
                    elif isinstance(said, _Ask):
                        asked.append(said)
                    else:
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

    def _write(self, appended: list[Operation]) -> None:
        if not appended and not self._owed:
            return
        error: SpoolError | None = None
        try:
            self._commit(appended)
            used = self._database.used_bytes()
        except _FAULTS as fault:
            error, used = self._as_spool_error(fault), 0
            if appended and self._owed:  # these are smaller, and make room
                with contextlib.suppress(*_FAULTS):
                    self._commit([])
            self._name_fault(describe(fault))
        else:
            if self._fault is not None:
                _logger.warning("the spool %s is written again", self._path.name)
                self._fault = None
        written = Written(
            len(appended), error, used, self._database.dead_letters, self._database.quarantined, self._fault
        )
        self._post(self._receive, written)

    def _commit(self, appended: list[Operation]) -> None:
        """Write everything in one transaction; a damaged file is rebuilt first, once."""
        if not self._is_our_file():
            self._replace("was removed or replaced while it was open", self._database)
        try:
            self._commit_to_file(appended)
        except sqlite3.DatabaseError as error:
            if self._rebuilt or not is_corrupt(error):
                raise
            self._replace("is damaged", None)
            self._commit_to_file(appended)

    def _commit_to_file(self, appended: list[Operation]) -> None:
        acknowledged: list[int] = []
        refused: list[tuple[int, Refusal]] = []
        for owed in self._owed:
            if isinstance(owed, _Acknowledge):
                acknowledged += owed.numbers
            else:
                refused += owed.refusals
        self._database.write(appended, acknowledged, refused, time.time())
        self._owed.clear()

    def _replace(self, what: str, readable: Database | None) -> None:
        _logger.error("the file of the spool %s %s: it is written anew from what can be read", self._path.name, what)
        old = self._database
        if readable is None:
            old.close()
        try:
            self._database = self._rebuild(readable)
        except (SpoolError, *_FAULTS):
            if readable is None:
                # What is in memory is still delivered; nothing new is taken.
                self._database = Database(self._path, synchronous=self._synchronous)
            raise
        if readable is not None:
            with contextlib.suppress(sqlite3.Error):
                old.close()

    def _answer(self, question: _Ask[Any]) -> None:
        try:
            try:
                result = question.do(self._database)
            except sqlite3.DatabaseError as error:
                if self._rebuilt or not is_corrupt(error):
                    raise
                self._replace("is damaged", None)
                result = question.do(self._database)
        except (SpoolError, *_FAULTS) as error:
            self._post(_fail, question.answer, self._as_spool_error(error))
        else:
            self._post(_succeed, question.answer, result)

    def _refuse_rest(self) -> None:
        """Nothing reads the inbox any more: say so to who waits."""
        error = SpoolError(f"the spool {self._path.name} is closed")
        appended = 0
        with contextlib.suppress(queue.Empty):
            while True:
                said = self._inbox.get_nowait()
                if type(said) is tuple:
                    appended += 1
                elif isinstance(said, _Ask):
                    self._post(_fail, said.answer, error)
        if appended:
            self._post(self._receive, Written(appended, error, 0, 0, 0))

    def _post(self, call: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: whoever waited there is gone
            self._loop.call_soon_threadsafe(call, *arguments)

    def _name_fault(self, fault: str) -> None:
        if self._fault is None:
            _logger.error(
                "the spool %s cannot be written (%s): new operations are refused until it can; those that it holds "
                "are delivered",
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

    def _remember_file(self) -> None:
        self._files = {name: _identity(name) for name in (self._path, Path(f"{self._path}-wal"))}

    def _is_our_file(self) -> bool:
        """Whether the names still lead to what the connection has open: SQLite goes on writing to a removed file."""
        for name, known in self._files.items():
            found = _identity(name)
            if known is None:
                self._files[name] = found  # the log is made by the first transaction
            elif found != known:
                return False
        return True


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
