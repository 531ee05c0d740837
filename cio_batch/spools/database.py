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
import functools
import os
import sqlite3
import zlib
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import attrs
import orjson

from cio_batch.dead_letters import DeadLetter, Refusal
from cio_batch.errors import InvalidOperationError, SpoolError
from cio_batch.operations import Key, Operation, decode
from cio_batch.spools.pages import PAGE_SIZE

Synchronous: TypeAlias = Literal["FULL", "NORMAL"]

SCHEMA_VERSION: Final = 1
APPLICATION_ID: Final = 0x43494F42  # "CIOB"
MAX_NUMBER: Final = 1 << 53
"""Beyond it, and below 1, a number is damaged: nobody enqueues so much, and one more must still fit."""
ROOTS: Final = (2, 3, 4)
"""The first page of each table: they are made in this order, and a VACUUM leaves it so."""
TABLES: Final[Mapping[str, str]] = {
    "operations": "number INTEGER PRIMARY KEY, accepted_at REAL NOT NULL, checksum INTEGER NOT NULL, "
    "body BLOB NOT NULL",
    "dead_letters": "number INTEGER PRIMARY KEY, accepted_at REAL, refusals TEXT NOT NULL, checksum INTEGER NOT NULL, "
    "body BLOB NOT NULL",
    "quarantine": "number INTEGER, found_at REAL NOT NULL, reason TEXT NOT NULL, body BLOB",
}
_MOST_ROWS: Final = 128  # that one statement inserts; SQLite keeps one prepared for each number of rows that occurred
# One row comes back, whatever was read: see Rule 3.
_PAGE: Final = f"""
SELECT json_group_array(json_array(number, checksum, length(body))), CAST(group_concat(CAST(body AS TEXT), '') AS BLOB)
FROM (
    SELECT number, checksum, body FROM (
        SELECT *, sum(length(body)) OVER (ORDER BY number ROWS UNBOUNDED PRECEDING) AS running
        FROM (SELECT * FROM operations WHERE number > ? AND number < {MAX_NUMBER} ORDER BY number LIMIT ?)
    ) WHERE running - length(body) < ? ORDER BY number
)
"""
_PICTURE: Final = """
SELECT (page_count - freelist_count) * page_size, data_version
FROM pragma_page_count, pragma_freelist_count, pragma_page_size, pragma_data_version
"""
# The second comes where Python reads SQLite's words for a damaged schema, which quote it.
SQLITE_FAULTS: Final = (sqlite3.Error, UnicodeDecodeError)
_CORRUPT: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
# What SQLite says when it wants to make its log and the memory it shares, and cannot.
_UNWRITABLE: Final = frozenset(
    {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_PERM}
)
_LATER: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL})
_MAX_LOG_BYTES: Final = 16_000_000  # to which the log is cut, when something kept it from being emptied for long
_MAX_PLAUSIBLE_VERSION: Final = 1_000
_BUSY_TIMEOUT: Final = 5.0  # seconds that another process may hold the write lock (it removes a few dead letters)


def checksum(number: int, body: bytes) -> int:
    """The checksum of a row."""
    return zlib.crc32(body, number & 0xFFFFFFFF)


@functools.cache
def _insert(rows: int) -> str:
    return f"INSERT INTO operations (number, accepted_at, checksum, body) VALUES {','.join(['(?,?,?,?)'] * rows)}"


def is_corrupt(error: BaseException) -> bool:
    """Whether an error says that the file itself is damaged."""
    return _code(error) in _CORRUPT or isinstance(error, UnicodeDecodeError)


def is_passing(error: BaseException) -> bool:
    """Whether the same connection can go on after an error: the disk is full, or somebody else writes."""
    return _code(error) in _LATER


def is_full(error: BaseException) -> bool:
    """Whether an error says that the disk is full."""
    return _code(error) == sqlite3.SQLITE_FULL


def is_busy(error: BaseException) -> bool:
    """Whether an error says that another process writes."""
    return _code(error) == sqlite3.SQLITE_BUSY


def _code(error: BaseException) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF if isinstance(error, sqlite3.Error) else 0


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


@attrs.frozen
class Kept:
    """A row as it stood in another file.

    Attributes:
        table: Where it goes.
        number: The number of the operation, 0 for a row that has none of its own.
        columns: In the order of the table.
    """

    table: Literal["operations", "dead_letters", "quarantine"]
    number: int
    columns: tuple[Any, ...] = attrs.field(repr=False)


class Database:
    """An open file.

    One that cannot be written, or beside which nothing can be written, is opened to be read.

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
        self._connection = _connect(str(path))
        try:
            try:
                self._set_up(synchronous)
            except sqlite3.OperationalError as error:
                if _code(error) not in _UNWRITABLE:
                    raise
                self._connection.close()
                self._connection = _connect_to_read(path)
                self._set_up(synchronous)
            self.dead_letters = self._count("dead_letters") if self.is_current else 0
            self.quarantined = self._count("quarantine") if self.is_current else 0
            self._data_version = -1
        except BaseException:
            self._connection.close()
            raise

    def _set_up(self, synchronous: Synchronous) -> None:
        run = self._connection.execute
        version, application = self._pragma("user_version"), self._pragma("application_id")
        empty = self._pragma("schema_version") == 0
        if not empty and application != APPLICATION_ID and not self._has_our_tables():
            msg = f"{self.path.name} is a database of another program: give the spool a file of its own"
            raise SpoolError(msg)
        if SCHEMA_VERSION < version < _MAX_PLAUSIBLE_VERSION:
            msg = (
                f"{self.path.name} was written by a newer version of cio_batch: upgrade, or give the spool another file"
            )
            raise SpoolError(msg)
        if empty:
            run(f"PRAGMA page_size={PAGE_SIZE}")
        run(f"PRAGMA synchronous={synchronous}")
        run(f"PRAGMA journal_size_limit={_MAX_LOG_BYTES}")
        run("PRAGMA foreign_keys=OFF")
        # What was acknowledged is zeroed, so that it cannot come back from a damaged file; measured, it costs nothing.
        run("PRAGMA secure_delete=ON")
        with contextlib.suppress(sqlite3.OperationalError):  # a file that cannot be written can still be read
            run("PRAGMA journal_mode=WAL")
        if empty:
            with self._transaction():
                for name, columns in TABLES.items():
                    run(f"CREATE TABLE {name} ({columns})")
                run(f"PRAGMA application_id={APPLICATION_ID}")
                run(f"PRAGMA user_version={SCHEMA_VERSION}")

    def _has_our_tables(self) -> bool:
        found = {name for (name,) in self._connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
        return set(TABLES) <= found

    @property
    def is_current(self) -> bool:
        """Whether its marks and tables are those of this version; else they are damaged, or of an earlier one."""
        return (
            self._pragma("user_version") == SCHEMA_VERSION
            and self._pragma("application_id") == APPLICATION_ID
            and self._has_our_tables()
        )

    def is_sound(self) -> bool:
        """Whether SQLite finds the file undamaged; it reads all of it."""
        try:
            found = self._connection.execute("PRAGMA quick_check(1)").fetchone()
        except SQLITE_FAULTS as error:
            if is_corrupt(error):
                return False
            raise
        return bool(found == ("ok",))

    def close(self) -> None:
        """Close it; what stands in the write-ahead log is moved into the file, if no other process has it open."""
        self._connection.close()

    def wait_for_others(self, patiently: bool) -> None:
        """Say whether to wait for a while when another process writes."""
        self._connection.execute(f"PRAGMA busy_timeout={int(_BUSY_TIMEOUT * 1_000) if patiently else 0}")

    def copy_to(self, path: Path) -> None:
        """Write all that it holds into a new file."""
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        self._connection.execute("VACUUM INTO ?", (str(path),))

    def empty_log(self) -> None:
        """Move what stands in the write-ahead log into the file, and make it empty.

        Raises:
            sqlite3.Error: It cannot be written.
            SpoolError: Another process reads it.
        """
        busy = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        if busy:
            msg = f"the write-ahead log of the spool {self.path.name} could not be emptied: another process reads it"
            raise SpoolError(msg)

    def reuse_log(self) -> None:
        """Let the write-ahead log begin at its start again: on a full disk it cannot grow, but keeps what it has."""
        self._connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()

    def keep(self, rows: Sequence[Kept]) -> dict[str, int]:
        """Add rows of another file, unless there is one with their number; return how many, by table."""
        added = dict.fromkeys(TABLES, 0)
        with self._transaction():
            for table in TABLES:
                before = self._connection.total_changes
                # One row is enough to know about, as often as its page was found.
                once = " WHERE NOT EXISTS (SELECT 1 FROM quarantine WHERE number IS ?1 AND body IS ?4)"
                columns = TABLES[table].count(",") + 1
                self._connection.executemany(
                    f"INSERT OR IGNORE INTO {table} SELECT {','.join(f'?{n + 1}' for n in range(columns))}"
                    + (once if table == "quarantine" else ""),
                    [row.columns for row in rows if row.table == table],
                )
                added[table] = self._connection.total_changes - before
        self.dead_letters += added["dead_letters"]
        self.quarantined += added["quarantine"]
        return added

    def holds(self, number: int) -> bool:
        """Whether an operation or a dead letter has this number."""
        found = self._connection.execute(
            "SELECT EXISTS (SELECT 1 FROM operations WHERE number = ?1) "
            "OR EXISTS (SELECT 1 FROM dead_letters WHERE number = ?1)",
            (number,),
        )
        return bool(found.fetchone()[0])

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
        if not acknowledged and not refused and 0 < len(appended) <= _MOST_ROWS:
            self._append(appended, now)  # a statement is a transaction; see Rule 3
            return
        dead = self.dead_letters
        with self._transaction():
            for start in range(0, len(appended), _MOST_ROWS):
                self._append(appended[start : start + _MOST_ROWS], now)
            if refused:
                dead += self._bury(refused)
            self._delete(acknowledged)
            self._delete([number for number, _ in refused])
        self.dead_letters = dead

    def _append(self, operations: Sequence[Operation], now: float) -> None:
        values: list[Any] = []
        for operation in operations:
            body, number = operation.body, operation.number
            values += (number, now, zlib.crc32(body, number & 0xFFFFFFFF), body)
        self._connection.executemany(_insert(len(operations)), [values])

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
            [(f"[{_written(refusal)}]", number) for number, refusal in refused],
        )
        return int(done.rowcount)

    def page(self, after: int, most: int, most_bytes: int) -> tuple[list[Operation], list[Row]]:
        """Read operations with a higher number, in order, and the rows in between that are none any more."""
        try:
            listed, joined = self._connection.execute(_PAGE, (after, most, most_bytes)).fetchone()
            entries: list[Any] = orjson.loads(listed)
        except (sqlite3.OperationalError, orjson.JSONDecodeError) as error:  # a checksum that JSON cannot say
            if isinstance(error, sqlite3.Error) and _code(error) != sqlite3.SQLITE_ERROR:
                raise
            return self._page_by_row(after, most, most_bytes)
        body: bytes = joined or b""
        operations: list[Operation] = []
        start = 0
        for number, check, size in entries:
            operation = Row(number, check, body[start : start + size]).read() if type(size) is int else None
            if operation is None:  # where one size is wrong, all behind it are shifted
                return self._page_by_row(after, most, most_bytes)
            operations.append(operation)
            start += size
        return operations, []

    def _page_by_row(self, after: int, most: int, most_bytes: int) -> tuple[list[Operation], list[Row]]:
        operations: list[Operation] = []
        bad: list[Row] = []
        running = 0
        found = self._connection.execute(
            f"SELECT number, checksum, body FROM operations WHERE number > ? AND number < {MAX_NUMBER} "
            "ORDER BY number LIMIT ?",
            (after, most),
        )
        for number, check, body in found:
            row = Row(number, check, body)
            operation = row.read()
            if operation is None:
                bad.append(row)
            else:
                operations.append(operation)
            running += len(body) if isinstance(body, (bytes, str)) else 0
            if running >= most_bytes:
                break
        found.close()  # an open statement would keep the log from being emptied
        return operations, bad

    def impossible(self) -> list[Row]:
        """Rows whose number is damaged: nothing reads them."""
        query = f"SELECT number, checksum, body FROM operations WHERE number <= 0 OR number >= {MAX_NUMBER}"
        return [Row(*found) for found in self._connection.execute(query)]

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
        query = f"SELECT count(*) FROM operations WHERE number BETWEEN 1 AND {MAX_NUMBER - 1}"
        return int(self._connection.execute(query).fetchone()[0])

    def last_number(self) -> int:
        """The highest number in it."""
        query = f"SELECT max(0, coalesce(max(number), 0)) FROM {{}} WHERE number < {MAX_NUMBER}"
        return max(int(self._connection.execute(query.format(name)).fetchone()[0]) for name in TABLES)

    def last_before(self, moment: float) -> int:
        """The highest number of the operations accepted before a moment, 0 for none."""
        # In order of acceptance, so that this looks at one row more than there are.
        later = self._connection.execute(
            "SELECT number FROM operations WHERE accepted_at >= ? ORDER BY number LIMIT 1", (moment,)
        ).fetchone()
        found = self._connection.execute(
            "SELECT max(0, coalesce(max(number), 0)) FROM operations WHERE number < ?",
            (MAX_NUMBER if later is None else min(MAX_NUMBER, later[0]),),
        )
        return int(found.fetchone()[0])

    def used_bytes(self) -> int:
        """What its pages take, without the free ones and the write-ahead log.

        It also counts the dead letters again when another process changed something: both by one statement (Rule 3).
        """
        used, data_version = self._connection.execute(_PICTURE).fetchone()
        if data_version != self._data_version:
            if self._data_version != -1:
                self.dead_letters = self._count("dead_letters")
            self._data_version = data_version
        return int(used)

    def purge(self, keys: frozenset[Key]) -> tuple[list[int], int]:
        """Remove all operations and dead letters of persons; :meth:`scrub` then removes what is left of their bytes.

        Damaged rows in the quarantine that name them go too.

        Returns:
            The numbers of the operations, and how many dead letters there were.
        """
        numbers = [number for number, body in self._bodies("operations") if _names(body, keys)]
        dead = [number for number, body in self._bodies("dead_letters") if _names(body, keys)]
        damaged = [rowid for rowid, body in self._bodies("quarantine", "rowid") if _mentions(body, keys)]
        with self._transaction():
            self._delete(numbers)
            self._remove("dead_letters", dead)
            self._remove("quarantine", damaged, "rowid")
        self.dead_letters -= len(dead)
        self.quarantined -= len(damaged)
        return numbers, len(dead)

    def scrub(self) -> None:
        """Write the file anew, without the pages that are free: what was removed may still stand in them.

        Raises:
            sqlite3.Error: It cannot be written: it needs as much room again as it takes.
            SpoolError: Another process reads the log.
        """
        self._connection.execute("VACUUM")
        self.empty_log()

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
                said = ()
            moment = accepted_at if isinstance(accepted_at, (int, float)) else None
            yield DeadLetter(body, said or (Refusal("failed", "unreadable"),), moment, number)

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
                [(_written(refusal), number) for number, refusal in refused],
            )

    # --------------------------------------------------------------------------------------------------- inside

    @contextlib.contextmanager
    def _transaction(self) -> Generator[None, None, None]:
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

    def _bodies(self, table: str, key: str = "number") -> Iterator[tuple[int, object]]:
        yield from self._connection.execute(f"SELECT {key}, body FROM {table}")

    def _remove(self, table: str, numbers: Sequence[int], key: str = "number") -> None:
        self._connection.execute(
            f"DELETE FROM {table} WHERE {key} IN (SELECT value FROM json_each(?))",
            (orjson.dumps(list(numbers)).decode(),),
        )


def _connect(name: str, *, uri: bool = False) -> sqlite3.Connection:
    connection = sqlite3.connect(
        name,
        timeout=_BUSY_TIMEOUT,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=_MOST_ROWS + 32,
        uri=uri,
    )
    connection.text_factory = _text
    return connection


def _connect_to_read(path: Path) -> sqlite3.Connection:
    """Connect without writing anything beside the file: no memory that is shared, and so no locks.

    The lock of the owner, and that nothing can be written there, keep others out.
    """
    log = Path(f"{path}-wal")
    how = "vfs=unix-none" if log.exists() and log.stat().st_size else "immutable=1"
    connection = _connect(f"{path.as_uri()}?mode=ro&{how}", uri=True)
    connection.execute("PRAGMA locking_mode=EXCLUSIVE")
    return connection


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")  # a damaged row must not raise


def _written(refusal: Refusal) -> str:
    try:
        return orjson.dumps(attrs.asdict(refusal)).decode()
    except TypeError:  # text that cannot be written (a lone surrogate): the dead letter matters more
        return orjson.dumps(attrs.asdict(Refusal("failed", "unreadable", at=refusal.at))).decode()


def _mentions(body: object, keys: frozenset[Key]) -> bool:
    """Whether an identifier stands anywhere in the bytes of a damaged row."""
    raw = body.encode() if isinstance(body, str) else body
    if not isinstance(raw, bytes):
        return False
    named = (orjson.loads(key) if isinstance(key, bytes) else {"id": key} for key in keys)
    return any(orjson.dumps(value) in raw for identifiers in named for value in identifiers.values())


def _names(body: object, keys: frozenset[Key]) -> bool:
    """Whether an operation is about, or names, one of these."""
    if not isinstance(body, bytes):
        return False
    try:
        key = decode(body).key
    except InvalidOperationError:
        return False
    return not keys.isdisjoint(key if isinstance(key, tuple) else (key,))
