"""``DeadLetterFile``: dead letters in a file of this machine, written by a thread of its own.

Rules:

1. ``put`` never waits for the disk and never raises for its sake. The thread takes all that came meanwhile and writes
   it in one go, so the event loop sees no disk.
2. A letter leaves the memory after it is on disk (fsynced), not before. What cannot be written is kept and tried again
   after a wait; what comes when the bounds are reached is lost, counted in ``lost`` and said in the log.
3. The thread lives as long as there is something to write and a moment longer; no file is open in between. So nothing
   has to be opened or given back, and a ``put`` after ``close`` is written, too.
4. A child process has neither the thread nor the letters of its parent, who writes them.

Must not know: the tracker.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import itertools
import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cio_batch.dead_letters import DeadLetter, Refusal
from cio_batch.errors import ConfigurationError, whereabouts
from cio_batch.letter_files import Appender

_logger = logging.getLogger(__name__)

_RETRY_INTERVAL: Final = 1.0  # seconds until what could not be written is tried again
_LINGER: Final = 1.0  # seconds that the thread waits for more
_MAX_GROUP: Final = 1_000  # letters written in one go
_AT_EXIT: Final = 2.0  # seconds that the end of the program waits for the disk


class DeadLetterFile:
    """Keeps what was refused or given up in a file, one line of JSON for each, with the reason and its history.

    ``cio-batch dead-letters`` shows them and ``cio-batch replay`` sends them again, also while a service writes.

    The file is made with mode 0600, by the first dead letter. Several processes (the workers of a server) may write to
    the same one. When it is full it becomes ``<path>.1``, that one ``<path>.2``, and so on.

    Make it anywhere, also at module level; give it to a tracker, whose ``close`` waits until all is on disk.

    Args:
        path: The file; its directory must exist.
        max_bytes: What one file may have. The line of an operation has up to 32 KB and its explanation.
        backups: How many full files are kept. The letters in one that is removed are counted in ``lost``.
        max_pending: Letters that may wait for a disk that cannot be written. As many as a tracker holds.
        max_pending_bytes: The bytes of their operations.

    Raises:
        ConfigurationError: An argument is out of range.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_bytes: int = 10_000_000,
        backups: int = 9,
        max_pending: int = 100_000,
        max_pending_bytes: int = 64_000_000,
    ) -> None:
        faults: list[tuple[str, str]] = []
        if not _is_path(path):
            faults.append(("path", "must be the name of a file"))
        numbers = {
            "max_bytes": (max_bytes, 1_000),
            "backups": (backups, 1),
            "max_pending": (max_pending, 1),
            "max_pending_bytes": (max_pending_bytes, 1),
        }
        for name, (value, least) in numbers.items():
            if type(value) is not int or value < least:
                faults.append((name, f"must be a whole number of at least {least}"))
        if faults:
            text = "; ".join(f"{name} {fault}" for name, fault in faults)
            raise ConfigurationError(text, tuple(name for name, _ in faults))
        # Absolute, because a service may change its directory after this.
        self._path = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would look at the disk
        self._max_bytes = max_bytes
        self._backups = backups
        self._max_pending = max_pending
        self._max_pending_bytes = max_pending_bytes
        self._begin_empty()
        _files.add(self)

    def _begin_empty(self) -> None:
        self._condition = threading.Condition()  # guards everything below
        self._pending: deque[DeadLetter] = deque()
        self._pending_bytes = 0
        self._lost = 0
        self._fault = ""
        self._lost_in_outage = 0
        self._hurry = False
        self._thread: threading.Thread | None = None
        self._written = 0
        # The number of letters that must have been written, and who waits for that.
        self._waiting: list[tuple[int, asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        # Only one thread at a time uses it.
        self._appender = Appender(self._path, max_bytes=self._max_bytes, backups=self._backups)
        self._warned_of_rotation = False

    def __repr__(self) -> str:
        return f"<DeadLetterFile {self._path.name}: {len(self._pending)} pending, {self._lost} lost>"

    @property
    def path(self) -> Path:
        """The file that is written at present."""
        return self._path

    @property
    def pending(self) -> int:
        """How many letters are not on disk yet."""
        return len(self._pending)

    @property
    def lost(self) -> int:
        """How many letters are in no file: the disk could not be written for too long, or a file was one too many."""
        return self._lost

    @property
    def fault(self) -> str | None:
        """Why the disk cannot be written at the moment; ``None`` when it can."""
        return self._fault or None

    def put(self, letters: Sequence[DeadLetter]) -> None:
        """Write dead letters down, soon. Returns at once; may be called in any thread."""
        lost = 0
        with self._condition:
            for letter in letters:
                size = len(letter.body)
                if len(self._pending) >= self._max_pending or self._pending_bytes + size > self._max_pending_bytes:
                    lost += 1
                    continue
                self._pending.append(letter)
                self._pending_bytes += size
            first_loss = lost > 0 and not self._lost_in_outage
            self._lost += lost
            self._lost_in_outage += lost
            self._start()
        if first_loss:
            _logger.error(
                "dead letters are lost from here on: %d wait to be written to %s, more are not kept in memory",
                len(self._pending),
                self._path.name,
            )

    async def close(self, timeout: float = 5.0) -> bool:
        """Wait until everything is on disk.

        It may go on being used; then it is to be closed again.

        Args:
            timeout: Seconds.

        Returns:
            Whether everything is on disk. If not, it is tried again as long as the process lives.

        Cancellation: What is not on disk yet is written all the same.
        """
        loop = asyncio.get_running_loop()
        written: asyncio.Future[None] = loop.create_future()
        with self._condition:
            self._hurry = True
            self._condition.notify_all()
            if not self._pending:
                return True
            waiter = (self._written + len(self._pending), loop, written)
            self._waiting.append(waiter)
            self._start()
        try:
            await asyncio.wait([written], timeout=max(0.0, timeout))
        finally:
            with self._condition, contextlib.suppress(ValueError):
                self._waiting.remove(waiter)
        if not written.done():
            _logger.error(
                "%d dead letters are not in %s yet (%s)", len(self._pending), self._path.name, self._fault or "timeout"
            )
        return written.done()

    def forget_parent(self) -> None:
        """Begin empty in a child process; called by itself after a fork."""
        self._begin_empty()

    def finish(self, timeout: float) -> None:
        """Wait for the disk at the end of the program, where nobody may have called :meth:`close`."""
        with self._condition:
            self._hurry = True
            self._start()
            if self._thread is not None:
                self._condition.wait_for(lambda: not self._pending, timeout)
        while self._thread is None and self._pending:  # no thread can be started any more
            before = len(self._pending)
            self._write(self._next_group())
            if len(self._pending) == before:
                break
        if self._pending:
            _logger.error("%d dead letters are lost: %s", len(self._pending), self._fault or "the disk is too slow")

    # ------------------------------------------------------------------------------------------ inside the thread

    def _start(self) -> None:
        """Have a thread, or wake it; the lock is held."""
        self._condition.notify_all()
        if self._thread is not None or not self._pending:
            return
        # A daemon: a disk that hangs must not keep the process alive; its end waits for a moment (_at_exit).
        thread = threading.Thread(target=self._run, name="cio_batch dead letters", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the interpreter ends, or there are too many threads: the next put, or _at_exit, tries
            return
        self._thread = thread

    def _run(self) -> None:
        try:
            while group := self._next_group():
                self._write(group)
        except BaseException as error:
            _logger.error("the thread of the dead letters %s broke: %s", self._path.name, whereabouts(error))
            raise
        finally:
            with self._condition:
                if self._thread is threading.current_thread():
                    self._thread = None

    def _next_group(self) -> list[DeadLetter]:
        with self._condition:
            if not self._pending and not self._hurry:
                self._condition.wait_for(lambda: self._pending or self._hurry, _LINGER)
            if not self._pending:
                self._hurry = False
                self._thread = None  # under the lock: whoever puts something now starts another one
            return list(itertools.islice(self._pending, _MAX_GROUP))

    def _write(self, group: list[DeadLetter]) -> None:
        """Write some letters, or wait until it is time to try again."""
        lines = [_encode(letter) for letter in group]
        written = 0
        try:
            while written < len(group):
                written += self._appender.append(lines[written:])
        except OSError as error:
            self._settle(group[:written], fault=error.strerror or type(error).__name__)
            with self._condition:
                self._condition.wait_for(lambda: self._hurry, _RETRY_INTERVAL)
                self._hurry = False
        else:
            self._settle(group, fault="")

    def _settle(self, written: Sequence[DeadLetter], *, fault: str) -> None:
        """Note what is on disk now, and what hinders the rest."""
        with self._condition:
            for letter in written:
                self._pending.popleft()
                self._pending_bytes -= len(letter.body)
            removed, self._appender.removed = self._appender.removed, 0
            self._lost += removed
            self._written += len(written)
            content = [waiter for waiter in self._waiting if waiter[0] <= self._written]
            self._waiting = [waiter for waiter in self._waiting if waiter[0] > self._written]
            before, self._fault = self._fault, fault
            lost = self._lost_in_outage
            if not fault:
                self._lost_in_outage = 0
            self._condition.notify_all()
        if fault and not before:
            _logger.error(
                "dead letters cannot be written to %s (%s): they are kept in memory and tried again",
                self._path.name,
                fault,
            )
        elif (before or lost) and not fault:
            _logger.warning("dead letters are written to %s again; %d were lost", self._path.name, lost)
        if removed:
            _logger.error(
                "%d dead letters are lost: the oldest file of %s was removed, because there are more than %d",
                removed,
                self._path.name,
                self._backups,
            )
        rotation_fault = self._appender.rotation_fault
        if rotation_fault is not None and not self._warned_of_rotation:
            _logger.warning(
                "%s is full and cannot be renamed (%s): it grows beyond %d bytes",
                self._path.name,
                rotation_fault.strerror,
                self._max_bytes,
            )
        self._warned_of_rotation = rotation_fault is not None
        for _, loop, future in content:  # last, so that whoever waited finds everything said
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits there any more
                loop.call_soon_threadsafe(_resolve, future)


def _is_path(value: object) -> bool:
    return isinstance(value, (str, os.PathLike)) and value != ""


def _encode(letter: DeadLetter) -> bytes:
    try:
        return letter.to_line()
    except Exception as error:  # noqa: BLE001 - whatever was said about it, the operation must be kept
        _logger.error("what is said of a dead letter cannot be written: %s", whereabouts(error))
        return DeadLetter(letter.body, (Refusal("failed", "unreadable"),)).to_line()


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


_files: Final[weakref.WeakSet[DeadLetterFile]] = weakref.WeakSet()


def _begin_empty_after_fork() -> None:
    for file in list(_files):
        file.forget_parent()


os.register_at_fork(after_in_child=_begin_empty_after_fork)


@atexit.register
def _at_exit() -> None:
    """Give the disk a last moment: the thread is a daemon."""
    for file in list(_files):
        file.finish(_AT_EXIT)
