"""The SQLite file of a spool: its tables, and every statement that is run on them.

Rules:

1. A row is an operation's final bytes, with a checksum over its number and them; everything else is read out of them.
   What does not fit its checksum is never sent: it is set aside in ``quarantine``.
2. What is written together is written in one transaction.
3. A statement handles many rows. Each step of SQLite gives the GIL away, and getting it back from a busy loop takes
   up to 5 ms: rows one by one would stand in that queue thousands of times a second.

Used by one thread at a time. Other processes may read, and change dead letters, meanwhile.

Must not know: threads, asyncio.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import attrs
import orjson

from cio_batch.dead_letters import DeadLetter, Refusal
from cio_batch.errors import InvalidOperationError, SpoolError
from cio_batch.operations import Key, Operation, decode

Synchronous: TypeAlias = Literal["FULL", "NORMAL"]

SCHEMA_VERSION: Final = 1
APPLICATION_ID: Final = 0x43494F42  # "CIOB"
TABLES: Final[Mapping[str, str]] = {
    "operations": "number INTEGER PRIMARY KEY, accepted_at REAL NOT NULL, checksum INTEGER NOT NULL, "
    "body BLOB NOT NULL",
    "dead_letters": "number INTEGER PRIMARY KEY, accepted_at REAL, refusals TEXT NOT NULL, checksum INTEGER NOT NULL, "
    "body BLOB NOT NULL",
    "quarantine": "number INTEGER, found_at REAL NOT NULL, reason TEXT NOT NULL, body BLOB",
}
# How many rows one statement inserts, the largest first; few sizes, so that SQLite keeps them all prepared.
_ROWS: Final = (256, 64, 16, 4, 1)
_INSERTS: Final = {
    rows: f"INSERT INTO operations (number, accepted_at, checksum, body) VALUES {','.join(['(?,?,?,?)'] * rows)}"
    for rows in _ROWS
}
# One row comes back, whatever was read: see Rule 3.
_PAGE: Final = """
SELECT json_group_array(json_array(number, checksum, length(body))), CAST(group_concat(CAST(body AS TEXT), '') AS BLOB)
FROM (
    SELECT number, checksum, body FROM (
        SELECT *, sum(length(body)) OVER (ORDER BY number ROWS UNBOUNDED PRECEDING) AS running
        FROM (SELECT * FROM operations WHERE number > ? ORDER BY number LIMIT ?)
    ) WHERE running - length(body) < ? ORDER BY number
)
"""
_CORRUPT: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_BUSY_TIMEOUT: Final = 5.0  # seconds that another process may hold the write lock (it removes a few dead letters)


def checksum(number: int, body: bytes) -> int:
    """The checksum of a row."""
    return zlib.crc32(body, number & 0xFFFFFFFF)


def is_corrupt(error: BaseException) -> bool:
    """Whether an error says that the file itself is damaged."""
    return isinstance(error, sqlite3.Error) and (getattr(error, "sqlite_errorcode", 0) & 0xFF) in _CORRUPT


def describe(error: BaseException) -> str:
    """Name a fault of SQLite or the disk, without content."""
    if isinstance(error, sqlite3.Error):
        return str(getattr(error, "sqlite_errorname", type(error).__name__))
    return error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__


@attrs.frozen
class Row:
    """A row as it stands, before anybody looked whether it is an operation."""

    number: Any
    checksum: Any
    body: Any

    def read(self) -> Operation | None:
        """The operation, or ``None`` when it is none any more."""
        if type(self.number) is not int or type(self.body) is not bytes:
            return None
        if self.checksum != checksum(self.number, self.body):
            return None
        try:
            return decode(self.body, self.number)
        except InvalidOperationError:
            return None


class Database:
    """An open file.

    Args:
        path: The file; it is made, with mode 0600, if it does not exist.
        synchronous: ``"FULL"`` survives a loss of power, ``"NORMAL"`` the death of the process only.

    Raises:
        SpoolError: It was written by a newer version of this library, or by another program.
        sqlite3.Error, OSError: It cannot be opened.
    """

    def __init__(self, path: Path, *, synchronous: Synchronous = "FULL") -> None:
        self.path = path
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        self._connection = sqlite3.connect(
            path, timeout=_BUSY_TIMEOUT, isolation_level=None, check_same_thread=False, cached_statements=64
        )
        try:
            self._set_up(synchronous)
        except BaseException:
            self._connection.close()
            raise
        self.dead_letters = self._count("dead_letters") if self.is_current else 0
        self.quarantined = self._count("quarantine") if self.is_current else 0

    def _set_up(self, synchronous: Synchronous) -> None:
        run = self._connection.execute
        version, application = self._pragma("user_version"), self._pragma("application_id")
        empty = self._pragma("schema_version") == 0
        if not empty and application != APPLICATION_ID:
            msg = f"{self.path.name} is a database of another program: give the spool a file of its own"
            raise SpoolError(msg)
        if version > SCHEMA_VERSION:
            msg = (
                f"{self.path.name} was written by a newer version of cio_batch: upgrade, or give the spool another file"
            )
            raise SpoolError(msg)
        run(f"PRAGMA synchronous={synchronous}")
        run("PRAGMA foreign_keys=OFF")
        with contextlib.suppress(sqlite3.OperationalError):  # a file that cannot be written can still be read
            run("PRAGMA journal_mode=WAL")
        if empty:
            with self._transaction():
                for name, columns in TABLES.items():
                    run(f"CREATE TABLE {name} ({columns})")
                run(f"PRAGMA application_id={APPLICATION_ID}")
                run(f"PRAGMA user_version={SCHEMA_VERSION}")

    @property
    def is_current(self) -> bool:
        """Whether its tables are those of this version."""
        return self._pragma("user_version") == SCHEMA_VERSION

    def is_sound(self) -> bool:
        """Whether SQLite finds the file undamaged; it reads all of it."""
        try:
            found = self._connection.execute("PRAGMA quick_check(1)").fetchone()
        except sqlite3.DatabaseError as error:
            if is_corrupt(error):
                return False
            raise
        return bool(found == ("ok",))

    def close(self) -> None:
        """Close it; what stands in the write-ahead log is moved into the file, if no other process has it open."""
        self._connection.close()

    # ------------------------------------------------------------------------------------------------ operations

    def write(
        self,
        appended: Sequence[Operation],
        acknowledged: Sequence[int],
        refused: Sequence[tuple[int, Refusal]],
        now: float,
    ) -> None:
        """Add operations, remove others, and make dead letters of some: all of it, or nothing.

        Args:
            appended: Operations; their numbers are new.
            acknowledged: Numbers of operations that are done with.
            refused: Numbers of operations that were refused or given up, and why.
            now: When, in unix seconds.
        """
        dead = self.dead_letters
        with self._transaction():
            start = 0
            for rows in _ROWS:
                while len(appended) - start >= rows:
                    values: list[Any] = []
                    for body, _, _, number in appended[start : start + rows]:
                        values += (number, now, zlib.crc32(body, number & 0xFFFFFFFF), body)
                    self._connection.execute(_INSERTS[rows], values)
                    start += rows
            if refused:
                dead += self._bury(refused)
            self._delete(acknowledged)
            self._delete([number for number, _ in refused])
        self.dead_letters = dead

    def _delete(self, numbers: Sequence[int]) -> None:
        if not numbers:
            return
        first, last = min(numbers), max(numbers)
        if last - first + 1 == len(numbers):
            self._connection.execute("DELETE FROM operations WHERE number BETWEEN ? AND ?", (first, last))
        else:
            chosen = orjson.dumps(list(numbers)).decode()
            self._connection.execute(
                "DELETE FROM operations WHERE number IN (SELECT value FROM json_each(?))", (chosen,)
            )

    def _bury(self, refused: Sequence[tuple[int, Refusal]]) -> int:
        # Out of the table and not out of memory: what was purged meanwhile must not come back as a dead letter.
        done = self._connection.executemany(
            "INSERT OR REPLACE INTO dead_letters (number, accepted_at, refusals, checksum, body) "
            "SELECT number, accepted_at, ?, checksum, body FROM operations WHERE number = ?",
            [(orjson.dumps([attrs.asdict(refusal)]).decode(), number) for number, refusal in refused],
        )
        return int(done.rowcount)

    def page(self, after: int, most: int, most_bytes: int) -> tuple[list[Operation], list[Row]]:
        """Read operations with a higher number, in order, and the rows in between that are none any more."""
        listed, joined = self._connection.execute(_PAGE, (after, most, most_bytes)).fetchone()
        entries: list[Any] = orjson.loads(listed)
        body: bytes = joined or b""
        operations: list[Operation] = []
        start = 0
        for number, check, size in entries:
            operation = Row(number, check, body[start : start + size]).read() if type(size) is int else None
            if operation is None:  # where one size is wrong, all behind it are shifted
                return self._page_by_row(after, len(entries))
            operations.append(operation)
            start += size
        return operations, []

    def _page_by_row(self, after: int, most: int) -> tuple[list[Operation], list[Row]]:
        operations: list[Operation] = []
        bad: list[Row] = []
        query = "SELECT number, checksum, body FROM operations WHERE number > ? ORDER BY number LIMIT ?"
        for found in self._connection.execute(query, (after, most)):
            row = Row(*found)
            operation = row.read()
            if operation is None:
                bad.append(row)
            else:
                operations.append(operation)
        return operations, bad

    def set_aside(self, rows: Sequence[Row], reason: str, now: float) -> None:
        """Move rows that are no operation any more into the quarantine."""
        with self._transaction():
            self._connection.executemany(
                "INSERT INTO quarantine (number, found_at, reason, body) VALUES (?, ?, ?, ?)",
                [(row.number, now, reason, row.body) for row in rows],
            )
            self._connection.executemany("DELETE FROM operations WHERE number = ?", [(row.number,) for row in rows])
        self.quarantined += len(rows)

    def count(self) -> int:
        """How many operations wait in it."""
        return self._count("operations")

    def last_number(self) -> int:
        """The highest number in it."""
        return max(
            int(self._connection.execute(f"SELECT coalesce(max(number), 0) FROM {name}").fetchone()[0])
            for name in TABLES
        )

    def last_before(self, moment: float) -> int:
        """The highest number of the operations accepted before a moment, 0 for none."""
        # In order of acceptance, so that this looks at one row more than there are.
        later = self._connection.execute(
            "SELECT number FROM operations WHERE accepted_at >= ? ORDER BY number LIMIT 1", (moment,)
        ).fetchone()
        if later is not None:
            return int(later[0]) - 1
        return int(self._connection.execute("SELECT coalesce(max(number), 0) FROM operations").fetchone()[0])

    def used_bytes(self) -> int:
        """What its pages take, without the free ones and the write-ahead log."""
        return (self._pragma("page_count") - self._pragma("freelist_count")) * self._pragma("page_size")

    def purge(self, keys: frozenset[Key]) -> tuple[list[int], int]:
        """Remove all operations and dead letters of persons, so that no byte of them stays in the file.

        Returns:
            The numbers of the operations, and how many dead letters there were.
        """
        numbers = [number for number, body in self._bodies("operations") if _names(body, keys)]
        dead = [number for number, body in self._bodies("dead_letters") if _names(body, keys)]
        self._connection.execute("PRAGMA secure_delete=ON")
        try:
            with self._transaction():
                self._delete(numbers)
                self._remove("dead_letters", dead)
            self.dead_letters -= len(dead)
            # Delivered operations of theirs may still stand in pages that are free, and in the log.
            self._connection.execute("VACUUM")
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        finally:
            self._connection.execute("PRAGMA secure_delete=OFF")
        return numbers, len(dead)

    # ---------------------------------------------------------------------------------------------- dead letters

    def letters(self, after: int = 0, most: int = -1) -> Iterator[DeadLetter]:
        """Dead letters that can be read, oldest first.

        Args:
            after: Those with a higher number.
            most: From so many rows at most, -1 for all.
        """
        for number, accepted_at, refusals, check, body in self._connection.execute(
            "SELECT number, accepted_at, refusals, checksum, body FROM dead_letters "
            "WHERE number > ? ORDER BY number LIMIT ?",
            (after, most),
        ):
            if Row(number, check, body).read() is None:
                continue
            try:
                said = tuple(Refusal(**each) for each in orjson.loads(refusals))
            except (orjson.JSONDecodeError, TypeError):
                said = (Refusal("failed", "unreadable"),)
            yield DeadLetter(body, said or (Refusal("failed", "unreadable"),), accepted_at, number)

    def remove_letters(self, numbers: Iterable[int]) -> None:
        """Remove dead letters that were sent after all."""
        chosen = list(numbers)
        with self._transaction():
            self._remove("dead_letters", chosen)
        self.dead_letters = self._count("dead_letters")

    def refuse_again(self, refused: Iterable[tuple[int, Refusal]]) -> None:
        """Add to the history of dead letters that were refused or given up once more."""
        with self._transaction():
            self._connection.executemany(
                # What cannot be read any more has no history; one such row must not hold up the others.
                "UPDATE dead_letters SET refusals = json_insert(CASE WHEN json_valid(refusals) AND "
                "json_type(refusals) = 'array' THEN refusals ELSE '[]' END, '$[#]', json(?)) WHERE number = ?",
                [(orjson.dumps(attrs.asdict(refusal)).decode(), number) for number, refusal in refused],
            )

    # --------------------------------------------------------------------------------------------------- inside

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # SQLite has rolled back by itself after some faults
                self._connection.execute("ROLLBACK")
            raise

    def _pragma(self, name: str) -> int:
        return int(self._connection.execute(f"PRAGMA {name}").fetchone()[0])

    def _count(self, table: str) -> int:
        return int(self._connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])

    def _bodies(self, table: str) -> Iterator[tuple[int, bytes]]:
        yield from self._connection.execute(f"SELECT number, body FROM {table}")

    def _remove(self, table: str, numbers: Sequence[int]) -> None:
        self._connection.execute(
            f"DELETE FROM {table} WHERE number IN (SELECT value FROM json_each(?))",
            (orjson.dumps(list(numbers)).decode(),),
        )


def _names(body: object, keys: frozenset[Key]) -> bool:
    """Whether an operation is about, or names, one of these."""
    if not isinstance(body, bytes):
        return False
    try:
        key = decode(body)[1]
    except InvalidOperationError:
        return False
    return not keys.isdisjoint(key if isinstance(key, tuple) else (key,))
